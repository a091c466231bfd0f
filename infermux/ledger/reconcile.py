"""Compares the ledger with a vendor's exported bill, by day and model.

`bills` reads the exports; the tokens of one without dollars are priced by the table in use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from ..errors import counted, printable, shown
from ..pricing import PICO, usd
from ..protocol import must_be
from ..types import JSON
from . import Total
from .bills import Bill, Key
from .bills.formats import read
from .bills.models import model_key

__all__ = ["Bill", "Compared", "Tolerance", "compare", "model_key", "read", "summed", "words"]

_MAX_NAMED = 5  # models that a sentence names


class Compared(NamedTuple):
    """The costs of a day and model on both sides, in pico-USD; None: absent or unpriced."""

    day: str
    model: str
    ours: int | None
    theirs: int | None
    agrees: bool
    note: str = ""
    unpriced: bool = False  # calls or tokens have no price

    @property
    def difference(self) -> int:
        """The ledger's cost minus the vendor's, in pico-USD; None counts as 0."""
        return (self.ours or 0) - (self.theirs or 0)

    def to_dict(self) -> JSON:
        sums = {"ours": self.ours, "theirs": self.theirs, "difference": self.difference}
        return {
            "day": self.day,
            "model": self.model,
            **{f"{name}_usd": None if pico is None else usd(pico) for name, pico in sums.items()},
            "agrees": self.agrees,
            "note": self.note,
        }


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


def compare(bill: Bill, ours: Iterable[Total], tolerance: Tolerance) -> list[Compared]:
    """Compare each day and model of either side; *ours* are totals by day and served model."""
    mine: dict[Key, tuple[int, int]] = {}
    for total in ours:
        if total.cost or total.unpriced:  # free calls are on no bill
            key = (total.key[0], model_key(total.key[1]) if bill.has_models else "")
            cost, unpriced = mine.get(key, (0, 0))
            mine[key] = cost + total.cost, unpriced + total.unpriced
    keys = {*mine, *(key for key, amount in bill.usd.items() if amount != 0)}
    return [_compared(key, mine.get(key), bill, tolerance) for key in sorted(keys)]


def summed(rows: Sequence[Compared], tolerance: Tolerance) -> Compared:
    """Return the comparison of the sums over all days and models."""
    ours, theirs = sum(row.ours or 0 for row in rows), sum(row.theirs or 0 for row in rows)
    return Compared("TOTAL", "", ours, theirs, tolerance.covers(ours, theirs))


def words(rows: Sequence[Compared], bill: Bill) -> list[str]:
    """Return sentences on what only one side has, and on what a comparison cannot tell."""
    theirs = [row for row in rows if row.ours is None and row.theirs is not None]
    ours = [row for row in rows if row.theirs is None and row.ours and row[:2] not in bill.usd]
    both = [
        row
        for row in rows
        if None not in (row.ours, row.theirs) and not (row.agrees or row.unpriced)
    ]
    unpriced = [row for row in rows if row.unpriced]
    found = []
    if theirs:
        found.append(f"in the bill and not in the ledger: {_sum(theirs)}")
    if ours:
        found.append(f"in the ledger and not in the bill: {_sum(ours)}")
    if both:
        found.append(f"in both, but different (ledger minus bill): {_sum(both)}")
    if unpriced:
        found.append(f"without a price, so not compared: {_sum(unpriced, told=False)}")
    if not (theirs or ours or both or unpriced):
        found.append("what is in the bill is in the ledger, and the reverse")
    found += [f"part of the bill: {kind}, {usd(pico)} USD" for kind, pico in _kinds(bill)]
    if bill.outside:
        found.append(f"in the bill, but no usage of models: {_outside(bill)}")
    return found


def _sum(rows: Sequence[Compared], *, told: bool = True) -> str:
    """Return what rows sum up to, and of what: 1.2 USD (gpt-audio 0.2 on 2026-11-23, …).

    If the amounts are not *told*, return the models and days alone.
    """
    signed = any(None not in (row.ours, row.theirs) for row in rows)
    models: dict[str, list[Compared]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    picos = {model: sum(row.difference for row in of) for model, of in models.items()}
    total = sum(picos.values())
    if not signed:
        picos, total = {model: abs(pico) for model, pico in picos.items()}, abs(total)
    names = sorted(models, key=lambda model: (-abs(picos[model]), model))
    found = []
    for model in names[:_MAX_NAMED]:
        first, last, days = models[model][0].day, models[model][-1].day, len(models[model])
        when = first if days == 1 else f"{days} days from {first} to {last}"
        amount = f" {usd(picos[model])}" if told else ""
        found.append(f"{printable(model) or 'no model'}{amount} on {when}")
    if more := names[_MAX_NAMED:]:
        found.append(f"and {counted(len(more), 'more model')}")
    listed = ", ".join(found)
    return f"{usd(total)} USD ({listed})" if told else listed


def _kinds(bill: Bill) -> Iterator[tuple[str, int]]:
    found: dict[str, Fraction] = {}
    for key, kinds in bill.kinds.items():
        for kind, amount in kinds.items():
            found[kind] = found.get(kind, Fraction(0)) + amount * (key in bill.usd)
    for kind, amount in sorted(found.items()):
        if amount:
            yield kind, round(amount * PICO)


def _outside(bill: Bill) -> str:
    listed = sorted(bill.outside.items(), key=lambda each: (-abs(each[1][1]), each[0]))
    found = [
        f"{printable(name)}{_dollars(amount)} in {counted(lines, 'line')}"
        for name, (lines, amount) in listed[:_MAX_NAMED]
    ]
    rest = listed[_MAX_NAMED:]
    if rest:
        amount = sum((amount for _, (_, amount) in rest), Fraction(0))
        found.append(f"{len(rest)} more{_dollars(amount)}")
    return ", ".join(found)


def _dollars(amount: Fraction) -> str:
    return f" {usd(round(amount * PICO))} USD" if amount else ""


def _compared(key: Key, mine: tuple[int, int] | None, bill: Bill, tolerance: Tolerance) -> Compared:
    (ours, unpriced), exact = mine or (None, 0), bill.usd.get(key)
    theirs = None if exact is None else round(exact * PICO)
    notes = [f"{unpriced} unpriced"] if unpriced else []
    if key not in bill.usd:
        notes.append("only ours")
    elif exact is None:
        what = bill.unknown.get(key, "the vendor's tokens")
        notes.append(f"no price for {what}")
    elif ours is None:
        notes.append("only theirs")
    unknown = bool(unpriced or (key in bill.usd and exact is None))
    agrees = not unknown and tolerance.covers(ours or 0, theirs or 0)
    if not agrees:
        kinds = bill.kinds.get(key, {})
        notes += [f"{usd(round(part * PICO))} for {kind}" for kind, part in sorted(kinds.items())]
    return Compared(*key, ours, theirs, agrees, ", ".join(notes), unknown)
