"""Values that every layer shares: targets, usage, chunks, deadlines, callers."""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import select
import socket
import struct
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self

JSON = dict[str, Any]
Clock = Callable[[], float]


class _NoLocks:
    """What a system without fcntl gets, where a service does not run: there is one process."""

    LOCK_EX = LOCK_NB = LOCK_UN = 0

    @staticmethod
    def flock(*_: object) -> None:
        """Lock nothing."""

    lockf = flock


fcntl: Any = _NoLocks()
with contextlib.suppress(ImportError):
    fcntl = importlib.import_module("fcntl")
POSIX = not isinstance(fcntl, _NoLocks)


def after_fork(function: Callable[[], object]) -> None:
    """Have *function* called in the child processes, where the system has such."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


_forked: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()
after_fork(lambda: [reset(each) for each, reset in list(_forked.items())])


def reset_after_fork(each: Any, reset: Callable[[Any], object]) -> None:
    """Have *reset* called with an object in the child processes."""
    _forked[each] = reset


def is_readable(sock: Any, seconds: float = 0.0) -> bool:
    """Whether a socket, or a descriptor, is readable within *seconds*."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([sock], [], [], seconds)[0])
    poll = select.poll()  # it uses no descriptor itself
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def limit_waits(sock: Any, seconds: float, *, sends: bool = True) -> None:
    """Let the kernel end each wait of a blocking socket after *seconds*; if it *sends*, those too.

    A timeout of Python's would take twice the system calls.
    """
    whole, rest = divmod(max(0.001, seconds), 1)  # 0 would mean for ever
    timeval = struct.pack("ll", int(whole), int(rest * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    if sends:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def is_shortage(error: BaseException | None) -> bool:
    """Whether this process ran out of descriptors, memory or threads."""
    for _ in range(10):  # libraries wrap such errors
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            return True
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return True
        if error is None:
            return False
        error = error.__cause__ or error.__context__
    return False


OnWait = Callable[[], float]  # returns the seconds after which to call it again


class Target(NamedTuple):
    """A model at a provider: the unit of routing and billing."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"

    @classmethod
    def of(cls, name: str) -> Self:
        """Return the target written as provider/model, split at the first slash."""
        provider, _, model = name.partition("/")
        return cls(provider, model)


FALLBACK_ON = ("context",)  # rejections after which the next target is tried, by default


class AnswerPolicy(NamedTuple):
    """How long answers are cached, and how many bytes of them."""

    seconds: float
    most: int
    settings: str = ""  # of the name: with others, no answer of before is given


class Route(NamedTuple):
    """What a name stands for: entries, the strategy that orders them, fallbacks (`then`)."""

    name: str
    entries: tuple[Target | Route, ...]
    strategy: str = "priority"
    then: tuple[Target | Route, ...] = ()
    weights: tuple[float, ...] = ()  # of the entries, in order; empty: all equal
    on_unsupported: str = ""  # "error" or "drop"; empty: the router's setting
    fallback_on: tuple[str, ...] = FALLBACK_ON
    sticky: bool = False  # whether a session stays at its target, whatever the strategy is
    cache: str = ""  # "auto": vendors are asked to cache prompts
    answers: AnswerPolicy | None = None  # None: no answer is cached
    pattern: str = ""  # the one in [models] that the name matches


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, normalised over the vendors.

    `input_tokens` is all input; `cached_input_tokens` and `cache_write_tokens` are disjoint parts
    of it, and `cache_write_1h_tokens` is a part of the latter. `output_tokens` is all output,
    `reasoning_tokens` a part of it, and so are the tokens of each medium of theirs. None means that
    the vendor did not say; 0 that it said zero.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool = False
    cost_usd: float | None = None  # the vendor's own cost, used before any price table
    service_tier: str | None = None  # the tier that the vendor billed
    tool_use_tokens: int | None = None  # of the vendor's tools: billed as input, not counted in it
    total_tokens: int | None = None
    input_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    input_video_tokens: int | None = None
    cached_audio_tokens: int | None = None  # a part of both that is cached and that is audio
    output_audio_tokens: int | None = None
    output_image_tokens: int | None = None
    geo: str | None = None  # the region that the vendor bills apart
    fees: tuple[tuple[str, int], ...] = ()  # what is billed by number: ("web_search", 2)
    others: tuple[tuple[str, Usage], ...] = ()  # of other models, which the vendor bills as well
    parts: tuple[Usage, ...] = ()  # summed up in it, and billed each by its size


NOTHING: Mapping[Any, Any] = {}


class Chunk(NamedTuple):
    """A piece of a streamed answer; an empty one is a heartbeat while the provider is silent."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: Sequence[JSON] = ()  # OpenAI-shaped deltas: index, id, function{name, arguments}
    finish_reason: str | None = None
    usage: Usage | None = None
    native: bytes | None = None  # the provider's event, for a client of the same dialect
    details: Sequence[JSON] = ()  # signed reasoning, as OpenRouter's reasoning_details
    model: str | None = None
    id: str | None = None
    function_call: Mapping[str, str] = NOTHING  # OpenAI's older form of a tool call
    dialect: str = ""  # of the native event
    usage_only: bool = False  # only for clients that asked for usage
    shown: bool = False  # the native event has content that no field above holds
    more: str = ""  # the text of further choices, for estimates
    annotations: Sequence[JSON] = ()  # as in InferResponse, of the text so far
    images: Sequence[JSON] = ()

    @property
    def has_content(self) -> bool:
        """Whether a client sees something of it, after which a call cannot fail over."""
        return bool(
            self.text
            or self.reasoning
            or self.refusal
            or self.tool_calls
            or self.finish_reason
            or self.details
            or self.function_call
            or self.shown
            or self.images
        )


HEARTBEAT = Chunk()


class Deadline:
    """The time left for a whole call, over all attempts and waits, by the monotonic clock."""

    __slots__ = ("_clock", "_end", "by_client", "on_wait")

    def __init__(
        self,
        seconds: float,
        *,
        clock: Clock = time.monotonic,
        by_client: bool = False,
        on_wait: OnWait | None = None,
    ) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self.by_client = by_client  # the client's own timeout, not a provider's failure
        self.on_wait = on_wait  # called while waiting for a provider; it may raise

    def share(self, part: float, limit: Deadline) -> Deadline:
        """Return a deadline of *part* (0 to 1) of the time left, here or in *limit* if less."""
        own, other = self.remaining(), limit.remaining()
        by_client = self.by_client and own <= other
        seconds = min(own, other) * part
        return Deadline(seconds, clock=self._clock, by_client=by_client, on_wait=self.on_wait)

    def remaining(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._end - self._clock())

    def cap(self, seconds: float | None) -> float:
        """Return *seconds*, or the time left if that is less."""
        left = self.remaining()
        return left if seconds is None or seconds > left else seconds

    def slices(self, seconds: float) -> Iterator[float]:
        """Divide *seconds*, or the time left, into waits; call `on_wait` before each."""
        left = self.cap(seconds)
        while left > 0:
            part = left if self.on_wait is None else min(left, self.on_wait())
            yield part
            left -= part

    @property
    def expired(self) -> bool:
        return self._end <= self._clock()


class LogThrottle:
    """Limits a repeated log message to one per *seconds*."""

    def __init__(self, *, seconds: float = 60.0, clock: Clock = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last = -math.inf

    def due(self) -> bool:
        """Whether the message may be logged now; if so, restart the time."""
        now = self._clock()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, identified by an API key or by the host application."""

    name: str = ""
    models: Sequence[str] | None = None  # None: every model
    rpm: int | None = None  # requests per minute
    tpm: int | None = None  # tokens per minute
    budget: object = None  # a ledger.Budget; None: no limit
    tags: Mapping[str, str] = field(default_factory=dict)
    may_tag: bool = True  # whether requests may set project and env
    user_rpm: int | None = None  # requests per minute of each of its end users
    user_tpm: int | None = None
    user_budget: object = None  # a ledger.Budget of each of them

    def __post_init__(self) -> None:
        own: Any = self.budget
        if isinstance(own, str | int | float):
            raise TypeError('budget must be a Budget, such as Budget(usd="5.00")')
        if getattr(own, "caller", None) == "":
            object.__setattr__(self, "budget", replace(own, caller=self.name))


ANONYMOUS = Caller()


class TraceContext(NamedTuple):
    """A W3C trace context: the trace of a call, and its parent span."""

    trace_id: str
    parent_id: str
    flags: str = "01"


class CircuitCommand(NamedTuple):
    """What an operator has made of a provider's circuits, or of one model's, at any host."""

    number: int
    action: str  # open, close or reset
    provider: str
    model: str  # "": all of the provider's


@dataclass(slots=True)
class Window:
    """What a limit allows in 60 seconds, and what is used of it; None: no such limit."""

    rpm: int | None
    tpm: int | None
    requests: int = 0
    tokens: int = 0
    requests_reset: float = 0.0  # seconds until none of the requests counts any more
    tokens_reset: float = 0.0


class Rates(Protocol):
    """Limits of requests and tokens per minute: a `RateLimiter`, or what hosts share."""

    def take(
        self,
        caller: str,
        *,
        rpm: int | None,
        tpm: int | None,
        tokens: int = 0,
        window: Window | None = None,
    ) -> float | None:
        """Count a request and return None, or return the seconds to wait."""

    def wait(
        self, caller: str, *, rpm: int | None, tpm: int | None, requests: int, tokens: int
    ) -> float:
        """Return the seconds until so many fit; count nothing."""

    def give_back(self, caller: str, tokens: int, *, since: float) -> None:
        """Take back a request that was counted since *since*, and its tokens."""

    def correct(self, caller: str, tokens: int, *, since: float) -> None:
        """Correct the estimate of a call."""

    def check(self) -> None:
        """Raise ConfigError if the limits cannot be kept."""

    def close(self) -> None:
        """Close files."""
