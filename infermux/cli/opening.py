"""Opens the ledger for commands: a file, or a PostgreSQL by its URL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .. import build
from ..components import ledgers
from ..config.readers import ledger_url
from ..config.settings import LedgerConfig
from . import OneLine, config_option

if TYPE_CHECKING:
    from ..ledger.sql import Ledger

_SQLITE_MAGIC = b"SQLite format 3\0"


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
