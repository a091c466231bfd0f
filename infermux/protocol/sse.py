"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from typing import NamedTuple

_MARK = b"\xef\xbb\xbf"  # of the byte order; it may open the stream
MAX_EVENT = 16 * 1024 * 1024  # bytes of one event: a stream without line ends would fill memory


class Event(NamedTuple):
    """One event: its name (empty if there is none) and its data, lines joined by LF."""

    data: bytes
    name: bytes = b""

    def encode(self) -> bytes:
        data = self.data.replace(b"\n", b"\ndata: ") if b"\n" in self.data else self.data
        head = b"event: " + self.name + b"\ndata: " if self.name else b"data: "
        return head + data + b"\n\n"


class Parser:
    """Splits bytes, which come in pieces of any size, into events; lines end in LF, CR LF or CR."""

    def __init__(self) -> None:
        self._rest = bytearray()  # an unfinished line
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0  # of an unfinished event's data
        self._cr = False  # whether the last byte was a CR; an LF after it ends no other line

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that *data* completes; raise ValueError if an event is too long."""
        if (
            not (self._rest or self._data or self._name)
            and data.startswith(b"data: ")
            and data.find(b"\n") == len(data) - 2
            and data.endswith(b"\n\n")
            and b"\r" not in data
        ):
            return [Event(data[6:-2])]  # the usual case: one event of one line
        if self._cr and data:
            data, self._cr = data.removeprefix(b"\n"), False
        self._rest += data
        events: list[Event] = []
        if b"\n" in data or b"\r" in data:
            text = bytes(self._rest)
            lines, self._cr = text.splitlines(), text.endswith(b"\r")
            self._rest = bytearray(b"" if self._cr or text.endswith(b"\n") else lines.pop())
            for line in lines:
                self._line(line, events)
        self._bound(len(self._rest))
        return events

    def end(self) -> list[Event]:
        """Return the last event if the stream ends without an empty line after it."""
        return self.feed(b"\n\n")

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event(b"\n".join(self._data), self._name))
            self._data, self._name, self._size = [], b"", 0
            return
        field, _, value = line.lstrip(_MARK).partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
            self._bound(0)
        elif field == b"event":
            self._name = value

    def _bound(self, more: int) -> None:
        if self._size + more > MAX_EVENT:
            raise ValueError(f"an event is longer than {MAX_EVENT} bytes")


def comment(text: str) -> bytes:
    """Return a comment: clients ignore it; it keeps a connection alive or shows that it is dead."""
    return b": " + text.encode() + b"\n\n"
