"""Sockets under a deadline: what one request and its connection know of each other, and how its answer is read."""

from __future__ import annotations

import http.client
import io
import select
import threading
from typing import Any, NamedTuple, cast

from ..errors import ProviderTimeout
from ..types import Deadline

BUFFER = 65536                              # bytes that one read of a socket may bring
current = threading.local()           # .exchange: the one that this thread's next connection serves


class Timeouts(NamedTuple):
    """Seconds; each is also cut to what is left of the call's deadline."""

    connect: float = 5.0
    first_byte: float = 60.0
    idle: float = 30.0                      # between two pieces of a stream
    total: float = 600.0                    # of a stream, once it has begun


class Exchange:
    """What one request and its connection know of each other."""

    def __init__(self, deadline: Deadline, limits: Timeouts) -> None:
        self.deadline = deadline
        self.limits = limits
        self.limit: float | None = limits.first_byte
        self.fresh = False                  # a kept connection will not do
        self.connected = False              # the connection was made for this request
        self.received = False               # at least one byte has come
        self.chunked = False                # whether line ends stand between the pieces of the body
        self.wire: Wire | None = None

    @property
    def stale(self) -> bool:
        """Whether the connection was a kept one that died before the first byte of an answer."""
        return not (self.connected or self.received or self.fresh)

    def timeouts(self) -> tuple[float, float]:
        """Return the time to connect and to the first byte."""
        if self.deadline.expired:
            raise ProviderTimeout("no time is left to ask the provider")
        return max(0.001, self.deadline.cap(self.limits.connect)), max(0.001, self.deadline.cap(self.limits.first_byte))

    @property
    def live(self) -> bool:
        """Whether the body's end has not been read yet."""
        return self.wire is not None and not self.wire.reader.closed

    def close(self) -> None:
        """Close the reading side, whatever state it is in."""
        if self.wire is not None:
            self.wire.reader.close()

    def silent(self, seconds: float) -> bool:
        """Wait until a byte can be read; return True if none came within *seconds*, raise TimeoutError past the idle limit."""
        return self.wire is not None and self.wire.silent(seconds)


class Wire(io.RawIOBase):
    """The reading side of a socket; each read waits no longer than the exchange allows."""

    def __init__(self, sock: Any, raw: Any, exchange: Exchange) -> None:
        self._sock = sock
        self._raw = raw                     # keeps the socket open until the body is read
        self._exchange = exchange
        self._patience: float | None = None
        self._gave_up = False
        self._silence = 0.0
        self.reader = io.BufferedReader(self, BUFFER)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        exchange, patience = self._exchange, self._patience
        wait = self._wait(patience)
        self._sock.settimeout(wait)
        try:
            size: int = self._sock.recv_into(buffer)
        except TimeoutError:
            if patience is None:
                raise
            self._was_silent(wait)
            return None
        self._silence = 0.0
        exchange.received = exchange.received or size > 0       # the end of a kept connection is not an answer's first byte
        return size

    def _wait(self, patience: float | None) -> float:
        """Return how long the next byte may be waited for; raise TimeoutError if no time is left."""
        limit = self._exchange.deadline.cap(self._exchange.limit)
        if limit <= 0:
            raise TimeoutError("deadline")
        return limit if patience is None else min(patience, limit)

    def _was_silent(self, seconds: float) -> None:
        """Note a silence; raise TimeoutError if it has lasted too long."""
        self._silence += seconds
        self._gave_up = True
        if self._exchange.deadline.expired or self._silence >= (self._exchange.limit or 0):
            raise TimeoutError("silence")

    def silent(self, seconds: float) -> bool:
        """Return whether nothing worth reading came within *seconds*; raise TimeoutError past the limit."""
        if self.reader.closed:
            return False
        self._patience, self._gave_up = seconds, False
        try:
            if self.reader.peek(1) == b"\r\n" and self._exchange.chunked and not self._gave_up:
                self._poll()
        finally:
            self._patience = None
        return self._gave_up

    def _poll(self) -> None:
        """Wait behind a line end: the one that closes a chunk comes with it, and is not a byte of the next."""
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
    """An answer whose bytes are read through a Wire."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        exchange: Exchange | None = getattr(current, "exchange", None)
        if exchange is not None:
            exchange.wire = Wire(sock, self.fp.detach(), exchange)
            self.fp = cast(Any, exchange.wire.reader)
