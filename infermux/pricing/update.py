"""Makes a user's own price table of a public one: what the present prices lack, or have otherwise.

What differs is written per model and term, with its source and day; the rest stays as it is in the
shipped table. What is doubtful is left out with the reason: a figure that would make a priced model
free, one that is no price per token, a price of certain hours.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from itertools import chain
from typing import Any, NamedTuple

from ..types import JSON
from .compare import Difference, differences, rates_on
from .price import Price
from .public import BY_HOUR, OPENROUTER, Listed, PublicTable, Skipped
from .table import FREE, Entry, PriceTable
from .tariff import TERMS, Service, Tariff, figure_text, figures

MAX_RATE = 100_000  # USD per million tokens; more is not a price per token
LETTERS = {"genai-prices": "g", "litellm": "l", OPENROUTER: "o"}
_UNCOMPARED = ("input_audio", "output_audio", "reasoning")
_ADDED = ("max_input", "max_output", "request_per_1k_max")  # if not known yet


class Changed(NamedTuple):
    """A term that differs from the one before; texts in USD per million tokens, or None."""

    model: str
    term: str
    was: str | None
    now: str | None


class Update(NamedTuple):
    source: str
    read: int  # models in the public table
    same: int  # models whose prices are known
    new: list[str]
    changed: list[Changed]
    kept: list[str]  # models whose prices of long requests the public table does not list
    skipped: dict[str, list[str]]  # models by the reason
    table: JSON  # as it is written


def update(
    found: PublicTable,
    present: PriceTable,
    day: date,
    accepted: Collection[Difference] = (),
) -> Update:
    """Return the user's table that *present* has, with what *found* has otherwise.

    Differences that are *accepted* are left as they are.
    """
    work = _Work(present, found.source, day, accepted)
    own, read = present.own, found.read
    models = {vendor: list(listed) for vendor, listed in own.models.items()} if own else {}
    letter, today = LETTERS[found.source], day.isoformat()
    seen, same = set[tuple[str, str]](), 0
    for listed in found.listed:
        vendor, id = listed.price.provider, listed.price.id
        try:
            if (vendor, id) in seen:
                raise Skipped("named twice")
            seen.add((vendor, id))
            terms = work.terms(listed)
        except Skipped as why:
            found.skip(str(why), f"{vendor}/{id}")
            continue
        if terms:
            entry = {"id": id, **terms, "src": letter, "as_of": today}
            _put(models.setdefault(vendor, []), entry)
        else:
            same += 1
    table = {
        "version": 1,
        "as_of": today,
        "currency": "USD",
        "unit": "per 1,000,000 tokens",
        "sources": {**(own.sources if own else {}), letter: found.source},
        "models": dict(sorted(models.items())),
    }
    kept = list(dict.fromkeys(work.kept))
    return Update(found.source, read, same, work.new, work.changed, kept, found.skipped, table)


def written(table: Mapping[str, Any]) -> str:
    """Return a table as text, a line per model."""
    about = {key: value for key, value in table.items() if key != "models"}
    dense, lists = json.JSONEncoder(separators=(",", ":")).encode, []
    for vendor, listed in table["models"].items():
        entries = sorted(listed, key=lambda entry: str(entry["id"]))
        lists.append(f"{json.dumps(vendor)}:[\n" + ",\n".join(map(dense, entries)) + "\n]")
    return f'{dense(about)[:-1]},"models":{{\n' + ",\n".join(lists) + "\n}}\n"


def _put(listed: list[Entry], entry: Entry) -> None:
    """Add an entry; earlier ones of its model lose the terms that it states."""
    for number, old in enumerate(listed):
        if old["id"] == entry["id"]:
            left = {key: value for key, value in old.items() if key not in entry.keys() & TERMS}
            if old.get("service") and entry.get("service"):
                tiers = {k: v for k, v in old["service"].items() if k not in entry["service"]}
                left |= {"service": tiers} if tiers else {}
            listed[number] = left
    listed[:] = [each for each in listed if each.keys() & TERMS or each.get("aliases")]
    listed.append(entry)


# -- one model --


@dataclass(slots=True)
class _Work:
    present: PriceTable
    source: str
    day: date
    accepted: Collection[Difference]
    new: list[str] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def terms(self, listed: Listed) -> JSON:
        """Return the terms of a model that are new or differ; raise Skipped."""
        theirs = listed.price
        ours = self.present.find(theirs.provider, theirs.id)
        if listed.by_hour:
            raise Skipped(BY_HOUR)
        self._check(ours, theirs)
        if ours is None:
            self.new.append(f"{theirs.provider}/{theirs.id}")
            return {key: value for key, value in listed.entry.items() if key != "id"}
        terms, price = JSON(), ours
        for _ in range(3):  # what changes may have been what another figure fell back to
            found = self._changes(price, theirs, listed.entry)
            new = [each for each in found if each[0].was != each[0].now]
            if not new:
                break
            for changed, key, value in new:
                self.changed.append(changed)
                terms[key] = {**terms[key], **value} if isinstance(terms.get(key), dict) else value
            terms = self._whole(ours, terms)
            vendor = theirs.provider
            price = self.present.with_own(
                terms, provider=vendor, vendor=vendor, model=theirs.id, place="price"
            )
        return terms

    def _whole(self, ours: Price, terms: JSON) -> JSON:
        """Return the terms that differ with those that would undo them, or that they need."""
        begun = [each.rates for each in ours.next if each.start <= self.day]
        if begun and not terms.keys().isdisjoint(Tariff._fields):  # it would still hold
            later = [{"from": f"{each.start}"} | figures(each.rates) for each in ours.next]
            terms = figures(begun[-1]) | {"next": later[len(begun) :]} | terms
        # what only its name says to be free has no entry to add to
        return {"input": "0", "output": "0"} | terms if ours.rates is FREE else terms

    def _check(self, ours: Price | None, theirs: Price) -> None:
        """Raise Skipped if the public table's price is doubtful."""
        parts: list[Any] = [theirs, *theirs.tiers, *theirs.next, *theirs.service]
        if max(filter(None, chain(*[each.rates for each in parts])), default=0) > MAX_RATE:
            raise Skipped("a price is too high to be one per token")
        is_free = not theirs.rates.input and not theirs.rates.output
        if is_free and ours is None and self.source != OPENROUTER:
            raise Skipped("the price is 0, which may mean that it is not known")
        known = ours.rates[:2] if ours else ()
        if any(was and now == 0 for was, now in zip(known, theirs.rates, strict=False)):
            raise Skipped("a price is 0 where the present one is not")

    def _changes(
        self, ours: Price, theirs: Price, entry: Entry
    ) -> Iterator[tuple[Changed, str, Any]]:
        """Yield each term that differs, with its key and value in the user's table."""
        name, tiers = f"{theirs.provider}/{theirs.id}", _tiers(ours, theirs)
        for each in differences(ours, theirs, self.day):
            is_base = each.figure in Tariff._fields
            if not (is_base or tiers):
                self.kept.append(name)
            elif each not in self.accepted:
                was, now = figure_text(each.ours), figure_text(each.theirs)
                key, value = (each.figure, now) if is_base else ("tiers", tiers)
                yield Changed(name, each.figure, was, now), key, value
        for term in _UNCOMPARED:
            known, figure = getattr(rates_on(self.day, ours), term), getattr(theirs.rates, term)
            if figure and figure != known:
                now = figure_text(figure)
                yield Changed(name, term, figure_text(known), now), term, now
        for service in theirs.service:
            tier = next((each for each in ours.service if each.name == service.name), None)
            if tier is None or self._costs(ours, tier) != self._costs(theirs, service):
                offer = {service.name: entry["service"][service.name]}
                changed = Changed(
                    name, f"service {service.name}", tier and _said(tier), _said(service)
                )
                yield changed, "service", offer
        if theirs.next and theirs.next != ours.next:
            days = ", ".join(str(each.start) for each in theirs.next)
            yield Changed(name, "next", None, f"from {days}"), "next", entry["next"]
        known = ours.max_input, ours.max_output, dict(ours.fees).get("request")
        for term, present in zip(_ADDED, known, strict=True):
            if present is None and (figure := entry.get(term)) is not None:
                yield Changed(name, term, None, str(figure)), term, figure

    def _costs(self, price: Price, service: Service) -> list[Decimal | None]:
        """Return what input and output cost by a service tier."""
        rates = rates_on(self.day, price, service=service)
        return [rate and rate * service.factor for rate in rates[:2]]


def _tiers(ours: Price, theirs: Price) -> list[JSON]:
    """Return their tiers, with the figures that only ours have; none if they list none."""
    known = {round(tier.over, -3): tier.rates for tier in ours.tiers}
    return [
        {"over": tier.over} | figures(known.get(round(tier.over, -3), Tariff()).under(tier.rates))
        for tier in theirs.tiers
    ]


def _said(service: Service) -> str:
    listed = [f"{name} {rate}" for name, rate in figures(service.rates).items()]
    return " ".join(listed) or f"times {figure_text(service.factor)}"
