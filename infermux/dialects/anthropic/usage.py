"""Reads what Anthropic bills by."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

from ...types import JSON, Usage
from .. import count, items, word
from .. import members as obj
from .. import obj as strict

_DATE = re.compile(r"-\d{8}\Z")
_SUMMED = [each.name for each in fields(Usage)[:5]]  # the tokens that are billed


def usage_of(value: object, model: object = None) -> Usage | None:
    """Return the usage of an answer of *model*, or None.

    Anthropic counts cached tokens apart from input_tokens. With iterations, such as one that
    compacts the context, all of them are billed; those of another model at its own price.
    """
    data = strict(value)
    found = _counted(data)
    listed = data.get("iterations")
    if found is None or not isinstance(listed, list) or not listed:
        return found
    own, others = list[Usage](), list[tuple[str, Usage]]()
    for each in items(listed):
        if (usage := _counted(each)) is None:
            continue
        usage = replace(usage, service_tier=found.service_tier)
        if _name(each.get("model")) in ("", _name(model)):
            own.append(replace(usage, geo=found.geo, fees=() if own else found.fees))
        else:
            others.append((word(each["model"]), usage))
    sums: dict[str, Any] = {n: sum([getattr(each, n) or 0 for each in own]) for n in _SUMMED}
    told = (found.input_tokens or 0) + (found.output_tokens or 0)
    if sums["input_tokens"] + sums["output_tokens"] >= told:  # its own usage lacks compactions
        found = replace(found, **sums, parts=tuple(own))
    return replace(found, others=tuple(others))


def _name(model: object) -> str:
    """Return a model's name without its date: an alias stands for it."""
    return _DATE.sub("", word(model))


def _counted(data: JSON) -> Usage | None:
    fresh, tokens_out = count(data.get("input_tokens")), count(data.get("output_tokens"))
    read = count(data.get("cache_read_input_tokens"))
    written = count(data.get("cache_creation_input_tokens"))
    long_lived = count(obj(data.get("cache_creation")).get("ephemeral_1h_input_tokens"))
    reasoning = count(strict(data.get("output_tokens_details")).get("thinking_tokens"))
    tier = "fast" if data.get("speed") == "fast" else word(data.get("service_tier")) or None
    if fresh is None and tokens_out is None:
        return None
    tokens_in = None if fresh is None else fresh + (read or 0) + (written or 0)
    used = obj(data.get("server_tool_use"))
    return Usage(
        tokens_in,
        tokens_out,
        read,
        written,
        long_lived,
        reasoning,
        service_tier=tier,
        geo=word(data.get("inference_geo")) or None,
        fees=tuple(
            (name.removesuffix("_requests"), number)
            for name, value in used.items()
            if (number := count(value))
        ),
    )
