"""A network for the tests that fails on command: a TCP proxy on loopback."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Self

from support import PATIENCE


class _Pair:
    """A client's connection and the server's that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.directions = 2  # that still wait for data
        self.answered = True  # whether the server was the last to send
        for sock in (client, server):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wake(self, *, reset: bool = False) -> None:
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Proxy:
    """A TCP proxy whose network fails on command. `with` starts it.

    `target` is the port of the server, and may be set to another one: connections that exist stay.
    `delay` is how many seconds each packet takes, either way.
    """

    def __init__(self, target: int) -> None:
        self.target, self.delay, self.port = target, 0.0, 0
        self.accepted = 0  # connections so far
        self.turns = 0  # answers that were followed by more from the client: round trips
        self._swallow_all = self._swallow_answers = False
        self._cut_at = b""
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.refuse()
        for thread in self._threads:
            thread.join(PATIENCE)

    # -- commands

    def accept(self) -> None:
        """Let everything pass again; cut connections of which something was swallowed."""
        if self._swallow_all or self._swallow_answers:
            self.cut()
        self.delay, self._swallow_all, self._swallow_answers = 0.0, False, False
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
            self.port = self._listener.getsockname()[1]
            self._run(self._serve, self._listener)

    def pass_on(self) -> None:
        """Let everything pass again; connections of which something was swallowed stay."""
        self._swallow_all = self._swallow_answers = False

    def cut(self) -> int:
        """Reset the connections that exist, on both sides; return how many."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
            ended = [pair for pair in pairs if not pair.directions]
        for pair in pairs:
            pair.wake(reset=True)
        for pair in ended:
            pair.close()  # the others close as their threads end
        return len(pairs)

    def cut_at(self, answer: bytes) -> None:
        """Cut a connection instead of passing on the next answer that contains *answer*."""
        self._cut_at = answer

    @property
    def has_cut(self) -> bool:
        """Whether that answer has come."""
        return not self._cut_at

    def refuse(self) -> None:
        """Cut everything, and refuse new connections: no host is there."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def swallow(self) -> None:
        """Accept connections and bytes, and pass none on: a cable is pulled, nobody is told."""
        self._swallow_all = True

    def swallow_answers(self) -> None:
        """Pass on what clients send, and nothing that the server answers: was it written?"""
        self._swallow_answers = True

    # -- threads

    def _run(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args)
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.target), PATIENCE)
            except OSError:
                client.close()
                continue
            pair = _Pair(client, server)
            with self._lock:
                self._pairs.add(pair)
            self._run(self._pass_on, pair, client, server)
            self._run(self._pass_on, pair, server, client)

    def _pass_on(self, pair: _Pair, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self.turns += pair.answered and to is not pair.client
                pair.answered = to is pair.client
                if self.delay:
                    self._over.wait(self.delay)
                if self._cut_at and to is pair.client and self._cut_at in data:
                    self._cut_at = b""
                    break
                if not self._swallow_all and not (self._swallow_answers and to is pair.client):
                    to.sendall(data)
        with self._lock:
            pair.directions -= 1
            # An end that is swallowed does not arrive either: `cut` closes.
            kept = self._swallow_all and pair in self._pairs
            if not kept:
                self._pairs.discard(pair)
        if not kept:
            pair.wake()
            if not pair.directions:
                pair.close()
