"""The known formats of exports, recognised by their columns, and readers of their lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from ...errors import shown
from ...pricing import PriceTable, shipped
from . import Bill, Charge, focus, table, usage
from .cells import BadCell, Cells
from .models import model_key
from .table import Table

Read = Callable[[Cells], Iterable[Charge]]
_PREFIX = re.compile(r"\A[a-z ]+ \| ")  # of a line item such as "priority | gpt-…"
_STARTS = ("start_time_iso", "start_time")
_OPENAI_DAY = (*_STARTS, "date", "timestamp")
_OPENAI_USD = ("amount_value", "cost_in_major")
_ANTHROPIC_DAY = ("usage_date_utc", "starting_at")
_DEEPSEEK_DAY = ("utc_date", *_STARTS)
_OPENROUTER_MODEL = ("model", "slug", "model_permaslug")
_OPENROUTER_BYOK = ("byok_usage_inference", "byok_usage", "upstream_inference_cost")
_PLAIN_DAY = (
    "usage_date_utc",
    "usage_date",
    "date",
    "day",
    *_STARTS,
    "timestamp",
    "starting_at",
    "utc_date",
    "created_at",
)
_PLAIN_MODEL = ("model", "model_version", "line_item", "model_id", "snapshot_id", "name")
_PLAIN_USD = (
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
_CURRENCY = ("amount_currency", "currency", "billing_currency", "currency_code")
_SIGN = re.compile(r"[\u00a3\u00a5\u20a0-\u20cf\u5143\u5186]")
# names of columns that no cost depends on, whatever the export
_NEUTRAL = (
    r"(?:.*_)?(?:id|names?|email|user|key|redacted|disabled|status|object|workspace|type|unit|tier"
    r"|iso|ms|at|time|timestamp|latency|reason(?:_raw|_normalized)?)"
)
_MAX_UNREAD = 10_000  # messages that are stored


@dataclass(frozen=True)
class Format:
    """A format; a table has the first one whose columns it has. See `Bill` for *vendors*."""

    vendors: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]  # one column of each
    read: Read
    knows: str = ""  # a pattern for further columns that do not affect the cost
    priced: bool = True  # in dollars
    note: str = ""

    def fits(self, columns: Mapping[str, str]) -> bool:
        return not any(columns.keys().isdisjoint(each) for each in self.needs)


def read(data: bytes, prices: PriceTable | None = None) -> Bill:
    """Return the costs in an export; raise RequestError if it cannot be understood.

    *prices*, by default the shipped ones, are for an export that has tokens alone.
    """
    found = table.read(data)
    if sign := _SIGN.search(names := table.names(found.columns.values())):
        table.refuse(f"the currency must be usd, not {sign[0]} (columns: {names})")
    form = next((each for each in FORMATS if each.fits(found.columns)), None) or _plain(found)
    bill = Bill(form.vendors, priced=form.priced)
    bill.notes += [*found.notes, *filter(None, [form.note])]
    clouds, known = set[str](), prices or shipped()
    asked = {*sum(form.needs, ())}
    for line in found.lines:
        cells = Cells(found, line, known, asked)
        try:
            if line.problem:
                raise BadCell(line.problem)
            charges = list(form.read(cells))
        except BadCell as error:
            if len(bill.unread) < _MAX_UNREAD:
                bill.unread.append(f"{line.place}: {error}")
            continue
        for charge in charges:
            bill.add(charge)
        if form.vendors == focus.ANY and not charges[0].outside:
            clouds.update(focus.vendors(cells))
    if both := found.twice & asked:
        table.refuse(f"the column {shown(found.columns[min(both)])} is there twice")
    neutral = re.compile(f"{_NEUTRAL}|{form.knows}")
    columns = found.columns.items()
    unused = [name for key, name in columns if key not in asked and not neutral.fullmatch(key)]
    if unused and (bill.usd or bill.empty or bill.others):  # else no line was read to its end
        bill.notes.append(f"columns that are not used: {table.names(unused)}")
    if form.vendors == focus.ANY:
        bill.vendors = tuple(sorted(clouds))
    return bill


# -- readers of a line -----------------------------------------------------------------------------


def _dollars(cells: Cells, *keys: str) -> Fraction:
    code, amount = cells.text(*_CURRENCY).lower(), cells.amount(*keys)
    if code not in ("", "usd"):
        raise cells.bad(cells.column(*_CURRENCY), f"the currency must be usd, not {shown(code)}")
    return amount


def _costs(
    cells: Cells,
    *,
    days: Iterable[str],
    amounts: Iterable[str],
    models: Iterable[str] = ("model",),
    or_else: Iterable[str] = (),  # columns that name other things than models
    scale: int = 1,
) -> Iterator[Charge]:
    day, offset = cells.day(*days, local=bool(cells.column("end_time_iso")))
    name = cells.text(*models)
    if not cells.text(*amounts) and not name:
        yield Charge(day, empty=True, offset=offset)
        return
    other = cells.text(*or_else)
    model = model_key(_line_item(name) if cells.column(*models) == "line_item" else name)
    yield Charge(day, model or model_key(other), _dollars(cells, *amounts) / scale, offset=offset)


def _line_item(text: str) -> str:
    """Return the model of a line item, which also has the kind of tokens: that is dropped."""
    head, comma, _ = _PREFIX.sub("", text).partition(",")
    return head.split(" ", 1)[0] if comma else head


def _openrouter(cells: Cells, day: str, *amounts: str) -> Iterator[Charge]:
    """Yield OpenRouter's own charge, and that of the providers whose keys are the user's."""
    at, model = cells.day(day)[0], model_key(cells.text(*_OPENROUTER_MODEL))
    yield Charge(at, model, cells.amount(*amounts))
    if cells.text(*_OPENROUTER_BYOK):
        yield Charge(at, model, cells.amount(*_OPENROUTER_BYOK), "paid with own keys (BYOK)")


def _deepseek_usage(cells: Cells) -> Iterator[Charge]:
    """Yield tokens times the price that the line itself has."""
    day, offset = cells.day(*_DEEPSEEK_DAY, local=bool(cells.column("end_time_iso")))
    kind, model = cells.text("type").lower(), model_key(cells.text("model"))
    if kind == "request_count" or not (kind or model or cells.text("amount")):
        yield Charge(day, empty=True, offset=offset)
        return
    if not re.fullmatch(r"(in|out)put(_\w+)?_tokens", kind):
        raise cells.bad("type", f"must be such as output_tokens, not {shown(kind)}")
    usd = cells.count("amount") * cells.amount("price")
    yield Charge(day, model, usd, offset=offset)


# -- the formats -----------------------------------------------------------------------------------

FORMATS = (
    Format(  # FOCUS
        focus.ANY,
        (("billedcost",), ("chargeperiodstart",)),
        focus.charges,
        knows=focus.KNOWS,
    ),
    Format(  # OpenRouter's generations
        ("openrouter",),
        (("created_at",), ("cost_total", "total_cost"), _OPENROUTER_MODEL),
        lambda cells: _openrouter(cells, "created_at", "cost_total", "total_cost"),
        knows="(?:native_)?tokens_.*|num_.*|cost_.*|usage|cache_discount|is_byok|variant|cancelled|"
        "streamed|origin|router|provider_responses",
    ),
    Format(  # OpenRouter's activity
        ("openrouter",),
        (("date",), ("usage",), _OPENROUTER_MODEL),
        lambda cells: _openrouter(cells, "date", "usage"),
        knows=".*(?:requests|_tokens)|provider|app",
    ),
    Format(  # DeepSeek's usage
        ("deepseek",),
        (_DEEPSEEK_DAY, ("type",), ("price",), ("amount",), ("model",)),
        _deepseek_usage,
        note="it names no currency: its prices are taken as USD",
    ),
    Format(  # DeepSeek's costs
        ("deepseek",),
        (_DEEPSEEK_DAY, ("wallet_type", "utc_date"), ("cost",), ("model",)),
        partial(_costs, days=_DEEPSEEK_DAY, amounts=("cost",)),
    ),
    Format(  # Anthropic's costs
        ("anthropic",),
        (("usage_date_utc",), ("cost_usd",)),
        partial(
            _costs,
            days=_ANTHROPIC_DAY,
            amounts=("cost_usd",),
            or_else=("cost_type", "description", "usage_type"),
        ),
        knows="context_window|list_price_usd|inference_geo|speed",
    ),
    Format(  # Anthropic's cost report
        ("anthropic",),
        (("starting_at",), ("amount",), ("cost_type", "token_type", "workspace_id")),
        partial(
            _costs,
            days=_ANTHROPIC_DAY,
            amounts=("amount",),
            or_else=("cost_type", "description"),
            scale=100,
        ),
        knows="context_window|inference_geo|speed",
    ),
    Format(  # Anthropic's usage
        ("anthropic",),
        (_ANTHROPIC_DAY, usage.ANTHROPIC_OUTPUT),
        lambda cells: usage.anthropic(cells, cells.day(*_ANTHROPIC_DAY)[0]),
        priced=False,
    ),
    Format(  # OpenAI's costs
        ("openai",),
        (_OPENAI_DAY, _OPENAI_USD),
        partial(
            _costs,
            days=_OPENAI_DAY,
            amounts=_OPENAI_USD,
            models=("line_item", "name", "model"),
        ),
        knows="date|quantity|cost",
    ),
    Format(  # OpenAI's usage
        ("openai",),
        (_OPENAI_DAY, ("num_model_requests", "input_cached_tokens"), ("input_tokens",)),
        lambda cells: usage.openai(cells, *cells.day(*_OPENAI_DAY, local=True)),
        knows="date|n(?:um_model)?_requests|.*_(?:text|uncached)_tokens",
        priced=False,
    ),
)


def _plain(found: Table) -> Format:
    columns = found.columns
    day, model, usd = (
        [name for name in names if name in columns][:1]
        for names in (_PLAIN_DAY, _PLAIN_MODEL, _PLAIN_USD)
    )
    if {"num_model_requests", "num_sessions", "usage_bytes"} & {*columns} and not usd:
        table.refuse(
            "this is OpenAI's usage of something that is billed by no tokens, without dollars: "
            "export the costs instead"
        )
    if not day or not usd:
        table.refuse(
            f"the columns {shown(', '.join(columns))} are not those of a known bill; use a table "
            "of date, model and usd, or an export from OpenAI, Anthropic, OpenRouter, DeepSeek or "
            "a cloud (FOCUS)"
        )
    read = partial(_costs, days=day, amounts=usd, models=model)
    return Format((), (tuple(day), tuple(usd)), read)
