"""Imported by the server alone that local ranks are forked from, so that they find torch and their code in memory."""
# ruff: noqa: E402

from __future__ import annotations

import signal

# A terminal sends Ctrl-C to the server too, which has nothing to say about it while it imports.
_before = signal.signal(signal.SIGINT, signal.SIG_IGN)

import atexit
import gc
import os

import numpy as np

from stages.batches import cut
from stages.direct import direct_transfers
from stages.update.process import run_rank  # noqa: F401
from stages.update.worker import save_update  # noqa: F401

# What numba has compiled is in memory too.
cut(direct_transfers(np.array([[0, 1]]), np.array([[1, 0]]), 2, 2, 1), 1, 2, 2, rows=2, at_once=1)

gc.collect()
gc.freeze()  # ranks need not look through all this when they collect garbage, nor get a copy of it by doing so

# The server has nothing to clean up, and taking torch down takes a second in which it would outlive the run.
atexit.register(os._exit, 0)
signal.signal(signal.SIGINT, _before)
