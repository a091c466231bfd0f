"""Exports spans to an OpenTelemetry collector, by the semantic conventions for generative AI.

It needs the extra infermux[otel], and is loaded if [trace].otlp is set. If a call has several
attempts, each has a child span, without usage and cost: only the call's span has those.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import requests

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
except ImportError:
    raise ImportError("OTLP needs OpenTelemetry: pip install 'infermux[otel]'") from None

from .errors import Failure
from .planning.call import Attempt, Call
from .protocol import text_of
from .telemetry.exporter import Exporter, Send
from .telemetry.spans import MAX_CONTENT, failure, moment
from .types import Usage

PATH = "/v1/traces"
TIMEOUT_SECONDS = 3.0  # for one batch, with the SDK's retries
MAX_BATCH = 512
LINGER_SECONDS = 0.1  # to collect spans: each batch costs a request
PROVIDERS = {
    "gemini": "gcp.gemini",
    "azure": "azure.ai.openai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}  # the conventions' names, where they differ
OPERATIONS = {"completions": "text_completion", "responses": "chat", "messages": "chat"}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("infermux")
_OK = Status()


class OTLP(Exporter[ReadableSpan]):
    """An observer that exports spans in batches, in the background."""

    def __init__(
        self, url: str, *, size: int = 1000, vendors: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(
            "the OpenTelemetry collector does not accept spans",
            threads=1,
            size=size,
            batch=MAX_BATCH,
            linger=LINGER_SECONDS,
        )
        self._url = url if url.endswith(PATH) else url.rstrip("/") + PATH
        self._vendors = {
            name: PROVIDERS.get(vendor, vendor) for name, vendor in (vendors or {}).items()
        }
        self._resource = Resource({"service.name": "infermux"}).merge(
            OTELResourceDetector().detect()
        )
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_not_ours)

    def __call__(self, call: Call) -> None:
        parent = None
        if call.parent_id:  # the last 16 digits, as in mist-go's traceparent
            parent = _context(call.trace_id, call.parent_id[-16:], remote=True)
        own, times = _context(call.trace_id, call.span_id), (call.start_ns, call.end_ns)
        self.put(self._span(call, own, parent, times, call.error, self._of_call(call)))
        if len(call.attempts) > 1:
            for number, attempt in enumerate(call.attempts, 1):
                start = moment(call, attempt.started)
                context = _context(call.trace_id, f"{int(own.span_id) ^ number:016x}")
                self.put(
                    self._span(
                        call,
                        context,
                        own,
                        (start, start + int(attempt.seconds * 1e9)),
                        failure(call, attempt),
                        self._of_attempt(attempt) | {"infermux.attempt": number},
                    )
                )

    def sender(self) -> Send[ReadableSpan]:
        """Return a function that exports a batch, in halves if it is too large for the collector.

        It ignores proxies of the environment.
        """
        session, statuses = requests.Session(), list[int]()
        session.trust_env, session.max_redirects = False, 0
        session.hooks["response"].append(lambda answer, **_: statuses.append(answer.status_code))
        exporter = OTLPSpanExporter(endpoint=self._url, timeout=TIMEOUT_SECONDS, session=session)

        def send(spans: list[ReadableSpan]) -> int:
            statuses.clear()
            if exporter.export(spans) is SpanExportResult.SUCCESS:
                return 0
            if 413 not in statuses or len(spans) == 1:
                return len(spans)
            half = len(spans) // 2
            return send(spans[:half]) + send(spans[half:])

        return send

    def _span(
        self,
        call: Call,
        context: SpanContext,
        parent: SpanContext | None,
        times: tuple[int, int],
        error: Failure | None,
        more: dict[str, Any],
    ) -> ReadableSpan:
        operation = OPERATIONS.get(call.request.op, call.request.op)
        model = more.get("gen_ai.request.model", "")
        known = {
            "gen_ai.operation.name": operation,
            **more,
            "error.type": error.code if error else None,
        }
        attributes = {
            name: value for name, value in known.items() if value is not None and value != ""
        }
        return ReadableSpan(
            f"{operation} {model}" if model and call.plan else operation,
            context,
            parent,
            self._resource,
            attributes,
            kind=SpanKind.CLIENT,
            status=Status(StatusCode.ERROR, error.summary) if error else _OK,
            start_time=times[0],
            end_time=times[1],
            instrumentation_scope=_SCOPE,
        )

    def _of_call(self, call: Call) -> dict[str, Any]:
        params = call.request.params if isinstance(call.request.params, Mapping) else {}
        limit: Any = params.get("max_completion_tokens", params.get("max_tokens"))
        if type(limit) is not int or not 0 <= limit < 2**63:
            limit = None
        heat: Any = params.get("temperature")
        heat = float(heat) if type(heat) in (int, float) and abs(heat) < 1e9 else None
        asked = answered = None
        if call.answer is not None:
            asked = _messages(call.request.messages)
            answered = _messages([{"role": "assistant", "content": call.answer}])
        usage, ended = call.usage or Usage(), call.finish_reason
        return {
            "gen_ai.provider.name": self._vendors.get(call.provider, _text(call.provider)),
            "gen_ai.request.model": _text(call.request.model),
            "gen_ai.response.model": _text(call.model) if call.attempts else None,
            "gen_ai.response.finish_reasons": (_text(ended),) if ended else None,
            "gen_ai.request.max_tokens": limit,
            "gen_ai.request.temperature": heat,
            "gen_ai.input.messages": asked,
            "gen_ai.output.messages": answered,
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "infermux.cost_usd": call.cost_usd,
            "infermux.call.id": call.id,
            "infermux.attempts": len(call.attempts),
            "infermux.provider": _text(call.provider),
            "infermux.strategy": call.plan.strategy if call.plan else None,
            "infermux.api": call.api,
            "infermux.caller": _text(call.caller.name),
        }

    def _of_attempt(self, attempt: Attempt) -> dict[str, Any]:
        provider, model = attempt.target
        return {
            "gen_ai.provider.name": self._vendors.get(provider, provider),
            "gen_ai.request.model": _text(model),
            "gen_ai.response.model": _text(attempt.served),
            "infermux.provider": provider,
            "infermux.waited_ms": round(attempt.waited * 1000) or None,
        }


def _messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of messages as the conventions' JSON, cut off at MAX_CONTENT."""
    parts = [
        {
            "role": str(each.get("role")),
            "parts": [{"type": "text", "content": text_of(each.get("content"))}],
        }
        for each in messages
    ]
    return json.dumps(parts)[:MAX_CONTENT]


def _context(trace_id: str, span_id: str, *, remote: bool = False) -> SpanContext:
    """Return a span's identity; OpenTelemetry's span id has only 64 of our 128 bits."""
    return SpanContext(int(trace_id, 16), int(span_id[:16], 16), remote, _SAMPLED)


def _text(value: object) -> str:
    """Return 200 characters of a text, without lone surrogates, which collectors refuse."""
    return value[:200].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _not_ours(record: logging.LogRecord) -> bool:
    """Return False for the SDK's records about our exporter, which logs failures once."""
    return not (record.threadName or "").startswith("infermux-")
