"""What Anthropic's models take: thinking, sampling, forced calls, cache breakpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...types import JSON
from .. import listed, parted, without
from ..parameters import Drop, hint

OFF = {"type": "disabled"}
# _THINKS: models that always think. BINDS: of these, models that cannot be forced to call a tool,
# and that refuse a thought if the conversation before it has changed.
_THINKS = re.compile(r"claude-((opus|sonnet)-5-5|(fable|mythos)-5)")
BINDS = re.compile(r"claude-((opus|sonnet)-5-5|(fable|mythos)-5-\d\b)")
BETA = "thinking-binding-controls-2026-08-01"  # allows _BINDING: they leave it out instead
_BINDING = {"block_binding": {"prefix_mismatch_behavior": "drop_block"}}
_LEAST = {"type": "between_tools"}  # of the Sonnets among them
SHOWN = {"type": "adaptive", "display": "summarized"}  # from 4.7 on, not shown unless asked for
SAMPLING_DEFAULTS = {"temperature": (None, 1), "top_p": (None, 1), "top_k": (None,)}
SAMPLING = frozenset(SAMPLING_DEFAULTS)
MARK = {"cache_control": {"type": "ephemeral"}}
CHARACTERS = 3  # per token, at least: what is too short is not cached, but costs nothing either
_MINIMA = (  # tokens of the shortest prompt that is cached
    (re.compile(r"claude-(opus|haiku)-(4-[5-9]|[5-9]|\d\d)|claude-mythos"), 4096),
    (re.compile(r"claude-(3-|3-5-)?haiku"), 2048),
)
_CACHED = ("text", "image", "document", "tool_use", "tool_result")  # blocks that may be marked


def version_of(model: str) -> tuple[int, int]:
    """Return the version in a model id, such as (4, 6), or (0, 0) if there is none."""
    found = re.search(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2})(?!\d))?(?!\d)", model)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def bound(body: JSON, model: str, drop: Drop) -> JSON:
    """Return a translated body as the model takes it, whose thoughts are bound to what they follow.

    It refuses to be forced to call, and is asked to in words.
    """
    if not BINDS.search(model):
        return body
    if (thinking := body.get("thinking", SHOWN)) != _LEAST:
        body = body | {"thinking": thinking | _BINDING}
    choice = body.get("tool_choice") or {}
    if choice.get("type") not in ("any", "tool"):
        return body
    hint("tool_choice", drop)
    drop.preference = True  # a target that can be forced is tried first
    words = f"Call the tool {choice['name']}." if "name" in choice else "Call one of the tools."
    told = [*parted(body.get("system") or []), {"type": "text", "text": words}]
    return body | {"system": told, "tool_choice": without(choice, "name") | {"type": "auto"}}


def fitted_thinking(thinking: JSON, model: str) -> JSON:
    """Return the thinking of a request as the model takes it; {} if that is what it does unasked.

    From Claude 4.7 on it has no budget.
    """
    kind = thinking.get("type")
    if kind == "enabled" and version_of(model) >= (4, 7):
        return SHOWN | without(thinking, "type", "budget_tokens")
    if kind == "disabled" and _THINKS.search(model):
        return _LEAST if "sonnet" in model else {}
    return thinking


def refused(params: Mapping[str, Any], model: str) -> list[str]:
    """Return the sampling params that the model refuses: from Claude 4.7 on, all but defaults."""
    if SAMPLING.isdisjoint(params) or version_of(model) < (4, 7):
        return []
    return [name for name in sorted(SAMPLING) if params.get(name) not in SAMPLING_DEFAULTS[name]]


# -- caching --


def breakpoints(body: JSON, model: str) -> JSON:
    """Return the members of *body* with at most four breakpoints: {} if the client set its own.

    A prompt is cached up to each, in the order tools, system, messages. Writing to the cache costs
    a quarter more than reading afresh, reading from it a tenth: what a conversation repeats is
    worth writing, and of a single question only tools and system.
    """
    turns, tools, system = body["messages"], body.get("tools"), body.get("system")
    if _is_marked(body):
        return {}
    new: JSON = {}
    least = next((each for known, each in _MINIMA if known.match(model)), 1024) * CHARACTERS
    size = _size(tools)
    if tools and size >= least:
        new["tools"] = [*tools[:-1], tools[-1] | MARK]
    size += _size(system)
    if size >= least and (marked := _marked(system)):
        new["system"] = marked
    goes_on = bool(tools) or any(turn.get("role") == "assistant" for turn in turns)
    if goes_on and size + _size([turn.get("content") for turn in turns]) >= least:
        new["messages"] = _with_marks(turns)
    return new


def _with_marks(turns: list[JSON]) -> list[JSON]:
    """Return the turns with the last two of the user marked: this request writes to the cache what
    the next one reads, and reads what the one before wrote.
    """
    found, left = list(turns), 2
    for place, turn in reversed([*enumerate(turns)]):
        if turn.get("role") == "user" and left and (marked := _marked(turn.get("content"))):
            found[place] = turn | {"content": marked}
            left -= 1
    return found


def _marked(content: Any) -> list[JSON] | None:
    """Return a content with its last block marked; None if it has none that may be."""
    blocks = parted(content) or []
    for place, block in reversed([*enumerate(blocks)]):
        kind = block.get("type")
        if kind in _CACHED and (kind != "text" or str(block.get("text") or "").strip()):
            return [*blocks[:place], block | MARK, *blocks[place + 1 :]]
    return None


def _is_marked(body: JSON) -> bool:
    """Return whether the client has set a breakpoint, or automatic caching, itself."""
    if body.get("cache_control"):
        return True
    contents = [turn.get("content") for turn in body["messages"]]
    inner = [block.get("content") for each in contents for block in listed(each)]
    places: Iterable[Any] = (body.get("tools"), body.get("system"), *contents, *inner)
    return any("cache_control" in block for each in places for block in listed(each))


def _size(value: Any) -> int:
    """Return the characters of all strings in a value, without those of images."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_size, value))
    if not isinstance(value, dict):
        return 0
    return sum(len(name) + _size(each) for name, each in value.items() if name != "data")
