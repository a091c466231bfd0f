"""Our errors for the exceptions of the HTTP libraries."""

from __future__ import annotations

import http.client
import ssl

import requests
import urllib3.exceptions

from ..errors import (
    InferMuxError,
    Overloaded,
    ProviderTimeout,
    ProviderUnavailable,
    is_own_want,
)
from .base import OUT_OF_RESOURCES

FOREIGN = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    urllib3.exceptions.ProxySchemeUnsupported,
)
NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_TIMEOUTS = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
_TLS = (requests.exceptions.SSLError, urllib3.exceptions.SSLError, ssl.SSLError)


def mapped(error: BaseException) -> InferMuxError:
    """Return our error for a library's exception, without its message."""
    if is_own_want(error):
        return Overloaded(OUT_OF_RESOURCES)
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # for urllib3 a timeout
    if isinstance(error, _TIMEOUTS) and not refused:
        return ProviderTimeout("the provider did not answer in time")
    if isinstance(error, _TLS):
        failed = ProviderUnavailable("no trusted connection to the provider")
        failed.retryable = False  # a retry would meet the same certificate
        return failed
    if refused or isinstance(error, requests.exceptions.ConnectionError):
        return ProviderUnavailable("no connection to the provider")
    return ProviderUnavailable("the connection to the provider broke")
