"""The OpenAI API: bytes passed through, the fields of every response, and errors."""

import base64
import json
import struct

import pytest
import recorded
from doors import (
    MODELS,
    SERVED,
    Front,
    Turn,
    Vendor,
    anthropic_whole,
    gemini_whole,
    openai_chunk,
    openai_events,
    openai_whole,
    reply,
    says,
    sse,
    stream,
)
from flask import Flask
from support import ask

from infermux import EchoProvider, HTTPProvider, blueprint, openai_blueprint

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
ODD = (
    b'{ "messages" :\n [ {"content": "h\\u00e9llo \xc3\xa9", "role": "user", "new_member": null} ],\t"seed": 1.0e0, "n": 2,'
    b' "model" : "%s", "logit_bias": {}, "x_new_parameter": [1.50, "\\/"] }'
)


@pytest.fixture(scope="module")
def vendors():
    with Vendor("openai") as openai, Vendor("anthropic") as anthropic, Vendor("gemini") as gemini:
        yield {"openai": openai, "anthropic": anthropic, "gemini": gemini}


@pytest.fixture(scope="module")
def front(vendors):
    with Front(*(vendor.provider() for vendor in vendors.values()), EchoProvider()) as running:
        yield running


def is_error(answer, status, code, param=None):
    """Check that an answer is an error in OpenAI's shape; return its message."""
    assert answer.status == status, answer.data
    assert set(answer.json) == {"error"} and set(answer.json["error"]) >= {
        "message",
        "type",
        "param",
        "code",
    }
    assert (answer.json["error"]["code"], answer.json["error"]["param"]) == (code, param)
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json["error"]["message"]


# -- same dialect: nothing is translated -----------------------------------------------------------


def test_the_body_goes_out_and_the_answer_comes_back_byte_for_byte(front, vendors):
    answer = openai_whole(Turn("Größe")).replace(b'"id"', b'"x_new": 1.0,  "id"')
    vendor = vendors["openai"].script(reply(answer))
    sent = ODD % b"gpt-asked"
    assert front.ask(CHAT, sent).data == answer
    assert vendor.seen[0].data == sent


@pytest.mark.parametrize("model", ["openai/gpt-asked", "openai"])
def test_only_the_models_name_is_respelled(front, vendors, model):
    vendor = vendors["openai"].script(reply(openai_whole(Turn("x"))))
    front.ask(CHAT, ODD % model.encode())
    assert vendor.seen[0].data == ODD % b"gpt-asked"


def test_only_the_wish_for_usage_is_added_to_a_stream(front, vendors):
    vendor = vendors["openai"].script(says("openai", Turn("x"), streamed=True))
    sent = (ODD % b"gpt-asked")[:-1] + b', "stream": true}'
    front.ask(CHAT, sent)
    assert vendor.seen[0].data == sent[:-1].rstrip() + b',"stream_options":{"include_usage":true}}'


def test_events_come_back_as_they_were(front, vendors):
    """Events with members that nobody here knows, more than one choice, and a chunk after the one
    with usage.
    """
    events = openai_events(Turn("Größe", (("f", {"a": 1}),)))
    events[1] = (
        events[1]
        .replace(b'"choices"', b'"obfuscation":  "x1", "choices"')
        .replace(b'"delta"', b'"new": {"x": []}, "delta"')
    )
    events.insert(2, openai_chunk({"content": "other"}).replace(b'"index": 0', b'"index": 1'))
    events.insert(-1, openai_chunk(None, moderation={"flagged": False}))
    vendors["openai"].script(stream(*events))
    answer = front.ask(
        CHAT,
        HELLO | {"model": "gpt-asked", "stream": True, "stream_options": {"include_usage": True}},
    )
    recorded.compare_openai(sse(b"".join(events)), sse(answer.data), usage=True)


@pytest.mark.parametrize(
    "exchange", recorded.exchanges("openai.chat"), ids=lambda exchange: exchange["id"]
)
def test_recorded_traffic_passes_through(exchange, replayed):
    """Request bytes but for model and stream_options; answer bytes; events but for the figures of
    the last.
    """
    asked, usage = recorded.request(exchange), recorded.wants_usage(exchange)
    answer, received = replayed(exchange, CHAT, asked)
    assert recorded.unasked(received) == recorded.unasked(recorded.renamed(asked, exchange))
    if exchange["response"]["status"] >= 400:
        is_error(answer, answer.status, answer.json["error"]["code"], answer.json["error"]["param"])
        assert answer.status == recorded.STATUS.get(
            exchange["response"]["status"], exchange["response"]["status"]
        )
        own = exchange["response"]["body"].get("error", {})
        if own.get("type") and answer.status not in (401, 403, 502):
            told = {
                name: answer.json["error"][name] for name in own.keys() & {"type", "code", "param"}
            }
            assert told == {name: own[name] for name in told}
    elif not exchange["stream"]:
        assert answer.data == json.dumps(exchange["response"]["body"], ensure_ascii=False).encode()
    else:
        recorded.compare_openai(
            recorded.events(exchange),
            sse(answer.data),
            usage=usage,
            error=exchange["expected"]["error"],
        )


# -- the other operations --------------------------------------------------------------------------

OPERATIONS = {
    "/v1/embeddings": {"input": "hello"},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
}
ANSWERS = {
    "/v1/embeddings": {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}],
        "model": "e-1",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    },
    "/v1/completions": {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "i-1",
        "choices": [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6},
    },
    "/v1/responses": {
        "id": "resp_1",
        "object": "response",
        "model": "r-1",
        "status": "completed",
        "output": [
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "hi"}],
            }
        ],
        "usage": {"input_tokens": 4, "output_tokens": 2, "total_tokens": 6},
    },
}


@pytest.mark.parametrize("path", OPERATIONS)
def test_it_passes_through_to_a_vendor_that_has_it(front, vendors, path):
    answer = json.dumps(ANSWERS[path], indent=1).encode()
    vendor = vendors["openai"].script(reply(answer))
    sent = json.dumps(OPERATIONS[path] | {"model": "gpt-asked", "x_new": 1.0}, indent=1).encode()
    got = front.ask(path, sent)
    assert (got.status, got.data) == (200, answer)
    assert (vendor.seen[0].path, vendor.seen[0].data) == (path, sent)
    span = front.spans[-1]
    assert (span.attrs["tokens_in"], span.attrs["tokens_out"]) == (
        4,
        0 if "embeddings" in path else 2,
    )


@pytest.mark.parametrize("path", [path for path in OPERATIONS if path != "/v1/responses"])
@pytest.mark.parametrize("model", ["claude-asked", "gemini-asked", "echo-v1"])
def test_a_vendor_that_lacks_it_is_a_clear_400(front, vendors, path, model):
    if (path, model) == ("/v1/embeddings", "gemini-asked"):
        pytest.skip("Gemini has embeddings")
    for vendor in vendors.values():
        vendor.script(reply(b"", 500))
    message = is_error(
        front.ask(path, OPERATIONS[path] | {"model": model}), 400, "unsupported_parameter", "model"
    )
    assert path.removeprefix("/v1/") in message
    assert not any(vendor.seen for vendor in vendors.values())


def test_a_responses_stream_passes_through_with_its_own_terminator(front, vendors):
    kinds = (
        {"type": "response.created", "response": {"id": "resp_1", "model": "r-1"}},
        {"type": "response.output_text.delta", "delta": "hi"},
        {"type": "response.completed", "response": ANSWERS["/v1/responses"]},
    )
    events = [f"event: {kind['type']}\ndata: {json.dumps(kind)}\n\n".encode() for kind in kinds]
    vendor = vendors["openai"].script(stream(*events))
    answer = front.ask("/v1/responses", {"model": "gpt-asked", "input": "hello", "stream": True})
    assert answer.data == b"".join(events)
    assert "stream_options" not in vendor.seen[0].body
    assert (front.spans[-1].attrs["tokens_in"], front.spans[-1].attrs["tokens_out"]) == (4, 2)


@pytest.mark.parametrize("end", ["cut", "end"])
def test_a_responses_stream_that_breaks_says_so(front, vendors, end):
    event = {"type": "response.output_text.delta", "delta": "hi"}
    vendors["openai"].script(
        stream(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode(), end=end)
    )
    events = sse(
        front.ask("/v1/responses", {"model": "gpt-asked", "input": "hello", "stream": True}).data
    )
    assert [each.name for each in events] == ["response.output_text.delta", "error"]
    assert events[-1].json["type"] == "error" and events[-1].json["message"]


@pytest.mark.parametrize(
    "given", ["hello", ["hello"], ["hello", "there"]], ids=["text", "one", "two"]
)
@pytest.mark.parametrize("form", [None, "float", "base64"])
def test_embeddings_of_gemini(front, vendors, given, form):
    """In OpenAI's shape; base64 is what the official SDK asks for unless told otherwise."""
    vectors = [[0.5, -1.25], [3.0, 0.125]][: len(given) if isinstance(given, list) else 1]
    values = [{"values": vector} for vector in vectors]
    vendor = vendors["gemini"].script(
        reply({"embeddings": values} if isinstance(given, list) else {"embedding": values[0]})
    )
    answer = front.ask(
        "/v1/embeddings",
        {"model": "gemini-asked", "input": given} | ({"encoding_format": form} if form else {}),
    )
    found = [item["embedding"] for item in answer.json["data"]]
    if form == "base64":
        found = [
            list(struct.unpack(f"<{len(base64.b64decode(one)) // 4}f", base64.b64decode(one)))
            for one in found
        ]
    assert found == vectors and [item["index"] for item in answer.json["data"]] == list(
        range(len(vectors))
    )
    assert answer.json["object"] == "list" and answer.json["usage"].keys() == {
        "prompt_tokens",
        "total_tokens",
    }
    assert vendor.seen[0].path.endswith(
        ":batchEmbedContents" if isinstance(given, list) else ":embedContent"
    )


# -- models ----------------------------------------------------------------------------------------


def test_models_are_listed_in_order_of_registration(front):
    answer = front.ask("/v1/models")
    assert [(model["id"], model["owned_by"]) for model in answer.json["data"]] == [
        *((MODELS[name], name) for name in ("openai", "anthropic", "gemini")),
        ("echo-v1", "echo"),
    ]
    assert answer.json["object"] == "list" and all(
        model["object"] == "model" for model in answer.json["data"]
    )


@pytest.mark.parametrize("name", ["echo-v1", "openai/gpt-unlisted", "anthropic/claude-asked"])
def test_a_model_that_can_be_asked_for_is_described(front, name):
    answer = front.ask(f"/v1/models/{name}")
    assert (answer.status, answer.json["id"], answer.json["object"]) == (200, name, "model")


def test_an_unknown_model_is_404(front):
    is_error(front.ask("/v1/models/no-such-model"), 404, "model_not_found", "model")
    is_error(front.ask(CHAT, HELLO | {"model": "no-such-model"}), 404, "model_not_found", "model")


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
def test_every_answer_tells_of_its_call(front, vendors, dialect):
    whole = {"openai": openai_whole, "anthropic": anthropic_whole, "gemini": gemini_whole}[dialect]
    vendors[dialect].script(reply(whole(Turn("x"))))
    headers = front.ask(CHAT, HELLO | {"model": MODELS[dialect]}).headers
    assert headers["X-Request-Id"] == headers["Request-Id"] and len(headers["X-Request-Id"]) == 32
    expected = {
        "Provider": dialect,
        "Model": SERVED[dialect],
        "Attempts": "1",
        "Prompt-Tokens": "31",
        "Completion-Tokens": "17",
        "Cost": "unpriced",
    }
    assert {name: headers[f"X-Infermux-{name}"] for name in expected} == expected
    assert headers["X-Infermux-Latency-Ms"].isdigit() and "dur=" in headers["Server-Timing"]


def test_a_known_cost_is_exact_in_its_header(front, vendors):
    vendors["openai"].script(
        reply(openai_whole(Turn("x")).replace(SERVED["openai"].encode(), b"gpt-4o-mini-2024-07-18"))
    )
    headers = front.ask(CHAT, HELLO | {"model": "openai/gpt-4o-mini"}).headers
    assert headers["X-Infermux-Cost"] == "0.00001425"


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
def test_a_stream_tells_what_is_known_at_its_first_byte(front, vendors, dialect):
    vendors[dialect].script(says(dialect, Turn("x"), streamed=True))
    headers = front.ask(CHAT, HELLO | {"model": MODELS[dialect], "stream": True}).headers
    assert (headers["X-Infermux-Provider"], headers["X-Infermux-Attempts"]) == (dialect, "1")
    assert headers["X-Infermux-Model"] == SERVED[dialect]
    assert len(headers["X-Request-Id"]) == 32 and "X-Infermux-Cost" not in headers
    assert headers["Cache-Control"] == "no-cache" and headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b"{"),
        (CHAT, {"model": "no-such-model"} | HELLO),
        ("/v1/models", None),
        ("/v1/models/none", None),
        ("/v1/embeddings", {"model": "echo-v1"}),
    ],
)
def test_errors_and_lists_have_a_request_id_too(front, path, body):
    headers = front.ask(path, body).headers
    assert headers["X-Request-Id"] == headers["Request-Id"] and headers["X-Request-Id"]


def test_a_malformed_member_is_the_callers_mistake_and_no_failure_of_the_vendor(front, vendors):
    vendors["openai"].script(reply(openai_whole(Turn("Hello"))))
    answer = front.ask(CHAT, HELLO | {"model": "gpt-asked", "tools": ["cache_control"]})
    is_error(answer, 400, "invalid_request")
    assert not vendors["openai"].seen


def test_an_error_of_the_vendor_tells_of_its_call(front, vendors):
    vendors["openai"].script(reply({"error": {"message": "secret words"}}, 500))
    answer = front.ask(CHAT, HELLO | {"model": "gpt-asked"})
    is_error(answer, 502, "upstream_error")
    assert (answer.headers["X-Infermux-Provider"], answer.headers["X-Infermux-Attempts"]) == (
        "openai",
        "1",
    )
    assert "x-should-retry" not in answer.headers and b"secret" not in answer.data


# -- what a caller did wrong -----------------------------------------------------------------------

BAD = {
    "not json": b"{",
    "empty": b"",
    "an array": b"[]",
    "nan": b'{"model":"echo-v1","messages":[],"temperature":NaN}',
    "twice": b'{"model":"echo-v1","model":"echo-v1"}',
    "latin-1": b'{"model":"\xe9"}',
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
@pytest.mark.parametrize("path", [CHAT, *OPERATIONS])
def test_a_body_that_is_no_request(front, path, body):
    assert is_error(front.ask(path, body), 400, "invalid_request")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"stream_options": []}, "stream_options"),
        ({"messages": [5]}, "messages[0]"),
        ({"api_base": "http://elsewhere"}, "api_base"),
    ],
)
def test_what_is_odd_is_named(front, more, param):
    is_error(front.ask(CHAT, HELLO | {"model": "echo-v1"} | more), 400, "invalid_request", param)


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_a_parameter_that_the_vendor_cannot_be_told_is_named(front, vendors, dialect):
    vendor = vendors[dialect].script(reply(b"", 500))
    answer = front.ask(CHAT, HELLO | {"model": MODELS[dialect], "logit_bias": {"50256": -100}})
    assert "logit_bias" in is_error(answer, 400, "unsupported_parameter", "logit_bias")
    assert vendor.seen == []


@pytest.mark.parametrize("ident", [[1], {}, 5])
def test_an_id_of_a_call_that_is_no_text_is_named(front, vendors, ident):
    vendor = vendors["gemini"].script(reply(b"", 500))
    call = {"id": ident, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"model": MODELS["gemini"], "messages": [*HELLO["messages"], turn]}
    is_error(front.ask(CHAT, body), 400, "invalid_request", "messages[].tool_calls[].id")
    assert vendor.seen == []


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_it_is_dropped_and_told_of_if_so_configured(vendors, dialect, streamed):
    vendor = vendors[dialect].script(says(dialect, Turn("x"), streamed=streamed))
    with Front(vendor.provider(), on_unsupported="drop") as front:
        answer = front.ask(
            CHAT,
            HELLO
            | {
                "model": MODELS[dialect],
                "logit_bias": {"50256": -100},
                "prediction": {},
                "stream": streamed,
            },
        )
    assert answer.status == 200
    assert set(answer.headers["X-Infermux-Dropped"].split(", ")) == {"logit_bias", "prediction"}
    assert b"logit" not in vendor.seen[0].data and b"prediction" not in vendor.seen[0].data


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", [CHAT, *OPERATIONS])
def test_a_wrong_method_is_405_with_allow(front, path, method):
    answer = ask(front.port, path, method=method)
    assert answer.headers["Allow"] == "POST"
    is_error(answer, 405, "method_not_allowed")


def test_a_body_over_the_limit_is_413(front):
    is_error(front.ask(CHAT, b" " * (33 * 1024 * 1024)), 413, "request_too_large")


# -- mounting --------------------------------------------------------------------------------------


def test_the_door_stands_alone_under_a_prefix():
    def app(router):
        host = Flask("host")
        host.register_blueprint(openai_blueprint(router), url_prefix="/llm")
        return host

    with Front(EchoProvider(), app=app) as front:
        assert (
            front.ask("/llm/v1/chat/completions", HELLO | {"model": "echo-v1"}).json["choices"][0][
                "message"
            ]["content"]
            == "echo: hello"
        )
        assert front.ask("/llm/v1/models/echo-v1").status == 200
        assert [
            front.ask(path, {}).status
            for path in ("/v1/chat/completions", "/llm/infer", "/llm/v1/messages")
        ] == [404] * 3


def test_doors_of_one_router_live_beside_each_other():
    def app(router):
        host = Flask("host")
        host.register_blueprint(blueprint(router), url_prefix="/mist")
        host.register_blueprint(openai_blueprint(router), url_prefix="/openai")
        host.register_blueprint(openai_blueprint(router), url_prefix="/again")
        return host

    with Front(EchoProvider(), app=app) as front:
        body = HELLO | {"model": "echo-v1"}
        assert front.ask("/mist/infer", body).json["content"] == "echo: hello"
        assert [
            front.ask(f"/{prefix}/v1/chat/completions", body).status
            for prefix in ("openai", "again")
        ] == [200, 200]


def test_who_is_calling_is_the_hosts_word():
    names = []

    def app(router):
        router.observers.append(lambda call: names.append((call.caller.name, call.api)))
        host = Flask("host")
        host.register_blueprint(openai_blueprint(router, caller=lambda: "alice"))
        return host

    with Front(EchoProvider(), app=app) as front:
        front.ask(CHAT, HELLO | {"model": "echo-v1"})
    assert names == [("alice", "openai")]


# -- models in the shape that each client reads ----------------------------------------------------


@pytest.fixture(scope="module")
def priced():
    """A front with models of the price table: a name is as small as the smaller of its targets."""
    names = {"both": ["anthropic/claude-haiku-4-5", "openai/gpt-4o-mini"]}
    providers = [
        HTTPProvider(vendor, base_url="http://127.0.0.1:9", dialect=dialect, models=[model])
        for vendor, dialect, model in (
            ("anthropic", "anthropic", "claude-haiku-4-5"),
            ("openai", "openai", "gpt-4o-mini"),
            ("nobody", "openai", "unheard-of"),
        )
    ]
    with Front(*providers) as running:
        running.router.registry.define("both", names["both"])
        yield running


LIMITS = {
    "claude-haiku-4-5": (200_000, 64_000),
    "both": (128_000, 16_384),
    "unheard-of": (None, None),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_model_has_its_limits(priced, name):
    context, output = LIMITS[name]
    (found,) = (one for one in priced.ask("/v1/models").json["data"] if one["id"] == name)
    assert (found.get("context_window"), found.get("max_output_tokens")) == (context, output)
    assert priced.ask(f"/v1/models/{name}").json == found


@pytest.mark.parametrize("name", LIMITS)
def test_anthropics_client_reads_its_own_shape(priced, name):
    def ask(path):
        return priced.ask(path, anthropic_version="2023-06-01")

    listed = ask("/v1/models").json
    assert listed.keys() == {"data", "has_more", "first_id", "last_id"}
    (found,) = (one for one in listed["data"] if one["id"] == name)
    assert found == {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": LIMITS[name][0],
        "max_tokens": LIMITS[name][1],
    }
    assert ask(f"/v1/models/{name}").json == found
    missing = ask("/v1/models/none")
    assert (missing.status, missing.json["type"]) == (404, "error")
    assert missing.json["error"]["type"] == "not_found_error"


CODEX = {  # members without which Codex refuses the list
    *("slug", "display_name", "supported_reasoning_levels", "shell_type", "visibility"),
    *("supported_in_api", "priority", "base_instructions", "support_verbosity"),
    *("truncation_policy", "supports_parallel_tool_calls", "experimental_supported_tools"),
    *("supports_reasoning_summaries", "apply_patch_tool_type", "upgrade"),
}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/models?client_version=0.171.0", {}),
        ("/v1/models", {"originator": "codex_exec"}),
        ("/v1/models", {"user_agent": "codex_cli_rs/0.171.0 (Debian 12)"}),
    ],
    ids=["query", "originator", "agent"],
)
def test_codex_reads_its_own_shape(priced, path, headers):
    answer = priced.ask(path, **headers).json
    assert answer.keys() == {"models"}
    found = {one["slug"]: one for one in answer["models"]}
    assert found.keys() == {"both", "claude-haiku-4-5", "gpt-4o-mini", "unheard-of"}
    assert all(one.keys() >= CODEX and one["base_instructions"] for one in found.values())
    assert {name: found[name]["context_window"] for name in LIMITS} == {
        name: context for name, (context, _) in LIMITS.items()
    }
