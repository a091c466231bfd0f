"""Tests of the ledger in PostgreSQL: its schema, its partitions, and many hosts at a time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import pytest
from books import DAY, NOON, call, counted, keep
from databases import PASSWORD, Database, PgBouncer, Postgres
from network import Proxy
from support import eventually, how_many

from infermux.config.readers import database_url
from infermux.config.settings import Secret
from infermux.errors import BudgetExceeded, ConfigError
from infermux.ledger import LEASE_SECONDS, Budget, Hold, LedgerUnavailable, Record
from infermux.ledger.spool import Deferred, Spool
from infermux.ledger.sqlite import SQLiteLedger
from infermux.ledger.stores.answers import Kept
from infermux.ledger.stores.keys import IssuedKey
from infermux.routing.accounting import record
from infermux.types import Window

pytest.importorskip("psycopg_pool", reason="pip install 'infermux[postgres]'")

import psycopg

from infermux.admission.rate_limiter import RateLimiter
from infermux.ledger.postgres import PostgresLedger, circuits, schema


def settled(id: str, cost: int, *, at: float = NOON, caller: str = "web") -> Record:
    return record(call(id, at=at, caller=caller, cost=cost))


Opens = Callable[..., PostgresLedger]
T = TypeVar("T")


@pytest.fixture
def opens(tmp_path: Path) -> Iterator[Opens]:
    """Returns ledgers, each as on a host of its own; *patient*, as a busy machine is not away."""
    made: list[PostgresLedger] = []

    def open_ledger(url: str, **options: Any) -> PostgresLedger:
        spool = tmp_path / f"{len(made)}.spool"
        made.append(PostgresLedger(url, spool=spool, **{"patient": True} | options))
        return made[-1]

    yield open_ledger
    for each in made:
        each.close()


@pytest.fixture
def there(database: Database, opens: Opens) -> Database:
    """A database with an empty ledger."""
    opens(database.url, clock=lambda: NOON).migrate(create=True)
    return database


def patiently(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Do *work* again while the database is away: nothing counts twice."""
    for _ in range(600):
        try:
            return work(*args, **options)
        except LedgerUnavailable:
            time.sleep(0.05)
    raise AssertionError("the ledger stays away")


# -- the schema ------------------------------------------------------------------------------------


def test_a_service_neither_makes_nor_migrates_tables(database: Database, opens: Opens) -> None:
    with pytest.raises(LedgerUnavailable) as error:
        opens(database.service).check()
    assert "infermux ledger init" in error.value.reason and not error.value.temporary
    with pytest.raises(LedgerUnavailable, match="unavailable") as error:
        opens(database.service).migrate(create=True)
    assert "permission denied" in error.value.reason
    with pytest.raises(LedgerUnavailable) as error:
        opens(database.url).migrate(create=False)
    assert "infermux ledger init" in error.value.reason
    assert opens(database.url).migrate(create=True)
    assert opens(database.url).migrate(create=True) == []
    opens(database.service).check()
    for version, words in ((0, "infermux ledger migrate"), (99, "newer than this InferMux")):
        database.sql(f"UPDATE infermux_schema SET version = {version}")
        with pytest.raises(LedgerUnavailable) as error:
            opens(database.service).check()
        assert words in error.value.reason and not error.value.temporary


def test_a_database_or_pooler_that_would_keep_wrong_books_is_refused(
    postgres: Postgres, there: Database, pgbouncer: PgBouncer, opens: Opens
) -> None:
    def refused(url: str) -> str:
        with pytest.raises(LedgerUnavailable) as error:
            opens(url).check()
        assert not error.value.temporary
        return error.value.reason

    postgres.sql("CREATE DATABASE old ENCODING 'SQL_ASCII' TEMPLATE template0")
    assert "its encoding is SQL_ASCII" in refused(postgres.url("old"))
    postgres.drop(Database(postgres, "old"))
    with PgBouncer(postgres, "statement") as pooler:
        assert "statement pooling mode" in refused(there.at(pooler.port))
    there.sql(f"ALTER DATABASE {there.name} SET default_transaction_isolation = 'repeatable read'")
    assert "= 'read committed'" in refused(there.at(pgbouncer.port))
    opens(there.url).check()


def test_a_service_that_may_makes_its_tables(database: Database, opens: Opens) -> None:
    ledger = opens(database.url, migrate=True)
    ledger.check()
    assert ledger.settle(settled("a", 1))


def test_hosts_that_start_at_once_make_the_tables_once(database: Database, opens: Opens) -> None:
    ledgers = [opens(database.url, migrate=True) for _ in range(4)]
    together, problems = threading.Barrier(4), list[str | None]()

    def start(ledger: PostgresLedger) -> None:
        together.wait()
        problems.append(ledger.problem())

    crew = [threading.Thread(target=start, args=(each,)) for each in ledgers]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert problems == [None] * 4
    assert database.sql("SELECT count(*) FROM infermux_schema") == [["1"]]
    assert all(each.settle(settled(f"{n}", 1)) for n, each in enumerate(ledgers))
    assert ledgers[0].problems() == []


def test_init_grants_a_role_what_a_service_needs(postgres: Postgres, opens: Opens) -> None:
    database = postgres.database()
    database.sql(
        "ALTER DEFAULT PRIVILEGES FOR ROLE ledger_owner REVOKE ALL ON TABLES FROM ledger_service"
    )
    opens(database.url).migrate(create=True, role="ledger_service")
    ledger, budget = opens(database.service), Budget("web", 1000)
    ledger.check()
    assert ledger.settle(settled("a", 7), ledger.reserve(budget, 10, call_id="a", at=NOON))
    ledger.publish("open", "a", "")
    assert ledger.rates(RateLimiter(Path(ledger.spool_path).with_suffix(".r"))).take("a", rpm=1, tpm=None) is None  # fmt: skip
    assert ledger.problems() == []
    for right, table in (("INSERT", "holds"), ("DELETE", "calls"), ("UPDATE", "rates")):
        database.sql(f"REVOKE {right} ON {table} FROM ledger_service")
        with pytest.raises(LedgerUnavailable) as error:
            opens(database.service, patient=False).check()
        assert f"ledger_service may not {right} in the table {table}" in error.value.reason
        assert "infermux ledger init --role ledger_service" in error.value.reason
        assert not error.value.temporary
        opens(database.service).check()  # a command, which may only read
        opens(database.url).migrate(create=True, role="ledger_service")
        opens(database.service, patient=False).check()
    postgres.drop(database)


def test_a_table_of_another_program_is_left_alone(database: Database, opens: Opens) -> None:
    database.sql("CREATE TABLE calls (id INTEGER)")
    with pytest.raises(LedgerUnavailable) as error:
        opens(database.url).migrate(create=True)
    assert "another program" in error.value.reason


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace(PASSWORD, "wr0ng-secret"),
        lambda url: url.replace("127.0.0.1", "127.0.0.1,127.0.0.2"),
        lambda url: url.rpartition("/")[0] + "/n0ne",
        lambda url: url + "?sslmode=verify-full&sslrootcert=/nowhere",
        lambda url: url + "?nonsense=1",
        lambda url: url + "?connect_timeout=abc",
        lambda url: url + "?sslmode=always",
        lambda url: url + "?options=-cnonsense%3D1",
        lambda url: url.rpartition(":")[0] + ":99999/x",
    ],
)
def test_what_cannot_be_connected_to_is_told_without_the_password(
    database: Database, opens: Opens, change: Callable[[str], str], caplog: Any
) -> None:
    url = change(database.service)
    ledger = opens(url, patient=False)
    with pytest.raises(LedgerUnavailable) as error:
        ledger.check()
    with pytest.raises(LedgerUnavailable) as second:
        ledger.reserve(Budget("web", 1), 1, call_id="a", at=NOON)
    assert error.value.temporary is ("127.0.0.2" in url) and "\n" not in error.value.reason
    said = f"{error.value.reason} {error.value.told} {second.value.reason} {caplog.text} {error.value!r}"  # fmt: skip
    assert PASSWORD not in said and "wr0ng-secret" not in said
    assert "127.0.0" not in error.value.told


@pytest.mark.parametrize("odd", ["s3cr@t-word", "s3cr/t-word", "s3cr?t-word", "s3cr#t-word", "s3cr%zzt-word", "s3cr t-word"])  # fmt: skip
def test_a_password_that_is_not_written_as_in_a_url_is_told_without_it(odd: str) -> None:
    """libpq would take a part of it for the host, and show that."""
    with pytest.raises(ConfigError) as error:
        database_url(Secret(f"postgresql://web:{odd}@127.0.0.1:1/db"), "[ledger].url")
    assert "%40" in str(error.value) and "%25" in str(error.value)
    assert "s3cr" not in repr(error.value) and "t-word" not in repr(error.value)
    written = odd.translate({ord(each): f"%{ord(each):02X}" for each in "%@/?# "})
    database_url(Secret(f"postgresql://web:{written}@127.0.0.1:1/db"), "[ledger].url")


# -- partitions ------------------------------------------------------------------------------------


def rows(database: Database, table: str) -> int:
    return int(database.sql(f"SELECT count(*) FROM {table}")[0][0])


@pytest.mark.slow
def test_calls_are_kept_by_month_and_a_month_is_dropped(there: Database, opens: Opens) -> None:
    """The default partition has what no month's has, until `migrate` makes that one."""
    ledger = opens(there.url, clock=lambda: NOON)
    old = NOON - 400 * DAY
    for n, at in enumerate([old, old + DAY, NOON, NOON]):
        assert ledger.settle(settled(str(n), 10**n, at=at))
    assert (rows(there, "calls_default"), rows(there, "calls_2026_11")) == (2, 2)
    assert opens(there.url, clock=lambda: old).migrate(create=False) == ["made 13 partitions"]
    assert (rows(there, "calls_default"), rows(there, "attempts_default")) == (0, 0)
    assert (rows(there, "calls_2025_10"), rows(there, "attempts_2025_10")) == (2, 2)
    before = ledger.totals("day", "model")
    assert ledger.prune(NOON - 20 * DAY) == 2
    names = {name for (name,) in there.sql("SELECT relname FROM pg_class WHERE relkind = 'r'")}
    assert not {"calls_2025_10", "attempts_2025_10", "calls_2026_10"} & names
    assert {"calls_2026_11", "calls_2026_12"} < names
    assert ledger.totals("day", "model") == before and len(ledger.rows()) == 2
    assert ledger.settle(settled("late", 5, at=old))  # to the default partition
    assert ledger.prune(NOON - 20 * DAY) == 1
    assert ledger.totals()[0].cost == 1111 + 5
    assert ledger.problems() == []


@pytest.mark.slow
def test_a_role_that_owns_nothing_deletes_rows(there: Database, opens: Opens) -> None:
    ledger = opens(there.service, clock=lambda: NOON)
    old = NOON - 40 * DAY
    for n in range(3):
        assert ledger.settle(settled(str(n), 10**n, at=old))
    assert ledger.prune(NOON) == 3
    assert rows(there, "calls_2026_10") == 0
    assert ledger.totals()[0].cost == 111


@pytest.mark.slow
def test_calls_are_settled_while_a_month_is_counted_and_sums_are_merged(
    there: Database, opens: Opens
) -> None:
    """Each waits for rows that another transaction has: no call waits for them in turn."""
    ledger, old = opens(there.url, clock=lambda: NOON), NOON - 70 * DAY
    assert ledger.settle(settled("old", 5, at=old))
    opens(there.url, clock=lambda: old).migrate(create=False)
    assert ledger.totals()[0].cost == 5  # the day is summed up
    for n, (table, oldest) in enumerate({"rolled": "day", "sums": "slot"}.items()):
        pruned = threading.Thread(target=ledger.prune, args=(NOON,))
        with psycopg.connect(there.url) as other:
            other.execute(f"SELECT 1 FROM {table} ORDER BY {oldest} LIMIT 1 FOR UPDATE")
            pruned.start()
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            eventually(lambda: there.sql(waiting) == [["1"]], "waiting for a row")  # noqa: B023
            budget = Budget("web", 1000, "day")
            hold = ledger.reserve(budget, 10, call_id=f"{n}", at=NOON)
            assert ledger.settle(settled(f"{n}", 7), hold)
            assert pruned.is_alive()
        pruned.join()
    assert ledger.totals()[0].cost == 5 + 7 + 7 and ledger.problems() == []
    assert rows(there, "calls") == 2


def test_a_month_is_counted_again_if_a_call_comes_late_and_the_connection_is_lost(
    there: Database, opens: Opens
) -> None:
    old, ledger = NOON - 70 * DAY, opens(there.service, clock=lambda: NOON)
    assert ledger.settle(settled("old", 5, at=old)) and ledger.prune(NOON) == 1
    assert ledger.settle(settled("later", 3, at=old))
    with Proxy(there.server.port) as proxy, ThreadPoolExecutor() as crew:
        owner = opens(there.at(proxy.port), clock=lambda: NOON)
        with locked(there, "SELECT 1 FROM rolled FOR UPDATE"):  # as another late call does
            pruning = crew.submit(owner.prune, NOON)
            wait_for_waiting(there, 1)
            assert ledger.settle(settled("late", 7, at=old + DAY))
            proxy.cut_at(b"ROLLBACK\0")
        assert pruning.result() == 2 and proxy.has_cut
    assert rows(there, "calls") == 0 and ledger.totals()[0].cost == 15


@pytest.mark.slow
def test_a_month_that_a_report_reads_is_dropped_after_it(there: Database, opens: Opens) -> None:
    ledger, old = opens(there.url, clock=lambda: NOON), NOON - 40 * DAY
    opens(there.url, clock=lambda: old).migrate(create=False)
    assert ledger.settle(settled("old", 5, at=old))
    pruned = threading.Thread(target=ledger.prune, args=(NOON,))
    with psycopg.connect(there.url) as other:
        other.execute("SELECT count(*) FROM calls")
        pruned.start()
        tried = "canceling statement due to lock timeout"
        eventually(lambda: there.server.log.count(tried) > 8, "attempts to lock the month")
        assert ledger.settle(settled("new", 7))
    pruned.join()
    assert "calls_2026_10" not in {name for (name,) in there.sql("SELECT relname FROM pg_class")}
    assert ledger.totals()[0].cost == 12 and ledger.problems() == []


@pytest.mark.slow
def test_a_month_without_a_partition_is_told(there: Database, opens: Opens) -> None:
    at = NOON
    ledger = opens(there.url, clock=lambda: at)
    assert ledger.problems() == []
    at = NOON + 800 * DAY
    [problem] = ledger.problems()
    assert "2029-01 have no partition" in problem and "infermux ledger migrate" in problem
    opens(there.url, clock=lambda: at).migrate(create=False)
    assert ledger.problems() == []


# -- many at a time --------------------------------------------------------------------------------

TEAM = Budget("crew", 4000, members=("a", "b", "c"))
OTHER = Budget("zoo", 5000, members=("a", "b", "c"))
KEYS = [  # the same rows, in different orders
    Budget("a", 2000, "day", also=(TEAM, OTHER)),
    Budget("b", 2000, "day", also=(OTHER, TEAM)),
    Budget("c", 2000, "month", also=(TEAM,)),
]


def held(ledger: PostgresLedger, budget: Budget, id: str) -> Hold:
    """Reserve 20 for a call, whose caller asks again if it was not told the outcome."""
    try:
        found: Hold = patiently(ledger.reserve, budget, 20, call_id=id, at=NOON)
        return found
    except ValueError:
        return Hold(id, budget, 20, NOON)


def hammer(ledgers: list[PostgresLedger], rounds: int, threads: int = 4) -> dict[str, int]:
    """Reserve, top up and settle with all ledgers at a time; return what each caller has spent."""
    spent, failures, lock = dict.fromkeys("abc", 0), list[BaseException](), threading.Lock()

    def run(number: int, ledger: PostgresLedger) -> None:
        chance = random.Random(number)
        try:
            for n in range(rounds):
                budget, id = chance.choice(KEYS), f"{number}.{n}"
                costs, hold = [chance.randrange(1, 20)], None
                try:
                    hold = held(ledger, budget, id)
                    if chance.random() < 0.3:
                        costs.append(chance.randrange(1, 20))
                        hold = patiently(ledger.top_up, hold, 20, at=NOON)
                except BudgetExceeded:
                    if hold is None:
                        continue
                    costs = costs[:1]
                cost = sum(costs)
                row = settled(id, cost, caller=budget.caller)
                patiently(ledger.settle, row, hold)
                with lock:
                    spent[budget.caller] += cost
        except BaseException as error:
            failures.append(error)

    crew = [
        threading.Thread(target=run, args=(n, ledgers[n % len(ledgers)]))
        for n in range(threads * len(ledgers))
    ]
    for each in crew:
        each.start()
    for each in crew:
        each.join(300)
    for failure in failures:
        raise failure
    return spent


def nothing_differs(ledger: PostgresLedger, spent: dict[str, int]) -> None:
    """The books are those of the callers, to the pico-dollar, and no budget is overspent."""
    assert {total.key[0]: total.cost for total in ledger.totals("caller")} == {
        caller: cost for caller, cost in spent.items() if cost
    }
    for budget in KEYS:
        assert ledger.spent(budget, NOON) == (spent[budget.caller], 0)
        assert spent[budget.caller] <= budget.limit_pico
    for team, callers in ((TEAM, "abc"), (OTHER, "ab")):
        assert ledger.spent(team, NOON) == (sum(spent[caller] for caller in callers), 0)
        assert ledger.spent(team, NOON).spent <= team.limit_pico
    assert ledger.problems() == []


@pytest.mark.slow
def test_budgets_in_any_order_neither_overspend_nor_wait_in_a_circle(
    there: Database, opens: Opens
) -> None:
    ledgers = [opens(there.service, clock=lambda: NOON, patient=False) for _ in range(3)]
    before = there.server.log.count("deadlock detected")
    nothing_differs(ledgers[0], hammer(ledgers, how_many(12, 60, 200)))
    assert there.server.log.count("deadlock detected") == before


@pytest.mark.slow
def test_transactions_that_the_server_takes_back_are_repeated(
    there: Database, opens: Opens, pgbouncer: PgBouncer
) -> None:
    """As CockroachDB does, all are serializable: many fail, and none is seen to."""
    there.sql(f"ALTER DATABASE {there.name} SET default_transaction_isolation = 'serializable'")
    url = there.at(pgbouncer.port, "ledger_service")  # in a session of its own, none would be
    ledgers = [opens(url, clock=lambda: NOON, patient=False) for _ in range(2)]
    nothing_differs(ledgers[0], hammer(ledgers, how_many(5, 40, 100), 3))


@pytest.mark.slow
def test_connections_that_are_cut_count_nothing_twice(there: Database, opens: Opens) -> None:
    """Also between a commit and its answer."""
    with Proxy(there.server.port) as proxy:
        ledgers = [opens(there.at(proxy.port), clock=lambda: NOON, patient=False) for _ in range(2)]
        over, cuts = threading.Event(), list[int]()

        def cut() -> None:
            last = proxy.turns
            while not over.wait(0.05):
                if proxy.turns > last + 40:  # new connections take half of them
                    cuts.append(proxy.cut())
                    last = proxy.turns

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            spent = hammer(ledgers, how_many(12, 60, 200), 2)
        finally:
            over.set()
            cutter.join()
        assert len(cuts) > 2
        ledgers[0].lose(NOON + LEASE_SECONDS + 1)  # what the server has reserved too late
        nothing_differs(ledgers[0], spent)


def test_a_hold_that_comes_after_its_settlement_spends_nothing(
    there: Database, opens: Opens
) -> None:
    """The server may run a reservation late if its connection was cut, and it was asked again."""
    ledger = opens(there.service, clock=lambda: NOON)
    hold = ledger.reserve(KEYS[0], 20, call_id="x", at=NOON)
    ledger.settle(settled("x", 5, caller="a"), hold)
    ledger.reserve(KEYS[0], 20, call_id="x", at=NOON)
    assert ledger.spent(KEYS[0], NOON) == (5, 20)
    ledger.lose(NOON + LEASE_SECONDS + 1)
    nothing_differs(ledger, {"a": 5, "b": 0, "c": 0})


def test_changes_whose_outcome_was_not_heard_are_made_once(there: Database, opens: Opens) -> None:
    """The connection is lost when the server has committed, and nobody was told."""
    with Proxy(there.server.port) as proxy:
        ledger, budget = opens(there.at(proxy.port), clock=lambda: NOON), Budget("web", 1000, "day")

        def unheard(change: Callable[..., T], *values: Any) -> T:
            proxy.cut_at(b"COMMIT\0")
            found = change(*values)
            assert proxy.has_cut
            return found

        assert unheard(ledger.adjust, budget, 500, NOON).pico == 500
        ledger.adjust(budget, 500, NOON)  # another one
        assert [each.limit for each in ledger.states([budget], NOON)] == [2000]
        ledger.settle(settled("a", 70))
        assert unheard(ledger.adjust, budget, None, NOON + 1).pico == 70
        assert ledger.spent(budget, NOON) == (0, 0)
        assert [each.action for each in ledger.adjustments()] == ["reset", "raise", "raise"]
        keys, first = ledger.keys(), IssuedKey("app", "{}", NOON, hashes=(("1", None),))
        assert unheard(keys.create, first)
        assert not keys.create(first._replace(hashes=(("2", None),)))
        assert unheard(keys.rotate, "app", "3", NOON, NOON + 60)
        assert keys.keys()[1][0].hashes == (("1", NOON + 60), ("3", None))
        assert unheard(keys.revoke, "app", NOON)
        assert not keys.revoke("app", NOON + 1) and keys.keys()[1][0].revoked == NOON


@pytest.mark.slow
def test_a_server_that_is_killed_counts_nothing_twice(tmp_path: Path, opens: Opens) -> None:
    with Postgres() as server:
        there = server.database()
        opens(there.url, clock=lambda: NOON).migrate(create=True)
        ledgers = [opens(there.service, clock=lambda: NOON, patient=False) for _ in range(2)]
        over = threading.Event()

        def kill() -> None:
            while not over.wait(1.5):
                server.restart()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            spent = hammer(ledgers, how_many(30, 100, 300))
        finally:
            over.set()
            killer.join()
        nothing_differs(ledgers[0], spent)


@pytest.mark.slow
def test_a_pooler_between_changes_nothing(
    there: Database, opens: Opens, pgbouncer: PgBouncer
) -> None:
    url = there.at(pgbouncer.port, "ledger_service")
    ledgers = [opens(url, clock=lambda: NOON, patient=False) for _ in range(2)]
    nothing_differs(ledgers[0], hammer(ledgers, how_many(10, 60, 200)))


@pytest.mark.slow
def test_a_period_begins_once_while_calls_are_settled(there: Database, opens: Opens) -> None:
    """What is settled at that moment counts once: in what the period begins with, or after it."""
    ledgers = [opens(there.service, clock=lambda: NOON, patient=False) for _ in range(2)]
    for turn in range(how_many(6, 40, 200)):
        caller, together = f"c{turn}", threading.Barrier(5)

        def run(n: int, caller: str, together: threading.Barrier) -> None:
            together.wait()
            if n == 0:
                budget = Budget(caller, 1000, "day")
                patiently(ledgers[0].reserve, budget, 1, call_id=f"{caller}.h", at=NOON)
            else:
                row = settled(f"{caller}.{n}", 10, caller=caller)
                patiently(ledgers[n % 2].settle, row)

        crew = [threading.Thread(target=run, args=(n, caller, together)) for n in range(5)]
        for each in crew:
            each.start()
        for each in crew:
            each.join()
        assert ledgers[0].spent(Budget(caller, 1000, "day"), NOON) == (40, 1), turn


@contextmanager
def locked(there: Database, statement: str) -> Iterator[psycopg.Cursor[Any]]:
    """Run a statement as the owner, in a transaction that ends with the `with` block."""
    with psycopg.connect(there.url) as link, link.cursor() as cursor:
        cursor.execute(statement)
        yield cursor


def wait_for_waiting(there: Database, count: int) -> None:
    """Wait until as many transactions wait for a lock."""
    waiting = f"""SELECT count(*) FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND datname = '{there.name}'"""
    eventually(lambda: there.sql(waiting) == [[str(count)]], f"{count} waiting for a lock")


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_period_begins_with_what_is_settled_at_that_moment(
    there: Database, opens: Opens, isolation: str
) -> None:
    there.sql(f"ALTER DATABASE {there.name} SET default_transaction_isolation = '{isolation}'")
    ledger, budget = opens(there.service, clock=lambda: NOON), Budget("web", 1000, "day")
    with ThreadPoolExecutor() as crew:
        with locked(there, "LOCK TABLE sums IN SHARE MODE"):
            settling = crew.submit(ledger.settle, settled("a", 10))
            wait_for_waiting(there, 1)
            reserving = crew.submit(ledger.reserve, budget, 1, call_id="b", at=NOON)
            wait_for_waiting(there, 2)
        assert settling.result() and reserving.result()
    assert ledger.spent(budget, NOON) == (10, 1)


def test_a_period_begins_while_calls_of_others_are_settled(there: Database, opens: Opens) -> None:
    ledger, slow = opens(there.service, clock=lambda: NOON), Budget("slow", 1000, "day")
    quick = opens(there.service, clock=lambda: NOON, patient=False)
    patiently(quick.reserve, Budget("first", 1000, "day"), 1, call_id="f", at=NOON)
    hold = ledger.reserve(slow, 20, call_id="a", at=NOON)
    with ThreadPoolExecutor() as crew:
        with locked(there, "SELECT * FROM budgets WHERE owner = 'slow' FOR UPDATE"):
            settling = crew.submit(ledger.settle, settled("a", 10, caller="slow"), hold)
            wait_for_waiting(there, 1)
            users = [Budget("slow", 500, user=str(n), also=()) for n in range(3)]
            for each in (Budget("web", 1000, "day"), *users):  # those of end users begin at 0
                patiently(quick.reserve, each, 1, call_id=each.owner, at=NOON)
            assert not settling.done()
        assert settling.result()
    assert ledger.spent(slow, NOON) == (10, 0)


def test_answers_of_a_full_cache_do_not_wait_in_a_circle(there: Database, opens: Opens) -> None:
    """One makes room by removing the oldest, which another worker keeps again at that moment."""
    ledger, ask = opens(there.service, clock=lambda: NOON), {"expires": NOON + 60, "most": 1000}
    answers, before = ledger.answers(), there.server.log.count("deadlock detected")
    for n in range(3):
        answers.keep(f"{n}", "chat", Kept(NOON + n, "x" * 100), **ask)
    with ThreadPoolExecutor() as crew:
        with locked(there, "SELECT * FROM answer_sizes FOR UPDATE"):
            working = []
            for n, digest in enumerate("30", 1):
                kept = Kept(NOON + 10, "x" * 100)
                working.append(crew.submit(answers.keep, digest, "chat", kept, **ask))
                wait_for_waiting(there, n)
        for each in working:
            each.result()
    assert there.server.log.count("deadlock detected") == before
    assert [n for n in "0123" if answers.find(n, NOON + 10)] == ["0", "2", "3"]
    assert there.sql("SELECT bytes FROM answer_sizes") == [["900"]]


@pytest.mark.slow
def test_what_is_odd_in_a_batch_is_settled_alone_and_the_rest_together(
    there: Database, opens: Opens, tmp_path: Path
) -> None:
    """Of a spool that is read again some calls are stored, some holds gone; the others are new."""
    ledger, budget = opens(there.service, clock=lambda: NOON), Budget("web", 10**6, "day")
    late = Spool(str(tmp_path / "late"))
    for n in range(40):
        hold = ledger.reserve(budget, 20, call_id=f"{n}", at=NOON, lease=60 if n == 7 else 900)
        late.add(Deferred(settled(f"{n}", 10), hold))
    late.add(Deferred(settled("free", 10), None))
    for n in (3, 20):
        ledger.settle(settled(f"{n}", 10), Hold(f"{n}", budget, 20, NOON))
    ledger.top_up(Hold("30", budget, 20, NOON), 5, at=NOON)  # of which the spool does not know
    opens(there.service, clock=lambda: NOON + 61).lose(NOON + 61)
    [[before]] = there.sql("SELECT txid_current()")
    late.drain(ledger._write_deferred)
    [[after]] = there.sql("SELECT txid_current()")
    assert int(after) - int(before) < 12, "one transaction for nearly all of them"
    assert ledger.spent(budget, NOON) == (410, 0)
    assert ledger.totals()[0][1:3] == (41, 41) and ledger.problems() == []


# -- a database that is away -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_database_that_does_not_answer_is_given_up_in_time(there: Database, opens: Opens) -> None:
    """The first call waits, the next ones do not; it is noticed when it is back."""
    with Proxy(there.server.port) as proxy:
        ledger = opens(there.at(proxy.port), clock=lambda: NOON, patient=False)
        assert patiently(ledger.settle, settled("a", 1))
        for trouble in (proxy.swallow, proxy.refuse):
            for _ in range(5):  # a busy machine may take longer, but not always
                trouble()
                took = list(refusals(ledger))
                proxy.accept()
                eventually(lambda: ledger.problem() is None, "the database being back")
                if took[0] < 0.95 and max(took[1:]) < 0.1:
                    break
            else:
                raise AssertionError(took)
            assert patiently(ledger.settle, settled(trouble.__name__, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "read",
    [
        lambda ledger: ledger.keys().version(),
        lambda ledger: ledger.answers().find("0", NOON),
        lambda ledger: ledger.objects().has("openai", "web", "file-1"),
    ],
    ids=["keys", "answers", "objects"],
)
def test_what_else_a_call_reads_is_given_up_in_time(
    there: Database, opens: Opens, read: Callable[[PostgresLedger], Any]
) -> None:
    for _ in range(5):  # a busy machine may take longer, but not always
        with Proxy(there.server.port) as proxy:
            ledger = opens(there.at(proxy.port), clock=lambda: NOON, patient=False)
            patiently(read, ledger)
            proxy.swallow()
            began = time.monotonic()
            with pytest.raises(LedgerUnavailable):
                read(ledger)
            if (took := time.monotonic() - began) < 0.95:
                return
    raise AssertionError(took)


def refusals(ledger: PostgresLedger) -> Iterator[float]:
    """Yield the seconds that each of three calls takes to learn that the database is away."""
    for n in range(3):
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable) as error:
            ledger.reserve(Budget("web", 100), 1, call_id=f"x{n}", at=NOON)
        yield time.monotonic() - began
        assert error.value.temporary and "127" not in error.value.told
    with pytest.raises(LedgerUnavailable):
        ledger.check()


def test_a_reservation_takes_few_round_trips(there: Database, opens: Opens) -> None:
    """A database that is 50 ms away is not one that does not answer, also as a day begins."""
    with Proxy(there.server.port) as proxy:
        ledger = opens(there.at(proxy.port), clock=lambda: NOON, connections=1)

        def trips(work: Callable[[], Any]) -> int:
            before = proxy.turns
            work()
            return proxy.turns - before

        def reserve(id: str, pico: int = 20) -> Hold:
            return ledger.reserve(KEYS[0], pico, call_id=id, at=NOON)

        reserve("first")
        there.sql("DELETE FROM budgets")
        assert trips(lambda: reserve("a")) <= 4  # it begins three periods
        assert trips(lambda: reserve("b")) == 1
        hold = reserve("c")
        assert trips(lambda: ledger.top_up(hold, 20, at=NOON)) <= 2

        def refused() -> None:
            with pytest.raises(BudgetExceeded):
                reserve("d", 3000)

        refused()
        assert trips(refused) <= 3
        for n in range(50):
            ledger.reserve(KEYS[2], 1, call_id=f"lost {n}", at=NOON, lease=-1)
        assert trips(lambda: ledger.lose(NOON)) < 20
        assert rows(there, "calls") == 50


@pytest.mark.parametrize("state", ["XX001", "0A000", "P0001", "23514"])
def test_a_call_that_the_server_refuses_is_written_later(
    there: Database, opens: Opens, state: str
) -> None:
    """Its disk has an error, or what a DBA has added forbids it: the call is answered already."""
    there.sql(
        f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN RAISE 'no' USING ERRCODE = '{state}'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON calls_default FOR EACH ROW EXECUTE FUNCTION refuse();
        CREATE TRIGGER refuse BEFORE INSERT ON holds FOR EACH ROW EXECUTE FUNCTION refuse()"""
    )
    ledger, early = opens(there.service, clock=lambda: NOON), settled("a", 1, at=DAY)
    with pytest.raises(LedgerUnavailable, match="unavailable") as error:
        ledger.settle(early)
    assert error.value.reason.endswith("no")
    if state != "23514":
        with pytest.raises(LedgerUnavailable):
            ledger.reserve(Budget("web", 1000, "day"), 1, call_id="b", at=NOON)
        assert ledger.defer(early)
        eventually(lambda: ledger.spooled() == 1, "the spool keeping it")
    there.sql("DROP FUNCTION refuse CASCADE")
    assert ledger.defer(early)
    eventually(lambda: ledger.spooled() == 0, "the spool being written")
    assert ledger.totals()[0].calls == 1


def test_a_value_that_no_index_takes_is_refused_alone(there: Database, opens: Opens) -> None:
    """The database is not away: a vendor's endless id must not stop other calls."""
    ledger, ident = opens(there.service, clock=lambda: NOON), random.Random(1).randbytes(9000).hex()
    for _ in range(2):
        with pytest.raises(LedgerUnavailable) as error:
            ledger.objects().add("odd", "web", [ident], NOON)
        assert "index row" in error.value.reason
        assert ledger.settle(settled("a", 1)) or ledger.totals()[0].calls == 1


@pytest.mark.slow
def test_a_server_that_may_not_write_is_away(own_server: Postgres, opens: Opens) -> None:
    there = own_server.database()
    opens(there.url, clock=lambda: NOON).migrate(create=True)
    ledger = opens(there.service, clock=lambda: NOON, patient=False)
    assert patiently(ledger.settle, settled("a", 1))
    own_server.read_only()
    own_server.disconnect(there.name)

    def refused() -> bool:
        with pytest.raises(LedgerUnavailable) as error:
            ledger.settle(settled("b", 1))
        assert error.value.temporary
        return ledger.problem() is not None

    eventually(refused, "being away")
    own_server.read_only(False)
    eventually(lambda: ledger.problem() is None, "being back")
    assert patiently(ledger.settle, settled("b", 1)) and ledger.totals()[0].calls == 2


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


# -- limits per minute -----------------------------------------------------------------------------


@pytest.mark.slow
def test_limits_per_minute_are_exact_over_hosts(
    there: Database, opens: Opens, tmp_path: Path
) -> None:
    hosts = [opens(there.service).rates(RateLimiter(tmp_path / f"{n}.rates")) for n in range(3)]
    waits: list[float | None] = []

    def run(n: int) -> None:
        for _ in range(10):
            waits.append(hosts[n % 3].take("web", rpm=25, tpm=None))

    crew = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert waits.count(None) == 25
    assert all(wait is None or 0 < wait <= 61 for wait in waits)
    assert counted(hosts[0], "web") == (25, 0)
    there.sql("UPDATE rates SET seconds = ARRAY(SELECT s - 60 FROM unnest(seconds) AS s)")
    wait = hosts[1].take("web", rpm=25, tpm=None)
    assert wait is None or wait < 1  # the first seconds have passed
    there.sql("UPDATE rates SET seconds = ARRAY(SELECT s - 61 FROM unnest(seconds) AS s)")
    assert [hosts[n % 3].take("web", rpm=2, tpm=None) is None for n in range(4)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.slow
def test_tokens_per_minute_are_corrected(there: Database, opens: Opens, tmp_path: Path) -> None:
    one, two = (opens(there.service).rates(RateLimiter(tmp_path / f"{n}.r")) for n in range(2))
    began = time.monotonic()
    unused = Window(None, 100)
    assert one.take("web", rpm=None, tpm=100, tokens=101, window=unused) == inf
    assert (unused.tokens, unused.tokens_reset) == (0, 0.0)
    assert one.take("web", rpm=None, tpm=100, tokens=60) is None
    assert two.take("web", rpm=9, tpm=100, tokens=101, window=(window := Window(9, 100))) == inf
    assert (window.requests, window.tokens) == (1, 60)
    assert two.take("web", rpm=None, tpm=100, tokens=60) is not None
    # a second before the host's clock would have it
    there.sql("UPDATE rates SET seconds = ARRAY(SELECT s - 1 FROM unnest(seconds) AS s)")
    one.correct("web", -50, since=began)
    assert counted(two, "web") == (1, 10)
    assert two.take("web", rpm=None, tpm=100, tokens=60) is None
    two.correct("web", 35, since=began)
    assert counted(one, "web") == (2, 105)
    assert one.take("web", rpm=9, tpm=100, tokens=1) is not None
    one.correct("web", -1000, since=began)
    assert counted(one, "web") == (2, 0)


@pytest.mark.slow
def test_a_host_counts_alone_while_the_database_is_away(
    there: Database, opens: Opens, tmp_path: Path
) -> None:
    """Its own calls of the last minute count on, also once the database is back."""
    with Proxy(there.server.port) as proxy:
        ledger = opens(there.at(proxy.port), patient=False)
        rates = ledger.rates(RateLimiter(tmp_path / "r"))
        eventually(lambda: ledger.problem() is None, "the database being there")
        assert [rates.take("web", rpm=3, tpm=None) for _ in range(2)] == [None, None]
        proxy.refuse()
        assert rates.take("web", rpm=3, tpm=None) is None and rates.alone
        assert rates.take("web", rpm=3, tpm=None) is not None
        proxy.accept()
        eventually(lambda: ledger.problem() is None, "the database being back")
        assert not rates.alone
        assert rates.take("web", rpm=3, tpm=None) is not None
        eventually(lambda: counted(rates, "web")[0] == 2)
        assert rates.take("web", rpm=4, tpm=None) is None


@pytest.mark.slow
def test_a_server_that_crashed_has_no_counts_but_each_host_has_its_own(
    there: Database, opens: Opens, tmp_path: Path
) -> None:
    rates = opens(there.service).rates(RateLimiter(tmp_path / "r"))
    assert [rates.take("web", rpm=2, tpm=90, tokens=40) for _ in range(2)] == [None, None]
    there.sql("TRUNCATE rates")  # as a crash does with an unlogged table
    there.server.disconnect(there.name)
    assert rates.take("web", rpm=2, tpm=90, tokens=5) is not None
    assert rates.take("web", rpm=9, tpm=90, tokens=15) is not None
    assert counted(rates, "web") == (0, 0)
    assert rates.take("web", rpm=9, tpm=90, tokens=5) is None and counted(rates, "web") == (1, 5)


# -- circuits, clocks ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_command_is_heard_at_each_host_and_by_those_that_start_later(
    there: Database, opens: Opens
) -> None:
    one, two = opens(there.service), opens(there.service)
    assert two.published() == ()
    number = one.publish("open", "a", "")
    eventually(lambda: [each[0] for each in two.published()] == [number], "hearing of it")
    assert two.published()[0][1:] == ("open", "a", "")
    one.publish("close", "a", "m")
    two.publish("open", "b", "m")
    later = opens(there.service)
    expected = [("open", "a", ""), ("close", "a", "m"), ("open", "b", "m")]
    for each in (one, two, later):
        eventually(lambda: [told[1:] for told in each.published()] == expected, "hearing")  # noqa: B023
    one.publish("close", "a", "")  # of the whole provider: what was said of its models is over
    expected = [("open", "b", "m"), ("close", "a", "")]
    eventually(lambda: [told[1:] for told in later.published()] == expected, "hearing")


@pytest.mark.slow
def test_commands_are_heard_again_after_a_network_that_swallowed_what_was_sent(
    there: Database, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection on which a host listens stays open, and nothing comes."""
    monkeypatch.setattr(circuits, "READ_SECONDS", 1.0)
    one = opens(there.service)
    with Proxy(there.server.port) as proxy:
        two = opens(there.at(proxy.port, "ledger_service"))
        one.publish("open", "a", "")
        eventually(two.published, "hearing")
        accepted = proxy.accepted
        proxy.swallow()
        one.publish("close", "a", "")
        eventually(lambda: proxy.accepted > accepted, "a new connection")
        proxy.pass_on()
        eventually(lambda: two.published()[0].action == "close", "hearing")


@pytest.mark.slow
def test_periods_and_leases_are_those_of_the_databases_clock(
    there: Database, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, budget = time.time, Budget("web", 1000, "day")
    ledger, other = opens(there.service), opens(there.service)
    now = right()
    other.reserve(budget, 5, call_id="a", at=now, lease=900)
    monkeypatch.setattr(time, "time", lambda: right() + 40 * DAY)  # the host's clock is wrong
    ledger.settle(settled("b", 7, at=now), ledger.reserve(budget, 10, call_id="b", at=time.time()))
    assert ledger.spent(budget, time.time()) == (7, 5)
    ledger.lose(time.time())
    assert ledger.spent(budget, time.time()) == (7, 5)
    monkeypatch.undo()
    assert other.spent(budget, right()) == (7, 5)


# -- moving a ledger -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_ledger_is_moved_with_its_budgets_and_an_interrupted_copy_goes_on(
    there: Database, opens: Opens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infermux.ledger import queries

    path = tmp_path / "l.db"
    monkeypatch.setattr(queries, "PAGE", 7)
    keep(path, *[call(f"{n:04}", at=NOON - n * DAY / 2, cost=10**5 * n) for n in range(60)])
    own = Budget("web", 10**9, "month")
    with closing(SQLiteLedger(path, clock=lambda: NOON + DAY)) as old:
        old.settle(settled("h", 10), old.reserve(own, 100, call_id="h", at=NOON))
        old.reserve(own, 100, call_id="held", at=NOON)
        old.adjust(own, 77, NOON)
        old.objects().add("openai", "web", ["file-1"], NOON)
        secret = old.objects().secret()
        assert old.alerts().claim("budget:web", None, NOON, "one")
        old.prune(NOON - 20 * DAY)
        ledger = opens(there.url, clock=lambda: NOON + DAY)

        def stop(count: int) -> None:
            if count > 15:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ledger.copied_from(old, "l.db", stop)
        assert 0 < rows(there, "calls") < 30
        # a service sums up days of which only some calls are copied
        found = ledger.copied_from(old, "l.db", lambda _: ledger.totals("day"))
        assert found.resumed > 15 and found.differences == []
        for by in (("day",), ("model", "caller"), ("tag",), ()):
            assert ledger.totals(*by) == old.totals(*by)
        assert ledger.rows(limit=100) == old.rows(limit=100)
        for period in ("day", "month", "total"):
            budget = Budget("web", 10**9, period)
            assert ledger.states([budget], NOON) == old.states([budget], NOON)
        assert ledger.adjustments() == old.adjustments()
        assert ledger.objects().of("openai", "web") == {"file-1"}
        assert ledger.objects().secret() == secret
        assert ledger.alerts().sent() == old.alerts().sent() != {}
        assert ledger.problems() == []
        assert ledger.copied_from(old, "l.db").calls == found.calls
        with pytest.raises(LedgerUnavailable) as error:
            ledger.copied_from(old, "another.db")
        assert "empty" in error.value.reason


@pytest.mark.slow
def test_a_copy_that_differs_is_told(there: Database, opens: Opens, tmp_path: Path) -> None:
    keep(tmp_path / "l.db", call("a", cost=5), call("b", cost=6))
    there.sql(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.cost = NEW.cost + 1; RETURN NEW; END'",
    )
    there.sql(
        "CREATE TRIGGER spoil BEFORE INSERT ON attempts FOR EACH ROW EXECUTE FUNCTION spoil()"
    )
    with closing(SQLiteLedger(tmp_path / "l.db")) as old:
        found = opens(there.url).copied_from(old, "l.db")
    assert len(found.differences) == 1 and "attempts" in found.differences[0]


def test_a_text_without_nul_is_kept_as_it_is(there: Database, opens: Opens) -> None:
    ledger = opens(there.service)
    odd = settled("a", 1)
    odd = odd._replace(call=odd.call._replace(requested="\\u0000\\", model="m\\\0\\u0000"))
    assert ledger.settle(odd)
    [found] = ledger.rows()
    assert (found.call.requested, found.call.model) == ("\\u0000\\", "m\\\ufffd\\u0000")


def test_the_schema_has_what_a_role_is_granted(there: Database) -> None:
    named = {name for (name,) in there.sql("SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace")}  # fmt: skip
    assert named == {*schema.TABLES, "infermux_schema"}
