"""The faults that a simulated vendor can produce, as raw HTTP.

This uses only the standard library: a vendor built from our own code would share its bugs.
"""

from __future__ import annotations

import http
import json
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

BEFORE, AFTER = "before", "after"  # the first token of a stream
DRIP_SECONDS = 0.15  # between two bytes of a slow response
FAULT_SECONDS = 0.05  # between the first tokens of a stream and its fault
HUGE = 100  # MiB of a body that is too long, or of what a small one unpacks to
_JSON, _STREAM = "application/json", "text/event-stream"
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_GOOGLE = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
}

# responds to a request; True: the connection stays open
Act = Callable[["Peer", "Answer"], bool | None]


class Answer(NamedTuple):
    """The right answer to a request in its dialect, whole and as a stream."""

    dialect: str
    whole: bytes  # the body, unless it is streamed
    opening: bytes  # the events before the first token
    tokens: tuple[bytes, ...]  # one event each
    ending: bytes  # finish reason, usage and terminator
    streamed: bool = False
    after: bool = False  # whether the fault comes after the first token

    @property
    def kind(self) -> str:
        return _STREAM if self.streamed else _JSON

    @property
    def body(self) -> bytes:
        if not self.streamed:
            return self.whole
        return self.opening + b"".join(self.tokens) + self.ending

    @property
    def begun(self) -> bytes:
        """The events before the fault."""
        tokens = self.tokens[: len(self.tokens) // 2] if self.after else ()
        return self.opening + b"".join(tokens)


NOTHING: Mapping[str, Any] = {}


class Fault(NamedTuple):
    """A failure of a vendor that a trial can simulate."""

    description: str
    act: Act
    plain: bool = True  # whether an answer that is not streamed can have it
    stream: tuple[str, ...] = (BEFORE,)  # when a stream can have it
    failover: bool = True  # whether another vendor should be tried
    params: Mapping[str, Any] = NOTHING  # of the request, in OpenAI's form


class Peer:
    def __init__(self, sock: socket.socket, stopped: threading.Event) -> None:
        self.sock, self._stopped, self._rest = sock, stopped, b""

    def request(self) -> tuple[str, bytes] | None:
        """Return path and body of the next request, or None if the client has hung up."""
        while b"\r\n\r\n" not in self._rest:
            if not self._receive():
                return None
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        found = re.search(rb"(?im)^content-length: *(\d+)\s*$", head)
        size = int(found[1]) if found else 0
        while len(self._rest) < size:
            if not self._receive():
                return None
        body, self._rest = self._rest[:size], self._rest[size:]
        _, path, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        return path, body

    def _receive(self) -> bytes:
        data = self.sock.recv(65536)
        self._rest += data
        return data

    def send(self, *data: bytes) -> None:
        self.sock.sendall(b"".join(data))

    def drip(self, data: bytes) -> None:
        """Send bytes one by one, DRIP_SECONDS apart, until the vendor stops."""
        for at in range(len(data)):
            if self._stopped.wait(DRIP_SECONDS):
                return
            self.sock.sendall(data[at : at + 1])

    def begin(self, answer: Answer) -> None:
        """Begin a stream: send its head and the events before the fault."""
        self.send(_head(200, _STREAM), _chunks(answer.begun))
        self.wait()

    def wait(self) -> None:
        """Wait, so that the client first gets what was sent."""
        self._stopped.wait(FAULT_SECONDS)


# -- HTTP and JSON --


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def sse(value: Mapping[str, Any], name: str = "") -> bytes:
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: %b\n\n" % encode(value)


def error(dialect: str, status: int, wait: int = 0) -> dict[str, Any]:
    """Return a dialect's error object; Gemini's holds *wait*, the seconds to wait."""
    message = f"this vendor fails on purpose, with {status}"
    if dialect == "gemini":
        found = {"code": status, "message": message, "status": _GOOGLE.get(status, "UNAVAILABLE")}
        kind = "type.googleapis.com/google.rpc.RetryInfo"
        delay = {"details": [{"@type": kind, "retryDelay": f"{wait}s"}]} if wait else {}
        return {"error": found | delay}
    reason = {"type": _TYPES.get(status, "api_error"), "message": message}
    if dialect == "anthropic":
        return {"type": "error", "error": reason}
    return {"error": reason | {"param": None, "code": None}}


def _head(status: int, kind: str, size: int | None = None, **headers: str) -> bytes:
    phrase = "Overloaded" if status == 529 else http.HTTPStatus(status).phrase
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    more = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines = [f"HTTP/1.1 {status} {phrase}", f"Content-Type: {kind}", length, *more, "\r\n"]
    return "\r\n".join(lines).encode()


def message(status: int, body: bytes, kind: str = _JSON, **headers: str) -> bytes:
    """Return a whole HTTP response, with its Content-Length."""
    return _head(status, kind, len(body), **headers) + body


def _chunks(*pieces: bytes, last: bool = False) -> bytes:
    """Return pieces as chunks (RFC 9112, 7.1), and with *last* the end of the body."""
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return b"".join(chunks) + b"0\r\n\r\n" * last


# -- faults --


def _sends(text: Callable[[Answer], bytes]) -> Act:

    def act(peer: Peer, answer: Answer) -> bool:
        peer.send(text(answer))
        return True

    return act


def _says(body: bytes, kind: str = _JSON, status: int = 200, **headers: str) -> Act:
    return _sends(lambda answer: message(status, body, kind, **headers))


def _fails(status: int, wait: int = 0) -> Act:
    def text(answer: Answer) -> bytes:
        headers = {"Retry_After": str(wait)} if wait and answer.dialect != "gemini" else {}
        return message(status, encode(error(answer.dialect, status, wait)), **headers)

    return _sends(text)


def _statuses(*statuses: int) -> dict[str, Fault]:
    return {
        str(status): Fault(f"status {status}", _fails(status), failover=status not in (400, 413))
        for status in statuses
    }


def _closed(peer: Peer, answer: Answer) -> None:
    """Send nothing; the caller closes the connection."""


def _reset(peer: Peer, answer: Answer) -> None:
    """End the connection with RST instead of FIN (SO_LINGER of 0 seconds)."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sock.close()


def _stall(peer: Peer, answer: Answer) -> None:
    """Send nothing until the client hangs up."""
    while peer.sock.recv(65536):
        pass


def _slow_headers(peer: Peer, answer: Answer) -> None:
    peer.drip(message(200, answer.whole, X_Patience="x" * 100_000))


def _slow_body(peer: Peer, answer: Answer) -> bool:
    if not answer.streamed:
        peer.send(_head(200, _JSON, len(answer.whole)))
        peer.drip(answer.whole)
    else:
        begun = answer.begun if answer.after else b""
        peer.send(_head(200, _STREAM), _chunks(begun))
        peer.drip(_chunks(answer.body[len(begun) :], last=True))
    return True


def _cut(head: Callable[[Answer], bytes]) -> Act:
    """Return an act that sends *head*, for the whole body, but only a part of the body."""

    def act(peer: Peer, answer: Answer) -> None:
        part = answer.begun if answer.streamed else answer.whole[: len(answer.whole) // 2]
        peer.send(head(answer), part)
        peer.wait()

    return act


def _garbage(peer: Peer, answer: Answer) -> None:
    if answer.after:
        peer.begin(answer)
    peer.send(b"\x16\x03\x01\x02\x00\x01\xfc\xff SSH-2.0-OpenSSH \x00\r\n\r\n")


def _floods(coder: Callable[[], Callable[[bytes], bytes]], **headers: str) -> Act:
    """Return an act that sends HUGE blocks of a MiB, encoded by a *coder*."""

    def act(peer: Peer, answer: Answer) -> bool:
        encoded = coder()
        begun, block = encoded(answer.begun if answer.after else b""), encoded(b" " * 2**20)
        peer.send(_head(200, answer.kind, len(begun) + HUGE * len(block), **headers), begun)
        peer.wait()
        for _ in range(HUGE):
            peer.send(block)
        return True

    return act


def _gzip() -> Callable[[bytes], bytes]:
    """Return an encoder of blocks that can be repeated, due to full flushes (RFC 1951)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return lambda data: packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)


def _error_event(answer: Answer) -> bytes:
    name = "error" if answer.dialect == "anthropic" else ""
    return _chunks(sse(error(answer.dialect, 503), name), last=True)


def _garbage_event(answer: Answer) -> bytes:
    """Return a broken event and the rest; a client that skips it loses a token."""
    at = len(answer.tokens) // 2 if answer.after else 0
    broken, rest = answer.tokens[at][:-9] + b"\n\n", answer.tokens[at + 1 :]
    return _chunks(broken, *rest, answer.ending, last=True)


def _healthy(answer: Answer) -> bytes:
    if not answer.streamed:
        return message(200, answer.whole)
    events = _chunks(answer.opening, *answer.tokens, answer.ending, last=True)
    return _head(200, _STREAM) + events


def _in_stream(description: str, act: Act) -> Fault:

    def begin(peer: Peer, answer: Answer) -> bool | None:
        peer.begin(answer)
        return act(peer, answer)

    return Fault(description, begin, plain=False, stream=_BOTH)


_BOTH = (BEFORE, AFTER)
_HTML = (
    b"<!DOCTYPE html><html><head><title>Sign in</title></head>"
    b"<body>Please sign in to the network.</body></html>"
)

HINTS: Mapping[str, Any] = {
    "metadata": {"team": "a"},
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "store": True,
    "user": "u",
    "verbosity": "low",
}
PREFERENCES: Mapping[str, Any] = {"frequency_penalty": 0.5, "logit_bias": {"5": 1}, "seed": 7}
MEANINGS: Mapping[str, Any] = {"logprobs": True}


def _outage(what: str, params: Mapping[str, Any]) -> Fault:
    return Fault(f"status 503 for a request with {what}", _fails(503), params=params)


FAULTS: dict[str, Fault] = {
    "refused": Fault("the connection is refused", _closed),
    "reset": Fault("the connection is reset after the request", _reset),
    "closed": Fault("the connection is closed without an answer", _closed),
    "stall": Fault("the request is never answered", _stall),
    "slow_headers": Fault("the head drips byte by byte, without end", _slow_headers),
    "slow_body": Fault("the body drips byte by byte", _slow_body, stream=_BOTH),
    "truncated": Fault(
        "the body is shorter than its Content-Length",
        _cut(lambda answer: _head(200, answer.kind, len(answer.body))),
        stream=_BOTH,
    ),
    "chunked_cut": Fault(
        "the connection is closed within a chunk",
        _cut(lambda answer: _head(200, answer.kind) + b"%x\r\n" % len(answer.body)),
        stream=_BOTH,
    ),
    "garbage": Fault("bytes that are not HTTP", _garbage, stream=_BOTH),
    "html": Fault("an HTML page with status 200", _says(_HTML, "text/html; charset=utf-8")),
    "empty": Fault("an empty body with status 200", _says(b"")),
    "not_json": Fault(
        "a body of incomplete JSON", _says(b'{"choices": [{"message": {"content": "The quick')
    ),
    "wrong_shape": Fault(
        "JSON of another shape",
        _says(b'{"result": ["The quick brown fox"], "content": 7, "choices": {}}'),
    ),
    "deep_json": Fault("JSON with 100,000 levels", _says(b"[" * 100_000 + b"]" * 100_000)),
    **_statuses(400, 401, 403, 404, 408, 413),
    "429": Fault("status 429 with a retry after a second", _fails(429, wait=1)),
    "429_long": Fault("status 429 with a retry after an hour", _fails(429, wait=3600)),
    **_statuses(500, 501, 502, 503, 529),
    "503_hints": _outage("hints", HINTS),
    "503_preferences": _outage("preferences", PREFERENCES),
    "503_meanings": _outage("parameters that are never dropped", MEANINGS),
    "redirect": Fault(
        "status 307 to another address",
        _says(b"", status=307, Location="/elsewhere/v1/chat/completions"),
    ),
    "gzip_bomb": Fault(
        f"a small body that unpacks to {HUGE} MiB",
        _floods(_gzip, Content_Encoding="gzip"),
        stream=_BOTH,
    ),
    "huge_body": Fault(f"a body of {HUGE} MiB", _floods(lambda: bytes), stream=_BOTH),
    "stream_cut": _in_stream("the stream is closed before its end", _closed),
    "stream_reset": _in_stream("the stream is reset", _reset),
    "stream_stall": _in_stream("the stream stalls", _stall),
    "stream_error_event": _in_stream("the stream ends with an error event", _sends(_error_event)),
    "stream_no_terminator": _in_stream(
        "the stream ends without terminator", _sends(lambda answer: _chunks(last=True))
    ),
    "stream_garbage_event": _in_stream(
        "one event is broken, later ones are not", _sends(_garbage_event)
    ),
    "stream_empty": Fault(
        "a stream without events",
        _sends(lambda answer: _head(200, _STREAM) + _chunks(last=True)),
        plain=False,
    ),
    "stream_json": Fault(
        "the right answer, not streamed",
        _sends(lambda answer: message(200, answer.whole)),
        plain=False,
        failover=False,
    ),
}
HEALTHY = Fault("the right answer", _sends(_healthy))
