"""A Slurm of one node on this machine's loopback device, for a test: its own keys, ports, state and logs in one folder."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "squeue")
START_SECONDS = 30
CONFIG = """\
ClusterName=moesaic
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 Port={node} CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing() -> str:
    """Why there can be no Slurm here; nothing if there can."""
    absent = [program for program in PROGRAMS if _found(program) is None]
    if absent:
        return f"{', '.join(absent)} of Debian's slurm-wlm and munge are not installed"
    return "" if os.getuid() == 0 else "only root can start Slurm's daemons"


@contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """The environment variables for Slurm's commands, while it runs. Raises `RuntimeError` where it does not start."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    folder.chmod(0o755)
    ports = _free_ports(2)
    config = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    config.write_text(
        CONFIG.format(
            host=host, user=getpass.getuser(), folder=folder, cpus=os.cpu_count(), controller=ports[0], node=ports[1]
        )
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    environment = {"SLURM_CONF": str(config)}
    munge = ["--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    with ExitStack() as stack:
        stack.enter_context(_daemon(folder, "munged", *munge))
        stack.enter_context(_daemon(folder, "slurmctld", "-D", "-i", "-f", str(config)))
        stack.enter_context(_daemon(folder, "slurmd", "-D", "-N", host, "-f", str(config)))
        _wait_until_idle({**os.environ, **environment}, folder)
        try:
            yield environment
        finally:
            _wait_until_left({**os.environ, **environment})


@contextmanager
def _daemon(folder: Path, name: str, *arguments: str) -> Iterator[None]:
    path = _found(name)
    assert path is not None
    with (folder / f"{name}.out").open("wb") as log:
        process = subprocess.Popen(
            [path, *arguments], stdout=log, stderr=log, env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, check=False
        )
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = [(folder / f"{name}.out").read_text(errors="replace")[-600:] for name in ("munged", "slurmctld", "slurmd")]
    raise RuntimeError(f"Slurm did not start ({done.stdout.strip()} {done.stderr.strip()}): {' | '.join(logs)}")


def _wait_until_left(environment: dict[str, str]) -> None:
    """Until no job is left, ended or not: without its daemons what serves a job's last step would wait for them."""
    subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=environment, capture_output=True, check=False)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        done = subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0 and not done.stdout.strip():
            return
        time.sleep(0.2)


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
