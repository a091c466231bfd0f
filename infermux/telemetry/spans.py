"""W3C Trace Context (https://www.w3.org/TR/trace-context/) and the span of a call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Protocol

from ..errors import Failure
from ..planning.call import Attempt, Call
from ..protocol import TraceSpan
from ..types import JSON, TraceContext

OPERATION = "infermux.infer"
MAX_CONTENT = 65536  # characters of a prompt or an answer in a span
# A parent id has 16 digits in the standard, and 32 in MIST.
_HEADER = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-((?:[0-9a-f]{16}){1,2})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_STATE = re.compile(r"\bmist=([0-9a-f]{32})\b")


class SpanReporter(Protocol):
    def report(self, span: TraceSpan) -> None:
        """Accept one span; never block, never raise."""


def parse(header: object, state: object = None) -> TraceContext | None:
    """Return the context of a traceparent header, or None if it is invalid or absent.

    *state* is the tracestate header; mist-go writes all 32 digits of the parent id there.
    """
    found = _HEADER.fullmatch(header.strip(" \t")) if isinstance(header, str) else None
    if not found:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more):
        return None
    if not int(trace_id, 16) or not int(parent_id[-16:], 16):
        return None
    whole = _STATE.search(state) if isinstance(state, str) else None
    if whole and whole[1].endswith(parent_id):
        parent_id = whole[1]
    return TraceContext(trace_id, parent_id, flags)


def of_meta(meta: Mapping[str, object]) -> TraceContext | None:
    """Return the context in a request's meta: traceparent, or trace_id and parent_id; or None."""
    found = parse(meta.get("traceparent"), meta.get("tracestate"))
    if found is None and "trace_id" in meta:
        found = parse(f"00-{meta['trace_id']}-{meta.get('parent_id')}-01")
    return found


def span(call: Call) -> TraceSpan:
    """Return the span of a finished call; one per call, as TokenTrace adds up all spans."""
    tokens_in, tokens_out = call.tokens
    attrs: JSON = {
        "provider": call.provider,
        "model": call.model,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "latency_ms": call.latency_ms,
        "finish_reason": call.finish_reason,
    }
    if call.cost is not None:  # an unknown price is not 0
        attrs["cost_usd"] = call.cost_usd
    if call.error is not None:
        attrs["error"] = call.error.summary
    if call.hooks:
        attrs["hooks"] = {name: run.outcome for name, run in call.hooks.items()}
        attrs["hooks_ms"] = round(call.hooks_ms, 1)
    if len(call.attempts) > 1:  # a single one would repeat the call
        attrs["attempts"] = [_tried(call, attempt) for attempt in call.attempts]
    if call.answer is not None:  # only if [trace].capture_content is set
        attrs["prompt"] = json.dumps(call.request.messages, default=str)[:MAX_CONTENT]
        attrs["completion"] = call.answer[:MAX_CONTENT]
    return TraceSpan(
        call.trace_id,
        call.span_id,
        OPERATION,
        call.start_ns,
        call.end_ns,
        "error" if call.error else "ok",
        call.parent_id,
        attrs,
    )


def reporting(reporter: SpanReporter | None) -> list[Callable[[Call], None]]:
    """Return the observer that reports the span of each call, if there is a reporter."""
    return [] if reporter is None else [lambda call: reporter.report(span(call))]


def _tried(call: Call, attempt: Attempt) -> JSON:
    error = failure(call, attempt)
    return {
        "model": attempt.served or attempt.target.model,
        "ms": attempt.latency_ms,
        "provider": attempt.target.provider,
        "status": error.code if error else "ok",
    }


def moment(call: Call, monotonic: float) -> int:
    """Return a monotonic time of the call as nanoseconds since 1970."""
    return call.start_ns + int((monotonic - call.started) * 1e9)


def failure(call: Call, attempt: Attempt) -> Failure | None:
    """Return the error of an attempt, or of its call if it was the last; None: success."""
    return attempt.error or (call.error if attempt is call.attempts[-1] else None)
