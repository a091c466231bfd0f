"""The commands prices, beside public tables too, and models, what can be asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import click

from .. import build
from ..components.prices import own_prices, price_table
from ..config.schema import suggestion
from ..errors import InferMuxError, close_to, counted, printable, shown
from ..pricing import Price, PriceTable, compare, shipped
from ..pricing.table import OWN
from ..pricing.tariff import Peak, Tariff, figure_text, figures
from ..providers import PRESETS
from ..routing.router import Router
from ..types import JSON, Route, Target
from . import (
    Command,
    OneLine,
    command,
    complete_models,
    config_option,
    json_option,
    json_text,
    open_router,
    table,
    warn,
)
from .public_prices import checked, update

_DAYS = {
    frozenset(range(5)): "Monday to Friday",
    frozenset((5, 6)): "Saturday and Sunday",
    frozenset(range(7)): "every day",
}


class _Prices(Command):
    """The command prices, and `prices update`."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return update if name == "update" else None

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        if args[:1] != ["update"]:
            return super().make_context(info_name, args, parent, **extra)
        return update.make_context(f"{info_name} update", args[1:], parent, **extra)


class Known(NamedTuple):
    """The prices that a configuration uses: the table, and its own prices."""

    table: PriceTable
    own: list[Price]

    @property
    def every(self) -> list[Price]:
        """All prices, the configuration's own first."""
        return [*self.own, *self.table.entries()]

    @classmethod
    def of(cls, config: str | None) -> Known:
        """Return the prices of a configuration; without a path, ignore an invalid one."""
        try:
            settings = build.settings(path=config)
            table = price_table(settings)
            listed = own_prices(settings, table).values()
        except InferMuxError as error:
            if config is None:
                warn(f"the configuration is not used: {error}")
                return cls(shipped(), [])
            raise
        return cls(table, [price for prices in listed for price in prices.values()])


@click.command(cls=_Prices)
@click.argument("names", nargs=-1, metavar="[MODEL | FILE]...", shell_complete=complete_models)
@click.option("--provider", metavar="NAME", help="Only prices of this provider.")
@click.option(
    "--check",
    is_flag=True,
    help="Compare with public tables: each FILE is one that `prices update` reads.",
)
@click.option(
    "--accepted",
    type=click.Path(),
    metavar="FILE",
    help="With --check: differences listed in this file are accepted.",
)
@click.option(
    "--accept",
    is_flag=True,
    help="With --check: write the present differences to the --accepted file.",
)
@json_option("Print JSON.")
@config_option
def prices(
    names: tuple[str, ...],
    provider: str | None,
    check: bool,
    accepted: str | None,
    accept: bool,
    as_json: bool,
    config: str | None,
) -> None:
    """Print the price of a model, or the whole table.

    MODEL may be PROVIDER/MODEL; its price has source and date. With --check the exit code is 1 if a
    figure differs. `infermux prices update FILE` writes a newer table.

    Example: infermux prices gpt-5.4
    """
    now, known = time.time(), Known.of(config)
    if warning := compare.stale(now, known.table):
        warn(warning)
    if ((accepted or accept) and not check) or (accept and not accepted):
        raise click.UsageError("--accepted FILE needs --check, and --accept needs both")
    if check:
        today = datetime.fromtimestamp(now, UTC).date()
        sys.exit(checked(names, today, known.table, accepted, accept=accept, as_json=as_json))
    named = [price for name in names for price in _named(name, provider, known)]
    found = named if names else _listed(provider, known)
    day = known.table.day.isoformat()
    if as_json:
        click.echo(json_text({"as_of": day, "prices": [_dict(price) for price in found]}))
    elif names:
        click.echo("\n\n".join(_entry(price, known.table) for price in found))
    else:
        click.echo(_table(found, day))


@command()
@click.option(
    "--all", "everything", is_flag=True, help="Also each preset and the variable that enables it."
)
@config_option
@json_option("Print JSON.")
def models(everything: bool, config: str | None, as_json: bool) -> None:
    """List names, models, their prices and what they can do.

    Prices are in USD per million tokens; `infermux prices MODEL` prints all terms of one. A
    provider may have more models than it lists.

    Example: infermux models --all
    """
    with open_router(config) as router:
        registry = router.registry
        routes = [registry.route(name) for name in registry.names]
        names = [_name(each.name, each.strategy, each.entries, each.then) for each in routes]
        models = [own for text in registry.patterns if (own := registry.pattern(text))]
        names += [_name(each.name, each.strategy, each.targets, each.fallback) for each in models]
        listed = [_model(router, target) for target in registry.targets()]
        presets = [
            {
                "name": name,
                "variables": [*preset.keys],
                "needs": [preset.address] if preset.address else [],
                "in_use": name in registry,
            }
            for name, preset in (PRESETS.items() if everything else ())
        ]
        day = router.targets.prices.day
    found = {"names": names, "models": listed} | ({"presets": presets} if presets else {})
    click.echo(json_text(found) if as_json else _models_text(names, listed, presets, day))


def _name(name: str, strategy: str, *targets: Iterable[Route | Target | str]) -> JSON:
    first, then = (
        [each.name if isinstance(each, Route) else str(each) for each in listed]
        for listed in targets
    )
    return {"name": name, "strategy": strategy, "targets": first, "fallback": then}


def _model(router: Router, target: Target) -> JSON:
    price = router.targets.price(target)
    return {
        "provider": target.provider,
        "model": target.model,
        "input": price and figure_text(price.rates.input),
        "output": price and figure_text(price.rates.output),
        "max_input": price and price.max_input,
        "max_output": price and price.max_output,
        "can": router.targets.abilities(target),
    }


def _models_text(names: list[JSON], listed: list[JSON], presets: list[JSON], day: date) -> str:
    tables = []
    if names:
        rows = [
            (name, strategy, ", ".join(targets), ", ".join(fallback))
            for name, strategy, targets, fallback in map(dict.values, names)
        ]
        tables.append(table(("NAME", "STRATEGY", "TARGETS", "FALLBACK"), rows))
    cells = [
        (
            f"{each['provider']}/{each['model']}",
            each["input"] or "unpriced",
            each["output"] or "",
            *(f"{each[name]:,}" if each[name] else "" for name in ("max_input", "max_output")),
            ", ".join(each["can"]) or "text",
        )
        for each in listed
    ]
    head = ("MODEL", "INPUT", "OUTPUT", "MAX INPUT", "MAX OUTPUT", "CAN DO")
    tables.append(
        table(head, cells, right=(1, 2, 3, 4)) + f"\nprices in USD per million tokens, as of {day}"
    )
    if presets:
        settings = [
            (name, " and ".join([" or ".join(keys), *needs]), "in use" * in_use)
            for name, keys, needs, in_use in map(dict.values, presets)
        ]
        tables.append(table(("PRESET", "SET", ""), settings))
    return "\n\n".join(tables)


# -- which prices --


def _listed(provider: str | None, known: Known) -> list[Price]:
    if provider is None:
        return known.every
    found = [price for price in known.every if price.provider in _names(provider)]
    if not found:
        hint = suggestion(provider, sorted({price.provider for price in known.every}))
        raise OneLine(f"no prices are known for provider {shown(provider)}{hint}")
    return found


def _names(provider: str) -> list[str]:
    """Return the provider's names in the table: its own, and that of its vendor."""
    preset = PRESETS.get(provider)
    return [provider, preset.vendor] if preset else [provider]


def _named(name: str, provider: str | None, known: Known) -> list[Price]:
    first, slash, rest = name.partition("/")
    vendors = _names(provider) if provider else [price.provider for price in known.every]
    found = _found(rest, _names(first), known) if slash and provider in (None, first) else []
    found = found or _found(name, vendors, known)
    if not found:
        ids = [price.id for price in _listed(provider, known)]
        hint = close_to(name.rpartition("/")[2], ids)
        raise OneLine(f"no price is known for {shown(name)}{hint}")
    return found


def _found(name: str, vendors: list[str], known: Known) -> list[Price]:
    listed = [known.table.find(vendor, name) for vendor in dict.fromkeys(vendors)]
    mine = [each for each in known.own if each.id == name and each.provider in vendors]
    return mine + [*{(each.provider, each.id): each for each in listed if each}.values()]


# -- output --


def _table(found: list[Price], day: str) -> str:
    rows = []
    for price in found:
        terms = {
            "tiers": price.tiers,
            "peak hours": price.peak,
            "scheduled": price.next,
            "service tiers": price.service,
        }
        rates = [figure_text(figure) or "" for figure in price.rates[:4]]
        notes = ", ".join(name for name, value in terms.items() if value)
        rows.append([price.provider, price.id, *rates, notes])
    head = ["PROVIDER", "MODEL", "INPUT", "OUTPUT", "CACHED", "CACHE WRITE", ""]
    return (
        table(head, rows, right=(2, 3, 4, 5))
        + f"\n{counted(len(rows), 'price')}, in USD per million tokens, as of {day}"
    )


def _entry(price: Price, known: PriceTable) -> str:
    names = f"  ({', '.join(price.aliases)})" if price.aliases else ""
    lines = [f"USD per million tokens: {_rates(price.rates)}"]
    lines += [f"over {tier.over} input tokens: {_rates(tier.rates)}" for tier in price.tiers]
    if price.peak:
        lines.append(f"{_hours(price.peak)}: {_rates(price.peak.rates)}")
    lines += [f"from {change.start}: {_rates(change.rates)}" for change in price.next]
    lines += [
        f"service tier {each.name}: {_rates(each.rates) or f'times {each.factor}'}"
        for each in price.service
    ]
    lines += [f"region {name}: tokens times {factor}" for name, factor in price.geo]
    if price.fees:
        fees = [f"{name.replace('_', ' ')} {figure_text(each)}" for name, each in price.fees]
        lines.append(f"USD per 1,000: {', '.join(fees)}")
    if price.since:
        lines.append(f"not known to hold before {price.since}")
    if price.max_input or price.max_output:
        lines.append(f"at most {price.max_input or '?'} tokens in, {price.max_output or '?'} out")
    if price.note:
        lines.append(price.note)
    if price.follower:
        lines.append(f"{price.follower} is taken to cost the same: its price is passed on")
    lines += _origins(price, known)
    return "\n  ".join(map(printable, [f"{price.provider}/{price.id}{names}", *lines]))


def _origins(price: Price, known: PriceTable) -> list[str]:
    """Return the layer of each figure, or the source of all of them."""
    layers: dict[str, list[str]] = {}
    for term, layer in price.layers:
        layers.setdefault(layer, []).append(term.replace("_", " "))
    if len(layers) > 1:
        return [f"from {layer}: {', '.join(terms)}" for layer, terms in layers.items()]
    if layers:
        return [f"source: {layer}" for layer in layers]
    date = f"; of {price.as_of}" if price.as_of else f"; table of {known.shipped.day}"
    return [f"source: {', '.join(_sources(price))}{date if price.sources else ''}"]


def _sources(price: Price) -> list[str]:
    return [*price.sources] or [OWN]


def _rates(rates: Tariff) -> str:
    listed = figures(rates).items()
    return ", ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in listed)


def _hours(peak: Peak) -> str:
    times = ["-".join(f"{at // 60:02}:{at % 60:02}" for at in span) for span in peak.hours]
    return f"{', '.join(times)} UTC, {_DAYS[peak.days]}"


def _dict(price: Price) -> JSON:
    return {
        "provider": price.provider,
        "id": price.id,
        "aliases": list(price.aliases),
        **figures(price.rates),
        "tiers": [{"over": tier.over} | figures(tier.rates) for tier in price.tiers],
        "next": [
            {"from": change.start.isoformat()} | figures(change.rates) for change in price.next
        ],
        "peak": price.peak and {"when": _hours(price.peak)} | figures(price.peak.rates),
        "service": {
            each.name: figures(each.rates) or figure_text(each.factor) for each in price.service
        },
        "fees": {name: figure_text(each) for name, each in price.fees},
        "geo": {name: figure_text(each) for name, each in price.geo},
        "as_text": list(price.as_text),
        "since": price.since and price.since.isoformat(),
        "max_input": price.max_input,
        "max_output": price.max_output,
        "note": price.note,
        "sources": _sources(price),
        "layers": dict(price.layers),
        "follower": price.follower or None,
    }
