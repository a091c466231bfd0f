"""A closed loop of clients on kept-alive connections, in one thread; checks that each answer is
complete.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSING = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
PATIENCE = 40.0  # seconds until what has not been answered counts as failed
_LAST = b"\r\n0\r\n\r\n"  # how a chunked body ends


class Ask(NamedTuple):
    """What is sent, and what a whole answer to it contains."""

    request: bytes
    want: bytes
    times: int = 1
    end: bytes = b""


def post(
    path: str, body: Mapping[str, Any], want: str, *, key: str = "", times: int = 1, end: str = ""
) -> Ask:
    data = json.dumps(body).encode()
    login = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{login}Content-Length: {len(data)}\r\n\r\n"
    return Ask(head.encode() + data, want.encode(), times, end.encode())


def get(path: str) -> Ask:
    return Ask(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode(), b"")


class Tally:
    """What came of it: times in seconds, one for each answer that was whole."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.probes: list[float] = []
        self.failed = 0
        self.failure = ""  # what the first failure looked like

    @property
    def answered(self) -> int:
        return len(self.latencies)

    def fail(self, answer: bytes) -> None:
        self.failure = self.failure or (answer[:300].decode(errors="replace") or "no answer")
        self.failed += 1


class Lane:
    """One connection and the request that it repeats."""

    __slots__ = ("ask", "at", "first", "inbox", "need", "port", "probe", "socket")

    def __init__(self, port: int, ask: Ask, *, probe: bool = False) -> None:
        self.ask = ask
        self.port = port
        self.probe = probe
        self.socket = _connect(port)

    def send(self) -> None:
        self.inbox, self.need, self.first = b"", 0, 0.0
        self.at = time.perf_counter()
        sent = self.socket.send(self.ask.request)
        if sent < len(self.ask.request):  # larger than the socket's buffer
            self.socket.settimeout(PATIENCE)
            self.socket.sendall(memoryview(self.ask.request)[sent:])
            self.socket.setblocking(False)

    def receive(self) -> bool | None:
        """Take in what has come; return whether the answer is whole, or None if there is more to
        come.
        """
        try:
            data = self.socket.recv(262144)
        except OSError:
            data = b""
        if not data:
            return False
        if not self.inbox:
            self.first = time.perf_counter()
        self.inbox += data
        if not self.need:
            self.need = _size(self.inbox)
        over = self.inbox.endswith(_LAST) if self.need < 0 else 0 < self.need <= len(self.inbox)
        return self._good() if over else None

    def _good(self) -> bool:
        inbox, ask = self.inbox, self.ask
        return (
            inbox.startswith(b"HTTP/1.1 200")
            and inbox.count(ask.want) >= ask.times
            and ask.end in inbox[-300:]
        )


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setblocking(False)
    return connection


def _size(inbox: bytes) -> int:
    """Return the size of an answer, with its head; -1: it comes in chunks; 0: its head is not here
    yet.
    """
    end = inbox.find(b"\r\n\r\n")
    if end < 0:
        return 0
    found = LENGTH.search(inbox, 0, end)
    return end + 4 + int(found[1]) if found else -1


class Load:
    """Drives *connections* that send *ask* to *port* again and again for *seconds*, or once each if
    that is 0. With *others*, each of these lanes (a port and what it is asked) is driven as well.

    Meanwhile one more connection sends *probe* every 50 ms, and *look* is called once, after its
    number of seconds.
    """

    def __init__(
        self,
        port: int,
        ask: Ask,
        connections: int,
        seconds: float = 0.0,
        *,
        probe: Ask | None = None,
        look: tuple[float, Callable[[], None]] | None = None,
        others: Sequence[tuple[int, Ask]] = (),
    ) -> None:
        self._seconds = seconds
        self._look = look
        self._poll = select.epoll()
        self._lanes: dict[int, Lane] = {}
        self._probe = Lane(port, probe, probe=True) if probe else None
        self._busy = connections + len(others)
        for lane in (
            *(Lane(port, ask) for _ in range(connections)),
            *(Lane(*other) for other in others),
            *([self._probe] if self._probe else []),
        ):
            self._open(lane)
        self._next_probe = 0.0
        self.tally = Tally()

    def run(self) -> Tally:
        start = time.perf_counter()
        self._until = start + self._seconds
        for lane in self._lanes.values():
            if not lane.probe:
                lane.send()
        while self._busy and time.perf_counter() < self._until + PATIENCE:
            for number, _ in self._poll.poll(0.05 if self._probe or self._look else 1.0):
                self._received(self._lanes[number])
            self._meanwhile(time.perf_counter() - start)
        self.tally.seconds = time.perf_counter() - start
        self._end()
        return self.tally

    def _received(self, lane: Lane) -> None:
        whole = lane.receive()
        if whole is None:
            return
        now = time.perf_counter()
        if lane.probe:
            if whole:
                self.tally.probes.append(now - lane.at)
            self._next_probe = now + 0.05
        elif whole:
            self.tally.latencies.append(now - lane.at)
            self.tally.firsts.append(lane.first - lane.at)
        else:
            self.tally.fail(lane.inbox)
        self._again(lane, whole, now)

    def _again(self, lane: Lane, whole: bool, now: float) -> None:
        if not lane.probe and now >= self._until:
            self._busy -= 1
            self._close(lane)
            return
        if not whole or CLOSING.search(lane.inbox, 0, lane.inbox.find(b"\r\n\r\n") + 1):
            self._close(lane)
            lane.socket = _connect(lane.port)
            self._open(lane)
        if not lane.probe:
            lane.send()

    def _open(self, lane: Lane) -> None:
        self._lanes[lane.socket.fileno()] = lane
        self._poll.register(lane.socket, select.EPOLLIN)

    def _close(self, lane: Lane) -> None:
        self._poll.unregister(lane.socket)
        del self._lanes[lane.socket.fileno()]
        lane.socket.close()

    def _meanwhile(self, passed: float) -> None:
        if self._look and passed >= self._look[0]:
            self._look[1]()
            self._look = None
        if self._probe and time.perf_counter() >= self._next_probe:
            self._next_probe = float("inf")  # until it is answered
            self._probe.send()

    def _end(self) -> None:
        for _ in range(self._busy):
            self.tally.fail(b"")
        for lane in list(self._lanes.values()):
            self._close(lane)
        self._poll.close()
