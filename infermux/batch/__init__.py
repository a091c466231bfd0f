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
from typing import NamedTuple

from ..dialects.openai import NAME
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
from ..routing.router import Router
from ..types import ANONYMOUS, Caller
from . import lines
from .lines import Encode, Line

MAX_WAIT = 600.0  # seconds for a vendor that throttles or is down; then the error is the result
TICK_SECONDS = 0.2  # between two updates of the progress
log = logging.getLogger("infermux")


class _HardBudget(NamedTuple):
    """A budget under which targets without a known price are not tried."""

    then: str = "reject"


class Tally:
    """The counts of a run; costs are in pico-USD."""

    def __init__(self) -> None:
        self.ok = self.failed = self.tokens_in = self.tokens_out = self.cost = self.unpriced = 0
        self.bytes = 0  # of the lines that have a result

    @property
    def lines(self) -> int:
        return self.ok + self.failed


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
        self._caller = ANONYMOUS if self.budget is None else Caller(budget=_HardBudget())
        self._held = 0  # pico-USD that lines in flight may cost at most
        self._busy = self._threads = 0
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._state, self._halt = threading.Condition(), threading.Event()

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
            self._halt.set()
            self._state.notify_all()

    def _over(self) -> bool:
        with self._state:
            if self._threads and not (self.stopped and not self._busy):
                self._state.wait(TICK_SECONDS)
            return not self._threads or bool(self.stopped and not self._busy)

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
                body = strict_json.encode(encode_error(error))
                result = lines.answered(line, error.status, new_id(), body, 0)
            self._put(line, result, ok=False)
            return
        worst = 0 if self.budget is None else self._worst(line, request)
        if self._hold(worst):
            calls: list[Call] = []
            try:
                answer = self._ask(request, encode, calls)
            finally:
                self._settle(calls, worst)
            if answer is not None:
                cost, unpriced = _cost(calls)
                result = lines.answered(line, *answer, None if unpriced else cost)
                self._put(line, result, ok=answer[0] == 200)

    def _ask(
        self, request: InferRequest, encode: Encode, calls: list[Call]
    ) -> tuple[int, str, bytes] | None:
        """Send a request, with retries; return status, id and body, or None after a stop."""
        until = time.monotonic() + MAX_WAIT
        while True:
            call = self.router.begin(request, caller=self._caller, api="batch")
            calls.append(call)
            try:
                return 200, call.id, encode(call, self.router.answer(call))
            except InferMuxError as error:
                failure = error
                wait = (error.retry_after or 1.0) + random.uniform(0, 0.5)
                in_time = bool(self.stopped) or time.monotonic() + wait < until
                again = in_time and self._may_recover(error, request)
            except Exception:
                log.exception("a line of a batch could not be answered")
                failure, again = InferMuxError("internal error"), False
            if not again:
                native = failure.native_in(NAME)
                status = failure.status if native is None else native.status
                return status, call.id, strict_json.encode(encode_error(failure))
            if self._halt.wait(wait):
                return None

    def _may_recover(self, error: InferMuxError, request: InferRequest) -> bool:
        """Return whether the vendor throttles or is down, or every circuit is open now."""
        if isinstance(error, NoHealthyProvider):
            route = self.router.registry.route(request.model, request.provider)
            priced = self.budget is not None
            unfit = self.router.targets.snapshot(route, request, 0, priced=priced).unfit
            return not all(target in unfit for target in flat(route))
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

    def _settle(self, calls: list[Call], worst: int) -> None:
        """Count the cost of a line's calls, for unpriced ones the worst case."""
        cost, unpriced = _cost(calls)
        with self._state:
            self._held -= worst
            self.spent += cost + (worst if unpriced else 0)
            self.tally.cost += cost
            self.tally.unpriced += unpriced
            for call in calls:
                self.tally.tokens_in += call.tokens[0]
                self.tally.tokens_out += call.tokens[1]
            self._state.notify_all()

    def _hold(self, worst: int) -> bool:
        """Return whether *worst* pico-USD are reserved; wait for room in the budget, or stop."""
        if self.budget is None:
            return True
        with self._state:
            while not self.stopped and self._held and self.spent + self._held + worst > self.budget:
                self._state.wait()
            if self.spent + worst > self.budget:
                self.stop("budget")
            if not self.stopped:
                self._held += worst
            return not self.stopped

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


def _cost(calls: list[Call]) -> tuple[int, int]:
    """Return the pico-USD of the billed attempts, and how many are unpriced."""
    billed = [each.cost for call in calls for each in call.attempts if each.usage is not None]
    return sum(filter(None, billed)), billed.count(None)
