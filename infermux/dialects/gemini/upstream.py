"""Google's generateContent format, the vendor's side: chat, embeddings and token counts, at Gemini
and at Vertex.

Facts: https://ai.google.dev/api/generate-content, and what recorded traffic shows.
"""

from __future__ import annotations

import base64
import re
import secrets
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import ProviderError, StreamIncomplete
from ...protocol import InferRequest, InferResponse, strict_json
from ...protocol.sse import Event
from ...types import HEARTBEAT, JSON, Chunk, Usage
from .. import Events, Headers, count, items, obj, provider_error, retry_after, text, whole
from .requests import (
    COUNT_TOKENS,
    EMBEDDINGS,
    FORMAT,
    NAME,
    OWN_ID,
    auth,
    encode_request,
    headers,
    path,
)

__all__ = [
    "COUNTS_TOKENS",
    "NAME",
    "OWN_ID",
    "auth",
    "decode_error",
    "decode_events",
    "decode_response",
    "decode_whole",
    "encode_request",
    "headers",
    "path",
]

COUNTS_TOKENS = True  # the vendor counts a request's tokens when asked

# Numbers of the enumeration google.ai.generativelanguage.v1beta.Candidate.FinishReason, sent under
# enum-encoding=int.
_FINISH_NUMBERS = {
    1: "STOP",
    2: "MAX_TOKENS",
    3: "SAFETY",
    4: "RECITATION",
    5: "OTHER",
    6: "LANGUAGE",
    7: "BLOCKLIST",
    8: "PROHIBITED_CONTENT",
    9: "SPII",
    10: "MALFORMED_FUNCTION_CALL",
    11: "IMAGE_SAFETY",
    12: "UNEXPECTED_TOOL_CALL",
}
_FILTERED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "MODEL_ARMOR",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    }
)
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s", re.ASCII)

# -- answers ---------------------------------------------------------------------------------------


def decode_response(data: bytes, request: InferRequest) -> InferResponse:
    """Return the answer of any operation."""
    body = strict_json.lenient(data)
    if not isinstance(body, dict):
        raise ValueError("expected an object")
    if body.get("error"):
        raise _embedded(body)
    native = (NAME, data)
    if request.op == COUNT_TOKENS:
        total = count(body["totalTokens"])
        if total is None:
            raise ValueError("a count without a number")
        return InferResponse(
            request.model, request.provider, "", total, native=native, extra={"input_tokens": total}
        )
    if request.op == EMBEDDINGS:
        usage = usage_of(body.get("usageMetadata"))
        return InferResponse(
            request.model,
            request.provider,
            "",
            tokens_in=(usage and usage.input_tokens) or 0,
            usage=usage,
            native=native,
            extra={"data": _embeddings(body, request)},
        )
    chunk = _Reader().chunk(body, b"")
    if not chunk.has_content:
        raise ValueError("an answer without candidates")
    used = chunk.usage or Usage()
    return InferResponse(
        model=chunk.model or request.model,
        provider=request.provider,
        content=chunk.text,
        tokens_in=used.input_tokens or 0,
        tokens_out=used.output_tokens or 0,
        usage=chunk.usage,
        id=chunk.id or "",
        native=native,
        reasoning=chunk.reasoning,
        finish_reason=chunk.finish_reason or ("tool_calls" if chunk.tool_calls else "stop"),
        details=chunk.details,
        tool_calls=[
            {name: value for name, value in call.items() if name != "index"}
            for call in chunk.tool_calls
        ],
    )


def _embeddings(body: JSON, request: InferRequest) -> list[JSON]:
    """Return the vectors in OpenAI's shape, as base64 of little-endian floats if the caller wants
    them so.
    """
    single, wanted = body.get("embedding"), request.params.get("input")
    found: list[Any] = [
        obj(item).get("values")
        for item in (items(body.get("embeddings")) if single is None else [single])
    ]
    if not found or (isinstance(wanted, list) and len(wanted) != len(found)):
        raise ValueError("not as many embeddings as inputs")
    if not all(
        isinstance(one, list) and one and all(type(number) in (int, float) for number in one)
        for one in found
    ):
        raise ValueError("an embedding is not a list of numbers")
    if request.params.get("encoding_format") == "base64":
        try:
            found = [base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode() for one in found]
        except (OverflowError, struct.error):
            raise ValueError("an embedding holds a number that no float can") from None
    return [
        {"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(found)
    ]


class _Reader:
    """Reads one answer, whole or in chunks: numbers its calls and details, and joins what it says
    about usage.
    """

    def __init__(self) -> None:
        self.finished = False
        self._calls = 0
        self._details = 0
        self._usage: JSON = {}

    def chunk(self, body: object, native: bytes) -> Chunk:
        """Return what a GenerateContentResponse holds; raise ProviderError if it is an error."""
        if not isinstance(body, dict):
            raise ValueError("expected an object")
        if body.get("error"):
            raise _embedded(body)
        candidates = [one for one in items(body.get("candidates")) if not count(one.get("index"))]
        words, thoughts, calls, details = [], [], [], []  # type: ignore[var-annotated]
        for part in items(obj(candidates[0].get("content")).get("parts")) if candidates else []:
            self._part(part, words, thoughts, calls, details)
        self._usage |= obj(body.get("usageMetadata"))
        blocked = not candidates and obj(body.get("promptFeedback")).get("blockReason")
        reason = (
            "content_filter"
            if blocked
            else finish_reason(candidates[0].get("finishReason"))
            if candidates
            else ""
        )
        reason = "tool_calls" if reason == "stop" and self._calls else reason
        self.finished = self.finished or bool(reason)
        return Chunk(
            "".join(words),
            "".join(thoughts),
            "",
            calls,
            reason or None,
            usage_of(self._usage),
            native,
            details,
            text(body.get("modelVersion")) or None,
            text(body.get("responseId")) or None,
            dialect=NAME,
        )

    def _part(
        self,
        part: JSON,
        words: list[str],
        thoughts: list[str],
        calls: list[JSON],
        details: list[JSON],
    ) -> None:
        """Read one part; code that the vendor ran, images and its own tools are only in the native
        answer.
        """
        signature = text(part.get("thoughtSignature"))
        if part.get("functionCall") is not None:
            calls.append(self._call(obj(part["functionCall"]), signature))
        elif "text" in part or not part.keys() - {"thought", "thoughtSignature"}:
            thought = part.get("thought")
            if thought not in (None, True, False):
                raise ValueError("thought is neither true nor false")
            (thoughts if thought else words).append(said := text(part.get("text")))
            if signature:
                told = (
                    {"type": "reasoning.text", "text": said, "signature": signature}
                    if thought
                    else {"type": "reasoning.encrypted", "data": signature}
                )
                details.append(told | {"format": FORMAT, "index": self._details})
                self._details += 1

    def _call(self, call: JSON, signature: str) -> JSON:
        name = text(call.get("name"))
        if not name or call.get("partialArgs"):
            raise ValueError("a function call that is not whole")
        ident = text(call.get("id")) or f"call_{self._calls}_{secrets.token_hex(8)}"
        read = {
            "index": self._calls,
            "id": ident,
            "type": "function",
            "function": {"name": name, "arguments": strict_json.dumps(obj(call.get("args")))},
        }
        self._calls += 1
        return read | (
            {"extra_content": {"google": {"thought_signature": signature}}} if signature else {}
        )


def finish_reason(value: object) -> str:
    """Return a finish reason in OpenAI's words, empty where there is none; those without a word for
    them in lower case.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = _FINISH_NUMBERS.get(value, str(value) if value else "")
    reason = text(value)
    if reason in _FILTERED:
        return "content_filter"
    return {"STOP": "stop", "MAX_TOKENS": "length", "FINISH_REASON_UNSPECIFIED": ""}.get(
        reason, reason.lower()
    )


def usage_of(value: object) -> Usage | None:
    """Return usage in the normalised form, None where there is none.

    Thoughts are not among the candidates' tokens. The prompts of the vendor's own tools are not
    among the prompt's, and stand apart.
    """
    data = obj(value)
    prompt, answer = count(data.get("promptTokenCount")), count(data.get("candidatesTokenCount"))
    thoughts, tier = count(data.get("thoughtsTokenCount")), data.get("serviceTier")
    if prompt is None and answer is None and thoughts is None:
        return None
    output = None if answer is None and thoughts is None else (answer or 0) + (thoughts or 0)
    return Usage(
        prompt,
        output,
        count(data.get("cachedContentTokenCount")),
        reasoning_tokens=thoughts,
        tool_use_tokens=count(data.get("toolUsePromptTokenCount")),
        service_tier=None if isinstance(tier, int) else text(tier).lower() or None,
    )


def decode_events(events: Events, request: InferRequest) -> Iterator[Chunk]:
    """Yield the chunks of a stream: it has no terminator but a finish reason and a clean end after
    it.
    """
    reader = _Reader()
    for event in events:
        yield (
            HEARTBEAT
            if event is None
            else reader.chunk(strict_json.lenient(event.data), event.encode())
        )
    if not reader.finished:
        raise StreamIncomplete("the provider's stream ended without its terminator")


def decode_whole(data: bytes, request: InferRequest) -> Iterator[Chunk]:
    """Yield an answer that came as one object, or as the array that a stream is without alt=sse."""
    body = strict_json.lenient(data)
    if isinstance(body, list):
        yield from decode_events((Event(strict_json.encode(item)) for item in body), request)
    else:
        yield from whole(decode_response(data, request), Event(data).encode())


# -- errors ----------------------------------------------------------------------------------------


def decode_error(status: int, headers: Headers, data: bytes) -> ProviderError:
    """Return the error for an answer with *status*, whatever type the body claims to have."""
    try:
        body = strict_json.lenient(data.strip().removeprefix(b"data:"))
    except ValueError:
        body = None
    if isinstance(body, list):  # the array of a stream without alt=sse
        body = body[0] if body else None
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {"message": error}
    details = error.get("details")
    details = (
        [detail for detail in details if isinstance(detail, dict)]
        if isinstance(details, list)
        else []
    )
    words = [error.get("status"), *(detail.get("reason") for detail in details)]
    daily = status == 429 and any(_is_daily(detail) for detail in details)
    wait = retry_after(headers, now=time.time) if status in (429, 503) else None
    message = error.get("message")
    return provider_error(
        status,
        message if isinstance(message, str) else "",
        code=" ".join(filter(_is_text, words)) + " insufficient_quota" * daily,
        retry_after=None if daily else _delay(details) if wait is None else wait,
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_daily(detail: Mapping[str, Any]) -> bool:
    """Whether a quota of the whole day is used up, so that the wait which is suggested will not
    help.
    """
    violations = detail.get("violations")
    quotas = (
        [one.get("quotaId") for one in violations if isinstance(one, dict)]
        if isinstance(violations, list)
        else []
    )
    return any("PerDay" in quota for quota in quotas if isinstance(quota, str))


def _delay(details: list[JSON]) -> float | None:
    found = (
        _DELAY.fullmatch(detail["retryDelay"])
        for detail in details
        if isinstance(detail.get("retryDelay"), str)
    )
    return next((float(match[1]) for match in found if match), None)


def _embedded(body: JSON) -> ProviderError:
    """Return the error that came inside a 200."""
    code = body["error"].get("code") if isinstance(body["error"], dict) else None
    return decode_error(
        code if isinstance(code, int) and 400 <= code < 600 else 502, {}, strict_json.encode(body)
    )
