"""Hosts made of network namespaces, joined by a switch, each on a link that is as slow as asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

DEVICE = "net0"
SETTINGS = {"tcp_wmem": "4096 65536 262144", "tcp_rmem": "4096 65536 262144", "tcp_slow_start_after_idle": "0"}


@dataclass(frozen=True)
class Host:
    """A namespace and the address of its only device besides loopback."""

    namespace: str
    address: str

    def start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            env={**os.environ, **environment, "GLOO_SOCKET_IFNAME": DEVICE},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@contextmanager
def joined_hosts(count: int, rate: str) -> Iterator[list[Host]]:
    """`count` hosts on one switch; what each sends and what it receives is throttled to `rate` (as tc writes it)."""
    prefix = f"moe{os.getpid()}"
    switch = f"{prefix}s"
    names = [f"{prefix}h{index}" for index in range(count)]
    try:
        _ip(f"netns add {switch}")
        _ip(f"-n {switch} link add br0 type bridge")
        _ip(f"-n {switch} link set br0 up")
        hosts = []
        for index, name in enumerate(names):
            host = Host(name, f"10.77.0.{index + 1}")
            _ip(f"netns add {name}")
            _ip(f"-n {name} link add {DEVICE} type veth peer name port{index} netns {switch}")
            _ip(f"-n {switch} link set port{index} master br0 up")
            _ip(f"-n {name} address add {host.address}/24 dev {DEVICE}")
            _ip(f"-n {name} link set lo up")
            _ip(f"-n {name} link set {DEVICE} up")
            # Less on the way than the queues hold: nothing is dropped, as on the networks that GPUs are joined by.
            for key, value in SETTINGS.items():
                _run(["ip", "netns", "exec", name, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{key}"])
            for namespace, device in ((name, DEVICE), (switch, f"port{index}")):
                tbf = f"tc qdisc add dev {device} root tbf rate {rate} burst 1mb latency 200ms"
                _run(["ip", "netns", "exec", namespace, *tbf.split()])
            hosts.append(host)
        yield hosts
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def why_not() -> str:
    """Why no such hosts can be made here; empty where they can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"network namespaces cannot be made here: {tool} is missing (Debian's package iproute2)"
    try:
        with joined_hosts(1, "400mbit"):
            return ""
    except RuntimeError as error:
        return f"network namespaces cannot be made here: {error}"


def _ip(arguments: str) -> None:
    _run(["ip", *arguments.split()])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
