"""Reads request bodies and headers, and writes JSON responses, error responses and headers."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from flask import Request, Response, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wsgi import ClosingIterator

from ..admission import ConcurrencyLimiter
from ..errors import (
    InferMuxError,
    MethodNotAllowed,
    Overloaded,
    ProviderAuthError,
    QuotaExhausted,
    RequestError,
    RequestTooLarge,
    UnsupportedEncoding,
    close_to,
    counted,
    shown,
)
from ..planning.call import Call
from ..pricing import usd
from ..protocol import InferRequest, new_id, strict_json
from ..providers.base import OUT_OF_RESOURCES
from ..routing.callers import TAGS
from ..routing.router import Router
from ..telemetry.spans import parse
from ..types import JSON, NOTHING, Caller, LogThrottle, is_shortage
from .limits import limit_headers

MAX_BODY = 32 * 1024 * 1024  # bytes of a request
CHUNK = 256 * 1024  # bytes per read of a body
SHORT_BODY = 16_384  # bytes, which our worker awaits without a thread
SPARE_PART = 16  # of the room for bodies: for the first CHUNK of each
BODY = "infermux.body"  # the key of a request's BodyRoom in its WSGI environ
SDK_TRIES = 3  # of an official SDK, by default
_CALL = "infermux.call"  # the key of a request's Call in its WSGI environ
_TAG_HEADERS = tuple((name, f"HTTP_X_INFERMUX_{name.upper()}") for name in TAGS)
_NO_THREADS = (
    "this server answers one call at a time in each process (wsgi.multithread is false), and "
    "gunicorn's default worker kills one that takes 30 seconds: give it threads, as in "
    "`gunicorn --worker-class gthread --threads 100 --timeout 600 app:app`"
)
_SERVERS = {"SERVER_SOFTWARE", "uwsgi.version"}  # in the environ of a server; not of a test client
_thread_warning = LogThrottle(seconds=math.inf)  # once per process
log = logging.getLogger("infermux")

T = TypeVar("T")
View = Callable[..., Response]
Render = Callable[[InferMuxError], JSON]
Identify = Callable[[], Caller | str | None]


class Api(NamedTuple):
    """The data that the views of one API share."""

    name: str  # for records, logs and metrics
    router: Router
    render: Render  # renders errors
    identify: Identify | None = None  # the mounting app's authentication


# -- requests --


def current_request() -> Request:
    """Return the request itself: each access to Flask's proxy takes three function calls."""
    found: Request = request._get_current_object()  # type: ignore[attr-defined]  # documented
    return found


def query_of(*known: str) -> list[tuple[str, str]]:
    """Return the parameters of the URL; raise RequestError for one that is not *known*."""
    found = list(request.args.items(multi=True))
    for name, _ in found:
        if name not in known:
            hint = close_to(name, known) or f"; use {', '.join(known)}" * bool(known)
            what = f"there is no parameter {shown(name)} here{hint}"
            raise RequestError(what, param=name[:100])
    return found


class BodyRoom:
    """The bytes that a request's body reserves in the process's limit until its response."""

    __slots__ = ("_limiter", "_taken")

    def __init__(self, limiter: ConcurrencyLimiter) -> None:
        self._limiter = limiter
        self._taken = 0

    def take(self, size: int) -> None:
        """Reserve *size* bytes more; raise Overloaded if too many are in use.

        A body that has some leaves the last of the room for those that have none.
        """
        limiter, taken = self._limiter, self._taken
        spare = limiter.limit // SPARE_PART if 0 < taken < limiter.used else 0
        if not limiter.acquire(size, spare=spare):
            refuse_body()
            raise Overloaded("the service holds as many request bodies as it can; retry shortly")
        self._taken += size

    def release(self) -> None:
        taken, self._taken = self._taken, 0
        if taken:
            self._limiter.release(taken)

    @property
    def is_used(self) -> bool:
        """Whether any byte of the body was asked for."""
        return self._taken > 0

    @property
    def most(self) -> int:
        """The largest body, in bytes, that the limit allows."""
        return self._limiter.limit


def body_room() -> BodyRoom:
    room: BodyRoom = current_request().environ[BODY]
    return room


def refuse_body() -> None:
    """Leave the body unread; our worker then closes the connection after the response."""
    refuse = getattr(request.environ.get("wsgi.input"), "refuse", None)
    if refuse is not None and body_size() != 0:
        refuse()


def refuse_long_body() -> None:
    """Leave a body unread that nobody wants, unless it is short: its end need not be awaited."""
    if "HTTP_TRANSFER_ENCODING" in current_request().environ or (body_size() or 0) > SHORT_BODY:
        refuse_body()


def body_size() -> int | None:
    """Return the body's size in bytes from the headers, or None if unknown."""
    environ = current_request().environ
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    length: str = environ.get("CONTENT_LENGTH", "")
    return int(length) if length.isascii() and length.isdigit() else None


def read_body(limit: int = MAX_BODY) -> bytes:
    """Return the body; raise RequestError if truncated, compressed or over *limit* bytes.

    Raise Overloaded if the bodies in flight leave no room for it.
    """
    room, size = body_room(), body_size()
    check_encoding()
    own = request.max_content_length  # the app's MAX_CONTENT_LENGTH
    limit = min(limit, room.most, limit if own is None else own)
    try:
        data = _received(room, size, limit)
    except Overloaded:
        raise
    except Exception as error:  # servers raise various errors for a truncated or malformed body
        raise unread(error, limit) from None
    if size is not None and len(data) < size:
        raise RequestError(
            f"the body has {counted(len(data), 'byte')}, but Content-Length is {size}"
        )
    return data


def check_encoding() -> None:
    """Raise UnsupportedEncoding if the body is compressed."""
    encoding: str = current_request().environ.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.lower() != "identity":
        refuse_body()
        raise UnsupportedEncoding(
            f"content encoding {shown(encoding)} is not supported; send the body uncompressed"
        )


def unread(error: Exception, limit: int) -> InferMuxError:
    """Return our error for one in reading a body of *limit* bytes; its rest stays unread."""
    refuse_body()
    if isinstance(error, RequestEntityTooLarge):
        return RequestTooLarge(f"the body is longer than {limit} bytes")
    if is_shortage(error):
        return Overloaded("too many clients send slowly; retry shortly")
    slow = isinstance(error, TimeoutError)
    what = "came too slowly" if slow else "ended early or is not well-formed"
    return RequestError(f"the body {what}")


def _received(room: BodyRoom, size: int | None, limit: int) -> bytes:
    request = current_request()
    if size is not None and size > limit:
        raise RequestEntityTooLarge
    if "stream" in vars(request):  # a hook of the app has accessed it
        data = request.get_data()
    elif size is None:
        data = _read_chunked(room, limit)
    else:  # four times as fast
        data = _read_sized(request.environ["wsgi.input"], room, size)
        request.stream = io.BytesIO(data)
    if len(data) > limit:
        raise RequestEntityTooLarge
    return data


def _read_sized(body: Any, room: BodyRoom, size: int) -> bytes:
    """Return a body of *size* bytes, or less if it ends; room is taken piece by piece."""
    parts, left = [], size
    while left > 0:
        step = min(left, CHUNK)
        room.take(step)
        parts.append(part := body.read(step))
        left -= step
        if len(part) < step:
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_chunked(room: BodyRoom, limit: int) -> bytes:
    # one byte more: Werkzeug silently truncates a chunked body at its limit
    request.max_content_length = limit + 1
    parts, size = [], 0
    while part := request.stream.read(CHUNK):
        size += len(part)
        if size > limit:
            raise RequestEntityTooLarge
        room.take(len(part))
        parts.append(part)
    data = b"".join(parts)
    request.stream = io.BytesIO(data)
    return data


def json_body(decode: Callable[[bytes], T]) -> T:
    """Return the body decoded by *decode*; raise RequestError on its ValueError."""
    try:
        return decode(read_body())
    except ValueError as error:
        raise RequestError(str(error)) from None


def start_call(api: Api, wanted: InferRequest, caller: Caller) -> Call:
    """Return a new call for this request, stored in its environ for error responses."""
    environ = current_request().environ  # 30 times as fast as `request.headers`
    header = environ.get
    if (session := header("HTTP_X_SESSION_ID")) is not None:
        wanted.session = session
    tags = {name: _utf8(value) for name, key in _TAG_HEADERS if (value := header(key))}
    trace = parse(header("HTTP_TRACEPARENT"), header("HTTP_TRACESTATE"))
    user = _utf8(header("HTTP_X_INFERMUX_USER", ""))
    call = api.router.begin(wanted, caller=caller, api=api.name, trace=trace, tags=tags, user=user)
    is_served = not _SERVERS.isdisjoint(environ)
    if not header("wsgi.multithread", True) and is_served and _thread_warning.due():
        log.warning(_NO_THREADS)
    call.cache_control = header("HTTP_CACHE_CONTROL", "")
    call.patience = _read_timeout(header("HTTP_X_STAINLESS_READ_TIMEOUT", ""))
    who, limited = call.caller, call.user and (caller.user_rpm or caller.user_tpm)
    if who.rpm or who.tpm or who.budget is not None or limited:
        call.limits_told = partial(limit_headers, api.router)
    environ[_CALL] = call
    return call


def _utf8(text: str) -> str:
    """Return a header in UTF-8, which WSGI gives as Latin-1; another one as it is."""
    if text.isascii():
        return text
    with suppress(UnicodeError):
        return text.encode("latin-1").decode()
    return text


def _read_timeout(text: str) -> float | None:
    """Return the client timeout, in seconds, that an official SDK sends, or None."""
    is_number = text.isascii() and text.replace(".", "", 1).isdigit()
    return (float(text) or None) if is_number else None


# -- responses --


class BytesResponse(Response):
    """A response of bytes, faster as Werkzeug neither encodes it nor copies its headers."""

    _has_callbacks = False

    def __init__(self, body: Iterable[bytes], status: int, headers: Headers) -> None:
        super().__init__(body, status, headers)
        self._original = self.response  # a hook of the app may replace it

    def call_on_close(self, func: Callable[[], Any]) -> Callable[[], Any]:
        self._has_callbacks = True
        return super().call_on_close(func)

    def get_wsgi_headers(self, environ: Any) -> Headers:
        return self.headers

    def get_app_iter(self, environ: Any) -> Iterable[bytes]:
        if self.response is not self._original or environ["REQUEST_METHOD"] == "HEAD":
            return super().get_app_iter(environ)
        body: Any = self.response
        return ClosingIterator(body, self.close) if self._has_callbacks else body


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] = NOTHING
) -> Response:
    """Return *value* as JSON, whatever the app's JSON settings are; bytes are sent unchanged."""
    data = value if isinstance(value, bytes) else strict_json.encode(value) + b"\n"
    complete = Headers()
    complete[:] = [  # a third faster than one by one
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(data))),
        ("X-Content-Type-Options", "nosniff"),
        *headers.items(),
    ]
    return with_request_id(BytesResponse([data], status, complete))


def call_response(call: Call, value: object) -> Response:
    return json_response(value, headers=call_headers(call))


def with_request_id(response: Response) -> Response:
    """Return *response*, adding a request id if it has none."""
    if "X-Request-Id" not in response.headers:
        response.headers["X-Request-Id"] = response.headers["Request-Id"] = new_id()
    return response


def error_response(error: InferMuxError, render: Render) -> Response:
    """Return the response to *error*: its body from *render*, and headers of the failed call."""
    call: Call | None = current_request().environ.get(_CALL)
    headers, status = {} if call is None else call_headers(call), error.status
    asked = call.request.native if call is not None else None
    native = error.native_in(asked.dialect) if asked is not None else None
    if native is not None:  # the client uses the vendor's format
        status = native.status
        if call is None or not call.windows:  # else they are about another limit than the key's
            headers |= native.headers
        headers |= {"Request-Id": native.request_id} if native.request_id else {}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    elif error.status == 429 or status == 503:  # the vendor named no time
        headers["Retry-After"] = "1"
    elif status >= 500 and call is not None and _used_up(call):
        headers["x-should-retry"] = "false"
    return json_response(render(error), status, headers)


def _used_up(call: Call) -> bool:
    """Whether we tried as often as an SDK, and as long as the client waits."""
    patience = call.patience
    return len(call.attempts) >= SDK_TRIES and patience is not None and call.seconds >= patience


def ours(error: Exception, what: str) -> InferMuxError:
    """Return our error, for another one Overloaded if we lack resources; else log it."""
    if isinstance(error, InferMuxError):
        return error
    if is_shortage(error):
        return Overloaded(OUT_OF_RESOURCES)
    log.error("%s failed unexpectedly", what, exc_info=error)
    return InferMuxError("internal error")


def plain_error(error: InferMuxError) -> JSON:
    """Return an error as JSON for the MIST and operators' endpoints."""
    return {"error": {"message": error.message, "type": error.type, "code": error.code}}


def is_codex() -> bool:
    """Whether Codex asks: it says its version in the query, and its name in headers."""
    names = [request.headers.get(name, "") for name in ("originator", "user-agent")]
    return "client_version" in request.args or any(name.startswith("codex") for name in names)


def call_headers(call: Call) -> dict[str, str]:
    """Return the response headers that describe a call."""
    headers = {
        "X-Request-Id": call.id,
        "Request-Id": call.id,
        "X-Infermux-Attempts": str(len(call.attempts)),
        "X-Infermux-Latency-Ms": str(call.latency_ms),
    }
    if call.attempts or call.cached is not None:
        headers["X-Infermux-Provider"] = header_value(call.provider)
        headers["X-Infermux-Model"] = header_value(call.model)
    if call.attempts:
        headers["Server-Timing"] = _timing(call)
        last = call.attempts[-1]
        is_ours = last.error and issubclass(last.error.kind, ProviderAuthError | QuotaExhausted)
        if last.upstream_ids and not is_ours:  # else it is about our account
            headers["X-Upstream-Request-Id"] = last.upstream_request_id
        if dropped := last.dropped:
            headers["X-Infermux-Dropped"] = header_value(", ".join(dropped))
    if call.cache:
        headers["X-Infermux-Cache"] = call.cache
        if call.cached is not None:
            headers["Age"] = str(int(call.cached.age))
    if call.limits_told is not None:
        headers |= call.limits_told(call)
    if call.most_output is not None:
        headers["X-Infermux-Max-Tokens"] = str(call.most_output)
    if call.most_uses is not None:
        headers["X-Infermux-Max-Uses"] = str(call.most_uses)
    if call.override:
        headers["X-Infermux-Model-Override"] = header_value(call.override)
    if call.ended is not None and call.usage is not None:
        tokens_in, tokens_out = call.tokens
        headers |= {
            "X-Infermux-Prompt-Tokens": str(tokens_in),
            "X-Infermux-Completion-Tokens": str(tokens_out),
            "X-Infermux-Cost": usd(call.cost),
        }
    return headers


def _timing(call: Call) -> str:
    upstream = sum([attempt.seconds for attempt in call.attempts]) * 1000
    found = f"provider;dur={upstream:.1f}, total;dur={call.seconds * 1000:.1f}"
    return found if not call.hooks else f"{found}, hooks;dur={call.hooks_ms:.1f}"


def header_value(value: str) -> str:
    """Return *value* made safe for a header, as clients choose model names."""
    if value.isascii() and value.isprintable() and len(value) <= 200:
        return value
    return "".join(letter if " " <= letter <= "~" else "?" for letter in value[:200])
