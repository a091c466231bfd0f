"""The targets that a call may still try, in order, and the backoff before a retry."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from ..errors import Paced, ProviderError, ProviderRateLimited
from ..planning.call import Call
from ..types import Target

BACKOFF = 0.5  # seconds: full jitter up to this, doubled each time (AWS, the official SDKs)
MAX_BACKOFF = 8.0
FAILOVER_BACKOFF = 0.05  # the same for a call with several targets, but after a rate limit
MAX_RETRIES = 10.0  # per provider, until successes add more
RETRY_CREDIT = 0.2  # per success (Google SRE: retries at most a tenth of the requests)


class TargetQueue:
    """The targets of a plan: a failover takes the next one, a retry appends one with its time.

    Targets that must wait for their provider's rate come last, the shortest wait first, then the
    *reserve*.
    """

    def __init__(self, targets: Iterable[Target], reserve: Sequence[Target] = ()) -> None:
        self._left = deque((target, 0.0) for target in (*targets, *reserve))
        self._reserve = reserve
        # seconds until each may be sent a request; those of the reserve are the last
        self._paced = dict.fromkeys(reserve, math.inf)

    def __bool__(self) -> bool:
        return bool(self._left)

    def next(self) -> tuple[Target, float]:
        """Return the next target, and the monotonic time until which to wait."""
        paced = self._paced
        if paced and all(target in paced for target, _ in self._left):
            self._left = deque(sorted(self._left, key=lambda entry: paced[entry[0]]))
        return self._left.popleft()

    def retry(self, target: Target, at: float) -> None:
        """Append *target*, to be tried again at a monotonic time."""
        self._left.append((target, at))

    def has_untried(self, call: Call) -> bool:
        """Whether a target that is not of the reserve has not been tried."""
        left = [each for each, _ in self._left if each not in self._reserve]
        return not all(map(call.has_tried, left))

    def waits(self, target: Target) -> bool:
        """Whether to wait for *target*'s rate, as no other target is ready sooner."""
        paced = self._paced
        known = target in paced or not self._left
        return known and all(other in paced for other, _ in self._left)

    def postpone(self, target: Target, error: Paced, *, waited: bool) -> None:
        """Put *target* behind the others, unless the call has waited for it in vain."""
        if not waited:
            self._paced[target] = error.retry_after or 0.0
            self._left.append((target, 0.0))

    def keep(self, follows: Callable[[Target], bool]) -> None:
        """Drop the targets that must not follow the one that has failed."""
        self._left = deque(entry for entry in self._left if follows(entry[0]))


def longest_backoff(call: Call, target: Target, error: ProviderError) -> float:
    """Return the most seconds to wait after *error*; the wait is random up to these."""
    times = sum(attempt.target == target for attempt in call.attempts)
    slow = call.has_one_target or isinstance(error, ProviderRateLimited)
    base = BACKOFF if slow else FAILOVER_BACKOFF
    return min(MAX_BACKOFF, base * 2.0 ** (times - 1))


class RetryBudget:
    """The retries left at one provider: a retry spends one, successes earn more."""

    def __init__(self) -> None:
        self._left = MAX_RETRIES
        self._lock = threading.Lock()

    def spend(self) -> bool:
        """Take one retry; return whether there was one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def earn(self) -> None:
        if self._left < MAX_RETRIES:
            with self._lock:
                self._left = min(MAX_RETRIES, self._left + RETRY_CREDIT)
