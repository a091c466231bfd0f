"""Reads what is needed of long JSON and event streams while they pass, in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import strict_json

MAX_MEMBER = 65_536  # bytes of a member that is read
MAX_KEY = 256
_ORDINARY = b'"{}[],:'


class Members:
    """Collects members of the outermost object of a JSON text that comes in pieces.

    Long strings, such as images in base64, are skipped at the speed of a search.
    """

    def __init__(self, *names: str) -> None:
        self.items = 0  # objects in the list `data`
        self._names = {name.encode() for name in names}
        self._found: dict[bytes, bytearray | None] = {}  # None: too long
        self._depth = 0
        self._quoted = self._escaped = False
        self._key: bytearray | None = None  # being read
        self._last = b""  # the key before the next value
        self._value: bytearray | None = None

    @property
    def whole(self) -> bool:
        """Whether no object, list or string is open."""
        return not self._depth and not self._quoted

    def values(self) -> dict[str, Any]:
        """Return the members that were found; those that are not JSON are left out."""
        found = {}
        for name, text in self._found.items():
            try:
                found[name.decode()] = strict_json.lenient(bytes(text)) if text else None
            except ValueError:
                continue
        return found

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            at = self._in_string(data, at) if self._quoted else self._outside(data, at)

    def _in_string(self, data: bytes, at: int) -> int:
        start, at = at, at + self._escaped
        end = data.find(b'"', at)
        while (slash := data.find(b"\\", at, len(data) if end < 0 else end)) >= 0:
            at = slash + 2
            if 0 <= end < at:
                end = data.find(b'"', at)
        self._escaped = at > len(data)
        stop = len(data) if end < 0 else end + 1
        self._keep(data, start, stop)
        if end >= 0:
            self._quoted = False
            if self._key is not None:
                self._last, self._key = bytes(self._key[:-1]), None
        return stop

    def _keep(self, data: bytes, start: int, stop: int) -> None:
        if self._key is not None and len(self._key) < MAX_KEY:
            self._key += data[start:stop]
        value = self._value
        if value is not None:
            value += data[start : min(stop, start + MAX_MEMBER + 1)]
            if len(value) > MAX_MEMBER:
                self._value = self._found[self._last] = None

    def _outside(self, data: bytes, at: int) -> int:
        start = at
        while at < len(data) and data[at] not in _ORDINARY:
            at += 1
        letter = data[at : at + 1]  # b"" at the end
        if self._value is not None:
            ends = self._depth == 1 and letter in (b",", b"}")
            self._keep(data, start, at if ends else at + 1)
            if ends:
                self._value = None
        self._turn(letter)
        return at + 1

    def _turn(self, letter: bytes) -> None:
        if letter == b'"':
            self._quoted = True
            if self._depth == 1 and not self._last and self._value is None:
                self._key = bytearray()
        elif letter in (b"{", b"["):
            self._depth += 1
            self.items += letter == b"{" and self._depth == 3 and self._last == b"data"
        elif letter in (b"}", b"]"):
            self._depth = max(0, self._depth - 1)
        elif self._depth == 1 and letter == b",":
            self._last = b""
        elif self._depth == 1 and letter == b":" and self._last in self._names:
            self._value = self._found[self._last] = bytearray()


class EventScanner:
    """Follows a stream of server-sent events that comes in pieces, and reads their members."""

    def __init__(self, on_event: Callable[[dict[str, Any], bytes], None], *names: str) -> None:
        self._on_event, self._names = on_event, names
        self._start = bytearray()  # of the line
        self._is_data: bool | None = None  # whether the line is data; None: not known yet
        self._members: Members | None = None  # of the event's data
        self._text = b""  # how its data begins

    def feed(self, data: bytes) -> int:
        """Return where the last event that *data* completes ends, 0 if it completes none."""
        at = done = 0
        while at < len(data):
            end = data.find(b"\n", at)
            self._part(data[at : len(data) if end < 0 else end])
            if end < 0:
                break
            at = end + 1
            if self._end_line():
                done = at
        return done

    def _part(self, data: bytes) -> None:
        if self._is_data is None:
            self._start += data[:8]
            if len(self._start) < 6:
                return
            self._is_data = self._start.startswith(b"data:")
            data = bytes(self._start[5:]) + data[8:] if self._is_data else b""
        if self._is_data:
            self._read(data)

    def _read(self, data: bytes) -> None:
        if self._members is None:
            self._members, self._text = Members(*self._names), b""
        if len(self._text) < 16:
            self._text += data[:16]
        self._members.feed(data)

    def _end_line(self) -> bool:
        """Whether the line was empty, and so the end of an event with data."""
        line = bytes(self._start).rstrip(b"\r")
        if self._is_data is None and line.startswith(b"data:"):
            self._read(line[5:])
        empty = self._is_data is None and not line
        self._start, self._is_data = bytearray(), None
        if not empty or self._members is None:
            return False
        found, self._members = self._members, None
        self._on_event(found.values(), self._text.strip())
        return True
