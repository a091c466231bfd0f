"""The OpenAI-compatible API: chat completions, embeddings, responses, models, and what passes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from functools import partial
from importlib import resources

from flask import Response, request

from ..config.patterns import covers
from ..dialects import given
from ..dialects.anthropic import downstream as anthropic
from ..dialects.gemini import downstream as gemini
from ..dialects.openai import downstream as wire
from ..dialects.responses import downstream as responses
from ..dialects.tools import custom_names
from ..errors import InferMuxError, ModelNotFound, RequestError, shown
from ..planning.matching import all_matched, within
from ..protocol import CHAT, must_be, strict_json
from ..routing.router import Router
from ..types import JSON
from . import EndpointBlueprint, Route, endpoints
from .auth import admitted, authenticated
from .http import (
    Api,
    Identify,
    call_response,
    is_codex,
    json_body,
    json_response,
    refuse_body,
    start_call,
)
from .passed.files import FILE_ROUTES
from .passed.media import MEDIA_ROUTES
from .responses import STORED_ROUTES, respond
from .sse import sse_response
from .token_count import native_body

_SECRETS = {"key", "$key", "access_token", "oauth_token"}  # in addresses of Google's API
_EPOCH = "1970-01-01T00:00:00Z"


def openai_blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the OpenAI-compatible endpoints for *router*; a client's base URL ends in /v1."""
    routes: list[Route] = [
        ("POST", "/v1/chat/completions", partial(complete, op=CHAT)),
        ("POST", "/v1/completions", partial(complete, op="completions")),
        ("POST", "/v1/embeddings", partial(complete, op="embeddings")),
        ("POST", "/v1/responses", respond),
        *STORED_ROUTES,
        *MEDIA_ROUTES,
        *FILE_ROUTES,
        *MODEL_ROUTES,
    ]
    return endpoints("infermux_openai", Api("openai", router, encode_error, caller), routes)


def complete(api: Api, op: str) -> Response:
    caller = admitted(api)
    wanted, wants_stream = wire.decode_request(json_body(strict_json.document), op=op)
    call = start_call(api, wanted, caller)
    ident, created = f"chatcmpl-{call.id}", int(time.time())
    if wants_stream and op != "embeddings":
        options = wanted.native.body.value.get("stream_options") if wanted.native else None
        make = partial(
            wire.Encoder,
            ident=ident,
            created=created,
            include_usage=bool(options and options.get("include_usage")),
            custom=custom_names(wanted),
        )
        return sse_response(api, call, lambda _: make(model=call.model))
    response = api.router.answer(call)
    data = native_body(response, "openai") or b"%s\n" % wire.encode_answer(
        response, call.request, model=call.model, ident=ident, created=created
    )
    return call_response(call, data)


def encode_error(error: InferMuxError) -> JSON:
    """Return an error in the shape that the client of the path reads."""
    if is_google():
        return gemini.encode_error(error)
    if is_anthropic():
        return anthropic.encode_error(error)
    if request.path.endswith("/responses"):
        return responses.encode_error(error)
    return wire.encode_error(error)


# -- models --


def models(api: Api) -> Response:
    refuse_key()
    allowed, registry = authenticated(api).models, api.router.registry
    names = (*registry.names, *all_matched(registry))
    owners: dict[str, str] = dict.fromkeys(names, "infermux")
    for member in registry:
        for name in member.models:
            owners.setdefault(name, member.name)
    if allowed is not None:
        served = within(registry, allowed)
        owners = {name: owners.get(name, found[0]) for name, found in served.items()}
    if api.name == "gemini" or is_google():
        return json_response(_google_page(api, [*owners.items()]))
    if is_codex():
        return json_response({"models": _codex(api, owners)})
    data = [_model(api, name, owner) for name, owner in owners.items()]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    page = {"data": data, "has_more": False, "first_id": first, "last_id": last}
    return json_response(page if is_anthropic() else {"object": "list"} | page)


def model(api: Api, ident: str) -> Response:
    refuse_key()
    allowed, registry = authenticated(api).models, api.router.registry
    found = registry.providers(ident) if allowed is None or covers(allowed, ident) else []
    if not found:
        raise ModelNotFound(f"no provider for model {shown(ident)}", param="model")
    named = ident in registry.names or registry.route(ident).pattern
    owner = "infermux" if named else found[0]
    shape = _google if api.name == "gemini" or is_google() else _model
    return json_response(shape(api, ident, owner))


def is_anthropic() -> bool:
    return "HTTP_ANTHROPIC_VERSION" in request.environ


def is_google() -> bool:
    """Whether the client is one of Google's API; /v1 is the version of its newer SDKs."""
    names = request.environ.keys() & {"HTTP_X_GOOG_API_KEY", "HTTP_X_GOOG_API_CLIENT"}
    return bool(names) or "/v1beta/" in request.path or not _SECRETS.isdisjoint(request.args)


def refuse_key() -> None:
    """Raise RequestError if the address holds a key, as Google's API takes it."""
    if not _SECRETS.isdisjoint(request.args):
        refuse_body()
        raise RequestError(
            "a key in the address (?key=) is not accepted, as proxies and logs keep addresses: "
            "send the header x-goog-api-key: KEY"
        )


def _limits(api: Api, name: str) -> tuple[int | None, int | None]:
    """Return the least context and output, in tokens, of a name's targets; None if unknown."""
    router = api.router
    found = map(router.targets.price, router.registry.resolve(name))
    prices = [price for price in found if price is not None]
    return _least(one.max_input for one in prices), _least(one.max_output for one in prices)


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value), default=None)


def _model(api: Api, name: str, provider: str) -> JSON:
    """Describe a model for OpenAI's clients and for Anthropic's."""
    context, output = _limits(api, name)
    data: JSON = {"id": name, "type": "model", "display_name": name, "created_at": _EPOCH}
    if is_anthropic():
        return data | {"lifecycle": "active", "max_input_tokens": context, "max_tokens": output}
    limits = {"context_window": context, "max_output_tokens": output}
    return {"object": "model", "created": 0, "owned_by": provider} | data | given(limits)


def _google_page(api: Api, owners: list[tuple[str, str]]) -> JSON:
    """Describe models for Google's clients: all, or the page that they ask for."""
    arguments = request.args
    numbers = []
    for name in ("pageToken", "pageSize"):
        text = arguments.get(name) or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise must_be(name, "a number" if name == "pageSize" else "what an answer gave")
        numbers.append(int(text))
    start, end = numbers[0], numbers[0] + (numbers[1] or len(owners))
    found = [_google(api, name, owner) for name, owner in owners[start:end]]
    return {"models": found} | ({"nextPageToken": str(end)} if end < len(owners) else {})


def _google(api: Api, name: str, provider: str) -> JSON:
    context, output = _limits(api, name)
    targets = api.router.targets
    methods = ["generateContent", "countTokens"]
    if targets.abilities(api.router.registry.resolve(name)[0]) == ["embeddings"]:
        methods = ["embedContent", "batchEmbedContents"]
    return {
        "name": f"models/{name}",
        "version": "",
        "displayName": name,
        "description": f"served by {provider}",
        "supportedGenerationMethods": methods,
    } | given({"inputTokenLimit": context, "outputTokenLimit": output})


def _codex(api: Api, names: Iterable[str]) -> list[JSON]:
    """Describe models for Codex, which refuses the list if a member is missing."""
    known: JSON = json.loads(resources.files("infermux").joinpath("web/codex.json").read_bytes())
    found = []
    for number, name in enumerate(names):
        context, _ = _limits(api, name)
        own = {"slug": name, "display_name": name, "priority": number}
        found.append(known | own | {"context_window": context, "max_context_window": context})
    return found


MODEL_ROUTES: list[Route] = [  # shared by the OpenAI-compatible and the Anthropic-compatible API
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/<path:ident>", model),
]
