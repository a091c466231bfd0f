"""Compares the shipped prices with a newer public table, litellm's or genai-prices'.

It compares the rates at size 0 and at each size where a tier begins; ids are looked up as for a
call. A figure that their table omits is skipped. For one that ours omits, our fallback is compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

from ..errors import ConfigError, shown
from . import Price, entries, find, table_date
from .tariff import STANDARD, Tariff, Tier

MAX_AGE_DAYS = 90  # after which a warning says that the prices are old
_MILLION = 10**6
_VENDORS = (
    "openai anthropic google mistral groq cohere deepseek xai together fireworks perplexity azure "
    "bedrock openrouter"
)
_SAME = {name: name for name in _VENDORS.split()}
_GENAI_VENDORS = _SAME | {"x-ai": "xai", "aws": "bedrock"}
_LITELLM_VENDORS = _SAME | {
    "text-completion-openai": "openai",
    "gemini": "google",
    "cohere_chat": "cohere",
    "together_ai": "together",
    "fireworks_ai": "fireworks",
    "bedrock_converse": "bedrock",
}
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
_Tiers = dict[int, dict[str, Decimal]]  # prices by the size above which they apply


class Difference(NamedTuple):
    """A price that differs, in USD per million tokens."""

    model: str
    figure: str
    ours: Decimal | None
    theirs: Decimal


class Check(NamedTuple):
    """The result of a comparison."""

    source: str  # litellm or genai-prices
    compared: int
    differences: list[Difference]
    unknown: list[str]  # models of our vendors that only their table has


def stale(now: float) -> str | None:
    """Return a warning if the shipped prices are old at *now* (seconds since 1970), else None."""
    age = (datetime.fromtimestamp(now, UTC).date() - table_date()).days
    if age <= MAX_AGE_DAYS:
        return None
    return (
        f"the shipped prices are from {table_date()}, {age} days ago: update infermux, or compare "
        "them with a newer table: infermux prices --check FILE"
    )


def check(data: bytes, today: date) -> Check:
    """Compare the shipped prices with the table in *data*; raise ConfigError if it is invalid."""
    source, listed = _read(data, today)
    compared, unknown = 0, []
    seen: dict[tuple[object, ...], Difference] = {}
    for theirs in listed:
        price = find(theirs.provider, theirs.id)
        if price is None:
            unknown.append(f"{theirs.provider}/{theirs.id}")
            continue
        compared += 1
        for difference in _differences(price, theirs, today):
            # once for all ids of one price
            seen.setdefault((price.provider, price.id, *difference[1:]), difference)
    return Check(source, compared, list(seen.values()), sorted(set(unknown)))


def known() -> Iterator[str]:
    """Yield the ids and aliases of the shipped prices."""
    for price in entries():
        yield from (price.id, *price.aliases)


def _differences(price: Price, theirs: Price, today: date) -> Iterator[Difference]:
    """Yield the differences at each size where either price changes."""
    moment = datetime(today.year, today.month, today.day, tzinfo=UTC)
    # to the nearest thousand: the tables differ in whether the size itself belongs to a tier
    sizes = sorted({0, *(round(tier.over, -3) for tier in (*price.tiers, *theirs.tiers))})
    for size in sizes:
        here, there = (
            side.rates_for(size + 1 if size else 0, at=moment, service=STANDARD)
            for side in (replace(price, peak=None), theirs)
        )
        for name in _GENAI.values():
            ours, other = getattr(here, name), getattr(there, name)
            if other is None or ours == other:
                continue
            if ours is not None or other not in (0, _fallback(here, name)):
                figure = name + (f" over {size}" if size else "")
                yield Difference(f"{theirs.provider}/{theirs.id}", figure, ours, other)


def _fallback(rates: Tariff, name: str) -> Decimal | None:
    if name == "output":
        return None
    hour = name == "cache_write_1h" and rates.cache_write is not None
    return rates.cache_write if hour else rates.input


def _read(data: bytes, today: date) -> tuple[str, list[Price]]:
    try:
        table = json.loads(data, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ConfigError("the file is not JSON") from None
    try:
        if isinstance(table, dict) and _any_has("litellm_provider", table.values()):
            return "litellm", [each for id, entry in table.items() for each in _litellm(id, entry)]
        providers = table.get("providers") if isinstance(table, dict) else table
        if isinstance(providers, list) and _any_has("models", providers):
            return "genai-prices", [each for one in providers for each in _genai(one, today)]
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
        raise ConfigError("parts of the price table cannot be read") from None
    raise ConfigError("the file is neither litellm's price table nor that of genai-prices")


def _any_has(key: str, entries: Iterable[object]) -> bool:
    return any(isinstance(entry, dict) and key in entry for entry in entries)


def _price(vendor: str, id: str, tiers: _Tiers) -> Price:
    base, *larger = [Tier(over, Tariff(**found)) for over, found in sorted(tiers.items())]
    return Price(vendor, id, base.rates, tiers=tuple(larger))


def _litellm(id: str, entry: Mapping[str, Any]) -> Iterator[Price]:
    provider = entry.get("litellm_provider", "")
    vendor, mode = _LITELLM_VENDORS.get(provider), entry.get("mode", "chat")
    if vendor is None or mode not in _MODES or "input_cost_per_token" not in entry:
        return
    tiers: _Tiers = {0: {}}
    for key, value in entry.items():
        match = _LITELLM_TIER.fullmatch(key)
        name = _LITELLM.get(match[1] if match else key)
        if name and value is not None:
            over = int(match[2]) * 1000 if match else 0
            tiers.setdefault(over, {})[name] = _figure(value, _MILLION)
    yield _price(vendor, id.removeprefix(f"{provider}/"), tiers)


def _genai(provider: Mapping[str, Any], today: date) -> Iterator[Price]:
    vendor = _GENAI_VENDORS.get(provider["id"])
    for model in provider["models"] if vendor else ():
        prices = model["prices"]
        if isinstance(prices, list):  # the last that has begun, without those for certain hours
            begun = [each["prices"] for each in prices if _has_begun(each.get("constraint"), today)]
            prices = (begun or [prices[0]["prices"]])[-1]
        tiers: _Tiers = {0: {}}
        for key, name in _GENAI.items():
            value = prices.get(key)
            if isinstance(value, dict):
                for tier in value["tiers"]:
                    tiers.setdefault(int(tier["start"]), {})[name] = _figure(tier["price"])
                value = value["base"]
            if value is not None:
                tiers[0][name] = _figure(value)
        if "input" in tiers[0]:
            yield _price(vendor or "", model["id"], tiers)


def _has_begun(constraint: Mapping[str, Any] | None, today: date) -> bool:
    return not constraint or (
        "start_date" in constraint and date.fromisoformat(constraint["start_date"]) <= today
    )


def _figure(value: object, times: int = 1) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise TypeError(f"{shown(value)} is not a price")
    return round(Decimal(value) * times, 12).normalize()  # rounds off the error of binary fractions


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
