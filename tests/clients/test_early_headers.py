"""Tests what a streaming client receives through the service while the vendor is slow."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))  # for doors.py

from doors import (
    CLIENTS,
    ERRORS,
    EVENTS,
    MODELS,
    WHOLE,
    Event,
    Live,
    Step,
    Turn,
    Vendor,
    anthropic_event,
    anthropic_start,
    openai_chunk,
    reply,
    says,
    stream,
)
from support import PATIENCE, Service, TokenTrace, eventually

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

EARLY = 0.3  # [server] early_headers of the service here
ASK = [{"role": "user", "content": "Tell me a story."}]
STORY = Turn("Once upon a time")
HEADERS = {
    "openai": {},
    "anthropic": {"anthropic-version": "2023-06-01"},
    "mist": {"Accept": "text/event-stream"},
}
CONFIG = """
[providers.openai]
api_key = "env:KEY"
base_url = "{openai}/v1"
models = ["gpt-asked"]
timeout = {{ first_byte = {first_byte}, idle = {idle} }}

[providers.anthropic]
api_key = "env:KEY"
base_url = "{anthropic}/v1"
models = ["claude-asked"]
timeout = {{ first_byte = {first_byte}, idle = {idle} }}

[models.pair]
targets = ["openai/gpt-asked", "anthropic/claude-asked"]

[models.reversed]
targets = ["anthropic/claude-asked", "openai/gpt-asked"]

[reliability]
circuit_breaker = {{ failures = 1000000, window = 0.001 }}

[server]
workers = 1
early_headers = {early}
graceful_timeout = {graceful}

[trace]
tokentrace = "{trace}"
"""
# the vendor "openai" here speaks Responses to its clients: their events pass, and are tested apart
every_api = pytest.mark.parametrize("api", [name for name in CLIENTS if name != "responses"])
Vendors = dict[str, Vendor]


@pytest.fixture(scope="module")
def vendors() -> Iterator[Vendors]:
    with Vendor("openai") as one, Vendor("anthropic") as two:
        yield {"openai": one, "anthropic": two}


@pytest.fixture(scope="module")
def receiver() -> Iterator[TokenTrace]:
    with TokenTrace() as running:
        yield running


@contextlib.contextmanager
def serving(vendors: Vendors, receiver: TokenTrace, folder: Path, **more: float) -> Iterator[Any]:
    numbers = {"early": EARLY, "first_byte": 3, "idle": 0.8, "graceful": 30} | more
    file = folder / "infermux.toml"
    urls = {name: vendor.url for name, vendor in vendors.items()}
    file.write_text(CONFIG.format(**urls, trace=receiver.url, **numbers))
    with Service(env={"INFERMUX_CONFIG": str(file), "KEY": "sk-test-vendor-key"}) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    vendors: Vendors, receiver: TokenTrace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with serving(vendors, receiver, tmp_path_factory.mktemp("early")) as running:
        yield running


def client_of(service: Service) -> openai.OpenAI:
    address = f"http://127.0.0.1:{service.port}/v1"
    return openai.OpenAI(base_url=address, api_key="any", max_retries=0, timeout=30)


@pytest.fixture
def oai(service: Service) -> Iterator[Any]:
    with client_of(service) as client:
        yield client


@pytest.fixture
def ant(service: Service) -> Iterator[Any]:
    address = f"http://127.0.0.1:{service.port}"
    with anthropic.Anthropic(base_url=address, api_key="any", max_retries=0, timeout=30) as client:
        yield client


@contextlib.contextmanager
def live(service: Service, api: str, model: str) -> Iterator[Live]:
    """A stream that is read as it comes; *api* may be "responses", too."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    path, body = "/v1/responses", {"model": model, "input": "x", "stream": True}
    if api in CLIENTS and api != "responses":
        path, body = CLIENTS[api].path, CLIENTS[api].body(model, ASK, streamed=True)
    connection.request("POST", path, json.dumps(body), HEADERS.get(api, {}))
    answer = Live(connection)
    try:
        yield answer
    finally:
        answer.close()


def is_beat(event: Event | None) -> bool:
    return event is not None and event.name in (":", "ping")


def silent(go: threading.Event, then: Step) -> Step:
    """Send nothing, not even a status line, until *go*."""

    def step(vendor: Vendor, handler: Any) -> None:
        while not go.wait(0.02) and not vendor.released.is_set():
            pass
        then(vendor, handler)

    return step


def pings(dialect: str, seconds: float, *, pause: float = 0.2) -> list[Any]:
    """The beginning of a stream that shows it is alive for *seconds*, but has no content yet."""
    start, beat = {
        "openai": (openai_chunk({"role": "assistant", "content": ""}), b": PROCESSING\n\n"),
        "anthropic": (anthropic_start(), anthropic_event("ping")),
    }[dialect]
    beats: list[Any] = [lambda: time.sleep(pause), beat]
    return [start, *beats * round(seconds / pause)]


def breaks(dialect: str) -> Step:
    """A stream that fails before its first content, but well after the early head."""
    return stream(*pings(dialect, 1.2), ERRORS[dialect])


# -- the head and the heartbeats -------------------------------------------------------------------


@pytest.mark.sampled(1)
@every_api
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_the_head_and_heartbeats_do_not_wait_for_the_vendor(
    service: Service, vendors: Vendors, api: str, dialect: str
) -> None:
    go = threading.Event()
    vendors[dialect].script(silent(go, says(dialect, STORY, streamed=True)))
    with live(service, api, MODELS[dialect]) as answer:
        assert not go.is_set() and answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert len(answer.headers["X-Request-Id"]) == 32
        assert is_beat(answer.next()) and is_beat(answer.next())
        go.set()
        events = answer.rest()
    got = CLIENTS[api].fold([event for event in events if not is_beat(event)])
    assert got.text == STORY.text
    assert len(vendors[dialect].seen) == 1


@every_api
def test_a_quick_stream_has_its_whole_head(service: Service, vendors: Vendors, api: str) -> None:
    vendors["openai"].script(says("openai", STORY, streamed=True))
    with live(service, api, "gpt-asked") as answer:
        assert answer.headers["X-Infermux-Provider"] == "openai"
        assert not is_beat(answer.next())


@pytest.mark.slow
@every_api
def test_a_wait_between_two_attempts_is_bridged_too(
    service: Service, vendors: Vendors, api: str
) -> None:
    vendors["openai"].script(
        reply(b"{}", 503, Retry_After="4"), says("openai", STORY, streamed=True)
    )
    with live(service, api, "gpt-asked") as answer:
        assert is_beat(answer.next()) and is_beat(answer.next())
        assert len(vendors["openai"].seen) == 1
        events = [event for event in answer.rest() if not is_beat(event)]
    assert CLIENTS[api].fold(events).text == STORY.text
    assert len(vendors["openai"].seen) == 2


def test_a_whole_answer_waits_for_its_status(service: Service, vendors: Vendors) -> None:
    go = threading.Event()
    vendors["openai"].script(silent(go, reply(b"{}", 400)))
    threading.Timer(2 * EARLY, go.set).start()
    answer = service.ask("/v1/chat/completions", {"model": "gpt-asked", "messages": ASK})
    assert answer.status == 400


@pytest.mark.slow
def test_without_early_headers_the_status_waits_for_the_first_content(
    vendors: Vendors, receiver: TokenTrace, tmp_path: Path
) -> None:
    with serving(vendors, receiver, tmp_path, early=0) as service:
        vendors["openai"].script(breaks("openai"))
        wanted = {"model": "gpt-asked", "messages": ASK, "stream": True}
        assert service.ask("/v1/chat/completions", wanted).status == 502


# -- a vendor that is alive ------------------------------------------------------------------------


@pytest.mark.sampled(1)
@every_api
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_who_pings_is_waited_for_beyond_the_first_byte_and_the_idle_limit(
    vendors: Vendors, receiver: TokenTrace, service: Service, api: str, dialect: str
) -> None:
    """4 s of pings, with 3 s for the first byte and 0.8 s of silence."""
    vendors[dialect].script(stream(*pings(dialect, 4.0), *EVENTS[dialect](STORY)[1:]))
    with live(service, api, MODELS[dialect]) as answer:
        events = [event for event in answer.rest() if not is_beat(event)]
    assert CLIENTS[api].fold(events).text == STORY.text


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_after_a_sign_of_life_the_idle_limit_counts(
    service: Service, vendors: Vendors, dialect: str
) -> None:
    """The stream goes silent: its 0.8 s end the attempt, not the 3 s for a first byte."""
    vendors[dialect].script(stream(*pings(dialect, 0.2), end="hang"))
    started = time.monotonic()
    api = dialect
    with live(service, api, MODELS[dialect]) as answer:
        answer.rest()
    assert len(vendors[dialect].seen) == 3  # a lone target is retried
    assert time.monotonic() - started < 3 * 3


# -- failures behind the early head ----------------------------------------------------------------


@pytest.mark.sampled(1)
@every_api
@pytest.mark.parametrize("first", ["openai", "anthropic"])
def test_until_the_first_content_the_next_target_is_tried(
    service: Service, vendors: Vendors, receiver: TokenTrace, api: str, first: str
) -> None:
    second = {"openai": "anthropic", "anthropic": "openai"}[first]
    vendors[first].script(breaks(first))
    vendors[second].script(says(second, STORY, streamed=True))
    with live(service, api, "pair" if first == "openai" else "reversed") as answer:
        assert "X-Infermux-Provider" not in answer.headers  # it was not known yet
        assert is_beat(answer.next())
        events = [event for event in answer.rest() if not is_beat(event)]
    assert CLIENTS[api].fold(events).text == STORY.text
    assert (len(vendors[first].seen), len(vendors[second].seen)) == (1, 1)


@pytest.mark.slow
@every_api
def test_a_failure_behind_the_early_head_is_an_error_event(
    service: Service, vendors: Vendors, api: str
) -> None:
    vendors["openai"].script(breaks("openai"))
    vendors["anthropic"].script(breaks("anthropic"))
    with live(service, api, "pair") as answer:
        assert answer.status == 200
        *before, last = answer.rest()
    assert all(map(is_beat, before))
    assert last.json["error"]["message"] and (api == "openai" or last.name == "error")
    assert "secret words" not in last.data and "[DONE]" not in last.data


@pytest.mark.slow
@every_api
def test_a_client_that_goes_while_it_waits_frees_the_vendor_and_is_recorded(
    service: Service, vendors: Vendors, receiver: TokenTrace, api: str
) -> None:
    vendor = vendors["openai"].script(stream(*pings("openai", 0.2), end="hang"))
    vendor.script(stream(*pings("openai", 0.2) * 100))
    count = len(receiver.checked())
    with live(service, api, "gpt-asked") as answer:
        assert is_beat(answer.next())
    eventually(vendor.left.is_set, "the vendor's connection is closed", 5)
    span = receiver.wait(count + 1)[-1]
    assert span["status"] == "error" and "client_closed" in span["attrs"]["error"]
    assert len(vendor.seen) == 1


@pytest.mark.slow
def test_a_server_that_stops_ends_a_stream_that_still_waits_with_an_error_event(
    vendors: Vendors, receiver: TokenTrace, tmp_path: Path
) -> None:
    vendors["openai"].script(stream(*pings("openai", 20)))
    with (
        serving(vendors, receiver, tmp_path, graceful=4) as service,
        live(service, "openai", "gpt-asked") as answer,
    ):
        assert is_beat(answer.next())
        stopped = threading.Thread(target=service.stop)
        stopped.start()
        *_, last = answer.rest()
        stopped.join()
    assert last.json["error"]["code"] == "stream_incomplete"


# -- the official clients --------------------------------------------------------------------------


@pytest.mark.slow
def test_openais_client_waits_failover_and_reads_the_content(oai: Any, vendors: Vendors) -> None:
    vendors["openai"].script(breaks("openai"))
    vendors["anthropic"].script(says("anthropic", STORY, streamed=True))
    chunks = list(oai.chat.completions.create(model="pair", messages=ASK, stream=True))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == STORY.text
    assert chunks[-1].model_extra["infermux"]["attempts"] == 2


@pytest.mark.slow
def test_anthropics_client_waits_failover_and_reads_the_content(ant: Any, vendors: Vendors) -> None:
    vendors["openai"].script(breaks("openai"))
    vendors["anthropic"].script(says("anthropic", STORY, streamed=True))
    with ant.messages.stream(model="pair", max_tokens=50, messages=ASK) as events:
        assert events.get_final_text() == STORY.text


@pytest.mark.slow
def test_a_failure_behind_the_early_head_raises_in_both_clients(
    oai: Any, ant: Any, vendors: Vendors
) -> None:
    vendors["openai"].script(breaks("openai"))
    vendors["anthropic"].script(breaks("anthropic"))
    with pytest.raises(openai.APIError):
        list(oai.chat.completions.create(model="pair", messages=ASK, stream=True))
    for model in ("gpt-asked", "claude-asked"):
        with pytest.raises(openai.APIError):
            list(oai.responses.create(model=model, input="x", stream=True))
    with (
        pytest.raises(anthropic.APIError),
        ant.messages.stream(model="pair", max_tokens=50, messages=ASK) as events,
    ):
        events.get_final_text()


# -- Responses -------------------------------------------------------------------------------------

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "r-1",
    "status": "in_progress",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather"}
OPENING = [
    ("response.created", {"response": RESPONSE}),
    ("response.in_progress", {"response": RESPONSE}),
]
DELTAS = {  # one of each kind
    "response.function_call_arguments.delta": {"item_id": "fc_1", "output_index": 0},
    "response.custom_tool_call_input.delta": {"item_id": "ct_1", "output_index": 0},
    "response.mcp_call_arguments.delta": {"item_id": "mc_1", "output_index": 0},
    "response.reasoning_summary_text.delta": {
        "item_id": "r",
        "output_index": 0,
        "summary_index": 0,
    },
    "response.reasoning_text.delta": {"item_id": "r", "output_index": 0, "content_index": 0},
    "response.refusal.delta": {"item_id": "m", "output_index": 0, "content_index": 0},
    "response.code_interpreter_call_code.delta": {"item_id": "ci", "output_index": 0},
    "response.audio.delta": {},
}


def event_of(kind: str, members: dict[str, Any], *, named: bool = False) -> bytes:
    """Return an event of a Responses stream; *named*: its type stands in its name alone."""
    data = {"sequence_number": 1} | members | ({} if named else {"type": kind})
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


@pytest.mark.parametrize("kind", DELTAS)
def test_every_delta_of_a_responses_stream_is_passed_on_before_the_next(
    service: Service, vendors: Vendors, kind: str
) -> None:
    go = threading.Event()
    delta = event_of(kind, DELTAS[kind] | {"delta": "piece"})
    done = event_of("response.completed", {"response": RESPONSE | {"status": "completed"}})
    opening = [event_of(*each) for each in OPENING]
    vendors["openai"].script(stream(*opening, delta, go, delta, done))
    with live(service, "responses", "gpt-asked") as answer:
        seen = []
        while kind not in seen:  # while the vendor sends no more: the idle limit would end it
            event = answer.next()
            assert event is not None and event.name != "error"
            seen.append(event.name)
        go.set()
        seen += [event.name for event in answer.rest()]
    assert [name for name in seen if name != ":"] == [
        *("response.created", "response.in_progress", kind, kind, "response.completed")
    ]


@pytest.mark.slow
def test_an_answer_that_only_began_can_still_come_from_elsewhere(
    vendors: Vendors, receiver: TokenTrace, tmp_path: Path
) -> None:
    """response.created, in_progress and an empty message are no content: a retry is invisible.

    The service is new: the failures of other tests have not spent its retries.
    """
    item = {"item": {"type": "message", "id": "m", "role": "assistant", "content": []}}
    added = event_of("response.output_item.added", item | {"output_index": 0})
    opening = [event_of(*each) for each in OPENING]
    text = {"item_id": "m", "output_index": 0, "content_index": 0, "delta": "hi", "logprobs": []}
    whole = [event_of("response.output_text.delta", text)]
    whole.append(event_of("response.completed", {"response": RESPONSE | {"status": "completed"}}))
    vendors["openai"].script(stream(*opening, added, end="reset"), stream(*opening, added, *whole))
    with serving(vendors, receiver, tmp_path) as service, client_of(service) as oai:
        events = list(oai.responses.create(model="gpt-asked", input="x", stream=True))
    assert [event.type for event in events].count("response.created") == 1
    assert len(vendors["openai"].seen) == 2


def test_an_events_type_may_stand_in_its_name_alone_at_responses(
    oai: Any, vendors: Vendors
) -> None:
    text = {"item_id": "m", "output_index": 0, "content_index": 0, "delta": "hi", "logprobs": []}
    end = {"response": RESPONSE | {"status": "completed"}}
    kinds = [*OPENING, ("response.output_text.delta", text), ("response.completed", end)]
    vendors["openai"].script(stream(*[event_of(*each, named=True) for each in kinds]))
    events = list(oai.responses.create(model="gpt-asked", input="x", stream=True))
    assert [event.type for event in events] == [kind for kind, _ in kinds]
    failed = event_of("error", {"message": "secret words", "code": "server_error"}, named=True)
    vendors["openai"].script(stream(event_of(*OPENING[0], named=True), failed))
    with pytest.raises(openai.APIError) as error:
        list(oai.responses.create(model="gpt-asked", input="x", stream=True))
    assert "secret words" not in str(error.value)


@pytest.mark.sampled(1)
@every_api
def test_an_events_type_may_stand_in_its_name_alone_at_messages(
    service: Service, vendors: Vendors, api: str
) -> None:
    def bare(event: bytes) -> bytes:
        head, _, data = event.partition(b"\ndata: ")
        body = json.loads(data)
        del body["type"]
        return head + b"\ndata: " + json.dumps(body).encode() + b"\n\n"

    vendors["anthropic"].script(stream(*map(bare, EVENTS["anthropic"](STORY))))
    with live(service, api, "claude-asked") as answer:
        events = [event for event in answer.rest() if not is_beat(event)]
    assert CLIENTS[api].fold(events).text == STORY.text


# -- long work with the default limits -------------------------------------------------------------


@pytest.mark.slow
def test_long_work_arrives_with_the_default_configuration(tmp_path: Path) -> None:
    """A whole answer after 70 s, a first token after 75 s of pings, a tool call of 77 s."""
    late = threading.Event()
    arguments = json.dumps({"city": "x" * 600})
    call = {"index": 0, "id": "call_0", "type": "function"}
    head = openai_chunk({"tool_calls": [call | {"function": {"name": "f", "arguments": ""}}]})
    steps: list[Any] = [head]
    for at in range(0, len(arguments), 8):
        piece = {"index": 0, "function": {"arguments": arguments[at : at + 8]}}
        steps += [lambda: time.sleep(1), openai_chunk({"tool_calls": [piece]})]
    assert len(steps) > 2 * 76
    told = {
        "whole": silent(late, reply(WHOLE["openai"](STORY))),
        "pings": stream(*pings("openai", 75, pause=5), *EVENTS["openai"](STORY)[1:]),
        "call": stream(*steps, openai_chunk({}, "tool_calls"), b"data: [DONE]\n\n"),
    }

    def by_model(vendor: Vendor, handler: Any) -> None:
        told[json.loads(vendor.seen[-1].data)["model"]](vendor, handler)

    got: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        vendor = stack.enter_context(Vendor("openai", by_model))
        env = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": f"{vendor.url}/v1"}
        service = stack.enter_context(Service(env=env))
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="any")
        stack.enter_context(client)

        def ask(model: str) -> None:
            create = client.with_options(max_retries=0).chat.completions.create
            streamed = model != "whole"
            answer = create(model=f"openai/{model}", messages=ASK, stream=streamed)
            got[model] = list(answer) if streamed else answer

        threads = [threading.Thread(target=ask, args=[model]) for model in told]
        for thread in threads:
            thread.start()
            time.sleep(0.5)  # each finds its own request as the last that was seen
        time.sleep(70)
        late.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert got["whole"].choices[0].message.content == STORY.text
    said = [each.choices[0].delta.content for each in got["pings"] if each.choices]
    assert "".join(filter(None, said)) == STORY.text
    deltas = [each.choices[0].delta for each in got["call"] if each.choices]
    pieces = [one.function.arguments for delta in deltas for one in delta.tool_calls or ()]
    assert "".join(pieces) == arguments
