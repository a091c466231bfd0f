"""Reads the usage of answers that are passed through.

Where the vendor reports no tokens, it counts units for which a price may list a fee: characters of
speech, seconds of audio, images, searches of a reranker.
"""

from __future__ import annotations

from dataclasses import replace

from ...pricing.token_estimate import estimate_prompts
from ...protocol import InferRequest
from ...types import JSON, Usage
from .. import members, word
from ..sizes import number
from .usage import usage_of as chat_usage
from .usage import vendor_cost

READ = ("usage", "svg_usage", "meta", "duration", "model", "error", "object")  # members of answers
MAX_UNITS = 10**9
_AUDIO = ("audio/transcriptions", "audio/translations")


def usage_of(found: JSON, request: InferRequest, items: int = 0) -> Usage:
    """Return the usage in an answer's members; *items*: the images that it has."""
    told, op = members(found.get("usage")), request.op
    if "input_token_details" in told:  # of transcriptions
        told = {"input_tokens_details": told["input_token_details"]} | told
    usage = _tokens(told) or Usage(cost_usd=vendor_cost(told))
    fees = _units(found, request, items)
    if usage.input_tokens is None:
        cost = usage.cost_usd
        return Usage(0, 0, fees=fees, cost_usd=cost) if fees else asked(request, cost)
    drawn = usage.output_image_tokens
    if op.startswith("images/") and not told.get("output_tokens_details"):
        drawn = usage.output_tokens
    return replace(
        usage,
        output_tokens=usage.output_tokens or 0,
        output_audio_tokens=usage.output_tokens if op == "audio/speech" else None,
        output_image_tokens=drawn,
        fees=fees,
        others=_svg(found),
    )


def asked(request: InferRequest, cost: float | None = None) -> Usage:
    """Return what can be told of a request's usage before its answer, or without one."""
    if fees := _units({}, request, 0) if request.op == "audio/speech" else ():
        return Usage(0, 0, fees=fees, cost_usd=cost)
    if request.op in ("moderations", "rerank"):
        return Usage(text_tokens(request), 0, estimated=True, cost_usd=cost)
    return Usage(cost_usd=cost)


def text_tokens(request: InferRequest) -> int:
    """Return the estimated tokens of the text that a client sends."""
    params = request.params
    ranked = {"prompt": params.get("documents"), "input": params.get("query")}
    return estimate_prompts(params) + estimate_prompts(ranked)


def batch_usage(body: JSON) -> Usage | None:
    """Return the tokens of a batch; None if it does not tell them."""
    usage = _tokens(members(body.get("usage")))
    return None if usage is None else replace(usage, service_tier="batch")


def _tokens(told: object) -> Usage | None:
    """Return a usage in tokens; None if there is none, or a count is not a number."""
    try:
        return chat_usage(told)
    except ValueError:
        return None


def _units(found: JSON, request: InferRequest, items: int) -> tuple[tuple[str, int], ...]:
    """Return what is billed by number: some prices are those of an image, or of a second."""
    op, params = request.op, request.params
    if op == "audio/speech":
        said = params.get("input")
        return (("characters", len(said)),) if isinstance(said, str) else ()
    if op in _AUDIO:
        usage = members(found.get("usage"))
        told = (usage.get("seconds"), usage.get("prompt_audio_seconds"), found.get("duration"))
        seconds = next((each for value in told if (each := number(value)) is not None), None)
        return (("seconds", min(seconds, MAX_UNITS)),) if seconds is not None else ()
    if op == "rerank":
        billed = members(members(found.get("meta")).get("billed_units"))
        units = number(billed.get("search_units"))
        return (("searches", units),) if units else ()
    if op.startswith("images/") and items:
        return (("images", items),)
    return ()


def _svg(found: JSON) -> tuple[tuple[str, Usage], ...]:
    told = members(found.get("svg_usage"))
    usage, model = _tokens(told), word(told.get("model"))
    return ((model, usage),) if model and usage is not None else ()
