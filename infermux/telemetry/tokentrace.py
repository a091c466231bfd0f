"""Spans to TokenTrace, without the request path ever waiting for it."""

from __future__ import annotations

import re
import select
import socket
import time
from urllib.parse import urlsplit

from ..protocol import TRACE_SPAN, Message, TraceSpan
from .exporter import Exporter, Send, dropped, flush_all

__all__ = ["Reporter", "dropped", "flush_all"]

TIMEOUT = 1.0  # seconds to connect, to send, and for the answer
_ANSWER = 65536  # bytes of TokenTrace's answer that are read to keep its connection
_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})[ \r\n]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.I)
_CLOSE = re.compile(rb"\r\n(connection:[^\r]*close|transfer-encoding:)", re.I)


class Reporter(Exporter[TraceSpan]):
    """POSTs finished spans as MIST messages from a thread pool behind a bounded queue; with an
    empty URL it does nothing.
    """

    def __init__(
        self, source: str = "infermux", url: str = "", *, threads: int = 2, size: int = 1000
    ) -> None:
        super().__init__("TokenTrace does not take spans", threads=threads, size=size)
        self.source = source
        self.url = url.rstrip("/") + "/mist" if url else ""

    def report(self, span: TraceSpan) -> None:
        """Queue one span; drop and count it when the queue is full."""
        if self.url:
            self.put(span)

    def sender(self) -> Send[TraceSpan]:
        """Return what sends spans over a connection of its own."""
        connection = _Connection(self.url)

        def send(spans: list[TraceSpan]) -> int:
            messages = [
                Message.wrap(self.source, TRACE_SPAN, span.to_dict(), checksum=True).to_bytes()
                for span in spans
            ]
            return sum(not 200 <= connection.post(message) < 300 for message in messages)

        return send


class _Connection:
    """A kept connection that POSTs, and looks at no more of an answer than its status and its end.

    A span is one request more for each call: a client library's headers, pools and redirects would
    be most of what it costs.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._socket: socket.socket | None = None
        self._poll = select.poll()
        self._head = b""

    def post(self, body: bytes) -> int:
        """Return the status of the answer; raise OSError or ValueError if none came in time."""
        try:
            if self._socket is None or self._poll.poll(
                0
            ):  # what comes before a question is the end, or nothing that we want
                self._open()
            status, kept = self._exchange(body)
        except BaseException:
            self.close()
            raise
        if not kept:
            self.close()
        return status

    def close(self) -> None:
        """Let go of the connection; the next POST makes a new one."""
        if self._socket is not None:
            self._poll.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _open(self) -> None:
        self.close()
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http(s) address")
        host = parts.netloc.rpartition("@")[2].encode("idna")
        path = (
            (parts.path + (f"?{parts.query}" if parts.query else ""))
            .replace(" ", "%20")
            .encode("ascii")
        )
        self._head = (
            b"POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: infermux\r\nContent-Type: application/json\r\n"
            b"Content-Length: " % (path, host)
        )
        opened = socket.create_connection(
            (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), TIMEOUT
        )
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = _secured(opened, parts.hostname) if parts.scheme == "https" else opened
        except BaseException:
            opened.close()
            raise
        self._poll.register(self._socket, select.POLLIN)

    def _exchange(self, body: bytes) -> tuple[int, bool]:
        """Return the status, and whether the connection can be used again."""
        assert self._socket is not None
        end = time.monotonic() + TIMEOUT
        self._socket.sendall(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        data = self._more(b"", end)
        while b"\r\n\r\n" not in data:
            data = self._more(data, end)
        head, _, rest = data.partition(b"\r\n\r\n")
        head += b"\r\n"
        found, length = _STATUS.match(head), _LENGTH.search(head)
        if found is None:
            raise ValueError("not an answer in HTTP")
        status = int(found[2])
        if found[1] == b"0" or length is None or _CLOSE.search(head):
            return status, status == 204 and not rest
        try:
            while len(rest) < int(length[1]):
                rest = self._more(rest, end)
        except (
            OSError,
            ValueError,
        ):  # a body that is long or slow is not waited for: the status is what counts
            return status, False
        return status, len(rest) == int(length[1])

    def _more(self, data: bytes, end: float) -> bytes:
        assert self._socket is not None
        if time.monotonic() > end or len(data) > _ANSWER:
            raise TimeoutError
        piece = self._socket.recv(_ANSWER)
        if not piece:
            raise ConnectionError
        return data + piece


def _secured(opened: socket.socket, host: str) -> socket.socket:
    import ssl

    from requests.utils import (
        DEFAULT_CA_BUNDLE_PATH as trusted,
    )  # what providers are checked by, too

    return ssl.create_default_context(cafile=trusted).wrap_socket(opened, server_hostname=host)
