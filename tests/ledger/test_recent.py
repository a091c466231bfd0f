"""Tests of what the status page reads: sums by short steps, and the search for calls."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from books import call

from infermux.errors import RequestError
from infermux.ledger import AttemptRow, CallRow, Record, summed
from infermux.ledger.recent import activity, search
from infermux.ledger.recent.activity import HOUR, OTHERS, SLOT
from infermux.ledger.sqlite import SQLiteLedger
from infermux.routing.accounting import record

NOON = 1_795_435_200  # 2026-11-23T12:00:00Z
DAY = 86_400


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path / "l.db")) as made:
        yield made


def rows(
    id: str,
    at: float,
    *targets: tuple[str, str, str],
    caller: str = "web",
    cost: int = 1,
    latency: int = 100,
    tags: str = "{}",
) -> Record:
    """Return a call and its attempts: (provider, model, error) each."""
    at_ns, last = round(at * 1e9), len(targets) - 1
    attempts = tuple(
        AttemptRow(at_ns, id, n, provider, model, model, 0, None, latency, 10, 5, 0, 0, 0, 0,
                   None if error else cost, 0, error, int(n == last))
        for n, (provider, model, error) in enumerate(targets)
    )  # fmt: skip
    provider, model, error = targets[-1] if targets else ("", "", "no_healthy_providers")
    call = CallRow(
        at_ns, id, id, caller, tags, "openai", "fast", model, model, provider, "priority",
        "502" if error else "ok", error, 10, 5, 0, 0, 0, 0, 0 if error else cost, "table", 0,
        latency, None, len(targets), 0,
    )  # fmt: skip
    return Record(call, attempts)


def crowd(ledger: SQLiteLedger, count: int, days: float, seed: int = 1) -> list[Record]:
    dice, made = random.Random(seed), []
    targets = [("a", "m"), ("b", "m"), ("b", "n")]
    for n in range(count):
        at = NOON - dice.random() * days * DAY
        tried = [
            (*dice.choice(targets), dice.choice(["", "", "upstream_error"]))
            for _ in range(dice.randrange(4))
        ]
        made.append(
            rows(f"{n:06x}", at, *tried, caller=dice.choice("xyz"), cost=dice.randrange(10**9),
                 latency=dice.randrange(5000), tags=dice.choice(["{}", '{"p":"1"}', '{"p":"1","q":"2"}']))
        )  # fmt: skip
        ledger.settle(made[-1])
    return made


def check(ledger: SQLiteLedger, span: int, step: int) -> None:
    """Compare the sums with those of the whole reports, and the rest with the rows."""
    since = NOON // step * step + step - span
    found = activity.report(ledger, since, NOON + 1, step, NOON, patience=60)
    assert not found.unfinished and [each.start for each in found.steps] == list(
        range(since, NOON + 1, step)
    )
    period = {"since": float(since), "until": float(NOON + 1)}
    whole = activity.merged(since, found.steps)
    assert [whole.total] == ledger.totals(**period)
    for mine, name in ((whole.callers, "caller"), (whole.errors, "error"), (whole.tags, "tag")):
        assert sorted(mine) == sorted(ledger.totals(name, **period))
    by_target = [each for each in activity.grouped(whole.targets, 0, 1) if each.key != ("", "")]
    expected = [
        each for each in ledger.totals("provider", "model", **period) if each.key != ("", "")
    ]
    assert sorted(by_target) == sorted(expected)
    records = ledger.rows(**period, limit=10_000)
    assert whole.failovers == sum(
        each.call.status == "ok" and each.attempts[0][3:5] != each.attempts[-1][3:5]
        for each in records if each.attempts
    )  # fmt: skip
    times = sorted(each.call.latency_ms for each in records if each.call.status == "ok")
    for percent in (50, 95):
        exact = times[-(-len(times) * percent // 100) - 1] if times else None
        told = activity.percentile(whole.latency, percent)
        assert told == exact or (exact and told and told <= exact <= told * 1.11 + 1)


SPANS = ((3600, 300), (DAY, 3600), pytest.param(7 * DAY, 10_800, marks=pytest.mark.slow))


@pytest.mark.parametrize(("span", "step"), SPANS)
def test_the_sums_are_those_of_the_calls_however_often_and_late_they_come(
    ledger: SQLiteLedger, span: int, step: int
) -> None:
    check(ledger, span, step)
    crowd(ledger, 150, span / DAY)
    check(ledger, span, step)
    check(ledger, span, step)
    crowd(ledger, 0, 1)
    for n in range(40):  # late ones, into steps with calls and into empty ones
        at = NOON - n * span / 40 - 1
        ledger.settle(rows(f"late{n}", at, ("late", "m", "")))
        if n % 10 == 0:
            check(ledger, span, step)
    check(ledger, span, step)


def test_a_short_view_does_not_spoil_the_hours_of_a_long_one(ledger: SQLiteLedger) -> None:
    for n in range(36):
        ledger.settle(rows(f"{n:06x}", NOON - 300 * n - 1, ("a", "m", "")))
    shifted = NOON + 1800
    activity.report(ledger, shifted - 3600, shifted, SLOT, shifted)
    check(ledger, DAY, HOUR)


def test_a_call_that_comes_while_a_step_is_summed_up_is_not_forgotten(
    ledger: SQLiteLedger,
) -> None:
    crowd(ledger, 60, 0.2)

    class Interrupted:
        zone = ledger.zone

        def __init__(self) -> None:
            self.left = 6

        def spooled(self) -> int:
            return 0

        def write(self, work):  # type: ignore[no-untyped-def]
            return ledger.write(work)

        def snapshot(self, work):  # type: ignore[no-untyped-def]
            found = ledger.snapshot(work)
            if self.left:
                self.left -= 1
                for n in range(4):
                    at = NOON - 1800 - self.left * 997 - n * 301
                    ledger.settle(rows(f"mid{self.left}-{n}", at, ("mid", "m", "")))
            return found

    activity.fill(Interrupted(), NOON - DAY, NOON)
    check(ledger, DAY, HOUR)


def test_threads_that_sum_up_at_once_agree(ledger: SQLiteLedger) -> None:
    crowd(ledger, 200, 0.5)
    threads = [threading.Thread(target=activity.keep_up, args=(ledger, NOON)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(ledger, DAY, HOUR)


def test_what_takes_too_long_is_left_out_and_said(ledger: SQLiteLedger) -> None:
    for n in range(40):
        ledger.settle(rows(f"{n:06x}", NOON - HOUR * n - 1, ("a", "m", "")))
    since = NOON - 7 * DAY
    found = activity.report(ledger, since, NOON + 1, 3 * HOUR, NOON, patience=-1)
    assert found.unfinished == 14 and activity.merged(0, found.steps).total.calls == 1
    activity.keep_up(ledger, NOON)
    assert not activity.report(ledger, since, NOON + 1, 3 * HOUR, NOON, patience=-1).unfinished
    asked: list[str] = []

    def noted(ask, query, values):  # type: ignore[no-untyped-def]
        asked.append(query)
        return ask(query, values)

    activity.report(ledger, since, NOON + 1, 3 * HOUR, NOON)
    ledger.snapshot(lambda ask: list(activity._missing(lambda *a: noted(ask, *a), since, NOON)))
    assert len(asked) < 60  # not one for each step of the week


def test_groups_are_bounded_and_old_steps_forgotten(ledger: SQLiteLedger, tmp_path: Path) -> None:
    for n in range(activity.MAX_GROUPS + 50):
        tried = ("a", f"m{n}", "" if n % 10 else "upstream_timeout")
        ledger.settle(rows(f"{n:06x}", NOON - 100, tried, caller=f"c{n}", cost=n))
    activity.keep_up(ledger, NOON)
    [step] = activity.report(ledger, NOON - SLOT, NOON, SLOT, NOON).steps
    assert len(step.callers) == activity.MAX_GROUPS + 1
    assert step.callers[-1].key == (OTHERS,) and step.callers[-1].calls == 50
    last = {total.key: total.attempts for total in step.targets[activity.MAX_GROUPS :]}
    assert last == {(OTHERS, OTHERS, ""): 25, (OTHERS, OTHERS, "upstream_timeout"): 25}
    assert summed(step.callers).cost == step.total.cost
    activity.keep_up(ledger, NOON + activity.KEPT + HOUR)
    with closing(sqlite3.connect(tmp_path / "l.db")) as sql:
        assert sql.execute("SELECT count(*) FROM activity").fetchone() == (0,)


# -- search ----------------------------------------------------------------------------------------


def test_a_search_finds_what_is_shown_in_whatever_letters(backend: Any) -> None:
    shared = backend.make()
    shown: dict[str, dict[str, Any]] = {
        "a": {"requested": "ÄRGER-Modell"},
        "b": {"tags": {"project": "Größe", "site": "日本"}},
        "c": {"tags": {"a": 'q"uo\\te'}, "requested": "100%"},
    }
    for n, (id, about) in enumerate(shown.items()):
        shared.settle(record(call(id, at=NOON + n, **about)))
    wanted = {"ÄRGER": "a", "modELL": "a", "größe": "b", "日本": "b", "PROJECT=Grö": "b"}
    wanted |= {"site=日本 project=Größe": "b", 'q"uo\\te': "c", 'a=q"': "c", "0%": "c", "1%": ""}
    for text, ids in wanted.items():
        found = search.find(shared, search.Search(text)).records
        assert "".join(each.call.id for each in found) == ids, text


def test_a_search_reads_a_bounded_number_of_calls_and_goes_on_from_there(
    ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SCANNED", 10)
    for n in range(35):
        ledger.settle(rows(f"{n:06x}", NOON + n, ("a", "m", ""), caller="old" if n < 3 else "new"))
    wanted, pages = search.Search(caller="old"), 0
    found = search.find(ledger, wanted)
    while not found.records:
        assert found.next is not None and found.searched is not None
        pages += 1
        found = search.find(ledger, wanted._replace(before=found.next))
    assert pages == 3 and [each.call.id for each in found.records] == ["000002", "000001", "000000"]
    assert found.next is None and found.cursor is None


def test_calls_of_one_moment_are_on_one_page_each(ledger: SQLiteLedger) -> None:
    for n in range(25):
        ledger.settle(rows(f"{n:06x}", NOON, ("a", "m", "")))
    ids, wanted = [], search.Search(limit=4)
    while True:
        found = search.find(ledger, wanted)
        ids += [each.call.id for each in found.records]
        if found.cursor is None:
            break
        wanted = wanted._replace(before=search.place(found.cursor))
    assert ids == [f"{n:06x}" for n in reversed(range(25))]


@pytest.mark.parametrize("text", ["", "x", "1", "-", "1-\n", "99999999999999999999-a", "١-a"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        search.place(text)


def test_of_hours_that_are_long_over_no_shorter_steps_are_made(
    ledger: SQLiteLedger, tmp_path: Path
) -> None:
    crowd(ledger, 300, 6)
    activity.keep_up(ledger, NOON)
    with closing(sqlite3.connect(tmp_path / "l.db")) as sql:
        stored = sql.execute("SELECT step, count(*) FROM activity GROUP BY step").fetchall()
    known = dict(stored)
    assert known[HOUR] > 100 and known.get(SLOT, 0) <= activity.RECENT // SLOT
    late = rows("late", NOON - 3 * DAY, ("a", "m", ""), cost=5)
    ledger.settle(late)
    check(ledger, 7 * DAY, 3 * HOUR)
    check(ledger, DAY, HOUR)


@pytest.mark.slow
def test_a_long_ledger_answers_soon(ledger: SQLiteLedger, tmp_path: Path) -> None:
    ledger.check()
    with closing(sqlite3.connect(tmp_path / "l.db")) as sql, sql:
        triggers = sql.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            sql.execute(f"DROP TRIGGER {name}")
        for table, width, part in (
            ("calls", len(CallRow._fields), 0),
            ("attempts", len(AttemptRow._fields), 1),
        ):
            names = ",".join((CallRow if not part else AttemptRow)._fields)
            made = (rows(f"{n:06x}", NOON - n * 15, ("a", f"m{n % 5}", "")) for n in range(40_000))
            values = (each.call if not part else each.attempts[0] for each in made)
            sql.executemany(
                f"INSERT INTO {table} ({names}) VALUES ({','.join('?' * width)})", values
            )
        for _, text in triggers:
            sql.execute(text)
    activity.keep_up(ledger, NOON)
    for work in (
        lambda: activity.report(ledger, NOON - 7 * DAY, NOON + 1, 3 * HOUR, NOON),
        lambda: search.find(ledger, search.Search(text="not to be found")),
    ):
        began = time.process_time()
        work()
        assert time.process_time() - began < 1
