"""The status page: what the targets do, what the last 24 hours brought and cost, the last calls;
one page without any asset.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from operator import add
from typing import Any, NamedTuple

from flask import Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import pricing as prices
from ..errors import printable
from ..ledger import LEASE, Ledger, LedgerUnavailable, Total
from ..planning import Plan, replayed
from ..pricing import PICO
from ..routing.router import Router
from ..server import status

HOURS = 24
CALLS = 50  # of the last ones
MOST = 12  # lines of a table; the rest is one line
LATE = int(LEASE)  # seconds after which no call of an hour is still to be written down
_HOUR = 3600
_POLICY = (
    "default-src 'none'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
log = logging.getLogger("infermux")


class Hour(NamedTuple):
    """The totals of one hour: by error and caller, and by model, provider and error of the
    attempts.
    """

    calls: Sequence[Total]
    attempts: Sequence[Total]


class Page:
    """The status page of one router; hours that are over are asked for once."""

    def __init__(self, router: Router, *, clock: Callable[[], float] = time.time) -> None:
        self._router = router
        self._clock = clock
        self._over: dict[int, Hour] = {}

    def answer(self) -> Response:
        """Return the page as of now; nothing in it is fetched from elsewhere or runs without this
        answer's nonce.
        """
        nonce, now = secrets.token_urlsafe(16), self._clock()
        text = _PAGES.get_template("status.html").render(
            nonce=nonce, now=now, targets=status.targets(self._router), **self._ledger(now)
        )
        return Response(
            text, headers={**_HEADERS, "Content-Security-Policy": _POLICY.format(nonce)}
        )

    def _ledger(self, now: float) -> dict[str, Any]:
        """Return what the ledger tells, or why there is nothing to tell."""
        if self._router.ledger is None:
            return {"ledger": "none"}
        ledger = self._router.ledger
        try:
            calls = [(*record, _plan(record.call.plan)) for record in ledger.rows(limit=CALLS)]
            return {"ledger": "", "calls": calls, **_told(self._hours(ledger, int(now)))}
        except LedgerUnavailable as error:
            log.error("the status page has no ledger: %s", error.reason)
            return {"ledger": "unavailable"}

    def _hours(self, ledger: Ledger, now: int) -> dict[int, Hour]:
        """Return the last hours under their starts in seconds since 1970, the present one included."""
        last = now - now % _HOUR
        found = {}
        for start in range(last - (HOURS - 1) * _HOUR, last + 1, _HOUR):
            ask = partial(ledger.totals, since=start, until=start + _HOUR)
            found[start] = self._over.get(start) or Hour(
                ask("error", "caller"), ask("model", "provider", "attempt_error")
            )
        self._over = {start: hour for start, hour in found.items() if start + _HOUR + LATE < now}
        return found


def _plan(text: str) -> Plan | None:
    """Return the plan that was kept with a call; None: there is none, or another version wrote it."""
    try:
        return replayed(text).kept if text else None
    except ValueError:
        return None


def _told(hours: dict[int, Hour]) -> dict[str, Any]:
    """Return the tables and bars of the page."""
    calls = [total for hour in hours.values() for total in hour.calls]
    attempts = [total for hour in hours.values() for total in hour.attempts]
    failures = {total.key[0]: total.attempts for total in _by(attempts, 2)}
    errors = {total.key[0]: total.calls for total in _by(calls, 0)}
    codes = sorted(
        {*failures, *errors} - {""},
        key=lambda code: (-errors.get(code, 0), -failures.get(code, 0), code),
    )
    return {
        "day": _sum((), calls),
        "hours": [(start, _sum((), hour.calls)) for start, hour in hours.items()],
        "models": _top(_by(attempts, 0, 1)),
        "callers": _top(_by(calls, 1)),
        "errors": [(code, errors.get(code, 0), failures.get(code, 0)) for code in codes],
    }


def _by(totals: Iterable[Total], *parts: int) -> list[Total]:
    """Return totals by these parts of their keys only, the most expensive first."""
    groups: dict[tuple[str, ...], list[Total]] = {}
    for total in totals:
        groups.setdefault(tuple(total.key[part] for part in parts), []).append(total)
    return sorted(
        (_sum(key, group) for key, group in groups.items()),
        key=lambda total: (-total.cost, -total.calls, total.key),
    )


def _sum(key: tuple[str, ...], totals: Iterable[Total]) -> Total:
    sums = [0] * len(Total._fields[1:])
    for total in totals:
        sums = list(map(add, sums, total[1:]))
    return Total(key, *sums)


def _top(totals: list[Total]) -> tuple[list[Total], int, Total]:
    """Return the first lines of a table, how many there are beyond, and their sum."""
    return totals[:MOST], len(totals[MOST:]), _sum((), totals[MOST:])


# -- how a value is shown --------------------------------------------------------------------------


def money(pico: int | None, unpriced: int = 0) -> str:
    """Return dollars at a glance: what has no price is never $0, and what costs something is never
    $0 either.
    """
    if pico is None or (unpriced and not pico):
        return "unpriced"
    dollars = Decimal(pico) / PICO
    if 0 < dollars < Decimal("0.000001"):
        return "<$0.000001"
    digits = 2 if dollars >= 1 or not pico else 4 if dollars >= Decimal("0.01") else 6
    return f"${dollars:,.{digits}f}" + (" + unpriced" if unpriced else "")


def duration(seconds: float | None) -> str:
    """Return seconds as 84 ms, 1.25 s or 4 min."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return (
        f"{seconds:.2f} s"
        if seconds < 10
        else f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
    )


def count(number: int | None) -> str:
    """Return a number of tokens or calls as 9,500, 12.3k or 4.5M."""
    if number is None:
        return "–"
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= max(size, 10**4):
            return f"{number / size:.1f}{letter}"
    return f"{number:,}"


def share(part: float, whole: float) -> str:
    """Return a share in percent; one that is small is not nothing."""
    percent = 100 * part / whole if whole else 0.0
    return "<0.1%" if 0 < percent < 0.05 else f"{percent:.1f}%"


def moment(seconds: float, form: str = "%H:%M:%S") -> str:
    """Return a time in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):{form}}"


_PAGES = Environment(
    loader=PackageLoader("infermux.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters.update(
    name=printable,
    money=money,
    duration=duration,
    count=count,
    share=share,
    moment=moment,
    usd=prices.usd,
)
