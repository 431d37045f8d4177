"""`moesaic ui`: MLflow's own UI on the configured store, reachable from this machine alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from pipeline import view
from pipeline.credentials import hidden
from pipeline.lifecycle import Terminated, ending_raises
from pipeline.store import Store
from stages.errors import BadInput

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight helpers that a viewer has no use for
    "PYTHONWARNINGS": "ignore",
}


def serve(store_uri: str, experiment: str, port: int) -> int:
    """Serve until interrupted. A tracking server is a UI itself: then its address is all there is to say."""
    if store_uri.startswith(("http://", "https://")):
        sys.stdout.write(f"The tracking server serves its own UI: {hidden(store_uri)}\n")
        return 0
    store = Store(store_uri, experiment, create=False)  # one clear sentence if there is no store
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise BadInput(f"Port {port} is in use: choose another with --port.")
    view.set_view(store)
    page = view.page(store, f"http://127.0.0.1:{port}")
    sys.stdout.write(f"The runs: {page} (Ctrl-C ends the server)\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    # The address may hold a password, which a command line would show to all.
    server = subprocess.Popen(command, env={**os.environ, **QUIET, "MLFLOW_BACKEND_STORE_URI": store_uri})
    try:
        with ending_raises():
            return server.wait()
    except (KeyboardInterrupt, Terminated):
        return 0
    finally:
        server.terminate()
        server.wait()
