"""Wire formats: what a dialect is, and what all of them share.

A dialect is a module of pure functions, in both directions. The canonical form between two dialects
is InferRequest with OpenAI-shaped messages and params, InferResponse, and Chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Protocol

from ..errors import (
    ContentFiltered,
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
from ..protocol import InferRequest, InferResponse
from ..protocol.sse import Event
from ..types import JSON, Chunk, Usage

LONGEST_WAIT = 86400.0  # seconds: what a vendor asks for beyond a day is a mistake
Headers = Mapping[str, str]
Events = Iterable[Event | None]  # None: nothing came for a while


class Dialect(Protocol):
    """The vendor's side of a wire format: what a provider needs of it."""

    NAME: str

    def path(self, request: InferRequest, *, stream: bool) -> str:
        """Return the path and query below the base URL; raise UnsupportedParameter where there is
        none for the operation.
        """

    def auth(self, key: str) -> dict[str, str]:
        """Return the headers that carry the key."""

    def headers(self, request: InferRequest) -> dict[str, str]:
        """Return the protocol headers that a request needs."""

    def encode_request(
        self, request: InferRequest, *, stream: bool, drop: list[str] | None = None
    ) -> bytes:
        """Return the body; append what cannot be said to *drop*, or raise UnsupportedParameter if
        that is None.
        """

    def decode_response(self, data: bytes, request: InferRequest) -> InferResponse:
        """Return the answer; raise ProviderError if it is one, ValueError (or alike) if it makes no
        sense.
        """

    def decode_error(self, status: int, headers: Headers, data: bytes) -> ProviderError:
        """Return the error that an answer with *status* stands for."""

    def decode_events(self, events: Events, request: InferRequest) -> Iterator[Chunk]:
        """Yield the chunks of a stream; raise StreamIncomplete if it ends without its terminator."""

    def decode_whole(self, data: bytes, request: InferRequest) -> Iterator[Chunk]:
        """Yield the chunks of an answer that did not come as events although a stream was asked
        for.
        """


def unsupported(name: str, dialect: str, drop: list[str] | None) -> None:
    """Note in *drop* that a parameter cannot be said, or raise UnsupportedParameter naming it."""
    if drop is None:
        raise UnsupportedParameter(
            f"{name!r} cannot be expressed in the {dialect} format", param=name
        )
    if name not in drop:
        drop.append(name)


# -- reading what may be of any type ---------------------------------------------------------------


def count(value: object) -> int | None:
    """Return a token count, None where there is none; raise ValueError for what cannot be one."""
    if value is None or (type(value) is int and 0 <= value < 2**53):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
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
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("expected a list of objects")
    return value


def text(value: object) -> str:
    """Return a string, empty for null; raise ValueError for another type."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def whole(response: InferResponse, native: bytes | None = None) -> Iterator[Chunk]:
    """Yield a whole answer as one chunk."""
    calls = [{**call, "index": index} for index, call in enumerate(response.tool_calls)]
    usage = response.usage
    if usage is None and (
        response.tokens_in or response.tokens_out or response.cost_usd is not None
    ):
        usage = Usage(response.tokens_in, response.tokens_out, cost_usd=response.cost_usd)
    yield Chunk(
        text=response.content,
        reasoning=response.reasoning,
        refusal=response.refusal,
        tool_calls=calls,
        finish_reason=response.finish_reason or "stop",
        usage=usage,
        details=response.details,
        model=response.model,
        id=response.id,
        native=native,
    )


# -- errors ----------------------------------------------------------------------------------------

_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|limit)|prompt is too long|too many (input )?tokens|input token count",
    re.I,
)
_BAD_KEY = re.compile(
    r"(incorrect|invalid|missing|expired).{0,20}(api[ _-]?key|credential|x-api-key)"
    r"|api[ _-]?key.{0,20}(not valid|invalid|expired)",
    re.I,
)
_NO_CREDIT = re.compile(r"insufficient[ _](quota|balance|credit|funds)|credit balance", re.I)
_FILTERED = re.compile(r"content[ _](filter|policy|management)|ResponsibleAIPolicyViolation", re.I)
_WORDS = {  # what a caller is told where the vendor's own words would not help
    ProviderAuthError: "the provider does not accept the key that this service has for it",
    ProviderRateLimited: "the provider limits our rate; try again later",
    QuotaExhausted: "our account at the provider is out of credit",
    ProviderTimeout: "the provider did not answer in time",
    ProviderUnavailable: "the provider failed with status {status}",
    ProviderError: "the provider answered with status {status}",
}


def provider_error(
    status: int,
    message: str,
    *,
    code: str = "",
    param: str | None = None,
    retry_after: float | None = None,
) -> ProviderError:
    """Return the error for a vendor's status, code and words; only what is the caller's to mend
    keeps the words.
    """
    kind = _kind(status, f"{code} {message}")
    error: ProviderError
    if issubclass(kind, ProviderRejected | ProviderModelNotFound):
        error = kind(message[:2000] or "the provider rejected the request", param=param)
    else:
        error = kind(_WORDS[kind].format(status=status), retry_after=retry_after)
    if status == 413:
        error.status = 413
    if (
        status in (501, 505) or status < 500
    ):  # a 501 stays a 501; a redirect or an odd status is a wrong address
        error.retryable = error.retryable and kind is not ProviderUnavailable
    return error


def _kind(status: int, words: str) -> type[ProviderError]:
    if status in (400, 413, 422):
        return _rejected(words)
    if status == 402 or (status in (403, 429) and _NO_CREDIT.search(words)):
        return QuotaExhausted
    fixed = {
        401: ProviderAuthError,
        403: ProviderAuthError,
        404: ProviderModelNotFound,
        408: ProviderTimeout,
        429: ProviderRateLimited,
        504: ProviderTimeout,
    }
    return fixed.get(status) or (ProviderError if 405 <= status < 500 else ProviderUnavailable)


def _rejected(words: str) -> type[ProviderError]:
    if _BAD_KEY.search(words):  # xAI and Gemini say 400 for a bad key: ours, not the caller's
        return ProviderAuthError
    if _TOO_LONG.search(words):
        return ProviderContextTooLong
    return ContentFiltered if _FILTERED.search(words) else ProviderRejected


def retry_after(headers: Headers, *, now: Callable[[], float]) -> float | None:
    """Return the seconds that Retry-After asks for, as a number or as a date (RFC 9110, 10.2.3), or
    None.
    """
    milliseconds, value = headers.get("retry-after-ms", ""), headers.get("retry-after", "").strip()
    for number, unit in ((milliseconds, 1000), (value, 1)):
        if number.isascii() and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return min(float(number) / unit, LONGEST_WAIT)
    try:
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - now()), LONGEST_WAIT)
    except (ValueError, TypeError, OverflowError):
        return None
