"""The connections of one process to PostgreSQL: a bounded pool, deadlines and retries.

While the database is unavailable, every call fails at once, and one thread tries to reconnect.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import errors, pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import IntLoader
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from .. import LedgerUnavailable
from ..groups import started
from .statements import Link

WAIT_SECONDS = 0.25  # for a connection
CALL_SECONDS = 0.7  # that a call waits for the database in one operation, in all
START_SECONDS = 3.0  # that a start waits for a connection, and a report for others
CONNECT_SECONDS = 2.0
RETRY_SECONDS = 0.25  # between two attempts to reach a database that is away
TICK_SECONDS = 0.05  # the precision of deadlines
LIFETIME_SECONDS = 1800.0  # of a connection
STATEMENT_SECONDS = 60  # that the server lets a statement run
KEPT_SECONDS = 60.0  # that a connection is kept at hand
RETRIES = 8  # of a transaction that PostgreSQL rolled back because of another one
_ABOUT = """SELECT extract(epoch FROM clock_timestamp())::float8, pg_backend_pid(),
    pg_is_in_recovery() OR current_setting('transaction_read_only')::bool,
    current_setting('transaction_isolation')"""
_SESSION = f"""SET statement_timeout = {STATEMENT_SECONDS * 1000}; SET lock_timeout = 0;
    SET idle_in_transaction_session_timeout = 5000; SET timezone = 'UTC';
    SET default_transaction_isolation = 'read committed'; SET extra_float_digits = 1"""
_AGAIN = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)
_PERMANENT = re.compile(
    r"authentication failed|no password supplied|does not exist|not permitted to log in|"
    r"permission denied|no pg_hba.conf entry|certificate|private key|does not support SSL|"
    r"bad value for|invalid \w+ (number|value)|(unrecognized|unsupported) \w+ parameter|"
    r"pooling mode"
)
NO_LEDGER = "the database has no ledger: run `infermux ledger init`"
_READ_ONLY = "the database is read-only"
_IDLE = int(pq.TransactionStatus.IDLE)
log = logging.getLogger("infermux")
T = TypeVar("T")


class Pool(ConnectionPool[Link]):
    """A pool whose connections stay at hand for a while: a tenth of the work."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._at_hand: list[Link] = []
        self._asking = 0  # threads that wait for the pool itself
        self._lending = threading.Lock()
        super().__init__(*args, **options)

    def take(self, seconds: float) -> Link:
        """Return a connection; raise PoolTimeout or PoolClosed."""
        with self._lending:
            if self._at_hand:
                return self._at_hand.pop()
            self._asking += 1
        try:
            link = self.getconn(seconds)
            link.taken = time.monotonic()
            return link
        finally:
            with self._lending:
                self._asking -= 1

    def give(self, link: Link) -> None:
        with self._lending:
            kept = not self._asking and not self.closed and not link.closed
            if kept and time.monotonic() < link.taken + KEPT_SECONDS:
                self._at_hand.append(link)
                return
        self.putconn(link)

    def end(self) -> None:
        """Close the pool, and its connections that are not in use."""
        self.close(timeout=0)
        with self._lending:
            links, self._at_hand = self._at_hand, []
        for link in links:
            self.putconn(link)


class Away(LedgerUnavailable):
    """The database cannot be reached or written now."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, temporary=True, told="the database is away")


class Database:
    """The connections of this process to the database at *url*; at most *size*."""

    def __init__(self, url: str, size: int, *, patient: bool = False) -> None:
        self.url, self.size, self._patient = url, size, patient
        self._wait = START_SECONDS if patient else WAIT_SECONDS
        self._call = STATEMENT_SECONDS if patient else CALL_SECONDS
        self._pool: Pool | None = None
        self._lock = threading.Lock()  # of the pool's replacement
        self.away = ""  # why it is unavailable; "": it is not known to be
        self._reconnector: threading.Thread | None = None
        self._closed = False
        self._succeeded = 0.0  # when an operation last succeeded
        self.replaced = -math.inf  # when lost connections were last replaced
        self._deadlines: dict[Link, float] = {}  # of the running operations
        self._cutting = threading.Lock()
        self._watch: threading.Thread | None = None
        self._reports = threading.BoundedSemaphore(max(1, size - 2))
        self._offset: float | None = None  # of the database's clock from the monotonic one
        self.plans: set[str] = set()  # digests of plans that the database has
        # it logs each attempt to connect
        logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)

    # -- work --

    def run(self, work: Callable[[Link], T], seconds: float = 0.0) -> T:
        """Return the result of *work* with a connection; raise LedgerUnavailable.

        It runs again if PostgreSQL has rolled it back or its connection was lost, so it must be
        idempotent. It has *seconds*, else as long as a call waits.
        """
        end = time.monotonic() + (seconds or self._call)
        again = True
        for tries in range(RETRIES):
            try:
                return self._once(work, end)
            except _AGAIN as error:
                if tries == RETRIES - 1 or time.monotonic() >= end:
                    raise Away(_said(error)) from None
                time.sleep(random.random() * 0.002 * 2**tries)
            except _Lost as lost:
                reason, pool = lost.args
                if not again or time.monotonic() >= end:
                    raise self.is_away(reason) from None
                again = False
                self._renew(pool)
        raise AssertionError

    def report(self, work: Callable[[Link], T]) -> T:
        """Return the result of *work*, which may take long and so leaves connections to calls."""
        if not self._reports.acquire(timeout=START_SECONDS):
            raise Away("too many reports at a time")
        try:
            return self.run(work, STATEMENT_SECONDS)
        finally:
            self._reports.release()

    def _once(self, work: Callable[[Link], T], end: float) -> T:
        pool = self._ready()
        patience = min(self._wait, end - time.monotonic())
        try:
            link = pool.take(max(0.001, patience))
        except PoolClosed:
            raise _Lost("the pool was replaced", pool) from None
        except PoolTimeout:
            if self._deadlines or time.monotonic() < self._succeeded + 1.0:
                raise Away("all connections are in use") from None
            raise self.is_away("the database cannot be reached") from None
        try:
            self.limit(link, end)
            found = work(link)
            self._succeeded = time.monotonic()
            return found
        except psycopg.Error as error:
            timed_out = link not in self._deadlines
            raise self._judged(error, link, pool, timed_out) from None
        finally:
            self.unlimit(link)
            if link.pgconn.transaction_status != _IDLE:
                with suppress(psycopg.Error):
                    link.rollback()
                if link.pgconn.transaction_status != _IDLE:
                    link.close()
            pool.give(link)

    def _judged(self, error: psycopg.Error, link: Link, pool: Pool, timed_out: bool) -> Exception:
        """Return the exception to raise for an error of a statement."""
        if timed_out:
            return self.is_away("the database does not answer")
        if isinstance(error, _AGAIN):
            return error
        if isinstance(error, errors.ReadOnlySqlTransaction):
            if self._patient:  # a command, which may read a replica
                return LedgerUnavailable(_READ_ONLY)
            return self.is_away(_READ_ONLY)
        if isinstance(error, errors.QueryCanceled):
            return Away("a statement took too long")
        if isinstance(error, errors.UndefinedTable):
            return LedgerUnavailable(NO_LEDGER)
        if isinstance(error, errors.IntegrityError | errors.DataError):
            return error  # an invalid value, such as a hold that exists already
        if link.closed:
            return _Lost(_said(error), pool)
        too_large = isinstance(error, errors.ProgramLimitExceeded)  # a long id
        if isinstance(error, psycopg.OperationalError) and not too_large:
            return self.is_away(_said(error))
        return LedgerUnavailable(_said(error), told="the database refuses")

    # -- the pool --

    def _ready(self) -> Pool:
        if self.away:
            raise Away(self.away)
        return self._pool or self._renew(None)

    def _renew(self, old: Pool | None) -> Pool:
        """Replace the pool *old*, all of whose connections may be broken."""
        with self._lock:
            if self._pool is None or self._pool is old:
                self._succeeded = 0.0
                self._pool = self._made()
                if old is not None:
                    self.replaced = time.monotonic()
                    old.end()
            return self._pool

    def _made(self) -> Pool:
        self._closed = False
        return Pool(
            self.url,
            connection_class=Link,
            kwargs=options(self.url),
            min_size=min(2, self.size),
            max_size=self.size,
            open=True,
            configure=self._configure,
            max_lifetime=LIFETIME_SECONDS,
            reconnect_timeout=1.0,  # afterwards `is_away` watches it
            num_workers=1,
        )

    def _configure(self, link: Link) -> None:
        pid, read_only, isolation = self._ask_about(link)
        if read_only and not self._patient:
            raise psycopg.OperationalError(_READ_ONLY)
        link.adapters.register_loader("numeric", IntLoader)  # the type of sums of integers
        if pid != link.info.backend_pid:  # a pooler such as PgBouncer: no session lasts
            link.prepare_threshold = None
            with link.transaction():  # or it gives each statement a session
                pass
            if isolation == "repeatable read":  # what others commit meanwhile would be missed
                remedy = "ALTER DATABASE … SET default_transaction_isolation = 'read committed'"
                raise LedgerUnavailable(f"a pooler cannot have it {isolation!r}: {remedy}")
        else:
            link.execute(_SESSION, prepare=False)
            link.prepare_threshold = 1

    @property
    def is_idle(self) -> bool:
        """Whether it was not used yet."""
        return self._pool is None and not self.away

    def alone(self, work: Callable[[Link], T]) -> T:
        """Return the result of *work* with a connection of its own, before there is a pool.

        Raise LedgerUnavailable, which is not temporary if waiting does not help.
        """
        with opened(self.url, START_SECONDS) as link:
            try:
                self._configure(link)
                return work(link)
            except psycopg.Error as error:
                raise unavailable(error) from None

    def is_away(self, reason: str) -> Away:
        """Note that the database is unavailable, and try to reconnect in the background."""
        with self._lock:
            if not self.away and not self._closed:
                self.away = reason or "it cannot be reached"
                if self._reconnector is None:
                    self._reconnector = started("database", self._reconnecting)
        return Away(reason)

    def _reconnecting(self) -> None:
        """Try to connect until the database is back."""
        while not self._closed:
            time.sleep(RETRY_SECONDS)
            try:
                self.alone(lambda link: None)
                made = self._made()
                try:
                    made.wait(CONNECT_SECONDS)
                    self._recovered(made)
                    return
                except PoolTimeout:
                    made.end()
            except LedgerUnavailable as error:
                self.away = error.reason

    def _recovered(self, made: Pool) -> None:
        with self._lock:
            old, self._pool = self._pool, made
            self.away, self._reconnector, self.replaced = "", None, time.monotonic()
        if old is not None:
            old.end()

    def limit(self, link: Link, end: float) -> None:
        """End the connection at *end*, unless `unlimit` comes first."""
        self._deadlines[link] = end
        if self._watch is None:
            with self._lock:
                if self._watch is None:
                    self._watch = started("deadlines", self._watching)

    def unlimit(self, link: Link) -> None:
        if self._deadlines.pop(link, None) is None:
            with self._cutting:  # the other thread no longer uses the connection
                pass

    def _watching(self) -> None:
        """End connections whose operation has taken too long."""
        while True:
            time.sleep(TICK_SECONDS)
            now = time.monotonic()
            for link, end in list(self._deadlines.items()):
                if now > end:
                    self._cut(link)

    def _cut(self, link: Link) -> None:
        with self._cutting:
            if self._deadlines.pop(link, None) is None:  # it has just ended
                return
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(link.fileno())) as s:
                s.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections; a later operation opens them again."""
        with self._lock:
            old, self._pool, self._closed = self._pool, None, True
            self.away = ""
        if old is not None:
            old.end()

    # -- time --

    def now(self) -> float | None:
        """Return the time by the database's clock, or None if it was never reached."""
        return None if self._offset is None else time.monotonic() + self._offset

    def synchronize(self) -> None:
        """Read the database's clock again."""
        _, read_only, _ = self.run(self._ask_about)
        if read_only:
            raise self.is_away(_READ_ONLY)

    def _ask_about(self, link: Link) -> tuple[int, bool, str]:
        """Read the clock; return the session's id, whether it may not write, and its isolation."""
        began = time.monotonic()
        [now, pid, read_only, isolation] = link.execute(_ABOUT).fetchone() or (0.0, 0, True, "")
        self._offset = now - (began + time.monotonic()) / 2
        return pid, read_only, isolation


class _Lost(Exception):
    """A connection was lost, or there is none: why, and its pool."""


def options(url: str, seconds: float = CONNECT_SECONDS) -> dict[str, Any]:
    """Return the options of connections that the URL does not set; raise LedgerUnavailable."""
    own: dict[str, Any] = {
        "connect_timeout": round(seconds),
        "application_name": "infermux",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        # libpq's message may quote a part of the password
        what = _said(error) if "URI query parameter" in str(error) else "it is no URL of PostgreSQL"
        raise LedgerUnavailable(f"[ledger].url: {what}", told="its address is wrong") from None
    needed = {"autocommit": True, "client_encoding": "UTF8"}
    return {name: value for name, value in own.items() if name not in given} | needed


@contextmanager
def opened(url: str, seconds: float) -> Iterator[Link]:
    """Yield a connection of its own; raise LedgerUnavailable without the password."""
    given = options(url, seconds)
    try:
        link = Link.connect(url, **given)
    except psycopg.Error as error:
        raise unavailable(error) from None
    try:
        yield link
    finally:
        link.close()


def unavailable(error: psycopg.Error) -> LedgerUnavailable:
    reason = _said(error)
    if isinstance(error, psycopg.ProgrammingError) or _PERMANENT.search(reason):
        return LedgerUnavailable(reason, told="the database refuses")
    return Away(reason)


def _said(error: BaseException) -> str:
    """Return the first line of an error; libpq's never hold a password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = lines[0] if lines else type(error).__name__
    return found.removeprefix("connection failed: ").removeprefix("connection is bad: ")
