"""Reads public price tables: litellm's, that of genai-prices, and OpenRouter's answer to /models.

Each becomes entries like those of `prices.json`, for vendors that InferMux has a preset for. What
is left out is kept with the reason.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

from ..errors import ConfigError, shown
from .price import Price
from .table import MAX_ID, Entry
from .tariff import plain

GENAI, LITELLM, OPENROUTER = "genai-prices", "litellm", "OpenRouter"
_MILLION = 10**6
_VENDORS = (
    "openai anthropic google mistral groq cohere deepseek xai together fireworks perplexity azure "
    "bedrock openrouter moonshot zai dashscope minimax cerebras vercel nvidia sambanova deepinfra "
    "novita hyperbolic nebius baseten"
)
_SAME = {name: name for name in _VENDORS.split()}
GENAI_VENDORS = _SAME | {"x-ai": "xai", "aws": "bedrock", "moonshotai": "moonshot"}
LITELLM_VENDORS = _SAME | {
    "text-completion-openai": "openai",
    "gemini": "google",
    "cohere_chat": "cohere",
    "together_ai": "together",
    "fireworks_ai": "fireworks",
    "bedrock_converse": "bedrock",
    "vercel_ai_gateway": "vercel",
    "nvidia_nim": "nvidia",
}
_ROUTED = "huggingface_"  # begins genai-prices' name of a vendor behind Hugging Face's router
_LITELLM = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_audio_token": "input_audio",
    "output_cost_per_audio_token": "output_audio",
    "output_cost_per_reasoning_token": "reasoning",
}
_ALIKE = ("input", "output", "cache_write", "cache_write_1h", "input_audio", "output_audio")
_GENAI = {f"{name}_mtok": name for name in _ALIKE} | {
    "cache_read_mtok": "cached_input",
    "output_reasoning_mtok": "reasoning",
}
_OPENROUTER = {
    "prompt": "input",
    "completion": "output",
    "input_cache_read": "cached_input",
    "input_cache_write": "cache_write",
    "input_cache_write_1h": "cache_write_1h",
    "internal_reasoning": "reasoning",
    "audio": "input_audio",
    "audio_output": "output_audio",
}
_SERVICES = ("flex", "priority")
_LITELLM_KEY = re.compile(
    rf"({'|'.join(_LITELLM)})(?:_above_(\d{{1,6}})k_tokens)?(?:_({'|'.join(_SERVICES)}))?",
    re.ASCII,
)
UNREAD, _NO_PRESET = "a figure is not a price", "of a vendor without a preset"
BY_HOUR = "has prices of certain hours, which are not read"
_MODES = ("chat", "completion", "responses", "embedding")
_Rates = dict[str, Decimal]


class Skipped(ValueError):
    """Why a model is left out."""


class Listed(NamedTuple):
    entry: Entry
    price: Price
    by_hour: bool = False  # whether the table also has prices of certain hours, which are not here


@dataclass(frozen=True, slots=True)
class PublicTable:
    """What a public table says about the models of our vendors, and what of it is left out."""

    source: str  # litellm, genai-prices or OpenRouter
    listed: list[Listed] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)  # models by the reason

    @property
    def read(self) -> int:
        """The number of models in the table."""
        return len(self.listed) + sum(map(len, self.skipped.values()))

    def skip(self, reason: str, model: str) -> None:
        self.skipped.setdefault(reason, []).append(model)

    def take(self, read: Callable[..., None], id: str, *entry: Any) -> None:
        """Read a model, or leave it out if it cannot be read."""
        try:
            read(self, id, *entry)
        except Skipped as why:
            self.skip(str(why), id)
        except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError):
            self.skip(UNREAD, id)

    def add(self, vendor: str, model: str, entry: Entry, *, by_hour: bool = False) -> None:
        if 0 < len(model) <= MAX_ID:
            listed = {"id": model.lower(), **entry}
            self.listed.append(Listed(listed, Price.from_entry(vendor, listed), by_hour))
        else:
            self.skip("the name of the model is empty or too long", f"{vendor}/{model[:40]}")


def read(data: bytes, today: date) -> PublicTable:
    """Return a public table: JSON, or the source of the module genai_prices.data.

    Raise ConfigError if it is none. Source is read, not run.
    """
    try:
        stored = _json(data)
    except (ValueError, RecursionError):
        stored = _module(data)
    found = _of_any_kind(stored, today)
    if not found.listed and found.skipped.keys() == {UNREAD}:
        raise ConfigError("the price table cannot be read")
    return found


def _json(data: bytes) -> Any:
    return json.loads(data, parse_float=Decimal, parse_constant=int)  # NaN is a ValueError


def _of_any_kind(stored: Any, today: date) -> PublicTable:
    named = stored if isinstance(stored, dict) else {}
    providers = _by_id(named.get("providers", stored))
    kinds: tuple[tuple[str, str, Callable[..., None], list[tuple[str, Any]]], ...] = (
        (LITELLM, "litellm_provider", _litellm, [*named.items()]),
        (GENAI, "models", partial(_genai, today=today), providers),
        (OPENROUTER, "pricing", _openrouter, _by_id(named.get("data"))),
    )
    for source, member, read, entries in kinds:
        if any(isinstance(entry, dict) and member in entry for _, entry in entries):
            table = PublicTable(source)
            for id, entry in entries:
                table.take(read, id, entry)
            return table
    raise ConfigError(
        "the file is neither litellm's price table, nor that of genai-prices, "
        "nor OpenRouter's list of models"
    )


def _by_id(entries: object) -> list[tuple[str, Any]]:
    return [(_id(each), each) for each in entries] if isinstance(entries, list) else []


def _id(entry: object) -> str:
    return str(entry.get("id")) if isinstance(entry, dict) else shown(entry)


# -- litellm --


def _litellm(table: PublicTable, id: str, entry: Mapping[str, Any]) -> None:
    provider = entry.get("litellm_provider", "")
    vendor, mode = LITELLM_VENDORS.get(provider), entry.get("mode", "chat")
    if vendor is None:
        raise Skipped(_NO_PRESET)
    if mode not in _MODES:
        raise Skipped("not a model for text")
    rates = _litellm_rates(entry, "")
    for each in entry.get("tiered_pricing") or ():  # prices by ranges of input tokens
        rates.setdefault(int(each["range"][0]), {}).update(_rates(each, _LITELLM))
    found = _entry(rates, _figure(entry.get("input_cost_per_request") or 0, 1000))
    if mode == "embedding" and found.get("output") == "0":
        del found["output"]
    services = {name: offer for name in _SERVICES if (offer := _service(rates, entry, name))}
    if services:
        found["service"] = services
    found |= _sizes(entry.get("max_input_tokens"), entry.get("max_output_tokens"))
    table.add(vendor, id.removeprefix(f"{provider}/"), found)


def _litellm_rates(entry: Mapping[str, Any], service: str) -> dict[int, _Rates]:
    rates: dict[int, _Rates] = {0: {}}
    for key, value in entry.items():
        match = _LITELLM_KEY.fullmatch(key)
        if match and value is not None and (match[3] or "") == service:
            tier = rates.setdefault(int(match[2] or 0) * 1000, {})
            tier[_LITELLM[match[1]]] = _figure(value, _MILLION)
    return rates


def _service(
    standard: dict[int, _Rates], entry: Mapping[str, Any], name: str
) -> str | dict[str, str] | None:
    """Return a service tier: a factor if all of its figures have the same one, else figures.

    Figures that differ by size, too, are left out: the call is then unpriced, not cheap.
    """
    try:
        offer = _litellm_rates(entry, name)
    except (TypeError, ArithmeticError, ValueError):
        return None
    if not {"input", "output"} <= offer[0].keys():
        return None
    factors = {
        rate / standard[over][each] if standard.get(over, {}).get(each) else None
        for over, rates in offer.items()
        for each, rate in rates.items()
    }
    factor = factors.pop() if len(factors) == 1 else None
    if factor is not None and round(factor, 6) == factor:
        return plain(factor)
    return _texts(offer[0]) if len(standard.keys() | offer) == 1 else None


# -- genai-prices --


def _genai(table: PublicTable, name: str, provider: Mapping[str, Any], today: date) -> None:
    vendor, suffix = GENAI_VENDORS.get(name), ""
    if name.startswith(_ROUTED):
        vendor, suffix = "huggingface", f":{name.removeprefix(_ROUTED)}"
    for model in provider["models"]:
        id = _id(model)
        table.take(_genai_model, f"{name}/{id}", vendor, id + suffix, model, today)


def _genai_model(
    table: PublicTable, _: str, vendor: str | None, id: str, model: Mapping[str, Any], today: date
) -> None:
    if vendor is None:
        raise Skipped(_NO_PRESET)
    found, by_hour = _genai_entry(model["prices"], today)
    table.add(vendor, id, found | _sizes(model.get("context_window")), by_hour=by_hour)


def _genai_entry(prices: Any, today: date) -> tuple[dict[str, Any], bool]:
    listed = prices if isinstance(prices, list) else [{"prices": prices}]
    current, later, by_hour = listed[0]["prices"], list[dict[str, Any]](), False
    for each in listed:
        limit = each.get("constraint") or {}
        start = f"{limit.get('start_date') or ''}"
        if start and date.fromisoformat(start) > today:
            later.append({"from": start} | _texts(_genai_rates(each["prices"])[0]))
        elif limit and not start:
            by_hour = True
        else:
            current = each["prices"]
    found = _entry(_genai_rates(current), _figure(current.get("requests_kcount") or 0))
    return found | ({"next": later} if later else {}), by_hour


def _genai_rates(prices: Mapping[str, Any]) -> dict[int, _Rates]:
    rates: dict[int, _Rates] = {0: {}}
    for key, name in _GENAI.items():
        value = prices.get(key)
        if isinstance(value, Mapping):
            for tier in value["tiers"]:
                rates.setdefault(int(tier["start"]), {})[name] = _figure(tier["price"])
            value = value["base"]
        if value is not None:
            rates[0][name] = _figure(value)
    return rates


def _module(data: bytes) -> Any:
    """Return `providers` of the module genai_prices.data, whose source *data* is."""
    try:
        body = ast.parse(data).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError("the file is not JSON") from None
    for node in body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id == "providers" and node.value:
                try:
                    return _literal(node.value)
                except (ValueError, TypeError, ArithmeticError, RecursionError):
                    raise ConfigError("parts of the price table cannot be read") from None
    raise ConfigError("the file is not JSON, and not the module of genai-prices")


def _literal(node: ast.expr) -> Any:
    """Return the value of an expression; a call of a class becomes a table of its arguments."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(each) for each in node.elts]
    if isinstance(node, ast.Call):
        name, parts = ast.unparse(node.func), [_literal(each) for each in node.args]
        if name == "Decimal":
            return Decimal(*parts)
        if name == "datetime.date":
            return date(*parts)
        return {each.arg: _literal(each.value) for each in node.keywords if each.arg != "tzinfo"}
    return ast.literal_eval(node)


# -- OpenRouter --


def _openrouter(table: PublicTable, id: str, model: Mapping[str, Any]) -> None:
    prices = model.get("pricing") or {}
    rates = {0: _rates(prices, _OPENROUTER)}
    for each in prices.get("overrides") or ():
        if {each.get("utc_start"), each.get("utc_end")} != {None}:
            raise Skipped(BY_HOUR)
        rates[int(each["min_prompt_tokens"]) - 1] = _rates(each, _OPENROUTER)
    found = _entry(rates, _figure(prices.get("request") or 0, 1000))
    top = model.get("top_provider") or {}
    most = top.get("context_length") or model.get("context_length")
    table.add("openrouter", id, found | _sizes(most, top.get("max_completion_tokens")))


# -- figures --


def _rates(prices: Mapping[str, Any], names: Mapping[str, str]) -> _Rates:
    """Return the rates that *prices* per token list, by our names."""
    listed = {name: prices.get(key) for key, name in names.items()}
    return {name: _figure(each, _MILLION) for name, each in listed.items() if each is not None}


def _entry(rates: dict[int, _Rates], request: Decimal) -> dict[str, Any]:
    """Return an entry of prices by size; raise Skipped if the one of input is not known.

    A rate of 0 beside input that costs something means that the table does not know it. What a size
    does not list costs what it does at the size before. *request* is per 1,000.
    """
    smallest = min((over for over, found in rates.items() if "input" in found), default=0)
    base = rates[0] or rates[smallest]
    if "input" not in base:
        raise Skipped("without a price of input tokens")
    found: dict[str, Any] = {}
    tiers, larger = [], _Rates()
    for over, listed in sorted(rates.items()):
        known = {
            name: rate
            for name, rate in listed.items()
            if rate or not base["input"] or name in ("input", "output")
        }
        if listed is base:
            found = _texts(known)
        elif known and over > 0:
            larger |= known
            tiers.append({"over": over} | _texts(larger))
    if tiers:
        found["tiers"] = tiers
    if request:
        found["request_per_1k_max"] = plain(request)
    return found


def _figure(value: object, times: int = 1) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise TypeError(f"{shown(value)} is not a price")
    # rounds off the error of binary fractions
    figure = round(Decimal(value) * times, 12).normalize()
    if figure < 0:
        raise Skipped("a price is below 0")
    return abs(figure)


def _sizes(max_input: object, max_output: object = None) -> dict[str, int]:
    sizes = {"max_input": max_input, "max_output": max_output}
    return {name: size for name, size in sizes.items() if type(size) is int and size > 0}


def _texts(rates: _Rates) -> dict[str, Any]:
    return {name: plain(rate) for name, rate in rates.items()}
