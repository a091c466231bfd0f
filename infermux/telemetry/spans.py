"""W3C Trace Context (https://www.w3.org/TR/trace-context/), and the spans of a call."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from ..errors import Failure
from ..planning.call import Attempt, Call
from ..pricing import usd_float
from ..protocol import TraceSpan, new_id
from ..types import TraceContext, Usage

OPERATION = "infermux.infer"
ATTEMPT = "infermux.attempt"
MAX_CONTENT = 65536  # characters of a prompt or an answer in a span
_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


class SpanReporter(Protocol):
    """A receiver of spans."""

    def report(self, span: TraceSpan) -> None:
        """Take one span; never block, never raise."""


def parse(header: str | None) -> TraceContext | None:
    """Return the context of a traceparent header, or None if it is invalid or absent."""
    found = _HEADER.fullmatch((header or "").strip(" \t"))
    if not found:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more):
        return None
    if not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return TraceContext(trace_id, parent_id, flags)


def spans(call: Call) -> list[TraceSpan]:
    """Return the spans of a finished call: its own, and a child for each of several attempts.

    The child of a single attempt would repeat its parent, and a span costs a small request.
    """
    tokens_in, tokens_out = call.tokens
    attrs = {
        "provider": call.provider,
        "model": call.model,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
    }
    if call.answer is not None:  # only if [trace].content is set
        attrs |= {
            "prompt": json.dumps(call.request.messages, default=str)[:MAX_CONTENT],
            "completion": call.answer[:MAX_CONTENT],
        }
    own = TraceSpan(
        call.trace_id,
        call.span_id,
        OPERATION,
        call.start_ns,
        call.end_ns,
        "error" if call.error else "ok",
        call.parent_id,
        _rest(attrs, call.cost, call.latency_ms, call.finish_reason, call.error),
    )
    if len(call.attempts) <= 1:
        return [own]
    return [own, *(_child(call, attempt) for attempt in call.attempts)]


def _child(call: Call, attempt: Attempt) -> TraceSpan:
    error, usage = failure(call, attempt), attempt.usage or Usage()
    attrs: dict[str, Any] = {
        "provider": attempt.target.provider,
        "model": attempt.served or attempt.target.model,
        "tokens_in": usage.input_tokens or 0,
        "tokens_out": usage.output_tokens or 0,
    }
    if attempt.waited:
        attrs["waited_ms"] = round(attempt.waited * 1000)
    start = moment(call, attempt.started)
    return TraceSpan(
        call.trace_id,
        new_id(),
        ATTEMPT,
        start,
        start + int(attempt.seconds * 1e9),
        "error" if error else "ok",
        call.span_id,
        _rest(attrs, attempt.cost, attempt.latency_ms, "" if error else call.finish_reason, error),
    )


def moment(call: Call, monotonic: float) -> int:
    """Return a moment of the call in wall-clock nanoseconds."""
    return call.start_ns + int((monotonic - call.started) * 1e9)


def failure(call: Call, attempt: Attempt) -> Failure | None:
    """Return the error of an attempt; the last attempt shares its call's."""
    return attempt.error or (call.error if attempt is call.attempts[-1] else None)


def _rest(
    attrs: dict[str, Any],
    cost: int | None,
    latency_ms: int,
    finish_reason: str,
    error: Failure | None,
) -> dict[str, Any]:
    if cost is not None:  # an unknown price is not 0
        attrs["cost_usd"] = usd_float(cost)
    attrs["latency_ms"] = latency_ms
    attrs["finish_reason"] = finish_reason
    if error is not None:
        attrs["error"] = error.summary
    return attrs
