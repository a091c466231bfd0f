"""The status page for operators: targets, the last 24 hours and their cost, the latest calls.

It is one HTML page that loads no other files.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

from flask import Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from ...errors import printable
from ...ledger import LEASE_SECONDS, Ledger, LedgerUnavailable, Total, summed
from ...planning import Plan, replayed
from ...pricing import PICO, usd
from ...routing.router import Router
from ...server import status

HOURS = 24
MAX_CALLS = 50  # listed
MAX_ROWS = 12  # per table; the others are summed in one more
SETTLED_SECONDS = int(LEASE_SECONDS)  # after this, an ended hour is final
_HOUR = 3600
_POLICY = (
    "default-src 'none'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
log = logging.getLogger("infermux")


class Hour(NamedTuple):
    """The totals of one hour."""

    calls: Sequence[Total]  # by error and caller
    attempts: Sequence[Total]  # by model, provider and error


class StatusPage:
    """The status page of one router; it caches the totals of past hours."""

    def __init__(self, router: Router, *, clock: Callable[[], float] = time.time) -> None:
        self._router = router
        self._clock = clock
        self._past: dict[int, Hour] = {}

    def response(self) -> Response:
        """Return the page; its Content-Security-Policy allows only its own script and style."""
        nonce, now = secrets.token_urlsafe(16), self._clock()
        text = _PAGES.get_template("status.html").render(
            nonce=nonce, now=now, targets=status.targets(self._router), **self._from_ledger(now)
        )
        policy = {"Content-Security-Policy": _POLICY.format(nonce)}
        return Response(text, headers={**_HEADERS, **policy})

    def _from_ledger(self, now: float) -> dict[str, Any]:
        """Return the page's data from the ledger, or the reason that there is none."""
        ledger = self._router.ledger
        if ledger is None:
            return {"ledger": "none"}
        try:
            calls = [(*record, _plan(record.call.plan)) for record in ledger.rows(limit=MAX_CALLS)]
            tables = _tables(self._hours(ledger, int(now)))
            budgets = status.budgets(self._router)
            return {"ledger": "", "calls": calls, "budgets": budgets, **tables}
        except LedgerUnavailable as error:
            log.error("the ledger cannot be read for the status page: %s", error.reason)
            return {"ledger": "unavailable"}

    def _hours(self, ledger: Ledger, now: int) -> dict[int, Hour]:
        """Return the totals of the last hours, including the current one, by start time."""
        last = now - now % _HOUR
        found = {}
        for start in range(last - (HOURS - 1) * _HOUR, last + 1, _HOUR):
            totals = partial(ledger.totals, since=start, until=start + _HOUR)
            found[start] = self._past.get(start) or Hour(
                totals("error", "caller"), totals("model", "provider", "attempt_error")
            )
        settled = now - _HOUR - SETTLED_SECONDS
        self._past = {start: hour for start, hour in found.items() if start < settled}
        return found


def _plan(text: str) -> Plan | None:
    """Return the plan recorded with a call, or None if another version wrote it."""
    try:
        return replayed(text).kept if text else None
    except ValueError:
        return None


def _tables(hours: dict[int, Hour]) -> dict[str, Any]:
    calls = [total for hour in hours.values() for total in hour.calls]
    attempts = [total for hour in hours.values() for total in hour.attempts]
    failures = {total.key[0]: total.attempts for total in _grouped(attempts, 2)}
    errors = {total.key[0]: total.calls for total in _grouped(calls, 0)}
    codes = sorted(
        {*failures, *errors} - {""},
        key=lambda code: (-errors.get(code, 0), -failures.get(code, 0), code),
    )
    return {
        "day": summed(calls),
        "hours": [(start, summed(hour.calls)) for start, hour in hours.items()],
        "models": _top(_grouped(attempts, 0, 1)),
        "callers": _top(_grouped(calls, 1)),
        "errors": [(code, errors.get(code, 0), failures.get(code, 0)) for code in codes],
    }


def _grouped(totals: Iterable[Total], *parts: int) -> list[Total]:
    groups = defaultdict[tuple[str, ...], list[Total]](list)
    for total in totals:
        groups[tuple(total.key[part] for part in parts)].append(total)
    return sorted(
        (summed(group, key) for key, group in groups.items()),
        key=lambda total: (-total.cost, -total.calls, total.key),
    )


def _top(totals: list[Total]) -> tuple[list[Total], int, Total]:
    return totals[:MAX_ROWS], len(totals[MAX_ROWS:]), summed(totals[MAX_ROWS:])


# -- template filters --


def money(pico: int | None, unpriced: int = 0) -> str:
    """Return pico-USD as rounded dollars; unpriced and tiny amounts do not become $0."""
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
    if seconds < 120:
        return f"{seconds:.{2 if seconds < 10 else 0}f} s"
    return f"{seconds / 60:.0f} min"


def count(number: int | None) -> str:
    """Return a number of tokens or calls as 9,500, 12.3k or 4.5M."""
    if number is None:
        return "–"
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= max(size, 10**4):
            return f"{number / size:.1f}{letter}"
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Return a number as `count` does, with its noun: 1 call, 12.3k calls."""
    return f"{count(number)} {noun}{'s' * (number != 1)}"


def share(part: float, whole: float) -> str:
    """Return a share as percent; a tiny share is not shown as 0."""
    percent = 100 * part / whole if whole else 0.0
    return "<0.1%" if 0 < percent < 0.05 else f"{percent:.1f}%"


def moment(seconds: float, form: str = "%H:%M:%S") -> str:
    """Return a Unix time formatted in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):{form}}"


_PAGES = Environment(
    loader=PackageLoader("infermux.web.admin"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters["name"] = printable
_PAGES.filters |= {
    each.__name__: each for each in (money, duration, count, counted, share, moment, usd)
}
