"""How ranks reach each other: environment variables that gloo and NCCL read."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

SIOCGIFADDR = 0x8915
"""Linux's request for the address of an interface (netdevice(7))."""


def network_defaults(
    *, loopback: bool, shared_gpu_rank: int | None = None, meeting_place: str | None = None
) -> dict[str, str]:
    """Environment variables for a rank, where the user has set none of them.

    `loopback`: all ranks are on this host. `shared_gpu_rank`: NCCL refuses two ranks on one GPU of a host, so each
    gets a host of its own and talks over sockets. `meeting_place`: the address of rank 0: gloo uses the interface that
    leads there, since a host's own name often stands for its loopback device. NVLink multicast stays off unless asked
    for.
    """
    values = {"NCCL_NVLS_ENABLE": "0"}
    if loopback:
        values |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    elif meeting_place is not None and (interface := interface_towards(meeting_place)):
        values["GLOO_SOCKET_IFNAME"] = interface
    if shared_gpu_rank is not None:
        values["NCCL_HOSTID"] = f"moesaic-rank-{shared_gpu_rank}"
    return {key: value for key, value in values.items() if key not in os.environ}


def interface_towards(address: str) -> str | None:
    """The network interface that packets to `address` leave by, or that has this address; None if that is not clear."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                if _address(probe, name) == own:
                    return name
    except OSError:
        pass
    return None


def _address(probe: socket.socket, name: str) -> str | None:
    try:
        found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:
        return None
    return socket.inet_ntoa(found[20:24])
