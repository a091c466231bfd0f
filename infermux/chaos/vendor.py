"""A vendor that fails on purpose, for tests: FaultyVendor speaks the chats of OpenAI, Anthropic and
Gemini on a loopback socket.

As a pytest plug-in (`pytest_plugins = ["infermux.testing"]`) it brings the fixture `faulty_vendor`.
PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple, Self

from .faults import AFTER, BEFORE, FAULTS, HEALTHY, WORDS, Fault, Peer, message, pieces, read

__all__ = ["AFTER", "BEFORE", "FAULTS", "Fault", "FaultyVendor", "Seen"]

_PATHS = {
    "openai": "/v1",
    "anthropic": "/v1",
    "gemini": "/v1beta",
    "azure": "/openai?api-version=2024-10-21",
}


class Seen(NamedTuple):
    """One request as the vendor saw it, without its prompt and its key."""

    path: str
    dialect: str  # "openai", "anthropic", "gemini"; empty for a path of none of them
    model: str
    streamed: bool
    fault: str  # empty: it was answered


class FaultyVendor:
    """A vendor on loopback that answers, or fails in the way that is set; leave it, and nothing of
    it is left.

    `with FaultyVendor("stall") as vendor:` gives its address as `vendor.url("openai")` and its
    right answer as `vendor.text`.
    """

    def __init__(
        self, fault: str | None = None, *, when: str = BEFORE, text: str | None = None
    ) -> None:
        self.text = (
            f"The quick brown fox jumps over the lazy dog, and says {secrets.token_hex(8)}"
            if text is None
            else text
        )
        if len(self.text) < 2:
            raise ValueError(
                "the text must have at least two characters, so that a stream of it can be cut"
            )
        self.connections = 0
        self._lock = threading.Lock()  # over what follows; never held while anything is sent
        self._fault, self._when, self._left = "", BEFORE, -1
        self._requests: list[Seen] = []
        self._socks: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._door = _bound(0)
        self.port: int = self._door.getsockname()[1]
        self._acceptor: threading.Thread | None = None
        try:
            self.when, self.fault = when, fault
        except ValueError:
            self._door.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, dialect: str = "openai") -> str:
        """Return the base URL for a client of *dialect*, as a provider's base_url takes it."""
        if dialect not in _PATHS:
            raise ValueError(f"there is no dialect {dialect!r}; there are {', '.join(_PATHS)}")
        return f"http://127.0.0.1:{self.port}{_PATHS[dialect]}"

    @property
    def fault(self) -> str | None:
        """The fault that requests meet, a name of FAULTS; None: they are answered."""
        return self._fault or None

    @fault.setter
    def fault(self, name: str | None) -> None:
        if name is not None and name not in FAULTS:
            raise ValueError(f"there is no fault {name!r}; there are {', '.join(FAULTS)}")
        with self._lock:
            self._fault, self._left = name or "", -1
        if name == "refused":
            self._refuse()
        elif self._acceptor is None and not self._stopped.is_set():
            self._listen()

    @property
    def when(self) -> str:
        """Whether a stream fails "before" its first token or "after" it, where the fault knows
        both.
        """
        return self._when

    @when.setter
    def when(self, when: str) -> None:
        if when not in (BEFORE, AFTER):
            raise ValueError(
                f"a stream fails {BEFORE!r} or {AFTER!r} its first token, not {when!r}"
            )
        self._when = when

    def fail_times(self, times: int, fault: str | None = None) -> None:
        """Let the next *times* requests meet the fault (or *fault*, from now on), and answer those
        that follow.
        """
        if fault is not None:
            self.fault = fault
        if self.fault in (None, "refused"):
            raise ValueError("set a fault whose requests arrive, so that they can be counted")
        with self._lock:
            self._left = times

    @property
    def requests(self) -> list[Seen]:
        """What was asked so far, in order."""
        with self._lock:
            return list(self._requests)

    def close(self) -> None:
        """End every connection and every thread."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._refuse()
            self._door.close()
            for thread in self._threads:
                thread.join()

    # -- the door ----------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._door.listen(128)
        self._acceptor = threading.Thread(target=self._accept, args=(self._door,), daemon=True)
        self._acceptor.start()

    def _refuse(self) -> None:
        """Stop listening without giving the port away: a socket that is bound and does not listen
        refuses connections.
        """
        if self._acceptor is not None:
            old, self._door = self._door, _bound(self.port)
            _shut(old)
            self._acceptor.join()
            self._acceptor = None
            old.close()
        with self._lock:
            socks = list(self._socks)
        for sock in socks:
            _shut(sock)

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                sock, _ = door.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            with self._lock:
                self._socks.add(sock)
                self._threads.append(thread)
                self.connections += 1
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with (
                sock,
                contextlib.suppress(OSError, ValueError),
            ):  # whoever asked has gone, or does not speak HTTP
                peer = Peer(sock, self._stopped)
                while (request := peer.request()) and self._answered(peer, *request):
                    pass
        finally:
            with self._lock:
                self._socks.discard(sock)

    def _answered(self, peer: Peer, path: str, body: bytes) -> bool:
        """Answer one request; return whether the connection can go on."""
        dialect, model, streamed = read(path, body)
        with self._lock:
            name, after = self._due(streamed) if dialect else "", self._when == AFTER
            self._requests.append(Seen(path.partition("?")[0], dialect, model, streamed, name))
        if not dialect:
            peer.send(message(404, b'{"error":{"message":"there is no such path"}}'))
            return True
        fault = FAULTS.get(name, HEALTHY)
        answer = WORDS[dialect](model, pieces(self.text))
        return fault.act(
            peer,
            answer._replace(streamed=streamed, after=streamed and after and AFTER in fault.stream),
        )

    def _due(self, streamed: bool) -> str:
        """Return the fault that a request meets now, and count it."""
        suits = self._fault and (
            FAULTS[self._fault].stream if streamed else FAULTS[self._fault].plain
        )
        if not suits or self._left == 0:
            return ""
        self._left = max(-1, self._left - 1)
        return self._fault


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEPORT, 1
        )  # so that its successor can be bound before it is closed
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


if (
    "pytest" in sys.modules
):  # only a test run needs the fixture, and whoever runs no tests may not have pytest
    import pytest

    @pytest.fixture
    def faulty_vendor() -> Iterator[FaultyVendor]:
        """A vendor that answers until its `fault` is set."""
        with FaultyVendor() as vendor:
            yield vendor
