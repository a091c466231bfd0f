"""Tests of the Gemini dialect with recorded traffic, own examples, and invalid input."""

from __future__ import annotations

import base64
import contextlib
import copy
import importlib.util
import json
import random
import struct
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import places, with_odd

from infermux.dialects.gemini import upstream as gemini
from infermux.dialects.gemini.requests import OWN_ID
from infermux.dialects.parameters import Kind, kinds
from infermux.errors import (
    ProviderAuthError,
    ProviderContextTooLong,
    ProviderError,
    ProviderModelNotFound,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RequestError,
    StreamIncomplete,
    UnsupportedParameter,
)
from infermux.planning.call import StreamAccumulator
from infermux.protocol import InferRequest, InferResponse, Native, strict_json
from infermux.protocol.json_array import ArrayParser
from infermux.protocol.sse import Event, Parser
from infermux.types import HEARTBEAT

HERE = Path(__file__).parents[1]
SHARED = Path(__file__).parents[3] / "shared" / "wire"
OPS = {
    "gemini.generateContent": "chat",
    "gemini.embedContent": "embeddings",
    "gemini.countTokens": "count_tokens",
}
SPLITS = ("byte", "mid-line", "mid-utf8", "crlf", "random", "event")
ERRORS = {
    name: kind
    for kind in (
        ProviderAuthError,
        ProviderContextTooLong,
        ProviderModelNotFound,
        ProviderRateLimited,
        ProviderRejected,
        ProviderTimeout,
        ProviderUnavailable,
        QuotaExhausted,
    )
    for name in [kind.__name__]
}
ALLOWED = (ValueError, TypeError, KeyError, AttributeError, ProviderError)
KINDS = {
    401: ProviderAuthError,
    403: ProviderAuthError,
    404: ProviderModelNotFound,
    408: ProviderTimeout,
    429: ProviderRateLimited,
    504: ProviderTimeout,
}


def load(folder: Path) -> list[Any]:
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    return [pytest.param(one, id=one["id"]) for one in found if one["api"] in OPS]


OWN = load(HERE / "data" / "wire" / "gemini")
ALL = OWN + (load(SHARED / "exchanges") if SHARED.exists() else [])
ANSWERS = [
    one
    for one in ALL
    if one.values[0]["response"]["status"] == 200 and "raises" not in one.values[0]["expected"]
]
STREAMS = [one for one in ANSWERS if one.values[0]["stream"]]
CHATS = [one for one in ANSWERS if one.values[0]["api"] == "gemini.generateContent"]


def body_of(exchange: dict[str, Any]) -> bytes:
    body = exchange["response"]["body"]
    return body.encode() if isinstance(body, str) else strict_json.encode(body)


def request_of(exchange: dict[str, Any]) -> InferRequest:
    return InferRequest(model="asked", provider="gemini", op=OPS[exchange["api"]])


def cut(data: bytes, mode: str) -> list[bytes]:
    if not SHARED.exists():
        rnd, size = random.Random(mode), len(data)
        marks = sorted(
            {0, size, *(range(size) if mode == "byte" else rnd.sample(range(size), min(size, 40)))}
        )
        return [data[a:b] for a, b in pairwise(marks)]
    spec = importlib.util.spec_from_file_location("replay", SHARED / "replay.py")
    assert spec and spec.loader
    replay = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(replay)
    found: list[bytes] = replay.pieces(data, mode, random.Random(0))
    return found


def events(data: bytes, mode: str = "whole") -> list[Event]:
    parser = Parser()
    return [
        event
        for piece in ([data] if mode == "whole" else cut(data, mode))
        for event in parser.feed(piece)
    ] + parser.end()


def streamed(data: bytes, request: InferRequest, mode: str = "whole") -> InferResponse:
    fold = StreamAccumulator()
    for chunk in (
        gemini.decode_events(ArrayParser().feed(data), request)
        if data.lstrip()[:1] in b"[{"
        else gemini.decode_events(events(data, mode), request)
    ):
        fold.add(chunk)
    return fold.response(request.provider, request.model)


def check(found: InferResponse, expected: dict[str, Any]) -> None:
    """Compare an answer with what an exchange says it holds."""
    assert (found.content, found.reasoning) == (
        expected["text"],
        expected.get("reasoning_text", ""),
    )
    assert found.refusal == (expected.get("refusal") or "")
    reason = gemini.finish_reason(expected["finish_reason_raw"])
    blocked = (expected.get("prompt_feedback") or {}).get("blockReason")
    wanted = (
        "content_filter"
        if blocked
        else "tool_calls"
        if reason == "stop" and expected["tool_calls"]
        else reason
    )
    assert found.finish_reason == wanted
    assert len(found.tool_calls) == len(expected["tool_calls"])
    for call, want in zip(found.tool_calls, expected["tool_calls"], strict=True):
        assert call["type"] == "function" and call["function"]["name"] == want["name"]
        assert json.loads(call["function"]["arguments"]) == want["arguments"]
        assert call["id"] == want["id"] if want["id"] else call["id"]
    assert len({call["id"] for call in found.tool_calls}) == len(found.tool_calls)
    assert found.model == (expected["model"] or "asked") and found.id == (expected["id"] or "")
    check_usage(found, expected["usage"])


def check_usage(found: InferResponse, usage: dict[str, Any] | None) -> None:
    if usage is None:
        assert found.usage is None
        return
    assert found.usage is not None
    assert (
        found.usage.input_tokens == usage["all_input_tokens"]
        and found.usage.output_tokens == usage["all_output_tokens"]
    )
    for name in ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens"):
        assert getattr(found.usage, name) == usage.get(name)
    assert found.usage.tool_use_tokens == usage.get("tool_use_prompt_tokens")
    assert (found.tokens_in, found.tokens_out) == (
        usage["all_input_tokens"] or 0,
        usage["all_output_tokens"] or 0,
    )


# -- the recorded set and our own ------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [one for one in CHATS if not one.values[0]["stream"]])
def test_an_answer_reads_as_expected(exchange):
    data = body_of(exchange)
    found = gemini.decode_response(data, request_of(exchange))
    check(found, exchange["expected"])
    assert found.native == ("gemini", data)


@pytest.mark.parametrize("mode", SPLITS)
@pytest.mark.parametrize("exchange", STREAMS)
def test_a_stream_reads_as_expected_however_it_is_cut(exchange, mode):
    check(streamed(body_of(exchange), request_of(exchange), mode), exchange["expected"])


@pytest.mark.parametrize(
    "exchange", [one for one in ANSWERS if one.values[0]["api"] == "gemini.embedContent"]
)
def test_embeddings_read_as_expected(exchange):
    found, want = (
        gemini.decode_response(body_of(exchange), request_of(exchange)),
        exchange["expected"]["embeddings"],
    )
    vectors = [item["embedding"] for item in found.extra["data"]]
    assert [item["index"] for item in found.extra["data"]] == list(range(want["count"]))
    assert [vector[:3] for vector in vectors] == want["first3"]
    check_usage(found, exchange["expected"]["usage"])


@pytest.mark.parametrize(
    "exchange", [one for one in ANSWERS if one.values[0]["api"] == "gemini.countTokens"]
)
def test_token_counts_read_as_expected(exchange):
    found = gemini.decode_response(body_of(exchange), request_of(exchange))
    assert found.extra == {"input_tokens": exchange["expected"]["input_tokens"]}
    assert found.tokens_in == exchange["expected"]["input_tokens"]


@pytest.mark.parametrize(
    "exchange", [one for one in ALL if one.values[0]["response"]["status"] >= 400]
)
def test_an_error_reads_as_expected(exchange):
    status, want = exchange["response"]["status"], exchange["expected"]["error"]
    found = gemini.decode_error(status, exchange["response"].get("headers", {}), body_of(exchange))
    kind = ERRORS[want["class"]] if "class" in want else KINDS.get(status)
    if kind is None:
        bad_key, long = (
            want.get("reason") == "API_KEY_INVALID",
            "token count" in (want["message"] or ""),
        )
        kind = (
            ProviderAuthError
            if bad_key
            else ProviderContextTooLong
            if long
            else ProviderUnavailable
            if status >= 500
            else ProviderRejected
        )
    assert type(found) is kind or ("class" not in want and isinstance(found, kind))
    if isinstance(found, ProviderRejected | ProviderModelNotFound):
        assert found.message == want["message"]
    delay = want.get("retry_delay_in_body")
    if delay is not None:
        assert found.retry_after == (
            delay if isinstance(delay, int | float) else float(delay.rstrip("s"))
        )


@pytest.mark.parametrize("exchange", [one for one in OWN if "raises" in one.values[0]["expected"]])
def test_a_broken_stream_raises_after_what_came_before(exchange):
    want, fold = exchange["expected"], StreamAccumulator()
    with pytest.raises(ProviderError) as caught:
        for chunk in gemini.decode_events(events(body_of(exchange)), request_of(exchange)):
            fold.add(chunk)
    assert type(caught.value).__name__ == want["raises"]
    assert fold.response("", "").content == want["text"]


# -- streams ---------------------------------------------------------------------------------------


def as_stream(answer: dict[str, Any]) -> bytes:
    """Return the answer as a stream would bring it: one part per event, counts and finish reason
    last.
    """
    candidate = answer["candidates"][0]
    head = {name: answer[name] for name in ("modelVersion", "responseId") if name in answer}
    bodies = [
        head | {"candidates": [{"content": {"role": "model", "parts": [part]}}]}
        for part in candidate["content"].get("parts", [])
    ]
    bodies.append(
        head
        | {
            "candidates": [{name: value for name, value in candidate.items() if name != "content"}],
            "usageMetadata": answer.get("usageMetadata"),
        }
    )
    return b"".join(b"data: " + strict_json.encode(body) + b"\r\n\r\n" for body in bodies)


def plain(found: InferResponse) -> dict[str, Any]:
    """Everything of an answer but what cannot be the same twice: ids that we made up, and the
    bytes.
    """
    calls = [
        call | {"id": "" if OWN_ID.fullmatch(call["id"]) else call["id"]}
        for call in found.tool_calls
    ]
    return {name: getattr(found, name) for name in InferResponse.__slots__ if name != "native"} | {
        "tool_calls": calls,
        "details": list(found.details),
    }


@pytest.mark.parametrize(
    "exchange",
    [
        one
        for one in CHATS
        if not one.values[0]["stream"] and one.values[0]["response"]["body"].get("candidates")
    ],
)
def test_a_stream_folds_to_the_same_answer(exchange):
    request = request_of(exchange)
    found = gemini.decode_response(body_of(exchange), request)
    assert plain(streamed(as_stream(exchange["response"]["body"]), request)) == plain(found)
    assert plain(streamed(body_of(exchange), request)) == plain(found)


def test_silence_becomes_a_heartbeat_and_events_keep_their_bytes():
    one = Event(b'{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}')
    chunks = list(gemini.decode_events([None, one, None], InferRequest(model="m")))
    assert chunks[0] is HEARTBEAT and chunks[2] is HEARTBEAT
    assert chunks[1].native == one.data and chunks[1].dialect == "gemini"


@pytest.mark.parametrize("exchange", STREAMS)
def test_a_stream_without_its_last_event_is_incomplete(exchange):
    data = body_of(exchange)
    if data.lstrip().startswith(b"[") or exchange["id"] == "own.stream_oddities":
        return
    with pytest.raises(StreamIncomplete):
        list(gemini.decode_events(events(data)[:-1], request_of(exchange)))


@pytest.mark.parametrize(
    "data", [b"[]", b'[{"candidates":[{"content":{"parts":[{"text":"a"}]}}]}]']
)
def test_an_array_without_a_finish_is_incomplete(data):
    with pytest.raises(StreamIncomplete):
        list(gemini.decode_events(ArrayParser().feed(data), InferRequest(model="m")))


def test_an_error_inside_an_array_is_raised():
    data = b'[{"candidates":[{"content":{"parts":[{"text":"a"}]}}]},{"error":{"code":503,"status":"UNAVAILABLE","message":"x"}}]'
    with pytest.raises(ProviderUnavailable):
        list(gemini.decode_events(ArrayParser().feed(data), InferRequest(model="m")))


def test_calls_of_several_events_have_indexes_of_their_own():
    call = {
        "candidates": [
            {
                "content": {
                    "parts": [{"functionCall": {"name": "f"}}, {"functionCall": {"name": "g"}}]
                }
            }
        ]
    }
    last = {"candidates": [{"content": {"parts": [{"text": ""}]}, "finishReason": "STOP"}]}
    chunks = list(
        gemini.decode_events(
            [Event(strict_json.encode(one)) for one in (call, call, last)], InferRequest(model="m")
        )
    )
    assert [one["index"] for chunk in chunks for one in chunk.tool_calls] == [0, 1, 2, 3]
    assert len({one["id"] for chunk in chunks for one in chunk.tool_calls}) == 4
    assert chunks[-1].finish_reason == "tool_calls"


def test_other_candidates_are_not_mixed_in():
    answer = {
        "candidates": [
            {"index": 1, "content": {"parts": [{"text": "no"}]}, "finishReason": "STOP"},
            {"content": {"parts": [{"text": "yes"}]}, "finishReason": "STOP"},
        ]
    }
    assert (
        gemini.decode_response(strict_json.encode(answer), InferRequest(model="m")).content == "yes"
    )


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ("STOP", "stop"),
        (1, "stop"),
        ("MAX_TOKENS", "length"),
        (2, "length"),
        ("SAFETY", "content_filter"),
        (3, "content_filter"),
        (4, "content_filter"),
        (7, "content_filter"),
        (8, "content_filter"),
        (9, "content_filter"),
        (11, "content_filter"),
        ("RECITATION", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        (5, "other"),
        ("LANGUAGE", "content_filter"),
        (6, "content_filter"),
        (10, "malformed_function_call"),
        ("UNEXPECTED_TOOL_CALL", "unexpected_tool_call"),
        (99, "99"),
        (0, ""),
        (None, ""),
        ("FINISH_REASON_UNSPECIFIED", ""),
    ],
)
def test_finish_reasons(raw, want):
    assert gemini.finish_reason(raw) == want


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"candidates":[]}',
        b'{"candidates":[{}]}',
        b'{"usageMetadata":{}}',
        b'{"candidates":[{"finishReason":true}]}',
        b"\xff",
        b'{"promptFeedback":{}}',
    ],
)
def test_an_answer_that_says_nothing_makes_no_sense(data):
    with pytest.raises(ALLOWED):
        gemini.decode_response(data, InferRequest(model="m"))


def test_an_answer_without_finish_reason_has_stopped():
    answer = {
        "candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": None}}]}}]
    }
    found = gemini.decode_response(strict_json.encode(answer), InferRequest(model="m"))
    assert (
        found.finish_reason == "tool_calls" and found.tool_calls[0]["function"]["arguments"] == "{}"
    )


def test_a_count_without_number_is_none():
    for data in (b"{}", b'{"totalTokens":null}', b'{"totalTokens":"x"}'):
        with pytest.raises(ALLOWED):
            gemini.decode_response(data, InferRequest(model="m", op="count_tokens"))


def test_half_a_function_call_is_refused():
    part = {
        "functionCall": {
            "name": "f",
            "partialArgs": [{"jsonPath": "$.a", "stringValue": "x"}],
            "willContinue": True,
        }
    }
    with pytest.raises(ValueError, match="whole"):
        gemini.decode_response(
            strict_json.encode({"candidates": [{"content": {"parts": [part]}}]}),
            InferRequest(model="m"),
        )


def test_an_error_with_status_200_is_raised():
    with pytest.raises(ProviderRateLimited):
        gemini.decode_response(
            b'{"error":{"code":429,"message":"slow down"}}', InferRequest(model="m")
        )


def test_embeddings_as_base64_and_their_number():
    request = InferRequest(
        model="m", op="embeddings", params={"input": ["a", "b"], "encoding_format": "base64"}
    )
    data = b'{"embeddings":[{"values":[0.5,1]},{"values":[2,-1.5]}],"usageMetadata":{"promptTokenCount":4}}'
    found = gemini.decode_response(data, request)
    assert [
        struct.unpack("<2f", base64.b64decode(item["embedding"])) for item in found.extra["data"]
    ] == [(0.5, 1), (2, -1.5)]
    assert found.tokens_in == 4
    with pytest.raises(ValueError, match="as many"):
        gemini.decode_response(b'{"embeddings":[{"values":[1]}]}', request)
    for huge in (b"1e300", b"1" * 400):
        with pytest.raises(ValueError):
            gemini.decode_response(
                b'{"embeddings":[{"values":[1]},{"values":[%s]}]}' % huge, request
            )


@pytest.mark.parametrize(
    "data",
    [
        b'{"embeddings":[]}',
        b'{"embeddings":[{}]}',
        b'{"embeddings":[{"values":["x"]}]}',
        b'{"embedding":{"values":[]}}',
        b'{"embedding":7}',
        b'{"embeddings":[{"values":[1,true]}]}',
        b"{}",
    ],
)
def test_embeddings_that_are_none(data):
    with pytest.raises(ALLOWED):
        gemini.decode_response(data, InferRequest(model="m", op="embeddings"))


ODD = (None, [], {}, "x", -1, True, 1.5, [None], {"a": 1})


@pytest.mark.parametrize(
    "exchange", [one for one in OWN if isinstance(one.values[0]["response"]["body"], dict)]
)
def test_wrong_types_in_an_answer_are_never_another_exception(exchange):
    body, status = exchange["response"]["body"], exchange["response"]["status"]
    for place in [*places(body)][1:]:
        for odd in ODD:
            data = strict_json.encode(with_odd(body, place, odd))
            assert isinstance(gemini.decode_error(status, {}, data), ProviderError)
            with contextlib.suppress(*ALLOWED):
                gemini.decode_response(data, request_of(exchange))
            with contextlib.suppress(*ALLOWED):
                list(gemini.decode_events(ArrayParser().feed(data), request_of(exchange)))


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("text", 5),
        ("thought", "x"),
        ("thoughtSignature", 1),
        ("functionCall", "x"),
        ("functionCall", {"name": 5}),
        ("functionCall", {"name": "f", "args": []}),
    ],
)
def test_a_part_of_the_wrong_type_is_not_misread(name, odd):
    answer = {
        "candidates": [{"content": {"parts": [{"text": "a", name: odd}]}, "finishReason": "STOP"}]
    }
    with pytest.raises(ValueError):
        gemini.decode_response(strict_json.encode(answer), InferRequest(model="m"))


# -- errors ----------------------------------------------------------------------------------------


def error(code: int, message: str, *details: dict[str, Any], **more: Any) -> bytes:
    return strict_json.encode(
        {"error": {"code": code, "message": message, "details": list(details)} | more}
    )


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "48.5s"}


def test_a_throttle_says_how_long():
    found = gemini.decode_error(429, {}, error(429, "quota", RETRY, status="RESOURCE_EXHAUSTED"))
    assert type(found) is ProviderRateLimited and found.retry_after == 48.5
    assert (
        gemini.decode_error(429, {"retry-after": "3"}, error(429, "quota", RETRY)).retry_after == 3
    )


def test_a_quota_of_the_day_is_exhausted():
    day = {
        "violations": [
            {"quotaId": "GenerateRequestsPerMinute"},
            {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"},
        ]
    }
    found = gemini.decode_error(429, {}, error(429, "quota", day, RETRY))
    assert type(found) is QuotaExhausted and found.retry_after is None
    minute = {"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}]}
    assert type(gemini.decode_error(429, {}, error(429, "quota", minute))) is ProviderRateLimited


def test_an_expired_key_is_ours_whatever_the_words():
    assert (
        type(gemini.decode_error(400, {}, error(400, "Renew it.", {"reason": "API_KEY_INVALID"})))
        is ProviderAuthError
    )


@pytest.mark.parametrize("wrap", [b"[%s]", b"%s\n", b"data: %s\n\n", b"\xef\xbb\xbf%s"])
def test_an_error_is_read_in_every_wrapping(wrap):
    found = gemini.decode_error(400, {}, wrap % error(400, "temperature is odd"))
    assert type(found) is ProviderRejected and found.message == "temperature is odd"


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[]", b"[1]", b"{}", b'{"error":"x"}', b'{"error":null}', b"\xff\xfe"]
)
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_error_body_of_any_kind_is_an_error(data, status):
    assert isinstance(gemini.decode_error(status, {}, data), ProviderError)


# -- paths and keys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "stream", "params", "want"),
    [
        ("chat", False, {}, "/models/m:generateContent"),
        ("chat", True, {}, "/models/m:streamGenerateContent?alt=sse"),
        ("embeddings", False, {"input": "a"}, "/models/m:embedContent"),
        ("embeddings", False, {"input": ["a"]}, "/models/m:batchEmbedContents"),
        ("count_tokens", False, {}, "/models/m:countTokens"),
    ],
)
def test_paths(op, stream, params, want):
    assert gemini.path(InferRequest(model="m", op=op, params=params), stream=stream) == want
    assert gemini.path(InferRequest(model="models/m", op=op, params=params), stream=stream) == want


@pytest.mark.parametrize(
    "model",
    [
        "../../v1/x",
        "a?b=c",
        "a#b",
        "a/b",
        "a:b",
        "models/models/a",
        "a b",
        "a%2Fb",
        "é",
        "..",
        "\ud800",
    ],
)
def test_no_name_changes_the_path(model):
    found = gemini.path(InferRequest(model=model), stream=False)
    assert found.startswith("/models/") and found.endswith(":generateContent")
    assert not set(found.removeprefix("/models/").removesuffix(":generateContent")) & set("/?#: ")


def test_the_prefix_is_taken_off_once():
    assert (
        gemini.path(InferRequest(model="models/models/a"), stream=False)
        == "/models/models%2Fa:generateContent"
    )


@pytest.mark.parametrize("op", ["completions", "responses", "images"])
def test_other_operations_have_no_path(op):
    with pytest.raises(UnsupportedParameter):
        gemini.path(InferRequest(model="m", op=op), stream=False)


def test_the_key_is_a_header():
    assert gemini.auth("k") == {"x-goog-api-key": "k"}
    assert gemini.headers(InferRequest(model="m")) == {}


# -- requests --------------------------------------------------------------------------------------

HELLO = {"role": "user", "content": "hello"}


def sent(
    messages: list[dict[str, Any]] | None = None,
    op: str = "chat",
    drop: list[str] | None = None,
    lenient: bool = False,
    **params: Any,
) -> dict[str, Any]:
    request = InferRequest(
        model="models/m",
        messages=[HELLO] if messages is None else messages,
        params=params,
        op=op,
        dropped=drop,
        lenient=lenient,
    )
    before = copy.deepcopy(request)
    found: dict[str, Any] = strict_json.loads(gemini.encode_request(request, stream=False))
    assert request == before  # nothing of the caller's is changed on the way
    return found


def config(**params: Any) -> dict[str, Any]:
    found: dict[str, Any] = sent(**params)["generationConfig"]
    return found


def test_a_conversation():
    found = sent(
        [
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "and kind"}]},
            HELLO,
            {"role": "assistant", "content": "hi"},
            HELLO,
            {"role": "assistant", "content": None},
        ]
    )
    assert found == {
        "systemInstruction": {"parts": [{"text": "be brief"}, {"text": "and kind"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "hello"}]},
            {"role": "model", "parts": [{"text": "hi"}]},
            {"role": "user", "parts": [{"text": "hello"}]},
        ],
    }


ANSWER = {
    "candidates": [
        {
            "content": {
                "role": "model",
                "parts": [
                    {"text": "hm", "thought": True, "thoughtSignature": "c2lnLTE="},
                    {"text": "let me look", "thoughtSignature": "c2lnLTI="},
                    {
                        "functionCall": {"name": "f", "args": {"a": [1, "é"]}, "id": "wire1"},
                        "thoughtSignature": "c2lnLTM=",
                    },
                    {"functionCall": {"name": "g"}},
                ],
            },
            "finishReason": "STOP",
        }
    ]
}


def turn(found: InferResponse) -> dict[str, Any]:
    signed = [call["extra_content"] for call in found.tool_calls if "extra_content" in call]
    return {
        "extra_content": signed[0] if signed else None,  # as OpenAI's Agents for JavaScript do
        "role": "assistant",
        "content": found.content or None,
        "tool_calls": list(found.tool_calls),
        "reasoning_content": found.reasoning,
        "reasoning_details": list(found.details),
    }


@pytest.mark.parametrize(
    "read",
    [
        lambda data, request: gemini.decode_response(data, request),
        lambda data, request: streamed(as_stream(json.loads(data)), request),
    ],
)
def test_a_turn_with_tools_goes_back_as_it_came(read):
    found = read(strict_json.encode(ANSWER), InferRequest(model="m"))
    first, second = found.tool_calls
    left: list[str] = []
    body = sent(
        drop=left,
        messages=[
            HELLO,
            turn(found),
            {"role": "tool", "tool_call_id": first["id"], "content": '{"ok": true}'},
            {"role": "tool", "tool_call_id": second["id"], "name": "g", "content": "42"},
            {"role": "user", "content": "and?"},
        ],
    )
    assert left == []
    wanted = copy.deepcopy(ANSWER["candidates"][0]["content"])
    wanted["parts"][3]["functionCall"]["args"] = {}
    assert body["contents"][1] == wanted
    assert body["contents"][2] == {
        "role": "user",
        "parts": [
            {"functionResponse": {"id": "wire1", "name": "f", "response": {"ok": True}}},
            {"functionResponse": {"name": "g", "response": {"result": "42"}}},
        ],
    }
    assert body["contents"][3] == {"role": "user", "parts": [{"text": "and?"}]}


CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
}


@pytest.mark.parametrize(
    ("message", "response"),
    [
        ({"content": "no", "is_error": True}, {"error": "no"}),
        ({"content": "[1]"}, {"result": "[1]"}),
        ({"content": ""}, {"result": ""}),
        ({"content": "{}"}, {}),
        (
            {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"result": "ab"},
        ),
        ({"content": '{"a": NaN}'}, {"result": '{"a": NaN}'}),
    ],
)
def test_tool_results(message, response):
    found = sent([HELLO, CALLED, {"role": "tool", "tool_call_id": "c1"} | message])["contents"]
    assert found[1]["parts"] == [{"functionCall": {"id": "c1", "name": "f", "args": {}}}]
    assert found[2]["parts"] == [
        {"functionResponse": {"id": "c1", "name": "f", "response": response}}
    ]


def test_an_image_in_a_tool_result_stands_beside_it():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    found = sent(
        [
            HELLO,
            CALLED,
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": [{"type": "text", "text": "see"}, image],
            },
        ]
    )
    assert found["contents"][2]["parts"][1] == {
        "inlineData": {"mimeType": "image/png", "data": "QUJD"}
    }


def test_a_result_of_no_call_is_refused():
    with pytest.raises(RequestError) as caught:
        sent([HELLO, {"role": "tool", "tool_call_id": "nope", "content": "x"}])
    assert caught.value.param == "messages[1].tool_call_id"


def test_signatures_of_text_go_back_and_those_of_others_do_not():
    details = [
        {
            "type": "reasoning.text",
            "text": "t",
            "signature": "theirs",
            "format": "anthropic-claude-v1",
            "index": 0,
        },
        {"type": "reasoning.encrypted", "data": "one", "format": "google-gemini-v1", "index": 1},
        {"type": "reasoning.encrypted", "data": "two", "format": "google-gemini-v1", "index": 2},
    ]
    found = sent([HELLO, {"role": "assistant", "content": "hi", "reasoning_details": details}])
    assert found["contents"][1]["parts"] == [
        {"text": "", "thoughtSignature": "one"},
        {"text": "hi", "thoughtSignature": "two"},
    ]


@pytest.mark.parametrize(
    ("part", "want"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
            {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
        ),
        (
            {
                "type": "image_url",
                "image_url": {"url": "https://h.example/a/b.webp?x=1", "detail": "auto"},
            },
            {"fileData": {"mimeType": "image/webp", "fileUri": "https://h.example/a/b.webp?x=1"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://h.example/a"}},
            {"fileData": {"fileUri": "https://h.example/a"}},
        ),
        (
            {
                "type": "file",
                "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"},
            },
            {"inlineData": {"mimeType": "application/pdf", "data": "QUJD"}},
        ),
        (
            {"type": "file", "file": {"file_url": "gs://b/c.pdf"}},
            {"fileData": {"mimeType": "application/pdf", "fileUri": "gs://b/c.pdf"}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:,a%20b"}},
            {"inlineData": {"mimeType": "text/plain", "data": "YSBi"}},
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
            {"inlineData": {"mimeType": "audio/wav", "data": "QUJD"}},
        ),
        ({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"text": "a"}),
    ],
)
def test_parts(part, want):
    assert sent([{"role": "user", "content": [part]}])["contents"][0]["parts"] == [want]


@pytest.mark.parametrize(
    ("params", "want"),
    [
        ({"max_tokens": 5}, {"maxOutputTokens": 5}),
        ({"max_completion_tokens": 6}, {"maxOutputTokens": 6}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"maxOutputTokens": 6}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"maxOutputTokens": 6}),
        (
            {"temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 7},
            {"temperature": 0, "topP": 0.5, "topK": 3, "seed": 7},
        ),
        ({"stop": "a"}, {"stopSequences": ["a"]}),
        ({"stop": ["a", "b"]}, {"stopSequences": ["a", "b"]}),
        (
            {"presence_penalty": 1, "frequency_penalty": -1.5},
            {"presencePenalty": 1, "frequencyPenalty": -1.5},
        ),
        ({"reasoning_effort": "none"}, {"thinkingConfig": {"thinkingBudget": 0}}),
        (
            {"reasoning_effort": "medium"},
            {"thinkingConfig": {"thinkingBudget": 8192, "includeThoughts": True}},
        ),
        (
            {"reasoning_effort": "low", "thinkingConfig": {"includeThoughts": False}},
            {"thinkingConfig": {"thinkingBudget": 1024, "includeThoughts": False}},
        ),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "x",
                        "strict": True,
                        "schema": {"type": "object", "$defs": {}},
                    },
                }
            },
            {
                "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "object"},
            },
        ),
        (
            {"temperature": 1, "generationConfig": {"temperature": 0.5, "mediaResolution": "LOW"}},
            {"temperature": 0.5, "mediaResolution": "LOW"},
        ),
        (
            {"responseModalities": ["TEXT"], "speechConfig": {"a": 1}},
            {"responseModalities": ["TEXT"], "speechConfig": {"a": 1}},
        ),
    ],
)
def test_parameters(params, want):
    assert config(**params) == want


@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("gemini-2.5-flash", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", {"thinkingBudget": 128}),
        ("gemini-3.1-pro", {"thinkingLevel": "LOW"}),
        ("gemini-3.5-flash-lite", {"thinkingLevel": "LOW"}),
    ],
)
def test_a_model_that_must_think_thinks_least(model, least):
    asked, params = [{"role": "user", "content": "?"}], {"reasoning_effort": "none"}
    request = InferRequest(model, asked, params=params)
    body = json.loads(gemini.encode_request(request, stream=False))
    assert body["generationConfig"] == {"thinkingConfig": least}


@pytest.mark.parametrize(
    "params",
    [
        {"n": 1},
        {"parallel_tool_calls": True},
        {"modalities": ["text"]},
        {"store": False},
        {"service_tier": "auto"},
        {"logprobs": False},
        {"stream_options": {"include_usage": True}},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"user": None},
    ],
)
def test_what_the_wire_does_anyway_needs_no_words(params):
    assert set(sent(**params)) == {"contents"}


def test_the_vendors_own_words_pass():
    safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    found = sent(
        safetySettings=safety,
        cachedContent="cachedContents/1",
        toolConfig={"retrievalConfig": {"languageCode": "de"}},
        tool_choice="auto",
        tools=[{"googleSearch": {}}, {"type": "function", "function": {"name": "f"}}],
    )
    assert found["safetySettings"] == safety and found["cachedContent"] == "cachedContents/1"
    assert found["toolConfig"] == {
        "retrievalConfig": {"languageCode": "de"},
        "functionCallingConfig": {"mode": "AUTO"},
    }
    assert found["tools"] == [{"functionDeclarations": [{"name": "f"}]}, {"googleSearch": {}}]


def test_tools():
    schema = {
        "type": "object",
        "properties": {"a": {"type": ["string", "null"]}},
        "additionalProperties": False,
    }
    open_schema = {name: schema[name] for name in ("type", "properties")}  # Google's subset
    tools = [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}},
        {"type": "function", "function": {"name": "g"}},
        {"type": "function", "function": {"name": "h", "parameters": {"properties": {"a": {}}}}},
    ]
    typed = {"type": "object", "properties": {"a": {}}}  # which Vertex AI wants
    assert sent(tools=tools)["tools"] == [
        {
            "functionDeclarations": [
                {"name": "f", "description": "d", "parametersJsonSchema": open_schema},
                {"name": "g"},
                {"name": "h", "parametersJsonSchema": typed},
            ]
        }
    ]


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        (
            {"type": "function", "function": {"name": "f"}},
            {"mode": "ANY", "allowedFunctionNames": ["f"]},
        ),
    ],
)
def test_tool_choice(choice, want):
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = sent(tool_choice=choice, tools=tools)["toolConfig"]
    assert found == {"functionCallingConfig": want}


def test_google_gets_no_choice_without_functions():
    dropped = []
    found = sent(tool_choice="auto", tools=[{"googleSearch": {}}], drop=dropped)
    assert "toolConfig" not in found and dropped == ["tool_choice"]


UNSUPPORTED = [
    ("n", 2),
    ("parallel_tool_calls", False),
    ("logit_bias", {"1": 2}),
    ("user", "u"),
    ("metadata", {"a": "b"}),
    ("store", True),
    ("service_tier", "flex"),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x"}),
    ("prediction", {}),
    ("verbosity", "low"),
    ("safety_identifier", "s"),
    ("prompt_cache_key", "k"),
    ("functions", [{"name": "f"}]),
    ("logprobs", True),
    ("top_logprobs", 2),
    ("reasoning_effort", "boundless"),
    ("whatever", 1),
    ("tools", [{"type": "computer_20250124", "name": "computer"}]),
    ("response_format", {"type": "grammar"}),
    ("candidateCount", 2),
]


def check_kind(name, ask):
    """A hint is always left out, a preference where that is allowed, a meaning never."""
    kind = kinds().get(name, Kind.MEANING)
    for lenient in (False, True):
        drop = []
        if kind is Kind.HINT or (lenient and kind is Kind.PREFERENCE):
            assert set(ask(drop=drop, lenient=lenient)) == {"contents"} and drop == [name]
        else:
            with pytest.raises(UnsupportedParameter) as caught:
                ask(drop=drop, lenient=lenient)
            assert caught.value.param == name


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED)
def test_what_cannot_be_said_goes_by_its_kind(name, value):
    check_kind(name, partial(sent, **{name: value}))


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (HELLO | {"name": "bob"}, "messages.name"),
        (HELLO | {"audio": {"id": "a"}}, "messages.audio"),
        (
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {"url": "https://h.example/a.png", "detail": "low"},
                    }
                ],
            },
            "image_url.detail",
        ),
    ],
)
def test_members_of_messages_that_cannot_be_said(message, name):
    check_kind(name, partial(sent, [message]))


def test_hints_are_noted_but_never_refused():
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    file = {
        "type": "file",
        "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"},
    }
    tool = {"type": "function", "function": {"name": "f", "strict": True}}
    drop: list[str] = []
    assert sent([{"role": "user", "content": [part, file]}], tools=[tool], drop=drop) == sent(
        [{"role": "user", "content": [part, file]}], tools=[tool]
    )
    assert drop == ["cache_control", "file.filename", "tools.strict"]


def test_odd_urls_and_empty_contents_are_no_crash():
    for url in ("http://[", "data:", "data:x", "ftp://a/b", "", "https://h.example/?a=b.png"):
        try:
            found = sent(
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
            )
        except RequestError as error:
            assert error.param == "messages[0].content[0].url"
        else:
            assert found["contents"][0]["parts"] == [{"fileData": {"fileUri": url}}]
    found = sent(
        [
            CALLED,
            {"role": "user", "content": []},
            {"role": "tool", "tool_call_id": "c1", "content": "x"},
        ]
    )
    assert [one["role"] for one in found["contents"]] == ["user", "model", "user"]


def test_a_call_comes_after_a_turn_of_the_user():
    """Google refuses one that begins the conversation, or that follows another of the model's."""
    two = CALLED | {"tool_calls": [CALLED["tool_calls"][0] | {"id": "c2"}]}
    turns = [{"role": "assistant", "content": "Let me look."}, CALLED, two]
    turns += [{"role": "tool", "tool_call_id": name, "content": name} for name in ("c2", "c1")]
    begun, said, answered = sent(turns)["contents"]
    assert begun == {"role": "user", "parts": [{"text": "Begin."}]}
    assert said["role"] == "model" and said["parts"][0] == {"text": "Let me look."}
    assert [part["functionCall"]["id"] for part in said["parts"][1:]] == ["c1", "c2"]
    assert [part["functionResponse"]["id"] for part in answered["parts"]] == ["c1", "c2"]


@pytest.mark.parametrize(("seed", "sent_as"), [(7, 7), (2**31, 0), (2**63 - 1, 2**31 - 1)])
def test_a_seed_fits_googles_integer(seed, sent_as):
    assert config(seed=seed)["seed"] == sent_as


@pytest.mark.parametrize(
    ("model", "takes"),
    [("gemini-2.0-flash", True), ("gemini-2.5-pro", False), ("gemini-3.5-flash", False)],
)
def test_penalties_go_only_to_models_that_take_them(model, takes):
    params = {"presence_penalty": 0.5, "frequency_penalty": 0}
    request = InferRequest(model, [HELLO], params=params, dropped=[])
    body = strict_json.loads(gemini.encode_request(request, stream=False))
    wanted = {"presencePenalty": 0.5, "frequencyPenalty": 0}
    assert body.get("generationConfig", {}) == (wanted if takes else {})
    assert request.dropped == ([] if takes else ["presence_penalty"])


@pytest.mark.parametrize(
    ("model", "inside"), [("gemini-2.5-pro", False), ("gemini-3.5-flash", True)]
)
def test_what_a_result_shows_is_in_it_from_gemini_3_on(model, inside):
    urls = {"image/png": "data:image/png;base64,aGk=", "video/mp4": "data:video/mp4;base64,aGk="}
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls.values()]
    result = {"role": "tool", "tool_call_id": "c1", "content": shown}
    body = gemini.encode_request(InferRequest(model, [HELLO, CALLED, result]), stream=False)
    first, *rest = strict_json.loads(body)["contents"][-1]["parts"]
    image, video = ({"inlineData": {"mimeType": kind, "data": "aGk="}} for kind in urls)
    assert first["functionResponse"].get("parts", []) == ([image] if inside else [])
    assert rest == ([video] if inside else [image, video])


RICH = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD"}},
                {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
            ],
        },
        {
            "role": "assistant",
            "content": "b",
            "refusal": "no",
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "f", "arguments": "{}"},
                    "extra_content": {"google": {"thought_signature": "s"}},
                }
            ],
            "reasoning_details": [
                {
                    "type": "reasoning.text",
                    "text": "t",
                    "signature": "s",
                    "format": "google-gemini-v1",
                    "index": 0,
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}]},
    ],
    "params": {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "stop": ["a"],
        "seed": 1,
        "n": 1,
        "logprobs": False,
        "top_logprobs": 0,
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": True,
        "presence_penalty": 1,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}},
        },
        "reasoning_effort": "low",
        "generationConfig": {"mediaResolution": "x"},
        "thinkingConfig": {"includeThoughts": True},
        "toolConfig": {"a": 1},
    },
}


@pytest.mark.parametrize("place", [*places(RICH)][1:], ids=str)
def test_wrong_types_in_a_request_are_the_callers_to_mend(place):
    if len(place) == 1:
        return
    for odd in (*ODD, float("nan")):
        wrong = with_odd(RICH, place, odd)
        try:
            gemini.encode_request(InferRequest(model="m", **wrong), stream=False)
        except RequestError as error:
            assert error.param
        except ValueError:
            assert odd != odd  # NaN, of which the provider tells


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("temperature", "hot"),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("stop", [1]),
        ("n", "x"),
        ("tools", {}),
        ("tool_choice", "any"),
        ("response_format", "json"),
        ("reasoning_effort", 5),
        ("generationConfig", []),
        ("thinkingConfig", "x"),
        ("parallel_tool_calls", "no"),
        ("logprobs", 1),
        ("toolConfig", 1),
    ],
)
def test_a_wrong_type_is_named(name, odd):
    with pytest.raises(RequestError) as caught:
        sent(**{name: odd})
    assert caught.value.param == name and not isinstance(caught.value, UnsupportedParameter)


def test_embedding_requests():
    assert sent([], op="embeddings", input="a", dimensions=8) == {
        "content": {"parts": [{"text": "a"}]},
        "outputDimensionality": 8,
    }
    assert sent([], op="embeddings", input=["a", "b"], taskType="RETRIEVAL_QUERY") == {
        "requests": [
            {
                "model": "models/m",
                "content": {"parts": [{"text": word}]},
                "taskType": "RETRIEVAL_QUERY",
            }
            for word in "ab"
        ]
    }
    for odd in (None, 5, [], [1, 2], [["a"]]):
        with pytest.raises(RequestError) as caught:
            sent([], op="embeddings", input=odd)
        assert caught.value.param == "input"
    drop: list[str] = []
    assert sent([], op="embeddings", input="a", user="u", drop=drop) == {
        "content": {"parts": [{"text": "a"}]}
    }
    assert drop == ["user"]
    with pytest.raises(UnsupportedParameter) as refused:
        sent([], op="embeddings", input="a", late_chunking=True)
    assert refused.value.param == "late_chunking"


def test_counting_takes_the_whole_request_along():
    assert sent(op="count_tokens") == {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
    found = sent([{"role": "system", "content": "s"}, HELLO], op="count_tokens")
    assert found == {
        "generateContentRequest": {
            "model": "models/m",
            "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
            "systemInstruction": {"parts": [{"text": "s"}]},
        }
    }


def test_a_native_body_is_not_touched():
    text = '{ "contents":[{"parts":[{"text":"\\u00e9 é"}]}],\r\n "generationConfig":{"topK":1.0,"x":1e2},"odd":null}'
    native = Native("gemini", strict_json.document(text))
    request = InferRequest(model="m", params={"user": "u"}, native=native)
    assert gemini.encode_request(request, stream=True) == text.encode()
    batch = Native("gemini", strict_json.document('{"requests":[]}'))
    assert gemini.path(
        InferRequest(model="m", op="embeddings", native=batch), stream=False
    ).endswith(":batchEmbedContents")


def test_a_body_of_another_dialect_is_translated():
    native = Native("openai", strict_json.document('{"model":"x","messages":[]}'))
    assert strict_json.loads(
        gemini.encode_request(
            InferRequest(model="m", messages=[HELLO], native=native), stream=False
        )
    ) == {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
