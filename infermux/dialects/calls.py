"""Fits names of functions and ids of calls where client and vendor have different formats.

A name that the vendor refuses has another form there. No two calls of a conversation keep one id,
which some vendors give: Anthropic refuses that, and its clients take the new call for the old one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from typing import Any

from ..protocol import InferRequest
from ..types import JSON, Chunk
from . import Dialect

_NAME = re.compile(r"[a-z_][\w-]{0,63}", re.ASCII | re.IGNORECASE)  # that every vendor takes


class Calls:
    """Turns the calls in a vendor's answer into those of a client with another format."""

    def __init__(self, messages: Sequence[JSON], names: Mapping[str, str]) -> None:
        self._messages, self._names = messages, names

    def restored(self, calls: Sequence[JSON]) -> Sequence[JSON]:
        """Return calls, or their deltas, with the client's names, and ids that are new to it."""
        if not calls or not self._messages:
            return calls
        return [_named(self._own(call), self._names) for call in calls]

    def chunks(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Return the chunks of a stream with their calls restored."""
        return map(self._chunk, chunks) if self._messages else chunks

    def _chunk(self, chunk: Chunk) -> Chunk:
        calls = chunk.tool_calls
        return chunk._replace(tool_calls=self.restored(calls)) if calls else chunk

    def _own(self, call: JSON) -> JSON:
        ident = call.get("id")
        if ident and any(each.get("id") == ident for each in _calls(self._messages)):
            return _with_id(call, len(self._messages))
        return call


def fitted(
    request: InferRequest, speaks: Callable[[InferRequest], Dialect]
) -> tuple[InferRequest, Calls]:
    """Return the request for a vendor that *speaks* a dialect, and what restores its calls."""
    native = request.native
    if native is not None and native.dialect == speaks(request).NAME:
        return request, Calls((), {})
    params, messages = request.params, _unique(request.messages)
    tools, choice = params.get("tools"), params.get("tool_choice")
    tools = tools if isinstance(tools, list) else []
    said = {str(_name(each)) for each in chain(tools, _calls(messages))}
    names = {name: _fitted(name) for name in said if not _NAME.fullmatch(name)}
    if names:
        params = {**params, "tools": [_named(each, names) for each in tools]}
        params |= {"tool_choice": _named(choice, names)} if isinstance(choice, dict) else {}
        messages = [
            {**each, "tool_calls": [_named(call, names) for call in _calls([each])]}
            if each.get("tool_calls")
            else each
            for each in messages
        ]
    calls = Calls(request.messages, {fits: own for own, fits in names.items()})
    if messages is not request.messages:
        request = replace(request, params=params, messages=messages)
    return request, calls


def _calls(messages: Iterable[JSON]) -> list[JSON]:
    return [call for each in messages if (calls := each.get("tool_calls")) for call in calls]


def _name(holder: object) -> Any:
    """Return the name of a function that is declared, called or chosen."""
    function = holder.get("function") if isinstance(holder, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _named(holder: JSON, names: Mapping[str, str]) -> JSON:
    fits = names.get(str(_name(holder))) if names else None
    return holder | {"function": holder["function"] | {"name": fits}} if fits else holder


def _fitted(name: str) -> str:
    plain = re.sub(r"[^\w-]", "_", name, flags=re.ASCII)[:54]
    return f"_{plain}_{sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def _unique(messages: Sequence[JSON]) -> Sequence[JSON]:
    """Return messages in which each call has an id of its own, and its result has that."""
    idents = [call.get("id") for call in _calls(messages)]
    if len(set(idents)) == len(idents) and all(idents):
        return messages
    known: set[Any] = {None, ""}
    waiting: dict[Any, list[str]] = {}  # new ids of calls without results, by the old ones
    found = []
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                new = _with_id(call, len(known)) if call.get("id") in known else call
                known.add(new["id"])
                waiting.setdefault(call.get("id") or "", []).append(new["id"])
                calls.append(new)
            message = message | {"tool_calls": calls}
        elif queue := waiting.get(message.get("tool_call_id") or ""):
            message = message | {"tool_call_id": queue.pop(0)}
        found.append(message)
    return found


def _with_id(call: JSON, number: int) -> JSON:
    digest = sha256(f"{number} {call.get('id')}".encode(errors="replace")).hexdigest()
    return call | {"id": f"call_{digest[:24]}"}
