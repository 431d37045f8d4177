"""How ranks reach each other: environment variables that gloo and NCCL read."""

from __future__ import annotations

import os


def network_defaults(*, loopback: bool, shared_gpu_rank: int | None = None) -> dict[str, str]:
    """Environment variables for a rank, where the user has set none of them.

    `loopback`: all ranks are on this host. `shared_gpu_rank`: NCCL refuses two ranks on one GPU of a host, so each
    gets a host of its own and talks over sockets. NVLink multicast stays off unless asked for.
    """
    values = {"NCCL_NVLS_ENABLE": "0"}
    if loopback:
        values |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    if shared_gpu_rank is not None:
        values["NCCL_HOSTID"] = f"moesaic-rank-{shared_gpu_rank}"
    return {key: value for key, value in values.items() if key not in os.environ}
