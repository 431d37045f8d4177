"""A wire to a server that can be cut: refuses connections, or swallows the answers to requests that did arrive."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Literal, Self

Mode = Literal["whole", "cut", "no answers"]


class Wire:
    """Forwards connections from a port of its own, `port`, to `target` on loopback, as `mode` says."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode: Mode = "whole"
        self.swallowed = 0
        self._open: set[socket.socket] = set()
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def become(self, mode: Mode) -> None:
        """Cut it, mend it, or let answers be lost; connections that are open are dropped."""
        if self.mode == "cut" != mode:
            self._listener = self._listen(self.port)
        if mode == "cut" != self.mode:
            _close(self._listener)
        self.mode = mode
        for end in list(self._open):
            _close(end)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self.mode == "cut":
                _close(client)
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            self._open |= {client, server}
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if answers and self.mode == "no answers":
                    self.swallowed += 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            _close(end)
            self._open.discard(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.become("cut")


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        end.close()
