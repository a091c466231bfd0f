"""Passes the bytes of an answer on to the client, and marks a cut answer as incomplete."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import struct
from typing import Any

from flask import Response, request
from werkzeug.datastructures import Headers

from ...dialects.openai.downstream import encode_error
from ...errors import InferMuxError, StreamIncomplete
from ...planning.call import Call
from ...protocol import strict_json
from ...protocol.sse import Event, comment
from ...types import JSON, Chunk, Usage
from ..http import BODY, Api, BytesResponse, call_headers
from ..sse import HEADERS, EarlyHead, events, failed_response

# Types that a browser does not run as a page of this server.
_MEDIA = re.compile(
    r"(application/(json|octet-stream|x-ndjson|jsonl|x-subrip|pdf|zip)|text/(plain|vtt|csv|srt)"
    r"|(audio|video)/[\w.+-]{1,60}|image/(png|jpeg|webp|gif))(;[ \w=.\"-]{1,100})?",
    re.I | re.ASCII,
)


def passed_response(api: Api, call: Call, *, wants_stream: bool = False) -> Response:
    """Respond to *call* with the vendor's bytes as they arrive, or all at once if they are there.

    If the client wants a stream and its first event takes long, the head is sent early.
    """
    environ, passed = request.environ, call.request.passed
    early = EarlyHead(call, lambda _: Encoder(environ), HEADERS, is_stream=wants_stream)
    stream = early.open(api.router)
    if isinstance(stream, Response):
        return stream
    if stream.is_whole and early.write is None:
        data = b"".join([chunk.native or b"" for chunk in stream])
        whole = {"Content-Type": _type(passed.media), "Content-Length": str(len(data))}
        return BytesResponse([data], 200, _headers(call, whole))
    if call.ended is None:
        call.releases.append(environ.pop(BODY).release)
    is_events = "event-stream" in passed.media
    encoder = Encoder(environ, is_events=is_events or early.write is not None)
    if early.write is not None and not is_events:
        stream.close()
        late = StreamIncomplete("the provider answered without events")
        return failed_response(late, encoder, HEADERS)
    own = dict(HEADERS) if is_events else {"Content-Type": _type(passed.media)}
    if passed.length is not None and not is_events:
        own["Content-Length"] = str(passed.length)
        encoder.has_length = True
    response = BytesResponse(events(stream, encoder), 200, _headers(call, own))
    response.call_on_close(stream.close)
    return response


def _headers(call: Call, own: dict[str, str]) -> Headers:
    return Headers({"X-Content-Type-Options": "nosniff", **own, **call_headers(call)})


def _type(media: str) -> str:
    return media if _MEDIA.fullmatch(media) else "application/octet-stream"


class Encoder:
    """Writes the vendor's bytes as they are; an error is an event, or breaks the connection."""

    def __init__(self, environ: dict[str, Any], *, is_events: bool = True) -> None:
        self.has_length = False
        self._environ, self._is_events = environ, is_events
        self._between = True  # whether the last event is complete

    def encode(self, chunk: Chunk) -> bytes:
        data = chunk.native or b""
        if data:
            self._between = data.endswith((b"\n\n", b"\n\r\n"))
        return data

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        return b""

    def error(self, error: InferMuxError) -> bytes:
        """Return an error event; raise ConnectionResetError where there can be none."""
        if self._is_events and self._between:
            return Event(strict_json.encode(encode_error(error)), b"error").encode()
        if not self.has_length and self._environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
            self._reset()  # a normal end of the connection would mark the answer as complete
        raise ConnectionResetError(errno.ECONNRESET, "the answer was cut")

    def _reset(self) -> None:
        sock: Any = self._environ.get("gunicorn.socket")
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    def heartbeat(self) -> bytes:
        return comment("waiting for the provider") if self._is_events and self._between else b""
