"""What srun does, as far as moesaic can tell: starts a task for each process on each host, with Slurm's variables.

FAKE_HOSTS="[namespace …]" FAKE_NODELIST=… python -m tests.pipeline.fake_srun [--option …] COMMAND …
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def main(arguments: list[str]) -> int:
    command = list(arguments)
    while command[0].startswith("--"):
        del command[0]
    hosts, tasks = int(os.environ["SLURM_JOB_NUM_NODES"]), int(os.environ["SLURM_NTASKS"])
    namespaces = os.environ.get("FAKE_HOSTS", "").split()
    step = {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NUM_NODES": str(hosts),
        "SLURM_STEP_NODELIST": os.environ["FAKE_NODELIST"],
    }
    started = []
    for task in range(tasks):
        host, local = divmod(task, tasks // hosts)
        inside = ["ip", "netns", "exec", namespaces[host]] if namespaces else []
        own = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(host)}
        started.append(subprocess.Popen([*inside, *command], env={**os.environ, **step, **own}))
    signal.signal(signal.SIGTERM, lambda number, frame: [one.terminate() for one in started])
    return max(abs(one.wait()) for one in started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
