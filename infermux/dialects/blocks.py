"""Writes a stream as blocks, one open at a time.

Chunks of another vendor may mix several tool calls; pieces of other blocks are kept until the open
one is complete.
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import ProviderUnavailable
from ..types import JSON

Key = tuple[str, Any]  # of a block: its kind, and which of that kind
TOOL = "tool"  # the kind of tool calls: such a block opens only once
CITED: Key = ("cited", None)  # of a piece that is no block: citations of the text before it


class BlockWriter:
    """Orders pieces by block; a format says how its blocks open, grow and close."""

    def __init__(self) -> None:
        self.opened: Key | None = None
        self._closed: set[Key] = set()
        self._waiting: list[tuple[Key, JSON]] = []
        self.arguments: list[str] = []  # of the open call, in pieces

    def begin(self, key: Key, piece: JSON) -> bytes:
        """Return the events that open a block."""
        raise NotImplementedError

    def grow(self, key: Key, piece: JSON) -> bytes:
        """Return the events that add a piece to the open block."""
        raise NotImplementedError

    def finish(self, key: Key) -> bytes:
        """Return the events that close the open block."""
        raise NotImplementedError

    def cite(self, annotations: list[JSON]) -> bytes:
        """Return the events that add citations."""
        raise NotImplementedError

    def drain(self, pieces: list[tuple[Key, JSON]], *, last: bool) -> bytes:
        """Write pieces: those of the open block, then one block after another."""
        self._waiting += pieces
        written = []
        while self._waiting:
            self._waiting, now = [], self._waiting
            for key, piece in now:
                ready = key in (self.opened, CITED) or self._may_open()
                if key == self.opened or (ready and not self._waiting):
                    written.append(self._write(key, piece))
                else:
                    self._waiting.append((key, piece))
            if len(self._waiting) == len(now):
                if not last:
                    break
                written.append(self.close())
        return b"".join(written)

    def close(self) -> bytes:
        """Close the open block, if there is one."""
        key, self.opened = self.opened, None
        if key is None:
            return b""
        self._closed.add(key)
        return self.finish(key)

    def _may_open(self) -> bool:
        """Return whether a block may open: not amid a tool call's arguments."""
        if self.opened is None or self.opened[0] != TOOL:
            return True
        return _complete("".join(self.arguments))

    def _write(self, key: Key, piece: JSON) -> bytes:
        if key == CITED:
            return self.cite(piece["annotations"])
        head = b""
        if key != self.opened:
            head = self.close()
            if key in self._closed and key[0] == TOOL:
                raise ProviderUnavailable("the provider went on with a tool call that was complete")
            self.opened, self.arguments = key, []
            head += self.begin(key, piece)
        if key[0] == TOOL:
            self.arguments.append(piece["function"].get("arguments") or "")
        return head + self.grow(key, piece)


def _complete(arguments: str) -> bool:
    try:
        return arguments.rstrip().endswith("}") and isinstance(json.loads(arguments), dict)
    except ValueError:
        return False
