"""infermux prices: what is shipped, and whether it still holds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import click

from .. import build
from ..errors import ConfigError, InferMuxError, close_to, shown
from ..pricing import Peak, Price, Tariff, entries, find, table_date
from ..pricing import compare as pricecheck
from ..types import JSON
from . import OneLine
from .output import json_text, printable, table

_WITNESSES = {"g": "genai-prices", "l": "litellm", "s": "llm-prices", "o": "OpenRouter's listing"}
_OWN = "the configuration"
_DAYS = {
    frozenset(range(5)): "Monday to Friday",
    frozenset((5, 6)): "Saturday and Sunday",
    frozenset(range(7)): "every day",
}


@click.command()
@click.argument("names", nargs=-1, metavar="[MODEL | FILE]...")
@click.option("--provider", metavar="NAME", help="Only this one's.")
@click.option(
    "--check",
    is_flag=True,
    help="Compare with public tables: each FILE is litellm's JSON of model prices, or genai-prices'.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--config",
    "-c",
    metavar="FILE",
    help="Where own prices stand.  [default: infermux.toml, if there is one that is good]",
)
def prices(
    names: tuple[str, ...], provider: str | None, check: bool, as_json: bool, config: str | None
) -> None:
    """Print the price of MODEL, or of PROVIDER/MODEL, with its source and date; without one, the
    table.

    With --check the exit code is 1 where a figure differs.

    Example: infermux prices gpt-5.4
    """
    now = time.time()
    if warning := pricecheck.stale(now):
        click.echo(f"infermux: {warning}", err=True)
    if check:
        sys.exit(_checked(names, datetime.fromtimestamp(now, UTC).date(), as_json=as_json))
    own = _own(config)
    found = (
        [price for name in names for price in _named(name, provider, own)]
        if names
        else _listed(provider, own)
    )
    if as_json:
        click.echo(
            json_text(
                {"as_of": table_date().isoformat(), "prices": [_dict(price) for price in found]}
            )
        )
    elif names:
        click.echo("\n\n".join(_entry(price) for price in found))
    else:
        click.echo(_table(found))


def _checked(files: Iterable[str], today: date, *, as_json: bool) -> int:
    """Print what differs in each file; return the exit code."""
    if not files:
        raise click.UsageError(
            "--check needs a FILE: litellm's model_prices_and_context_window.json, or the data.json of genai-prices"
        )
    differing = False
    for file in files:
        try:
            found = pricecheck.check(Path(file).read_bytes(), today)
        except OSError as error:
            raise OneLine(f"{file} cannot be read: {error.strerror}") from None
        except ConfigError as error:
            raise OneLine(f"{file}: {error.message}") from None
        differing = differing or bool(found.differences)
        if as_json:
            rows = [
                each._asdict() | {"ours": _text(each.ours), "theirs": _text(each.theirs)}
                for each in found.differences
            ]
            click.echo(json_text({"file": file} | found._asdict() | {"differences": rows}))
            continue
        if found.differences:
            click.echo(
                table(
                    ["MODEL", "FIGURE", "SHIPPED", "THERE"],
                    [
                        [each.model, each.figure, _text(each.ours) or "-", _text(each.theirs) or ""]
                        for each in found.differences
                    ],
                    right=(2, 3),
                )
            )
        click.echo(
            printable(
                f"{file} ({found.source}): {found.compared} models compared with the table of {table_date()}, "
                f"{len(found.differences)} figures differ; {len(found.unknown)} models are only there (--json names them)"
            )
        )
    return int(differing)


# -- which prices ----------------------------------------------------------------------------------


def _own(config: str | None) -> list[Price]:
    """Return the configuration's own prices; a configuration that is not asked for may be broken."""
    try:
        settings = build.settings(path=config)
        return [
            price for listed in build.own_prices(settings).values() for price in listed.values()
        ]
    except InferMuxError as error:
        if config is None:
            return []
        raise OneLine(error.message) from None


def _listed(provider: str | None, own: list[Price]) -> list[Price]:
    every = [*own, *entries()]
    if provider is not None and provider not in (names := {price.provider for price in every}):
        raise OneLine(
            f"no prices of a provider {shown(provider)} are known{close_to(provider, names) or _there_are(names)}"
        )
    return [price for price in every if provider in (None, price.provider)]


def _there_are(names: Iterable[str]) -> str:
    return f"; there are {', '.join(sorted(names))}"


def _named(name: str, provider: str | None, own: list[Price]) -> list[Price]:
    """Return the prices that a name leads to, at each vendor as a call would find them."""
    vendors = dict.fromkeys(price.provider for price in entries())
    first, slash, rest = name.partition("/")
    found = list(_found(name, [provider] if provider else vendors, own))
    if not found and slash and provider in (None, first):
        found = list(_found(rest, [first], own))
    if not found:
        every = [*pricecheck.known(), *(price.id for price in own)]
        raise OneLine(
            f"no price is known for {shown(name)}{close_to(name.rpartition('/')[2], every)}"
        )
    return found


def _found(name: str, providers: Iterable[str], own: list[Price]) -> Iterator[Price]:
    seen = set()
    asked = list(providers)
    yield from (
        price for price in own if price.id == name and (len(asked) > 1 or price.provider in asked)
    )
    for provider in asked:
        price = find(provider, name)
        if price is not None and (price.provider, price.id) not in seen:
            seen.add((price.provider, price.id))
            yield price


# -- how they look ---------------------------------------------------------------------------------


def _table(found: list[Price]) -> str:
    rows = [
        [
            price.provider,
            price.id,
            *[_text(figure) or "" for figure in price.rates[:4]],
            ", ".join(
                name
                for name, has in (
                    ("tiers", price.tiers),
                    ("peak hours", price.peak),
                    ("scheduled", price.next),
                    ("service tiers", price.service),
                )
                if has
            ),
        ]
        for price in found
    ]
    head = ["PROVIDER", "MODEL", "INPUT", "OUTPUT", "CACHED", "CACHE WRITE", ""]
    return (
        table(head, rows, right=(2, 3, 4, 5))
        + f"\n{len(rows)} prices, in USD per million tokens, as of {table_date()}"
    )


def _entry(price: Price) -> str:
    """Return a price with all that changes it, as text."""
    names = f"  ({', '.join(price.aliases)})" if price.aliases else ""
    lines = [
        f"{price.provider}/{price.id}{names}",
        f"  USD per million tokens: {_rates(price.rates)}",
    ]
    lines += [f"  over {tier.over} input tokens: {_rates(tier.rates)}" for tier in price.tiers]
    lines += [f"  {_hours(price.peak)}: {_rates(price.peak.rates)}"] if price.peak else []
    lines += [f"  from {change.start}: {_rates(change.rates)}" for change in price.next]
    lines += [
        f"  service tier {each.name}: {_rates(each.rates) or f'times {each.factor}'}"
        for each in price.service
    ]
    lines += [f"  not known to hold before {price.since}"] if price.since else []
    lines += (
        [f"  at most {price.max_input or '?'} tokens in, {price.max_output or '?'} out"]
        if price.max_input or price.max_output
        else []
    )
    lines += [f"  {price.note}"] if price.note else []
    source = (
        f"{', '.join(_WITNESSES.get(letter, letter) for letter in price.src)}; table of {table_date()}"
        if price.src
        else _OWN
    )
    return "\n".join(printable(line) for line in [*lines, f"  source: {source}"])


def _rates(rates: Tariff) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_text(figure)}"
        for name, figure in rates._asdict().items()
        if figure is not None
    )


def _hours(peak: Peak) -> str:
    spans = ", ".join(
        f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
        for start, end in peak.hours
    )
    return f"{spans} UTC, {_DAYS[peak.days]}"


def _dict(price: Price) -> JSON:
    """Return a price in the table's own schema."""
    entry: JSON = {
        "provider": price.provider,
        "id": price.id,
        "aliases": list(price.aliases),
    } | _figures(price.rates)
    entry["tiers"] = [{"over": tier.over} | _figures(tier.rates) for tier in price.tiers]
    entry["next"] = [
        {"from": change.start.isoformat()} | _figures(change.rates) for change in price.next
    ]
    entry["peak"] = price.peak and {"when": _hours(price.peak)} | _figures(price.peak.rates)
    entry["service"] = {
        each.name: _figures(each.rates) or _text(each.factor) for each in price.service
    }
    return entry | {
        "since": price.since and price.since.isoformat(),
        "max_input": price.max_input,
        "max_output": price.max_output,
        "note": price.note,
        "sources": [_WITNESSES.get(letter, letter) for letter in price.src] or [_OWN],
    }


def _figures(rates: Tariff) -> JSON:
    return {name: _text(figure) for name, figure in rates._asdict().items() if figure is not None}


def _text(figure: Decimal | None) -> str | None:
    return None if figure is None else f"{figure.normalize():f}"
