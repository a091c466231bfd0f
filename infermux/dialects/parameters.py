"""Decides what happens to a parameter that a target's format or model cannot express.

Each dialect's package has a table, PARAMETERS; `infermux help parameters` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from functools import cache
from importlib import import_module
from typing import NamedTuple

from ..errors import RequestError, UnsupportedParameter, shown
from ..protocol import CHAT, InferRequest
from ..types import JSON


class Kind(StrEnum):
    """How a parameter is treated that a target cannot express; EFFECTS describes each kind."""

    HINT = "hint"
    PREFERENCE = "preference"
    MEANING = "meaning"


EFFECTS = {
    Kind.HINT: "Left out and named in X-Infermux-Dropped.",
    Kind.PREFERENCE: "The same if the model name has several targets (those that can express it "
    "are tried first) or if\n            the model takes no such parameter; "
    "otherwise as on_unsupported says.",
    Kind.MEANING: "Never left out. A target that cannot express it is not tried while another "
    "target can; if none\n            can, the answer is 400.",
}
REMARK = (
    "A parameter that is not listed is a meaning. "
    "Between equal formats all pass that the model takes."
)

# A dialect's table: names by kind, with the reason. A name in no table is a meaning.
Parameters = Mapping[Kind, Mapping[str, str]]
_ROLES = ("user", "assistant", "tool", "system", "developer")
DIALECTS = ("openai", "responses", "anthropic", "gemini")  # those with a table


class Drop:
    """Collects names of params left out for a target: hints, and preferences if *lenient*."""

    __slots__ = ("lenient", "names", "preference")

    def __init__(self, names: list[str] | None = None, *, lenient: bool = False) -> None:
        self.names = [] if names is None else names
        self.lenient = lenient
        self.preference = False  # whether `names` includes one

    @classmethod
    def of(cls, request: InferRequest) -> Drop:
        """Return a Drop that adds names to request.dropped."""
        return cls(request.dropped, lenient=request.lenient)


class Unsaid(NamedTuple):
    """What a target cannot express of a request."""

    meaning: str = ""  # why the target must not be called, or ""
    preference: bool = False  # whether a preference would be left out


@cache
def kinds() -> Mapping[str, Kind]:
    """Return the kind of every parameter in the dialects' tables."""
    return {name: kind for kind, name, _ in rows()}


def rows() -> Iterator[tuple[Kind, str, str]]:
    """Yield kind, name and reason of every parameter in the dialects' tables."""
    tables = [import_module(f".{name}", __package__).PARAMETERS for name in DIALECTS]
    for kind in Kind:
        merged = {name: why for table in tables for name, why in table.get(kind, {}).items()}
        yield from ((kind, name, merged[name]) for name in sorted(merged))


@cache
def formats(parameter: str) -> list[str]:
    """Return the dialects whose format can express a parameter."""
    said = {name: import_module(f".{name}.requests", __package__).EXPRESSED for name in DIALECTS}
    return [name for name in DIALECTS if parameter in said[name]]


def unsupported(name: str, dialect: str, drop: Drop) -> None:
    """Add *name* to *drop*; raise UnsupportedParameter if its kind must not be left out."""
    kind = kinds().get(name, Kind.MEANING)
    if kind is Kind.MEANING or (kind is Kind.PREFERENCE and not drop.lenient):
        raise UnsupportedParameter(
            f"{shown(name)} cannot be expressed in the {dialect} format", param=name
        )
    drop.preference |= kind is Kind.PREFERENCE
    hint(name, drop)


def hint(name: str, drop: Drop) -> None:
    """Add *name* to *drop*: it may always be left out."""
    if name not in drop.names:
        drop.names.append(name)


def unsaid(
    request: InferRequest,
    model: str,
    dialect: str,
    path: Callable[..., str],
    translate: Callable[[InferRequest, Drop], object],
) -> Unsaid:
    """Return what of a request cannot be expressed, by translating its params.

    Messages are translated only if one is not plain: all formats have text, images and calls. A
    request in the *dialect* itself can be expressed.
    """
    if request.body_in(dialect) is not None:
        return Unsaid()
    drop = Drop(lenient=True)
    try:
        if request.op != CHAT:
            path(replace(request, model=model), stream=False)
        else:
            messages = () if _are_plain(request.messages) else request.messages
            translate(replace(request, model=model, messages=messages), drop)
    except RequestError as error:
        return Unsaid(f"cannot express {shown(error.param or request.op)}")
    return Unsaid("", drop.preference)


def _are_plain(messages: Iterable[JSON]) -> bool:
    """Whether messages have only what every format has.

    One loop without calls, as a request may have hundreds of messages.
    """
    for message in messages:
        content, calls = message.get("content"), message.get("tool_calls")
        if message.get("role") not in _ROLES or message.get("audio"):
            return False
        if isinstance(content, list):
            for part in content:
                if part.get("type") not in ("text", "image_url"):
                    return False
        if calls:
            for call in calls:
                if call.get("type", "function") != "function":
                    return False
    return True
