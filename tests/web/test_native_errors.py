"""Vendor errors for clients of the same format: the vendor's own text, without secrets."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from doors import Front, Vendor, reply, sse, stream

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
PATHS = {"openai": CHAT, "anthropic": MESSAGES}
BODY = {"max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
_number = itertools.count()
KEY = "sk-test-vendor-key"
LIMITS = {
    "openai": {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_tokens": "6m0s"},
    "anthropic": {"anthropic_ratelimit_requests_remaining": "0"},
}


def said(dialect: str, kind: str, **members: Any) -> dict[str, Any]:
    """Return a vendor's error in the form of its format."""
    error = {"type": kind, "message": "the vendor's words", **members}
    if dialect == "anthropic":
        return {"type": "error", "error": error, "request_id": "req_vendor"}
    return {"error": {"param": None, "code": None} | error}


@pytest.fixture(scope="module")
def vendors():
    with Vendor("openai") as one, Vendor("anthropic") as two:
        yield {"openai": one, "anthropic": two}


@pytest.fixture(scope="module")
def front(vendors):
    with Front(vendors["openai"].provider(), vendors["anthropic"].provider()) as running:
        yield running


def ask(front: Any, client: str, vendor: str, **more: Any) -> Any:
    return front.ask(PATHS[client], BODY | {"model": fresh(vendor)} | more)


def fresh(vendor: str) -> str:
    """Return a model that no test has asked for: it has a circuit and cool-downs of its own."""
    return f"{vendor}/m-{next(_number)}"


# what a vendor answers, the status at its own format's door, at the other's, whose message
ANSWERS = [
    ("openai", 400, "invalid_request_error", 400, 400, True),
    ("openai", 404, "invalid_request_error", 404, 404, True),
    ("openai", 409, "conflict_error", 409, 502, False),
    ("openai", 422, "invalid_request_error", 422, 400, True),
    ("openai", 429, "tokens", 429, 429, False),
    ("openai", 500, "server_error", 502, 502, False),
    ("openai", 503, "service_unavailable", 503, 502, False),
    ("openai", 504, "timeout", 504, 504, False),
    ("anthropic", 400, "invalid_request_error", 400, 400, True),
    ("anthropic", 404, "not_found_error", 404, 404, True),
    ("anthropic", 409, "conflict_error", 409, 502, False),
    ("anthropic", 413, "request_too_large", 413, 413, True),
    ("anthropic", 429, "rate_limit_error", 429, 429, False),
    ("anthropic", 500, "api_error", 502, 502, False),
    ("anthropic", 504, "timeout_error", 504, 504, False),
    ("anthropic", 529, "overloaded_error", 529, 502, False),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("vendor", "status", "kind", "own", "other", "words"), ANSWERS)
def test_an_error_passes_where_both_speak_one_format(
    front, vendors, vendor, status, kind, own, other, words, streamed
):
    details = {"details": {"reason": "busy", "limit": 7}}
    body = said(vendor, kind, code="the_code", param="the.param", **details)
    ident = {"x_request_id" if vendor == "openai" else "request_id": "req_vendor"}
    vendors[vendor].script(reply(body, status, **ident, **LIMITS[vendor]))
    answer = ask(front, vendor, vendor, stream=streamed)
    assert answer.status == own
    error = answer.json["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, "the_code", "the.param")
    assert error["details"] == details["details"]
    assert ("the vendor's words" in error["message"]) == words
    assert answer.headers["Request-Id"] == "req_vendor" != answer.headers["X-Request-Id"]
    if vendor == "anthropic":
        assert answer.json["type"] == "error" and answer.json["request_id"] == "req_vendor"
    for name, value in LIMITS[vendor].items():
        assert answer.headers[name.replace("_", "-")] == value
    assert own not in (429, 503) or int(answer.headers["Retry-After"]) >= 1
    client = "anthropic" if vendor == "openai" else "openai"
    answer = ask(front, client, vendor, stream=streamed)
    assert answer.status == other
    assert "details" not in answer.json["error"]
    found = [name for name, value in answer.headers.items() if value == "req_vendor"]
    assert found == ["X-Upstream-Request-Id"]  # it is not the answer's own id
    assert not [name for name in answer.headers if "ratelimit" in name.lower()]


@pytest.mark.parametrize("status", [401, 402, 403])
@pytest.mark.parametrize("vendor", PATHS)
def test_what_is_wrong_with_our_own_account_is_not_passed_on(front, vendors, vendor, status):
    kinds = {401: "authentication_error", 402: "billing_error", 403: "permission_error"}
    body = said(vendor, kinds[status], code="invalid_api_key", details={"organization": "org-1"})
    vendors[vendor].script(reply(body, status, request_id="req_vendor", **LIMITS[vendor]))
    answer = ask(front, vendor, vendor)
    assert answer.status == (429 if status == 402 else 502)
    text = answer.data.decode() + str(answer.headers)
    for word in (kinds[status], "invalid_api_key", "org-1", "req_vendor", "ratelimit", "words"):
        assert word not in text


@pytest.mark.parametrize("status", [400, 429, 500, 529])
@pytest.mark.parametrize("vendor", PATHS)
def test_keys_addresses_and_size_are_kept_in(front, vendors, vendor, status):
    server = vendors[vendor]
    hidden = f"{KEY} at {server.url}/v1 and https://internal.example/x Bearer abcdefghijk"
    details: Any = [hidden, {hidden: hidden, "deep": [[[[[[[hidden]]]]]]]}, "x" * 50_000]
    body = said(vendor, f"odd {hidden}", code=hidden, param=hidden, details=details)
    server.script(
        reply(body, status, x_ratelimit_reset="é" * 10, request_id=f"req {KEY}", set_cookie="a=b")
    )
    answer = ask(front, vendor, vendor)
    assert len(answer.data) < 4096 and "error" in answer.json
    text = answer.data.decode() + str(answer.headers)
    for secret in (KEY, str(server.port), "127.0.0.1", "internal.example", "abcdefghijk", "a=b"):
        assert secret not in text


@pytest.mark.parametrize(
    "error",
    [
        {"type": None, "message": "x"},
        {"type": 7, "code": {}, "message": ["x"]},
        {"type": "t", "details": float("1e308"), "message": {}},
        {"type": "t", "code": 10**30, "param": [[]]},
        "words",
        [1],
        {},
    ],
    ids=repr,
)
@pytest.mark.parametrize("status", [400, 429, 500])
@pytest.mark.parametrize("vendor", PATHS)
def test_an_odd_error_is_an_error_all_the_same(front, vendors, vendor, status, error):
    vendors[vendor].script(reply({"error": error}, status, retry_after_ms="20"))
    answer = ask(front, vendor, vendor)
    assert answer.status == {500: 502}.get(status, status)
    assert isinstance(answer.json["error"]["message"], str) and len(answer.data) < 4096
    assert answer.headers.get("retry-after-ms") in (None, "20")


def test_an_error_in_a_stream_has_its_own_kind(front, vendors):
    begun = (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","model":"c"}}\n\n'
    )
    block = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": "a"},
    }
    failed = said("anthropic", "overloaded_error", details={"reason": "busy"})
    events = [
        begun,
        b"event: content_block_start\ndata: " + json.dumps(block).encode() + b"\n\n",
        b"event: error\ndata: " + json.dumps(failed).encode() + b"\n\n",
    ]
    vendors["anthropic"].script(stream(*events))
    answer = ask(front, "anthropic", "anthropic", stream=True)
    assert answer.status == 200
    last = json.loads(answer.data.strip().split(b"data: ")[-1])
    assert last["error"]["type"] == "overloaded_error"
    assert last["error"]["details"] == {"reason": "busy"}


def test_the_sdks_raise_what_the_vendor_meant(front, vendors):
    openai, anthropic = pytest.importorskip("openai"), pytest.importorskip("anthropic")
    body = said("anthropic", "overloaded_error")
    vendors["anthropic"].script(reply(body, 529, request_id="req_vendor"))
    url = f"http://127.0.0.1:{front.port}"
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError) as raised:
            client.messages.create(**BODY, model=fresh("anthropic"))
        assert raised.value.status_code == 529 and raised.value.request_id == "req_vendor"
        assert "Overloaded" in type(raised.value).__name__
    body = said("openai", "invalid_request_error", code="string_above_max_length", param="input")
    vendors["openai"].script(reply(body, 400))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**BODY, model=fresh("openai"))
        error = refused.value
        assert (error.code, error.param, error.type) == (
            "string_above_max_length",
            "input",
            "invalid_request_error",
        )


TOO_LONG = [
    "This model's maximum context length is 8192 tokens.",
    "the request exceeds the available context size, try increasing it",
    "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Your request exceeded model token limit: 262144",
    "Input is too long for requested model.",
    "Please reduce the length of the messages or completion.",
]


@pytest.mark.parametrize("words", TOO_LONG)
def test_agents_are_told_that_a_conversation_is_too_long_as_their_vendor_does(
    front, vendors, words
):
    """They shorten it then: Claude Code reads some words, Codex the code of a failed stream."""
    error = {"error": {"message": words, "type": "invalid_request_error", "code": None}}
    vendors["openai"].script(*[reply(error, 400)] * 4)
    told = ask(front, "anthropic", "openai")
    assert told.status == 400
    assert told.json["error"] == {
        "type": "invalid_request_error",
        "message": f"prompt is too long: {words}",
    }
    told = ask(front, "openai", "openai")
    assert (told.status, told.json["error"]["message"]) == (400, words)
    asked = {"model": fresh("openai"), "input": "hello", "stream": True}
    assert front.ask(RESPONSES, asked).status == 400
    told = front.ask(RESPONSES, asked, originator="codex_cli_rs")
    assert (told.status, told.headers["X-Infermux-Attempts"]) == (200, "1")
    events = [event.json for event in sse(told.data)]
    kinds = ["response.created", "response.in_progress", "error", "response.failed"]
    assert [event["type"] for event in events] == kinds
    assert [event["sequence_number"] for event in events] == [0, 1, 2, 3]
    assert events[-1]["response"]["error"] == {
        "code": "context_length_exceeded",
        "message": words,
    }


def test_words_that_anthropic_itself_says_stay(front, vendors):
    words = "input length and `max_tokens` exceed context limit: 1 + 2 > 2"
    error = said("anthropic", "invalid_request_error") | {}
    error["error"]["message"] = words
    vendors["anthropic"].script(reply(error, 400))
    assert ask(front, "anthropic", "anthropic").json["error"]["message"] == words
