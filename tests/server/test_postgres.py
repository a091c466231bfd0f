"""A service whose PostgreSQL is away, slow, killed, replaced, or behind PgBouncer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from databases import PASSWORD, SERVICE, Database, PgBouncer, Postgres
from hosts import Host, hosts, keys
from network import Proxy
from support import eventually
from traffic import (
    FAILOVER,
    FAILOVER_STREAM,
    HANG_UP,
    NAMES,
    PLAIN,
    STREAM,
    MeteredVendor,
    Outcome,
    Traffic,
    call,
    pico,
)

pytest.importorskip("psycopg_pool", reason="pip install 'infermux[postgres]'")

SOON = 1.2  # seconds within which a call is answered or refused; more where the machine is busy
RPM = 5
KEYS = keys(
    web='budget = { usd = "0.05", per = "day" }',
    warned='budget = { usd = "0.001", per = "day", then = "warn" }',
    limited=f"rpm = {RPM}",
    free="",
)


class Served(NamedTuple):
    """A host, and the network between it and its database."""

    host: Host
    proxy: Proxy
    database: Database
    vendor: MeteredVendor

    def settled(self) -> dict[str, Any]:
        """Return the ledger's calls once all are in it."""
        eventually(self.host.settled, "every call in the ledger")
        return self.host.calls()

    def ask(self, caller: str, number: int = 7) -> Outcome:
        return call(self.host.port, caller, PLAIN, number)

    def answered(self, caller: str) -> Outcome:
        """Return the outcome of a call that is answered, when there is time for the database."""

        def answer() -> Outcome | None:
            found = self.ask(caller)
            return found if found.status == 200 else None

        found: Outcome = eventually(answer, "an answer")
        return found

    def in_time(self, outcomes: Iterable[Outcome], usual: Sequence[Outcome]) -> bool:
        """Return whether calls took no longer than they may, given what others take now."""
        busy = max(each.ended - each.sent for each in usual)
        return max(each.ended - each.sent for each in outcomes) < SOON + 20 * busy


def configuration(vendor: MeteredVendor) -> str:
    lines = [
        '[ledger]\nurl = "env:DATABASE_URL"\n[server]\nworkers = 1\nthreads = 48',
        "[reliability]\nattempts = 4\ncircuit_breaker = { failures = 1000, open = 1 }",
        vendor.provider("one"),
        vendor.provider("two"),
        NAMES,
        KEYS,
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def serving(database: Database, count: int = 1, port: int = 0) -> Iterator[list[Served]]:
    """Start hosts, each behind a proxy to the database, or to what is at *port*."""
    with contextlib.ExitStack() as stack:
        vendor = stack.enter_context(MeteredVendor())
        proxy = stack.enter_context(Proxy(port or database.server.port))
        env = {
            "METERED_KEY": "sk-metered",
            "DATABASE_URL": database.at(proxy.port, SERVICE),
            "OWNER_URL": database.at(proxy.port),
        }
        made = stack.enter_context(hosts(count, configuration(vendor), env))
        yield [Served(host, proxy, database, vendor) for host in made]
        proxy.accept()
        for host in made:
            assert PASSWORD not in host.log and "Traceback" not in host.log, host.log


@pytest.fixture(scope="module")
def served(postgres: Postgres) -> Iterator[Served]:
    """A host with a database in the session's server."""
    database = postgres.database()
    with serving(database) as [made]:
        yield made
    postgres.drop(database)


# -- away ------------------------------------------------------------------------------------------

TROUBLES: Mapping[str, Callable[[Served], None]] = {
    "refused": lambda served: served.proxy.refuse(),
    "silent": lambda served: served.proxy.swallow(),
    "unanswered": lambda served: served.proxy.swallow_answers(),
}


@pytest.mark.parametrize(
    "trouble",
    [
        "refused",
        pytest.param("silent", marks=pytest.mark.slow),
        pytest.param("unanswered", marks=pytest.mark.slow),
    ],
)
def test_while_the_database_is_away_only_hard_budgets_wait_for_it(
    served: Served, trouble: str
) -> None:
    before = [served.answered("free"), served.answered("web")]
    TROUBLES[trouble](served)
    with ThreadPoolExecutor(8) as pool:
        asked = [
            (caller, pool.submit(served.ask, caller))
            for caller in ("free", "web", "warned", "free", "web", "warned")
        ]
    found = [(caller, each.result()) for caller, each in asked]
    expected = {"free": (200, ""), "warned": (200, ""), "web": (503, "ledger_unavailable")}
    assert [(caller, (each.status, each.code)) for caller, each in found] == [
        (caller, expected[caller]) for caller, _ in asked
    ]
    assert served.in_time([each for _, each in found], before)
    said = served.host.ask("/readyz")
    assert said.json["ledger"] not in ("ok", "not configured")
    assert "10." not in said.data.decode() and SERVICE not in said.data.decode()
    served.proxy.accept()
    calls = served.settled()
    kept = [each.id for each in (*before, *[each for _, each in found]) if each.status == 200]
    assert set(kept) <= set(calls)
    eventually(lambda: served.host.ready()["ledger"] == "ok", "the ledger being back")
    eventually(lambda: served.ask("web").status == 200, "budgets being back")


@pytest.mark.slow
def test_a_limit_per_minute_holds_on_the_host_while_the_database_is_away(served: Served) -> None:
    usual = [served.answered("free")]
    served.proxy.refuse()
    found = [served.ask("limited") for _ in range(RPM + 3)]
    assert [each.status for each in found] == [200] * RPM + [429] * 3
    assert served.in_time(found, usual)
    assert "own calls" in served.host.ready()["rate_limits"]
    assert b"\ninfermux_rate_limits_local 1\n" in served.host.ask("/metrics").data
    served.proxy.accept()
    served.settled()
    eventually(lambda: served.ask("limited").status == 429, "the limit of all hosts")
    eventually(lambda: "rate_limits" not in served.host.ready(), "limits over all hosts")


@pytest.mark.slow
def test_a_database_that_answers_late_is_away(served: Served) -> None:
    """Each packet takes a second: calls are answered in time all the same, and recorded."""
    usual = [served.answered("free")]
    served.proxy.delay = 1.0
    found = [served.ask("free") for _ in range(4)]
    assert {each.status for each in found} == {200}
    refused = served.ask("web")
    assert refused.code == "ledger_unavailable" and served.in_time([*found, refused], usual)
    served.proxy.accept()
    served.proxy.cut()
    assert {each.id for each in found} <= set(served.settled())


@pytest.mark.slow
def test_connections_that_were_cut_are_replaced(served: Served) -> None:
    found = []
    for _ in range(3):
        found += [served.ask("free"), served.ask("web")]
        eventually(lambda: served.proxy.cut() > 0, "connections to cut")
    found += [served.ask("free"), served.ask("web")]
    assert {each.status for each in found} <= {200, 503}
    assert {each.id for each in found if each.status == 200} <= set(served.settled())
    assert [each for each in found if each.caller == "free" and each.status != 200] == []


# -- crashes under load ----------------------------------------------------------------------------

CALLERS = [
    ("web", (PLAIN, STREAM, FAILOVER)),
    ("web", (PLAIN, FAILOVER_STREAM)),
    ("free", (PLAIN, STREAM, FAILOVER, HANG_UP)),
    ("free", (PLAIN, FAILOVER_STREAM)),
]


def traffic_survives(made: list[Served], trouble: Callable[[Traffic], None]) -> None:
    """Make trouble under traffic: afterwards every call is in the ledger, and no budget overspent.

    Only callers with a hard budget may have noticed.
    """
    host, vendor = made[0].host, made[0].vendor
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(Traffic(each.host.port, CALLERS, seed=3)) for each in made]
        for each in running:
            each.pause = 0.02
            each.wait(40)
        trouble(running[0])
        for each in running:
            each.wait(40, lambda found: found.caller == "free")
    outcomes = [found for each in running for found in each.outcomes]
    for each in made:
        eventually(each.host.settled, "every call in the ledger")
    assert {each.status for each in outcomes if each.caller == "free"} == {200}
    noticed = {(each.status, "failover" in each.kind) for each in outcomes} - {(502, True)}
    assert {status for status, _ in noticed} <= {200, 402, 503}  # 502: no fallback could be paid
    calls = host.calls_with(each.id for each in outcomes if each.status == 200)
    [state] = [each for each in host.ask("/budgets").json["budgets"] if each["name"] == "web"]
    taken = state["spent_pico"] + state["held_pico"]
    assert vendor.billed["web"] <= taken <= state["limit_pico"]
    own = [pico(each["cost_usd"]) for each in calls.values() if each["caller"] == "web"]
    assert sum(own) == state["spent_pico"]


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server that the test may kill, and whose commits last."""
    with Postgres() as server:
        yield server


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_loses_no_call(own_server: Postgres) -> None:
    def trouble(traffic: Traffic) -> None:
        for _ in range(2):
            own_server.kill()
            traffic.wait(30, lambda found: found.caller == "free")
            own_server.start()
            traffic.wait(10, lambda found: found.caller == "web" and found.status != 503)

    with serving(own_server.database()) as made:
        traffic_survives(made, trouble)


@pytest.mark.slow
def test_connections_that_are_cut_all_the_time_lose_no_call(postgres: Postgres) -> None:
    """Cut at any moment: also between a commit and its answer."""
    with serving(postgres.database()) as made:

        def trouble(traffic: Traffic) -> None:
            for _ in range(25):
                made[0].proxy.cut()
                traffic.wait(3)

        traffic_survives(made, trouble)


@pytest.mark.slow
def test_a_promoted_replica_takes_over(own_server: Postgres) -> None:
    """The old primary refuses writes for a while, then it is killed; the replica has its place."""
    database = own_server.database()
    with serving(database) as made, own_server.replica(synchronous=True) as replica:
        proxy = made[0].proxy

        def trouble(traffic: Traffic) -> None:
            own_server.read_only()
            traffic.wait(20, lambda found: found.caller == "free")
            refused = len(traffic.outcomes)
            eventually(
                lambda: [
                    each for each in traffic.outcomes[refused:] if each.code == "ledger_unavailable"
                ],
                "budgets being refused",
            )
            own_server.kill()
            replica.promote()
            proxy.target = replica.port
            proxy.cut()
            traffic.wait(10, lambda found: found.caller == "web" and found.status != 503)

        traffic_survives(made, trouble)
        there = Database(replica, database.name)
        assert there.sql("SELECT count(*) FROM calls") != [["0"]]


@pytest.mark.slow
def test_a_replica_that_is_not_yet_promoted_is_away(own_server: Postgres) -> None:
    """The address leads to a replica before it may write: nothing is taken as written."""
    database = own_server.database()
    with serving(database) as made, own_server.replica() as replica:

        def trouble(traffic: Traffic) -> None:
            own_server.caught_up(replica)
            made[0].proxy.target = replica.port
            made[0].proxy.cut()
            traffic.wait(20, lambda found: found.caller == "free")
            made[0].proxy.target = own_server.port
            made[0].proxy.cut()  # nothing was lost: the primary is back

        traffic_survives(made, trouble)


@pytest.mark.slow
def test_reports_read_a_replica(own_server: Postgres) -> None:
    """What is not summed up yet is summed up for the report alone."""
    database = own_server.database()
    with serving(database) as [made], own_server.replica() as replica:
        found = [made.ask("free").id for _ in range(3)]
        made.settled()
        for table in ("calls", "attempts"):  # days that have ended
            database.sql(f"UPDATE {table} SET at_ns = at_ns - 5 * 86400000000000::bigint")
        own_server.caught_up(replica)
        there = {"DATABASE_URL": database.at(replica.port, SERVICE)}
        for words in (("costs", "--all", "--json"), ("costs", "--by", "day,caller", "--json")):
            assert made.host.command(*words, env=there) == made.host.command(*words)
        for id in found:
            assert id in made.host.command("logs", "--json", env=there)


@pytest.mark.slow
def test_hosts_behind_pgbouncer(postgres: Postgres, pgbouncer: PgBouncer) -> None:
    """In transaction mode nothing of a session lasts: neither statements nor LISTEN."""
    with serving(postgres.database(), 2, pgbouncer.port) as made:
        traffic_survives(made, lambda traffic: traffic.wait(100))
        first, second = (each.host for each in made)
        for action, state in (("open", "open"), ("close", "closed")):
            assert first.ask(f"/providers/two/circuit/{action}", b"").status == 200
            began = time.monotonic()
            eventually(lambda: second.circuits("two") == {state}, f"circuits {action}")  # noqa: B023
            assert time.monotonic() - began < 12


# -- the start -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_service_starts_while_its_database_is_away(postgres: Postgres) -> None:
    """It answers calls, and records them once the database is there."""
    database = postgres.database()
    with contextlib.ExitStack() as stack:
        vendor = stack.enter_context(MeteredVendor())
        proxy = stack.enter_context(Proxy(postgres.port))
        env = {"METERED_KEY": "sk-metered", "DATABASE_URL": database.at(proxy.port, SERVICE)}
        host = Host(configuration(vendor), env)
        stack.callback(host.__exit__)
        host.command("ledger", "init", env={"DATABASE_URL": database.url})
        proxy.refuse()
        host.start()
        found = [call(host.port, "free", PLAIN, 7) for _ in range(3)]
        assert {each.status for each in found} == {200}
        proxy.accept()
        eventually(host.settled, "every call in the ledger")
        assert set(host.calls()) == {each.id for each in found}


@pytest.mark.slow
def test_a_database_without_a_schema_stops_the_start(database: Database) -> None:
    env = {"DATABASE_URL": database.service}
    host = Host('[ledger]\nurl = "env:DATABASE_URL"\n', env)
    with contextlib.ExitStack() as stack:
        stack.callback(host.__exit__)
        host.start(wait=False)
        assert host.process is not None
        assert host.process.wait(30) == 1
        assert "infermux ledger init" in host.log and "Traceback" not in host.log
        assert PASSWORD not in host.log
