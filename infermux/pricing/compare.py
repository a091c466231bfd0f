"""Compares prices with a newer public table: litellm's, genai-prices' or OpenRouter's.

It compares the rates at size 0 and at each size where a tier begins; ids are looked up as for a
call. A figure that their table omits is skipped. For one that ours omits, our fallback is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import NamedTuple

from . import Price, PriceTable, public, shipped
from .price import CLASSES, by_class
from .tariff import STANDARD, Service, Tariff

MAX_AGE_DAYS = 90  # after which a warning says that the prices are old
_COMPARED = ("input", "output", "cached_input", "cache_write", "cache_write_1h")


class Difference(NamedTuple):
    """A price that differs, in USD per million tokens."""

    model: str
    figure: str
    ours: Decimal | None
    theirs: Decimal


class Check(NamedTuple):
    source: str  # litellm, genai-prices or OpenRouter
    compared: int
    differences: list[Difference]
    unknown: list[str]  # models of our vendors that only their table has


def stale(now: float, table: PriceTable | None = None) -> str | None:
    """Return a warning if the prices are old at *now* (seconds since 1970), else None."""
    table = table or shipped()
    age = (datetime.fromtimestamp(now, UTC).date() - table.day).days
    if age <= MAX_AGE_DAYS:
        return None
    own = f" and {table.own.name}" if table.own else ""
    return (
        f"the shipped prices{own} are from {table.day}, {age} days ago: update infermux, or run "
        "`infermux prices update FILE` with a newer table"
    )


def check(data: bytes, today: date, table: PriceTable | None = None) -> Check:
    """Compare prices (by default the shipped ones) with the table in *data*.

    Raise ConfigError if it is invalid.
    """
    ours, found = table or shipped(), public.read(data, today)
    unknown = []
    seen: dict[tuple[object, ...], Difference] = {}
    for listed in found.listed:
        theirs = listed.price
        price = ours.find(theirs.provider, theirs.id)
        if price is None:
            unknown.append(f"{theirs.provider}/{theirs.id}")
            continue
        for difference in differences(price, theirs, today):
            # once for all ids of one price
            seen.setdefault((price.provider, price.id, *difference[1:]), difference)
    compared = len(found.listed) - len(unknown)
    return Check(found.source, compared, list(seen.values()), sorted(set(unknown)))


def rates_on(day: date, price: Price, over: int = 0, service: Service = STANDARD) -> Tariff:
    """Return the rates of a UTC day beside hours with their own, *over* so many input tokens."""
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
    tokens = over + 1 if over else 0
    return replace(price, peak=None).rates_for(tokens, at=moment, service=service)


def differences(price: Price, theirs: Price, today: date) -> Iterator[Difference]:
    """Yield the differences at each size where either price changes."""
    # to the nearest thousand: the tables differ in whether the size itself belongs to a tier
    told = {round(tier.over, -3): tier.rates for tier in theirs.tiers}
    sizes = sorted({0, *told, *(round(tier.over, -3) for tier in price.tiers)})
    for size in sizes:
        here, there = (rates_on(today, side, size) for side in (price, theirs))
        billed = dict(zip(CLASSES, by_class(here), strict=True))
        for name in _COMPARED:
            ours, other = getattr(here, name), getattr(there, name)
            omits = size in told and getattr(told[size], name) is None
            if other is None or omits or ours == other:
                continue
            if price.peak is not None and other == getattr(price.peak.rates, name):
                continue  # a table without hours may list the price of the dear ones
            if ours is not None or other not in (0, billed[name]):
                figure = name + (f" over {size}" if size else "")
                yield Difference(f"{theirs.provider}/{theirs.id}", figure, ours, other)
