"""What may be a hook, and what it may return: values of the right types, all the way down."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ...protocol import InferResponse
from ...providers.base import validated
from ...types import Chunk

_TEXTS = ("text", "reasoning", "refusal", "more", "dialect")
_OF_CALLS = ("name", "arguments", "input")
_OPTIONAL = ("finish_reason", "model", "id")
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
    return response


def chunks_of(found: Any, chunk: Chunk) -> list[Chunk]:
    """Return what a hook made of *chunk*: one, or several in order; raise TypeError."""
    if isinstance(found, Chunk):
        found = [found]
    elif isinstance(found, str | bytes | Mapping):
        raise TypeError(f"the hook returned {type(found).__name__}, not a Chunk, a list or None")
    chunks = [of_type(each, Chunk) for each in found]
    for each in [each for each in chunks if each is not chunk]:
        for name in (*_TEXTS, *_OPTIONAL):
            member = getattr(each, name)
            if not isinstance(member, str) and (member is not None or name in _TEXTS):
                raise TypeError(f"{name} of the Chunk is not a str")
        _check_calls(each.tool_calls, whole=False)
    return chunks


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
