"""Hosts made of network namespaces, joined by a switch, each on a link that is as slow as asked for and can be cut."""

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
    """A namespace and the address of its only device besides loopback, and where its link ends: a port of the switch,
    another namespace. Without a namespace: this machine itself."""

    address: str
    namespace: str = ""
    switch: str = ""
    port: str = ""

    def command(self, *words: str) -> list[str]:
        """`words` as they run on this host."""
        return [*(("ip", "netns", "exec", self.namespace) if self.namespace else ()), *words]

    def cut(self) -> None:
        """From now on what leaves the host or goes to it is lost; its own end of the link does not notice."""
        _ip(f"-n {self.switch} link set {self.port} down")

    def start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*command),
            env={**os.environ, **environment, "GLOO_SOCKET_IFNAME": DEVICE},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@contextmanager
def joined_hosts(count: int, rate: str | None = None) -> Iterator[list[Host]]:
    """`count` hosts on one switch; what each sends and what it receives is throttled to `rate` (as tc writes it), if any."""
    prefix = f"moe{os.getpid()}"
    switch = f"{prefix}s"
    names = [f"{prefix}h{index}" for index in range(count)]
    try:
        _ip(f"netns add {switch}")
        _ip(f"-n {switch} link add br0 type bridge")
        _ip(f"-n {switch} link set br0 up")
        hosts = []
        for index, name in enumerate(names):
            host = Host(f"10.77.0.{index + 1}", name, switch, f"port{index}")
            _ip(f"netns add {name}")
            _ip(f"-n {name} link add {DEVICE} type veth peer name port{index} netns {switch}")
            _ip(f"-n {switch} link set port{index} master br0 up")
            _ip(f"-n {name} address add {host.address}/24 dev {DEVICE}")
            _ip(f"-n {name} link set lo up")
            _ip(f"-n {name} link set {DEVICE} up")
            hosts.append(host)
            if rate is None:
                continue
            # Less on the way than the queues hold: nothing is dropped, as on the networks that GPUs are joined by.
            for key, value in SETTINGS.items():
                _run(["ip", "netns", "exec", name, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{key}"])
            for namespace, device in ((name, DEVICE), (switch, f"port{index}")):
                tbf = f"tc qdisc add dev {device} root tbf rate {rate} burst 1mb latency 200ms"
                _run(["ip", "netns", "exec", namespace, *tbf.split()])
        yield hosts
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextmanager
def hosts_or_loopback(count: int) -> Iterator[list[Host]]:
    """`count` hosts; where they cannot be made, all are this machine."""
    if why_not(None):
        yield [Host("127.0.0.1")] * count
        return
    with joined_hosts(count) as hosts:
        yield hosts


def why_not(rate: str | None = "400mbit") -> str:
    """Why no such hosts can be made here; empty where they can."""
    for tool in ("ip", *(("tc",) if rate else ())):
        if shutil.which(tool) is None:
            return f"network namespaces cannot be made here: {tool} is missing (Debian's package iproute2)"
    try:
        with joined_hosts(1, rate):
            return ""
    except RuntimeError as error:
        return f"network namespaces cannot be made here: {error}"


def _ip(arguments: str) -> None:
    _run(["ip", *arguments.split()])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
