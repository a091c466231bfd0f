"""Commands for running the service: serve, validate, init and chaos."""

from __future__ import annotations

import sys
import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import build
from ..config import TEMPLATE, Missing, NotTOML, default_file, override
from ..errors import InferMuxError, counted, listed
from ..types import POSIX
from . import OneLine, command, config_option, table, tokentrace_option, warn

if TYPE_CHECKING:
    from ..chaos import Row


@command()
@click.option(
    "--addr",
    "-b",
    help="Address to listen on, HOST:PORT; :PORT listens on every address of the host.  "
    "[default: :8600 with [keys], else 127.0.0.1:8600]",
)
@click.option("--host", help="The host of --addr; empty: every address.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port of --addr.")
@click.option("--certfile", type=click.Path(), help="Serve HTTPS with this certificate (PEM).")
@click.option("--keyfile", type=click.Path(), help="The certificate's key, if it is apart.")
@tokentrace_option
@config_option
@click.option("--workers", type=click.IntRange(1), help="Worker processes.  [default: 2]")
@click.option("--threads", type=click.IntRange(1), help="Threads in each worker.  [default: 1536]")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="warning: a line for each failed call; info: for every call; "
    "debug: with its attempts.  [default: warning]",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="The format of log lines.  [default: text]",
)
def serve(
    addr: str | None,
    host: str | None,
    port: int | None,
    certfile: str | None,
    keyfile: str | None,
    config: str | None,
    **given: str | int | None,
) -> None:
    """Run the service: gunicorn with InferMux's settings.

    Example: infermux serve --addr :8600 --tokentrace http://localhost:8700
    """
    if not POSIX:
        raise OneLine(
            "infermux serve is POSIX only (Linux, macOS, WSL): gunicorn, which it runs, needs it; "
            "the library and the other commands work here"
        )
    if addr and (host is not None or port is not None):
        raise click.UsageError("give the address with --addr or with --host and --port, not both")
    for name, value in given.items():
        if value is not None:
            override(f"SERVER__{name.upper()}", str(value))
    if config:
        override("CONFIG", config)
    if keyfile and not certfile:
        raise click.UsageError("--keyfile needs --certfile")
    settings = build.settings()
    build.check_file(settings)
    build.router(settings)  # an error here is one line, before gunicorn starts
    from .. import server  # loads requests

    server.run(addr or server.address_of(settings, host, port), certfile, keyfile)


@command()
@config_option
@click.option("--quiet", "-q", is_flag=True, help="Print nothing if the configuration is valid.")
def validate(config: str | None, quiet: bool) -> None:
    """Check the configuration; print what is in force.

    What it refers to is checked, too. All errors are printed, and warnings where no provider or no
    model can answer, or where requests pass hooks unseen.
    Exit code 0: valid; 1: no such file; 2: not TOML; 3: an invalid setting.

    Example: infermux validate -c infermux.toml
    """
    from ..pricing.compare import stale

    try:
        settings = build.settings(path=config, strict=False)
        for notice in settings.notices:
            warn(notice)
        router = build.router(settings)
    except InferMuxError as error:
        for line in getattr(error, "errors", (error.message,)):
            warn(line)
        sys.exit(1 if isinstance(error, Missing) else 2 if isinstance(error, NotTOML) else 3)
    old = stale(time.time(), router.targets.prices)
    for warning in filter(None, (*build.warnings(settings, router), old)):
        warn(warning)
    if not quiet:
        counts = [
            counted(len(router.registry), "provider"),
            counted(len(settings.models), "name"),
            "no keys" if settings.keys is None else counted(len(settings.keys), "key"),
        ]
        place = settings.path or "the environment"
        click.echo(f"{place}: {', '.join(counts)}: configuration is valid")
        force = build.summary(settings, router)
        force["providers"] = listed(build.sources(settings, router))
        for subject, what in force.items():
            click.echo(f"  {subject:<13}  {what}")


@command()
@click.option(
    "--config",
    "-c",
    type=click.Path(),
    help="The file to write.  [default: INFERMUX_CONFIG, else ./infermux.toml]",
)
@click.option("--user", is_flag=True, help="Write your own file, for where a folder has none.")
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def init(config: str | None, user: bool, force: bool) -> None:
    """Write an infermux.toml with every key, commented out.

    Each key is explained in a comment.

    Example: infermux init
    """
    if user and config:
        raise click.UsageError("give --config or --user, not both")
    path = Path(config) if config else default_file(user=user)
    try:
        if user:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise OneLine(f"{path} exists; --force overwrites it") from None
    except OSError as error:
        raise OneLine(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {path.absolute()}")


# -- chaos --


@command()
@config_option
@click.option(
    "--fault",
    "-f",
    "faults",
    multiple=True,
    metavar="NAME",
    help="Only this fault; may be repeated.  [default: all]",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, 60, min_open=True),
    help="Seconds per call, at most the configuration's.  [default: 5]",
)
def chaos(config: str | None, faults: tuple[str, ...], deadline: float | None) -> None:
    """Test the configuration against vendors that fail.

    It prints what a client gets. Exit code 1 if an answer was silently wrong, or if failover did
    not happen where it could have. No real vendor is called.

    Example: infermux chaos --fault stall --fault stream_cut
    """
    from .. import chaos as trial  # loads requests

    rows = trial.run(
        build.settings(path=config),
        faults=faults or None,
        deadline=deadline,
        report=lambda row: click.echo("." if row.ok else "!", nl=False, err=True),
    )
    click.echo(err=True)
    click.echo(chaos_table(rows))
    sys.exit(trial.verdict(rows))


def chaos_table(rows: list[Row]) -> str:
    head = ("FAULT", "WHEN", "ASKED", "CLIENT GOT", "ATTEMPTS", "SECONDS", "FAILOVER", "")
    cells = [
        (
            row.fault,
            row.when,
            "stream" if row.streamed else "answer",
            row.outcome,
            str(row.attempts),
            f"{row.seconds:.2f}",
            row.failover,
            "ok" if row.ok else f"NOT OK: {row.note}",
        )
        for row in rows
    ]
    first, *rest = table(head, cells, right=(4, 5)).splitlines()
    lines = [first]
    for model, group in groupby(zip(rows, rest, strict=True), lambda pair: pair[0].model):
        lines += [f"-- {model}", *(line for _, line in group)]
    failed, wrong = sum(not row.ok for row in rows), sum(row.silently_wrong for row in rows)
    lines.append(
        f"{counted(len(rows), 'call')}: {len(rows) - failed} passed, {failed} failed, "
        f"{wrong} silently wrong"
    )
    return "\n".join(lines)
