"""The OpenAI door: what the official SDK needs to work with any model behind it."""

from __future__ import annotations

import time
from functools import partial

from flask import Response

from ..dialects.openai import downstream as wire
from ..errors import ModelNotFound, shown
from ..planning.call import Call
from ..protocol import CHAT, InferRequest, InferResponse
from ..routing.router import Router
from ..types import JSON
from . import (
    EndpointBlueprint,
    Identify,
    View,
    begin,
    bytes_answer,
    call_headers,
    document,
    endpoints,
    enter,
    json_answer,
)
from . import caller as calling
from .sse import sse_answer

NAME = "openai"


def blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the OpenAI endpoints, bound to *router*; a client's base URL ends in /v1."""
    return endpoints(
        "infermux_openai",
        router,
        [
            ("POST", "/v1/chat/completions", partial(complete, router, caller, CHAT)),
            ("POST", "/v1/completions", partial(complete, router, caller, "completions")),
            ("POST", "/v1/embeddings", partial(complete, router, caller, "embeddings")),
            ("POST", "/v1/responses", partial(complete, router, caller, "responses")),
            *model_routes(router, caller),
        ],
        render=wire.encode_error,
    )


def model_routes(router: Router, caller: Identify | None) -> list[tuple[str, str, View]]:
    """Return the routes of the model list, which the Anthropic SDK asks for too."""
    return [
        ("GET", "/v1/models", partial(models, router, caller)),
        ("GET", "/v1/models/<path:ident>", partial(model, router, caller)),
    ]


def complete(router: Router, identify: Identify | None, op: str) -> Response:
    """Answer one of the POST endpoints, streamed or not."""
    who = enter(router, identify, api=NAME)
    request, wants_stream = wire.decode_request(document(), op=op)
    call = begin(router, request, who, api=NAME)
    if wants_stream and op != "embeddings":
        stream = router.open(call)
        return sse_answer(
            stream,
            wire.Encoder(
                model=call.model,
                ident=f"chatcmpl-{call.id}",
                created=int(time.time()),
                op=op,
                include_usage=_wants_usage(request),
            ),
        )
    return _answer(call, router.answer(call))


def _wants_usage(request: InferRequest) -> bool:
    options = request.native.body.value.get("stream_options") if request.native else None
    return bool(options and options.get("include_usage"))


def _answer(call: Call, response: InferResponse) -> Response:
    data = wire.encode_answer(
        response,
        call.request,
        model=call.model,
        ident=f"chatcmpl-{call.id}",
        created=int(time.time()),
    )
    return bytes_answer(data, headers=call_headers(call))


def models(router: Router, identify: Identify | None) -> Response:
    """List the models that the caller may ask for, in a form that both official SDKs read."""
    allowed = calling(router, identify).models
    data = [
        _model(name, provider)
        for provider, name in _known(router)
        if allowed is None or name in allowed
    ]
    ends = (
        {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
        if data
        else {"first_id": None, "last_id": None}
    )
    return json_answer({"object": "list", "data": data, "has_more": False, **ends})


def model(router: Router, identify: Identify | None, ident: str) -> Response:
    """Describe one model."""
    calling(router, identify)
    try:
        target = router.registry.resolve(ident)[0]
    except ModelNotFound:
        raise ModelNotFound(f"no provider for model {shown(ident)}", param="model") from None
    return json_answer(_model(ident, target.provider))


def _known(router: Router) -> list[tuple[str, str]]:
    """Return each name and model once, with the first provider that lists it."""
    found: dict[str, str] = dict.fromkeys(router.registry.names, "infermux")
    for member in router.registry:
        for name in member.models:
            found.setdefault(name, member.name)
    return [(provider, name) for name, provider in found.items()]


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
