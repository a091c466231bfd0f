"""The price of a model, and the exact cost of a call in pico-USD.

Prices are in USD per million tokens. Sums are exact and results whole pico-USD; only a user's own
price with more than 6 decimals is rounded: half to even, once, at the end. An unknown price is
None, not 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import reduce
from operator import mul
from typing import Any, Self, cast

from ..types import Usage
from .tariff import (
    ANYWHERE,
    ENTRY,
    STANDARD,
    STANDARD_TIERS,
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
EXACT = Context(prec=400, rounding=ROUND_HALF_EVEN)  # wide enough for every float
_PER_TOKEN = PICO // 10**6  # pico-USD per token for each USD per million
CLASSES = ("input", "cached_input", "cache_write", "cache_write_1h", "output")
# tokens of each class, or pico-USD per token
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
    # USD per 1,000 of what is billed by number: "request", "web_search", "grounded" (an answer
    # that searched, however often), …
    fees: tuple[tuple[str, Decimal], ...] = ()
    geo: tuple[tuple[str, Decimal], ...] = ()  # factors on tokens, by region
    as_text: tuple[str, ...] = ()  # media whose input costs what text does
    max_input: int | None = None
    max_output: int | None = None
    max_image: int | None = None  # tokens of one image, if they may be more than usual
    max_added: int | None = None  # tokens that the vendor may add to the input
    src: str = ""
    note: str = ""
    as_of: str = ""  # the day of the figures, if it is not that of the table
    sources: tuple[str, ...] = ()
    # the layer that each term is from, if there is more than one
    layers: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    follower: str = ""  # the model of a gateway that this price is used for, too
    units: _Units | None = field(init=False, compare=False, repr=False)  # see `_units`

    def __post_init__(self) -> None:
        varies = (
            self.tiers or self.peak or self.next or self.since or dict(self.fees).get("request")
        )
        apart = self.rates.reasoning is not None
        object.__setattr__(self, "units", None if varies or apart else _units(self.rates))

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
    requests: int = 1,
) -> int | None:
    """Return the cost in pico-USD, or None if the price or both token counts are unknown.

    *at* defaults to now; a naive time is UTC. The service tier that the vendor reports overrides
    *service_tier*, the requested one. A call that the vendor bills by something whose price is not
    listed has no known cost: a tier, a region, a medium, a fee. If only one count is unknown, it
    costs nothing. Of several *requests*, each has its fee, and the mean size counts.
    """
    if price is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    counts, service = _counts(usage), _service(price, usage.service_tier or service_tier)
    if service is None:
        return None
    plain = not (
        usage.fees
        or usage.geo
        or usage.input_audio_tokens
        or usage.input_image_tokens
        or usage.input_video_tokens
        or usage.output_audio_tokens
        or usage.output_image_tokens
    )
    if plain and price.units is not None and (service is STANDARD or not service.sets):
        return int(sum(map(mul, counts, price.units)))  # the usual case
    moment = at or datetime.now(UTC)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if price.since is not None and moment.date() < price.since:
        return None
    rates = price.rates_for(sum(counts[:4]) // requests, at=moment, service=service)
    fees, factor, total = _fees(usage, price, requests), _geo(usage, price), Decimal(0)
    if fees is None or factor is None:
        return None
    for tokens, rate in _classes(usage, counts, rates, price.as_text):
        if tokens and rate is None:
            return None
        total = EXACT.fma(rate or 0, tokens, total)
    total = EXACT.fma(EXACT.multiply(total, service.factor), factor, fees)
    return int(EXACT.to_integral_value(EXACT.multiply(total, _PER_TOKEN)))


def usd(pico: int | None) -> str:
    """Return exact decimal dollars such as 0.0232856, or "unpriced"."""
    return "unpriced" if pico is None else decimal(pico, PICO)


def decimal(count: int, unit: int) -> str:
    """Return *count* divided by *unit*, a power of ten, as exact text."""
    whole, rest = divmod(abs(count), unit)
    text = f"{whole}.{rest:0{len(str(unit)) - 1}d}".rstrip("0").rstrip(".")
    return text if count >= 0 else f"-{text}"


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


def _classes(
    usage: Usage, counts: _Units, rates: Tariff, as_text: tuple[str, ...]
) -> list[tuple[int, Decimal | None]]:
    """Return the tokens of each class, media and reasoning apart, with its rate; None: unlisted.

    What is cached or written to the cache is text, but for cached audio.
    """
    fresh, cached, write, hour, output = counts
    plain, by_cache, *written, _ = by_class(rates)
    found: list[tuple[int, Decimal | None]] = []
    hidden = min(usage.cached_audio_tokens or 0, cached, usage.input_audio_tokens or 0)
    for name in ("audio", "image", "video"):
        tokens = max(0, getattr(usage, f"input_{name}_tokens") or 0)
        tokens = min(fresh, tokens - hidden if name == "audio" else tokens)
        fresh -= tokens
        own = getattr(rates, f"input_{name}")
        found.append((tokens, plain if own is None and name in as_text else own))
    if hidden:
        dear = by_cache if rates.input_audio is None and "audio" in as_text else rates.input_audio
        own = rates.cached_input_audio
        found.append((hidden, dear if own is None else own))
    found += zip((fresh, cached - hidden, write, hour), (plain, by_cache, *written), strict=True)
    thought = 0 if rates.reasoning is None else usage.reasoning_tokens
    parts = (
        (usage.output_audio_tokens, rates.output_audio),
        (usage.output_image_tokens, rates.output_image),
        (thought, rates.reasoning),
    )
    for count, rate in parts:
        tokens = min(output, max(0, count or 0))
        output -= tokens
        found.append((tokens, rate))
    return [*found, (output, rates.output)]


def _fees(usage: Usage, price: Price, requests: int) -> Decimal | None:
    """Return what is billed by number, in millionths of a dollar; None if a fee is not listed."""
    listed = dict(price.fees)
    total = EXACT.multiply(listed.get("request", Decimal(0)), requests)
    for name, number in usage.fees:
        if name == "web_search" and name not in listed and "grounded" in listed:
            name, number = "grounded", min(number, 1)
        if number > 0:
            if name not in listed:
                return None
            total = EXACT.fma(listed[name], number, total)
    return EXACT.multiply(total, 1000)


def _geo(usage: Usage, price: Price) -> Decimal | None:
    where = (usage.geo or "").lower()
    return Decimal(1) if where in ANYWHERE else dict(price.geo).get(where)


def by_class(rates: Tariff) -> tuple[Decimal, ...]:
    """Return the rates of CLASSES; what is not listed costs what its fallback does."""
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
    units = [EXACT.multiply(rate, _PER_TOKEN) for rate in by_class(rates)]
    if rates.output is None or any(unit != int(unit) for unit in units):
        return None
    return cast(_Units, tuple(map(int, units)))


def _service(price: Price, name: str | None) -> Service | None:
    """Return the service tier, or None if it is neither listed nor the usual one."""
    if not name:
        return STANDARD
    wanted = name.lower()
    for each in price.service:
        if each.name == wanted:
            return each
    if wanted == "fast":  # OpenAI's newer name
        return _service(price, "priority")
    return STANDARD if wanted in STANDARD_TIERS else None
