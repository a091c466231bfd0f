"""Streams a call to the client as server-sent events, in the API's dialect."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Protocol

from flask import Response
from werkzeug.datastructures import Headers

from ..errors import InferMuxError, forget
from ..planning.call import Call
from ..routing.stream import Stream
from ..types import HEARTBEAT, JSON, Chunk, Usage
from .http import BytesResponse, call_headers

log = logging.getLogger("infermux")


class Encoder(Protocol):
    """Writes a stream's events in one dialect."""

    def encode(self, chunk: Chunk) -> bytes: ...  # b"" if the dialect has no event for it

    def end(self, summary: JSON, usage: Usage | None) -> bytes: ...  # with the terminator

    def error(self, error: InferMuxError) -> bytes: ...  # without a terminator

    def heartbeat(self) -> bytes: ...  # clients skip it; writing it detects those that are gone


def sse_response(stream: Stream, encoder: Encoder) -> Response:
    """Return *stream* as server-sent events; it is closed even if nobody reads the response."""
    headers = {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
        **call_headers(stream.call),
    }
    response = BytesResponse(_events(stream, encoder), 200, Headers(headers))
    response.call_on_close(stream.close)
    return response


def _events(stream: Stream, encoder: Encoder) -> Iterator[bytes]:
    try:
        for chunk in stream:
            data = encoder.heartbeat() if chunk is HEARTBEAT else encoder.encode(chunk)
            if data:
                yield data
        yield encoder.end(summary(stream.call), stream.call.usage)
    except InferMuxError as error:
        data = encoder.error(error)
        forget(error)
        yield data
    except Exception:  # a bug must not look like the end of the stream
        log.exception("a stream failed unexpectedly")
        yield encoder.error(InferMuxError("internal error"))


def summary(call: Call) -> JSON:
    """Return the facts of a call for the last event of its stream."""
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
