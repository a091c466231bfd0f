"""Bodies of requests and answers: further members, a limit of the output, the time to parse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..dialects import obj as as_object
from ..dialects.openai.requests import COMPLETION_TOKENS
from ..dialects.sizes import limited
from ..errors import ProviderTimeout, ProviderUnavailable
from ..protocol import InferRequest, strict_json
from .transport import Exchange

LARGE = 65536  # bytes; parsing more may take noticeable time
MAX_NESTED = 1_000_000  # lists and objects of one answer


def check_size(data: bytes, exchange: Exchange) -> None:
    """Raise unless *data* can be parsed in the time that is left: no parser can be stopped."""
    if len(data) < LARGE:
        return
    nested = data.count(b"[") + data.count(b"{")
    if nested > MAX_NESTED:
        raise ProviderUnavailable("the provider's answer holds too many values")
    seconds = 1e-6 * nested + 2e-7 * data.count(b",") + 3e-9 * len(data)
    if seconds > exchange.deadline.remaining():
        raise ProviderTimeout("the provider's answer came too late to be read")


def with_members(body: bytes, members: Mapping[str, Any]) -> bytes:
    """Return a body with further members."""
    return strict_json.encode(as_object(strict_json.lenient(body)) | dict(members))


def with_limit(body: bytes, request: InferRequest) -> bytes:
    """Return a body with the request's own limit of the output."""
    by_new_name = COMPLETION_TOKENS.match(request.model) is not None
    found, most = as_object(strict_json.lenient(body)), request.most_output or 0
    return strict_json.encode(limited(found, most, completion=by_new_name))
