"""FaultyVendor: a vendor on loopback that fails on purpose.

It speaks the chat APIs of OpenAI, Anthropic and Gemini. As a pytest plug-in,
`pytest_plugins = ["infermux.testing"]`, it provides the fixture `faulty_vendor`.
PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from .faults import AFTER, BEFORE, FAULTS, HEALTHY, Answer, Fault, Peer, encode, message, sse

__all__ = ["AFTER", "BEFORE", "FAULTS", "Fault", "FaultyVendor", "Seen"]

TOKENS_IN = 7  # of every prompt
_PATHS = {
    "openai": "/v1",
    "anthropic": "/v1",
    "gemini": "/v1beta",
    "azure": "/openai?api-version=2024-10-21",
}


class Seen(NamedTuple):
    """A request that the vendor received, without prompt and key."""

    path: str
    dialect: str  # "openai", "anthropic" or "gemini"; "" for an unknown path
    model: str
    streamed: bool
    fault: str  # "": it got the right answer


class FaultyVendor:
    """A vendor on loopback that gives right answers, or fails with `fault` if that is set.

    `with FaultyVendor("stall") as vendor:` starts it; the end of the block closes its connections
    and threads. Its address is `vendor.url("openai")`, its right answer `vendor.text`.
    """

    def __init__(
        self, fault: str | None = None, *, when: str = BEFORE, text: str | None = None
    ) -> None:
        unique = f"The quick brown fox jumps over the lazy dog, and says {secrets.token_hex(8)}"
        self.text = unique if text is None else text
        if len(self.text) < 2:
            raise ValueError("the text needs two characters, so that its stream can be cut")
        self.connections = 0
        self._lock = threading.Lock()  # for what follows; never held while sending
        self._requests: list[Seen] = []
        self._socks: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._listener = _bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor: threading.Thread | None = None
        try:
            self.when, self.fault = when, fault
        except ValueError:
            self._listener.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, dialect: str = "openai") -> str:
        """Return the base URL for clients of *dialect*; raise ValueError if that is unknown."""
        if dialect not in _PATHS:
            raise ValueError(f"there is no dialect {dialect!r}; there are {', '.join(_PATHS)}")
        return f"http://127.0.0.1:{self.port}{_PATHS[dialect]}"

    @property
    def fault(self) -> str | None:
        """The fault of the next requests, a name in FAULTS; None: they get the right answer."""
        return self._fault or None

    @fault.setter
    def fault(self, name: str | None) -> None:
        if name is not None and name not in FAULTS:
            raise ValueError(f"there is no fault {name!r}; there are {', '.join(FAULTS)}")
        with self._lock:
            self._fault, self._left = name or "", -1
        if name == "refused":
            self._refuse()
        elif self._acceptor is None and not self._stopped.is_set():
            self._listener.listen(128)
            own = (self._listener,)
            self._acceptor = threading.Thread(target=self._accept, args=own, daemon=True)
            self._acceptor.start()

    @property
    def when(self) -> str:
        """Whether a stream fails "before" or "after" its first token, if the fault can do both."""
        return self._when

    @when.setter
    def when(self, when: str) -> None:
        if when not in (BEFORE, AFTER):
            raise ValueError(f"when must be {BEFORE!r} or {AFTER!r}, not {when!r}")
        self._when = when

    def fail_times(self, times: int, fault: str | None = None) -> None:
        """Fail the next *times* requests, with *fault* if given; raise ValueError for "refused"."""
        if fault is not None:
            self.fault = fault
        if self.fault in (None, "refused"):
            raise ValueError("set a fault other than 'refused' first: its requests are counted")
        with self._lock:
            self._left = times

    @property
    def requests(self) -> list[Seen]:
        with self._lock:
            return list(self._requests)

    def close(self) -> None:
        """Close all connections and end all threads."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._refuse()
            self._listener.close()
            for thread in self._threads:
                thread.join()

    # -- connections --

    def _refuse(self) -> None:
        """Stop listening, but keep the port: a bound socket that does not listen refuses."""
        if self._acceptor is not None:
            old, self._listener = self._listener, _bound(self.port)
            _shut(old)
            self._acceptor.join()
            self._acceptor = None
            old.close()
        with self._lock:
            socks = list(self._socks)
        for sock in socks:
            _shut(sock)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            with self._lock:
                self._socks.add(sock)
                self._threads.append(thread)
                self.connections += 1
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            # the client is gone, or does not speak HTTP
            with sock, suppress(OSError, ValueError):
                peer = Peer(sock, self._stopped)
                while (request := peer.request()) and self._answered(peer, *request):
                    pass
        finally:
            with self._lock:
                self._socks.discard(sock)

    def _answered(self, peer: Peer, path: str, body: bytes) -> bool | None:
        """Answer a request; return whether the connection stays open."""
        dialect, model, streamed = read(path, body)
        with self._lock:
            name = self._due(streamed) if dialect else ""
            after = streamed and self._when == AFTER
            self._requests.append(Seen(path.partition("?")[0], dialect, model, streamed, name))
        if not dialect:
            peer.send(message(404, b'{"error":{"message":"not found"}}'))
            return True
        fault = FAULTS.get(name, HEALTHY)
        answer = _ANSWERS[dialect](model, pieces(self.text))
        after = after and AFTER in fault.stream
        return fault.act(peer, answer._replace(streamed=streamed, after=after))

    def _due(self, streamed: bool) -> str:
        fault = FAULTS.get(self._fault)
        if fault is None or self._left == 0 or not (fault.stream if streamed else fault.plain):
            return ""
        self._left = max(-1, self._left - 1)
        return self._fault


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    try:
        # The next socket is bound before this one is closed. Windows has one option for both.
        reuse = getattr(socket, "SO_REUSEPORT", socket.SO_REUSEADDR)
        sock.setsockopt(socket.SOL_SOCKET, reuse, 1)
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


# -- right answers --


def read(path: str, body: bytes) -> tuple[str, str, bool]:
    """Return a request's dialect ("": unknown), model, and whether it asks for a stream."""
    bare = path.partition("?")[0]
    if found := re.search(r"/models/([^/]+):(g|streamG)enerateContent$", bare):
        return "gemini", unquote(found[1]), found[2] != "g"
    dialect = "anthropic" if bare.endswith("/messages") else ""
    dialect = "openai" if bare.endswith("/chat/completions") else dialect
    data = json.loads(body) if dialect else {}
    if not isinstance(data, dict):
        return "", "", False
    return dialect, str(data.get("model", "")), data.get("stream") is True


def pieces(text: str) -> list[str]:
    """Return the tokens of a text: its words, or the characters of a single word."""
    words = re.findall(r"\s*\S+\s*", text)
    return words if len(words) > 1 else list(text)


def _openai(model: str, words: list[str]) -> Answer:
    total = TOKENS_IN + len(words)
    usage = {"prompt_tokens": TOKENS_IN, "completion_tokens": len(words), "total_tokens": total}
    base = {"id": "chatcmpl-faulty", "created": 0, "model": model}
    said = {"role": "assistant", "content": "".join(words)}
    choices = [{"index": 0, "message": said, "finish_reason": "stop"}]
    whole = base | {"object": "chat.completion", "usage": usage, "choices": choices}

    def event(delta: Mapping[str, str], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return sse(base | {"object": "chat.completion.chunk", "choices": [choice]} | more)

    return Answer(
        "openai",
        encode(whole),
        event({"role": "assistant", "content": ""}),
        tuple(event({"content": word}) for word in words),
        event({}, "stop", usage=usage) + b"data: [DONE]\n\n",
    )


def _anthropic(model: str, words: list[str]) -> Answer:
    def event(name: str, **members: Any) -> bytes:
        return sse({"type": name} | members, name)

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
        encode(whole),
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
        encode(body("".join(words), end, usageMetadata=usage)),
        b"",
        tuple(sse(body(word, {})) for word in words),
        sse(body("", end, usageMetadata=usage)),
    )


_ANSWERS = {"openai": _openai, "anthropic": _anthropic, "gemini": _gemini}


if "pytest" in sys.modules:  # otherwise pytest may not be installed
    import pytest

    @pytest.fixture
    def faulty_vendor() -> Iterator[FaultyVendor]:
        """A vendor that gives right answers until its `fault` is set."""
        with FaultyVendor() as vendor:
            yield vendor
