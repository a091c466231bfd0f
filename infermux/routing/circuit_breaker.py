"""The health of one target in this process: a circuit breaker, a cool-down, latency and load.

Closed lets every call through. Too many failures open it; after a while it is half open, which lets
one real call probe. The probe's success closes it, its failure opens it for twice as long.
Stragglers do not count: what a call says of a state that has passed since it was admitted changes
nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import NamedTuple, Self

from ..types import Clock

MIN_CALLS = 10  # in the window, before its share of failures counts
GROWTH = 10  # times `open_seconds`: the longest that a circuit stays open (Envoy: 30 s to 300 s)
MAX_COOL_DOWN = 3600.0  # seconds: a vendor's odd Retry-After must not shut a target for days
DECAY = 10.0  # seconds: time constant of the latency
SAMPLES = 64  # latencies that percentiles are taken from
_PARTS = 60  # of the window: how finely it slides


class BreakerState(NamedTuple):
    """What is known of a target at one moment; seconds throughout."""

    state: str  # closed, open or half_open
    reason: str | None  # why a call would be refused now
    retry_in: (
        float | None
    )  # until a call would be let through; 0: now; None: not known (a probe is out, or by hand)
    latency: float | None  # as strategies use it; None: nothing in the window
    in_flight: int
    calls: int  # in the window, since the circuit last closed: succeeded or failed
    failures: int
    error_rate: float | None
    p50: float | None
    p95: float | None
    per_minute: float  # ended requests in the window, neutral ones too


class Permit:
    """The leave to make one call. It ends once, by the first of succeeded, failed and neutral; a
    `with` that ends first is neutral.
    """

    __slots__ = ("_ended", "_generation", "_health", "_started")

    def __init__(self, health: CircuitBreaker, generation: int) -> None:
        self._health = health
        self._generation = generation
        self._started = self._ended = False

    def started(self, seconds: float) -> None:
        """Note that the first content came after *seconds*: a probe has done its duty, while its
        stream may run on for minutes.
        """
        self._health._start(self, seconds)

    def succeeded(self, seconds: float | None = None) -> None:
        """End well; *seconds* to the first content, unless started() has said it."""
        self._health._end(self, failed=False, seconds=seconds)

    def failed(self) -> None:
        """End by the provider's fault."""
        self._health._end(self, failed=True)

    def neutral(self) -> None:
        """End in a way that says nothing of the provider's health: a 4xx, a 429, a client that
        left.
        """
        self._health._end(self, failed=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.neutral()


class CircuitBreaker:
    """Watches one target; every method may be called from any thread."""

    def __init__(
        self,
        *,
        failures: int = 5,
        window: float = 60.0,
        open_seconds: float = 30.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._failures = failures  # in a row
        self._window_seconds = window
        self._open_seconds = open_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._window = _Window(window / _PARTS)
        self._latency = _Latency(window)
        self._is_open = self._by_hand = False
        self._open_until = self._cool_until = -math.inf
        self._probe: Permit | None = None
        self._generation = 0  # of the circuit's state: it counts the changes
        self._in_row = self._trips = self._in_flight = 0

    def admit(self, *, force: bool = False) -> Permit | None:
        """Return leave for one call, or None; *force* opens whatever was not shut by hand: for when
        every target is shut.
        """
        with self._lock:
            if self._is_open or self._cool_until > -math.inf:
                shut = self._shut_for(self._clock()) > 0
                if shut and (self._by_hand or not force):
                    return None
                permit = Permit(self, self._generation)
                if self._is_open and not shut:
                    self._probe = permit
            else:
                permit = Permit(self, self._generation)
            self._in_flight += 1
            return permit

    def cool_down(self, seconds: float) -> None:
        """Let no call through for *seconds* (a vendor's Retry-After, at most an hour); never
        shortens one that is under way.
        """
        if seconds > 0:
            with self._lock:
                self._cool_until = max(
                    self._cool_until, self._clock() + min(seconds, MAX_COOL_DOWN)
                )

    def ready(self) -> str | None:
        """Return why a call would be refused now, or None; takes nothing."""
        if not self._is_open and self._cool_until == -math.inf:
            return None  # nearly always
        with self._lock:
            return self._refusal(self._clock())

    @property
    def changes(self) -> int:
        """How often the circuit has changed its state."""
        return self._generation

    @property
    def in_flight(self) -> int:
        """Calls that were admitted and have not ended."""
        return self._in_flight

    @property
    def latency(self) -> float | None:
        """Seconds to the first content: a peak-sensitive average that fades, or None if nothing is
        known of the window.
        """
        with self._lock:
            return self._latency.at(self._clock())

    def snapshot(self) -> BreakerState:
        """Return all that is known now."""
        with self._lock:
            now = self._clock()
            self._window.slide(now)
            requests, calls, failures = self._window.totals
            shut = self._shut_for(now)
            state = (
                "closed" if not self._is_open else "open" if now < self._open_until else "half_open"
            )
            reason, latency, in_flight = self._refusal(now), self._latency.at(now), self._in_flight
            samples = list(self._latency.samples)
        samples.sort()
        return BreakerState(
            state,
            reason,
            shut if shut < math.inf else None,
            latency,
            in_flight,
            calls,
            failures,
            failures / calls if calls else None,
            _percentile(samples, 50),
            _percentile(samples, 95),
            requests * 60 / self._window_seconds,
        )

    # -- by hand -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Shut the target until close() or reset(), even to forced calls."""
        with self._lock:
            self._turn(is_open=True)
            self._by_hand, self._open_until = True, math.inf

    def close(self) -> None:
        """Let calls through from now on: the circuit is closed, and nothing cools down."""
        with self._lock:
            self._turn(is_open=False)
            self._cool_until = -math.inf

    def reset(self) -> None:
        """Forget everything but the calls in flight."""
        with self._lock:
            self._turn(is_open=False)
            self._cool_until, self._trips = -math.inf, 0
            self._window = _Window(self._window_seconds / _PARTS)
            self._latency = _Latency(self._window_seconds)

    # -- under the lock ----------------------------------------------------------------------------

    def _shut_for(self, now: float) -> float:
        """Return the seconds until a call would be let through: 0 is now, infinity is not known."""
        if self._by_hand or self._probe is not None:
            return math.inf
        return max(self._open_until - now, self._cool_until - now, 0.0)

    def _refusal(self, now: float) -> str | None:
        shut = self._shut_for(now)
        if not shut:
            return None
        if shut == math.inf:
            return (
                "circuit opened by hand"
                if self._by_hand
                else "circuit half open, its probe is under way"
            )
        return f"{'circuit open' if self._open_until >= self._cool_until else 'cooling down'} for {math.ceil(shut)} s"

    def _start(self, permit: Permit, seconds: float) -> None:
        with self._lock:
            if permit._started or permit._ended:
                return
            permit._started = True
            self._latency.add(self._clock(), seconds)
            if self._is_open and permit._generation == self._generation:
                self._turn(is_open=False)
                permit._generation = self._generation

    def _end(self, permit: Permit, *, failed: bool | None, seconds: float | None = None) -> None:
        with self._lock:
            if permit._ended:
                return
            permit._ended = True
            now = self._clock()
            self._in_flight -= 1
            probed = self._probe is permit
            if probed:
                self._probe = None
            if seconds is not None and not permit._started:
                self._latency.add(now, seconds)
            counts = failed is not None and permit._generation == self._generation
            self._window.add(now, counts=counts, failed=bool(failed))
            if counts and failed:
                self._fail(now, probed)
            elif counts:
                self._in_row = self._trips = 0
                if self._is_open:
                    self._turn(is_open=False)

    def _fail(self, now: float, probed: bool) -> None:
        if self._is_open and not probed:  # a forced call: that the target is down is known
            return
        self._in_row += 1
        _, calls, failures = self._window.totals
        if (
            probed
            or self._in_row >= self._failures
            or (calls >= MIN_CALLS and failures * 2 >= calls)
        ):
            self._turn(is_open=True)
            self._open_until = now + self._open_seconds * min(2 ** min(self._trips, GROWTH), GROWTH)
            self._trips += 1

    def _turn(self, *, is_open: bool) -> None:
        """Begin a new state of the circuit."""
        self._is_open, self._by_hand, self._probe = is_open, False, None
        self._generation += 1
        if not is_open:
            self._open_until, self._in_row = -math.inf, 0
            # else the failures that opened it would open it again at the first one
            self._window.forget()


class _Latency:
    """Peak-sensitive average (Finagle's PeakEwma): jumps up to a slower sample, fades with DECAY
    towards faster ones.

    It fades while nothing comes, too, so that a target which a strategy avoids is tried again;
    after *window* seconds without a sample it is unknown.
    """

    __slots__ = ("_at", "_value", "_window", "samples")

    def __init__(self, window: float) -> None:
        self._window = window
        self._value, self._at = 0.0, -math.inf
        self.samples: deque[float] = deque(maxlen=SAMPLES)

    def add(self, now: float, seconds: float) -> None:
        """Note a sample of *seconds* at the moment *now*."""
        if seconds < self._value:
            weight = math.exp((self._at - now) / DECAY)
            seconds_now = self._value * weight + seconds * (1 - weight)
        else:
            seconds_now = seconds
        self._value, self._at = seconds_now, now
        self.samples.append(seconds)

    def at(self, now: float) -> float | None:
        """Return the average at the moment *now*."""
        idle = now - self._at
        return None if idle > self._window else self._value * math.exp(-idle / DECAY)


class _Window:
    """Counts of the last 60 *part*s, the current one included: requests, and of them calls that
    count and their failures.
    """

    __slots__ = ("_part", "_parts", "totals")

    def __init__(self, part: float) -> None:
        self._part = part  # seconds
        self._parts: deque[list[int]] = deque()  # number, requests, calls, failures
        self.totals = [0, 0, 0]

    def add(self, now: float, *, counts: bool, failed: bool) -> None:
        """Count one request that ended at the moment *now*."""
        parts, number = self._parts, int(now // self._part)
        if not parts or parts[-1][0] < number:
            self.slide(now)
            parts.append([number, 0, 0, 0])
        last, totals = parts[-1], self.totals
        last[1] += 1
        totals[0] += 1
        if counts:
            last[2] += 1
            totals[1] += 1
            last[3] += failed
            totals[2] += failed

    def slide(self, now: float) -> None:
        """Forget what is older than the window."""
        oldest = int(now // self._part) - _PARTS
        while self._parts and self._parts[0][0] <= oldest:
            gone = self._parts.popleft()
            self.totals = [
                total - count for total, count in zip(self.totals, gone[1:], strict=True)
            ]

    def forget(self) -> None:
        """Keep the requests, forget what came of them."""
        for part in self._parts:
            part[2] = part[3] = 0
        self.totals[1] = self.totals[2] = 0


def _percentile(ordered: list[float], percent: int) -> float | None:
    """Return the nearest-rank percentile, or None of nothing."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None
