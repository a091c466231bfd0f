"""Commands for whoever watches a running service."""

from __future__ import annotations

import sys
from typing import Any

import click

from . import OneLine
from .client import admin_key, ask
from .output import json_text, printable, table

HERE = "http://127.0.0.1:8600"
_LONGEST = 32  # characters of a target, so that 80 columns hold a line
_HEAD = ("TARGET", "STATE", "RETRY", "ERRORS", "P50", "P95", "/MIN")


class NotAsked(OneLine):
    """Nothing is known of the targets."""

    exit_code = 2


@click.command()
@click.option(
    "--server", metavar="URL", default=HERE, show_default=True, help="Where the service runs."
)
@click.option(
    "--key",
    envvar="INFERMUX_ADMIN_KEY",
    metavar="KEY",
    help="The admin key; better as the variable "
    "INFERMUX_ADMIN_KEY, which no other user sees.  [default: [server].admin of the configuration]",
)
@click.option(
    "--config",
    "-c",
    "path",
    metavar="FILE",
    help="The configuration.  [default: infermux.toml, or the environment]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what the service says, as JSON.")
def status(server: str, key: str | None, path: str | None, as_json: bool) -> None:
    """Show how each target of a running service is, over all of its workers.

    Exit code 0 if every circuit is closed, 1 if one is not, 2 if the service cannot be asked.

    Example: infermux status --server http://127.0.0.1:8600
    """
    try:
        found = ask(server, "/status/targets", key=admin_key(key, path))
        text = json_text(found) if as_json else _table(found["targets"])
        shut = any(target["state"] != "closed" for target in found["targets"])
    except OneLine as error:
        raise NotAsked(error.message) from None
    except (LookupError, TypeError, ValueError):
        raise NotAsked(f"what answers at {server} is not this service") from None
    click.echo(text)
    sys.exit(int(shut))


def _table(targets: list[dict[str, Any]]) -> str:
    """Return a line for each target, and a second one where calls are refused now."""
    head, *lines = table(
        _HEAD, [_cells(target) for target in targets], right=(2, 3, 4, 5, 6)
    ).splitlines()
    reasons = [
        f"\n  {printable(target['reason'])}" if target["reason"] else "" for target in targets
    ]
    return "\n".join([head, *(line + reason for line, reason in zip(lines, reasons, strict=True))])


def _cells(target: dict[str, Any]) -> tuple[str, ...]:
    name, wait, rate = (
        f"{target['provider']}/{target['model']}",
        target["retry_in"],
        target["error_rate"],
    )
    return (
        name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…",
        target["state"].replace("_", " "),
        "-" if wait == 0 else "?" if wait is None else f"{wait:.0f} s",
        "-" if rate is None else f"{rate:.0%}",
        *map(_seconds, (target["p50"], target["p95"])),
        f"{target['per_minute']:.1f}",
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
