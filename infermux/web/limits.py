"""Headers that tell a caller its limits, in the spelling of its API."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from ..ledger import Budget, LedgerUnavailable
from ..planning.call import Call
from ..pricing import usd
from ..routing.router import Router


class Figures(NamedTuple):
    """What a limit allows per minute, what is left of it, and the seconds until all of it is."""

    kind: str  # requests or tokens
    limit: int
    left: int
    reset: float


def limit_headers(router: Router, call: Call) -> dict[str, str]:
    """Return the headers for the limits of the call's caller: rates, then the budget."""
    spelled = _anthropic if call.api == "anthropic" else _openai
    found: dict[str, str] = {}
    for figures in _tightest(call).values():
        found |= spelled(figures)
    return found | _budget(router, call)


def _tightest(call: Call) -> Mapping[str, Figures]:
    """Return, for each kind, the figures of the limit that has the least left."""
    found: dict[str, Figures] = {}
    for window in call.windows:
        for kind, limit, used, reset in (
            ("requests", window.rpm, window.requests, window.requests_reset),
            ("tokens", window.tpm, window.tokens, window.tokens_reset),
        ):
            if limit:
                own = Figures(kind, limit, max(0, limit - used), reset)
                found[kind] = min(found.get(kind, own), own, key=lambda figures: figures.left)
    return found


def _openai(figures: Figures) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{figures.kind}": str(figures.limit),
        f"x-ratelimit-remaining-{figures.kind}": str(figures.left),
        f"x-ratelimit-reset-{figures.kind}": _duration(figures.reset),
    }


def _anthropic(figures: Figures) -> dict[str, str]:
    return {
        f"anthropic-ratelimit-{figures.kind}-limit": str(figures.limit),
        f"anthropic-ratelimit-{figures.kind}-remaining": str(figures.left),
        f"anthropic-ratelimit-{figures.kind}-reset": _moment(time.time() + figures.reset),
    }


def _budget(router: Router, call: Call) -> dict[str, str]:
    """Return the headers for the budget that has the least left."""
    budget = call.caller.budget
    if router.ledger is None or not isinstance(budget, Budget):
        return {}
    if call.hold is not None and call.hold.known is not None:
        tightest, limit, left = call.hold.known
        if call.ended is not None:  # the hold is settled
            left += call.hold.pico - sum([attempt.cost or 0 for attempt in call.attempts])
        return _told(limit, left, tightest.resets(call.hold.at, router.ledger.zone))
    try:
        states = router.ledger.states(budget.all, time.time())
    except LedgerUnavailable:  # the call itself tells
        return {}
    state = min(states, key=lambda each: each.left)
    return _told(state.limit, state.left, state.resets)


def _told(limit: int, left: int, resets: float | None) -> dict[str, str]:
    found = {
        "X-Infermux-Budget-Limit": usd(limit),
        "X-Infermux-Budget-Remaining": usd(max(0, left)),
    }
    if resets is not None:
        found["X-Infermux-Budget-Reset"] = _moment(resets)
    return found


def _duration(seconds: float) -> str:
    """Return seconds as OpenAI writes them: 1s, 6m0s."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(math.ceil(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"
