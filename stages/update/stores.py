"""The key-value stores of torch.distributed that ranks meet at."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

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


class Line:
    """Calls to a store, each of which is answered within `patience` seconds or raises `RuntimeError`: torch would wait
    for ever where a link is cut. Once it was silent the line is dead."""

    def __init__(self, store: Store, place: str, patience: float) -> None:
        self.patience = patience
        self._store, self._place, self._dead = store, place, False
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True, name="moesaic-line").start()

    def set(self, key: str, value: str) -> None:
        self._ask("set", key, value)

    def get(self, key: str) -> str:
        """Only where the key is there."""
        return self._ask("get", key).decode()

    def check(self, key: str) -> bool:
        return self._ask("check", [key])

    def add(self, key: str, amount: int) -> int:
        return self._ask("add", key, amount)

    def compare_set(self, key: str, expected: str, desired: str) -> str:
        return self._ask("compare_set", key, expected, desired).decode()

    def _ask(self, name: str, *arguments: Any) -> Any:
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        if not self._dead:
            self._calls.put((name, arguments, answer))
            try:
                found = answer.get(timeout=self.patience)
            except queue.Empty:
                self._dead = True
            else:
                if isinstance(found, Exception):
                    raise found
                return found
        raise RuntimeError(f"{self._place} has not answered for {self.patience:g} seconds")

    def _serve(self) -> None:
        while True:
            name, arguments, answer = self._calls.get()
            try:
                answer.put(getattr(self._store, name)(*arguments))
            except Exception as error:  # raised where the answer is awaited
                answer.put(error)
