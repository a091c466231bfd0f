"""What the workers of a host share: counts that outlive a worker, a note of each worker, and orders
to all of them.

It is a map of memory, made before the workers are forked and divided into stripes. A process writes
to one stripe, which is its own while it holds a lock that the kernel takes back at its death;
whoever gets the stripe next goes on from its counts. Readers add up.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import mmap
import os
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Iterator
from typing import NamedTuple

log = logging.getLogger("infermux")
STRIPES = 128  # workers at a time, those included that finish their last calls after a HUP
Key = tuple[str, ...]

_WORD = 8  # bytes; memory that nobody has written to is not there at all
_TEXT = 384 * 1024  # of a stripe's catalogue: a line of JSON for each series, its width and its key
_NOTE = 512 * 1024
_CELLS = 16 * 1024  # words
_SPILL = 64  # the last of them: where counts go that have no room, and nobody reads
_HEAD = 8  # words: of a stripe as below, of the board its last order's number and their length
_TEXT_END, _NOTE_END, _NOTE_SUM, _SEEN = range(4)
_STRIPE = (_HEAD + _CELLS) * _WORD + _TEXT + _NOTE
_ORDERS = 128 * 1024  # bytes
_FRONT = _HEAD * _WORD + _ORDERS

_boards: weakref.WeakSet[SharedMemory] = weakref.WeakSet()


class Command(NamedTuple):
    """What an operator wants of a provider's circuits, or of one model's; each worker does it once."""

    number: int
    action: str
    provider: str
    model: str | None


class WorkerSlot:
    """The part of one process: `cells` and `add` are for whoever holds `lock`."""

    def __init__(self, memory: memoryview) -> None:
        words = memory[: (_HEAD + _CELLS) * _WORD].cast("q")
        self._head, self.cells = words[:_HEAD], words[_HEAD:]
        texts = memory[(_HEAD + _CELLS) * _WORD :]
        self._text, self._note = texts[:_TEXT], texts[_TEXT:]
        self.lock = threading.Lock()
        self._at: dict[Key, int] = {}
        self._next = 0

    def resume(self) -> None:
        """Go on from the counts of whoever had the stripe before; what was so at the moment of a
        death is not so any more.
        """
        for key, at, width in self.series():
            self._at[key], self._next = at, at + width
        self.write(b"")
        self.seen = 0

    def at(self, key: Key, width: int = 1) -> int:
        """Return the first of the *width* cells of a series; a new one begins with zeros."""
        found = self._at.get(key)
        return self._new(key, width) if found is None else found

    def add(self, key: Key, count: int = 1) -> None:
        """Count."""
        at = self._at.get(key)
        self.cells[self._new(key, 1) if at is None else at] += count

    def _new(self, key: Key, width: int) -> int:
        line, end, at = (
            json.dumps([width, *key]).encode() + b"\n",
            self._head[_TEXT_END],
            self._next,
        )
        if end + len(line) > _TEXT or at + width > _CELLS - _SPILL:
            return _CELLS - _SPILL
        self._text[end : end + len(line)] = line
        self._at[key], self._next = at, at + width
        self._head[_TEXT_END] = end + len(line)  # last: until now nobody sees it
        return at

    def series(self) -> Iterator[tuple[Key, int, int]]:
        """Yield each series, its first cell and how many it has."""
        at = 0
        for line in bytes(self._text[: self._head[_TEXT_END]]).splitlines():
            width, *key = json.loads(line)
            yield tuple(key), at, width
            at += width

    def write(self, note: bytes) -> None:
        """Leave a note for the others in place of the last one; one that is too long is not left."""
        if len(note) <= _NOTE:
            self._note[: len(note)] = note
            self._head[_NOTE_SUM], self._head[_NOTE_END] = zlib.crc32(note), len(note)

    def read(self) -> bytes:
        """Return the note, whole; nothing where there is none."""
        for _ in range(50):
            note = bytes(self._note[: self._head[_NOTE_END]])
            if zlib.crc32(note) == self._head[_NOTE_SUM]:
                return note
            time.sleep(0.001)  # it is just being written
        return b""

    @property
    def seen(self) -> int:
        """The number of the last order that the process has carried out."""
        return self._head[_SEEN]

    @seen.setter
    def seen(self, number: int) -> None:
        self._head[_SEEN] = number


class SharedMemory:
    """The whole of it; a process that inherits it by a fork gets a stripe of its own as soon as it
    needs one.
    """

    def __init__(self) -> None:
        self._fd = _memory(_FRONT + STRIPES * _STRIPE)
        weakref.finalize(self, os.close, self._fd)
        self._memory = memoryview(mmap.mmap(self._fd, _FRONT + STRIPES * _STRIPE))
        self._head = self._memory[: _HEAD * _WORD].cast("q")
        self._forget()
        _boards.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._mine: WorkerSlot | None = None
        self._number = -1

    @property
    def mine(self) -> WorkerSlot:
        """The stripe of this process."""
        return self._mine or self._claim()

    def _claim(self) -> WorkerSlot:
        with self._lock:
            if self._mine is None:
                self._number = next(
                    (number for number in range(STRIPES) if self._lockable(number)), -1
                )
                if self._number < 0:
                    log.error(
                        "there are more workers than metrics have room for: what this one counts is not seen"
                    )
                made = WorkerSlot(
                    memoryview(bytearray(_STRIPE)) if self._number < 0 else self._part(self._number)
                )
                made.resume()
                self._mine = made
            return self._mine

    def _part(self, number: int) -> memoryview:
        start = _FRONT + number * _STRIPE
        return self._memory[start : start + _STRIPE]

    def _lockable(self, number: int) -> bool:
        """Whether nobody has that stripe, and if so, take it."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + number)
        except OSError:
            return False
        return True

    def others(self) -> list[WorkerSlot]:
        """Return the stripes of the other processes that live."""
        found = []
        with self._lock:  # a lock of this process would not keep another thread of it out
            for number in range(STRIPES):
                if number == self._number:
                    continue
                if not self._lockable(number):
                    found.append(WorkerSlot(self._part(number)))
                else:
                    fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 1 + number)
        return found

    def counts(self) -> dict[Key, list[int]]:
        """Return each series, added up over all processes that there are or were."""
        sums: dict[Key, list[int]] = {}
        for stripe in map(WorkerSlot, map(self._part, range(STRIPES))):
            for key, at, width in stripe.series():
                cells, before = stripe.cells[at : at + width].tolist(), sums.get(key, ())
                sums[key] = [
                    count + old for count, old in itertools.zip_longest(cells, before, fillvalue=0)
                ]
        return sums

    # -- orders ------------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        """The number of the last order."""
        return self._head[0]

    def order(self, action: str, provider: str, model: str | None = None) -> int:
        """Give an order to every process; return its number. What it makes void is forgotten, the
        rest stands for those yet to come.
        """
        with self._alone():
            new = Command(self.last + 1, action, provider, model)
            kept = [
                each
                for each in self._read()
                if each.provider != provider or (model is not None and each.model != model)
            ] + [new]
            while len(data := json.dumps(kept).encode()) > _ORDERS:
                kept.pop(0)
            self._memory[_HEAD * _WORD : _HEAD * _WORD + len(data)] = data
            self._head[1], self._head[0] = len(data), new.number
            return new.number

    def orders(self, since: int) -> list[Command]:
        """Return the orders after number *since* that stand."""
        with self._alone():
            return [order for order in self._read() if order.number > since]

    def _read(self) -> list[Command]:
        data = bytes(self._memory[_HEAD * _WORD : _HEAD * _WORD + self._head[1]])
        try:
            return [Command(*each) for each in json.loads(data or b"[]")]
        except ValueError:  # of a worker that was killed while it wrote
            return []

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, 0)
            try:
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 0)


shared: SharedMemory | None = None  # what the master of a service has made for its workers


def share() -> None:
    """Make the board of a service, unless it has one: it stays for as long as the master does."""
    global shared
    shared = shared or SharedMemory()


def _memory(size: int) -> int:
    """Return the descriptor of memory without a name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("infermux")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def _after_fork() -> None:
    """A child has no stripe yet, and nobody in it holds a lock."""
    for board in list(_boards):
        board._forget()


os.register_at_fork(after_in_child=_after_fork)
