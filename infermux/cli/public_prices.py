"""Prices beside public tables: `infermux prices --check`, and the command `prices update`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from .. import build
from ..config import default_file
from ..errors import ConfigError, InferMuxError, counted, printable
from ..pricing import PriceTable, compare, public, shipped, table
from ..pricing.tariff import figure_text
from ..pricing.update import Update, written
from ..pricing.update import update as updated
from . import OneLine, command, contents, json_option, json_text, warn
from . import table as columns

FILE = "prices.json"  # beside the user's own infermux.toml
_MODULES = ("genai_prices", "genai-prices")
_LISTED = 20  # models of a kind that are named, without --json


@command("update")
@click.argument("source", metavar="FILE | -", type=click.Path(allow_dash=True))
@click.option(
    "--output",
    "-o",
    type=click.Path(),
    metavar="FILE",
    help="The table to write.  [default: prices.json beside your own infermux.toml]",
)
@click.option(
    "--accepted",
    type=click.Path(),
    metavar="FILE",
    help="Leave the differences in this file as they are; see `prices --check --accept`.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would change.")
@json_option("Print JSON, with all names.")
def update(
    source: str, output: str | None, accepted: str | None, dry_run: bool, as_json: bool
) -> None:
    """Update your own table of prices from a public one.

    FILE is litellm's model_prices_and_context_window.json, the data.json of genai-prices or its
    installed Python module (genai_prices), or OpenRouter's answer to GET /models; - reads standard
    input. Nothing is fetched. What differs from the present prices is written; [prices] file names
    the table to use.

    Example: infermux prices update model_prices_and_context_window.json --dry-run
    """
    today = datetime.fromtimestamp(time.time(), UTC).date()
    path = Path(output) if output else default_file(user=True).with_name(FILE)
    before = _present(path)
    allowed = _accepted(accepted) if accepted else []
    try:
        found = updated(public.read(_read(source), today), before, today, allowed)
    except ConfigError as error:
        raise OneLine(f"{source}: {error.message}") from None
    wrote = bool(found.new or found.changed) and not dry_run
    if wrote:
        _replace(path, written(found.table))
    if as_json:
        told = found._asdict() | {"changed": [each._asdict() for each in found.changed]}
        del told["table"]
        click.echo(json_text(told | {"file": str(path), "wrote": wrote}))
    else:
        click.echo(_told(source, found))
        click.echo(_outcome(path, found, wrote))
    if wrote:
        _advise(path)


def checked(
    files: Sequence[str],
    today: date,
    known: PriceTable,
    accepted: str | None,
    *,
    accept: bool,
    as_json: bool,
) -> int:
    """Print what differs between the prices and public tables; return the exit code."""
    if not files:
        raise click.UsageError(
            "--check needs a FILE: litellm's model_prices_and_context_window.json, "
            "the data.json of genai-prices, or OpenRouter's answer to GET /models"
        )
    allowed = _accepted(accepted) if accepted and not accept else []
    kept, code = list[compare.Difference](), 0
    for file in files:
        try:
            found = compare.check(_read(file), today, known)
        except ConfigError as error:
            raise OneLine(f"{file}: {error.message}") from None
        kept += [each for each in found.differences if each not in kept]
        fresh = [each for each in found.differences if each not in allowed]
        code |= bool(fresh) and not accept
        text = _check_text(file, found, known, fresh)
        click.echo(_check_json(file, found, allowed) if as_json else text)
    if accept and accepted:
        _keep(Path(accepted), kept)
    elif gone := [each for each in allowed if each not in kept]:
        what = counted(len(gone), "accepted difference is", "accepted differences are")
        warn(f"{accepted}: {what} no more; --accept writes the present ones")
    return code


# -- the files --


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    path = Path(source)
    if source in _MODULES and not path.exists():
        spec = importlib.util.find_spec(_MODULES[0])
        if spec is None or not spec.origin:
            raise OneLine(
                "the Python module genai_prices is not installed: pip install genai-prices, "
                "or name its data.json"
            )
        path = Path(spec.origin).parent
    if path.is_dir() and (path / "data.py").is_file():  # of the module genai_prices
        path = path / "data.py"
    return contents(str(path), source)


def _present(path: Path) -> PriceTable:
    """Return the shipped prices with those of *path*, if it exists, over them."""
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        return shipped()
    except OSError as error:
        raise OneLine(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise OneLine(f"{path} is not JSON: move it away, or name another --output") from None
    return PriceTable(shipped().shipped, table.read(stored, str(path)))


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole: a reader finds the old one or the new one."""
    real = Path(os.path.realpath(path))
    part = real.with_name(f".{real.name}.{secrets.token_hex(4)}")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if real.exists():
            shutil.copymode(real, part)
        os.replace(part, real)
    except OSError as error:
        raise OneLine(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _accepted(file: str) -> list[compare.Difference]:
    try:
        return [
            compare.Difference(model, figure, ours and Decimal(ours), Decimal(theirs))
            for row in json.loads(contents(file, file))["accepted"]
            for model, figure, ours, theirs in [map(row.__getitem__, compare.Difference._fields)]
        ]
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        raise OneLine(f"{file} has no accepted differences: --accept writes such a file") from None


def _keep(path: Path, found: Sequence[compare.Difference]) -> None:
    lines = ",\n".join(json.dumps(_row(each)) for each in found)
    _replace(path, f'{{"accepted": [\n{lines}\n]}}\n')
    warn(f"{path}: {counted(len(found), 'difference')} accepted")


# -- output --


def _told(source: str, found: Update) -> str:
    parts = [f"{source} ({found.source}): {counted(found.read, 'model')} read"]
    if found.new:
        parts.append(f"new: {_names(found.new)}")
    if found.changed:
        head = ("CHANGED", "TERM", "WAS", "NOW")
        rows = [
            (each.model, each.term.replace("_", " "), each.was or "-", each.now or "-")
            for each in found.changed[:_LISTED]
        ]
        parts.append(columns(head, rows, right=(2, 3)))
        if (more := len(found.changed) - _LISTED) > 0:
            parts.append(f"\u2026 and {more} more (--json names them)")
    if found.kept:
        listed = _names(found.kept, 3)
        parts.append(f"kept, prices of long requests, which the table does not list: {listed}")
    for reason, models in sorted(found.skipped.items(), key=lambda item: -len(item[1])):
        parts.append(f"skipped, {reason}: {_names(models, 3)}")
    return "\n".join(parts)


def _names(models: Sequence[str], most: int = _LISTED) -> str:
    named = ", ".join(models[:most]) + (", \u2026" if len(models) > most else "")
    return printable(f"{len(models)} ({named})")


def _outcome(path: Path, found: Update, wrote: bool) -> str:
    models = len({each.model for each in found.changed})
    what = (
        f"{counted(len(found.new), 'new model')}, {counted(models, 'changed one')}, "
        f"{counted(found.same, 'is as known', 'are as known')}"
    )
    left = "nothing was written" if found.new or found.changed else f"{path} stays as it is"
    return printable(f"{what}: {f'wrote {path}' if wrote else left}")


def _advise(path: Path) -> None:
    """Say how the table is used, unless the configuration names it."""
    try:
        file = build.settings(strict=False).price_table
    except InferMuxError:
        file = None
    if file is None or os.path.realpath(file.path) != os.path.realpath(path):
        warn(f"to use it, set [prices].file = {json.dumps(str(path))} in infermux.toml")


def _row(each: compare.Difference) -> dict[str, Any]:
    return each._asdict() | {"ours": figure_text(each.ours), "theirs": figure_text(each.theirs)}


def _check_json(file: str, found: compare.Check, allowed: list[compare.Difference]) -> str:
    told = [
        _row(each) | ({"accepted": True} if each in allowed else {}) for each in found.differences
    ]
    return json_text({"file": file} | found._asdict() | {"differences": told})


def _check_text(
    file: str, found: compare.Check, known: PriceTable, fresh: list[compare.Difference]
) -> str:
    head = ["MODEL", "FIGURE", "OURS", "THERE"]
    cells = [[text or "-" for text in _row(each).values()] for each in fresh]
    differences = columns(head, cells, right=(2, 3)) + "\n"
    accepted = len(found.differences) - len(fresh)
    return differences * bool(fresh) + printable(
        f"{file} ({found.source}): {counted(found.compared, 'model')} compared with the table of "
        f"{known.day}, {counted(len(fresh), 'figure differs', 'figures differ')}"
        f"{f' ({accepted} more accepted)' * bool(accepted)}; "
        f"{counted(len(found.unknown), 'model is', 'models are')} only in the file "
        "(--json names them)"
    )
