"""Tests that the sums that the ledger keeps are those of its calls, whatever happens meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from books import DAY, NOON, call

from infermux.errors import BudgetExceeded
from infermux.ledger import Budget, Record, Total, rollups, summed
from infermux.ledger.periods import time_zone
from infermux.ledger.sql import Ledger
from infermux.ledger.sqlite import SQLiteLedger
from infermux.ledger.sqlite import prune as pruning
from infermux.routing.accounting import record

LONG = os.environ.get("CI") == "true"
LATER, BEFORE = NOON + 100 * DAY, 0.0  # when all days have ended, and none
fresh = multiprocessing.get_context("spawn")
HOME = Path(__file__).parents[__name__.count(".")]
DIMENSIONS = [
    (), ("model",), ("day", "caller"), ("served", "provider"), ("error",), ("attempt_error",),
    ("model", "error", "caller", "day"), ("tag",), ("tag:env", "day"), ("hour",), ("tag", "model"),
]  # fmt: skip


def settled(id: str, cost: int, *, at: float = NOON, caller: str = "web") -> Record:
    return record(call(id, at=at, caller=caller, cost=cost))


def problems(ledger: Ledger) -> list[str]:
    # The clock of some tests is one at which there are no partitions.
    return [each for each in ledger.problems() if "have no partition" not in each]


def rolled(backend: Any) -> Counter[int]:
    return Counter(
        int(state) for (state,) in backend.sql("SELECT state FROM rolled WHERE state > 0")
    )


# -- reports ---------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.sampled(1)
@pytest.mark.sampled(5)
@pytest.mark.parametrize("by", DIMENSIONS, ids=lambda by: "+".join(by) or "all")
@pytest.mark.parametrize(
    ("since", "until"),
    [(None, None), (NOON - 20.3 * DAY, None), (NOON - 30 * DAY, NOON - 2.5 * DAY)],
)
def test_daily_sums_say_what_the_calls_say(
    full: Any, by: tuple[str, ...], since: float | None, until: float | None
) -> None:
    for caller in (None, "caller-3"):
        with closing(full.make(BEFORE)) as ledger:
            expected = ledger.totals(*by, since=since, until=until, caller=caller)
            states = rolled(full)
        with closing(full.make(LATER)) as ledger:
            assert ledger.totals(*by, since=since, until=until, caller=caller) == expected
            assert ledger.totals(*by, since=since, until=until, caller=caller) == expected
    assert states.total() == 0 or caller
    assert (rolled(full)[rollups.ROLLED] > 15) == rollups.Question.of(
        by, None, None, None, ledger.zone
    ).is_summed


@pytest.mark.sampled(1)
def test_a_call_that_comes_late_counts_in_its_day(full: Any) -> None:
    with closing(full.make(LATER)) as ledger:
        before = {total.key[0]: total for total in ledger.totals("day")}
        days = rolled(full)[rollups.ROLLED]
        ledger.settle(record(call("late", at=NOON - 3 * DAY, cost=5)))
        assert rolled(full)[rollups.ROLLED] == days - 1
        after = {total.key[0]: total for total in ledger.totals("day")}
        assert after["2026-11-20"].cost == before["2026-11-20"].cost + 5
        assert rolled(full)[rollups.ROLLED] == days
        assert problems(ledger) == []


def at(path: Path, now: float, **options: Any) -> SQLiteLedger:
    return SQLiteLedger(path, clock=lambda: now, **options)


@pytest.fixture
def path(many: Path, tmp_path: Path) -> Path:
    with closing(sqlite3.connect(many)) as old, closing(sqlite3.connect(tmp_path / "l.db")) as new:
        old.backup(new)
    return tmp_path / "l.db"


def test_a_report_that_cannot_be_kept_is_right_all_the_same(path: Path) -> None:
    with closing(at(path, BEFORE)) as ledger:
        expected = ledger.totals("model")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with closing(at(path, LATER, busy=0.05)) as ledger:
            with suppress(Exception):
                ledger.rows(limit=1)
            assert ledger.totals("model") == expected


@pytest.mark.slow
@pytest.mark.sampled(1)
def test_check_finds_each_kind_of_drift(full: Any) -> None:
    with closing(full.make(LATER)) as ledger:
        ledger.totals("model")
        ledger.reserve(Budget("web", 100), 1, call_id="a", at=NOON)
        assert problems(ledger) == []
        which = "WHERE call_id = ''" if full.name == "sqlite" else ""
        for statement, words in {
            "UPDATE sums SET pico = pico + 1 WHERE caller = 'caller-3'": "caller 'caller-3' differs",
            "DELETE FROM rollups WHERE kind = 1 AND n = 0 AND day % 7 = 0": "of the day differ",
            f"UPDATE budgets SET held = held + 1 {which}": "holds 2 pico-USD",
            "UPDATE attempts SET cost = cost + 1 WHERE at_ns % 9 = 0": "what their attempts cost",
        }.items():
            full.sql(statement)
            assert any(words in problem for problem in problems(ledger)), words


# -- reservations ----------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("period", ["day", "month", "total"])
def test_a_period_begins_without_reading_a_call(full: Any, period: str) -> None:
    with closing(full.make(BEFORE)) as ledger:
        budget = Budget("caller-3", 10**18, period)
        first = budget.start(NOON)
        [expected] = ledger.totals(since=first, until=budget.resets(NOON), caller="caller-3")
        full.sql("DELETE FROM calls")
        assert expected.cost > 0
        assert ledger.spent(budget, NOON) == (min(expected.cost, 9 * 10**18), 0)
        with suppress(BudgetExceeded):
            ledger.reserve(budget, 1, call_id="first", at=NOON, over=True)
        assert ledger.spent(budget, NOON) == (min(expected.cost, 9 * 10**18), 1)


def test_calls_that_are_written_out_of_order_are_summed_up_in_order(backend: Any) -> None:
    chance = random.Random(3)
    with closing(backend.make(BEFORE)) as ledger:
        made = [
            (NOON + chance.uniform(-40, 0) * DAY, 10 ** chance.randrange(12)) for _ in range(60)
        ]
        for n, (start, cost) in enumerate(made):
            ledger.settle(settled(str(n), cost, at=start))
            for period in ("day", "month", "total"):
                budget = Budget("web", 1, period)
                when = NOON + chance.uniform(-40, 0) * DAY
                key = budget.key(when)
                expected = sum(
                    cost for start, cost in made[: n + 1] if budget.key(int(start)) == key
                )
                assert ledger.spent(budget, when).spent == expected
        assert problems(ledger) == []


def test_a_budget_whose_length_changes_and_changes_back_misses_nothing(backend: Any) -> None:
    with closing(backend.make(BEFORE)) as ledger:
        for n, period in enumerate(["month", "day", "day", "total", "month"]):
            budget, id = Budget("web", 10**6, period), str(n)
            ledger.settle(settled(id, 10**n), ledger.reserve(budget, 10**5, call_id=id, at=NOON))
            for each in ("day", "month", "total")[: n + 1]:
                assert ledger.spent(Budget("web", 1, each), NOON) == (int("1" * (n + 1)), 0)


# -- removing old calls ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [7, 5000])
def test_what_old_calls_have_cost_outlasts_them(
    full: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "CHUNK", chunk)
    by = [each for each in DIMENSIONS if each not in (("hour",), ("tag", "model"))]
    budgets = [Budget("caller-3", 1, period) for period in ("day", "month", "total")]
    with closing(full.make(LATER)) as ledger:
        expected = [ledger.totals(*each) for each in by]
        spent = [ledger.spent(budget, NOON) for budget in budgets]
        since = ledger.prunes_before(NOON - 10.5 * DAY)  # a day, or with partitions a month
        kept = len(ledger.rows(since=since, limit=10_000))
        assert 0 < kept < 1500
        removed = ledger.prune(NOON - 10.5 * DAY)
        assert removed == 1500 - kept and kept == len(ledger.rows(limit=10_000))
        assert [ledger.totals(*each) for each in by] == expected
        assert [ledger.spent(budget, NOON) for budget in budgets] == spent
        ledger.settle(record(call("late", at=NOON - 30 * DAY, caller="caller-3", cost=5)))
        assert sum(total.cost for total in ledger.totals("model")) == 5 + expected[0][0].cost
        assert ledger.prune(NOON - 10.5 * DAY) == 1
        assert sum(total.cost for total in ledger.totals("model")) == 5 + expected[0][0].cost
        assert ledger.spent(budgets[2], NOON).spent == min(spent[2].spent + 5, 9 * 10**18)
        assert problems(ledger) == []


@pytest.mark.sampled(1)
def test_a_service_removes_what_is_older_than_it_keeps(full: Any) -> None:
    ledger = full.make(LATER, keep=110 * DAY)
    with closing(ledger):
        maintenance = rollups.Maintenance(ledger, 110 * DAY)
        maintenance.run(LATER)
        assert 0 < len(ledger.rows(limit=10_000)) < 1500
        assert ledger.totals()[0].calls == 1500


# -- the secret that signs ids ---------------------------------------------------------------------


def test_all_services_of_a_ledger_have_one_secret_however_they_begin(backend: Any) -> None:
    made = [backend.make() for _ in range(4)]
    found: list[bytes] = []
    begin = threading.Barrier(len(made))

    def ask(ledger: Any) -> None:
        begin.wait(60)
        found.append(ledger.objects().secret())

    threads = [threading.Thread(target=ask, args=(each,)) for each in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4 and len({*found}) == 1 and len(found[0]) == 32
    assert backend.make().objects().secret() == found[0]
    assert made[0].objects().of("", "") and not made[0].objects().of("openai", "")


# -- several budgets -------------------------------------------------------------------------------


def test_a_call_counts_in_all_budgets_of_its_key_or_in_none(backend: Any) -> None:
    team = Budget("all", 1000, "month", members=("web", "app"))
    web = Budget("web", 500, "day", also=(team,))
    app = Budget("app", 900, "day", also=(team,))
    with closing(backend.make(BEFORE)) as ledger:
        ledger.settle(settled("before", 100))  # of a member, before the budget was there
        first = ledger.reserve(web, 300, call_id="a", at=NOON)
        assert ledger.spent(team, NOON) == (100, 300)
        with pytest.raises(BudgetExceeded, match="the budget 'all' of"):
            ledger.reserve(app, 700, call_id="b", at=NOON)
        assert (ledger.spent(app, NOON), ledger.spent(team, NOON)) == ((0, 0), (100, 300))
        with pytest.raises(BudgetExceeded, match="the budget of"):
            ledger.top_up(first, 150, at=NOON)
        assert (ledger.spent(web, NOON), ledger.spent(team, NOON)) == ((100, 300), (100, 300))
        more = ledger.top_up(first, 50, at=NOON)
        ledger.settle(settled("a", 320), more)
        ledger.settle(settled("a", 320), more)
        assert (ledger.spent(web, NOON), ledger.spent(team, NOON)) == ((420, 0), (420, 0))
        second = ledger.reserve(app, 580, call_id="c", at=NOON)
        ledger.settle(settled("c", 580, caller="app"), second)
        with pytest.raises(BudgetExceeded):
            ledger.reserve(web, 1, call_id="d", at=NOON)
        assert problems(ledger) == []


def test_a_cheaper_model_does_not_lift_the_limit_of_another_budget(backend: Any) -> None:
    team = Budget("all", 1000, members=("web",))
    own = Budget("web", 100, then="cheap", also=(team,))
    with closing(backend.make(BEFORE)) as ledger:
        with pytest.raises(BudgetExceeded) as error:
            ledger.reserve(own, 200, call_id="a", at=NOON)
        assert error.value.then == "cheap"
        assert ledger.reserve(own, 200, call_id="a", at=NOON, over=True).over
        with pytest.raises(BudgetExceeded) as error:
            ledger.reserve(own, 900, call_id="b", at=NOON, over=True)
        assert error.value.then == "reject"


def test_shared_budgets_pass_through_the_spool(backend: Any) -> None:
    team = Budget("all", 1000, members=("web", "app"))
    own = Budget("web", 500, also=(team,))
    with closing(backend.make(BEFORE)) as ledger:
        hold = ledger.reserve(own, 300, call_id="a", at=NOON)
        ledger.defer(settled("a", 20), hold)
        ledger.drain(last=True)
        assert [ledger.spent(each, NOON) for each in own.all] == [(20, 0), (20, 0)]


def test_a_budget_that_warns_is_to_be_logged_once_an_hour(backend: Any) -> None:
    warns = Budget("web", 10, "day", "warn")
    with (
        closing(backend.make(BEFORE)) as one,
        closing(backend.make(BEFORE)) as two,
    ):
        found = [
            bool(ledger.reserve(warns, 10, call_id=str(n), at=NOON + 600 * n).warn)
            for n, ledger in enumerate([one, two, one, two, one, two, one, two, one])
        ]
    assert found == [False, True, False, False, False, False, False, True, False]


# -- an operator's changes -------------------------------------------------------------------------


def test_an_operator_raises_and_resets_a_budget_and_the_calls_stay(backend: Any) -> None:
    daily = Budget("web", 1000, "day")
    with closing(backend.make(BEFORE)) as ledger:
        ledger.settle(settled("a", 900), ledger.reserve(daily, 900, call_id="a", at=NOON))
        with pytest.raises(BudgetExceeded):
            ledger.reserve(daily, 101, call_id="b", at=NOON)
        ledger.adjust(daily, 50, NOON)
        hold = ledger.reserve(daily, 150, call_id="b", at=NOON)
        with pytest.raises(BudgetExceeded, match=r"of 0\.00000000105 USD per day has 0 USD left"):
            ledger.reserve(daily, 1, call_id="c", at=NOON)
        ledger.adjust(daily, None, NOON)
        [state] = ledger.states([daily], NOON)
        assert (state.limit, state.spent, state.held, state.left) == (1050, 0, 150, 900)
        ledger.settle(settled("b", 150), hold)
        assert ledger.spent(daily, NOON) == (150, 0)
        assert ledger.totals()[0].cost == 1050
        [state] = ledger.states([daily], NOON + DAY)
        assert (state.limit, state.spent) == (1000, 0)
        assert [(each.action, each.pico) for each in ledger.adjustments()] in (
            [("reset", 900), ("raise", 50)],
            [("raise", 50), ("reset", 900)],
        )
        assert problems(ledger) == []


def test_a_reset_forgives_what_lost_calls_have_spent(backend: Any) -> None:
    """What is shown as spent, also where no service has looked for such calls."""
    daily = Budget("web", 1000, "day")
    with closing(backend.make(BEFORE)) as ledger:
        ledger.reserve(daily, 900, call_id="killed", at=NOON, lease=60)
        assert ledger.spent(daily, NOON + 60) == (900, 0)
        assert ledger.adjust(daily, None, NOON + 60).pico == 900
        assert ledger.spent(daily, NOON + 60) == (0, 0)
        assert [record.call.status for record in ledger.rows()] == ["lost"]


# -- time zones ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Apia", "America/Havana", "Africa/Cairo"])  # fmt: skip
def test_a_period_of_a_zone_ends_where_the_next_begins(name: str) -> None:
    zone, chance = time_zone(name), random.Random(name)
    for period in ("day", "month"):
        budget, when = Budget("web", 1, period), NOON + chance.random() * DAY
        for _ in range(400 if period == "day" else 30):
            end = budget.resets(when, zone)
            assert end is not None and budget.start(when, zone) <= when < end
            assert end % 900 == 0
            assert budget.key(end - 0.001, zone) == budget.key(when, zone) != budget.key(end, zone)
            assert budget.start(end, zone) == end
            when = end


def test_budgets_and_reports_have_the_days_of_the_ledgers_zone(backend: Any) -> None:
    with closing(backend.make()) as ledger:
        for hour in range(48):
            ledger.settle(record(call(f"{hour:06}", at=NOON + 3600 * hour, cost=1)))
    utc, there = backend.make(LATER), backend.make(LATER, timezone="Asia/Kolkata")
    with closing(utc), closing(there):
        found = {total.key[0]: total.calls for total in there.totals("day")}
        assert found == {"2026-11-23": 7, "2026-11-24": 24, "2026-11-25": 17}
        assert {total.key[0]: total.calls for total in utc.totals("day")} == {
            "2026-11-23": 12, "2026-11-24": 24, "2026-11-25": 12}  # fmt: skip
        assert there.totals("hour")[0].key == ("2026-11-23T17:00+05:30",)
        daily = Budget("web", 10**6, "day")
        assert there.spent(daily, NOON + DAY).spent == 24
        assert utc.spent(daily, NOON + DAY / 2).spent == 24
        there.reserve(daily, 1, call_id="a", at=NOON + 6 * 3600)
        assert there.spent(daily, NOON + 6 * 3600) == (7, 1)
        assert there.totals("day", zone=utc.zone) == utc.totals("day")


# -- crashes ---------------------------------------------------------------------------------------


def work(path: Path, seed: int, rounds: int, killed: bool) -> None:
    """Do random things; if it is to be *killed*, at a random statement."""
    chance, pruning.CHUNK = random.Random(seed), 5
    last, left = chance.randrange(rounds) if killed else rounds, chance.randrange(1, 120)

    def count(frame: object, event: str, called: Any) -> None:
        nonlocal left
        if event in ("c_call", "c_return") and getattr(called, "__name__", "") == "execute":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    ledger = at(path, NOON + DAY, busy=60)
    team = Budget("all", 10**9, "month", members=("a", "b"))
    budgets = [Budget("a", 10**6, "day", also=(team,)), Budget("b", 10**6, "month", also=(team,))]
    for n in range(rounds):
        if n == last:  # not before: to count takes longer than what is done
            sys.setprofile(count)
        budget, id = chance.choice(budgets), f"{seed}.{n}"
        when = NOON - chance.randrange(12) * DAY + chance.randrange(3600)
        with suppress(BudgetExceeded):
            hold = ledger.reserve(budget, 1000, call_id=id, at=when, lease=10**9)
            ledger.settle(settled(id, chance.randrange(1000), at=when, caller=budget.caller), hold)
        if chance.random() < 0.1:
            ledger.adjust(chance.choice([budget, team]), chance.choice([None, 50]), when)
        if chance.random() < 0.1:
            rollups.roll(ledger, NOON + DAY)
        if chance.random() < 0.1:
            ledger.prune(NOON - chance.randrange(6, 12) * DAY)
        if chance.random() < 0.2:
            ledger.totals("model")
    sys.setprofile(None)
    ledger.close()


def _all(ledger: Ledger, by: str) -> Total:
    return summed(ledger.totals(by))


@pytest.mark.slow
def test_sums_never_drift_from_their_rows_when_writers_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HOME)
    path, chance = tmp_path / "l.db", random.Random(7)
    for turn in range(20 if LONG else 4):
        crew = [
            fresh.Process(target=work, args=(path, chance.randrange(2**40), 60, n < 2))
            for n in range(3)
        ]
        for each in crew:
            each.start()
        for each in crew:
            each.join()
        assert {each.exitcode for each in crew} <= {0, -signal.SIGKILL}
        with closing(at(path, NOON + DAY)) as ledger:
            assert problems(ledger) == [], turn
            whole = {by: _all(ledger, by).cost for by in ("caller", "model", "day", "error")}
            assert len(set(whole.values())) == 1
            with closing(sqlite3.connect(path)) as sql:
                [(spent,)] = sql.execute(
                    "SELECT sum(spent) FROM budgets WHERE caller IN ('a', 'b')"
                )
                gone = sql.execute("SELECT count(*) FROM rolled WHERE state = 2").fetchone()[0]
            assert whole["caller"] == spent
    assert gone


def test_a_copy_of_a_live_ledger_is_whole(path: Path, tmp_path: Path) -> None:
    with closing(at(path, LATER)) as ledger:
        ledger.totals("model")
        ledger.backup(str(tmp_path / "copy.db"))
        assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
        shutil.copy(tmp_path / "copy.db", tmp_path / "alone.db")
        with closing(at(tmp_path / "alone.db", LATER)) as copy:
            assert copy.totals("model", "day") == ledger.totals("model", "day")
            assert problems(copy) == []


@pytest.fixture(autouse=True)
def _chunk() -> Iterator[None]:
    before = pruning.CHUNK
    yield
    pruning.CHUNK = before
