"""FOCUS, the format of bills from AWS, Azure, Google and others: usage of models, by day.

A cloud's bill has many other services, and no column for a model: its name is found in the SKU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from fractions import Fraction

from ...errors import shown
from . import Charge
from .cells import Cells
from .models import model_key, spoken_of

ANY = ("*",)  # any vendor: each line names its own
# columns that may name a model, the most exact first; names of resources are the user's own
_WORDS = (
    "skumeter",
    "x_skumetername",
    "x_skudescription",
    "x_usagetype",
    "chargedescription",
    "x_skumetersubcategory",
    "servicename",
    "servicesubcategory",
    "x_servicecode",
    "x_operation",
)
_ARN = re.compile(r"\Aarn:aws[\w-]*:bedrock:.*?:(?:foundation-model|inference-profile)/(.+)\Z")
_SERVICES = re.compile(r"bedrock|openai|vertex|gemini|foundry|cognitive services|sagemaker", re.I)
_PROVIDERS = (  # a cloud's name on its bill, and names of its provider in the configuration
    (re.compile(r"aws|amazon", re.I), ("bedrock", "aws")),
    (re.compile(r"microsoft|azure", re.I), ("azure",)),
    (re.compile(r"google|gcp", re.I), ("gemini", "google", "vertex")),
)
_CURRENCY = ("billingcurrency",)
KNOWS = (  # further columns of FOCUS, and each provider's own
    r"x_.*|.*(?:id|names?|type|tags|zone|start|end|status|class|category|frequency|quantity|unit"
    r"|description|meter|details|applied|price|cost|currency|provider|publisher|issuer|region)"
)


def charges(cells: Cells) -> Iterator[Charge]:
    """Yield the charge of a line; other services are kept apart."""
    category, (day, _) = cells.text("chargecategory") or "Usage", cells.day("chargeperiodstart")
    model = _model(cells)
    service = cells.text("servicename") or "other services"
    outside = category if category.lower() != "usage" else ""
    if not (outside or model or _is_of_models(cells, service)):
        outside = service
    code, usd = cells.text(*_CURRENCY).upper(), _dollars(cells)
    if outside:
        yield Charge(day, usd=usd, outside=outside if usd is not None else f"{outside} in {code}")
        return
    if usd is None:
        raise cells.bad(_CURRENCY[0], f"the currency must be USD, not {shown(code)}")
    if cells.text("chargeperiodend"):
        end, _ = cells.day("chargeperiodend")
        days = (date.fromisoformat(end) - date.fromisoformat(day)).days
        if days > 1:
            problem = f"the line is of {days} days: export the bill by day"
            raise cells.bad("chargeperiodend", problem)
    named = model or model_key(next(filter(None, map(cells.text, _WORDS)), ""))
    yield Charge(day, named, usd)


def vendors(cells: Cells) -> tuple[str, ...]:
    """Return the names that the provider of a line may have."""
    own = "providername", "serviceprovidername", "invoiceissuername", "publishername"
    name = cells.text(*own)
    known = (names for words, names in _PROVIDERS if words.search(name))
    return next(known, (model_key(name),) if name else ())


def _dollars(cells: Cells) -> Fraction | None:
    """Return the cost, or None if it is in another currency alone."""
    if cells.text(*_CURRENCY).upper() in ("", "USD"):
        return cells.amount("billedcost")
    return cells.amount("x_billedcostinusd") if cells.text("x_billedcostinusd") else None


def _model(cells: Cells) -> str:
    found = _ARN.match(cells.text("resourceid"))
    named = model_key(found[1]) if found and re.search(r"[a-z]\.[a-z]", found[1]) else ""
    # names of other services also contain words such as o3
    words = _WORDS if _is_of_models(cells, cells.text("servicename")) else ("servicename",)
    return named or spoken_of(map(cells.text, words))


def _is_of_models(cells: Cells, service: str) -> bool:
    category = cells.text("servicecategory").lower()
    if category:
        return category == "ai and machine learning"
    return not cells.column("servicecategory") or bool(_SERVICES.search(service))
