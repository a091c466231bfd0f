"""Dialects, the wire formats of vendors: one package of pure functions each, without I/O.

`upstream` writes requests to a vendor and reads responses. `requests` translates requests of other
dialects. `downstream` reads requests of clients and writes responses. All translate to and from
InferRequest, InferResponse and Chunk, whose messages and params have the form of OpenAI's chat
completions. This module holds what the dialects share.
"""

from __future__ import annotations

import re
import struct
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from ..errors import (
    ContentFiltered,
    NativeError,
    ProviderAuthError,
    ProviderContextTooLong,
    ProviderError,
    ProviderModelNotFound,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    UnsupportedParameter,
)
from ..protocol import InferRequest, InferResponse, must_be, strict_json
from ..protocol.sse import Event
from ..types import JSON, Chunk, Usage
from .parameters import Unsaid

MAX_RETRY_AFTER_SECONDS = 86400.0  # longer waits are cut to this
BEGIN = "Begin."  # the user's first words, for vendors that want some
NO_TERMINATOR = "the provider's stream ended without its terminator"
Headers = Mapping[str, str]
Events = Iterable[Event | None]  # None: no event for a while


class Dialect(Protocol):
    """A wire format, as HTTPProvider uses it to call a vendor."""

    NAME: str

    def path(self, request: InferRequest, *, stream: bool) -> str:
        """Return the operation's path and query; raise UnsupportedParameter if it has none."""

    def auth(self, key: str) -> dict[str, str]:
        """Return the headers that carry the API key."""

    def headers(self, request: InferRequest) -> dict[str, str]:
        """Return the dialect's own headers of a request, such as their version."""

    def encode_request(self, request: InferRequest, *, stream: bool) -> bytes:
        """Return the JSON body; add left-out params to request.dropped, or raise RequestError."""

    def unsaid(self, request: InferRequest, model: str) -> Unsaid:
        """Return what of the request cannot be expressed for *model*."""

    def decode_response(self, data: bytes, request: InferRequest) -> InferResponse:
        """Return the response; raise ProviderError for an error, ValueError etc. if invalid."""

    def decode_error(self, status: int, headers: Headers, data: bytes) -> ProviderError:
        """Return the error for a response with an HTTP status of 300 or more."""

    def decode_events(self, events: Events, request: InferRequest) -> Iterator[Chunk]:
        """Yield a stream's chunks; raise StreamIncomplete if it ends without its terminator."""


# -- requests --


def path_of(paths: Mapping[str, str], request: InferRequest, dialect: str) -> str:
    """Return the path of the request's operation; raise UnsupportedParameter if none is listed."""
    if request.op not in paths:
        raise UnsupportedParameter(f"the {dialect} format has no {request.op}", param="model")
    return paths[request.op]


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def require(value: object, name: str, *kinds: type) -> Any:
    """Return *value*, the field *name*; raise RequestError if it is of none of *kinds*."""
    if type(value) in kinds:
        return value
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if wrong_bool or not isinstance(value, (*kinds, int) if float in kinds else kinds):
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        raise must_be(name, wanted)
    return value


def objects(value: object, name: str) -> list[JSON]:
    """Return *value*; raise RequestError if it is not a list of objects."""
    for number, item in enumerate(require(value, name, list)):
        require(item, f"{name}[{number}]", dict)
    return value  # type: ignore[return-value]


def strings(value: object, name: str) -> list[str]:
    """Return a string or list of strings as a list; raise RequestError for other values."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise must_be(name, "a string or a list of strings")
    return found


def without(members: Mapping[str, Any], *names: str) -> JSON:
    """Return a copy without the members called *names*."""
    return {name: value for name, value in members.items() if name not in names}


def only(members: Mapping[str, Any], names: Collection[str]) -> JSON:
    """Return a copy of the members called *names*."""
    return {name: value for name, value in members.items() if name in names}


def given(members: Mapping[str, Any]) -> JSON:
    """Return a copy without the members that are None."""
    return {name: value for name, value in members.items() if value is not None}


# -- vendors' values, which may be of any type --


def count(value: object) -> int | None:
    """Return a token count, None for null; raise ValueError if it is not a number."""
    if value is None or (type(value) is int and 0 <= value < 2**53):
        return value
    if isinstance(value, str):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise ValueError("a token count is not a number")
    return int(value)


def obj(value: object) -> JSON:
    """Return an object, empty for null; raise ValueError for another type."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


def items(value: object) -> list[JSON]:
    """Return a list of objects, empty for null; raise ValueError for another type."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError("expected a list of objects")
    for item in value:  # three times as fast as all() with a generator
        if not isinstance(item, dict):
            raise ValueError("expected a list of objects")
    return value


def members(value: object) -> JSON:
    """Return an object, empty for every other value."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[JSON]:
    """Return the objects of a list, none for every other value."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def used(response: InferResponse) -> Usage:
    """Return what a response has used, at least its numbers of tokens."""
    return response.usage or Usage(response.tokens_in, response.tokens_out)


def parted(content: Any) -> Any:
    """Return a content as parts, if it is a text."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def text(value: object) -> str:
    """Return a string, empty for null; raise ValueError for another type."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def read_object(data: bytes, decode_error: Callable[[int, Headers, bytes], ProviderError]) -> JSON:
    """Return a response's JSON object; raise its `error`, if any, or ValueError if it is none."""
    body = strict_json.lenient(data)
    if not isinstance(body, dict):
        raise ValueError("expected an object")
    if error := body.get("error"):
        raise decode_error(error_status(error), {}, data)
    return body


def typed(event: Event, body: JSON) -> Event:
    """Return the event; if *body*, its data, has no type, set that to its name in both."""
    if body.get("type") is not None or not event.name:
        return event
    body["type"] = event.name.decode(errors="replace")
    return event._replace(data=strict_json.encode(body))


# -- answers --


def token_count(value: object, request: InferRequest, native: tuple[str, bytes]) -> InferResponse:
    """Return the response to a count_tokens request; raise ValueError if *value* is no count."""
    tokens = count(value)
    if tokens is None:
        raise ValueError("a count without a number")
    return InferResponse(
        request.model, request.provider, "", tokens, native=native, extra={"input_tokens": tokens}
    )


def tier_of(usage: Usage | None, plain: str, others: Collection[str]) -> str | None:
    """Return the billed tier in a format: *plain* is the usual one, *others* have one name."""
    name = usage.service_tier if usage is not None else None
    return plain if name in ("default", "standard") else name if name in others else None


def packed(vector: list[float]) -> str:
    """Return an embedding as base64 of little-endian 32-bit floats, or raise ValueError."""
    try:
        return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (OverflowError, struct.error):
        raise ValueError("an embedding holds a number that does not fit a float") from None


# -- errors --

_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|limit|size)|(prompt|input) is too long|maximum prompt length"
    r"|too many (input )?tokens|input token count|model token limit|length of the messages",
    re.I,
)
_BAD_KEY = re.compile(
    r"(incorrect|invalid|missing|expired).{0,20}(api[ _-]?key|credential|x-api-key)"
    r"|api[ _-]?key.{0,20}(not valid|invalid|expired)",
    re.I,
)
_NO_CREDIT = re.compile(r"insufficient[ _](quota|balance|credit|funds)|credit balance", re.I)
_FILTERED = re.compile(r"content[ _](filter|policy|management)|ResponsibleAIPolicyViolation", re.I)
_MESSAGES = {  # for callers, if the vendor's message is not about their request
    ProviderAuthError: "the provider rejected this service's API key",
    ProviderRateLimited: "the provider limits our rate; try again later",
    QuotaExhausted: "our account at the provider is out of credit",
    ProviderTimeout: "the provider did not answer in time",
    ProviderUnavailable: "the provider failed with status {status}",
    ProviderError: "the provider answered with status {status}",
}


def error_object(data: bytes) -> JSON:
    """Return the object that describes the error in a body, or {} if there is none."""
    try:
        body = strict_json.lenient(data.strip().removeprefix(b"data:"))
    except ValueError:
        return {}
    if isinstance(body, list):  # Gemini's stream without alt=sse
        body = body[0] if body else None
    if not isinstance(body, dict):
        return {}
    error = body.get("error", body)
    if isinstance(error, dict) and "request_id" in body:  # Anthropic
        error = {"request_id": body["request_id"]} | error
    if isinstance(error, str):  # xAI, Ollama
        return {"message": error, "code": body.get("code")}
    if not isinstance(error, dict):
        return {}
    return error if error.get("message") else error | {"message": error.get("detail")}  # Mistral


def error_status(error: object) -> int:
    """Return the HTTP status that an error inside a 200 tells, else 502."""
    told = members(error)
    code = told.get("status_code", told.get("code"))
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def word(value: object) -> str:
    """Return a string or a number as a string, and "" for anything else."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) in (int, float) else ""


def provider_error(
    status: int,
    message: str,
    *,
    code: str = "",
    param: str | None = None,
    retry_after: float | None = None,
) -> ProviderError:
    """Return the error for a vendor's status; only a rejection repeats its *message*."""
    kind = _kind(status, f"{code} {message}")
    error: ProviderError
    if issubclass(kind, ProviderRejected | ProviderModelNotFound):
        error = kind(message[:2000] or "the provider rejected the request", param=param)
    else:
        error = kind(_MESSAGES[kind].format(status=status), retry_after=retry_after)
    # 502 also stands for an error that names no status, inside a 200
    error.upstream_status = None if status == 502 else status
    if status == 413:
        error.status = 413
    if status in (501, 505) or status < 500:  # a wrong address: a retry cannot help
        error.retryable = error.retryable and kind is not ProviderUnavailable
    return error


_FIXED: dict[int, type[ProviderError]] = {
    401: ProviderAuthError,
    402: QuotaExhausted,
    403: ProviderAuthError,
    404: ProviderModelNotFound,
    408: ProviderTimeout,
    429: ProviderRateLimited,
    504: ProviderTimeout,
}


def _kind(status: int, words: str) -> type[ProviderError]:
    if status in (400, 413, 422):
        if _BAD_KEY.search(words):  # xAI and Gemini answer 400 if our key is bad
            return ProviderAuthError
        if _TOO_LONG.search(words):
            return ProviderContextTooLong
        return ContentFiltered if _FILTERED.search(words) else ProviderRejected
    if status in (403, 429) and _NO_CREDIT.search(words):
        return QuotaExhausted
    return _FIXED.get(status) or (ProviderError if 405 <= status < 500 else ProviderUnavailable)


_LIMITS = re.compile(r"(x|anthropic)-ratelimit-[a-z0-9-]{1,60}|retry-after-ms", re.I)
SDK_STATUSES = {400, 404, 409, 413, 422, 429, 503, 504}  # that the official SDKs distinguish
_MEMBERS = ("type", "code", "param", "details")  # of errors that callers cannot fix


def with_native(
    error: ProviderError,
    dialect: str,
    status: int,
    headers: Headers,
    data: bytes,
    *,
    passed: Collection[int] = SDK_STATUSES,
    members: Collection[str] = _MEMBERS,
) -> ProviderError:
    """Add the vendor's own error, for clients of the same dialect, to *error*, and return that.

    Its status is kept if it is in *passed*. Errors about our account are not added; of those that
    callers cannot fix, only *members* are.
    """
    own = error_object(data)
    spoken = word(own.get("type")) or word(own.get("code"))
    ours = isinstance(error, ProviderAuthError | QuotaExhausted) and status != 429
    lost = type(error) is ProviderError and status != 409  # a wrong address
    if not spoken or ours or lost:
        return error
    told = isinstance(error, ProviderRejected | ProviderModelNotFound)
    ident = own.get("request_id") or headers.get("request-id") or headers.get("x-request-id")
    error.native = NativeError(
        dialect,
        status if status in passed else error.status,
        without(own, "message", "request_id") if told else only(own, members),
        word(ident),
        tuple((name, value) for name, value in headers.items() if _LIMITS.fullmatch(name))[:32],
    )
    return error


def retry_after(headers: Headers) -> float | None:
    """Return the seconds to wait from Retry-After (RFC 9110, 10.2.3) or retry-after-ms, or None.

    A date counts from the vendor's own Date, as clocks differ.
    """
    milliseconds, value = headers.get("retry-after-ms", ""), headers.get("retry-after", "").strip()
    for number, unit in ((milliseconds, 1000), (value, 1)):
        if number.isascii() and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return min(float(number) / unit, MAX_RETRY_AFTER_SECONDS)
    until, now = _moment(value), _moment(headers.get("date", ""))
    if until is None:
        return None
    return min(max(0.0, until - (now or time.time())), MAX_RETRY_AFTER_SECONDS)


def _moment(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
