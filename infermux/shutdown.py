"""Whether this process is about to be ended: a stream that would be cut then says so while it still can."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MARGIN = 2.0                                # seconds that the last words of a stream get


class _Watch:
    """Knows from the server whether it still runs, and since when it does not."""

    def __init__(self) -> None:
        self.runs: Callable[[], bool] = lambda: True
        self.grace = math.inf               # seconds from the end of running to the cut
        self._stopped: float | None = None

    def due(self) -> bool:
        """Whether whatever still goes on must end now."""
        if self.runs():
            return False
        now = time.monotonic()
        self._stopped = now if self._stopped is None else self._stopped
        return now - self._stopped > self.grace - MARGIN


_watch = _Watch()
due = _watch.due


def watch(runs: Callable[[], bool], grace: float) -> None:
    """Ask *runs* from now on; the process is ended *grace* seconds after it says no."""
    _watch.runs, _watch.grace = runs, grace
