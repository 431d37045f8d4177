"""Credentials of the tracking store come from the environment alone, and never get into what a run writes or says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

from stages.errors import BadInput

VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY")
IN_ADDRESS = re.compile(r"(\w[\w+.-]*://[^\s/:@?#]*):([^\s/@]+)@")
IN_QUERY = re.compile(r"([?&](?:password|passwd|token)=)([^&\s]+)", re.IGNORECASE)
HOW = (
    "MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for a server; "
    "PGUSER with PGPASSWORD, or ~/.pgpass, for PostgreSQL"
)


def has_password(text: str) -> bool:
    return bool(IN_ADDRESS.search(text) or IN_QUERY.search(text))


def hidden(text: str) -> str:
    """`text` without the passwords of addresses in it, and without those of the environment."""
    text = IN_QUERY.sub(r"\1***", IN_ADDRESS.sub(r"\1:***@", text))
    uri = IN_ADDRESS.search(os.environ.get("MLFLOW_TRACKING_URI", ""))
    secrets = [os.environ.get(name, "") for name in VARIABLES]
    secrets += [uri[2], unquote(uri[2])] if uri else []
    for secret in secrets:
        if len(secret) >= 4:  # shorter ones would black out words
            text = text.replace(secret, "***")
    return text


def refuse_in(settings: Iterable[str]) -> None:
    """Raise `BadInput` if one of `settings` (`key=value`), which are kept for the record, holds a password."""
    for setting in settings:
        if "tracking." in setting and has_password(setting):
            key = setting.partition("=")[0].lstrip("+")
            raise BadInput(f"{key} holds a password, and config is recorded: give it by the environment ({HOW}).")
