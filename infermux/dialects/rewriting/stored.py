"""What vendors store, and answers that pass through, as the requests and answers that hooks see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...errors import HookFailed
from ...protocol import CHAT, InferRequest, InferResponse, strict_json
from ...types import JSON
from .. import listed, members
from ..openai import NAME as OPENAI
from ..responses import NAME
from ..responses.downstream import decode_request
from ..responses.upstream import Responses
from .places import CannotRewrite, Place, rewrite

_PLACE = "output"  # of the items in a response


def with_items(request: InferRequest, see: Callable[[InferRequest], InferRequest]) -> InferRequest:
    """Return a request to store items with the items that *see* returns."""
    native = request.native
    items = native.body.value.get("items") if native is not None else None
    if native is None or not isinstance(items, list) or not items:
        return request
    asked = strict_json.document(strict_json.encode({"model": "-", "input": items}))
    read = decode_request(asked)[0]
    seen = see(read)
    if seen is read:
        return request
    if seen.native is None:
        raise HookFailed("the items of a conversation could not be changed")
    body = native.body.replaced({"items": seen.native.body.value.get("input")})
    return replace(request, native=native._replace(body=strict_json.document(body)))


def as_seen(
    response: InferResponse, request: InferRequest, see: Callable[[InferResponse], InferResponse]
) -> InferResponse:
    """Return an object that a vendor has stored, as *see* returns it."""
    data = response.native[1] if response.native is not None else b""
    body = members(strict_json.lenient(data)) if data.strip() else {}
    if not (items := _items(body)):
        return response
    whole = strict_json.encode({**body, "status": "completed", _PLACE: items})
    read = Responses().decode_response(whole, replace(request, op=CHAT))
    seen = see(read)
    if seen is read:
        return response
    if seen.native is None:
        raise HookFailed("a stored answer could not be changed")
    changed = strict_json.lenient(seen.native[1])[_PLACE]
    if body.get("object") == "list":
        new = body | {"data": changed}
    else:
        new = body | {_PLACE: changed} if _PLACE in body else changed[0]
    return replace(response, native=(NAME, strict_json.encode(new)))


def _items(body: JSON) -> list[Any]:
    if body.get("object") == "list":
        found = body.get("data")
    elif body.get("object") == "response":
        found = body.get(_PLACE)
    else:
        found = [body] if body.get("type") in ("message", "function_call", "reasoning") else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return []
    return found


# -- answers that pass through --


def as_passed(
    response: InferResponse, see: Callable[[InferResponse, int], InferResponse]
) -> InferResponse:
    """Return an answer with its texts replaced by what *see* returns for each and its number.

    Raise UnicodeDecodeError if the answer is no text.
    """
    data = response.native[1] if response.native is not None else b""
    text, body = data.decode(), JSON()
    with suppress(ValueError):
        body = members(strict_json.lenient(data))
    is_plain = not body
    body = body or {"text": text}
    changed = False
    for number, place in enumerate([*_texts(body)] or [Place({}, "")]):
        given = replace(response, content=place.text, native=None)
        seen = see(given, number)
        if seen is given:
            continue
        if seen != replace(given, content=seen.content) or place.key not in place.holder:
            raise HookFailed("of such an answer only the content can be changed")
        place.write(seen.content)
        _retell(body, given.content, seen.content)
        changed = True
    if not changed:
        return response
    data = body["text"].encode() if is_plain else strict_json.encode(body)
    return replace(response, native=(OPENAI, data))


def _texts(body: JSON) -> Iterator[Place]:
    """Yield the texts of an answer: a transcript, changed prompts of images, ranked documents."""
    spots = [(body, "text"), *((each, "revised_prompt") for each in listed(body.get("data")))]
    for each in listed(body.get("results")):
        document = members(each.get("document"))
        spots += [(each, "document"), *((document, name) for name in document)]
    yield from (Place(*spot) for spot in spots if isinstance(spot[0].get(spot[1]), str))


def _retell(body: JSON, old: str, new: str) -> None:
    """Change a transcript where its segments repeat it; leave out what cannot be changed."""
    for name in ("words", "logprobs"):
        body.pop(name, None)
    segments = listed(body.get("segments"))
    for each in segments:
        each |= {"tokens": []} if "tokens" in each else {}
    spots = [Place(each, "text") for each in segments]
    told = "".join(spot.text for spot in spots)
    start = len(told) - len(told.lstrip())
    try:
        if told.strip() != old.strip():
            raise CannotRewrite
        rewrite(spots, told, told[:start] + new.lstrip())
    except CannotRewrite:
        body.pop("segments", None)
