"""The command group `infermux keys`: creates API keys, for the file or at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from .. import build
from ..components import keys as issuing
from ..components import ledgers
from ..errors import listed
from ..ledger.sql import Ledger
from ..routing.router import Router
from ..types import JSON
from . import Group, OneLine, config_option, json_option, json_text, table, warn

_HEAD = ["NAME", "STATE", "MODELS", "RPM", "TPM", "BUDGET", "EXPIRES", "CREATED", "FROM"]
_ONCE = "The key, which is not shown again; give it to the caller now:"


def _limit(name: str, help: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.IntRange(1), metavar="N", help=help)


def _period(name: str, budget: str) -> Callable[[Any], Any]:
    known = click.Choice(["day", "month", "total"])
    return click.option(name, type=known, help=f"The period of {budget}.  [default: month]")


@click.group(cls=Group)
def keys() -> None:
    """Create, list, rotate and revoke API keys.

    `new` prints a table for infermux.toml. The others store keys in the ledger's database: running
    services know of a change within five seconds, on all hosts that share it.

    Example: infermux keys create web --rpm 600 --budget 200
    """


@keys.command("new")
@click.argument("name")
def new_key(name: str) -> None:
    """Create an API key for NAME, and the lines for infermux.toml.

    The key is shown once, on standard error; the lines, with its hash, go to standard output.

    Example: infermux keys new web >> infermux.toml
    """
    from ..admission.keys import hashed, new_key

    if not issuing.NAME.fullmatch(name):
        raise click.BadParameter("use letters, digits, - and _, at most 64", param_hint="NAME")
    key = new_key()
    click.echo(f'\n[keys.{name}]\nhash = "{hashed(key)}"')  # a file may lack its last newline
    click.echo(f"\n{_ONCE}\n{key}", err=True)


@keys.command()
@click.argument("name")
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME",
    help="May use this model; may be repeated.  [default: all]",
)
@_limit("--rpm", "Requests per minute.")
@_limit("--tpm", "Tokens per minute.")
@click.option("--budget", metavar="USD", help="Dollars that it may spend, such as 200.00.")
@_period("--per", "the budget")
@click.option(
    "--then",
    metavar="WHAT",
    help="When it is spent: reject, warn, or the name of a cheaper model.  [default: reject]",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="NAME=VALUE",
    help="A tag of all its calls; may be repeated.",
)
@click.option(
    "--own-tags", is_flag=True, help="Let its requests name their project and environment."
)
@_limit("--user-rpm", "Requests per minute of each end user.")
@_limit("--user-tpm", "Tokens per minute of each end user.")
@click.option("--user-budget", metavar="USD", help="Dollars that each end user may spend.")
@_period("--user-per", "--user-budget")
@click.option(
    "--expires", metavar="WHEN", help="After 90d or 12h, or at 2027-01-31.  [default: never]"
)
@json_option("Print what POST /keys answers.")
@config_option
def create(
    name: str,
    models: tuple[str, ...],
    budget: str | None,
    per: str | None,
    then: str | None,
    tags: tuple[str, ...],
    own_tags: bool,
    user_budget: str | None,
    user_per: str | None,
    as_json: bool,
    config: str | None,
    **limits: Any,
) -> None:
    """Create an API key for NAME at run time.

    Running services admit it within five seconds. The key goes to standard output, once; only its
    hash is stored.

    Example: infermux keys create web --model auto --rpm 600 --budget 200 --expires 90d
    """
    if budget is None and (per or then):
        raise click.UsageError("--per and --then need --budget")
    if tags and own_tags:
        raise click.UsageError("give --tag or --own-tags, not both")
    if user_budget is None and user_per:
        raise click.UsageError("--user-per needs --user-budget")
    data = {
        "name": name,
        **limits,
        "models": list(models) or None,
        "budget": _given(usd=budget, per=per, then=then),
        "user_budget": _given(usd=user_budget, per=user_per),
        "tags": dict(map(_tag, tags)) or own_tags or None,
    }
    with _store(config) as (router, ledger):
        opens = router.keyring is None or router.keyring.open
        made = issuing.create(router, ledger, data)
        if opens:
            warn(
                "callers without a key are refused from now on; add an empty table [keys] to "
                "infermux.toml, so that this holds whatever becomes of the ledger"
            )
    _show(made, as_json)


@keys.command("list")
@click.option("--all", "whole", is_flag=True, help="Also keys that have expired or were revoked.")
@json_option("Print what GET /keys answers.")
@config_option
def list_(whole: bool, as_json: bool, config: str | None) -> None:
    """List the API keys of the file, and those created at run time.

    Example: infermux keys list --all
    """
    with _store(config) as (router, ledger):
        found = issuing.listed(router, ledger)
    if as_json:
        click.echo(json_text({"keys": found}))
        return
    rows = [_row(key) for key in found if whole or key["state"] == "active"]
    click.echo(table(_HEAD, rows, right=(3, 4)) if rows else "no keys")


@keys.command()
@click.argument("name")
@click.option(
    "--overlap",
    metavar="TIME",
    help="How long the old secret is still admitted: 24h, 7d, 0.  [default: 24h]",
)
@json_option("Print what POST /keys/NAME/rotate answers.")
@config_option
def rotate(name: str, overlap: str | None, as_json: bool, config: str | None) -> None:
    """Give a key a new secret; the old one is admitted for a while.

    Limits, budget and reports stay, as they are the name's.

    Example: infermux keys rotate web --overlap 7d
    """
    with _store(config) as (router, ledger):
        made = issuing.rotate(router, ledger, name, overlap)
    _show(made, as_json)
    if not as_json and (until := made.key["old_secret_until"]):
        click.echo(f"the old one is admitted until {until}", err=True)


@keys.command()
@click.argument("name")
@config_option
def revoke(name: str, config: str | None) -> None:
    """Revoke a key that was created at run time.

    Running services refuse it within five seconds. What it has spent stays in all reports.

    Example: infermux keys revoke web
    """
    with _store(config) as (router, ledger):
        issuing.revoke(router, ledger, name)
    click.echo(f"{name} is revoked")


@contextmanager
def _store(config: str | None) -> Iterator[tuple[Router, Ledger]]:
    """Yield the router of the configuration, and the ledger that its service would use."""
    settings = build.settings(path=config)
    build.announce(settings)
    with closing(build.router(settings)) as router:
        ledger = router.ledger or ledgers.ledger(settings, serving=True)
        if ledger is None:
            raise OneLine("keys need a ledger: [ledger].path is empty")
        try:
            yield router, ledger
        finally:
            ledger.close()


def _given(**asked: str | None) -> JSON | None:
    return {key: value for key, value in asked.items() if value} or None


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise click.BadParameter(f"NAME=VALUE, not {text!r}", param_hint="--tag")
    return name, value


def _show(made: issuing.Made, as_json: bool) -> None:
    if as_json:
        click.echo(json_text(made.to_dict()))
    else:
        click.echo(_ONCE, err=True)
        click.echo(made.secret)


def _row(key: JSON) -> list[str]:
    budget = key["budget"]
    money = f"{budget['usd']} per {budget.get('per', 'month')}" if budget else "-"
    if budget and budget.get("then", "reject") != "reject":
        money += f", then {budget['then']}"
    return [
        key["name"],
        key["state"],
        listed(key["models"]) if key["models"] else "all",
        *(str(key[name] or "-") for name in ("rpm", "tpm")),
        money.replace("per total", "in total"),
        key["expires"] or "never",
        key["created"] or "-",
        key["source"],
    ]
