"""The lines of a batch: requests in OpenAI's batch format or MIST's, results in OpenAI's.

The id of a result holds the number of its line, a digest of that line and the cost in pico-USD, so
a run can continue an interrupted one from the file of results alone.
"""

from __future__ import annotations

import os
import re
import time
from array import array
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import BinaryIO, NamedTuple

from ..dialects import parameters, without
from ..dialects.openai.downstream import decode_request, encode_answer
from ..dialects.openai.upstream import PATHS
from ..dialects.responses import NAME as RESPONSES
from ..dialects.responses import downstream as responses
from ..dialects.responses.stream import encode_answer as encode_response_object
from ..errors import InferMuxError, ProtocolError, RequestError, RequestTooLarge, shown
from ..planning.call import Call
from ..protocol import CHAT, InferRequest, InferResponse, request_message, strict_json
from ..protocol.strict_json import Document

MAX_LINE = 32 * 1024 * 1024  # bytes
MAX_ID = 512  # characters of a custom_id
RECENT_IDS = 2**20  # how many custom_ids are remembered, at most
OPS = {f"/v1{PATHS[op]}": op for op in (CHAT, "completions", "embeddings")}
OPS |= {"/v1/responses": RESPONSES}
_START = b'{"id":"batch_req_'
_RESULT = re.compile(
    _START + rb'(\d{1,15})_([0-9a-f]{16})_(\d{1,30}|unpriced)","custom_id":("(?:[^"\\]|\\.)*+"),'
    rb'"response":(?:null|\{"status_code":(\d{3}))'
)

Encode = Callable[[Call, InferResponse], bytes]


class Line(NamedTuple):
    """A line of the input: a request, or why it cannot be read."""

    number: int  # from 1
    size: int  # bytes in the file
    digest: str
    custom_id: str
    asked: Document | InferMuxError
    cost: int = 0  # pico-USD of an earlier result, which was a failure


class Outcome(NamedTuple):
    """What came of a line's call; *ident* is the call's."""

    status: int
    ident: str
    body: bytes
    wait: float | None = None  # seconds until the line may be sent again; None: never


class Recent:
    """Remembers about a million recent custom_ids as hashes, in constant memory."""

    def __init__(self) -> None:
        self._hashes = array("q", bytes(8 * RECENT_IDS))

    def add(self, custom_id: bytes) -> bool:
        """Remember an id; return whether it was known."""
        value = hash(custom_id)
        known = self._hashes[value % RECENT_IDS] == value
        self._hashes[value % RECENT_IDS] = value
        return known


class Done:
    """The lines that have a result, as one bit each, and their cost."""

    def __init__(self, *, retry: bool = False) -> None:
        self.count = 0
        self.cost = 0  # pico-USD
        self.failed: dict[int, int] = {}  # pico-USD of failures that have cost something, by line
        self.end = 0  # bytes up to the end of the last complete line
        self.is_repeated = False  # whether a line has several results, of which the last one counts
        self._retry = retry  # whether lines that have failed count as not done
        self._bits = bytearray()
        self._digests = 0  # all digests XORed, as their order does not matter

    def __contains__(self, number: int) -> bool:
        byte, bit = divmod(number, 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def add(self, result: re.Match[bytes]) -> None:
        """Record a result; its cost has that of earlier results of the line in it."""
        number, ok = int(result[1]), result[5] == b"200"
        pico = 0 if result[3] == b"unpriced" else int(result[3])
        self.cost += pico - self.failed.pop(number, 0)
        if pico and not ok:
            self.failed[number] = pico
        if number in self or (self._retry and not ok):
            self.is_repeated = True
            return
        byte, bit = divmod(number, 8)
        self._bits.extend(bytes(max(0, byte + 1 - len(self._bits))))
        self._bits[byte] |= 1 << bit
        self.count += 1
        self._digests ^= int(result[2], 16)

    def check(self, source: BinaryIO) -> int:
        """Return how many bytes of *source* already have a result.

        Raise RequestError if the results belong to other lines than those of *source*.
        """
        size, left = 0, self._digests
        for number, data, length in _raw(source) if self.count else ():
            if number in self:
                size += length
                left ^= int(_digest(number, data), 16)
        if left:
            raise RequestError(
                "these results belong to another input: lines with a result are changed or gone"
            )
        return size


def results(file: BinaryIO, recent: Recent, *, retry: bool = False) -> Done:
    """Read results; with *retry*, failed ones are to be tried again.

    Add custom_ids to *recent*; raise RequestError if a line is not a result.
    """
    done, end = Done(retry=retry), 0
    for number, data in enumerate(file, 1):
        found = _RESULT.match(data)
        if not data.endswith(b"\n") and (found or data.startswith(_START[: len(data)])):
            break  # an incomplete last result: its line is sent again
        if found is None or not data.endswith(b"\n"):
            raise RequestError(f"its line {number} is not a result of infermux batch")
        end += len(data)
        if found[5] == b"200" or (found[5] and not retry):
            recent.add(found[4])
        done.add(found)
    if done.is_repeated and not retry:  # a run that tried lines again was killed
        done = Done()
        done.is_repeated = True
        for found in last_results(file):
            done.add(found)
    done.end = end
    return done


def last_results(file: BinaryIO) -> Iterator[re.Match[bytes]]:
    """Yield the last result of each line, in the order of the file."""

    def found() -> Iterator[re.Match[bytes]]:
        file.seek(0)
        return (match for data in file if data.endswith(b"\n") and (match := _RESULT.match(data)))

    last = dict[bytes, int]()  # the place of the last result, of each line that has failed
    for place, each in enumerate(found()):
        if each[5] != b"200" or each[1] in last:
            last[each[1]] = place
    for place, each in enumerate(found()):
        if last.get(each[1], place) == place:
            yield each


def unanswered(source: BinaryIO, done: Done, recent: Recent) -> Iterator[Line]:
    """Yield the lines of a file that have no result yet, except empty ones."""
    for number, data, size in _raw(source):
        if number not in done and data.strip():
            yield _line(number, data, size, recent)._replace(cost=done.failed.get(number, 0))


def _raw(source: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Yield number, text (cut if too long) and length of each line."""
    number = 0
    while data := source.readline(MAX_LINE + 2):
        number, size, rest = number + 1, len(data), data
        while not rest.endswith(b"\n") and (rest := source.readline(2**20)):
            size += len(rest)
        yield number, data.rstrip(b"\r\n"), size


def _digest(number: int, data: bytes) -> str:
    return blake2b(b"%d:%b" % (number, data), digest_size=8).hexdigest()


def _line(number: int, data: bytes, size: int, recent: Recent) -> Line:
    custom_id, asked, problem = f"line-{number}", _read(data), ""
    if isinstance(asked, Document):
        value = asked.value
        given = value.get("custom_id", value.get("id") if "payload" in value else None)
        if given is not None and not (isinstance(given, str) and 0 < len(given) <= MAX_ID):
            problem = f"custom_id must be a string of 1 to {MAX_ID} characters"
        else:
            custom_id = given or custom_id
            if recent.add(strict_json.encode(custom_id)):
                problem = f"an earlier line has the same custom_id {shown(custom_id)}"
        if problem:
            asked = ProtocolError(problem, param="custom_id")
    return Line(number, size, _digest(number, data), custom_id, asked)


def _read(data: bytes) -> Document | InferMuxError:
    if len(data) > MAX_LINE:
        return RequestTooLarge(f"the line is longer than {MAX_LINE} bytes")
    try:
        return strict_json.document(data, what="the line")
    except ValueError as error:
        return ProtocolError(str(error))


def decode(asked: Document, model: str) -> tuple[InferRequest, Encode]:
    """Return the request of a line, for *model* if that is given, and the encoder of its answer.

    Raise ProtocolError if it is not a batch line, RequestError if the HTTP API would.
    """
    value = asked.value
    if "url" in value or "body" in value:
        request = _openai(asked, model)
        is_chat = request.native is not None and request.native.dialect != RESPONSES
        return request, _openai_answer if is_chat else _responses_answer
    if "payload" in value:
        value = request_message(asked.data).data
    elif "messages" not in value:
        raise ProtocolError(
            "the line is neither OpenAI's (custom_id, method, url, body) nor an infer.request"
        )
    if isinstance(value, dict):
        value = without(value, "custom_id") | ({"model": model} if model else {})
    request = InferRequest.from_dict(value, parameters.kinds())
    return request, lambda call, response: strict_json.encode(response.to_dict())


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
    if op == RESPONSES:
        request, streamed = responses.decode_request(body)
    else:
        request, streamed = decode_request(body, op=op)
    if streamed:
        raise RequestError("a batch line cannot be streamed", param="stream")
    return request


def _openai_answer(call: Call, response: InferResponse) -> bytes:
    ident, now = f"chatcmpl-{call.id}", int(time.time())
    return encode_answer(response, call.request, model=call.model, ident=ident, created=now)


def _responses_answer(call: Call, response: InferResponse) -> bytes:
    ident, now = f"resp_{call.id}", int(time.time())
    answer = responses.Answer(call.request, ident=ident, created=now, model=call.model)
    return encode_response_object(response, answer)


def answered(line: Line, found: Outcome, cost: int | None) -> bytes:
    """Return the result of a line that was sent; *cost*: pico-USD in all, None if unpriced."""
    # line ends in JSON are only white space
    flat = found.body.removeprefix(b"\xef\xbb\xbf").replace(b"\n", b" ").replace(b"\r", b" ")
    answer = b'{"status_code":%d,"request_id":"%b","body":%b}'
    answer %= found.status, found.ident.encode(), flat.strip()
    return b'%b"response":%b,"error":null}\n' % (_head(line, cost), answer)


def refused(line: Line, error: InferMuxError) -> bytes:
    message = f"line {line.number}: {error.message}"
    reason = {"code": error.code, "message": message, "param": error.param}
    return b'%b"response":null,"error":%b}\n' % (_head(line, line.cost), strict_json.encode(reason))


def _head(line: Line, cost: int | None) -> bytes:
    ident = f"{line.number}_{line.digest}_{'unpriced' if cost is None else cost}"
    return b'%b%b","custom_id":%b,' % (_START, ident.encode(), strict_json.encode(line.custom_id))


def size_of(source: BinaryIO) -> int | None:
    """Return the length of a file in bytes, or None for a pipe."""
    try:
        return os.fstat(source.fileno()).st_size if source.seekable() else None
    except OSError:
        return None
