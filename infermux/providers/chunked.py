"""The body of a stream, piece by piece as it comes: framed in chunks, by a length, or by the end of
the connection.

RFC 9112, sections 6 and 7. http.client and urllib3 ask the socket and themselves a dozen times for
each event of a stream; here it is once, for whatever has come.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from typing import Any

from .wire import LONGEST_LINE, MOST_FIELDS, Exchange

_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")


class Sized:
    """A body of *length* bytes, or until the connection ends if that is None."""

    def __init__(self, length: int | None) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""  # what came behind the body
        self.broken: Exception | None = None

    def feed(self, data: bytes) -> bytes:
        """Return what of *data* belongs to the body."""
        if self._left is None:
            return data
        self.rest, data = data[self._left :], data[: self._left]
        self._left -= len(data)
        self.done = not self._left
        return data

    def end(self) -> None:
        """Take note that the connection has ended; raise IncompleteRead if the body had not."""
        if self._left is not None:
            raise http.client.IncompleteRead(b"", self._left)
        self.done = True


class Chunked:
    """A body in chunks; extensions and trailers are passed over."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""  # bytes that are not understood yet, or came behind the body
        self.broken: Exception | None = None  # what is wrong, once that is known
        self._left = 0  # of the present chunk
        self._gap = False  # whether the line end behind a chunk is due
        self._trailers = 0  # lines behind the last chunk, from 1 on

    def feed(self, data: bytes) -> bytes:
        """Return what the chunks in *data* hold, up to what is no chunk."""
        data, at, found = self.rest + data if self.rest else data, 0, []
        while not self.done and self.broken is None:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._gap = not self._left
                found.append(piece)
                if self._left:
                    break
                if data.startswith(b"\r\n", at):  # the usual line end behind a chunk
                    at, self._gap = at + 2, False
            if not (self._gap or self._trailers) and (usual := _SIZE_LINE.match(data, at)):
                self._left, at = int(usual[1], 16), usual.end()
                self._trailers = int(not self._left)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                if len(data) - at > LONGEST_LINE:
                    self.broken = http.client.LineTooLong("chunk size")
                break
            self._line(data[at:end].strip())
            at = end + 1
        self.rest = data[at:]
        return found[0] if len(found) == 1 else b"".join(found)

    def _line(self, line: bytes) -> None:
        if self._gap:
            if line:
                self.broken = http.client.HTTPException("a chunk is longer than it says")
            self._gap = False
        elif self._trailers:
            self._trailers += 1
            self.done = not line
            if self._trailers > MOST_FIELDS:
                self.broken = http.client.HTTPException("too many trailers")
        elif _SIZE.fullmatch(size := line.partition(b";")[0].rstrip()):
            self._left = int(size, 16)
            self._trailers = int(not self._left)
        else:
            self.broken = http.client.HTTPException("no size of a chunk")

    def end(self) -> None:
        """Take note that the connection has ended; raise IncompleteRead, for the last chunk has not
        come.
        """
        raise http.client.IncompleteRead(b"")


def pieces(exchange: Exchange, raw: Any, seconds: float) -> Iterator[bytes | None]:
    """Yield the body as it comes, and None wherever nothing came for *seconds*; whole, it gives its
    connection back.
    """
    answer: Any = exchange.answer
    frame = Chunked() if answer.chunked else Sized(answer.length)
    wire = exchange.wire
    while not frame.done:
        data = b"" if wire is None else wire.receive(seconds)
        if data is None:
            yield None
        elif data:
            yield frame.feed(data)
            if frame.broken is not None:  # only now: what came before it is good
                raise frame.broken
        else:
            frame.end()
    if not frame.rest:  # else somebody does not know where answers end
        answer.close()
        raw.release_conn()
