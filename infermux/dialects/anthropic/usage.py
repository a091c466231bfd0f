"""Reads what Anthropic bills by."""

from __future__ import annotations

import re
from dataclasses import replace

from ...types import JSON, Usage
from .. import count, items, word
from .. import members as obj
from .. import obj as strict

_DATE = re.compile(r"-\d{8}\Z")
_CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
_SUMMED = ("input_tokens", "output_tokens", *_CACHED)


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
    names = [_name(each.get("model")) for each in items(listed)]
    own = [each for each, name in zip(listed, names, strict=True) if name in ("", _name(model))]
    others = [
        (word(each["model"]), usage)
        for each in listed
        if each not in own and (usage := _counted(each)) is not None
    ]
    if own:
        whole = _counted(data | _sums(own))
        found = max(whole or found, found, key=_tokens)
    others = [(name, replace(usage, service_tier=found.service_tier)) for name, usage in others]
    return replace(found, others=tuple(others))


def _name(model: object) -> str:
    """Return a model's name without its date: an alias stands for it."""
    return _DATE.sub("", word(model))


def _tokens(usage: Usage) -> int:
    return (usage.input_tokens or 0) + (usage.output_tokens or 0)


def _sums(iterations: list[JSON]) -> JSON:
    sums: JSON = {name: _sum(iterations, name) for name in _SUMMED}
    split = [obj(each.get("cache_creation")) for each in iterations]
    for name in ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"):
        sums.setdefault("cache_creation", {})[name] = _sum(split, name)
    return sums


def _sum(iterations: list[JSON], name: str) -> int | None:
    known = [number for each in iterations if (number := count(each.get(name))) is not None]
    return sum(known) if known else None


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
