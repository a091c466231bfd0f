"""What calls have cost, for operators: the same numbers as `infermux costs`, from the same
questions to the ledger.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from flask import Response, request

from ..config.schema import close
from ..errors import NotFound, RequestError, shown
from ..ledger import Ledger, LedgerUnavailable, reports
from ..routing.router import Router
from . import json_answer

Value = TypeVar("Value")
_PARAMETERS = ("by", "since", "until", "month", "caller", "limit")
log = logging.getLogger("infermux")


def costs(router: Router) -> Response:
    """Answer with the costs by model, or by what else is asked for."""
    span, caller, limit = _asked(time.time())
    by = reports.dimensions(request.args.getlist("by"))
    found = _told(
        router, lambda ledger: reports.costs(ledger, by, span, caller=caller, limit=limit)
    )
    return json_answer(found.to_dict())


def series(router: Router) -> Response:
    """Answer with the costs of each day or hour, with none left out."""
    now = time.time()
    span, caller, limit = _asked(now)
    step = request.args.get("by") or "day"
    return json_answer(
        _told(
            router,
            lambda ledger: reports.series(ledger, step, span, now, caller=caller, limit=limit),
        )
    )


def _asked(now: float) -> tuple[reports.Period, str | None, int]:
    """Return the time, the caller and the number of rows that are asked for; raise RequestError
    naming the parameter.
    """
    for name in request.args:
        if name not in _PARAMETERS:
            raise RequestError(
                f"there is no parameter {shown(name)}{close(name, _PARAMETERS)}", param=name[:100]
            )
    given = request.args.get
    span = reports.period(now, since=given("since"), until=given("until"), month=given("month"))
    return span, given("caller"), reports.limited(given("limit"))


def _told(router: Router, ask: Callable[[Ledger], Value]) -> Value:
    """Return what the ledger says; why it cannot is for the log."""
    if router.ledger is None:
        raise NotFound("no ledger is kept here")
    try:
        return ask(router.ledger)
    except LedgerUnavailable as error:
        log.error("the costs have no ledger: %s", error.reason)
        raise
