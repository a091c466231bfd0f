"""Tests of replayed decisions: from the stored text of a plan, from a ledger, from the shell."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infermux import Deadline, InferRequest, InferResponse, Registry, Router
from infermux.cli.main import main
from infermux.errors import InferMuxError, ProviderUnavailable
from infermux.ledger import Record
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning import STRATEGIES, Plan, Replay, Snapshot, State, kept, plan, replayed
from infermux.providers.echo import EchoProvider
from infermux.types import Route, Target

NAMES = ("a/b", "é", "m\ud800", 'x"\n{}', "z" * 50, "\0", "/", "a/b/c")
TARGETS = tuple(Target(f"p{n}", name) for n, name in enumerate(NAMES))
SAY = [{"role": "user", "content": "TOP-SECRET words"}]


# -- the text --------------------------------------------------------------------------------------


def a_route(rng: random.Random, depth: int = 2) -> Route:
    """Return a route of any shape, with names that were chosen to hurt."""

    def entries(least: int) -> tuple[Target | Route, ...]:
        return tuple(
            a_route(rng, depth - 1) if depth and rng.random() < 0.3 else rng.choice(TARGETS)
            for _ in range(rng.randint(least, 3))
        )

    strategy = rng.choice(("priority", *STRATEGIES))
    inside = entries(1)
    weights = (
        tuple(rng.uniform(0.001, 10**6) for _ in inside)
        if strategy == "weighted" and rng.random() < 0.8
        else ()
    )
    return Route(rng.choice(NAMES), inside, strategy, entries(0), weights, rng.choice(("", "drop")))


def a_snapshot(rng: random.Random) -> Snapshot:
    def some(value: Callable[[], Any], share: float = 0.7) -> dict[Target, Any]:
        return {target: value() for target in TARGETS if rng.random() < share}

    state = State(
        some(lambda: rng.uniform(0, 9), 0.2),
        rng.choice((0, 1, rng.randrange(10**12))),
        some(lambda: rng.choice((None, 0.0, rng.expovariate(3)))),
        some(lambda: rng.randrange(4)),
        some(lambda: rng.choice((None, 0, rng.randrange(10**15)))),
    )
    busy = rng.random() < 0.6
    return Snapshot(
        state,
        some(lambda: rng.choice(("cannot do tools", 'x"\n\ud800')), 0.3 * busy),
        some(lambda: ("open", rng.choice((0.0, 1e-9, rng.uniform(0, 99), math.inf))), 0.6 * busy),
    )


@pytest.mark.slow
def test_a_kept_plan_is_derived_again_exactly() -> None:
    """Whatever the route, the state, the strategies and the names."""
    seen = set()
    for seed in range(4000):
        rng = random.Random(seed)
        made = plan(a_route(rng), a_snapshot(rng), rng.getrandbits(32))
        text = kept(made)
        assert text.isascii()
        found = replayed(text)
        assert (found.kept, found.plan, found.differences) == (made, made, {}), seed
        assert found.plan.route == made.route
        seen.add(
            (
                made.forced,
                bool(made.dropped),
                bool(made.targets),
                made.retry_in is None,
                "\n" in text,
            )
        )
    assert len(seen) >= 7  # every kind of decision came up


def test_plans_that_differ_in_anything_are_not_equal() -> None:
    """Or else "identical" would say nothing."""
    made = plan(Route("x", TARGETS[:3]), Snapshot(refused={TARGETS[0]: ("open", 3.0)}), 1)
    others: list[dict[str, Any]] = [
        {"targets": made.targets[::-1]}, {"dropped": {}}, {"forced": True}, {"retry_in": None}, {"model": "y"}, {"strategy": "cheapest"},
    ]  # fmt: skip
    assert all(replace(made, **other) != made for other in others)
    assert replace(made, seed=2) == made  # it draws nothing


def test_the_usual_plan_is_one_line_that_does_not_vary() -> None:
    texts = {kept(plan(Route("x", TARGETS[:3]), Snapshot(), seed)) for seed in range(9)}
    assert len(texts) == 1 and "\n" not in texts.pop()


@pytest.mark.parametrize(
    ("strategy", "bears"),
    [
        ("weighted", {"seed"}),
        ("round_robin", {"cursor"}),
        ("least_latency", {"seed", "latency", "in_flight"}),
        ("cheapest", {"cost"}),
    ],
)
def test_only_what_bears_on_the_order_is_kept(strategy: str, bears: set[str]) -> None:
    """A call whose neighbours differ in what does not matter must not cost room."""
    state = State(
        {}, 3, dict.fromkeys(TARGETS, 0.5), dict.fromkeys(TARGETS, 1), dict.fromkeys(TARGETS, 7)
    )
    second = json.loads(
        kept(plan(Route("x", TARGETS[:3], strategy), Snapshot(state), 5)).partition("\n")[2]
    )
    known = second.pop("snapshot", {}).get("state", {})
    assert set(second) - {"targets", "retry_in"} | set(known) == bears


def test_a_name_that_a_row_would_cut_costs_no_room() -> None:
    assert kept(plan(Route("x" * 201, TARGETS[:1]), Snapshot(), 1)) == ""
    assert kept(None) == kept(Plan("x", "priority", TARGETS)) == ""


def test_what_was_decided_otherwise_is_told() -> None:
    text = kept(plan(Route("x", TARGETS[1:3]), Snapshot(refused={TARGETS[1]: ("open", 3.0)}), 1))
    first, _, second = text.partition("\n")
    changed = json.dumps(json.loads(second) | {"targets": ["p9/other"]})
    found = replayed(f"{first}\n{changed}")
    assert found.differences == {"targets": (["p9/other"], [str(TARGETS[2])])}


JUNK = ["", "x", "[]", "{}", '"x"', "1", '{"route":1,"targets":[]}', '{"route":{"name":"x"},"targets":[]}', "[" * 10**5,
        '{"route":{"name":"x","entries":[1]},"targets":[]}', '{"route":{"name":"x","entries":["a/b"],"strategy":"no"},"targets":[]}',
        '{"route":{"name":"x","entries":["a/b","a/c"],"strategy":"weighted","weights":[1]},"targets":[]}',
        '{"route":{"name":"x","entries":["a/b"]},"targets":[]}\n{"snapshot":{"shut":{"a/b":1}}}']  # fmt: skip


@pytest.mark.parametrize("text", JUNK, ids=range(len(JUNK)))
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        replayed(text)


# -- the ledger ------------------------------------------------------------------------------------


class Down(EchoProvider):
    def infer(self, request: InferRequest, deadline: Deadline | None = None) -> InferResponse:
        raise ProviderUnavailable("TOP-SECRET reason")


def three(
    path: Path, strategy: str, *, order: str = "abc", failing: str = "", seed: int = 7
) -> Router:
    """Return a router over three providers of one model, whose calls are written to *path*."""
    registry = Registry((Down if name in failing else EchoProvider)(name, ("m",)) for name in order)
    registry.define("x", [f"{name}/m" for name in order], strategy=strategy)
    return Router(registry, ledger=SQLiteLedger(path), sleep=lambda seconds: None, seed=seed)


def called(router: Router, model: str = "x") -> str:
    call = router.begin(InferRequest(model, SAY))
    with suppress(InferMuxError):
        router.answer(call)
    return call.id


def found(path: Path, id: str) -> tuple[Record, Replay]:
    with closing(SQLiteLedger(path)) as ledger:
        record = ledger.call(id)
    assert record is not None
    return record, replayed(record.call.plan)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_call_of_a_router_is_derived_again(tmp_path: Path, strategy: str) -> None:
    path = tmp_path / "l.db"
    with closing(three(path, strategy, failing="a")) as router:
        health, ids = router.targets.breaker(Target("a", "m")), [called(router) for _ in range(25)]
        while (
            health.refusal() is None and len(ids) < 500
        ):  # how often least_latency comes to it depends on the machine
            ids.append(called(router))
        ids.append(called(router))
    plans = [found(path, id) for id in ids]
    assert all(decision.differences == {} for _, decision in plans)
    for record, decision in plans:
        tried = [attempt.provider for attempt in record.attempts]
        assert tried and [target.provider for target in decision.plan.targets][
            : len(set(tried))
        ] == list(dict.fromkeys(tried))
    assert any(decision.plan.dropped for _, decision in plans)  # a's circuit opened on the way


def test_a_decision_does_not_depend_on_todays_configuration(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with closing(three(path, "round_robin")) as router:
        id = called(router)
    before = found(path, id)
    with closing(three(path, "cheapest", order="cz")) as router:
        called(router)
    assert found(path, id) == before and str(before[1].plan.targets[0]) == "a/m"


def test_a_call_that_nobody_could_serve_keeps_its_reasons(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with closing(three(path, "priority", order="a")) as router:
        router.targets.breaker(Target("a", "m")).open()
        id = called(router)
    record, decision = found(path, id)
    assert record.call.error_code == "no_healthy_providers"
    assert (
        decision.plan.targets == ()
        and set(decision.plan.dropped) == {Target("a", "m")}
        and decision.differences == {}
    )


def test_no_content_is_kept_with_a_plan(tmp_path: Path) -> None:
    with closing(three(tmp_path / "l.db", "least_latency", failing="ab")) as router:
        for _ in range(12):
            called(router)
    assert b"TOP-SECRET" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


# -- at a shell ------------------------------------------------------------------------------------


def replay(path: Path, *args: str, given: str = "") -> Result:
    return CliRunner().invoke(main, ["replay", *args, "--ledger", str(path)], input=given)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "l.db"


def test_replay_says_what_was_decided_and_what_came_of_it(path: Path) -> None:
    with closing(three(path, "priority", failing="a")) as router:
        id = called(router)
    result = replay(path, id[:8])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert id in lines[0] and lines[1] == "x: priority"
    told = [line.split() for line in lines[3:6]]
    assert [line[:3] for line in told] == [
        ["1", "a/m", "upstream_error"],
        ["2", "b/m", "ok"],
        ["3", "c/m", "not"],
    ]
    assert lines[-1].startswith("identical")
    for ident in (f"chatcmpl-{id}", f"resp_{id}", f"msg_{id}"):  # as bodies name it
        assert replay(path, ident).stdout == result.stdout


def test_replay_as_json(path: Path) -> None:
    with closing(three(path, "weighted", failing="a")) as router:
        router.targets.breaker(Target("c", "m")).open()
        id = called(router)
    answer = json.loads(replay(path, id, "--json").stdout)
    assert (answer["id"], answer["identical"], answer["differences"], answer["strategy"]) == (
        id,
        True,
        {},
        "weighted",
    )
    assert sorted(answer["targets"]) == ["a/m", "b/m"] and set(answer["dropped"]) == {"c/m"}
    assert (
        answer["attempts"][-1]["status"] == "ok" and answer["attempts"][-1]["cost_usd"] is not None
    )


def test_a_decision_that_comes_out_otherwise_is_exit_code_1(path: Path) -> None:
    with closing(three(path, "round_robin")) as router:
        id = called(router)
    with closing(sqlite3.connect(path)) as sql, sql:
        [(text,)] = sql.execute("SELECT plan FROM calls").fetchall()
        sql.execute(
            "UPDATE calls SET plan = ?",
            (text.replace('"targets":["a/m","b/m","c/m"]', '"targets":["c/m","b/m"]'),),
        )
    result = replay(path, id)
    assert result.exit_code == 1
    assert (
        "not identical" in result.stdout
        and 'targets was ["c/m", "b/m"] and is ["a/m", "b/m", "c/m"]' in result.stdout
    )
    assert json.loads(replay(path, id, "--json").stdout)["differences"]["targets"]["then"] == [
        "c/m",
        "b/m",
    ]


@pytest.mark.parametrize(
    ("id", "word"),
    [
        ("abcdef", "no call"),
        ("abc", "at least 6"),
        ("%%%%%%", "no call"),
        ("\x1b[2J\x1b[", "no call"),
    ],
)
def test_a_call_that_is_not_there_is_one_line(path: Path, id: str, word: str) -> None:
    with closing(three(path, "priority")) as router:
        called(router)
    result = replay(path, id)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert word in result.stderr and "\x1b" not in result.stderr


def test_no_ledger_is_one_line_and_none_is_made(path: Path) -> None:
    result = replay(path, "abcdef")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1) and not path.exists()


@pytest.mark.parametrize(("text", "word"), [("", "no recorded plan"), ("n" * 40, "cannot be read")])
def test_a_call_without_a_plan_is_one_line(path: Path, text: str, word: str) -> None:
    with closing(three(path, "priority")) as router:
        id = called(router)
    with closing(sqlite3.connect(path)) as sql, sql:
        sql.execute("UPDATE calls SET plan = ?", (text,))
    result = replay(path, id)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (
        1,
        "",
        1,
    ) and word in result.stderr


def test_names_from_outside_cannot_move_the_cursor(path: Path) -> None:
    with closing(SQLiteLedger(path)) as ledger:
        router = Router(Registry([EchoProvider("p", ("\x1b[31mevil\u202e",))]), ledger=ledger)
        id = called(router, "\x1b[31mevil\u202e")
        for args in ((), ("--json",)):
            assert not {"\x1b", "\u202e"} & set(replay(path, id, *args).stdout)


CONFIGURED = """
[providers.a]
type = "echo"
[providers.b]
type = "echo"
[models.x]
targets = ["b/echo-v1", "a/echo-v1"]
[ledger]
path = "l.db"
"""


def sent(path: Path) -> str:
    """Make a call that went to a, before b; return its id."""
    registry = Registry([EchoProvider("a"), EchoProvider("b")])
    registry.define("x", ["a/echo-v1", "b/echo-v1"])
    with closing(Router(registry, ledger=SQLiteLedger(path))) as router:
        return called(router)


def test_send_calls_the_same_targets_again(path: Path) -> None:
    """In the order of then, whatever the configuration says now; and that call can be replayed in
    its turn.
    """
    id = sent(path)
    Path("infermux.toml").write_text(CONFIGURED)
    result = replay(path, id, "--send", "Hello again")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "echo: Hello again"
    then, now = result.stderr.splitlines()
    assert then.startswith("then  a/echo-v1") and now.startswith("now   a/echo-v1")
    again, decision = found(path, now.split()[-1])
    assert (again.call.api, again.call.requested, again.call.provider) == ("replay", "x", "a")
    assert [each.provider for each in decision.plan.targets] == [
        "a",
        "b",
    ] and decision.differences == {}


def test_send_as_json_is_one_object(path: Path) -> None:
    id = sent(path)
    Path("infermux.toml").write_text(CONFIGURED)
    answer = json.loads(replay(path, id, "--send", "Hello", "--json").stdout)
    assert (answer["id"], answer["sent"]["provider"], answer["sent"]["content"]) == (
        id,
        "a",
        "echo: Hello",
    )


@pytest.mark.parametrize(
    ("args", "given"),
    [(("--send",), "Hello\n"), (("--send", "-"), "Hello"), (("--send", "--prompt", "Hello"), "")],
)
def test_the_prompt_to_send_comes_as_for_infer(
    path: Path, args: tuple[str, ...], given: str
) -> None:
    id = sent(path)
    Path("infermux.toml").write_text(CONFIGURED)
    assert replay(path, id, *args, given=given).stdout.endswith("echo: Hello\n")


def test_send_needs_a_prompt_and_a_prompt_needs_send(path: Path) -> None:
    id = sent(path)
    Path("infermux.toml").write_text(CONFIGURED)
    assert replay(path, id, "--send").exit_code == replay(path, id, "words").exit_code == 2
    with closing(SQLiteLedger(path)) as ledger:
        assert len(ledger.rows()) == 1


def test_a_target_that_is_configured_no_more_is_one_line(path: Path) -> None:
    id = sent(path)
    Path("infermux.toml").write_text('[providers.b]\ntype = "echo"\n')
    result = replay(path, id, "--send", "x")
    assert (
        result.exit_code == 1
        and "no provider named 'a'" in result.stderr
        and result.stderr.count("\n") == 1
    )


def test_the_time_of_a_call_is_told(path: Path) -> None:
    id = sent(path)
    at = json.loads(replay(path, id, "--json").stdout)["at"]
    assert (
        abs(time.time() - time.mktime(time.strptime(at, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone)
        < 100
    )


def test_a_plan_that_puts_a_target_last_for_its_parameters_is_derived_again() -> None:
    """A target that would leave out a preference comes after the others, also where forced."""
    a, b, c = Target("a", "m"), Target("b", "m"), Target("c", "m")
    route = Route("x", (a, b, c))
    for refused in ({}, dict.fromkeys((a, b, c), ("circuit open", 1.0))):
        made = plan(route, Snapshot(refused=refused, partial=(a,)), 7)
        assert made.targets == (b, c, a) and not made.dropped
        again = replayed(kept(made))
        assert (again.kept, again.plan, again.differences) == (made, made, {})
