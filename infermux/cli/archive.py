"""The command group `infermux ledger`: what an operator does to the file itself."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import click

from ..components import ledgers
from ..config.readers import days
from ..config.settings import LedgerConfig
from ..errors import ConfigError, counted
from ..ledger import Record, reports
from ..ledger.periods import step_name
from . import Group, OneLine, csv_text, json_text, warn
from .ledger import ledger_options, the_ledger, the_settings, usage_errors

if TYPE_CHECKING:
    from ..ledger.postgres import PostgresLedger


@click.group(cls=Group)
def ledger() -> None:
    """Make, check, prune, export, copy or back up the ledger.

    A service may use it meanwhile, except for a copy.

    Example: infermux ledger backup infermux-backup.db
    """


@ledger.command()
@click.option("--keep", metavar="DAYS", help="Such as 400d.  [default: [ledger] keep]")
@ledger_options
def prune(keep: str | None, **where: str | None) -> None:
    """Remove old calls. The sums of each day stay, by model, caller, tag and error.

    A service does this by itself where [ledger] keep is set. A file does not become smaller, but
    new calls use the room. In PostgreSQL whole months are removed: their partitions are dropped.

    Example: infermux ledger prune --keep 400d
    """
    with closing(the_ledger(**where)) as file:
        seconds = file.keep if keep is None else LedgerConfig(keep=_days(keep)).keep_seconds
        if seconds is None:
            raise click.UsageError("say how long calls are kept: --keep 400d, or [ledger] keep")
        if file.spooled():
            raise OneLine("calls wait for being written: start the service first")
        before = file.prunes_before(time.time() - seconds)
        count = file.prune(before)
    click.echo(f"removed {counted(count, 'call')} from before {step_name('day', before)}")


@ledger.command()
@click.option("--month", metavar="MONTH", help="Only this month: 2026-11, this or last.")
@click.option("--csv", "form", flag_value="csv", help="A row for each call, for a spreadsheet.")
@click.option(
    "--json", "form", flag_value="jsonl", default=True, help="A JSON object per line.  [default]"
)
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Write calls-2026-11.csv and so on there.  [default: standard output]",
)
@ledger_options
def export(month: str | None, form: str, folder: str | None, **where: str | None) -> None:
    """Print all calls, or write a file for each month.

    Example: infermux ledger export --csv --month last
    """
    with usage_errors(), closing(the_ledger(**where)) as file:
        count, zone = 0, file.zone
        span = reports.period(time.time(), month=month, zone=zone)
        records = chain.from_iterable(reports.export(file, span))
        if folder is None:
            count = _write(sys.stdout, form, records)
        else:
            os.makedirs(folder, exist_ok=True)
            months = groupby(
                records, lambda each: step_name("day", each.call.at_ns / 1e9, zone)[:7]
            )
            for name, calls in months:
                path = Path(folder, f"calls-{name}.{form}")
                with open(path, "w", encoding="utf-8", opener=partial(os.open, mode=0o600)) as out:
                    count = _write(out, form, calls)
                click.echo(f"wrote {path}: {counted(count, 'call')}")
    if not count:
        warn("there are no calls of that time; pruned ones have left only their sums")


@ledger.command()
@click.argument("target", type=click.Path(), metavar="FILE")
@ledger_options
def backup(target: str, **where: str | None) -> None:
    """Copy the ledger to FILE, as of one moment; the service may go on.

    Example: infermux ledger backup infermux-backup.db
    """
    if os.path.exists(target):
        raise OneLine(f"{target} exists already")
    if not os.path.isdir(folder := os.path.dirname(target) or "."):
        raise OneLine(f"there is no folder {folder}")
    partial = f"{target}.partial"
    from ..ledger.sqlite import SQLiteLedger  # loads sqlite3

    with closing(the_ledger(**where)) as file:
        if not isinstance(file, SQLiteLedger):
            raise OneLine("the ledger is in PostgreSQL: back it up with pg_dump")
        file.backup(partial)
    try:
        os.link(partial, target)  # a rename would replace a file
    except OSError as error:
        raise OneLine(f"{target} cannot be written: {error.strerror}") from None
    finally:
        os.unlink(partial)
    click.echo(f"wrote {target}")


@ledger.command()
@ledger_options
def check(**where: str | None) -> None:
    """Check the data, and that all sums equal their rows. Exit code 1 if not.

    Example: infermux ledger check
    """
    with closing(the_ledger(**where)) as file:
        file.check()
        found = file.problems()
        waiting = file.spooled()
    _exit_with(found)
    rest = f"; {counted(waiting, 'call waits', 'calls wait')} for being written" if waiting else ""
    click.echo(f"the ledger is sound{rest}")


@ledger.command()
@click.option("--role", metavar="NAME", default="", help="Grant this role what a service needs.")
@ledger_options
def init(role: str, **where: str | None) -> None:
    """Create or update the tables of a ledger in PostgreSQL.

    The URL is that of a role that may create tables. A service needs only to select, insert,
    update and delete: give it another role.

    Example: DATABASE_URL=$OWNER_URL infermux ledger init --role infermux
    """
    _migrate(where, create=True, role=role)


@ledger.command()
@ledger_options
def migrate(**where: str | None) -> None:
    """Update the tables of a ledger in PostgreSQL. It makes partitions ahead.

    A service does not do this by itself, unless [ledger] migrate = true.

    Example: infermux ledger migrate
    """
    _migrate(where, create=False)


def _migrate(where: dict[str, str | None], *, create: bool, role: str = "") -> None:
    settings = the_settings(where["config"], where["path"])
    if settings.url is None:
        raise OneLine("the configuration has no [ledger] url; a file needs no such command")
    with closing(ledgers.opened(settings, patient=True)) as file:
        done = file.migrate(create=create, role=role)
    for each in done or ["nothing to do"]:
        click.echo(each)


@ledger.command("copy")
@click.argument("source", metavar="FILE")
@click.argument("target", metavar="[URL]", required=False)
@ledger_options
def copy_ledger(source: str, target: str | None, config: str | None, path: str | None) -> None:
    """Copy the ledger in FILE to PostgreSQL, and compare the sums.

    URL is [ledger] url by default. No service may write to FILE meanwhile. A copy that was
    interrupted goes on where it was.

    Example: infermux ledger copy infermux.db
    """
    from ..ledger.sqlite import SQLiteLedger  # loads sqlite3

    with closing(the_ledger(None, source)) as old, closing(_target(config, target or path)) as new:
        if not isinstance(old, SQLiteLedger):
            raise OneLine(f"{source} is not a file: use pg_dump")
        if old.spooled():
            raise OneLine("calls wait for being written: start the service first, then stop it")
        new.check()
        is_terminal = sys.stderr.isatty()
        found = new.copied_from(
            old, old.path, lambda n: click.echo(f"\r{n:,} calls" * is_terminal, nl=False, err=True)
        )
    click.echo("\n" * is_terminal, nl=False, err=True)
    _exit_with(found.differences)
    resumed = f", {found.resumed:,} of them before" if found.resumed else ""
    click.echo(f"copied {counted(found.calls, 'call')}{resumed}; the sums agree")


def _target(config: str | None, place: str | None) -> PostgresLedger:
    settings = the_settings(config, place)
    if settings.url is None:
        raise OneLine("a copy goes to PostgreSQL: set [ledger] url, or give the URL or env:NAME")
    return cast("PostgresLedger", ledgers.opened(settings, patient=True))


def _exit_with(problems: Sequence[str]) -> None:
    for problem in problems:
        warn(problem)
    if problems:
        sys.exit(1)


def _write(out: TextIO, form: str, records: Iterable[Record]) -> int:
    """Write calls as lines of JSON, or as a table with one head; return how many."""
    count = 0
    for count, record in enumerate(records, 1):
        found = reports.call_dict(record)
        if form == "csv":
            found |= {"attempts": len(found["attempts"]), "tags": json_text(found["tags"])}
            text = csv_text([*found], [[*found.values()]])
            text = text if count == 1 else text.partition("\n")[2]
        else:
            text = json_text(found)
        out.write(f"{text}\n")
    return count


def _days(text: str) -> str:
    try:
        return days(text, "--keep")
    except ConfigError as error:
        raise click.UsageError(error.message) from None
