"""How SQLite commits: it makes and removes its journal each time, and waits for the folder to be on disk; one that stays
is as safe and costs less."""

from __future__ import annotations

import sqlite3
from typing import Any


def keep_journals() -> None:
    """Have all connections to SQLite files that are opened from now on keep their journals."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "connect", _keep_journal):
        event.listen(Engine, "connect", _keep_journal)


def _keep_journal(connection: Any, record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA journal_mode = PERSIST").close()
