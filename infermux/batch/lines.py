"""The lines of a batch: what is asked in OpenAI's batch form or MIST's, and what is answered in
OpenAI's.

The id of a result says which line it answers, what that line was (a digest) and what it cost in
pico-USD, so that the file of results is all that a run needs in order to go on with one that was
interrupted.
"""

from __future__ import annotations

import os
import re
import time
from array import array
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import BinaryIO, NamedTuple

from ..dialects.openai import downstream as wire
from ..errors import InferMuxError, ProtocolError, RequestError, RequestTooLarge, shown
from ..planning.call import Call
from ..protocol import CHAT, INFER_REQUEST, InferRequest, InferResponse, Message, strict_json
from ..protocol.strict_json import Document

MAX_LINE = 32 * 1024 * 1024  # bytes
MAX_ID = 512  # characters of a custom_id
RECENT = 2**20  # places in which custom_ids are remembered: constant memory for any number of lines
OPS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}
_START = b'{"id":"batch_req_'
_RESULT = re.compile(
    _START + rb'(\d{1,15})_([0-9a-f]{16})_(\d{1,30}|unpriced)","custom_id":("(?:[^"\\]|\\.)*+"),'
    rb'"response":(?:null|\{"status_code":(\d{3}))'
)

Encode = Callable[[Call, InferResponse], bytes]


class Line(NamedTuple):
    """One line that asks for something, or why it does not."""

    number: int  # from 1
    size: int  # bytes in the file
    digest: str
    custom_id: str
    asked: Document | InferMuxError


class Recent:
    """The custom_ids of about the last million lines, as digests."""

    def __init__(self) -> None:
        self._places = array("q", bytes(8 * RECENT))

    def add(self, custom_id: bytes) -> bool:
        """Remember an id; return whether it was known."""
        mark = hash(custom_id)
        known = self._places[mark % RECENT] == mark
        self._places[mark % RECENT] = mark
        return known


class Done:
    """Which lines a file of results answers, a bit for each, and what they cost."""

    def __init__(self) -> None:
        self.count = 0
        self.cost = 0  # pico-USD
        self.unpriced = 0
        self.end = 0  # where the file's last whole line ends
        self._bits = bytearray()
        self._sum = 0  # of the digests, in any order

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] >> (number & 7) & 1)

    def add(self, number: int, digest: str, cost: bytes) -> None:
        """Note a result."""
        if number in self:
            return
        self._bits.extend(bytes(max(0, (number >> 3) + 1 - len(self._bits))))
        self._bits[number >> 3] |= 1 << (number & 7)
        self.count += 1
        self._sum ^= int(digest, 16)
        if cost == b"unpriced":
            self.unpriced += 1
        else:
            self.cost += int(cost)

    def check(self, source: BinaryIO) -> int:
        """Return how many bytes of *source* are answered already; raise RequestError if it is not
        what the results are of.
        """
        size, left = 0, self._sum
        for number, data, length in _raw(source) if self.count else ():
            if number in self:
                size += length
                left ^= int(_digest(number, data), 16)
        if left:
            raise RequestError(
                "these results are of another input: lines that have one are not what they were, or are missing"
            )
        return size


def results(file: BinaryIO, recent: Recent, *, keep: BinaryIO | None = None) -> Done:
    """Return what a file of results holds; with *keep*, copy those that are no failures there, and
    count no others.
    """
    done = Done()
    for number, data in enumerate(file, 1):
        found = _RESULT.match(data)
        if not data.endswith(b"\n") and (found or data.startswith(_START[: len(data)])):
            break  # cut off in the middle: that line is asked again
        if found is None or not data.endswith(b"\n"):
            raise RequestError(f"its line {number} is not a result of infermux batch")
        done.end += len(data)
        if keep is not None:
            if found[5] != b"200":
                continue
            keep.write(data)
        if found[5]:
            recent.add(found[4])
        done.add(int(found[1]), found[2].decode(), found[3])
    return done


def lines(source: BinaryIO, done: Done, recent: Recent) -> Iterator[Line]:
    """Yield the lines of a file that have no result yet; empty ones say nothing."""
    for number, data, size in _raw(source):
        if number not in done and data.strip():
            yield _line(number, data, size, recent)


def _raw(source: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Yield number, text and length of each line; of one that is too long, only so much as shows
    it.
    """
    number = 0
    while data := source.readline(MAX_LINE + 2):
        number, size, rest = number + 1, len(data), data
        while not rest.endswith(b"\n") and (rest := source.readline(2**20)):
            size += len(rest)
        yield number, data.rstrip(b"\r\n"), size


def _digest(number: int, data: bytes) -> str:
    digest = blake2b(b"%d:" % number, digest_size=8)
    digest.update(data)
    return digest.hexdigest()


def _line(number: int, data: bytes, size: int, recent: Recent) -> Line:
    name, asked = f"line-{number}", _read(data)
    if isinstance(asked, Document):
        told = asked.value.get(
            "custom_id", asked.value.get("id") if "payload" in asked.value else None
        )
        if told is not None and not (isinstance(told, str) and 0 < len(told) <= MAX_ID):
            asked = ProtocolError(
                f"custom_id must be a string of 1 to {MAX_ID} characters", param="custom_id"
            )
        else:
            name = told or name
            if recent.add(strict_json.encode(name)):
                asked = ProtocolError(
                    f"an earlier line has the custom_id {shown(name)} too", param="custom_id"
                )
    return Line(number, size, _digest(number, data), name, asked)


def _read(data: bytes) -> Document | InferMuxError:
    if len(data) > MAX_LINE:
        return RequestTooLarge(f"the line is longer than {MAX_LINE} bytes")
    try:
        return strict_json.document(data, what="the line")
    except ValueError as error:
        return ProtocolError(str(error))


def decode(asked: Document, model: str) -> tuple[InferRequest, Encode]:
    """Return the request of a line, for *model* if that is given, and how to say the answer.

    Raise ProtocolError for what is not a line of a batch, and RequestError for what its door would
    refuse.
    """
    value = asked.value
    if "url" in value or "body" in value:
        return _openai(asked, model), _openai_answer
    if "payload" in value:
        message = Message.read(asked.text.encode())
        if message.type != INFER_REQUEST:
            raise ProtocolError(f"expected type {INFER_REQUEST}, got {shown(message.type)[1:-1]}")
        value = message.data
    elif "messages" not in value:
        raise ProtocolError(
            "the line is neither OpenAI's (custom_id, method, url, body) nor an infer.request"
        )
    if model and isinstance(value, dict):
        value = value | {"model": model}
    return InferRequest.from_dict(value), lambda call, response: strict_json.encode(
        response.to_dict()
    )


def _openai(asked: Document, model: str) -> InferRequest:
    url, method = asked.value.get("url"), asked.value.get("method")
    op = OPS.get(url) if isinstance(url, str) else None
    if op is None:
        raise ProtocolError(f"url must be one of {', '.join(OPS)}, not {shown(url)}", param="url")
    if method != "POST":
        raise ProtocolError(f"method must be POST, not {shown(method)}", param="method")
    if not isinstance(asked.value.get("body"), dict):
        raise ProtocolError("body must be an object", param="body")
    body = strict_json.document(asked.raw("body"))
    if model:
        body = strict_json.document(body.replaced({"model": model}))
    request, streamed = wire.decode_request(body, op=op)
    if streamed:
        raise RequestError("a line of a batch is not streamed", param="stream")
    return request


def _openai_answer(call: Call, response: InferResponse) -> bytes:
    return wire.encode_answer(
        response,
        call.request,
        model=call.model,
        ident=f"chatcmpl-{call.id}",
        created=int(time.time()),
    )


def answered(line: Line, status: int, ident: str, body: bytes, cost: int | None) -> bytes:
    """Return the result of a line that was asked: an answer, or an error with its status; *cost* is
    None if it has no price.
    """
    flat = (
        body.removeprefix(b"\xef\xbb\xbf").replace(b"\n", b" ").replace(b"\r", b" ").strip()
    )  # in JSON these are only layout
    return b'%b"response":{"status_code":%d,"request_id":"%b","body":%b},"error":null}\n' % (
        _head(line, cost),
        status,
        ident.encode(),
        flat,
    )


def refused(line: Line, error: InferMuxError) -> bytes:
    """Return the result of a line that could not be asked."""
    said = {
        "code": error.code,
        "message": f"line {line.number}: {error.message}",
        "param": error.param,
    }
    return b'%b"response":null,"error":%b}\n' % (_head(line, 0), strict_json.encode(said))


def _head(line: Line, cost: int | None) -> bytes:
    ident = f"{line.number}_{line.digest}_{'unpriced' if cost is None else cost}"
    return b'%b%b","custom_id":%b,' % (_START, ident.encode(), strict_json.encode(line.custom_id))


def size_of(source: BinaryIO) -> int | None:
    """Return the length of a file that can be read twice, or None."""
    try:
        return os.fstat(source.fileno()).st_size if source.seekable() else None
    except OSError:
        return None
