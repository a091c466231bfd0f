"""Commands that read the ledger: costs and logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import click

from .. import build
from ..config.settings import LedgerConfig
from ..errors import RequestError
from ..ledger import MAX_ROWS, Ledger, LedgerUnavailable, Record, Total, reports
from ..pricing import usd
from . import OneLine, checked
from .output import bar, csv_text, json_text, printable, table

Value = TypeVar("Value")
Command = Callable[..., Any]
_MAGIC = b"SQLite format 3\0"
_POLL = 0.5  # seconds between two looks at the ledger
_OVERLAP = 10.0  # seconds that a call may need from its end to the ledger
_LONGEST = 3600.0  # seconds that a call may take, for one to be followed
_COUNTS = (
    "calls",
    "attempts",
    "errors",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "unpriced",
    "estimated",
)


def ledger_options(command: Command) -> Command:
    """Give *command* what all that read the ledger share."""
    config = click.option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration.  [default: infermux.toml, or the environment]",
    )
    return config(
        click.option(
            "--ledger", "path", metavar="PATH", help="The ledger.  [default: the configuration's]"
        )(command)
    )


@click.command()
@click.option(
    "--by",
    multiple=True,
    metavar="NAME",
    help="model, served, provider, caller, tag, tag:NAME, day, hour or error; may be "
    "repeated, or a list with commas.  [default: model]",
)
@click.option(
    "--since",
    metavar="WHEN",
    help="From a UTC date or time, or so long ago: 2026-11-01, 7d, 24h, 30m.",
)
@click.option("--until", metavar="WHEN", help="Up to, not including.")
@click.option("--month", metavar="MONTH", help="A UTC month: 2026-11, this or last.")
@click.option("--caller", metavar="NAME", help="Only this caller's calls.")
@click.option(
    "--limit", type=click.IntRange(1), default=reports.DEFAULT_ROWS, show_default=True, help="Rows at most."
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
    help="With --reconcile: only calls to this one; may be repeated.",
)
@click.option(
    "--tolerance",
    multiple=True,
    metavar="N% or USD",
    help="With --reconcile: a difference that is none.  [default: 1% or 0.01]",
)
@ledger_options
def costs(
    by: tuple[str, ...],
    since: str | None,
    until: str | None,
    month: str | None,
    caller: str | None,
    limit: int,
    form: str | None,
    bill: str | None,
    providers: tuple[str, ...],
    tolerance: tuple[str, ...],
    **where: str | None,
) -> None:
    """Say what calls have cost, by model or by anything else that is known of them.

    What has no price is counted as unpriced and never as 0; ~ tells how many calls rest on
    estimated tokens. With --reconcile the exit code is 1 where a day's cost of a model is not what
    the vendor bills.

    Example: infermux costs --by day,model --since 7d
    """
    if bill is None and (providers or tolerance):
        raise click.UsageError("--provider and --tolerance go with --reconcile")
    span = _used_rightly(lambda: reports.period(time.time(), since=since, until=until, month=month))
    with closing(the_ledger(**where)) as ledger:
        if bill is not None:
            from .reconcile import reconcile

            sys.exit(
                read(
                    lambda: reconcile(
                        ledger,
                        bill,
                        span,
                        caller=caller,
                        providers=providers,
                        tolerance=tolerance,
                        form=form,
                    )
                )
            )
        found = read(
            lambda: reports.costs(
                ledger, reports.dimensions(by), span, caller=caller, limit=min(limit, MAX_ROWS)
            )
        )
    if form == "json":
        click.echo(json_text(found.to_dict()))
    elif form == "csv":
        click.echo(_costs_csv(found), nl=False)
    else:
        click.echo(_costs_table(found, bars=sys.stdout.isatty()))


@click.command()
@click.option(
    "-n",
    "count",
    type=click.IntRange(0, MAX_ROWS),
    default=20,
    show_default=True,
    help="How many of the last calls.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on with each call that ends, until Ctrl-C.")
@click.option("--model", metavar="NAME", help="Only this model, as asked for, tried or served.")
@click.option(
    "--status", metavar="STATUS", help="Only these: ok, error, a status such as 429, or 4xx."
)
@click.option("--caller", metavar="NAME", help="Only this caller's calls.")
@click.option(
    "--since", metavar="WHEN", help="Only calls that began then or later: 2026-11-01, 7d, 24h, 30m."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON object per line, with the call's attempts.",
)
@ledger_options
def logs(
    count: int,
    follow: bool,
    model: str | None,
    status: str | None,
    caller: str | None,
    since: str | None,
    as_json: bool,
    **where: str | None,
) -> None:
    """Print the last calls, the newest at the end: never a word of what was asked or answered.

    Example: infermux logs -n 50 --status error
    """
    span = _used_rightly(lambda: reports.period(time.time(), since=since))
    filters: dict[str, Any] = {"model": model, "status": status, "caller": caller}
    show = _json_line if as_json else _line
    with closing(the_ledger(**where)) as ledger:
        try:
            for record in _records(ledger, count, span.since, filters, follow=follow):
                click.echo(show(record))
        except KeyboardInterrupt:
            return


def _records(
    ledger: Ledger, count: int, since: float | None, filters: dict[str, Any], *, follow: bool
) -> Iterator[Record]:
    """Yield the last calls, and to *follow* each that ends: told by its end, for a long call comes
    after later ones that were short.
    """

    def fresh(ended: float) -> list[Record]:
        since = ended - _OVERLAP
        return read(
            lambda: ledger.rows(**filters, since=since - _LONGEST, ended=since, limit=MAX_ROWS)
        )

    looked = time.time()
    seen = {record.call[:2] for record in fresh(looked)} if follow else set()
    last = read(lambda: ledger.rows(**filters, since=since, limit=count))
    yield from reversed(last)
    seen.update(record.call[:2] for record in last)
    while follow:
        time.sleep(_POLL)
        now, found = time.time(), fresh(looked)
        yield from [record for record in reversed(found) if record.call[:2] not in seen]
        seen, looked = {record.call[:2] for record in found}, now


# -- the ledger ------------------------------------------------------------------------------------


def the_ledger(config: str | None, path: str | None) -> Ledger:
    """Return the ledger at *path*, else the configured one; who reads makes none, and touches no
    file that is none.
    """
    if path is None:
        settings = checked(lambda: build.settings(path=config))
        path = (settings.ledger or LedgerConfig()).path
        if not path:
            raise OneLine("the configuration keeps no ledger: [ledger].path is empty")
    try:
        with open(path, "rb") as file:
            start = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise OneLine(
            f"there is no ledger {path}: run this where the service runs, or name its ledger with --ledger PATH"
        ) from None
    except OSError as error:
        raise OneLine(f"the ledger {path} cannot be read: {error.strerror}") from None
    if start not in (b"", _MAGIC):
        raise OneLine(f"{path} is not a ledger")
    from ..ledger.sqlite import SQLiteLedger  # loads sqlite3

    return SQLiteLedger(path)


def read(ask: Callable[[], Value]) -> Value:
    """Return what the ledger says; why it cannot say it is for operators, who are the ones that ask
    here.
    """
    try:
        return _used_rightly(ask)
    except LedgerUnavailable as error:
        raise OneLine(error.reason) from None


def _used_rightly(ask: Callable[[], Value]) -> Value:
    try:
        return ask()
    except RequestError as error:
        raise click.BadParameter(error.message, param_hint=f"--{error.param}") from None


# -- lines -----------------------------------------------------------------------------------------


def _costs_table(found: reports.Costs, *, bars: bool) -> str:
    """Return the groups and their sum as text, with a bar for each group."""
    totals = [*found.rows, found.total]
    money = _aligned([reports.amount(total) for total in totals])
    most = max((row.cost for row in found.rows), default=0)
    rows = [
        [
            *[name or "(none)" for name in row.key],
            *_sums(row),
            cost,
            _note(row),
            *([bar(row.cost, most)] if bars else []),
        ]
        for row, cost in zip(found.rows, money, strict=False)
    ]
    first = ["TOTAL", *[""] * (len(found.by) - 1)]
    rows.append(
        [*first, *_sums(found.total), money[-1], _note(found.total), *([""] if bars else [])]
    )
    head = [
        *[name.upper() for name in found.by],
        "CALLS",
        "ERRORS",
        "INPUT",
        "OUTPUT",
        "COST USD",
        "",
        *([""] if bars else []),
    ]
    width = len(found.by)
    lines = table(head, rows, right=range(width, width + 5))
    return lines + (f"\n{found.more} more rows: see --limit" if found.more else "")


def _sums(total: Total) -> list[str]:
    return [
        f"{count:,}"
        for count in (total.calls, total.errors, total.input_tokens, total.output_tokens)
    ]


def _note(total: Total) -> str:
    """Return what must be known to read a cost rightly."""
    notes = [f"{total.unpriced:,} unpriced"] if total.unpriced else []
    return ", ".join([*notes, *([f"~{total.estimated:,} estimated"] if total.estimated else [])])


def _aligned(amounts: Sequence[int | None]) -> list[str]:
    """Return exact dollars whose points stand below each other where they end flush."""
    texts = [usd(pico) for pico in amounts]
    digits = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [
        text
        if text == "unpriced"
        else text + " " * (digits - len(text.partition(".")[2]) + (digits > 0 and "." not in text))
        for text in texts
    ]


def _costs_csv(found: reports.Costs) -> str:
    return csv_text(
        [*found.by, "cost_usd", *_COUNTS],
        [
            [*row.key, usd(reports.amount(row)), *[getattr(row, name) for name in _COUNTS]]
            for row in found.rows
        ],
    )


def _line(record: Record) -> str:
    call = record.call
    reached = f"{call.provider}/{call.served}" if record.attempts else "-"
    tokens = f"{'-' if call.input_tokens is None else call.input_tokens} in {'-' if call.output_tokens is None else call.output_tokens} out"
    cost = usd(call.cost) + (
        f" + {call.unpriced} unpriced" if call.unpriced and call.cost is not None else ""
    )
    error = f"  {call.error_code}" if call.error_code else ""
    when = (reports.iso(call.at_ns // 10**9) or "").rstrip("Z").replace("T", " ")
    return printable(
        f"{when}  {call.status:<3}  {call.caller or '-':<10}  {call.requested} -> {reached}  {tokens}  "
        f"{'~' if call.estimated else ''}{cost} USD  {call.latency_ms} ms  x{call.attempts}  {call.id}{error}"
    )


def _json_line(record: Record) -> str:
    return json_text(reports.call_dict(record))
