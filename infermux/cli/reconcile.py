"""infermux costs --reconcile: the ledger beside a vendor's bill."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import click

from ..errors import shown
from ..ledger import Ledger, Total
from ..ledger import reconcile as bills
from ..ledger.reconcile import Bill, Compared
from ..ledger.reports import Period
from ..pricing import usd
from . import OneLine
from .output import csv_text, json_text, table


def reconcile(
    ledger: Ledger,
    path: str,
    span: Period,
    *,
    caller: str | None,
    providers: tuple[str, ...],
    tolerance: tuple[str, ...],
    form: str | None,
) -> int:
    """Print the comparison; return 1 where both sides differ, or the bill could not be read whole."""
    allowed = bills.Tolerance.of(tolerance)
    try:
        bill = bills.read(Path(path).read_bytes())
    except OSError as error:
        raise OneLine(f"the bill {path} cannot be read: {error.strerror}") from None
    for problem in bill.unread:
        click.echo(f"infermux: {path}: {problem}", err=True)
    _clip(bill, span)
    if not bill.usd:
        raise OneLine(f"{path}: no line of it can be compared")
    ours = _ours(ledger, bill, span, caller, providers)
    rows = bills.compare(bill, ours, allowed)
    total = bills.summed(rows, allowed)
    click.echo(_shown(rows, total, bill, form))
    return int(bool(bill.unread) or not all(row.agrees for row in [*rows, total]))


def _clip(bill: Bill, span: Period) -> None:
    """Leave out the days that are not asked for."""
    bill.usd = {
        key: amount
        for key, amount in bill.usd.items()
        if (span.since is None or _seconds(date.fromisoformat(key[0])) >= span.since)
        and (span.until is None or _seconds(date.fromisoformat(key[0])) < span.until)
    }


def _ours(
    ledger: Ledger, bill: Bill, span: Period, caller: str | None, providers: tuple[str, ...]
) -> list[Total]:
    """Return our totals by day and served model of the time that the bill is about, of the calls
    that can be on it.
    """
    first, last = bill.days
    since = _seconds(first) if span.since is None else span.since
    until = _seconds(last + timedelta(1)) if span.until is None else span.until
    totals = ledger.totals("day", "served", "provider", since=since, until=until, caller=caller)
    known = {total.key[2] for total in totals}
    if not providers and bill.vendor in known:
        providers = (bill.vendor,)  # on OpenAI's bill there are no calls to Anthropic
    if missing := [name for name in providers if name not in known]:
        click.echo(
            f"infermux: the ledger has no calls to {shown(missing[0])} in that time", err=True
        )
    return [total for total in totals if not providers or total.key[2] in providers]


def _shown(rows: list[Compared], total: Compared, bill: Bill, form: str | None) -> str:
    if form == "json":
        return json_text(
            {
                "vendor": bill.vendor or None,
                "rows": [_dict(row) for row in rows],
                "total": _dict(total),
                "unread": bill.unread,
            }
        )
    cells = [
        [
            row.day,
            row.model,
            _dollars(row.ours),
            _dollars(row.theirs),
            usd(row.difference),
            "ok" if row.agrees else "DIFFERS",
            row.note,
        ]
        for row in [*rows, total]
    ]
    if form == "csv":
        return csv_text(
            ["day", "model", "ours_usd", "theirs_usd", "difference_usd", "verdict", "note"],
            cells[:-1],
        ).rstrip("\n")
    bad = sum(not row.agrees for row in rows)
    source = (
        ""
        if bill.priced
        else "\nthe export holds tokens and no dollars: they are priced by the shipped table"
    )
    return table(
        ["DAY", "MODEL", "OURS", "THEIRS", "DIFFERENCE", "", ""], cells, right=(2, 3, 4)
    ) + (f"\n{len(rows)} days and models: {len(rows) - bad} agree, {bad} differ{source}")


def _dict(row: Compared) -> dict[str, object]:
    return {
        "day": row.day,
        "model": row.model,
        "ours_usd": None if row.ours is None else usd(row.ours),
        "theirs_usd": None if row.theirs is None else usd(row.theirs),
        "difference_usd": usd(row.difference),
        "agrees": row.agrees,
        "note": row.note,
    }


def _dollars(pico: int | None) -> str:
    return "" if pico is None else usd(pico)


def _seconds(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
