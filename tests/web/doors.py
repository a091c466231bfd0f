"""Serves the APIs over real HTTP in this process, with scripted vendors of each dialect."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from flask import Flask
from support import PATIENCE, Answer, Peer, ask
from werkzeug.serving import WSGIRequestHandler, make_server

from infermux import HTTPProvider, Registry, Router, TraceSpan, create_app

JSON = dict[str, Any]
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n not much of a picture").decode()
MODELS = {"openai": "gpt-asked", "anthropic": "claude-asked", "gemini": "gemini-asked"}
SERVED = {
    "openai": "gpt-asked-2031-01-02",
    "anthropic": "claude-asked-20310102",
    "gemini": "gemini-asked-001",
}
BASES = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta"}
KEYS = {
    "openai": ("authorization", "Bearer sk-test-vendor-key"),
    "anthropic": ("x-api-key", "sk-test-vendor-key"),
    "gemini": ("x-goog-api-key", "sk-test-vendor-key"),
}


# -- what a vendor says ----------------------------------------------------------------------------


class Turn(NamedTuple):
    """What a model answers, whatever the wire; its usage is always the same: 31 in (8 cached), 17
    out (5 of them reasoning).
    """

    text: str = ""
    calls: tuple[tuple[str, JSON], ...] = ()
    thought: str = ""


def openai_whole(turn: Turn) -> bytes:
    message: JSON = {"role": "assistant", "content": turn.text or None, "refusal": None}
    if turn.thought:
        message["reasoning_content"] = turn.thought
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(given)},
            }
            for number, (name, given) in enumerate(turn.calls)
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "tool_calls" if turn.calls else "stop",
    }
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1900000000,
            "model": SERVED["openai"],
            "choices": [choice],
            "usage": OPENAI_USAGE,
        }
    ).encode()


OPENAI_USAGE = {
    "prompt_tokens": 31,
    "completion_tokens": 17,
    "total_tokens": 48,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 5},
}


def openai_chunk(delta: JSON | None, finish: str | None = None, **more: Any) -> bytes:
    choices = (
        []
        if delta is None
        else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    )
    return (
        b"data: "
        + json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1900000000,
                "model": SERVED["openai"],
                "choices": choices,
            }
            | more
        ).encode()
        + b"\n\n"
    )


def openai_events(turn: Turn) -> list[bytes]:
    events = [openai_chunk({"role": "assistant", "content": ""})]
    events += [openai_chunk({"reasoning_content": piece}) for piece in pieces(turn.thought)]
    events += [openai_chunk({"content": piece}) for piece in pieces(turn.text)]
    for number, (name, given) in enumerate(turn.calls):
        head = {
            "index": number,
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        events.append(openai_chunk({"tool_calls": [head]}))
        events += [
            openai_chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
            for piece in pieces(json.dumps(given))
        ]
    return [
        *events,
        openai_chunk({}, "tool_calls" if turn.calls else "stop"),
        openai_chunk(None, usage=OPENAI_USAGE),
        b"data: [DONE]\n\n",
    ]


SIGNATURE = "c2lnbmVkIGJ5IHRoZSB2ZW5kb3I="


def anthropic_blocks(turn: Turn) -> list[JSON]:
    thoughts = (
        [{"type": "thinking", "thinking": turn.thought, "signature": SIGNATURE}]
        if turn.thought
        else []
    )
    texts = [{"type": "text", "text": turn.text}] if turn.text else []
    return [
        *thoughts,
        *texts,
        *(
            {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": given}
            for number, (name, given) in enumerate(turn.calls)
        ),
    ]


def anthropic_whole(turn: Turn) -> bytes:
    return json.dumps(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": SERVED["anthropic"],
            "content": anthropic_blocks(turn),
            "stop_reason": "tool_use" if turn.calls else "end_turn",
            "stop_sequence": None,
            "usage": ANTHROPIC_USAGE,
        }
    ).encode()


ANTHROPIC_USAGE = {
    "input_tokens": 23,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 8,
    "output_tokens": 17,
    "output_tokens_details": {"thinking_tokens": 5},
}


def anthropic_event(name: str, **members: Any) -> bytes:
    return (
        f"event: {name}\n".encode()
        + b"data: "
        + json.dumps({"type": name, **members}).encode()
        + b"\n\n"
    )


def anthropic_start() -> bytes:
    return anthropic_event(
        "message_start",
        message={
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": SERVED["anthropic"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": ANTHROPIC_USAGE | {"output_tokens": 1},
        },
    )


def anthropic_text(index: int, text: str) -> list[bytes]:
    return [
        anthropic_event(
            "content_block_start", index=index, content_block={"type": "text", "text": ""}
        ),
        *(
            anthropic_event(
                "content_block_delta", index=index, delta={"type": "text_delta", "text": piece}
            )
            for piece in pieces(text)
        ),
        anthropic_event("content_block_stop", index=index),
    ]


def anthropic_events(turn: Turn) -> list[bytes]:
    events = [anthropic_start(), anthropic_event("ping")]
    for index, block in enumerate(anthropic_blocks(turn)):
        if block["type"] == "text":
            events += anthropic_text(index, block["text"])
            continue
        empty = block | (
            {"input": {}} if block["type"] == "tool_use" else {"thinking": "", "signature": ""}
        )
        deltas = (
            [
                {"type": "input_json_delta", "partial_json": piece}
                for piece in ["", *pieces(json.dumps(block["input"]))]
            ]
            if block["type"] == "tool_use"
            else [
                *({"type": "thinking_delta", "thinking": piece} for piece in pieces(turn.thought)),
                {"type": "signature_delta", "signature": SIGNATURE},
            ]
        )
        events.append(anthropic_event("content_block_start", index=index, content_block=empty))
        events += [
            anthropic_event("content_block_delta", index=index, delta=delta) for delta in deltas
        ]
        events.append(anthropic_event("content_block_stop", index=index))
    end = {"stop_reason": "tool_use" if turn.calls else "end_turn", "stop_sequence": None}
    return [
        *events,
        anthropic_event(
            "message_delta",
            delta=end,
            usage={"output_tokens": 17, "output_tokens_details": {"thinking_tokens": 5}},
        ),
        anthropic_event("message_stop"),
    ]


def gemini_parts(turn: Turn) -> list[JSON]:
    thoughts = [{"text": turn.thought, "thought": True}] if turn.thought else []
    texts = [{"text": turn.text}] if turn.text else []
    calls = [{"functionCall": {"name": name, "args": given}} for name, given in turn.calls]
    if calls:
        calls[0]["thoughtSignature"] = SIGNATURE
    return [*thoughts, *texts, *calls]


def gemini_body(parts: list[JSON], finish: str | None = "STOP") -> JSON:
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0} | (
        {"finishReason": finish} if finish else {}
    )
    usage = {
        "promptTokenCount": 31,
        "cachedContentTokenCount": 8,
        "totalTokenCount": 48,
        "candidatesTokenCount": 12,
        "thoughtsTokenCount": 5,
    }
    return {
        "candidates": [candidate],
        "usageMetadata": usage if finish else {"promptTokenCount": 30, "totalTokenCount": 30},
        "modelVersion": SERVED["gemini"],
        "responseId": "response-1",
    }


def gemini_whole(turn: Turn) -> bytes:
    return json.dumps(gemini_body(gemini_parts(turn))).encode()


def gemini_chunk(parts: list[JSON], finish: str | None = None) -> bytes:
    return b"data: " + json.dumps(gemini_body(parts, finish)).encode() + b"\r\n\r\n"


def gemini_events(turn: Turn) -> list[bytes]:
    split = [
        part | {"text": piece}
        for part in gemini_parts(turn)
        if "text" in part
        for piece in pieces(part["text"])
    ]
    return [
        *(gemini_chunk([part]) for part in split),
        gemini_chunk([part for part in gemini_parts(turn) if "text" not in part], "STOP"),
    ]


def pieces(text: str, size: int = 5) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


WHOLE = {"openai": openai_whole, "anthropic": anthropic_whole, "gemini": gemini_whole}
EVENTS = {"openai": openai_events, "anthropic": anthropic_events, "gemini": gemini_events}
FIRST = {
    "openai": openai_chunk({"role": "assistant", "content": "first"}),
    "gemini": gemini_chunk([{"text": "first"}]),
    "anthropic": anthropic_start() + b"".join(anthropic_text(0, "first")[:-1]),
}  # a stream's beginning, with content
ERRORS = {
    "openai": b'data: {"error": {"message": "secret words", "type": "server_error", "code": null}}\n\n',
    "anthropic": anthropic_event(
        "error", error={"type": "overloaded_error", "message": "secret words"}
    ),
    "gemini": b'data: {"error": {"code": 503, "message": "secret words", "status": "UNAVAILABLE"}}\r\n\r\n',
}


# -- vendors ---------------------------------------------------------------------------------------


class Seen(NamedTuple):
    path: str
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)


Step = Callable[["Vendor", Any], None]


class Vendor(Peer):
    """A vendor that does one step of its script per request; the last one repeats. It keeps what it
    was asked.
    """

    def __init__(self, dialect: str, *steps: Step) -> None:
        self.dialect = dialect
        self.steps: list[Step] = list(steps)
        self.seen: list[Seen] = []
        self.left = threading.Event()  # a client has gone before the end of its answer

    def script(self, *steps: Step) -> Self:
        """Start anew."""
        with self.lock:
            self.steps, self.seen = list(steps), []
            self.left = threading.Event()
        return self

    def provider(self, name: str = "", **options: Any) -> HTTPProvider:
        dialect = self.dialect
        return HTTPProvider(
            name or dialect,
            base_url=self.url + BASES[dialect],
            dialect=dialect,
            api_key="sk-test-vendor-key",
            models=[MODELS[dialect]],
            **options,
        )

    def answer(self, handler: Any, body: bytes) -> None:
        with self.lock:
            step = self.steps[min(len(self.seen), len(self.steps) - 1)]
            self.seen.append(
                Seen(
                    handler.path,
                    {name.lower(): value for name, value in handler.headers.items()},
                    body,
                )
            )
        with contextlib.suppress(OSError):
            step(self, handler)


def reply(data: bytes | JSON, status: int = 200, **headers: str) -> Step:
    """Answer in one piece."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    said = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return lambda vendor, handler: handler.reply(status, body, said)


def stream(
    *parts: bytes | threading.Event | Callable[[], object],
    end: str = "end",
    drip: float = 0,
    kind: str = "text/event-stream; charset=utf-8",
) -> Step:
    """Send pieces, wait for events, call functions; then end, cut, reset, hang, or repeat the last
    piece until the client has gone.
    """

    def step(vendor: Vendor, handler: Any) -> None:
        left = vendor.left  # the next script has an event of its own
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for part in parts:
                if isinstance(part, threading.Event):
                    _wait(part, vendor)
                elif callable(part):
                    part()
                else:
                    _chunk(handler, part)
        except OSError:  # as early as that
            left.set()
            return
        _END[end](vendor, handler, parts[-1] if parts else b"", left)

    return step


def _chunk(handler: Any, data: bytes) -> None:
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
    handler.wfile.flush()


def _wait(event: threading.Event, vendor: Vendor) -> None:
    end = time.monotonic() + PATIENCE
    while not event.wait(0.02) and not vendor.released.is_set() and time.monotonic() < end:
        pass


def _cut(vendor: Vendor, handler: Any, last: bytes, left: threading.Event) -> None:
    handler.close_connection = True  # without the chunk that ends the body


def _hang(vendor: Vendor, handler: Any, last: bytes, left: threading.Event) -> None:
    """Say nothing more until the client goes."""
    handler.close_connection = True
    while not vendor.released.is_set():
        if select.select([handler.connection], [], [], 0.02)[0] and _gone(handler.connection):
            left.set()
            return


def _gone(connection: Any) -> bool:
    try:
        return not connection.recv(1)
    except OSError:
        return True


def _repeat(vendor: Vendor, handler: Any, last: bytes, left: threading.Event) -> None:
    handler.close_connection = True
    while not vendor.released.wait(0.02):
        try:
            _chunk(handler, last)
        except OSError:
            left.set()
            return


_END: dict[str, Callable[[Vendor, Any, bytes, threading.Event], None]] = {
    "end": lambda vendor, handler, last, left: handler.wfile.write(b"0\r\n\r\n"),
    "cut": _cut,
    "hang": _hang,
    "repeat": _repeat,
    "reset": lambda vendor, handler, last, left: handler.reset(),
}


def says(dialect: str, turn: Turn, *, streamed: bool) -> Step:
    """Answer with a turn as a vendor of that dialect does."""
    return stream(*EVENTS[dialect](turn)) if streamed else reply(WHOLE[dialect](turn))


# -- the doors -------------------------------------------------------------------------------------


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class Event(NamedTuple):
    name: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def sse(data: bytes) -> list[Event]:
    """Return the events of a body, comments as events of the name ":"."""
    found = []
    for block in data.decode().replace("\r\n", "\n").split("\n\n"):
        lines = block.split("\n")
        name = "".join(line[6:].removeprefix(" ") for line in lines if line.startswith("event:"))
        said = [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]
        if said:
            found.append(Event(name, "\n".join(said)))
        elif block.startswith(":"):
            found.append(Event(":", block))
    return found


class Live:
    """An answer that is still coming."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status, self.headers = self._response.status, self._response.headers

    def next(self) -> Event | None:
        """Return the next event, None at the end."""
        block = b""
        while not block.endswith(b"\n\n"):
            line = self._response.readline()
            if not line:
                return None
            block += line
        return sse(block)[0]

    def rest(self) -> list[Event]:
        return sse(self._response.read())

    def close(self) -> None:
        self._response.close()
        self._connection.close()


class Front:
    """An app on a port of its own, in this process, and the spans of its calls."""

    def __init__(
        self, *providers: Any, app: Callable[[Router], Flask] = create_app, **options: Any
    ) -> None:
        self.spans: list[TraceSpan] = []
        registry = Registry(providers)
        self.router = Router(registry, self, **{"attempts": 1} | options)
        self.app = app(self.router)

    def report(self, span: TraceSpan) -> None:
        if span.operation == "infermux.infer":  # those of attempts are another test's
            self.spans.append(span)

    def __enter__(self) -> Self:
        self._server = make_server("127.0.0.1", 0, self.app, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.router.close()

    def forget(self) -> None:
        """Let every target be tried again: an app outlives the troubles of many tests."""
        for health in self.router.targets.breakers().values():
            health.reset()

    def ask(self, path: str, body: Any = None, **headers: str) -> Answer:
        self.forget()
        return ask(self.port, path, body, headers=_named(headers))

    @contextlib.contextmanager
    def live(self, path: str, body: Any, **headers: str) -> Iterator[Live]:
        """An answer whose events are read one by one."""
        self.forget()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(
            "POST",
            path,
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            _named(headers),
        )
        answer = Live(connection)
        try:
            yield answer
        finally:
            answer.close()


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


# -- clients ---------------------------------------------------------------------------------------


class Got(NamedTuple):
    """What a client understands of an answer: calls as (id, name, arguments), usage as (input,
    cached, output, reasoning).
    """

    text: str
    calls: list[tuple[str, str, JSON]]
    finish: str
    usage: tuple[int, ...]
    model: str
    message: JSON  # the assistant's turn as this client sends it back


class OpenAIClient:
    name, path = "openai", "/v1/chat/completions"
    wants: ClassVar[dict[str, str]] = {}
    finishes: ClassVar[dict[str, str]] = {"stop": "stop", "tool_calls": "tool_calls"}

    @staticmethod
    def body(
        model: str,
        messages: list[JSON],
        *,
        tools: Sequence[JSON] = (),
        streamed: bool = False,
        **more: Any,
    ) -> JSON:
        return (
            {"model": model, "messages": messages}
            | ({"tools": list(tools)} if tools else {})
            | ({"stream": True, "stream_options": {"include_usage": True}} if streamed else {})
            | more
        )

    @staticmethod
    def read(data: bytes) -> Got:
        body = json.loads(data)
        assert (
            body["object"] == "chat.completion"
            and isinstance(body["id"], str)
            and isinstance(body["created"], int)
        )
        (choice,) = body["choices"]
        message = choice["message"]
        assert choice["index"] == 0 and message["role"] == "assistant" and "content" in message
        return _openai_got(message, choice["finish_reason"], body["usage"], body["model"])

    @staticmethod
    def fold(events: list[Event]) -> Got:
        assert events[-1].data == "[DONE]"
        message: JSON = {"role": "assistant", "content": None}
        calls: dict[int, JSON] = {}
        finish = usage = None
        chunks = [event.json for event in events[:-1] if event.name != ":"]
        for chunk in chunks:
            assert chunk["object"] == "chat.completion.chunk" and chunk["id"] == chunks[0]["id"]
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                assert choice["index"] == 0 and not finish, "an event after the finish reason"
                finish = choice["finish_reason"]
                _openai_delta(message, calls, choice["delta"])
        if calls:
            message["tool_calls"] = [calls[number] for number in sorted(calls)]
        return _openai_got(message, finish, usage, chunks[-1]["model"])


def _openai_delta(message: JSON, calls: dict[int, JSON], delta: JSON) -> None:
    for name in ("content", "reasoning_content", "refusal"):
        if delta.get(name):
            message[name] = (message.get(name) or "") + delta[name]
    for detail in delta.get("reasoning_details") or []:
        known = message.setdefault("reasoning_details", [])
        if known and known[-1]["index"] == detail["index"]:
            known[-1] |= detail | {"text": known[-1].get("text", "") + detail.get("text", "")}
        else:
            known.append(dict(detail))
    for piece in delta.get("tool_calls") or []:
        call = calls.setdefault(piece["index"], {"function": {"arguments": ""}})
        assert call.get("id") or piece["id"], "the first delta of a call names it"
        call |= {name: value for name, value in piece.items() if name not in ("index", "function")}
        call["function"]["name"] = piece["function"].get("name") or call["function"]["name"]
        call["function"]["arguments"] += piece["function"].get("arguments") or ""


def _openai_got(message: JSON, finish: Any, usage: JSON, model: str) -> Got:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    calls = message.get("tool_calls") or []
    assert all(call["id"] and call["type"] == "function" for call in calls)
    return Got(
        message.get("content") or "",
        [
            (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in calls
        ],
        finish,
        (
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens"],
            usage["completion_tokens_details"]["reasoning_tokens"],
        ),
        model,
        message,
    )


class AnthropicClient:
    name, path = "anthropic", "/v1/messages"
    wants: ClassVar[dict[str, str]] = {"anthropic_version": "2023-06-01"}
    finishes: ClassVar[dict[str, str]] = {"stop": "end_turn", "tool_calls": "tool_use"}

    @staticmethod
    def body(
        model: str,
        messages: list[JSON],
        *,
        tools: Sequence[JSON] = (),
        streamed: bool = False,
        **more: Any,
    ) -> JSON:
        said = {
            "model": model,
            "max_tokens": 700,
            "messages": [turn for turn in messages if turn["role"] != "system"],
        }
        system = [turn["content"] for turn in messages if turn["role"] == "system"]
        return (
            said
            | ({"system": system[0]} if system else {})
            | ({"tools": list(tools)} if tools else {})
            | ({"stream": True} if streamed else {})
            | more
        )

    @staticmethod
    def read(data: bytes) -> Got:
        body = json.loads(data)
        assert body["id"].startswith("msg_") and (body["type"], body["role"]) == (
            "message",
            "assistant",
        )
        return _anthropic_got(body["content"], body["stop_reason"], body["usage"], body["model"])

    @staticmethod
    def fold(events: list[Event]) -> Got:
        events = [event for event in events if event.name not in (":", "ping")]
        assert all(event.name == event.json["type"] for event in events)
        start, *middle, delta, stop = [event.json for event in events]
        assert (start["type"], delta["type"], stop["type"]) == (
            "message_start",
            "message_delta",
            "message_stop",
        )
        message = start["message"]
        assert (
            message["content"] == []
            and message["id"].startswith("msg_")
            and message["usage"]["input_tokens"] >= 0
        )
        blocks = _anthropic_blocks(middle)
        return _anthropic_got(
            blocks,
            delta["delta"]["stop_reason"],
            message["usage"] | delta["usage"],
            message["model"],
        )


def _anthropic_blocks(events: list[JSON]) -> list[JSON]:
    """Put blocks together; they follow one another, each opened, filled and closed under its own
    index.
    """
    blocks: list[JSON] = []
    pending: str | None = None  # of the block that is open
    for event in events:
        if event["type"] == "content_block_start":
            assert pending is None and event["index"] == len(blocks)
            blocks.append(event["content_block"])
            pending = ""
            continue
        assert pending is not None and event["index"] == len(blocks) - 1
        if event["type"] == "content_block_stop":
            if blocks[-1]["type"] == "tool_use" and pending:
                assert blocks[-1]["input"] == {}
                blocks[-1]["input"] = json.loads(pending)
            pending = None
            continue
        assert event["type"] == "content_block_delta"
        kind, delta = event["delta"]["type"], event["delta"]
        if kind == "input_json_delta":
            pending += delta["partial_json"]
        else:
            name = {
                "text_delta": "text",
                "thinking_delta": "thinking",
                "signature_delta": "signature",
            }[kind]
            blocks[-1][name] += delta[name]
    assert pending is None
    return blocks


def _anthropic_got(blocks: list[JSON], finish: str, usage: JSON, model: str) -> Got:
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    assert all(block["text"] for block in blocks if block["type"] == "text"), "an empty text block"
    read = usage["cache_read_input_tokens"]
    return Got(
        text,
        [
            (block["id"], block["name"], block["input"])
            for block in blocks
            if block["type"] == "tool_use"
        ],
        finish,
        (
            usage["input_tokens"] + read + usage["cache_creation_input_tokens"],
            read,
            usage["output_tokens"],
            usage["output_tokens_details"]["thinking_tokens"],
        ),
        model,
        {"role": "assistant", "content": blocks},
    )


class MistClient:
    name, path = "mist", "/infer"
    wants: ClassVar[dict[str, str]] = {}
    finishes: ClassVar[dict[str, str]] = {"stop": "stop", "tool_calls": "tool_calls"}
    FIELDS = (
        "model",
        "provider",
        "content",
        "tokens_in",
        "tokens_out",
        "cost_usd",
        "latency_ms",
        "finish_reason",
    )

    @staticmethod
    def body(
        model: str,
        messages: list[JSON],
        *,
        tools: Sequence[JSON] = (),
        streamed: bool = False,
        **more: Any,
    ) -> JSON:
        params = ({"tools": list(tools)} if tools else {}) | more
        return {"model": model, "messages": messages} | ({"params": params} if params else {})

    @classmethod
    def read(cls, data: bytes) -> Got:
        body = json.loads(data)
        assert tuple(body)[:8] == cls.FIELDS and set(body) <= {
            *cls.FIELDS,
            "tool_calls",
            "reasoning",
            "refusal",
        }
        calls = body.get("tool_calls", [])
        message = {"role": "assistant", "content": body["content"] or None} | (
            {"tool_calls": calls} if calls else {}
        )
        return Got(
            body["content"],
            [
                (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
                for call in calls
            ],
            body["finish_reason"],
            (body["tokens_in"], body["tokens_out"]),
            body["model"],
            message,
        )

    @classmethod
    def fold(cls, events: list[Event]) -> Got:
        *deltas, last = [event for event in events if event.name != ":"]
        assert [event.name for event in deltas] == ["infer.delta"] * len(
            deltas
        ) and last.name == "infer.response"
        whole = cls.read(last.data.encode())
        assert "".join(event.json["delta"].get("content", "") for event in deltas) == whole.text
        return whole


class ResponsesClient:
    name, path = "responses", "/v1/responses"
    wants: ClassVar[dict[str, str]] = {}
    finishes: ClassVar[dict[str, str]] = {"stop": "completed", "tool_calls": "completed"}

    @staticmethod
    def body(
        model: str,
        messages: list[JSON],
        *,
        tools: Sequence[JSON] = (),
        streamed: bool = False,
        **more: Any,
    ) -> JSON:
        """Messages are items, or hold the items of an answer."""
        items = [item for message in messages for item in message.get("items", [message])]
        return (
            {"model": model, "input": items}
            | ({"tools": list(tools)} if tools else {})
            | ({"stream": True} if streamed else {})
            | more
        )

    @staticmethod
    def read(data: bytes) -> Got:
        return _responses_got(json.loads(data))

    @staticmethod
    def fold(events: list[Event]) -> Got:
        events = [event for event in events if event.name != ":"]
        assert all(event.name == event.json["type"] for event in events)
        bodies = [event.json for event in events]
        assert [body["sequence_number"] for body in bodies] == list(range(len(bodies)))
        created, going, *middle, last = bodies
        assert (created["type"], going["type"]) == ("response.created", "response.in_progress")
        for body in (created["response"], going["response"]):
            assert (body["status"], body["output"], body["usage"]) == ("in_progress", [], None)
        assert last["type"] == f"response.{last['response']['status']}"
        assert last["response"]["output"] == response_items(middle), "the items as they were done"
        assert last["response"].keys() == created["response"].keys()
        assert last["response"]["id"] == created["response"]["id"]
        return _responses_got(last["response"])


def response_items(events: list[JSON]) -> list[JSON]:
    """Put items together; they follow one another, each added, filled and done."""
    items: list[JSON] = []
    pending: JSON | None = None  # the item that is open
    part: tuple[int, str] | None = None  # the index and the text of its open part
    for event in events:
        kind, index = event["type"].removeprefix("response."), len(items)
        assert event["output_index"] == index, event
        if kind == "output_item.added":
            pending = event["item"]
            assert pending["id"] not in [item["id"] for item in items]
            assert pending.get("status", "in_progress") == "in_progress"
            continue
        assert pending is not None
        if kind == "output_item.done":
            assert (
                part is None
                and event["item"].items()
                >= {name: pending[name] for name in ("id", "type")}.items()
            )
            done = {"status": event["item"].get("status"), "encrypted_content": None}
            for name, value in (pending | done).items():
                assert name in done or event["item"][name] == value, (name, event["item"])
            items.append(event["item"])
            pending = None
            continue
        assert event["item_id"] == pending["id"]
        part = _response_piece(kind, event, pending, part)
    assert pending is None and part is None
    return items


_RESPONSE_PARTS = {
    "output_text": ("content", "text"),
    "refusal": ("content", "refusal"),
    "reasoning_summary_text": ("summary", "text"),
}


def _response_piece(
    kind: str, event: JSON, item: JSON, part: tuple[int, str] | None
) -> tuple[int, str] | None:
    """Add a piece to the open item; return its open part."""
    name, _, what = kind.rpartition(".")
    if name in ("function_call_arguments", "custom_tool_call_input"):
        member = "arguments" if name.startswith("function") else "input"
        if what == "delta":
            assert event["delta"]
            item[member] += event["delta"]
        assert what == "delta" or event[member] == item[member]
        return None
    if name in ("content_part", "reasoning_summary_part"):
        holder = item["content" if name == "content_part" else "summary"]
        index = event["content_index" if name == "content_part" else "summary_index"]
        if what == "added":
            assert part is None and index == len(holder)
            holder.append(dict(event["part"]))
            return index, ""
        assert part is not None and event["part"] == holder[index]
        return None
    member, text = _RESPONSE_PARTS[name]
    index = event["summary_index" if member == "summary" else "content_index"]
    assert part == (index, part[1] if part else "")
    if what == "delta":
        assert event["delta"]
        item[member][index][text] += event["delta"]
    assert what == "delta" or event[text] == item[member][index][text]
    return part


def _responses_got(body: JSON) -> Got:
    assert body["object"] == "response" and body["id"].startswith("resp_")
    assert isinstance(body["created_at"], int) and body["error"] is None
    texts, calls = [], []
    for item in body["output"]:
        if item["type"] == "message":
            assert item["role"] == "assistant" and item["status"] == body["status"]
            texts += [part.get("text", "") for part in item["content"]]
        elif item["type"] == "function_call":
            calls.append((item["call_id"], item["name"], json.loads(item["arguments"])))
        elif item["type"] == "custom_tool_call":
            calls.append((item["call_id"], item["name"], {"input": item["input"]}))
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return Got(
        "".join(texts),
        calls,
        body["status"],
        (
            usage["input_tokens"],
            usage["input_tokens_details"]["cached_tokens"],
            usage["output_tokens"],
            usage["output_tokens_details"]["reasoning_tokens"],
        ),
        body["model"],
        {"items": body["output"]},
    )


CLIENTS = {
    client.name: client for client in (OpenAIClient, AnthropicClient, ResponsesClient, MistClient)
}


def request(client: Any, front: Front, body: JSON, *, streamed: bool) -> Got:
    """Ask as that api's client does; return what it understands."""
    headers = dict(client.wants) | (
        {"Accept": "text/event-stream"} if streamed and client is MistClient else {}
    )
    answer = front.ask(client.path, body, **headers)
    assert answer.status == 200, answer.data
    assert answer.headers["Content-Type"] == (
        "text/event-stream; charset=utf-8" if streamed else "application/json"
    )
    return client.fold(sse(answer.data)) if streamed else client.read(answer.data)
