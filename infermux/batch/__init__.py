"""Runs a batch: many lines through the router, each answered once, within a budget and in constant
memory.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .. import pricing as prices
from ..dialects.openai.downstream import encode_error
from ..errors import (
    InferMuxError,
    ModelNotFound,
    NoHealthyProvider,
    ProtocolError,
    ProviderRateLimited,
    QuotaExhausted,
    RequestError,
    Unavailable,
    shown,
)
from ..planning.call import Call
from ..planning.registry import flat
from ..protocol import InferRequest, new_id, strict_json
from ..routing.accounting import max_input, max_output
from ..routing.router import Router
from ..types import ANONYMOUS, Caller, Usage
from . import lines as batchlines
from .lines import Encode, Line

# seconds that a line waits for a vendor that throttles or is down, before that is its result
PATIENCE = 600.0
TICK = 0.2  # seconds between two looks at how far a run is
log = logging.getLogger("infermux")


class _Hard(NamedTuple):
    """A budget for planning: a target whose price is not known is not tried."""

    then: str = "reject"


class Tally:
    """How far a run has come."""

    def __init__(self) -> None:
        self.ok = self.failed = self.tokens_in = self.tokens_out = self.cost = self.unpriced = 0
        self.bytes = 0  # of the lines that have their results

    @property
    def lines(self) -> int:
        """Lines that have their results."""
        return self.ok + self.failed


class Batch:
    """One run over the lines of a batch: a few threads take line after line, so that no more lines
    are held than there are threads.
    """

    def __init__(
        self,
        router: Router,
        write: Callable[[bytes], object],
        *,
        model: str = "",
        budget: int | None = None,
        spent: int = 0,
        concurrency: int = 32,
        patience: float = PATIENCE,
    ) -> None:
        self.tally = Tally()
        self.stopped = ""  # why no more lines are taken: "interrupted", "budget" or "failed"
        self.error: BaseException | None = None
        self._router = router
        self._write = write
        self._model = model  # for every line, if given
        self._budget = budget  # pico-USD, *spent* before this run included
        self._spent = spent
        self._concurrency = concurrency
        self._patience = patience
        self._caller = ANONYMOUS if budget is None else Caller(budget=_Hard())
        self._held = 0  # pico-USD that lines in flight may cost at most
        self._busy = self._threads = 0
        self._reading, self._writing, self._state = (
            threading.Lock(),
            threading.Lock(),
            threading.Condition(),
        )
        self._halt = threading.Event()

    def run(self, lines: Iterator[Line], tick: Callable[[], object] = lambda: None) -> None:
        """Answer *lines*; return when all have their results, or after a stop when those in flight
        have; call *tick* meanwhile.
        """
        self._threads = self._concurrency
        for _ in range(
            self._concurrency
        ):  # daemons: one that waits for an input without end must not keep the process
            threading.Thread(target=self._work, args=(lines,), daemon=True).start()
        while not self._over():
            tick()
        tick()
        if self.error is not None:
            raise self.error

    def stop(self, why: str = "interrupted") -> None:
        """Take no more lines."""
        with self._state:
            self.stopped = self.stopped or why
            self._halt.set()
            self._state.notify_all()

    def _over(self) -> bool:
        with self._state:
            if self._threads and not (self.stopped and not self._busy):
                self._state.wait(TICK)
            return not self._threads or bool(self.stopped and not self._busy)

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stop("failed")

    # -- in a thread of its own --------------------------------------------------------------------

    def _work(self, lines: Iterator[Line]) -> None:
        try:
            while (line := self._next(lines)) is not None:
                try:
                    self._finish(line)
                finally:
                    with self._state:
                        self._busy -= 1
                        self._state.notify_all()
        except BaseException as error:  # whatever it is, the run must end with it and not hang
            self._fail(error)
        finally:
            with self._state:
                self._threads -= 1
                self._state.notify_all()

    def _next(self, lines: Iterator[Line]) -> Line | None:
        with self._reading:
            line = None if self.stopped else next(lines, None)
            with self._state:
                if line is None or self.stopped:
                    return None
                self._busy += 1
                return line

    def _finish(self, line: Line) -> None:
        """Give a line its result; one that was stopped before it was asked has none."""
        try:
            if isinstance(line.asked, InferMuxError):
                raise line.asked
            request, encode = batchlines.decode(line.asked, self._model)
            request.check()
        except RequestError as error:
            self._put(
                line,
                batchlines.refused(line, error)
                if error is line.asked or isinstance(error, ProtocolError)
                else batchlines.answered(
                    line, error.status, new_id(), strict_json.encode(encode_error(error)), 0
                ),
                ok=False,
            )
            return
        worst = 0 if self._budget is None else self._worst(line, request)
        if self._hold(worst):
            calls: list[Call] = []
            try:
                said = self._ask(request, encode, calls)
            finally:
                self._settle(calls, worst)
            if said is not None:
                cost, unpriced = _cost(calls)
                self._put(
                    line,
                    batchlines.answered(line, *said, None if unpriced else cost),
                    ok=said[0] == 200,
                )

    def _ask(
        self, request: InferRequest, encode: Encode, calls: list[Call]
    ) -> tuple[int, str, bytes] | None:
        """Return status, id and body, however often the vendor must be waited for; None if the run
        is stopped meanwhile.
        """
        until = time.monotonic() + self._patience
        while True:
            call = self._router.begin(request, caller=self._caller, api="batch")
            calls.append(call)
            try:
                return 200, call.id, encode(call, self._router.answer(call))
            except InferMuxError as error:
                failure, wait = error, (error.retry_after or 1.0) + random.uniform(0, 0.5)
                worth = self._worth_waiting(error, request) and (
                    bool(self.stopped) or time.monotonic() + wait < until
                )
            except Exception:
                log.exception("a line of a batch could not be answered")
                failure, worth = InferMuxError("internal error"), False
            if not worth:
                return failure.status, call.id, strict_json.encode(encode_error(failure))
            if self._halt.wait(wait):
                return None

    def _worth_waiting(self, error: InferMuxError, request: InferRequest) -> bool:
        """Whether the same line may be answered a little later: a vendor throttles, or every target
        is shut for now.
        """
        if isinstance(error, NoHealthyProvider):
            route = self._router.registry.route(request.model, request.provider)
            unfit = self._router.targets.snapshot(
                route, request, 0, priced=self._budget is not None
            ).unfit
            return not all(target in unfit for target in flat(route))
        return isinstance(error, Unavailable) or (
            isinstance(error, ProviderRateLimited) and not isinstance(error, QuotaExhausted)
        )

    # -- what comes of it --------------------------------------------------------------------------

    def _put(self, line: Line, result: bytes, *, ok: bool) -> None:
        with (
            self._writing
        ):  # a result is one piece in the file, and after a failure nothing may follow its stump
            if self.error is not None:
                return
            try:
                self._write(result)
            except OSError as error:
                self._fail(error)
                return
        with self._state:
            self.tally.ok += ok
            self.tally.failed += not ok
            self.tally.bytes += line.size

    def _settle(self, calls: list[Call], worst: int) -> None:
        """Count what the calls of a line cost; what has no price counts as its worst case against
        the budget.
        """
        cost, unpriced = _cost(calls)
        with self._state:
            self._held -= worst
            self._spent += cost + (worst if unpriced else 0)
            tally = self.tally
            tally.cost += cost
            tally.unpriced += unpriced
            for call in calls:
                tokens_in, tokens_out = call.tokens
                tally.tokens_in += tokens_in
                tally.tokens_out += tokens_out
            self._state.notify_all()

    def _hold(self, worst: int) -> bool:
        """Wait until the budget has room for *worst*; stop the run if it never will."""
        if self._budget is None:
            return True
        with self._state:
            while (
                not self.stopped and self._held and self._spent + self._held + worst > self._budget
            ):
                self._state.wait()
            if not self.stopped and self._spent + worst > self._budget:
                self.stop("budget")
            if not self.stopped:
                self._held += worst
            return not self.stopped

    def _worst(self, line: Line, request: InferRequest) -> int:
        """Return the most pico-USD that a request may cost at any of its targets; raise
        RequestError if none has a price.
        """
        try:
            targets = self._router.registry.resolve(request.model, request.provider)
        except ModelNotFound:  # the call itself will say so, and cost nothing
            return 0
        known = [price for price in map(self._router.targets.price, targets) if price is not None]
        if not known:
            raise RequestError(
                f"line {line.number}: the price of {shown(request.model)} is not known, and a budget needs one: "
                f"state it in the configuration, as [providers.{targets[0].provider}] prices"
            )
        tokens_in = max_input(request)
        return max(
            prices.cost(Usage(tokens_in, max_output(request, price)), price) or 0 for price in known
        )


def _cost(calls: list[Call]) -> tuple[int, int]:
    """Return the pico-USD of every attempt that was billed, and how many of those have no price."""
    billed = [
        attempt.cost for call in calls for attempt in call.attempts if attempt.usage is not None
    ]
    return sum(cost for cost in billed if cost is not None), billed.count(None)
