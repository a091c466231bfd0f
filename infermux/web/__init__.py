"""What every front door shares: the request's bytes, who is calling, JSON answers, errors."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from flask import Blueprint, Request, Response, request
from flask.sansio.app import App
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from ..admission import FULL
from ..errors import (
    AuthenticationError,
    InferMuxError,
    MethodNotAllowed,
    Overloaded,
    QuotaExhausted,
    RequestError,
    RequestTooLarge,
    UnsupportedEncoding,
    shown,
)
from ..planning.call import Call
from ..pricing import usd
from ..protocol import InferRequest, new_id, strict_json
from ..protocol.strict_json import Document
from ..routing.router import TAGS, Router
from ..telemetry.spans import parse
from ..types import ANONYMOUS, JSON, Caller

log = logging.getLogger("infermux")
EXTENSION = "infermux"
MAX_BODY = 32 * 1024 * 1024  # bytes of a request
_CALL = "infermux.call"  # in the environ: the call of a request
_TAG_HEADERS = tuple((name, f"HTTP_X_INFERMUX_{name.upper()}") for name in TAGS)
OTHER = "_other"  # ends the endpoints that refuse a wrong method
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

T = TypeVar("T")
View = Callable[..., Response]
Render = Callable[[InferMuxError], JSON]
Identify = Callable[[], Caller | str | None]


class EndpointBlueprint(Blueprint):
    """A blueprint whose name may be taken already: two routers live in one app without a word from
    it.
    """

    def register(self, app: App, options: dict[str, Any]) -> None:
        name, number = options.get("name", self.name), 2
        while name in app.blueprints:
            name, number = f"{self.name}-{number}", number + 1
        super().register(app, {**options, "name": name})


def endpoints(
    name: str, router: Router, routes: Iterable[tuple[str, str, View]], *, render: Render
) -> EndpointBlueprint:
    """Return a blueprint with *routes* (methods, path, view); a wrong method is answered in JSON,
    with Allow.
    """
    blueprint = EndpointBlueprint(name, __name__)
    for methods, path, view in routes:
        allowed = methods.split()
        endpoint = f"{path.strip('/').replace('/', '_').replace('<', '').replace('>', '').replace(':', '_')}"
        blueprint.add_url_rule(
            path, endpoint, guarded(view, render), methods=allowed, provide_automatic_options=False
        )
        others = [
            method
            for method in METHODS
            if method not in allowed and (method, "GET") != ("HEAD", allowed[0])
        ]
        blueprint.add_url_rule(
            path,
            endpoint + OTHER,
            guarded(_refusal(", ".join(allowed)), render),
            methods=others,
            provide_automatic_options=False,
        )
    blueprint.record_once(lambda state: state.app.extensions.setdefault(EXTENSION, router))
    return blueprint


def guarded(view: View, render: Render) -> View:
    """Return *view* with every error as an answer: ours by their status, a bug of ours as a 500
    without a word of it.
    """

    @functools.wraps(view)
    def guard(**arguments: str) -> Response:
        try:
            answer = view(**arguments)
        except InferMuxError as error:
            answer = failed(error, render)
        except HTTPException:
            raise
        except Exception:
            log.exception("a request could not be answered")
            answer = failed(InferMuxError("internal error"), render)
        return named(answer)

    return guard


def named(answer: Response) -> Response:
    """Return *answer* with an id, by which it can be asked about."""
    if not isinstance(answer, _Answer) and "X-Request-Id" not in answer.headers:
        answer.headers.update(_new_id())
    return answer


def _new_id() -> dict[str, str]:
    """Return an id under the names that both official SDKs look for."""
    ident = new_id()
    return {"X-Request-Id": ident, "Request-Id": ident}


def enter(router: Router, identify: Identify | None, *, api: str) -> Caller:
    """Return who is calling, before anything of the request is parsed; raise AuthenticationError,
    or Overloaded without room.

    The record of what is refused for want of room knows the caller, and no model.
    """
    try:
        who = caller(router, identify)
    except AuthenticationError:
        with contextlib.suppress(RequestError):
            body()  # a client that is still sending would not hear the answer
        raise
    if router.admission.full:
        body()  # as above
        error = Overloaded(FULL)
        router.finish(begin(router, InferRequest("", []), who, api=api), error)
        raise error
    return who


def begin(router: Router, wanted: InferRequest, who: Caller, *, api: str) -> Call:
    """Return the call that a request starts; an error answer finds it again, for its headers."""
    environ = asked().environ
    header = (
        environ.get
    )  # a tenth of a microsecond each; `request.headers` takes three where there is none
    tags = {name: value for name, key in _TAG_HEADERS if (value := header(key))}
    call = router.begin(
        wanted, caller=who, api=api, trace=parse(header("HTTP_TRACEPARENT")), tags=tags
    )
    call.patience = _patience(header("HTTP_X_STAINLESS_READ_TIMEOUT", ""))
    environ[_CALL] = call
    return call


def _refusal(allow: str) -> View:
    def refuse(**arguments: str) -> Response:
        if request.method == "OPTIONS":
            return Response(status=204, headers={"Allow": allow})
        raise MethodNotAllowed(f"{request.method} is not allowed here; use {allow}", allow=allow)

    return refuse


def asked() -> Request:
    """Return the request itself: each look through Flask's stand-in for it costs three calls."""
    found: Request = request._get_current_object()  # type: ignore[attr-defined]  # what Werkzeug documents for this
    return found


def body(limit: int = MAX_BODY) -> bytes:
    """Return the request's body; raise RequestError unless it is whole, uncompressed and at most
    *limit* bytes long.
    """
    request = asked()
    encoding: str = request.environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedEncoding(
            f"content encoding {shown(encoding)} is not read; send the body as it is"
        )
    most, told = request.max_content_length, request.environ.get("CONTENT_LENGTH", "")
    announced = (
        int(told)
        if told.isascii() and told.isdigit() and "HTTP_TRANSFER_ENCODING" not in request.environ
        else None
    )
    limit = limit if most is None else min(limit, most)  # the app's own MAX_CONTENT_LENGTH
    if announced is not None and announced > limit:
        raise RequestTooLarge(f"the body is longer than {limit} bytes")
    request.max_content_length = (
        limit + 1
    )  # one more than fits: a chunked body that is cut at the limit looks complete
    try:
        data = (
            request.get_data()
            if announced is None or "stream" in vars(request)
            else _read(request, announced)
        )
    except RequestEntityTooLarge:
        raise RequestTooLarge(f"the body is longer than {limit} bytes") from None
    except Exception:  # servers raise what they like over a body that is cut or malformed
        raise RequestError("the body ended early or is not well-formed") from None
    if len(data) > limit:
        raise RequestTooLarge(f"the body is longer than {limit} bytes")
    if announced is not None and len(data) < announced:
        raise RequestError(f"the body has {len(data)} bytes; {announced} were announced")
    return data


def _read(request: Request, size: int) -> bytes:
    """Read a body of a known size past Werkzeug's bounded stream, which takes four times as long,
    and leave it for others.
    """
    data: bytes = request.environ["wsgi.input"].read(size)
    request.stream = io.BytesIO(data)
    return data


def document() -> Document:
    """Return the JSON object that the request's body holds; raise RequestError naming what is odd
    about it.
    """
    return _by(strict_json.document)


def parsed() -> Any:
    """Return what the request's body says in JSON; raise as `document` does."""
    return _by(strict_json.loads)


def _by(read: Callable[[bytes], T]) -> T:
    try:
        return read(body())
    except ValueError as error:
        raise RequestError(str(error)) from None


def caller(router: Router, identify: Identify | None) -> Caller:
    """Return who is calling: whom the mounting app names, else whose key it is; raise
    AuthenticationError without a good one.
    """
    if identify is not None:
        found = identify()
        return found if isinstance(found, Caller) else Caller(found) if found else ANONYMOUS
    if router.keyring is None:
        return ANONYMOUS
    known = router.keyring.identify(given_key())
    if known is None:
        raise AuthenticationError("a key is needed: Authorization: Bearer KEY, or x-api-key: KEY")
    return known


def given_key() -> str:
    """Return the key that a request carries, in either of the ways in which the official SDKs send
    it.
    """
    header: dict[str, str] = asked().environ
    scheme, _, bearer = header.get("HTTP_AUTHORIZATION", "").partition(" ")
    return (
        bearer.strip()
        if scheme.lower() == "bearer" and bearer
        else header.get("HTTP_X_API_KEY", "")
    )


def _patience(told: str) -> float | None:
    """Return how many seconds the client itself will wait, which the official SDKs tell."""
    return (
        float(told)
        if told.replace(".", "", 1).isdigit() and told.isascii() and float(told) > 0
        else None
    )


class _Answer(Response):
    """An answer that is complete: headers and body go out as they are, neither copied nor looked
    through once more.
    """

    whole: object = None  # the body; a hook of the app may put another one in its place

    def get_wsgi_headers(self, environ: Any) -> Headers:
        return self.headers

    def get_app_iter(self, environ: Any) -> Iterable[bytes]:
        if self.response is not self.whole or self._on_close or environ["REQUEST_METHOD"] == "HEAD":
            return super().get_app_iter(environ)
        return self.response  # type: ignore[return-value]  # bytes, as `bytes_answer` made it


def json_answer(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON in our own order of keys, whatever the app's JSON settings are."""
    return bytes_answer(strict_json.encode(value), status, headers)


def bytes_answer(
    data: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON that is bytes already."""
    headers = headers or {}
    if "X-Request-Id" not in headers:
        headers = {**headers, **_new_id()}
    complete = Headers()
    # not one by one, which looks for line ends in each: what comes from outside has been through
    # `header_value`
    complete._list += [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(data))),
        ("X-Content-Type-Options", "nosniff"),
        *headers.items(),
    ]
    answer = _Answer([data], status, complete)
    answer.whole = answer.response
    return answer


def failed(error: InferMuxError, render: Render) -> Response:
    """Return an error in a door's own form; after our own retries nobody else should retry a 5xx."""
    call = asked().environ.get(_CALL)
    headers = call_headers(call) if call is not None else {}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    elif error.status == 429:  # the vendor named no time
        headers["Retry-After"] = "60" if isinstance(error, QuotaExhausted) else "1"
    if error.status >= 500 or error.status == 402:
        headers["x-should-retry"] = "false"
    return json_answer(render(error), error.status, headers)


def plain_error(error: InferMuxError) -> JSON:
    """Return an error as the MIST doors say it."""
    return {"error": {"message": error.message, "type": error.type, "code": error.code}}


def call_headers(call: Call) -> dict[str, str]:
    """Return what is known of a call as response headers."""
    tokens_in, tokens_out = call.tokens
    headers = {
        "X-Request-Id": call.id,
        "Request-Id": call.id,
        "X-Infermux-Attempts": str(len(call.attempts)),
        "X-Infermux-Latency-Ms": str(call.latency_ms),
    }
    if call.attempts:
        upstream = sum([attempt.seconds for attempt in call.attempts]) * 1000
        headers |= {
            "X-Infermux-Provider": header_value(call.provider),
            "X-Infermux-Model": header_value(call.model),
            "Server-Timing": f"provider;dur={upstream:.1f}, total;dur={call.seconds * 1000:.1f}",
        }
    if call.override:
        headers["X-Infermux-Model-Override"] = header_value(call.override)
    if call.request.dropped:
        headers["X-Infermux-Dropped"] = header_value(", ".join(call.request.dropped))
    if call.ended is not None and call.usage is not None:
        headers |= {
            "X-Infermux-Prompt-Tokens": str(tokens_in),
            "X-Infermux-Completion-Tokens": str(tokens_out),
            "X-Infermux-Cost": usd(call.cost),
        }
    return headers


def header_value(value: str) -> str:
    """Return *value* fit for a header: a model's name comes from outside."""
    if value.isascii() and value.isprintable() and len(value) <= 200:
        return value
    return "".join(letter if " " <= letter <= "~" else "?" for letter in value[:200])
