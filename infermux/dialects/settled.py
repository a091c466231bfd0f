"""Applies parameters that the configuration sets: defaults, and values that override a client's.

They have OpenAI's names and are translated like a client's own. Where a body passes unchanged, as
client and vendor have the same format, they are translated to that format and put into the body.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..protocol import CHAT, InferRequest, strict_json
from ..types import JSON
from . import Dialect, obj, only, without
from .parameters import Drop, Kind, formats, hint, kinds
from .sizes import GOOGLE, snake, with_fitting_thoughts

_OF_EMBEDDINGS = frozenset({"dimensions", "encoding_format", "user"})
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# objects of which single members are set: the client's other members stay
_HOLDERS = (*GOOGLE, "reasoning", "text", "output_config")
_OF_TOOLS = ("tool_choice", "parallel_tool_calls")  # vendors refuse them without tools
# parameters of the client on which it depends how others are written
_BESIDE = (*_LIMITS, "tools", *_OF_TOOLS)
_TAKE_ANY = {"openai", "responses"}  # formats in which vendors have parameters of their own


class Forced(NamedTuple):
    """Parameters of a request that the configuration sets, and which of them are defaults."""

    params: Mapping[str, Any]
    defaults: frozenset[str] = frozenset()


def settled(
    request: InferRequest, defaults: Mapping[str, Any], override: Mapping[str, Any]
) -> InferRequest:
    """Return *request* with *defaults* where the client sets nothing, and with *override*."""
    own = request.params
    given = {name for name, value in own.items() if value is not None}
    new = {
        name: value
        for name, value in defaults.items()
        if given.isdisjoint(_alike(name)) and _fits(name, request.op)
    }
    over = {name: value for name, value in override.items() if _fits(name, request.op)}
    gone = {each for name in over for each in _alike(name)}
    new = without(new, *gone) | over
    if not (new.get("tools") or own.get("tools")):
        new = without(new, *_OF_TOOLS)
    if not new:
        return request
    before: Forced = request.forced or Forced({})
    forced = without(before.params, *gone) | new
    by_default = (before.defaults | new.keys()) - over.keys()
    return replace(request, params=without(own, *gone) | new, forced=Forced(forced, by_default))


def _alike(name: str) -> tuple[str, ...]:
    """Return the names of a parameter, of which a request has one."""
    return _LIMITS if name in _LIMITS else (name,)


def _fits(name: str, op: str) -> bool:
    """Whether a parameter is one of the operation's; unknown names are the vendor's own."""
    if op == "embeddings":
        return name in _OF_EMBEDDINGS or name not in kinds()
    return op in (CHAT, "completions") and name not in _OF_EMBEDDINGS - {"user"}


def placed(request: InferRequest, dialect: Dialect) -> InferRequest:
    """Return a request whose forced params are where *dialect* reads them.

    What is left in `forced` belongs into the body as it is: a vendor's own parameters.
    """
    raw = {name: each for name, each in request.forced.params.items() if _is_raw(name, dialect)}
    request = _without(request, raw)
    lost = [name for name in request.forced.params if _is_lost(name, request, dialect)]
    lost += _disturbing(request, dialect, lost)
    for name in lost:
        hint(name, Drop.of(request))
    request = _without(request, lost)
    forced, native = request.forced.params | raw, request.native
    if native is not None and native.dialect == dialect.NAME:
        document = strict_json.document(strict_json.dumps(_with(request, forced, dialect)))
        return replace(request, native=native._replace(body=document), forced=None)
    return replace(request, forced=Forced(raw) if raw else None)


def _is_raw(name: str, dialect: Dialect) -> bool:
    """Whether vendors of *dialect* get a parameter as it is: it is none of OpenAI's."""
    meaning = kinds().get(name, Kind.MEANING) is Kind.MEANING
    return dialect.NAME in _TAKE_ANY and meaning and not _TAKE_ANY.intersection(formats(name))


def _without(request: InferRequest, names: Collection[str]) -> InferRequest:
    forced = Forced(without(request.forced.params, *names), request.forced.defaults)
    return replace(request, params=without(request.params, *names), forced=forced)


def _is_lost(name: str, request: InferRequest, dialect: Dialect) -> bool:
    """Whether *dialect* cannot express a forced param, and leaves it out.

    An override with a meaning is kept, and then causes an error; a default never does.
    """
    if request.op != CHAT:
        return False
    native = None if request.body_in(dialect.NAME) is not None else request.native
    asked = InferRequest(request.model, params=only(request.params, (name,)), native=native)
    said = dialect.unsaid(asked, request.model)
    return said.preference or (bool(said.meaning) and name in request.forced.defaults)


def _disturbing(request: InferRequest, dialect: Dialect, lost: Sequence[str]) -> list[str]:
    """Return the defaults that *dialect* cannot express beside what is set before them."""
    forced, model, params = request.forced, request.model, without(request.params, *lost)

    def fails(given: Mapping[str, Any]) -> bool:
        said = dialect.unsaid(InferRequest(model, params=given), model)
        return bool(said.meaning or said.preference)

    if request.op != CHAT or not fails(params):
        return []
    own = {
        name: value
        for name, value in params.items()
        if name not in forced.defaults and not fails({name: value})
    }
    defaults = sorted(forced.defaults & params.keys()) if not fails(own) else ()
    for name in defaults:
        if not fails(own | {name: params[name]}):
            own[name] = params[name]
    return [name for name in defaults if name not in own]


def _with(request: InferRequest, forced: Mapping[str, Any], dialect: Dialect) -> JSON:
    """Return the client's own body with *forced* as its format has them."""
    assert request.native is not None
    found, value = _translated(request, forced, dialect), request.native.body.value
    limited = not found.keys().isdisjoint(_LIMITS)
    body = without(value, *_LIMITS) if limited else dict(value)
    for name, member in found.items():
        holder = next((each for each in GOOGLE if each in body), name)
        name = holder if name in GOOGLE else name
        inner = body.get(name)
        if name in _HOLDERS and isinstance(inner, dict) and isinstance(member, dict):
            member = without(inner, *map(snake, member)) | member
        body[name] = member
    return with_fitting_thoughts(body) if limited else body


def _translated(request: InferRequest, forced: Mapping[str, Any], dialect: Dialect) -> JSON:

    def body(params: Mapping[str, Any], dropped: list[str] | None) -> JSON:
        asked = InferRequest(
            request.model, (), params=params, op=request.op, dropped=dropped, lenient=True
        )
        return obj(strict_json.lenient(dialect.encode_request(asked, stream=False)))

    raw = without(forced, *kinds())
    known = without(forced, *raw)
    beside = without(only(request.params, _BESIDE), *known)
    found, usual = body(beside | known, request.dropped), body(beside, None)
    limits = _LIMITS if not known.keys().isdisjoint(_LIMITS) else ()
    new = {
        name: value
        for name, value in found.items()
        if name in limits or name not in usual or usual[name] != value
    }
    return new | raw
