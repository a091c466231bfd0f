"""Our errors for the exceptions of the HTTP libraries."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import requests
import urllib3.exceptions

from ..errors import (
    InferMuxError,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    having,
)
from ..types import is_shortage
from .base import OUT_OF_RESOURCES, provider_failed

FOREIGN = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    urllib3.exceptions.ProxySchemeUnsupported,
)
NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
UNREADABLE = "the provider's answer could not be understood"
_TIMEOUTS = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
_TLS = (requests.exceptions.SSLError, urllib3.exceptions.SSLError, ssl.SSLError)


class Guard:
    """Turns exceptions of libraries and dialects into ours, and redacts ours."""

    def __init__(self, provider: Any, exchange: Any) -> None:
        self._provider, self._exchange = provider, exchange

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if isinstance(error, ProviderError):
            error.sent = True if error.sent is None else error.sent
            self._provider.redact(error)
        elif isinstance(error, FOREIGN):
            exchange = self._exchange
            raise mapped(error, sent=exchange.sent, received=exchange.received) from error
        elif isinstance(error, NONSENSE):
            raise having(ProviderUnavailable(UNREADABLE), sent=True, cause=UNREADABLE) from error
        elif isinstance(error, MemoryError | RuntimeError):
            raise provider_failed(self._provider.name, error) from error


def mapped(error: BaseException, *, sent: bool = True, received: bool = False) -> InferMuxError:
    """Return our error for a library's exception, without its message.

    It says whether a request may have been *sent*, and whether bytes of an answer were *received*.

    The exception loses its frames: names of theirs refer to it, and the cycle would keep a request.
    """
    for each in _chain(error):
        each.__traceback__ = None
    if is_shortage(error):
        return Overloaded(OUT_OF_RESOURCES)
    failed = _mapped(error, received=received)
    failed.sent = sent
    failed.cause = _cause(error)
    return failed


_CAUSES = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection closed",
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "network unreachable",
    errno.ETIMEDOUT: "connection timed out",
}


def _cause(error: object) -> str:
    """Return what the system says went wrong, in words of ours, or ""."""
    for each in _chain(error):
        if isinstance(each, socket.gaierror | urllib3.exceptions.NameResolutionError):
            return "host name not found"
        if isinstance(each, ssl.SSLCertVerificationError):
            return "certificate not trusted"
        if isinstance(each, OSError) and each.errno in _CAUSES:
            return _CAUSES[each.errno]
    return ""


def _chain(error: object) -> Iterator[BaseException]:
    for _ in range(6):
        if not isinstance(error, BaseException):
            return
        yield error
        inner = getattr(error, "reason", None)
        first = error.args[0] if error.args else None
        wrapped = (inner, first, error.__cause__, error.__context__)
        error = next((each for each in wrapped if isinstance(each, BaseException)), None)


def _mapped(error: BaseException, *, received: bool) -> ProviderError:
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # for urllib3 a timeout
    if isinstance(error, _TIMEOUTS) and not refused:
        return ProviderTimeout("the provider did not answer in time")
    if isinstance(error, _TLS) and not received:
        failed = ProviderUnavailable("no trusted connection to the provider")
        failed.retryable = False  # a retry would meet the same certificate
        return failed
    if refused or isinstance(error, requests.exceptions.ConnectionError):
        return ProviderUnavailable("no connection to the provider")
    return ProviderUnavailable("the connection to the provider broke")


def no_descriptor() -> OSError | None:
    """Return the error if no descriptor is free, which a look-up reports as an unknown name."""
    try:
        socket.socket().close()
    except OSError as error:
        return error
    return None
