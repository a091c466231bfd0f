"""Counts the input tokens of requests."""

from __future__ import annotations

from dataclasses import replace

from flask import Response

from ..dialects.responses import NAME as RESPONSES
from ..errors import ProviderError
from ..planning.call import Call
from ..pricing.token_estimate import estimate, estimate_messages
from ..protocol import CHAT, InferResponse, strict_json
from .http import Api, call_response

_COUNTED = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort")


def native_body(response: InferResponse, dialect: str) -> bytes | None:
    own, body = response.native or ("", None)
    return body if own == dialect else None


def token_count(api: Api, call: Call, dialect: str, member: str, **more: object) -> Response:
    """Respond with the vendor's count as *member*, or with an estimate marked as such."""
    router = api.router
    try:
        router.ids.pin(call)
        if not (op := _operation(api, call, dialect)):
            router.admission.admit(call, streamed=False)
    except BaseException as error:
        router.finish(call, error)
        raise
    asked = call.request
    if op:
        params = {name: asked.params[name] for name in _COUNTED if name in asked.params}
        call.request = replace(asked, op=op, params=params)
        try:
            response = router.answer(call)
        except ProviderError as error:
            if error.upstream_status not in (404, 405, 501):
                raise
        else:
            count = response.extra.get("input_tokens", response.tokens_in)
            return call_response(call, native_body(response, dialect) or more | {member: count})
    router.finish(call, None)  # of an estimate
    count = estimate_messages(asked.messages)
    if asked.params.get("tools"):
        count += estimate(strict_json.dumps(asked.params["tools"]))
    return call_response(call, more | {member: count, "infermux": {"estimated": True}})


def _operation(api: Api, call: Call, dialect: str) -> str:
    """Return the operation by which the vendor of a call counts, "" if it cannot."""
    router, asked = api.router, replace(call.request, op=CHAT)
    target = next(iter(router.plan(asked, caller=call.caller).targets), None)
    provider = router.registry.get(target.provider) if target is not None else None
    if getattr(getattr(provider, "dialect", None), "COUNTS_TOKENS", False):
        return "count_tokens"
    counts = getattr(getattr(provider, "responses", None), "counts", False)
    return "input_tokens" if counts and dialect == RESPONSES else ""
