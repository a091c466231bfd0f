"""The comparisons of `infermux costs`: with a vendor's bill, and of two models."""

from __future__ import annotations

import math
from datetime import date, timedelta

import click

from ..errors import counted, shown
from ..ledger import Total, reconcile, reports
from ..ledger.compare import compare
from ..ledger.periods import DAY, midnight
from ..ledger.reconcile import Bill, Compared
from ..ledger.sql import Ledger
from . import OneLine, contents, csv_text, json_text, table, warn
from .prices import Known

_MAX_PROBLEMS = 20  # unreadable lines of a bill that are named


# -- costs --reconcile --


def reconciled(
    ledger: Ledger,
    path: str,
    span: reports.Period,
    caller: str | None,
    providers: tuple[str, ...],
    tolerance: tuple[str, ...],
    form: str | None,
) -> int:
    """Print the comparison; return the exit code."""
    allowed = reconcile.Tolerance.of(tolerance)
    known = Known.of(click.get_current_context().params.get("config"))
    bill = reconcile.read(contents(path, f"the bill {path}"), known.table)
    for problem in bill.unread[:_MAX_PROBLEMS]:
        warn(f"{path}: {problem}")
    if (more := len(bill.unread) - _MAX_PROBLEMS) > 0:
        warn(f"{path}: {counted(more, 'more line')} could not be read")
    for note in bill.notes:
        warn(f"{path}: {note}")
    if not (bill.usd or bill.empty):
        raise OneLine(f"{path}: none of its lines can be compared")
    bill.keep(lambda day: span.covers(midnight(day)))
    if not (bill.usd or bill.empty):
        raise OneLine(f"{path}: none of its days is in that time")
    rows = reconcile.compare(bill, _ours(ledger, bill, span, caller, providers), allowed)
    total = reconcile.summed(rows, allowed)
    click.echo(_comparison(rows, total, bill, form))
    return int(bool(bill.unread) or not all(row.agrees for row in [*rows, total]))


def _ours(
    ledger: Ledger, bill: Bill, span: reports.Period, caller: str | None, providers: tuple[str, ...]
) -> list[Total]:
    """Return our totals by day, served model and provider, for the bill's days and vendor.

    Days are compared as a whole; those of another zone than UTC may have 23 or 25 hours.
    """
    first, last = map(midnight, bill.days)
    edges = zip(span, (first, last + DAY), strict=True)
    since, until = (math.ceil((whole if at is None else at) / DAY) for at, whole in edges)
    # bills are of 1970 to 2199
    days = [date(1970, 1, 1) + timedelta(n) for n in range(max(0, since), min(until, 84_000))]
    totals = list[Total]()
    for day in days:
        start, end = (midnight(each, bill.zone(each)) for each in (day, day + timedelta(1)))
        found = ledger.totals("served", "provider", since=start, until=end, caller=caller)
        totals += [total._replace(key=(f"{day}", *total.key)) for total in found]
    known = {total.key[2] for total in totals}
    if not providers:  # OpenAI's bill has no calls to Anthropic
        providers = tuple(name for name in known if bill.may_be_of(name))
        if bill.vendors and known and not providers:
            warn(f"no provider is called {bill.vendor}: compared with all; --provider chooses")
    if missing := [name for name in providers if name not in known]:
        warn(f"the ledger has no calls to {shown(missing[0])} in that time")
    return [total for total in totals if not providers or total.key[2] in providers]


def _comparison(rows: list[Compared], total: Compared, bill: Bill, form: str | None) -> str:
    found = [row.to_dict() for row in (*rows, total)]
    if form == "json":
        sides = {"vendor": bill.vendor or None, "rows": found[:-1], "total": found[-1]}
        said = {"words": reconcile.words(rows, bill), "notes": bill.notes}
        return json_text(sides | {"unread": bill.unread} | said)
    words = {None: "", True: "ok", False: "DIFFERS"}
    cells = [
        [words[each] if each is None or isinstance(each, bool) else each for each in row.values()]
        for row in found
    ]
    if form == "csv":
        head = [name.replace("agrees", "verdict") for name in found[-1]]
        return csv_text(head, cells[:-1])
    differ = sum(not row.agrees for row in rows)
    compared = counted(len(rows), "day and model", "days and models")
    lines = [
        table(["DAY", "MODEL", "OURS", "THEIRS", "DIFFERENCE", "", ""], cells, right=(2, 3, 4)),
        f"{compared}: {len(rows) - differ} agree, {differ} differ",
        *reconcile.words(rows, bill),
    ]
    if not bill.priced:
        lines.append("the export holds tokens but no dollars: THEIRS is priced by the price table")
    return "\n".join(lines)


# -- costs --compare --


def side_by_side(
    ledger: Ledger,
    models: tuple[str, str],
    span: reports.Period,
    caller: str | None,
    form: str | None,
) -> None:
    """Print the comparison of two models."""
    found = compare(ledger, *models, since=span.since, until=span.until, caller=caller)
    head, rows = found.table()
    if form == "json":
        text = json_text(found.to_dict())
    elif form == "csv":
        text = csv_text(head, rows)
    else:
        text = "\n".join([*found.words(), table(head, rows, right=range(1, len(head)))])
    click.echo(text)
