"""Splits a JSON array of objects that arrives in pieces, such as Google's streams without SSE."""

from __future__ import annotations

import re

from .sse import MAX_EVENT, Event

_OUTSIDE = re.compile(rb'["{}]')  # what matters outside of strings, and inside of them
_INSIDE = re.compile(rb'["\\]')


class ArrayParser:
    """Returns each object of an array, its bytes unchanged; a bare object is taken as one."""

    __slots__ = ("_depth", "_in_string", "_parts", "_size", "_skip")

    def __init__(self) -> None:
        self._depth = 0  # of braces
        self._in_string = False
        self._skip = 0  # the next byte is escaped by the last one of the piece before
        self._parts: list[bytes] = []  # of an unfinished object
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        """Return the objects that *data* completes; raise ValueError if one is too long."""
        events: list[Event] = []
        start, at = 0, self._skip
        while found := (_INSIDE if self._in_string else _OUTSIDE).search(data, at):
            at, mark = found.end(), found[0]
            if mark == b"\\":
                at += 1
            elif mark == b'"':
                self._in_string = not self._in_string
            elif mark == b"{":
                start = start if self._depth else found.start()
                self._depth += 1
            elif self._depth > 0:
                self._depth -= 1
                if not self._depth:
                    events.append(Event(b"".join((*self._parts, data[start:at]))))
                    self._parts, self._size = [], 0
        self._skip = max(0, at - len(data))
        if self._depth:
            self._parts.append(data[start:])
            self._size += len(data) - start
            if self._size > MAX_EVENT:
                raise ValueError(f"an object is longer than {MAX_EVENT} bytes")
        return events

    def end(self) -> list[Event]:
        """Return no more objects; raise ValueError if one is unfinished."""
        if self._depth:
            raise ValueError("the array ends within an object")
        return []
