"""Costs: prices each answer, reserves the worst case before a call, settles the real cost after it.

`Accounting` does this for a router.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from ...dialects.openai.endpoints import FREE
from ...dialects.openai.metering import asked as asked_usage
from ...dialects.responses import RESOURCE
from ...errors import (
    BudgetExceeded,
    ProviderAuthError,
    ProviderError,
    ProviderModelNotFound,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    RequestError,
    Unavailable,
)
from ...ledger import MAX_PICO, Budget, Hold, LedgerUnavailable
from ...ledger.sql import Ledger
from ...planning.call import Attempt, Call, StreamAccumulator, for_target
from ...pricing import Price, charge, cost, usd
from ...pricing.token_estimate import estimate, estimate_messages, estimate_prompts
from ...protocol import InferRequest, InferResponse
from ...types import Caller, LogThrottle, Target, Usage
from ..callers import RunBudget
from ..stored import billed_as
from ..targets import TargetPool
from .passed import by_price, by_unit
from .records import about
from .records import record as record
from .worst_case import Worst, fitted, helped, unpriced, worst_case
from .worst_case import no_target as no_target

LIMITING_TRIES = 4  # to reserve, as other calls may take what was left
HOLD_MARGIN = 60.0  # seconds by which a hold outlasts its call
MAX_CALL = 86_400.0  # seconds of a call that a hold covers, whatever the client's timeout
MAX_BILLED = 4096  # stored responses that are remembered as billed
# operations that cost nothing themselves
UNBILLED = (RESOURCE, "input_tokens", "count_tokens", *FREE)
WORKED = 1.0  # seconds after which a vendor may bill what it answers with a server error
ASSUMED = "assumed"  # the source of a cost
_REFUSALS = (ProviderRejected, ProviderRateLimited, ProviderAuthError, ProviderModelNotFound)
log = logging.getLogger("infermux")
_NO_USAGE = Usage()


class Accounting:
    """Prices calls; with a ledger, also enforces budgets and records calls.

    A call lasts at most *deadline* seconds, else the client's timeout, else *longest*.
    """

    def __init__(
        self,
        targets: TargetPool,
        ledger: Ledger | None = None,
        *,
        deadline: float | None = None,
        longest: float = 0.0,
        content: bool = False,
    ) -> None:
        self.ledger = ledger
        self.lost = 0  # calls that could not be recorded; approximate, for display only
        self._targets = targets
        self._deadline = deadline
        self._longest = longest
        self._content = content  # whether calls keep the text of their answers
        self._billed: dict[str, None] = {}  # ids of stored responses; the ledger has them, too
        self._throttle = LogThrottle()

    # -- before and after a call --

    def check_caller(self, caller: Caller) -> None:
        """Raise LedgerUnavailable if the caller has a hard budget and there is no ledger."""
        if self.ledger is None and isinstance(caller.budget, Budget) and caller.budget.hard:
            raise LedgerUnavailable("the caller has a budget, but no ledger is configured")

    def reserve(self, call: Call, target: Target) -> None:
        """Reserve the most that *call* may cost at *target*, if its caller has a budget.

        If nothing limits the answer, and the budget cannot pay all that the model may write, the
        call gets a limit that it can pay. Raise BudgetExceeded or UnpricedModel, or
        LedgerUnavailable unless the budget only warns.
        """
        budget = call.caller.budget
        if not isinstance(budget, Budget | RunBudget) or call.request.op in UNBILLED:
            return
        if self.ledger is None and isinstance(budget, Budget):
            return
        call.most_output = call.most_uses = None
        limited = partial(self._worst, call.sent(Attempt(target, 0.0)), target, None)
        worst = limited()
        pico = None if worst is None else worst.pico
        if pico is None and budget.hard and not call.override:
            raise unpriced(target)
        before = sum([attempt.cost or 0 for attempt in call.attempts])  # that was or may be billed
        if isinstance(budget, RunBudget):
            budget.reserve(call, (pico or 0) + before)
            return
        for tries in range(LIMITING_TRIES):
            try:
                self._hold(call, target, budget, (pico or 0) + before)
                return
            except BudgetExceeded as error:
                left = (error.left or 0) + (call.hold.pico if call.hold else 0) - before
                fit = fitted(worst, left, limited) if worst is not None else None
                # at the end, other calls have taken what was left each time
                if fit is None or tries == LIMITING_TRIES - 1:
                    call.spent = error.budget
                    raise helped(error, worst, left) from None
                pico, call.most_output, call.most_uses = fit

    def _hold(self, call: Call, target: Target, budget: Budget, pico: int) -> None:
        """Reserve *pico* for the call, with what it holds already."""
        assert self.ledger is not None
        hold, now, lease = call.hold, time.time(), self.lease(call)
        if hold is not None and pico <= hold.pico:
            return
        try:
            if hold is not None:
                call.hold = self.ledger.top_up(hold, pico - hold.pico, at=now, lease=lease)
            else:
                call.hold = self.ledger.reserve(
                    budget,
                    pico,
                    call_id=call.id,
                    at=now,
                    lease=lease,
                    over=bool(call.override),
                    about=about(call, target),
                )
            for each in call.hold.warn:
                self._warn(each, now)
        except LedgerUnavailable as error:
            if budget.hard:
                raise
            call.hold = call.hold or Hold(call.id, budget, pico, now)  # settled like any other
            self._log(error)

    def lease(self, call: Call) -> float:
        """Return the seconds that a hold lasts if nobody settles it: longer than *call*."""
        timeouts = [getattr(each.provider, "timeouts", None) for each in self._targets.registry]
        own, stream = 0.0, max([each.total for each in timeouts if each], default=0.0)
        if call.settings is not None:
            own, stream = call.settings.deadline, max(stream, call.settings.longest_stream)
        limit = min(own or self._deadline or call.patience or self._longest, MAX_CALL)
        return limit + stream + HOLD_MARGIN

    def settle(self, call: Call) -> None:
        """Record *call*, or queue it if the ledger cannot be written now."""
        if self.ledger is None:
            return
        rows = record(call)
        try:
            if not self.ledger.settle(rows, call.hold) and call.settles is not None:
                call.cost = call.usage = None  # another worker has recorded it
        except LedgerUnavailable as error:
            if not self.ledger.defer(rows, call.hold):
                self.lost += 1
            self._log(error)

    def worst_case(
        self, request: InferRequest, target: Target, size: int | None = None
    ) -> int | None:
        """Return the most that a call may cost at *target* in pico-USD, or None if unpriced.

        *size* is the number of input tokens, if only that is known.
        """
        worst = self._worst(self._sent(request, target), target, size)
        return None if worst is None else worst.pico

    def exceeds(
        self, request: InferRequest, target: Target, left: int, size: int | None = None
    ) -> bool:
        """Whether *left* pico-USD cannot pay for a call, even one with a short answer."""
        limited = partial(self._worst, self._sent(request, target), target, size)
        worst = limited()
        return worst is not None and fitted(worst, left, limited) is None

    def _sent(self, request: InferRequest, target: Target) -> InferRequest:
        """Return the request that *target* would be sent, without a call."""
        registry, found = self._targets.registry, for_target(request, target, lenient=True)
        if not registry.has_settings:
            return found
        settings = registry.settings(registry.route(request.model))
        own = settings.targets.get(target) if settings is not None else None
        return found if own is None else own.applied(found)

    def _worst(
        self, request: InferRequest, target: Target, size: int | None, uses: int | None = None
    ) -> Worst | None:
        request.most_uses = uses
        price = self._targets.price(target)
        if price is None:
            return None
        name, priced = target.provider, self._targets.price
        provider = self._targets.registry.member(name).provider
        return worst_case(provider, request, price, size, lambda model: priced(Target(name, model)))

    def _warn(self, budget: Budget, now: float) -> None:
        assert self.ledger is not None
        [state] = self.ledger.states([budget], now)
        whose = f"the budget {budget.caller!r}" if budget.members else f"key {budget.caller!r}"
        if budget.user:
            whose = f"the end user {budget.user} of {whose}"
        log.warning(
            "%s has exceeded its %s USD %s: %s USD are spent and %s USD held; "
            'its calls are sent all the same (then = "warn")',
            whose,
            usd(state.limit),
            "in total" if budget.period == "total" else f"per {budget.period}",
            usd(state.spent),
            usd(state.held),
        )

    def _log(self, error: LedgerUnavailable) -> None:
        if self._throttle.due():
            log.error(
                "the ledger cannot be written: %s; calls are recorded later, %d are lost",
                error.reason,
                self.lost,
            )

    # -- what an answer cost --

    def charge_response(
        self, call: Call, attempt: Attempt, response: InferResponse
    ) -> InferResponse:
        """Price a complete answer, and return it with the usage that was charged."""
        attempt.served = response.model
        call.finish_reason = response.finish_reason
        if call.request.op in UNBILLED:
            return self._settled(call, attempt, response)
        if response.extra.get("pending"):  # billed when it has ended and is read
            attempt.usage = call.usage = _NO_USAGE
            self._keep_hold(call, attempt, response.id)
            return response
        if self._content:
            call.answer = response.content
        usage = response.usage or Usage(
            response.tokens_in, response.tokens_out, cost_usd=response.cost_usd
        )
        usage = _completed(call.request, usage, partial(said, response))
        self._charge(call, attempt, usage)
        if response.usage is usage:
            return response
        tokens_in, tokens_out = usage.input_tokens or 0, usage.output_tokens or 0
        return replace(response, usage=usage, tokens_in=tokens_in, tokens_out=tokens_out)

    def _settled(self, call: Call, attempt: Attempt, response: InferResponse) -> InferResponse:
        """Price a stored response or a batch that has ended, if it was not billed before."""
        if (began := response.extra.get("began")) is not None:
            call.settles = billed_as(attempt.target.provider, response.id, began)
        if call.settles is None or response.usage is None or call.settles[1] in self._billed:
            call.settles = None
            return response
        before, attempt.target = attempt.target, Target(attempt.target.provider, response.model)
        self._charge(call, attempt, response.usage, response.extra.get("requests", 1))
        budget = call.caller.budget
        if self.ledger is not None and isinstance(budget, Budget):  # `_keep_hold` may have held it
            call.hold = Hold(call.settles[1], budget, 0, call.settles[0] / 1e9)
            if attempt.cost is None and budget.hard:  # the hold stays, and is spent when it expires
                attempt.target, call.hold, call.settles = before, None, None
                attempt.usage = call.usage = None
                return response
        self._billed[call.settles[1]] = None
        if len(self._billed) > MAX_BILLED:
            del self._billed[next(iter(self._billed))]
        return response

    def charge_stream(self, call: Call, attempt: Attempt, answer: StreamAccumulator) -> None:
        """Price a stream that has ended, complete or not."""
        attempt.served = answer.model or attempt.served
        call.finish_reason = answer.finish_reason
        if self._content:
            call.answer = answer.text
        if call.request.op in UNBILLED:
            self._settled(call, attempt, answer.response("", ""))
            return
        if call.request.params.get("background") and not answer.finish_reason:
            attempt.usage = call.usage = _NO_USAGE  # it goes on; billed when it is read
            given = {told: own for own, told in (call.ids or {}).items()}
            self._keep_hold(call, attempt, given.get(answer.id, ""))
            return
        usage = _completed(call.request, answer.usage or _NO_USAGE, lambda: answer.text)
        if not answer.finish_reason:  # cut off: the vendor's count lacks the last words
            written = estimate(answer.text)
            if written > (usage.output_tokens or 0):
                usage = replace(usage, output_tokens=written, estimated=True, parts=())
        attempt.assumed = usage.estimated and not answer.finish_reason
        self._charge(call, attempt, usage)

    def charge_failure(self, call: Call, attempt: Attempt, error: BaseException) -> None:
        """Assume that an attempt was billed if it failed after the vendor may have worked."""
        if call.request.op in UNBILLED or attempt.usage is not None:
            return
        if isinstance(error, ProviderError) and error.usage is not None:
            self._charge(call, attempt, error.usage)
            return
        if not may_be_billed(error, attempt.seconds):
            return
        told = call.usage, call.cost, call.cost_source
        self._charge(call, attempt, _completed(call.request, _NO_USAGE))
        attempt.assumed = True
        is_late = call.patience is not None and call.seconds >= call.patience
        if is_late and isinstance(error, ProviderTimeout):  # the client left: the vendor may go on
            self._assume(call, attempt)
        call.usage, call.cost, call.cost_source = told
        if call.cost_source == "unpriced" and attempt.cost is not None:
            call.cost_source = ASSUMED

    def _charge(self, call: Call, attempt: Attempt, usage: Usage, requests: int = 1) -> None:
        target, began = attempt.target, call.settles and call.settles[0] / 1e9
        vendor = self._targets.registry.member(target.provider).vendor
        tokens_in, price = usage.input_tokens or 0, None
        if call.request.passed is not None:
            usage = by_price(usage, price := self._targets.price(target))
        if usage.total_tokens is not None and usage.input_tokens is not None:
            # some vendors count reasoning only in the total
            most = usage.total_tokens - tokens_in
            if most > (usage.output_tokens or 0):
                usage = replace(usage, output_tokens=most)
        billed = by_unit(usage, price) if usage.fees else usage
        if usage.tool_use_tokens:
            billed = replace(usage, input_tokens=tokens_in + usage.tool_use_tokens)
        bill = charge(
            billed,
            provider=vendor,
            requested=target.model,
            served=attempt.served,
            overrides=self._targets.overrides.get(target.provider, {}),
            at=datetime.fromtimestamp(began or time.time(), UTC),
            service_tier=usage.service_tier,
            requests=requests,
            table=self._targets.prices,
        )
        if usage.cached_input_tokens or usage.cache_write_tokens:
            attempt.cache_saved = cache_saved(billed, self._targets.price(target))
        attempt.usage = call.usage = usage
        attempt.cost = call.cost = bill.pico
        call.cost_source = bill.source
        if bill.pico is None:
            self._assume(call, attempt)

    def _assume(self, call: Call, attempt: Attempt) -> None:
        """Let a hard budget spend what it holds for an attempt whose cost is not known."""
        hold = call.hold
        if hold is None or not hold.budget.hard:
            return
        rest = hold.pico - sum([each.cost or 0 for each in call.attempts if each is not attempt])
        if rest > (attempt.cost or 0):
            attempt.cost, attempt.assumed, call.cost_source = rest, True, ASSUMED

    def _keep_hold(self, call: Call, attempt: Attempt, ident: str) -> None:
        """Hold what a call may cost until the row that bills it is written: by its *ident*."""
        hold = call.hold
        if self.ledger is None or hold is None or not hold.pico:
            return
        if not ident:
            self._assume(call, attempt)
            return
        at_ns, row = billed_as(attempt.target.provider, ident, call.start_ns // 10**9)
        rest = hold.pico - sum([each.cost or 0 for each in call.attempts])
        named = {"call_id": row, "about": about(call, attempt.target, at_ns)}
        try:
            self.ledger.reserve(hold.budget, rest, at=hold.at, lease=MAX_CALL, over=True, **named)
        except (BudgetExceeded, LedgerUnavailable, ValueError):  # or the id was given before
            self._assume(call, attempt)


def may_be_billed(error: BaseException, seconds: float) -> bool:
    """Whether the vendor may bill an attempt that failed with *error* after *seconds*."""
    if not isinstance(error, ProviderError):  # such as a client that has disconnected
        return not isinstance(error, RequestError | Unavailable)
    if not error.sent or isinstance(error, _REFUSALS):
        return False
    status = error.upstream_status
    return status is None or (status >= 500 and seconds > WORKED)


def cache_saved(usage: Usage, price: Price | None) -> int | None:
    """Return the pico-USD that the vendor's cache saved, or None if the price is unknown.

    It is negative if writing to the cache cost more than reading from it saved.
    """
    uncached = replace(
        usage, cached_input_tokens=None, cache_write_tokens=None, cache_write_1h_tokens=None
    )
    without, real = cost(uncached, price), cost(usage, price)
    if without is None or real is None:
        return None
    return max(-MAX_PICO, min(without - real, MAX_PICO))


def _completed(request: InferRequest, told: Usage, text: Callable[[], str] = str) -> Usage:
    """Return a usage in which what the vendor does not tell is estimated, by the answer's *text*.

    Calls that pass through have only what can be counted: nothing is guessed.
    """
    tokens_in, tokens_out = told.input_tokens, told.output_tokens
    if told.cost_usd is not None or (request.passed and (tokens_in or tokens_out or told.fees)):
        return told
    if request.passed is not None:
        return asked_usage(request)
    is_empty = not (tokens_in or tokens_out or told.fees)
    if (tokens_out is None or is_empty) and (told.total_tokens or 0) <= (tokens_in or 0):
        tokens_out = estimate(text())
    if not tokens_in:
        tokens_in = estimate_messages(request.messages) + estimate_prompts(request.params)
    if (tokens_in, tokens_out or None) == (told.input_tokens, told.output_tokens or None):
        return told
    asked = request.params.get("service_tier")
    tier = asked if told.service_tier is None and isinstance(asked, str) else told.service_tier
    return replace(
        told, input_tokens=tokens_in, output_tokens=tokens_out, service_tier=tier, estimated=True
    )


def said(response: InferResponse) -> str:
    """Return all text of a response, to estimate its tokens."""
    inputs = [
        text
        for call in response.tool_calls
        for kind, name in (("function", "arguments"), ("custom", "input"))
        if isinstance(part := call.get(kind), dict) and isinstance(text := part.get(name), str)
    ]
    legacy = response.extra.get("function_call") or {}
    more = response.extra.get("more", "")
    words = response.content, response.reasoning, response.refusal, more
    return "".join((*words, str(legacy.get("arguments") or ""), *inputs))
