"""The command batch: many requests from one file, their results in another."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import FrameType
from typing import BinaryIO, Literal

import click

from ..batch import Batch, lines
from ..errors import RequestError, counted
from ..pricing import PICO, usd
from ..types import POSIX, fcntl
from . import OneLine, command, complete_models, config_option, dollars, open_router, warn

_BUDGET_REACHED, _INTERRUPTED = 3, 130  # exit codes
_SHOW_CURSOR = b"\x1b[?25h"  # click's progress bar hides it
_STOPPED = {
    "interrupted": "stopped; run the same command to continue",
    "budget": "the remaining budget does not cover the next line; "
    "run the same command with a larger --budget to continue",
}


@command()
@click.argument("source", metavar="IN.jsonl", type=click.Path(allow_dash=True))
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="OUT.jsonl",
    type=click.Path(allow_dash=True),
    help="The file for results; lines that have a result in it are skipped.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="How many lines are in flight at once.",
)
@click.option(
    "--model",
    "-m",
    default="",
    shell_complete=complete_models,
    help="Use this model instead of the one in each line.",
)
@click.option(
    "--budget",
    callback=dollars,
    metavar="USD",
    help="Stop before the results in OUT.jsonl could cost more than this in all.",
)
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Try the lines with failed results in OUT.jsonl again, and replace these.",
)
@config_option
@click.option("--quiet", "-q", is_flag=True, help="Print no progress and no summary.")
def batch(
    source: str,
    output: str,
    concurrency: int,
    model: str,
    budget: int | None,
    retry_failed: bool,
    config: str | None,
    quiet: bool,
) -> None:
    """Answer many requests from a file.

    Each line is one, as in OpenAI's batch API or a MIST infer.request. IN.jsonl and OUT.jsonl may
    be -, standard input and output. The same command continues an earlier run. The result of a
    failed line is its error.

    Exit code 0: every line has a result; 1: the run failed; 3: the budget is reached; 130: stopped
    by Ctrl-C after the lines in flight ended (a second Ctrl-C stops at once).

    Example: infermux batch questions.jsonl -o answers.jsonl --model gpt-5-mini --budget 2.50
    """
    try:
        with open_router(config) as router, ExitStack() as stack:
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
            asked = lines.unanswered(files.source, files.done, files.recent)
            with view.progress(asked) as tick:
                run.run(asked, tick)
    except OSError as error:
        raise OneLine(f"{error.filename or output}: {error.strerror}") from None
    view.summarize()
    if run.stopped:
        sys.exit(_BUDGET_REACHED if run.stopped == "budget" else _INTERRUPTED)


class Files:
    """The input and output files of a run, and the results of an earlier run."""

    def __init__(self, stack: ExitStack, source: str, output: str, *, retry_failed: bool) -> None:
        self.recent, self.done, self.skipped = lines.Recent(), lines.Done(), 0
        if os.path.isfile(output) and os.path.exists(source) and os.path.samefile(source, output):
            raise click.UsageError("IN.jsonl and OUT.jsonl are the same file")
        self.source = _stdin() if source == "-" else _open(source, "rb")
        self.size = lines.size_of(self.source)
        if self.size is not None:  # closing a pipe would wait for the thread that reads it
            stack.enter_context(self.source)
        if output == "-":
            self.output: BinaryIO = sys.stdout.buffer
        elif os.path.exists(output) and not os.path.isfile(output):
            self.output = stack.enter_context(_open(output, "wb"))  # a pipe or a device
        else:
            self.output = stack.enter_context(_locked(output))
            self._resume(output, stack, retry_failed=retry_failed)

    def _resume(self, output: str, stack: ExitStack, *, retry_failed: bool) -> None:
        """Read the results of an earlier run, and check that they are of this input."""
        try:
            self.done = lines.results(self.output, self.recent, retry=retry_failed)
            if self.done.count and self.size is None:
                raise RequestError("only a run whose input is a file can continue")
            start = self.source.tell() if self.done.count else 0
            self.skipped = self.done.check(self.source)
        except RequestError as error:
            raise OneLine(
                f"{output}: {error.message}; choose another file for these results, or remove it"
            ) from None
        if self.done.count:
            self.source.seek(start)
        self.output.truncate(self.done.end)  # drops an incomplete last result
        self.output.seek(0, os.SEEK_END)
        if self.done.is_repeated:
            stack.callback(_keep_last, output, self.output)

    def write(self, result: bytes) -> None:
        self.output.write(result)
        self.output.flush()


def _stdin() -> BinaryIO:
    """Return standard input with its own buffer.

    Python aborts at exit if a thread is reading with the shared one.
    """
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:
        return sys.stdin.buffer


def _open(path: str, mode: Literal["rb", "wb", "a+b"]) -> BinaryIO:
    return open(path, mode)


def _locked(path: str) -> BinaryIO:
    file = _open(path, "a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OneLine(f"{path}: another run writes to this file") from None
    file.seek(0)
    return file


def _keep_last(path: str, file: BinaryIO) -> None:
    """Leave one result of each line: until the end, a kill must not lose what failures cost."""
    real = os.path.realpath(path)
    part = f"{real}.part"
    with open(part, "wb") as kept:
        kept.writelines(each.string for each in lines.last_results(file))
    shutil.copymode(real, part)
    if not POSIX:  # Windows replaces no open file
        file.close()
    os.replace(part, real)


class View:
    """What a run shows on standard error, and how signals stop it."""

    def __init__(self, run: Batch, files: Files, *, quiet: bool) -> None:
        self._run, self._files, self._quiet = run, files, quiet
        self._has_bar = not quiet and sys.stderr.isatty()
        self._started = time.monotonic()
        self._signals: list[int] = []

    @contextmanager
    def progress(self, asked: Iterator[lines.Line]) -> Iterator[Callable[[], None]]:
        """Yield a function that shows the progress; the first Ctrl-C or SIGTERM stops the run."""
        signals = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, self._signalled) for number in signals}
        try:
            if not self._has_bar:
                yield self._obey
                return
            size = self._files.size
            with click.progressbar(
                asked,  # of unknown length, if the input is a pipe
                length=size and size - self._files.skipped,
                show_percent=bool(size),
                bar_template="[%(bar)s]  %(info)s" if size else "%(info)s",
                empty_char=".",
                width=0,  # what the terminal leaves
                update_min_steps=0,
                item_show_func=lambda _: self._counts(),
                file=sys.stderr,
            ) as bar:

                def tick() -> None:
                    self._obey()
                    bar.update(self._run.tally.bytes - bar.pos)

                yield tick
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            if self._has_bar:
                os.write(2, _SHOW_CURSOR)
            os._exit(_INTERRUPTED)  # every result so far is in the file

    def _obey(self) -> None:
        if self._signals and not self._run.stopped:
            self._run.stop()
            if not self._quiet:
                click.echo("\nfinishing lines in flight; press Ctrl-C again to stop now", err=True)

    def _counts(self) -> str:
        tally = self._run.tally
        seconds = max(time.monotonic() - self._started, 0.001)
        failed = f"  {tally.failed:,} failed" if tally.failed else ""
        done, dollars = counted(tally.lines, "line"), self._run.spent / PICO
        return f"{done}  {tally.lines / seconds:,.1f}/s{failed}  ${dollars:,.4f}"

    def summarize(self) -> None:
        tally, done = self._run.tally, self._files.done
        if not self._quiet:
            unpriced = f" and {tally.unpriced:,} unpriced" if tally.unpriced else ""
            parts = [
                f"{counted(tally.lines, 'line')}: {tally.ok:,} ok, {tally.failed:,} failed",
                f"{counted(tally.tokens_in, 'token')} in, {tally.tokens_out:,} out",
                f"${usd(tally.cost)}{unpriced}",
                str(timedelta(seconds=round(time.monotonic() - self._started))),
            ]
            if done.count:
                earlier = counted(done.count, "earlier result")
                parts.append(f"${usd(self._run.spent)} with {earlier}")
            click.echo("; ".join(parts), err=True)
        if self._run.stopped:
            warn(_STOPPED[self._run.stopped])
