"""Tests of the OpenAI dialect with recorded traffic, own examples, and invalid input."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from email.utils import format_datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import places, with_odd

from infermux import errors
from infermux.dialects.anthropic import downstream as messages
from infermux.dialects.anthropic.stream import Encoder as Writer
from infermux.dialects.blocks import whole
from infermux.dialects.openai import downstream
from infermux.dialects.openai import upstream as openai
from infermux.errors import (
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
    StreamIncomplete,
)
from infermux.planning.call import StreamAccumulator
from infermux.protocol import CHAT, InferRequest, InferResponse, strict_json
from infermux.protocol.sse import Event, Parser
from infermux.types import HEARTBEAT

OWN = Path(__file__).parents[1] / "data" / "wire" / "openai"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "wire"
OPS = {
    "openai.chat": CHAT,
    "openai.completions": "completions",
    "openai.embeddings": "embeddings",
}
MODES = ("event", "whole", "line", "byte", "mid-line", "mid-utf8", "crlf", "random")
WORDS = {"": "stop", "eos": "stop"}  # finish reasons that are said in OpenAI's words
COUNTS = {
    "all_input_tokens": "input_tokens",
    "all_output_tokens": "output_tokens",
    "cached_input_tokens": "cached_input_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "reasoning_tokens": "reasoning_tokens",
}
CLASSES = {
    400: "ProviderRejected",
    401: "ProviderAuthError",
    404: "ProviderModelNotFound",
    429: "ProviderRateLimited",
}
TOLD_APART = {  # a 400 that is not just the caller's fault
    "deepseek.openai.chat.n.400.abc2558edaa9": "ProviderContextTooLong",
    "openrouter.openai.chat.n.400.12c085c0acac": "ProviderContextTooLong",
}
SENSELESS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)  # what a provider takes for nonsense
ASKED = InferRequest(
    model="asked-model", provider="vendor", messages=[{"role": "user", "content": "Hi"}]
)


def load(folder: Path) -> list[Any]:
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    return [each for each in found if each["api"] in OPS]


RECORDED = load(SHARED / "exchanges")  # empty where the recordings are not at hand
ALL = load(OWN) + RECORDED
STREAMS = [each for each in ALL if each["stream"]]
WHOLE = [
    each
    for each in ALL
    if not each["stream"] and each["api"] == "openai.chat" and not each["expected"]["error"]
]


def named(exchanges: list[Any]) -> list[Any]:
    """The exchanges as parameters, by their ids."""
    return [pytest.param(each, id=each["id"]) for each in exchanges]


def name_of(exchange: dict[str, Any]) -> str:
    return str(exchange["id"])


def request_of(exchange: dict[str, Any]) -> InferRequest:
    return replace(ASKED, op=OPS[exchange["api"]])


def bytes_of(exchange: dict[str, Any]) -> bytes:
    body = exchange["response"]["body"]
    return (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()


def parsed(pieces: list[bytes]) -> list[Event]:
    parser = Parser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.end()


def cut(data: bytes, size: int, seed: int = 0) -> list[bytes]:
    """Pieces of 1 to *size* bytes."""
    chance, pieces, at = random.Random(seed), [], 0
    while at < len(data):
        step = chance.randint(1, size)
        pieces.append(data[at : at + step])
        at += step
    return pieces


def read(exchange: dict[str, Any]) -> tuple[InferResponse | None, ProviderError | None]:
    """The answer that an exchange holds, as far as it came, and the error in it."""
    request, data, fold = request_of(exchange), bytes_of(exchange), StreamAccumulator()
    status, headers = exchange["response"]["status"], exchange["response"]["headers"]
    if status >= 400:
        return None, openai.decode_error(status, headers, data)
    try:
        if not exchange["stream"]:
            return openai.decode_response(data, request), None
        for chunk in openai.decode_events(parsed([data]), request):
            fold.add(chunk)
    except ProviderError as error:
        return (fold.response("vendor", request.model) if exchange["stream"] else None), error
    return fold.response("vendor", request.model), None


def calls_of(response: InferResponse) -> list[dict[str, Any]]:
    return [
        {
            "id": call["id"],
            "name": call["function"]["name"],
            "arguments": json.loads(call["function"]["arguments"] or "{}"),
        }
        for call in response.tool_calls
    ]


def check_answer(response: InferResponse, expected: dict[str, Any]) -> None:
    assert response.content == expected["text"]
    assert response.reasoning == (expected["reasoning_text"] or "")
    assert response.refusal == (expected["refusal"] or "")
    assert calls_of(response) == expected["tool_calls"]
    reason = expected["finish_reason_raw"]
    assert response.finish_reason == WORDS.get(reason, reason or "")
    assert response.model == (expected["model"] or ASKED.model)
    assert response.id == (expected["id"] or "")


def check_usage(response: InferResponse, expected: dict[str, Any]) -> None:
    if expected["usage"] is None:
        assert response.usage is None
        return
    assert response.usage is not None
    read = {theirs: getattr(response.usage, ours) for theirs, ours in COUNTS.items()}
    if "embeddings" in expected:  # an embedding has no output, and nobody says so
        read["all_output_tokens"] = expected["usage"]["all_output_tokens"]
    assert read == {theirs: expected["usage"][theirs] for theirs in COUNTS}
    assert response.tokens_in == (response.usage.input_tokens or 0)
    assert response.tokens_out == (response.usage.output_tokens or 0)


def check_error(error: ProviderError | None, exchange: dict[str, Any]) -> None:
    expected = exchange["expected"]["error"]
    status = exchange["response"]["status"]
    kind = (
        expected.get("class")
        or TOLD_APART.get(exchange["id"])
        or CLASSES.get(status, "ProviderRejected")
    )
    assert type(error).__name__ == kind
    assert error is not None
    if isinstance(error, ProviderRejected):
        assert error.message == expected["message"]
        assert error.param == expected.get("param")
    wait = expected.get("retry_after") or expected.get("retry_after_s")
    assert error.retry_after == (None if wait is None else float(wait))


# -- what recordings hold --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "exchange",
    named([each for each in ALL if each["api"] == "openai.chat"]),
)
def test_a_chat_reads_as_it_was_meant(exchange: dict[str, Any]) -> None:
    response, error = read(exchange)
    expected = exchange["expected"]
    if expected["error"]:
        check_error(error, exchange)
    else:
        assert error is None
    if response is not None:
        check_answer(response, expected)
        check_usage(response, expected)


@pytest.mark.parametrize(
    "exchange", [each for each in ALL if each["api"] != "openai.chat"], ids=name_of
)
def test_the_other_operations_give_text_usage_model_and_error(exchange: dict[str, Any]) -> None:
    response, error = read(exchange)
    expected = exchange["expected"]
    if expected["error"]:
        check_error(error, exchange)
        return
    assert error is None
    assert response is not None
    assert response.content == expected.get("text", "")
    assert response.model == (expected["model"] or ASKED.model)
    check_usage(response, expected)


@pytest.mark.parametrize(
    "exchange",
    named(
        [
            each
            for each in ALL
            if each["api"] == "openai.completions" and not each["expected"]["error"]
        ]
    ),
)
def test_an_answer_that_was_cut_off_says_length(exchange: dict[str, Any]) -> None:
    response, _ = read(exchange)
    assert response is not None
    assert response.finish_reason == {"completed": "stop", "incomplete": "length"}.get(
        exchange["expected"]["finish_reason_raw"], exchange["expected"]["finish_reason_raw"]
    )


@pytest.mark.parametrize(
    "exchange", [each for each in ALL if "embeddings" in each["expected"]], ids=name_of
)
def test_embeddings_are_handed_on_as_they_are(exchange: dict[str, Any]) -> None:
    response, _ = read(exchange)
    assert response is not None
    assert response.extra["data"] == exchange["response"]["body"]["data"]


@pytest.mark.parametrize(
    "exchange",
    [each for each in WHOLE if each["expected"].get("function_call", {}).get("name")],
    ids=name_of,
)
def test_a_legacy_function_call_is_an_extra(exchange: dict[str, Any]) -> None:
    response, _ = read(exchange)
    assert response is not None
    wanted = exchange["expected"]["function_call"]
    assert response.extra["function_call"]["name"] == wanted["name"]
    assert json.loads(response.extra["function_call"]["arguments"]) == wanted["arguments"]


@pytest.mark.parametrize(
    "exchange", [each for each in ALL if "cost_usd" in each["expected"]], ids=name_of
)
def test_the_vendors_own_cost_is_read_in_each_of_its_shapes(exchange: dict[str, Any]) -> None:
    response, _ = read(exchange)
    assert response is not None
    assert response.usage is not None
    assert response.usage.cost_usd == pytest.approx(exchange["expected"]["cost_usd"], rel=1e-12)


@pytest.mark.parametrize(
    "cost",
    [
        {"cost": True},
        {"cost": -1},
        {"cost": "0.1"},
        {"cost": {}},
        {"cost": {"total_cost": None}},
        {"cost": 10**9},
        {"cost": 10**390},
        {"cost_in_usd_ticks": True},
        {"cost_in_usd_ticks": "7"},
        {"cost_in_usd_ticks": -5},
    ],
)
def test_a_cost_that_is_none_is_unknown_and_not_zero(cost: dict[str, Any]) -> None:
    usage = openai.usage_of({"prompt_tokens": 1, "completion_tokens": 1} | cost)
    assert usage is not None
    assert usage.cost_usd is None


@pytest.mark.parametrize(
    "exchange", [each for each in ALL if each["expected"].get("details")], ids=name_of
)
def test_signed_reasoning_is_kept(exchange: dict[str, Any]) -> None:
    response, _ = read(exchange)
    assert response is not None
    assert response.details == exchange["expected"]["details"]


def test_the_recordings_are_all_there() -> None:
    """A glob that finds nothing would make the tests above pass over nothing."""
    assert len(ALL) - len(RECORDED) >= 25
    if not SHARED.exists():
        pytest.skip("no recordings")
    assert {api: sum(each["api"] == api for each in RECORDED) for api in OPS} == {
        "openai.chat": 113,
        "openai.completions": 3,
        "openai.embeddings": 5,
    }


# -- streams, however they are cut -----------------------------------------------------------------


@pytest.fixture(scope="module")
def replay() -> ModuleType:
    if not SHARED.exists():
        pytest.skip("no recordings")
    spec = importlib.util.spec_from_file_location("wire_replay", SHARED / "replay.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.sampled(3)
@pytest.mark.parametrize("mode", MODES)
def test_recorded_events_do_not_depend_on_the_cuts(replay: ModuleType, mode: str) -> None:
    for exchange in STREAMS:
        data = bytes_of(exchange)
        pieces = replay.pieces(data, mode, random.Random(7))
        assert b"".join(pieces) == data
        assert parsed(pieces) == parsed([data]), exchange["id"]


@pytest.mark.parametrize(
    "exchange", [each for each in STREAMS if each not in RECORDED], ids=name_of
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_events_do_not_depend_on_the_cuts(exchange: dict[str, Any], size: int) -> None:
    data = bytes_of(exchange)
    assert [parsed(cut(data, size, seed)) for seed in range(5)] == [parsed([data])] * 5


@pytest.mark.parametrize("exchange", STREAMS, ids=name_of)
def test_each_native_event_is_the_one_that_came(exchange: dict[str, Any]) -> None:
    """An API of the same dialect passes these on: none may be lost, added or changed."""
    events, chunks = parsed([bytes_of(exchange)]), []
    try:
        chunks.extend(openai.decode_events(events, request_of(exchange)))
    except ProviderError:
        assert exchange["expected"]["error"]
    sent = [event.encode() for event in events if event.data != openai.DONE]
    assert [chunk.native for chunk in chunks] == sent[: len(chunks)]
    assert len(sent) - len(chunks) == (
        1 if exchange["expected"]["error"] and len(sent) > len(chunks) else 0
    )
    assert all(chunk.dialect == openai.NAME for chunk in chunks)


@pytest.mark.parametrize(
    "exchange",
    [
        each
        for each in STREAMS
        if not each["expected"]["error"]
        and each["api"] == "openai.chat"
        and b"[DONE]" in bytes_of(each)
    ],
    ids=name_of,
)
def test_a_stream_cut_before_its_finish_reason_is_incomplete(exchange: dict[str, Any]) -> None:
    request, events = request_of(exchange), parsed([bytes_of(exchange)])
    finish = next(
        at
        for at, event in enumerate(events)
        if event.data
        and any(each.get("finish_reason") for each in json.loads(event.data).get("choices") or ())
    )
    for at in range(finish):
        with pytest.raises(StreamIncomplete):
            list(openai.decode_events(events[:at], request))


def test_silence_becomes_a_heartbeat() -> None:
    done = Event(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
    chunks = list(openai.decode_events([None, done, None, Event(openai.DONE)], ASKED))
    assert [chunk == HEARTBEAT for chunk in chunks] == [True, False, True]
    assert not HEARTBEAT.has_content


@pytest.mark.parametrize(
    ("event", "only"),
    [
        ({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}, True),
        ({"choices": [], "usage": None}, False),
        ({"choices": [], "prompt_filter_results": []}, False),
        (
            {
                "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            },
            False,
        ),
    ],
)
def test_an_event_of_usage_alone_is_marked(event: dict[str, Any], only: bool) -> None:
    chunk = next(iter(openai.decode_events([Event(strict_json.encode(event))], ASKED)))
    assert chunk.usage_only is only


def test_other_choices_than_the_first_are_not_mixed_into_it() -> None:
    events = [
        Event(
            strict_json.encode(
                {"choices": [{"index": index, "delta": {"content": word}, "finish_reason": None}]}
            )
        )
        for index, word in ((0, "a"), (1, "x"), (0, "b"), (2, "y"))
    ]
    chunks = list(openai.decode_events([*events, Event(openai.DONE)], ASKED))
    assert "".join(chunk.text for chunk in chunks) == "ab"
    assert all(chunk.native for chunk in chunks)


# -- the same answer, whole and in pieces ----------------------------------------------------------


def folded(chunks: Iterator[Any]) -> InferResponse:
    fold = StreamAccumulator()
    for chunk in chunks:
        fold.add(chunk)
    return fold.response("vendor", ASKED.model)


def deltas(message: dict[str, Any], chance: random.Random) -> Iterator[dict[str, Any]]:
    """What a vendor that streams would send for a message."""
    for name, value in message.items():
        if name == "tool_calls":
            for index, call in enumerate(value or []):
                yield from call_deltas({**call, "index": index}, chance)
        elif isinstance(value, str) and name not in ("role",):
            yield from ({name: piece} for piece in strings(value, chance))
        elif isinstance(value, list) and name in ("content", "reasoning_details"):
            yield from ({name: [part]} for part in value)


def call_deltas(call: dict[str, Any], chance: random.Random) -> Iterator[dict[str, Any]]:
    arguments = call.get("function", {}).get("arguments")
    if not isinstance(arguments, str):
        yield {"tool_calls": [call]}
        return
    yield {"tool_calls": [{**call, "function": {**call["function"], "arguments": ""}}]}
    for piece in strings(arguments, chance):
        yield {"tool_calls": [{"index": call["index"], "function": {"arguments": piece}}]}


def strings(value: str, chance: random.Random) -> list[str]:
    at, pieces = 0, []
    while at < len(value):
        step = chance.randint(1, 9)
        pieces.append(value[at : at + step])
        at += step
    return pieces


def streamed(body: dict[str, Any], chance: random.Random) -> bytes:
    """A stream of the same answer."""
    head = {name: value for name, value in body.items() if name not in ("choices", "usage")}
    choice = body["choices"][0]
    bodies = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas(choice["message"], chance)
    ]
    bodies.append(
        {
            **head,
            "choices": [
                {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"] or "stop"}
            ],
        }
    )
    bodies.append({**head, "choices": [], "usage": body.get("usage")})
    return (
        b"".join(b"data: " + strict_json.encode(each) + b"\n\n" for each in bodies)
        + b"data: [DONE]\n\n"
    )


def same(one: InferResponse, other: InferResponse) -> None:
    for field in (
        "model",
        "provider",
        "content",
        "tokens_in",
        "tokens_out",
        "finish_reason",
        "reasoning",
        "refusal",
        "usage",
        "id",
    ):
        assert getattr(one, field) == getattr(other, field), field
    assert list(one.tool_calls) == list(other.tool_calls)
    assert list(one.details) == list(other.details)


@pytest.mark.parametrize("exchange", named(WHOLE))
def test_an_answer_in_one_piece_folds_to_itself(exchange: dict[str, Any]) -> None:
    data, request = bytes_of(exchange), request_of(exchange)
    same(
        folded(whole(openai.decode_response(data, request))), openai.decode_response(data, request)
    )


@pytest.mark.parametrize("exchange", named(WHOLE))
def test_an_answer_in_many_pieces_folds_to_the_whole(exchange: dict[str, Any]) -> None:
    request = request_of(exchange)
    whole = openai.decode_response(bytes_of(exchange), request)
    stream = streamed(exchange["response"]["body"], random.Random(11))
    same(folded(openai.decode_events(parsed(cut(stream, 50)), request)), whole)


# -- requests --------------------------------------------------------------------------------------

ODD = (
    '\r\n {  "temperature" : 1.50,"model"\t:\t"asked-model" , '
    '"messages":[ {"role":"user","content":"\\u0047r\\u00fc\\u00dfe \\ud83c\\udf0d /\\/ \\b"} ],\n'
    ' "seed":12345678901234567890, "top_p":1E-2, "zzz":{"b":1,"a":[ ]},"metadata":{"model":"asked-model"}, "x":-0.0 }\n'
)
PLAIN = '{"model":"asked-model","messages":[]}'


def native(text: str, *, op: str = CHAT, model: str = "asked-model") -> InferRequest:
    request, _ = downstream.decode_request(strict_json.document(text), op=op)
    return replace(request, model=model, provider="vendor")


@pytest.mark.parametrize("text", [ODD, PLAIN], ids=["odd", "plain"])
def test_a_clients_own_bytes_reach_the_vendor(text: str) -> None:
    assert openai.encode_request(native(text), stream=False) == text.encode()


@pytest.mark.parametrize("text", [ODD, PLAIN], ids=["odd", "plain"])
@pytest.mark.parametrize("model", ["other", 'with "quotes" and \\', "größer"])
def test_of_a_clients_bytes_only_the_model_is_replaced(text: str, model: str) -> None:
    before, _, after = text.partition('"asked-model"')
    wanted = before + json.dumps(model, ensure_ascii=False) + after
    assert openai.encode_request(native(text, model=model), stream=False) == wanted.encode()


@pytest.mark.parametrize("text", [ODD, PLAIN], ids=["odd", "plain"])
def test_a_stream_only_gains_the_wish_for_usage(text: str) -> None:
    sent = openai.encode_request(native(text), stream=True).decode()
    kept = text.rstrip()[:-1].rstrip()
    assert sent == kept + ',"stream_options":{"include_usage":true}}'


def test_the_other_stream_options_stay() -> None:
    text = '{"model":"asked-model", "stream_options" : {"include_obfuscation": false, "include_usage": false} ,"messages":[],"stream": true}'
    wanted = '{"model":"asked-model", "stream_options" : {"include_obfuscation":false,"include_usage":true} ,"messages":[],"stream": true}'
    assert openai.encode_request(native(text), stream=True) == wanted.encode()
    assert openai.encode_request(native(wanted), stream=True) == wanted.encode()


@pytest.mark.parametrize("value", ["null", "{}"])
def test_empty_stream_options_are_filled(value: str) -> None:
    text = '{"model":"asked-model","messages":[],"stream":true,"stream_options":' + value + "}"
    assert json.loads(openai.encode_request(native(text), stream=True))["stream_options"] == {
        "include_usage": True
    }


def test_other_operations_know_no_stream_options() -> None:
    text = '{"model":"asked-model","input":"x"}'
    assert openai.encode_request(native(text, op="embeddings"), stream=True) == text.encode()


def test_a_request_of_our_own_is_sent_under_openais_names() -> None:
    request = replace(ASKED, params={"temperature": 0.5, "tools": [], "stop": ["Ä"]})
    assert openai.encode_request(request, stream=False) == (
        '{"model":"asked-model","messages":[{"role":"user","content":"Hi"}],"temperature":0.5,"tools":[],"stop":["Ä"]}'.encode()
    )
    streaming = json.loads(openai.encode_request(request, stream=True))
    assert streaming == json.loads(openai.encode_request(request, stream=False)) | {
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("op", "path"),
    [
        (CHAT, "/chat/completions"),
        ("completions", "/completions"),
        ("embeddings", "/embeddings"),
    ],
)
def test_each_operation_has_its_path(op: str, path: str) -> None:
    assert [openai.path(replace(ASKED, op=op), stream=stream) for stream in (False, True)] == [
        path,
        path,
    ]


# -- errors ----------------------------------------------------------------------------------------

ERRORS = [
    (
        401,
        {"error": {"code": "401", "message": "Access denied due to invalid subscription key"}},
        "ProviderAuthError",
    ),
    (403, {"error": {"message": "This key may not use that", "code": 403}}, "ProviderAuthError"),
    (
        400,
        {"code": "invalid-argument", "error": "Incorrect API key provided. You can obtain one."},
        "ProviderAuthError",
    ),
    (401, {"detail": "Invalid API Key"}, "ProviderAuthError"),
    (
        402,
        {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}},
        "QuotaExhausted",
    ),
    (
        429,
        {
            "error": {
                "message": "You exceeded your current quota",
                "type": "insufficient_quota",
                "code": "insufficient_quota",
            }
        },
        "QuotaExhausted",
    ),
    (
        429,
        {
            "error": {
                "message": "Rate limit reached",
                "type": "requests",
                "code": "rate_limit_exceeded",
            }
        },
        "ProviderRateLimited",
    ),
    (
        429,
        {"message": "Requests rate limit exceeded", "type": "rate_limited", "code": "1300"},
        "ProviderRateLimited",
    ),
    (404, {"error": "model 'llama' not found"}, "ProviderModelNotFound"),
    (
        404,
        {"error": {"message": "The model does not exist", "code": "model_not_found"}},
        "ProviderModelNotFound",
    ),
    (
        400,
        {
            "error": {
                "message": "This model's maximum context length is 8192 tokens",
                "code": "context_length_exceeded",
            }
        },
        "ProviderContextTooLong",
    ),
    (
        400,
        {
            "error": {
                "message": "no",
                "code": "content_filter",
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        "ContentFiltered",
    ),
    (
        400,
        {
            "error": {
                "message": "Unsupported parameter",
                "param": "stop",
                "type": "invalid_request_error",
            }
        },
        "ProviderRejected",
    ),
    (422, {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, "ProviderRejected"),
    (413, {"error": {"message": "Request too large"}}, "ProviderRejected"),
    (405, {"detail": "Method Not Allowed"}, "ProviderError"),
    (408, {}, "ProviderTimeout"),
    (500, {"error": {"message": "The server had an error"}}, "ProviderUnavailable"),
    (
        503,
        {"error": {"message": "overloaded", "type": "service_unavailable"}},
        "ProviderUnavailable",
    ),
    (504, None, "ProviderTimeout"),
    (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "ProviderUnavailable",
    ),
]


@pytest.mark.parametrize(("status", "body", "kind"), ERRORS)
def test_the_error_bodies_of_many_vendors(status: int, body: Any, kind: str) -> None:
    error = openai.decode_error(status, {}, json.dumps(body).encode())
    assert type(error).__name__ == kind


@pytest.mark.parametrize("status", [300, 400, 401, 404, 429, 500, 503, 999])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>Bad Gateway</html>",
        b"[]",
        b'"x"',
        b"null",
        b"7",
        b"NaN",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"error":',
        b'{"error":null}',
        b'{"error":[1]}',
        b'{"error":{"message":{"a":1},"code":[1],"type":7,"param":{}}}',
        b'{"error":{"message":null}}',
        b'{"error":5}',
        b'{"error":{"metadata":{"headers":{"X-RateLimit-Reset":[]}}}}',
    ],
)
def test_an_error_of_any_form_is_an_error_with_words(status: int, data: bytes) -> None:
    error = openai.decode_error(status, {}, data)
    assert isinstance(error, ProviderError)
    assert isinstance(error.message, str)
    assert error.message
    assert error.retry_after is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after": "1", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "1", "retry-after-ms": "0"}, 1),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "٣"}, None),
        ({}, None),
    ],
)
def test_a_throttled_call_says_how_long(headers: dict[str, str], seconds: float | None) -> None:
    assert openai.decode_error(429, headers, b"{}").retry_after == seconds


def test_a_date_is_as_good_as_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai.time, "time", lambda: 1_800_000_000.0)
    from datetime import UTC, datetime

    then = format_datetime(datetime.fromtimestamp(1_800_000_042, UTC), usegmt=True)
    assert openai.decode_error(503, {"retry-after": then}, b"{}").retry_after == 42
    reset = {
        "error": {
            "message": "x",
            "code": 429,
            "metadata": {"headers": {"X-RateLimit-Reset": "1800000009000"}},
        }
    }
    assert openai.decode_error(429, {}, json.dumps(reset).encode()).retry_after == 9


@pytest.mark.parametrize("value", ["9" * 400, "9" * 30 + ".5"])
def test_a_wait_without_end_is_no_number_of_seconds(value: str) -> None:
    """An API writes it into a header as a whole number: infinity has none."""
    wait = openai.decode_error(429, {"retry-after": value}, b"{}").retry_after
    assert wait is None or wait < 2**31


@pytest.mark.parametrize("status", [200, 401])
def test_retry_after_means_nothing_elsewhere(status: int) -> None:
    assert openai.decode_error(status, {"retry-after": "9"}, b"{}").retry_after is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "x", "code": 400}, "ProviderRejected"),
        ({"message": "x", "code": 429}, "ProviderRateLimited"),
        ({"message": "x", "status_code": 401, "code": "bad"}, "ProviderAuthError"),
        ({"message": "x", "code": 200}, "ProviderUnavailable"),
        ({"message": "x", "code": "400"}, "ProviderUnavailable"),
        ({"message": "x"}, "ProviderUnavailable"),
        ("x", "ProviderUnavailable"),
        ([1], "ProviderUnavailable"),
        (True, "ProviderUnavailable"),
        ({"code": True}, "ProviderUnavailable"),
        ({"code": 10**30}, "ProviderUnavailable"),
    ],
)
def test_an_error_inside_a_200_is_one(error: Any, kind: str) -> None:
    data = json.dumps({"error": error}).encode()
    for reading in (
        lambda: openai.decode_response(data, ASKED),
        lambda: list(openai.decode_events([Event(data)], ASKED)),
    ):
        with pytest.raises(ProviderError) as raised:
            reading()
        assert type(raised.value).__name__ == kind


def test_every_class_of_provider_error_is_told_from_the_wire() -> None:
    seen = {kind for _, _, kind in ERRORS} | {"StreamIncomplete"}
    kinds = {
        kind.__name__
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ProviderError)
    }
    assert kinds == seen
    assert {ProviderRateLimited.__name__, ProviderUnavailable.__name__} <= seen


# -- nonsense --------------------------------------------------------------------------------------

NONSENSE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**399,
    "",
    "x",
    "\ud800",
    [],
    [None],
    [[]],
    [{}],
    {},
    {"x": None},
    [1, "a", {}],
]


def check_typed(response: InferResponse) -> None:
    """What every API takes for granted of an answer."""
    for field in ("model", "content", "finish_reason", "reasoning", "refusal", "id"):
        assert isinstance(getattr(response, field), str), field
    for call in response.tool_calls:
        if call.get("type") != "custom":
            assert all(
                isinstance(value, str)
                for value in (call["id"], call["function"]["name"], call["function"]["arguments"])
            )
    strict_json.encode(response.to_dict())
    strict_json.encode(downstream.encode_response(response, created=0))
    strict_json.encode(messages.encode_response(response))


@pytest.mark.parametrize(
    "exchange",
    named([each for each in WHOLE if each not in RECORDED]),
)
def test_an_odd_value_anywhere_in_an_answer_is_nonsense_or_understood(
    exchange: dict[str, Any],
) -> None:
    body = exchange["response"]["body"]
    for at in places(body):
        for odd in NONSENSE:
            data = json.dumps(with_odd(body, at, odd)).encode()
            try:
                check_typed(openai.decode_response(data, ASKED))
            except (ProviderError, *SENSELESS) as error:
                assert not isinstance(error, AssertionError), (at, odd)
            except Exception as error:
                pytest.fail(f"{error!r} for {odd!r:.40} at {at}")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "exchange",
    named([each for each in STREAMS if each not in RECORDED]),
)
def test_an_odd_value_anywhere_in_a_stream_is_nonsense_or_understood(
    exchange: dict[str, Any],
) -> None:
    events = [event for event in parsed([bytes_of(exchange)]) if event.data != openai.DONE]
    for number, event in enumerate(events):
        body = json.loads(event.data)
        for at in places(body):
            for odd in NONSENSE:
                changed = [
                    *events[:number],
                    Event(json.dumps(with_odd(body, at, odd)).encode()),
                    *events[number + 1 :],
                    Event(openai.DONE),
                ]
                try:
                    chunks = list(openai.decode_events(changed, ASKED))
                except (ProviderError, *SENSELESS):
                    continue
                except Exception as error:
                    pytest.fail(f"{error!r} for {odd!r:.40} at {at}")
                check_folds(chunks, at, odd)


@pytest.mark.parametrize("odd", [{"text": True}, {"signature": 1}, {"data": []}, {"index": [0]}])
def test_odd_details_of_thoughts_are_nonsense(odd: dict[str, Any]) -> None:
    details = {"reasoning_details": [{"type": "reasoning.text", "text": "Hm"} | odd]}
    event = strict_json.encode({"choices": [{"index": 0, "delta": details}]})
    with pytest.raises(ValueError, match=r"expected a|a token count"):
        list(openai.decode_events([Event(event)], ASKED))
    whole = strict_json.encode({"choices": [{"message": {"content": "a"} | details}]})
    with pytest.raises(ValueError, match=r"expected a|a token count"):
        openai.decode_response(whole, ASKED)


def check_folds(chunks: list[Any], at: tuple[Any, ...], odd: Any) -> None:
    """What the dialect has let through must be good for everything that follows it."""
    try:
        check_typed(folded(iter(chunks)))
        writer = Writer(model="m", ident="msg_1", native=False)
        assert b"".join(map(writer.encode, chunks)) + writer.end({}, None)
    except Exception as error:
        pytest.fail(f"{error!r} for {odd!r:.40} at {at}")
