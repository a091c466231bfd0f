"""Reports spans to TokenTrace from background threads, over persistent connections."""

from __future__ import annotations

import contextlib
import io
import time
from functools import cache, partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, cast
from urllib.parse import urlsplit

from ..protocol import TRACE_SPAN, Message, TraceSpan
from ..types import is_readable
from .exporter import Exporter, Send

TIMEOUT_SECONDS = 1.0  # to connect, and for each wait
ANSWER_PARTS = 2  # so many times that long for the whole response
MAX_BODY = 65536  # bytes of a response that are read to keep its connection open
HEADERS = {"User-Agent": "infermux", "Content-Type": "application/json"}


class Reporter(Exporter[TraceSpan]):
    """POSTs spans as MIST messages to *url*/mist; without *url*, does nothing."""

    def __init__(
        self, source: str = "infermux", url: str = "", *, threads: int = 2, size: int = 1000
    ) -> None:
        if "://" in source and not url:
            raise TypeError("the first argument is the name of the source: write Reporter(url=…)")
        super().__init__("TokenTrace does not accept spans", threads=threads, size=size)
        self.source = source
        self.url = url.rstrip("/") + "/mist" if url else ""

    def report(self, span: TraceSpan) -> None:
        """Queue one span; drop and count it if the queue is full."""
        if self.url:
            self.put(span)

    def sender(self) -> Send[TraceSpan]:
        """Return a function that sends spans over its own connection."""
        opened = cache(lambda: unopened(self.url))

        def send(spans: list[TraceSpan]) -> int:
            lost = 0
            for span in spans:
                message = Message.wrap(self.source, TRACE_SPAN, span.to_dict(), checksum=True)
                lost += not 200 <= _post(*opened(), message.to_bytes()) < 300
            return lost

        return send


class _Connection(HTTPConnection):
    """Sends a head with its body, in one packet, all within the timeout."""

    _head: bytes | None = None

    def send(self, data: Any) -> None:
        head, self._head = self._head, None
        if head is None:
            self._head = data
            return
        if self.sock is None:
            self.connect()
        left, end = memoryview(head + data), time.monotonic() + cast(float, self.timeout)
        while left := left[self.sock.send(left) :]:  # TLS sends it in records
            self.sock.settimeout(max(end - time.monotonic(), 1e-3))
        self.sock.settimeout(self.timeout)


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Reader(io.RawIOBase):
    """Reads a socket, all of it within ANSWER_PARTS times *seconds*."""

    def __init__(self, sock: Any, seconds: float) -> None:
        self._sock, self._file = sock, sock.makefile("rb", buffering=0)
        self._seconds, self._end = seconds, time.monotonic() + seconds * ANSWER_PARTS

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the response takes too long")
        if left < self._seconds:
            self._sock.settimeout(max(left, 1e-3))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def unopened(url: str, seconds: float = TIMEOUT_SECONDS) -> tuple[HTTPConnection, str]:
    """Return an unopened connection and the path to POST to; raise ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an HTTP URL")
    kind: Any = _Connection
    if parts.scheme == "https":
        import ssl

        import certifi  # the certificates that requests trusts

        trusted = ssl.create_default_context(cafile=certifi.where())
        kind = partial(_SecureConnection, context=trusted)
    connection = kind(parts.hostname, parts.port, timeout=seconds)
    connection.response_class = lambda sock, **more: HTTPResponse(
        cast(Any, _Reader(sock, seconds)), **more
    )
    query = f"?{parts.query}" if parts.query else ""
    return connection, parts.path.replace(" ", "%20") + query


def _post(connection: HTTPConnection, path: str, body: bytes) -> int:
    """POST *body* and return the HTTP status; raise OSError, ValueError or HTTPException."""
    try:
        if connection.sock is not None:
            if is_readable(connection.sock):  # closed, or more than was announced
                connection.close()
            else:
                connection.sock.settimeout(TIMEOUT_SECONDS)  # a response may have shortened it
        connection.request("POST", path, body, HEADERS)
        response = connection.getresponse()
    except BaseException:
        connection.close()
        raise
    with contextlib.suppress(OSError, HTTPException):  # only the status matters
        response.read(MAX_BODY)
    if not response.isclosed():
        connection.close()
    return response.status
