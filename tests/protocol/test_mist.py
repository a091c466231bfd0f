"""Tests of MIST, version 1: the same bytes as mist-go writes, and strict reading."""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from typing import Any

import pytest

from infermux.errors import InferMuxError, ProtocolError, RequestError
from infermux.protocol import (
    MAX_MESSAGE,
    InferRequest,
    InferResponse,
    Message,
    TraceSpan,
    encode,
    text_of,
)

ID = "0123456789abcdef0123456789abcdef"
GOOD: dict[str, Any] = {
    "version": "1",
    "id": ID,
    "source": "client",
    "type": "infer.request",
    "timestamp_ns": 1,
    "payload": {"a": 1},
}
ABSENT = object()


def wire(**changes: Any) -> bytes:
    """Return the good message as JSON, some fields replaced or left out."""
    return json.dumps(
        {name: value for name, value in (GOOD | changes).items() if value is not ABSENT}
    ).encode()


def envelope(payload: bytes, checksum: int | None = None) -> bytes:
    """Return a message around the very bytes of *payload*."""
    tail = b"" if checksum is None else b',"checksum":%d' % checksum
    return (
        b'{"version":"1","id":"%s","source":"c","type":"t","timestamp_ns":1,"payload":'
        % ID.encode()
        + payload
        + tail
        + b"}"
    )


# -- the envelope as it is written -----------------------------------------------------------------


def test_a_message_is_written_in_mist_gos_order() -> None:
    message = Message(
        "infermux", "trace.span", b'{"a":1}', id=ID, timestamp_ns=1700000000000000001, checksum=42
    )
    assert message.to_bytes() == (
        b'{"version":"1","id":"0123456789abcdef0123456789abcdef","source":"infermux","type":"trace.span",'
        b'"timestamp_ns":1700000000000000001,"payload":{"a":1},"checksum":42}'
    )


def test_a_checksum_of_zero_is_left_out() -> None:
    assert b"checksum" not in Message("s", "t", b"null").to_bytes()
    assert b"checksum" not in Message.wrap("s", "t", {}).to_bytes()
    assert b"checksum" not in Message.wrap("s", "t", b"\x9d\x0a\xd9\x6d".hex()).to_bytes()


@pytest.mark.parametrize(
    "payload", [{}, {"text": "é <b> & \u2028 😀"}, {"nested": [1, 2.5, None, True]}, "text", None]
)
def test_a_checksum_covers_the_bytes_of_the_payload(payload: Any) -> None:
    message = Message.wrap("infermux", "x", payload, checksum=True)
    data = message.to_bytes()
    start = data.index(b'"payload":') + len(b'"payload":')
    sent = data[start : data.rindex(b',"checksum":')]
    assert json.loads(sent) == payload
    assert json.loads(data)["checksum"] == zlib.crc32(sent)


GO = [  # what Go's encoding/json writes
    ("<b>&amp;</b>", '"\\u003cb\\u003e\\u0026amp;\\u003c/b\\u003e"'),
    ("a\u2028b\u2029", '"a\\u2028b\\u2029"'),
    ('\x01\n\r\t\x7f"\\/', '"\\u0001\\n\\r\\t\x7f\\"\\\\/"'),
    ("é😀\u2027", '"é😀\u2027"'),
    ("\\u003c", '"\\\\u003c"'),  # a backslash of the text itself
    ({"<": [">"]}, '{"\\u003c":["\\u003e"]}'),
    ("1.0,3e-05 e+22", '"1.0,3e-05 e+22"'),
    ({'"1.0': 3e-05}, '{"\\"1.0":0.00003}'),
    (3e-05, "0.00003"),
    (0.0, "0"),
    (-0.0, "-0"),
    (1.0, "1"),
    (0.1, "0.1"),
    (1e-06, "0.000001"),
    (1e-07, "1e-7"),
    (1.5e-10, "1.5e-10"),
    (1e16, "10000000000000000"),
    (1.2345678901234567e19, "12345678901234567000"),
    (1e21, "1e+21"),
    (5e-324, "5e-324"),
    (10**25, "1" + "0" * 25),
    ([True, None, 5], "[true,null,5]"),
]


@pytest.mark.parametrize(("value", "text"), GO, ids=lambda value: repr(value)[:40])
def test_json_is_gos_byte_for_byte(value: Any, text: str) -> None:
    assert encode([value]) == f"[{text}]".encode()


def test_many_numbers_take_time_by_their_number() -> None:
    many = [float(number) for number in range(20_000)]
    start = time.thread_time()
    assert encode(many) == json.dumps(list(range(20_000)), separators=(",", ":")).encode()
    assert time.thread_time() - start < 1  # 3 s where each one is looked for from the beginning


def test_attributes_of_a_span_are_in_gos_order() -> None:
    span = TraceSpan("1", "2", "infermux.infer", 1, 2, attrs={"b": 1, "a": "<", "C": 0.5})
    assert encode(span.to_dict()).endswith(b'"attrs":{"C":0.5,"a":"\\u003c","b":1}}')


@pytest.mark.parametrize("name", ["timestamp_ns", "checksum"])
def test_a_null_is_a_zero_as_in_go(name: str) -> None:
    message = Message.read(wire(**{name: None}))
    assert getattr(message, name) == 0


def test_what_is_written_can_be_read() -> None:
    for checksum in (False, True):
        message = Message.wrap("infermux", "infer.response", {"content": "é\n"}, checksum=checksum)
        again = Message.read(message.to_bytes())
        assert again.data == {"content": "é\n"}
        assert again.to_bytes() == message.to_bytes()


def test_a_new_message_is_of_now_and_has_an_id_of_its_own() -> None:
    before = time.time_ns()
    messages = [Message.wrap("s", "t", {}) for _ in range(100)]
    assert all(before <= message.timestamp_ns <= time.time_ns() for message in messages)
    assert len({message.id for message in messages}) == 100
    assert all(
        len(message.id) == 32 and int(message.id, 16) >= 0 and message.id == message.id.lower()
        for message in messages
    )


# -- the envelope as it is read --------------------------------------------------------------------


def test_a_message_is_read() -> None:
    message = Message.read(wire(timestamp_ns=1700000000000000001))
    assert (message.version, message.id, message.source, message.type) == (
        "1",
        ID,
        "client",
        "infer.request",
    )
    assert (message.timestamp_ns, message.checksum, message.data) == (
        1700000000000000001,
        0,
        {"a": 1},
    )


@pytest.mark.parametrize(
    "data",
    [
        wire(unknown=[1]),
        wire(timestamp_ns=ABSENT),
        wire(timestamp_ns=-5),
        wire(timestamp_ns=2**63 - 1),
        wire(id="any text is an id"),
        wire(payload=None),
        wire(payload=[]),
        wire(checksum=0),
        b" \n" + wire() + b"\n ",
        json.dumps(GOOD, indent=4).encode(),
        json.dumps(dict(reversed(GOOD.items()))).encode(),
    ],
    ids=lambda data: repr(data[-40:]),
)
def test_a_message_may_look_different(data: bytes) -> None:
    assert Message.read(data).type == "infer.request"


TEXTS = ("version", "id", "source", "type")
BROKEN = [
    *[(wire(**{name: ABSENT}), f"{name} is missing") for name in TEXTS],
    *[(wire(**{name: None}), f"{name} is missing") for name in TEXTS],
    *[(wire(**{name: ""}), f"{name} is empty") for name in TEXTS],
    *[
        (wire(**{name: value}), f"{name} must be a string")
        for name in TEXTS
        for value in (1, 1.5, True, [], {}, ["1"])
    ],
    *[
        (wire(version=value), "unsupported version")
        for value in ("0", "2", "1.0", " 1", "1 ", "v1", "x" * 5000)
    ],
    *[
        (wire(timestamp_ns=value), "timestamp_ns")
        for value in ("1", 1.5, 1.0, True, [], {}, 2**63, -(2**63) - 1)
    ],
    *[
        (wire(checksum=value), "checksum")
        for value in ("1", 1.5, 1.0, True, False, [], {}, -1, 2**32, 10**30, 7)
    ],
    (wire(payload=ABSENT), "payload is missing"),
    (b"", "empty"),
    (b"not JSON", "not JSON"),
    (b"[]", "JSON object"),
    (b'"text"', "JSON object"),
    (b"null", "JSON object"),
    (wire()[:-1], "not JSON"),
    (wire() + b"x", "not JSON"),
    (b"\xff" + wire(), "UTF-8"),
    (wire()[:-2] + b',"b":NaN}}', "NaN"),
    (wire()[:-1] + b',"type":"infer.request"}', "duplicate key 'type'"),
    (wire()[:-2] + b',"a":2}}', "duplicate key 'a'"),
    (envelope(b"[" * 100_000 + b"]" * 100_000), "deep"),
    (envelope(b'"\\ud800"'), "surrogate"),
    (envelope(b"1e999"), "too large"),
]


@pytest.mark.parametrize(("data", "reason"), BROKEN, ids=lambda value: repr(value[:60]))
def test_anything_else_is_400_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Message.read(data)
    assert (caught.value.status, caught.value.code) == (400, "invalid_message")
    assert reason in caught.value.message
    assert len(caught.value.message) < 500


PAYLOADS = [
    b"{}",
    b'{ "a" : 1 }',
    b'{\n\t"a":  [1,2 , 3]\r\n}',
    '{"a":"é😀"}'.encode(),
    b'{"a":"\\u00e9\\/"}',
    b'{"a":1.0,"b":1E2}',
    b'"text"',
    b"null",
    b"[ ]",
    b"0",
]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("space", [b"", b" ", b"\r\n\t "])
def test_a_checksum_is_of_the_bytes_as_received(payload: bytes, space: bytes) -> None:
    """White space inside the payload counts; white space around it is the envelope's."""
    checksum = zlib.crc32(payload)
    message = Message.read(envelope(space + payload + space, checksum))
    assert (message.payload, message.checksum) == (payload, checksum)
    for wrong in (checksum ^ 1, zlib.crc32(payload + b" ")):
        with pytest.raises(ProtocolError, match=f"checksum {wrong} does not match"):
            Message.read(envelope(space + payload + space, wrong))


def test_a_checksum_of_the_same_value_in_other_bytes_is_wrong() -> None:
    with pytest.raises(ProtocolError, match="does not match"):
        Message.read(envelope(b'{"a": 1}', zlib.crc32(b'{"a":1}')))


def test_a_byte_order_mark_is_no_part_of_the_payload() -> None:
    assert Message.read(b"\xef\xbb\xbf" + envelope(b"{}", zlib.crc32(b"{}"))).payload == b"{}"


def test_a_message_has_at_most_ten_mebibytes() -> None:
    assert MAX_MESSAGE == 10 * 1024 * 1024
    room = MAX_MESSAGE - len(envelope(b'""'))
    assert len(Message.read(envelope(b'"' + b"x" * room + b'"')).payload) == room + 2
    with pytest.raises(ProtocolError, match="longer than 10485760 bytes"):
        Message.read(envelope(b'"' + b"x" * (room + 1) + b'"'))


# -- infer.request ---------------------------------------------------------------------------------

HI = [{"role": "user", "content": "hi"}]


def read(data: Any) -> InferRequest:
    """Return the request as an API reads it."""
    request = InferRequest.from_dict(data)
    request.check()
    return request


@pytest.mark.parametrize(
    "data",
    [
        {"model": "m", "messages": HI},
        {
            "model": "m",
            "provider": "p",
            "messages": HI,
            "params": {"temperature": 0, "max_tokens": 5, "x": None},
            "meta": {"user": "u"},
        },
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": ""},
                *HI,
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "tool_call_id": "1", "content": "4"},
                {"role": "user", "content": []},
            ],
        },
        {
            "model": "m",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image_url", "image_url": {}},
                    ],
                    "name": "n",
                    "unknown": 1,
                }
            ],
        },
    ],
)
def test_a_request_is_read_and_written(data: dict[str, Any]) -> None:
    assert read(data).to_dict() == data


def test_a_request_is_written_in_mist_gos_order() -> None:
    request = InferRequest("m", HI, "p", {"temperature": 1}, {"k": "v"})
    assert list(request.to_dict()) == ["model", "provider", "messages", "params", "meta"]
    assert list(InferRequest("m", HI).to_dict()) == ["model", "messages"]


@pytest.mark.parametrize("name", ["model", "provider", "params", "meta"])
@pytest.mark.parametrize("value", [ABSENT, None])
def test_a_field_that_is_missing_or_null_is_empty(name: str, value: Any) -> None:
    data = {"model": "m", "messages": HI, name: value}
    request = read({key: item for key, item in data.items() if item is not ABSENT})
    assert not getattr(request, name)


PARAMETERS = ("temperature", "top_p", "top_k", "max_tokens", "safetySettings")
PLACED = [
    ({"Model": "m"}, {"model": "m"}),
    ({"MODEL": "m", "Provider": "p", "PARAMS": {"a": 1}}, {"provider": "p", "params": {"a": 1}}),
    ({"model": "m", "stream": False}, {}),
    ({"model": "m", "temperature": 0}, {"params": {"temperature": 0}}),
    ({"model": "m", "Temperature": 0}, {"params": {"temperature": 0}}),
    ({"model": "m", "safetySettings": []}, {"params": {"safetySettings": []}}),
    ({"model": "m", "top_k": 5, "params": {"top_p": 1}}, {"params": {"top_k": 5, "top_p": 1}}),
    ({"model": "m", "top_k": 5, "params": None}, {"params": {"top_k": 5}}),
    ({"model": "m", "colour": {"a": [1]}}, {"params": {"colour": {"a": [1]}}}),  # a vendor's own
]


@pytest.mark.parametrize(("data", "expected"), PLACED, ids=repr)
def test_an_unknown_member_goes_where_its_place_is(data: Any, expected: Any) -> None:
    request = InferRequest.from_dict({"messages": HI} | data, PARAMETERS)
    request.check()
    assert request.to_dict() == {"model": "m", "messages": HI} | expected


MISPLACED = [
    ({"modle": "m"}, "'modle'; did you mean 'model'?"),
    ({"Modle": "m", "model": "m"}, "'Modle'; did you mean 'model'?"),
    ({"models": "m"}, "did you mean 'model'?"),
    ({"engine": "m"}, "'engine'; did you mean 'model'?"),  # or any model would answer
    ({"model": "m", "mesages": HI}, "did you mean 'messages'?"),
    ({"model": "m", "parms": {}}, "did you mean 'params'?"),
    ({"model": "m", "provder": "p"}, "did you mean 'provider'?"),
    ({"model": "m", "temprature": 1}, "did you mean 'temperature'?"),
    ({"model": "m", "max_token": 1}, "did you mean 'max_tokens'?"),
    ({"model": "m", "Model": "n"}, "'model' is given twice"),
    ({"model": "m", "top_k": 1, "Top_K": 1}, "'top_k' is given twice"),
    ({"model": "m", "top_k": 1, "params": {"top_k": 1}}, "'top_k' is in params, too"),
    ({"model": "m", "colour": 1, "params": {"colour": 2}}, "'colour' is in params, too"),
    ({"model": "m", "top_k": 1, "params": []}, "params must be an object"),
    ({"model": "m", "base_url": "http://x"}, "must not be set by callers"),
    ({"model": "m"} | {f"zz{n}": n for n in range(100_000)}, "an infer.request has no 'zz"),
]


@pytest.mark.parametrize(("data", "reason"), MISPLACED, ids=lambda value: repr(value)[:40])
def test_a_member_without_a_place_is_400(data: Any, reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        InferRequest.from_dict({"messages": HI} | data, PARAMETERS).check()
    assert reason in caught.value.message and len(caught.value.message) < 300


NOT_TEXT = [1, 1.5, True, False, [], {}, ["m"], {"a": 1}]
WRONG = [
    *[(value, None, "JSON object") for value in (None, [], "text", 5, True)],
    *[
        ({"model": value, "messages": HI}, "model", "model must be a string") for value in NOT_TEXT
    ],  # also what has no hash
    *[
        ({"provider": value, "messages": HI}, "provider", "provider must be a string")
        for value in NOT_TEXT
    ],
    *[
        ({"messages": value}, "messages", "messages")
        for value in (ABSENT, None, [], {}, "text", "", 5, 0, True, False, {"role": "user"})
    ],
    *[
        ({"messages": [value]}, "messages[0]", "messages[0]")
        for value in (None, "text", 5, True, [], HI)
    ],
    *[
        (
            {"messages": [*HI, {"role": value, "content": "x"}]},
            "messages[1].role",
            "messages[1].role must be a string",
        )
        for value in (ABSENT, None, "", 1, 1.5, True, [], {}, ["user"], {"role": "user"})
    ],
    *[
        (
            {"messages": [{"role": "user", "content": value}]},
            "messages[0].content",
            "messages[0].content",
        )
        for value in (
            ABSENT,
            None,
            1,
            1.5,
            True,
            False,
            {},
            {"text": "a"},
            ["text"],
            [None],
            [5],
            [[]],
            [{}],
            [{"type": 1}],
            [{"text": "a"}],
        )
    ],
    *[
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": value}]},
            "messages[0].tool_calls",
            "tool_calls",
        )
        for value in ("x", 5, True, {}, [None], ["x"], [5], [[]])
    ],
    *[
        ({"messages": HI, "params": value}, "params", "params must be an object")
        for value in ([], "", "x", 0, 5, True, False, [1])
    ],
    *[
        ({"messages": HI, "meta": value}, "meta", "meta must be an object")
        for value in ([], "", "x", 0, 5, True, False, [1])
    ],
    *[
        ({"messages": HI, "meta": {"key": value}}, "meta", "meta.key must be a string")
        for value in (None, 1, 1.5, True, [], {})
    ],
    *[
        ({"messages": HI, "params": {name: "x"}}, f"params.{name}", name)
        for name in ("model", "messages", "stream")
    ],
    *[
        ({"messages": HI, "params": {name: "x"}}, name, name)
        for name in ("api_key", "api_base", "base_url", "headers", "extra_headers")
    ],
]


def present(value: Any) -> Any:
    """Return *value* without what is marked as absent."""
    if isinstance(value, dict):
        return {key: present(item) for key, item in value.items() if item is not ABSENT}
    return [present(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("data", "param", "reason"), WRONG, ids=lambda value: repr(value)[:60])
def test_a_wrong_request_is_400_and_names_the_field(
    data: Any, param: str | None, reason: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read(present(data))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert reason in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "request_",
    [
        InferRequest("m", None),  # type: ignore[arg-type]
        InferRequest("m", "text"),  # type: ignore[arg-type]
        InferRequest("m", {"role": "user"}),  # type: ignore[arg-type]
        pytest.param(
            InferRequest("m", 5),
        ),
        pytest.param(
            InferRequest("m", HI, params=None),
        ),
        pytest.param(
            InferRequest("m", HI, meta=None),
        ),
    ],
    ids=["None", "text", "dict", "int", "params", "meta"],
)
def test_a_wrong_request_of_a_program_is_a_request_error_too(request_: InferRequest) -> None:
    with pytest.raises(RequestError):
        request_.check()


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\u2028"])
def test_a_reason_is_one_printable_line(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        read({"messages": HI, "meta": {name: 5}})
    assert caught.value.message.isprintable()


def test_a_request_error_is_an_infermux_error() -> None:
    with pytest.raises(InferMuxError):
        read({})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        ("", ""),
        (None, ""),
        ([], ""),
        (5, ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        (
            [
                {"type": "image_url", "image_url": {"url": "u"}},
                {"type": "text", "text": "b"},
                {"type": "text", "text": 5},
                "x",
                None,
            ],
            "b",
        ),
    ],
)
def test_the_text_of_a_content_is_its_text_parts(content: Any, text: str) -> None:
    assert text_of(content) == text


# -- infer.response and trace.span -----------------------------------------------------------------

FIELDS = [
    "model",
    "provider",
    "content",
    "tokens_in",
    "tokens_out",
    "cost_usd",
    "latency_ms",
    "finish_reason",
]


def test_a_response_is_written_in_mist_gos_order() -> None:
    response = InferResponse("m", "p", "c", 1, 2, 0.5, 3, "stop")
    assert json.dumps(response.to_dict()) == (
        '{"model": "m", "provider": "p", "content": "c", "tokens_in": 1, "tokens_out": 2, '
        '"cost_usd": 0.5, "latency_ms": 3, "finish_reason": "stop"}'
    )


def test_an_extension_is_written_only_when_there_is_something_in_it() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert list(InferResponse("m", "p", "c", id="x", native=("openai", b"{}")).to_dict()) == FIELDS
    full = InferResponse("m", "p", "", tool_calls=calls, reasoning="r").to_dict()
    assert list(full) == [*FIELDS, "tool_calls", "reasoning"]
    assert full["tool_calls"] == calls


def test_an_empty_answer_keeps_its_eight_fields() -> None:
    assert list(InferResponse("", "", "", finish_reason="").to_dict()) == FIELDS


def test_what_the_router_knows_changes_nothing_else_of_an_answer() -> None:
    values = {each.name: f"a {each.name}" for each in dataclasses.fields(InferResponse)}
    answer: InferResponse = InferResponse(**values)  # type: ignore[arg-type]
    known = answer.known("p", 0.5, 3)
    assert dataclasses.asdict(known) == values | {"provider": "p", "cost_usd": 0.5, "latency_ms": 3}
    assert dataclasses.asdict(answer) == values


def test_a_span_is_written_in_mist_gos_order() -> None:
    span = TraceSpan("a" * 32, "b" * 32, "op", 1, 2, "error", "c" * 16, {"tokens_in": 1})
    assert json.dumps(span.to_dict()) == (
        f'{{"trace_id": "{"a" * 32}", "span_id": "{"b" * 32}", "parent_id": "{"c" * 16}", '
        '"operation": "op", "start_ns": 1, "end_ns": 2, "status": "error", "attrs": {"tokens_in": 1}}'
    )
    assert "parent_id" not in TraceSpan("a", "b", "op", 1, 2).to_dict()
