"""Fits names of functions, ids of calls and ends of answers between different formats.

A name that the vendor refuses has another form there. No two calls of a conversation keep one id,
which some vendors give: Anthropic refuses that, and its clients take the new call for the old one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from ..errors import ProviderError
from ..pricing import find
from ..protocol import InferRequest, InferResponse, must_be
from ..types import JSON, NOTHING, Chunk, Usage
from . import Dialect, listed, members, without
from .fitting import digest
from .stops import stopped, stopped_stream, stops_of
from .tools import name_of

_NAME = re.compile(r"[a-z_][\w-]{0,63}", re.ASCII | re.IGNORECASE)  # that every vendor takes


class Calls:
    """Turns a vendor's answer into one for a client with another format: its calls and its end."""

    def __init__(self, request: InferRequest | None = None, names: Mapping[str, str] = NOTHING):
        self._messages = () if request is None else request.messages
        self._names, self._translates = names, request is not None
        native = None if request is None else request.native
        self._form = "" if native is None else native.dialect  # "": of the library, or of MIST
        self._stops = () if request is None else stops_of(request)

    def restored(self, calls: Sequence[JSON]) -> Sequence[JSON]:
        """Return calls, or their deltas, with the client's names, and ids that are new to it."""
        return [_named(self._own(call), self._names) for call in calls]

    def response(self, response: InferResponse) -> InferResponse:
        """Return a whole answer as the client's; raise ProviderError if it has failed."""
        if not self._translates:
            return response
        if self._stops:
            response = stopped(response, self._stops)
        reason, called = response.finish_reason, bool(response.tool_calls)
        response.finish_reason = self._end(reason, bool(response.content), called)
        if reason and not response.finish_reason:
            raise _failed(reason, response.usage)
        if called:
            response.tool_calls = self.restored(response.tool_calls)
        if response.refusal and self._form in _REFUSING:
            response.finish_reason = "content_filter"
        return response

    def chunks(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Return the chunks of a stream as the client's; raise ProviderError if it has failed."""
        chunks = stopped_stream(chunks, self._stops) if self._stops else chunks
        return self._translated(chunks) if self._translates else chunks

    def _translated(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        odd, refused, said, called, usage = "", False, False, False, None
        for chunk in chunks:
            usage, reason = chunk.usage or usage, chunk.finish_reason
            refused = refused or bool(chunk.refusal)
            said, called = said or bool(chunk.text), called or bool(chunk.tool_calls)
            if reason and (end := self._end(reason, said, called)) != reason:
                odd = odd or ("" if end else reason)
                chunk = chunk._replace(finish_reason=end)
            if odd:  # the client sees no more of it; its usage may follow
                chunk = Chunk(usage=usage, model=chunk.model, id=chunk.id)
            elif reason and refused and self._form in _REFUSING:
                chunk = chunk._replace(finish_reason="content_filter")
            if chunk.tool_calls:
                chunk = chunk._replace(tool_calls=self.restored(chunk.tool_calls))
            yield chunk
        if odd:
            raise _failed(odd, usage)

    def _end(self, reason: str, said: bool, called: bool) -> str:
        """Return the client's reason for the end of an answer; "" if the answer has failed."""
        if reason in _ENDS:
            return reason
        if not called and (not said or _FAILING.search(reason)):
            return ""
        if not self._form:  # they get a vendor's own reasons
            return reason
        return "tool_calls" if called else "stop"

    def _own(self, call: JSON) -> JSON:
        ident = call.get("id")
        if ident and any(each.get("id") == ident for each in _calls(self._messages)):
            return _with_id(call, len(self._messages))
        return call


# Why answers end. An answer without a word or call that ends otherwise has failed, and so has
# one without a call that ends for a failing reason, such as a malformed call.
_ENDS = frozenset({"", "stop", "length", "tool_calls", "function_call", "content_filter"})
_FAILING = re.compile(
    r"error|fail|malformed|unexpected|missing|too_many|insufficient|other|abort|filter|no_image"
)
_REFUSING = ("anthropic", "gemini")  # formats in which a refusal is such a reason, and no part


def _failed(reason: str, usage: Usage | None) -> ProviderError:
    """Return the error for an answer that ended for *reason*: another attempt may succeed."""
    told = reason if re.fullmatch(r"\w{1,40}", reason) else "unknown"
    error = ProviderError(f"the provider ended its answer with the reason {told!r}")
    error.retryable, error.usage = True, usage
    return error


def fitted(
    request: InferRequest, speaks: Callable[[InferRequest], Dialect]
) -> tuple[InferRequest, Calls]:
    """Return the request for a vendor that *speaks* a dialect, and what restores its calls."""
    if request.body_in(speaks(request).NAME) is not None:
        return request, Calls()
    params, messages = _without_empty(_bounded(request)), _unique(request.messages)
    tools, choice = params.get("tools"), params.get("tool_choice")
    tools = tools if isinstance(tools, list) else []
    said = {name for each in chain(tools, _calls(messages)) if (name := name_of(each)) is not None}
    names = {name: _fitted(name) for name in said if not _NAME.fullmatch(name)}
    if names:
        params = {**params, "tools": [_named(each, names) for each in tools]}
        params |= {"tool_choice": _chosen(choice, names)} if isinstance(choice, dict) else {}
        messages = [
            {**each, "tool_calls": [_named(call, names) for call in _calls([each])]}
            if each.get("tool_calls")
            else each
            for each in messages
        ]
    calls = Calls(request, {fits: own for own, fits in names.items()})
    if messages is not request.messages or params is not request.params:
        request = replace(request, params=params, messages=messages)
    return request, calls


def _bounded(request: InferRequest) -> Mapping[str, Any]:
    """Return the params with a limit that the model has: a Messages client must name one."""
    limit = request.params.get("max_tokens")
    if request.body_in("anthropic") is None or type(limit) is not int:
        return request.params
    price = find(request.provider, request.model)
    most = (price and price.max_output) or limit
    return request.params if limit <= most else {**request.params, "max_tokens": most}


def _without_empty(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the params without empty lists, and what is about tools if there are none: refused."""
    left = ["stop"] if params.get("stop") == [] else []
    if params.get("tools") in (None, []):
        left += ["tools", "parallel_tool_calls"]
        left += ["tool_choice"] if params.get("tool_choice") in ("auto", "none") else []
    return params if params.keys().isdisjoint(left) else without(params, *left)


def _calls(messages: Iterable[JSON]) -> list[JSON]:
    return [call for each in messages if (calls := each.get("tool_calls")) for call in calls]


def _named(holder: JSON, names: Mapping[str, str]) -> JSON:
    if (name := name_of(holder)) not in names:
        return holder
    kind = "function" if holder.get("function") else "custom"
    return holder | {kind: holder[kind] | {"name": names[name or ""]}}


def _chosen(choice: JSON, names: Mapping[str, str]) -> JSON:
    allowed = members(choice.get("allowed_tools"))
    if not (tools := listed(allowed.get("tools"))):
        return _named(choice, names)
    named = {"tools": [_named(each, names) for each in tools]}
    return choice | {"allowed_tools": allowed | named}


def _fitted(name: str) -> str:
    plain = re.sub(r"[^\w-]", "_", name, flags=re.ASCII)[:54]
    return f"_{plain}_{digest(name)[:8]}"


def _unique(messages: Sequence[JSON]) -> Sequence[JSON]:
    """Return messages in which each call has an id of its own, and its result has that."""
    idents = ["" if (own := call.get("id")) is None else own for call in _calls(messages)]
    if not all(isinstance(each, str) for each in idents):
        raise must_be("messages[].tool_calls[].id", "a string")
    if len(set(idents)) == len(idents) and all(idents):
        return messages
    known = {""}
    waiting: dict[str, list[str]] = {}  # new ids of calls without results, by the old ones
    found = []
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                old = call.get("id") or ""
                new = _with_id(call, len(known)) if old in known else call
                known.add(new["id"])
                waiting.setdefault(old, []).append(new["id"])
                calls.append(new)
            message = message | {"tool_calls": calls}
        elif queue := waiting.get(str(message.get("tool_call_id") or "")):
            message = message | {"tool_call_id": queue.pop(0)}
        found.append(message)
    return found


def _with_id(call: JSON, number: int) -> JSON:
    ident = digest(f"{number} {call.get('id')}")
    return call | {"id": f"call_{ident[:24]}"}
