"""A vendor's bill beside the ledger: what its exported costs or usage say of each day and model,
and where we differ.

Read are OpenAI's costs and usage exports, Anthropic's costs and usage exports, and any table of
date, model and dollars. An export of usage alone holds tokens: they are priced by the shipped
table, so that it still tells which calls one side misses.
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
from ..pricing import PICO, cost, find
from ..types import Usage
from . import Total

Key = tuple[str, str]  # a UTC day, and a model
_DAYS = (
    "usage_date_utc",
    "usage_date",
    "date",
    "day",
    "start_time_iso",
    "start_time",
    "timestamp",
    "starting_at",
)
_MODELS = ("model", "model_version", "line_item", "model_id", "snapshot_id", "name")
_DOLLARS = (
    "cost_usd",
    "usd",
    "amount_usd",
    "amount_value",
    "cost_in_major",
    "total_cost_usd",
    "total_cost",
    "cost",
    "amount",
)
_CURRENCIES = ("amount_currency", "currency")
# what OpenAI counts, and what Anthropic counts: the parts that make up the input, those read from a
# cache, those written to one
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
_PREFIX = re.compile(r"\A[a-z ]+ \| ")  # of a line item: "priority | gpt-…"


@dataclass
class Bill:
    """What a vendor's export says; `unread` names the lines that could not be read."""

    vendor: str = ""  # whose columns they are, if that is known
    usd: dict[Key, Fraction | None] = field(default_factory=dict)  # None: tokens that have no price
    unread: list[str] = field(default_factory=list)
    priced: bool = True  # the export has dollars of its own

    @property
    def has_models(self) -> bool:
        """Whether anything in it is told by model."""
        return any(model for _, model in self.usd)

    @property
    def days(self) -> tuple[date, date]:
        """The first day and the last."""
        found = sorted(day for day, _ in self.usd)
        return date.fromisoformat(found[0]), date.fromisoformat(found[-1])


class Compared(NamedTuple):
    """A day and a model on both sides, in pico-USD; None: not there, or without a price."""

    day: str
    model: str
    ours: int | None
    theirs: int | None
    agrees: bool
    note: str = ""

    @property
    def difference(self) -> int:
        """How much more we count than the vendor."""
        return (self.ours or 0) - (self.theirs or 0)


class Tolerance(NamedTuple):
    """A difference that is none: so many percent of the vendor's figure, or so many pico-USD."""

    percent: Fraction = Fraction(1)
    pico: int = PICO // 100

    @classmethod
    def of(cls, texts: Iterable[str]) -> Tolerance:
        """Return what "1%" and "0.05" say; what is not said is 0, but without a word it is 1 % or a
        cent.
        """
        found = {"%": Fraction(0), "": Fraction(0)} if (texts := list(texts)) else {}
        for text in texts:
            number = text.removesuffix("%").strip()
            if not re.fullmatch(r"\d{1,9}(\.\d{1,12})?", number, re.ASCII):
                raise RequestError(
                    f'tolerance must be such as "1%" or "0.05", not {shown(text)}',
                    param="tolerance",
                )
            found["%" if text.endswith("%") else ""] = Fraction(number)
        return cls(found["%"], round(found[""] * PICO)) if found else cls()

    def covers(self, ours: int, theirs: int) -> bool:
        """Whether both figures count as equal."""
        return abs(ours - theirs) <= max(Fraction(self.pico), self.percent * abs(theirs) / 100)


def read(data: bytes) -> Bill:
    """Return what an export says; raise RequestError where its columns say neither when nor how
    much.
    """
    text = data.decode(
        "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace"
    ).replace("\0", "\ufffd")
    first = text.split("\n", 1)[0]
    rows = csv.reader(text.splitlines(keepends=True), delimiter=max(",;\t", key=first.count))
    try:
        head = [
            re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_") for name in next(rows, [])
        ]
        columns = _Columns.of(head)
        bill = Bill(columns.vendor, priced=bool(columns.usd))
        for row in rows:
            _add(bill, columns, dict(zip(head, row, strict=False)), rows.line_num)
    except csv.Error as error:
        raise RequestError(f"line {rows.line_num} is not CSV: {error}", param="reconcile") from None
    return bill


def compare(bill: Bill, ours: Iterable[Total], tolerance: Tolerance) -> list[Compared]:
    """Return every day and model of either side; *ours* are totals by day and served model, in that
    order.
    """
    mine: dict[Key, int] = {}
    unpriced: dict[Key, int] = {}
    for total in ours:
        key = (total.key[0], model_key(total.key[1]) if bill.has_models else "")
        if total.cost or total.unpriced:  # what cost nothing is on no bill
            mine[key] = mine.get(key, 0) + total.cost
            unpriced[key] = unpriced.get(key, 0) + total.unpriced
    return [
        _compared(key, mine.get(key), unpriced.get(key, 0), bill.usd, tolerance)
        for key in sorted({*mine, *bill.usd})
    ]


def summed(rows: Sequence[Compared], tolerance: Tolerance) -> Compared:
    """Return the sum of all days and models."""
    ours, theirs = sum(row.ours or 0 for row in rows), sum(row.theirs or 0 for row in rows)
    return Compared("TOTAL", "", ours, theirs, tolerance.covers(ours, theirs))


def model_key(name: str) -> str:
    """Return the name under which both sides know a model: "Claude Haiku 4.5" and
    "claude-haiku-4-5-20251001" are one.
    """
    key = re.sub(r"\s+", "-", name.strip().lower()).removeprefix("models/")
    key = _DATE.sub("", key)
    return key.replace(".", "-") if key.startswith("claude") else key


class _Columns(NamedTuple):
    """Which column says what."""

    vendor: str
    day: str
    model: str
    usd: str  # empty: there are only tokens
    currency: str

    @classmethod
    def of(cls, head: Sequence[str]) -> _Columns:
        day, model, usd, currency = (
            next((name for name in names if name in head), "")
            for names in (_DAYS, _MODELS, _DOLLARS, _CURRENCIES)
        )
        vendor = ""
        if day == "usage_date_utc":
            vendor = "anthropic"
        elif {"cost_in_major", "num_model_requests"} & {*head} or {
            "start_time",
            "amount_value",
        } <= {*head}:
            vendor = "openai"
        if not day or not (usd or (vendor and model and {_OPENAI[3], _ANTHROPIC[3]} & {*head})):
            raise RequestError(
                f"its columns are not those of a bill that is known: {shown(', '.join(head))}; needed are date, model and "
                "usd, or an export of OpenAI's or Anthropic's",
                param="reconcile",
            )
        return cls(vendor, day, model, usd, currency)


def _add(bill: Bill, columns: _Columns, row: Mapping[str, str], number: int) -> None:
    """Add a line to the bill, or name it among the unread ones."""
    if not any(value.strip() for value in row.values()) or (
        columns.usd and not row.get(columns.usd, "").strip()
    ):
        if columns.model and row.get(columns.model, "").strip():
            bill.unread.append(f"line {number}: the amount is missing")
        return  # an empty line, or a day without any cost
    try:
        key = (_day(row.get(columns.day, "").strip()), _model(columns, row.get(columns.model, "")))
        amount = _amount(row, columns) if columns.usd else _priced(columns.vendor, key, row)
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
        raise ValueError(f"the date is not such as 2026-11-01: {shown(text)}")
    return f"{found:%Y-%m-%d}"


def _model(columns: _Columns, text: str) -> str:
    """Return the model; a line item also says which of its tokens are meant, and at times how fast
    or of what kind.
    """
    if columns.model == "line_item":
        head, comma, _ = _PREFIX.sub("", text).partition(",")
        text = head.split(" ", 1)[0] if comma else head
    return model_key(text)


def _amount(row: Mapping[str, str], columns: _Columns) -> Fraction:
    text, currency = (
        row[columns.usd].strip(),
        row.get(columns.currency, "").strip().lower() or "usd",
    )
    if currency != "usd":
        raise ValueError(f"the currency is not usd: {shown(currency)}")
    if not _AMOUNT.fullmatch(text):
        raise ValueError(f"the amount is no number: {shown(text)}")
    return Fraction(Decimal(text.replace(",", "").replace("$", "")))


def _priced(vendor: str, key: Key, row: Mapping[str, str]) -> Fraction | None:
    """Return what a line's tokens cost; as a sum over many requests they say nothing of the size of
    any, but Anthropic does.
    """
    whole, cached, written, out = _ANTHROPIC if vendor == "anthropic" else _OPENAI
    usage = Usage(
        _count(row, *whole),
        _count(row, out),
        cached_input_tokens=_count(row, *cached),
        cache_write_tokens=_count(row, *written),
        cache_write_1h_tokens=_count(row, *[name for name in written if "1h" in name]),
    )
    price = find(vendor, key[1])
    if price is not None and not row.get("context_window", "").strip().startswith(">"):
        price = replace(price, tiers=())
    at = datetime.fromisoformat(key[0]).replace(hour=12, tzinfo=UTC)
    pico = cost(usage, price, at=at, service_tier=row.get("service_tier") or None)
    return None if pico is None else Fraction(pico, PICO)


def _count(row: Mapping[str, str], *names: str) -> int:
    texts = [row.get(name, "").strip().replace(",", "") or "0" for name in names]
    wrong = next((text for text in texts if not re.fullmatch(r"\d{1,15}", text, re.ASCII)), None)
    if wrong is not None:
        raise ValueError(f"a number of tokens is no number: {shown(wrong)}")
    return sum(map(int, texts))


def _compared(
    key: Key,
    ours: int | None,
    unpriced: int,
    bill: Mapping[Key, Fraction | None],
    tolerance: Tolerance,
) -> Compared:
    exact = bill.get(key)
    theirs = None if exact is None else round(exact * PICO)
    notes = [f"{unpriced} unpriced"] if unpriced else []
    if key not in bill:
        notes.append("only ours")
    elif exact is None:
        notes.append("no price for the vendor's tokens")
    elif ours is None:
        notes.append("only theirs")
    agrees = (
        tolerance.covers(ours or 0, theirs or 0)
        and not unpriced
        and not (key in bill and exact is None)
    )
    return Compared(*key, ours, theirs, agrees, ", ".join(notes))
