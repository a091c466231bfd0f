"""How many requests of a process begin at a time.

A request that begins needs the interpreter; one that waits for its vendor does not. Where a
thousand begin at once, each waits for all others at every step, and so does whoever asks about
health. So a server lets a few begin, and more as these come to wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

_mine = threading.local()  # .starts: where this thread's request has taken its room


class Starts:
    """Room for requests to begin; *given* is called when some was given back."""

    def __init__(self, room: int, given: Callable[[], None]) -> None:
        self._room = deque(
            [None] * room
        )  # any thread may take from a deque, or add to it, without a lock
        self._given = given

    def __bool__(self) -> bool:
        """Whether there is room."""
        return bool(self._room)

    def take(self) -> None:
        """Take room for one request; raise IndexError if there is none."""
        self._room.pop()

    def give(self) -> None:
        """Give room for one request back."""
        self._room.append(None)
        self._given()


def begin(starts: Starts | None) -> None:
    """Note where room was taken for this thread's request."""
    _mine.starts = starts


def begun() -> None:
    """Give back what room this thread's request has taken: it waits for its vendor now, or is over."""
    starts: Starts | None = getattr(_mine, "starts", None)
    if starts is not None:
        _mine.starts = None
        starts.give()
