"""The meaning of each error code for an operator, and the remedy; see `infermux help errors`."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple


class Meaning(NamedTuple):
    what: str
    remedy: str


_UNKNOWN = Meaning("Not a code of this version.", "`infermux help errors` lists the codes.")
_TEXTS = {
    "invalid_request": (
        "The request is malformed, or the model's vendor rejected it.",
        "Nothing here: the caller's own error names the place.",
    ),
    "invalid_message": (
        "The MIST message around the request is malformed.",
        "Nothing here: it is the caller's.",
    ),
    "unsupported_parameter": (
        "The model's API cannot express a parameter of the request.",
        "Add a target that can, or have the caller leave it out.",
    ),
    "previous_response_not_found": (
        "A conversation refers to a response that no provider gave this caller.",
        "Have the caller send the items of the conversation.",
    ),
    "invalid_api_key": ("The caller's API key is missing or unknown.", "Compare it with [keys]."),
    "refused_by_hook": (
        "A function of [hooks] refused the request or its answer.",
        "Its message says why.",
    ),
    "hook_failed": (
        "A function of [hooks] failed or was late, and no call may pass without it.",
        "See the log; [hooks] timeout and on_error say what happens then.",
    ),
    "budget_exceeded": (
        "The key's budget is spent, or too small for the call.",
        "Raise the budget, or wait until it resets: see Budgets.",
    ),
    "unpriced_model": (
        "The key has a budget, and the model has no known price.",
        "Set a price: `infermux help money`.",
    ),
    "model_not_allowed": ("The key may not use this model.", "Add it to the key's models."),
    "forbidden": (
        "An operators' endpoint was asked with a caller's key.",
        "Use the admin key there.",
    ),
    "model_not_found": (
        "No provider serves the model, or the vendor does not know it.",
        "Correct the name, or add the model to a provider.",
    ),
    "not_found": ("There is no such endpoint.", "Correct the client's base URL."),
    "conflict": (
        "What is to be created exists, or is configured elsewhere.",
        "The error names it.",
    ),
    "method_not_allowed": ("The endpoint has no such method.", "Correct the client."),
    "request_too_large": (
        "The body is longer than allowed.",
        "Raise [server] max_body, or send less.",
    ),
    "unsupported_encoding": ("The body is compressed.", "Send it uncompressed."),
    "rate_limit_exceeded": (
        "The key sends more than its limits per minute.",
        "Raise the key's rpm or tpm.",
    ),
    "client_closed": (
        "The client hung up before the answer came.",
        "If there are many, clients may time out sooner than the models answer.",
    ),
    "unavailable": ("The service could not serve the call.", "See the log."),
    "ledger_unavailable": (
        "The ledger cannot be read or written.",
        "See the log: the disk may be full.",
    ),
    "no_healthy_providers": (
        "Every target of the model is out of service.",
        "See Targets; add a target at another provider.",
    ),
    "overloaded": (
        "The service, or a provider's concurrency limit, is full.",
        "Raise [server] threads or the limit, or start more workers.",
    ),
    "upstream_error": (
        "The provider could not be reached, answered with a 5xx, or nonsense.",
        "If it lasts, see the vendor's status page; stop calls to spare callers the wait.",
    ),
    "upstream_timeout": (
        "The provider did not answer in time.",
        "If it lasts, raise the provider's timeout, or prefer another target.",
    ),
    "upstream_rate_limited": (
        "The vendor's rate limit is reached.",
        "Add a second target, or ask the vendor for more.",
    ),
    "upstream_quota_exhausted": ("The account at the vendor is out of credit.", "Pay it."),
    "upstream_auth": (
        "The vendor refuses this service's API key.",
        "Renew the provider's api_key.",
    ),
    "context_length_exceeded": (
        "The request is longer than the model takes.",
        "Add a larger model to the name: fallback_on tries it.",
    ),
    "content_filter": (
        "The vendor's content filter blocked the request.",
        "Nothing here; fallback_on can try another target.",
    ),
    "stream_incomplete": (
        "The provider's stream broke off.",
        "If it lasts, prefer another target.",
    ),
    "internal_error": ("A fault of InferMux itself.", "Report it with the traceback in the log."),
    "lost": (
        "The process ended during the call: its cost is assumed.",
        "Look for killed workers in the log.",
    ),
    "interrupted": ("The call was broken off before its end.", "See the log."),
}
MEANINGS = {code: Meaning(*texts) for code, texts in _TEXTS.items()}


def meaning(code: str) -> Meaning:
    """Return the meaning of *code*, also of an unknown one."""
    return MEANINGS.get(code, _UNKNOWN)


def phrase(status: int | None) -> str:
    """Return an HTTP status with its words: 503 Service Unavailable; "" for None."""
    if status is None:
        return ""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Site is overloaded" if status == 529 else str(status)
