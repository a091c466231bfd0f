"""Reads what OpenAI and compatible vendors bill by."""

from __future__ import annotations

from decimal import Decimal

from ...types import JSON, Usage
from .. import count, word
from .. import members as obj
from .. import obj as strict

_FEES = frozenset({"server_side_tool_usage_details", "server_tool_use", "num_sources_used"})


def usage_of(value: object, tier: object = None) -> Usage | None:
    """Return the usage, or None; *tier* is the service tier that stands beside it.

    Counts have the names of chat completions, or those of Responses and other endpoints.
    """
    if not (data := strict(value)):
        return None
    total = count(data.get("total_tokens"))
    tokens_in = _first(data, "prompt_tokens", "input_tokens")
    tokens_out = _first(data, "completion_tokens", "output_tokens")
    if total is not None and tokens_in is None:
        tokens_in = max(0, total - (tokens_out or 0))  # as of embeddings
    if tokens_in is None and tokens_out is None:
        return None
    of_input = strict(data.get("prompt_tokens_details") or data.get("input_tokens_details"))
    of_output = strict(data.get("completion_tokens_details") or data.get("output_tokens_details"))
    reasoning = count(of_output.get("reasoning_tokens"))
    if reasoning is not None and tokens_out is not None and total is not None:
        tokens_out = max(tokens_out, total - (tokens_in or 0))  # xAI counts reasoning apart
    known = data | of_input
    return Usage(
        tokens_in,
        tokens_out,
        _first(known, "cached_tokens", "prompt_cache_hit_tokens", "num_cached_tokens"),
        _first(known, "cache_write_tokens", "cache_creation_input_tokens"),
        reasoning_tokens=reasoning,
        cost_usd=vendor_cost(data),
        service_tier=word(data.get("service_tier")) or word(tier) or None,
        total_tokens=total,
        input_audio_tokens=count(of_input.get("audio_tokens")),
        input_image_tokens=count(of_input.get("image_tokens")),
        input_video_tokens=count(of_input.get("video_tokens")),
        cached_audio_tokens=count(obj(of_input.get("cached_tokens_details")).get("audio_tokens")),
        output_audio_tokens=count(of_output.get("audio_tokens")),
        output_image_tokens=count(of_output.get("image_tokens")),
        fees=_fees(data),
    )


def _first(data: JSON, *names: str) -> int | None:
    for name in names:
        if data.get(name) is not None:
            return count(data[name])
    return None


def _fees(data: JSON) -> tuple[tuple[str, int], ...]:
    if not _FEES.intersection(data):
        return ()
    used = obj(data.get("server_side_tool_usage_details")) | obj(data.get("server_tool_use"))
    found = {
        name.removesuffix("_calls").removesuffix("_requests"): number
        for name, value in used.items()
        if (number := count(value))
    }
    if sources := count(data.get("num_sources_used")):
        found["search_source"] = sources
    return tuple(found.items())


def vendor_cost(data: JSON) -> float | None:
    """Return a vendor's cost in dollars, or None; xAI's is in ticks of 10^-10 dollars.

    With a key of one's own, OpenRouter bills its fee, and the vendor bills the rest.
    """
    cost, ticks = data.get("cost"), data.get("cost_in_usd_ticks")
    cost = cost.get("total_cost") if isinstance(cost, dict) else cost
    if isinstance(ticks, int) and not isinstance(ticks, bool):
        cost = min(ticks, 10**18) / 10**10
    dollars = _number(cost)
    if dollars is not None and data.get("is_byok") is True:
        apart = _number(obj(data.get("cost_details")).get("upstream_inference_cost"))
        dollars = None if apart is None else dollars + apart
    return float(dollars) if dollars is not None and 0 <= dollars < 10**6 else None


def _number(value: object) -> Decimal | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return Decimal(repr(value))
