"""Tests of cached answers: what is cached, for whom, for how long, and how it shows."""

from __future__ import annotations

import importlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import Scripted, Vendor, completion

import infermux
from infermux.admission.keys import hashed
from infermux.cli.main import main
from infermux.ledger import LedgerUnavailable
from infermux.ledger.sqlite import SQLiteLedger
from infermux.ledger.stores.answers import OVERHEAD, Kept
from infermux.routing import answers

ADMIN = {"Authorization": "Bearer imx-admin-key-1"}
SAID = [{"role": "user", "content": "hi"}]
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
GEMINI, STREAMED = (
    "/v1beta/models/fast:generateContent",
    "/v1beta/models/fast:streamGenerateContent?alt=sse",
)
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
CONFIG = """
[server]
admin_key = "env:ADMIN"
[providers.p]
type = "echo"
models = ["m", "s"]
[providers.p.prices]
m = { input = "10", output = "10", max_output = 4 }
[models.fast]
targets = "p/m"
cache_answers = { ttl = "1h", max = "1MB" }
[models]
plain = "p/m"
[keys.app]
hash = "HASH"
rpm = 1000
budget = { usd = "5.00" }
[keys.other]
hash = "OTHER"
[ledger]
path = "PATH"
"""


class Place:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, text: str = CONFIG) -> None:
        patch.setenv("ADMIN", "imx-admin-key-1")
        self.file = folder / "infermux.toml"
        text = text.replace("HASH", hashed("app")).replace("OTHER", hashed("other"))
        self.file.write_text(text.replace("PATH", str(folder / "l.db")))
        patch.setenv("INFERMUX_CONFIG", str(self.file))
        self.router = infermux.load(self.file)
        self.client = infermux.create_app(self.router).test_client()
        self.number = 0

    def new(self) -> str:
        """Return a text that nobody has asked before."""
        self.number += 1
        return f"question {self.number}"

    def ask(
        self,
        said: str = "hi",
        path: str = CHAT,
        *,
        key: str = "app",
        control: str = "",
        **more: Any,
    ) -> Any:
        headers = {"Authorization": f"Bearer {key}"} | (
            {"Cache-Control": control} if control else {}
        )
        body: dict[str, Any] = {"model": "fast", "max_tokens": 16}
        if path.startswith("/v1beta"):
            body = {"contents": [{"role": "user", "parts": [{"text": said}]}]}
        elif path == RESPONSES:
            body = {"model": "fast", "input": said}
        else:
            body["messages"] = [{"role": "user", "content": said}]
        sent = {name: value for name, value in (body | more).items() if value is not None}
        answer = self.client.post(path, json=sent, headers=headers)
        answer.get_data()
        return answer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        made = Place(tmp_path_factory.mktemp("answers"), patch)
        yield made
        made.router.close()


def state(answer: Any) -> str | None:
    assert answer.status_code == 200, answer.data
    return answer.headers.get("X-Infermux-Cache")


def text_of(answer: Any, path: str) -> str:
    """Return what an answer says, whole or streamed, in any API."""
    said = answer.get_data(as_text=True)
    if path == CHAT:
        return "".join(re.findall(r'"content": ?"([^"]*)"', said))
    return "".join(re.findall(r'"(?:text|delta|content)": ?"([^"]*)"', said))


# -- every API, streamed or not --

DOORS = [
    (CHAT, {}),
    (MESSAGES, {}),
    (RESPONSES, {}),
    (GEMINI, {}),
    ("/infer", {"max_tokens": None}),
]


@pytest.mark.parametrize(("path", "more"), DOORS)
def test_the_same_request_gets_the_same_answer(place, path, more):
    said = place.new()
    first, again = (place.ask(said, path, **more) for _ in range(2))
    assert [state(first), state(again)] == ["miss", "hit"]
    assert again.headers["X-Infermux-Cost"] == "0" and "Age" in again.headers
    assert again.headers["X-Infermux-Attempts"] == "0"
    assert again.headers["X-Infermux-Provider"] == "p"
    assert text_of(first, path) == text_of(again, path) != ""
    if path == CHAT:
        assert first.json["usage"] == again.json["usage"]
    other = place.ask(place.new(), path, **more)
    assert state(other) == "miss"


@pytest.mark.parametrize("order", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("path", "more"), DOORS)
def test_streamed_or_not_makes_no_difference(place, path, more, order):
    said = place.new()

    def ask(streamed: bool) -> Any:
        if path == GEMINI:
            return place.ask(said, STREAMED if streamed else GEMINI)
        return place.ask(said, path, **more, **({"stream": True} if streamed else {}))

    first, again = map(ask, order)
    assert [state(first), state(again)] == ["miss", "hit"]
    kind = again.headers["Content-Type"].partition(";")[0]
    assert kind == ("text/event-stream" if order[1] else "application/json")
    if path == CHAT and order[1]:
        assert again.data.rstrip().endswith(b"data: [DONE]")
    assert said in again.get_data(as_text=True)


def test_a_replayed_stream_tells_the_usage_of_the_answer(place):
    said, options = place.new(), {"stream": True, "stream_options": {"include_usage": True}}
    whole = place.ask(said).json["usage"]
    answer = place.ask(said, **options)
    assert state(answer) == "hit"
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[6:7] == "{"]
    told = [event["usage"] for event in events if event.get("usage")]
    assert told[-1]["prompt_tokens"] == whole["prompt_tokens"] > 0


def test_the_official_clients_read_a_hit(place):
    """The bodies have the form that the first answers had."""
    said = place.new()
    first, again = place.ask(said).json, place.ask(said).json
    assert first.keys() == again.keys()
    assert first["choices"] == again["choices"] and first["model"] == again["model"]


# -- whose, and what --


def test_another_caller_gets_its_own_answer(place):
    said = place.new()
    found = [place.ask(said, key=key) for key in ("app", "other", "app", "other")]
    assert [state(each) for each in found] == ["miss", "miss", "hit", "hit"]


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.5},
        {"max_tokens": 17},
        {"user": "ann"},
        {"messages": [*SAID, {"role": "assistant", "content": ""}, *SAID]},
        {"response_format": {"type": "text"}},
        {"seed": 1},
        {"metadata": {"a": "b"}},
        {"model": "plain"},
    ],
)
def test_anything_else_in_a_request_is_another_request(place, more):
    said = place.new()
    more = {**more, **({"messages": None} if False else {})}
    assert state(place.ask(said)) == "miss"
    assert state(place.ask(said, **more)) != "hit"


def test_the_order_of_members_makes_no_difference(place):
    said = place.new()
    assert state(place.ask(said, temperature=0.1, seed=2)) == "miss"
    assert state(place.ask(said, seed=2, temperature=0.1)) == "hit"


def test_other_names_keep_nothing(place):
    said = place.new()
    assert [state(place.ask(said, model="plain")) for _ in range(2)] == [None, None]
    assert [state(place.ask(said, model="p/m")) for _ in range(2)] == [None, None]


def test_end_users_in_the_header_get_their_own(place):
    said = place.new()
    body = {"model": "fast", "messages": [{"role": "user", "content": said}]}

    def ask(user: str) -> str | None:
        headers = {"Authorization": "Bearer app", "X-Infermux-User": user}
        return state(place.client.post(CHAT, json=body, headers=headers))

    assert [ask(user) for user in ("ann", "bob", "ann")] == ["miss", "miss", "hit"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"n": 2}, "several answers"),
        ({"tools": [{"type": "web_search"}]}, "the vendor runs it"),
        ({"web_search_options": {}}, "the same"),
    ],
)
def test_what_a_vendor_does_beside_answering_is_done_again(place, more, why):
    said = place.new()
    for _ in range(2):
        answer = place.ask(said, **more)
        assert answer.headers.get("X-Infermux-Cache") in ("bypass", "miss"), why


@pytest.mark.parametrize("name", ["candidateCount", "candidate_count"])
def test_several_answers_of_googles_are_asked_for_again(tmp_path, monkeypatch, name):
    said = {"role": "model", "parts": [{"text": "yes"}]}
    several = [{"index": at, "content": said, "finishReason": "STOP"} for at in range(2)]
    with Vendor(Scripted(200, {"candidates": several, "modelVersion": "m"})) as vendor:
        own = f'type = "gemini"\napi_key = "env:ADMIN"\nbase_url = "{vendor.url}/v1beta"'
        text = CONFIG.replace('type = "echo"', own).replace('models = ["m", "s"]', 'models = ["m"]')
        with closing(Place(tmp_path, monkeypatch, text).router) as router:
            client = infermux.create_app(router).test_client()
            body = CONTENTS | {"generationConfig": {name: 2}}
            headers = {"Authorization": "Bearer app"}
            found = [client.post(GEMINI, json=body, headers=headers) for _ in range(2)]
        assert [state(each) for each in found] == ["bypass"] * 2
        assert [len(each.json["candidates"]) for each in found] == [2, 2]


# -- the client's wish --


def test_no_store_passes_by(place):
    said = place.new()
    assert [state(place.ask(said, control="no-store")) for _ in range(2)] == ["bypass"] * 2
    assert state(place.ask(said)) == "miss"
    assert state(place.ask(said, control="no-store, max-age=0")) == "bypass"
    assert state(place.ask(said)) == "hit"


@pytest.mark.parametrize("control", ["no-cache", "max-age=0", "No-Cache", "max-age=0, private"])
def test_no_cache_asks_again_and_keeps_the_new_answer(place, control):
    said = place.new()
    assert state(place.ask(said)) == "miss"
    assert state(place.ask(said, control=control)) == "miss"
    assert state(place.ask(said)) == "hit"


def test_max_age_bounds_the_age(place):
    said = place.new()
    place.ask(said)
    assert state(place.ask(said, control="max-age=100")) == "hit"
    assert state(place.ask(said, control="max-age=junk")) == "hit"


# -- how it shows --


def test_a_hit_is_marked_in_the_row_and_costs_nothing(tmp_path, monkeypatch):
    place = Place(tmp_path, monkeypatch)
    place.ask(), place.ask(), place.ask(stream=True)
    rows = place.router.ledger.rows()
    assert [row.call.cost_source for row in rows] == ["cache", "cache", "vendor"]
    hit = rows[0]
    assert (hit.call.cost, hit.call.unpriced, hit.call.attempts, hit.attempts) == (0, 0, 0, ())
    assert (hit.call.provider, hit.call.model, hit.call.status) == ("p", "m", "ok")
    assert hit.call.input_tokens is None
    [state] = place.client.get("/budgets", headers=ADMIN).json["budgets"]
    assert state["spent_pico"] == rows[-1].call.cost and state["held_pico"] == 0
    metrics = place.client.get("/metrics").text
    assert 'infermux_answer_cache_total{name="fast",result="hit"} 2' in metrics
    assert 'infermux_answer_cache_total{name="fast",result="miss"} 1' in metrics
    explained = CliRunner().invoke(main, ["explain", "fast"]).output
    assert "answers are kept for 3600 s" in explained
    logged = CliRunner().invoke(main, ["logs"]).stdout.splitlines()[1:]
    assert [re.split(r"\s{2,}", line)[4] for line in logged] == ["p/m", "cache", "cache"]
    place.router.close()


def test_a_hit_counts_as_a_request_without_tokens(tmp_path, monkeypatch):
    place = Place(tmp_path, monkeypatch, CONFIG.replace("rpm = 1000", "rpm = 3\ntpm = 1000"))
    found = [place.ask(), place.ask(), place.ask(stream=True)]
    assert [*map(state, found)] == ["miss", "hit", "hit"]
    left = [int(each.headers["x-ratelimit-remaining-requests"]) for each in found]
    assert left == [2, 1, 0]
    rates = place.router.admission.rates
    assert rates.wait("app", rpm=None, tpm=1000, requests=0, tokens=990) == 0
    assert place.ask().status_code == 429
    place.router.close()


def test_a_spent_budget_still_gets_kept_answers(tmp_path, monkeypatch):
    place = Place(tmp_path, monkeypatch, CONFIG.replace('"5.00"', '"0.0003"'))
    assert state(place.ask()) == "miss"
    while place.ask(place.new(), model="plain").status_code == 200:
        pass
    assert state(place.ask()) == "hit"
    place.router.close()


# -- what is not kept --


@pytest.fixture
def vendor_place(tmp_path, monkeypatch, vendor: Vendor) -> Iterator[tuple[Place, Vendor]]:
    text = re.sub(r"\[providers.*?(?=\[models)", "", CONFIG, count=1, flags=re.S)
    text += f'[providers.p]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\napi_key = "env:ADMIN"\n'
    text += (
        'models = ["m"]\n[providers.p.prices]\nm = { input = "1", output = "1", max_output = 4 }\n'
    )
    made = Place(tmp_path, monkeypatch, text)
    yield made, vendor
    made.router.close()


def ask_vendor(place: Place, vendor: Vendor, body: Any, status: int = 200, **more: Any) -> int:
    """Ask twice what gets *body*; return how often the vendor was asked."""
    vendor.answers[:] = [Scripted(status, body)]
    before = len(vendor.seen)
    for _ in range(2):
        place.ask(place.new() if more.pop("fresh", False) else "same", **more)
    return len(vendor.seen) - before


def answered(content: str | None = "yes", finish: str = "stop", **message: Any) -> dict[str, Any]:
    body = completion({"model": "m", "messages": SAID}, content or "")
    body["choices"][0]["finish_reason"] = finish
    body["choices"][0]["message"] |= message
    return body


def test_a_hit_has_the_vendor_s_own_bytes(vendor_place):
    place, vendor = vendor_place
    body = b'{ "id":"chatcmpl-7", "own" : [1.50, {"x":null}],' + json.dumps(answered()).encode()[1:]
    vendor.answers[:] = [Scripted(200, body)]
    first, again = place.ask(), place.ask()
    assert first.data == again.data and b'"own" : [1.50' in again.data
    assert len(vendor.seen) == 1
    streamed = place.ask(stream=True)
    assert state(streamed) == "hit" and "yes" in streamed.text
    assert len(vendor.seen) == 1


ADDED = [
    {"logprobs": {"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": []}]}},
    {"message": {"annotations": [{"type": "url_citation", "url_citation": {"url": "http://a"}}]}},
    {"message": {"audio": {"id": "a", "data": "AAAA"}}},
    {"citations": ["http://a"]},
]


def event(told: dict[str, Any], **choice: Any) -> bytes:
    shown = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {}} | choice]} | told
    return b"data: " + json.dumps(shown).encode() + b"\n\n"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("added", ADDED, ids=["logprobs", "annotations", "audio", "citations"])
def test_what_a_stream_could_not_tell_is_not_lost_by_a_hit(vendor_place, added):
    """An answer with such a part is given again as it was, and neither as nor from a stream."""
    place, vendor = vendor_place
    body, more, message = answered(), dict(added), added.get("message", {})
    more.pop("message", None)
    own = {name: more.pop(name) for name in ("logprobs",) if name in more}
    body["choices"][0] |= own
    body["choices"][0]["message"] |= message
    vendor.answers[:] = [Scripted(200, body | more)]
    first, again = place.ask(), place.ask()
    assert (state(again), again.data) == ("hit", first.data)
    streamed = event(more, delta={"role": "assistant", "content": "yes"} | message, **own)
    streamed += event({}, finish_reason="stop") + b"data: [DONE]\n\n"
    vendor.answers[:] = [Scripted(200, streamed, {"Content-Type": "text/event-stream"})]
    [name] = own or message or more
    for _ in range(2):
        answer = place.ask(stream=True)
        assert state(answer) == "miss" and f'"{name}"' in answer.text
    fresh = place.new()
    assert state(place.ask(fresh, stream=True)) == "miss"
    vendor.answers[:] = [Scripted(200, body | more)]
    answer = place.ask(fresh)
    assert state(answer) == "miss" and f'"{name}"' in answer.text


def test_a_replayed_stream_ends_in_an_event_of_its_own(place):
    said = place.new()
    place.ask(said)
    lines = place.ask(said, stream=True).text.splitlines()
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line[6:7] == "{"]
    assert [each["finish_reason"] for each in choices] == [None, "stop"]
    assert choices[0]["delta"]["content"] and not choices[1]["delta"].get("content")


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "body",
    [
        answered(finish="length"),
        answered(finish="content_filter"),
        answered(finish="tool_calls", tool_calls=[CALL]),
        answered(tool_calls=[CALL]),
        answered(""),
        answered("", refusal="no"),
    ],
    ids=["length", "filter", "tool", "tool with stop", "empty", "refusal"],
)
def test_an_answer_that_is_not_whole_or_has_effects_is_not_kept(vendor_place, body):
    place, vendor = vendor_place
    assert ask_vendor(place, vendor, body) == 2


def test_an_error_is_not_kept(vendor_place):
    place, vendor = vendor_place
    assert ask_vendor(place, vendor, {"error": {"message": "no"}}, 400) == 2
    assert ask_vendor(place, vendor, answered()) == 1


@pytest.mark.parametrize("end", [b"", b"data: [DO"])
def test_a_stream_that_breaks_is_not_kept(vendor_place, end):
    place, vendor = vendor_place
    chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "half"}}]}
    stream = b"data: " + json.dumps(chunk).encode() + b"\n\n" + end
    vendor.answers[:] = [Scripted(200, stream, {"Content-Type": "text/event-stream"})]
    for count in (1, 2):
        answer = place.ask(stream=True)
        assert "half" in answer.text and "[DONE]" not in answer.text
        assert len(vendor.seen) == count


def test_a_client_that_leaves_a_stream_keeps_nothing(place):
    said = place.new()
    with place.router.stream(said, model="fast") as stream:
        next(stream)
    again = place.router.begin(infermux.InferRequest("fast", [{"role": "user", "content": said}]))
    place.router.answer(again)
    assert again.cache == "miss"


# -- the library --


def test_the_library_gets_kept_answers_too(place):
    said = place.new()
    first = place.router.infer(said, model="fast")
    again = place.router.infer(said, model="fast")
    assert again.content == first.content and again.cost_usd == 0.0 and first.cost_usd > 0
    with place.router.stream(said, model="fast") as stream:
        assert "".join(chunk.text for chunk in stream) == first.content
        assert stream.response().content == first.content
        assert stream.call.cache == "hit" and stream.call.ended is not None
    before = len(place.router.ledger.rows(limit=1000))
    abandoned = place.router.stream(said, model="fast")
    del abandoned
    assert len(place.router.ledger.rows(limit=1000)) == before + 1  # recorded all the same


# -- bounds --


def test_answers_are_bounded_by_bytes_and_the_oldest_go_first(tmp_path):
    path = tmp_path / "l.db"
    with closing(SQLiteLedger(path)) as ledger:
        store, body = ledger.answers(), "x" * (1000 - OVERHEAD)
        for number in range(50):
            store.keep(f"d{number}", "fast", Kept(number, body), expires=1e6, most=10_500)
        store.keep("of another name", "slow", Kept(0.0, body), expires=1e6, most=10_500)
        kept = [number for number in range(50) if store.find(f"d{number}", 100.0)]
        assert kept == list(range(40, 50))
        assert store.find("of another name", 100.0) == Kept(0.0, body)
        store.keep("d49", "fast", Kept(60.0, "short"), expires=1e6, most=10_500)  # replaced
        store.keep("huge", "fast", Kept(61.0, "x" * 20_000), expires=1e6, most=10_500)
        assert store.find("d49", 100.0) == Kept(60.0, "short") and not store.find("huge", 100.0)
        with closing(sqlite3.connect(path)) as sql:
            sums = dict(sql.execute("SELECT name, sum(size) FROM answers GROUP BY name"))
            assert dict(sql.execute("SELECT name, bytes FROM answer_sizes")) == sums


def test_an_answer_expires_and_is_removed(tmp_path):
    path = tmp_path / "l.db"
    with closing(SQLiteLedger(path)) as ledger:
        store = ledger.answers()
        for number in range(250):
            store.keep(f"d{number}", "fast", Kept(number, "x"), expires=number + 10, most=10**6)
        assert store.find("d0", 9.9) and not store.find("d0", 10.0)
        assert store.forget(209.0) == 200
        ledger.maintain(1e9)  # as a service does
        with closing(sqlite3.connect(path)) as sql:
            assert sql.execute("SELECT count(*) FROM answers").fetchone() == (0,)
            assert sql.execute("SELECT bytes FROM answer_sizes").fetchone() == (0,)


def test_the_ttl_is_that_of_the_name(tmp_path, monkeypatch):
    place = Place(tmp_path, monkeypatch, CONFIG.replace('"1h"', '"1s"'))
    assert [state(place.ask()) for _ in range(2)] == ["miss", "hit"]
    time.sleep(1.1)
    assert state(place.ask()) == "miss"
    place.router.close()


def test_an_answer_of_another_version_is_a_miss(tmp_path, monkeypatch):
    place = Place(tmp_path, monkeypatch)
    place.ask()
    for body in ("{}", "not JSON", '{"model": 5}', "[]"):
        with closing(sqlite3.connect(tmp_path / "l.db")) as sql, sql:
            sql.execute("UPDATE answers SET body = ?", (body,))
        assert state(place.ask()) == "miss"
    assert state(place.ask()) == "hit"
    place.router.close()


def test_a_ledger_that_is_away_costs_the_cache_and_no_call(tmp_path, monkeypatch):
    place = Place(tmp_path, monkeypatch)
    place.ask(key="other")
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as sql:
        sql.execute("CREATE TABLE t (a)")
    other.replace(tmp_path / "l.db")  # it belongs to another program
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"l.db{suffix}").unlink(missing_ok=True)
    assert state(place.ask(key="other")) == "miss"
    with pytest.raises(LedgerUnavailable):
        place.router.ledger.answers().find("x", 0.0)
    place.router.close()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("5", "cache_answers must be a table"),
        ("{ ttl = 5 }", "ttl must be text in quotes"),
        ('{ ttl = "1y" }', 'such as "90s"'),
        ('{ ttl = "0s" }', 'such as "90s"'),
        ('{ ttl = "9999d" }', 'at most "366d"'),
        ('{ max = "256" }', '"256MB"'),
        ('{ max = "1KB" }', 'from "64KB"'),
        ('{ size = "1MB" }', "cache_answers has no 'size'"),
    ],
)
def test_wrong_configuration_stops_the_start(tmp_path, monkeypatch, value, said):
    text = CONFIG.replace('{ ttl = "1h", max = "1MB" }', value)
    with pytest.raises(infermux.errors.ConfigError) as caught:
        Place(tmp_path, monkeypatch, text)
    assert said in "\n".join(caught.value.errors)


def test_it_needs_a_ledger(tmp_path, monkeypatch):
    text = CONFIG.replace('"PATH"', '""').replace('budget = { usd = "5.00" }\n', "")
    with pytest.raises(infermux.errors.ConfigError, match="needs a ledger"):
        Place(tmp_path, monkeypatch, text)


def test_routes_are_part_of_the_key(tmp_path, monkeypatch):
    """A name that leads elsewhere now gives no answer of before."""
    place = Place(tmp_path, monkeypatch)
    assert state(place.ask()) == "miss"
    place.router.close()
    text = CONFIG.replace('targets = "p/m"', 'targets = "p/s"')
    place = Place(tmp_path, monkeypatch, text)
    assert state(place.ask()) == "miss"
    place.router.close()
    place = Place(tmp_path, monkeypatch)  # another process with the first configuration
    assert state(place.ask()) == "hit"
    place.router.close()


def test_names_of_a_pattern_share_its_bound_and_not_its_answers(tmp_path, monkeypatch):
    text = CONFIG.replace("[models.fast]", '[models."x-*"]').replace('"p/m"\ncache', '"p/*"\ncache')
    place = Place(tmp_path, monkeypatch, text)
    found = [place.ask(model=model) for model in ("x-m", "x-s", "x-m")]
    assert [state(each) for each in found] == ["miss", "miss", "hit"]
    with closing(sqlite3.connect(tmp_path / "l.db")) as sql:
        assert sql.execute("SELECT name FROM answer_sizes").fetchall() == [("x-*",)]
    place.router.close()


def test_other_settings_of_a_name_give_no_answer_of_before(tmp_path, monkeypatch):
    place = Place(tmp_path, monkeypatch)
    assert state(place.ask()) == "miss"
    place.router.close()
    changed = CONFIG.replace("cache_answers", "params = { temperature = 0.5 }\ncache_answers")
    place = Place(tmp_path, monkeypatch, changed)
    assert [state(place.ask()) for _ in range(2)] == ["miss", "hit"]
    place.router.close()
    place = Place(tmp_path, monkeypatch, changed.replace('"1h"', '"2h"'))
    assert state(place.ask()) == "hit"
    place.router.close()


def test_whose_tools_are_run_by_the_client_may_be_cached():
    def request(**params: Any) -> infermux.InferRequest:
        return infermux.InferRequest("m", SAID, params=params)

    own = [{"type": "function", "function": {"name": "f"}}, {"name": "g", "input_schema": {}}]
    assert answers.may_be_cached(request(tools=own))
    assert answers.may_be_cached(request(tools=[{"functionDeclarations": []}]))
    for tool in ({"googleSearch": {}}, {"type": "mcp"}, {"type": "web_search_20250305"}, 5):
        assert not answers.may_be_cached(request(tools=[*own, tool]))


HOOKS = """
import re
MAIL = re.compile(r"[a-z]+@x[.]org")
fail = False
def before(request, call):
    said = request.messages[-1]
    found = MAIL.search(said["content"])
    call.state["mail"] = found.group()
    said["content"] = MAIL.sub("[mail]", said["content"])
def after(answer, call):
    if fail:
        raise ValueError
    answer.content = answer.content.replace("[mail]", call.state["mail"])
"""


@pytest.fixture
def hooked(tmp_path, monkeypatch):
    """A place whose hooks hide an address from the vendor, and put it back; and their module."""
    name = f"hiding_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(HOOKS)
    hooks = f'[hooks]\nbefore = "{name}:before"\nafter = "{name}:after"\non_error = "open"\n'
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Place(tmp_path, monkeypatch, CONFIG + hooks)
    yield made, importlib.import_module(name)
    made.router.close()


@pytest.mark.parametrize("streamed", [False, True])
def test_what_hooks_put_back_into_an_answer_is_given_to_nobody_else(hooked, streamed):
    place, _ = hooked
    ann, bob, again = (
        place.ask(f"I am {who}@x.org", stream=streamed, max_tokens=100)
        for who in ("ann", "bob", "ann")
    )
    assert [state(each) for each in (ann, bob, again)] == ["miss", "miss", "hit"]
    for answer, who in ((ann, "ann"), (bob, "bob"), (again, "ann")):
        assert f"{who}@x.org" in text_of(answer, CHAT)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_whose_hook_has_failed_is_not_kept(hooked, streamed):
    place, module = hooked
    module.fail = True
    place.ask("I am eve@x.org", stream=streamed, max_tokens=100)
    module.fail = False
    answer = place.ask("I am eve@x.org", max_tokens=100)
    assert state(answer) == "miss" and "eve@x.org" in text_of(answer, CHAT)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "change",
    [
        ("models =", "params = { temperature = 0.5 }\nmodels ="),
        ("models =", 'headers = { x-tenant = "b" }\nmodels ='),
        ('/v1"', '/v1/b"'),
        ("models =", 'unsupported = { m = ["reasoning"] }\nmodels ='),
    ],
    ids=["params", "headers", "base_url", "unsupported"],
)
def test_other_settings_of_a_provider_give_no_answer_of_before(
    vendor_place, tmp_path, monkeypatch, change
):
    place, vendor = vendor_place
    text = place.file.read_text()
    vendor.answers[:] = [Scripted(200, answered())]
    assert [state(place.ask()) for _ in range(2)] == ["miss", "hit"]
    place.router.close()
    for found, states in ((text.replace(*change), ["miss", "hit"]), (text, ["hit"])):
        place = Place(tmp_path, monkeypatch, found)
        assert [state(place.ask()) for _ in states] == states
        place.router.close()
