"""Writes the changes of hooks back into the bodies that the changed values were read from.

A hook sees requests, answers and chunks in one form, whatever the wire. Between equal formats the
client's and the vendor's own bytes pass, so a change must be made there, too, and only there: what
a hook did not touch stays as it came. `requests` merges changes into a client's body, `places`
knows where each format has its words, `streams` rewrites events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...protocol import InferResponse, strict_json
from ...types import JSON
from .places import CannotRewrite as CannotRewrite
from .places import Place, Places, rewrite, spot_of

KINDS = {"text": "content", "reasoning": "reasoning", "refusal": "refusal"}  # fields of an answer


def details_of(before: InferResponse, after: InferResponse) -> Sequence[JSON]:
    """Return the details of changed reasoning: the same words, and no signature of other ones."""
    if before.reasoning == after.reasoning or before.details != after.details:
        return after.details
    details: list[JSON] = [dict(each) for each in after.details]
    spoken = [
        Place(each, name)
        for each in details
        for name in ("text", "summary")
        if isinstance(each.get(name), str)
    ]
    try:
        rewrite(spoken, before.reasoning, after.reasoning)
    except CannotRewrite:
        return []
    return details


def answered(
    before: InferResponse, after: InferResponse, dialect: str, choice: int = 0
) -> InferResponse:
    """Return the answer *after* a change with its body rewritten for a client of *dialect*.

    Where the body has no place for the change, or is of another format, the answer has none: it
    is then written anew.
    """
    native = None
    if before.native is not None and before.native[0] == dialect:
        with suppress(CannotRewrite, ValueError, TypeError, LookupError, AttributeError):
            native = dialect, _rewritten(before, after, before.native, choice)
    return replace(after, native=native)


def _rewritten(
    before: InferResponse, after: InferResponse, native: tuple[str, bytes], choice: int
) -> bytes:
    body = strict_json.lenient(native[1])
    known = Places(native[0], body, choice)
    for kind, name in KINDS.items():
        known.replace(kind, getattr(before, name), getattr(after, name))
    recall(known.calls(), before.tool_calls, after.tool_calls)
    if list(before.details) != list(after.details):
        known.think(after.details, again=before.reasoning == after.reasoning)
    if before.finish_reason != after.finish_reason:
        known.finish(after.finish_reason)
    for name in ("extra", "usage", "model", "id", "annotations", "images"):
        if getattr(before, name) != getattr(after, name):
            raise CannotRewrite
    return strict_json.encode(body)


def recall(spots: Sequence[Place], before: Iterable[JSON], after: Iterable[JSON]) -> None:
    """Write the arguments of changed calls; raise CannotRewrite for any other change."""
    was, now = list(before), list(after)
    if was == now:
        return
    if len(was) != len(now) or len(spots) != len(was):
        raise CannotRewrite
    for spot, old, new in zip(spots, was, now, strict=True):
        if old == new:
            continue
        if with_arguments(old, arguments(new)) != new:
            raise CannotRewrite
        rewrite([spot], arguments(old), arguments(new))


def arguments(call: JSON) -> str:
    kind, member = spot_of(call)
    said: Any = (call.get(kind) or {}).get(member)
    return said if isinstance(said, str) else ""


def with_arguments(call: JSON, said: str) -> JSON:
    kind, member = spot_of(call)
    inner = dict(call.get(kind) or {})
    if said or member in inner:
        inner[member] = said
    return call | {kind: inner}
