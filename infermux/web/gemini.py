"""The Gemini-compatible API: /v1beta/models and /v1/models, and their methods.

Google's newer SDKs use /v1, where the OpenAI-compatible API lists its models, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlencode

from flask import Response, request

from ..dialects import gemini as dialect
from ..dialects.gemini import downstream as wire
from ..dialects.gemini.stream import JSON_TYPE, Encoder
from ..dialects.gemini.upstream import COUNT_TOKENS, EMBEDDINGS
from ..errors import NotFound, UnsupportedParameter, shown
from ..planning.call import Call
from ..protocol import CHAT, must_be, strict_json
from ..routing.router import Router
from . import EndpointBlueprint, Route, endpoints
from .auth import admitted
from .http import (
    Api,
    Identify,
    View,
    call_response,
    json_body,
    start_call,
)
from .openai import model, models, refuse_key
from .sse import HEADERS, sse_response
from .token_count import native_body, token_count

PATHS = ("/v1beta/models", "/v1/models")
_OPTIONS = ("alt", "$alt", "prettyPrint", "$prettyPrint")  # in addresses, passed to Google


def gemini_blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the Gemini-compatible endpoints for *router*; a client's base URL is the service."""
    routes: list[Route] = []
    for path in (*PATHS, "/v1beta"):  # some clients write a name with a slash after that
        routes += [("POST", f"{path}/<path:ident>:{name}", view) for name, view in METHODS.items()]
    for path in PATHS:
        routes += [("GET", path, models), ("GET", f"{path}/<path:ident>", model)]
    checked = [(method, path, partial(_without_key, view)) for method, path, view in routes]
    unknown = {("POST", f"{path}/<path:ident>"): no_method for path in PATHS}
    api = Api("gemini", router, wire.encode_error, caller)
    return endpoints("infermux_gemini", api, checked, unknown)


def _without_key(view: View, api: Api, **arguments: Any) -> Response:
    """Refuse a key in the address before anything else is done, also logged."""
    refuse_key()
    return view(api, **arguments)


def generate(api: Api, ident: str) -> Response:
    call = _begin(api, ident, CHAT)
    response = api.router.answer(call)
    return call_response(
        call, native_body(response, dialect.NAME) or wire.encode_response(response, ident=call.id)
    )


def generate_streamed(api: Api, ident: str) -> Response:
    """Respond to streamGenerateContent, with events if alt=sse, else with an array."""
    call = _begin(api, ident, CHAT)
    array = _form() != "sse"
    media = JSON_TYPE if array else HEADERS["Content-Type"]
    make = partial(Encoder, ident=call.id, array=array)
    return sse_response(api, call, lambda _: make(model=call.model), media=media)


def count_tokens(api: Api, ident: str) -> Response:
    """Return the vendor's token count of a request, or an estimate marked as such."""
    call = _begin(api, ident, COUNT_TOKENS)
    return token_count(api, call, dialect.NAME, "totalTokens")


def embed(api: Api, ident: str, *, batch: bool) -> Response:
    call = _begin(api, ident, EMBEDDINGS, batch=batch)
    response = api.router.answer(call)
    if (body := native_body(response, dialect.NAME)) is not None:
        return call_response(call, body)
    if not response.extra.get("data"):
        raise UnsupportedParameter(f"the model {shown(ident)} has no embeddings", param="model")
    return call_response(call, wire.encode_embeddings(response, batch=batch))


def no_method(api: Api, ident: str) -> Response:
    raise NotFound(f"no method {shown(ident.rpartition(':')[2])}: models have {', '.join(METHODS)}")


def _begin(api: Api, ident: str, op: str, *, batch: bool = False) -> Call:
    caller = admitted(api)
    given = request.args.items()  # each once
    options = {key: value for key, value in given if key in _OPTIONS}
    if _form() not in ("", "json", "sse"):
        raise must_be("alt", "json or sse")
    asked = wire.Asked(ident, urlencode(options), batch)
    wanted = wire.decode_request(json_body(strict_json.document), asked, op=op)
    return start_call(api, wanted, caller)


def _form() -> str:
    """Return the form of the answer that the address asks for, such as sse."""
    arguments = request.args
    form = arguments.get("alt") or arguments.get("$alt") or ""
    return form.partition(";")[0].lower()


METHODS: dict[str, View] = {
    "generateContent": generate,
    "streamGenerateContent": generate_streamed,
    "countTokens": count_tokens,
    "embedContent": partial(embed, batch=False),
    "batchEmbedContents": partial(embed, batch=True),
}
