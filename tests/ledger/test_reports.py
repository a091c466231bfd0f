"""Tests of the ledger's reports: periods, dimensions, and exact sums."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from books import DAY, NOON, call, keep, large

from infermux.errors import BudgetExceeded, ProviderTimeout, RequestError
from infermux.ledger import MAX_ROWS, Record, reports
from infermux.ledger.reports import Period
from infermux.ledger.sql import Ledger
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.call import Attempt
from infermux.pricing import PICO
from infermux.types import Target, Usage

ALWAYS = Period()
LARGE = 100_000 if os.environ.get("CI") == "true" else 10_000


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


# -- when ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", at("2026-11-01")),
        ("2026-11-01T12:30", at("2026-11-01T12:30")),
        ("2026-11-01T12:30:00Z", at("2026-11-01T12:30")),
        ("2026-11-01T12:30+02:00", at("2026-11-01T10:30")),
        ("7d", NOON - 7 * DAY),
        ("24h", NOON - DAY),
        ("30m", NOON - 1800),
        ("2w", NOON - 14 * DAY),
        ("today", NOON - DAY / 2),
        ("yesterday", NOON - DAY * 1.5),
        ("0001-01-01T00:00+14:00", None),  # before year 1 in UTC: no error
        ("9999-12-31T23:59-12:00", None),
        ("999999w", None),
    ],
)
def test_a_time_is_a_date_or_how_long_ago(text: str, moment: float | None) -> None:
    since, until = reports.period(NOON, since=text)
    assert until is None and since is not None
    assert moment is None or since == moment
    assert reports.period(NOON, until=text).until == since
    assert reports.iso(since) is not None


@pytest.mark.parametrize(
    ("month", "now", "since", "until"),
    [
        ("2026-11", "2026-11-23", "2026-11-01", "2026-12-01"),
        ("2028-02", "2026-11-23", "2028-02-01", "2028-03-01"),
        ("2026-12", "2026-11-23", "2026-12-01", "2027-01-01"),
        ("this", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("last", "2027-01-31", "2026-12-01", "2027-01-01"),
        ("last", "2026-03-31", "2026-02-01", "2026-03-01"),
    ],
)
def test_a_month_is_one_of_utc(month: str, now: str, since: str, until: str) -> None:
    assert reports.period(at(now), month=month) == (at(since), at(until))


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"since": "yesterdy"}, "since"),
        ({"since": "9999999d"}, "since"),
        ({"since": "-7d"}, "since"),
        ({"since": "1e9"}, "since"),
        ({"until": "2026-13-01"}, "until"),
        ({"until": "\u0667d"}, "until"),  # an Arabic seven
        ({"since": "2026-11-02", "until": "2026-11-02"}, "since"),
        ({"month": "2026-13"}, "month"),
        ({"month": "november"}, "month"),
        ({"month": "9999-12"}, "month"),
        ({"month": "0000-01"}, "month"),
        ({"month": "this", "since": "7d"}, "month"),
    ],
)
def test_a_time_that_is_none_is_named(given: dict[str, str], param: str) -> None:
    with pytest.raises(RequestError) as error:
        reports.period(NOON, **given)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("text", "limit"),
    [(None, 1000), ("5", 5), ("1e9", MAX_ROWS), ("1e400", MAX_ROWS), ("9" * 400, MAX_ROWS)],
)
def test_a_limit_is_kept_within_reason(text: str | None, limit: int) -> None:
    assert reports.limited(text) == limit


@pytest.mark.parametrize("text", ["0", "-1", "many", "nan", "-inf", "1;2"])
def test_a_limit_that_is_none_is_named(text: str) -> None:
    with pytest.raises(RequestError) as error:
        reports.limited(text)
    assert error.value.param == "limit"


def test_what_to_group_by_is_a_list_or_several() -> None:
    assert reports.dimensions(["day, model", "caller", "day"]) == ("day", "model", "caller")
    assert reports.dimensions([]) == reports.dimensions([","]) == ("model",)
    with pytest.raises(RequestError):
        reports.dimensions(["day,model,caller,tag,provider"])


# -- costs -----------------------------------------------------------------------------------------


def test_costs_are_exact_text_and_unknown_is_not_free(ledger: Ledger) -> None:
    slow = ProviderTimeout("slow")
    keep(
        ledger,
        call("1", cost=1),
        call("2", cost=123_456_789_012_345_678, target="openai/gpt-5-pro"),
        call("3", cost=None, target="local/llama"),
        call("4", cost=None, target="mixed/m"),
        call("5", cost=5, target="mixed/m", usage=Usage(3, 3, estimated=True)),
        call("6", cost=0, target="free/m2"),
        call("7", error=slow, attempts=[Attempt(Target("openai", "gpt-5"), 10.0, error=slow)]),
        call("8", error=BudgetExceeded("spent"), attempts=[]),
    )
    found = reports.costs(ledger, ("provider", "model"), ALWAYS).to_dict()
    names = ("cost_usd", "cost_pico", "unpriced", "estimated")
    told = {
        (row["provider"], row["model"]): tuple(row[name] for name in names) for row in found["rows"]
    }
    assert told == {
        ("openai", "gpt-5"): ("0.000000000001", 1, 0, 0),
        ("openai", "gpt-5-pro"): ("100000", 10**17, 0, 0),  # as much as one attempt can have cost
        ("local", "llama"): (None, None, 1, 0),
        ("mixed", "m"): ("0.000000000005", 5, 1, 1),
        ("free", "m2"): ("0", 0, 0, 0),
        ("", ""): ("0", 0, 0, 0),  # the call that reached nobody
    }
    assert (found["total"]["calls"], found["total"]["errors"], found["total"]["unpriced"]) == (
        8,
        2,
        2,
    )
    assert sum(row["calls"] for row in found["rows"]) == 8
    assert found["total"]["cost_usd"] == "100000.000000000006"
    assert (
        sum(row["cost_pico"] or 0 for row in found["rows"])
        == found["total"]["cost_pico"]
        == 10**17 + 6
    )


def test_rows_beyond_the_limit_are_counted(ledger: Ledger) -> None:
    keep(ledger, *[call(str(n), target=f"p/m{n}", cost=n) for n in range(5)])
    found = reports.costs(ledger, ("model",), ALWAYS, limit=2)
    assert ([row.key for row in found.rows], found.more, found.total.cost) == (
        [("m4",), ("m3",)],
        3,
        10,
    )


def test_a_series_has_every_step_also_the_empty_ones(ledger: Ledger) -> None:
    keep(
        ledger,
        call("1", at=NOON - 2 * DAY, cost=3),
        call("2", at=NOON, cost=4),
        call("3", at=NOON - 3600, caller="x", cost=5),
    )
    days = reports.series(ledger, "day", Period(NOON - 3 * DAY), NOON + 60)
    assert [(row["day"], row["cost_pico"], row["calls"]) for row in days["rows"]] == [
        ("2026-11-20", 0, 0), ("2026-11-21", 3, 1), ("2026-11-22", 0, 0), ("2026-11-23", 9, 2),
    ]  # fmt: skip
    assert (days["total"]["cost_pico"], days["total"]["calls"], days["since"]) == (
        12,
        3,
        "2026-11-20T12:00:00Z",
    )
    hours = reports.series(ledger, "hour", Period(NOON - 7200, NOON + 3600), NOON, caller="web")
    assert [(row["hour"], row["cost_pico"]) for row in hours["rows"]] == [
        ("2026-11-23T10:00Z", 0), ("2026-11-23T11:00Z", 0), ("2026-11-23T12:00Z", 4),
    ]  # fmt: skip
    assert len(reports.series(ledger, "day", ALWAYS, NOON)["rows"]) == 31
    assert len(reports.series(ledger, "hour", ALWAYS, NOON)["rows"]) == 48


@pytest.mark.sampled(1)
def test_a_series_of_too_many_steps_has_the_last_ones_and_their_sum(ledger: Ledger) -> None:
    keep(ledger, call("1", at=NOON - 9 * DAY, cost=3), call("2", at=NOON - 1, cost=4))
    found = reports.series(ledger, "hour", Period(-9e9, 9e12), NOON, limit=MAX_ROWS)
    assert len(found["rows"]) == MAX_ROWS
    found = reports.series(ledger, "day", Period(0.0), NOON, limit=3)
    assert [row["day"] for row in found["rows"]] == ["2026-11-21", "2026-11-22", "2026-11-23"]
    assert (found["total"]["cost_pico"], found["since"]) == (4, "2026-11-21T00:00:00Z")
    with pytest.raises(RequestError):
        reports.series(ledger, "model", ALWAYS, NOON)


def test_a_call_is_told_with_its_attempts(ledger: Ledger) -> None:
    failed = Attempt(Target("a", "m"), 10.0, ended=10.25, error=ProviderTimeout("slow"))
    keep(
        ledger,
        call(
            "1",
            tags={"env": "prod"},
            attempts=[failed, Attempt(Target("b", "n"), 11.0, usage=Usage(5, 6), cost=7)],
        ),
    )
    told = reports.call_dict(ledger.rows()[0])
    assert (told["time"], told["caller"], told["tags"], told["status"]) == (
        "2026-11-23T12:00:00Z",
        "web",
        {"env": "prod"},
        "ok",
    )
    assert (told["cost_usd"], told["cost_pico"], told["estimated"], told["latency_ms"]) == (
        "0.000000000007",
        7,
        False,
        2500,
    )
    assert [(each["provider"], each["error_code"], each["cost_usd"]) for each in told["attempts"]] == [
        ("a", "upstream_timeout", None), ("b", "", "0.000000000007"),
    ]  # fmt: skip


# -- many ------------------------------------------------------------------------------------------

Key = Callable[[Record], list[str]]


def day(record: Record) -> str:
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=record.call.at_ns // 1000):%Y-%m-%d}"


def tags(record: Record) -> list[str]:
    return [f"{name}={value}" for name, value in json.loads(record.call.tags).items()] or [""]


OF_CALLS: dict[str, Key] = {
    "caller": lambda record: [record.call.caller],
    "day": lambda record: [day(record)],
    "tag": tags,
    "error": lambda record: [record.call.error_code],
}


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    path = tmp_path_factory.mktemp("large") / "l.db"
    return path, large(path, LARGE)


@pytest.mark.slow
def test_every_report_on_a_large_ledger_is_exact(larger: tuple[Path, list[Record]]) -> None:
    path, records = larger
    with closing(SQLiteLedger(path)) as ledger:
        for name, key in OF_CALLS.items():
            costs: Counter[str] = Counter()
            calls: Counter[str] = Counter()
            for record in records:
                for each in key(record):
                    costs[each] += record.call.cost or 0
                    calls[each] += 1
            found = reports.costs(ledger, (name,), ALWAYS, limit=MAX_ROWS)
            assert {row.key[0]: (row.cost, row.calls) for row in found.rows} == {
                each: (costs[each], calls[each]) for each in calls
            }, name
        for name in ("provider", "model", "served"):
            costs, calls = Counter(), Counter()
            for record in records:
                calls[getattr(record.attempts[-1], name) if record.attempts else ""] += 1
                for attempt in record.attempts:
                    costs[getattr(attempt, name)] += attempt.cost or 0
            found = reports.costs(ledger, (name,), ALWAYS, limit=MAX_ROWS)
            assert {row.key[0]: (row.cost, row.calls) for row in found.rows if row.key[0] or row.calls} == {
                each: (costs[each], calls[each]) for each in {*costs, *calls}}, name  # fmt: skip
            assert (
                sum(row.estimated for row in found.rows) == found.total.estimated > 0
            )  # each call but once
        whole = found.total
    assert (
        whole.cost == sum(record.call.cost or 0 for record in records) > 10**6 * PICO
    )  # beyond what a float holds exactly
    assert whole.unpriced == sum(record.call.unpriced for record in records) > 0
    assert whole.estimated == sum(record.call.estimated for record in records)
    assert whole.errors == sum(record.call.status != "ok" for record in records) > 0
    assert Decimal(reports.figures(whole)["cost_usd"]) * PICO == whole.cost


@pytest.mark.slow
def test_a_series_and_a_page_of_a_large_ledger_agree_with_its_rows(
    larger: tuple[Path, list[Record]],
) -> None:
    path, records = larger
    span: Any = Period(NOON - 20 * DAY, NOON - 3 * DAY)
    inside = [record for record in records if span.since <= record.call.at_ns / 1e9 < span.until]
    with closing(SQLiteLedger(path)) as ledger:
        for step in ("day", "hour"):
            found = reports.series(ledger, step, span, NOON)
            assert found["total"]["cost_pico"] == sum(record.call.cost or 0 for record in inside)
            assert (
                sum(row["calls"] for row in found["rows"]) == found["total"]["calls"] == len(inside)
            )
        newest = sorted(records, key=lambda record: record.call[:2], reverse=True)
        assert ledger.rows(limit=500) == newest[:500]
        failed = [record for record in newest if record.call.status == "402"]
        assert (
            ledger.rows(status="4xx", limit=500)
            == ledger.rows(status="402", limit=500)
            == failed[:500]
        )
        assert [row.call.status for row in ledger.rows(status="5xx", limit=1)] == ["504"]
        assert ledger.rows(status="6xx") == []
