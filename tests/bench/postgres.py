"""A ledger in PostgreSQL beside the service: what it adds to a call, and how many hosts share it.

The server has its own defaults, fsync included, and no core of its own.
"""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..support import ROOT
from . import gateway
from .gateway import KEY, LEDGER, NO_LEDGER, Gateway, Upstream
from .load import Ask, Load, Tally

CALLERS = 64  # each with a key, a budget and a connection
HOSTS = 4
TURNS = 3  # of a subject in a round, after one to warm up
DURABLE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"}
_SIZE = "SELECT pg_database_size(current_database())"
URL = '[ledger]\nurl = "env:DATABASE_URL"\n'
BUDGET = 'budget = { usd = "1000000", per = "month" }'
SECRETS = [KEY, *(f"{KEY}-{n}" for n in range(1, CALLERS))]
CALLERS_KEYS = "".join(
    f'[keys.caller-{n}]\nhash = "{sha256(key.encode()).hexdigest()}"\n{BUDGET}\n'
    for n, key in enumerate(SECRETS)
)


WITHOUT_BUDGETS = CALLERS_KEYS.replace(BUDGET, "")


class Compared:
    """Measures a call without a ledger, with SQLite, and with PostgreSQL, side by side.

    *ask* returns the request of the caller with a key.
    """

    def __init__(
        self, folder: str, upstream: Upstream, ask: Callable[[str], Ask], notes: list[str]
    ) -> None:
        sys.path.append(str(ROOT / "tests"))
        self._databases: Any = importlib.import_module("databases")
        self._folder, self._upstream, self._notes = folder, upstream, notes
        self._asks = [ask(key) for key in SECRETS]

    def round(self, seconds: float) -> Iterator[tuple[str, float]]:
        """Yield the figures of one round: everything is up, and takes short turns."""
        with ExitStack() as stack:
            server = stack.enter_context(self._databases.Postgres(DURABLE))
            database = server.database()
            self._run("ledger", "init", DATABASE_URL=database.url)
            [[empty]] = database.sql(_SIZE)
            url = {"DATABASE_URL": database.service}
            one = {
                "naive": gateway.naive(self._upstream),
                "routing": self._service("pg-routing", (WITHOUT_BUDGETS, NO_LEDGER)),
                "sqlite": self._service("pg-sqlite", (CALLERS_KEYS, LEDGER)),
                "postgres": self._service("pg-one", (CALLERS_KEYS, URL), **url),
            }
            for service in one.values():
                stack.enter_context(service)
            yield from self._alone(one, seconds)
            # the same without waiting for the disk: another one may be faster
            server.sql(f"ALTER ROLE {self._databases.SERVICE} SET synchronous_commit = off")
            server.disconnect(database.name)
            yield from self._alone({"unsynced": one["postgres"]}, seconds)
            server.sql(f"ALTER ROLE {self._databases.SERVICE} RESET synchronous_commit")
            server.disconnect(database.name)
            yield from self._many(one, server, seconds)
            yield from self._shared(stack, one, server, url, seconds)
            [[size]], [[calls]] = database.sql(_SIZE), database.sql("SELECT count(*) FROM calls")
            yield "bytes", (float(size) - float(empty)) / max(1.0, float(calls))

    def _service(self, name: str, features: Sequence[str], **env: str) -> Gateway:
        return gateway.infermux(name, features, self._folder, self._upstream, CALLERS + 16, **env)

    def _alone(self, services: dict[str, Gateway], seconds: float) -> Iterator[tuple[str, float]]:
        """One call at a time: the median latency."""
        found: dict[str, list[float]] = {name: [] for name in services}
        for turn in range(TURNS + 1):
            for name, service in services.items():
                tally = self._drive(name, [service], 1, seconds / TURNS)
                found[name] += tally.latencies if turn else []
        for name, latencies in found.items():
            yield f"p50/{name}", statistics.median(latencies)

    def _many(
        self, services: dict[str, Gateway], server: Any, seconds: float
    ) -> Iterator[tuple[str, float]]:
        """Sixteen calls at a time: CPU per call, of the gateway and of the database."""
        used, of_server = dict.fromkeys(services, 0.0), 0.0
        answered = dict.fromkeys(services, 0)
        for turn in range(TURNS + 1):
            for name, service in services.items():
                before, server_before = service.cpu, _cpu(server)
                tally = self._drive(name, [service], 16, seconds / TURNS)
                if turn:
                    used[name] += service.cpu - before
                    answered[name] += tally.answered
                    of_server += _cpu(server) - server_before if name == "postgres" else 0.0
        for name, cpu in used.items():
            yield f"cpu/{name}", cpu / max(1, answered[name]) * 1e6
        yield "cpu/server", of_server / max(1, answered["postgres"]) * 1e6

    def _shared(
        self,
        stack: ExitStack,
        services: dict[str, Gateway],
        server: Any,
        url: dict[str, str],
        seconds: float,
    ) -> Iterator[tuple[str, float]]:
        """All callers at once, at one host with SQLite and at several with PostgreSQL."""
        others = [
            stack.enter_context(self._service(f"pg-{n}", (CALLERS_KEYS, URL), **url))
            for n in range(1, HOSTS)
        ]
        subjects = {"sqlite": [services["sqlite"]], "postgres": [services["postgres"], *others]}
        took, answered = dict.fromkeys(subjects, 0.0), dict.fromkeys(subjects, 0)
        of_server = 0.0
        for turn in range(TURNS + 1):
            for name, hosts in subjects.items():
                before = _cpu(server)
                tally = self._drive(name, hosts, CALLERS, seconds)
                if turn:
                    took[name] += tally.seconds
                    answered[name] += tally.answered
                    of_server += _cpu(server) - before if name == "postgres" else 0.0
        for name in subjects:
            yield f"rps/{name}", answered[name] / took[name]
        yield "cpu/server_shared", of_server / max(1, answered["postgres"]) * 1e6

    def _drive(self, name: str, hosts: list[Gateway], count: int, seconds: float) -> Tally:
        lanes = [(hosts[n % len(hosts)].port, self._asks[n % CALLERS]) for n in range(count)]
        tally = Load(*lanes[0], 0, seconds, others=lanes).run()
        if tally.failed:
            whole = tally.failed + tally.answered
            self._notes.append(
                f"postgres {name}: {tally.failed} of {whole} answers were not whole: "
                f"{tally.failure!r}"
            )
        return tally

    def _run(self, *words: str, **env: str) -> None:
        file = Path(self._folder) / "pg-init.toml"
        file.write_text(URL)
        subprocess.run(
            [sys.executable, "-m", "infermux", *words],
            cwd=ROOT,
            env=gateway.ENVIRONMENT | {"INFERMUX_CONFIG": str(file)} | env,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def _cpu(server: Any) -> float:
    """Seconds of CPU of the server's processes, also of those that have ended."""
    ended = os.sysconf("SC_CLK_TCK")
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(gateway.cpu, server.processes)) + sum(map(int, fields[13:15])) / ended
