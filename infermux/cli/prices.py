"""The commands prices, the shipped table beside public ones, and models, what can be asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal

import click

from .. import build
from ..errors import ConfigError, InferMuxError, close_to, counted, printable, shown
from ..pricing import Price, compare, entries, find, table_date
from ..pricing.tariff import Peak, Tariff
from ..providers import PRESETS
from ..routing.router import Router
from ..types import JSON, Route, Target
from . import (
    Command,
    OneLine,
    complete_models,
    config_option,
    contents,
    json_option,
    json_text,
    open_router,
    table,
    warn,
)

_SIZES = ("max_input", "max_output")
_SOURCES = {"g": "genai-prices", "l": "litellm", "s": "llm-prices", "o": "OpenRouter's listing"}
_DAYS = {
    frozenset(range(5)): "Monday to Friday",
    frozenset((5, 6)): "Saturday and Sunday",
    frozenset(range(7)): "every day",
}


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[MODEL | FILE]...", shell_complete=complete_models)
@click.option("--provider", metavar="NAME", help="Only prices of this provider.")
@click.option(
    "--check",
    is_flag=True,
    help="Compare with public tables: each FILE is litellm's or genai-prices' JSON of prices.",
)
@json_option("Print JSON.")
@click.option(
    "--config",
    "-c",
    type=click.Path(),
    metavar="FILE",
    help="The configuration with your own prices.  "
    "[default: infermux.toml, if there is one that is good]",
)
def prices(
    names: tuple[str, ...], provider: str | None, check: bool, as_json: bool, config: str | None
) -> None:
    """Print the price of a model, or the whole table.

    MODEL may be PROVIDER/MODEL; its price has source and date. With --check the exit code is 1 if a
    figure differs.

    Example: infermux prices gpt-5.4
    """
    now = time.time()
    if warning := compare.stale(now):
        warn(warning)
    if check:
        sys.exit(_checked(names, datetime.fromtimestamp(now, UTC).date(), as_json=as_json))
    own = _own(config)
    named = [price for name in names for price in _named(name, provider, own)]
    found = named if names else _listed(provider, own)
    if as_json:
        rows = [_dict(price) for price in found]
        click.echo(json_text({"as_of": table_date().isoformat(), "prices": rows}))
    elif names:
        click.echo("\n\n".join(_entry(price) for price in found))
    else:
        click.echo(_table(found))


@click.command(cls=Command)
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
        names = [_name(registry.route(name)) for name in registry.names]
        listed = [_model(router, target) for target in registry.targets()]
        presets = [_preset(name, name in registry) for name in PRESETS] if everything else []
    found = {"names": names, "models": listed} | ({"presets": presets} if presets else {})
    click.echo(json_text(found) if as_json else _models_text(names, listed, presets))


def _name(route: Route) -> JSON:
    entries = [each.name if isinstance(each, Route) else str(each) for each in route.entries]
    then = [each.name if isinstance(each, Route) else str(each) for each in route.then]
    return {"name": route.name, "strategy": route.strategy, "targets": entries, "fallback": then}


def _model(router: Router, target: Target) -> JSON:
    price = router.targets.price(target)
    return {
        "provider": target.provider,
        "model": target.model,
        "input": None if price is None else _text(price.rates.input),
        "output": None if price is None else _text(price.rates.output),
        "max_input": price and price.max_input,
        "max_output": price and price.max_output,
        "can": router.targets.abilities(target),
    }


def _preset(name: str, in_use: bool) -> JSON:
    preset = PRESETS[name]
    needed = [preset.address] if preset.address else []
    return {"name": name, "variables": [*preset.keys], "needs": needed, "in_use": in_use}


def _models_text(names: list[JSON], listed: list[JSON], presets: list[JSON]) -> str:
    tables = []
    if names:
        rows = [
            (
                each["name"],
                each["strategy"],
                ", ".join(each["targets"]),
                ", ".join(each["fallback"]),
            )
            for each in names
        ]
        tables.append(table(("NAME", "STRATEGY", "TARGETS", "FALLBACK"), rows))
    sizes = [[f"{each[name]:,}" if each[name] else "" for name in _SIZES] for each in listed]
    cells = [
        (
            f"{each['provider']}/{each['model']}",
            each["input"] or "unpriced",
            each["output"] or "",
            *size,
            ", ".join(each["can"]) or "text",
        )
        for each, size in zip(listed, sizes, strict=True)
    ]
    head = ("MODEL", "INPUT", "OUTPUT", "MAX INPUT", "MAX OUTPUT", "CAN DO")
    tables.append(
        table(head, cells, right=(1, 2, 3, 4))
        + f"\nprices in USD per million tokens, as of {table_date()}"
    )
    if presets:
        variables = [
            " and ".join([" or ".join(each["variables"]), *each["needs"]]) for each in presets
        ]
        uses = [(each["name"], "in use" * each["in_use"]) for each in presets]
        opened = [(name, to_set, use) for (name, use), to_set in zip(uses, variables, strict=True)]
        tables.append(table(("PRESET", "SET", ""), opened))
    return "\n\n".join(tables)


def _checked(files: Iterable[str], today: date, *, as_json: bool) -> int:
    if not files:
        raise click.UsageError(
            "--check needs a FILE: litellm's model_prices_and_context_window.json, "
            "or the data.json of genai-prices"
        )
    code = 0
    for file in files:
        try:
            found = compare.check(contents(file, file), today)
        except ConfigError as error:
            raise OneLine(f"{file}: {error.message}") from None
        code |= bool(found.differences)
        click.echo(_check_json(file, found) if as_json else _check_text(file, found))
    return code


def _check_json(file: str, found: compare.Check) -> str:
    rows = [
        each._asdict() | {"ours": _text(each.ours), "theirs": _text(each.theirs)}
        for each in found.differences
    ]
    return json_text({"file": file} | found._asdict() | {"differences": rows})


def _check_text(file: str, found: compare.Check) -> str:
    rows = [
        [each.model, each.figure, _text(each.ours) or "-", _text(each.theirs) or ""]
        for each in found.differences
    ]
    differences = table(["MODEL", "FIGURE", "SHIPPED", "THERE"], rows, right=(2, 3)) + "\n"
    return differences * bool(rows) + printable(
        f"{file} ({found.source}): {counted(found.compared, 'model')} compared with the table of "
        f"{table_date()}, {counted(len(rows), 'figure differs', 'figures differ')}; "
        f"{counted(len(found.unknown), 'model is', 'models are')} only in the file "
        "(--json names them)"
    )


# -- which prices --


def _own(config: str | None) -> list[Price]:
    """Return the configuration's prices; if --config is not given, ignore an invalid file."""
    try:
        listed = build.own_prices(build.settings(path=config)).values()
    except InferMuxError:
        if config is None:
            return []
        raise
    return [price for prices in listed for price in prices.values()]


def _listed(provider: str | None, own: list[Price]) -> list[Price]:
    every = [*own, *entries()]
    names = {price.provider for price in every}
    if provider is not None and provider not in names:
        hint = close_to(provider, names) or f"; there are {', '.join(sorted(names))}"
        raise OneLine(f"no prices are known for provider {shown(provider)}{hint}")
    return [price for price in every if provider in (None, price.provider)]


def _named(name: str, provider: str | None, own: list[Price]) -> list[Price]:
    first, slash, rest = name.partition("/")
    vendors = [provider] if provider else [price.provider for price in entries()]
    found = _found(name, vendors, own)
    if not found and slash and provider in (None, first):
        found = _found(rest, [first], own)
    if not found:
        known = [*compare.known(), *(price.id for price in own)]
        hint = close_to(name.rpartition("/")[2], known)
        raise OneLine(f"no price is known for {shown(name)}{hint}")
    return found


def _found(name: str, vendors: list[str], own: list[Price]) -> list[Price]:
    listed = [find(vendor, name) for vendor in dict.fromkeys(vendors)]
    anywhere = len(vendors) > 1
    mine = [each for each in own if each.id == name and (anywhere or each.provider in vendors)]
    return mine + [*{(each.provider, each.id): each for each in listed if each}.values()]


# -- output --


def _table(found: list[Price]) -> str:
    rows = []
    for price in found:
        terms = {
            "tiers": price.tiers,
            "peak hours": price.peak,
            "scheduled": price.next,
            "service tiers": price.service,
        }
        figures = [_text(figure) or "" for figure in price.rates[:4]]
        notes = ", ".join(name for name, value in terms.items() if value)
        rows.append([price.provider, price.id, *figures, notes])
    head = ["PROVIDER", "MODEL", "INPUT", "OUTPUT", "CACHED", "CACHE WRITE", ""]
    return (
        table(head, rows, right=(2, 3, 4, 5))
        + f"\n{counted(len(rows), 'price')}, in USD per million tokens, as of {table_date()}"
    )


def _entry(price: Price) -> str:
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
    if price.since:
        lines.append(f"not known to hold before {price.since}")
    if price.max_input or price.max_output:
        lines.append(f"at most {price.max_input or '?'} tokens in, {price.max_output or '?'} out")
    if price.note:
        lines.append(price.note)
    date = f"; table of {table_date()}" if price.src else ""
    lines.append(f"source: {', '.join(_sources(price))}{date}")
    return "\n  ".join(map(printable, [f"{price.provider}/{price.id}{names}", *lines]))


def _sources(price: Price) -> list[str]:
    return [_SOURCES.get(letter, letter) for letter in price.src] or ["the configuration"]


def _rates(rates: Tariff) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {figure}" for name, figure in _figures(rates).items()
    )


def _hours(peak: Peak) -> str:
    times = ["-".join(f"{at // 60:02}:{at % 60:02}" for at in span) for span in peak.hours]
    spans = ", ".join(times)
    return f"{spans} UTC, {_DAYS[peak.days]}"


def _dict(price: Price) -> JSON:
    names = {"provider": price.provider, "id": price.id, "aliases": list(price.aliases)}
    return {
        **names,
        **_figures(price.rates),
        "tiers": [{"over": tier.over} | _figures(tier.rates) for tier in price.tiers],
        "next": [
            {"from": change.start.isoformat()} | _figures(change.rates) for change in price.next
        ],
        "peak": price.peak and {"when": _hours(price.peak)} | _figures(price.peak.rates),
        "service": {
            each.name: _figures(each.rates) or _text(each.factor) for each in price.service
        },
        "since": price.since and price.since.isoformat(),
        "max_input": price.max_input,
        "max_output": price.max_output,
        "note": price.note,
        "sources": _sources(price),
    }


def _figures(rates: Tariff) -> JSON:
    return {name: _text(figure) for name, figure in rates._asdict().items() if figure is not None}


def _text(figure: Decimal | None) -> str | None:
    return None if figure is None else f"{figure.normalize():f}"
