"""The tree of errors agrees with one table, the design's: the status and code of each."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from support import ROOT

from infermux import errors
from infermux.errors import InferMuxError, ProviderError, RequestError, shown

# name: parent, status, code
TREE = {
    "ConfigError": ("InferMuxError", 500, "invalid_configuration"),
    "RequestError": ("InferMuxError", 400, "invalid_request"),
    "ProtocolError": ("RequestError", 400, "invalid_message"),
    "UnsupportedParameter": ("RequestError", 400, "unsupported_parameter"),
    "PreviousResponseNotFound": ("RequestError", 400, "previous_response_not_found"),
    "AuthenticationError": ("RequestError", 401, "invalid_api_key"),
    "BudgetExceeded": ("RequestError", 402, "budget_exceeded"),
    "ModelNotAllowed": ("RequestError", 403, "model_not_allowed"),
    "ModelNotFound": ("RequestError", 404, "model_not_found"),
    "MethodNotAllowed": ("RequestError", 405, "method_not_allowed"),
    "RequestTooLarge": ("RequestError", 413, "request_too_large"),
    "RateLimited": ("RequestError", 429, "rate_limit_exceeded"),
    "ClientGone": ("InferMuxError", 499, "client_closed"),
    "Unavailable": ("InferMuxError", 503, "unavailable"),
    "NoHealthyProvider": ("Unavailable", 503, "no_healthy_providers"),
    "Overloaded": ("Unavailable", 503, "overloaded"),
    "ProviderError": ("InferMuxError", 502, "upstream_error"),
    "ProviderTimeout": ("ProviderError", 504, "upstream_timeout"),
    "ProviderUnavailable": ("ProviderError", 502, "upstream_error"),
    "ProviderRateLimited": ("ProviderError", 429, "upstream_rate_limited"),
    "ProviderAuthError": ("ProviderError", 502, "upstream_auth"),
    "ProviderRejected": ("ProviderError", 400, "invalid_request"),
    "ContentFiltered": ("ProviderRejected", 400, "content_filter"),
    "StreamIncomplete": ("ProviderError", 502, "stream_incomplete"),
}
# name: retryable on the same target, failover to another
TRIES = {
    "ProviderTimeout": (True, True),
    "ProviderUnavailable": (True, True),
    "ProviderRateLimited": (True, True),
    "ProviderAuthError": (False, True),
    "ProviderRejected": (False, False),
    "ContentFiltered": (False, False),
    "ProviderContextTooLong": (False, False),
    "QuotaExhausted": (False, True),
    "ProviderModelNotFound": (False, True),
    "StreamIncomplete": (True, True),
}
CLASSES = {
    name: each
    for name, each in vars(errors).items()
    if inspect.isclass(each) and issubclass(each, InferMuxError)
}


def make(kind: type[InferMuxError], message: str = "x") -> InferMuxError:
    return kind(message, allow="POST") if kind is errors.MethodNotAllowed else kind(message)  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "row"), TREE.items())
def test_an_error_is_what_the_design_says(name: str, row: tuple[str, int, str]) -> None:
    parent, status, code = row
    error = make(CLASSES[name])
    assert isinstance(error, CLASSES[parent])
    assert (error.status, error.code) == (status, code)


@pytest.mark.parametrize(("name", "tries"), TRIES.items())
def test_what_may_be_tried_again_is_what_the_design_says(
    name: str, tries: tuple[bool, bool]
) -> None:
    error = make(CLASSES[name])
    assert isinstance(error, ProviderError)
    assert (error.retryable, error.failover) == tries


def test_the_drawing_at_the_head_of_the_file_is_the_tree() -> None:
    drawn = re.findall(
        r"^[│├└─ ]*([A-Z]\w+) +(\d{3}|–)(?: +(\w+))?", errors.__doc__ or "", re.MULTILINE
    )
    assert {name for name, _, _ in drawn} == set(CLASSES)
    for name, status, code in drawn:
        if status != "–":
            assert (int(status), code or CLASSES[name].code) == (
                CLASSES[name].status,
                CLASSES[name].code,
            )


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_every_error_says_what_happened_and_has_a_type(kind: type[InferMuxError]) -> None:
    error = make(kind, "what happened")
    assert error.message == str(error) == "what happened"
    assert error.type and error.code and 400 <= error.status < 600
    assert error.code in error.summary
    assert kind.__doc__


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_every_error_can_be_sent_to_another_process(kind: type[InferMuxError]) -> None:
    error = make(kind, "what happened")
    error.provider, error.retry_after = "p", 3.0
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, vars(again)) == (kind, error.args, vars(error))


def test_a_providers_failure_never_looks_like_the_callers_key() -> None:
    assert all(kind.status != 401 for kind in CLASSES.values() if issubclass(kind, ProviderError))


def test_details_are_of_one_error_only() -> None:
    error = RequestError("x", param="model", retry_after=2.5)
    assert (error.param, error.retry_after) == ("model", 2.5)
    assert (RequestError("y").param, RequestError("y").retry_after) == (None, None)
    assert RequestError.status == 400


@pytest.mark.parametrize("name", ["RateLimited", "NoHealthyProvider", "Overloaded"])
def test_who_shall_come_back_is_told_when(name: str) -> None:
    assert (make(CLASSES[name]).retry_after or 0) > 0
    assert CLASSES[name]("x", retry_after=30).retry_after == 30


@pytest.mark.parametrize("name", ["ProviderRejected", "ContentFiltered", "ProviderContextTooLong"])
def test_a_vendors_words_are_for_the_caller_and_not_for_logs(name: str) -> None:
    error = make(CLASSES[name], "you wrote: my secret")
    assert "secret" in error.message
    assert "secret" not in error.summary


def test_a_vendors_words_about_a_model_are_not_for_logs_either() -> None:
    assert "secret" not in make(CLASSES["ProviderModelNotFound"], "you wrote: my secret").summary


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("abc", "'abc'"),
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"),
        ("x" * 101, repr("x" * 100 + "…")),
        (5, "'5'"),
        ([1], "'[1]'"),
        ("", "''"),
    ],
)
def test_a_callers_value_is_shown_quoted_and_cut(value: object, text: str) -> None:
    assert shown(value) == text


def test_the_topic_has_every_error_with_its_status_and_code() -> None:
    text = (ROOT / "infermux" / "help" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\d+|–) \| `(\w+)` \| `(\w+)` \| (?:(yes|no) \| (yes|no) \|)?", text, re.M
    )
    told = {name: (status, code, retried, other) for status, code, name, retried, other in rows}
    known = {}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.InferMuxError):
            status = "–" if kind is errors.ConfigError else str(kind.status)
            flags = ("", "")
            if issubclass(kind, errors.ProviderError):
                flags = tuple("yes" if each else "no" for each in (kind.retryable, kind.failover))
            known[name] = (status, kind.code, *flags)
    assert told == known and len(rows) == len(told)
