"""Runs batches: sends the requests in the lines of a file through a router, in constant memory.

`Batch` runs one within a budget; `lines` reads and writes the lines.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

from ..dialects.openai import NAME
from ..dialects.openai.downstream import encode_error
from ..errors import (
    BudgetExceeded,
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
from ..routing.callers import RunBudget
from ..routing.router import Router
from ..types import ANONYMOUS, Caller
from . import lines
from .lines import Encode, Line, Outcome

MAX_WAIT = 600.0  # seconds for a vendor that throttles or is down; then the error is the result
TICK_SECONDS = 0.2  # between two updates of the progress
log = logging.getLogger("infermux")


class Tally:
    """The counts of a run; costs are in pico-USD."""

    def __init__(self) -> None:
        self.ok = self.failed = self.tokens_in = self.tokens_out = self.cost = self.unpriced = 0
        self.bytes = 0  # of the lines that have a result

    @property
    def lines(self) -> int:
        return self.ok + self.failed


class _Hold(RunBudget):
    """What a batch holds for a call; each attempt is held before it is sent."""

    def __init__(self, batch: Batch, pico: int) -> None:
        self.pico, self.wanted = pico, 0
        self._batch = batch

    def reserve(self, call: Call, pico: int) -> None:
        if not self._batch.raise_hold(self, pico):
            self.wanted = pico
            raise BudgetExceeded("the rest of the budget does not cover another attempt")


@dataclass(eq=False)
class Batch:
    """A run over the lines of a batch, in threads that each hold one line at a time."""

    router: Router
    write: Callable[[bytes], object]
    _: KW_ONLY
    model: str  # for every line, if given
    budget: int | None  # pico-USD, including what earlier runs *spent*
    spent: int
    concurrency: int

    def __post_init__(self) -> None:
        self.tally = Tally()
        self.stopped = ""  # why the run stopped early: "interrupted", "budget" or "failed"
        self.error: BaseException | None = None
        self._held = 0  # pico-USD that lines in flight may cost at most
        self._busy = self._threads = 0
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._state = threading.Condition()

    def run(self, asked: Iterator[Line], tick: Callable[[], object]) -> None:
        """Process the lines *asked* until their end or a stop; call *tick* meanwhile.

        After a stop, lines in flight still get their results. Raise the first error of a thread.
        """
        self._threads = self.concurrency
        for _ in range(self.concurrency):  # daemons: one may wait for endless input at exit
            threading.Thread(target=self._work, args=(asked,), daemon=True).start()
        while not self._over():
            tick()
        tick()
        if self.error is not None:
            raise self.error

    def stop(self, why: str = "interrupted") -> None:
        with self._state:
            self.stopped = self.stopped or why
            self._state.notify_all()

    def _over(self) -> bool:
        with self._state:
            return self._state.wait_for(
                lambda: not self._threads or (bool(self.stopped) and not self._busy), TICK_SECONDS
            )

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stop("failed")

    # -- in the threads --

    def _work(self, asked: Iterator[Line]) -> None:
        try:
            while (line := self._next(asked)) is not None:
                try:
                    self._finish(line)
                finally:
                    with self._state:
                        self._busy -= 1
                        self._state.notify_all()
        except BaseException as error:  # any error must end the run, or it would hang
            self._fail(error)
        finally:
            with self._state:
                self._threads -= 1
                self._state.notify_all()

    def _next(self, asked: Iterator[Line]) -> Line | None:
        with self._reading:
            line = None if self.stopped else next(asked, None)
            with self._state:
                if line is None or self.stopped:
                    return None
                self._busy += 1
                return line

    def _finish(self, line: Line) -> None:
        """Send a line and write its result, unless the run stops before it is sent."""
        try:
            if isinstance(line.asked, InferMuxError):
                raise line.asked
            request, encode = lines.decode(line.asked, self.model)
            request.check()
        except RequestError as error:
            if error is line.asked or isinstance(error, ProtocolError):
                result = lines.refused(line, error)
            else:
                result = lines.answered(line, _failure(error, new_id()), line.cost)
            self._put(line, result, ok=False)
            return
        self._send(line, request, encode)

    def _send(self, line: Line, request: InferRequest, encode: Encode) -> None:
        """Send a request, with retries, and write its result, unless a stop comes first.

        A line whose failure may have cost something gets its result, or nobody would count that.
        """
        until, cost, sent = time.monotonic() + MAX_WAIT, list[int | None]([line.cost]), 0
        worst = 0 if self.budget is None else self._worst(line, request)
        found, done = None, False
        while not done and self._reserve(worst):
            hold = _Hold(self, worst)
            caller = ANONYMOUS if self.budget is None else Caller(budget=hold)
            call = self.router.begin(request, caller=caller, api="batch")
            try:
                found = self._ask(call, encode, until)
            finally:
                cost.append(self._settle(call, hold))
            sent, wait = sent + len(call.attempts), found.wait
            may_fail_over = found.status != 200 and sent < call.most_attempts(self.router.attempts)
            if wait is None and hold.wanted and may_fail_over:
                wait = 0.0  # there may be room for another attempt once other lines have ended
            if not call.attempts:
                worst = max(worst, hold.wanted)
            done = wait is None
            with self._state:
                if wait and self._state.wait_for(lambda: self.stopped, wait):
                    break
        if found is not None and (done or (any(cost) and self.budget is not None)):
            told = None if None in cost else sum(filter(None, cost))
            self._put(line, lines.answered(line, found, told), ok=found.status == 200)

    def _ask(self, call: Call, encode: Encode, until: float) -> Outcome:
        """Return what came of a call; after *until*, it is not sent again."""
        try:
            return Outcome(200, call.id, encode(call, self.router.answer(call)))
        except InferMuxError as error:
            wait = (error.retry_after or 1.0) + random.uniform(0, 0.5)
            in_time = bool(self.stopped) or time.monotonic() + wait < until
            again = in_time and self._may_recover(error, call.request)
            return _failure(error, call.id, wait if again else None)
        except Exception:
            log.exception("a line of a batch could not be answered")
            return _failure(InferMuxError("internal error"), call.id)

    def _may_recover(self, error: InferMuxError, request: InferRequest) -> bool:
        """Whether the vendor throttles or is down, or every circuit is open now."""
        if isinstance(error, NoHealthyProvider):
            route = self.router.registry.route(request.model, request.provider)
            priced = self.budget is not None
            unfit = self.router.targets.snapshot(route, request, 0, priced=priced).unfit
            return any(target not in unfit for target in flat(route))
        return isinstance(error, Unavailable) or (
            isinstance(error, ProviderRateLimited) and not isinstance(error, QuotaExhausted)
        )

    # -- results and money --

    def _put(self, line: Line, result: bytes, *, ok: bool) -> None:
        with self._writing:  # results do not mix
            if self.error is not None:  # nothing may follow an incomplete result
                return
            try:
                self.write(result)
            except OSError as error:
                self._fail(error)
                return
        with self._state:
            self.tally.ok += ok
            self.tally.failed += not ok
            self.tally.bytes += line.size

    def _settle(self, call: Call, hold: _Hold) -> int | None:
        """Count and return the cost of a call; None if it is unpriced and nothing is held for it.

        Under a budget, what has no price has cost what was held.
        """
        billed = [each.cost for each in call.attempts if each.usage is not None]
        cost, unpriced = sum(filter(None, billed)), billed.count(None)
        if unpriced and self.budget is not None:
            cost = max(cost, hold.pico)
        with self._state:
            self._held -= hold.pico
            self.spent += cost
            self.tally.cost += cost
            self.tally.unpriced += unpriced
            self.tally.tokens_in += call.tokens[0]
            self.tally.tokens_out += call.tokens[1]
            self._state.notify_all()
        return None if unpriced and self.budget is None else cost

    def _reserve(self, worst: int) -> bool:
        """Whether *worst* pico-USD are reserved; wait for room in the budget, or stop."""
        with self._state:
            self._state.wait_for(lambda: self.stopped or not self._held or self._has_room(worst))
            if not self.stopped and not self._has_room(worst):
                self.stop("budget")
            if not self.stopped:
                self._held += worst
            return not self.stopped

    def _has_room(self, more: int) -> bool:
        return self.budget is None or self.spent + self._held + more <= self.budget

    def raise_hold(self, hold: _Hold, pico: int) -> bool:
        """Raise what a call holds to *pico* in all; return False if there is no room for that."""
        with self._state:
            more = max(0, pico - hold.pico)
            if more and not self._has_room(more):
                return False
            self._held += more
            hold.pico += more
            return True

    def _worst(self, line: Line, request: InferRequest) -> int:
        """Return the most pico-USD that a request may cost; raise RequestError if unknown."""
        try:
            targets = self.router.registry.resolve(request.model, request.provider)
        except ModelNotFound:  # the call itself will fail, and cost nothing
            return 0
        accounting = self.router.accounting
        costs = [accounting.worst_case(request, target) for target in targets]
        known = [cost for cost in costs if cost is not None]
        if not known:
            raise RequestError(
                f"line {line.number}: the price of {shown(request.model)} is unknown, and a budget "
                f"needs it: set prices in [providers.{targets[0].provider}] of the configuration"
            )
        return max(known)


def _failure(error: InferMuxError, ident: str, wait: float | None = None) -> Outcome:
    native = error.native_in(NAME)
    status = error.status if native is None else native.status
    return Outcome(status, ident, strict_json.encode(encode_error(error)), wait)
