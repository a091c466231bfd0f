"""Sets Anthropic's cache breakpoints where they pay, for names with cache = "auto".

A prompt is cached up to each breakpoint, in the order tools, system, messages. Writing to the cache
costs a quarter more than reading afresh, reading from it a tenth: what a conversation repeats is
worth writing, and of a single question only tools and system.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...types import JSON
from .. import listed, parted

MARK = {"cache_control": {"type": "ephemeral"}}
CHARACTERS = 3  # per token, at least: what is too short is not cached, but costs nothing either
_MINIMA = (  # tokens of the shortest prompt that is cached
    (re.compile(r"claude-(opus|haiku)-(4-[5-9]|[5-9]|\d\d)|claude-mythos"), 4096),
    (re.compile(r"claude-(3-|3-5-)?haiku"), 2048),
)
_CACHED = ("text", "image", "document", "tool_use", "tool_result")  # blocks that may be marked


def breakpoints(body: JSON, model: str) -> JSON:
    """Return the members of *body* with at most four breakpoints: {} if the client set its own."""
    turns, tools, system = body.get("messages"), body.get("tools"), body.get("system")
    if not isinstance(turns, list) or _is_marked(body):
        return {}
    new: JSON = {}
    least = next((each for known, each in _MINIMA if known.match(model)), 1024) * CHARACTERS
    size = _size(tools)
    if isinstance(tools, list) and tools and size >= least and isinstance(tools[-1], dict):
        new["tools"] = [*tools[:-1], tools[-1] | MARK]
    size += _size(system)
    if system and size >= least and (marked := _marked(parted(system))) is not None:
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
        if turn.get("role") != "user" or not left:
            continue
        if (marked := _marked(parted(turn.get("content")))) is not None:
            found[place] = turn | {"content": marked}
            left -= 1
    return found


def _marked(blocks: Any) -> list[JSON] | None:
    if not isinstance(blocks, list):
        return None
    for place, block in reversed([*enumerate(blocks)]):
        if not isinstance(block, dict) or block.get("type") not in _CACHED:
            continue
        if block.get("type") != "text" or str(block.get("text") or "").strip():
            return [*blocks[:place], block | MARK, *blocks[place + 1 :]]
    return None


def _is_marked(body: JSON) -> bool:
    """Return whether the client has set a breakpoint, or automatic caching, itself."""
    if body.get("cache_control"):
        return True
    turns = body["messages"]
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
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
