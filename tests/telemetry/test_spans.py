"""Tests of W3C Trace Context and of the span of a call."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest
from support import run

from infermux import protocol
from infermux.errors import InferMuxError, ProviderRejected, ProviderTimeout
from infermux.planning.call import Attempt, Call
from infermux.protocol import InferRequest
from infermux.telemetry import spans as trace
from infermux.types import ANONYMOUS, Target, TraceContext, Usage

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"

VALID = [
    (f"00-{TRACE}-{PARENT}-01", "01"),
    (f"00-{TRACE}-{PARENT}-00", "00"),
    (f"00-{TRACE}-{PARENT}-03", "03"),
    (f"  00-{TRACE}-{PARENT}-01\t ", "01"),
    (f"01-{TRACE}-{PARENT}-01", "01"),
    (f"cc-{TRACE}-{PARENT}-01", "01"),
    (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", "01"),
    (f"fe-{TRACE}-{PARENT}-01-", "01"),
]
WHOLE = "a3ce929d0e0e4736" + PARENT  # the id of a MIST span
INVALID = [
    None,
    "",
    " ",
    "-",
    "00",
    "garbage",
    f"00-{TRACE}-{PARENT}",
    f"00-{TRACE}-{PARENT}-",
    f"{TRACE}-{PARENT}-01",
    f"ff-{TRACE}-{PARENT}-01",  # a version that is forbidden
    f"ff-{TRACE}-{PARENT}-01-more",
    f"00-{TRACE}-{PARENT}-01-more",  # version 00 ends here
    f"00-{TRACE}-{PARENT}-01-",
    f"00-{TRACE}-{PARENT}-01.",
    f"cc-{TRACE}-{PARENT}-01.what-the-future-will-not-be-like",
    f"cc-{TRACE}-{PARENT}-011",
    f"00-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"cc-{'0' * 32}-{PARENT}-01",
    f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE}-{PARENT.upper()}-01",
    f"0A-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-0A",
    f"00-{TRACE[:-1]}-{PARENT}-01",
    f"00-{TRACE}0-{PARENT}-01",
    f"00-{TRACE}-{PARENT[:-1]}-01",
    f"00-{TRACE}-{PARENT}0-01",
    f"00-{TRACE}-{PARENT * 2}0-01",
    f"00-{TRACE}-{PARENT * 2}"[:-1] + "-01",
    f"00-{TRACE}-{PARENT * 3}-01",
    f"00-{TRACE}-{'0' * 32}-01",
    f"0-{TRACE}-{PARENT}-01",
    f"000-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-1",
    f"00-{TRACE}-{PARENT}-001",
    f"00-{TRACE[:-1]}g-{PARENT}-01",
    f"00-{TRACE}-{PARENT[:-1]}g-01",
    f"0x-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-0x",
    f"00-{TRACE[:-1]}٣-{PARENT}-01",
    f"00_{TRACE}_{PARENT}_01",
    f"00 -{TRACE}-{PARENT}-01",
    f"00-{TRACE}- {PARENT}-01",
    f"00-{TRACE}-{PARENT}-01\n",
    f"\n00-{TRACE}-{PARENT}-01",
    f"\u00a000-{TRACE}-{PARENT}-01",
    f"00--{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-01,00-{TRACE}-{PARENT}-01",  # two headers, joined
]


@pytest.mark.parametrize(("header", "flags"), VALID)
def test_a_valid_header_is_read(header: str, flags: str) -> None:
    assert trace.parse(header) == TraceContext(TRACE, PARENT, flags)


@pytest.mark.parametrize("header", INVALID)
def test_an_invalid_header_is_none(header: str | None) -> None:
    assert trace.parse(header) is None


def test_a_parent_of_32_digits_is_one_too() -> None:
    assert trace.parse(f"00-{TRACE}-{WHOLE}-01") == TraceContext(TRACE, WHOLE, "01")


@pytest.mark.parametrize(
    ("state", "parent"),
    [
        (f"mist={WHOLE}", WHOLE),
        (f"other=1, mist={WHOLE} ,more=2", WHOLE),
        (f"mist={'0' * 16}{PARENT[::-1]}", PARENT),  # of an earlier span
        (f"mist={WHOLE}0", PARENT),
        (f"chemist={WHOLE}", PARENT),
        ("mist=", PARENT),
        ("", PARENT),
        (None, PARENT),
    ],
)
def test_mist_gos_tracestate_has_the_whole_parent(state: str | None, parent: str) -> None:
    assert trace.parse(f"00-{TRACE}-{PARENT}-01", state) == TraceContext(TRACE, parent, "01")


@pytest.mark.parametrize("parent", [PARENT, WHOLE])
def test_meta_names_the_trace_and_the_parent_as_spans_do(parent: str) -> None:
    meta = {"trace_id": TRACE, "parent_id": parent}
    assert trace.of_meta(meta) == TraceContext(TRACE, parent, "01")
    better = {"traceparent": f"00-{TRACE[::-1]}-{PARENT}-00"}
    assert trace.of_meta(meta | better) == TraceContext(TRACE[::-1], PARENT, "00")


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"trace_id": TRACE},
        {"parent_id": PARENT},
        {"trace_id": TRACE, "parent_id": PARENT[:-1]},
        {"trace_id": TRACE, "parent_id": PARENT + "0"},
        {"trace_id": TRACE[:-1], "parent_id": PARENT},
        {"trace_id": 5, "parent_id": [PARENT]},
        {"traceparent": 5, "tracestate": 5},
    ],
)
def test_meta_that_names_no_trace_is_none(meta: dict[str, object]) -> None:
    assert trace.of_meta(meta) is None


def test_a_header_of_a_megabyte_is_refused_at_once() -> None:
    assert trace.parse(f"00-{TRACE}-{PARENT}-01" + "-x" * 500_000) is None


# -- spans -----------------------------------------------------------------------------------------


def call(
    error: InferMuxError | None = None,
    cost: int | None = 1_500_000,
    context: TraceContext | None = None,
) -> Call:
    made = Call(InferRequest("asked"), ANONYMOUS, "library", *(context or ())[:2])
    made.attempts = [Attempt(Target("second", "m2"), made.started, served="m2-0613")]
    made.usage, made.cost, made.finish_reason, made.error = Usage(7, 3), cost, "stop", error
    made.ended = made.started + 0.25
    return made


def test_a_span_says_what_the_protocol_names() -> None:
    made = call(context=TraceContext(TRACE, PARENT))
    span = trace.span(made)
    data = span.to_dict()
    assert list(data) == [
        "trace_id",
        "span_id",
        "parent_id",
        "operation",
        "start_ns",
        "end_ns",
        "status",
        "attrs",
    ]
    assert (data["trace_id"], data["parent_id"], data["operation"], data["status"]) == (
        TRACE,
        PARENT,
        "infermux.infer",
        "ok",
    )
    assert len(data["span_id"]) == 32
    assert data["end_ns"] - data["start_ns"] == pytest.approx(250_000_000, abs=1000)
    assert data["attrs"] == {
        "provider": "second",
        "model": "m2-0613",
        "tokens_in": 7,
        "tokens_out": 3,
        "cost_usd": 0.0000015,
        "latency_ms": 250,
        "finish_reason": "stop",
    }
    assert all(
        type(data["attrs"][name]) is int for name in ("tokens_in", "tokens_out", "latency_ms")
    )
    json.dumps(data, allow_nan=False)


def test_a_new_trace_has_no_parent() -> None:
    span = trace.span(call())
    assert "parent_id" not in span.to_dict()
    assert len(span.trace_id) == 32 and span.trace_id != span.span_id


def test_an_unknown_price_is_left_out_and_a_free_answer_is_zero() -> None:
    assert "cost_usd" not in trace.span(call(cost=None)).attrs
    assert trace.span(call(cost=0)).attrs["cost_usd"] == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ProviderTimeout("the provider did not answer in time"), "upstream_timeout"),
        (ProviderRejected("your prompt 'my secret' is too rude"), "invalid_request"),
    ],
)
def test_a_failure_is_a_span_with_status_error_and_no_word_of_the_vendor(
    error: InferMuxError, said: str
) -> None:
    span = trace.span(call(error))
    assert span.status == "error"
    assert said in span.attrs["error"]
    assert "secret" not in span.attrs["error"]


def test_a_span_of_a_call_that_never_left_has_attributes_of_the_right_types() -> None:
    span = trace.span(Call(InferRequest("nope"), error=InferMuxError("x"), ended=time.monotonic()))
    assert (span.attrs["provider"], span.attrs["model"], span.attrs["tokens_in"]) == ("", "nope", 0)


def test_a_call_that_failed_over_is_one_span_that_tells_of_its_attempts() -> None:
    made = call(context=TraceContext(TRACE, PARENT))
    alone = trace.span(made).attrs
    begun, last = made.started, made.attempts[0]
    failed = ProviderTimeout("the provider did not answer in time")
    made.attempts.insert(
        0, Attempt(Target("first", "m1"), begun + 0.05, ended=begun + 0.1, error=failed)
    )
    last.started, last.ended, last.usage, last.cost = (
        begun + 0.15,
        begun + 0.25,
        Usage(7, 3),
        1_500_000,
    )
    span = trace.span(made)
    assert (span.operation, span.status, span.parent_id) == ("infermux.infer", "ok", PARENT)
    assert span.attrs == alone | {
        "attempts": [
            {"model": "m1", "ms": 50, "provider": "first", "status": "upstream_timeout"},
            {"model": "m2-0613", "ms": 100, "provider": "second", "status": "ok"},
        ]
    }


def test_the_last_attempt_failed_with_its_call() -> None:
    """A stream that is cut by our own end, say, has an error that no attempt raised."""
    made = call(InferMuxError("the call was broken off"))
    made.attempts.append(Attempt(Target("third", "m3"), made.started, ended=made.ended))
    statuses = [each["status"] for each in trace.span(made).attrs["attempts"]]
    assert statuses == ["ok", "internal_error"]


@pytest.mark.parametrize("odd", [["a"], {"a": 1}, 5, None, "x" * 10_000])
@pytest.mark.parametrize(
    "field",
    [
        "model",
        pytest.param(
            "provider",
        ),
    ],
)
def test_a_span_names_only_short_text_whatever_was_asked_for(field: str, odd: object) -> None:
    span = trace.span(Call(InferRequest(**{field: odd}), error=InferMuxError("x")))  # type: ignore[arg-type]
    assert isinstance(span.attrs[field], str)
    assert len(span.attrs[field]) <= 200


def test_a_clock_that_is_set_back_cannot_end_a_span_before_its_start() -> None:
    made = Call(InferRequest("m"), start_ns=time.time_ns() + 10**12)
    made.ended = made.started
    assert made.end_ns == made.start_ns


def test_ids_are_128_random_bits() -> None:
    ids = [protocol.new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in ids)


def test_processes_that_are_forked_give_ids_of_their_own() -> None:
    script = (
        "import os; from infermux.protocol import new_id; first = new_id()\n"
        "if os.fork(): os.wait()\n"
        "print(*(new_id() for _ in range(40)), sep='\\n', flush=True)"
    )
    ids = run([sys.executable, "-c", script]).stdout.split()
    assert len(set(ids)) == 80 and all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
