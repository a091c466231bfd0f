"""Reads the cells of a line: days, amounts, counts. What cannot be read raises BadCell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from ...errors import shown
from ...pricing import PriceTable
from .table import Line, Table

MAX_AMOUNT = 10**15
_MAX_DIGITS = 16  # of a count, too many
_GROUPS = ",\u00a0\u202f\u2009 '\u2019"  # what separates thousands
_NUMBER = re.compile(
    r"(?P<minus>-?)\$?(?P<whole>\d{1,15}|[1-9]\d{0,2}(?:(?P<group>[" + _GROUPS + r"])\d{3})"
    r"(?:(?P=group)\d{3}){0,3})(?P<part>\.\d{1,40})?(?P<power>[eE][+-]?\d{1,2})?",
    re.ASCII,
)
_COMMA = re.compile(r"-?\$?[\d. \u00a0\u202f\u2009'\u2019]*,\d+", re.ASCII)
_UNIX = re.compile(r"(?:(\d{10})\d{3}|(\d{9,11}))(?:\.0+)?", re.ASCII)  # milliseconds or seconds
_YEAR_FIRST = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)(.*)", re.ASCII)
_TRUE = ("true", "1", "1.0", "yes", "batch")
_FALSE = ("", "false", "0", "0.0", "no", "null", "none", "default", "standard")


class BadCell(ValueError):
    """A cell that cannot be read; the message names its column."""


class Cells:
    """The cells of a line by the keys of columns; of several keys, the first that is not empty.

    The *prices* are for tokens without dollars; *asked* collects the keys that are looked at.
    """

    def __init__(self, table: Table, line: Line, prices: PriceTable, asked: set[str]) -> None:
        self.prices, self._asked = prices, asked
        self._columns: Mapping[str, str] = table.columns
        self._cells = line.cells
        self._commas = table.delimiter != ","  # then 1,234 may have a decimal comma

    def column(self, *keys: str) -> str:
        """Return the first of *keys* with a text, else the first that the table has, or ""."""
        self._asked.update(keys)
        present = [each for each in keys if each in self._columns]
        filled = (each for each in present if self._cells.get(each))
        return next(filled, present[0] if present else "")

    def text(self, *keys: str) -> str:
        """Return the cell's text; "" if there is none."""
        return self._cells.get(self.column(*keys), "")

    def bad(self, key: str, problem: str) -> BadCell:
        """Return an error that names the column."""
        return BadCell(f"column {shown(self._columns.get(key, key))}: {problem}")

    def day(self, *keys: str, local: bool = False) -> tuple[str, timedelta]:
        """Return a day and its offset from UTC: that of UTC, or *local* if it starts at midnight.

        A bill with days of another time zone has such times.
        """
        name = self.column(*keys)
        text = self._cells.get(name, "")
        if not text:
            raise self.bad(name or keys[0], "the date is missing")
        found = _time(text)
        if found is None:
            raise self.bad(name, f"the date must be such as 2026-11-01, not {shown(text)}")
        offset = found.utcoffset() or timedelta(0)
        local = local and found.time() == datetime.min.time() and not offset % timedelta(minutes=15)
        if found.tzinfo and not local:
            found, offset = found.astimezone(UTC), timedelta(0)
        return f"{found:%Y-%m-%d}", offset

    def amount(self, *keys: str) -> Fraction:
        name = self.column(*keys)
        if not self._cells.get(name):
            short = name not in self._cells
            raise self.bad(name, f"the amount is missing{': the line ends before it' * short}")
        return self._number(name, "amount")

    def count(self, *keys: str) -> int:
        """Return a count of tokens, as 124784, 124,784 or 124784.0; an empty cell is 0."""
        name = self.column(*keys)
        if not name:
            return 0
        if name not in self._cells:
            raise self.bad(name, "the count is missing: the line ends before it")
        text = self._cells[name]
        usual = text.removesuffix(".0")
        if not text or (usual.isdecimal() and usual.isascii() and len(usual) < _MAX_DIGITS):
            return int(usual or 0)
        if re.search(r"\d[eE]", text):
            raise self.bad(name, f"the count may have lost digits: {shown(text)}")
        if re.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+", text, re.ASCII):
            raise self.bad(name, f"the count must be without separators, not {shown(text)}")
        found = self._number(name, "count")
        if found < 0 or found.denominator != 1:
            raise self.bad(name, f"the count must be a whole number, not {shown(text)}")
        return int(found)

    def flag(self, *keys: str) -> bool:
        """Return whether a cell says true."""
        name = self.column(*keys)
        text = self._cells.get(name, "").lower()
        if text not in _TRUE + _FALSE:
            raise self.bad(name, f"must be true or false, not {shown(text)}")
        return text in _TRUE

    def _number(self, name: str, what: str) -> Fraction:
        text = self._cells[name]
        found = _NUMBER.fullmatch(text)
        if found is None and _COMMA.fullmatch(text):
            raise self.bad(name, f"the {what} has a decimal comma: write 0.5, not {shown(text)}")
        if found is None or (found["group"] and found["power"]):
            raise self.bad(name, f"the {what} is not a number: {shown(text)}")
        whole, group = found["whole"], found["group"]
        if group == "," and self._commas and whole.count(",") == 1 and not found["part"]:
            both = f"{whole.replace(',', '')} or {whole.replace(',', '.')}, not {shown(whole)}"
            raise self.bad(name, f"the {what} may have a decimal comma: write {both}")
        digits = re.sub(rf"[{_GROUPS}]", "", whole)
        value = Decimal(found["minus"] + digits + (found["part"] or "") + (found["power"] or ""))
        if abs(value) >= MAX_AMOUNT:
            raise self.bad(name, f"the {what} is too large: {shown(text)}")
        return Fraction(value)


@lru_cache(maxsize=1024)
def _time(text: str) -> datetime | None:
    """Return the time, or None if it cannot be read for certain: 11/12/2026 cannot."""
    try:
        if unix := _UNIX.fullmatch(text):
            found = datetime.fromtimestamp(int(unix[1] or unix[2]), UTC)
        else:
            text = re.sub(r" ?UTC\Z", "Z", text)
            if parts := _YEAR_FIRST.fullmatch(text):
                time = re.sub(r"\A([ T])(\d):", r"\g<1>0\2:", parts[4])
                text = f"{parts[1]}-{parts[2]:0>2}-{parts[3]:0>2}{time}"
            found = datetime.fromisoformat(text)
        if 1970 <= found.year < 2200:
            return found
    except (ValueError, OverflowError):
        pass
    return None
