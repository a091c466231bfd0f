"""The circuit breaker of one target in this process, with its cool-down, latency and load.

A closed circuit admits every call. Too many failures open it. After a while it is half open and
admits one call as a probe: success closes the circuit, failure opens it for twice as long. Results
of calls admitted before the last state change are ignored.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from ..types import Clock

MIN_CALLS = 10  # in the window, before the share of failures can open the circuit
GROWTH = 10  # a circuit stays open for at most 10 times `open_seconds` (Envoy: 30 s to 300 s)
MAX_COOL_DOWN = 3600.0  # seconds: a wrong Retry-After must not exclude a target for days
DECAY = 10.0  # seconds: time constant of the average latency
SAMPLES = 64  # latencies from which percentiles are computed
_PARTS = 60  # of the sliding window


class BreakerState(NamedTuple):
    """The state of a target at one moment; times are seconds."""

    state: str  # closed, open or half_open
    reason: str | None  # why a call would be refused now; None: admitted
    retry_in: float | None  # 0: now; None: unknown (a probe is in flight, or forced open)
    latency: float | None  # moving average; None: no sample in the window
    in_flight: int
    calls: int  # that succeeded or failed in the window since the circuit last closed
    failures: int
    error_rate: float | None
    p50: float | None
    p95: float | None
    per_minute: float  # requests that ended in the window, neutral ones included
    since: float | None = None  # seconds since 1970: when the target first refused calls
    why: str = ""  # the last failure before that


@dataclass(slots=True, eq=False)
class Permit:
    """The permission for one call; succeeded, failed or neutral ends it."""

    breaker: CircuitBreaker
    _changes: int  # of the circuit's state, before this call
    _started: bool = False
    _ended: bool = False

    def started(self, seconds: float) -> None:
        """Record that the first content came after *seconds*; a probe has then succeeded."""
        self.breaker._start(self, seconds)

    def succeeded(self, seconds: float | None = None) -> None:
        """Record success; *seconds* is the time to the first content, unless started() had it."""
        self.breaker._end(self, failed=False, seconds=seconds)

    def failed(self, why: str = "") -> None:
        self.breaker._end(self, failed=True, why=why)

    def neutral(self) -> None:
        """Record an end that says nothing about the provider: 4xx, 429, a client that left."""
        self.breaker._end(self, failed=None)


@dataclass(eq=False, kw_only=True)
class CircuitBreaker:
    """The breaker of one target; its methods are thread-safe."""

    failures: int = 5  # in a row
    window: float = 60.0  # seconds
    open_seconds: float = 30.0
    clock: Clock = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()
        self._is_open = False
        self.forced_open = False  # by an operator
        self._open_until = self._cool_until = self._stated_until = -math.inf
        self._probe: Permit | None = None
        self.changes = 0  # of the circuit's state
        self.in_flight = 0  # calls
        self._in_row = 0
        self._since: float | None = None
        self._why = ""

    def admit(self, *, force: bool = False) -> Permit | None:
        """Return the permission for one call, or None; *force* overrides all but an operator."""
        with self._lock:
            permit = Permit(self, self.changes)
            if self._is_open or self._cool_until > -math.inf:
                refused = self._wait(self.clock()) > 0
                if refused and (self.forced_open or not force):
                    return None
                if self._is_open and not refused:
                    self._probe = permit
            self.in_flight += 1
            return permit

    def cool_down(self, seconds: float, why: str = "", *, stated: bool = True) -> None:
        """Refuse calls for *seconds*; never shorten a cool-down. *stated*: by the vendor."""
        if seconds > 0:
            with self._lock:
                now = self.clock()
                if not self._is_open and now >= self._cool_until:
                    self._since, self._why = time.time(), why
                until = now + min(seconds, MAX_COOL_DOWN)
                self._cool_until = max(self._cool_until, until)
                if stated:
                    self._stated_until = max(self._stated_until, until)

    def cooling(self) -> float:
        """Return the seconds until the vendor's own Retry-After ends."""
        return max(0.0, self._stated_until - self.clock())

    def refusal(self) -> str | None:
        """Return why a call would be refused now, or None."""
        if not self._is_open and self._cool_until == -math.inf:
            return None  # without the lock
        with self._lock:
            return self._refusal(self.clock())

    @property
    def latency(self) -> float | None:
        """The average seconds to the first content; None: no sample in the window."""
        with self._lock:
            return self._latency.at(self.clock())

    def snapshot(self) -> BreakerState:
        with self._lock:
            now = self.clock()
            requests, calls, failures = self._window.totals(now)
            wait = self._wait(now)
            state = "open" if now < self._open_until else "half_open" if self._is_open else "closed"
            reason, latency, in_flight = self._refusal(now), self._latency.at(now), self.in_flight
            samples = sorted(self._latency.samples)
            told = (self._since, self._why) if reason or self._is_open else (None, "")
        return BreakerState(
            state,
            reason,
            wait if wait < math.inf else None,
            latency,
            in_flight,
            calls,
            failures,
            failures / calls if calls else None,
            _percentile(samples, 50),
            _percentile(samples, 95),
            requests * 60 / self.window,
            *told,
        )

    # -- operators --

    def open(self) -> None:
        """Open the circuit until close() or reset(), also for forced calls."""
        with self._lock:
            self._turn(is_open=True)
            self.forced_open, self._open_until = True, math.inf

    def close(self) -> None:
        """Close the circuit and end the cool-down."""
        with self._lock:
            self._turn(is_open=False)
            self._cool_until = self._stated_until = -math.inf

    def reset(self) -> None:
        """Close the circuit and forget all history, except for calls in flight."""
        self.close()
        with self._lock:
            self._forget()

    # -- under the lock --

    def _forget(self) -> None:
        self._trips = 0
        self._window = _Window(self.window / _PARTS)
        self._latency = _Latency(self.window)

    def _wait(self, now: float) -> float:
        """Return the seconds until a call would be admitted, or infinity if that is unknown."""
        if self.forced_open or self._probe is not None:
            return math.inf
        return max(self._open_until - now, self._cool_until - now, 0.0)

    def _refusal(self, now: float) -> str | None:
        wait = self._wait(now)
        if not wait:
            return None
        if self.forced_open:
            return "circuit forced open"
        if wait == math.inf:
            return "circuit half open, its probe is under way"
        what = "circuit open" if self._open_until >= self._cool_until else "cooling down"
        return f"{what} for {math.ceil(wait)} s"

    def _start(self, permit: Permit, seconds: float) -> None:
        with self._lock:
            if permit._started or permit._ended:
                return
            permit._started = True
            self._latency.add(self.clock(), seconds)
            if self._is_open and permit._changes == self.changes:
                self._turn(is_open=False)
                permit._changes = self.changes

    def _end(
        self,
        permit: Permit,
        *,
        failed: bool | None,
        seconds: float | None = None,
        why: str = "",
    ) -> None:
        with self._lock:
            if permit._ended:
                return
            permit._ended = True
            now = self.clock()
            self.in_flight -= 1
            probed = self._probe is permit
            if probed:
                self._probe = None
            if seconds is not None and not permit._started:
                self._latency.add(now, seconds)
            result = failed if permit._changes == self.changes else None
            self._window.add(now, result)
            if result:
                self._fail(now, probed, why)
            elif result is not None:
                self._in_row = self._trips = 0
                if self._is_open:
                    self._turn(is_open=False)

    def _fail(self, now: float, probed: bool, why: str) -> None:
        if self._is_open and not probed:  # a forced call has no effect
            return
        self._in_row += 1
        _, calls, failures = self._window.totals(now)
        half = calls >= MIN_CALLS and failures * 2 >= calls
        if probed or half or self._in_row >= self.failures:
            self._turn(is_open=True)
            self._why = why
            self._open_until = now + self.open_seconds * min(2 ** min(self._trips, GROWTH), GROWTH)
            self._trips += 1

    def _turn(self, *, is_open: bool) -> None:
        if is_open != self._is_open:
            self._since, self._why = time.time() if is_open else None, ""
        self._is_open, self.forced_open, self._probe = is_open, False, None
        self.changes += 1
        if not is_open:
            self._open_until, self._in_row = -math.inf, 0
            # else the next failure would open it again
            self._window.forget()


class _Latency:
    """A moving average like Finagle's PeakEwma: rises at once, decays with DECAY.

    It also decays without samples, so that an avoided target is tried again; after *window* seconds
    without a sample it is unknown.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._value, self._at = 0.0, -math.inf
        self.samples: deque[float] = deque(maxlen=SAMPLES)

    def add(self, now: float, seconds: float) -> None:
        if seconds < self._value:
            weight = math.exp((self._at - now) / DECAY)
            value = self._value * weight + seconds * (1 - weight)
        else:
            value = seconds
        self._value, self._at = value, now
        self.samples.append(seconds)

    def at(self, now: float) -> float | None:
        """Return the average in seconds at *now*; None if it is unknown."""
        idle = now - self._at
        return None if idle > self._window else self._value * math.exp(-idle / DECAY)


@dataclass(slots=True)
class _Window:
    """Counts requests, calls with a result, and failures in a sliding window."""

    _part: float  # seconds
    _parts: deque[list[int]] = field(default_factory=deque)  # number, and the counts

    def add(self, now: float, failed: bool | None) -> None:
        """Count a request that ended at *now*; *failed* None: without a result."""
        parts, number = self._parts, int(now // self._part)
        if not parts or parts[-1][0] < number:
            self._slide(now)
            parts.append([number, 0, 0, 0])
        last = parts[-1]
        last[1] += 1
        if failed is not None:
            last[2] += 1
            last[3] += failed

    def totals(self, now: float) -> list[int]:
        self._slide(now)
        return [sum(counts) for counts in zip(*self._parts, strict=True)][1:] or [0, 0, 0]

    def _slide(self, now: float) -> None:
        oldest = int(now // self._part) - _PARTS
        while self._parts and self._parts[0][0] <= oldest:
            self._parts.popleft()

    def forget(self) -> None:
        """Reset the results, but keep the number of requests."""
        for part in self._parts:
            part[2] = part[3] = 0


def _percentile(ordered: list[float], percent: int) -> float | None:
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None
