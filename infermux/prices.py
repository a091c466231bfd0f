"""What a call costs: the shipped table of prices, the way from a model id to its price, and exact pico-USD.

Figures are USD per million tokens, sums are rational numbers, results whole pico-USD. A shipped figure has at most 6 decimals,
also after a service factor, which makes whole pico-USD per token; only a user's own finer figure ever rounds: half to even, once,
at the end. Ambient decimal contexts play no part: a host application may set one. No price is None, for unknown is not free.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from fractions import Fraction
from functools import cache, lru_cache, reduce
from itertools import starmap
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn, Self, cast

from infermux.errors import ConfigError, shown
from infermux.types import Usage

PICO = 10**12                               # pico-USD in a dollar
MAX_ID = 200                                # characters of a model id that is looked up at all
_PER_TOKEN = PICO // 10**6                  # pico-USD per token for each USD per million
_DIGITS = 30                                # of a figure, before or after the point: 1e999999 would take all memory
_WEEKDAYS = {"mon-fri": frozenset(range(5)), "sat-sun": frozenset((5, 6)), "mon-sun": frozenset(range(7))}
_HOURS = re.compile(r"(\d\d):([0-5]\d)-(\d\d):([0-5]\d)", re.ASCII)
_ARN = re.compile(r"\Aarn:aws:bedrock:[^/]*:(?:inference-profile|foundation-model)/")
_PREFIX = {"google": "models/", "fireworks": "accounts/fireworks/models/"}
_DATE = re.compile(r"(?:-\d{4}-\d\d-\d\d|-\d{8}|@[^@]*)\Z", re.ASCII)
_GOOGLE_DATE = re.compile(rf"{_DATE.pattern}|-\d{{3}}\Z", re.ASCII)
_RESOLD = {"openai": "openai", "anthropic": "anthropic", "google": "google", "x-ai": "xai"}  # OpenRouter passes these prices on


class Rates(NamedTuple):
    """USD per million tokens; None is a figure that is not known."""
    input: Decimal | None = None
    output: Decimal | None = None
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    input_audio: Decimal | None = None
    output_audio: Decimal | None = None
    reasoning: Decimal | None = None

    def under(self, other: Rates) -> Rates:
        """Return these rates with what *other* names put over them."""
        return Rates(*(mine if theirs is None else theirs for mine, theirs in zip(self, other, strict=True)))


class Tier(NamedTuple):
    """Rates of a whole request that has more than `over` input tokens."""
    over: int
    rates: Rates


class Scheduled(NamedTuple):
    """Rates from the start of a UTC day."""
    start: date
    rates: Rates


class Service(NamedTuple):
    """What a service tier does to the price: its own rates, or a factor on all of them."""
    name: str
    rates: Rates = Rates()
    factor: Decimal = Decimal(1)


class Peak(NamedTuple):
    """Rates of certain UTC hours (minutes of the day, start included, end excluded) and weekdays (Monday is 0)."""
    hours: tuple[tuple[int, int], ...]
    days: frozenset[int]
    rates: Rates

    def covers(self, at: datetime) -> bool:
        """Whether the UTC moment *at* is in these hours."""
        minute = at.hour * 60 + at.minute
        return at.weekday() in self.days and any(start <= minute < end for start, end in self.hours)


class Charge(NamedTuple):
    """What a call cost in pico-USD, and who said so: vendor, served, requested, override or unpriced."""
    pico: int | None
    source: str


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a model at a provider, with what changes it: size, hour, date and service tier."""
    provider: str
    id: str
    rates: Rates
    aliases: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()            # by rising `over`
    peak: Peak | None = None
    next: tuple[Scheduled, ...] = ()        # by rising `start`
    since: date | None = None               # these rates are not known to hold before this UTC day
    service: tuple[Service, ...] = ()
    request_per_1k_max: Decimal | None = None   # USD per 1,000 requests; for information: the vendor reports its own cost
    max_input: int | None = None
    max_output: int | None = None
    src: str = ""
    note: str = ""

    @classmethod
    def from_entry(cls, vendor: str, entry: Mapping[str, Any]) -> Self:
        """Return the price that an entry of the table states."""
        place = f"price of {vendor}/{entry.get('id')}"
        _check_keys(entry, _ENTRY, place)
        names = {"provider": vendor, "id": entry["id"], "aliases": tuple(entry.get("aliases", ())), "src": entry.get("src", "")}
        return cls(**names, **_terms(entry, place))

    @classmethod
    def of(cls, terms: Mapping[str, Any], *, provider: str = "", id: str = "", place: str = "price") -> Self:
        """Return a user's own price, such as {"input": "0", "output": "0"}; *place* is its name in an error."""
        _check_keys(terms, _TERMS, place)
        return cls(provider=provider, id=id, **_terms(terms, place))

    def rates_for(self, tokens: int, *, at: datetime, service: Service) -> Rates:
        """Return the rates of *tokens* input tokens at the UTC moment *at*, before the service's factor; a tier comes last."""
        over = [change.rates for change in self.next if change.start <= at.date()][-1:]
        over += [self.peak.rates] if self.peak and self.peak.covers(at) else []
        over += [service.rates, *[tier.rates for tier in self.tiers if tokens > tier.over][-1:]]
        return reduce(Rates.under, over, self.rates)


def cost(usage: Usage, price: Price | None, *, at: datetime | None = None, service_tier: str | None = None) -> int | None:
    """Return pico-USD, or None if the price, its day, or both token counts are unknown.

    *at* is now unless given, a naive one is UTC. The tier that the vendor says it billed wins over *service_tier*, the one asked
    for; a tier without a price of its own costs the standard rates. If one count of the two is unknown, it adds nothing.
    """
    if price is None or (usage.input_tokens is None and usage.output_tokens is None):
        return None
    moment = _utc(at or datetime.now(UTC))
    if price.since is not None and moment.date() < price.since:
        return None
    counts = _Counts.of(usage)
    service = _service(price, usage.service_tier or service_tier)
    rates = price.rates_for(counts.input, at=moment, service=service)
    return None if rates.output is None and counts.output else _sum(counts, rates, service.factor)


def charge(usage: Usage, *, provider: str, requested: str, served: str | None = None,
           overrides: Mapping[str, Price] | None = None, at: datetime | None = None, service_tier: str | None = None) -> Charge:
    """Return what the vendor says the call cost, else the price of the served model, else of the requested one.

    *overrides* are a user's own prices by model id (as written, or in lower case); each goes before the shipped price of
    the same id, and is found under a dated or prefixed id too unless the table lists that one itself.
    """
    reported = usage.cost_usd
    if reported is not None and math.isfinite(reported) and reported >= 0:
        return Charge(round(Fraction(Decimal(repr(reported))) * PICO), "vendor")
    for model, source in ((served, "served"), (requested, "requested")):
        own = _override(provider, model, overrides) if model and overrides else None
        price = own or (find(provider, model) if model else None)
        if price is not None:
            pico = cost(usage, price, at=at, service_tier=service_tier)
            return Charge(pico, "unpriced" if pico is None else "override" if own else source)
    return Charge(None, "unpriced")


def clamped(usage: Usage) -> bool:
    """Whether a part is larger than its whole: the whole then counts as large as its parts, so that no term is negative."""
    counts = _Counts.of(usage)
    return counts.input > (usage.input_tokens or 0) or counts.write > (usage.cache_write_tokens or 0)


def find(provider: str, model: str) -> Price | None:
    """Return the shipped price of a model id, never of one that merely looks like it."""
    if len(model) > MAX_ID or len(provider) > MAX_ID:
        return None
    return _find(provider, model)


def entries() -> Iterator[Price]:
    """Yield the shipped prices by provider and id."""
    return iter(_table().prices)


def table_date() -> date:
    """Return the day as of which the shipped prices hold."""
    return _table().day


def usd(pico: int | None) -> str:
    """Return exact decimal dollars such as 0.0232856, or "unpriced"."""
    if pico is None:
        return "unpriced"
    whole, rest = divmod(abs(pico), PICO)
    return ("-" if pico < 0 else "") + f"{whole}.{rest:012}".rstrip("0").rstrip(".")


class _Counts(NamedTuple):
    input: int                              # all of it, which chooses the tier
    output: int
    cached: int
    write: int
    write_1h: int

    @classmethod
    def of(cls, usage: Usage) -> _Counts:
        """Return *usage* with no count below 0 and no part above its whole."""
        all_in, out, cached, write, write_1h = (
            max(0, count or 0) for count in (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens,
                                             usage.cache_write_tokens, usage.cache_write_1h_tokens))
        write = max(write, write_1h)
        return cls(max(all_in, cached + write), out, cached, write, write_1h)


def _sum(counts: _Counts, rates: Rates, factor: Decimal) -> int:
    """Return pico-USD after the formula of the specification's section "Normalised usage"."""
    p_in = rates.input or Decimal(0)
    p_write = p_in if rates.cache_write is None else rates.cache_write
    terms = (
        (counts.input - counts.cached - counts.write, p_in),
        (counts.cached, p_in if rates.cached_input is None else rates.cached_input),
        (counts.write - counts.write_1h, p_write),
        (counts.write_1h, p_write if rates.cache_write_1h is None else rates.cache_write_1h),
        (counts.output, rates.output or Decimal(0)),
    )
    return round(sum((Fraction(rate) * tokens for tokens, rate in terms if tokens), Fraction()) * Fraction(factor) * _PER_TOKEN)


def _service(price: Price, name: str | None) -> Service:
    wanted = (name or "").lower()
    return next((service for service in price.service if service.name == wanted), Service(wanted))


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


class _Table(NamedTuple):
    day: date
    prices: tuple[Price, ...]
    rows: Mapping[str, Mapping[str, Price]]     # by provider, then by id or alias


@cache
def _table() -> _Table:
    """Read the shipped table, at the first question and not at import."""
    from importlib.resources import files  # here, because it doubles the time to import this module

    stored = json.loads(files("infermux").joinpath("prices.json").read_text("utf-8"))
    prices = [Price.from_entry(vendor, entry) for vendor, listed in stored["models"].items() for entry in listed]
    rows: dict[str, dict[str, Price]] = {}
    for price in prices:
        rows.setdefault(price.provider, {}).update(dict.fromkeys((price.id, *price.aliases), price))
    rows["azure"] = rows["openai"] | rows["azure"]
    return _Table(date.fromisoformat(stored["as_of"]), tuple(sorted(prices, key=lambda p: (p.provider, p.id))), rows)


@lru_cache(maxsize=4096)
def _find(provider: str, model: str) -> Price | None:
    if provider == "openrouter" and ":" in model:
        return Price(provider, model, Rates(Decimal(0), Decimal(0))) if model.lower().endswith(":free") else None
    rows = _table().rows.get(provider, {})
    price = next((rows[name] for name in _names(provider, model) if name in rows), None)
    if price is None and provider == "openrouter":
        vendor, _, name = model.lower().partition("/")
        provider = _RESOLD.get(vendor, "")
        return find(provider, name.replace(".", "-") if provider == "anthropic" else name)
    return price


def _names(provider: str, model: str) -> Iterator[str]:
    """Yield the ids that a model may be listed under, the most exact first."""
    name = model.lower()
    yield name
    name = _ARN.sub("", name, count=1) if provider == "bedrock" else name.removeprefix(_PREFIX.get(provider, ""))
    yield name
    if name.startswith("ft:"):
        yield ":".join(name.split(":")[:2])
        return                              # the price of the base would be too low
    yield (_GOOGLE_DATE if provider == "google" else _DATE).sub("", name, count=1)


def _override(provider: str, model: str, overrides: Mapping[str, Price]) -> Price | None:
    if len(model) > MAX_ID:
        return None
    rows = _table().rows.get(provider, {})
    for name in (model, *_names(provider, model)):
        if name in overrides or name in rows:
            return overrides.get(name)
    return None


_OVERLAY = frozenset(Rates._fields)
_TERMS = _OVERLAY | {"tiers", "peak", "next", "since", "service", "request_per_1k_max", "max_input", "max_output", "note"}
_ENTRY = _TERMS | {"id", "aliases", "src"}


def _terms(entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the fields of a Price that say what it costs, each checked."""
    if "input" not in entry:
        _fail(place, 'has no "input"; write "0" for a model that is free')
    terms: dict[str, Any] = {"rates": _rates(entry, place), "note": str(entry.get("note", ""))}
    terms |= {key: read(entry[key], f"{place}.{key}") for key, read in _READ.items() if key in entry}
    return terms


def _rates(entry: Mapping[str, Any], place: str) -> Rates:
    return Rates(**{key: _figure(entry[key], f"{place}.{key}") for key in Rates._fields if key in entry})


def _figure(value: object, place: str) -> Decimal:
    """Return a decimal string, or a number as it is written, exactly."""
    try:
        figure = Decimal(value if isinstance(value, str) else repr(value))
    except InvalidOperation:
        _fail(place, f'must be a decimal string such as "0.15", not {shown(value)}')
    if not figure.is_finite() or figure.is_signed():
        _fail(place, f"must be a finite amount of 0 or more, not {shown(value)}")
    if abs(cast(int, figure.as_tuple().exponent)) > _DIGITS or figure.adjusted() > _DIGITS:
        _fail(place, f"must have at most {_DIGITS} digits before and after the point, not {shown(value)}")
    return figure


def _whole(value: object, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        _fail(place, f"must be a whole number of tokens, not {shown(value)}")
    return value


def _day(value: object, place: str) -> date:
    try:
        return value if type(value) is date else date.fromisoformat(cast(str, value))
    except (TypeError, ValueError):
        _fail(place, f'must be a date such as "2026-12-01", not {shown(value)}')


def _changes(value: object, key: str, read: Callable[[object, str], Any], place: str) -> list[tuple[Any, Rates]]:
    """Return a list of overlays by rising *key*, which each must have."""
    if not isinstance(value, list):
        _fail(place, f"must be a list, not {shown(value)}")
    changes = []
    for number, item in enumerate(value):
        at = f"{place}[{number}]"
        _check_keys(item, _OVERLAY | {key}, at)
        changes.append((read(item.get(key), f"{at}.{key}"), _rates(item, at)))
    return sorted(changes, key=itemgetter(0))


def _peak(value: Mapping[str, Any], place: str) -> Peak:
    _check_keys(value, _OVERLAY | {"utc", "days"}, place)
    hours, days = value.get("utc"), value.get("days", "mon-sun")
    if not isinstance(hours, list):
        _fail(f"{place}.utc", f'must be a list of hours such as ["01:00-04:00"], not {shown(hours)}')
    if not isinstance(days, str) or days not in _WEEKDAYS:
        _fail(f"{place}.days", f"must be one of {', '.join(_WEEKDAYS)}, not {shown(days)}")
    return Peak(tuple(_span(text, f"{place}.utc") for text in hours), _WEEKDAYS[days], _rates(value, place))


def _span(text: object, place: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(text) if isinstance(text, str) else None
    start, end = (int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])) if match else (0, 0)
    if not start < end <= 24 * 60:
        _fail(place, f'must be hours of one UTC day such as "01:00-04:00", not {shown(text)}')
    return start, end


def _services(value: Mapping[str, Any], place: str) -> tuple[Service, ...]:
    if not isinstance(value, Mapping):
        _fail(place, f"must be a table of service tiers, not {shown(value)}")
    return tuple(_offer(name.lower(), offer, f"{place}.{name}") for name, offer in value.items())


def _offer(name: str, offer: object, place: str) -> Service:
    if not isinstance(offer, Mapping):
        return Service(name, factor=_figure(offer, place))
    _check_keys(offer, _OVERLAY, place)
    return Service(name, _rates(offer, place))


_READ: Mapping[str, Callable[[Any, str], Any]] = {
    "tiers": lambda value, place: tuple(starmap(Tier, _changes(value, "over", _whole, place))),
    "next": lambda value, place: tuple(starmap(Scheduled, _changes(value, "from", _day, place))),
    "peak": _peak, "service": _services, "since": _day,
    "request_per_1k_max": _figure, "max_input": _whole, "max_output": _whole,
}


def _check_keys(entry: object, known: Collection[str], place: str) -> None:
    if not isinstance(entry, Mapping):
        _fail(place, f'must be a table such as {{"input": "0", "output": "0"}}, not {shown(entry)}')
    for key in entry:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            _fail(place, f"has an unknown key {shown(key)}" + (f'; did you mean "{close[0]}"?' if close else ""))


def _fail(place: str, what: str) -> NoReturn:
    raise ConfigError(f"{place} {what}")
