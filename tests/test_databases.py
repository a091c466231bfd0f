"""The databases of the tests do what the tests of the ledger rely on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from databases import OWNER, SERVICE, Database, PgBouncer, Postgres, execute, user
from network import Proxy
from support import ROOT, environment, eventually


def client(url: str, text: str) -> str:
    """Run a query as a client does, at most for a second; return what psql says of it."""
    try:
        return execute("psql", f"{url}?connect_timeout=2", "-XAtqc", text).strip()
    except AssertionError as error:
        return str(error)


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy(database.server.port) as made:
        yield made


@pytest.mark.slow
def test_the_owner_creates_and_the_service_only_uses(database: Database) -> None:
    assert client(database.url, "CREATE TABLE t (a int)") == ""
    assert client(database.service, "INSERT INTO t VALUES (3) RETURNING a") == "3"
    assert client(database.service, "DELETE FROM t") == ""
    assert "permission denied" in client(database.service, "CREATE TABLE u (a int)")
    assert "permission denied" in client(database.service, "TRUNCATE t")
    assert "password" in client(database.url.replace(":s3cret", ":other"), "SELECT 1")


def test_a_server_does_not_run_as_root(postgres: Postgres) -> None:
    assert postgres.process is not None
    other = user()
    expected = other.pw_uid if other else os.geteuid()
    assert os.stat(f"/proc/{postgres.process.pid}").st_uid == expected != 0


@pytest.mark.slow
def test_a_killed_server_keeps_what_was_committed() -> None:
    with Postgres() as server:
        database = server.database()
        client(database.url, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        server.kill()
        assert "refused" in client(database.url, "SELECT a FROM t")
        server.start()
        assert client(database.url, "SELECT a FROM t") == "1"
        folder = server.folder
    assert not folder.exists() and server.process is not None and server.process.poll() is not None


@pytest.mark.slow
def test_a_replica_takes_over() -> None:
    with Postgres() as server, server.replica(synchronous=True) as replica:
        there = Database(replica, server.database().name)
        client(server.url(there.name), "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        server.caught_up(replica)
        assert there.sql("SELECT a FROM t") == [["1"]]
        assert "read-only" in client(there.url, "INSERT INTO t VALUES (2)")
        server.kill()
        replica.promote()
        assert client(there.url, "INSERT INTO t VALUES (2) RETURNING a") == "2"


@pytest.mark.slow
def test_a_server_stands_still_and_becomes_read_only() -> None:
    with Postgres() as server:
        database = server.database()
        with server.frozen():
            assert "timeout" in client(database.url, "SELECT 1")
        server.read_only()
        assert "read-only" in client(database.url, "CREATE TABLE t (a int)")
        server.read_only(False)
        assert client(database.url, "CREATE TABLE t (a int)") == ""


def test_pgbouncer_gives_each_transaction_a_connection(
    pgbouncer: PgBouncer, database: Database
) -> None:
    url = database.at(pgbouncer.port)
    assert client(url, "CREATE TABLE t (a int)") == ""
    assert client(database.at(pgbouncer.port, SERVICE), "SELECT count(*) FROM t") == "0"
    assert client(url, "SELECT current_user") == OWNER
    assert "prepared statement" in execute_twice(url)


def execute_twice(url: str) -> str:
    """Prepare a statement, and let it be run from another connection of the client's."""
    client(url, "PREPARE mine AS SELECT 1")
    return client(url, "PREPARE mine AS SELECT 1")  # the server's connection still has it


@pytest.mark.slow
def test_a_proxy_delays_cuts_refuses_and_moves(database: Database, proxy: Proxy) -> None:
    url = database.at(proxy.port)
    assert client(url, "SELECT 7") == "7"
    proxy.delay = 0.02
    before = time.monotonic()
    assert client(url, "SELECT 7") == "7"
    assert time.monotonic() - before > 0.08  # several packets
    proxy.accept()
    with subprocess.Popen(
        ["psql", url, "-XAtqc", "SELECT pg_sleep(60)"], stderr=subprocess.PIPE
    ) as waiting:
        eventually(lambda: database.server.connections(database.name) > 0)
        assert proxy.cut() > 0
        assert waiting.stderr is not None and b"connection" in waiting.stderr.read()
    proxy.refuse()
    assert "refused" in client(url, "SELECT 7")
    proxy.accept()
    assert client(url, "SELECT 7") == "7"


@pytest.mark.slow
def test_a_proxy_swallows_what_the_server_answers(database: Database, proxy: Proxy) -> None:
    url = database.at(proxy.port)
    proxy.swallow()
    assert "timeout" in client(url, "SELECT 7")
    proxy.accept()
    assert client(url, "SELECT 7") == "7"
    proxy.swallow_answers()
    assert "timeout" in client(url, "SELECT 7")


@pytest.mark.slow
def test_servers_end_with_the_tests_that_started_them() -> None:
    text = (
        "import os, signal; from databases import Postgres; server = Postgres().__enter__();"
        "print(server.process.pid, server.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", text],
        env=environment(PYTHONPATH=f"{ROOT}/tests"),
        capture_output=True,
        text=True,
        check=False,
    )
    pid = ended.stdout.split()[0]
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the server")
