"""Tests of the record of a call: costs, merged deltas, and the fields before and after it."""

from __future__ import annotations

import dataclasses

import pytest

from infermux import Chunk, EchoProvider, InferRequest, Router, Target, Usage
from infermux.planning import Plan
from infermux.planning.call import Attempt, Call, StreamAccumulator, for_target
from infermux.types import Caller, TraceContext


def fold(*chunks: Chunk) -> StreamAccumulator:
    made = StreamAccumulator()
    for chunk in chunks:
        made.add(chunk)
    return made


def delta(
    index: int, id: str = "", name: str = "", arguments: str = "", **more: object
) -> dict[str, object]:
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}, **more}


def test_unknown_is_not_free() -> None:
    assert Call(InferRequest()).cost_usd is None


# -- chunks put together ---------------------------------------------------------------------------


def test_pieces_of_text_join_in_order() -> None:
    made = fold(
        Chunk(text="Hel"),
        Chunk(reasoning="because"),
        Chunk(text="lo"),
        Chunk(refusal="no"),
        Chunk(finish_reason="stop"),
    )
    answer = made.response("p", "m")
    assert (answer.content, answer.reasoning, answer.refusal, answer.finish_reason) == (
        "Hello",
        "because",
        "no",
        "stop",
    )
    assert made.text == "Hellobecauseno"


def test_tool_calls_join_by_index_however_they_are_interleaved() -> None:
    made = fold(
        Chunk(tool_calls=[delta(1, "b", "second", "{")]),
        Chunk(tool_calls=[delta(0, "a", "first", '{"x"')]),
        Chunk(tool_calls=[delta(0, arguments=":1}"), delta(1, arguments="}")]),
        Chunk(finish_reason="tool_calls"),
    )
    assert made.response("p", "m").tool_calls == [
        {"id": "a", "type": "function", "function": {"name": "first", "arguments": '{"x":1}'}},
        {
            "id": "b",
            "type": "function",
            "function": {"name": "second", "arguments": "}".join(["{", ""])},
        },
    ]


def test_a_delta_may_leave_out_everything_but_its_index() -> None:
    made = fold(
        Chunk(tool_calls=[{"index": 0}]),
        Chunk(tool_calls=[{"index": 0, "function": None}]),
        Chunk(tool_calls=[{"index": 0, "function": {"arguments": None}, "id": None}]),
        Chunk(tool_calls=[delta(0, "a", "f", "{}", extra={"k": 1})]),
        Chunk(tool_calls=[{"index": 0, "id": ""}]),
    )
    assert made.response("p", "m").tool_calls == [
        {
            "id": "a",
            "type": "function",
            "function": {"name": "f", "arguments": "{}"},
            "extra": {"k": 1},
        }
    ]


def test_of_usage_the_last_value_counts() -> None:
    made = fold(Chunk(usage=Usage(5, 1)), Chunk(text="x", usage=Usage(5, 3)), Chunk())
    assert made.usage == Usage(5, 3)


def test_an_answer_without_usage_model_or_id_says_so() -> None:
    answer = fold(Chunk(text="x")).response("p", "m")
    assert (
        answer.usage,
        answer.tokens_in,
        answer.tokens_out,
        answer.model,
        answer.id,
        answer.finish_reason,
    ) == (None, 0, 0, "m", "", "")
    assert fold(Chunk(model="m-0613", id="r1")).response("p", "m").model == "m-0613"


def test_blocks_of_signed_reasoning_stay_apart() -> None:
    made = fold(
        Chunk(details=[{"index": 0, "type": "t", "text": "a"}]),
        Chunk(details=[{"index": 0, "text": "b", "signature": "s"}]),
        Chunk(details=[{"index": 1, "data": "x"}]),
        Chunk(details=[{"index": 1, "data": "y"}]),
    )
    assert made.response("p", "m").details == [
        {"index": 0, "type": "t", "text": "ab", "signature": "s"},
        {"index": 1, "data": "xy"},
    ]


def test_what_is_folded_changes_no_chunk() -> None:
    piece = {"index": 0, "text": "a"}
    call = delta(0, "a", "f", "{")
    made = fold(
        Chunk(details=[piece], tool_calls=[call]),
        Chunk(details=[{"index": 0, "text": "b"}], tool_calls=[delta(0, arguments="}")]),
    )
    assert made.response("p", "m").details == [{"index": 0, "text": "ab"}]
    assert (piece, call) == ({"index": 0, "text": "a"}, delta(0, "a", "f", "{"))


# -- the record ------------------------------------------------------------------------------------


def test_a_call_in_a_trace_has_its_parent_and_a_span_of_its_own() -> None:
    begin = Router([EchoProvider()]).begin
    trace = TraceContext("a" * 32, "b" * 16)
    made = begin(InferRequest(), caller=Caller("web"), api="mist", trace=trace)
    assert (made.trace_id, made.parent_id, made.caller.name, made.api) == (
        "a" * 32,
        "b" * 16,
        "web",
        "mist",
    )
    assert len({made.trace_id, made.span_id, made.id}) == 3
    alone = begin(InferRequest())
    assert (len(alone.trace_id), alone.parent_id) == (32, "")


def test_a_call_is_named_after_the_attempt_that_answered_last() -> None:
    made = Call(InferRequest("asked", provider="wanted"))
    assert (made.provider, made.model, made.tokens) == ("wanted", "asked", (0, 0))
    made.attempts.append(Attempt(Target("p", "m"), 1.0))
    assert (made.provider, made.model) == ("p", "m")
    made.attempts.append(Attempt(Target("q", "n"), 1.0, served="n-0613"))
    assert (made.provider, made.model) == ("q", "n-0613")


def test_a_vendor_that_said_nothing_counts_as_zero_tokens() -> None:
    made = Call(InferRequest(), usage=Usage(None, 5))
    assert made.tokens == (0, 5)


def test_durations_are_whole_milliseconds_and_an_open_one_runs() -> None:
    assert Attempt(Target("p", "m"), 1.0, ended=1.2504).latency_ms == 250
    assert Attempt(Target("p", "m"), 1.0).latency_ms == 0
    made = Call(InferRequest(), started=10.0, ended=10.5, start_ns=7)
    assert (made.seconds, made.latency_ms, made.end_ns) == (0.5, 500, 500_000_007)
    running = Call(InferRequest())
    assert 0 <= running.seconds <= running.seconds < 60


def test_a_request_goes_to_its_target_and_stays_what_it_was() -> None:
    request = InferRequest(
        "auto", [{"role": "user", "content": "x"}], params={"temperature": 0}, meta={"k": "v"}
    )
    sent = for_target(request, Target("p", "m"))
    assert (sent.model, sent.provider, sent.params, sent.meta, sent.messages) == (
        "m",
        "p",
        request.params,
        request.meta,
        request.messages,
    )
    assert (request.model, request.provider) == ("auto", "")


def test_a_plan_is_a_value() -> None:
    plan = Plan("m", "priority", (Target("p", "m"),))
    assert plan == Plan("m", "priority", (Target("p", "m"),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.model = "n"  # type: ignore[misc]
