"""Tests of chaos trials: many configurations against every fault, and the verdict on bad code."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infermux import Router, chaos, errors
from infermux.chaos import Row
from infermux.chaos.faults import FAULTS
from infermux.config import Config, ProviderConfig, Secret
from infermux.config.settings import (
    LedgerConfig,
    MirrorConfig,
    ModelConfig,
    Reliability,
    Timeouts,
    Trace,
)
from infermux.dialects.openai import upstream as openai
from infermux.errors import ConfigError, ProviderError, StreamIncomplete

LONG = pytest.mark.skipif(
    not os.environ.get("INFERMUX_LONG"),
    reason="every fault takes about ten seconds; INFERMUX_LONG=1 runs them",
)
CANARY = "sk-canary-7f3a9b21"
SOME = [
    "refused", "closed", "truncated", "not_json", "deep_json", "400", "401", "500", "429_long", "gzip_bomb", "stream_cut", "stream_reset",
    "stream_error_event", "stream_no_terminator", "stream_garbage_event", "stream_empty", "stream_json",
]  # fmt: skip
KEY = Secret(CANARY)
OPENAI = ProviderConfig("openai", "openai", api_key=KEY)
ANTHROPIC = ProviderConfig("anthropic", "anthropic", api_key=KEY)
GEMINI = ProviderConfig("gemini", "gemini", api_key=KEY)
FIRST = {
    "openai": "openai/gpt-6-luna",
    "anthropic": "anthropic/claude-haiku-5-5",
    "gemini": "gemini/gemini-3.8-flash",
}


def single(provider: ProviderConfig) -> Config:
    return Config((provider,))


def pair(first: ProviderConfig, second: ProviderConfig, **more: Any) -> Config:
    return Config(
        (second, first), (ModelConfig("fast", (FIRST[first.name], FIRST[second.name])),), **more
    )


def found(rows: list[Row], fault: str, when: str = "before", *, streamed: bool = False) -> Row:
    [row] = [row for row in rows if (row.fault, row.when, row.streamed) == (fault, when, streamed)]
    return row


def check(rows: list[Row]) -> None:
    assert [row for row in rows if not row.ok] == []
    assert chaos.verdict(rows) == 0


# -- what a good configuration shows ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("first", [OPENAI, ANTHROPIC, GEMINI], ids=lambda provider: provider.name)
def test_a_provider_alone_never_answers_wrongly(first: ProviderConfig) -> None:
    rows = chaos.run(single(first), faults=SOME, deadline=2)
    check(rows)
    assert {row.outcome for row in rows if row.when == "after"} == {"cut, told"}
    assert {row.failover for row in rows} == {"none configured", "not needed"}
    assert (
        found(rows, "healthy").outcome == found(rows, "healthy", streamed=True).outcome == "answer"
    )
    assert found(rows, "400").outcome == "error invalid_request"
    assert found(rows, "401").outcome == "error upstream_auth"
    assert found(rows, "429_long").outcome == "error upstream_rate_limited"
    assert found(rows, "stream_json", streamed=True).outcome == "answer"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [(OPENAI, ANTHROPIC), (ANTHROPIC, GEMINI), (GEMINI, OPENAI)],
    ids=lambda provider: provider.name,
)
def test_a_second_provider_answers_where_the_first_cannot(
    first: ProviderConfig, second: ProviderConfig
) -> None:
    rows = chaos.run(pair(first, second), faults=SOME)
    check(rows)
    for row in rows:
        if row.when == "before" and row.fault not in ("healthy", "400", "stream_json"):
            assert (row.failover, row.outcome, row.attempts) == ("fired", "answer", 2)
        if row.when == "after":
            assert (row.failover, row.outcome, row.attempts) == ("too late", "cut, told", 1)
    assert found(rows, "400").failover == "not needed"


@pytest.mark.slow
def test_a_vendor_that_hangs_leaves_time_for_the_next() -> None:
    rows = chaos.run(
        pair(OPENAI, ANTHROPIC),
        faults=["stall", "slow_headers", "slow_body", "stream_stall"],
        deadline=1.5,
    )
    check(rows)
    assert (
        found(rows, "stall").failover == found(rows, "slow_body", streamed=True).failover == "fired"
    )
    assert found(rows, "slow_body", "after", streamed=True).outcome == "cut, told"
    assert max(row.seconds for row in rows if row.when == "before") < 1.5 + chaos.GRACE


@LONG
@pytest.mark.parametrize(
    "config",
    [
        single(OPENAI),
        single(ANTHROPIC),
        single(GEMINI),
        pair(OPENAI, ANTHROPIC),
        pair(ANTHROPIC, OPENAI),
        pair(GEMINI, ANTHROPIC),
    ],
    ids=lambda config: "-".join(each.name for each in config.providers),
)
def test_every_fault(config: Config) -> None:
    rows = chaos.run(config)
    check(rows)
    assert {row.fault for row in rows} == {"healthy", *FAULTS}
    assert len(rows) == 2 + sum(fault.plain + len(fault.stream) for fault in FAULTS.values())


@pytest.mark.slow
def test_rows_come_in_order_while_it_runs() -> None:
    told: list[Row] = []
    rows = chaos.run(single(OPENAI), faults=["500", "stream_cut", "html"], report=told.append)
    assert told == rows
    assert [(row.fault, row.when, row.streamed) for row in rows] == [
        ("healthy", "before", False), ("healthy", "before", True), ("500", "before", False), ("500", "before", True),
        ("stream_cut", "before", True), ("stream_cut", "after", True), ("html", "before", False), ("html", "before", True),
    ]  # fmt: skip


# -- configurations of every kind ------------------------------------------------------------------

WORK = ProviderConfig("work", "openai", api_key=KEY)
AZURE = ProviderConfig("azure", "azure", "https://x.example", KEY, ("deployment",))
BOX = ProviderConfig("box", "openai", "http://127.0.0.1:1", models=("llama",))
SAME = [ProviderConfig(name, "vllm", "http://127.0.0.1:1/v1", models=("m",)) for name in "xy"]


def named(*targets: str, strategy: str = "priority", **more: Any) -> tuple[ModelConfig, ...]:
    return (ModelConfig("a", targets, strategy, **more),)


CONFIGS = {
    "names of names": Config(
        (OPENAI, ANTHROPIC), (*named("b", fallback=("anthropic",)), ModelConfig("b", ("openai",)))
    ),
    "weighted": Config(
        (OPENAI, ANTHROPIC),
        named("openai", "anthropic", strategy="weighted", weights={"anthropic": 1000.0}),
    ),
    "cheapest": Config((OPENAI, ANTHROPIC), named(*list(FIRST.values())[:2], strategy="cheapest")),
    "another name": Config((WORK, ANTHROPIC), named("work", "anthropic")),
    "by pattern": Config((WORK, ANTHROPIC), named("gpt-9-new", "claude-9")),
    "azure": Config((AZURE, OPENAI), named("azure", "openai")),
    "local": Config((BOX, GEMINI), named("llama", "gemini")),
    "echo behind": Config((OPENAI, ProviderConfig("echo", "echo")), named("openai", "echo-v1")),
    "no names": Config(tuple(SAME)),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_takes_any_configuration(name: str) -> None:
    rows = chaos.run(
        dataclasses.replace(CONFIGS[name], path="infermux.toml"), faults=["500", "stream_cut"]
    )
    check(rows)
    assert {row.failover for row in rows if row.fault == "500" and row.model != "b"} == {"fired"}


@pytest.mark.slow
def test_names_that_go_the_same_way_are_tried_once() -> None:
    config = Config(
        (OPENAI, ANTHROPIC),
        (
            ModelConfig("fast", ("openai", "anthropic")),
            ModelConfig("slow", ("openai/gpt-6.1-sol", "claude-opus-5-5")),
            ModelConfig("mine", ("anthropic",)),
        ),
        path="infermux.toml",
    )
    rows = chaos.run(config, faults=["500"])
    assert list(dict.fromkeys(row.model for row in rows)) == ["fast, slow", "mine"]
    assert len(rows) == 2 * 4


def test_time_outs_keep_their_proportion_to_the_deadline() -> None:
    wait = Timeouts(connect=5, first_byte=6, idle=30, total=600)
    hasty = dataclasses.replace(OPENAI, timeout=wait)
    rows = chaos.run(
        Config((hasty,), reliability=Reliability(deadline=60.0, attempts=1)), faults=["stall"]
    )
    assert 0.4 < found(rows, "stall").seconds < 2  # a tenth of 5 s, as 6 of 60


def test_a_deadline_is_never_longer_than_the_files_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = chaos.run(
        Config((OPENAI,), reliability=Reliability(deadline=0.3)), faults=["stall"], deadline=4
    )
    assert found(rows, "stall").seconds < 0.3 + chaos.GRACE
    monkeypatch.setattr(chaos, "DEADLINE", 0.2)  # what holds if no deadline is asked for
    for own, asked, least in ((0.0, 0.6, 0.5), (0.0, None, 0.1)):
        limits = Reliability(deadline=own, attempts=1)
        rows = chaos.run(Config((OPENAI,), reliability=limits), faults=["stall"], deadline=asked)
        assert least < found(rows, "stall").seconds < least + 0.3 + chaos.GRACE


def test_what_is_set_for_a_provider_or_name_is_no_finding() -> None:
    talks = dataclasses.replace(OPENAI, api="responses")
    copies = MirrorConfig(FIRST["openai"], 1.0)
    names = (ModelConfig("often", (FIRST["openai"],), attempts=4, mirror=copies),)
    rows = chaos.run(Config((talks,), names), faults=["500"])
    check(rows)
    assert found(rows, "healthy").outcome == "answer"
    assert found(rows, "500").attempts == 4
    assert not [each for each in threading.enumerate() if "mirror" in each.name]  # none is sent


@pytest.mark.parametrize("first", [OPENAI, ANTHROPIC], ids=lambda provider: provider.name)
def test_the_first_target_of_a_sticky_name_fails_too(first: ProviderConfig) -> None:
    other = ANTHROPIC if first is OPENAI else OPENAI
    name = ModelConfig("stays", (FIRST[first.name], FIRST[other.name]), sticky=True)
    row = found(chaos.run(Config((OPENAI, ANTHROPIC), (name,)), faults=["500"]), "500")
    assert (row.attempts, row.failover, row.outcome) == (2, "fired", "answer")


@pytest.fixture
def canary() -> Iterator[tuple[str, socket.socket]]:
    """An address where nobody may knock."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setblocking(False)
        yield f"http://127.0.0.1:{door.getsockname()[1]}", door


def test_nothing_leaves(
    canary: tuple[str, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, door = canary
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTTP_PROXY", address)
    there = dataclasses.replace(OPENAI, base_url=f"{address}/v1", proxy=address)
    rows = chaos.run(
        pair(
            there,
            ANTHROPIC,
            path="x.toml",
            trace=Trace(tokentrace=address),
            ledger=LedgerConfig(str(tmp_path / "l.db")),
            keys=(),
        ),
        faults=["500", "redirect", "stream_cut"],
    )
    check(rows)
    with pytest.raises(BlockingIOError):
        door.accept()
    assert list(tmp_path.iterdir()) == []


def test_no_key_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte that any socket of this process sends is looked through."""
    sent: list[bytes] = []

    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda sock, data, *more: (sent.append(bytes(data)), real(sock, data, *more))[1]

    for name in ("send", "sendall"):
        monkeypatch.setattr(socket.socket, name, noted(getattr(socket.socket, name)))
    chaos.run(pair(OPENAI, GEMINI), faults=["500"])
    assert b"Bearer chaos" in b"".join(sent)
    assert CANARY.encode() not in b"".join(sent)


# -- what is not as it should be -------------------------------------------------------------------


def lenient(events: Any, request: Any) -> Iterator[Any]:
    """A stream's end is its end, whatever is missing."""
    try:
        yield from STRICT(events, request)
    except StreamIncomplete:
        return


def polite(events: Any, request: Any) -> Iterator[Any]:
    """Whatever breaks a stream ends it."""
    try:
        yield from STRICT(events, request)
    except Exception:
        return


def skipping(data: bytes, *more: Any) -> Any:
    """An event that is broken is left out."""
    try:
        return READ(data, *more)
    except ValueError:
        return {"choices": []}


STRICT, READ = openai.decode_events, openai.read_object
MUTANTS: list[tuple[str, Callable[[pytest.MonkeyPatch], None], str, str]] = [
    (
        "no terminator needed",
        lambda patch: patch.setattr(openai, "decode_events", lenient),
        "stream_no_terminator",
        chaos.WRONG,
    ),
    (
        "errors end politely",
        lambda patch: patch.setattr(openai, "decode_events", polite),
        "stream_cut",
        chaos.WRONG,
    ),
    (
        "error events too",
        lambda patch: patch.setattr(openai, "decode_events", polite),
        "stream_error_event",
        chaos.WRONG,
    ),
    (
        "broken events skipped",
        lambda patch: patch.setattr(openai, "read_object", skipping),
        "stream_garbage_event",
        chaos.WRONG,
    ),
    (
        "no failover",
        lambda patch: patch.setattr(ProviderError, "failover", False),
        "500",
        "error upstream_error",
    ),
    (
        "no failover of timeouts",
        lambda patch: patch.setattr(errors.ProviderTimeout, "failover", False),
        "408",
        "error upstream_timeout",
    ),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("break_it", "fault", "outcome"),
    [mutant[1:] for mutant in MUTANTS],
    ids=[mutant[0] for mutant in MUTANTS],
)
def test_a_router_that_is_broken_is_found_out(
    break_it: Any, fault: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(chaos.run(pair(OPENAI, ANTHROPIC), faults=[fault]))
    break_it(monkeypatch)
    rows = chaos.run(pair(OPENAI, ANTHROPIC), faults=[fault])
    assert chaos.verdict(rows) == 1
    assert outcome in {row.outcome for row in rows if not row.ok}


def test_one_attempt_is_no_failover() -> None:
    usual = pair(OPENAI, ANTHROPIC)
    hasty = dataclasses.replace(usual.models[0], name="hasty", attempts=1)
    both = chaos.run(dataclasses.replace(usual, models=(*usual.models, hasty)), faults=["500"])
    check([row for row in both if row.model == "fast"])
    for rows in (
        [row for row in both if row.model == "hasty"],
        chaos.run(pair(OPENAI, ANTHROPIC, reliability=Reliability(attempts=1)), faults=["500"]),
    ):
        row = found(rows, "500")
        assert (row.outcome, row.failover, row.ok, row.note) == (
            "error upstream_error",
            "did not fire",
            False,
            "anthropic could have answered",
        )
        assert chaos.verdict(rows) == 1


def test_what_is_no_error_of_ours_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(Router, "infer", crash)
    row = found(chaos.run(single(OPENAI), faults=[]), "healthy")
    assert (row.outcome, row.ok, row.attempts) == ("error KeyError", False, 0)


def test_a_configuration_that_never_answers_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "PATHS", {"chat": "/elsewhere"})
    rows = chaos.run(single(OPENAI), faults=[])
    assert [row.note for row in rows] == ["no answer although every vendor is healthy"] * 2
    assert chaos.verdict(rows) == 1


def test_nothing_to_prove_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no provider"):
        chaos.run(Config())
    with pytest.raises(ConfigError, match="did you mean 'stall'"):
        chaos.run(single(OPENAI), faults=["stal"])
    assert chaos.verdict([]) == 1


# -- the table -------------------------------------------------------------------------------------


def test_the_verdict_is_1_if_a_row_is_not_ok() -> None:
    good = Row("stall", "before", False, "answer", 2, 2.5, "fired", True, "fast")
    assert chaos.verdict([good, good._replace(ok=False)]) == 1
    assert chaos.verdict([good]) == 0


# -- requests with parameters that not every format has --------------------------------------------

KINDS = ("503_hints", "503_preferences", "503_meanings")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("providers", "outcomes"),
    [
        ((OPENAI, ANTHROPIC), ("answer", "answer", "error upstream_error")),
        ((ANTHROPIC, OPENAI), ("answer", "answer", "answer")),
        ((ANTHROPIC, GEMINI), ("answer", "answer", "error unsupported_parameter")),
        ((ANTHROPIC,), ("error upstream_error",) + ("error unsupported_parameter",) * 2),
        ((OPENAI,), ("error upstream_error",) * 3),
    ],
    ids=lambda each: "-".join(getattr(one, "name", "") for one in each),
)
def test_an_outage_ends_as_the_kinds_of_its_parameters_say(providers, outcomes) -> None:
    """Hints and preferences never stop a fallback; a meaning ends in 400 only if none can say it."""
    config = pair(*providers) if len(providers) == 2 else single(*providers)
    rows = chaos.run(config, faults=KINDS)
    check(rows)
    for fault, outcome in zip(KINDS, outcomes, strict=True):
        for streamed in (False, True):
            assert found(rows, fault, streamed=streamed).outcome == outcome
