"""Memory that the workers of a service share: counters, each worker's status, operator commands.

It is mapped before the workers are forked, and divided into slots. A worker writes to one slot and
holds its lock, which the kernel releases when the worker dies; the next owner continues the
counters. Readers add up all slots.
"""

from __future__ import annotations

import contextlib
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

from ..types import CircuitCommand, fcntl, reset_after_fork

log = logging.getLogger("infermux")
SLOTS = 128  # workers at a time, including those that are ending after a HUP
Key = tuple[str, ...]  # of a series: the metric and the values of its labels

_WORD = 8  # bytes; pages that are never written use no memory
_CATALOGUE = 384 * 1024  # bytes of a slot: a line of JSON per series, with its width and key
_STATUS = 512 * 1024
_CELLS = 16 * 1024  # words
_OVERFLOW = 64  # the last cells take counts that have no room; they are never read
_HEAD = 8  # words: of a slot, the next line; of the memory, last command and commands' size
_CATALOGUE_END, _STATUS_END, _STATUS_SUM, _ACKNOWLEDGED = range(4)
_SLOT = (_HEAD + _CELLS) * _WORD + _CATALOGUE + _STATUS
_COMMANDS = 128 * 1024  # bytes
_FRONT = _HEAD * _WORD + _COMMANDS


class WorkerSlot:
    """The counters and status of one worker; hold `lock` while you count."""

    def __init__(self, memory: memoryview) -> None:
        words = memory[: (_HEAD + _CELLS) * _WORD].cast("q")
        self._head, self.cells = words[:_HEAD], words[_HEAD:]
        texts = memory[(_HEAD + _CELLS) * _WORD :]
        self._catalogue, self._status = texts[:_CATALOGUE], texts[_CATALOGUE:]
        self.lock = threading.Lock()
        self._at: dict[Key, int] = {}
        self._next = 0
        self._inherited: dict[Key, int] = {}

    def take_over(self) -> None:
        """Continue the counters of the slot's last owner, and clear its status."""
        for key, at, width in self.series():
            self._at[key], self._next = at, at + width
        self.write_status(b"")
        self.acknowledged = 0

    def at(self, key: Key, width: int = 1) -> int:
        """Return the index of the first of a series' *width* cells; new cells hold 0."""
        found = self._at.get(key)
        return self._new(key, width) if found is None else found

    def add(self, key: Key, count: int = 1) -> None:
        """Add *count* to a series of one cell."""
        at = self._at.get(key)
        self.cells[self._new(key, 1) if at is None else at] += count

    def set(self, key: Key, count: int) -> None:
        """Set a series to *count* plus what the slot's last owner left."""
        at = self.at(key)
        self.cells[at] = self._inherited.setdefault(key, self.cells[at]) + count

    def _new(self, key: Key, width: int) -> int:
        line, end = json.dumps([width, *key]).encode() + b"\n", self._head[_CATALOGUE_END]
        at = self._next
        if end + len(line) > _CATALOGUE or at + width > _CELLS - _OVERFLOW:
            return _CELLS - _OVERFLOW
        self._catalogue[end : end + len(line)] = line
        self._at[key], self._next = at, at + width
        self._head[_CATALOGUE_END] = end + len(line)  # written last: readers stop here
        return at

    def series(self) -> Iterator[tuple[Key, int, int]]:
        """Yield each series: key, index of the first cell, number of cells."""
        at = 0
        for line in bytes(self._catalogue[: self._head[_CATALOGUE_END]]).splitlines():
            width, *key = json.loads(line)
            yield tuple(key), at, width
            at += width

    def write_status(self, status: bytes) -> None:
        """Replace the worker's status; ignore one longer than 512 KiB."""
        if len(status) <= _STATUS:
            self._status[: len(status)] = status
            self._head[_STATUS_SUM], self._head[_STATUS_END] = zlib.crc32(status), len(status)

    def read_status(self) -> bytes:
        """Return the worker's status, or b"" if it is always being written."""
        for _ in range(50):
            status = bytes(self._status[: self._head[_STATUS_END]])
            if zlib.crc32(status) == self._head[_STATUS_SUM]:
                return status
            time.sleep(0.001)  # the worker is writing it
        return b""

    @property
    def acknowledged(self) -> int:
        return self._head[_ACKNOWLEDGED]

    @acknowledged.setter
    def acknowledged(self, number: int) -> None:
        self._head[_ACKNOWLEDGED] = number


class SharedMemory:
    """All slots and commands; each process that is forked later gets its own slot."""

    def __init__(self) -> None:
        size = _FRONT + SLOTS * _SLOT
        self.created = time.time()
        self._fd = anonymous_file(size)
        weakref.finalize(self, os.close, self._fd)
        self._memory = memoryview(mmap.mmap(self._fd, size))
        self._head = self._memory[: _HEAD * _WORD].cast("q")
        self._commands = self._memory[_HEAD * _WORD : _FRONT]
        self._reset()
        reset_after_fork(self, SharedMemory._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._own: WorkerSlot | None = None
        self._number = -1

    @property
    def own(self) -> WorkerSlot:
        return self._own or self._claim()

    def _claim(self) -> WorkerSlot:
        with self._lock:
            if self._own is None:
                self._number = next(filter(self._lock_slot, range(SLOTS)), -1)
                if self._number < 0:
                    log.error("too many workers: this one's metrics are not reported")
                    slot = WorkerSlot(memoryview(bytearray(_SLOT)))
                else:
                    slot = self._slot(self._number)
                    slot.take_over()
                self._own = slot
            return self._own

    def _slot(self, number: int) -> WorkerSlot:
        start = _FRONT + number * _SLOT
        return WorkerSlot(self._memory[start : start + _SLOT])

    def _lock_slot(self, number: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + number)
        except OSError:
            return False
        return True

    def count(self, *key: str) -> None:
        slot = self.own
        with slot.lock:
            slot.add(key)

    def others(self) -> list[WorkerSlot]:
        found = []
        with self._lock:  # the kernel's locks do not exclude threads of the same process
            for number in range(SLOTS):
                if number == self._number:
                    continue
                if self._lock_slot(number):
                    fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 1 + number)
                else:
                    found.append(self._slot(number))
        return found

    def counts(self) -> dict[Key, list[int]]:
        """Return the cells of each series, summed over past and present workers."""
        sums: dict[Key, list[int]] = {}
        for slot in map(self._slot, range(SLOTS)):
            for key, at, width in slot.series():
                cells = slot.cells[at : at + width].tolist()
                pairs = itertools.zip_longest(cells, sums.get(key, ()), fillvalue=0)
                sums[key] = [*map(sum, pairs)]
        return sums

    @property
    def last_command(self) -> int:
        return self._head[0]

    def command(self, action: str, provider: str, model: str = "") -> int:
        """Store a command for all present and later workers; return its number.

        It replaces earlier commands for the same circuits.
        """
        with self._locked():
            new = CircuitCommand(self.last_command + 1, action, provider, model)
            kept = [
                each
                for each in self._read_commands()
                if each.provider != provider or model not in ("", each.model)
            ] + [new]
            while len(data := json.dumps(kept).encode()) > _COMMANDS:
                kept.pop(0)
            self._commands[: len(data)] = data
            self._head[1], self._head[0] = len(data), new.number
            return new.number

    def commands(self, since: int) -> list[CircuitCommand]:
        """Return the commands with a number above *since* that no later command replaces."""
        with self._locked():
            return [command for command in self._read_commands() if command.number > since]

    def _read_commands(self) -> list[CircuitCommand]:
        try:
            data = json.loads(bytes(self._commands[: self._head[1]]) or b"[]")
        except ValueError:  # a worker was killed while it wrote
            return []
        return [CircuitCommand(*each) for each in data]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, 0)
            try:
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 0)


shared: SharedMemory | None = None  # of a service, created by its master process


def share() -> None:
    """Create the memory of a service, in its master process; only once."""
    global shared
    shared = shared or SharedMemory()


def anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("infermux")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
