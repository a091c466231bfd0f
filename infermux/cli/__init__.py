"""The command line: what its commands share, which are errors, options, the router and output.

Each module holds a few commands; `main` loads it when one of them is called.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TextIO

import click

from .. import build
from ..config import override
from ..config.schema import url
from ..errors import InferMuxError, close_to, printable, shown
from ..ledger import LedgerUnavailable
from ..planning.matching import all_matched
from ..planning.registry import Registry
from ..pricing import PICO
from ..routing.router import Router

_UNWRITTEN = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_BAR = 24  # characters of the longest bar
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)

config_option = click.option(
    "--config",
    "-c",
    type=click.Path(),
    metavar="FILE",
    help="The configuration.  [default: infermux.toml, else the environment]",
)


def json_option(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--json", "as_json", is_flag=True, help=help)


def _send_spans(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        override("TRACE__TOKENTRACE", url(value, "--tokentrace"))


tokentrace_option = click.option(
    "--tokentrace",
    metavar="URL",
    expose_value=False,
    callback=_send_spans,
    help="Send spans to this TokenTrace.",
)


def dollars(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return an option's or argument's dollars in pico-USD."""
    if value is None:
        return None
    try:
        pico = Decimal(value) * PICO
        if not 0 < pico <= 9 * 10**6 * PICO or pico % 1:
            raise InvalidOperation
    except InvalidOperation:
        message = f"{value!r} is not an amount of dollars above 0, such as 2.50; at most 9,000,000"
        raise click.BadParameter(message) from None
    return int(pico)


class OneLine(click.ClickException):
    """An error that is one line on standard error and exit code 1."""

    def show(self, file: Any = None) -> None:
        warn(self.message)


class Command(click.Command):
    """A command whose InferMux errors are one line; its long options may have a single dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = self.get_params(ctx)
        known = {name for each in options for name in (*each.opts, *each.secondary_opts)}
        end = args.index("--") if "--" in args else len(args)
        doubled = [f"-{arg}" if f"-{arg.partition('=')[0]}" in known else arg for arg in args[:end]]
        with in_one_line():
            return super().parse_args(ctx, doubled + args[end:])

    def invoke(self, ctx: click.Context) -> Any:
        with in_one_line():
            return super().invoke(ctx)


class Group(Command, click.Group):
    command_class = Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command that is called; the error for an unknown one says which is close."""
        name = args[0]
        if not (name.startswith("-") or ctx.resilient_parsing or self.get_command(ctx, name)):
            ctx.fail(f"there is no command {shown(name)}{close_to(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def command(name: str | None = None) -> Callable[[Callable[..., Any]], Command]:
    return click.command(name, Command)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn errors, also of writing to a full disk or a closed pipe, into one line."""
    for name, mode in (("stdin", "r"), ("stdout", "w")):
        if getattr(sys, name) is None:  # closed: it reads as empty, and cannot be written
            file = os.open(os.devnull, os.O_RDONLY)
            setattr(sys, name, os.fdopen(file, mode, encoding="utf-8"))
    if isinstance(out := sys.stdout, io.TextIOWrapper) and out.errors == "strict":
        out.reconfigure(errors="replace")  # Windows redirects to a code page, which lacks letters
    try:
        yield
        sys.stdout.flush()
    except InferMuxError as error:  # who runs commands is an operator
        why = error.reason if isinstance(error, LedgerUnavailable) else str(error)
        raise OneLine(why) from None
    except UnicodeDecodeError:
        raise OneLine("the input is not UTF-8 text") from None
    except OSError as error:
        if error.errno not in _UNWRITTEN or error.filename is not None:
            raise
        _discard(sys.stdout)
        raise OneLine(f"the output cannot be written: {os.strerror(error.errno or 0)}") from None


def _discard(stream: TextIO) -> None:
    """Discard what a stream cannot write: it would fail again at the exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def warn(text: str) -> None:
    try:
        click.echo(f"infermux: {' '.join(text.split())}", err=True)
    except OSError:  # it may be on the same full device
        _discard(sys.stderr)


def contents(path: str, what: str) -> bytes:
    """Return the bytes of a file; *what* names it in an error."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OneLine(f"{what} cannot be read: {error.strerror}") from None


@contextmanager
def open_router(config: str | None = None) -> Iterator[Router]:
    """Yield a router: that of a configuration file or, under the `flask` command, the app's."""
    flask = None if config else sys.modules.get("flask")
    if flask is not None and flask.has_app_context() and "infermux" in flask.current_app.extensions:
        yield flask.current_app.extensions["infermux"]
    else:
        settings = build.settings(path=config)
        build.announce(settings)
        with closing(build.router(settings)) as router:
            yield router


def the_prompt(text: str | None, prompt: str | None) -> str:
    """Return the prompt: the argument, an option, or standard input."""
    if text is not None and prompt is not None:
        raise click.UsageError("give the prompt as the argument or with --prompt, not both")
    given = prompt if text is None else text
    if given == "":
        raise click.UsageError("the prompt is empty")
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise click.UsageError(
            "missing prompt: give it as the argument, with --prompt, or on standard input"
        )
    read = sys.stdin.read().removeprefix("\ufeff").rstrip("\r\n")
    if not read:
        raise click.UsageError("standard input holds no prompt")
    return read


# -- shell completion --


def model_names(registry: Registry) -> list[str]:
    """Return what --model takes: names, models, providers, and PROVIDER/MODEL."""
    models = [name for each in registry for name in each.models]
    found = [*registry.names, *all_matched(registry), *models, *(each.name for each in registry)]
    return list(dict.fromkeys([*found, *map(str, registry.targets())]))


def _completing(names: Callable[[Registry], list[str]]) -> Callable[..., list[str]]:
    """Return the completion of *names*; there are none if the configuration is invalid."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        logging.disable()
        try:
            with open_router(ctx.params.get("config")) as router:
                return [name for name in names(router.registry) if name.startswith(incomplete)]
        except InferMuxError:
            return []

    return complete


complete_models = _completing(model_names)
complete_providers = _completing(lambda registry: [each.name for each in registry])


# -- output: names come from callers and vendors, so what a terminal could obey is escaped --


class Columns:
    """Aligns rows that arrive over time; a column is as wide as its widest cell so far."""

    def __init__(self, right: Collection[int] = (), most: int | None = None) -> None:
        self._right = right  # the numbers of the columns that are right-aligned
        self._most = most  # characters; a longer cell moves the rest of its own line
        self._widths: dict[int, int] = {}

    def lines(self, rows: Iterable[Sequence[str]]) -> list[str]:
        cells = [[*map(printable, row)] for row in rows]
        for row in cells:
            for number, cell in enumerate(row):
                size = len(cell) if self._most is None else min(len(cell), self._most)
                self._widths[number] = max(self._widths.get(number, 0), size)
        return ["  ".join(map(self._padded, range(len(row)), row)).rstrip() for row in cells]

    def _padded(self, number: int, cell: str) -> str:
        width = self._widths[number]
        return cell.rjust(width) if number in self._right else cell.ljust(width)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return aligned columns; those whose numbers are in *right* are right-aligned."""
    return "\n".join(Columns(right).lines([head, *rows]))


def json_text(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def csv_text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as CSV; a spreadsheet does not take any text in it for a formula."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([*map(_cell, row)] for row in (head, *rows))
    return out.getvalue().rstrip("\n")


def bar(part: int, whole: int) -> str:
    """Return a bar whose length shows the share of *part* in *whole*."""
    letter = "\u2588" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    return letter * (0 if whole <= 0 else max(int(part > 0), round(_BAR * part / whole)))


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    formula = text.startswith(("=", "+", "-", "@")) and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text
