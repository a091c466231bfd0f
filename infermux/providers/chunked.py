"""Reads the body of a stream as it arrives: in chunks, by a length, or until the connection ends.

RFC 9112, sections 6 and 7. http.client and urllib3 make a dozen calls for each event of a stream;
this module makes one for all bytes that have arrived.
"""

from __future__ import annotations

import http.client
import re
import zlib
from collections.abc import Iterator
from typing import Any

from urllib3.exceptions import DecodeError

from ..errors import ProviderUnavailable
from .transport import READ_SIZE, Exchange

MAX_LINE = 65536  # bytes of a chunk's size or of a trailer, as in http.client
MAX_TRAILERS = 100
MAX_CODINGS = 5  # of one body, as in urllib3
_GZIP = 0x1F  # begins each of the members of gzip
_UNREAD = {"br", "compress", "dcb", "dcz", "zstd"}  # codings that are never asked for
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,20}")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,20})\r\n")
_SINGLE = re.compile(rb"(?:1\r\n[\s\S]\r\n)+")  # chunks of one byte


class Sized:
    """A body of *length* bytes, or until the connection ends if that is None."""

    def __init__(self, length: int | None) -> None:
        self._left = length
        self.may_end = length is None  # with its connection
        self.done = length == 0
        self.rest = b""  # bytes after the body
        self.error = None

    def feed(self, data: bytes) -> bytes:
        """Return the part of *data* that belongs to the body."""
        if self._left is None:
            return data
        self.rest, data = data[self._left :], data[: self._left]
        self._left -= len(data)
        self.done = not self._left
        return data


class Chunked:
    """A body in chunks; extensions and trailers are skipped."""

    may_end = False

    def __init__(self) -> None:
        self.done = False
        self.rest = b""  # bytes that are not parsed yet, or come after the body
        self.error: Exception | None = None  # once the chunks are malformed
        self._left = 0  # of the current chunk
        self._gap = False  # whether the line end after a chunk comes next
        self._trailers = 0  # lines after the last chunk, from 1 on

    def feed(self, data: bytes) -> bytes:
        """Return the content of the chunks in *data*; set `error` at a malformed one."""
        data, at, found = self.rest + data if self.rest else data, 0, []
        while not self.done and self.error is None:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._gap = not self._left
                found.append(piece)
                if self._left:
                    break
                if data.startswith(b"\r\n", at):  # the usual line end after a chunk
                    at, self._gap = at + 2, False
            if not (self._gap or self._trailers) and (usual := _SIZE_LINE.match(data, at)):
                self._left, at = int(usual[1], 16), usual.end()
                if self._left == 1 and (run := _SINGLE.match(data, usual.start())):
                    found.append(run[0][3::6])
                    self._left, at = 0, run.end()
                    continue
                self._trailers = int(not self._left)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                if len(data) - at > MAX_LINE:
                    self.error = http.client.LineTooLong("chunk size")
                break
            self._line(data[at:end].strip())
            at = end + 1
        self.rest = data[at:]
        return found[0] if len(found) == 1 else b"".join(found)

    def _line(self, line: bytes) -> None:
        if self._gap:
            if line:
                self.error = http.client.HTTPException("a chunk is longer than its size")
            self._gap = False
        elif self._trailers:
            self._trailers += 1
            self.done = not line
            if self._trailers > MAX_TRAILERS:
                self.error = http.client.HTTPException("too many trailers")
        elif _SIZE.fullmatch(size := line.partition(b";")[0].rstrip()):
            self._left = int(size, 16)
            self._trailers = int(not self._left)
        else:
            self.error = http.client.HTTPException("malformed chunk size")


def is_chunked(raw: Any) -> bool:
    """Whether the body of urllib3's response *raw* comes in chunks, by its head."""
    codings: str = raw.headers.get("transfer-encoding", "")
    return "chunked" in [coding.strip() for coding in codings.lower().split(",")]


def length(raw: Any) -> int | None:
    """Return the length of a body by its head; None: in chunks, or until the connection ends."""
    if raw.status in (204, 304):
        return 0
    said = {each.strip() for each in raw.headers.get("content-length", "").split(",")}
    number: str = said.pop()
    return int(number) if number.isdigit() and not said and not is_chunked(raw) else None


def pieces(exchange: Exchange, raw: Any, seconds: float) -> Iterator[bytes | None]:
    """Yield a body as it arrives, None after *seconds* without a byte; raise HTTPException."""
    reader, response = exchange.reader, exchange.response
    frame = Chunked() if is_chunked(raw) else Sized(length(raw))
    while not frame.done:
        data = reader.receive(seconds)  # type: ignore[union-attr]  # a response has a reader
        if data is None:
            yield None
        elif data:
            yield frame.feed(data)
            if frame.error is not None:  # the bytes before the error are good
                raise frame.error
        elif not frame.may_end:
            raise http.client.IncompleteRead(b"")
        else:
            break  # the body ends with its connection
    if not frame.rest:  # otherwise the two sides disagree about where the body ends
        response.close()  # type: ignore[union-attr]
        raw.release_conn()


def decoded(
    body: Iterator[bytes | None], encoding: str, exchange: Exchange
) -> Iterator[bytes | None]:
    """Return *body* without its content codings, and with its None; ignore what is no coding."""
    codings = [each.strip().removeprefix("x-") for each in encoding.lower().split(",")]
    if len(codings) > MAX_CODINGS:
        raise ProviderUnavailable("the provider's answer has too many content encodings")
    for coding in reversed(codings):
        if coding in _UNREAD:
            raise ProviderUnavailable("the provider's answer has an unknown content encoding")
        if coding in ("gzip", "deflate"):
            body = _inflated(body, coding, exchange)
    return body


def _inflated(
    body: Iterator[bytes | None], coding: str, exchange: Exchange
) -> Iterator[bytes | None]:
    """Yield a body, decompressed, in slices of READ_SIZE; a little may hold very many of them."""
    inflater: Any = None
    for data in body:
        if data is None:
            yield None
        while data:
            if exchange.deadline.expired:
                raise TimeoutError("no time is left")
            if inflater is None or inflater.eof:
                if inflater is not None and not (coding == "gzip" and data[0] == _GZIP):
                    break  # padding
                # zlib tells gzip from its own format, but some send deflate without a head
                raw = coding == "deflate" and data[0] % 16 != zlib.DEFLATED
                inflater = zlib.decompressobj(-zlib.MAX_WBITS if raw else 32 + zlib.MAX_WBITS)
            try:
                found = inflater.decompress(data, READ_SIZE)
            except zlib.error as error:
                raise DecodeError("a damaged compressed body") from error
            if found:
                yield found
            data = inflater.unconsumed_tail or inflater.unused_data
    if inflater is not None and not inflater.eof:
        yield inflater.flush()
        if not inflater.eof:
            raise DecodeError("a compressed body that was cut")
