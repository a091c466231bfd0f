"""The parts of a price, and their validation when a table is read.

Prices are in USD per million tokens, as exact decimals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from itertools import starmap
from operator import itemgetter
from typing import Any, NamedTuple, cast

from ..errors import ConfigError, close_to, shown, wrong_value

_MAX_DIGITS = 30  # of a figure, before or after the point: 1e999999 would exhaust memory
_WEEKDAYS = {
    "mon-fri": frozenset(range(5)),
    "sat-sun": frozenset((5, 6)),
    "mon-sun": frozenset(range(7)),
}
_HOURS = re.compile(r"(\d\d):([0-5]\d)-(\d\d):([0-5]\d)", re.ASCII)


class Tariff(NamedTuple):
    """Rates in USD per million tokens of each kind; None if not listed."""

    input: Decimal | None = None
    output: Decimal | None = None
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    input_audio: Decimal | None = None
    output_audio: Decimal | None = None
    reasoning: Decimal | None = None
    cached_input_audio: Decimal | None = None
    input_image: Decimal | None = None
    input_video: Decimal | None = None
    output_image: Decimal | None = None

    def under(self, other: Tariff) -> Tariff:
        """Return these rates, replaced by those that *other* lists."""
        pairs = zip(self, other, strict=True)
        return Tariff(*(mine if theirs is None else theirs for mine, theirs in pairs))


class Tier(NamedTuple):
    """The rates for all tokens of a request with more than `over` input tokens."""

    over: int
    rates: Tariff


class Scheduled(NamedTuple):
    """Rates that apply from a UTC day on."""

    start: date
    rates: Tariff


class Service(NamedTuple):
    """A service tier: its own rates, or a factor on all rates."""

    name: str
    rates: Tariff = Tariff()
    factor: Decimal = Decimal(1)

    @property
    def sets(self) -> bool:
        """Whether the tier changes the price."""
        return self.factor != 1 or self.rates != Tariff()


STANDARD = Service("")
# what vendors call the tier of the usual price
STANDARD_TIERS = frozenset(
    ("", "auto", "default", "standard", "standard_only", "on_demand", "scale")
    + ("provisioned", "unspecified")
)
ANYWHERE = frozenset(("", "global", "not_available"))  # regions of the usual price
MEDIA = ("audio", "image", "video")


class Peak(NamedTuple):
    """The rates of certain UTC hours and weekdays."""

    hours: tuple[tuple[int, int], ...]  # start and (exclusive) end in minutes of the day
    days: frozenset[int]  # Monday is 0
    rates: Tariff

    def covers(self, at: datetime) -> bool:
        """Whether the UTC time *at* is in these hours."""
        minute = at.hour * 60 + at.minute
        return at.weekday() in self.days and any(start <= minute < end for start, end in self.hours)


_OVERLAY = frozenset(Tariff._fields)


def plain(figure: Decimal) -> str:
    """Return a figure as text, without an exponent."""
    return f"{figure.normalize():f}"


def figure_text(figure: Decimal | None) -> str | None:
    return None if figure is None else plain(figure)


def figures(rates: Tariff) -> dict[str, str]:
    return {name: plain(rate) for name, rate in rates._asdict().items() if rate is not None}


def terms(entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return a Price's fields from a table, without provider and id; raise ConfigError."""
    errors = [] if "input" in entry else [f'{place} has no "input"; write "0" for a free model']
    found = dict[str, Any]()
    for key, read in _READ.items():
        try:
            if key in entry:
                found[key] = read(entry[key], f"{place}.{key}")
        except ConfigError as error:
            errors += error.errors
    if errors:
        raise ConfigError(*errors)
    if (request := found.pop("request_per_1k_max", None)) is not None:
        found["fees"] = tuple(({"request": request} | dict(found.get("fees", ()))).items())
    rates = Tariff(**{key: found.pop(key) for key in Tariff._fields if key in found})
    return found | {"rates": rates, "note": str(entry.get("note", ""))}


def _rates(entry: Mapping[str, Any], place: str) -> Tariff:
    listed = [key for key in Tariff._fields if key in entry]
    return Tariff(**{key: _figure(entry[key], f"{place}.{key}") for key in listed})


def _figure(value: object, place: str) -> Decimal:
    try:
        figure = Decimal(value if isinstance(value, str) else repr(value))
    except InvalidOperation:
        raise wrong_value(place, 'a decimal string such as "0.15"', value) from None
    if not figure.is_finite() or figure.is_signed():
        raise wrong_value(place, "a finite amount of 0 or more", value)
    if abs(cast(int, figure.as_tuple().exponent)) > _MAX_DIGITS or figure.adjusted() > _MAX_DIGITS:
        limit = f"at most {_MAX_DIGITS} digits before and after the point"
        raise ConfigError(f"{place} must have {limit}, not {shown(value)}")
    return figure


def _whole(value: object, place: str) -> int:
    if type(value) is not int or value < 0:
        raise wrong_value(place, "a whole number of tokens", value)
    return value


def day(value: object, place: str) -> date:
    """Read a date such as "2026-12-01"; raise ConfigError."""
    try:
        return value if type(value) is date else date.fromisoformat(cast(str, value))
    except (TypeError, ValueError):
        raise wrong_value(place, 'a date such as "2026-12-01"', value) from None


def _changes(
    value: object, key: str, read: Callable[[object, str], Any], place: str
) -> list[tuple[Any, Tariff]]:
    if not isinstance(value, list):
        raise wrong_value(place, "a list", value)
    changes = []
    for number, item in enumerate(value):
        at = f"{place}[{number}]"
        check_keys(item, _OVERLAY | {key}, at)
        changes.append((read(item.get(key), f"{at}.{key}"), _rates(item, at)))
    return sorted(changes, key=itemgetter(0))


def _peak(value: Mapping[str, Any], place: str) -> Peak | None:
    check_keys(value, _OVERLAY | {"utc", "days"}, place)
    if not value:  # it removes the hours of a table below
        return None
    hours, days = value.get("utc"), value.get("days", "mon-sun")
    if not isinstance(hours, list):
        raise wrong_value(f"{place}.utc", 'a list of hours such as ["01:00-04:00"]', hours)
    if not isinstance(days, str) or days not in _WEEKDAYS:
        raise wrong_value(f"{place}.days", f"one of {', '.join(_WEEKDAYS)}", days)
    return Peak(
        tuple(_span(text, f"{place}.utc") for text in hours), _WEEKDAYS[days], _rates(value, place)
    )


def _span(text: object, place: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(text) if isinstance(text, str) else None
    hour, minute, end_hour, end_minute = map(int, match.groups()) if match else (0, 0, 0, 0)
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if not start < end <= 24 * 60:
        raise wrong_value(place, 'hours of one UTC day such as "01:00-04:00"', text)
    return start, end


def _services(value: Mapping[str, Any], place: str) -> tuple[Service, ...]:
    if not isinstance(value, Mapping):
        raise wrong_value(place, "a table of service tiers", value)
    found = []
    for name, offer in value.items():
        at = f"{place}.{name}"
        if isinstance(offer, Mapping):
            check_keys(offer, _OVERLAY, at)
            found.append(Service(name.lower(), _rates(offer, at)))
        else:
            found.append(Service(name.lower(), factor=_figure(offer, at)))
    return tuple(found)


def _figures(value: object, place: str) -> tuple[tuple[str, Decimal], ...]:
    if not isinstance(value, Mapping):
        raise wrong_value(place, "a table of figures", value)
    return tuple((str(name).lower(), _figure(each, place)) for name, each in value.items())


def _media(value: object, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(each in MEDIA for each in value):
        raise wrong_value(place, f"a list of {', '.join(MEDIA)}", value)
    return tuple(value)


_READ: Mapping[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(Tariff._fields, _figure),
    "tiers": lambda value, place: tuple(starmap(Tier, _changes(value, "over", _whole, place))),
    "next": lambda value, place: tuple(starmap(Scheduled, _changes(value, "from", day, place))),
    "peak": _peak,
    "service": _services,
    "since": day,
    "request_per_1k_max": _figure,
    "fees": _figures,
    "geo": _figures,
    "as_text": _media,
    "max_input": _whole,
    "max_output": _whole,
    "max_image": _whole,
    "max_added": _whole,
}
TERMS = {*_READ, "note"}  # keys of a user's own price
ENTRY = TERMS | {"id", "aliases", "src", "as_of"}  # of an entry of a table


def check_keys(entry: object, known: Collection[str], place: str) -> None:
    """Raise ConfigError if *entry* is not a table, or has an unknown key."""
    if not isinstance(entry, Mapping):
        raise wrong_value(place, 'a table such as { input = "0.5", output = "2" }', entry)
    errors = []
    for key in map(str, entry):
        if key not in known:
            form = """; write { input = "0.5", output = "2" }, in USD per million tokens"""
            form = "; a name with a dot needs quotes" if key[:1].isdigit() else form
            hint = close_to(key, known) or form
            errors.append(f"{place} has an unknown key {shown(key)}{hint}")
    if errors:
        raise ConfigError(*errors)
