"""Prices: the shipped table, the price of a model id, and the exact cost of a call in pico-USD.

`table` loads prices, `price` and `tariff` are a model's, `token_estimate` counts what no vendor
reported; `public`, `compare` and `update` read public price tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple

from ..types import Usage
from .price import EXACT, PICO, Price, cost, decimal, usd, usd_float
from .table import MAX_ID, Entry, Layer, PriceTable, shipped

__all__ = [
    "MAX_ID",
    "PICO",
    "Charge",
    "Entry",
    "Layer",
    "Price",
    "PriceTable",
    "charge",
    "cost",
    "decimal",
    "entries",
    "find",
    "shipped",
    "table_date",
    "usd",
    "usd_float",
]


class Charge(NamedTuple):
    """The cost of a call in pico-USD, and its source."""

    pico: int | None
    source: str  # vendor, served, requested, override or unpriced


def charge(
    usage: Usage,
    *,
    provider: str,
    requested: str,
    served: str | None = None,
    overrides: Mapping[str, Price] | None = None,
    at: datetime | None = None,
    service_tier: str | None = None,
    requests: int = 1,
    table: PriceTable | None = None,
) -> Charge:
    """Return the cost that the vendor reports, else that of the served or of the requested model.

    *overrides* are a user's own prices by model id. Each replaces the table's price of its id, and
    also applies to dated or prefixed forms of the id unless the table lists them. The *table* is
    the shipped one by default.
    """
    reported = usage.cost_usd
    if reported is not None and math.isfinite(reported) and reported >= 0:
        pico = EXACT.to_integral_value(EXACT.scaleb(Decimal(repr(reported)), 12))
        return Charge(int(pico), "vendor")
    prices = table or shipped()
    for model, source in ((served, "served"), (requested, "requested")):
        own = prices.override(provider, model, overrides) if model and overrides else None
        price = own or (prices.find(provider, model) if model else None)
        if price is not None:
            costs = [
                cost(each, price, at=at, service_tier=service_tier, requests=requests)
                for each in usage.parts or (usage,)
            ]
            for name, more in usage.others:
                other = prices.override(provider, name, overrides or {})
                costs.append(cost(more, other or prices.find(provider, name), at=at))
            amount = None if None in costs else sum(filter(None, costs))
            return Charge(amount, "unpriced" if amount is None else "override" if own else source)
    return Charge(None, "unpriced")


def find(provider: str, model: str) -> Price | None:
    """Return the shipped price of a model id, or None; see `PriceTable.find`."""
    return shipped().find(provider, model)


def entries() -> Iterator[Price]:
    """Yield the shipped prices, ordered by provider and id."""
    return shipped().entries()


def table_date() -> date:
    return shipped().day
