"""How an amount of budgets is reserved, whatever the database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from typing import NamedTuple

from . import Budget

MAX_USERS = 100_000  # end users whose budgets are counted at a time
WARN_MS = 3_600_000  # between two warnings about a budget
MICRO = 10**6  # pico-USD
MAX_SPENT = 9 * 10**18  # pico-USD with which a period can begin


class Rules(NamedTuple):
    """How an amount is reserved at the time *at*."""

    at: float
    expires: float  # when the hold does
    over: bool  # whether the limit may be exceeded
    expire: Callable[[], bool]  # whether holds whose lease has ended may be freed
    zone: tzinfo


class Refused(NamedTuple):
    """The budget that has too little left, and how much that is."""

    budget: Budget
    left: int
