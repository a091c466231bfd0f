"""The Responses API for models of every vendor, and what vendors store of it."""

from __future__ import annotations

from functools import partial
from urllib.parse import quote, urlencode

from flask import Response, request

from ..dialects.responses import NAME, RESOURCE
from ..dialects.responses import downstream as wire
from ..dialects.responses.stream import Encoder, encode_response
from ..errors import NotFound, ProviderContextTooLong, ProviderError, shown
from ..planning import Snapshot, plan
from ..planning.call import Call
from ..protocol import InferRequest, Native, strict_json
from ..protocol.strict_json import Document
from ..routing.stored import IDENT, Owner
from ..types import Caller, Route, Target
from . import Route as Endpoint
from .auth import admitted
from .http import (
    Api,
    call_headers,
    call_response,
    is_codex,
    json_body,
    query_of,
    read_body,
    start_call,
)
from .sse import HEADERS, failed_response, sse_response
from .token_count import native_body, token_count

_QUERY = "after before include include[] include_obfuscation limit order starting_after stream"


def respond(api: Api) -> Response:
    caller = admitted(api)
    wanted, wants_stream = wire.decode_request(json_body(strict_json.document))
    call = start_call(api, wanted, caller)
    if wants_stream:
        try:
            return sse_response(api, call, lambda _: Encoder(_answer(call)))
        except ProviderContextTooLong as error:
            if not is_codex():  # it shortens the conversation then
                raise
            return failed_response(error, Encoder(_answer(call)), HEADERS | call_headers(call))
    response = api.router.answer(call)
    own = native_body(response, NAME)
    return call_response(call, own or encode_response(response, _answer(call)))


# -- what vendors store: each call goes to the provider of its id --


def stored(
    api: Api, ident: str, *, method: str, kind: str, rest: str = "", item: str = ""
) -> Response:
    """Respond to a call about what a provider has stored."""
    caller = admitted(api)
    body = _body(method, rest)
    owners = api.router.ids.owners(ident, caller)
    if not owners or (item and not IDENT.fullmatch(item)):
        raise NotFound(f"no {kind} {shown(ident)} was found", param="id")
    query = urlencode(query_of(*_QUERY.split()))
    more = rest + (f"/{quote(item, safe='')}" if item else "") + f"?{query}" * bool(query)

    def ask(owner: Owner) -> Response:
        path = f"/{kind}s/{quote(owner.ident, safe='')}{more}"
        call = _begin(api, owner.provider, method, path, body, caller)
        call.ids, call.settles = {owner.ident: ident}, owner.settles
        if method == "GET" and request.args.get("stream") == "true":
            return sse_response(api, call, lambda _: Encoder(_answer(call)))
        return _answered(api, call)

    for owner in owners[:-1]:
        try:
            return ask(owner)
        except ProviderError as error:
            if error.upstream_status not in (400, 404, 405):
                raise
    return ask(owners[-1])


def create(api: Api) -> Response:
    """Create a conversation at the first provider that has them."""
    caller = admitted(api)
    body = json_body(strict_json.document)
    providers = api.router.ids.providers
    if not providers:
        raise NotFound("no provider has conversations")
    first = next((each for each in providers if each.provider.responses.stores), providers[0])
    return _answered(api, _begin(api, first.name, "POST", "/conversations", body, caller))


def _body(method: str, rest: str) -> Document | None:
    if method == "POST" and rest != "/cancel":
        return json_body(strict_json.document)
    read_body()  # SDKs send none, or an empty object
    return None


def _begin(
    api: Api, provider: str, method: str, path: str, body: Document | None, caller: Caller
) -> Call:
    native = None if body is None else Native(NAME, body)
    params = {"method": method, "path": path}
    asked = InferRequest("", provider=provider, params=params, native=native, op=RESOURCE)
    call = start_call(api, asked, caller)
    call.plan = plan(Route("", (Target(provider, ""),)), Snapshot(), 0)
    return call


def _answered(api: Api, call: Call) -> Response:
    native = api.router.answer(call).native
    return call_response(call, native[1] if native else b"{}")


def _answer(call: Call) -> wire.Answer:
    created = call.start_ns // 10**9
    return wire.Answer(call.request, ident=f"resp_{call.id}", created=created, model=call.model)


# -- operations on a request --


def compact(api: Api) -> Response:
    caller = admitted(api)
    return _answered(api, start_call(api, _read("compact"), caller))


def input_tokens(api: Api) -> Response:
    """Return the vendor's count of a request's tokens, or an estimate marked as such."""
    caller = admitted(api)
    call = start_call(api, _read("input_tokens"), caller)
    return token_count(api, call, NAME, "input_tokens", object="response.input_tokens")


def _read(op: str) -> InferRequest:
    wanted, _ = wire.decode_request(json_body(strict_json.document))
    wanted.op = op
    return wanted


# What follows an id of each kind, and the methods.
_STORED = {
    "response": {"": ("GET", "DELETE"), "/cancel": ("POST",), "/input_items": ("GET",)},
    "conversation": {
        "": ("GET", "POST", "DELETE"),
        "/items": ("GET", "POST"),
        "/items/<item>": ("GET", "DELETE"),
    },
}
STORED_ROUTES: list[Endpoint] = [
    ("POST", "/v1/responses/input_tokens", input_tokens),
    ("POST", "/v1/responses/compact", compact),
    ("POST", "/v1/conversations", create),
    *(
        (
            method,
            f"/v1/{kind}s/<ident>{rest}",
            partial(stored, method=method, kind=kind, rest=rest.removesuffix("/<item>")),
        )
        for kind, paths in _STORED.items()
        for rest, methods in paths.items()
        for method in methods
    ),
]
