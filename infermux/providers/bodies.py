"""Bodies of requests and answers: further members, limits of the output, the time to parse."""

from __future__ import annotations

from ..dialects import obj as as_object
from ..dialects.openai.requests import COMPLETION_TOKENS
from ..dialects.sizes import limited, with_uses
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


def completed(body: bytes, request: InferRequest, form: str) -> bytes:
    """Return a body with the configuration's params, and the limits that a budget can pay."""
    found = as_object(strict_json.lenient(body))
    if request.forced is not None:
        found = {**found, **request.forced.params}
    if request.most_uses is not None:
        found = with_uses(found, request.most_uses, form)
    if request.most_output is not None:
        by_new_name = COMPLETION_TOKENS.match(request.model) is not None
        found = limited(found, request.most_output, form, completion=by_new_name)
    return strict_json.encode(found)
