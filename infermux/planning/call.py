"""The record of one call: its plan, its attempts and their outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..dialects.blocks import StreamAccumulator as StreamAccumulator
from ..errors import FailedAttempt, Failure, InferMuxError, ProviderError
from ..pricing import usd_float
from ..pricing.token_estimate import estimate_messages
from ..protocol import InferRequest, new_id
from ..types import ANONYMOUS, Caller, Deadline, OnWait, Target, Usage, Window
from . import Plan, is_sticky
from .session import session_of
from .settings import NameSettings


@dataclass(slots=True)
class Attempt:
    """One request to one target."""

    target: Target
    started: float  # seconds on the monotonic clock, as the two below
    first_chunk: float | None = None
    ended: float | None = None
    usage: Usage | None = None
    cost: int | None = None  # pico-USD; None: unpriced
    cache_saved: int | None = None  # pico-USD that the vendor's cache saved; None: unknown
    assumed: bool = False  # it was sent, and whether it was billed is not known
    error: Failure | None = None
    waited: float = 0.0  # seconds of backoff before the attempt
    paced: int | None = None  # tokens counted in the provider's rate before; None: it has none
    served: str = ""  # the model that the vendor says it used
    dropped: list[str] = field(default_factory=list)  # names of params that were left out
    upstream_ids: list[str] = field(default_factory=list)  # that the vendor gave the request

    @property
    def upstream_request_id(self) -> str:
        """The vendor's own id of the request, or ""."""
        return self.upstream_ids[-1] if self.upstream_ids else ""

    @property
    def failed(self) -> FailedAttempt:
        """The attempt as an error tells it; its failure is known."""
        target, error = self.target, self.error
        if error is None:
            answered = self.usage is not None and not self.assumed
            return FailedAttempt(*target, why="answered" if answered else "interrupted")
        why = error.summary.partition(": ")[2]
        return FailedAttempt(*target, error.upstream_status, error.code, why, error.hint)

    @property
    def seconds(self) -> float:
        """The seconds to the end, until then those to the first chunk or 0."""
        return (self.ended or self.first_chunk or self.started) - self.started

    @property
    def latency_ms(self) -> int:
        """`seconds` in whole milliseconds."""
        return round(self.seconds * 1000)


class CachedAnswer(NamedTuple):
    """Who gave a cached answer, and how many seconds ago."""

    target: Target
    served: str
    age: float


_OUTCOMES = ("passed", "changed", "failed", "refused")


@dataclass(slots=True)
class HookRun:
    """The runs of one hook for a call: how long, and what came of them."""

    seconds: float = 0.0
    inside: float = 0.0  # of these, the seconds within an attempt: between chunks
    outcome: str = "passed"  # changed, refused or failed; of several runs, the gravest

    def ended(self, outcome: str) -> None:
        """Note the outcome of a run, unless an earlier one was graver."""
        self.outcome = max(self.outcome, outcome, key=_OUTCOMES.index)


@dataclass(slots=True)
class Call:
    """The record of one request; spans, ledger rows, metrics and headers are made from it."""

    request: InferRequest
    caller: Caller = ANONYMOUS
    api: str = "library"
    trace_id: str = field(default_factory=new_id)
    parent_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)  # for reports, by caller and request
    id: str = field(default_factory=new_id)
    span_id: str = field(default_factory=new_id)
    start_ns: int = field(default_factory=time.time_ns)
    started: float = field(default_factory=time.monotonic)
    releases: list[Callable[[], None]] = field(default_factory=list)  # called at the end
    hold: Any = None  # the amount that the ledger holds until the call is settled
    most_output: int | None = None  # tokens of each answer that the budget can pay
    most_uses: int | None = None  # of each of the vendor's tools, likewise
    override: str = ""  # the cheaper name that was used because the budget is spent
    spent: Any = None  # the budget that refused it, or a target of it
    size: int | None = None  # estimated tokens of the messages; None: not estimated yet
    # rate limiters, names and tokens that are counted in them before the call
    counted: tuple[tuple[Any, str, int], ...] = ()
    user: str = ""  # the digest of the caller's end user, for limits
    end_user: str = ""  # what rows and the log show of it
    cache_control: str = ""  # the client's header
    cache: str = ""  # hit, miss or bypass, where answers are kept
    answer_key: str = ""  # under which its answer is to be kept
    cached: CachedAnswer | None = None  # the cached answer that it got
    windows: tuple[Window, ...] = ()  # of the rate limits that it counts in
    limits_told: Callable[[Call], Mapping[str, str]] | None = None  # headers of the limits
    patience: float | None = None  # seconds that the client itself waits
    lenient: bool = False  # whether preferences may be left out even for a single target
    on_wait: OnWait | None = None  # called while the call waits for a provider
    has_head: bool = False  # the client has its stream's status line, and cannot retry
    ended: float | None = None
    ids: dict[str, str] | None = None  # those that the client gave, by the vendor's own
    settles: tuple[int, str] | None = None  # start and id of the row that bills a stored response
    stated_ms: int | None = None  # what the provider that answered says it took
    plan: Plan | None = None
    settings: NameSettings | None = None  # of the name that the plan is for
    attempts: list[Attempt] = field(default_factory=list)
    usage: Usage | None = None
    cost: int | None = None  # pico-USD of the attempt that answered
    cost_source: str = "unpriced"
    finish_reason: str = ""
    answer: str | None = None  # the text, if traces hold content
    error: Failure | None = None
    hooks: Any = None  # a HookRun by name, once a hook has run
    told: Any = None  # what hooks are told of the call
    asked: InferRequest | None = None  # the request before a hook has changed it
    form: str = ""  # the format of the client, if its own body is not known

    @property
    def has_one_target(self) -> bool:
        return self.plan is not None and len(self.plan.targets) == 1

    def must_try(self, target: Target) -> bool:
        """Whether to try *target* even if its circuit is open: the only or a last one, a retry."""
        plan = self.plan
        forced = plan is None or plan.forced or self.has_one_target or target in plan.dropped
        return forced or self.has_tried(target)

    def sent(self, attempt: Attempt) -> InferRequest:
        plan = self.plan
        several = plan is not None and len(plan.targets) + len(plan.dropped) > 1
        lenient = self.lenient or several
        request = for_target(self.request, attempt.target, attempt.dropped, lenient=lenient)
        if self.settings is not None and (own := self.settings.targets.get(attempt.target)):
            request = own.applied(request)
        request.upstream_ids, request.most_output = attempt.upstream_ids, self.most_output
        request.most_uses = self.most_uses
        if plan is not None and (plan.route.cache or is_sticky(plan.route)):
            request.stays = session_of(self.request, self.caller)
            request.cache_key = request.stays if plan.route.cache else ""
        return request

    def limit(self, usual: float | None, longest: float) -> Deadline:
        """Return the call's deadline: the client's or the configured one, whichever is less.

        *usual* is that of names without one; *longest* holds if there is none at all.
        """
        own = (self.settings.deadline if self.settings is not None else 0.0) or usual
        seconds = min([each for each in (self.patience, own) if each is not None], default=longest)
        return Deadline(seconds, by_client=seconds == self.patience, on_wait=self.on_wait)

    def most_attempts(self, usual: int) -> int:
        """Return the most upstream requests of the call: its name's, else *usual*."""
        return (self.settings.attempts if self.settings is not None else 0) or usual

    def has_tried(self, target: Target) -> bool:
        return any(attempt.target == target for attempt in self.attempts)

    def is_last(self, error: ProviderError) -> bool:
        """Whether the call cannot be tried again after *error*: what it does may be done.

        An upload can be sent again only if all of it is held.
        """
        passed = self.request.passed
        if passed is None:
            return False
        status = error.upstream_status
        unknown = error.sent is not False and (status is None or status >= 500)
        spent = passed.upload is not None and not passed.upload.repeatable
        return spent or (unknown and not passed.repeatable)

    @property
    def input_size(self) -> int:
        """The estimated tokens of the messages."""
        if self.size is None:
            self.size = estimate_messages(self.request.messages)
        return self.size

    @property
    def end_ns(self) -> int:
        """The start plus the duration, as the wall clock may be set back meanwhile."""
        return self.start_ns + int(self.seconds * 1e9)

    @property
    def seconds(self) -> float:
        """The duration of the call so far, in seconds."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def hooks_ms(self) -> float:
        return sum([float(run.seconds) for run in (self.hooks or {}).values()]) * 1000

    @property
    def latency_ms(self) -> int:
        """The same in whole milliseconds; of the last attempt, what its provider says."""
        if self.stated_ms is None:
            return round(self.seconds * 1000)
        before = self.attempts[-1].started - self.started if len(self.attempts) > 1 else 0.0
        return self.stated_ms + round(before * 1000)

    def describe(self, error: InferMuxError) -> None:
        """Set the provider, model and attempts of *error*, with which the call failed."""
        error.provider, error.model = self.provider, self.model
        error.attempts = tuple([attempt.failed for attempt in self.attempts])
        if self.attempts:
            error.upstream_status = error.attempts[-1].upstream_status

    @property
    def provider(self) -> str:
        """The provider that answered or was tried last."""
        if not self.attempts:
            return self.cached.target.provider if self.cached else _name(self.request.provider)
        return self.attempts[-1].target.provider

    @property
    def model(self) -> str:
        """The model that answered, else the requested one."""
        if not self.attempts:
            return self.cached.served if self.cached else _name(self.request.model)
        last = self.attempts[-1]
        return last.served or last.target.model

    @property
    def tokens(self) -> tuple[int, int]:
        """Input and output tokens, 0 where unknown."""
        usage = self.usage
        return (usage.input_tokens or 0, usage.output_tokens or 0) if usage else (0, 0)

    @property
    def cost_usd(self) -> float | None:
        """The cost in dollars; None if unpriced."""
        return usd_float(self.cost)


def _name(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


def for_target(
    request: InferRequest,
    target: Target,
    dropped: list[str] | None = None,
    *,
    lenient: bool = False,
) -> InferRequest:
    """Return the request for *target*; *dropped* collects the params left out for it."""
    made = InferRequest(
        target.model,
        request.messages,
        target.provider,
        request.params,
        request.meta,
        request.native,
        request.op,
        request.headers,
        dropped,
        lenient,
    )
    made.passed = request.passed
    return made
