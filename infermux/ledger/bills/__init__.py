"""Vendors' bills: exports of costs or usage, read as sums by day and model.

`table` reads a file, `cells` the cells of a line, `models` the names of models; `formats`
recognises an export by its columns, and `focus` reads the format that clouds share.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta, timezone
from fractions import Fraction
from typing import NamedTuple

Key = tuple[str, str]  # a UTC day, and a model


class Charge(NamedTuple):
    """The cost of a day and model on a line of a bill."""

    day: str
    model: str = ""
    usd: Fraction | None = None  # None: tokens without a price
    kind: str = ""  # such as "batches": a part of the cost that is named in the summary
    unknown: str = ""  # the thing without a price, if it is not the model
    outside: str = ""  # the name of a cost that is not compared
    empty: bool = False  # the day is on the bill, without any cost
    offset: timedelta = timedelta(0)  # the day's start minus that of UTC


@dataclass
class Bill:
    """The costs in a vendor's export; `unread` has a message for each line that was not read."""

    # names that a provider of the vendor may have in the configuration, if the columns show it
    vendors: tuple[str, ...] = ()
    usd: dict[Key, Fraction | None] = field(default_factory=dict)  # None: tokens without a price
    unread: list[str] = field(default_factory=list)
    priced: bool = True  # the export itself has dollars
    notes: list[str] = field(default_factory=list)  # messages about how the file was read
    kinds: dict[Key, dict[str, Fraction]] = field(default_factory=dict)  # parts of usd
    unknown: dict[Key, str] = field(default_factory=dict)  # things without a price
    others: dict[Key, tuple[int, Fraction]] = field(default_factory=dict)  # see `outside`
    empty: set[str] = field(default_factory=set)  # days on the bill without any cost
    offsets: dict[str, timedelta] = field(default_factory=dict)  # by day, from UTC

    @property
    def vendor(self) -> str:
        """The vendor, such as "openai", or ""."""
        return next(iter(self.vendors), "")

    @property
    def has_models(self) -> bool:
        """Whether any line names a model, or there is none."""
        return not self.usd or any(model for _, model in self.usd)

    @property
    def days(self) -> tuple[date, date]:
        found = sorted({day for day, _ in self.usd} | self.empty)
        return date.fromisoformat(found[0]), date.fromisoformat(found[-1])

    @property
    def outside(self) -> dict[str, tuple[int, Fraction]]:
        """How many lines are not compared, and their costs, by name."""
        found: dict[str, tuple[int, Fraction]] = {}
        for (_, name), (lines, usd) in self.others.items():
            before = found.get(name, (0, 0))
            found[name] = before[0] + lines, before[1] + usd
        return found

    def may_be_of(self, provider: str) -> bool:
        """Whether a provider has the vendor's name, or that with a suffix: azure-eu."""
        return any(re.match(rf"{re.escape(name)}(?:[-_]|\Z)", provider) for name in self.vendors)

    def add(self, charge: Charge) -> None:
        if charge.outside:
            lines, before = self.others.get(key := (charge.day, charge.outside), (0, 0))
            self.others[key] = lines + 1, before + (charge.usd or Fraction(0))
            return
        self.offsets[charge.day] = charge.offset
        if charge.empty:
            self.empty.add(charge.day)
            return
        key = charge.day, charge.model
        total = self.usd.get(key, Fraction(0))
        self.usd[key] = None if total is None or charge.usd is None else total + charge.usd
        if charge.kind and charge.usd:
            kinds = self.kinds.setdefault(key, {})
            kinds[charge.kind] = kinds.get(charge.kind, Fraction(0)) + charge.usd
        if charge.unknown:
            self.unknown.setdefault(key, charge.unknown)

    def zone(self, day: date) -> timezone:
        """Return the zone in which the bill's *day* starts: that of the last day it lists."""
        before = max((each for each in self.offsets if each <= str(day)), default="")
        return timezone(self.offsets[before or min(self.offsets)])

    def keep(self, covers: Callable[[date], bool]) -> None:
        """Forget the days that *covers* excludes."""
        days = {*self.empty, *(day for day, _ in (*self.usd, *self.others))}
        kept = {day for day in days if covers(date.fromisoformat(day))}
        self.usd = {key: usd for key, usd in self.usd.items() if key[0] in kept}
        self.others = {key: each for key, each in self.others.items() if key[0] in kept}
        self.empty &= kept
