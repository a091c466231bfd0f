"""Tests of the vendor's side of Responses: recorded traffic, own examples, and invalid input."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import places, with_odd

from infermux import errors
from infermux.dialects import without
from infermux.dialects.anthropic import downstream as anthropic
from infermux.dialects.blocks import whole
from infermux.dialects.calls import fitted
from infermux.dialects.gemini import downstream as gemini
from infermux.dialects.openai import downstream as openai
from infermux.dialects.parameters import Drop
from infermux.dialects.responses import Support, downstream
from infermux.dialects.responses.requests import translated
from infermux.dialects.responses.stream import Encoder, encode_answer
from infermux.dialects.responses.upstream import Responses
from infermux.dialects.stops import stopped, stopped_stream
from infermux.errors import ProviderError, StreamIncomplete, UnsupportedParameter
from infermux.planning.call import StreamAccumulator
from infermux.protocol import InferRequest, InferResponse, Native, strict_json
from infermux.protocol.sse import Event, Parser
from infermux.providers.failures import NONSENSE
from infermux.types import Chunk, Usage

SHARED = Path(__file__).resolve().parents[3] / "shared" / "wire" / "exchanges"
RECORDED = [
    json.loads(file.read_text("utf-8")) for file in sorted(SHARED.glob("*.openai.responses.*.json"))
]
STREAMS = [each for each in RECORDED if each["stream"]]
WHOLE = [each for each in RECORDED if not each["stream"] and not each["expected"]["error"]]
ASKED = InferRequest(model="asked", provider="vendor", messages=[{"role": "user", "content": "Hi"}])
VENDOR = Responses()


def name_of(exchange: dict[str, Any]) -> str:
    return str(exchange["id"])


def parsed(pieces: list[bytes]) -> list[Event]:
    parser = Parser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.end()


def split(data: bytes, how: str) -> list[bytes]:
    if how == "whole":
        return [data]
    if how == "byte":
        return [data[at : at + 1] for at in range(len(data))]
    if how == "line":
        return data.splitlines(keepends=True)
    if how == "crlf":
        return [data.replace(b"\n", b"\r\n")]
    chance, pieces = random.Random(7), []
    while data:
        size = chance.randint(1, 900)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def folded(events: list[Event]) -> InferResponse:
    fold = StreamAccumulator()
    for chunk in VENDOR.decode_events(events, ASKED):
        fold.add(chunk)
    return fold.response("vendor", "asked")


def bytes_of(exchange: dict[str, Any]) -> bytes:
    body = exchange["response"]["body"]
    return (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()


def check(response: InferResponse, expected: dict[str, Any]) -> None:
    assert response.content == expected["text"]
    assert response.reasoning == expected["reasoning_text"]
    assert (response.refusal or None) == expected["refusal"]
    assert [
        {
            "id": call["id"],
            "name": call["function"]["name"],
            "arguments": json.loads(call["function"]["arguments"] or "{}"),
        }
        for call in response.tool_calls
    ] == expected["tool_calls"]
    assert (response.model, response.id) == (expected["model"], expected["id"])
    usage, wanted = response.usage, expected["usage"]
    assert usage is not None
    for theirs, ours in {
        "all_input_tokens": "input_tokens",
        "all_output_tokens": "output_tokens",
        "cached_input_tokens": "cached_input_tokens",
        "cache_write_tokens": "cache_write_tokens",
        "reasoning_tokens": "reasoning_tokens",
    }.items():
        assert getattr(usage, ours) == wanted[theirs], ours
    reason = expected["finish_reason_raw"]
    length = {"max_output_tokens": "length"}.get(expected.get("incomplete_reason"), "")
    assert response.finish_reason == (
        length if reason == "incomplete" else "tool_calls" if expected["tool_calls"] else "stop"
    )


@pytest.mark.parametrize("exchange", WHOLE, ids=name_of)
def test_a_recorded_response_is_read_as_expected(exchange: dict[str, Any]) -> None:
    data = bytes_of(exchange)
    response = VENDOR.decode_response(data, ASKED)
    check(response, exchange["expected"])
    assert response.native == ("responses", data)
    [chunk] = whole(VENDOR.decode_response(data, ASKED))
    assert (chunk.text, chunk.usage) == (response.content, response.usage)


@pytest.mark.parametrize("how", ["whole", "line", "random", "crlf", "byte"])
@pytest.mark.parametrize("exchange", STREAMS, ids=name_of)
def test_a_recorded_stream_is_read_as_expected(exchange: dict[str, Any], how: str) -> None:
    events = [*parsed(split(bytes_of(exchange), how)), Event(b"[DONE] ")]
    check(folded(events), exchange["expected"])


@pytest.mark.parametrize("exchange", STREAMS, ids=name_of)
def test_a_stream_amounts_to_its_last_response(exchange: dict[str, Any]) -> None:
    events = parsed([bytes_of(exchange)])
    last = next(
        body["response"]
        for event in reversed(events)
        if event.data != b"[DONE]" and (body := json.loads(event.data)).get("response")
    )
    stream = folded(events)
    whole = VENDOR.decode_response(json.dumps(last).encode(), ASKED)
    for detail in (*stream.details, *whole.details):
        detail.pop("data", None)  # OpenAI encrypts anew for each event
    assert stream == replace(whole, native=None)


@pytest.mark.parametrize("exchange", STREAMS, ids=name_of)
def test_the_events_of_a_recorded_stream_are_passed_on_as_they_are(
    exchange: dict[str, Any],
) -> None:
    data = bytes_of(exchange)
    events = [event for event in parsed([data]) if event.data != b"[DONE]"]
    chunks = [chunk for chunk in VENDOR.decode_events(events, ASKED) if chunk.native]
    assert b"".join(chunk.native or b"" for chunk in chunks) == b"".join(
        event.encode() for event in events
    )
    assert {chunk.dialect for chunk in chunks} == {"responses"}


def event(kind: str, **members: Any) -> Event:
    return Event(json.dumps({"type": kind, **members}).encode(), kind.encode())


ENCRYPTED = "gAAAAABsecret"
OUTPUT = [
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [
            {"type": "summary_text", "text": "First."},
            {"type": "summary_text", "text": "Second."},
        ],
        "encrypted_content": ENCRYPTED,
    },
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Let me look."}],
    },
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": "{}"},
    {
        "type": "custom_tool_call",
        "id": "ctc_1",
        "call_id": "call_2",
        "name": "patch",
        "input": "*** Begin",
    },
    {"type": "web_search_call", "id": "ws_1", "status": "completed"},
]
USAGE = {"input_tokens": 31, "output_tokens": 17, "total_tokens": 48}
ANSWER = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "gpt-6-luna",
    "output": OUTPUT,
    "usage": USAGE,
    "service_tier": "flex",
}


def stream_of(output: list[dict[str, Any]], deltas: bool = True) -> list[Event]:
    """The events of a response, with deltas of half a text each or without them."""
    events = [event("response.created", response=ANSWER | {"status": "in_progress", "output": []})]

    def halves(kind: str, text: str, **where: Any) -> None:
        middle = len(text) // 2
        for piece in (text[:middle], text[middle:]) if deltas else ():
            events.append(event(f"{kind}.delta", delta=piece, **where))

    for number, item in enumerate(output):
        where = {"item_id": item["id"], "output_index": number}
        bare = item | {
            name: "" if isinstance(item[name], str) else []
            for name in ("summary", "content", "arguments", "input")
            if name in item
        }
        bare.pop("encrypted_content", None)
        events.append(event("response.output_item.added", item=bare, output_index=number))
        for place, part in enumerate(item.get("summary", ())):
            halves("response.reasoning_summary_text", part["text"], summary_index=place, **where)
        for place, part in enumerate(item.get("content", ())):
            name = "refusal" if part["type"] == "refusal" else "text"
            kind = "response.refusal" if name == "refusal" else "response.output_text"
            halves(kind, part[name], content_index=place, **where)
            events.append(event(f"{kind}.done", content_index=place, **{name: part[name]}, **where))
        if item["type"] == "function_call":
            halves("response.function_call_arguments", item["arguments"], **where)
        if item["type"] == "custom_tool_call":
            halves("response.custom_tool_call_input", item["input"], **where)
        events.append(event("response.output_item.done", item=item, output_index=number))
    return [*events, event("response.completed", response=ANSWER)]


def of_items(events: list[Event]) -> list[Event]:
    """Return only the events of whole items, and the last one without them."""
    done = [each for each in events if each.name == b"response.output_item.done"]
    return [*done, event("response.completed", response=ANSWER | {"output": []})]


@pytest.mark.parametrize(
    "events",
    [stream_of(OUTPUT), stream_of(OUTPUT, deltas=False), of_items(stream_of(OUTPUT))],
)
def test_a_stream_amounts_to_the_whole_with_or_without_deltas(events: list[Event]) -> None:
    whole = VENDOR.decode_response(json.dumps(ANSWER).encode(), ASKED)
    assert folded(events) == replace(whole, native=None)


def test_a_stream_of_only_its_last_event_holds_the_output() -> None:
    whole = VENDOR.decode_response(json.dumps(ANSWER).encode(), ASKED)
    assert folded([event("response.completed", response=ANSWER)]) == replace(whole, native=None)


def test_every_kind_of_output_is_read() -> None:
    response = VENDOR.decode_response(json.dumps(ANSWER).encode(), ASKED)
    assert response.content == "Let me look."
    assert response.reasoning == "First.Second."
    assert response.tool_calls == [
        {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        {"id": "call_2", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}},
    ]
    own = {"id": "rs_1", "format": "openai-responses-v1"}
    assert response.details == [
        {"type": "reasoning.summary", "summary": "First.", **own, "index": 0},
        {"type": "reasoning.summary", "summary": "Second.", **own, "index": 1},
        {"type": "reasoning.encrypted", "data": ENCRYPTED, **own, "index": 2},
    ]
    assert response.usage is not None
    assert response.usage.service_tier == "flex"


def test_a_type_may_stand_only_in_the_event_line() -> None:
    bare = []
    for each in stream_of(OUTPUT):
        body = json.loads(each.data)
        del body["type"]
        bare.append(Event(json.dumps(body).encode(), each.name))
    whole = VENDOR.decode_response(json.dumps(ANSWER).encode(), ASKED)
    chunks = list(VENDOR.decode_events(bare, ASKED))
    fold = StreamAccumulator()
    for chunk in chunks:
        fold.add(chunk)
        assert chunk.native is not None
        assert b'"type":' in chunk.native
    assert fold.response("vendor", "asked") == replace(whole, native=None)


@pytest.mark.parametrize("ended", ["response.completed", "response.incomplete"])
def test_a_stream_without_its_last_event_is_incomplete(ended: str) -> None:
    events = [each for each in stream_of(OUTPUT) if each.name != b"response.completed"]
    with pytest.raises(StreamIncomplete):
        folded(events)
    cut = ANSWER | {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
    response = folded([*events, event(ended, response=cut)])
    assert response.finish_reason == "content_filter"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("rate_limit_exceeded", errors.ProviderRateLimited),
        ("server_error", errors.ProviderUnavailable),
        ("invalid_prompt", errors.ProviderRejected),
        ("context_length_exceeded", errors.ProviderContextTooLong),
        ("insufficient_quota", errors.QuotaExhausted),
        ("something_new", errors.ProviderUnavailable),
    ],
)
def test_a_failed_response_raises_the_vendors_error(code: str, kind: type[ProviderError]) -> None:
    error = {"code": code, "message": "It went wrong."}
    failed = ANSWER | {"status": "failed", "error": error, "output": []}
    flat = event("error", **error, param=None)
    nested = event("error", error=error | {"type": "x"})
    for read in (
        lambda: VENDOR.decode_response(json.dumps(failed).encode(), ASKED),
        lambda: folded([event("response.failed", response=failed)]),
        lambda: folded([*stream_of(OUTPUT)[:3], flat]),
        lambda: folded([*stream_of(OUTPUT)[:3], nested]),
    ):
        with pytest.raises(kind) as raised:
            read()
        for dialect in ("openai", "responses"):
            native = raised.value.native_in(dialect)
            assert native is not None
            assert native.members["code"] == code
            assert native.members.get("type") != "error", "that is the event's"


def test_what_a_failed_stream_used_is_known() -> None:
    failed = ANSWER | {"status": "failed", "error": {"code": "server_error", "message": "x"}}
    fold = StreamAccumulator()
    with pytest.raises(errors.ProviderUnavailable) as raised:
        for chunk in VENDOR.decode_events([event("response.failed", response=failed)], ASKED):
            fold.add(chunk)
    assert fold.usage is not None
    assert fold.usage.input_tokens == 31
    assert raised.value.usage == fold.usage, "no chunk is sent where nothing came before"


@pytest.mark.parametrize("odd", [True, 5, -1, 1.5, "x", [], [None], [[]], {}, {"x": None}])
def test_an_odd_value_anywhere_is_nonsense_or_understood(odd: Any) -> None:
    def check(read: Callable[[], InferResponse]) -> None:
        try:
            response = read()
        except (ProviderError, *NONSENSE):
            return
        for name in ("model", "id", "content", "reasoning", "finish_reason"):
            assert isinstance(getattr(response, name), str), (name, place)
        openai.encode_response(response, created=0)
        anthropic.encode_response(response)
        gemini.encode_response(response, ident="x")

    for place in [*places(ANSWER)][1:]:
        data = strict_json.encode(with_odd(ANSWER, place, odd))
        check(lambda data=data: VENDOR.decode_response(data, ASKED))  # type: ignore[misc]
    events = stream_of(OUTPUT[1:4])
    for number, each in enumerate(events):
        for place in [*places(body := json.loads(each.data))][1:]:
            hurt = Event(strict_json.encode(with_odd(body, place, odd)), each.name)
            changed = [*events[:number], hurt, *events[number + 1 :]]
            check(lambda changed=changed: folded(changed))  # type: ignore[misc]


# -- requests --------------------------------------------------------------------------------------


def body_of(form: str = "openai-responses-v1", **members: Any) -> dict[str, Any]:
    request = InferRequest("gpt-6-luna", **members)
    return translated(request, Drop(), form)


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CUSTOM = {
    "type": "custom",
    "custom": {
        "name": "patch",
        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x/"}},
    },
}


def test_a_conversation_becomes_items() -> None:
    response = VENDOR.decode_response(json.dumps(ANSWER).encode(), ASKED)
    turn = {
        "role": "assistant",
        "content": response.content,
        "tool_calls": response.tool_calls,
        "reasoning_details": response.details,
    }
    image = {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}}
    plain = {"type": "image_url", "image_url": {"url": "https://x.example/b.png"}}
    body = body_of(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, image, plain]},
            turn,
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "5"}]},
            {"role": "tool", "tool_call_id": "call_2", "content": "done"},
        ]
    )
    assert body["instructions"] == "Be brief."
    assert body["input"] == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Hi"},
                {"type": "input_image", "image_url": "https://x.example/a.png", "detail": "low"},
                {"type": "input_image", "image_url": "https://x.example/b.png", "detail": "auto"},
            ],
        },
        {**OUTPUT[0]},
        {"role": "assistant", "content": "Let me look."},
        {k: v for k, v in OUTPUT[2].items() if k != "id"},
        {k: v for k, v in OUTPUT[3].items() if k != "id"},
        {"type": "function_call_output", "call_id": "call_1", "output": "5"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"},
    ]
    assert body["store"] is False
    assert body["include"] == ["reasoning.encrypted_content"]


def test_reasoning_that_nothing_follows_is_left_out() -> None:
    """OpenAI refuses it, as of an answer that was cut while the model thought."""
    own = {"type": "reasoning.encrypted", "data": ENCRYPTED, "format": "openai-responses-v1"}
    cut = {"role": "assistant", "content": "", "reasoning_details": [own]}
    asked = {"role": "user", "content": "Go on."}
    assert body_of(messages=[asked, cut, asked])["input"] == [asked, asked]


def test_what_an_assistant_refused_is_a_refusal() -> None:
    turn = {"role": "assistant", "content": "No.", "refusal": "I will not."}
    (item,) = body_of(messages=[turn])["input"]
    said = [{"type": "output_text", "text": "No."}, {"type": "refusal", "refusal": "I will not."}]
    assert item == {"type": "message", "role": "assistant", "content": said}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "", "audio": {"id": "a"}},
        {"role": "assistant", "content": [{"type": "odd"}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]},
        {"role": "critic", "content": "No."},
    ],
)
def test_a_message_that_the_format_lacks_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter, match=r"messages\[0\]"):
        body_of(messages=[message])


@pytest.mark.parametrize("form", ["anthropic-claude-v1", "xai-responses-v1", "google-gemini-v1"])
def test_reasoning_of_another_format_is_left_out(form: str) -> None:
    details = [
        {"type": "reasoning.text", "text": "secret", "signature": "s", "format": form},
        {"type": "reasoning.encrypted", "data": "secret", "format": form, "id": "rs_9"},
    ]
    turn = {"role": "assistant", "content": "Yes.", "reasoning_details": details}
    assert "secret" not in json.dumps(body_of(messages=[turn]))


@pytest.mark.parametrize(
    ("fernet", "left"),
    [(True, [ENCRYPTED]), (False, ["qwerty"]), (None, [None, ENCRYPTED, "qwerty"])],
)
def test_a_vendor_gets_only_the_reasoning_that_it_could_have_given(
    fernet: bool | None, left: list[str | None]
) -> None:
    own = {"format": "openai-responses-v1"}
    details = [
        {"type": "reasoning.text", "text": "In the open.", "id": "rs_1", **own},
        {"type": "reasoning.encrypted", "data": ENCRYPTED, "id": "rs_2", **own},
        {"type": "reasoning.encrypted", "data": "qwerty", "id": "rs_3", **own},
    ]
    turn = {"role": "assistant", "content": "Yes.", "reasoning_details": details}
    sent = Responses(Support(fernet=fernet)).encode_request(
        InferRequest("gpt-6-luna", [turn]), stream=False
    )
    found = [item for item in json.loads(sent)["input"] if item.get("type") == "reasoning"]
    assert [item.get("encrypted_content") for item in found] == left


def test_params_get_their_names_and_forms() -> None:
    schema = {"name": "x", "schema": {"type": "object"}, "strict": True}
    body = body_of(
        messages=[{"role": "user", "content": "Hi"}],
        params={
            "max_completion_tokens": 5,
            "reasoning_effort": "high",
            "reasoning_summary": "auto",
            "verbosity": "low",
            "response_format": {"type": "json_schema", "json_schema": schema},
            "tools": [TOOL, CUSTOM, {"type": "web_search"}],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "look"}}],
                },
            },
            "parallel_tool_calls": False,
            "user": "u" * 70,
            "stream_options": {"include_usage": True},
            "x_own": 1,
            "input": "not this format's",
        },
    )
    assert body["input"] == [{"role": "user", "content": "Hi"}]
    assert body["max_output_tokens"] == 16
    assert body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert body["text"] == {"verbosity": "low", "format": {"type": "json_schema", **schema}}
    assert body["tools"] == [
        {
            "type": "function",
            "name": "look",
            "parameters": {"type": "object", "properties": {}},
            "strict": False,
        },
        {
            "type": "custom",
            "name": "patch",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"},
        },
        {"type": "web_search"},
    ]
    assert body["tool_choice"] == {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "look"}],
    }
    assert body["x_own"] == 1
    assert "stream_options" not in body and len(body["user"]) == 64  # hashed: it was too long


@pytest.mark.parametrize("param", [{"n": 2}, {"logprobs": True}])
def test_a_meaning_that_the_format_lacks_is_refused(param: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter):
        body_of(messages=[{"role": "user", "content": "Hi"}], params=param)


def test_a_preference_that_no_reasoning_model_takes_is_left_out() -> None:
    given = {"seed": 7, "frequency_penalty": 0.5, "logit_bias": {"5": 1}}
    asked = InferRequest("gpt-6-luna", [{"role": "user", "content": "Hi"}], params=given)
    drop = Drop()
    assert not translated(asked, drop).keys() & given.keys()
    assert drop.names == list(given)
    with pytest.raises(UnsupportedParameter):
        translated(replace(asked, model="gpt-4.1"), Drop())


def test_a_long_id_of_a_call_is_hashed_the_same_way_everywhere() -> None:
    ident = "toolu_" + "x" * 200
    call = {"id": ident, "type": "function", "function": {"name": "look", "arguments": "{}"}}
    body = body_of(
        messages=[
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": ident, "content": "5"},
        ]
    )
    [asked, answered] = [item["call_id"] for item in body["input"]]
    assert asked == answered
    assert len(asked) <= 64


def native(text: str, model: str = "gpt-6-luna", **params: Any) -> InferRequest:
    document = strict_json.document(text)
    return InferRequest(
        model,
        [{"role": "user", "content": "Hi"}],
        params=params,
        native=Native("responses", document),
    )


def test_a_clients_own_document_passes_byte_for_byte_but_for_the_model() -> None:
    text = '{ "model" : "fast",\n "input": [1e5, "\\u00e4"], "x":{"b":1,"a":[ ]}}'
    sent = VENDOR.encode_request(native(text), stream=True)
    assert sent.decode() == text.replace('"fast"', '"gpt-6-luna"')


@pytest.mark.parametrize(
    ("fernet", "left"), [(True, ["a", "c"]), (False, ["a", "b"]), (None, "abc")]
)
def test_reasoning_of_another_vendor_is_left_out_of_a_clients_document(
    fernet: bool | None, left: Any
) -> None:
    items = [
        {"type": "message", "id": "a"},
        {"type": "reasoning", "id": "b", "encrypted_content": "qwerty"},
        {"type": "reasoning", "id": "c", "encrypted_content": ENCRYPTED},
        {"type": "reasoning", "id": "d", "encrypted_content": "infermux1.W10"},
    ]
    vendor = Responses(Support(fernet=fernet))
    sent = vendor.encode_request(native(json.dumps({"model": "x", "input": items})), stream=False)
    assert [item["id"] for item in json.loads(sent)["input"]] == list(left)


def test_what_the_model_refuses_is_left_out_of_a_clients_document() -> None:
    text = json.dumps({"model": "x", "input": "Hi", "reasoning": {"effort": "low", "summary": "a"}})
    dropped: list[str] = []
    request = replace(native(text, "gpt-4.1", reasoning_effort="low"), dropped=dropped)
    sent = json.loads(VENDOR.encode_request(request, stream=False))
    assert sent["reasoning"] == {"summary": "a"}
    assert dropped == ["reasoning_effort"]


# -- what the client's side writes, the vendor's side reads ----------------------------------------

DOCUMENT = {
    "model": "gpt-6-luna",
    "instructions": "Be brief.",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Hi"},
                {"type": "input_image", "image_url": "https://x.example/a.png", "detail": "low"},
                {"type": "input_file", "filename": "a.pdf", "file_url": "https://x.example/a.pdf"},
                {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
            ],
        },
        {**OUTPUT[0]},
        {"role": "assistant", "content": "Let me look."},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"a":1}'},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "patch", "input": "*** Begin"},
        {"type": "function_call_output", "call_id": "call_1", "output": "5"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"},
        {"role": "user", "content": "Go on"},
    ],
    "tools": [
        {
            "type": "function",
            "name": "look",
            "description": "Looks.",
            "parameters": {"type": "object", "properties": {}},
            "strict": True,
        },
        {
            "type": "custom",
            "name": "patch",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"},
        },
    ],
    "tool_choice": {"type": "function", "name": "look"},
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {
        "format": {
            "type": "json_schema",
            "name": "x",
            "schema": {"type": "object"},
            "strict": True,
        },
        "verbosity": "low",
    },
    "max_output_tokens": 500,
    "temperature": 0.5,
    "top_p": 0.9,
    "include": ["reasoning.encrypted_content"],
    "truncation": "auto",
    "metadata": {"a": "b"},
    "client_metadata": {"c": "d"},
    "user": "u",
    "prompt_cache_key": "k",
    "service_tier": "flex",
    "store": False,
    "previous_response_id": "resp_0",
}


def test_a_request_that_is_read_and_written_is_the_same() -> None:
    request, _ = downstream.decode_request(strict_json.document(json.dumps(DOCUMENT)))
    assert translated(request, Drop()) == DOCUMENT


ANSWERS = [
    [OUTPUT[1]],
    OUTPUT[:4],
    [OUTPUT[0], OUTPUT[2], {**OUTPUT[2], "id": "fc_2", "call_id": "call_9"}],
    [{**OUTPUT[1], "content": [{"type": "refusal", "refusal": "I will not."}]}],
]


def contents(response: InferResponse) -> dict[str, Any]:
    """What of a response both sides say: the ids of items and of the response are each one's own."""
    details = [without(detail, "id", "index") for detail in response.details]
    members = ("content", "reasoning", "refusal", "tool_calls", "finish_reason")
    return {name: getattr(response, name) for name in members} | {"details": details}


@pytest.mark.parametrize("output", ANSWERS)
def test_an_answer_that_is_written_and_read_is_the_same(output: list[dict[str, Any]]) -> None:
    asked = native(json.dumps({"model": "x", "tools": [{"type": "custom", "name": "patch"}]}))
    given = VENDOR.decode_response(json.dumps(ANSWER | {"output": output}).encode(), ASKED)
    answer = downstream.Answer(asked, ident="resp_x", created=1, model="m")
    written = encode_answer(replace(given, native=None), answer)
    assert contents(VENDOR.decode_response(written, ASKED)) == contents(given)


@pytest.mark.parametrize("output", ANSWERS)
def test_a_stream_that_is_written_and_read_is_the_same(output: list[dict[str, Any]]) -> None:
    asked = native(json.dumps({"model": "x", "tools": [{"type": "custom", "name": "patch"}]}))
    encoder = Encoder(downstream.Answer(asked, ident="resp_x", created=1, model="m"))
    events = stream_of(output)
    events[-1] = event("response.completed", response=ANSWER | {"output": output})
    written, fold = b"", StreamAccumulator()
    for chunk in VENDOR.decode_events(events, ASKED):
        fold.add(chunk)
        written += encoder.encode(chunk._replace(native=None))
    written += encoder.end({}, fold.usage)
    assert contents(folded(parsed([written]))) == contents(fold.response("vendor", "asked"))


def test_a_citation_beyond_the_text_is_told_in_the_end() -> None:
    cited = {"url": "https://x.test", "title": "x", "start_index": 1, "end_index": 9}
    annotations = [{"type": "url_citation", "url_citation": cited}]
    encoder = Encoder(downstream.Answer(ASKED, ident="resp_x", created=1, model="m"))
    for chunk in (Chunk("Hi", annotations=annotations), Chunk(finish_reason="stop")):
        encoder.encode(chunk)
    body = json.loads(parsed([encoder.end({}, None)])[-1].data)["response"]
    assert body["output"][0]["content"][0]["annotations"] == [{"type": "url_citation"} | cited]


@pytest.mark.parametrize("stop", [3, [1], {"a": 1}])
def test_stops_that_are_no_texts_are_refused(stop: Any) -> None:
    with pytest.raises(errors.RequestError, match="stop must be a string or a list of strings"):
        fitted(replace(ASKED, params={"stop": stop}), lambda _: VENDOR)


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_stops_where_the_whole_answer_does(seed):
    """However the text is cut into events: what begins a stop sequence waits for its end."""
    rng = random.Random(seed)
    words = "".join(rng.choices("ab ", k=30))
    stops = ["".join(rng.choices("ab ", k=rng.randint(1, 5))) for _ in range(3)]
    cuts = [0, *sorted(rng.sample(range(1, 30), 8)), 30]
    chunks = [Chunk(words[a:b]) for a, b in itertools.pairwise(cuts)]
    usage = Usage(3, 30)
    chunks.append(Chunk(finish_reason="length", usage=usage))
    got = list(stopped_stream(iter(chunks), stops))
    ends = [at + len(each) for each in stops if (at := words.find(each)) >= 0]
    most = min(ends, default=30)
    seen = "".join(each.text for each in got)
    assert all(each not in seen for each in stops)
    assert words.startswith(seen) and len(seen) <= most
    assert [words[:most].endswith(seen + each) for each in stops].count(True) or not ends
    assert (got[-1].finish_reason, got[-1].usage) == ("stop" if ends else "length", usage)
    whole = stopped(InferResponse("m", "p", words, finish_reason="length"), stops)
    assert (whole.content, whole.finish_reason) == (seen, got[-1].finish_reason)


def test_openais_mark_of_what_may_be_cached_goes_both_ways() -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    part = {"type": "input_text", "text": "Hi", **mark}
    body = {"model": "m", "input": [{"role": "user", "content": [part]}]}
    request, _ = downstream.decode_request(strict_json.document(json.dumps(body)))
    cached = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    assert request.messages == [{"role": "user", "content": [cached]}]
    asked = InferRequest(
        "m", [{"role": "user", "content": [{"type": "text", "text": "Hi", **mark}]}]
    )
    assert translated(asked, Drop())["input"] == body["input"]
