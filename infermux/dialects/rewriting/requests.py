"""Merges what a hook changed in a request into the client's own body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from hashlib import blake2b
from importlib import import_module
from typing import Any

from ...errors import InferMuxError
from ...protocol import CHAT, InferRequest, Native, strict_json
from ...protocol.strict_json import Document
from ...types import JSON
from .. import only, parted, without
from ..gemini.schemas import camel
from .places import CannotRewrite, Place, rewrite

_NOTHING = object()
_TURNS = {"messages": "content", "contents": "parts"}
_SPOKEN = ("system", "messages", "input", "instructions", "contents", "systemInstruction")
_PARTS = ("text", "image_url", "file", "input_audio", "refusal")  # that every format reads
_MARK = {"role": "system", "content": "\N{OBJECT REPLACEMENT CHARACTER}"}
Bodies = tuple[JSON, JSON]  # of the request before and after the change, in the client's format


def with_own_body(before: InferRequest, after: InferRequest) -> InferRequest:
    """Return *after* with the client's own body, which says the same.

    There is none where the body cannot say it: vendors of the same format then get a translation.
    """
    own = before.native
    if before.passed is not None:
        return _passed(before, after)
    if own is None or (before.messages, before.params) == (after.messages, after.params):
        return replace(after, native=own)
    for merge in (_merged_body, _replaced_body):
        try:
            value = merge(before, after, own)
            native = own._replace(body=_document(value))
            if _says(after, _read(native, after), before):
                return replace(after, native=native)
        except (InferMuxError, ValueError, TypeError, LookupError, AttributeError):
            continue
    return replace(after, native=None)


def _passed(before: InferRequest, after: InferRequest) -> InferRequest:
    """Return *after* with its params as the body: what is passed through has no other form."""
    own, upload = before.native, before.passed.upload
    if after.messages or own is None:
        raise TypeError("such a request has no messages")
    if upload is None:
        return replace(after, native=own._replace(body=_document(dict(after.params))))
    if before.params.keys() - after.params.keys():
        raise TypeError("a field of a form cannot be removed")
    was = before.params
    upload.change({name: each for name, each in after.params.items() if was.get(name) != each})
    return after


def _document(value: JSON) -> Document:
    return strict_json.document(strict_json.encode(value))


def _says(after: InferRequest, read: InferRequest, before: InferRequest) -> bool:
    """Whether a body, read again, is the request that the hook returned."""
    if _normal(read.messages) != _normal(after.messages):
        return False
    return _changed(before, after).isdisjoint(_changed(read, after))


def _changed(before: InferRequest, after: InferRequest) -> set[str]:
    was, now = before.params, after.params
    names = was.keys() | now.keys()
    return {name for name in names if was.get(name, _NOTHING) != now.get(name, _NOTHING)}


def _normal(messages: Sequence[JSON]) -> list[Any]:
    """Return messages so that equal ones are equal, however their words are divided."""
    found: list[Any] = []
    before: JSON = {}
    for message in messages:
        parts = parted(message.get("content"))
        bare = {name: value for name, value in message.items() if name != "content" and value}
        if bare != before or bare.keys() != {"role"}:
            found.append(bare)
        before = bare
        for part in parts or ():
            words = part["text"] if part == {"type": "text", "text": part.get("text")} else part
            if isinstance(words, str) and isinstance(found[-1], str):
                found[-1] += words
            else:
                found.append(words)
    return found


def _read(native: Native, request: InferRequest) -> InferRequest:
    module = import_module(f"..{native.dialect}.downstream", __package__)
    if native.dialect == "responses":
        found: InferRequest = module.decode_request(native.body)[0]
    elif native.dialect == "gemini":
        batch = "requests" in native.body.value
        asked = module.Asked(request.model, native.query or "", batch)
        found = module.decode_request(native.body, asked, op=request.op)
    else:
        found = module.decode_request(native.body, op=request.op)[0]
    return found


# -- merging, or writing anew --


def _merged_body(before: InferRequest, after: InferRequest, own: Native) -> JSON:
    value = _value(own)
    for was, now in _bodies(before, after, own):
        for name, inner in _TURNS.items():
            turns = was.get(name)
            if isinstance(turns, list) and len(turns) != len(value.get(name) or ()):
                was, now, value = (
                    each | {name: _joined(each.get(name) or [], inner)}
                    for each in (was, now, value)
                )
        value = merged(was, now, value)
    return value


def _value(own: Native) -> JSON:
    return dict(camel(own.body.value) if own.dialect == "gemini" else own.body.value)


def _joined(turns: list[JSON], inner: str) -> list[JSON]:
    """Return turns with those of one role in a row joined, as the vendors join them."""
    found: list[JSON] = []
    for turn in turns:
        parts = parted(turn.get(inner))
        if found and found[-1].get("role") == turn.get("role"):
            found[-1] = found[-1] | {inner: [*found[-1][inner], *(parts or ())]}
        else:
            found.append(turn | {inner: list(parts or ())})
    return found


def _replaced_body(before: InferRequest, after: InferRequest, own: Native) -> JSON:
    """Return the own body with the members that have changed as a translation writes them."""
    value = _value(own)
    for was, now in _bodies(before, after, own):
        if was != now:
            value = without(value, *was) | now
    return value


def _bodies(before: InferRequest, after: InferRequest, own: Native) -> Iterator[Bodies]:
    """Yield the changed parts of both requests in the client's format."""
    if before.messages != after.messages:
        yield _spoken(before, own), _spoken(after, own)
    names = _changed(before, after)
    plain = {name for name in names if _is_own(name, before, own)}
    yield only(before.params, plain), only(after.params, plain)
    if rest := names - plain:
        yield _settings(before, rest, own), _settings(after, rest, own)


def _is_own(name: str, before: InferRequest, own: Native) -> bool:
    value = own.body.value.get(name, _NOTHING)
    return own.dialect == "openai" or bool(value == before.params.get(name))


def _spoken(request: InferRequest, own: Native) -> JSON:
    if own.dialect == "openai":
        return {"messages": list(request.messages)}
    messages = [_known(message) for message in request.messages]
    marked = own.dialect == "responses" and own.body.value.get("instructions") is None
    if marked:  # else the first system message would become the instructions
        messages = [_MARK, *messages]
    body = _translated(replace(request, messages=messages, params={}, op=CHAT), own)
    return without(only(body, _SPOKEN), *(("instructions",) if marked else ()))


def _known(message: JSON) -> JSON:
    """Return a message with marks for the vendor's own parts, which only its own body holds."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return message | {"content": [_known_part(part) for part in content]}


def _known_part(part: JSON) -> JSON:
    if part.get("type") in _PARTS:
        return part
    mark = blake2b(strict_json.encode(part), digest_size=16).hexdigest()
    return {"type": "text", "text": mark}


def _settings(request: InferRequest, names: set[str], own: Native) -> JSON:
    messages = [{"role": "user", "content": "-"}] if request.op == CHAT else ()
    params = only(request.params, names)
    return without(_translated(replace(request, messages=messages, params=params), own), *_SPOKEN)


def _translated(request: InferRequest, own: Native) -> JSON:
    module = import_module(f"..{own.dialect}.upstream", __package__)
    encode: Callable[..., bytes]
    encode = (module.Responses() if own.dialect == "responses" else module).encode_request
    bare = replace(request, native=None, lenient=True, dropped=[], cache_key="")
    unasked = {"model", "stream", "store", "include", "max_tokens"} - request.params.keys()
    return without(strict_json.loads(encode(bare, stream=False)), *unasked)


# -- merging --


def merged(was: Any, now: Any, own: Any) -> Any:
    """Return *own*, another form of *was*, with what has changed from *was* to *now*."""
    if was == now:
        return own
    if own == was:
        return now
    if isinstance(was, dict) and isinstance(now, dict) and isinstance(own, dict):
        value = {name: each for name, each in own.items() if name not in was or name in now}
        for name, new in now.items():
            if (old := was.get(name, _NOTHING)) != new:
                value[name] = merged(old, new, own.get(name, old))
        return value
    if isinstance(was, list) and isinstance(now, list) and isinstance(own, list):
        return _merged_list(was, now, own)
    if isinstance(was, str) and isinstance(now, str) and isinstance(own, list):
        return _merged_parts(was, now, own)
    return now


def _merged_parts(was: str, now: str, own: list[Any]) -> Any:
    """Return parts whose words, joined, are *now* instead of *was*."""
    parts = [dict(each) if isinstance(each, dict) else each for each in own]
    found = [
        Place(each, "text")
        for each in parts
        if isinstance(each, dict) and isinstance(each.get("text"), str)
    ]
    try:
        rewrite(found, was, now)
    except CannotRewrite:
        return now
    return parts


def _merged_list(was: list[Any], now: list[Any], own: list[Any]) -> list[Any]:
    if len(was) != len(own):
        return now
    if len(was) == len(now):
        return [merged(*each) for each in zip(was, now, own, strict=True)]
    old, new = ([strict_json.dumps(each) for each in side] for side in (was, now))
    value: list[Any] = []
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for kind, start, end, first, last in matcher.get_opcodes():
        value += own[start:end] if kind == "equal" else now[first:last]
    return value
