"""Hosts of one network, made of network namespaces: each has an address of its own, and its link can be cut."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

_numbers = itertools.count()


@dataclass(frozen=True)
class Host:
    """`namespace` None: this machine itself, where there are no namespaces."""

    address: str
    namespace: str | None = None

    def command(self, *words: str) -> list[str]:
        """`words` as they run on this host."""
        return [*(("ip", "netns", "exec", self.namespace) if self.namespace else ()), *words]


@dataclass
class Network:
    hosts: list[Host]
    _switch: str = ""
    _made: list[str] = field(default_factory=list)

    def cut(self, number: int) -> None:
        """What leaves a host or goes to it is lost from now on; its own end of the link does not notice."""
        ip("-n", self._switch, "link", "set", f"port{number}", "down")

    def mend(self, number: int) -> None:
        ip("-n", self._switch, "link", "set", f"port{number}", "up")


@contextmanager
def network(count: int) -> Iterator[Network]:
    """`count` hosts that reach each other; the test is skipped where they cannot be made."""
    if why := why_not():
        pytest.skip(f"this test needs network namespaces: {why}")
    mark = f"moesaic-{os.getpid()}-{next(_numbers)}"
    made: list[str] = []

    def namespace(name: str) -> str:
        ip("netns", "add", f"{mark}-{name}")
        made.append(f"{mark}-{name}")
        ip("-n", made[-1], "link", "set", "lo", "up")
        return made[-1]

    try:
        switch = namespace("switch")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        hosts = []
        for number in range(count):
            host, address = namespace(f"host{number}"), f"10.77.0.{number + 1}"
            ip("-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "name", "fabric0", "netns", host)
            ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", host, "address", "add", f"{address}/24", "dev", "fabric0")
            ip("-n", host, "link", "set", "fabric0", "up")
            hosts.append(Host(address, host))
        yield Network(hosts, switch)
    finally:
        for name in made:
            ip("netns", "delete", name)


def why_not() -> str:
    """Why there are no namespaces here; empty where there are."""
    if shutil.which("ip") is None:
        return "the command ip (package iproute2) is missing"
    name = f"moesaic-{os.getpid()}-probe"
    words = [["ip", "netns", "add", name], ["ip", "netns", "exec", name, "true"]]
    said = ""
    for command in words:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = said or (done.stderr.strip() or "ip failed" if done.returncode else "")
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return said


@contextmanager
def hosts_or_loopback(count: int) -> Iterator[list[Host]]:
    """`count` hosts; where they cannot be made, all are this machine."""
    if why_not():
        yield [Host("127.0.0.1")] * count
        return
    with network(count) as made:
        yield made.hosts


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
