"""infermux batch: many lines from one file into another."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Literal

import click

from .. import build
from ..batch import Batch
from ..batch import lines as batchlines
from ..batch.lines import Done, Recent
from ..errors import RequestError
from ..pricing import PICO, usd
from . import OneLine, checked

BUDGET, INTERRUPTED = 3, 130  # exit codes
WIDTH = 20  # of the bar
_REASONS = {
    "interrupted": "stopped; the same command goes on from here",
    "budget": "the budget has no room for the next line; the same command with more --budget goes on from here",
}


def dollars(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return an amount as pico-USD, so that no digit is lost."""
    try:
        amount = Decimal(value or "NaN")
    except InvalidOperation:
        amount = Decimal(0)
    if value is not None and not (amount.is_finite() and 0 < amount < 10**9):
        raise click.BadParameter(f"{value!r} is not an amount of dollars above 0, such as 2.50")
    return None if value is None else int(amount * PICO)


@click.command()
@click.argument("source", metavar="IN.jsonl", type=click.Path(allow_dash=True))
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="OUT.jsonl",
    type=click.Path(allow_dash=True),
    help="Where results go, each when it is there; lines that have one in it are skipped.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Lines at a time.",
)
@click.option("--model", "-m", default="", help="Ask this model instead of the one in each line.")
@click.option(
    "--budget",
    callback=dollars,
    metavar="USD",
    help="Stop before all results in OUT.jsonl could cost more than this.",
)
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Take failed results out of OUT.jsonl, and ask those lines again.",
)
@click.option(
    "--config",
    "-c",
    "path",
    metavar="FILE",
    help="The configuration.  [default: infermux.toml, or the environment]",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress and no summary.")
def batch(
    source: str,
    output: str,
    concurrency: int,
    model: str,
    budget: int | None,
    retry_failed: bool,
    path: str | None,
    quiet: bool,
) -> None:
    """Answer every line of a file: OpenAI's batch lines, or MIST's infer.request; - is standard
    input or output.

    The same command goes on where an earlier one was stopped. A line that fails has its error as
    its result.

    Exit code 0: every line has a result; 1: it cannot go on; 3: the budget is reached; 130: stopped
    by Ctrl-C, after the lines in flight have ended (a second Ctrl-C does not wait for them).

    Example: infermux batch questions.jsonl -o answers.jsonl --model gpt-5-mini --budget 2.50
    """
    router = checked(lambda: build.router(build.settings(path=path)))
    try:
        with ExitStack() as stack:
            files = Files(stack, source, output, retry_failed=retry_failed)
            run = Batch(
                router,
                files.write,
                model=model,
                budget=budget,
                spent=files.done.cost,
                concurrency=concurrency,
            )
            view = View(run, files, quiet=quiet)
            with view.watching():
                checked(
                    lambda: run.run(
                        batchlines.lines(files.source, files.done, files.recent), view.tick
                    )
                )
    except OSError as error:
        raise OneLine(f"{error.filename or output}: {error.strerror}") from None
    finally:
        router.close()
    view.end()
    if run.stopped:
        sys.exit(BUDGET if run.stopped == "budget" else INTERRUPTED)


class Files:
    """What a run reads and writes, and what is there already."""

    def __init__(self, stack: ExitStack, source: str, output: str, *, retry_failed: bool) -> None:
        self.recent, self.done, self.skipped = Recent(), Done(), 0
        if Path(output).is_file() and Path(source).exists() and os.path.samefile(source, output):
            raise click.UsageError("IN.jsonl and OUT.jsonl are the same file")
        self.source = _stdin() if source == "-" else _file(source, "rb")
        self.size = batchlines.size_of(self.source)
        if (
            self.size is not None
        ):  # else a thread may be reading it for ever, and closing would wait for that
            stack.enter_context(self.source)
        if output == "-":
            self.output: BinaryIO = sys.stdout.buffer
        elif Path(output).exists() and not Path(output).is_file():
            self.output = stack.enter_context(_file(output, "wb"))  # a pipe, or nowhere
        else:
            self.output = stack.enter_context(_locked(output))
            self._go_on(output, stack, retry_failed)

    def _go_on(self, output: str, stack: ExitStack, retry_failed: bool) -> None:
        """Read what has been answered; see that it answers this input."""
        if retry_failed:
            self.output = stack.enter_context(_without_failures(output, self.output))
        try:
            self.done = batchlines.results(self.output, self.recent)
            if self.done.count and self.size is None:
                raise RequestError("a run goes on only with an input that is a file")
            start = self.source.tell() if self.done.count else 0
            self.skipped = self.done.check(self.source)
        except RequestError as error:
            raise OneLine(
                f"{output}: {error.message}; choose another file for these results, or remove it"
            ) from None
        if self.done.count:
            self.source.seek(start)
        self.output.truncate(self.done.end)  # a result that was cut off
        self.output.seek(0, os.SEEK_END)

    def write(self, result: bytes) -> None:
        """Add a result; it survives the end of this process from here on."""
        self.output.write(result)
        self.output.flush()


def _stdin() -> BinaryIO:
    """Return standard input with a buffer of its own: Python aborts at its end if a thread is
    reading with the shared one.
    """
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:
        return sys.stdin.buffer


def _file(path: str, mode: Literal["rb", "wb", "a+b"]) -> BinaryIO:
    return open(path, mode)


def _locked(path: str) -> BinaryIO:
    file = _file(path, "a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OneLine(f"{path}: another run writes to this file") from None
    file.seek(0)
    return file


def _without_failures(path: str, file: BinaryIO) -> BinaryIO:
    """Return the file of results with the failed ones taken out, all or nothing."""
    real = os.path.realpath(path)
    try:
        with open(f"{real}.part", "wb") as kept:
            batchlines.results(file, Recent(), keep=kept)
        shutil.copymode(real, f"{real}.part")
        os.replace(f"{real}.part", real)
    except RequestError as error:
        os.unlink(f"{real}.part")
        raise OneLine(f"{path}: {error.message}") from None
    return _locked(path)


class View:
    """What a run shows on standard error."""

    def __init__(self, run: Batch, files: Files, *, quiet: bool) -> None:
        self._run, self._files, self._quiet = run, files, quiet
        self._bar = not quiet and sys.stderr.isatty()
        self._started = time.monotonic()
        self._signals: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Turn the first Ctrl-C or SIGTERM into a clean stop; the second ends the process."""
        before = {
            number: signal.signal(number, self._signalled)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._bar:
                click.echo("\r\x1b[K", nl=False, err=True)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            os._exit(INTERRUPTED)  # every result that is there has been written

    def tick(self) -> None:
        """Show how far the run is; stop it if somebody asked for that."""
        if self._signals and not self._run.stopped:
            self._run.stop()
            if not self._quiet:
                click.echo(
                    "\nstopping when the lines in flight have ended; once more to stop now",
                    err=True,
                )
        if self._bar:
            click.echo(f"\r{self._progress()}\x1b[K", nl=False, err=True)

    def _progress(self) -> str:
        tally, size = self._run.tally, self._files.size
        seconds = max(time.monotonic() - self._started, 0.001)
        parts = [
            f"{tally.lines:,} lines",
            f"{tally.lines / seconds:,.1f}/s",
            *([f"{tally.failed:,} failed"] if tally.failed else []),
            f"${(self._files.done.cost + tally.cost) / PICO:,.4f}",
        ]
        whole = 0 if size is None else size - self._files.skipped
        if whole > 0:
            share = min(1.0, tally.bytes / whole)
            left = _clock(seconds * (1 - share) / share) if share else "?"
            full = int(share * WIDTH)
            parts = [f"[{'#' * full}{'.' * (WIDTH - full)}] {share:4.0%}", *parts, f"{left} left"]
        return "  ".join(parts)[: shutil.get_terminal_size().columns - 1]

    def end(self) -> None:
        """Say what came of the run."""
        tally, done = self._run.tally, self._files.done
        if not self._quiet:
            parts = [
                f"{tally.lines:,} line{'s' * (tally.lines != 1)}: {tally.ok:,} ok, {tally.failed:,} failed",
                f"{tally.tokens_in:,} tokens in, {tally.tokens_out:,} out",
                f"${usd(tally.cost)}"
                + (f" and {tally.unpriced:,} unpriced" if tally.unpriced else ""),
                _clock(time.monotonic() - self._started),
            ]
            if done.count:
                parts.append(f"with the {done.count:,} before ${usd(done.cost + tally.cost)}")
            click.echo("; ".join(parts), err=True)
        if self._run.stopped:
            click.echo(f"infermux: {_REASONS[self._run.stopped]}", err=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, 10**8))))
