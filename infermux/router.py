"""The routing story: a request becomes a plan, the plan becomes attempts, the attempts become an answer and one record."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from . import tokens
from .call import Attempt, Call, Fold, Plan, for_target, usd
from .errors import InferMuxError, ModelNotFound, ProviderError, ProviderTimeout, ProviderUnavailable, StreamIncomplete
from .prices import Price, charge
from .protocol import InferRequest, InferResponse, TraceSpan
from .providers.base import Member, sound
from .registry import Registry
from .trace import parse, spans
from .types import ANYONE, HEARTBEAT, Caller, Chunk, Deadline, Target, TraceContext, Usage

log = logging.getLogger("infermux")
Answer = TypeVar("Answer")
Observer = Callable[[Call], None]


class Reports(Protocol):
    """What takes spans."""

    def report(self, span: TraceSpan) -> None:
        """Take one span; never block, never raise."""


class Router:
    """Sends requests to the providers of a registry, and tells what came of each."""

    def __init__(self, registry: Registry, reporter: Reports | None = None, *, attempts: int = 3, deadline: float = 60.0,
                 on_unsupported: str = "error", observers: Iterable[Observer] = (),
                 prices: Mapping[str, Mapping[str, Price]] | None = None) -> None:
        self.registry = registry
        self.reporter = reporter
        self.attempts = attempts            # upstream requests per call, over all targets
        self.deadline = deadline            # seconds per call, over all attempts
        self.on_unsupported = on_unsupported    # "drop": leave out, and tell of, what a target's format cannot express
        self.prices = prices or {}          # a provider's own prices by model: they win over the table
        self.observers = [*observers, *([self._report] if reporter is not None else [])]

    # -- the two ways to ask -------------------------------------------------------------------------------------------

    def infer(self, request: InferRequest, *, caller: Caller = ANYONE, trace: TraceContext | None = None) -> InferResponse:
        """Return the answer; raise InferMuxError."""
        return self.answer(self.begin(request, caller=caller, trace=trace))

    def stream(self, request: InferRequest, *, caller: Caller = ANYONE, trace: TraceContext | None = None) -> Stream:
        """Return the answer as chunks; the first content has come when this returns, so that it raises what can be raised."""
        return self.open(self.begin(request, caller=caller, trace=trace))

    def begin(self, request: InferRequest, *, caller: Caller = ANYONE, door: str = "library",
              trace: TraceContext | None = None) -> Call:
        """Return the record of a call that starts now; without *trace*, meta.traceparent may name its trace."""
        header = request.meta.get("traceparent") if trace is None and isinstance(request.meta, Mapping) else None
        if self.on_unsupported == "drop":
            request = replace(request, dropped=[])
        return Call.begin(request, caller=caller, door=door, trace=parse(header) if isinstance(header, str) else trace)

    def answer(self, call: Call) -> InferResponse:
        """Return the answer to a call that has begun; raise InferMuxError."""
        with _Finishing(self, call):
            response = self._first_success(call, self._ask)
            attempt = call.attempts[-1]
            return replace(response, provider=response.provider or attempt.target.provider, cost_usd=usd(call.cost),
                           latency_ms=response.latency_ms or attempt.latency_ms)

    def open(self, call: Call) -> Stream:
        """Return the stream of a call that has begun; raise InferMuxError."""
        finishing = _Finishing(self, call)
        try:
            first, rest = self._first_success(call, self._begin_stream)
        except BaseException as error:
            finishing.finish(error)
            raise
        return Stream(self, call, first, rest, finishing)

    # -- what is tried -------------------------------------------------------------------------------------------------

    def plan(self, request: InferRequest) -> Plan:
        """Return what a call for *request* will try; raise ModelNotFound."""
        return Plan(request.model, "priority", self.registry.resolve(request.model, request.provider))

    def _first_success(self, call: Call, ask: Callable[[Member, Call, Attempt, Deadline], Answer]) -> Answer:
        """Try the plan's targets in order, within the attempts and one deadline over all of them."""
        call.request.check()
        call.plan = self.plan(call.request)
        deadline, queue = Deadline(self.deadline), deque(call.plan.targets)
        while queue:
            target = queue.popleft()
            attempt = Attempt(target, time.monotonic())
            call.attempts.append(attempt)
            try:
                return ask(self.registry.member(target.provider), call, attempt, deadline)
            except InferMuxError as error:
                attempt.error, attempt.ended = error, time.monotonic()
                failover = isinstance(error, ProviderError) and error.failover
                if not failover or not queue or len(call.attempts) >= self.attempts:
                    raise
                if deadline.expired:
                    raise ProviderTimeout("no provider answered in time") from error
        raise ModelNotFound("no target")    # a plan has at least one

    def _ask(self, member: Member, call: Call, attempt: Attempt, deadline: Deadline) -> InferResponse:
        with _Foreign(member.name):
            response = sound(member.infer(for_target(call.request, attempt.target), deadline))
        attempt.ended = time.monotonic()
        attempt.served = response.model
        usage = response.usage or Usage(response.tokens_in, response.tokens_out, cost_usd=response.cost_usd)
        call.finish_reason = response.finish_reason
        if not usage.input_tokens and not usage.output_tokens and usage.cost_usd is None:
            usage = self._estimated(call, response.content + response.reasoning)
        self._charge(call, attempt, usage)
        if response.usage is not usage:
            return replace(response, usage=usage, tokens_in=usage.input_tokens or 0, tokens_out=usage.output_tokens or 0)
        return response

    def _begin_stream(self, member: Member, call: Call, attempt: Attempt,
                      deadline: Deadline) -> tuple[list[Chunk], Iterator[Chunk]]:
        """Return what came up to the first content, and the rest: until then every failure is an ordinary one."""
        chunks: Iterator[Chunk] = iter(())
        first: list[Chunk] = []
        try:
            with _Foreign(member.name):
                chunks = iter(member.stream(for_target(call.request, attempt.target), deadline))
                for chunk in chunks:
                    if chunk is not HEARTBEAT:
                        first.append(chunk)
                    if chunk.has_content:
                        attempt.first_chunk = time.monotonic()
                        return first, chunks
            raise StreamIncomplete("the provider's stream ended before it began")
        except BaseException:
            _close(chunks, member.name)
            raise

    # -- what it came to -----------------------------------------------------------------------------------------------

    def _charge(self, call: Call, attempt: Attempt, usage: Usage) -> None:
        """Note what the answer used and what that costs."""
        target = attempt.target
        vendor = self.registry.member(target.provider).vendor
        billed = usage
        if vendor == "google" and usage.total_tokens is not None:   # at its OpenAI door Google counts thoughts in the total alone
            billed = replace(usage, output_tokens=max(usage.output_tokens or 0, usage.total_tokens - (usage.input_tokens or 0)))
        if usage.tool_use_tokens:
            billed = replace(usage, input_tokens=(usage.input_tokens or 0) + usage.tool_use_tokens)
        bill = charge(billed, provider=vendor, requested=target.model, served=attempt.served,
                      overrides=self.prices.get(target.provider, {}), at=datetime.now(UTC), service_tier=usage.service_tier)
        attempt.usage = call.usage = usage
        attempt.cost = call.cost = bill.pico
        call.cost_source = bill.source

    def _estimated(self, call: Call, text: str) -> Usage:
        """Return an estimate, flagged as one, for an answer that came without usage."""
        return Usage(tokens.estimate_messages(call.request.messages), tokens.estimate(text), estimated=True)

    def _report(self, call: Call) -> None:
        for span in spans(call):
            self.reporter.report(span)      # type: ignore[union-attr]  # an observer only where there is a reporter

    def close(self) -> None:
        """Release what the providers hold."""
        for member in self.registry:
            close = getattr(member.provider, "close", None)
            if close is not None:
                close()


class Stream:
    """An answer that is still coming; iterate it, and close it wherever you stop."""

    def __init__(self, router: Router, call: Call, first: list[Chunk], rest: Iterator[Chunk], finishing: _Finishing) -> None:
        self.call = call
        self._router = router
        self._first = deque(first)
        self._rest = rest
        self._finishing = finishing
        self._fold = Fold()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        if self.call.ended is not None:
            raise StopIteration
        try:
            with _Foreign(self.call.provider, ends=True):
                chunk = self._first.popleft() if self._first else next(self._rest)
                if chunk is not HEARTBEAT:
                    self._fold.add(chunk)
        except StopIteration:
            self._settle(None)
            raise
        except InferMuxError as error:
            self._settle(error)
            raise
        return chunk

    def __del__(self) -> None:
        if getattr(self, "_finishing", None) is not None:
            self.close()  # whoever drops a stream without a word has used what came of it all the same

    @property
    def dialect(self) -> str:
        """The dialect of the provider's own events, which chunks carry as `native`."""
        return next((chunk.dialect for chunk in self._first if chunk.dialect), "")

    def close(self) -> None:
        """End the stream here: the provider's connection is closed, and what was used so far is recorded."""
        self._settle(None)

    def response(self) -> InferResponse:
        """Return what came so far as one answer."""
        attempt, call = self.call.attempts[-1], self.call
        whole = self._fold.response(attempt.target.provider, attempt.target.model)
        tokens_in, tokens_out = call.tokens
        return replace(whole, usage=call.usage, tokens_in=tokens_in, tokens_out=tokens_out, cost_usd=call.cost_usd,
                       latency_ms=call.latency_ms)

    def _settle(self, error: InferMuxError | None) -> None:
        """Record the end, once: whichever of last chunk, error and close comes first."""
        call, attempt = self.call, self.call.attempts[-1]
        if attempt.ended is None:
            attempt.ended, attempt.error = time.monotonic(), error
            attempt.served = self._fold.model
            call.finish_reason = self._fold.finish_reason
            usage = self._fold.usage or Usage()
            if not usage.input_tokens and not usage.output_tokens:
                usage = self._router._estimated(call, self._fold.text)
            try:
                self._router._charge(call, attempt, usage)
                _close(self._rest, call.provider)
            finally:
                self._finishing.finish(error)


class _Finishing:
    """Closes the record of a call exactly once, and tells the observers."""

    __slots__ = ("_call", "_router")

    def __init__(self, router: Router, call: Call) -> None:
        self._router = router
        self._call = call

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.finish(error)

    def finish(self, error: BaseException | None) -> None:
        """Note the end and its error."""
        call = self._call
        if call.ended is not None:
            return
        call.ended = time.monotonic()
        if error is not None:
            call.error = error if isinstance(error, InferMuxError) else InferMuxError("the call was broken off")
        for observer in self._router.observers:
            try:
                observer(call)
            except Exception:               # an observer must never break the call that it watches
                log.exception("an observer failed")


class _Foreign:
    """Turns what a provider raises beside our own errors into one of them, and logs it: it is a bug of the provider."""

    __slots__ = ("_ends", "_name")

    def __init__(self, name: str, *, ends: bool = False) -> None:
        self._name = name
        self._ends = ends  # whether StopIteration is the end of a stream, and not a stray one

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InferMuxError) and not (self._ends and isinstance(error, StopIteration)):
            log.error("provider %r raised %s", self._name, type(error).__name__, exc_info=error)
            raise ProviderUnavailable(f"provider {self._name!r} failed") from error


def _close(chunks: Any, name: str) -> None:
    """Close a provider's stream; what fails in it must not hide what happened before."""
    try:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    except Exception as error:  # somebody's own code
        log.error("the stream of provider %r could not be closed", name, exc_info=error)


__all__ = ["Observer", "Reports", "Router", "Stream", "Target"]
