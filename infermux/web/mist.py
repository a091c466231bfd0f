"""The MIST door: POST /mist, POST /infer, GET /providers."""

from __future__ import annotations

from functools import partial

from flask import Response

from ..errors import InferMuxError, ProtocolError, shown
from ..protocol import (
    INFER_REQUEST,
    INFER_RESPONSE,
    MAX_MESSAGE,
    InferRequest,
    Message,
    strict_json,
)
from ..protocol.sse import Event, comment
from ..routing.router import Router, Stream
from ..types import JSON, Chunk, Usage
from . import (
    EndpointBlueprint,
    Identify,
    asked,
    begin,
    body,
    bytes_answer,
    call_headers,
    endpoints,
    enter,
    json_answer,
    parsed,
    plain_error,
)
from . import caller as calling
from .sse import sse_answer

NAME = "mist"
SOURCE = "infermux"


def blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the MIST endpoints, bound to *router*; *caller* says who a request is from, as a name
    or a Caller.
    """
    return endpoints(
        "infermux",
        router,
        [
            ("POST", "/mist", partial(mist, router, caller)),
            ("POST", "/infer", partial(infer, router, caller)),
            ("GET", "/providers", partial(providers, router, caller)),
        ],
        render=plain_error,
    )


def mist(router: Router, identify: Identify | None) -> Response:
    """Answer an infer.request message with an infer.response message."""
    who = enter(router, identify, api=NAME)
    message = Message.read(body(MAX_MESSAGE))
    if message.type != INFER_REQUEST:
        raise ProtocolError(f"expected type {INFER_REQUEST}, got {shown(message.type)[1:-1]}")
    call = begin(router, InferRequest.from_dict(message.data), who, api=NAME)
    response = router.answer(call)
    reply = Message.wrap(
        SOURCE, INFER_RESPONSE, response.to_dict(), checksum=bool(message.checksum)
    )
    return bytes_answer(reply.to_bytes(), headers=call_headers(call))


def infer(router: Router, identify: Identify | None) -> Response:
    """Answer a bare infer.request."""
    who = enter(router, identify, api=NAME)
    call = begin(router, InferRequest.from_dict(parsed()), who, api=NAME)
    if "text/event-stream" in asked().environ.get("HTTP_ACCEPT", ""):
        stream = router.open(call)
        return sse_answer(stream, Encoder(stream))
    response = router.answer(call)
    return json_answer(response.to_dict(), headers=call_headers(call))


def providers(router: Router, identify: Identify | None) -> Response:
    """List the providers and their models."""
    calling(router, identify)
    return json_answer(router.registry.to_dict())


class Encoder:
    """Says a stream in MIST's words: what each chunk adds, and at the end the whole infer.response."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def encode(self, chunk: Chunk) -> bytes:
        """Return one delta: content, reasoning, refusal, tool_calls, whichever there is."""
        delta = {
            name: value
            for name, value in (
                ("content", chunk.text),
                ("reasoning", chunk.reasoning),
                ("refusal", chunk.refusal),
                ("tool_calls", chunk.tool_calls),
            )
            if value
        }
        return (
            Event(strict_json.encode({"delta": delta}), b"infer.delta").encode() if delta else b""
        )

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        """Return the whole answer."""
        return Event(
            strict_json.encode(self._stream.response().to_dict()), INFER_RESPONSE.encode()
        ).encode()

    def error(self, error: InferMuxError) -> bytes:
        """Return the event that tells of a failure."""
        return Event(strict_json.encode(plain_error(error)), b"error").encode()

    def heartbeat(self) -> bytes:
        """Return what readers skip."""
        return comment("waiting for the provider")
