"""The OpenAI-compatible API: /v1/chat/completions, completions, embeddings, responses, models."""

from __future__ import annotations

import time
from functools import partial

from flask import Response

from ..dialects.openai import downstream as wire
from ..errors import ModelNotFound, shown
from ..protocol import CHAT, strict_json
from ..routing.router import Router
from ..routing.stream import Stream
from ..types import JSON
from . import EndpointBlueprint, Route, endpoints
from .auth import admitted, authenticated
from .http import Api, Identify, call_response, json_body, json_response, start_call
from .sse import sse_response


def openai_blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the OpenAI-compatible endpoints for *router*; a client's base URL ends in /v1."""
    routes: list[Route] = [
        ("POST", "/v1/chat/completions", partial(complete, op=CHAT)),
        ("POST", "/v1/completions", partial(complete, op="completions")),
        ("POST", "/v1/embeddings", partial(complete, op="embeddings")),
        ("POST", "/v1/responses", partial(complete, op="responses")),
        *MODEL_ROUTES,
    ]
    return endpoints("infermux_openai", Api("openai", router, wire.encode_error, caller), routes)


def complete(api: Api, op: str) -> Response:
    """Respond to a POST endpoint, streamed or not."""
    caller = admitted(api)
    request, wants_stream = wire.decode_request(json_body(strict_json.document), op=op)
    call = start_call(api, request, caller)
    ident, created = f"chatcmpl-{call.id}", int(time.time())
    if wants_stream and op != "embeddings":
        options = request.native.body.value.get("stream_options") if request.native else None

        def encoder(_: Stream | None) -> wire.Encoder:
            return wire.Encoder(
                model=call.model,
                ident=ident,
                created=created,
                op=op,
                include_usage=bool(options and options.get("include_usage")),
            )

        return sse_response(api, call, encoder)
    response = api.router.answer(call)
    data = wire.encode_answer(
        response, call.request, model=call.model, ident=ident, created=created
    )
    native = response.native is not None and data is response.native[1]
    return call_response(call, data if native else data + b"\n")


def models(api: Api) -> Response:
    """List the models that the caller may use, in a form that both official SDKs read."""
    allowed, registry = authenticated(api).models, api.router.registry
    owners: dict[str, str] = dict.fromkeys(registry.names, "infermux")
    for member in registry:
        for name in member.models:
            owners.setdefault(name, member.name)
    if allowed is not None:
        served = {name: registry.providers(name) for name in allowed}
        owners = {name: owners.get(name, found[0]) for name, found in served.items() if found}
    data = [_model(name, owner) for name, owner in owners.items()]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return json_response(
        {"object": "list", "data": data, "has_more": False, "first_id": first, "last_id": last}
    )


def model(api: Api, ident: str) -> Response:
    """Describe one model that the caller may use."""
    allowed = authenticated(api).models
    found = api.router.registry.providers(ident) if allowed is None or ident in allowed else []
    if not found:
        raise ModelNotFound(f"no provider for model {shown(ident)}", param="model")
    return json_response(_model(ident, found[0]))


def _model(name: str, provider: str) -> JSON:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": provider,
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
    }


MODEL_ROUTES: list[Route] = [  # shared with the Anthropic API
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/<path:ident>", model),
]
