"""Streams a call to the client as server-sent events, in the API's format."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from flask import Response, current_app
from werkzeug.datastructures import Headers

from ..config.settings import EARLY_HEADERS, Server
from ..errors import ClientGone, InferMuxError, forget
from ..planning.call import Call
from ..routing.router import Router
from ..routing.stream import Stream, check_draining
from ..types import HEARTBEAT, JSON, Chunk, Usage
from .http import BODY, Api, BytesResponse, call_headers, current_request, ours

BEAT_SECONDS = 1.0  # between heartbeats before the first content
START = "infermux.start_response"  # key in the WSGI environ
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
log = logging.getLogger("infermux")


class Encoder(Protocol):
    """Writes a stream's events in one API's format."""

    def encode(self, chunk: Chunk) -> bytes: ...  # b"" if the format has no event for it

    def end(self, summary: JSON, usage: Usage | None) -> bytes: ...  # with the terminator

    def error(self, error: InferMuxError) -> bytes: ...  # without a terminator

    def heartbeat(self) -> bytes: ...  # ignored by clients; a write detects closed ones


def sse_response(
    api: Api,
    call: Call,
    encode: Callable[[Stream | None], Encoder],
    *,
    media: str = HEADERS["Content-Type"],
) -> Response:
    """Respond to *call* with server-sent events; the stream is closed even if not read.

    *media* is the response's type, where the encoder writes something else than events.
    """
    own = {**HEADERS, "Content-Type": media}
    early = EarlyHead(call, encode, own)
    stream = early.open(api.router)
    if isinstance(stream, Response):
        return stream
    if call.ended is None:  # else a hook has held the answer until its end
        call.releases.append(current_request().environ.pop(BODY).release)
    headers = Headers({**own, **call_headers(call)})
    response = BytesResponse(events(stream, encode(stream)), 200, headers)
    response.call_on_close(stream.close)
    return response


def failed_response(error: Exception, encoder: Encoder, headers: Mapping[str, str]) -> Response:
    """Return a stream that tells of *error*."""
    return BytesResponse([failure(error, encoder)], 200, Headers(headers))


class StartResponse:
    """A WSGI start_response that a view can call before it returns its response."""

    __slots__ = ("_start", "_write")

    def __init__(self, start_response: Callable[..., Any]) -> None:
        self._start = start_response
        self._write: Any = None

    def __call__(self, status: str, headers: Any, *error: Any) -> Any:
        return self._start(status, headers, *error) if self._write is None else self._write

    def early(self, headers: dict[str, str]) -> Callable[[bytes], object]:
        """Send the head of a response with status 200; return WSGI's write()."""
        self._write = self._start("200 OK", list(headers.items()))
        return self._write  # type: ignore[no-any-return]


def with_early_start(wsgi_app: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a WSGI application to put start_response into the environ, for the views."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        environ[START] = start = StartResponse(start_response)
        return wsgi_app(environ, start)

    return application


class EarlyHead:
    """Sends a stream's head, and heartbeats, while waiting for its first content."""

    def __init__(
        self,
        call: Call,
        encode: Callable[[Stream | None], Encoder],
        headers: dict[str, str],
        *,
        is_stream: bool = True,
    ) -> None:
        self._headers = headers
        request = current_request()
        may = is_stream and request.method != "HEAD"  # after which no body may come
        seconds = current_app.config.get(EARLY_HEADERS, Server().early_headers) * may
        self._start: StartResponse | None = request.environ.get(START)
        self._due = call.started + seconds if seconds and self._start else math.inf
        self._call: Call | None = call
        self._encode: Callable[[Stream | None], Encoder] | None = encode
        self.write: Callable[[bytes], object] | None = None

    def open(self, router: Router) -> Stream | Response:
        """Open the call's stream; if the head was sent, a failure is an event of a response."""
        call, encode = self._call, self._encode
        assert call is not None and encode is not None
        call.on_wait = self.on_wait
        try:
            return router.open(call)
        except Exception as error:
            if self.write is None:
                raise
            return failed_response(error, encode(None), self._headers)
        finally:
            call.on_wait, self._due = None, math.inf
            # a pooled connection to the provider may keep this object longer
            self._call = self._encode = self._start = None

    def on_wait(self) -> float:
        """Write what is due; return the seconds until the next call; raise ClientGone."""
        check_draining()
        left = self._due - time.monotonic()
        if left <= 0:
            self._beat()
            self._due = time.monotonic() + BEAT_SECONDS
            return BEAT_SECONDS
        return min(left, BEAT_SECONDS)

    def _beat(self) -> None:
        try:
            if self.write is None and self._start is not None and self._call is not None:
                call, ident = self._call, self._call.id
                limits = {} if call.limits_told is None else call.limits_told(call)
                self.write = self._start.early(
                    {**self._headers, "X-Request-Id": ident, "Request-Id": ident, **limits}
                )
                call.has_head = True
            if self.write is not None and self._encode is not None:
                self.write(self._encode(None).heartbeat())
        except Exception as error:  # each server has its own
            raise ClientGone("the client has closed its connection") from error


def failure(error: Exception, encoder: Encoder) -> bytes:
    """Return the error event for *error*, also for a bug: it is no end."""
    data = encoder.error(ours(error, "a stream"))
    forget(error)  # its frames keep the request alive
    return data


def events(stream: Stream, encoder: Encoder) -> Iterator[bytes]:
    """Yield what *encoder* writes of a stream, and of its failure."""
    try:
        for chunk in stream:
            data = encoder.heartbeat() if chunk is HEARTBEAT else encoder.encode(chunk)
            if data:
                yield data
        yield encoder.end(summary(stream.call), stream.usage)
    except Exception as error:
        yield failure(error, encoder)


def summary(call: Call) -> JSON:
    tokens_in, tokens_out = call.tokens
    data: JSON = {
        "id": call.id,
        "provider": call.provider,
        "model": call.model,
        "attempts": len(call.attempts),
        "latency_ms": call.latency_ms,
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "cost_usd": call.cost_usd,
    }
    return data | ({"estimated": True} if call.usage and call.usage.estimated else {})
