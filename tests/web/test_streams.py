"""Streams: when the first byte is sent, when events are passed on, and how streams end."""

import contextlib
import threading
import time
from functools import partial

import pytest
from doors import (
    CLIENTS,
    ERRORS,
    EVENTS,
    FIRST,
    MODELS,
    AnthropicClient,
    Front,
    OpenAIClient,
    Turn,
    Vendor,
    anthropic_event,
    anthropic_start,
    anthropic_text,
    gemini_chunk,
    openai_chunk,
    reply,
    request,
    says,
    sse,
    stream,
)
from flask import Flask
from support import eventually
from werkzeug.test import EnvironBuilder

import infermux
from infermux import EchoProvider, InferRequest, anthropic_blueprint, openai_blueprint
from infermux.admission import Admission
from infermux.dialects.responses import Support
from infermux.providers import http
from infermux.providers.http import Timeouts

DIALECTS = ("openai", "anthropic", "gemini")
HEADERS = {
    "openai": {},
    "anthropic": {"anthropic_version": "2023-06-01"},
    "responses": {},
    "mist": {"Accept": "text/event-stream"},
}
every_pair = pytest.mark.parametrize(
    ("api", "dialect"), [(api, dialect) for api in CLIENTS for dialect in DIALECTS]
)
every_door = pytest.mark.parametrize("api", CLIENTS)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)


@pytest.fixture(scope="module")
def running():
    """Vendors and fronts that tests share, each made when it is first asked for."""
    found = {}
    with contextlib.ExitStack() as stack:

        def get(key, make):
            if key not in found:
                found[key] = stack.enter_context(make())
            return found[key]

        yield get


@pytest.fixture
def serve(running):
    """Return a front before a vendor that follows a script; *spare*: an echo provider serves the
    same model.
    """

    def start(dialect, *steps, spare=False, **options):
        vendor = running(dialect, lambda: Vendor(dialect)).script(*steps)
        echo = [EchoProvider(models=[MODELS[dialect]])] if spare else []
        front = running(
            (dialect, spare, *options.items()),
            lambda: Front(
                vendor.provider(api="chat", **options), *echo, attempts=3 if spare else 1
            ),
        )
        front.spans = []
        return front, vendor

    return start


def body(api, model, **more):
    return CLIENTS[api].body(
        model, [{"role": "user", "content": "Tell me a story."}], streamed=True, **more
    )


def ask(front, api, dialect, **more):
    """Return the answer to a request for a stream, read to its end."""
    return front.ask(CLIENTS[api].path, body(api, MODELS[dialect], **more), **HEADERS[api])


def texts(events, api):
    """Return the pieces of text that *events* bring."""
    found = []
    for event in events:
        if event.name in (":", "ping") or event.data == "[DONE]":
            continue
        data = event.json
        if api == "openai":
            found += [choice["delta"].get("content") for choice in data.get("choices", [])]
        elif api == "responses":
            found.append(data["delta"] if event.name == "response.output_text.delta" else "")
        else:
            found.append(data.get("delta", {}).get("text" if api == "anthropic" else "content"))
    return [piece for piece in found if piece]


def is_broken(events, api):
    """Check that a stream ends with that api's error event, and with no sign of having ended well;
    return the error.
    """
    last = events[-1]
    names = [event.name for event in events]
    if api == "openai":
        assert set(last.json) == {"error"} and set(last.json["error"]) == {
            "message",
            "type",
            "param",
            "code",
        }
        assert "[DONE]" not in [event.data for event in events]
        return last.json["error"]
    if api == "responses":  # its events so far are told by a last one, if there were any
        assert "response.completed" not in names and "response.incomplete" not in names
        if last.name == "response.failed":
            assert names.pop() and last.json["response"]["status"] == "failed"
            assert last.json["response"]["error"]["message"]
            last = events[-2]
        assert set(last.json["error"]) == {"message", "type", "param", "code"}
        assert (
            last.json.items() >= {"type": "error", "message": last.json["error"]["message"]}.items()
        )
    assert last.name == "error" and names.count("error") == 1
    assert not {"message_stop", "infer.response"} & set(names)
    if api == "anthropic":
        assert last.json["type"] == "error" and set(last.json["error"]) == {"type", "message"}
    return last.json["error"]


# -- before the first content ----------------------------------------------------------------------

PRELUDES = {
    "openai": [openai_chunk({"role": "assistant", "content": ""})],
    "anthropic": [anthropic_start(), anthropic_event("ping")],
    "gemini": [],
}
EARLY = {
    "status": lambda dialect: reply(b"busy", 503),
    "rejected": lambda dialect: reply({"error": {"message": "no such thing as that"}}, 400),
    "empty": lambda dialect: stream(),
    "comment": lambda dialect: stream(b": hello\n\n"),
    "prelude": lambda dialect: stream(*PRELUDES[dialect]),
    "cut": lambda dialect: stream(*PRELUDES[dialect], end="cut"),
    "reset": lambda dialect: stream(*PRELUDES[dialect], end="reset"),
    "error": lambda dialect: stream(*PRELUDES[dialect], ERRORS[dialect]),
    "nonsense": lambda dialect: stream(b"data: {nonsense\n\n"),
    "stall": lambda dialect: stream(*PRELUDES[dialect], end="hang"),
}
STATUS = {"rejected": 400, "stall": 504}


@pytest.mark.sampled(13)
@pytest.mark.parametrize("how", EARLY)
@every_pair
def test_a_failure_before_the_first_content_is_an_ordinary_error(serve, api, dialect, how):
    front, vendor = serve(dialect, EARLY[how](dialect), timeouts=Timeouts(first_byte=0.3, idle=0.3))
    answer = ask(front, api, dialect)
    assert answer.headers["Content-Type"] == "application/json"
    if how == "error":
        same = api == dialect == "anthropic"  # 529 is what its SDK expects
        assert answer.status == 529 if same else answer.status in (502, 503)
    else:
        assert answer.status == STATUS.get(how, 502)
    assert "x-should-retry" not in answer.headers
    assert (
        answer.json["error"]["message"]
        and b"secret words" not in answer.data
        and b"nonsense" not in answer.data
    )
    assert len(vendor.seen) == 1
    (span,) = front.spans
    assert span.status == "error"


@pytest.mark.sampled(10)
@pytest.mark.parametrize("how", [how for how in EARLY if how != "rejected"])
@every_door
def test_it_fails_over_to_the_next_provider(serve, api, how):
    dialect = {
        "openai": "gemini",
        "anthropic": "openai",
        "responses": "gemini",
        "mist": "anthropic",
    }[api]
    front, _ = serve(
        dialect, EARLY[how](dialect), spare=True, timeouts=Timeouts(first_byte=0.3, idle=0.3)
    )
    answer = ask(front, api, dialect)
    assert answer.status == 200
    assert "".join(texts(sse(answer.data), api)) == "echo: Tell me a story."
    assert (answer.headers["X-Infermux-Provider"], answer.headers["X-Infermux-Attempts"]) == (
        "echo",
        "2",
    )
    (span,) = front.spans
    assert (span.status, span.attrs["provider"]) == ("ok", "echo")


@every_door
def test_the_status_line_waits_for_the_first_content(serve, api):
    """Not for the first bytes: a role, a ping or a message_start is no content yet."""
    go = threading.Event()
    front, _ = serve(
        "openai",
        stream(
            openai_chunk({"role": "assistant", "content": ""}), go, *EVENTS["openai"](Turn("Once"))
        ),
    )
    heads = []

    def client():
        with front.live(CLIENTS[api].path, body(api, MODELS["openai"]), **HEADERS[api]) as answer:
            heads.append(answer.status)
            answer.rest()

    thread = threading.Thread(target=client)
    thread.start()
    try:
        thread.join(0.2)
        assert heads == []
    finally:
        go.set()
        thread.join()
    assert heads == [200]


def mounted(router):
    """Return somebody's app that mounts every endpoint, and looks at each response."""
    app = Flask("host")
    app.config["INFERMUX_EARLY_HEADERS"] = 0.2
    for make in (infermux.blueprint, openai_blueprint, anthropic_blueprint):
        app.register_blueprint(make(router))
    app.after_request(lambda response: app.extensions.update(last=response.status) or response)
    return app


@pytest.mark.sampled(1)
@every_door
def test_the_status_line_goes_out_early_in_an_app_that_mounts_the_endpoints(api):
    with Front(EchoProvider(delay=1.5), app=mounted) as front:
        with front.live(CLIENTS[api].path, body(api, "echo-v1"), **HEADERS[api]) as answer:
            assert answer.next().name in (":", "ping")
            assert "last" not in front.app.extensions, "the view has not answered yet"
            assert "X-Infermux-Provider" not in answer.headers
            events = answer.rest()
        assert "".join(texts(events, api)) == "echo: Tell me a story."
        assert front.app.extensions["last"] == "200 OK"
        headers = {name.replace("_", "-"): value for name, value in HEADERS[api].items()}
        answer = front.app.test_client().post(
            CLIENTS[api].path, json=body(api, "echo-v1"), headers=headers
        )
        first, *_ = events = sse(answer.data)
        assert answer.status_code == 200 and first.name in (":", "ping")
        assert "".join(texts(events, api)) == "echo: Tell me a story."


def test_the_head_of_a_stream_goes_out_once_and_alone():
    """The client asked for HEAD: bytes after it would be the next response to it."""
    wrote: list[bytes] = []
    slow, start = partial(time.sleep, 0.5), lambda *_: wrote.append
    event = b'data: {"type": "response.completed", "response": {"id": "resp_1"}}\n\n'
    with (
        Vendor("openai", stream(slow, event)) as vendor,
        Front(vendor.provider(responses=Support(stores=True)), app=mounted) as front,
    ):
        for method in ("HEAD", "GET"):
            builder = EnvironBuilder("/v1/responses/resp_1?stream=true", method=method)
            answer = front.app(builder.get_environ(), start)
            wrote += answer
            answer.close()
            assert bool(wrote) == (method == "GET")


@pytest.mark.parametrize("hook", ["after", "chunk"])
def test_a_stream_gives_the_room_of_its_request_back(hook):
    """A stream that `after` holds back has ended before the first byte of it is sent."""
    limits, asked = Admission(bodies=2000), body("openai", "echo-v1") | {"user": "u" * 600}
    with Front(EchoProvider(), admission=limits, hooks={hook: lambda *_: None}) as front:
        found = [front.ask(CLIENTS["openai"].path, asked).status for _ in range(4)]
    assert found == [200] * 4 and limits.bodies.used == 0


# -- while it lasts --------------------------------------------------------------------------------


@every_pair
def test_each_event_is_passed_on_before_the_next_is_sent(serve, api, dialect):
    go = threading.Event()
    events = {
        "openai": [
            openai_chunk({"content": "other"}),
            openai_chunk({}, "stop"),
            b"data: [DONE]\n\n",
        ],
        "anthropic": [
            *anthropic_text(0, "other")[1:],
            anthropic_event(
                "message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}
            ),
            anthropic_event("message_stop"),
        ],
        "gemini": [gemini_chunk([{"text": "other"}], "STOP")],
    }
    front, _ = serve(dialect, stream(FIRST[dialect], go, *events[dialect]))
    with front.live(CLIENTS[api].path, body(api, MODELS[dialect]), **HEADERS[api]) as answer:
        seen = []
        while not texts(seen, api):  # hangs, and fails by its timeout, where events are gathered
            seen.append(answer.next())
        assert not go.is_set() and texts(seen, api) == ["first"]
        go.set()
        assert texts(answer.rest(), api)[0] == "other"


@every_pair
def test_comments_and_pings_of_the_vendor_are_no_content(serve, api, dialect):
    events = [
        piece
        for event in EVENTS[dialect](Turn("Once upon a time"))
        for piece in (b": VENDOR PROCESSING\n\n", event)
    ]
    front, _ = serve(dialect, stream(*events))
    answer = ask(front, api, dialect)
    assert "".join(texts(sse(answer.data), api)) == "Once upon a time"
    assert b"VENDOR" not in answer.data


@pytest.mark.sampled(2)
@every_pair
def test_a_silent_vendor_is_bridged_by_heartbeats(serve, monkeypatch, api, dialect):
    monkeypatch.setattr(http, "HEARTBEAT_SECONDS", 0.05)
    go = threading.Event()
    front, _ = serve(dialect, stream(FIRST[dialect], go, end="cut"), timeouts=Timeouts(idle=3))
    with front.live(CLIENTS[api].path, body(api, MODELS[dialect]), **HEADERS[api]) as answer:
        beat = "ping" if api == "anthropic" else ":"
        seen = []
        while [event.name for event in seen].count(beat) < 2:
            seen.append(answer.next())
            assert seen[-1] is not None and seen[-1].name != "error" and len(seen) < 50
        assert texts(seen, api) == ["first"]
        go.set()
        is_broken(answer.rest(), api)


# -- how it ends -----------------------------------------------------------------------------------

LATE = {
    "cut": lambda dialect: stream(FIRST[dialect], end="cut"),
    "reset": lambda dialect: stream(FIRST[dialect], end="reset"),
    "stall": lambda dialect: stream(FIRST[dialect], end="hang"),
    "error": lambda dialect: stream(FIRST[dialect], ERRORS[dialect]),
    "no terminator": lambda dialect: stream(FIRST[dialect]),
    "nonsense": lambda dialect: stream(FIRST[dialect], b"data: {nonsense\n\n"),
    "half an event": lambda dialect: stream(FIRST[dialect], EVENTS[dialect](Turn("rest"))[-2][:40]),
}
CODES = {"stall": "upstream_timeout", "no terminator": "stream_incomplete"}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("how", LATE)
@every_pair
def test_a_stream_that_breaks_ends_with_an_error_event(serve, api, dialect, how):
    front, vendor = serve(dialect, LATE[how](dialect), timeouts=Timeouts(idle=0.3), spare=True)
    answer = ask(front, api, dialect)
    assert answer.status == 200
    events = sse(answer.data)
    assert texts(events, api) == ["first"], "nothing can fail over after the first content"
    error = is_broken(events, api)
    assert error["message"] and b"secret words" not in answer.data
    if api != "anthropic":
        assert error["code"] == CODES.get(how, error["code"])
    assert len(vendor.seen) == 1
    (span,) = front.spans
    assert span.status == "error" and span.attrs["tokens_in"] > 0


@every_door
def test_anthropics_terminator_is_message_stop_not_a_stop_reason(serve, api):
    front, _ = serve("anthropic", stream(*EVENTS["anthropic"](Turn("Once"))[:-1]))
    events = sse(ask(front, api, "anthropic").data)
    is_broken(events, api)


@every_door
@pytest.mark.parametrize("dialect", ["openai", "gemini"])
def test_a_finish_reason_and_a_clean_end_is_a_whole_stream(serve, api, dialect):
    """Some vendors never send [DONE], and Gemini has no terminator of its own."""
    events = EVENTS[dialect](Turn("Once upon a time"))
    front, _ = serve(dialect, stream(*[event for event in events if b"[DONE]" not in event]))
    answer = ask(front, api, dialect)
    assert CLIENTS[api].fold(sse(answer.data)).text == "Once upon a time"


@pytest.mark.sampled(1)
@every_pair
def test_after_the_terminator_the_vendor_is_not_waited_for(serve, api, dialect):
    """A vendor that leaves its connection open after the last event holds nobody up, and breaks
    nothing.
    """
    front, vendor = serve(
        dialect,
        stream(*EVENTS[dialect](Turn("Once upon a time")), end="hang"),
        timeouts=Timeouts(idle=1),
    )
    answer = ask(front, api, dialect)
    if (
        dialect != "gemini"
    ):  # which has no terminator: only the end of the body says that there is no more
        assert CLIENTS[api].fold(sse(answer.data)).text == "Once upon a time"
    eventually(vendor.left.is_set, "the vendor's connection is closed", 3)


@pytest.mark.sampled(2)
@every_pair
def test_the_idle_limit_closes_the_vendors_connection(serve, api, dialect):
    front, vendor = serve(dialect, stream(FIRST[dialect], end="hang"), timeouts=Timeouts(idle=0.2))
    is_broken(sse(ask(front, api, dialect).data), api)
    eventually(vendor.left.is_set, "the vendor's connection is closed", 3)


@every_door
@pytest.mark.parametrize("how", ["repeat", "hang"])
def test_a_client_that_goes_frees_the_vendor_and_is_accounted(serve, monkeypatch, api, how):
    """Noticed at the next chunk, or at the next heartbeat while the vendor is silent."""
    monkeypatch.setattr(http, "HEARTBEAT_SECONDS", 0.05)
    front, vendor = serve("openai", stream(*[openai_chunk({"content": "word "})] * 4, end=how))
    with front.live(CLIENTS[api].path, body(api, MODELS["openai"]), **HEADERS[api]) as answer:
        while not texts([answer.next()], api):
            pass
    eventually(vendor.left.is_set, "the vendor's connection is closed", 3)
    eventually(lambda: front.spans, "a span", 3)
    (span,) = front.spans
    assert (
        span.attrs["provider"] == "openai"
        and span.attrs["tokens_out"] >= 1
        and span.attrs["tokens_in"] >= 1
    )


@every_door
def test_a_stream_that_nobody_reads_is_closed_with_the_answer(serve, api):
    """What a WSGI server does when the client has gone before the first byte: close without a
    single iteration.
    """
    front, vendor = serve("openai", stream(FIRST["openai"], end="hang"))
    builder = EnvironBuilder(
        CLIENTS[api].path,
        method="POST",
        json=body(api, MODELS["openai"]),
        headers={name.replace("_", "-"): value for name, value in HEADERS[api].items()},
    )
    heads = []
    answer = front.app(
        builder.get_environ(), lambda status, headers, error=None: heads.append(status)
    )
    builder.close()
    assert heads == ["200 OK"] and front.spans == []
    answer.close()
    eventually(vendor.left.is_set, "the vendor's connection is closed", 3)
    assert len(front.spans) == 1


def test_what_came_before_an_unread_stream_was_closed_is_accounted():
    with (
        Vendor("anthropic", stream(FIRST["anthropic"], end="hang")) as vendor,
        Front(vendor.provider()) as front,
    ):
        front.router.stream(
            InferRequest(MODELS["anthropic"], [{"role": "user", "content": "?"}])
        ).close()
        (span,) = front.spans
        assert span.attrs["tokens_in"] == 31 and span.attrs["tokens_out"] >= 1


@every_pair
def test_a_json_answer_to_a_request_for_a_stream_is_made_one(serve, api, dialect):
    front, _ = serve(
        dialect, says(dialect, Turn("Once upon", (("weather", {"city": "Köln"}),)), streamed=False)
    )
    answer = ask(front, api, dialect)
    got = CLIENTS[api].fold(sse(answer.data))
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert (got.text, [call[1:] for call in got.calls]) == (
        "Once upon",
        [("weather", {"city": "Köln"})],
    )
    assert (got.usage[0], got.usage[2 if len(got.usage) > 2 else 1]) == (31, 17)


ODD = {
    "CR": lambda piece: piece.replace(b"\r\n", b"\n").replace(b"\n", b"\r"),
    "a name": lambda piece: piece if piece[:1] == b"e" else b"event: message\n" + piece,
    "many lines": lambda piece: piece.replace(b'data: {"', b'data: {\ndata: "'),
    "a member twice": lambda piece: piece.replace(b"data: {", b'data: {"odd":1,"odd":2,'),
    "as text": lambda piece: piece,
}


@every_pair
@pytest.mark.parametrize("how", ODD)
def test_events_in_an_odd_form_are_the_same_stream(serve, api, dialect, how):
    client, events = (
        CLIENTS[api],
        EVENTS[dialect](Turn("Once upon", (("weather", {"at": "Köln"}),))),
    )
    kind = "text/plain" if how == "as text" else "text/event-stream"
    front, _ = serve(dialect, stream(*map(ODD[how], events), kind=kind))
    wanted = body(api, MODELS[dialect])
    if api == "openai":
        wanted["stream_options"] = {"include_usage": True}
    answer = front.ask(client.path, wanted, **HEADERS[api])
    got = client.fold(sse(answer.data))
    assert (got.text, [call[1:] for call in got.calls]) == (
        "Once upon",
        [("weather", {"at": "Köln"})],
    )
    assert (got.usage[0], got.usage[2 if len(got.usage) > 2 else 1]) == (31, 17)
    assert b'"error":{' not in answer.data and b"event: error" not in answer.data


# -- usage -----------------------------------------------------------------------------------------


def usages(answer):
    return [
        event.json["usage"]
        for event in sse(answer.data)
        if event.data != "[DONE]" and event.json.get("usage")
    ]


@every_dialect
@pytest.mark.parametrize(
    "options",
    [None, {}, {"include_usage": False}, {"include_usage": True}],
    ids=["none", "empty", "false", "true"],
)
def test_an_openai_client_sees_usage_only_if_it_asked(serve, dialect, options):
    front, vendor = serve(dialect, says(dialect, Turn("Once"), streamed=True))
    wanted = body("openai", MODELS[dialect]) | {"stream_options": options}
    if options is None:
        del wanted["stream_options"]
    answer = front.ask("/v1/chat/completions", wanted)
    found = usages(answer)
    if options and options["include_usage"]:
        (usage,) = found
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
            31,
            17,
            48,
        )
    else:
        assert found == []
    if dialect == "openai":
        assert vendor.seen[0].body["stream_options"]["include_usage"] is True
    (span,) = front.spans
    assert (span.attrs["tokens_in"], span.attrs["tokens_out"]) == (31, 17)


def test_other_stream_options_of_the_client_are_kept(serve):
    front, vendor = serve("openai", says("openai", Turn("Once"), streamed=True))
    front.ask(
        "/v1/chat/completions",
        body("openai", MODELS["openai"]) | {"stream_options": {"include_obfuscation": False}},
    )
    assert vendor.seen[0].body["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }


@every_door
def test_of_usage_the_last_value_counts(serve, api):
    """Some vendors count on in every chunk; a sum would be several times too much."""
    running = [
        openai_chunk(
            {"content": "w "},
            usage={"prompt_tokens": 10, "completion_tokens": number, "total_tokens": 10 + number},
        )
        for number in (1, 2, 3)
    ]
    last = openai_chunk(
        {}, "stop", usage={"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
    )
    front, _ = serve("openai", stream(*running, last, b"data: [DONE]\n\n"))
    ask(front, api, "openai")
    (span,) = front.spans
    assert (span.attrs["tokens_in"], span.attrs["tokens_out"]) == (11, 4)


@every_dialect
def test_a_broken_stream_is_accounted_with_what_the_vendor_said_so_far(serve, dialect):
    """What it did not say yet is estimated: the text that came is not free."""
    front, _ = serve(dialect, stream(FIRST[dialect], end="cut"))
    ask(front, "openai", dialect)
    (span,) = front.spans
    assert span.attrs["tokens_in"] == {"anthropic": 31, "gemini": 30}.get(
        dialect, span.attrs["tokens_in"]
    )
    assert span.attrs["tokens_out"] > 0


def test_a_stream_without_usage_is_estimated_and_says_so(serve):
    front, _ = serve(
        "openai", stream(*EVENTS["openai"](Turn("Once upon a time"))[:-2], b"data: [DONE]\n\n")
    )
    answer = ask(front, "openai", "openai")
    last = sse(answer.data)[-2].json
    assert last["infermux"]["estimated"] is True and last["infermux"]["completion_tokens"] > 0


# -- the last event --------------------------------------------------------------------------------


@every_dialect
def test_the_last_event_of_the_openai_door_tells_of_the_call(serve, dialect):
    front, _ = serve(dialect, says(dialect, Turn("Once"), streamed=True), vendor="echo")
    answer = front.ask("/v1/chat/completions", body("openai", MODELS[dialect]))
    *others, last, done = sse(answer.data)
    assert done.data == "[DONE]" and all("infermux" not in event.json for event in others)
    summary = last.json["infermux"]
    assert summary["id"] == answer.headers["X-Request-Id"]
    assert (
        summary["provider"],
        summary["attempts"],
        summary["prompt_tokens"],
        summary["completion_tokens"],
    ) == (dialect, 1, 31, 17)
    assert {"model", "latency_ms", "cost_usd"} <= set(summary)


@every_dialect
def test_the_last_event_of_the_anthropic_door_tells_of_the_call(serve, dialect):
    front, _ = serve(dialect, says(dialect, Turn("Once"), streamed=True))
    *others, last = sse(ask(front, "anthropic", dialect).data)
    assert last.name == "message_stop" and all(
        "infermux" not in event.json for event in others if event.name != ":"
    )
    summary = last.json["infermux"]
    assert (summary["provider"], summary["prompt_tokens"], summary["completion_tokens"]) == (
        dialect,
        31,
        17,
    )


@pytest.mark.parametrize("include", [True, False])
def test_the_cost_rides_in_usage(serve, include):
    """Where the client sees usage; else in the infermux object of the last event."""
    events = [
        event.replace(b"gpt-asked-2031-01-02", b"gpt-4o-mini-2024-07-18")
        for event in EVENTS["openai"](Turn("Once"))
    ]
    front, _ = serve("openai", stream(*events))
    wanted = body("openai", "gpt-4o-mini") | {
        "model": "openai/gpt-4o-mini",
        "stream_options": {"include_usage": include},
    }
    answer = front.ask("/v1/chat/completions", wanted)
    last = sse(answer.data)[-2].json
    cost = (23 * 0.15 + 8 * 0.075 + 17 * 0.6) / 10**6
    assert last["infermux"]["cost_usd"] == pytest.approx(cost)
    if include:
        assert last["usage"]["cost"] == pytest.approx(cost)


# -- slow and awkward vendors ----------------------------------------------------------------------


@every_pair
def test_bytes_may_be_split_anywhere(serve, api, dialect):
    data = b"".join(EVENTS[dialect](Turn("Größe 🌦 東京", (("weather", {"city": "東京"}),))))
    front, _ = serve(dialect, stream(*[data[at : at + 1] for at in range(len(data))]))
    got = CLIENTS[api].fold(sse(ask(front, api, dialect).data))
    assert (got.text, got.calls[0][2]) == ("Größe 🌦 東京", {"city": "東京"})


def test_a_stream_outlives_the_deadline_of_its_call():
    """The deadline is for the first content; a story may take longer."""
    go = threading.Event()
    with (
        Vendor(
            "openai", stream(FIRST["openai"], go, *EVENTS["openai"](Turn("rest"))[1:])
        ) as vendor,
        Front(vendor.provider(), deadline=0.3) as front,
        front.live("/v1/chat/completions", body("openai", MODELS["openai"])) as answer,
    ):
        answer.next()
        assert not go.wait(0.5)
        go.set()
        assert answer.rest()[-1].data == "[DONE]"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("client", [OpenAIClient, AnthropicClient], ids=lambda client: client.name)
def test_streams_of_one_front_do_not_mix(serve, client):
    front, vendor = serve(
        "openai",
        says("openai", Turn("one"), streamed=True),
        says("openai", Turn("two"), streamed=True),
    )
    wanted = client.body(MODELS["openai"], [{"role": "user", "content": "?"}], streamed=True)
    assert [request(client, front, wanted, streamed=True).text for _ in range(2)] == ["one", "two"]
    assert len(vendor.seen) == 2
