"""The command group `infermux budgets`: what keys may still spend, and changes by an operator."""

from __future__ import annotations

import time

import click

from ..config.schema import suggestion
from ..ledger import Adjustment, BudgetState, reports
from ..pricing import usd
from ..server import status
from . import (
    Group,
    OneLine,
    config_option,
    dollars,
    json_option,
    json_text,
    open_router,
    table,
)

_HEAD = ["KEY", "PER", "LIMIT", "SPENT", "HELD", "LEFT", "RESET", "THEN"]
_team_option = click.option(
    "--team", is_flag=True, help="KEY is the name of a budget of [budgets]."
)


@click.group(cls=Group, invoke_without_command=True)
@config_option
@json_option("Print what GET /budgets answers.")
@click.pass_context
def budgets(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """Show what each budget has spent and has left.

    Money is in USD. A budget of [budgets] is shared by its keys; a mirror's is that of its copies.

    Example: infermux budgets
    """
    if ctx.invoked_subcommand is not None:
        return
    with open_router(config) as router:
        found = status.budgets(router, former=True)
        current = [state.budget.owner for state in status.budgets(router)]
        changes = router.ledger.adjustments() if router.ledger is not None else []
    if as_json:
        click.echo(json_text(reports.budgets_dict(found, changes)))
    elif not found:
        click.echo("no budget is configured")
    else:
        click.echo(_table(found, current, changes))


@budgets.command()
@click.argument("name", metavar="KEY")
@_team_option
@config_option
def reset(name: str, team: bool, config: str | None) -> None:
    """Forgive what KEY has spent in this period. Its calls stay in all reports.

    Example: infermux budgets reset web
    """
    _adjust(name, team, config, None)


@budgets.command("raise")
@click.argument("name", metavar="KEY")
@click.argument("amount", metavar="USD", callback=dollars)
@_team_option
@config_option
def raise_limit(name: str, amount: int, team: bool, config: str | None) -> None:
    """Let KEY spend USD more in the current period.

    Example: infermux budgets raise web 2.50
    """
    _adjust(name, team, config, amount)


def _adjust(name: str, team: bool, config: str | None, more: int | None) -> None:
    with open_router(config) as router:
        known = status.budgets(router, former=True)
        found = [
            state.budget
            for state in known
            if state.budget.caller == name and (state.budget.members or not team)
        ]
        if not found or router.ledger is None:
            names = [state.budget.caller for state in known]
            raise OneLine(f"there is no budget of {name!r}{suggestion(name, names)}")
        # the key's own comes first
        change = router.ledger.adjust(found[0], more, time.time())
        [state] = router.ledger.states(found[:1], time.time())
    click.echo(f"{_change(change)}: {usd(state.left)} USD are left")


def _change(change: Adjustment) -> str:
    what = "raised by" if change.action == "raise" else "reset, forgiving"
    return f"{change.name} in {change.period}: {what} {usd(change.pico)} USD"


def _table(found: list[BudgetState], current: list[str], changes: list[Adjustment]) -> str:
    """Return the budgets as text; those that are not *current* are of keys that have ended."""
    rows = [
        [
            state.budget.caller
            + (" (shared)" if state.budget.members else "")
            + ("" if state.budget.owner in current else " (key ended)"),
            state.budget.period,
            *(usd(pico) for pico in (state.limit, state.spent, state.held, state.left)),
            reports.iso(state.resets) or "never",
            state.budget.then,
        ]
        for state in found
    ]
    periods = {state.key for state in found}
    lines = [
        f"{reports.iso(change.at_ns // 10**9)}  {_change(change)}"
        for change in changes
        if change.period in periods
    ]
    return "\n".join([table(_HEAD, rows, right=(2, 3, 4, 5)), *lines])
