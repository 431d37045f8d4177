"""Where the tracking store is: the kinds of stores, and the address that config and environment come to."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.credentials import hidden
from stages.errors import BadInput, MoesaicError

DEFAULT_STORE = Path("outputs/mlflow.db")
SQLITE = "sqlite:///"
HTTP = ("http://", "https://")
POSTGRES = ("postgresql", "postgres:")
ENVIRONMENT = "MLFLOW_TRACKING_URI"
DRIVERS = ("psycopg", "psycopg2")
SCHEMES = ("sqlite", "http", "https", "postgresql", "postgres", "mysql", "mssql", "databricks", "databricks-uc")
EXPERIMENT = "moesaic"


@dataclass(frozen=True)
class Kind:
    """`prefixes` of its addresses, the address that it has by default, and how to say what is expected."""

    prefixes: tuple[str, ...]
    default: str
    what: str

    def takes(self, uri: str) -> bool:
        return uri.startswith(self.prefixes)


KINDS = {
    "any": Kind(("",), f"{SQLITE}{DEFAULT_STORE}", "any that MLflow knows"),
    "sqlite": Kind((SQLITE,), f"{SQLITE}{DEFAULT_STORE}", "sqlite:///FILE"),
    "server": Kind(HTTP, "http://127.0.0.1:5000", "http://HOST:PORT or https://…"),
    "postgres": Kind(POSTGRES, "postgresql://", "postgresql://HOST:PORT/DATABASE, or postgresql:// for that of PGHOST"),
}


def tracking_uri(configured: str | None = None, kind: str = "any") -> str:
    """The configured URI, else MLFLOW_TRACKING_URI if it is of the kind, else where one is by default."""
    known = KINDS[kind]
    given = os.environ.get(ENVIRONMENT, "")
    uri = configured or (given if given and known.takes(given) else known.default)
    if uri.partition(":")[0].partition("+")[0] not in SCHEMES:
        raise BadInput(
            f"{hidden(uri)} is no address of a tracking store: sqlite:///FILE, http://HOST:PORT and "
            "postgresql://HOST:PORT/DATABASE are."
        )
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    return with_driver(uri) if uri.startswith(POSTGRES) else uri


CHOICES = {"default": "any", "sqlite": "sqlite", "server": "server", "postgres": "postgres"}
"""The kind of store that each choice of the config group `tracking` means."""


def from_command_line(uri: str | None, choice: str) -> str:
    """The store of `--tracking-uri URI` and `--tracking CHOICE`, as `moesaic run tracking=CHOICE tracking.uri=URI` finds
    it."""
    kind = CHOICES[choice]
    if uri and not KINDS[kind].takes(uri):
        raise BadInput(f"--tracking-uri {hidden(uri)} is no address for --tracking {choice}: {KINDS[kind].what}.")
    return tracking_uri(uri, kind)


def options_for(uri: str, experiment: str) -> str:
    """What other commands of this shell must be given, after their name, to find the store: mostly nothing."""
    options = [] if uri == tracking_uri() else ["--tracking-uri", hidden(uri)]
    if experiment != EXPERIMENT:
        options += ["--experiment", experiment]
    return "".join(f" {shlex.quote(option)}" for option in options)


def with_driver(uri: str) -> str:
    """The address of a PostgreSQL database, with a driver that is installed here unless it names one."""
    scheme, _, rest = uri.partition("://")
    if "+" in scheme:
        return uri
    driver = next((name for name in DRIVERS if find_spec(name)), None)
    if driver is None:
        raise MoesaicError("PostgreSQL needs a driver here: pip install 'moesaic[postgres]'.")
    return f"postgresql+{driver}://{rest}"
