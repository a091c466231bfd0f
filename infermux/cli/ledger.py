"""The options that name a ledger, and the commands that read it: costs and logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC
from operator import attrgetter
from typing import Any

import click

from .. import build
from .. import components as parts
from ..components import ledgers
from ..config.readers import ledger_url
from ..config.settings import LedgerConfig
from ..errors import RequestError, counted
from ..ledger import MAX_ROWS, Record, Total, reports
from ..ledger.recent.search import checked_status
from ..ledger.sql import Ledger
from ..planning.end_user import person_of
from ..pricing import usd
from . import (
    Columns,
    OneLine,
    bar,
    command,
    complete_models,
    complete_providers,
    config_option,
    csv_text,
    json_option,
    json_text,
    table,
    warn,
)
from .comparisons import reconciled, side_by_side

RECENT_DAYS = 30  # that `costs` shows by default
_POLL_SECONDS = 0.5  # between two reads of the ledger
_WRITE_SECONDS = 10.0  # from the end of a call until its row is surely in the ledger
_CALL_SECONDS = 3600.0  # a call that takes longer is not followed
_MAX_NAME = 40  # characters that a column of `logs` grows to
_HEAD = ["TIME UTC", "STATUS", "CALLER", "MODEL", "TARGET", "INPUT", "OUTPUT"]
_HEAD += ["COST USD", "MS", "ATTEMPTS", "ID", "ERROR"]
_COUNTS = [name for name in Total._fields if name not in ("key", "cost", "cache_saved", "assumed")]
_SQLITE_MAGIC = b"SQLite format 3\0"
_caller_option = click.option("--caller", metavar="NAME", help="Only this caller's calls.")


# -- which ledger --


def ledger_options(command: Callable[..., Any]) -> Callable[..., Any]:
    path = click.option(
        "--ledger",
        "path",
        type=click.Path(),
        metavar="PATH",
        help="The ledger: a file, or env:NAME of a URL.  [default: the configuration's]",
    )
    return config_option(path(command))


def the_ledger(config: str | None, path: str | None) -> Ledger:
    """Return the ledger at *path*, a file or URL, else the configured one; never create a file.

    With a *path* alone, its time zone is UTC.
    """
    settings = the_settings(config, path)
    if settings.url is None:
        _check_file(settings.path)
    return ledgers.opened(settings, patient=True)


def the_settings(config: str | None, path: str | None) -> LedgerConfig:
    """Return the settings of the ledger at *path*, else of the configured one."""
    settings = LedgerConfig()
    if path is None or config is not None:
        settings = build.settings(path=config).ledger or settings
    if path is None:
        return settings
    if path.startswith(("postgresql:", "postgres:", "env:")):
        return replace(settings, url=ledger_url(path))
    return replace(settings, path=path, url=None)


def _check_file(path: str) -> None:
    if not path:
        raise OneLine("the configuration has no ledger: [ledger].path is empty")
    try:
        with open(path, "rb") as file:
            start = file.read(len(_SQLITE_MAGIC))
    except FileNotFoundError:
        raise OneLine(
            f"there is no ledger {path}: run this in the service's directory, or give --ledger PATH"
        ) from None
    except OSError as error:
        raise OneLine(f"the ledger {path} cannot be read: {error.strerror}") from None
    if start not in (b"", _SQLITE_MAGIC):
        raise OneLine(f"{path} is not a ledger")


# -- costs and logs --


@command()
@click.option(
    "--by",
    multiple=True,
    metavar="NAME",
    help="model, served, provider, caller, user, tag, tag:NAME, day, hour or error; may be "
    "repeated, or a list with commas.  [default: model]",
)
@click.option(
    "--since",
    metavar="WHEN",
    help="From a date or time, or a time ago: 2026-11-01, 7d, 24h, 30m.  [default: 30d]",
)
@click.option("--until", metavar="WHEN", help="Before this date or time, written like --since.")
@click.option("--month", metavar="MONTH", help="A month: 2026-11, this or last.")
@click.option("--all", "whole", is_flag=True, help="All calls, however old.")
@_caller_option
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=reports.DEFAULT_ROWS,
    show_default=True,
    help="The maximum number of rows.",
)
@click.option("--json", "form", flag_value="json", help="Print what GET /costs answers.")
@click.option("--csv", "form", flag_value="csv", help="Print rows for a spreadsheet.")
@click.option(
    "--reconcile",
    "bill",
    type=click.Path(),
    metavar="BILL.csv",
    help="Compare with a vendor's exported costs or usage.",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_providers,
    help="With --reconcile: only calls to this provider; may be repeated.",
)
@click.option(
    "--tolerance",
    multiple=True,
    metavar="N% or USD",
    help="With --reconcile: the largest difference to accept.  [default: 1% or 0.01]",
)
@click.option(
    "--compare",
    "models",
    nargs=2,
    metavar="A B",
    help="Compare two models: names, PROVIDER/MODEL, or a name and the target of its mirror.",
)
@ledger_options
def costs(
    by: tuple[str, ...],
    since: str | None,
    until: str | None,
    month: str | None,
    whole: bool,
    caller: str | None,
    limit: int,
    form: str | None,
    bill: str | None,
    providers: tuple[str, ...],
    tolerance: tuple[str, ...],
    models: tuple[str, str] | None,
    **where: str | None,
) -> None:
    """Show what calls cost, by model or any other dimension.

    Without a time, it is the last 30 days; with --json, all calls, as GET /costs answers. Days and
    months are those of [ledger] timezone. A call without a price counts as unpriced, never as 0;
    ~ marks how many calls have estimated tokens. With --reconcile, days are those of UTC, and the
    exit code is 1 if the cost of a model on a day differs from the vendor's bill.

    Example: infermux costs --by day,model --since 7d
    """
    if bill is None and (providers or tolerance):
        raise click.UsageError("--provider and --tolerance need --reconcile")
    if models and (by or bill):
        raise click.UsageError("--compare takes neither --by nor --reconcile")
    if whole and (since or until or month):
        raise click.UsageError("give --all, or a time")
    recent = form != "json" and not (since or until or month or whole or bill)
    with usage_errors(), closing(the_ledger(**where)) as ledger:
        zone = ledger.zone if bill is None else UTC  # vendors bill days of UTC
        since = f"{RECENT_DAYS}d" if recent else since
        span = reports.period(time.time(), since=since, until=until, month=month, zone=zone)
        if models:
            side_by_side(ledger, models, span, caller, form)
            return
        if bill is not None:
            sys.exit(reconciled(ledger, bill, span, caller, providers, tolerance, form))
        found = reports.costs(
            ledger, reports.dimensions(by), span, caller=caller, limit=min(limit, MAX_ROWS)
        )
    click.echo(_costs_text(found, form))
    if recent:
        warn(f"these are the last {RECENT_DAYS} days; --all shows all calls")
    _warn_of_pruned(found)


@command()
@click.option(
    "-n",
    "count",
    type=click.IntRange(0, MAX_ROWS),
    default=20,
    show_default=True,
    help="How many of the last calls.",
)
@click.option("--follow", "-f", is_flag=True, help="Also print each call that ends, until Ctrl-C.")
@click.option(
    "--model",
    metavar="NAME",
    shell_complete=complete_models,
    help="Only this model: as requested, tried or served.",
)
@click.option(
    "--status", metavar="STATUS", help="Only this status: ok, error, a number such as 429, or 4xx."
)
@_caller_option
@click.option("--user", metavar="NAME", help="Only calls for this end user: its name, or digest.")
@click.option(
    "--since",
    metavar="WHEN",
    help="Only calls that started then or later: 2026-11-01, 7d, 24h, 30m.",
)
@json_option("Print a JSON object per line, with the call's attempts.")
@ledger_options
def logs(
    count: int,
    follow: bool,
    since: str | None,
    as_json: bool,
    config: str | None,
    path: str | None,
    user: str | None,
    status: str | None,
    **filters: Any,
) -> None:
    """Print the last calls, the newest last.

    A line has no prompt and no answer: the ledger keeps none.

    Example: infermux logs -n 50 --status error
    """
    show = _json_lines if as_json else _aligned_lines
    if user is not None:
        known = parts.users(build.settings(path=config, strict=False))
        filters["users"] = (user, known.digest(person_of(user)))
    with usage_errors(), closing(the_ledger(config, path)) as ledger:
        filters["status"] = status and checked_status(status)
        start = reports.period(time.time(), since=since, zone=ledger.zone).since
        line = None
        try:
            for line in show(_records(ledger, count, start, filters, follow=follow)):
                click.echo(line)
        except KeyboardInterrupt:
            return
    if line is None and count and not as_json:
        warn("the ledger has no such calls")


def _records(
    ledger: Ledger, count: int, since: float | None, filters: dict[str, Any], *, follow: bool
) -> Iterator[list[Record]]:

    def ended_since(time: float) -> list[Record]:
        # a call is found by its start, so a long one is looked for far back
        since = time - _WRITE_SECONDS
        return ledger.rows(**filters, since=since - _CALL_SECONDS, ended=since, limit=MAX_ROWS)

    looked = time.time()
    seen = {record.call[:2] for record in ended_since(looked)} if follow else set()
    last = ledger.rows(**filters, since=since, limit=count)
    yield last[::-1]
    seen.update(record.call[:2] for record in last)
    while follow:
        time.sleep(_POLL_SECONDS)
        now, found = time.time(), ended_since(looked)
        yield [record for record in reversed(found) if record.call[:2] not in seen]
        seen, looked = {record.call[:2] for record in found}, now


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a RequestError into a usage error of the option that caused it."""
    try:
        yield
    except RequestError as error:
        if error.param is None:
            raise
        raise click.BadParameter(error.message, param_hint=f"--{error.param}") from None


# -- costs and logs as text --


def _costs_text(found: reports.Costs, form: str | None) -> str:
    if form == "json":
        return json_text(found.to_dict())
    return _costs_csv(found) if form == "csv" else _costs_table(found)


def _costs_table(found: reports.Costs) -> str:
    bars = sys.stdout.isatty()
    money = _aligned([reports.amount(total) for total in (*found.rows, found.total)])
    highest = max((row.cost for row in found.rows), default=0)
    saves = any(total.cache_saved for total in found.rows)
    rows = [
        [
            *(name or "(none)" for name in row.key),
            *_sums(row, cost, saves),
            bar(row.cost, highest) * bars,
        ]
        for row, cost in zip(found.rows, money, strict=False)
    ]
    width = len(found.by)
    rows.append(["TOTAL", *[""] * (width - 1), *_sums(found.total, money[-1], saves), ""])
    names = [name.upper() for name in found.by]
    head = [*names, "CALLS", "ATTEMPTS", "ERRORS", "INPUT", "OUTPUT", "COST USD"]
    head += [*["CACHE SAVED USD"] * saves, "", ""]
    text = table(head, rows, right=range(width, len(head) - 2))
    return text + f"\n{counted(found.more, 'more row')}: see --limit" * bool(found.more)


def _warn_of_pruned(found: reports.Costs) -> None:
    """Tell how many calls no row has: of days that were pruned, hours and users are not known."""
    left = found.total.calls - sum(row.calls for row in found.rows)
    if left > 0 and not found.more and {"hour", "user"}.intersection(found.by):
        warn(f"the rows lack {counted(left, 'call')} of days that were pruned; TOTAL has them")


def _sums(total: Total, cost: str, saves: bool) -> list[str]:
    names = ("calls", "attempts", "errors", "input_tokens", "output_tokens")
    notes = [f"{total.unpriced:,} unpriced"] * bool(total.unpriced)
    notes += [f"~{total.estimated:,} estimated"] * bool(total.estimated)
    notes += [f"{usd(total.assumed)} ~ assumed"] * bool(total.assumed)
    counts = [f"{getattr(total, name):,}" for name in names]
    return [*counts, cost, *[usd(total.cache_saved)] * saves, ", ".join(notes)]


def _aligned(amounts: Sequence[int | None]) -> list[str]:
    """Return exact dollars, padded so that right-aligned decimal points line up."""
    texts = [usd(pico) for pico in amounts]
    tails = [len("".join(text.partition(".")[1:])) for text in texts]
    return [
        text + " " * (max(tails) - tail) * (text != "unpriced")
        for text, tail in zip(texts, tails, strict=True)
    ]


def _costs_csv(found: reports.Costs) -> str:
    counts = attrgetter(*_COUNTS)
    rows = [
        [*row.key, usd(reports.amount(row)), *counts(row), usd(row.cache_saved), usd(row.assumed)]
        for row in found.rows
    ]
    return csv_text([*found.by, "cost_usd", *_COUNTS, "cache_saved_usd", "assumed_usd"], rows)


def _aligned_lines(pages: Iterable[list[Record]]) -> Iterator[str]:
    """Yield calls as aligned lines, the first ones below a header."""
    columns, head = Columns(right=range(5, 10), most=_MAX_NAME), [_HEAD]
    for records in filter(None, pages):
        yield from columns.lines([*head, *map(_row, records)])
        head = []


def _json_lines(pages: Iterable[list[Record]]) -> Iterator[str]:
    return (json_text(reports.call_dict(record)) for page in pages for record in page)


def _row(record: Record) -> list[str]:
    call = record.call
    cost = ("~" if call.estimated else "") + usd(call.cost)
    kept = "cache" if call.cost_source == "cache" else "-"
    if call.unpriced and call.cost is not None:
        cost += f" + {call.unpriced} unpriced"
    return [
        (reports.iso(call.at_ns // 10**9) or "").rstrip("Z").replace("T", " "),
        call.status,
        call.caller or "-",
        call.requested or "-",
        f"{call.provider}/{call.served}" if record.attempts else kept,
        *("-" if n is None else f"{n:,}" for n in (call.input_tokens, call.output_tokens)),
        cost,
        f"{call.latency_ms:,}",
        str(call.attempts),
        call.id,
        call.error_code,
    ]
