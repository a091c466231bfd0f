"""Costs: prices each answer, reserves the worst case before a call, settles the real cost after it.

`Accounting` does this for a router; `record` converts a finished call to the rows of a ledger.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

from ..dialects.responses import RESOURCE
from ..errors import BudgetExceeded, UnpricedModel, shown
from ..ledger import (
    MAX_PICO,
    MAX_TOKENS,
    AttemptRow,
    Budget,
    CallRow,
    Hold,
    Ledger,
    LedgerUnavailable,
    Record,
)
from ..planning import kept
from ..planning.call import Attempt, Call, StreamAccumulator, for_target
from ..pricing import Price, charge, cost, usd
from ..pricing.token_estimate import estimate, estimate_messages, estimate_prompts
from ..protocol import InferRequest, InferResponse
from ..types import Target, Usage
from .targets import TargetPool
from .worst_case import Worst, most_cost, worst_case

LIMITING_TRIES = 4  # as other calls may take what was left
HOLD_MARGIN = 60.0  # seconds by which a hold outlasts its call
MAX_CALL = 86_400.0  # seconds of a call that a hold covers, whatever the client's timeout
LOG_SECONDS = 60.0  # between two log lines about a ledger that cannot be written
MAX_BILLED = 4096  # stored responses that are remembered as billed
UNBILLED = (RESOURCE, "input_tokens", "count_tokens")  # operations that cost nothing themselves
MAX_TEXT = 200  # characters of a name in a row
MAX_TAGS = 16  # tags in a row
log = logging.getLogger("infermux")
_NO_USAGE = Usage()
_Tokens = tuple[int | None, int | None, int | None, int | None, int | None, int | None]
# tokens by class, cost, milliseconds to the first token, attempts without a price, saved by a cache
_Sums = tuple[_Tokens, int | None, int | None, int, int | None]


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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ledger = ledger
        self.lost = 0  # calls that could not be recorded; approximate, for display only
        self._targets = targets
        self._deadline = deadline
        self._longest = longest
        self._streams = (-1, 0.0)  # registry.changes, and the longest stream then
        self._content = content  # whether calls keep the text of their answers
        self._clock = clock
        self._billed: dict[str, None] = {}  # rows of stored responses; the ledger knows them, too
        self._logged_at = -LOG_SECONDS

    # -- before and after a call --

    def reserve(self, call: Call, target: Target) -> None:
        """Reserve the most that *call* may cost at *target*, if its caller has a budget.

        If nothing limits the answer, and the budget cannot pay all that the model may write, the
        call gets a limit that it can pay. Raise BudgetExceeded or UnpricedModel, or
        LedgerUnavailable unless the budget only warns.
        """
        budget = call.caller.budget
        if self.ledger is None or not isinstance(budget, Budget):
            return
        call.most_output = None
        worst = self._worst(call.sent(Attempt(target, 0.0)), target)
        pico = None if worst is None else worst.pico
        if pico is None and budget.hard and not call.override:
            raise unpriced(target)
        before = sum([attempt.cost or 0 for attempt in call.attempts])  # that was or may be billed
        for tries in range(LIMITING_TRIES):
            try:
                self._hold(call, budget, (pico or 0) + before)
                return
            except BudgetExceeded as error:
                left = (error.left or 0) + (call.hold.pico if call.hold else 0) - before
                tokens = worst.affordable(left) if worst is not None else 0
                last = tries == LIMITING_TRIES - 1  # other calls have taken what was left
                if worst is None or worst.bounded or not tokens or last:
                    raise helped(error, worst, tokens, left) from None
                call.most_output, pico = tokens, most_cost(worst.with_output(tokens), worst.price)

    def _hold(self, call: Call, budget: Budget, pico: int) -> None:
        """Reserve *pico* for the call, with what it holds already."""
        assert self.ledger is not None
        now, lease = self._clock(), self.lease(call)
        before = call.hold
        try:
            if call.hold is None:
                call.hold = self.ledger.reserve(
                    budget, pico, call_id=call.id, at=now, lease=lease, over=bool(call.override)
                )
            elif pico > call.hold.pico:
                more = pico - call.hold.pico
                call.hold = self.ledger.top_up(call.hold, more, at=now, lease=lease)
            if call.hold is not before:
                for each in call.hold.warn:
                    self._warn(each, now)
        except LedgerUnavailable as error:
            if budget.hard:
                raise
            call.hold = call.hold or Hold(call.id, budget, pico, now)  # still settled
            self._log(error)

    def lease(self, call: Call) -> float:
        """Return the seconds that a hold lasts if nobody settles it: longer than *call*."""
        registry = self._targets.registry
        if self._streams[0] != registry.changes:
            self._streams = registry.changes, _stream_seconds(self._targets)
        limit = min(self._deadline or call.patience or self._longest, MAX_CALL)
        return limit + self._streams[1] + HOLD_MARGIN

    def settle(self, call: Call) -> None:
        """Record *call*, or queue it if the ledger cannot be written now."""
        if self.ledger is None:
            return
        rows = record(call)
        try:
            if not self.ledger.settle(rows, call.hold) and call.settles is not None:
                call.cost = call.usage = None  # another worker has billed it
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
        worst = self._worst(for_target(request, target, lenient=True), target, size)
        return None if worst is None else worst.pico

    def exceeds(
        self, request: InferRequest, target: Target, left: int, size: int | None = None
    ) -> bool:
        """Return whether a budget with *left* pico-USD cannot pay a call, even a limited one."""
        worst = self._worst(for_target(request, target, lenient=True), target, size)
        if worst is None or (worst.pico or 0) <= left:
            return False
        return worst.bounded or not worst.affordable(left)

    def _worst(
        self, request: InferRequest, target: Target, size: int | None = None
    ) -> Worst | None:
        price = self._targets.price(target)
        if price is None:
            return None
        provider = self._targets.registry.member(target.provider).provider
        return worst_case(provider, request, price, size)

    def _warn(self, budget: Budget, now: float) -> None:
        assert self.ledger is not None
        [state] = self.ledger.states([budget], now)
        whose = f"the budget {budget.caller!r}" if budget.members else f"key {budget.caller!r}"
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
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
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
        if response.extra.get("pending"):  # billed when it has ended, and somebody asks for it
            attempt.usage = call.usage = _NO_USAGE
            return response
        if self._content:
            call.answer = response.content
        usage = response.usage or Usage(
            response.tokens_in, response.tokens_out, cost_usd=response.cost_usd
        )
        if _is_empty(usage):
            usage = _estimated(call.request, said(response), usage)
        self._charge(call, attempt, usage)
        if response.usage is usage:
            return response
        tokens_in, tokens_out = usage.input_tokens or 0, usage.output_tokens or 0
        return replace(response, usage=usage, tokens_in=tokens_in, tokens_out=tokens_out)

    def _settled(self, call: Call, attempt: Attempt, response: InferResponse) -> InferResponse:
        """Price a stored response that has ended, if it was not billed before."""
        if call.settles is None or response.usage is None or call.settles[1] in self._billed:
            call.settles = None
            return response
        self._billed[call.settles[1]] = None
        if len(self._billed) > MAX_BILLED:
            del self._billed[next(iter(self._billed))]
        attempt.target = Target(attempt.target.provider, response.model)
        self._charge(call, attempt, response.usage)
        return response

    def charge_stream(self, call: Call, attempt: Attempt, answer: StreamAccumulator) -> None:
        """Price a stream that has ended, complete or not."""
        attempt.served = answer.model or attempt.served
        call.finish_reason = answer.finish_reason
        if self._content:
            call.answer = answer.text
        usage = answer.usage or _NO_USAGE
        if call.request.op in UNBILLED:
            self._settled(call, attempt, answer.response("", ""))
            return
        if _is_empty(usage):
            usage = _estimated(call.request, answer.text, usage)
        elif not answer.finish_reason:  # cut off: the vendor's count lacks the last words
            written = estimate(answer.text)
            if written > (usage.output_tokens or 0):
                usage = replace(usage, output_tokens=written, estimated=True)
        self._charge(call, attempt, usage)

    def _charge(self, call: Call, attempt: Attempt, usage: Usage) -> None:
        target = attempt.target
        vendor = self._targets.registry.member(target.provider).vendor
        tokens_in = usage.input_tokens or 0
        if usage.total_tokens is not None and usage.input_tokens is not None:
            # some vendors count what a model thinks only in the total
            most = max(usage.output_tokens or 0, usage.total_tokens - tokens_in)
            if most > (usage.output_tokens or 0):
                usage = replace(usage, output_tokens=most)
        billed = usage
        if usage.tool_use_tokens:
            billed = replace(usage, input_tokens=tokens_in + usage.tool_use_tokens)
        bill = charge(
            billed,
            provider=vendor,
            requested=target.model,
            served=attempt.served,
            overrides=self._targets.overrides.get(target.provider, {}),
            at=datetime.now(UTC),
            service_tier=usage.service_tier,
            table=self._targets.prices,
        )
        if usage.cached_input_tokens or usage.cache_write_tokens:
            attempt.cache_saved = cache_saved(billed, self._targets.price(target))
        attempt.usage = call.usage = usage
        attempt.cost = call.cost = bill.pico
        call.cost_source = bill.source


def cache_saved(usage: Usage, price: Price | None) -> int | None:
    """Return the pico-USD that the vendor's cache saved, or None if the price is unknown.

    It is negative if writing to the cache cost more than reading from it saved.
    """
    uncached = replace(
        usage, cached_input_tokens=None, cache_write_tokens=None, cache_write_1h_tokens=None
    )
    costs = [cost(each, price, service_tier=each.service_tier) for each in (uncached, usage)]
    without, real = costs
    if without is None or real is None:
        return None
    return max(-MAX_PICO, min(without - real, MAX_PICO))


def unpriced(target: Target) -> UnpricedModel:
    """Return the error for a call of a hard budget whose most cost is not known."""
    return UnpricedModel(
        f"the price of {shown(str(target))} is unknown for what this call asks, and the key has a "
        "budget that must not be exceeded; use a model with a price, or set one in [providers]",
        param="model",
    )


def helped(error: BudgetExceeded, worst: Worst | None, tokens: int, left: int) -> BudgetExceeded:
    """Return the error with what would help."""
    if worst is None or worst.pico is None:
        return error
    told = f"{usd(max(0, left))} USD are left, and this call may cost {usd(worst.pico)} USD"
    if tokens:
        told = f"set max_tokens: {told}; at most {tokens} tokens can be paid"
    elif worst.size.output:
        told = f"set max_tokens, or send less: {told}"
    else:
        told = f"send less: {told}"
    error.message = f"{error.message}; {told}"
    error.args = (error.message,)
    return error


def _stream_seconds(targets: TargetPool) -> float:
    """Return the most seconds that a stream may last after its first content."""
    limits = [getattr(each.provider, "timeouts", None) for each in targets.registry]
    return max((float(limit.total) for limit in limits if limit is not None), default=0.0)


def _is_empty(usage: Usage) -> bool:
    return not usage.input_tokens and not usage.output_tokens and usage.cost_usd is None


def _estimated(request: InferRequest, text: str, told: Usage = _NO_USAGE) -> Usage:
    """Return the estimated usage of an answer that came without one, but for what is *told*."""
    tokens_in = estimate_messages(request.messages) + estimate_prompts(request.params)
    return replace(told, input_tokens=tokens_in, output_tokens=estimate(text), estimated=True)


def said(response: InferResponse) -> str:
    """Return all that a response says, for an estimate of its tokens."""
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


# -- rows of the ledger --


def record(call: Call) -> Record:
    """Return the rows of *call*; its cost is the sum over its billed attempts."""
    rows = tuple([_attempt(call, n, each) for n, each in enumerate(call.attempts)])
    last, error = rows[-1] if rows else None, call.error
    names = (
        (last.model, last.served, last.provider) if last else ("", "", _text(call.request.provider))
    )
    tokens, cost, first, unpriced, saved = (
        _sums(rows) if last is None or len(rows) > 1 else _same(last)
    )
    start_ns, ident = call.settles or (call.start_ns, call.id)
    whole = CallRow(
        start_ns,
        ident,
        _text(call.trace_id),
        _text(call.caller.name),
        _tags(tuple(call.tags.items())) if call.tags else "{}",
        _text(call.api),
        _text(call.request.model),
        *names,
        call.plan.strategy if call.plan else "",
        "ok" if error is None else str(error.status),
        "" if error is None else error.code,
        *tokens,
        cost,
        call.cost_source,
        int(True in [each.usage is not None and each.usage.estimated for each in call.attempts]),
        call.latency_ms,
        first,
        len(rows),
        unpriced,
        saved,
        kept(call.plan),
    )
    return Record(whole, rows)


def _attempt(call: Call, n: int, attempt: Attempt) -> AttemptRow:
    target, usage = attempt.target, attempt.usage or _NO_USAGE
    cost, start, model = attempt.cost, call.started, _text(target.model)
    start_ns, ident = call.settles or (call.start_ns, call.id)
    return AttemptRow(
        start_ns,
        ident,
        n,
        _text(target.provider),
        model,
        _text(attempt.served) or model,
        _ms(attempt.started - start),
        None if attempt.first_chunk is None else _ms(attempt.first_chunk - start),
        None if attempt.ended is None else _ms(attempt.ended - start),
        _count(usage.input_tokens),
        _count(usage.output_tokens),
        _count(usage.cached_input_tokens),
        _count(usage.cache_write_tokens),
        _count(usage.cache_write_1h_tokens),
        _count(usage.reasoning_tokens),
        None if cost is None else max(0, min(cost, MAX_PICO)),
        int(cost is None and attempt.usage is not None),
        "" if attempt.error is None else attempt.error.code,
        int(n == len(call.attempts) - 1),
        None if attempt.error is None else attempt.error.upstream_status,
        attempt.upstream_request_id,
        attempt.cache_saved,
    )


def _same(row: AttemptRow) -> _Sums:
    cost = 0 if row.cost is None and not row.unpriced else row.cost
    return row[9:15], cost, row.first_ms, row.unpriced, row.cache_saved


def _sums(rows: Sequence[AttemptRow]) -> _Sums:
    """Return the sums over all attempts (None: all unknown), and the last known first token."""
    columns = zip(*[row[9:15] for row in rows], strict=True)
    known = [[count for count in column if count is not None] for column in columns]
    sums = [sum(counts) if counts else None for counts in known] or [None] * 6
    costs = [row.cost for row in rows if row.cost is not None]
    firsts = [row.first_ms for row in rows if row.first_ms is not None]
    unpriced = sum(row.unpriced for row in rows)
    cost = None if unpriced and not costs else sum(costs)
    tokens = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    saved = [row.cache_saved for row in rows if row.cache_saved is not None]
    first = firsts[-1] if firsts else None
    return tokens, cost, first, unpriced, sum(saved) if saved else None


def _count(value: int | None) -> int | None:
    """Return a number of tokens, limited to what can be stored; None if it is not an int."""
    if not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_TOKENS else max(0, min(value, MAX_TOKENS))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _text(value: object) -> str:
    """Return a name as it can be stored: short, and without lone surrogates."""
    if not isinstance(value, str):
        return ""
    if len(value) <= MAX_TEXT and value.isascii():
        return value
    return value[:MAX_TEXT].encode(errors="replace").decode()


@lru_cache(maxsize=256)
def _tags(tags: tuple[tuple[str, str], ...]) -> str:
    return json.dumps({_text(name): _text(value) for name, value in sorted(tags)[:MAX_TAGS]})
