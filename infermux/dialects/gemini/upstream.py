"""The Gemini `Dialect`: writes requests to a vendor; reads responses, errors and streams.

Sources: https://ai.google.dev/api/generate-content, and recorded traffic.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from ...errors import ProviderError, StreamIncomplete
from ...protocol import CHAT, InferRequest, InferResponse, strict_json
from ...protocol.json_array import ArrayParser
from ...protocol.strict_json import Document
from ...types import HEARTBEAT, JSON, Chunk
from .. import (
    NO_TERMINATOR,
    Events,
    Headers,
    count,
    error_object,
    items,
    listed,
    members,
    obj,
    packed,
    parameters,
    path_of,
    provider_error,
    read_object,
    retry_after,
    text,
    token_count,
    with_native,
    word,
)
from ..blocks import answer
from ..citations import MOST, citation, image
from ..parameters import Drop, Unsaid
from . import NAME
from .call_ids import seal_key, sealed
from .requests import FORMAT, embedding, model_of, translated, wants_signatures
from .signatures import PACKED, own_contents
from .usage import Searches, usage_of
from .usage import billed as billed

EMBEDDINGS, COUNT_TOKENS = "embeddings", "count_tokens"
VERBS = {CHAT: "generateContent", EMBEDDINGS: "embedContent", COUNT_TOKENS: "countTokens"}
COUNTS_TOKENS = True  # the vendor has this operation
WITHOUT_SSE = ArrayParser  # reads its streams that are not server-sent events
HAS_NO_REQUEST_IDS = True  # in headers: the id of the answer stands for it

# google.ai.generativelanguage.v1beta.Candidate.FinishReason; enum-encoding=int sends numbers.
_FINISH_NUMBERS = (
    "",
    "STOP",
    "MAX_TOKENS",
    "SAFETY",
    "RECITATION",
    "OTHER",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MALFORMED_FUNCTION_CALL",
    "IMAGE_SAFETY",
    "UNEXPECTED_TOOL_CALL",
)
FILTERED = re.compile(
    "(IMAGE_)?(SAFETY|RECITATION|PROHIBITED_CONTENT)|LANGUAGE|BLOCKLIST|SPII|MODEL_ARMOR"
)
_SOURCES = ("web", "retrievedContext", "maps")  # kinds of those that may have an address
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s", re.ASCII)


def path(request: InferRequest, *, stream: bool) -> str:
    """Return the operation's path and query; the model, quoted, is one segment of the path."""
    verb, native = path_of(VERBS, request, NAME), request.native
    query = native.query if native is not None and native.dialect == NAME else None
    if request.op == CHAT and stream:
        verb, query = "streamGenerateContent", "alt=sse" if query is None else query
    elif request.op == EMBEDDINGS and _is_batch(request):
        verb = "batchEmbedContents"
    verb += f"?{query}" if query else ""
    return f"/models/{quote(model_of(request), safe='', errors='replace')}:{verb}"


def _is_batch(request: InferRequest) -> bool:
    own = request.body_in(NAME)
    if own is not None:
        return "requests" in own.value
    return isinstance(request.params.get("input"), list)


def auth(key: str) -> dict[str, str]:
    return {"x-goog-api-key": key}


def headers(request: InferRequest) -> dict[str, str]:
    return {}


def encode_request(request: InferRequest, *, stream: bool, key: bytes | None = None) -> bytes:
    """Return the body: the client's own, but for our model's name, if it is in this dialect.

    *key* seals the ids of tool calls; None: they are as the vendor gave them.
    """
    own = request.body_in(NAME)
    if own is not None:
        return _adapted(own, model_of(request))
    drop, embeds = Drop.of(request), request.op == EMBEDDINGS
    body = embedding(request, drop) if embeds else translated(request, drop, key)
    if request.op == COUNT_TOKENS and body.keys() != {"contents"}:
        body = {"generateContentRequest": {"model": f"models/{model_of(request)}"} | body}
    return request.encode(body)


def _adapted(body: Document, model: str) -> bytes:
    """Return a body of this dialect with our *model* where it names one."""
    new, text, signs = _renamed(body.value, model), body.text, wants_signatures(model)
    foreign = PACKED in text or (signs and ("functionCall" in text or "function_call" in text))
    if foreign:
        new |= _without_foreign(body.value, signs)
    for name in ("requests", "generateContentRequest", "generate_content_request"):
        inner = body.value.get(name)
        if isinstance(inner, dict):
            changed = _renamed(inner, model)
            changed |= _without_foreign(inner, signs) if foreign else {}
            new |= {name: inner | changed} if changed else {}
        elif isinstance(inner, list) and any(_renamed(obj(one), model) for one in inner):
            new[name] = [one | _renamed(one, model) for one in inner]
    return body.replaced(new)


def _renamed(members: JSON, model: str) -> JSON:
    own, whole = members.get("model"), f"models/{model}"
    return {} if own in (None, model, whole) else {"model": whole}


def _without_foreign(members: JSON, signs: bool) -> JSON:
    contents = members.get("contents")
    kept = own_contents(contents, signs=signs)
    return {} if kept is contents else {"contents": kept}


def unsaid(request: InferRequest, model: str) -> Unsaid:
    return parameters.unsaid(request, model, NAME, path, translated)


# -- answers --


def decode_response(data: bytes, request: InferRequest, key: bytes | None = None) -> InferResponse:
    body, native = read_object(data, decode_error), (NAME, data)
    if request.op == COUNT_TOKENS:
        return token_count(body["totalTokens"], request, native)
    if request.op == EMBEDDINGS:
        said = Chunk(usage=usage_of(body.get("usageMetadata")))
        return answer(request, native, said, extra={"data": _embeddings(body, request)})
    chunk = _Reader(key).chunk(body, b"")
    if not chunk.has_content:
        raise ValueError("an answer without candidates")
    return answer(request, native, chunk)


def _embeddings(body: JSON, request: InferRequest) -> list[JSON]:
    """Return the vectors in OpenAI's form, as base64 if the caller asked for it."""
    single, wanted = body.get("embedding"), request.params.get("input")
    vectors = items(body.get("embeddings")) if single is None else [obj(single)]
    found: list[Any] = [vector.get("values") for vector in vectors]
    if not found or (isinstance(wanted, list) and len(wanted) != len(found)):
        raise ValueError("not as many embeddings as inputs")
    if not all(
        isinstance(one, list) and one and all(type(number) in (int, float) for number in one)
        for one in found
    ):
        raise ValueError("an embedding is not a list of numbers")
    if request.params.get("encoding_format") == "base64":
        found = [packed(one) for one in found]
    return [
        {"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(found)
    ]


class _Reader:
    """Reads one response, whole or in chunks; numbers its tool calls and details."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key  # that seals the ids of calls
        self.finished = False
        self._calls = 0
        self._details = 0
        self._usage: JSON = {}
        self._id = ""  # of the answer
        self._text: list[str] = []  # in pieces
        self._cited: list[JSON] = []
        self._searches = Searches()

    def chunk(self, body: JSON, native: bytes) -> Chunk:
        """Return the chunk of a GenerateContentResponse: the first candidate's text and calls."""
        candidates = [one for one in items(body.get("candidates")) if not count(one.get("index"))]
        parts = items(obj(candidates[0].get("content")).get("parts")) if candidates else []
        ident = text(body.get("responseId"))
        self._id = ident or self._id
        words, thoughts = "", ""
        calls, details = [], []
        for part in parts:
            if part.get("functionCall") is not None:
                calls.append(self._call(part))
            elif "text" in part or not part.keys() - {"thought", "thoughtSignature"}:
                thought, said = part.get("thought"), text(part.get("text"))
                if thought not in (None, True, False):
                    raise ValueError("thought is neither true nor false")
                if thought:
                    thoughts += said
                else:
                    words += said
                if part.get("thoughtSignature"):
                    details.append(self._detail(part, said))
            elif _drawn(part) and part.get("thoughtSignature"):
                details.append(self._detail(part, ""))
        self._text.append(words)
        self._usage |= obj(body.get("usageMetadata"))
        self._searches.add(candidates)
        return Chunk(
            words,
            thoughts,
            "",
            calls,
            self._reason(body, candidates) or None,
            usage_of(self._usage, self._searches.fees, body.get("serviceTier")),
            native,
            details,
            text(body.get("modelVersion")) or None,
            ident or None,
            dialect=NAME,
            annotations=self._citations(candidates),
            images=[image for part in parts for image in _drawn(part)],
        )

    def _citations(self, candidates: list[JSON]) -> list[JSON]:
        """Return the citations that no chunk before had; the last one may repeat all."""
        told = candidates[0].get("groundingMetadata") if candidates else None
        if not told:
            return []
        found = _grounded(told, "".join(self._text))
        new = [one for one in found if one not in self._cited]
        self._cited += new
        return new

    def _reason(self, body: JSON, candidates: list[JSON]) -> str:
        reason = ""
        if candidates:
            reason = finish_reason(candidates[0].get("finishReason"))
        elif obj(body.get("promptFeedback")).get("blockReason"):
            reason = "content_filter"
        reason = "tool_calls" if reason == "stop" and self._calls else reason
        self.finished |= bool(reason)
        return reason

    def _detail(self, part: JSON, said: str) -> JSON:
        signature = text(part["thoughtSignature"])
        detail = {"type": "reasoning.encrypted", "data": signature}
        if part.get("thought"):
            detail = {"type": "reasoning.text", "text": said, "signature": signature}
        self._details += 1
        return detail | {"format": FORMAT, "index": self._details - 1}

    def _call(self, part: JSON) -> JSON:
        call, signature = obj(part["functionCall"]), text(part.get("thoughtSignature"))
        name = text(call.get("name"))
        if not name or call.get("partialArgs"):
            raise ValueError("a function call that is not whole")
        ident = text(call.get("id"))
        if signature and self._key is not None:
            ident = sealed(signature, ident, self._key, of=f"{self._calls} {self._id}")
        ident = ident or f"call_{self._calls}_{secrets.token_hex(8)}"
        read: JSON = {
            "index": self._calls,
            "id": ident,
            "type": "function",
            "function": {"name": name, "arguments": strict_json.dumps(obj(call.get("args")))},
        }
        self._calls += 1
        if signature:
            read["extra_content"] = {"google": {"thought_signature": signature}}
        return read


def _drawn(part: JSON) -> list[JSON]:
    data = {} if part.get("thought") else members(part.get("inlineData"))
    return image(data.get("mimeType"), data.get("data"))


def _grounded(value: object, text: str) -> list[JSON]:
    """Return the citations in a groundingMetadata of an answer whose *text* is known."""
    told, found = members(value), []
    sources = [_source(each) for each in listed(told.get("groundingChunks"))]
    supports = listed(told.get("groundingSupports"))[:MOST]
    for each in supports:
        numbers = each.get("groundingChunkIndices")
        start, end = _segment(members(each.get("segment")), text)
        for number in numbers if isinstance(numbers, list) else ():
            if isinstance(number, int) and 0 <= number < len(sources):
                source = sources[number]
                found.append(citation(source.get("uri"), source.get("title"), start, end))
    if not supports:  # then the sources are those of the whole
        found = [citation(one.get("uri"), one.get("title"), 0, len(text)) for one in sources]
    return [*filter(None, found)]


def _source(chunk: JSON) -> JSON:
    kinds = (members(chunk.get(kind)) for kind in _SOURCES)
    return next((kind for kind in kinds if kind), {})


def _segment(segment: JSON, text: str) -> tuple[int, int]:
    """Return a segment in characters: its bytes, or where its words are if those do not fit.

    The bytes may be those of one part of several.
    """
    data, words = text.encode(errors="replace"), segment.get("text")
    cuts = (segment.get("startIndex") or 0, segment.get("endIndex") or 0)
    start, end = (
        len(data[:cut].decode(errors="ignore")) if type(cut) is int and cut > 0 else 0
        for cut in cuts
    )
    if isinstance(words, str) and text[start:end] != words and (at := text.find(words)) >= 0:
        return at, at + len(words)
    return start, end


def finish_reason(value: object) -> str:
    """Return OpenAI's finish_reason, "" if missing; an unknown one is only put in lower case."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = _FINISH_NUMBERS[value] if 0 <= value < len(_FINISH_NUMBERS) else str(value)
    reason = text(value)
    if FILTERED.fullmatch(reason):
        return "content_filter"
    known = {"STOP": "stop", "MAX_TOKENS": "length", "FINISH_REASON_UNSPECIFIED": ""}
    return known.get(reason, reason.lower())


def decode_events(
    events: Events, request: InferRequest, key: bytes | None = None
) -> Iterator[Chunk]:
    """Yield a stream's chunks; raise StreamIncomplete if it ends without a finish reason."""
    reader = _Reader(key)
    for event in events:
        if event is None or not event.data:
            yield HEARTBEAT
        else:
            yield reader.chunk(read_object(event.data, decode_error), event.data)
    if not reader.finished:
        raise StreamIncomplete(NO_TERMINATOR)


# -- errors --

_MEMBERS = ("code", "status", "details")  # of errors that callers cannot fix


def decode_error(status: int, headers: Headers, data: bytes) -> ProviderError:
    error = error_object(data)
    details = listed(error.get("details"))
    words = [error.get("status"), *(detail.get("reason") for detail in details)]
    violations = [one for each in details for one in listed(each.get("violations"))]
    # for a daily quota the suggested delay is too short
    daily = status == 429 and any("PerDay" in word(one.get("quotaId")) for one in violations)
    wait = retry_after(headers) if status in (429, 503) else None
    found = provider_error(
        status,
        word(error.get("message")),
        code=" ".join(map(word, words)) + " insufficient_quota" * daily,
        retry_after=None if daily else _delay(details) if wait is None else wait,
    )
    return with_native(found, NAME, status, headers, data, members=_MEMBERS)


def _delay(details: list[JSON]) -> float | None:
    found = (_DELAY.fullmatch(word(detail.get("retryDelay"))) for detail in details)
    return next((float(match[1]) for match in found if match), None)


def bound(api_key: str) -> SimpleNamespace:
    """Return this dialect for a provider with *api_key*, which seals the ids of tool calls."""
    key = seal_key(api_key)
    uses = (encode_request, decode_response, decode_events)
    return SimpleNamespace(**globals() | {each.__name__: partial(each, key=key) for each in uses})
