"""Streams to a client: one way for every door and dialect."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from flask import Response
from werkzeug.wsgi import ClosingIterator

from ..errors import InferMuxError
from ..planning.call import Call
from ..routing.router import Stream
from ..types import HEARTBEAT, JSON, Chunk, Usage
from . import call_headers

log = logging.getLogger("infermux")


class Encoder(Protocol):
    """How a door says a stream in its dialect."""

    def encode(self, chunk: Chunk) -> bytes:
        """Return the events for a chunk; nothing where there is nothing to say."""

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        """Return the last events and the terminator of a stream that is whole."""

    def error(self, error: InferMuxError) -> bytes:
        """Return the event that tells of a failure; no terminator follows it."""

    def heartbeat(self) -> bytes:
        """Return a sign of life, by which a client that has gone is noticed too."""


class _Pieces(Response):
    """An answer in pieces that are bytes: they go out as they come, and are not looked at once
    more.
    """

    pieces: object = None  # the body; a hook of the app may put another one in its place

    def get_app_iter(self, environ: Any) -> Iterable[bytes]:
        if self.response is not self.pieces:
            return super().get_app_iter(environ)
        return ClosingIterator(self.response, self.close)  # type: ignore[arg-type]


def sse_answer(stream: Stream, encoder: Encoder) -> Response:
    """Return the stream as server-sent events; it is closed however the answer ends, also if nobody
    ever reads it.
    """
    answer = _Pieces(
        _events(stream, encoder),
        content_type="text/event-stream; charset=utf-8",
        headers={
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
            **call_headers(stream.call),
        },
    )
    answer.pieces = answer.response
    answer.call_on_close(stream.close)
    return answer


def _events(stream: Stream, encoder: Encoder) -> Iterator[bytes]:
    held = b""  # of events that came together, which go on together
    try:
        for chunk in stream:
            held += encoder.heartbeat() if chunk is HEARTBEAT else encoder.encode(chunk)
            if held and not chunk.more:
                data, held = held, b""
                yield data
        yield held + encoder.end(summary(stream.call), stream.call.usage)
    except InferMuxError as error:
        yield held + encoder.error(error)
    except Exception:  # a bug of ours must not look like the end of an answer
        log.exception("a stream could not be passed on")
        yield held + encoder.error(InferMuxError("internal error"))


def summary(call: Call) -> JSON:
    """Return what is known of a call at its end, for the last event of its stream."""
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
