"""Mirrors: which calls are copied, what the copies are, and that they are never in the way."""

from __future__ import annotations

import contextlib
import json
import math
import random
import sqlite3
import threading
import time
from contextlib import closing
from statistics import fmean

import pytest
from books import call, keep
from click.testing import CliRunner
from doors import MODELS, Front, Turn, Vendor, says
from openai_vendor import OpenAIVendor
from support import PATIENCE, Service, eventually

import infermux
from infermux import Budget, HTTPProvider
from infermux.cli.main import main
from infermux.config.settings import NameTimeouts
from infermux.dialects.responses import Support
from infermux.errors import ConfigError
from infermux.ledger import MAX_ROWS
from infermux.ledger.compare import bootstrap, mirror_id
from infermux.ledger.queries import WRITE_ATTEMPT, WRITE_CALL
from infermux.ledger.sqlite import SQLiteLedger
from infermux.pricing import Price
from infermux.routing import mirror as mirrors
from infermux.routing.accounting import record
from infermux.routing.explain import explain, question
from infermux.routing.mirror import THREADS, Mirror, Rule
from infermux.telemetry.shared_memory import SharedMemory
from infermux.web.admin.overview import SPANS, overview

PRICES = {
    name: {MODELS[name]: Price.of({"input": usd, "output": usd}, provider=name, id="m", place="t")}
    for name, usd in (("openai", "10"), ("anthropic", "5"))
}
NEW = f"anthropic/{MODELS['anthropic']}"


@pytest.fixture
def vendors():
    with Vendor("openai") as old, Vendor("anthropic") as new:
        old.script(says("openai", Turn("old answer"), streamed=False))
        new.script(says("anthropic", Turn("new answer"), streamed=False))
        yield old, new


@contextlib.contextmanager
def mirrored(vendors, tmp_path, share=1.0, budget=None, name="chat", target=NEW, **settings):
    """A service whose name is mirrored, and its mirror."""
    old, new = vendors
    ledger = SQLiteLedger(str(tmp_path / "ledger.db"))
    providers = [old.provider(api="chat"), new.provider()]
    with Front(*providers, ledger=ledger, prices=PRICES) as front:
        front.router.registry.define(name, [f"openai/{MODELS['openai']}"], **settings)
        mirror = Mirror(front.router, {name: Rule(target, share, budget)})
        mirror.memory = SharedMemory()
        front.router.observers.append(mirror)
        yield front, mirror, ledger
        mirror.drain(PATIENCE)
    ledger.close()


def ask(front, path="/v1/chat/completions", model="chat", **more):
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
    return front.ask(path, body)


def settled(mirror):
    eventually(lambda: not mirror.waiting, "the copies")


def counts(mirror):
    return {key[2]: cells[0] for key, cells in mirror.memory.counts().items()}


def test_a_copy_has_its_own_row_and_the_client_sees_nothing(vendors, tmp_path):
    with mirrored(vendors, tmp_path) as (front, mirror, ledger):
        answer = ask(front)
        assert answer.status == 200 and b"old answer" in answer.data
        settled(mirror)
        rows = {row.call.api: row.call for row in ledger.rows(limit=1000)}
        ours, copy = rows["openai"], rows["mirror"]
        assert copy.id == mirror_id(ours.id) and copy.trace_id == ours.trace_id
        assert (copy.requested, copy.caller, copy.provider) == (NEW, "mirror of chat", "anthropic")
        assert copy.cost > 0 and copy.tags == "{}"
        assert counts(mirror) == {"sent": 1}
        assert vendors[1].seen[0].body["messages"][0]["content"] in ("hello", [{"type": "text", "text": "hello"}])  # fmt: skip


def test_a_stream_is_copied_as_a_stream(vendors, tmp_path):
    vendors[0].script(says("openai", Turn("old"), streamed=True))
    vendors[1].script(says("anthropic", Turn("new"), streamed=True))
    with mirrored(vendors, tmp_path) as (front, mirror, ledger):
        assert b"[DONE]" in ask(front, stream=True).data
        settled(mirror)
        assert vendors[1].seen[0].body["stream"] is True
        assert all(row.call.first_token_ms is not None for row in ledger.rows(limit=1000))


def test_the_share_is_that_of_the_calls_and_the_same_everywhere(vendors, tmp_path):
    with mirrored(vendors, tmp_path, share=0.3) as (front, mirror, ledger):
        for _ in range(60):
            ask(front)
        settled(mirror)
        ours = [row.call.id for row in ledger.rows(limit=1000) if row.call.api == "openai"]
        copies = {row.call.id for row in ledger.rows(limit=1000) if row.call.api == "mirror"}
        assert 5 < len(copies) < 35
        drawn = {mirror_id(each) for each in ours if mirrors._is_drawn(each, 0.3)}
        assert drawn == copies


def test_only_the_name_is_mirrored_and_no_copy_is_copied(vendors, tmp_path):
    with mirrored(vendors, tmp_path) as (front, mirror, ledger):
        ask(front, model=f"openai/{MODELS['openai']}")
        ask(front)
        settled(mirror)
        assert [row.call.api for row in ledger.rows(limit=1000)].count("mirror") == 1


@pytest.mark.parametrize(
    "body",
    [
        {"store": True},
        {"tools": [{"type": "mcp", "server_url": "https://x"}]},
        {"background": True},
    ],
)
def test_what_acts_or_is_stored_at_the_vendor_is_not_copied(vendors, tmp_path, body):
    with mirrored(vendors, tmp_path) as (front, mirror, ledger):
        ask(front, **body)
        settled(mirror)
        assert [row.call.api for row in ledger.rows(limit=1000)].count("mirror") == 0


def test_a_copy_of_a_response_is_not_stored(tmp_path):
    with OpenAIVendor() as old, OpenAIVendor() as new:
        providers = [
            HTTPProvider(name, base_url=f"{vendor.url}/v1", api_key="k", models=["gpt-4.1"],
                         responses=Support(stores=True))
            for name, vendor in (("old", old), ("new", new))
        ]  # fmt: skip
        with Front(*providers) as front:
            front.router.registry.define("chat", ["old/gpt-4.1"])
            mirror = Mirror(front.router, {"chat": Rule("new/gpt-4.1", 1.0)})
            front.router.observers.append(mirror)
            body = {"model": "chat", "input": "hi"}
            made = json.loads(front.ask("/v1/responses", body).data)
            settled(mirror)
            assert new.seen[0][2]["store"] is False and "store" not in old.seen[0][2]
            follow = {"model": "chat", "input": "go on", "previous_response_id": made["id"]}
            assert front.ask("/v1/responses", follow).status == 200
            settled(mirror)
            assert len(new.seen) == 1


def test_a_mirror_that_hangs_or_fails_is_never_in_the_way(vendors, tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "QUEUE", 6)
    release = threading.Event()
    vendors[1].script(lambda vendor, handler: release.wait(PATIENCE) and handler.reply(500))
    with mirrored(vendors, tmp_path) as (front, mirror, _):
        before = own_threads()
        for _ in range(THREADS + 6 + 5):
            front.router.infer("hello", model="chat")
        assert counts(mirror)["dropped"] >= 5
        start = time.monotonic()
        assert ask(front).status == 200 and time.monotonic() - start < 5
        release.set()
        assert own_threads() <= before + THREADS
        mirror.drain(0.1)
        # the circuits of the callers are as they were
        states = front.router.targets.breakers()
        assert all(breaker.snapshot().failures == 0 for breaker in states.values())


def own_threads():
    return sum(each.name.startswith("infermux-mirror") for each in threading.enumerate())


def test_what_is_spent_is_the_mirrors(vendors, tmp_path):
    budget = Budget("mirror of chat", usd="0.0009")
    with mirrored(vendors, tmp_path, budget=budget) as (front, mirror, ledger):
        for _ in range(8):
            assert ask(front, max_tokens=20).status == 200
            settled(mirror)
        found = counts(mirror)
        assert found["sent"] >= 1 and found["refused"] >= 1
        [state] = ledger.states([budget], time.time())
        assert 0 < state.spent < state.limit * 1.3  # the vendor counts more than it was asked
        rows = [row.call.status for row in ledger.rows(limit=1000) if row.call.api == "mirror"]
        assert rows == ["ok"] * found["sent"]  # what is not sent is no call that failed


def test_a_broken_mirror_is_no_failure_of_the_service(vendors, tmp_path):
    vendors[1].script(lambda vendor, handler: handler.reply(500, b"{}"))
    with mirrored(vendors, tmp_path) as (front, mirror, ledger):
        for _ in range(6):
            assert ask(front).status == 200
        settled(mirror)
        now = time.time()
        seen = overview(front.router, SPANS["1h"], now, {}).to_dict()
        assert seen["sums"]["calls"] == 12 and seen["sums"]["errors"] == 0
        assert "12 calls succeeded" in seen["sentence"] or "failed" not in seen["sentence"]
        slowest = max(
            row.call.latency_ms for row in ledger.rows(limit=99) if row.call.api != "mirror"
        )
        assert seen["sums"]["p95_ms"] <= slowest
        assert [(each["code"], each["calls"]) for each in seen["errors"]] == [("upstream_error", 0)]
        assert counts(mirror) == {"failed": 6}


def test_copies_are_sent_before_the_end(vendors, tmp_path):
    with mirrored(vendors, tmp_path) as (front, mirror, ledger):
        for _ in range(5):
            ask(front)
        assert mirror.drain(PATIENCE) == 0
        assert [row.call.api for row in ledger.rows(limit=1000)].count("mirror") == 5
        ask(front)  # too late
        assert counts(mirror) == {"sent": 5, "dropped": 1}


# -- the settings of the name ------------------------------------------------------------------------


OWN = {"params": {"temperature": 0.2, "top_p": 0.5}, "override": {"max_tokens": 9}}
INSIDE = {"params": {"temperature": 0.9, "stop": "X"}, "override": {"max_tokens": 7}}


@pytest.mark.parametrize(
    ("name", "model", "target"),
    [
        *(("chat", "chat", NEW), ("chat", "chat", "inner"), ("chat-*", "chat-x", NEW)),
        ("chat", "chat", "openai/other"),  # the body passes as it is
    ],
)
def test_copies_have_the_parameters_of_the_name(vendors, tmp_path, name, model, target):
    with mirrored(vendors, tmp_path, name=name, target=target, **OWN) as (front, mirror, ledger):
        front.router.registry.define("inner", [NEW], **INSIDE)
        ask(front, model=model, max_tokens=50, top_p=0.25)
        settled(mirror)
        seen = [each.body for vendor in vendors for each in vendor.seen]
        assert len(seen) == 2
        for body in seen:
            assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.2, 0.25, 9)
        inner = seen[1].get("stop_sequences")
        assert inner == (["X"] if target == "inner" else None)
        [copy] = [row.call for row in ledger.rows(limit=9) if row.call.api == "mirror"]
        assert copy.caller == f"mirror of {name}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "limit", [{"timeout": 0.2}, {"deadline": 0.2}, {"timeout": NameTimeouts(first_byte=0.2)}]
)
def test_a_copy_has_the_time_of_the_name_and_one_attempt(vendors, tmp_path, limit):
    release, heard = threading.Event(), []

    def hang(vendor, handler):
        heard.append(handler)
        release.wait(PATIENCE)

    vendors[1].script(hang)
    with mirrored(vendors, tmp_path, attempts=3, **limit) as (front, mirror, ledger):
        ask(front)
        eventually(lambda: not mirror.waiting, "the copy")
        release.set()
        [copy] = [row for row in ledger.rows(limit=9) if row.call.api == "mirror"]
        assert copy.call.error_code == "upstream_timeout" and copy.call.latency_ms < 10_000
        assert len(copy.attempts) == len(heard) == 1


# -- configuration ------------------------------------------------------------------------------------

ECHO = '[models.chat]\ntargets = ["echo"]\n'


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('mirror = { target = "opnai/new" }', "[models.chat].mirror.target: no provider"),
        ('mirror = { target = "chat" }', "[models.chat].mirror.target is the name itself"),
        ("mirror = { share = 0.5 }", "[models.chat].mirror needs 'target'"),
        ('mirror = { target = "echo", share = 5 }', "[models.chat].mirror.share must be"),
        ('mirror = { target = "echo", shar = 1 }', "did you mean 'share'?"),
        ('mirror = { target = "echo", budget = { usd = 1.5 } }', "mirror.budget.usd must be"),
    ],
)
def test_a_bad_mirror_stops_the_start(tmp_path, written, told):
    file = tmp_path / "infermux.toml"
    file.write_text(ECHO + written + "\n")
    with pytest.raises(ConfigError) as caught:
        infermux.load(str(file))
    assert told in str(caught.value)


def test_a_mirror_of_the_configuration_is_explained(tmp_path):
    file = tmp_path / "infermux.toml"
    path = tmp_path / "l.db"
    file.write_text(
        ECHO + 'mirror = { target = "echo/echo-v1", share = 0.5, budget = { usd = "1" } }\n'
        f'[ledger]\npath = "{path}"\n'
    )
    router = infermux.load(str(file))
    found = explain(router, question({"model": "chat"})).to_dict()
    assert found["mirror"] == {"target": "echo/echo-v1", "share": 0.5}
    assert explain(router, question({"model": "echo-v1"})).to_dict()["mirror"] is None
    assert router.infer("hi", model="chat").content == "echo: hi"
    router.close()
    answer = CliRunner().invoke(main, ["explain", "chat", "-c", str(file)])
    assert "50 % of the calls are copied to echo/echo-v1 afterwards" in answer.output


@pytest.mark.slow
def test_a_service_sends_its_last_copies(vendors, tmp_path):
    old, new = vendors
    file = tmp_path / "infermux.toml"
    file.write_text(f"""
[providers.openai]
base_url = "{old.url}/v1"
api_key = "env:VENDOR"
models = ["{MODELS["openai"]}"]
[providers.anthropic]
base_url = "{new.url}/v1"
api_key = "env:VENDOR"
models = ["{MODELS["anthropic"]}"]
[models.chat]
targets = ["openai/{MODELS["openai"]}"]
mirror = {{ target = "{NEW}", share = 1.0 }}
[ledger]
path = "{tmp_path / "ledger.db"}"
""")
    wait = threading.Event()
    whole = says("anthropic", Turn("new"), streamed=False)

    def slowly(vendor, handler):
        wait.wait(1.0)
        whole(vendor, handler)

    new.script(slowly)
    with Service(env={"VENDOR": "sk", "INFERMUX_CONFIG": str(file)}) as running:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(6):
            assert running.ask("/v1/chat/completions", body).status == 200
        assert running.stop() == 0
    ledger = SQLiteLedger(str(tmp_path / "ledger.db"))
    assert [row.call.api for row in ledger.rows(limit=1000)].count("mirror") == 6
    ledger.close()


# -- the comparison -----------------------------------------------------------------------------------


def compared(tmp_path, *args):
    path = str(tmp_path / "ledger.db")
    return CliRunner().invoke(main, ["costs", "--compare", *args, "--ledger", path])


@pytest.mark.slow
def test_a_name_and_its_mirror_are_compared_in_pairs(vendors, tmp_path):
    with mirrored(vendors, tmp_path, share=0.5) as (front, mirror, _):
        for _ in range(40):
            ask(front)
        settled(mirror)
        mirrors = counts(mirror)["sent"]
    answer = compared(tmp_path, "chat", NEW, "--json")
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["pairs"] == mirrors and found["calls"] == [mirrors, mirrors]
    assert found["calls_of_first"] == 40
    figures = {each["name"]: each for each in found["figures"]}
    cost = figures["cost per call"]
    assert cost["first"] > cost["second"] > 0
    assert cost["interval"][0] <= cost["difference"] <= cost["interval"][1] < 0
    assert figures["finish: stop"]["first"] == figures["finish: stop"]["second"] == 100
    assert figures["output tokens"]["difference"] == 0
    text = compared(tmp_path, "chat", NEW).output
    assert f"{mirrors} calls of chat and their copies to {NEW}, of 40 calls" in text
    for word in ("cost per call USD", "latency, p95 ms", "errors %", "95 % INTERVAL"):
        assert word in text
    assert compared(tmp_path, "chat", NEW).output == text  # seeded


def test_models_without_a_mirror_are_compared_by_their_own_calls(vendors, tmp_path):
    with mirrored(vendors, tmp_path, share=1e-9) as (front, _, _):
        for model in (f"openai/{MODELS['openai']}", NEW):
            for _ in range(5):
                ask(front, model=model)
    answer = compared(tmp_path, f"openai/{MODELS['openai']}", NEW)
    assert answer.exit_code == 0 and "different requests" in answer.output
    assert "too few for intervals, which need 8 of each" in answer.output
    figures = json.loads(compared(tmp_path, f"openai/{MODELS['openai']}", NEW, "--json").stdout)
    assert {each["interval"] for each in figures["figures"]} == {None}


def test_calls_of_a_target_are_compared_by_whatever_name_they_came(vendors, tmp_path):
    with mirrored(vendors, tmp_path, share=1e-9) as (front, _, _):
        for model in (f"openai/{MODELS['openai']}", "chat", "chat", NEW):
            ask(front, model=model)
    found = json.loads(compared(tmp_path, f"openai/{MODELS['openai']}", NEW, "--json").stdout)
    assert found["calls"] == [3, 1]


@pytest.mark.slow
def test_a_comparison_tells_that_it_has_not_read_every_call(tmp_path):
    path = tmp_path / "ledger.db"
    keep(path, call("x", requested="a"), call("y", requested="b"))
    whole, [attempt] = record(call("x", requested="a"))
    ids = [f"c{n}" for n in range(MAX_ROWS)]
    with closing(sqlite3.connect(path)) as sql, sql:
        sql.executemany(WRITE_CALL, [whole._replace(id=id, plan="") for id in ids])
        sql.executemany(WRITE_ATTEMPT, [attempt._replace(call_id=id) for id in ids])
    assert "only the last 10,000 calls of each are read" in compared(tmp_path, "a", "b").output


def test_what_cannot_be_compared_is_an_error(tmp_path):
    SQLiteLedger(str(tmp_path / "ledger.db")).check()
    answer = compared(tmp_path, "a", "b")
    assert answer.exit_code == 1 and "no calls of 'a'" in answer.output
    assert compared(tmp_path, "a", "a").exit_code == 2
    assert compared(tmp_path, "a", "b", "--by", "day").exit_code == 2


def test_the_interval_covers_the_difference_about_as_often_as_it_says():
    rng, hits = random.Random(7), 0
    for seed in range(60):
        one = [rng.gauss(10, 3) for _ in range(60)]
        two = [rng.gauss(11, 3) for _ in range(60)]
        mean = lambda values: sum(values) / len(values)  # noqa: E731
        low, high = bootstrap(one, two, mean, paired=False, rounds=200, seed=seed)
        hits += low <= 1 <= high
    assert 50 <= hits <= 60


@pytest.mark.parametrize("sizes", [(20_000, 1500), (1500, 20_000), (900, 1200)])
def test_the_interval_of_unequal_samples_is_as_wide_as_both_make_it(sizes):
    rng = random.Random(11)
    sides = [[rng.gauss(10, 3) for _ in range(size)] for size in sizes]
    low, high = bootstrap(*sides, fmean, paired=False, rounds=400)
    normal = 2 * 1.96 * 3 * math.sqrt(sum(1 / size for size in sizes))
    assert 0.88 < (high - low) / normal < 1.12
