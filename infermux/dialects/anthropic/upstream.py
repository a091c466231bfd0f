"""The Anthropic `Dialect`: writes requests to a vendor; reads responses, errors and streams.

Sources: https://platform.claude.com/docs/en/api/messages, the official SDK's types, and recorded
traffic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...errors import ProviderError, StreamIncomplete
from ...protocol import CHAT, InferRequest, InferResponse, strict_json
from ...types import HEARTBEAT, JSON, Chunk, Usage
from .. import (
    NO_TERMINATOR,
    SDK_STATUSES,
    Events,
    Headers,
    error_object,
    given,
    items,
    listed,
    members,
    obj,
    parameters,
    path_of,
    provider_error,
    retry_after,
    text,
    token_count,
    typed,
    with_native,
    without,
    word,
)
from ..blocks import answer
from ..citations import citation
from ..fitting import ANTHROPIC_CALL_ID
from ..openai.requests import KEEPS_REASONING
from ..parameters import Drop, Unsaid, hint
from ..responses.reasoning import is_packed
from . import NAME
from .models import BETA, BINDS, breakpoints, fitted_thinking, refused
from .requests import (
    INDEX,
    THINKING_FORMAT,
    call_ident,
    calls_without_thought,
    is_empty,
    reading,
    string,
    translated,
)
from .usage import usage_of

PATHS = {CHAT: "/messages", "count_tokens": "/messages/count_tokens"}
VERSION = "2023-06-01"
FORWARDED = ("anthropic-version", "anthropic-beta")
FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
COUNTS_TOKENS = True  # the vendor has this operation


def path(request: InferRequest, *, stream: bool) -> str:
    return path_of(PATHS, request, NAME)


def auth(key: str) -> dict[str, str]:
    return {"x-api-key": key}


def headers(request: InferRequest) -> dict[str, str]:
    """Return anthropic-version and -beta; the client's only count if its body is passed on."""
    own: Mapping[str, str] = {"anthropic-beta": BETA} if BINDS.search(request.model) else {}
    own = own if request.body_in(NAME) is None else request.headers
    return {"anthropic-version": VERSION} | {
        name.lower(): value for name, value in own.items() if name.lower() in FORWARDED
    }


def encode_request(request: InferRequest, *, stream: bool) -> bytes:
    """Return the body: the client's own, with our model, if it is in this dialect.

    Params that the model refuses are always left out.
    """
    path(request, stream=stream)
    own, drop = request.body_in(NAME), Drop.of(request)
    body = own.value if own is not None else translated(request, drop)
    new, out = _changes(body, request.model) if own is not None else (JSON(), [])
    if request.op == CHAT and bool(body.get("stream")) != stream:
        new["stream"] = stream
    if request.op == CHAT and request.cache_key:
        new |= breakpoints(body | new, request.model)
    for name in out:
        hint(name, drop)
    if own is not None and not out:
        return own.replaced(new)
    return request.encode(without(body, *out) | new)


def unsaid(request: InferRequest, model: str) -> Unsaid:
    return parameters.unsaid(request, model, NAME, path, translated)


def _changes(body: JSON, model: str) -> tuple[JSON, list[str]]:
    """Return the members of a client's body that differ for the model, and the names of others."""
    new: JSON = {} if body.get("model") == model else {"model": model}
    with reading("messages"):
        turns = body["messages"]
        if _is_foreign(turns, signs := not KEEPS_REASONING.search(model)):
            kept = [(_own_blocks(turn, signs), turn) for turn in turns]
            turns = [own for own, turn in kept if own.get("content") or own == turn]
            new["messages"] = turns
        out = refused(body, model)
        thinking = members(body.get("thinking"))
        if (fits := fitted_thinking(thinking, model)) != thinking:
            new |= {"thinking": fits} if fits else {}
            out += [] if fits else ["thinking"]
        elif thinking.get("type") == "enabled" and calls_without_thought(turns):
            # refused where another vendor gave the calls; context_management may need thinking
            out += {"thinking", "context_management"} & body.keys()
    return new, out


def _is_foreign(turns: list[JSON], signs: bool) -> bool:
    """Whether a turn has content of other vendors that Anthropic refuses.

    *signs*: the model's thoughts are signed; DeepSeek's, for one, are not.
    One loop without calls, as a request may have hundreds of turns.
    """
    fits = ANTHROPIC_CALL_ID.fullmatch
    for turn in turns:
        content = turn.get("content")
        if type(content) is not list:
            continue
        for block in content:
            kind = block.get("type")
            if kind == "thinking":
                if signs and not _is_own(block):
                    return True
            elif kind == "text":
                words = block.get("text") if turn.get("role") == "assistant" else None
                if type(words) is str and (not words or words.isspace()):
                    return True
                if block.get("citations") and block != _own_block(block):
                    return True
            else:
                ident = block.get("id") or block.get("tool_use_id")
                if type(ident) is str and not fits(ident):
                    return True
            if "extra_content" in block:
                return True
    return False


def _own_blocks(turn: JSON, signs: bool) -> JSON:
    """Return a turn without unsigned thinking and extra_content, with ids as Anthropic's are.

    What the assistant said has no blank texts, with which others begin.
    """
    content, said = turn.get("content"), turn.get("role") == "assistant"
    if not isinstance(content, list):
        return turn
    kept = (
        block
        for block in content
        if (not signs or block.get("type") != "thinking" or _is_own(block))
        and not (said and is_empty(block))
    )
    return turn | {"content": [_own_block(block) for block in kept]}


def _is_own(thinking: JSON) -> bool:
    signature = thinking.get("signature")
    return bool(signature) and not is_packed(signature)


def _own_block(block: JSON) -> JSON:
    new = without(block, "extra_content")
    if isinstance(found := new.get("citations"), list):  # a document's say whether to cite it
        kept = [one for one in listed(found) if one.get(INDEX) != ""]
        new = new | {"citations": kept} if kept else without(new, "citations")
    for name in ("id", "tool_use_id"):
        if isinstance(new.get(name), str):
            new[name] = call_ident(new[name])
    return new


# -- answers --


def decode_response(data: bytes, request: InferRequest) -> InferResponse:
    body, native = _object(data), (NAME, data)
    if request.op == "count_tokens":
        return token_count(body["input_tokens"], request, native)
    reader = _Reader()
    if not isinstance(body["content"], list):
        raise ValueError("an answer without content")
    said = Chunk(
        finish_reason=finish_reason(body.get("stop_reason")),
        usage=usage_of(body.get("usage"), body.get("model")),
        model=text(body.get("model")),
        id=text(body.get("id")),
    )
    blocks = enumerate(items(body["content"]))
    return answer(request, native, *(one for each in blocks for one in reader.block(*each)), said)


def _cited(found: object, start: int, end: int) -> list[JSON]:
    """Return the web citations of a text block, which begins at *start* and goes to *end*."""
    read = [
        citation(
            each.get("url") or each.get("source"),
            each.get("title"),
            start,
            end,
            each.get("cited_text"),
        )
        for each in listed(found)
    ]
    return [*filter(None, read)]


def _object(data: bytes) -> JSON:
    body = obj(strict_json.lenient(data))
    if body.get("type") == "error" or ("type" not in body and body.get("error")):  # with status 200
        kind = word(error_object(data).get("type"))
        raise decode_error(STATUS.get(kind, 502), {}, data)
    return body


def _tool_call(block: JSON, arguments: str) -> JSON:
    ident = string(block, "id")
    if not ident:
        raise ValueError("a tool call without an id")
    function = {"name": string(block, "name"), "arguments": arguments}
    return {"id": ident, "type": "function", "function": function}


def detail_of(block: JSON) -> JSON:
    """Return the reasoning detail of a thinking block, or {} for an empty block."""
    if block["type"] == "redacted_thinking":
        return _thinking({"data": string(block, "data")}, "encrypted")
    words, signature = string(block, "thinking"), text(block.get("signature"))
    signed = {"signature": signature} if signature else {}
    return _thinking({"text": words} | signed) if words or signed else {}


def _thinking(members: JSON, kind: str = "text") -> JSON:
    return {"type": f"reasoning.{kind}", **members, "format": THINKING_FORMAT}


def finish_reason(value: object) -> str:
    """Return OpenAI's finish_reason: stop for a missing value, an unknown one unchanged."""
    reason = text(value)
    return FINISH.get(reason, reason) or "stop"


# -- errors --


def decode_error(status: int, headers: Headers, data: bytes) -> ProviderError:
    error = error_object(data)
    message = word(error.get("message"))
    if status == 400 and "credit balance" in message:  # our empty account, not the caller's fault
        status = 402
    wait = retry_after(headers) if status == 429 or status >= 500 else None
    failed = provider_error(status, message, code=word(error.get("type")), retry_after=wait)
    return with_native(failed, NAME, status, headers, data, passed=SDK_STATUSES | {529})


# -- streams --


def decode_events(events: Events, request: InferRequest) -> Iterator[Chunk]:
    """Yield a stream's chunks; raise StreamIncomplete if it ends without message_stop."""
    reader = _Reader()
    for event in events:
        if event is None or not event.data:
            yield HEARTBEAT
            continue
        body = _object(event.data)
        native = typed(event, body).encode()
        kind = string(body, "type")
        if kind == "error":  # only the event's name says so
            raise decode_error(502, {}, event.data)
        yield reader.chunk(kind, body)._replace(native=native, dialect=NAME)
        if kind == "message_stop":
            return
    raise StreamIncomplete(NO_TERMINATOR)


class _Reader:
    """Reads one stream; keeps the open blocks and the usage for its later events."""

    def __init__(self) -> None:
        self._blocks: dict[int, JSON] = {}
        self._usage: JSON = {}
        self._model: object = None
        self._calls = 0
        self._details = 0
        self._length = 0  # of the text so far
        self._finished = False

    def chunk(self, kind: str, body: JSON) -> Chunk:
        """Return the chunk of an event, empty if its kind is unknown."""
        if kind == "message_start":
            message = obj(body["message"])
            self._model = message.get("model")
            return Chunk(
                usage=self._counted(message.get("usage")),
                model=text(message.get("model")) or None,
                id=text(message.get("id")) or None,
            )
        if kind == "content_block_start":
            return self._start(_index(body), obj(body["content_block"]))
        if kind == "content_block_delta":
            return self._delta(self._blocks[_index(body)], obj(body["delta"]))
        if kind == "content_block_stop":
            return self._stop(self._blocks.pop(_index(body)))
        if kind == "message_delta":
            reason = obj(body["delta"]).get("stop_reason")
            self._finished = self._finished or bool(reason)
            return Chunk(
                finish_reason=finish_reason(reason) if reason else None,
                usage=self._counted(body.get("usage")),
            )
        if kind == "message_stop" and not self._finished:
            return Chunk(finish_reason="stop")
        return Chunk()

    def block(self, index: int, block: JSON) -> Iterator[Chunk]:
        yield self._start(index, block)
        yield self._stop(self._blocks.pop(index))

    def _counted(self, value: object) -> Usage | None:
        """Return the usage so far: a later count replaces an earlier one."""
        self._usage |= given(obj(value))
        return usage_of(self._usage, self._model)

    def _start(self, index: int, block: JSON) -> Chunk:
        kind = string(block, "type")
        state: JSON = {"type": kind}
        self._blocks[index] = state
        if kind == "text":
            state |= {"at": self._length, "citations": listed(block.get("citations"))}
            return self._text(block)
        if kind == "tool_use":
            if not isinstance(block["input"], dict):
                raise ValueError("the input of a tool call is not an object")
            words = strict_json.dumps(block["input"])
            state |= {"call": self._calls, "input": words, "streamed": False}
            self._calls += 1
            return Chunk(tool_calls=[_tool_call(block, "") | {"index": state["call"]}])
        if kind in ("thinking", "redacted_thinking"):
            return self._thought(state, detail) if (detail := detail_of(block)) else Chunk()
        return Chunk(shown=True)  # such as the call of a vendor's own tool

    def _delta(self, state: JSON, delta: JSON) -> Chunk:
        kind, block = string(delta, "type"), state["type"]
        if kind == "text_delta" and block == "text":
            return self._text(delta)
        if kind == "citations_delta" and block == "text":
            state["citations"].append(members(delta.get("citation")))
        if kind == "input_json_delta":
            piece = string(delta, "partial_json")
            if block == "tool_use" and piece:
                state["streamed"] = True
                return _more_arguments(state, piece)
        elif kind == "thinking_delta" and block == "thinking":
            if words := string(delta, "thinking"):
                return self._thought(state, _thinking({"text": words}))
        elif kind == "signature_delta" and block == "thinking":
            first = {} if "started" in state else {"text": ""}
            signature = {"signature": string(delta, "signature")}
            return self._thought(state, _thinking(first | signature))
        return Chunk(shown=block != "thinking")  # thinking may be empty

    def _thought(self, state: JSON, detail: JSON) -> Chunk:
        if "started" not in state:  # empty blocks are not numbered
            state |= {"started": True, "detail": self._details}
            self._details += 1
        numbered = detail | {"index": state["detail"]}
        return Chunk(reasoning=detail.get("text", ""), details=[numbered])

    def _text(self, holder: JSON) -> Chunk:
        words = string(holder, "text")
        self._length += len(words)
        return Chunk(text=words)

    def _stop(self, state: JSON) -> Chunk:
        if found := state.get("citations"):
            return Chunk(annotations=_cited(found, state["at"], self._length))
        if state["type"] == "tool_use" and not state["streamed"]:
            return _more_arguments(state, state["input"])  # a call without arguments has no delta
        return Chunk()


def _more_arguments(state: JSON, piece: str) -> Chunk:
    return Chunk(tool_calls=[{"index": state["call"], "function": {"arguments": piece}}])


def _index(body: JSON) -> int:
    value = body["index"]
    if type(value) is not int:
        raise ValueError("the index of a block is not a number")
    return value
