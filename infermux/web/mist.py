"""The MIST API: POST /mist, POST /infer, GET /providers."""

from __future__ import annotations

from flask import Response, request

from ..dialects import parameters
from ..errors import InferMuxError
from ..planning.matching import within
from ..protocol import (
    INFER_RESPONSE,
    MAX_MESSAGE,
    InferRequest,
    Message,
    encode,
    request_message,
    strict_json,
)
from ..protocol.sse import Event, comment
from ..routing.router import Router
from ..routing.stream import Stream
from ..types import JSON, Chunk, Usage
from . import EndpointBlueprint, endpoints
from .auth import admitted, authenticated
from .http import (
    Api,
    Identify,
    call_response,
    json_body,
    json_response,
    plain_error,
    read_body,
    start_call,
)
from .sse import sse_response


def mist_blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the MIST endpoints for *router*; *caller* returns a name or a Caller."""
    routes = [("POST", "/mist", mist), ("POST", "/infer", infer), ("GET", "/providers", providers)]
    return endpoints("infermux", Api("mist", router, plain_error, caller), routes)


def mist(api: Api) -> Response:
    """Respond to an infer.request message with an infer.response message."""
    caller = admitted(api)
    message = request_message(read_body(MAX_MESSAGE))
    call = start_call(api, InferRequest.from_dict(message.data, parameters.kinds()), caller)
    data = api.router.answer(call).to_dict()
    reply = Message.wrap("infermux", INFER_RESPONSE, data, checksum=bool(message.checksum))
    return call_response(call, reply.to_bytes() + b"\n")


def infer(api: Api) -> Response:
    """Respond to an infer.request payload, streamed if it or the Accept header asks for it."""
    caller = admitted(api)
    data = json_body(strict_json.loads)
    call = start_call(api, InferRequest.from_dict(data, parameters.kinds()), caller)
    streamed = next((data[name] for name in data if name.lower() == "stream"), None)
    if streamed or "text/event-stream" in request.environ.get("HTTP_ACCEPT", ""):
        return sse_response(api, call, Encoder)
    return call_response(call, encode(api.router.answer(call).to_dict()) + b"\n")


def providers(api: Api) -> Response:
    """List the providers and their models; a restricted key sees its own models only."""
    registry, allowed = api.router.registry, authenticated(api).models
    found = registry.to_dict(None if allowed is None else within(registry, allowed))
    return json_response(encode(found) + b"\n")


class Encoder:
    """Writes a stream as MIST events: a delta for each chunk, then the whole infer.response."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def encode(self, chunk: Chunk) -> bytes:
        fields = {
            "content": chunk.text,
            "reasoning": chunk.reasoning,
            "refusal": chunk.refusal,
            "tool_calls": chunk.tool_calls,
        }
        delta = {name: value for name, value in fields.items() if value}
        return _event(b"infer.delta", {"delta": delta}) if delta else b""

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        assert self._stream is not None  # None only if there is just an error
        return _event(INFER_RESPONSE.encode(), self._stream.response().to_dict())

    def error(self, error: InferMuxError) -> bytes:
        return _event(b"error", plain_error(error))

    def heartbeat(self) -> bytes:
        return comment("waiting for the provider")


def _event(name: bytes, data: JSON) -> bytes:
    return Event(encode(data), name).encode()
