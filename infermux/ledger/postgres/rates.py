"""Limits per minute over all hosts: the requests and tokens of each caller's last 60 seconds.

A caller has one row, with its counts by second; one statement tests and counts a request, by the
database's clock once the row is locked. While the database is away, a host counts alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate

from ...types import LogThrottle, Rates, Window
from .. import LedgerUnavailable
from .connection import Database
from .statements import integers, run

SPAN = 61  # seconds whose counts any 60 consecutive seconds touch
_MOST = 2**62  # no limit
_MAX_TOKENS = 2**40  # tokens of one call, so that the sum of a minute cannot overflow
_AT = "floor(extract(epoch FROM clock_timestamp()))::bigint"
_NOW = "extract(epoch FROM clock_timestamp())::float8"
_CLOCK = f"clock AS (SELECT {_AT} AS at)"
_KEPT = f"""kept AS (SELECT s, n, t FROM unnest(r.seconds, r.requests, r.tokens) AS u(s, n, t),
        clock WHERE s > clock.at - {SPAN})"""
_COUNTED = """counted AS (SELECT s, sum(n)::bigint AS n, sum(t)::bigint AS t FROM (
            SELECT s, n, t FROM kept UNION ALL SELECT at, {}, %s::bigint FROM {}) AS every
        GROUP BY s)"""
_NEW = "array_agg(s ORDER BY s), array_agg(n ORDER BY s), array_agg(t ORDER BY s)"
_TAKE = f"""INSERT INTO rates AS r (caller, seconds, requests, tokens, admitted)
    SELECT %s::text, ARRAY[{_AT}], ARRAY[1::bigint],
        ARRAY[%s::bigint], true
    ON CONFLICT (caller) DO UPDATE SET (seconds, requests, tokens, admitted) = (
        WITH {_CLOCK}, {_KEPT},
        test AS (SELECT coalesce(sum(n), 0) < %s AND coalesce(sum(t), 0) + %s <= %s AS fits
            FROM kept),
        {_COUNTED.format(1, "clock, test WHERE fits")}
        SELECT {_NEW}, bool_and(fits) FROM counted, test)
    RETURNING admitted, seconds, requests, tokens, {_NOW}"""
_ADD = f"""UPDATE rates AS r SET (seconds, requests, tokens) = (
        WITH {_CLOCK}, {_KEPT},
        {_COUNTED.format(0, "clock")}
        SELECT {_NEW} FROM counted)
    WHERE caller = %s"""
_SUBTRACT = """UPDATE rates AS r SET tokens = (
        SELECT array_agg(CASE WHEN s < %s THEN t
                ELSE t - least(t, greatest(0, %s - before)) END ORDER BY s)
        FROM (SELECT s, t, coalesce(sum(CASE WHEN s < %s THEN 0 ELSE t END)
                OVER (ORDER BY s ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::bigint
                AS before
            FROM unnest(r.seconds, r.tokens) AS u(s, t)) AS ordered)
    WHERE caller = %s"""
_GIVE_BACK = """UPDATE rates AS r SET requests = (
        SELECT array_agg(CASE WHEN s = last THEN n - 1 ELSE n END ORDER BY s)
        FROM (SELECT s, n, max(CASE WHEN n > 0 THEN s END) OVER () AS last
            FROM unnest(r.seconds, r.requests) AS u(s, n)) AS ordered)
    WHERE caller = %s"""
OLD_RATES = f"""DELETE FROM rates WHERE NOT EXISTS (SELECT 1 FROM unnest(seconds) AS u(s)
    WHERE s > {_NOW} - {2 * SPAN})"""
_ROW = f"SELECT seconds, requests, tokens, {_NOW} FROM rates WHERE caller = %s"
log = logging.getLogger("infermux")
Counts = list[tuple[int, int, int]]  # seconds, with the requests and tokens of each


class SharedRates:
    """Limits each caller's requests and tokens in any 60 seconds, over all hosts.

    *local* counts what this admits, so it is right when it has to take over. For a minute after the
    database was unavailable both must admit a call: a server that crashed has lost its counts, and
    it has none of the calls that a host counted alone.
    """

    def __init__(self, database: Callable[[], Database], local: Rates) -> None:
        self._database, self._local = database, local
        self._alone = False  # whether the last request was counted by this host only
        self._log = LogThrottle()

    @property
    def alone(self) -> bool:
        """Whether this host now counts only its own requests."""
        return self._alone and bool(self._database().away)

    def take(
        self,
        caller: str,
        *,
        rpm: int | None,
        tpm: int | None,
        tokens: int = 0,
        window: Window | None = None,
    ) -> float | None:
        if rpm is None and tpm is None:
            return None
        tokens = min(tokens, _MAX_TOKENS)
        if tpm is not None and tokens > tpm:
            with suppress(LedgerUnavailable):
                _tell(window, *self._row(caller))
            return math.inf
        most, heaviest = _MOST if rpm is None else rpm, _MOST if tpm is None else tpm
        values = (caller, tokens, most, tokens, heaviest, tokens)
        try:
            [rows] = self._database().run(lambda link: run(link, [(_TAKE, values)]))
        except LedgerUnavailable as error:
            self._alone = True
            if self._log.due():
                log.warning("limits per minute count this host's own calls: %s", error.reason)
            return self._local.take(caller, rpm=rpm, tpm=tpm, tokens=tokens, window=window)
        self._alone = False
        [[admitted, *arrays, clock]] = rows
        seconds, requests, used = map(integers, arrays)
        counts, now = _recent(seconds, requests, used, float(clock or 0))
        _tell(window, counts, now)
        if admitted == b"t":
            return self._count(caller, rpm, tpm, tokens)
        return max(_wait(counts, 1, now, 1, rpm), _wait(counts, 2, now, tokens, tpm))

    def _count(self, caller: str, rpm: int | None, tpm: int | None, tokens: int) -> float | None:
        """Count here what the database has counted; for a minute only what fits here as well."""
        began = time.monotonic()
        if began >= self._database().replaced + SPAN:
            rpm = tpm = _MOST
        wait = self._local.take(caller, rpm=rpm, tpm=tpm, tokens=tokens)
        if wait is not None:
            self._uncount(caller, tokens, began)
        return wait

    def wait(
        self, caller: str, *, rpm: int | None, tpm: int | None, requests: int, tokens: int
    ) -> float:
        try:
            counts, now = self._row(caller)
        except LedgerUnavailable:
            return self._local.wait(caller, rpm=rpm, tpm=tpm, requests=requests, tokens=tokens)
        return max(_minutes(counts, 1, now, requests, rpm), _minutes(counts, 2, now, tokens, tpm))

    def give_back(self, caller: str, tokens: int, *, since: float) -> None:
        self._local.give_back(caller, tokens, since=since)
        self._uncount(caller, tokens, since)

    def _uncount(self, caller: str, tokens: int, since: float) -> None:
        self._correct(caller, -tokens, since)
        try:
            self._database().run(lambda link: link.execute(_GIVE_BACK, (caller,)))
        except LedgerUnavailable:
            self._alone = True

    def correct(self, caller: str, tokens: int, *, since: float) -> None:
        if tokens:
            self._local.correct(caller, tokens, since=since)
            self._correct(caller, tokens, since)

    def _correct(self, caller: str, tokens: int, since: float) -> None:
        try:
            database = self._database()
            if tokens > 0:
                more = (min(tokens, _MAX_TOKENS), caller)
                database.run(lambda link: link.execute(_ADD, more))
                return
            passed, now = time.monotonic() - since, database.now()
            if tokens and now is not None and passed < SPAN:  # else the estimate no longer counts
                start = math.floor(now - passed) - 1  # clocks are compared to milliseconds only
                values = (start, -tokens, start, caller)
                database.run(lambda link: link.execute(_SUBTRACT, values))
        except LedgerUnavailable:
            self._alone = True

    def _row(self, caller: str) -> tuple[Counts, float]:
        found = self._database().run(lambda link: link.execute(_ROW, (caller,)).fetchone())
        return _recent(*found) if found else ([], math.inf)

    def check(self) -> None:
        self._local.check()

    def close(self) -> None:
        self._local.close()


def _recent(
    seconds: list[int], requests: list[int], tokens: list[int], now: float
) -> tuple[Counts, float]:
    """Return the counts of the minute before *now*, and the time."""
    counts = zip(seconds, requests, tokens, strict=True)
    return [each for each in counts if each[0] > math.floor(now) - SPAN], now


def _tell(window: Window | None, counts: Counts, now: float) -> None:
    """Tell *window* what is used, and when none of it counts any more."""
    if window is not None:
        window.requests, window.tokens = (sum(each[k] for each in counts) for k in (1, 2))
        last = [max((each[0] for each in counts if each[k]), default=0) for k in (1, 2)]
        window.requests_reset, window.tokens_reset = (max(0.0, s + SPAN - now) for s in last)


def _wait(counts: Counts, k: int, now: float, wanted: int, limit: int | None) -> float:
    """Return the seconds until *wanted* more requests (*k* is 1) or tokens (2) fit."""
    if limit is None:
        return 0.0
    over = sum(each[k] for each in counts) + wanted - limit
    if over <= 0:
        return 0.0
    freed = zip(counts, accumulate(each[k] for each in counts), strict=True)
    at = next((second for (second, *_), gone in freed if gone >= over), int(now))
    return max(0.001, at + SPAN - now)


def _minutes(counts: Counts, k: int, now: float, wanted: int, limit: int | None) -> float:
    """Return the seconds until *wanted* more fit; more than *limit* take several minutes."""
    if limit is None or wanted <= 0:
        return 0.0
    whole, rest = divmod(wanted - 1, limit)
    return whole * float(SPAN) + _wait(counts, k, now, rest + 1, limit)
