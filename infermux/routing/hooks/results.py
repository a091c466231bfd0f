"""What may be a hook, and what it may return: values of the right types, all the way down."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import ConfigError
from ...protocol import InferResponse, strict_json
from ...providers.base import validated
from ...types import Chunk, Usage

_MEMBERS = {  # of chunks
    **dict.fromkeys(("text", "reasoning", "refusal", "more", "dialect"), str),
    **dict.fromkeys(("finish_reason", "model", "id"), str | None),
    "usage": Usage | None,
}
_OF_CALLS = ("name", "arguments", "input")
_LISTS = {"details": "", "annotations": "url_citation", "images": "image_url"}
Hook = Callable[..., Any]


def hook_of(hook: Any, name: str, what: str) -> Hook:
    """Return a hook that takes *what* and the call; raise ConfigError if it cannot be one."""
    if not callable(hook):
        raise ConfigError(f"the hook {name} is not callable: {type(hook).__name__}")
    inner = getattr(hook, "__call__", hook)  # noqa: B004 - to see an async __call__
    if any(
        test(each)
        for each in (hook, inner)
        for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    ):
        raise ConfigError(f"the hook {name} is async, which is not supported: use a plain function")
    wanted = f"it must take the {what}, and may take the call: {name}({what}, call)"
    if isinstance(hook, type):
        raise ConfigError(f"the hook {name} is the class {hook.__name__}, not a function: {wanted}")
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # some built-in functions have none
        return _alone(hook)
    for arguments, made in (((None, None), hook), ((None,), _alone(hook))):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return made
    raise ConfigError(f"the hook {name} has a wrong signature, {signature}: {wanted}")


def _alone(hook: Hook) -> Hook:
    return lambda value, call: hook(value)


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
    _check_lists(response, answer)
    of_type(response.id, str)
    of_type(response.extra, Mapping)
    return replace(response, native=answer.native)


def chunks_of(found: Any, chunk: Chunk) -> list[Chunk]:
    """Return what a hook made of *chunk*: one, or several in order; raise TypeError."""
    if isinstance(found, Chunk):
        found = [found]
    elif isinstance(found, str | bytes | Mapping):
        raise TypeError(f"the hook returned {type(found).__name__}, not a Chunk, a list or None")
    chunks = [of_type(each, Chunk) for each in found]
    for each in [each for each in chunks if each is not chunk]:
        for name, kind in _MEMBERS.items():
            if not isinstance(getattr(each, name), kind):
                raise TypeError(f"{name} of the Chunk has a wrong type")
        _check_calls(each.tool_calls, whole=False)
        _check_lists(each, chunk)
    return chunks


def _check_lists(made: Any, given: Any) -> None:
    """Raise TypeError, or KeyError, if a hook has added what cannot be in one of these lists."""
    for name, part in _LISTS.items():
        known, value = getattr(given, name), getattr(made, name)
        if value != known:
            for each in value:
                of_type(each, Mapping)
                if part and each not in known:
                    of_type(each[part]["url"], str)
            strict_json.encode(list(value))


def _check_calls(calls: Any, *, whole: bool) -> None:
    """Raise TypeError unless *calls* are those of an answer, or parts of them with their index."""
    if isinstance(calls, str | bytes) or not isinstance(calls, Sequence):
        raise TypeError("tool_calls is not a list")
    for call in calls:
        if not isinstance(call, Mapping) or (not whole and type(call.get("index")) is not int):
            raise TypeError("tool_calls has what is no call, or a part without its index")
        part = of_type(call.get("function") or call.get("custom") or {}, Mapping)
        texts = [part.get(name) for name in _OF_CALLS]
        if not all(isinstance(text, str | None) for text in texts) or (whole and not texts[0]):
            raise TypeError("tool_calls has a call without a name, or whose arguments are no text")
