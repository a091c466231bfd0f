"""Price tables: the shipped one, and a user's own that is merged over it, field by field.

An entry of a user's table states only what differs. Its id is looked up as that of a call: a name
that the shipped table lists as an alias, or only without its date, becomes an entry of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from itertools import chain
from typing import Any, NamedTuple

from ..errors import ConfigError
from .price import Price
from .tariff import ENTRY, TERMS, Tariff, check_keys, day, terms

Entry = Mapping[str, Any]  # of a table, as it is written
MAX_ID = 200  # characters of a model id that is looked up
OWN = "the configuration"  # the layer of prices in [providers.NAME]
SHIPPED = "the shipped table"
FREE = Tariff(Decimal(0), Decimal(0))
_KEYS = ("version", "as_of", "currency", "unit", "sources", "models")
_ARN = re.compile(r"\Aarn:aws:bedrock:[^/]*:(?:inference-profile|foundation-model)/")
_PREFIXES = {  # "google/": at Vertex's endpoint with OpenAI's format
    "google": ("models/", "google/"),
    "fireworks": ("accounts/fireworks/models/",),
}
_DATE = re.compile(r"(?:-\d{4}-\d\d-\d\d|-\d{8}|@[^@]*)\Z", re.ASCII)
_GOOGLE_DATE = re.compile(rf"{_DATE.pattern}|-\d{{3}}\Z", re.ASCII)
_PRESETS = {"gemini": "google"}  # presets whose vendor has another name here
_TABLES = {"azure": ("azure", "openai")}  # where a vendor's models are looked up, if not its own
_ALIKE = {
    name: name for name in ("openai", "anthropic", "google", "deepseek", "cohere", "perplexity")
} | {"minimax": "minimax", "moonshotai": "moonshot"}
# gateways that pass the prices of vendors on, each with its names for the vendors
_FOLLOWED = {
    "openrouter": _ALIKE
    | {"x-ai": "xai", "mistralai": "mistral", "z-ai": "zai", "qwen": "dashscope"},
    "vercel": _ALIKE | {"xai": "xai", "mistral": "mistral", "zai": "zai", "alibaba": "dashscope"},
}
_SOURCES = {"g": "genai-prices", "l": "litellm", "s": "llm-prices", "o": "OpenRouter's listing"}


class Layer(NamedTuple):
    """A price table: its entries by vendor, and the names of its sources by letter."""

    name: str
    day: date | None
    sources: Mapping[str, str]
    models: Mapping[str, Sequence[Entry]]
    dates: Mapping[str, str] = {}  # of sources that are newer than the table, by letter

    def told(self, entry: Entry) -> tuple[str, ...]:
        named = {key: text.partition(" (")[0] for key, text in self.sources.items()} | _SOURCES
        return tuple(named.get(each, each) for each in str(entry.get("src", "")))

    def day_of(self, entry: Entry) -> str:
        """Return the day of an entry's figures, or ""."""
        dates = [self.dates[each] for each in entry.get("src", "") if each in self.dates]
        return str(entry.get("as_of") or max(dates, default="") or self.day or "")

    def label(self, entry: Entry) -> str:
        about = "; ".join(filter(None, (", ".join(self.told(entry)), self.day_of(entry))))
        return f"{self.name} ({about})" if about else self.name


class _Found(NamedTuple):
    """An entry, the vendor that lists it, and the model of a gateway that follows it."""

    vendor: str
    entry: Entry
    follower: str = ""


class _Origin(NamedTuple):
    """The layer of each term of an entry, and the names of its sources."""

    layers: Mapping[str, str]
    sources: tuple[str, ...]


class PriceTable:
    """The prices of models by vendor: the shipped ones, with a user's own merged over them.

    Raise ConfigError if a price that the user's table changes is invalid.
    """

    def __init__(self, shipped: Layer, own: Layer | None = None) -> None:
        self.shipped, self.own = shipped, own
        self._rows: dict[str, dict[str, Entry]] = {}  # by vendor, then by id or alias
        for vendor, listed in shipped.models.items():
            rows = self._rows.setdefault(vendor, {})
            for entry in listed:
                rows.update(dict.fromkeys((entry["id"], *entry.get("aliases", ())), entry))
        self._merged: dict[tuple[str, str], _Origin] = {}  # entries of the user's, by vendor and id
        self._prices: dict[tuple[str, str], Price] = {}
        if own is not None:
            for name, listed in own.models.items():
                for entry in listed:
                    self._merge(own, _PRESETS.get(name, name), entry)
            for vendor, id in self._merged:
                terms(self._rows[vendor][id], f"{own.name}: price of {vendor}/{id}")
        self._find = lru_cache(maxsize=4096)(self._found)

    @property
    def day(self) -> date:
        return max(filter(None, (self.shipped.day, self.own and self.own.day)), default=date.min)

    def find(self, provider: str, model: str) -> Price | None:
        """Return the price of a model id, or None; its dated and prefixed forms match, too."""
        if len(model) > MAX_ID or len(provider) > MAX_ID:
            return None
        return self._find(provider, model)

    def entries(self) -> Iterator[Price]:
        """Yield the prices, ordered by provider and id."""
        for vendor, rows in sorted(self._rows.items()):
            entries = {entry["id"]: entry for entry in rows.values()}
            for _, entry in sorted(entries.items()):
                yield self._price(vendor, entry)

    def override(self, provider: str, model: str, overrides: Mapping[str, Price]) -> Price | None:
        """Return the one of a user's *overrides* that is for the model, or None."""
        if len(model) > MAX_ID:
            return None
        for name in chain((model,), names(provider, model)):  # most are found by the first
            if name in overrides or self._listed(provider, name):
                return overrides.get(name)
        return None

    def with_own(self, stated: Any, *, provider: str, vendor: str, model: str, place: str) -> Price:
        """Return a user's price of *model*; what it does not state is as in the table.

        Raise ConfigError if it is invalid; *place* names it.
        """
        check_keys(stated, TERMS, place)
        found = self._look_up(vendor, model) if len(model) <= MAX_ID else None
        if found is None:
            return Price.of(stated, provider=provider, id=model, place=place)
        origin = self._origin(found.vendor, found.entry)
        layers = {**origin.layers, **dict.fromkeys(_terms(stated), OWN)}
        merged = terms(merge(_only_terms(found.entry), stated), place)
        told = OWN, *origin.sources
        return Price(provider, model, sources=told, layers=tuple(layers.items()), **merged)

    # -- looking up --

    def _found(self, provider: str, model: str) -> Price | None:
        found = self._look_up(provider, model)
        if found is None:
            is_free = provider == "openrouter" and model.lower().endswith(":free")
            return Price(provider, model, FREE) if is_free else None
        price = self._price(found.vendor, found.entry)
        return replace(price, follower=found.follower) if found.follower else price

    def _look_up(self, provider: str, model: str) -> _Found | None:
        for name in names(provider, model):
            if (found := self._listed(provider, name)) is not None:
                return found
        if provider not in _FOLLOWED or ":" in model:
            return None
        vendor, _, name = model.lower().partition("/")
        name = name.replace(".", "-") if vendor == "anthropic" else name
        found = self._look_up(_FOLLOWED[provider].get(vendor, ""), name)
        if found is None or not self._price(found.vendor, found.entry).rates.input:
            return None  # what a vendor gives away may cost there
        return found._replace(follower=f"{provider}/{model.lower()}")

    def _listed(self, provider: str, name: str) -> _Found | None:
        for vendor in _TABLES.get(provider, (provider,)):
            entry = self._rows.get(vendor, {}).get(name)
            if entry is not None:
                return _Found(vendor, entry)
        return None

    def _price(self, vendor: str, entry: Entry) -> Price:
        key = vendor, entry["id"]
        if key not in self._prices:
            origin = self._origin(vendor, entry)
            layers = tuple(origin.layers.items()) if key in self._merged else ()
            day = self.shipped.day_of(entry)
            self._prices[key] = Price.from_entry(
                vendor,
                entry,
                sources=origin.sources,
                layers=layers,
                as_of=day if day != str(self.shipped.day) else "",
            )
        return self._prices[key]

    def _origin(self, vendor: str, entry: Entry) -> _Origin:
        layers = dict.fromkeys(_terms(entry), self.shipped.label(entry))
        return self._merged.get((vendor, entry["id"])) or _Origin(layers, self.shipped.told(entry))

    # -- merging --

    def _merge(self, layer: Layer, vendor: str, entry: Entry) -> None:
        rows, id = self._rows.setdefault(vendor, {}), str(entry["id"]).lower()
        found = self._look_up(vendor, id)
        base: Entry = found.entry if found else {}
        before = self._origin(found.vendor, base) if found else _Origin({}, ())
        layers = {**before.layers, **dict.fromkeys(_terms(entry), layer.label(entry))}
        told = dict.fromkeys((*layer.told(entry), *before.sources))
        is_same = found is not None and (found.vendor, base["id"]) == (vendor, id)
        aliases = [name for name in base.get("aliases", ()) if is_same and rows.get(name) is base]
        aliases += [name.lower() for name in entry.get("aliases", ())]
        whole = merge(_only_terms(base), _only_terms(entry)) | {"id": id, "aliases": aliases}
        whole["as_of"] = entry.get("as_of") or str(layer.day or "")
        for name in (id, *aliases):
            self._take(vendor, name)
            rows[name] = whole
        self._merged[vendor, id] = _Origin(layers, tuple(told) or (layer.name,))

    def _take(self, vendor: str, name: str) -> None:
        rows = self._rows[vendor]
        holder = rows.get(name)
        if holder is not None and holder["id"] != name:
            left = [each for each in holder.get("aliases", ()) if each != name]
            fewer = {**holder, "aliases": left}
            rows.update({each: fewer for each, entry in rows.items() if entry is holder})


@cache
def shipped() -> PriceTable:
    from importlib.resources import files  # here, because it doubles the time to import this module

    stored = json.loads(files("infermux").joinpath("prices.json").read_text("utf-8"))
    day = date.fromisoformat(stored["as_of"])
    models = {
        vendor: with_common(listed, stored["common"].get(vendor, ()))
        for vendor, listed in stored["models"].items()
    }
    return PriceTable(Layer(SHIPPED, day, stored["sources"], models, stored["dates"]))


def with_common(listed: Sequence[Entry], rules: Sequence[Entry]) -> Sequence[Entry]:
    """Return a vendor's entries with the terms that many of them share, by the pattern of ids.

    They are of models with an output; what an entry states itself holds, and later rules do.
    """
    if not rules:
        return listed
    found = []
    for entry in listed:
        common: dict[str, Any] = {}
        for rule in rules if "output" in entry else ():
            if any(fnmatchcase(entry["id"], pattern) for pattern in rule["ids"]):
                common = merge(common, {key: rule[key] for key in rule if key != "ids"})
        found.append(merge(common, entry))
    return found


def read(stored: object, name: str) -> Layer:
    """Return a user's table, such as `infermux prices update` writes; raise ConfigError."""
    models = stored.get("models") if isinstance(stored, Mapping) else None
    if not isinstance(stored, Mapping) or not isinstance(models, Mapping):
        raise ConfigError(
            f'{name} is no price table: it has no table "models"; '
            "`infermux prices update FILE` makes one of a public table"
        )
    check_keys(stored, _KEYS, name)
    sources = stored.get("sources", {})
    if not isinstance(sources, Mapping) or not all(isinstance(t, str) for t in sources.values()):
        raise ConfigError(f"{name}: sources must be a table of names by letter")
    for vendor, listed in models.items():
        _check_entries(listed, f"{name}: models.{vendor}")
    return Layer(name, _day(stored.get("as_of"), f"{name}: as_of"), sources, models)


def names(provider: str, model: str) -> Iterator[str]:
    """Yield the names by which a model is looked up: as it is, without prefix, without date."""
    name = model.lower()
    yield name
    if provider == "bedrock":
        name = _ARN.sub("", name, count=1)
    for prefix in _PREFIXES.get(provider, ()):
        name = name.removeprefix(prefix)
    yield name
    if name.startswith("ft:"):
        yield ":".join(name.split(":")[:2])
        return  # a fine-tuned model costs more than its base
    yield (_GOOGLE_DATE if provider == "google" else _DATE).sub("", name, count=1)


def merge(base: Entry, over: Entry) -> dict[str, Any]:
    """Return the terms of *base*, replaced by those of *over*; a null removes one.

    The service tiers are merged by name. An empty table or list removes what *base* has.
    """
    found = {**base, **over}
    tiers = base.get("service"), over.get("service")
    if all(isinstance(each, Mapping) and each for each in tiers):
        found["service"] = {**base["service"], **over["service"]}
    return {key: value for key, value in found.items() if value is not None}


def _only_terms(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _ABOUT}


def _terms(entry: Entry) -> list[str]:
    """Return the terms that an entry states, each service tier on its own."""
    service = entry.get("service")
    tiers = [f"service {name}" for name in service] if isinstance(service, Mapping) else []
    return [key for key in _only_terms(entry) if key != "service"] + tiers


_ABOUT = ENTRY - TERMS  # keys of an entry that are no terms


def _check_entries(listed: object, place: str) -> None:
    if not isinstance(listed, list):
        raise ConfigError(f"{place} must be a list of prices")
    for number, entry in enumerate(listed):
        at = f"{place}[{number}]"
        check_keys(entry, ENTRY, at)
        if not isinstance(entry.get("id"), str) or not 0 < len(entry["id"]) <= MAX_ID:
            raise ConfigError(f"{at}.id must be the name of a model")
        aliases = entry.get("aliases", [])
        if not isinstance(aliases, list) or not all(isinstance(name, str) for name in aliases):
            raise ConfigError(f"{at}.aliases must be a list of names")
        if not isinstance(entry.get("src", ""), str):
            raise ConfigError(f"{at}.src must be the letters of sources")
        _day(entry.get("as_of"), f"{at}.as_of")


def _day(value: object, place: str) -> date | None:
    return None if value is None else day(value, place)
