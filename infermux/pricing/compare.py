"""The shipped prices beside a newer public table, litellm's or genai-prices': which figures differ.

Compared is what a request would cost here and there: an id leads to a price as it does for a call,
and beyond the size at which a tier begins the tier counts. A figure that their table leaves out
says nothing; one that ours leaves out is what it falls back to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

from ..errors import ConfigError, shown
from . import Price, Service, Tariff, Tier, entries, find, table_date

MAX_AGE = 90  # days after which prices are told to be old
_MILLION = 10**6
_LITELLM_VENDORS = {
    "openai": "openai",
    "text-completion-openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "mistral": "mistral",
    "groq": "groq",
    "cohere": "cohere",
    "cohere_chat": "cohere",
    "deepseek": "deepseek",
    "xai": "xai",
    "together_ai": "together",
    "fireworks_ai": "fireworks",
    "perplexity": "perplexity",
    "azure": "azure",
    "bedrock": "bedrock",
    "bedrock_converse": "bedrock",
    "openrouter": "openrouter",
}
_GENAI_VENDORS = {
    name: name
    for name in (
        "openai",
        "anthropic",
        "google",
        "mistral",
        "groq",
        "cohere",
        "deepseek",
        "together",
        "fireworks",
        "perplexity",
        "azure",
        "openrouter",
    )
} | {"x-ai": "xai", "aws": "bedrock"}
_LITELLM = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
}
_GENAI = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
}
_LITELLM_TIER = re.compile(r"(.+)_above_(\d+)k_tokens", re.ASCII)
_MODES = ("chat", "completion", "responses", "embedding")
_STANDARD = Service("")
_Tiers = dict[
    int, dict[str, Decimal]
]  # figures by the size above which they hold; those of 0 always do


class Difference(NamedTuple):
    """A figure that is another one there, in USD per million tokens."""

    model: str
    figure: str
    ours: Decimal | None
    theirs: Decimal


class Check(NamedTuple):
    """What came of a comparison."""

    source: str  # litellm or genai-prices
    compared: int
    differences: list[Difference]
    unknown: list[str]  # models of our vendors that only their table has


class _Foreign(NamedTuple):
    vendor: str
    id: str
    tiers: _Tiers


def stale(now: float) -> str | None:
    """Return a warning where the shipped prices are old, at *now* in seconds since 1970."""
    age = (datetime.fromtimestamp(now, UTC).date() - table_date()).days
    if age <= MAX_AGE:
        return None
    return (
        f"the shipped prices are those of {table_date()}, {age} days ago: update infermux, or compare them with a newer table: "
        "infermux prices --check FILE"
    )


def check(data: bytes, today: date) -> Check:
    """Return what differs from a public table; raise ConfigError for what is none."""
    source, listed = _read(data, today)
    compared, unknown = 0, []
    seen: dict[tuple[object, ...], Difference] = {}
    for foreign in listed:
        price = find(foreign.vendor, foreign.id)
        if price is None:
            unknown.append(f"{foreign.vendor}/{foreign.id}")
            continue
        compared += 1
        for difference in _differences(price, foreign, today):
            seen.setdefault(
                (price.provider, price.id, *difference[1:]), difference
            )  # once for all ids of one price
    return Check(source, compared, list(seen.values()), sorted(set(unknown)))


def known() -> Iterator[str]:
    """Yield the names of the shipped prices, for a hint."""
    for price in entries():
        yield from (price.id, *price.aliases)


def _differences(price: Price, foreign: _Foreign, today: date) -> Iterator[Difference]:
    """Yield the figures that differ, at each size where either side changes its price."""
    moment = datetime(today.year, today.month, today.day, tzinfo=UTC)
    theirs = Price(
        foreign.vendor,
        foreign.id,
        Tariff(**foreign.tiers[0]),
        tiers=tuple(
            Tier(over, Tariff(**rates)) for over, rates in sorted(foreign.tiers.items()) if over
        ),
    )
    # to the nearest thousand, for whether the size itself belongs to a tier is told in another way
    # by each table
    sizes = sorted({0, *(round(tier.over, -3) for tier in (*price.tiers, *theirs.tiers))})
    for size in sizes:
        here, there = (
            side.rates_for(size + 1 if size else 0, at=moment, service=_STANDARD)
            for side in (replace(price, peak=None), theirs)
        )
        for name in _GENAI.values():
            ours, other = getattr(here, name), getattr(there, name)
            if (
                other is not None
                and ours != other
                and not (ours is None and other in (0, _instead(here, name)))
            ):
                yield Difference(
                    f"{foreign.vendor}/{foreign.id}",
                    name + (f" over {size}" if size else ""),
                    ours,
                    other,
                )


def _instead(rates: Tariff, name: str) -> Decimal | None:
    """Return what a figure that is not listed falls back to."""
    if name == "output":
        return None
    return (
        rates.cache_write
        if name == "cache_write_1h" and rates.cache_write is not None
        else rates.input
    )


def _read(data: bytes, today: date) -> tuple[str, list[_Foreign]]:
    try:
        table = json.loads(data, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ConfigError("it is not JSON") from None
    try:
        if isinstance(table, dict) and any(
            isinstance(entry, dict) and "litellm_provider" in entry for entry in table.values()
        ):
            return "litellm", [
                found for id, entry in table.items() for found in _litellm(id, entry)
            ]
        providers = table.get("providers") if isinstance(table, dict) else table
        if isinstance(providers, list) and any(
            isinstance(each, dict) and "models" in each for each in providers
        ):
            return "genai-prices", [
                found for provider in providers for found in _genai(provider, today)
            ]
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
        raise ConfigError(
            "it has the shape of a price table, but not all of it can be read"
        ) from None
    raise ConfigError("it is neither litellm's table of model prices nor that of genai-prices")


def _litellm(id: str, entry: Mapping[str, Any]) -> Iterator[_Foreign]:
    provider = entry.get("litellm_provider", "")
    vendor = _LITELLM_VENDORS.get(provider)
    if (
        vendor is None
        or "input_cost_per_token" not in entry
        or entry.get("mode", "chat") not in _MODES
    ):
        return
    tiers: _Tiers = {0: {}}
    for key, value in entry.items():
        match = _LITELLM_TIER.fullmatch(key)
        name = _LITELLM.get(match[1] if match else key)
        if name and value is not None:
            tiers.setdefault(int(match[2]) * 1000 if match else 0, {})[name] = _figure(
                value, _MILLION
            )
    yield _Foreign(vendor, id.removeprefix(f"{provider}/"), tiers)


def _genai(provider: Mapping[str, Any], today: date) -> Iterator[_Foreign]:
    vendor = _GENAI_VENDORS.get(provider["id"])
    for model in provider["models"] if vendor else ():
        prices = model["prices"]
        if isinstance(
            prices, list
        ):  # the last one that has begun counts; those of certain hours are no base
            begun = [each["prices"] for each in prices if _has_begun(each.get("constraint"), today)]
            prices = (begun or [prices[0]["prices"]])[-1]
        tiers: _Tiers = {0: {}}
        for key, name in _GENAI.items():
            value = prices.get(key)
            if value is not None:
                tiers[0][name] = _figure(value["base"] if isinstance(value, dict) else value)
                for tier in value["tiers"] if isinstance(value, dict) else ():
                    tiers.setdefault(int(tier["start"]), {})[name] = _figure(tier["price"])
        if "input" in tiers[0]:
            yield _Foreign(vendor or "", model["id"], tiers)


def _has_begun(constraint: Mapping[str, Any] | None, today: date) -> bool:
    return not constraint or (
        "start_date" in constraint and date.fromisoformat(constraint["start_date"]) <= today
    )


def _figure(value: object, times: int = 1) -> Decimal:
    """Return a figure without the noise that binary fractions leave in a table."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise TypeError(f"{shown(value)} is no price")
    return round(Decimal(value) * times, 12).normalize()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
