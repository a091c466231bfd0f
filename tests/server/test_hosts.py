"""Hosts behind nginx with one ledger: limits and budgets are exact, and no call is lost."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
from databases import PASSWORD, Database
from hosts import Host, Nginx, hosts, keys
from support import eventually, how_many
from traffic import (
    FAILOVER,
    FAILOVER_STREAM,
    HANG_UP,
    LONG,
    NAMES,
    PLAIN,
    STREAM,
    MeteredVendor,
    Outcome,
    Traffic,
    call,
    most_within,
    pico,
)

pytest.importorskip("psycopg_pool", reason="pip install 'infermux[postgres]'")


class Scale(NamedTuple):
    """How much happens: hosts that are killed and restarted, and calls in between."""

    hosts: int
    calls: int
    killed: int
    rolled: int
    seconds: float  # at least
    workers: int
    rpm: int
    usd: str  # what the budgets allow
    team_usd: str

    @property
    def keys(self) -> str:
        return keys(
            web=f'budget = {{ usd = "{self.usd}", per = "day" }}',
            left='budget = { usd = "100", per = "day" }',
            first="",
            second="",
            limited=f"rpm = {self.rpm}",
            free="",
        )


QUICK = Scale(2, 80, 1, 1, 0, 1, 15, "0.04", "0.025")
CALLS = how_many(300, 400, 3000)
LENGTHY = Scale(4, CALLS, 2, 4, 64, 2, 40, "0.3", "0.2")  # longer than a minute
ALL = (PLAIN, STREAM, FAILOVER, FAILOVER_STREAM)
EXACT = {PLAIN.name, STREAM.name, LONG.name}  # kinds of which nothing is estimated
CALLERS = [
    ("web", ALL),
    ("web", ALL),
    ("web", (*ALL, LONG)),
    ("left", (HANG_UP, HANG_UP, STREAM)),
    ("first", ALL),
    ("second", ALL),
    ("limited", (PLAIN, STREAM)),
    ("limited", (PLAIN, STREAM)),
    ("free", (*ALL, LONG)),
]


class Fleet(NamedTuple):
    vendor: MeteredVendor
    hosts: list[Host]
    nginx: Nginx
    scale: Scale


def configuration(vendor: MeteredVendor, scale: Scale) -> str:
    return "\n".join(
        [
            f'[ledger]\nurl = "env:DATABASE_URL"\n[server]\nworkers = {scale.workers}\nthreads = 48',
            "[reliability]\nattempts = 4\ncircuit_breaker = { failures = 1000, open = 1 }",
            vendor.provider("one"),
            vendor.provider("two"),
            NAMES,
            scale.keys,
            f'[budgets.crew]\nusd = "{scale.team_usd}"\nper = "day"\nkeys = ["first", "second"]',
        ]
    )


@pytest.fixture(
    params=[QUICK, pytest.param(LENGTHY, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def fleet(request: pytest.FixtureRequest, database: Database) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        vendor = stack.enter_context(MeteredVendor())
        env = {"METERED_KEY": "sk-metered", "DATABASE_URL": database.service}
        text = configuration(vendor, request.param)
        made = stack.enter_context(
            hosts(request.param.hosts, text, env | {"OWNER_URL": database.url})
        )
        yield Fleet(vendor, made, stack.enter_context(Nginx(made)), request.param)


def test_limits_are_exact_and_no_call_is_lost_over_hosts(fleet: Fleet) -> None:
    """Under streams, failovers and hang-ups some hosts are killed, and others are restarted."""
    begun, scale = time.monotonic(), fleet.scale
    with Traffic(fleet.nginx.port, CALLERS, seed=17) as traffic:
        traffic.wait(scale.calls)
        for host in fleet.hosts[: scale.killed]:
            host.kill()
            traffic.wait(scale.calls // 4)
            host.start()
        calm = time.monotonic()
        for host in fleet.hosts[-scale.rolled :]:
            with fleet.nginx.without(host):
                assert host.stop() == 0
                host.start()
        traffic.wait(scale.calls // 4)
        for status in (200, 402, 429):
            traffic.wait(1, lambda found, status=status: found.status == status)
        traffic.pause *= 10  # the rest is a minute's limit alone
        while time.monotonic() < begun + scale.seconds:
            traffic.wait(1)
    for host in fleet.hosts:
        eventually(host.settled, "every call in the ledger")
    circuits_are_opened_everywhere(fleet)
    rolled = [each for each in traffic.outcomes if each.sent > calm]
    assert {each.status for each in rolled} - {503} == {200, 402, 429}
    assert [
        each
        for each in rolled
        if each.status == 200 and not (each.whole or each.kind == HANG_UP.name)
    ] == []
    kept = [
        each for each in traffic.outcomes if each.whole or (each in rolled and each.status == 200)
    ]
    assert len(kept) > scale.calls // 4
    calls = fleet.hosts[0].calls_with(each.id for each in kept)
    told = [(each, pico(calls[each.id]["cost_usd"])) for each in kept if each.kind in EXACT]
    assert [each for each, found in told if found != each.cost] == []
    nothing_is_overspent(fleet, calls)
    busy = [each for each in traffic.outcomes if each.code == "ledger_unavailable"]
    assert len(busy) < len(traffic.outcomes) / 20  # a machine may have no time for the database
    limited = [each for each in traffic.outcomes if each.caller == "limited"]
    alone = any("limits per minute count this host's own calls" in each.log for each in fleet.hosts)
    rates_are_exact(limited, scale, alone)
    all_hosts_say_the_same(fleet, fleet.hosts[0].calls())


def nothing_is_overspent(fleet: Fleet, calls: Mapping[str, Any]) -> None:
    """What the vendor billed, and what the ledger says of it, is within each budget."""
    billed, spent = fleet.vendor.billed, Counter[str]()
    for each in calls.values():
        spent[each["caller"]] += pico(each["cost_usd"])
    budgets = fleet.hosts[0].ask("/budgets").json["budgets"]
    state = {each["name"]: each for each in budgets}
    for name, callers, limit in (
        ("web", ("web",), fleet.scale.usd),
        ("crew", ("first", "second"), fleet.scale.team_usd),
    ):
        assert sum(spent[caller] for caller in callers) == state[name]["spent_pico"]
        taken = state[name]["spent_pico"] + state[name]["held_pico"]  # by hosts that were killed
        assert sum(billed[caller] for caller in callers) <= taken <= pico(limit)
    for host in fleet.hosts:
        for caller in ("web", "first"):
            again = partial(call, host.port, caller, PLAIN, 7)
            eventually(lambda: again().code == "budget_exceeded", "the budget's end")  # noqa: B023


def rates_are_exact(outcomes: Sequence[Outcome], scale: Scale, alone: bool) -> None:
    """A minute has as many calls as the limit; hosts that were *alone* for a while count theirs."""
    rpm = scale.rpm
    admitted = [each for each in outcomes if each.status == 200]
    refused = Counter(each.status for each in outcomes if each.status != 200)
    lost = sum(refused.values()) - refused[429]  # at hosts that were killed
    assert refused[429]
    assert most_within(admitted, 60) <= rpm * (scale.hosts if alone else 1)
    took = admitted[-1].ended - admitted[0].sent
    assert len(admitted) >= rpm - lost
    assert alone or (len(admitted) <= rpm if took < 60 else took < 65 or len(admitted) > rpm)


def all_hosts_say_the_same(fleet: Fleet, calls: Mapping[str, Any]) -> None:
    for path in ("/costs?by=caller", "/costs?by=model", "/costs?by=error", "/budgets"):
        assert len({host.ask(path).data for host in fleet.hosts}) == 1
    assert fleet.hosts[-1].calls() == calls
    for host in fleet.hosts:
        assert PASSWORD not in host.log and "Traceback" not in host.log


def circuits_are_opened_everywhere(fleet: Fleet) -> None:
    """An operator closes and opens a provider at one host: all do it."""
    for action, state in (("open", "open"), ("close", "closed")):
        assert fleet.hosts[0].ask(f"/providers/two/circuit/{action}", b"").status == 200
        for host in fleet.hosts:
            eventually(lambda: host.circuits("two") == {state}, f"circuits {action}")  # noqa: B023
