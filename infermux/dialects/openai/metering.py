"""Reads the usage of answers that are passed through.

Where the vendor reports no tokens, it counts units for which a price may list a fee: characters of
speech, seconds of audio, images, searches of a reranker.
"""

from __future__ import annotations

from ...pricing.token_estimate import estimate, estimate_prompts
from ...protocol import InferRequest
from ...types import JSON, Usage
from .. import count, members, word
from ..sizes import number
from .usage import vendor_cost

READ = ("usage", "svg_usage", "meta", "duration", "model", "error", "object")  # members of answers
MAX_UNITS = 10**9
_AUDIO = ("audio/transcriptions", "audio/translations")


def usage_of(found: JSON, request: InferRequest, items: int = 0) -> Usage:
    """Return the usage in an answer's members; *items*: the images that it has."""
    told, op = members(found.get("usage")), request.op
    tokens_in = _first(told, "input_tokens", "prompt_tokens")
    tokens_out = _first(told, "output_tokens", "completion_tokens")
    total = _first(told, "total_tokens")
    if tokens_in is None and tokens_out is None:
        tokens_in = total
    fees = _searches(found) if op == "rerank" else ()
    cost = _cost(told)
    if tokens_in is None and not fees:
        fees = _units(found, request, items)
        if not fees:
            return asked(request, cost)
    if tokens_in is None:
        return Usage(0, 0, fees=fees, cost_usd=cost)
    images = op.startswith("images/")
    if op != "rerank":  # some prices are those of an image, or of a second
        fees = _units(found, request, items)
    of_input = members(told.get("input_tokens_details")) or members(told.get("input_token_details"))
    of_output = members(told.get("output_tokens_details"))
    drawn = _first(of_output, "image_tokens") if of_output else tokens_out if images else None
    return Usage(
        tokens_in,
        tokens_out or 0,
        _first(of_input, "cached_tokens"),
        cost_usd=cost,
        input_audio_tokens=_first(of_input, "audio_tokens"),
        input_image_tokens=_first(of_input, "image_tokens"),
        output_audio_tokens=tokens_out if op == "audio/speech" else None,
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
    texts = estimate_prompts(params)
    documents = params.get("documents")
    for each in documents if isinstance(documents, list) else ():
        texts += estimate(each if isinstance(each, str) else word(members(each).get("text")))
    query = params.get("query")
    return texts + (estimate(query) if isinstance(query, str) else 0)


def batch_usage(body: JSON) -> Usage | None:
    """Return the tokens of a batch; None if it does not tell them."""
    told = members(body.get("usage"))
    tokens_in, tokens_out = _first(told, "input_tokens"), _first(told, "output_tokens")
    if tokens_in is None and tokens_out is None:
        return None
    return Usage(
        tokens_in,
        tokens_out,
        _first(members(told.get("input_tokens_details")), "cached_tokens"),
        reasoning_tokens=_first(members(told.get("output_tokens_details")), "reasoning_tokens"),
        service_tier="batch",
    )


def _first(told: JSON, *names: str) -> int | None:
    """Return the first of some counts; None if there is none, or it is not a number."""
    for name in names:
        try:
            if (found := count(told.get(name))) is not None:
                return found
        except ValueError:
            continue
    return None


def _cost(told: JSON) -> float | None:
    try:
        return vendor_cost(told)
    except (ValueError, ArithmeticError):
        return None


def _units(found: JSON, request: InferRequest, items: int) -> tuple[tuple[str, int], ...]:
    op, params = request.op, request.params
    if op == "audio/speech":
        said = params.get("input")
        return (("characters", len(said)),) if isinstance(said, str) else ()
    if op in _AUDIO:
        usage = members(found.get("usage"))
        told = (usage.get("seconds"), usage.get("prompt_audio_seconds"), found.get("duration"))
        seconds = next((each for value in told if (each := number(value)) is not None), None)
        return (("seconds", min(seconds, MAX_UNITS)),) if seconds is not None else ()
    if op.startswith("images/") and items:
        return (("images", items),)
    return ()


def _searches(found: JSON) -> tuple[tuple[str, int], ...]:
    units = _first(members(members(found.get("meta")).get("billed_units")), "search_units")
    return (("searches", units),) if units else ()


def _svg(found: JSON) -> tuple[tuple[str, Usage], ...]:
    told = members(found.get("svg_usage"))
    tokens = _first(told, "input_tokens"), _first(told, "output_tokens")
    model = word(told.get("model"))
    return ((model, Usage(*tokens)),) if model and tokens != (None, None) else ()
