"""All errors of InferMux, with their HTTP status and code. Callers get no other error.

InferMuxError                   500 internal_error
├─ ConfigError                  –   start-up only
├─ RequestError                 400 invalid_request
│  ├─ ProtocolError             400 invalid_message
│  ├─ UnsupportedParameter      400 unsupported_parameter
│  ├─ PreviousResponseNotFound  400 previous_response_not_found
│  ├─ HookRefused               400 refused_by_hook
│  ├─ AuthenticationError       401 invalid_api_key
│  ├─ BudgetExceeded            402 budget_exceeded
│  ├─ UnpricedModel             402 unpriced_model
│  ├─ ModelNotAllowed           403 model_not_allowed
│  ├─ Forbidden                 403 forbidden
│  ├─ ModelNotFound             404 model_not_found
│  ├─ NotFound                  404 not_found
│  ├─ MethodNotAllowed          405 method_not_allowed
│  ├─ Conflict                  409 conflict
│  ├─ RequestTooLarge           413 request_too_large
│  ├─ UnsupportedEncoding       415 unsupported_encoding
│  └─ RateLimited               429 rate_limit_exceeded
├─ ClientGone                   499 client_closed
├─ HookFailed                   503 hook_failed
├─ Unavailable                  503
│  ├─ NoHealthyProvider         503 no_healthy_providers
│  ├─ Overloaded                503 overloaded
│  └─ Paced                     429 upstream_rate_limited
└─ ProviderError                502 upstream_error             retryable  failover
   ├─ ProviderTimeout           504 upstream_timeout           yes   yes
   ├─ ProviderUnavailable       502 upstream_error             yes   yes
   ├─ ProviderRateLimited       429 upstream_rate_limited      yes   yes
   ├─ QuotaExhausted            429 upstream_quota_exhausted   no    yes
   ├─ ProviderAuthError         502 upstream_auth              no    yes
   ├─ ProviderModelNotFound     404 model_not_found            no    yes
   ├─ ProviderRejected          400 invalid_request            no    no
   │  ├─ ProviderContextTooLong 400 context_length_exceeded    no    no
   │  └─ ContentFiltered        400 content_filter             no    no
   └─ StreamIncomplete          502 stream_incomplete          yes   until the first chunk
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

E = TypeVar("E", bound=BaseException)
SHOWN = 100  # characters of a caller's value that a message quotes


def shown(value: object) -> str:
    """Return *value* quoted for a message: control characters escaped, SHOWN characters at most."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def similar(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return up to three of the *known* names that resemble *name*; case does not matter."""
    from difflib import get_close_matches  # slow to import

    names, word = {each.casefold(): each for each in known}, name[:SHOWN].casefold()
    found = [word] if word in names else get_close_matches(word, names, cutoff=cutoff)
    return [names[each] for each in found]


def did_you_mean(names: Iterable[str]) -> str:
    """Return "; did you mean 'x' or 'y'?", or "" if there is no name."""
    choice = " or ".join(map(repr, names))
    return f"; did you mean {choice}?" if choice else ""


def close_to(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'x'?" for the *known* names that resemble *name*, or ""."""
    return did_you_mean(similar(name, known, cutoff))


def printable(text: str) -> str:
    """Return *text* with control and bidirectional characters escaped, fit for a terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first *names* as text, and how many more there are."""
    told, left = ", ".join(map(printable, names[:most])), len(names) - most
    return told + f" and {left} more" * (left > 0) or "none"


def counted(number: int, noun: str, many: str = "") -> str:
    """Return a number with its noun: 1 provider, 2 providers; *many* is an irregular plural."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


class NativeError(NamedTuple):
    """A vendor's error for clients of the same format, without keys and addresses."""

    dialect: str
    status: int
    members: dict[str, Any]  # of the error object
    request_id: str = ""
    headers: tuple[tuple[str, str], ...] = ()  # the vendor's rate limits


class FailedAttempt(NamedTuple):
    """One failed request to a vendor. Its text quotes nothing from the vendor."""

    provider: str
    model: str
    upstream_status: int | None = None  # None: no answer
    code: str = ""
    why: str = ""  # the reason, if there was no answer
    hint: str = ""  # what the operator can do

    def __str__(self) -> str:
        said = str(self.upstream_status or self.why or self.code)
        hint = f", {self.hint}" if self.hint else ""
        return printable(f"{self.provider}/{self.model[:SHOWN]}: {said}{hint}")


class Failure(NamedTuple):
    """What a record keeps of an error: an exception's frames would keep the request alive."""

    kind: type[InferMuxError]
    status: int
    code: str
    type: str
    message: str
    summary: str
    retry_after: float | None = None
    param: str | None = None
    upstream_status: int | None = None
    hint: str = ""
    cause: str = ""


def forget(error: BaseException | None) -> None:
    """Drop the traceback, cause and context of a handled exception, to free memory."""
    while error is not None:
        behind = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = behind


def having(error: E, **members: Any) -> E:
    """Return *error* with *members*, to raise it without a name: that would be a cycle."""
    vars(error).update(members)
    return error


class InferMuxError(Exception):
    """Any error that InferMux raises on purpose; its `message` may be shown to a caller.

    `str(error)` is for the operator: it also lists the attempts of the call.
    """

    status = 500
    code = "internal_error"
    type = "server_error"
    retry_after: float | None = None  # seconds
    param: str | None = None  # the invalid part of the request
    _summary = ""  # of an error whose message is the vendor's
    native: NativeError | None = None
    provider = ""  # that failed last or was requested
    model = ""
    attempts: tuple[FailedAttempt, ...] = ()
    upstream_status: int | None = None  # of the vendor's last answer
    hint = ""  # what the operator can do; not shown to anonymous clients
    cause = ""  # likewise, in words of ours alone: "connection refused"
    hook = ""  # the name of the hook that raised it

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = self.param if param is None else param
        self.retry_after = self.retry_after if retry_after is None else retry_after

    def __str__(self) -> str:
        if self.attempts:
            return f"{self.message} ({self.tried})"
        return f"{self.message}; {self.hint}" if self.hint else self.message

    @property
    def tried(self) -> str:
        """The attempts as text: "openai/gpt-6-luna: 401, … then anthropic/claude-…: 529"."""
        return " then ".join(map(str, self.attempts))

    def native_in(self, dialect: str) -> NativeError | None:
        """Return the vendor's own error if it is in *dialect*."""
        native = self.native
        form = "openai" if dialect == "responses" else dialect  # which have the same errors
        return native if native is not None and native.dialect == form else None

    @property
    def summary(self) -> str:
        """The text for logs and spans, without vendors' messages, which may quote a prompt."""
        return f"{self.code}: {self._summary or self.message}"

    @property
    def failure(self) -> Failure:
        """What a record keeps of the error."""
        return Failure(type(self), *[getattr(self, name) for name in Failure._fields[1:]])


class ConfigError(InferMuxError):
    """The configuration cannot be used; the message names the place and the fix.

    `errors` holds one error for each problem.
    """

    code = "invalid_configuration"

    def __init__(self, *errors: str) -> None:
        self.errors = tuple(dict.fromkeys(errors))
        more = len(self.errors) - 1
        rest = f" (and {more} more: `infermux validate` reports all)" if more else ""
        super().__init__(f"{errors[0]}{rest}")


def wrong_value(place: str, right: str, value: object) -> ConfigError:
    """Return the error that *value*, at *place*, must be something else."""
    told = shown(value) if isinstance(value, str) else shown(str(value))[1:-1]
    return ConfigError(f"{place} must be {right}, not {told}")


class RequestError(InferMuxError):
    """The caller must change something before the request can be served."""

    status, code, type = 400, "invalid_request", "invalid_request_error"
    elsewhere = False  # whether another target may be able to serve the request


class ProtocolError(RequestError):
    """The MIST message is malformed."""

    code = "invalid_message"


class UnsupportedParameter(RequestError):
    """The target's format cannot express a parameter of the request."""

    code = "unsupported_parameter"
    elsewhere = True


class PreviousResponseNotFound(RequestError):
    """No provider of this caller's gave the id, or it is not the model's."""

    code = "previous_response_not_found"


class HookRefused(RequestError):
    """A hook refuses the request or the answer, with a status and code of its own."""

    code = "refused_by_hook"

    def __init__(
        self, message: str, *, status: int = 400, code: str = "", type: str = "", **more: Any
    ) -> None:
        super().__init__(str(message), **more)
        if not 400 <= status < 600:
            raise ValueError(f"the status of a refusal is from 400 to 599, not {status}")
        if code and not (code.isprintable() and len(code) <= 100):
            raise ValueError(f"the code of a refusal is one printable word, not {code[:100]!r}")
        self.status, self.code = status, code or self.code
        self.type = type or (self.type if status < 500 else "server_error")


class AuthenticationError(RequestError):
    """The caller's key is missing or unknown."""

    status, code, type = 401, "invalid_api_key", "authentication_error"


class BudgetExceeded(RequestError):
    """The caller's budget is spent."""

    status, code, type = 402, "budget_exceeded", "insufficient_quota"
    elsewhere = True
    then = "reject"  # what the budget says to do, such as the name of a cheaper model
    left: int | None = None  # pico-USD
    budget: Any = None  # which one


class UnpricedModel(RequestError):
    """The caller has a hard budget, and what the call may cost is not known."""

    status, code, type = 402, "unpriced_model", "insufficient_quota"
    elsewhere = True


class ModelNotAllowed(RequestError):
    """The caller's key may not use this model."""

    status, code, type = 403, "model_not_allowed", "permission_error"


class Forbidden(RequestError):
    """The endpoint requires the admin key."""

    status, code, type = 403, "forbidden", "permission_error"


class ModelNotFound(RequestError):
    """No provider serves the model, or the requested provider does not exist."""

    status, code, type = 404, "model_not_found", "not_found_error"


class NotFound(RequestError):
    """There is no such endpoint."""

    status, code, type = 404, "not_found", "not_found_error"


class MethodNotAllowed(RequestError):
    """The endpoint does not support this method."""

    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class Conflict(RequestError):
    """What is to be created exists, or is configured elsewhere."""

    status, code = 409, "conflict"


class RequestTooLarge(RequestError):
    """The body exceeds the size limit."""

    status, code, type = 413, "request_too_large", "request_too_large"


class UnsupportedEncoding(RequestError):
    """The body is compressed, which is not supported: it could expand without bound."""

    status, code = 415, "unsupported_encoding"


class RateLimited(RequestError):
    """The caller exceeded its rate limit."""

    status, code, type, retry_after = 429, "rate_limit_exceeded", "rate_limit_error", 1.0


class ClientGone(InferMuxError):
    """The client closed the connection before the first content."""

    status, code = 499, "client_closed"


class HookFailed(InferMuxError):
    """A hook failed or was late, and no call may pass without it."""

    status, code = 503, "hook_failed"


class Unavailable(InferMuxError):
    """The call cannot be served now; nothing was sent to a provider."""

    status, code = 503, "unavailable"
    retry_after: float | None = 1.0
    elsewhere = True


class NoHealthyProvider(Unavailable):
    """Every target is unavailable, such as by an open circuit."""

    code = "no_healthy_providers"


class Overloaded(Unavailable):
    """The service is at capacity."""

    code, type = "overloaded", "overloaded_error"


class Paced(Unavailable):
    """The rate that the configuration allows to the provider is used up."""

    status, code, type = 429, "upstream_rate_limited", "rate_limit_error"


class ProviderError(InferMuxError):
    """A provider failed. `retryable`: retry this target; `failover`: try another."""

    status, code, type = 502, "upstream_error", "upstream_error"
    retryable = False
    failover = True
    sent: bool | None = None  # whether the request reached the provider; None: unknown
    usage: Any = None  # a Usage, if the provider tells what the failure cost


class ProviderTimeout(ProviderError):
    """The provider did not answer within its timeout."""

    status, code, retryable = 504, "upstream_timeout", True


class ProviderUnavailable(ProviderError):
    """The connection failed, or the response is a server error or invalid."""

    retryable = True


class ProviderRateLimited(ProviderError):
    """The provider's rate limit is exceeded."""

    status, code, type, retryable = 429, "upstream_rate_limited", "rate_limit_error", True


class QuotaExhausted(ProviderRateLimited):
    """Our account at the provider is out of credit; a retry cannot help."""

    code, retryable = "upstream_quota_exhausted", False


class ProviderAuthError(ProviderError):
    """The provider refuses our key, which is not the caller's fault."""

    code = "upstream_auth"


class ProviderModelNotFound(ProviderError):
    """The provider does not know the model."""

    status, code, type = 404, "model_not_found", "not_found_error"
    _summary = "the provider does not know the model"


class ProviderRejected(ProviderError):
    """The provider rejects the caller's request."""

    status, code, type, failover = 400, "invalid_request", "invalid_request_error", False
    _summary = "the provider rejected the request"


class ProviderContextTooLong(ProviderRejected):
    """The request is longer than the model's context."""

    code = "context_length_exceeded"


class ContentFiltered(ProviderRejected):
    """The provider's content filter blocked the request."""

    code = "content_filter"


class StreamIncomplete(ProviderError):
    """The stream ended without its terminator: the answer may be incomplete."""

    code, retryable = "stream_incomplete", True
