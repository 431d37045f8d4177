"""Imported by the server alone that local ranks are forked from, so that they find torch and their code in memory."""

from __future__ import annotations

import atexit
import os

from stages.update.process import run_rank  # noqa: F401
from stages.update.worker import save_update  # noqa: F401

# The server has nothing to clean up, and taking torch down takes a second in which it would outlive the run.
atexit.register(os._exit, 0)
