"""The known formats of exports, recognised by their columns, and readers of their lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from ...errors import RequestError, shown
from ...pricing import PriceTable, shipped
from . import Bill, Charge, focus, table, usage
from .cells import BadCell, Cells
from .models import model_key
from .table import Table

Read = Callable[[Cells], Iterable[Charge]]
_PREFIX = re.compile(r"\A[a-z ]+ \| ")  # of a line item such as "priority | gpt-…"
_STARTS = ("start_time_iso", "start_time")
_OPENAI_DAY = (*_STARTS, "date", "timestamp")
_ANTHROPIC_DAY = ("usage_date_utc", "starting_at")
_DEEPSEEK_DAY = ("utc_date", *_STARTS)
_OPENROUTER_MODEL = ("model", "slug", "model_permaslug")
_OPENROUTER_BYOK = ("byok_usage_inference", "byok_usage", "upstream_inference_cost")
_BYOK = "paid with own keys (BYOK)"
_PLAIN_DAY = (
    *_ANTHROPIC_DAY[:1],
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
_PLAIN_CURRENCY = ("amount_currency", "currency")
_MAX_UNREAD = 10_000  # messages that are stored


@dataclass(frozen=True)
class Format:
    """A format; a table has the first one whose columns it has."""

    title: str
    vendors: tuple[str, ...]  # names that a provider of the vendor may have
    needs: tuple[tuple[str, ...], ...]  # one column of each
    read: Read
    uses: str = ""  # further columns that `read` looks at
    knows: str = ""  # columns that do not affect the cost
    priced: bool = True  # in dollars
    note: str = ""

    def fits(self, columns: Iterable[str]) -> bool:
        """Return whether a table with these columns is such an export."""
        have = {*columns}
        return all(have.intersection(each) for each in self.needs)

    def unused(self, columns: Mapping[str, str]) -> list[str]:
        """Return the names of the columns that are not known."""
        known = {*self.uses.split(), *self.knows.split(), *sum(self.needs, ())}
        free = "x_" if self.vendors == focus.ANY else "\0"  # a provider's own columns in FOCUS
        return [name for key, name in columns.items() if key not in known and key[:2] != free]


def read(data: bytes, prices: PriceTable | None = None) -> Bill:
    """Return the costs in an export; raise RequestError if it cannot be understood.

    *prices*, by default the shipped ones, are for an export that has tokens alone.
    """
    found = table.read(data)
    form = next((each for each in FORMATS if each.fits(found.columns)), None) or _plain(found)
    bill = Bill(next(iter(form.vendors), ""), priced=form.priced, title=form.title)
    bill.vendors = form.vendors
    if both := found.twice - {*form.knows.split()} - {*form.unused(found.columns)}:
        raise _refused(f"the column {shown(found.columns[min(both)])} is there twice")
    bill.notes += [*found.notes, *filter(None, [form.note])]
    if unused := form.unused(found.columns):
        bill.notes.append(f"columns that are not used: {table.names(unused)}")
    clouds, known = set[str](), prices or shipped()
    for line in found.lines:
        cells = Cells(found, line, known)
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
    if form.vendors == focus.ANY:
        bill.vendors, bill.vendor = tuple(sorted(clouds)), min(clouds, default="")
    return bill


def _refused(message: str) -> RequestError:
    return RequestError(message, param="reconcile")


# -- readers of a line -----------------------------------------------------------------------------


def _dollars(cells: Cells, *keys: str, currency: tuple[str, ...] = _PLAIN_CURRENCY) -> Fraction:
    code = cells.text(*currency)
    amount = cells.amount(*keys)
    if code.lower() not in ("", "usd"):
        name = cells.column(*currency)
        raise cells.bad(name, f"the currency must be usd, not {shown(code.lower())}")
    return amount


def _costs(
    cells: Cells,
    days: Iterable[str],
    models: Iterable[str],
    amounts: Iterable[str],
    *,
    or_else: Iterable[str] = (),  # columns that name other things than models
    scale: int = 1,
) -> Iterator[Charge]:
    day, offset = cells.day(*days, local=bool(cells.column("end_time_iso")))
    name = cells.text(*models)
    if not cells.text(*amounts) and not name:
        yield Charge(day, empty=True, offset=offset)
        return
    model = model_key(_line_item(name) if cells.column(*models) == "line_item" else name)
    model = model or model_key(cells.text(*or_else))
    yield Charge(day, model, _dollars(cells, *amounts) / scale, offset=offset)


def _line_item(text: str) -> str:
    """Return the model of a line item, which also has the kind of tokens: that is dropped."""
    head, comma, _ = _PREFIX.sub("", text).partition(",")
    return head.split(" ", 1)[0] if comma else head


def _openai_costs(cells: Cells) -> Iterator[Charge]:
    models = ("line_item", "name", "model")
    yield from _costs(cells, _OPENAI_DAY, models, ("amount_value", "cost_in_major"))


def _anthropic_costs(cells: Cells) -> Iterator[Charge]:
    kind = ("cost_type", "description", "usage_type")
    yield from _costs(cells, _ANTHROPIC_DAY, ("model",), ("cost_usd",), or_else=kind)


def _anthropic_report(cells: Cells) -> Iterator[Charge]:
    kind = ("cost_type", "description")
    yield from _costs(cells, _ANTHROPIC_DAY, ("model",), ("amount",), or_else=kind, scale=100)


def _openai_usage(cells: Cells) -> Iterator[Charge]:
    yield from usage.openai(cells, *cells.day(*_OPENAI_DAY, local=True))


def _anthropic_usage(cells: Cells) -> Iterator[Charge]:
    yield from usage.anthropic(cells, cells.day(*_ANTHROPIC_DAY)[0])


def _openrouter(cells: Cells, days: tuple[str, ...], *amounts: str) -> Iterator[Charge]:
    """Yield OpenRouter's own charge, and that of the providers whose keys are the user's."""
    day, _ = cells.day(*days)
    model = model_key(cells.text(*_OPENROUTER_MODEL))
    yield Charge(day, model, cells.amount(*amounts))
    if cells.text(*_OPENROUTER_BYOK):
        yield Charge(day, model, cells.amount(*_OPENROUTER_BYOK), _BYOK)


def _openrouter_activity(cells: Cells) -> Iterator[Charge]:
    yield from _openrouter(cells, ("date",), "usage")


def _openrouter_generations(cells: Cells) -> Iterator[Charge]:
    yield from _openrouter(cells, ("created_at",), "cost_total", "total_cost")


def _deepseek_costs(cells: Cells) -> Iterator[Charge]:
    yield from _costs(cells, _DEEPSEEK_DAY, ("model",), ("cost",))


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

_TIMES = "start_time start_time_iso end_time end_time_iso ending_at"
_WHO = (
    "project_id project_name organization_id organization_name user_id user_email user api_key_id "
    "api_key_name api_key_redacted api_key api_key_status api_key_disabled workspace workspace_id "
    "workspace_name object"
)
FORMATS = (
    Format(
        "FOCUS",
        focus.ANY,
        (("billedcost",), ("chargeperiodstart",)),
        focus.charges,
        uses=focus.USES,
        knows=focus.KNOWS,
    ),
    Format(
        "OpenRouter's generations",
        ("openrouter",),
        (("created_at",), ("cost_total", "total_cost"), _OPENROUTER_MODEL),
        _openrouter_generations,
        uses=" ".join(_OPENROUTER_BYOK),
        knows=f"{_WHO} id generation_id cost_web_search cost_cache cost_file_processing "
        "tokens_prompt tokens_completion tokens_reasoning tokens_cached native_tokens_prompt "
        "native_tokens_completion native_tokens_completion_images native_tokens_reasoning "
        "native_tokens_cached num_media_prompt num_input_audio_prompt num_media_completion "
        "num_search_results provider_name variant cancelled streamed finish_reason "
        "finish_reason_raw finish_reason_normalized native_finish_reason generation_time "
        "generation_time_ms time_to_first_token_ms latency moderation_latency app_id app_name "
        "usage cache_discount is_byok origin external_user upstream_id api_type router "
        "provider_responses service_tier request_id session_id",
    ),
    Format(
        "OpenRouter's activity",
        ("openrouter",),
        (("date",), ("usage",), _OPENROUTER_MODEL),
        _openrouter_activity,
        uses=" ".join(_OPENROUTER_BYOK),
        knows=f"{_WHO} endpoint_id provider_name requests byok_requests prompt_tokens "
        "completion_tokens reasoning_tokens cached_tokens total_tokens provider app app_name",
    ),
    Format(
        "DeepSeek's usage",
        ("deepseek",),
        (_DEEPSEEK_DAY, ("type",), ("price",), ("amount",), ("model",)),
        _deepseek_usage,
        knows=f"{_WHO} {_TIMES}",
        note="it names no currency: its prices are taken as USD",
    ),
    Format(
        "DeepSeek's costs",
        ("deepseek",),
        (_DEEPSEEK_DAY, ("wallet_type", "utc_date"), ("cost",), ("model",)),
        _deepseek_costs,
        uses="currency",
        knows=f"{_WHO} {_TIMES} wallet_type",
    ),
    Format(
        "Anthropic's costs",
        ("anthropic",),
        (("usage_date_utc",), ("cost_usd",)),
        _anthropic_costs,
        uses="model cost_type description usage_type",
        knows=f"{_WHO} context_window token_type list_price_usd inference_geo speed",
    ),
    Format(
        "Anthropic's cost report",
        ("anthropic",),
        (("starting_at",), ("amount",), ("cost_type", "token_type", "workspace_id")),
        _anthropic_report,
        uses="model description cost_type currency",
        knows=f"{_WHO} {_TIMES} context_window token_type service_tier inference_geo speed",
    ),
    Format(
        "Anthropic's usage",
        ("anthropic",),
        (_ANTHROPIC_DAY, usage.ANTHROPIC_OUTPUT),
        _anthropic_usage,
        uses=usage.ANTHROPIC_USES,
        knows=f"{_WHO} {_TIMES} account_id service_account_id",
        priced=False,
    ),
    Format(
        "OpenAI's costs",
        ("openai",),
        (_OPENAI_DAY, ("amount_value", "cost_in_major")),
        _openai_costs,
        uses="line_item name model amount_currency currency",
        knows=f"{_WHO} {_TIMES} date timestamp quantity quantity_unit cost",
    ),
    Format(
        "OpenAI's usage",
        ("openai",),
        (_OPENAI_DAY, ("num_model_requests", "input_cached_tokens"), ("input_tokens",)),
        _openai_usage,
        uses=usage.OPENAI_USES,
        knows=f"{_WHO} {_TIMES} date timestamp n_requests",
        priced=False,
    ),
)


def _plain(found: Table) -> Format:
    """Return the format of a table of date, model and dollars."""
    columns = found.columns
    day, model, usd, currency = (
        [name for name in names if name in columns][:1]
        for names in (_PLAIN_DAY, _PLAIN_MODEL, _PLAIN_USD, _PLAIN_CURRENCY)
    )
    if {"num_model_requests", "num_sessions", "usage_bytes"} & {*columns} and not usd:
        raise _refused(
            "this is OpenAI's usage of something that is billed by no tokens, without dollars: "
            "export the costs instead"
        )
    if not day or not usd:
        raise _refused(
            f"the columns {shown(', '.join(columns))} are not those of a known bill; use a table "
            "of date, model and usd, or an export from OpenAI, Anthropic, OpenRouter, DeepSeek or "
            "a cloud (FOCUS)"
        )

    def read(cells: Cells) -> Iterator[Charge]:
        return _costs(cells, day, model, usd)

    uses = " ".join([*model, *currency])
    return Format("date, model and dollars", (), (tuple(day), tuple(usd)), read, uses=uses)
