"""A cheap vendor with canned answers in OpenAI's format from one event loop, and a TokenTrace that
only counts.

The model's name sets the delays: bench-D-G waits D ms before the answer, and G ms between the
events of a stream; bench-wide answers with as many headers as vendors send. With a certificate as
argument, the same port also speaks TLS. It ends when its standard input is closed, and so with the
process that started it.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
import select
import socket
import ssl
import sys
import time
from typing import Any

EVENTS = 20  # pieces of text in a stream
MODEL = re.compile(rb"bench-(\d+)-(\d+)")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. How vexingly quick daft zebras jump."
USAGE = {
    "prompt_tokens": 21,
    "completion_tokens": 29,
    "total_tokens": 50,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def _http(status: str, body: bytes, headers: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
        + body
    )


def _completion(kind: str, **more: Any) -> bytes:
    head = {
        "id": "chatcmpl-bench0123456789abcdef",
        "object": kind,
        "created": 1_700_000_000,
        "model": "bench",
    }
    return json.dumps(
        head | more | {"service_tier": "default", "system_fingerprint": "fp_bench"},
        separators=(",", ":"),
    ).encode()


def _event(delta: dict[str, str] | None, finish: str | None = None, usage: Any = None) -> bytes:
    choices = (
        []
        if delta is None
        else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    )
    return _chunked(
        b"data: " + _completion("chat.completion.chunk", choices=choices, usage=usage) + b"\n\n"
    )


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_TALK = _completion(
    "chat.completion",
    usage=USAGE,
    choices=[
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
)
WHOLE: tuple[bytes, ...] = (_http("200 OK", _TALK),)
WIDE = (
    _http(
        "200 OK",
        _TALK,
        "".join(f"x-ratelimit-bench-header-{n}: {n * 1_234_567}\r\n" for n in range(22)),
    ),
)
ACCEPTED = (_http("202 Accepted", b""),)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_BEGIN = (
    _HEAD + _event({"role": "assistant", "content": ""}),
    *[_event({"content": f"word {n} "}) for n in range(EVENTS)],
)
_END = _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
STREAM = (*_BEGIN, _event({}, "stop") + _END)
STREAM_WITH_USAGE = (*_BEGIN, _event({}, "stop") + _event(None, usage=USAGE) + _END)


class Peer:
    """A connection, and what it has sent so far of a request."""

    __slots__ = ("inbox", "new", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.inbox = b""
        self.new = True


class Upstream:
    """Serves *listener* until standard input ends."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._listener = listener
        self._peers: dict[int, Peer] = {}
        self._timers: list[tuple[float, int, Peer, tuple[bytes, ...], float]] = []
        self._order = itertools.count()
        self._spans = 0
        self._poll = select.epoll()
        for each in (listener.fileno(), sys.stdin.fileno()):
            self._poll.register(each, select.EPOLLIN)

    def serve(self) -> None:
        while True:
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for number, _ in self._poll.poll(wait):
                if number == sys.stdin.fileno():
                    return
                if number == self._listener.fileno():
                    self._accept()
                else:
                    self._read(self._peers[number])
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _, _, peer, pieces, gap = heapq.heappop(self._timers)
                self._send(peer, pieces, gap)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peers[connection.fileno()] = Peer(connection)
        self._poll.register(connection.fileno(), select.EPOLLIN)

    def _read(self, peer: Peer) -> None:
        try:
            if (
                peer.new and self._tls and peer.socket.recv(1, socket.MSG_PEEK) == b"\x16"
            ):  # the first byte of a TLS handshake
                peer.socket = self._tls.wrap_socket(peer.socket, server_side=True)
                peer.new = False
                return
            peer.new = False
            data = peer.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        peer.inbox += data
        end = peer.inbox.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(peer.inbox, 0, end)
        if len(peer.inbox) >= end + 4 + (int(length[1]) if length else 0):
            request, peer.inbox = (
                peer.inbox,
                b"",
            )  # nobody here sends a second request before the first is answered
            self._answer(peer, request)

    def _answer(self, peer: Peer, request: bytes) -> None:
        if request.startswith(b"GET "):
            self._send(peer, (_http("200 OK", b"%d" % self._spans),), 0)
        elif request.startswith(b"POST /mist"):
            self._spans += 1
            self._send(peer, ACCEPTED, 0)
        else:
            self._complete(peer, request)

    def _complete(self, peer: Peer, request: bytes) -> None:
        found = MODEL.search(request)
        delay, gap = (int(found[1]) / 1000, int(found[2]) / 1000) if found else (0.0, 0.0)
        pieces = WIDE if b"bench-wide" in request else WHOLE
        if b'"stream":true' in request or b'"stream": true' in request:
            pieces = STREAM_WITH_USAGE if b"include_usage" in request else STREAM
            pieces = pieces if gap else (b"".join(pieces),)
        if delay:
            self._later(delay, peer, pieces, gap)
        else:
            self._send(peer, pieces, gap)

    def _send(self, peer: Peer, pieces: tuple[bytes, ...], gap: float) -> None:
        try:
            peer.socket.send(pieces[0])
        except OSError:
            return  # gone: the end of the connection is read elsewhere
        if len(pieces) > 1:
            self._later(gap, peer, pieces[1:], gap)

    def _later(self, seconds: float, peer: Peer, pieces: tuple[bytes, ...], gap: float) -> None:
        heapq.heappush(
            self._timers, (time.monotonic() + seconds, next(self._order), peer, pieces, gap)
        )

    def _drop(self, peer: Peer) -> None:
        self._poll.unregister(peer.socket)
        del self._peers[peer.socket.fileno()]
        peer.socket.close()


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if sys.argv[1:] else None
        if context:
            context.load_cert_chain(sys.argv[1])
        print(listener.getsockname()[1], flush=True)
        Upstream(listener, context).serve()
