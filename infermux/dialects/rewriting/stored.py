"""Items and responses that vendors store, as the requests and answers that hooks see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...errors import HookFailed
from ...protocol import CHAT, InferRequest, InferResponse, strict_json
from ...types import JSON
from ..responses import NAME
from ..responses.downstream import decode_request
from ..responses.upstream import Responses

_PLACE = "output"  # of the items in a response


def with_items(request: InferRequest, see: Callable[[InferRequest], InferRequest]) -> InferRequest:
    """Return a request to store items with the items as *see* wants them."""
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
    native = response.native
    body = strict_json.lenient(native[1]) if native is not None and native[1].strip() else None
    if native is None or not isinstance(body, dict):
        return response
    items = _items(body)
    if not items:
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
