"""The price of a model, and the exact cost of a call in pico-USD.

Prices are in USD per million tokens. Sums are exact and results whole pico-USD; only a user's own
price with more than 6 decimals is rounded: half to even, once, at the end. An unknown price is
None, not 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from operator import mul
from typing import Any, Self

from ..types import Usage
from .tariff import (
    ENTRY,
    STANDARD,
    TERMS,
    Peak,
    Scheduled,
    Service,
    Tariff,
    Tier,
    check_keys,
    terms,
)

PICO = 10**12  # pico-USD in a dollar
_PER_TOKEN = PICO // 10**6  # pico-USD per token for each USD per million
# tokens, or pico-USD per token: input that is uncached, cached, written to a cache, written to it
# for an hour; output
_Units = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model at a provider, by request size, hour, date and service tier."""

    provider: str
    id: str
    rates: Tariff
    aliases: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()  # by rising `over`
    peak: Peak | None = None
    next: tuple[Scheduled, ...] = ()  # by rising `start`
    since: date | None = None  # the price is unknown before this UTC day
    service: tuple[Service, ...] = ()
    # USD per 1,000 requests; for information only, as the vendor reports its own cost
    request_per_1k_max: Decimal | None = None
    max_input: int | None = None
    max_output: int | None = None
    src: str = ""
    note: str = ""
    as_of: str = ""  # the day of the figures, if it is not that of the table
    sources: tuple[str, ...] = ()
    # the layer that each term is from, if there is more than one
    layers: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    follower: str = ""  # the model of a gateway that this price is used for, too
    units: _Units | None = field(init=False, compare=False, repr=False)  # see `_units`

    def __post_init__(self) -> None:
        varies = self.tiers or self.peak or self.next or self.since
        object.__setattr__(self, "units", None if varies else _units(self.rates))

    @classmethod
    def from_entry(
        cls,
        vendor: str,
        entry: Mapping[str, Any],
        *,
        sources: tuple[str, ...] = (),
        layers: tuple[tuple[str, str], ...] = (),
        as_of: str = "",
    ) -> Self:
        """Return the price in an entry of a table; raise ConfigError if it is invalid."""
        place = f"price of {vendor}/{entry.get('id')}"
        check_keys(entry, ENTRY, place)
        return cls(
            vendor,
            entry["id"],
            aliases=tuple(entry.get("aliases", ())),
            src=entry.get("src", ""),
            as_of=as_of,
            sources=sources,
            layers=layers,
            **terms(entry, place),
        )

    @classmethod
    def of(
        cls, stated: Mapping[str, Any], *, provider: str = "", id: str = "", place: str = "price"
    ) -> Self:
        """Return a user's price, such as {"input": "0", "output": "0"}; raise ConfigError."""
        check_keys(stated, TERMS, place)
        return cls(provider, id, **terms(stated, place))

    def rates_for(self, tokens: int, *, at: datetime, service: Service) -> Tariff:
        """Return the rates for *tokens* input tokens at the UTC time *at*, without the factor."""
        over = [change.rates for change in self.next if change.start <= at.date()][-1:]
        over += [self.peak.rates] if self.peak and self.peak.covers(at) else []
        over += [service.rates, *[tier.rates for tier in self.tiers if tokens > tier.over][-1:]]
        return reduce(Tariff.under, over, self.rates)


def cost(
    usage: Usage,
    price: Price | None,
    *,
    at: datetime | None = None,
    service_tier: str | None = None,
) -> int | None:
    """Return the cost in pico-USD, or None if the price or both token counts are unknown.

    *at* defaults to now; a naive time is UTC. The service tier that the vendor reports overrides
    *service_tier*, the requested one; a tier that is not listed costs the standard rates. If only
    one count is unknown, it costs nothing.
    """
    if price is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    counts, service = _counts(usage), _service(price, usage.service_tier or service_tier)
    if price.units is not None and (service is STANDARD or not service.sets):
        return int(sum(map(mul, counts, price.units)))  # the usual case
    moment = at or datetime.now(UTC)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if price.since is not None and moment.date() < price.since:
        return None
    *of_input, output = counts
    rates = price.rates_for(sum(of_input), at=moment, service=service)
    if rates.output is None and output:
        return None
    total = sum(
        Fraction(rate) * tokens for rate, tokens in zip(_by_class(rates), counts, strict=True)
    )
    return round(total * Fraction(service.factor) * _PER_TOKEN)


def usd(pico: int | None) -> str:
    """Return exact decimal dollars such as 0.0232856, or "unpriced"."""
    if pico is None:
        return "unpriced"
    whole, rest = divmod(abs(pico), PICO)
    return ("-" if pico < 0 else "") + f"{whole}.{rest:012}".rstrip("0").rstrip(".")


def usd_float(pico: int | None) -> float | None:
    """Return the nearest float of dollars, or None if *pico* is None."""
    return None if pico is None else pico / PICO


def _counts(usage: Usage) -> _Units:
    """Return the tokens of each class, none negative, no part larger than its whole."""
    counts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
    )
    all_in, output, cached, write, write_1h = [max(0, count or 0) for count in counts]
    write = max(write, write_1h)
    return max(0, all_in - cached - write), cached, write - write_1h, write_1h, output


def _by_class(rates: Tariff) -> tuple[Decimal, ...]:
    """Return the rate of each class, or the one used instead if it is not listed."""
    fresh = rates.input or Decimal(0)
    write = fresh if rates.cache_write is None else rates.cache_write
    return (
        fresh,
        fresh if rates.cached_input is None else rates.cached_input,
        write,
        write if rates.cache_write_1h is None else rates.cache_write_1h,
        rates.output or Decimal(0),
    )


def _units(rates: Tariff) -> _Units | None:
    """Return pico-USD per token of each class, or None if one is unknown or a fraction."""
    units = [Fraction(rate) * _PER_TOKEN for rate in _by_class(rates)]
    if rates.output is None or any(unit.denominator != 1 for unit in units):
        return None
    fresh, cached, write, hour, output = map(int, units)
    return fresh, cached, write, hour, output


def _service(price: Price, name: str | None) -> Service:
    wanted = (name or "").lower()
    return next((each for each in price.service if each.name == wanted), STANDARD)
