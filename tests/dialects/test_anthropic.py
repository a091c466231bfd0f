"""Tests of Anthropic's Messages format in both directions: recorded traffic, own examples, round
trips, hostile input.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infermux import errors
from infermux.dialects.anthropic import downstream
from infermux.dialects.anthropic import upstream as wire
from infermux.dialects.anthropic.models import version_of
from infermux.dialects.anthropic.stream import Encoder
from infermux.dialects.blocks import whole
from infermux.dialects.parameters import Kind, kinds
from infermux.errors import (
    InferMuxError,
    ProviderError,
    RequestError,
    StreamIncomplete,
    UnsupportedParameter,
)
from infermux.planning.call import StreamAccumulator
from infermux.protocol import InferRequest, InferResponse, Native, sse, strict_json
from infermux.types import HEARTBEAT, JSON, Chunk, Usage

OWN = Path(__file__).parents[1] / "data" / "wire" / "anthropic"
SHARED = Path(__file__).parents[3] / "shared" / "wire"
SPLITS = ("byte", "mid-line", "mid-utf8", "crlf", "random", "event")
NONSENSE = (ValueError, TypeError, KeyError, AttributeError, ProviderError)
ODD: tuple[Any, ...] = (None, [], {}, "x", -1, True, [1], {"type": 5}, 1e300)
HELLO = [{"role": "user", "content": "Hello"}]


def _load(folder: Path) -> list[Any]:
    found = (json.loads(file.read_text()) for file in sorted(folder.glob("*.json")))
    return [
        pytest.param(one, id=one["id"])
        for one in found
        if one["api"] in ("anthropic.messages", "anthropic.count_tokens")
    ]


EXCHANGES = _load(OWN) + (_load(SHARED / "exchanges") if SHARED.exists() else [])
STREAMS = [param for param in EXCHANGES if param.values[0]["stream"]]


def asked(exchange: JSON) -> InferRequest:
    body = exchange["request"]["body"]
    return InferRequest(
        model=body.get("model", "asked"),
        provider="anthropic",
        messages=body["messages"],
        op="count_tokens" if exchange["api"].endswith("count_tokens") else "chat",
    )


def events_of(data: bytes) -> list[sse.Event]:
    parser = sse.Parser()
    return parser.feed(data) + parser.end()


def folded(events: Any, request: InferRequest) -> tuple[InferResponse, ProviderError | None]:
    fold, failure = StreamAccumulator(), None
    try:
        for chunk in wire.decode_events(events, request):
            fold.add(chunk)
    except ProviderError as error:
        failure = error
    return fold.response("anthropic", request.model), failure


def check(got: InferResponse, expected: JSON) -> None:
    assert (got.content, got.reasoning, got.refusal) == (
        expected["text"],
        expected["reasoning_text"],
        "",
    )
    assert [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in got.tool_calls
    ] == [(call["id"], call["name"], call["arguments"]) for call in expected["tool_calls"]]
    if expected["error"]:
        return
    usage = expected["usage"]
    assert got.usage is not None
    assert (
        got.usage.input_tokens,
        got.usage.output_tokens,
        got.usage.cached_input_tokens,
        got.usage.cache_write_tokens,
        got.usage.reasoning_tokens,
    ) == tuple(
        usage[name]
        for name in (
            "all_input_tokens",
            "all_output_tokens",
            "cached_input_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
        )
    )
    assert (got.tokens_in, got.tokens_out) == (
        usage["all_input_tokens"],
        usage["all_output_tokens"],
    )
    assert got.finish_reason == wire.FINISH[expected["finish_reason_raw"]]
    assert (got.model, got.id) == (expected["model"], expected["id"])


# -- the vendor's answers --------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_an_answer_reads_as_expected(exchange: JSON) -> None:
    response, expected, request = exchange["response"], exchange["expected"], asked(exchange)
    data = (
        response["body"].encode() if exchange["stream"] else json.dumps(response["body"]).encode()
    )
    if response["status"] >= 400:
        error = wire.decode_error(response["status"], response["headers"], data)
        kinds = {
            400: errors.ProviderRejected,
            401: errors.ProviderAuthError,
            404: errors.ProviderModelNotFound,
        }
        said = expected["error"].get("class")
        assert (
            type(error).__name__ == said if said else isinstance(error, kinds[response["status"]])
        )
        assert error.retry_after == expected["error"].get("retry_after")
        if isinstance(error, errors.ProviderRejected):
            assert error.message == expected["error"]["message"]
    elif exchange["stream"]:
        got, failure = folded(events_of(data), request)
        check(got, expected)
        assert (type(failure).__name__ if failure else None) == (expected["error"] or {}).get(
            "class"
        )
    elif request.op == "count_tokens":
        got = wire.decode_response(data, request)
        assert got.tokens_in == got.extra["input_tokens"] == expected["input_tokens"]
    else:
        got = wire.decode_response(data, request)
        check(got, expected)
        assert got.native == ("anthropic", data)


@pytest.mark.skipif(
    not SHARED.exists(), reason="the recorded exchanges are not part of the repository"
)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("exchange", STREAMS)
def test_a_stream_reads_the_same_however_it_is_cut(exchange: JSON, split: str) -> None:
    spec = importlib.util.spec_from_file_location("replay", SHARED / "replay.py")
    assert spec and spec.loader
    replay = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(replay)
    parser, events = sse.Parser(), []
    for piece in replay.pieces(exchange["response"]["body"].encode(), split, random.Random(0)):
        events += parser.feed(piece)
    check(folded(events + parser.end(), asked(exchange))[0], exchange["expected"])


@pytest.mark.parametrize("name", ["text", "tools", "thinking", "server_tool"])
def test_a_stream_folds_to_what_the_whole_answer_is(name: str) -> None:
    whole, stream = (
        json.loads((OWN / f"{file}.json").read_text()) for file in (name, f"{name}_stream")
    )
    answer = wire.decode_response(json.dumps(whole["response"]["body"]).encode(), asked(whole))
    got, _ = folded(events_of(stream["response"]["body"].encode()), asked(stream))
    for field in ("content", "reasoning", "refusal", "finish_reason", "model", "id", "details"):
        assert getattr(got, field) == getattr(answer, field), field
    assert [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in got.tool_calls
    ] == [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in answer.tool_calls
    ]
    if name != "server_tool":  # there the count of input grows while it streams
        assert got.usage == answer.usage


def test_a_call_without_arguments_is_an_empty_object_either_way() -> None:
    whole, stream = (
        json.loads((OWN / f"{file}.json").read_text()) for file in ("tools", "tools_stream")
    )
    answer = wire.decode_response(json.dumps(whole["response"]["body"]).encode(), asked(whole))
    got, _ = folded(events_of(stream["response"]["body"].encode()), asked(stream))
    assert (
        answer.tool_calls[1]["function"]["arguments"]
        == got.tool_calls[1]["function"]["arguments"]
        == "{}"
    )


def test_details_carry_signatures_byte_for_byte() -> None:
    stream = json.loads((OWN / "thinking_stream.json").read_text())
    got, _ = folded(events_of(stream["response"]["body"].encode()), asked(stream))
    own = "anthropic-claude-v1"
    assert list(got.details) == [
        {
            "type": "reasoning.text",
            "text": "Let me see. ",
            "signature": "EqQBCkYI/+==",
            "format": own,
            "index": 0,
        },
        {"type": "reasoning.encrypted", "data": "EmwKAhgB+/=", "format": own, "index": 1},
        {
            "type": "reasoning.text",
            "text": "",
            "signature": "only+signed=",
            "format": own,
            "index": 2,
        },
        {
            "type": "reasoning.text",
            "text": "Right.",
            "signature": "Zz9=",
            "format": own,
            "index": 3,
        },
    ]


def test_usage_tells_what_was_cached_for_an_hour_and_how_fast() -> None:
    usage = wire.usage_of(
        {
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_creation_input_tokens": 30,
            "speed": "fast",
            "cache_creation": {"ephemeral_1h_input_tokens": 20},
            "service_tier": "standard",
        }
    )
    assert usage == Usage(31, 2, None, 30, 20, None, service_tier="fast")
    first = wire.usage_of({"input_tokens": 1, "output_tokens": 2, "service_tier": "priority"})
    assert first == Usage(1, 2, service_tier="priority")


def test_silence_and_pings_are_no_content_but_pings_pass_on() -> None:
    chunks = list(
        wire.decode_events(
            [
                None,
                *events_of(sse.Event(b'{"type":"ping"}', b"ping").encode()),
                sse.Event(b'{"type":"message_stop"}', b"message_stop"),
            ],
            InferRequest(),
        )
    )
    assert chunks[0] is HEARTBEAT
    assert chunks[1] == Chunk(native=b'event: ping\ndata: {"type":"ping"}\n\n', dialect="anthropic")
    assert chunks[2].finish_reason == "stop"


def test_an_answer_in_one_piece_serves_a_stream() -> None:
    exchange = json.loads((OWN / "tools.json").read_text())
    data = json.dumps(exchange["response"]["body"]).encode()
    fold = StreamAccumulator()
    for chunk in whole(wire.decode_response(data, asked(exchange))):
        fold.add(chunk)
    check(fold.response("anthropic", "m"), exchange["expected"])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (
            {"type": "error", "error": {"type": "rate_limit_error", "message": "m"}},
            errors.ProviderRateLimited,
        ),
        ({"type": "error", "error": {"type": "never seen"}}, errors.ProviderUnavailable),
        ({"type": "error", "error": None}, errors.ProviderUnavailable),
        ({"error": "words"}, errors.ProviderUnavailable),
    ],
)
def test_an_error_inside_a_200_is_raised(body: JSON, kind: type[ProviderError]) -> None:
    with pytest.raises(kind):
        wire.decode_response(json.dumps(body).encode(), InferRequest(model="m"))
    with pytest.raises(kind):
        list(wire.decode_events([sse.Event(json.dumps(body).encode())], InferRequest(model="m")))


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[]", b'{"error":[]}', b'{"error":{"type":[],"message":{}}}', b"null"]
)
def test_an_error_body_of_any_shape_is_an_error(data: bytes) -> None:
    assert isinstance(wire.decode_error(500, {}, data), errors.ProviderUnavailable)


@pytest.mark.parametrize(
    "data",
    [b'{"message":"no route"}', b'{"detail":"no route"}', b'{"error":"no route"}'],
)
def test_the_message_of_a_gateways_error_is_read(data: bytes) -> None:
    error = wire.decode_error(404, {}, data)
    assert isinstance(error, errors.ProviderModelNotFound)
    assert error.message == "no route"


def _hurt(value: Any) -> Iterator[Any]:
    """Yield copies of *value* in each of which one place holds something odd, or nothing."""
    yield from ODD
    places = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in list(places):
        for bad in _hurt(inner):
            copy = value.copy()
            copy[key] = bad
            yield copy
        if isinstance(value, dict):
            yield {name: item for name, item in value.items() if name != key}


@pytest.mark.parametrize("name", ["tools", "thinking", "cached", "server_tool"])
def test_a_broken_answer_is_nonsense_never_a_crash(name: str) -> None:
    body = json.loads((OWN / f"{name}.json").read_text())["response"]["body"]
    refused = 0
    for bad in _hurt(body):
        try:
            got = wire.decode_response(json.dumps(bad).encode(), InferRequest(model="m"))
        except NONSENSE:
            refused += 1
        else:
            assert (
                isinstance(got.content, str)
                and isinstance(got.finish_reason, str)
                and isinstance(got.model, str)
            )
            for call in got.tool_calls:
                assert (
                    isinstance(json.loads(call["function"]["arguments"]), dict)
                    and call["id"]
                    and call["function"]["name"]
                )
    assert refused > 30


@pytest.mark.parametrize("name", ["tools_stream", "thinking_stream"])
def test_a_broken_event_is_nonsense_never_a_crash(name: str) -> None:
    events = events_of(json.loads((OWN / f"{name}.json").read_text())["response"]["body"].encode())
    refused = 0
    for place, event in enumerate(events):
        for bad in _hurt(json.loads(event.data)):
            broken = [*events[:place], sse.Event(json.dumps(bad).encode()), *events[place + 1 :]]
            fold = StreamAccumulator()
            try:
                for chunk in wire.decode_events(broken, InferRequest(model="m")):
                    fold.add(chunk)
            except NONSENSE:
                refused += 1
            else:
                assert isinstance(fold.response("anthropic", "m").content, str)
    assert refused > 100


@pytest.mark.parametrize(
    ("field", "bad"),
    [("text", 5), ("text", None), ("name", None), ("id", ""), ("input", "{}"), ("input", None)],
)
def test_a_block_of_the_wrong_type_is_not_misread(field: str, bad: Any) -> None:
    body = json.loads((OWN / "tools.json").read_text())["response"]["body"]
    body["content"][0 if field == "text" else 1][field] = bad
    with pytest.raises(NONSENSE):
        wire.decode_response(json.dumps(body).encode(), InferRequest(model="m"))


# -- requests to the vendor ------------------------------------------------------------------------


def sent(
    messages: Any = HELLO,
    /,
    *,
    model: str = "claude-sonnet-4-5",
    op: str = "chat",
    drop: list[str] | None = None,
    lenient: bool = False,
    **params: Any,
) -> JSON:
    request = InferRequest(model=model, messages=messages, params=params, op=op)
    request = replace(request, dropped=drop, lenient=lenient)
    body: JSON = json.loads(wire.encode_request(request, stream=False))
    return body


def test_the_address_and_the_headers() -> None:
    request = InferRequest(
        model="m",
        headers={"Anthropic-Beta": "a,b", "anthropic-version": "2099-01-01", "authorization": "no"},
    )
    assert wire.path(request, stream=True) == "/messages"
    assert wire.path(replace(request, op="count_tokens"), stream=False) == "/messages/count_tokens"
    assert wire.auth("k") == {"x-api-key": "k"}
    assert wire.headers(request) == {"anthropic-version": "2023-06-01"}
    for model, beta in (("claude-opus-5-5", "thinking-binding-controls-2026-08-01"), ("m", None)):
        assert wire.headers(InferRequest(model=model)).get("anthropic-beta") == beta
    native = replace(request, native=Native("anthropic", strict_json.document("{}")))
    assert wire.headers(native) == {"anthropic-version": "2099-01-01", "anthropic-beta": "a,b"}
    for op in ("embeddings", "completions", "responses"):
        with pytest.raises(UnsupportedParameter):
            wire.path(replace(request, op=op), stream=False)


def test_a_conversation_with_tools_and_thinking() -> None:
    details = [
        {
            "type": "reasoning.text",
            "text": "hm",
            "signature": "s/+=",
            "format": "anthropic-claude-v1",
            "index": 0,
        },
        {
            "type": "reasoning.encrypted",
            "data": "d/+=",
            "format": "anthropic-claude-v1",
            "index": 1,
        },
        {"type": "reasoning.text", "text": "unsigned", "format": "anthropic-claude-v1", "index": 2},
        {
            "type": "reasoning.encrypted",
            "data": "theirs",
            "format": "openai-responses-v1",
            "index": 3,
        },
    ]
    calls = [
        {
            "id": "functions.a:0",
            "type": "function",
            "function": {"name": "a", "arguments": '{"x": 1}'},
        },
        {
            "id": "b",
            "type": "function",
            "function": {"name": "b", "arguments": ""},
            "extra_content": {"google": {}},
        },
    ]
    body = sent(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            *HELLO,
            {
                "role": "assistant",
                "content": "Wait.",
                "tool_calls": calls,
                "reasoning_details": details,
                "reasoning_content": "hm",
            },
            {"role": "tool", "tool_call_id": "functions.a:0", "content": "1"},
            {
                "role": "tool",
                "tool_call_id": "b",
                "content": [{"type": "text", "text": "2"}],
                "is_error": True,
            },
            {"role": "user", "content": "Go on."},
        ]
    )
    assert body["system"] == [
        {"type": "text", "text": "Be brief."},
        {"type": "text", "text": "Be kind."},
    ]
    assert body["messages"] == [
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s/+="},
                {"type": "redacted_thinking", "data": "d/+="},
                {"type": "text", "text": "Wait."},
                {"type": "tool_use", "id": "functions_a_0", "name": "a", "input": {"x": 1}},
                {"type": "tool_use", "id": "b", "name": "b", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "functions_a_0", "content": "1"},
                {
                    "type": "tool_result",
                    "tool_use_id": "b",
                    "content": [{"type": "text", "text": "2"}],
                    "is_error": True,
                },
            ],
        },
        {"role": "user", "content": "Go on."},
    ]


def test_pictures_and_documents() -> None:
    keep = {"cache_control": {"type": "ephemeral"}}
    body = sent(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See", **keep},
                    {"type": "text", "text": ""},
                    {
                        "type": "image_url",
                        "image_url": {"url": "https://a.example/b.png", "detail": "auto"},
                    },
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {
                        "type": "file",
                        "file": {
                            "filename": "a.pdf",
                            "file_data": "data:application/pdf;base64,BBBB",
                        },
                    },
                    {
                        "type": "file",
                        "file": {"file_data": "data:text/plain;charset=utf-8;base64,w7w="},
                    },
                    {"type": "file", "file": {"file_url": "https://a.example/c.pdf"}},
                ],
            }
        ]
    )
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "See", **keep},
        {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "ü"}},
        {"type": "document", "source": {"type": "url", "url": "https://a.example/c.pdf"}},
    ]


@pytest.mark.parametrize(
    ("url", "media", "data"),
    [
        ("DATA:image/png;BASE64,AAAA", "image/png", "AAAA"),
        ("data:image/png,%00", "image/png", "AA=="),
        ("data:;base64,AAAA", "text/plain", "AAAA"),
    ],
)
def test_a_data_uri_is_read_in_every_spelling(url: str, media: str, data: str) -> None:
    body = sent([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert body["messages"][0]["content"][0]["source"] == {
        "type": "base64",
        "media_type": media,
        "data": data,
    }


def test_parameters_that_both_have() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    closed = schema | {"additionalProperties": False}
    function = {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": schema, "strict": True},
    }
    body = sent(
        max_completion_tokens=50,
        max_tokens=70,
        top_p=0.9,
        top_k=5,
        stop="END",
        user="u",
        tools=[function, {"type": "web_search_20250305", "name": "web_search"}],
        tool_choice="required",
        parallel_tool_calls=False,
        service_tier="default",
        n=1,
        logprobs=False,
        stream_options={"include_usage": True},
        seed=None,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": True},
        },
    )
    assert body == {
        "model": "claude-sonnet-4-5",
        "messages": HELLO,
        "max_tokens": 50,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u"},
        "service_tier": "standard_only",
        "tools": [
            {"name": "f", "description": "d", "input_schema": closed, "strict": True},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": closed}},
    }


@pytest.mark.parametrize(
    ("model", "most"),
    [("claude-sonnet-4-5-20250929", 64000), ("claude-opus-4-6", 128000), ("who-knows", 4096)],
)
def test_max_tokens_is_always_said(model: str, most: int) -> None:
    assert sent(model=model)["max_tokens"] == most


SHOWN = {"type": "adaptive", "display": "summarized"}  # from 4.7 on, omitted unless asked for
BOUND = SHOWN | {"block_binding": {"prefix_mismatch_behavior": "drop_block"}}


@pytest.mark.parametrize(
    ("model", "effort", "limit", "thinking", "config", "most"),
    [
        ("claude-sonnet-4-5", "none", 99, {"type": "disabled"}, None, 99),
        ("claude-sonnet-4-5", "low", 4000, {"type": "enabled", "budget_tokens": 2048}, None, 4000),
        ("claude-sonnet-4-5", "high", 4000, {"type": "enabled", "budget_tokens": 2000}, None, 4000),
        (
            "claude-3-7-sonnet-20250219",
            "xhigh",
            None,
            {"type": "enabled", "budget_tokens": 32768},
            None,
            36864,
        ),
        ("claude-opus-4-6", "xhigh", 99, {"type": "adaptive"}, {"effort": "max"}, 99),
        ("claude-opus-4-7", "xhigh", 99, SHOWN, {"effort": "xhigh"}, 99),
        ("claude-sonnet-5", "minimal", 99, SHOWN, {"effort": "low"}, 99),
        ("claude-haiku-5-5", "none", 99, {"type": "disabled"}, None, 99),
        ("claude-sonnet-5-5", "none", 99, {"type": "between_tools"}, None, 99),
        ("claude-opus-5-5", "none", 99, BOUND, {"effort": "low"}, 99),
        ("claude-opus-5-5", "high", 99, BOUND, {"effort": "high"}, 99),
        ("claude-fable-5", "none", 99, None, {"effort": "low"}, 99),
    ],
)
def test_effort_by_generation(
    model: str,
    effort: str,
    limit: int | None,
    thinking: JSON | None,
    config: JSON | None,
    most: int,
) -> None:
    body = sent(model=model, reasoning_effort=effort, max_tokens=limit)
    assert (body.get("thinking"), body.get("output_config"), body["max_tokens"]) == (
        thinking,
        config,
        most,
    )


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("claude-3-7-sonnet@20250219", (3, 7)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-opus-4-5-20251101", (4, 5)),
        ("claude-2.1", (2, 1)),
        ("claude-fable-5-1", (5, 1)),
        ("us.anthropic.claude-opus-4-6-v1", (4, 6)),
        ("llama", (0, 0)),
    ],
)
def test_the_generation_in_a_name(model: str, version: tuple[int, int]) -> None:
    assert version_of(model) == version


UNSUPPORTED: list[tuple[str, JSON]] = [
    (name, {name: value})
    for name, value in (
        ("seed", 7),
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "grammar"}),
        ("audio", {"voice": "x"}),
        ("modalities", ["audio"]),
        ("prediction", {}),
        ("verbosity", "low"),
        ("store", True),
        ("prompt_cache_key", "k"),
        ("service_tier", "flex"),
        ("temperature", 1.5),
        ("metadata", {"a": "b"}),
        ("never_heard_of", 1),
        ("tool_choice", {"type": "allowed_tools"}),
    )
]
UNSUPPORTED += [
    ("temperature", {"temperature": 0, "reasoning_effort": "low"}),
    ("top_k", {"top_k": 3, "reasoning_effort": "low"}),
    ("reasoning_effort", {"reasoning_effort": "low", "max_tokens": 1000}),
    (
        "reasoning_effort",
        {
            "reasoning_effort": "low",
            "tool_choice": "required",
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
    ),
]


def check_kind(name: str, ask: Callable[..., JSON]) -> None:
    """A hint is always left out, a preference where that is allowed, a meaning never."""
    kind = kinds().get(name, Kind.MEANING)
    for lenient in (False, True):
        drop: list[str] = []
        if kind is Kind.HINT or (lenient and kind is Kind.PREFERENCE):
            body = ask(drop=drop, lenient=lenient)
            assert drop == [name] and name not in body
        else:
            with pytest.raises(UnsupportedParameter) as caught:
                ask(drop=drop, lenient=lenient)
            assert caught.value.param == name


@pytest.mark.parametrize(("name", "params"), UNSUPPORTED)
def test_what_cannot_be_said_goes_by_its_kind(name: str, params: JSON) -> None:
    check_kind(name, partial(sent, **params))


@pytest.mark.parametrize(
    ("model", "both"), [("claude-sonnet-4-20250514", True), ("claude-opus-4-1-20250805", False)]
)
def test_of_two_ways_to_sample_newer_models_take_one(model: str, both: bool) -> None:
    """Claude 4.1 and later refuse a temperature beside top_p; 1 is the temperature anyway."""
    for warmth, kept in ((0.2, "temperature"), (1, "top_p")):
        drop: list[str] = []
        body = sent(model=model, drop=drop, temperature=warmth, top_p=0.5)
        found = body.keys() & {"temperature", "top_p"}
        assert found == ({"temperature", "top_p"} if both else {kept})
        assert drop == (["top_p"] if not both and warmth != 1 else [])


def test_newer_models_have_no_sampling() -> None:
    """Whoever asks, and whatever is allowed: many clients send a temperature unasked."""
    assert "temperature" not in sent(model="claude-opus-4-7", temperature=1)
    drop: list[str] = []
    params = {"temperature": 0.2, "top_p": 0.5, "top_k": 3}
    body = sent(model="claude-opus-4-7", drop=drop, **params)
    assert drop == sorted(params) and not params.keys() & body.keys()
    own = strict_json.document(
        json.dumps({"model": "x", "messages": HELLO, "max_tokens": 9} | params)
    )
    for model in ("claude-opus-4-7", "claude-sonnet-4-5"):
        drop = []
        request = InferRequest(model, HELLO, native=Native("anthropic", own), dropped=drop)
        body = json.loads(wire.encode_request(request, stream=False))
        left = {} if model.endswith("7") else params
        assert body == {"model": model, "messages": HELLO, "max_tokens": 9} | left
        assert drop == sorted(params.keys() - left)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (
            "messages.content.input_audio",
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        ),
        ("messages.content.file", {"type": "file", "file": {"file_id": "file-1"}}),
        (
            "messages.content.server_tool_use",
            {"type": "server_tool_use", "id": "s", "name": "n", "input": {}},
        ),
        (
            "image_url.detail",
            {"type": "image_url", "image_url": {"url": "https://a.example/", "detail": "high"}},
        ),
    ],
)
def test_parts_that_cannot_be_said(name: str, part: JSON) -> None:
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "x"}]}]
    check_kind(name, partial(sent, messages))


def test_counting_takes_only_what_counts() -> None:
    assert sent(op="count_tokens", tools=[]) == {
        "model": "claude-sonnet-4-5",
        "messages": HELLO,
        "tools": [],
    }
    with pytest.raises(UnsupportedParameter):
        sent(op="count_tokens", temperature=0.5)
    assert sent(op="count_tokens", temperature=0.5, lenient=True) == {
        "model": "claude-sonnet-4-5",
        "messages": HELLO,
    }


RICH: JSON = {
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {
                    "type": "file",
                    "file": {"filename": "f", "file_data": "data:application/pdf;base64,AA=="},
                },
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
            "reasoning_details": [
                {
                    "type": "reasoning.text",
                    "text": "t",
                    "signature": "s",
                    "format": "anthropic-claude-v1",
                    "index": 0,
                }
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "r"},
    ],
    "params": {
        "max_tokens": 9000,
        "temperature": 1,
        "stop": ["a"],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": True,
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"effort": "low"},
    },
}


def test_a_broken_request_names_the_place() -> None:
    refused = 0
    for bad in _hurt(RICH):
        if (
            not isinstance(bad, dict)
            or not isinstance(bad.get("messages"), list)
            or not isinstance(bad.get("params"), dict)
        ):
            continue
        if not all(isinstance(message, dict) for message in bad["messages"]):
            continue
        try:
            request = InferRequest(
                model="claude-sonnet-4-5", messages=bad["messages"], params=bad["params"]
            )
            wire.encode_request(request, stream=False)
        except RequestError as error:
            assert error.param
            refused += 1
    assert refused > 200


# -- passing through -------------------------------------------------------------------------------

NATIVE = (
    '{ "model":"claude-sonnet-4-5",  "max_tokens": 5,"stream" : true, "x-new": [1.0, "\\u00e9"],\n'
    ' "messages": [{"role":"user","content":"Hi"}, {"role":"assistant","content":[]}] }'
)


def native_request(body: str, model: str) -> InferRequest:
    return InferRequest(
        model=model, messages=HELLO, native=Native("anthropic", strict_json.document(body))
    )


def test_a_body_of_this_dialect_goes_out_as_it_came() -> None:
    assert (
        wire.encode_request(native_request(NATIVE, "claude-sonnet-4-5"), stream=True)
        == NATIVE.encode()
    )
    other = wire.encode_request(native_request(NATIVE, "claude-opus-4-6"), stream=True)
    assert other == NATIVE.replace("claude-sonnet-4-5", "claude-opus-4-6").encode()
    whole = wire.encode_request(native_request(NATIVE, "claude-sonnet-4-5"), stream=False)
    assert whole == NATIVE.replace(": true", ": false").encode()


def test_what_our_door_made_of_another_vendors_answer_stays_here() -> None:
    document = {"type": "document", "citations": {"enabled": True}}
    document["source"] = {"type": "text", "media_type": "text/plain", "data": "d"}
    turn = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "x", "signature": ""},
            {"type": "thinking", "thinking": "z", "signature": "infermux1.W10"},
            {"type": "thinking", "thinking": "y", "signature": "s"},
            {
                "type": "tool_use",
                "id": "a",
                "name": "f",
                "input": {},
                "extra_content": {"google": {"thought_signature": "g"}},
            },
        ],
    }
    question = {"role": "user", "content": [document, {"type": "text", "text": "Hi"}]}
    body = json.dumps({"model": "m", "messages": [question, turn]})
    got = json.loads(wire.encode_request(native_request(body, "m"), stream=False))
    assert got["messages"][0] == question
    assert got["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "y", "signature": "s"},
        {"type": "tool_use", "id": "a", "name": "f", "input": {}},
    ]


BUDGET: JSON = {"type": "enabled", "budget_tokens": 1024}
ADAPTIVE: JSON = {"type": "adaptive", "display": "omitted"}


@pytest.mark.parametrize(
    ("model", "asked", "fits"),
    [
        ("claude-opus-4-6", BUDGET, BUDGET),
        ("claude-opus-4-7", BUDGET, SHOWN),
        ("claude-sonnet-5-5", BUDGET | {"display": "omitted"}, ADAPTIVE),
        ("claude-opus-5-5", ADAPTIVE, ADAPTIVE),
        ("claude-opus-5", {"type": "disabled"}, {"type": "disabled"}),
        ("claude-sonnet-5-5", {"type": "disabled"}, {"type": "between_tools"}),
        ("claude-fable-5-1", {"type": "disabled"}, None),
    ],
)
def test_thinking_for_another_claude_is_as_the_model_takes_it(
    model: str, asked: JSON, fits: JSON | None
) -> None:
    body = json.dumps({"model": "claude-sonnet-4-5", "messages": HELLO, "thinking": asked})
    request = replace(native_request(body, model), dropped=[])
    got = json.loads(wire.encode_request(request, stream=False))
    assert got.get("thinking") == fits
    assert request.dropped == ([] if fits else ["thinking"])


@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-sonnet-5-5", "claude-fable-5-2"])
def test_a_model_that_cannot_be_forced_to_call_is_asked_to_in_words(model: str) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    one = {"type": "function", "function": {"name": "g"}}
    for choice, words in (("required", "Call one of the tools."), (one, "Call the tool g.")):
        said: JSON = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
        talk = [{"role": "system", "content": "Be kind."}, *HELLO]
        body = sent(talk, model=model, drop=(told := []), **said)
        assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
        assert [block["text"] for block in body["system"]] == ["Be kind.", words]
        blank = sent([{"role": "system", "content": " "}, *HELLO], model=model, **said)
        assert [block["text"] for block in blank["system"]] == [words]
        assert told == ["tool_choice"] and len(body["tools"]) == 2
        request = InferRequest(model=model, messages=HELLO, params=said)
        assert wire.unsaid(request, model) == ("", True), "another target is tried first"
        assert sent(talk, model="claude-opus-5", **said)["tool_choice"]["type"] in ("any", "tool")


def test_thoughts_that_a_client_wants_to_see_are_summarized() -> None:
    for model, shown in (
        ("claude-opus-5", SHOWN),
        ("claude-opus-4-8", None),
    ):  # which thinks unasked
        assert sent(model=model, reasoning_summary="auto").get("thinking") == shown
        assert "thinking" not in sent(model=model)


@pytest.mark.parametrize("model", ["deepseek-v4-pro", "kimi-k2.6"])
def test_unsigned_thoughts_go_back_to_a_model_that_signs_none(model: str) -> None:
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    turn = {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, call]}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "ok"}
    turns = [{"role": "user", "content": "Hi"}, turn, {"role": "user", "content": [result]}]
    body = json.dumps({"model": model, "messages": turns})
    assert wire.encode_request(native_request(body, model), stream=False) == body.encode()


# -- the client's side -----------------------------------------------------------------------------


def taken(body: JSON, op: str = "chat") -> InferRequest:
    return downstream.decode_request(strict_json.document(json.dumps(body)), op=op)[0]


BODY: JSON = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello"}],
}


def test_a_request_keeps_its_body() -> None:
    document = strict_json.document(NATIVE)
    request, stream = downstream.decode_request(document)
    assert (
        stream
        and request.model == "claude-sonnet-4-5"
        and request.native == Native("anthropic", document)
    )
    assert request.params == {"max_tokens": 5, "x-new": [1.0, "é"]}
    assert wire.encode_request(request, stream=True) == NATIVE.encode()
    request.check()


def test_an_effort_that_changes_in_the_conversation_is_anthropics_own() -> None:
    louder = {"role": "system", "output_config": {"effort": "max"}}
    request = taken(BODY | {"messages": [*HELLO, louder, *HELLO]})
    assert request.messages == [*HELLO, *HELLO]
    sent = json.loads(wire.encode_request(request, stream=False))
    assert sent["messages"] == [*HELLO, louder, *HELLO]
    with pytest.raises(RequestError, match=r"messages\.1 is invalid"):
        taken(BODY | {"messages": [*HELLO, {"role": "system"}]})


def test_members_of_a_part_that_are_a_chat_clients_own_stay_there() -> None:
    """OpenAI's Agents for JavaScript repeat those of the answer's message in its text."""
    part = {"type": "text", "text": "Hi", "role": "assistant", "refusal": None, "annotations": []}
    turns = sent([*HELLO, {"role": "assistant", "content": [part]}, *HELLO])["messages"]
    assert turns[1]["content"] == [{"type": "text", "text": "Hi"}]


def test_openais_mark_of_what_may_be_cached_is_anthropics() -> None:
    part = {"type": "text", "text": "Hi", "prompt_cache_breakpoint": {"mode": "explicit"}}
    [turn] = sent([{"role": "user", "content": [part]}])["messages"]
    mark = {"cache_control": {"type": "ephemeral"}}
    assert turn["content"] == [{"type": "text", "text": "Hi", **mark}]


CONVERSATION: list[JSON] = [
    {
        "role": "system",
        "content": [
            {"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "See"},
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64,AAAA"},
                "cache_control": {"type": "ephemeral"},
            },
            {
                "type": "file",
                "file": {"file_data": "data:application/pdf;base64,BBBB", "filename": "a.pdf"},
            },
            {"type": "file", "file": {"file_data": "data:text/plain;base64,w7w="}},
            {"type": "file", "file": {"file_url": "https://a.example/c.pdf"}},
        ],
    },
    {
        "role": "assistant",
        "content": "Wait.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":"ü"}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
        "reasoning_content": "hm",
        "reasoning_details": [
            {
                "type": "reasoning.text",
                "text": "hm",
                "signature": "s/+=",
                "format": "anthropic-claude-v1",
                "index": 0,
            },
            {
                "type": "reasoning.encrypted",
                "data": "d/+=",
                "format": "anthropic-claude-v1",
                "index": 1,
            },
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "1"},
    {
        "role": "tool",
        "tool_call_id": "b",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
        "is_error": True,
    },
    {"role": "assistant", "content": "Done."},
    {"role": "user", "content": "Thanks"},
]
PARAMS: JSON = {
    "max_tokens": 30000,
    "temperature": 1.0,
    "top_p": 0.99,
    "stop": ["a", "b"],
    "user": "u",
    "service_tier": "default",
    "tools": [
        {
            "type": "function",
            "cache_control": {"type": "ephemeral"},
            "function": {
                "name": "f",
                "description": "d",
                "parameters": {"type": "object"},
                "strict": True,
            },
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning_effort": "high",
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "output",
            "schema": {"type": "object", "properties": {}},
            "strict": True,
        },
    },
}


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-opus-4-6"])
def test_a_request_survives_both_directions(model: str) -> None:
    body = wire.encode_request(
        InferRequest(model=model, messages=CONVERSATION, params=PARAMS), stream=True
    )
    request, stream = downstream.decode_request(strict_json.document(body))
    assert stream
    conversation = json.loads(json.dumps(CONVERSATION))
    conversation[1]["content"][4] = {"type": "text", "text": "ü"}  # other vendors have no such file
    assert list(request.messages) == conversation
    closed = PARAMS | json.loads(
        json.dumps({name: PARAMS[name] for name in ("tools", "response_format")})
    )
    closed["response_format"]["json_schema"]["schema"]["additionalProperties"] = False
    closed["tools"][0]["function"]["parameters"]["additionalProperties"] = False
    closed.pop("temperature")  # the default: these models take it or top_p
    assert request.params == closed  # Anthropic takes closed objects only, where it enforces them


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh"])
def test_an_effort_survives_both_directions(effort: str) -> None:
    assert taken(sent(reasoning_effort=effort)).params["reasoning_effort"] == effort


@pytest.mark.parametrize(
    ("members", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 10000}}, "medium"),
        ({"thinking": {"type": "adaptive"}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "xhigh"),
        ({}, None),
        ({"output_config": {"effort": "low"}}, "low"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "none"),
    ],
)
def test_thinking_becomes_effort(members: JSON, effort: str | None) -> None:
    params = taken(BODY | members).params
    assert params.get("reasoning_effort") == effort
    assert "thinking" not in params and "output_config" not in params


def test_what_only_this_vendor_has_keeps_its_name() -> None:
    tool = {"type": "web_search_20250305", "name": "web_search"}
    request = taken(
        BODY
        | {
            "tools": [tool],
            "container": "c",
            "top_k": 3,
            "metadata": {"user_id": "u", "x": 1},
            "output_config": {"task_budget": {}},
        }
    )
    assert request.params == {
        "max_tokens": 100,
        "tools": [tool],
        "container": "c",
        "top_k": 3,
        "user": "u",
        "metadata": {"x": 1},
        "output_config": {"task_budget": {}},
    }


def test_turns_of_an_agent() -> None:
    request = taken(
        BODY
        | {
            "system": [{"type": "text", "text": "s", "citations": None}],
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "a", "citations": None},
                        {"type": "text", "text": "b"},
                        {
                            "type": "tool_use",
                            "id": "t",
                            "name": "f",
                            "input": {},
                            "caller": {"type": "direct"},
                        },
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "note"},
                        {"type": "tool_result", "tool_use_id": "t", "is_error": True},
                    ],
                },
                {"role": "system", "content": "new rules"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
                    ],
                },
                {"role": "assistant", "content": []},
            ],
        }
    )
    assert list(request.messages) == [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {
            "role": "assistant",
            "content": "ab",
            "tool_calls": [
                {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "t", "content": "", "is_error": True},
        {"role": "user", "content": [{"type": "text", "text": "note"}]},
        {"role": "system", "content": "new rules"},
        {
            "role": "assistant",
            "content": [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}],
        },
        {"role": "assistant", "content": ""},
    ]
    request.check()


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": {}}, "messages"),
        ({"stream": 1}, "stream"),
        ({"system": 5}, "system"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"temperature": "1"}, "temperature"),
        ({"tools": [5]}, "tools"),
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"tool_choice": {"type": "x"}}, "tool_choice"),
        ({"thinking": {"type": "x"}}, "thinking"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens"),
        ({"output_config": {"format": {"type": "x"}}}, "output_config.format"),
        ({"metadata": {"user_id": 5}}, "user_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
        ({"messages": [*BODY["messages"], 5]}, "messages.1"),
    ],
)
def test_an_odd_request_is_named(members: JSON, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        taken(BODY | members)
    assert caught.value.param == param


def test_a_broken_body_is_refused_or_read_never_a_crash() -> None:
    good = InferRequest(model="claude-sonnet-4-5", messages=CONVERSATION, params=PARAMS)
    body, refused = json.loads(wire.encode_request(good, stream=True)), 0
    for bad in _hurt(body):
        if isinstance(bad, dict):
            try:
                request = taken(bad)
                request.check()
                wire.encode_request(request, stream=True)
                wire.encode_request(replace(request, native=None, lenient=True), stream=True)
            except RequestError:
                refused += 1
    assert refused > 300


def test_counting_needs_no_max_tokens() -> None:
    assert taken({"model": "m", "messages": HELLO}, "count_tokens").op == "count_tokens"
    assert downstream.encode_response(InferResponse("m", "p", "", extra={"input_tokens": 9})) == {
        "input_tokens": 9
    }


@pytest.mark.parametrize("name", ["text", "tools", "thinking", "refusal", "cached"])
def test_an_answer_survives_both_directions(name: str) -> None:
    exchange = json.loads((OWN / f"{name}.json").read_text())
    answer = wire.decode_response(
        json.dumps(exchange["response"]["body"]).encode(), asked(exchange)
    )
    again = wire.decode_response(
        json.dumps(downstream.encode_response(answer)).encode(), asked(exchange)
    )
    for field in (
        "content",
        "reasoning",
        "finish_reason",
        "tool_calls",
        "details",
        "model",
        "id",
        "tokens_in",
        "tokens_out",
    ):
        assert getattr(again, field) == getattr(answer, field), field
    assert again.usage and answer.usage
    assert again.usage.cached_input_tokens == (answer.usage.cached_input_tokens or 0)
    assert again.usage.reasoning_tokens == answer.usage.reasoning_tokens


FOREIGN = InferResponse(
    "gpt-5-mini",
    "openai",
    "",
    110,
    7,
    finish_reason="stop",
    reasoning="hm",
    refusal="No.",
    id="chatcmpl-1",
    usage=Usage(110, 7, 100, 4, None, 3),
    tool_calls=[
        {"id": "", "type": "function", "function": {"name": "f", "arguments": "not json"}},
        {
            "id": "c",
            "type": "function",
            "function": {"name": "g", "arguments": ""},
            "extra_content": {"google": {"x": 1}},
        },
    ],
)


def test_an_answer_of_another_vendor_is_a_message() -> None:
    message = downstream.encode_response(FOREIGN)
    made = message["content"][2].pop("id")
    assert made.startswith("toolu_")
    assert message == {
        "id": "msg_chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "gpt-5-mini",
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "No."},
            {"type": "tool_use", "name": "f", "input": {"arguments": "not json"}},
            {
                "type": "tool_use",
                "id": "c",
                "name": "g",
                "input": {},
                "extra_content": {"google": {"x": 1}},
            },
        ],
        "usage": {
            "input_tokens": 6,
            "cache_creation_input_tokens": 4,
            "cache_read_input_tokens": 100,
            "output_tokens": 7,
            "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 0},
            "output_tokens_details": {"thinking_tokens": 3},
        },
    }


def test_the_official_sdk_takes_a_message_made_here() -> None:
    types = pytest.importorskip("anthropic.types")
    message = types.Message.model_validate(downstream.encode_response(FOREIGN))
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (
        message.usage.input_tokens,
        message.usage.cache_read_input_tokens,
        message.stop_reason,
    ) == (6, 100, "tool_use")


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("", "end_turn"),
        ("MALFORMED", "end_turn"),
        ("pause_turn", "pause_turn"),
    ],
)
def test_stop_reasons(finish: str, reason: str) -> None:
    assert downstream.stop_reason(finish, called=False) == reason


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.RequestError("m"), "invalid_request_error"),
        (errors.AuthenticationError("m"), "authentication_error"),
        (errors.BudgetExceeded("m"), "billing_error"),
        (errors.ModelNotAllowed("m"), "permission_error"),
        (errors.ModelNotFound("m"), "not_found_error"),
        (errors.RequestTooLarge("m"), "request_too_large"),
        (errors.MethodNotAllowed("m", allow="POST"), "invalid_request_error"),
        (errors.RateLimited("m"), "rate_limit_error"),
        (errors.InferMuxError("m"), "api_error"),
        (errors.ProviderUnavailable("m"), "api_error"),
        (errors.Overloaded("m"), "overloaded_error"),
        (errors.ProviderTimeout("m"), "timeout_error"),
    ],
)
def test_errors_have_this_vendors_names(error: InferMuxError, kind: str) -> None:
    assert downstream.encode_error(error) == {
        "type": "error",
        "error": {"type": kind, "message": "m"},
    }


# -- our own streams -------------------------------------------------------------------------------


def call(index: int, arguments: str = "", **head: str) -> JSON:
    return ({"id": head["id"], "type": "function"} if head else {}) | {
        "index": index,
        "function": {"name": head.get("name"), "arguments": arguments},
    }


SIGNED = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0}
STORIES: dict[str, list[Chunk]] = {
    "nothing": [],
    "text": [
        HEARTBEAT,
        Chunk(text="Grüß "),
        Chunk(text="Gott"),
        Chunk(finish_reason="stop"),
        Chunk(usage=Usage(9, 4, 5)),
    ],
    "refusal": [Chunk(refusal="No"), Chunk(refusal="."), Chunk(finish_reason="content_filter")],
    "thinking": [
        Chunk(reasoning="hm", details=[SIGNED | {"text": "hm"}]),
        Chunk(details=[SIGNED | {"signature": "s/+="}]),
        Chunk(
            details=[
                {
                    "type": "reasoning.encrypted",
                    "data": "d",
                    "format": "anthropic-claude-v1",
                    "index": 1,
                }
            ]
        ),
        Chunk(text="4"),
        Chunk(finish_reason="length"),
    ],
    "unsigned": [Chunk(reasoning="h"), Chunk(reasoning="m"), Chunk(text="4", finish_reason="stop")],
    "calls": [
        Chunk(text="Wait."),
        Chunk(tool_calls=[call(0, id="a", name="f")]),
        Chunk(tool_calls=[call(0, '{"x":')]),
        Chunk(tool_calls=[call(0, " 1}")]),
        Chunk(tool_calls=[call(1, "{}", id="b", name="g")]),
        Chunk(finish_reason="tool_calls"),
    ],
    "interleaved": [
        Chunk(tool_calls=[call(0, '{"x"', id="a", name="f"), call(1, '{"y"', id="b", name="g")]),
        Chunk(tool_calls=[call(1, ": "), call(0, ": ")]),
        Chunk(text="and"),
        Chunk(tool_calls=[call(2, "{}", id="c", name="h")]),
        Chunk(tool_calls=[call(0, "1}"), call(1, "2")]),
        Chunk(text="!"),
        Chunk(tool_calls=[call(1, "}")]),
        Chunk(finish_reason="tool_calls"),
    ],
    "no arguments": [
        Chunk(tool_calls=[call(0, id="a", name="f")]),
        Chunk(tool_calls=[call(1, id="b", name="g")]),
    ],
    "whole": [
        Chunk(
            text="x",
            reasoning="y",
            tool_calls=[call(0, "{}", id="a", name="f"), call(1, '{"z":1}', id="b", name="g")],
            finish_reason="stop",
            usage=Usage(5, 6),
        )
    ],
}


def written(chunks: list[Chunk], usage: Usage | None = None) -> bytes:
    encoder = Encoder(model="m", ident="msg_1", native=False)
    return b"".join(
        [
            *(encoder.encode(chunk) for chunk in chunks),
            encoder.heartbeat(),
            encoder.end({"cost": 1}, usage),
        ]
    )


def told(chunks: list[Chunk]) -> InferResponse:
    fold = StreamAccumulator()
    for chunk in chunks:
        fold.add(chunk)
    return fold.response("other", "m")


@pytest.mark.parametrize("story", STORIES)
def test_a_stream_made_here_is_a_proper_sequence(story: str) -> None:
    bodies = [json.loads(event.data) for event in events_of(written(STORIES[story]))]
    kinds = [body["type"] for body in bodies if body["type"] != "ping"]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert bodies[-1]["infermux"] == {"cost": 1}
    current, following = None, 0
    for body in bodies[1:-2]:
        if body["type"] == "content_block_start":
            assert current is None and body["index"] == following
            current, following = body["index"], following + 1
        elif body["type"] == "content_block_delta":
            assert body["index"] == current
        elif body["type"] == "content_block_stop":
            assert body["index"] == current
            current = None
    assert current is None


@pytest.mark.parametrize("story", STORIES)
def test_a_stream_made_here_reads_back(story: str) -> None:
    want, (got, failure) = (
        told(STORIES[story]),
        folded(events_of(written(STORIES[story])), InferRequest(model="m")),
    )
    assert failure is None
    assert (got.content, got.reasoning, got.id) == (
        want.content + want.refusal,
        want.reasoning,
        "msg_1",
    )
    assert [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in got.tool_calls
    ] == [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"] or "{}"))
        for call in want.tool_calls
    ]
    finish = want.finish_reason or "stop"
    assert got.finish_reason == ("tool_calls" if want.tool_calls and finish == "stop" else finish)
    assert (got.tokens_in, got.tokens_out) == (want.tokens_in, want.tokens_out)
    if want.details:
        assert list(got.details) == list(want.details)


def test_the_last_word_on_usage_is_the_ends() -> None:
    got, _ = folded(
        events_of(written(STORIES["text"], Usage(20, 8, 5, 3))), InferRequest(model="m")
    )
    assert got.usage is not None
    assert (got.usage.input_tokens, got.usage.output_tokens) == (20, 8)
    assert (got.usage.cached_input_tokens, got.usage.cache_write_tokens) == (5, 3)


@pytest.mark.parametrize("story", STORIES)
def test_the_official_sdk_reads_a_stream_made_here(story: str) -> None:
    streaming = pytest.importorskip("anthropic.lib.streaming._messages")
    types = pytest.importorskip("anthropic.types")
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(types.RawMessageStreamEvent)
    message: Any = None
    buffers: dict[int, bytes] = {}
    for event in events_of(written(STORIES[story])):
        if event.name != b"ping":
            read = adapter.validate_python(json.loads(event.data))
            message = streaming.accumulate_event(
                event=read, current_snapshot=message, json_bufs=buffers
            )
    want = told(STORIES[story])
    blocks = message.content
    assert (
        "".join(block.text for block in blocks if block.type == "text")
        == want.content + want.refusal
    )
    assert "".join(block.thinking for block in blocks if block.type == "thinking") == want.reasoning
    assert {block.id: block.input for block in blocks if block.type == "tool_use"} == {
        one["id"]: json.loads(one["function"]["arguments"] or "{}") for one in want.tool_calls
    }
    assert message.stop_reason in ("end_turn", "tool_use", "max_tokens", "refusal")
    assert message.usage.output_tokens == want.tokens_out


@pytest.mark.parametrize(
    "exchange", [param for param in STREAMS if not param.values[0]["expected"]["error"]]
)
def test_a_stream_of_this_vendor_passes_untouched_but_for_its_last_event(exchange: JSON) -> None:
    events = events_of(exchange["response"]["body"].encode())
    encoder = Encoder(model="m", ident="x", native=True)
    passed = b"".join(
        encoder.encode(chunk) for chunk in wire.decode_events(events, asked(exchange))
    )
    assert passed == b"".join(event.encode() for event in events[:-1])
    assert encoder.encode(HEARTBEAT) == b""
    last = encoder.end({"provider": "a"}, None)
    assert events_of(last)[0].name == b"message_stop"
    assert json.loads(events_of(last)[0].data) == {
        "type": "message_stop",
        "infermux": {"provider": "a"},
    }


def test_an_answer_in_one_piece_is_a_stream_at_a_door_of_the_same_dialect() -> None:
    exchange = json.loads((OWN / "tools.json").read_text())
    encoder = Encoder(model="m", ident="msg_1", native=True)
    body = json.dumps(exchange["response"]["body"]).encode()
    chunks = whole(wire.decode_response(body, asked(exchange)))
    data = b"".join(encoder.encode(chunk) for chunk in chunks) + encoder.end({}, None)
    got, failure = folded(events_of(data), asked(exchange))
    assert failure is None and got.content == "Looking." and len(got.tool_calls) == 2


def test_another_dialects_events_never_pass() -> None:
    encoder = Encoder(model="m", ident="msg_1", native=True)
    assert b"text_delta" in encoder.encode(
        Chunk(text="x", native=b"data: {}\n\n", dialect="openai")
    )


def test_a_last_event_of_any_shape_ends_a_stream() -> None:
    encoder = Encoder(model="m", ident="msg_1", native=True)
    odd = b'event: message_stop\ndata: {"type":"message_stop",\ndata: "a":1,"a":2}\n\n'
    assert encoder.encode(Chunk(native=odd, dialect="anthropic")) == b""
    assert encoder.end({"id": "c"}, None) == odd


def test_a_broken_stream_has_no_proper_end() -> None:
    encoder = Encoder(model="m", ident="msg_1", native=False)
    data = encoder.encode(Chunk(text="half")) + encoder.error(StreamIncomplete("cut"))
    _, failure = folded(events_of(data), InferRequest(model="m"))
    assert isinstance(failure, ProviderError) and b"message_stop" not in data
    assert events_of(data)[-1] == sse.Event(
        b'{"type":"error","error":{"type":"api_error","message":"cut"}}', b"error"
    )


def test_more_of_a_call_that_was_complete_is_an_error() -> None:
    encoder = Encoder(model="m", ident="msg_1", native=False)
    encoder.encode(
        Chunk(tool_calls=[call(0, "{}", id="a", name="f"), call(1, "{}", id="b", name="g")])
    )
    with pytest.raises(ProviderError):
        encoder.encode(Chunk(tool_calls=[call(0, '{"x":1}')]))


def test_calls_that_a_vendor_mixes_cost_no_more_the_longer_they_are() -> None:
    def steps(pieces: int) -> int:
        """Return how many functions are called for each of so many pieces of two calls."""
        encoder, found = Encoder(model="m", ident="msg_1", native=False), 0

        def seen(*_: object) -> None:
            nonlocal found
            found += 1

        ends = ('"', *["x"] * pieces, '"}')
        before = sys.getprofile()
        sys.setprofile(seen)
        try:
            data = encoder.encode(
                Chunk(tool_calls=[call(n, '{"a":', id="ab"[n], name="f") for n in (0, 1)])
            )
            for words in ends:
                for n in (0, 1):
                    data += encoder.encode(Chunk(tool_calls=[call(n, words)]))
        finally:
            sys.setprofile(before)
        data += encoder.encode(Chunk(finish_reason="tool_calls")) + encoder.end({}, None)
        said: dict[int, str] = {}
        for event in events_of(data):
            body = json.loads(event.data)
            if body["type"] == "content_block_delta":
                said[body["index"]] = said.get(body["index"], "") + body["delta"]["partial_json"]
        assert said == dict.fromkeys((0, 1), '{"a":"' + "x" * pieces + '"}')
        return found // pieces

    assert steps(400) < 1.2 * steps(100)


def test_a_first_call_streams_without_waiting() -> None:
    encoder = Encoder(model="m", ident="msg_1", native=False)
    encoder.encode(Chunk(tool_calls=[call(0, id="a", name="f")]))
    assert b'"partial_json":"{\\"x\\""' in encoder.encode(Chunk(tool_calls=[call(0, '{"x"')]))


@pytest.mark.parametrize(
    ("words", "told", "kept"), [("", "of it", 0), ("", "", 1), ("Hm.", "Hm.", 1)]
)
def test_thinking_of_which_only_the_signature_is_left_is_left_out(words, told, kept):
    detail = {"type": "reasoning.text", "signature": "c2ln", "format": "anthropic-claude-v1"}
    answer = {"role": "assistant", "content": "Hi.", "reasoning_content": told}
    answer["reasoning_details"] = [detail | ({"text": words} if words else {})]
    body = sent([*HELLO, answer, *HELLO])
    content = body["messages"][1]["content"]
    assert sum(block["type"] == "thinking" for block in content if isinstance(block, dict)) == kept
