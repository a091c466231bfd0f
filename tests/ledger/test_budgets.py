"""Tests that budgets stay exact, also when threads race or processes crash."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from books import opened
from support import eventually, how_many

from infermux.errors import BudgetExceeded
from infermux.ledger import MAX_PICO, Budget, Hold, LedgerUnavailable, Record
from infermux.ledger.sql import Ledger
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.call import Attempt, Call
from infermux.protocol import InferRequest
from infermux.routing.accounting import record
from infermux.types import Caller, Target, Usage

NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z
DAY = 86_400.0
DAILY = Budget("web", 1000, "day")
fresh = multiprocessing.get_context("spawn")
HOME = Path(__file__).parents[
    __name__.count(".")
]  # where a fresh process finds this module, whatever pytest calls it


def settled(id: str, *costs: int | None, at: float = NOON, caller: str = "web") -> Record:
    call = Call(
        InferRequest("m"), Caller(caller), id=id, start_ns=int(at) * 10**9, started=0.0, ended=1.0
    )
    call.attempts = [Attempt(Target("p", "m"), 0.0, usage=Usage(1, 1), cost=cost) for cost in costs]
    return record(call)


def test_a_reservation_tells_what_it_leaves(ledger: Ledger) -> None:
    """Where it does, a caller hears of its budget without another look at it."""
    team = Budget("crew", 70, "month", members=("web", "app"))
    both = replace(DAILY, also=(team,))
    for n, budget in enumerate((DAILY, DAILY, both, both)):
        hold = ledger.reserve(budget, 10, call_id=f"{n}", at=NOON)
        told = tightest(ledger, budget)
        assert hold.known == told or (hold.known is None and (n in (0, 2) or budget is both))
        ledger.settle(settled(f"{n}", 4), hold)
        ledger.adjust(DAILY, 100, NOON)
    more = ledger.top_up(ledger.reserve(DAILY, 10, call_id="t", at=NOON), 10, at=NOON)
    assert more.known in (None, tightest(ledger, DAILY))


def tightest(ledger: Ledger, budget: Budget) -> tuple[Budget, int, int]:
    state = min(ledger.states(budget.all, NOON), key=lambda each: each.left)
    return state.budget, state.limit, state.left


def test_a_budget_is_raised_as_often_as_an_operator_likes(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.adjust(DAILY, 8 * 10**18, NOON)
    [state] = ledger.states([DAILY], NOON)
    assert state.limit >= 9 * 10**18
    ledger.settle(settled("a", 4), ledger.reserve(DAILY, 10, call_id="a", at=NOON))


def test_a_call_of_a_shared_budget_counts_in_the_one_that_its_key_had(ledger: Ledger) -> None:
    ledger.settle(settled("a", 4), ledger.reserve(DAILY, 10, call_id="a", at=NOON))
    team = Budget("crew", 1000, "day", members=("web",))
    for each in (team, replace(DAILY, user="u")):
        ledger.settle(settled(each.owner, 5), ledger.reserve(each, 9, call_id=each.owner, at=NOON))
    assert (ledger.spent(DAILY, NOON), ledger.spent(team, NOON)) == ((14, 0), (9, 0))


def test_holds_never_sum_up_to_more_than_a_database_can_count(ledger: Ledger) -> None:
    warns = Budget("web", 0, "total", "warn")
    with pytest.raises(BudgetExceeded):
        for n in range(100):
            ledger.reserve(warns, MAX_PICO, call_id=f"{n}", at=NOON)
    [state] = ledger.states([warns], NOON)
    assert state.held == 90 * MAX_PICO


# -- periods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "key", "start", "reset"),
    [
        ("day", "2026-11-23", NOON - DAY / 2, NOON + DAY / 2),
        ("month", "2026-11", NOON - DAY * 22.5, NOON + DAY * 7.5),
        ("total", "total", 0.0, None),
    ],
)
def test_a_period_has_a_name_a_beginning_and_an_end(
    period: str, key: str, start: float, reset: float | None
) -> None:
    budget = Budget("web", 1, period)
    assert (budget.key(NOON), budget.start(NOON), budget.resets(NOON)) == (key, start, reset)
    if reset is not None:
        assert budget.key(reset - 0.001) == key != budget.key(reset)
        assert budget.start(reset) == reset


def test_a_month_ends_where_the_next_begins_in_every_month() -> None:
    budget, at = Budget("web", 1), NOON
    for number in range(60):
        after = budget.resets(at)
        assert after is not None
        year, month = divmod(11 + number, 12)
        assert budget.key(after) == f"{2026 + year}-{month + 1:02}"
        at = after


@pytest.mark.parametrize(("period", "limit"), [("week", 1), ("day", -1)])
def test_a_budget_that_cannot_be_is_refused(period: str, limit: int) -> None:
    with pytest.raises(ValueError, match="no such budget"):
        Budget("web", limit, period)


def test_a_caller_has_one_budget_of_its_own() -> None:
    """Its calls would be spent twice."""
    with pytest.raises(ValueError, match="one budget of each caller"):
        Budget("web", 100, "day", also=(Budget("web", 1000, "month"),))
    shared = Budget("web", 1000, "month", members=("web", "app"))  # of the same name
    assert Budget("web", 100, "day", also=(shared,)).all[1] is shared


# -- what is admitted ------------------------------------------------------------------------------


def test_what_is_held_and_spent_never_passes_the_limit(ledger: Ledger) -> None:
    first = ledger.reserve(DAILY, 600, call_id="a", at=NOON)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(DAILY, 401, call_id="b", at=NOON)
    ledger.reserve(DAILY, 400, call_id="c", at=NOON)
    assert ledger.spent(DAILY, NOON) == (0, 1000)
    assert ledger.settle(settled("a", 100), first)
    assert ledger.spent(DAILY, NOON) == (100, 400)
    assert ledger.reserve(DAILY, 500, call_id="d", at=NOON).over is False


def test_a_spent_budget_says_when_it_starts_afresh(ledger: Ledger) -> None:
    with pytest.raises(
        BudgetExceeded, match=r"per day has 0.000000001 USD left.* resets at 2026-11-24T00:00:00Z"
    ) as error:
        ledger.reserve(DAILY, 2_000_000, call_id="a", at=NOON)
    assert error.value.retry_after == DAY / 2
    with pytest.raises(BudgetExceeded, match="in total has 0 USD left") as error:
        ledger.reserve(Budget("web", 0, "total"), 1, call_id="a", at=NOON)
    assert error.value.retry_after is None


def test_a_free_call_passes_a_budget_that_is_used_up(ledger: Ledger) -> None:
    ledger.reserve(DAILY, 1000, call_id="a", at=NOON)
    assert ledger.reserve(DAILY, 0, call_id="b", at=NOON).over is False


def test_a_budget_that_warns_admits_and_says_so(ledger: Ledger) -> None:
    warns = Budget("web", 1000, "day", "warn")
    assert ledger.reserve(warns, 1000, call_id="a", at=NOON).over is False
    assert ledger.reserve(warns, 5, call_id="b", at=NOON).over is True
    assert ledger.reserve(DAILY, 5, call_id="c", at=NOON, over=True).over is True
    assert ledger.spent(DAILY, NOON) == (0, 1010)


def test_callers_and_periods_do_not_share_a_budget(ledger: Ledger) -> None:
    for caller in ("web", "Web", "web ", "' OR 1=1 --", ""):
        ledger.reserve(Budget(caller, 10, "day"), 10, call_id=f"day {caller}", at=NOON)
    for period in ("month", "total"):
        ledger.reserve(Budget("web", 10, period), 10, call_id=period, at=NOON)


def test_amounts_beyond_reason_do_not_overflow(ledger: Ledger) -> None:
    warns = Budget("web", 10**30, "total", "warn")
    for n in range(95):
        try:
            hold = ledger.reserve(warns, 10**40, call_id=str(n), at=NOON)
        except BudgetExceeded:
            hold = None
        assert ledger.settle(settled(str(n), 10**40), hold)
    assert ledger.spent(warns, NOON) == (2**63 - 1, 0)
    assert ledger.totals()[0].cost == 95 * MAX_PICO
    with pytest.raises(ValueError, match="cannot be held"):
        ledger.reserve(warns, -1, call_id="negative", at=NOON)


def test_a_call_has_one_hold(ledger: Ledger) -> None:
    ledger.reserve(DAILY, 1, call_id="a", at=NOON)
    with pytest.raises(ValueError, match="has a hold already"):
        ledger.reserve(DAILY, 1, call_id="a", at=NOON)
    assert ledger.spent(DAILY, NOON) == (0, 1)


# -- leases and failover ---------------------------------------------------------------------------


def test_what_a_killed_worker_held_is_spent_when_its_lease_ends(ledger: Ledger) -> None:
    ledger.reserve(DAILY, 1000, call_id="killed", at=NOON, lease=60)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(DAILY, 1, call_id="a", at=NOON + 59)
    assert ledger.spent(DAILY, NOON + 59) == (0, 1000)
    assert ledger.spent(DAILY, NOON + 60) == (1000, 0)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(DAILY, 1, call_id="b", at=NOON + 60)
    assert ledger.spent(DAILY, NOON + 60) == (1000, 0)
    [record] = ledger.rows()
    assert (record.call.id, record.call.status, record.call.cost) == ("killed", "lost", 1000)
    assert (record.call.assumed, record.attempts[0].assumed) == (1000, 1)
    assert ledger.totals()[0].assumed == 1000


def test_a_call_that_outlives_its_lease_is_counted_all_the_same(ledger: Ledger) -> None:
    late = ledger.reserve(DAILY, 900, call_id="late", at=NOON, lease=60)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(DAILY, 1000, call_id="other", at=NOON + 60)
    assert ledger.spent(DAILY, NOON + 60) == (900, 0)
    assert ledger.settle(settled("late", 700), late)
    assert ledger.spent(DAILY, NOON + 60) == (700, 0)
    [record] = ledger.rows()
    assert (record.call.status, record.call.cost) == ("ok", 700)
    assert ledger.totals()[0].cost == 700


def test_a_free_call_that_outlives_its_lease_is_recorded(ledger: Ledger) -> None:
    late = ledger.reserve(DAILY, 0, call_id="late", at=NOON, lease=60)
    ledger.lose(NOON + 60)
    assert [record.call.status for record in ledger.rows()] == ["lost"]
    assert ledger.settle(settled("late", 0), late)
    assert [record.call.status for record in ledger.rows()] == ["ok"]


def test_a_failover_tops_up_or_leaves_the_hold_as_it_was(ledger: Ledger) -> None:
    hold = ledger.reserve(DAILY, 600, call_id="a", at=NOON, lease=60)
    with pytest.raises(BudgetExceeded):
        ledger.top_up(hold, 401, at=NOON)
    assert ledger.spent(DAILY, NOON) == (0, 600)
    more = ledger.top_up(hold, 400, at=NOON + 50, lease=60)
    assert (more.pico, more.over) == (1000, False)
    assert ledger.spent(DAILY, NOON + 100) == (0, 1000)  # the lease was renewed
    assert ledger.settle(settled("a", 1000), more)
    assert ledger.spent(DAILY, NOON) == (1000, 0)


def test_a_top_up_takes_anew_what_the_lease_has_freed(ledger: Ledger) -> None:
    hold = ledger.reserve(DAILY, 600, call_id="a", at=NOON, lease=60)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(DAILY, 500, call_id="b", at=NOON + 60)
    other = ledger.reserve(DAILY, 400, call_id="b", at=NOON + 60, lease=1e6)
    with pytest.raises(BudgetExceeded):
        ledger.top_up(hold, 1, at=NOON + 61)
    assert ledger.spent(DAILY, NOON + 61) == (600, 400)
    ledger.settle(settled("b", 0), other)
    more = ledger.top_up(hold, 1, at=NOON + 62)
    assert (more.pico, ledger.spent(DAILY, NOON + 62)) == (601, (0, 601))
    assert ledger.settle(settled("a", 300), more)
    assert ledger.spent(DAILY, NOON + 62) == (300, 0)


def test_an_old_hold_settles_what_was_topped_up(ledger: Ledger) -> None:
    hold = ledger.reserve(DAILY, 100, call_id="a", at=NOON)
    ledger.top_up(hold, 200, at=NOON)
    ledger.settle(settled("a", 250), hold)
    assert ledger.spent(DAILY, NOON) == (250, 0)


# -- settling --------------------------------------------------------------------------------------


def test_a_call_is_settled_once(ledger: Ledger) -> None:
    hold = ledger.reserve(DAILY, 500, call_id="a", at=NOON)
    done = [
        ledger.settle(settled("a", 300), hold),
        ledger.settle(settled("a", 300), hold),
        ledger.settle(settled("a", 300)),
    ]
    assert done == [True, False, False]
    assert ledger.spent(DAILY, NOON) == (300, 0)
    assert [total.cost for total in ledger.totals()] == [300]


def test_a_period_is_that_of_the_reservation(ledger: Ledger) -> None:
    before, after = NOON + DAY / 2 - 1, NOON + DAY / 2 + 1
    hold = ledger.reserve(DAILY, 500, call_id="a", at=before)
    ledger.reserve(DAILY, 1000, call_id="b", at=after)
    ledger.settle(settled("a", 300, at=after), hold)
    assert ledger.spent(DAILY, before) == (300, 0)
    assert ledger.spent(DAILY, after) == (0, 1000)


def test_a_hold_that_its_owner_has_lost_is_settled_in_its_period(ledger: Ledger) -> None:
    before, after = NOON + DAY / 2 - 1, NOON + DAY / 2 + 1
    ledger.reserve(DAILY, 500, call_id="a", at=before)
    ledger.settle(settled("a", 300, at=after))
    assert [ledger.spent(DAILY, at).held for at in (before, after)] == [0, 0]
    assert ledger.spent(DAILY, before).spent == 300


@pytest.mark.parametrize("lost", [False, True])
def test_who_does_not_know_what_is_held_settles_it_all_the_same(ledger: Ledger, lost: bool) -> None:
    """As a background response, which another worker may read."""
    budget = Budget("web", 1000, also=(Budget("team", 1000, members=("web",)),))
    about = json.dumps([int(NOON) * 10**9, "", "web", "{}", "library", "m", "m", "p", ""])
    ledger.reserve(budget, 900, call_id="r", at=NOON + 0.5, lease=60, about=about)
    if lost:
        ledger.lose(NOON + 100)
        assert ledger.spent(budget, NOON) == (900, 0)
    ledger.settle(settled("r", 100, at=NOON), Hold("r", budget, 0, float(int(NOON))))
    for each in budget.all:
        assert ledger.spent(each, NOON) == (100, 0)


def test_more_than_was_held_is_recorded_as_it_is(ledger: Ledger) -> None:
    hold = ledger.reserve(DAILY, 500, call_id="a", at=NOON)
    ledger.settle(settled("a", 1500), hold)
    assert ledger.spent(DAILY, NOON) == (1500, 0)
    with pytest.raises(BudgetExceeded, match="has 0 USD left"):
        ledger.reserve(DAILY, 1, call_id="b", at=NOON)


def test_an_unpriced_call_frees_its_hold(ledger: Ledger) -> None:
    ledger.settle(settled("a", None), ledger.reserve(DAILY, 500, call_id="a", at=NOON))
    assert ledger.spent(DAILY, NOON) == (0, 0)
    assert (ledger.totals()[0].cost, ledger.totals()[0].unpriced) == (0, 1)


def test_a_new_budget_begins_with_what_its_period_has_cost(ledger: Ledger) -> None:
    for n, (at, caller) in enumerate(
        [(NOON - DAY, "web"), (NOON, "web"), (NOON, "other"), (NOON - 40 * DAY, "web")]
    ):
        ledger.settle(settled(str(n), 10 ** (n + 1), at=at, caller=caller))
    limits = {"day": 100, "month": 110, "total": 10110}
    for period, spent in limits.items():
        budget = Budget("web", spent + 5, period)
        assert ledger.spent(budget, NOON) == (spent, 0)
        with pytest.raises(BudgetExceeded):
            ledger.reserve(budget, 6, call_id=period, at=NOON)
        ledger.reserve(budget, 5, call_id=period, at=NOON)
    ledger.settle(settled("without a hold", 7))
    assert [ledger.spent(Budget("web", 1, period), NOON).spent for period in limits] == [
        107,
        117,
        10117,
    ]


def test_a_clock_that_steps_resets_nothing_twice(ledger: Ledger) -> None:
    ledger.settle(settled("a", 700), ledger.reserve(DAILY, 700, call_id="a", at=NOON))
    ledger.settle(
        settled("b", 800, at=NOON + DAY), ledger.reserve(DAILY, 800, call_id="b", at=NOON + DAY)
    )
    with pytest.raises(BudgetExceeded):
        ledger.reserve(DAILY, 301, call_id="c", at=NOON)
    hold = ledger.reserve(DAILY, 300, call_id="c", at=NOON)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(DAILY, 201, call_id="d", at=NOON + DAY)
    ledger.settle(settled("c", 300, at=NOON - DAY), hold)
    assert [ledger.spent(DAILY, at) for at in (NOON - DAY, NOON, NOON + DAY)] == [
        (300, 0),
        (1000, 0),
        (800, 0),
    ]


TEAM = Budget("team", 2000, "day", members=("web", "app"))
MIXED = (
    Budget("web", 1000, "day", also=(TEAM,)),
    Budget("web", 3000, "month", "warn", also=(TEAM,)),
    Budget("web", 4000, "total", "cheap"),
    Budget("app", 800, "day", "cheap", also=(TEAM, Budget("all", 900, "month", members=("app",)))),
    Budget("web", 400, "day", user="u"),
    TEAM,
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_both_databases_answer_alike(emptied: Any, tmp_path: Path, seed: int) -> None:
    """Whatever the order of reservations, top-ups, settlements, lost calls and adjustments."""
    from infermux.ledger.postgres import PostgresLedger

    rng, now, held = random.Random(seed), NOON, dict[str, Hold]()
    emptied.fill(full=False)
    there = {"spool": tmp_path / "spool", "clock": lambda: now, "patient": True}
    ledgers = (
        SQLiteLedger(tmp_path / "l.db", busy=60, clock=lambda: now),
        PostgresLedger(emptied.database.service, **there),
    )

    def both(method: str, *values: Any, **options: Any) -> Any:
        found = []
        for ledger in ledgers:
            try:
                found.append(getattr(ledger, method)(*values, **options))
            except BudgetExceeded as error:
                found.append((error.message, error.left))
        assert found[0] == found[1], method
        return found[0]

    for n in range(60):
        now += rng.choice([0, 1, 300, 1000, 40_000])
        both("lose", now)
        budget, pico = rng.choice(MIXED), rng.choice([0, 1, 150, 400, 3000])
        id, hold = rng.choice([*held.items()] or [("", None)])
        kind = rng.choice(["reserve", "reserve", "top up", "settle", "settle", "adjust"])
        if kind == "adjust":
            both("adjust", budget, rng.choice([None, 500]), now)
        elif hold is None or kind == "reserve":
            caller = budget.members[0] if budget.members else budget.caller
            about = json.dumps([int(now) * 10**9, "", caller, "{}", "", "m", "m", "p", ""])
            given = {"lease": rng.choice([60, 900]), "over": n % 5 == 0, "about": about}
            found = both("reserve", budget, pico, call_id=f"{n}", at=now, **given)
            held |= {f"{n}": found} if isinstance(found, Hold) else {}
        elif kind == "top up":
            found = both("top_up", hold, pico, at=now, lease=600)
            held[id] = found if isinstance(found, Hold) else hold
        else:
            caller = hold.budget.members[0] if hold.budget.members else hold.budget.caller
            row = settled(id, rng.choice([None, pico]), at=hold.at, caller=caller)
            for _ in range(rng.choice([1, 1, 2])):
                both("settle", row, hold._replace(pico=hold.pico - n % 2))
            del held[id]
        for each in MIXED:
            both("states", [each], now), both("states", [each], now - DAY)
        both("rows")
        assert both("problems") == []
    for ledger in ledgers:
        ledger.close()


# -- many at once ----------------------------------------------------------------------------------


def patiently(work: Callable[[], Any]) -> Any:
    """Do *work* again while a busy machine keeps the database away: nothing counts twice."""
    for _ in range(600):
        try:
            return work()
        except LedgerUnavailable:
            time.sleep(0.1)
        except ValueError:  # the first attempt was heard after all
            return None
    raise AssertionError("the ledger stays away")


def hammer(place: tuple[str, str], worker: int, threads: int, rounds: int, results: Any) -> None:
    """Reserve 10 and settle 7, 8 or 9, as often as the budget admits it."""
    ledger, admitted, failures = opened(place, busy=60), [0] * threads, []
    limit = Budget("web", 20_000, "month")
    together = threading.Barrier(threads)

    def run(thread: int) -> None:
        try:
            together.wait()
            for n in range(rounds):
                id = f"{worker}.{thread}.{n}"
                try:
                    hold = patiently(lambda id=id: ledger.reserve(limit, 10, call_id=id, at=NOON))
                except BudgetExceeded:
                    continue
                cost = 7 + (worker + thread + n) % 3
                row = settled(id, cost)
                patiently(lambda row=row, hold=hold: ledger.settle(row, hold))
                admitted[thread] += cost
        except Exception as error:
            failures.append(repr(error))

    crew = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    ledger.close()
    results.put((sum(admitted), failures))


@pytest.mark.slow
def test_many_threads_of_many_processes_never_overspend(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 threads in each of 4 processes ask for more than there is: what is left at the end is less
    than one call.
    """
    monkeypatch.syspath_prepend(HOME)
    results, times = fresh.Queue(), (200 if lengthy(backend) else 12)
    crew = [
        fresh.Process(target=hammer, args=(backend.place, n, 64, times, results)) for n in range(4)
    ]
    for each in crew:
        each.start()
    found = [results.get(timeout=300) for _ in crew]
    for each in crew:
        each.join()
    assert [failures for _, failures in found] == [[], [], [], []]
    with closing(backend.make()) as ledger:
        spent = ledger.spent(Budget("web", 0), NOON)
        assert spent == (sum(cost for cost, _ in found), 0)
        assert 20_000 - 10 < spent.spent <= 20_000
        assert ledger.totals()[0].cost == spent.spent


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["plain", "twice", "several"])
@pytest.mark.parametrize("callers", [1, 4])
def test_calls_that_are_settled_together_are_all_there_once_and_paid(
    ledger: Ledger, kind: str, callers: int
) -> None:
    """More threads than one transaction takes jobs; one caller has a budget, the others have none.

    Unless "plain", two threads settle each call; if "several", some calls have two attempts.
    """
    threads, rounds, failures = 160, 5, []
    watched, first = Budget("c0", 10**9, "month"), [0] * threads
    ledger.settle(
        settled("first", 1, caller="c0"), ledger.reserve(watched, 1, call_id="first", at=NOON)
    )
    together, share = threading.Barrier(threads), 1 if kind == "plain" else 2

    def run(thread: int) -> None:
        try:
            for n in range(rounds):
                together.wait()
                made = thread // share
                attempts = 1 + made % 2 if kind == "several" else 1
                caller = f"c{made % callers}" if callers > 1 else "c0" if made == 0 else "other"
                first[thread] += ledger.settle(
                    settled(f"{made}.{n}", *[100 + made] * attempts, caller=caller)
                )
                costs[thread] = (caller, (100 + made) * attempts)
        except Exception as error:
            failures.append(repr(error))
            together.abort()

    costs: list[tuple[str, int]] = [("", 0)] * threads
    crew = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert failures == []
    assert [sum(first[n : n + share]) for n in range(0, threads, share)] == [rounds] * (
        threads // share
    )
    paid = {"c0": 1}
    for caller, cost in costs[::share]:
        paid[caller] = paid.get(caller, 0) + rounds * cost
    assert ledger.spent(watched, NOON) == (paid["c0"], 0)
    assert {total.key[0]: total.cost for total in ledger.totals("caller")} == paid
    assert {total.key[0]: total.cost for total in ledger.totals("model")} == {
        "m": sum(paid.values())
    }
    assert len(ledger.rows(limit=10_000)) == 1 + rounds * threads // share


def test_those_who_wait_for_a_writer_that_does_not_end_are_told(tmp_path: Path) -> None:
    """None waits without end, none is written without being told so, and the next writes again."""
    with (
        closing(SQLiteLedger(tmp_path / "l.db", busy=0.1)) as ledger,
        closing(
            sqlite3.connect(tmp_path / "l.db", isolation_level=None, check_same_thread=False)
        ) as other,
    ):
        ledger.settle(settled("first", 1))
        written, refused = ["first"], []

        def run(n: int) -> None:
            try:
                ledger.settle(settled(str(n), 1))
                written.append(str(n))
            except LedgerUnavailable as error:
                refused.append(error.reason)

        for turn in range(3):
            other.execute("BEGIN IMMEDIATE")
            crew = [threading.Thread(target=run, args=(100 * turn + n,)) for n in range(20)]
            for each in crew:
                each.start()
            for each in crew:
                each.join(60)
            assert not any(each.is_alive() for each in crew)
            other.execute("ROLLBACK")
            ledger.settle(settled(f"after {turn}", 1))
            written.append(f"after {turn}")
        assert refused
        assert len(written) + len(refused) == 1 + 3 * 21
        assert sorted(row.call.id for row in ledger.rows(limit=100)) == sorted(written)


class Interrupting:
    """A record that ends the thread that writes it."""

    @property
    def call(self) -> None:
        raise SystemExit


def test_an_interrupted_write_is_reported_to_the_calls_that_it_would_have_written(
    tmp_path: Path,
) -> None:
    with (
        closing(SQLiteLedger(tmp_path / "l.db")) as ledger,
        closing(sqlite3.connect(tmp_path / "l.db", isolation_level=None)) as other,
    ):
        ledger.settle(settled("first", 1))
        other.execute("BEGIN IMMEDIATE")
        outcomes: dict[int, str] = {}

        def run(n: int, record: Any) -> None:
            try:
                outcomes[n] = str(ledger.settle(record))
            except LedgerUnavailable as error:
                outcomes[n] = error.reason
            except SystemExit:
                outcomes[n] = "ended"

        crew, group = [], ledger._process.group
        for n, each in enumerate([settled("a", 1), Interrupting(), settled("b", 1)]):
            crew.append(threading.Thread(target=run, args=(n, each)))
            crew[-1].start()
            eventually(lambda: group._writing.locked() and len(group._waiting) == len(crew) - 1)
        other.execute("ROLLBACK")
        for thread in crew:
            thread.join(60)
        assert outcomes == {0: "True", 1: "ended", 2: "the write was interrupted"}
        ledger.settle(settled("last", 1))
        assert {row.call.id for row in ledger.rows()} == {"first", "a", "last"}


# -- crashes ---------------------------------------------------------------------------------------


def lengthy(backend: Any) -> bool:
    """Return whether it is CI's long form; PostgreSQL takes ten times as long."""
    return backend.name == "sqlite" and os.environ.get("CI") == "true"


LEDGER = os.path.join("infermux", "ledger")
CALLS_OF_ONE = 300  # calls and returns in the ledger of about one operation


def work(place: tuple[str, str], seed: int, operations: int, killed: bool, notes: Path) -> None:
    """Do random operations; if it is to be *killed*, one of them ends at a random call or return in
    the ledger, and the process with it. Notes what it was told is settled.
    """
    chance = random.Random(seed)
    ledger = opened(place, busy=60, clock=lambda: NOON)
    last = chance.randrange(operations) if killed else operations
    left = chance.randrange(1, CALLS_OF_ONE)

    def count(frame: Any, event: str, called: Any) -> None:
        nonlocal left
        if LEDGER in frame.f_code.co_filename:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    note = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for n in range(operations):
        if n == last:  # not before: to count takes longer than the operation
            sys.setprofile(count)
        one_call(ledger, chance, f"{seed}.{n}", note)
    sys.setprofile(None)
    ledger.close()


def one_call(ledger: Ledger, chance: random.Random, id: str, note: int) -> None:
    caller = chance.choice(["a", "b", "c"])
    at = NOON + chance.choice([0.0, 0.0, DAY, -DAY, 31 * DAY])  # a clock that steps
    budget = Budget(caller, 10**7, {"a": "day", "b": "month", "c": "total"}[caller])
    hold: Hold | None = None
    costs = [
        chance.choice([None, 0, chance.randrange(1000)]) for _ in range(chance.randrange(1, 4))
    ]
    try:
        hold = patiently(lambda: ledger.reserve(budget, 1000, call_id=id, at=at, lease=60))
        if hold is not None and len(costs) > 1:
            more = 1000 * (len(costs) - 1)
            hold = patiently(lambda: ledger.top_up(hold, more, at=at, lease=60))
    except BudgetExceeded:
        if hold is None:
            return
        costs = costs[:1]
    if chance.random() < 0.05:
        return  # abandoned: only its lease frees what it holds
    result = settled(id, *costs, at=at, caller=caller)
    for _ in range(chance.choice([1, 1, 1, 2])):
        patiently(lambda: ledger.settle(result, hold))
    os.write(note, f"{id} {sum(cost or 0 for cost in costs)}\n".encode())


@pytest.mark.slow
def test_nothing_is_lost_or_counted_twice_when_writers_are_killed(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts = calls = budgets, to the pico-dollar, and what a writer was told is settled is
    there.
    """
    monkeypatch.syspath_prepend(HOME)
    rounds, calls = how_many(3, 5, 5), how_many(60, 150, 250)
    if lengthy(backend):
        rounds, calls = 18, 850
    notes, chance = tmp_path / "notes", random.Random(5)
    kills = 0
    for _ in range(rounds):
        crew = [
            fresh.Process(
                target=work, args=(backend.place, chance.randrange(2**40), calls, n < 3, notes)
            )
            for n in range(4)
        ]
        for each in crew:
            each.start()
        for each in crew:
            each.join()
        kills += sum(each.exitcode == -signal.SIGKILL for each in crew)
        assert {each.exitcode for each in crew} <= {0, -signal.SIGKILL}
    assert kills >= rounds
    told = dict(line.split() for line in notes.read_text().splitlines())
    check(backend, {id: int(cost) for id, cost in told.items()}, kills)
    [(operations,)] = backend.sql("SELECT 2 * count(*) + sum(attempts - 1) FROM calls")
    # reservations, top-ups and settlements
    assert int(operations) >= (10**5 if lengthy(backend) else 100)


def check(backend: Any, told: dict[str, int], kills: int) -> None:
    calls = {id: int(cost) for id, cost in backend.sql("SELECT id, coalesce(cost, 0) FROM calls")}
    sums = [
        int(backend.sql(f"SELECT sum({column}) FROM {table}")[0][0])
        for table, column in (("attempts", "cost"), ("calls", "cost"), ("budgets", "spent"))
    ]
    [(held, most)] = backend.sql(
        "SELECT sum(held), max(spent + held) FROM budgets WHERE call_id = ''"
        if backend.name == "sqlite"
        else "SELECT sum(held), max(spent + held) FROM budgets"
    )
    assert sums == [sum(calls.values())] * 3
    assert int(held) > 0 and int(most) <= 10**7
    assert calls.items() >= told.items()
    assert len(calls) - len(told) <= kills  # written, but killed before it could take note
    with closing(backend.make()) as ledger:
        assert ledger.problems() == []  # what is held is what calls hold
        for caller, period in (("a", "day"), ("b", "month"), ("c", "total")):
            for at in (NOON - DAY, NOON, NOON + DAY, NOON + 31 * DAY):
                assert min(ledger.spent(Budget(caller, 0, period), at)) >= 0
