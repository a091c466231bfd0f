"""Whether this process is about to be ended: a stream that would be cut then says so while it still
can.
"""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

MARGIN = 2.0  # seconds that the last words of a stream get


class _Watch:
    """Knows from the server whether it still runs, and since when it does not."""

    def __init__(self) -> None:
        self.server: Any = SimpleNamespace(alive=True)
        self.grace = math.inf  # seconds from the end of running to the cut
        self._stopped: float | None = None

    def due(self) -> bool:
        """Whether whatever still goes on must end now."""
        if self.server.alive:
            return False
        now = time.monotonic()
        self._stopped = now if self._stopped is None else self._stopped
        return now - self._stopped > self.grace - MARGIN


_watch = _Watch()
due = _watch.due


def watch(server: Any, grace: float) -> None:
    """Ask *server* whether it is `alive` from now on; the process is ended *grace* seconds after it
    is not.
    """
    _watch.server, _watch.grace = server, grace
