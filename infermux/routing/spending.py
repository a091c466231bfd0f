"""Money before and after a call: the worst case is held, the truth is written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from .. import pricing as prices
from ..ledger import Budget, Hold, Ledger, LedgerUnavailable
from ..planning.call import Call
from ..pricing import token_estimate as tokens
from ..protocol import InferRequest
from ..types import Target, Usage
from .accounting import record
from .targets import TargetPool

log = logging.getLogger("infermux")
MARGIN = 1.25  # on the estimate of the input, which is off by so much at its 95th percentile
OVERHEAD = 3  # tokens by which every answer is opened, in OpenAI's cookbook
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
GUESSED_OUTPUT = 4096  # tokens, where neither the request nor the price table bounds the answer
QUIET = 60.0  # seconds between two complaints about a ledger that cannot be written


def most_in(request: InferRequest, size: int | None = None) -> int:
    """Return the most tokens that are likely to go in: messages (*size*, if known), tools, and
    whatever else is text.
    """
    size = tokens.estimate_messages(request.messages) if size is None else size
    more = {
        name: value
        for name, value in request.params.items()
        if isinstance(value, str | list | dict)
    }
    return round((size + (tokens.estimate(str(more)) if more else 0)) * MARGIN) + OVERHEAD


def most_out(request: InferRequest, price: prices.Price) -> int:
    """Return the most tokens that may come out, by what the request or the price table says."""
    if request.op == "embeddings":
        return 0
    told = [count for name in LIMITS if (count := _count(request.params.get(name)))]
    return max(told, default=price.max_output or GUESSED_OUTPUT) * (
        _count(request.params.get("n")) or 1
    )


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


class Spending:
    """What a router does with its ledger."""

    def __init__(
        self,
        ledger: Ledger,
        targets: TargetPool,
        *,
        lease: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ledger = ledger
        self._targets = targets
        self._lease = (
            lease  # seconds after which the hold of a worker that was killed is free again
        )
        self._clock = clock
        self.lost = 0  # calls that the ledger of this process did not take
        self._complained = -QUIET

    def reserve(self, call: Call, target: Target) -> None:
        """Hold what the call may cost at *target*; raise BudgetExceeded, or LedgerUnavailable where
        the budget is a hard one.
        """
        budget = call.caller.budget
        if not isinstance(budget, Budget):
            return
        worst, now = self.worst(call.request, target, call.input_size) or 0, self._clock()
        try:
            if call.hold is None:
                call.hold = self.ledger.reserve(
                    budget,
                    worst,
                    call_id=call.id,
                    at=now,
                    lease=self._lease,
                    over=bool(call.override),
                )
            elif worst > call.hold.pico:
                call.hold = self.ledger.top_up(
                    call.hold, worst - call.hold.pico, at=now, lease=self._lease
                )
        except LedgerUnavailable as error:
            if budget.then != "warn":
                raise
            call.hold = call.hold or Hold(
                call.id, budget, worst, now
            )  # whose budget pays, if its settling can be written
            self._complain(error)

    def settle(self, call: Call) -> None:
        """Write the call down; a ledger that cannot be written costs the record, never the answer."""
        try:
            self.ledger.settle(record(call), call.hold)
        except LedgerUnavailable as error:
            self.lost += 1  # two threads at once may count as one: it is for people
            self._complain(error)

    def worst(self, request: InferRequest, target: Target, size: int | None = None) -> int | None:
        """Return the most that the call may cost at *target*, in pico-USD, or None where the price
        is not known.

        *size* as in `TargetPool.snapshot`.
        """
        price = self._targets.price(target)
        return (
            None
            if price is None
            else prices.cost(Usage(most_in(request, size), most_out(request, price)), price)
        )

    def _complain(self, error: LedgerUnavailable) -> None:
        now = time.monotonic()
        if now - self._complained >= QUIET:
            self._complained = now
            log.error("calls are not written down (%d so far): %s", self.lost, error.reason)
