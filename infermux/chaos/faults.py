"""What a faulty vendor says and does on the wire: right answers in three dialects, and every way to
spoil them.

Standard library alone, and not a line of our own dialects: a vendor built from our code would share
our mistakes.
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
from urllib.parse import unquote

BEFORE, AFTER = (
    "before",
    "after",
)  # the first token of a stream; an answer in one piece is all before
PAUSE = 0.15  # seconds between two bytes that drip
LATER = 0.05  # seconds between a stream's first tokens and the fault after them
HUGE = 100  # MiB of a body that is too long, or of what a small one unpacks to
TOKENS_IN = 7  # of every prompt, whatever it says
_STREAM = "text/event-stream"
_MIB = b" " * 2**20
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

Act = Callable[
    ["Peer", "Answer"], bool
]  # answers a request, and says whether the connection can go on


class Answer(NamedTuple):
    """What a request would be answered, in its dialect's words."""

    dialect: str
    whole: bytes  # the body, unless it is streamed
    opening: bytes  # the events before the first token
    tokens: tuple[bytes, ...]  # one event each
    ending: bytes  # finish reason, usage and terminator
    streamed: bool = False
    after: bool = False  # whether the fault comes after the first token

    @property
    def begun(self) -> bytes:
        """The events that come before the fault."""
        return (
            self.opening + b"".join(self.tokens[: len(self.tokens) // 2])
            if self.after
            else self.opening
        )

    @property
    def rest(self) -> bytes:
        """The events that a fault in the middle delays."""
        return (
            b"".join(self.tokens[len(self.tokens) // 2 :]) + self.ending
            if self.after
            else b"".join(self.tokens) + self.ending
        )


class Fault(NamedTuple):
    """One way to fail."""

    description: str
    act: Act
    plain: bool = True  # whether an answer in one piece can suffer it
    stream: tuple[str, ...] = (BEFORE,)  # when a stream can
    failover: bool = True  # whether another vendor should be asked instead


class Peer:
    """The vendor's end of one connection."""

    def __init__(self, sock: socket.socket, stopped: threading.Event) -> None:
        self._sock, self._stopped, self._rest = sock, stopped, b""

    def request(self) -> tuple[str, bytes] | None:
        """Return the path and the body of the next request; None if the other side has hung up
        instead.
        """
        while b"\r\n\r\n" not in self._rest:
            if not (data := self._sock.recv(65536)):
                return None
            self._rest += data
        head, _, rest = self._rest.partition(b"\r\n\r\n")
        found = re.search(rb"(?im)^content-length: *(\d+)\s*$", head)
        size = int(found[1]) if found else 0
        while len(rest) < size:
            if not (data := self._sock.recv(65536)):
                return None
            rest += data
        self._rest = rest[size:]
        _, path, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        return path, rest[:size]

    def send(self, *data: bytes) -> None:
        """Send bytes."""
        self._sock.sendall(b"".join(data))

    def drip(self, data: bytes) -> None:
        """Send bytes one by one for as long as anybody takes them."""
        for at in range(len(data)):
            if self._stopped.wait(PAUSE):
                return
            self._sock.sendall(data[at : at + 1])

    def begin(self, answer: Answer) -> None:
        """Begin a stream: its head, and what comes before the fault."""
        self.send(_head(200, _STREAM), _chunks(answer.begun))
        self.wait()

    def wait(self) -> None:
        """Let what was sent arrive before what follows."""
        self._stopped.wait(LATER)

    def hold(self) -> None:
        """Say nothing until the other side hangs up."""
        while self._sock.recv(65536):
            pass

    def reset(self) -> None:
        """End the connection with RST instead of FIN (SO_LINGER of 0 seconds)."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


# -- what the dialects say -------------------------------------------------------------------------


def read(path: str, body: bytes) -> tuple[str, str, bool]:
    """Return the dialect, the model and whether a stream is wanted; no dialect for a path of none."""
    bare = path.partition("?")[0]
    if found := re.search(r"/models/([^/]+):(g|streamG)enerateContent$", bare):
        return "gemini", unquote(found[1]), found[2] != "g"
    dialect = (
        "openai"
        if bare.endswith("/chat/completions")
        else "anthropic"
        if bare.endswith("/messages")
        else ""
    )
    data = json.loads(body) if dialect else {}
    return (
        (dialect, str(data.get("model", "")), data.get("stream") is True)
        if isinstance(data, dict)
        else ("", "", False)
    )


def pieces(text: str) -> list[str]:
    """Return the tokens of a text: its words, or its characters if it is a single one."""
    words = re.findall(r"\s*\S+\s*", text)
    return words if len(words) > 1 else list(text)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _event(value: Mapping[str, Any], name: str = "") -> bytes:
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: " + _json(value) + b"\n\n"


def _openai(model: str, words: list[str]) -> Answer:
    usage = {
        "prompt_tokens": TOKENS_IN,
        "completion_tokens": len(words),
        "total_tokens": TOKENS_IN + len(words),
    }
    base = {"id": "chatcmpl-faulty", "created": 0, "model": model}
    whole = base | {
        "object": "chat.completion",
        "usage": usage,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(words)},
                "finish_reason": "stop",
            }
        ],
    }

    def event(delta: Mapping[str, str], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return _event(base | {"object": "chat.completion.chunk", "choices": [choice]} | more)

    return Answer(
        "openai",
        _json(whole),
        event({"role": "assistant", "content": ""}),
        tuple(event({"content": word}) for word in words),
        event({}, "stop", usage=usage) + b"data: [DONE]\n\n",
    )


def _anthropic(model: str, words: list[str]) -> Answer:
    def event(name: str, **members: Any) -> bytes:
        return _event({"type": name} | members, name)

    base: dict[str, Any] = {
        "id": "msg_faulty",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": TOKENS_IN, "output_tokens": 1},
    }
    usage, delta = {"output_tokens": len(words)}, {"stop_reason": "end_turn", "stop_sequence": None}
    whole = base | {
        "content": [{"type": "text", "text": "".join(words)}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": TOKENS_IN} | usage,
    }
    block = {"type": "text", "text": ""}
    return Answer(
        "anthropic",
        _json(whole),
        event("message_start", message=base)
        + event("content_block_start", index=0, content_block=block)
        + event("ping"),
        tuple(
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
            for word in words
        ),
        event("content_block_stop", index=0)
        + event("message_delta", delta=delta, usage=usage)
        + event("message_stop"),
    )


def _gemini(model: str, words: list[str]) -> Answer:
    usage = {
        "promptTokenCount": TOKENS_IN,
        "candidatesTokenCount": len(words),
        "totalTokenCount": TOKENS_IN + len(words),
    }
    end = {"finishReason": "STOP"}

    def body(text: str, last: Mapping[str, str], **more: Any) -> dict[str, Any]:
        candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **last}
        return {"candidates": [candidate], "modelVersion": model, "responseId": "faulty", **more}

    return Answer(
        "gemini",
        _json(body("".join(words), end, usageMetadata=usage)),
        b"",
        tuple(_event(body(word, {})) for word in words),
        _event(body("", end, usageMetadata=usage)),
    )


WORDS = {"openai": _openai, "anthropic": _anthropic, "gemini": _gemini}


def error(dialect: str, status: int, wait: int = 0) -> dict[str, Any]:
    """Return the error object of a dialect; Gemini says in it how long to wait."""
    words = f"this vendor fails on purpose, with {status}"
    if dialect == "gemini":
        delay = (
            {
                "details": [
                    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait}s"}
                ]
            }
            if wait
            else {}
        )
        return {
            "error": {
                "code": status,
                "message": words,
                "status": _GOOGLE.get(status, "UNAVAILABLE"),
            }
            | delay
        }
    told = {"type": _TYPES.get(status, "api_error"), "message": words}
    return (
        {"type": "error", "error": told}
        if dialect == "anthropic"
        else {"error": told | {"param": None, "code": None}}
    )


# -- HTTP ------------------------------------------------------------------------------------------


def _head(status: int, kind: str, size: int | None = None, **headers: str) -> bytes:
    """Return the head of an answer, whose body comes in chunks unless its size is given."""
    phrase = "Overloaded" if status == 529 else http.HTTPStatus(status).phrase
    length = ("Transfer-Encoding", "chunked") if size is None else ("Content-Length", str(size))
    fields = [
        ("Content-Type", kind),
        length,
        *((name.replace("_", "-"), value) for name, value in headers.items()),
    ]
    return "\r\n".join(
        [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields), "\r\n"]
    ).encode()


def message(status: int, body: bytes, kind: str = "application/json", **headers: str) -> bytes:
    """Return a whole answer, with a true Content-Length."""
    return _head(status, kind, len(body), **headers) + body


def _chunks(*pieces: bytes, last: bool = False) -> bytes:
    """Return pieces as the chunks of a body (RFC 9112, 7.1); an empty one would end it, so only
    *last* does.
    """
    return (
        b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
        + b"0\r\n\r\n" * last
    )


def healthy(peer: Peer, answer: Answer) -> bool:
    """Answer as a vendor should."""
    if answer.streamed:
        peer.send(
            _head(200, _STREAM), _chunks(answer.opening, *answer.tokens, answer.ending, last=True)
        )
    else:
        peer.send(message(200, answer.whole))
    return True


# -- faults ----------------------------------------------------------------------------------------


def _says(body: bytes, kind: str = "application/json", status: int = 200, **headers: str) -> Act:
    def act(peer: Peer, answer: Answer) -> bool:
        peer.send(message(status, body, kind, **headers))
        return True

    return act


def _fails(status: int, wait: int = 0) -> Act:
    def act(peer: Peer, answer: Answer) -> bool:
        headers = {"Retry_After": str(wait)} if wait and answer.dialect != "gemini" else {}
        peer.send(message(status, _json(error(answer.dialect, status, wait)), **headers))
        return True

    return act


def _begun(act: Act) -> Act:
    """Return what begins a stream, and then does the same."""

    def begin(peer: Peer, answer: Answer) -> bool:
        peer.begin(answer)
        return act(peer, answer)

    return begin


def _closed(peer: Peer, answer: Answer) -> bool:
    return False


def _reset(peer: Peer, answer: Answer) -> bool:
    peer.reset()
    return False


def _stall(peer: Peer, answer: Answer) -> bool:
    peer.hold()
    return False


def _slow_headers(peer: Peer, answer: Answer) -> bool:
    peer.drip(
        _head(200, "application/json", len(answer.whole), X_Patience="x" * 100_000) + answer.whole
    )
    return False


def _slow_body(peer: Peer, answer: Answer) -> bool:
    if not answer.streamed:
        peer.send(_head(200, "application/json", len(answer.whole)))
        peer.drip(answer.whole)
    elif answer.after:
        peer.begin(answer)
        peer.drip(_chunks(answer.rest, last=True))
    else:
        peer.send(_head(200, _STREAM))
        peer.drip(_chunks(answer.opening + answer.rest, last=True))
    return True


def _part(peer: Peer, answer: Answer, before: Callable[[int], bytes]) -> bool:
    """Send a part of the body behind what *before* says of the whole one's size."""
    whole = (
        answer.opening + b"".join(answer.tokens) + answer.ending
        if answer.streamed
        else answer.whole
    )
    peer.send(before(len(whole)), answer.begun if answer.streamed else whole[: len(whole) // 2])
    peer.wait()
    return False


def _truncated(peer: Peer, answer: Answer) -> bool:
    kind = _STREAM if answer.streamed else "application/json"
    return _part(peer, answer, lambda size: _head(200, kind, size))


def _chunk_cut(peer: Peer, answer: Answer) -> bool:
    kind = _STREAM if answer.streamed else "application/json"
    return _part(peer, answer, lambda size: _head(200, kind) + b"%x\r\n" % size)


def _garbage(peer: Peer, answer: Answer) -> bool:
    if answer.after:
        peer.begin(answer)
    peer.send(b"\x16\x03\x01\x02\x00\x01\xfc\xff SSH-2.0-OpenSSH \x00\r\n\r\n")
    return False


def _redirect(peer: Peer, answer: Answer) -> bool:
    peer.send(message(307, b"", Location="/elsewhere/v1/chat/completions"))
    return True


def _gzip_bomb(peer: Peer, answer: Answer) -> bool:
    """A block behind a full flush refers to nothing before it, so that one block can stand for all
    (RFC 1951).
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    begun = packer.compress(answer.begun if answer.after else b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(_MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    kind = _STREAM if answer.streamed else "application/json"
    peer.send(_head(200, kind, len(begun) + HUGE * len(block), Content_Encoding="gzip"), begun)
    peer.wait()
    peer.send(block * HUGE)
    return True


def _huge_body(peer: Peer, answer: Answer) -> bool:
    begun, kind = (
        answer.begun if answer.after else b"",
        _STREAM if answer.streamed else "application/json",
    )
    peer.send(_head(200, kind, len(begun) + HUGE * len(_MIB)), begun)
    peer.wait()
    for _ in range(HUGE):
        peer.send(_MIB)
    return True


def _error_event(peer: Peer, answer: Answer) -> bool:
    peer.send(
        _chunks(
            _event(error(answer.dialect, 503), "error" if answer.dialect == "anthropic" else ""),
            last=True,
        )
    )
    return True


def _no_terminator(peer: Peer, answer: Answer) -> bool:
    peer.send(_chunks(last=True))
    return True


def _garbage_event(peer: Peer, answer: Answer) -> bool:
    """A token is lost in the broken event: whoever skips it has a wrong text."""
    at = len(answer.tokens) // 2 if answer.after else 0
    peer.send(
        _chunks(
            answer.tokens[at][:-9] + b"\n\n", *answer.tokens[at + 1 :], answer.ending, last=True
        )
    )
    return True


def _empty(peer: Peer, answer: Answer) -> bool:
    peer.send(_head(200, _STREAM), _chunks(last=True))
    return True


def _whole(peer: Peer, answer: Answer) -> bool:
    peer.send(message(200, answer.whole))
    return True


_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to the network.</body></html>"
_BOTH = (BEFORE, AFTER)
FAULTS: dict[str, Fault] = {
    "refused": Fault("the connection is refused", _closed),
    "reset": Fault("the connection is reset once the request has come", _reset),
    "closed": Fault("the connection is closed without an answer", _closed),
    "stall": Fault("the request is taken and never answered", _stall),
    "slow_headers": Fault("the head of the answer drips, byte by byte, without end", _slow_headers),
    "slow_body": Fault("the body drips, byte by byte", _slow_body, stream=_BOTH),
    "truncated": Fault("the body is shorter than its Content-Length", _truncated, stream=_BOTH),
    "chunked_cut": Fault("the connection is closed within a chunk", _chunk_cut, stream=_BOTH),
    "garbage": Fault("bytes that are not HTTP", _garbage, stream=_BOTH),
    "html": Fault("a page of HTML, with status 200", _says(_PAGE, "text/html; charset=utf-8")),
    "empty": Fault("nothing, with status 200", _says(b"")),
    "not_json": Fault(
        "a body that is cut JSON", _says(b'{"choices": [{"message": {"content": "The quick')
    ),
    "wrong_shape": Fault(
        "JSON of another shape",
        _says(b'{"result": ["The quick brown fox"], "content": 7, "choices": {}}'),
    ),
    "deep_json": Fault("JSON with 100,000 levels", _says(b"[" * 100_000 + b"]" * 100_000)),
    **{
        str(status): Fault(f"status {status}", _fails(status), failover=status not in (400, 413))
        for status in (400, 401, 403, 404, 408, 413)
    },
    "429": Fault("status 429, to be repeated after a second", _fails(429, wait=1)),
    "429_long": Fault("status 429, to be repeated after an hour", _fails(429, wait=3600)),
    **{
        str(status): Fault(f"status {status}", _fails(status))
        for status in (500, 501, 502, 503, 529)
    },
    "redirect": Fault("status 307, to another address", _redirect),
    "gzip_bomb": Fault(f"a small body that unpacks to {HUGE} MiB", _gzip_bomb, stream=_BOTH),
    "huge_body": Fault(f"a body of {HUGE} MiB", _huge_body, stream=_BOTH),
    "stream_cut": Fault(
        "the stream is closed without its end", _begun(_closed), plain=False, stream=_BOTH
    ),
    "stream_reset": Fault("the stream is reset", _begun(_reset), plain=False, stream=_BOTH),
    "stream_stall": Fault("the stream falls silent", _begun(_stall), plain=False, stream=_BOTH),
    "stream_error_event": Fault(
        "an error comes as an event", _begun(_error_event), plain=False, stream=_BOTH
    ),
    "stream_no_terminator": Fault(
        "the stream ends politely, but in the middle",
        _begun(_no_terminator),
        plain=False,
        stream=_BOTH,
    ),
    "stream_garbage_event": Fault(
        "an event is broken, and those after it are not",
        _begun(_garbage_event),
        plain=False,
        stream=_BOTH,
    ),
    "stream_empty": Fault("a stream without any event", _empty, plain=False),
    "stream_json": Fault("the right answer, but in one piece", _whole, plain=False, failover=False),
}
HEALTHY = Fault("the right answer", healthy)
