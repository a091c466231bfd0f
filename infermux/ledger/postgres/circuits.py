"""Circuits that operators open and close: a command at one host is carried out at all.

The last command for each provider or target is a row, so hosts that start later read it too.
PostgreSQL notifies hosts of a change. Some poolers drop notifications, so hosts also read the rows
every ten seconds.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import psycopg

from ...types import CircuitCommand
from .. import LedgerUnavailable
from ..groups import started
from .connection import Database, opened
from .statements import Link

READ_SECONDS = 10.0
RETRY_SECONDS = 1.0  # until the next attempt to listen
_CHANNEL = "infermux_circuits"
_PUBLISH = """INSERT INTO circuits (provider, model, action) VALUES (%s, %s, %s)
    ON CONFLICT (provider, model) DO UPDATE
    SET action = excluded.action, number = excluded.number RETURNING number"""
# a command for a provider replaces those for its models
_SUPERSEDE = "DELETE FROM circuits WHERE provider = %s AND model <> '' AND %s = ''"
_ALL = "SELECT number, action, provider, model FROM circuits ORDER BY number"


class Circuits:
    """Publishes commands, and listens for them, in one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: tuple[CircuitCommand, ...] = ()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def published(self) -> tuple[CircuitCommand, ...]:
        """Return the last command for each provider or target, in order; listen from now on."""
        if self._thread is None and not self._closed.is_set():
            self._thread = started("circuits", self._listening)
        return self._known

    def publish(self, action: str, provider: str, model: str) -> int:
        """Publish a command; return its number."""

        def work(link: Link) -> int:
            with link.transaction():
                link.execute(_SUPERSEDE, (provider, model))
                [number] = link.execute(_PUBLISH, (provider, model, action)).fetchone() or (0,)
            with suppress(psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFunction):
                link.execute("SELECT pg_notify(%s, '')", (_CHANNEL,))
            return int(number)

        return self._database.run(work)

    def close(self) -> None:
        self._closed.set()

    def _listening(self) -> None:
        while not self._closed.is_set():
            with suppress(LedgerUnavailable, psycopg.Error), opened(self._database.url, 2) as link:
                try:
                    self._listen(link)
                finally:
                    self._database.unlimit(link)
            if not self._closed.is_set():
                self._closed.wait(RETRY_SECONDS)

    def _listen(self, link: Link) -> None:
        """Read the commands now, whenever they change, and every ten seconds."""
        self._database.limit(link, time.monotonic() + READ_SECONDS)
        with suppress(psycopg.errors.FeatureNotSupported, psycopg.errors.SyntaxError):
            link.execute(f"LISTEN {_CHANNEL}")
        while not self._closed.is_set():
            end = time.monotonic() + READ_SECONDS
            self._database.limit(link, end)
            rows = link.execute(_ALL, prepare=False).fetchall()
            self._database.unlimit(link)
            self._known = tuple([CircuitCommand(*row) for row in rows])
            while (left := end - time.monotonic()) > 0 and not self._closed.is_set():
                if list(link.notifies(timeout=min(left, 1.0), stop_after=1)):
                    break
