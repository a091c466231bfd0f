"""The Anthropic-compatible API: /v1/messages, /v1/messages/count_tokens, /v1/models."""

from __future__ import annotations

from dataclasses import replace

from flask import Response, request

from ..dialects import anthropic as dialect
from ..dialects.anthropic import downstream as wire
from ..dialects.anthropic.stream import Encoder
from ..protocol import CHAT, InferRequest, strict_json
from ..routing.router import Router
from ..routing.stream import Stream
from . import EndpointBlueprint, endpoints
from .auth import admitted
from .http import Api, Identify, call_response, json_body, start_call
from .openai import MODEL_ROUTES
from .sse import sse_response
from .token_count import native_body, token_count

COUNT = "count_tokens"


def anthropic_blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the Anthropic-compatible endpoints for *router*."""
    routes = [
        ("POST", "/v1/messages", messages),
        ("POST", "/v1/messages/count_tokens", count_tokens),
        *MODEL_ROUTES,
    ]
    api = Api("anthropic", router, wire.encode_error, caller)
    return endpoints("infermux_anthropic", api, routes)


def messages(api: Api) -> Response:
    caller = admitted(api)
    wanted, wants_stream = _read(CHAT)
    call = start_call(api, wanted, caller)
    ident = f"msg_{call.id}"
    if wants_stream:

        def encoder(stream: Stream | None) -> Encoder:
            native = stream is not None and stream.dialect == dialect.NAME
            return Encoder(model=call.model, ident=ident, native=native)

        return sse_response(api, call, encoder)
    response = api.router.answer(call)
    if (body := native_body(response, dialect.NAME)) is not None:
        return call_response(call, body)
    data = wire.encode_response(response)
    if not response.id.startswith("msg_"):
        data["id"] = ident
    return call_response(call, data)


def count_tokens(api: Api) -> Response:
    """Return the vendor's token count of a message, or an estimate marked as such."""
    caller = admitted(api)
    wanted, _ = _read(COUNT)
    call = start_call(api, wanted, caller)
    return token_count(api, call, dialect.NAME, "input_tokens")


def _read(op: str) -> tuple[InferRequest, bool]:
    """Return the request with its anthropic-* headers, and whether it asks for a stream."""
    wanted, wants_stream = wire.decode_request(json_body(strict_json.document), op=op)
    headers = {
        name.lower(): value
        for name, value in request.headers.items()
        if name.lower().startswith("anthropic-")
    }
    return replace(wanted, headers=headers), wants_stream
