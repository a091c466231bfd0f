"""Money before and after a call: the worst case is held, the truth is written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from . import prices, tokens
from .call import Call
from .fleet import Fleet
from .ledger import Budget, Ledger, LedgerUnavailable, record
from .protocol import InferRequest
from .types import Target, Usage

log = logging.getLogger("infermux")
MARGIN = 1.25                               # on the estimate of the input, which is off by so much at its 95th percentile
GUESSED_OUTPUT = 4096                       # tokens, where neither the request nor the price table bounds the answer
QUIET = 60.0                                # seconds between two complaints about a ledger that cannot be written


class Spending:
    """What a router does with its ledger."""

    def __init__(self, ledger: Ledger, fleet: Fleet, *, lease: float, clock: Callable[[], float] = time.time) -> None:
        self.ledger = ledger
        self._fleet = fleet
        self._lease = lease                 # seconds after which the hold of a worker that was killed is free again
        self._clock = clock
        self._complained = 0.0

    def reserve(self, call: Call, target: Target) -> None:
        """Hold what the call may cost at *target*; raise BudgetExceeded, or LedgerUnavailable where the budget is a hard one."""
        budget = call.caller.budget
        if not isinstance(budget, Budget):
            return
        worst = self.worst(call.request, target) or 0
        try:
            if call.hold is None:
                call.hold = self.ledger.reserve(budget, worst, call_id=call.id, at=self._clock(), lease=self._lease,
                                                over=bool(call.override))
            elif worst > call.hold.pico:
                call.hold = self.ledger.top_up(call.hold, worst - call.hold.pico, at=self._clock(), lease=self._lease)
        except LedgerUnavailable as error:
            if budget.then != "warn":
                raise
            self._complain(error)

    def settle(self, call: Call) -> None:
        """Write the call down; a ledger that cannot be written costs the record, never the answer."""
        try:
            self.ledger.settle(record(call), call.hold)
        except LedgerUnavailable as error:
            self._complain(error)

    def worst(self, request: InferRequest, target: Target, size: int | None = None) -> int | None:
        """Return the most that the call may cost at *target*, in pico-USD, or None where the price is not known.

        *size* as in `Fleet.snapshot`.
        """
        price = self._fleet.price(target)
        told = [value for name in ("max_completion_tokens", "max_tokens") if type(value := request.params.get(name)) is int and value > 0]
        most = max(told, default=(price and price.max_output) or GUESSED_OUTPUT)
        size = tokens.estimate_messages(request.messages) if size is None else size
        return prices.cost(Usage(round(size * MARGIN), most), price)

    def _complain(self, error: LedgerUnavailable) -> None:
        now = time.monotonic()
        if now - self._complained >= QUIET:
            self._complained = now
            log.error("calls are not written down: %s", error.reason)
