"""Reports spans to TokenTrace from background threads, over persistent connections."""

from __future__ import annotations

import contextlib
import io
import time
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from ..protocol import TRACE_SPAN, Message, TraceSpan
from ..types import is_readable
from .exporter import Exporter, Send, dropped, flush_all

__all__ = ["Reporter", "dropped", "flush_all"]

TIMEOUT_SECONDS = 1.0  # to connect, to send, and for each part of the response
ANSWER_PARTS = 2  # so many times that long for the whole response
MAX_BODY = 65536  # bytes of a response that are read to keep its connection open
HEADERS = {"User-Agent": "infermux", "Content-Type": "application/json"}


class Reporter(Exporter[TraceSpan]):
    """POSTs spans as MIST messages to *url*/mist; without *url*, does nothing."""

    def __init__(
        self, source: str = "infermux", url: str = "", *, threads: int = 2, size: int = 1000
    ) -> None:
        super().__init__("TokenTrace does not accept spans", threads=threads, size=size)
        self.source = source
        self.url = url.rstrip("/") + "/mist" if url else ""

    def report(self, span: TraceSpan) -> None:
        """Queue one span; drop and count it if the queue is full."""
        if self.url:
            self.put(span)

    def sender(self) -> Send[TraceSpan]:
        """Return a function that sends spans over its own connection."""
        connection: HTTPConnection | None = None
        descriptor: int | None = None  # of the open connection
        path = ""

        def send(spans: list[TraceSpan]) -> int:
            nonlocal connection, descriptor, path
            if connection is None:  # here, where an error only drops spans
                connection, path = unopened(self.url)
            lost = 0
            for span in spans:
                message = Message.wrap(self.source, TRACE_SPAN, span.to_dict(), checksum=True)
                kept, descriptor = descriptor, None
                status, descriptor = _post(connection, kept, path, message.to_bytes())
                lost += not 200 <= status < 300
            return lost

        return send


class _Reader(io.RawIOBase):
    """Reads a socket for so many seconds in all, however small the parts are."""

    def __init__(self, sock: Any, seconds: float) -> None:
        self._sock, self._file = sock, sock.makefile("rb", buffering=0)
        self._end = time.monotonic() + seconds

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._file.fileno())

    def readinto(self, buffer: Any) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the response takes too long")
        if left < self._sock.gettimeout():
            self._sock.settimeout(left)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(HTTPResponse):
    """A response that must end in time."""

    def __init__(self, sock: Any, *, method: str, seconds: float) -> None:
        reader: Any = _Reader(sock, seconds)
        super().__init__(reader, method=method)


def unopened(url: str, seconds: float = TIMEOUT_SECONDS) -> tuple[HTTPConnection, str]:
    """Return an unopened connection and the path to POST to; raise ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an HTTP URL")
    kind: Any = HTTPConnection
    if parts.scheme == "https":
        import ssl

        import certifi  # the certificates that requests trusts

        trusted = ssl.create_default_context(cafile=certifi.where())
        kind = partial(HTTPSConnection, context=trusted)
    connection = kind(parts.hostname, parts.port, timeout=seconds)
    connection.response_class = partial(_Response, seconds=seconds * ANSWER_PARTS)
    query = f"?{parts.query}" if parts.query else ""
    return connection, parts.path.replace(" ", "%20") + query


def _post(
    connection: HTTPConnection, kept: int | None, path: str, body: bytes
) -> tuple[int, int | None]:
    """POST *body* and return the HTTP status; raise OSError, ValueError or HTTPException.

    *kept* is the descriptor of an open connection. The second value is that for the next call: None
    unless the response was read to its end.
    """
    try:
        if kept is not None and is_readable(kept):
            connection.close()  # TokenTrace has closed it, or sent more than it announced
        if connection.sock is not None:
            connection.sock.settimeout(TIMEOUT_SECONDS)  # the last response may have shortened it
        connection.request("POST", path, body, HEADERS)
        response = connection.getresponse()
        descriptor = response.fileno()
    except BaseException:
        connection.close()
        raise
    with contextlib.suppress(OSError, HTTPException):  # only the status matters
        response.read(MAX_BODY)
    whole = response.isclosed()
    if not whole:
        connection.close()
    return response.status, descriptor if whole else None
