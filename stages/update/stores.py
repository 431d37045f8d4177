"""The key-value stores of torch.distributed that ranks meet at."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

TCPStore = dist.TCPStore  # type: ignore[attr-defined]


@contextmanager
def loopback_store() -> Iterator[int]:
    """Host a store on the loopback device within the block; its port, which the system chooses."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    yield port
    del store


def host_store(port: int) -> Store:
    """Host a store on all of this machine's addresses for as long as the object lives."""
    return TCPStore("0.0.0.0", port, is_master=True, wait_for_workers=False)


def join_store(address: str, port: int, timeout_seconds: float) -> Store:
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_seconds))


def prefixed(prefix: str, store: Store) -> Store:
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
