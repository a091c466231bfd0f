"""W3C Trace Context (https://www.w3.org/TR/trace-context/), and the spans of a call."""

from __future__ import annotations

import re
from typing import Any

from .call import Call
from .protocol import TraceSpan
from .types import TraceContext

KNOWN_FLAGS = 0b11  # sampled, and random (level 2); others must be sent as zero
OPERATION = "infermux.infer"
_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


def parse(header: str | None) -> TraceContext | None:
    """Return what a traceparent header says, or None for one that is not valid: then a new trace starts."""
    found = _HEADER.fullmatch((header or "").strip(" \t"))
    if not found:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return TraceContext(trace_id, parent_id, flags)


def format(context: TraceContext) -> str:
    """Return the traceparent header of *context*, version 00."""
    return f"00-{context.trace_id}-{context.parent_id}-{int(context.flags, 16) & KNOWN_FLAGS:02x}"


def spans(call: Call) -> list[TraceSpan]:
    """Return the spans of a finished call."""
    return [TraceSpan(call.trace_id, call.span_id, OPERATION, call.start_ns, call.end_ns, "error" if call.error else "ok",
                      call.parent_id, _attributes(call))]


def _attributes(call: Call) -> dict[str, Any]:
    tokens_in, tokens_out = call.tokens
    attrs: dict[str, Any] = {"provider": call.provider, "model": call.model, "tokens_in": tokens_in, "tokens_out": tokens_out}
    if call.cost_usd is not None:           # an unknown price is left out: 0 would be a lie
        attrs["cost_usd"] = call.cost_usd
    attrs |= {"latency_ms": call.latency_ms, "finish_reason": call.finish_reason}
    if call.error is not None:
        attrs["error"] = call.error.summary
    return attrs
