"""Sockets under a deadline: what one request and its connection know of each other, and how its
answer is read.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import struct
import threading
from typing import Any, NamedTuple

from urllib3 import HTTPHeaderDict

from ..errors import ProviderTimeout
from ..types import Deadline

BUFFER = 65536  # bytes that one read of a socket may bring
LONGEST_LINE = 65537  # of a head, and the most of its fields: as in http.client
MOST_FIELDS = 101
current = threading.local()  # .exchange: the one that this thread's next connection serves


class Timeouts(NamedTuple):
    """Seconds; each is also cut to what is left of the call's deadline."""

    connect: float = 5.0
    first_byte: float = 60.0
    idle: float = 30.0  # between two pieces of a stream
    total: float = 600.0  # of a stream, once it has begun


class Exchange:
    """What one request and its connection know of each other."""

    def __init__(self, deadline: Deadline, limits: Timeouts) -> None:
        self.deadline = deadline
        self.limits = limits
        self.limit: float | None = limits.first_byte
        self.fresh = False  # a kept connection will not do
        self.connected = False  # the connection was made for this request
        self.received = False  # at least one byte has come
        self.more = False  # another event has come together with the present one
        self.chunked = False  # whether line ends stand between the pieces of the body
        self.wire: Wire | None = None
        self.answer: Response | None = None

    @property
    def stale(self) -> bool:
        """Whether the connection was a kept one that died before the first byte of an answer."""
        return not (self.connected or self.received or self.fresh)

    def timeouts(self) -> tuple[float, float]:
        """Return the time to connect and to the first byte."""
        if self.deadline.expired:
            raise ProviderTimeout("no time is left to ask the provider")
        return max(0.001, self.deadline.cap(self.limits.connect)), max(
            0.001, self.deadline.cap(self.limits.first_byte)
        )

    @property
    def live(self) -> bool:
        """Whether the body's end has not been read yet."""
        return self.wire is not None and not self.wire.reader.closed

    def close(self) -> None:
        """Close the reading side, whatever state it is in."""
        if self.wire is not None:
            self.wire.reader.close()

    def silent(self, seconds: float) -> bool:
        """Wait until a byte can be read; return True if none came within *seconds*, raise
        TimeoutError past the idle limit.
        """
        return self.wire is not None and self.wire.silent(seconds)


def arm(sock: socket.socket, option: int, seconds: float) -> None:
    """Have the kernel bound how long a blocking socket waits.

    With a timeout of Python's own each read is two calls, and between them the interpreter's lock
    changes hands once more: with a thousand threads that is what a stream's event waits for.
    """
    seconds = max(0.001, seconds)  # 0 would be for ever
    sock.setsockopt(
        socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    )


class Wire(io.RawIOBase):
    """The reading side of a socket; each read waits no longer than the exchange allows."""

    def __init__(self, sock: Any, raw: Any, exchange: Exchange) -> None:
        self._sock = sock
        self._raw = raw  # keeps the socket open until the body is read
        self._exchange = exchange
        self._patience: float | None = None
        self._gave_up = False
        self._silence = 0.0
        self._armed: float | None = None  # the patience of a plain socket, as the kernel has it
        self._plain = not isinstance(sock, ssl.SSLSocket)
        if self._plain and sock.gettimeout() is not None:
            sock.settimeout(None)
        self.reader = io.BufferedReader(self, BUFFER)

    def makefile(self, mode: str) -> Any:
        """Return what http.client reads from where it would make a file of its own from a socket."""
        return self.reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        exchange, patience = self._exchange, self._patience
        wait = self._wait(patience)
        try:
            if not self._plain:
                self._sock.settimeout(wait)
            elif wait != self._armed:
                arm(self._sock, socket.SO_RCVTIMEO, wait)
                self._armed = wait
            size: int = self._sock.recv_into(buffer)
        except (TimeoutError, BlockingIOError):
            if patience is None:
                raise TimeoutError("no byte in time") from None
            self._was_silent(wait)
            return None
        self._silence = 0.0
        exchange.received = (
            exchange.received or size > 0
        )  # the end of a kept connection is not an answer's first byte
        return size

    def _wait(self, patience: float | None) -> float:
        """Return how long the next byte may be waited for; raise TimeoutError if no time is left."""
        limit = self._exchange.deadline.cap(self._exchange.limit)
        if limit <= 0:
            raise TimeoutError("deadline")
        return limit if patience is None or patience > limit else patience

    def _was_silent(self, seconds: float) -> None:
        """Note a silence; raise TimeoutError if it has lasted too long."""
        self._silence += seconds
        self._gave_up = True
        if self._exchange.deadline.expired or self._silence >= (self._exchange.limit or 0):
            raise TimeoutError("silence")

    def silent(self, seconds: float) -> bool:
        """Return whether nothing worth reading came within *seconds*; raise TimeoutError past the
        limit.
        """
        if self.reader.closed:
            return False
        self._patience, self._gave_up = seconds, False
        try:
            if self.reader.peek(1) == b"\r\n" and self._exchange.chunked and not self._gave_up:
                self._poll()
        finally:
            self._patience = None
        return self._gave_up

    def receive(self, seconds: float) -> bytes | None:
        """Return what has come, b"" at the end; None if nothing came within *seconds*, raise
        TimeoutError past the idle limit.
        """
        reader = self.reader
        self._patience, self._gave_up = seconds, False
        try:
            seen = reader.peek(1)
        finally:
            self._patience = None
        return reader.read1(len(seen)) if seen else None if self._gave_up else b""

    def _poll(self) -> None:
        """Wait behind a line end: the one that closes a chunk comes with it, and is not a byte of
        the next.
        """
        pending = getattr(self._sock, "pending", None)
        if pending is not None and pending():
            return
        wait = self._wait(self._patience)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not poll.poll(wait * 1000):
            self._was_silent(wait)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._raw.close()


class Response(http.client.HTTPResponse):
    """An answer whose bytes are read through a Wire, and whose head is read line by line.

    http.client gives the head to the parser of e-mails, which takes most of a millisecond's tenth
    for it.
    """

    headers: Any
    msg: Any
    version: int

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        exchange: Exchange | None = getattr(current, "exchange", None)
        if exchange is not None:
            exchange.wire = sock = Wire(sock, sock.makefile("rb", buffering=0), exchange)
            exchange.answer = self
        super().__init__(sock, *args, **kwargs)

    def begin(self) -> None:
        """Read the head, and what it says of the body's length: RFC 9112, section 6.3."""
        if self.headers is not None:
            return
        version, status, reason = self._read_status()  # type: ignore[attr-defined]  # of http.client, as the two below
        while (
            100 <= status < 200 and status != http.client.SWITCHING_PROTOCOLS
        ):  # only said in passing
            _fields(self.fp)
            version, status, reason = self._read_status()  # type: ignore[attr-defined]
        if not version.startswith(("HTTP/1.", "HTTP/0.9")):
            raise http.client.UnknownProtocol(version)
        self.version = 10 if version in ("HTTP/1.0", "HTTP/0.9") else 11
        self.code = self.status = status
        self.reason = reason.strip()
        self.headers = self.msg = _fields(self.fp)
        self.chunked = (self.headers.get("transfer-encoding") or "").lower() == "chunked"
        self.chunk_left = None
        self.will_close = self._check_close()  # type: ignore[attr-defined]
        length = self.headers.get("content-length", "")
        self.length = (
            int(length) if not self.chunked and length.isascii() and length.isdigit() else None
        )
        if (
            status in (http.client.NO_CONTENT, http.client.NOT_MODIFIED)
            or status < 200
            or self._method == "HEAD"  # type: ignore[attr-defined]
        ):
            self.length = 0
        if not self.chunked and self.length is None:
            self.will_close = True


def _fields(fp: Any) -> HTTPHeaderDict:
    """Read the header fields; one that is none is left out."""
    fields = HTTPHeaderDict()
    held: Any = (
        fields._container
    )  # by the name in lower case, as its own add() does it in three times the time
    name, read = "", fp.readline
    for _ in range(MOST_FIELDS):
        line = read(LONGEST_LINE)
        if line in (b"\r\n", b"\n", b""):
            return fields
        if len(line) >= LONGEST_LINE:
            raise http.client.LineTooLong("header line")
        text = line.decode("latin-1")
        if text[0] in " \t" and name:  # goes on with the field before
            held[name][-1] += " " + text.strip()
            continue
        key, colon, value = text.partition(":")
        if colon and key and key == key.strip():
            name = key.lower()
            if name in held:
                held[name].append(value.strip())
            else:
                held[name] = [key, value.strip()]
    raise http.client.HTTPException(f"got more than {MOST_FIELDS} headers")
