"""The Anthropic API: bytes passed through, the fields of every response, and errors."""

import json

import pytest
import recorded
from doors import (
    MODELS,
    SERVED,
    Front,
    Turn,
    Vendor,
    anthropic_event,
    anthropic_events,
    anthropic_start,
    anthropic_text,
    anthropic_whole,
    reply,
    says,
    sse,
    stream,
)
from flask import Flask
from support import ask

from infermux import EchoProvider, anthropic_blueprint
from infermux.admission import Admission
from infermux.admission.keys import Keyring, hashed
from infermux.admission.rate_limiter import RateLimiter
from infermux.types import Caller

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HELLO = {"max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
ODD = (
    b'{ "messages" :\n [ {"content": [{"type": "text", "text": "h\\u00e9llo \xc3\xa9", "citations": null}], "role": "user"} ],\t'
    b'"max_tokens": 50, "temperature": 1.0e0, "model" : "%s", "x_new_parameter": [1.50, "\\/"] }'
)


@pytest.fixture(scope="module")
def vendors():
    with Vendor("openai") as openai, Vendor("anthropic") as anthropic, Vendor("gemini") as gemini:
        yield {"openai": openai, "anthropic": anthropic, "gemini": gemini}


@pytest.fixture(scope="module")
def front(vendors):
    with Front(*(vendor.provider() for vendor in vendors.values()), EchoProvider()) as running:
        yield running


def is_error(answer, status, kind):
    """Check that an answer is an error in Anthropic's shape; return its message."""
    assert answer.status == status, answer.data
    assert answer.json["type"] == "error" and set(answer.json["error"]) == {"type", "message"}
    assert answer.json["error"]["type"] == kind
    assert answer.headers["Content-Type"] == "application/json" and answer.headers["Request-Id"]
    return answer.json["error"]["message"]


# -- same dialect: nothing is translated -----------------------------------------------------------


def test_the_body_goes_out_and_the_answer_comes_back_byte_for_byte(front, vendors):
    answer = anthropic_whole(Turn("Größe", thought="Hm")).replace(b'"id"', b'"x_new": 1.0,  "id"')
    vendor = vendors["anthropic"].script(reply(answer))
    sent = ODD % b"claude-asked"
    assert front.ask(MESSAGES, sent).data == answer
    assert vendor.seen[0].data == sent


@pytest.mark.parametrize("model", ["anthropic/claude-asked", "anthropic"])
def test_only_the_models_name_is_respelled(front, vendors, model):
    vendor = vendors["anthropic"].script(reply(anthropic_whole(Turn("x"))))
    front.ask(MESSAGES, ODD % model.encode())
    assert vendor.seen[0].data == ODD % b"claude-asked"


def test_a_conversation_with_signed_redacted_and_server_blocks_goes_out_as_it_came(front, vendors):
    blocks = [
        {"type": "thinking", "thinking": "Hm", "signature": "c2ln/+=="},
        {"type": "redacted_thinking", "data": "EncR/+=="},
        {
            "type": "server_tool_use",
            "id": "srvtoolu_1",
            "name": "web_search",
            "input": {"query": "x"},
        },
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "text", "text": "So", "citations": [{"type": "char_location", "cited_text": "x"}]},
    ]
    vendor = vendors["anthropic"].script(reply(anthropic_whole(Turn("x"))))
    sent = json.dumps(
        HELLO
        | {
            "model": "claude-asked",
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": blocks},
                {"role": "user", "content": "!"},
            ],
        },
        indent=2,
    ).encode()
    assert front.ask(MESSAGES, sent).status == 200
    assert vendor.seen[0].data == sent


def test_headers_of_the_protocol_go_along_and_nothing_else(front, vendors):
    vendor = vendors["anthropic"].script(reply(anthropic_whole(Turn("x"))))
    front.ask(
        MESSAGES,
        HELLO | {"model": "claude-asked"},
        anthropic_version="2031-01-01",
        anthropic_beta="one-1,two-2",
        x_api_key="the callers own",
        authorization="Bearer callers",
        x_stainless_lang="python",
        cookie="a=b",
    )
    headers = vendor.seen[0].headers
    assert (headers["anthropic-version"], headers["anthropic-beta"]) == (
        "2031-01-01",
        "one-1,two-2",
    )
    assert headers["x-api-key"] == "sk-test-vendor-key"
    assert not {"authorization", "x-stainless-lang", "cookie"} & set(headers)


def test_another_dialect_gets_none_of_them(front, vendors):
    vendor = vendors["openai"].script(says("openai", Turn("x"), streamed=False))
    front.ask(
        MESSAGES,
        HELLO | {"model": "gpt-asked"},
        anthropic_version="2023-06-01",
        anthropic_beta="one-1",
    )
    assert not [name for name in vendor.seen[0].headers if name.startswith("anthropic")]


def test_events_come_back_as_they_were(front, vendors):
    """Runs of spaces, pings, blocks and deltas that nobody here knows."""
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    events = [
        anthropic_start().replace(b'"type"', b'"type"  ', 1),
        anthropic_event("ping"),
        anthropic_event("content_block_start", index=0, content_block=search),
        anthropic_event(
            "content_block_delta",
            index=0,
            delta={"type": "input_json_delta", "partial_json": '{"q": 1}'},
        ),
        anthropic_event("content_block_stop", index=0),
        *anthropic_text(1, "Größe"),
        anthropic_event(
            "content_block_delta", index=1, delta={"type": "brand_new_delta", "x": 1.0}
        ),
        anthropic_event(
            "message_delta",
            delta={"stop_reason": "end_turn", "stop_sequence": None},
            usage={"output_tokens": 9},
        ),
        anthropic_event("message_stop"),
    ]
    events[-3], events[-4] = events[-4], events[-3]
    vendors["anthropic"].script(stream(*events))
    answer = front.ask(MESSAGES, HELLO | {"model": "claude-asked", "stream": True})
    recorded.compare_anthropic(sse(b"".join(events)), sse(answer.data))


@pytest.mark.parametrize(
    "exchange", recorded.exchanges("anthropic.messages"), ids=lambda exchange: exchange["id"]
)
def test_recorded_traffic_passes_through(exchange, replayed):
    """Request bytes but for the model; answer bytes; events but for the figures of message_stop."""
    if exchange["provider"] != "anthropic":
        pytest.skip("recorded at another address, without a model in the body")
    asked = recorded.request(exchange)
    answer, received = replayed(exchange, MESSAGES, asked)
    status = exchange["response"]["status"]
    if received is None:  # refused by the door itself, as by the vendor
        assert answer.status == status == 400
        return
    assert received == recorded.renamed(asked, exchange)
    if status >= 400:
        assert (
            answer.status == recorded.STATUS.get(status, status) and answer.json["type"] == "error"
        )
    elif not exchange["stream"]:
        assert answer.data == json.dumps(exchange["response"]["body"], ensure_ascii=False).encode()
    else:
        recorded.compare_anthropic(recorded.events(exchange), sse(answer.data))


# -- counting tokens -------------------------------------------------------------------------------


def test_counting_is_forwarded_to_an_anthropic_target(front, vendors):
    vendor = vendors["anthropic"].script(reply(b'{"input_tokens":  2095}'))
    sent = b'{"messages": [{"role": "user",  "content": "hello"}], "model": "claude-asked"}'
    answer = front.ask(COUNT, sent, anthropic_beta="token-counting-2024-11-01")
    assert (answer.status, answer.data) == (200, b'{"input_tokens":  2095}')
    assert (vendor.seen[0].path, vendor.seen[0].data) == (COUNT, sent)
    assert vendor.seen[0].headers["anthropic-beta"] == "token-counting-2024-11-01"


@pytest.mark.parametrize("model", ["gpt-asked", "echo-v1"])
def test_counting_is_estimated_and_marked_elsewhere(front, vendors, model):
    vendor = vendors["openai"].script(reply(b"", 500))
    short, long = (
        front.ask(
            COUNT, {"model": model, "messages": [{"role": "user", "content": "hello " * times}]}
        )
        for times in (1, 100)
    )
    assert short.json["infermux"]["estimated"] is True and vendor.seen == []
    assert (
        0 < short.json["input_tokens"] < long.json["input_tokens"]
        and 50 < long.json["input_tokens"] < 250
    )
    assert short.headers["Request-Id"] == short.headers["X-Request-Id"]


def test_an_estimate_that_is_refused_ends_as_any_call(tmp_path):
    """Its slot is free again, or the service would be full after a few."""
    limits = Admission(calls=2, rates=RateLimiter(tmp_path / "rates"))
    callers = Caller("ann", rpm=1), Caller("bob")
    keys = Keyring([(hashed(caller.name), caller) for caller in callers])
    asked = {"model": "echo-v1", "messages": HELLO["messages"]}
    with Front(EchoProvider(), keyring=keys, admission=limits) as front:
        found = [front.ask(COUNT, asked, x_api_key="ann").status for _ in range(5)]
        found.append(front.ask(COUNT, asked | {"model": "unknown"}, x_api_key="bob").status)
        found.append(front.ask(MESSAGES, asked | HELLO, x_api_key="bob").status)
    assert found == [200, 429, 429, 429, 429, 404, 200]
    assert [span.status for span in front.spans] == ["ok", *["error"] * 5, "ok"]


def test_an_estimate_counts_the_system_prompt_and_the_tools(front):
    plain = {"model": "echo-v1", "messages": HELLO["messages"]}
    tool = {
        "name": "weather",
        "description": "The weather " * 50,
        "input_schema": {"type": "object", "properties": {}},
    }
    counts = [
        front.ask(COUNT, plain | more).json["input_tokens"]
        for more in ({}, {"system": "Be brief. " * 50}, {"tools": [tool]})
    ]
    assert counts[1] > counts[0] + 50 and counts[2] > counts[0] + 50


def test_counting_without_max_tokens_is_well_formed_and_errors_are_ours(front, vendors):
    vendors["anthropic"].script(
        reply(
            {"type": "error", "error": {"type": "overloaded_error", "message": "secret words"}}, 529
        )
    )
    answer = front.ask(COUNT, {"model": "claude-asked", "messages": HELLO["messages"]})
    assert answer.status == 529 and b"secret" not in answer.data
    is_error(
        front.ask(COUNT, {"model": "no-such-model", "messages": HELLO["messages"]}),
        404,
        "not_found_error",
    )


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_every_answer_tells_of_its_call(front, vendors, dialect, streamed):
    vendors[dialect].script(says(dialect, Turn("x"), streamed=streamed))
    headers = front.ask(MESSAGES, HELLO | {"model": MODELS[dialect], "stream": streamed}).headers
    assert headers["X-Request-Id"] == headers["Request-Id"] and len(headers["Request-Id"]) == 32
    found = [headers[f"X-Infermux-{name}"] for name in ("Provider", "Model", "Attempts")]
    assert found == [dialect, SERVED[dialect], "1"]
    assert headers["X-Infermux-Latency-Ms"].isdigit() and "dur=" in headers["Server-Timing"]
    assert headers["X-Infermux-Prompt-Tokens"] == (None if streamed else "31")


def test_ids_are_anthropics_own(front, vendors):
    for dialect in vendors:
        vendors[dialect].script(says(dialect, Turn("x"), streamed=False))
        assert front.ask(MESSAGES, HELLO | {"model": MODELS[dialect]}).json["id"].startswith("msg_")


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "seen", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 502, "api_error"),
        (403, 502, "api_error"),
        (404, 404, "not_found_error"),
        (413, 413, "request_too_large"),
        (422, 400, "invalid_request_error"),
        (429, 429, "rate_limit_error"),
        (500, 502, "api_error"),
        (503, 502, "api_error"),
        (504, 504, "timeout_error"),
        (529, 502, "api_error"),
    ],
)
@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
def test_a_vendors_error_in_anthropics_words(front, vendors, dialect, status, seen, kind):
    vendors[dialect].script(reply({"error": {"message": "some words"}}, status))
    answer = front.ask(MESSAGES, HELLO | {"model": MODELS[dialect]})
    message = is_error(answer, seen, kind)
    assert ("some words" in message) == (seen in (400, 404, 413)), (
        "only what the caller can mend keeps the vendor's words"
    )
    assert "x-should-retry" not in answer.headers


BAD = {
    "not json": b"{",
    "empty": b"",
    "an array": b"[]",
    "twice": b'{"model":"echo-v1","model":"echo-v1"}',
    "latin-1": b'{"model":"\xe9"}',
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
@pytest.mark.parametrize("path", [MESSAGES, COUNT])
def test_a_body_that_is_no_request(front, path, body):
    assert is_error(front.ask(path, body), 400, "invalid_request_error")


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [5]}, "messages"),
        ({"system": 5}, "system"),
        ({"tools": [5]}, "tools"),
        ({"tool_choice": {"type": "odd"}}, "tool_choice"),
        ({"stop_sequences": "x"}, "stop_sequences"),
    ],
)
def test_what_is_odd_is_named(front, more, word):
    assert word in is_error(
        front.ask(MESSAGES, HELLO | {"model": "echo-v1"} | more), 400, "invalid_request_error"
    )


def test_a_parameter_that_the_vendor_cannot_be_told_is_named(front, vendors):
    vendor = vendors["openai"].script(reply(b"", 500))
    answer = front.ask(MESSAGES, HELLO | {"model": "gpt-asked", "top_k": 3})
    assert "top_k" in is_error(answer, 400, "invalid_request_error") and vendor.seen == []


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_it_is_dropped_and_told_of_if_so_configured(vendors, streamed):
    vendor = vendors["openai"].script(says("openai", Turn("x"), streamed=streamed))
    with Front(vendor.provider(), on_unsupported="drop") as front:
        answer = front.ask(MESSAGES, HELLO | {"model": "gpt-asked", "top_k": 3, "stream": streamed})
    assert (answer.status, answer.headers["X-Infermux-Dropped"]) == (200, "top_k")
    assert "top_k" not in vendor.seen[0].body


@pytest.mark.parametrize("path", [MESSAGES, COUNT])
def test_a_wrong_method_is_405_with_allow(front, path):
    answer = ask(front.port, path, method="DELETE")
    assert answer.headers["Allow"] == "POST"
    is_error(answer, 405, "invalid_request_error")


# -- models and mounting ---------------------------------------------------------------------------


def test_the_list_of_models_has_what_anthropics_client_reads(front):
    answer = front.ask("/v1/models").json
    assert answer["has_more"] is False and (answer["first_id"], answer["last_id"]) == (
        "gpt-asked",
        "echo-v1",
    )
    assert all(
        model["type"] == "model" and model["display_name"] and model["created_at"]
        for model in answer["data"]
    )


def test_the_door_stands_alone_under_a_prefix():
    def app(router):
        host = Flask("host")
        host.register_blueprint(anthropic_blueprint(router), url_prefix="/claude")
        return host

    with Front(EchoProvider(), app=app) as front:
        assert front.ask("/claude/v1/messages", HELLO | {"model": "echo-v1"}).json["content"] == [
            {"type": "text", "text": "echo: hello"}
        ]
        assert front.ask("/claude/v1/models/echo-v1").status == 200
        is_error(front.ask("/claude/v1/models/none"), 404, "not_found_error")
        assert front.ask("/v1/messages", HELLO | {"model": "echo-v1"}).status == 404


def test_a_whole_stream_of_its_own_dialect_is_untouched_but_for_its_last_event(front, vendors):
    events = anthropic_events(Turn("Größe", (("f", {"a": [1.50]}),), "Hm"))
    vendors["anthropic"].script(stream(*events))
    answer = front.ask(MESSAGES, HELLO | {"model": "claude-asked", "stream": True})
    assert answer.data.startswith(b"".join(events[:-1]))


# -- what only a conversation at the vendor could do, and paths that are not there -----------------


@pytest.mark.parametrize("thread", [{"create": {}}, {"continue": {"id": "t"}}], ids=["new", "old"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("model", ["gpt-asked", "gemini-asked"])
def test_a_thread_is_refused_so_that_the_sdk_sends_the_conversation(
    front, vendors, model, streamed, thread
):
    for vendor in vendors.values():
        vendor.script(reply(b"", 500))
    answer = front.ask(MESSAGES, HELLO | {"model": model, "thread": thread, "stream": streamed})
    assert (answer.status, answer.json["type"]) == (400, "error")
    assert answer.json["error"]["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["model"],
    }
    assert not any(vendor.seen for vendor in vendors.values())


def test_a_thread_goes_to_anthropic_as_it_came(front, vendors):
    vendor = vendors["anthropic"].script(reply(anthropic_whole(Turn("x"))))
    asked = HELLO | {"model": "claude-asked", "thread": {"create": {}}}
    assert front.ask(MESSAGES, asked).status == 200
    assert vendor.seen[0].body == asked


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/v1/messages/x/y", "/v1/messages/"])
@pytest.mark.parametrize("body", [None, {}], ids=["GET", "POST"])
def test_an_unknown_path_is_404_in_anthropics_shape(front, path, body):
    is_error(front.ask(path, body), 404, "not_found_error")
