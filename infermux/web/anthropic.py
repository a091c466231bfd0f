"""The Anthropic door: what the official SDK and Claude Code need to work with any model behind it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from flask import Response, request

from ..dialects.anthropic import downstream as wire
from ..dialects.anthropic import upstream as dialect
from ..dialects.anthropic.stream import Encoder
from ..pricing import token_estimate as tokens
from ..protocol import CHAT, InferRequest, strict_json
from ..routing.router import Router
from . import (
    EndpointBlueprint,
    Identify,
    begin,
    bytes_answer,
    call_headers,
    document,
    endpoints,
    enter,
    json_answer,
)
from .openai import model_routes
from .sse import sse_answer

NAME = "anthropic"
COUNT = "count_tokens"


def blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the Anthropic endpoints, bound to *router*; a client's base URL is the service's own."""
    return endpoints(
        "infermux_anthropic",
        router,
        [
            ("POST", "/v1/messages", partial(messages, router, caller)),
            ("POST", "/v1/messages/count_tokens", partial(count_tokens, router, caller)),
            *model_routes(router, caller),
        ],
        render=wire.encode_error,
    )


def messages(router: Router, identify: Identify | None) -> Response:
    """Answer a message, streamed or not."""
    who = enter(router, identify, api=NAME)
    wanted, wants_stream = _read(CHAT)
    call = begin(router, wanted, who, api=NAME)
    if wants_stream:
        stream = router.open(call)
        native = stream.dialect == dialect.NAME
        return sse_answer(stream, Encoder(model=call.model, ident=f"msg_{call.id}", native=native))
    response = router.answer(call)
    if response.native is not None and response.native[0] == dialect.NAME:
        return bytes_answer(response.native[1], headers=call_headers(call))
    data = wire.encode_response(response)
    if not response.id.startswith("msg_"):
        data["id"] = f"msg_{call.id}"
    return json_answer(data, headers=call_headers(call))


def count_tokens(router: Router, identify: Identify | None) -> Response:
    """Count a message's tokens: by the vendor where it can, else by an estimate that says so."""
    who = enter(router, identify, api=NAME)
    wanted, _ = _read(COUNT)
    call = begin(router, wanted, who, api=NAME)
    target = next(iter(router.plan(wanted, caller=call.caller).targets), None)
    provider = router.registry.get(target.provider) if target is not None else None
    if not getattr(getattr(provider, "dialect", None), "COUNTS_TOKENS", False):
        router.admission.admit(call, streamed=False)
        estimate = tokens.estimate_messages(wanted.messages)
        if wanted.params.get("tools"):
            estimate += tokens.estimate(strict_json.dumps(wanted.params["tools"]))
        router.finish(call, None)
        return json_answer(
            {"input_tokens": estimate, "infermux": {"estimated": True}}, headers=call_headers(call)
        )
    response = router.answer(call)
    if response.native is not None and response.native[0] == dialect.NAME:
        return bytes_answer(response.native[1], headers=call_headers(call))
    return json_answer(
        {"input_tokens": response.extra.get("input_tokens", response.tokens_in)},
        headers=call_headers(call),
    )


def _read(op: str) -> tuple[InferRequest, bool]:
    wanted, wants_stream = wire.decode_request(document(), op=op)
    headers = {
        name.lower(): value
        for name, value in request.headers.items()
        if name.lower().startswith("anthropic-")
    }
    return replace(wanted, headers=headers), wants_stream
