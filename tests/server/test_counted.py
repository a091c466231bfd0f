"""A vendor that counts what it serves, beside a ledger in SQLite: 64 callers, 4 workers, SIGKILLs."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from hosts import Host, keys
from support import eventually
from traffic import (
    FAILOVER,
    FAILOVER_STREAM,
    HANG_UP,
    LONG,
    NAMES,
    PLAIN,
    STREAM,
    MeteredVendor,
    Traffic,
    cost,
    pico,
)

KEY = {"METERED_KEY": "sk-metered"}
WORKERS, CALLS, KILLS = 4, 200, 4
ALL = (PLAIN, STREAM, FAILOVER, FAILOVER_STREAM)
EXACT = {PLAIN.name, STREAM.name, LONG.name}  # kinds of which nothing is estimated
CALLERS = [
    *[("web", ALL)] * 24,
    *[("first", ALL), ("second", ALL)] * 8,
    *[("left", (HANG_UP, STREAM))] * 8,
    *[("free", (*ALL, LONG))] * 16,
]
LIMITS = {"web": "0.15", "crew": "0.1", "left": "1000"}


def workers(host: Host) -> list[int]:
    assert host.process is not None
    pid = host.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def configuration(vendor: MeteredVendor) -> str:
    budget = 'budget = {{ usd = "{}", per = "total" }}'
    named = {name: budget.format(LIMITS[name]) for name in ("web", "left")}
    return "\n".join(
        [
            f"[server]\nworkers = {WORKERS}\nthreads = 48",
            "[reliability]\nattempts = 4\ncircuit_breaker = { failures = 1000, open = 1 }",
            vendor.provider("one"),
            vendor.provider("two"),
            NAMES,
            keys(**named, first="", second="", free=""),
            f'[budgets.crew]\nusd = "{LIMITS["crew"]}"\nper = "total"\nkeys = ["first", "second"]',
        ]
    )


@pytest.mark.slow
def test_the_ledger_agrees_with_a_vendor_that_counts() -> None:
    assert len(CALLERS) == 64
    with MeteredVendor() as vendor, Host(configuration(vendor), KEY) as host:
        with Traffic(host.port, CALLERS, seed=16) as traffic:
            for _ in range(KILLS):
                traffic.wait(CALLS)
                os.kill(workers(host)[0], signal.SIGKILL)
            traffic.wait(CALLS, lambda each: each.whole)
            for name in ("web", "first"):
                traffic.wait(1, lambda each: (each.caller, each.code) == (name, "budget_exceeded"))  # noqa: B023
        eventually(host.settled, "every call in the ledger")
        calls, state = host.calls(), {}
        for each in host.ask("/budgets").json["budgets"]:
            state[each["name"]] = each["spent_pico"], each["held_pico"]
        whole = [each for each in traffic.outcomes if each.whole]
        assert [each for each in whole if each.id not in calls] == []
        exact = [each for each in whole if each.kind in EXACT]
        assert len(exact) > CALLS
        assert [each for each in exact if pico(calls[each.id]["cost_usd"]) != each.cost] == []
        spent = Counter[str]()
        for each in calls.values():
            spent[each["caller"]] += pico(each["cost_usd"])
        for name, callers in (("web", ["web"]), ("crew", ["first", "second"]), ("left", ["left"])):
            assert sum(spent[caller] for caller in callers) == state[name][0]
            billed = sum(vendor.billed[caller] for caller in callers)
            left = sum(each.kind == HANG_UP.name for each in traffic.outcomes) * (name == "left")
            # what was on its way to clients that left is at most an answer of each
            assert billed - left * (cost(8) - cost(0)) <= sum(state[name])
            assert sum(state[name]) <= pico(LIMITS[name])
        assert "Traceback" not in host.log
