"""Lines that have only tokens: priced by the table of prices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from ...errors import shown
from ...pricing import PICO, PriceTable, cost
from ...types import Usage
from . import Charge
from .cells import Cells
from .models import model_key

_MODEL = ("model", "model_version", "model_id", "snapshot_id")
_UNNAMED = "it is empty, but the line has usage: group it by model"
_HALF = Fraction(1, 2)  # of the price: a batch, at OpenAI and Anthropic
_SEARCH = Fraction(1, 100)  # USD, for each of Anthropic's web searches
_GEO = {"us": Fraction(11, 10)}  # factors of Anthropic's inference_geo
_ANYWHERE = ("", "global", "not_available", "none", "null", "not_applicable")
_WRITE = "usage_input_tokens_cache_write"
ANTHROPIC_OUTPUT = ("usage_output_tokens", "output_tokens")
_OPENAI_OTHER = (  # tokens with prices of their own, and their names in messages
    ("audio", ("input_audio_tokens", "output_audio_tokens", "input_cached_audio_tokens")),
    ("image", ("input_image_tokens", "output_image_tokens", "input_cached_image_tokens")),
)


def openai(cells: Cells, day: str, offset: timedelta) -> Iterator[Charge]:
    """Yield the charge of a line of OpenAI's usage; an empty line is a day without usage.

    A line sums up many requests, so no size tier applies.
    """
    name = cells.text(*_MODEL)
    counted = Usage(
        cells.count("input_tokens"),
        cells.count("output_tokens"),
        cached_input_tokens=cells.count("input_cached_tokens"),
        cache_write_tokens=cells.count("input_cache_write_tokens"),
    )
    others = [kind for kind, names in _OPENAI_OTHER if sum(map(cells.count, names))]
    tier = "batch" if cells.flag("batch") else cells.text("service_tier").lower()
    if not name:
        if counted.input_tokens or counted.output_tokens or cells.count("num_model_requests"):
            raise cells.bad(cells.column(*_MODEL), _UNNAMED)
        yield Charge(day, empty=True, offset=offset)
        return
    key = model_key(name)
    if others:
        yield Charge(day, key, None, unknown=f"{others[0]} tokens", offset=offset)
        return
    usd = _priced(cells.prices, "openai", name, counted, day, tier)
    yield Charge(day, key, usd, "batches" * (tier == "batch"), offset=offset)


def anthropic(cells: Cells, day: str) -> Iterator[Charge]:
    """Yield the charges of a line of Anthropic's usage: its tokens, and its web searches.

    Its context window says whether all of its requests were long.
    """
    name = cells.text(*_MODEL)
    cached = cells.count("usage_input_tokens_cache_read", "cache_read_input_tokens")
    five, hour = (
        cells.count(f"{_WRITE}_{time}", f"cache_creation_ephemeral_{time}_input_tokens")
        for time in ("5m", "1h")
    )
    written = hour + five + cells.count(_WRITE)  # in older exports
    fresh = cells.count("usage_input_tokens_no_cache", "uncached_input_tokens")
    out = cells.count(*ANTHROPIC_OUTPUT)
    counted = Usage(fresh + cached + written, out, cached, written, hour)
    searches = cells.count("web_search_count", "server_tool_use_web_search_requests")
    if not name:
        if fresh + cached + written + out + searches:
            raise cells.bad(cells.column(*_MODEL), _UNNAMED)
        yield Charge(day, empty=True)
        return
    key, tier = model_key(name), cells.text("usage_type", "service_tier").lower()
    geo, speed = cells.text("inference_geo").lower(), cells.text("speed").lower()
    if tier != "batch":
        tier = speed.removesuffix("standard") or tier
    long = cells.text("context_window")[:1] in (">", "2")
    usd = _priced(cells.prices, "anthropic", name, counted, day, tier, long=long)
    factor = Fraction(1) if geo in _ANYWHERE else _GEO.get(geo)
    if usd and factor is None:
        yield Charge(day, key, None, unknown=f"inference_geo {shown(geo)}")
    else:
        yield Charge(day, key, usd and usd * (factor or 1), "batches" * (tier == "batch"))
    if searches:
        yield Charge(day, key, searches * _SEARCH, "web searches")


def _priced(
    prices: PriceTable,
    vendor: str,
    name: str,
    counted: Usage,
    day: str,
    tier: str,
    *,
    long: bool = False,
) -> Fraction | None:
    if not (counted.input_tokens or counted.output_tokens):
        return Fraction(0)
    price = prices.find(vendor, name.lower()) or prices.find(vendor, model_key(name))
    if price is None:
        return None
    is_half = tier == "batch" and tier not in {each.name for each in price.service}
    at = datetime.fromisoformat(day).replace(hour=12, tzinfo=UTC)
    charged = price if long or not price.tiers else replace(price, tiers=())
    pico = cost(counted, charged, at=at, service_tier="" if is_half else tier)
    return None if pico is None else Fraction(pico, PICO) * (_HALF if is_half else 1)
