"""Compares the ledger with a vendor's exported bill, by day and model.

It reads exports of costs or usage from OpenAI and Anthropic, and any CSV table of date, model and
dollars. An export of usage has only tokens; they are priced by the shipped table.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from ..errors import RequestError, shown
from ..pricing import PICO, PriceTable, cost, shipped
from ..protocol import must_be
from ..types import Usage
from . import Total

Key = tuple[str, str]  # a UTC day, and a model
# accepted names of columns, the preferred first: of days, models, dollars, currencies
_NAMES = (
    "usage_date_utc usage_date date day start_time_iso start_time timestamp starting_at",
    "model model_version line_item model_id snapshot_id name",
    "cost_usd usd amount_usd amount_value cost_in_major total_cost_usd total_cost cost amount",
    "amount_currency currency",
)
# columns of tokens: those that add up to the input, cache reads, cache writes, the output
_OPENAI = (("input_tokens",), ("input_cached_tokens",), (), "output_tokens")
_ANTHROPIC_INPUT = (
    "usage_input_tokens_no_cache",
    "usage_input_tokens_cache_read",
    "usage_input_tokens_cache_write_5m",
    "usage_input_tokens_cache_write_1h",
    "usage_input_tokens_cache_write",
)
_ANTHROPIC = (_ANTHROPIC_INPUT, _ANTHROPIC_INPUT[1:2], _ANTHROPIC_INPUT[2:], "usage_output_tokens")
_AMOUNT = re.compile(
    r"-?\$?(\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(\.\d{1,40})?([eE]-\d{1,2})?", re.ASCII
)
_DATE = re.compile(r"-(?:\d{4}-\d\d-\d\d|\d{8})\Z", re.ASCII)
_PREFIX = re.compile(r"\A[a-z ]+ \| ")  # of a line item such as "priority | gpt-…"


@dataclass
class Bill:
    """The costs in a vendor's export; `unread` has a message for each line that was not read."""

    vendor: str = ""  # "openai" or "anthropic", if the columns show it
    usd: dict[Key, Fraction | None] = field(default_factory=dict)  # None: tokens without a price
    unread: list[str] = field(default_factory=list)
    priced: bool = True  # the export itself has dollars
    prices: PriceTable = field(default_factory=shipped)  # for an export without dollars

    @property
    def has_models(self) -> bool:
        """Whether any line names a model."""
        return any(model for _, model in self.usd)

    @property
    def days(self) -> tuple[date, date]:
        """The first and the last day."""
        found = sorted(day for day, _ in self.usd)
        return date.fromisoformat(found[0]), date.fromisoformat(found[-1])


class Compared(NamedTuple):
    """The costs of a day and model on both sides, in pico-USD; None: absent or unpriced."""

    day: str
    model: str
    ours: int | None
    theirs: int | None
    agrees: bool
    note: str = ""

    @property
    def difference(self) -> int:
        """The ledger's cost minus the vendor's, in pico-USD; None counts as 0."""
        return (self.ours or 0) - (self.theirs or 0)


class Tolerance(NamedTuple):
    """The accepted difference: a percentage of the vendor's cost, or *pico* if that is more."""

    percent: Fraction = Fraction(1)
    pico: int = PICO // 100

    @classmethod
    def of(cls, texts: Iterable[str]) -> Tolerance:
        """Parse "1%" and "0.05" (USD); without texts, 1 % or a cent. Raise RequestError."""
        found = {"%": Fraction(0), "": Fraction(0)} if (texts := list(texts)) else {}
        for text in texts:
            number = text.removesuffix("%").strip()
            if not re.fullmatch(r"\d{1,9}(\.\d{1,12})?", number, re.ASCII):
                raise must_be("tolerance", f'such as "1%" or "0.05", not {shown(text)}')
            found["%" if text.endswith("%") else ""] = Fraction(number)
        return cls(found["%"], round(found[""] * PICO)) if found else cls()

    def covers(self, ours: int, theirs: int) -> bool:
        """Return whether two costs in pico-USD differ by no more than the tolerance."""
        return abs(ours - theirs) <= max(Fraction(self.pico), self.percent * abs(theirs) / 100)


def read(data: bytes, prices: PriceTable | None = None) -> Bill:
    """Return the costs in a CSV export; raise RequestError if it cannot be understood.

    *prices*, by default the shipped ones, are for an export that has tokens alone.
    """
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = data.decode(encoding, "replace").replace("\0", "\ufffd")
    first = text.split("\n", 1)[0]
    rows = csv.reader(text.splitlines(keepends=True), delimiter=max(",;\t", key=first.count))
    try:
        head = [
            re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_") for name in next(rows, [])
        ]
        columns = _Columns.of(head)
        bill = Bill(columns.vendor, priced=bool(columns.usd), prices=prices or shipped())
        for row in rows:
            _add(bill, columns, dict(zip(head, row, strict=False)), rows.line_num)
    except csv.Error as error:
        raise RequestError(f"line {rows.line_num} is not CSV: {error}", param="reconcile") from None
    return bill


def compare(bill: Bill, ours: Iterable[Total], tolerance: Tolerance) -> list[Compared]:
    """Compare each day and model of either side; *ours* are totals by day and served model."""
    mine: dict[Key, tuple[int, int]] = {}
    for total in ours:
        if total.cost or total.unpriced:  # free calls are on no bill
            key = (total.key[0], model_key(total.key[1]) if bill.has_models else "")
            cost, unpriced = mine.get(key, (0, 0))
            mine[key] = cost + total.cost, unpriced + total.unpriced
    return [
        _compared(key, mine.get(key), bill.usd, tolerance) for key in sorted({*mine, *bill.usd})
    ]


def summed(rows: Sequence[Compared], tolerance: Tolerance) -> Compared:
    """Return the comparison of the sums over all days and models."""
    ours, theirs = sum(row.ours or 0 for row in rows), sum(row.theirs or 0 for row in rows)
    return Compared("TOTAL", "", ours, theirs, tolerance.covers(ours, theirs))


def model_key(name: str) -> str:
    """Return the same key for all spellings of a model's name.

    Example: "Claude Haiku 4.5" and "claude-haiku-4-5-20251001".
    """
    key = re.sub(r"\s+", "-", name.strip().lower()).removeprefix("models/")
    key = _DATE.sub("", key)
    return key.replace(".", "-") if key.startswith("claude") else key


class _Columns(NamedTuple):
    vendor: str
    day: str
    model: str
    usd: str  # empty: the export has only tokens
    currency: str

    @classmethod
    def of(cls, head: Sequence[str]) -> _Columns:
        day, model, usd, currency = (
            next((name for name in names.split() if name in head), "") for names in _NAMES
        )
        vendor = ""
        if day == "usage_date_utc":
            vendor = "anthropic"
        elif {"cost_in_major", "num_model_requests"} & {*head} or (
            {"start_time", "amount_value"} <= {*head}
        ):
            vendor = "openai"
        if not day or not (usd or (vendor and model and {_OPENAI[3], _ANTHROPIC[3]} & {*head})):
            raise RequestError(
                f"the columns {shown(', '.join(head))} are not those of a known bill; use a table "
                "of date, model and usd, or an export from OpenAI or Anthropic",
                param="reconcile",
            )
        return cls(vendor, day, model, usd, currency)


def _add(bill: Bill, columns: _Columns, row: Mapping[str, str], number: int) -> None:
    if not any(value.strip() for value in row.values()):
        return
    if columns.usd and not row.get(columns.usd, "").strip():
        if columns.model and row.get(columns.model, "").strip():
            bill.unread.append(f"line {number}: the amount is missing")
        return  # a day without any cost
    try:
        key = (_day(row.get(columns.day, "").strip()), _model(columns, row.get(columns.model, "")))
        amount = _amount(row, columns) if columns.usd else _priced(bill, key, row)
    except ValueError as error:
        bill.unread.append(f"line {number}: {error}")
        return
    before = bill.usd.get(key, Fraction(0))
    bill.usd[key] = None if amount is None or before is None else before + amount


def _day(text: str) -> str:
    try:
        unix = re.fullmatch(r"\d{9,11}", text, re.ASCII)
        found = datetime.fromtimestamp(int(text), UTC) if unix else datetime.fromisoformat(text)
        found = found.astimezone(UTC) if found.tzinfo else found
    except (ValueError, OverflowError):
        found = datetime.min
    if not 1970 <= found.year < 2200:
        raise ValueError(f"the date must be such as 2026-11-01, not {shown(text)}")
    return f"{found:%Y-%m-%d}"


def _model(columns: _Columns, text: str) -> str:
    """Return the model that *text* names; a line item also has the kind of tokens: drop that."""
    if columns.model == "line_item":
        head, comma, _ = _PREFIX.sub("", text).partition(",")
        text = head.split(" ", 1)[0] if comma else head
    return model_key(text)


def _amount(row: Mapping[str, str], columns: _Columns) -> Fraction:
    text = row[columns.usd].strip()
    currency = row.get(columns.currency, "").strip().lower()
    if currency not in ("", "usd"):
        raise ValueError(f"the currency must be usd, not {shown(currency)}")
    if not _AMOUNT.fullmatch(text):
        raise ValueError(f"the amount is not a number: {shown(text)}")
    return Fraction(Decimal(text.replace(",", "").replace("$", "")))


def _priced(bill: Bill, key: Key, row: Mapping[str, str]) -> Fraction | None:
    """Return the cost of a line's tokens in USD, or None if the model has no price.

    A line sums up many requests, so no size tier applies, unless Anthropic's context_window says
    that all of them were long.
    """
    whole, cached, written, out = _ANTHROPIC if bill.vendor == "anthropic" else _OPENAI
    usage = Usage(
        _count(row, *whole),
        _count(row, out),
        cached_input_tokens=_count(row, *cached),
        cache_write_tokens=_count(row, *written),
        cache_write_1h_tokens=_count(row, *[name for name in written if "1h" in name]),
    )
    price = bill.prices.find(bill.vendor, key[1])
    if price is not None and not row.get("context_window", "").strip().startswith(">"):
        price = replace(price, tiers=())
    at = datetime.fromisoformat(key[0]).replace(hour=12, tzinfo=UTC)
    pico = cost(usage, price, at=at, service_tier=row.get("service_tier") or None)
    return None if pico is None else Fraction(pico, PICO)


def _count(row: Mapping[str, str], *names: str) -> int:
    total = 0
    for name in names:
        text = row.get(name, "").strip().replace(",", "") or "0"
        if not re.fullmatch(r"\d{1,15}", text, re.ASCII):
            raise ValueError(f"the number of tokens is not a number: {shown(text)}")
        total += int(text)
    return total


def _compared(
    key: Key,
    mine: tuple[int, int] | None,
    bill: Mapping[Key, Fraction | None],
    tolerance: Tolerance,
) -> Compared:
    (ours, unpriced), exact = mine or (None, 0), bill.get(key)
    theirs = None if exact is None else round(exact * PICO)
    notes = [f"{unpriced} unpriced"] if unpriced else []
    if key not in bill:
        notes.append("only ours")
    elif exact is None:
        notes.append("no price for the vendor's tokens")
    elif ours is None:
        notes.append("only theirs")
    unknown = unpriced or (key in bill and exact is None)
    agrees = not unknown and tolerance.covers(ours or 0, theirs or 0)
    return Compared(*key, ours, theirs, agrees, ", ".join(notes))
