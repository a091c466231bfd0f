"""What a hook may return: values of the right types, all the way down; else it has failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...protocol import InferResponse
from ...providers.base import validated
from ...types import Chunk

_TEXTS = ("text", "reasoning", "refusal", "more", "dialect")
_OF_CALLS = ("name", "arguments", "input")
_OPTIONAL = ("finish_reason", "model", "id")


def of_type(value: Any, kind: type) -> Any:
    """Return *value* if it is of a type; raise TypeError."""
    if not isinstance(value, kind):
        raise TypeError(f"the hook returned {type(value).__name__}, not {kind.__name__} or None")
    return value


def answer_of(found: Any, answer: InferResponse) -> InferResponse:
    """Return what a hook made of *answer*; raise TypeError."""
    response = validated(of_type(found, InferResponse))
    if response.tool_calls != answer.tool_calls:
        _check_calls(response.tool_calls, whole=True)
    return response


def chunks_of(found: Any, chunk: Chunk) -> list[Chunk]:
    """Return what a hook made of *chunk*: one, or several in order; raise TypeError."""
    if isinstance(found, Chunk):
        found = [found]
    elif isinstance(found, str | bytes | Mapping):
        raise TypeError(f"the hook returned {type(found).__name__}, not a Chunk, a list or None")
    chunks = [of_type(each, Chunk) for each in found]
    for each in chunks:
        if each is not chunk:
            _check_chunk(each)
    return chunks


def _check_chunk(chunk: Chunk) -> None:
    for name in (*_TEXTS, *_OPTIONAL):
        value = getattr(chunk, name)
        if not isinstance(value, str) and (value is not None or name in _TEXTS):
            raise TypeError(f"{name} of the Chunk is not a str")
    _check_calls(chunk.tool_calls, whole=False)


def _check_calls(calls: Any, *, whole: bool) -> None:
    """Raise TypeError unless *calls* are those of an answer, or parts of them with their index."""
    if isinstance(calls, str | bytes) or not isinstance(calls, Sequence):
        raise TypeError("tool_calls is not a list")
    for call in calls:
        if not isinstance(call, Mapping) or (not whole and type(call.get("index")) is not int):
            raise TypeError("tool_calls has what is no call, or a part without its index")
        part = call.get("function") or call.get("custom") or {}
        texts = [part.get(name) for name in _OF_CALLS] if isinstance(part, Mapping) else [0]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise TypeError("tool_calls has a call whose name or arguments are no text")
        if whole and not texts[0]:
            raise TypeError("tool_calls has a call without the name of a function")
