"""The spool: settlements that could not be written to the ledger, in a file next to it.

Workers append lines, each with a checksum. One worker at a time renames the file and writes its
lines to the ledger, from last to first, truncating the file after each batch. If it is killed, a
batch is written again; the ledger ignores calls that it has.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from ..errors import counted
from ..types import POSIX
from . import AttemptRow, Budget, CallRow, Hold, LedgerUnavailable, Record
from .files import identity, lock, opened, unlock
from .groups import started

BATCH_BYTES = 65_536  # read at once, about 50 lines, to keep transactions short
BATCH_LINES = 50
MAX_WAITING = 4096  # lines in memory, about 5 MB, while the spool cannot be written
LOCK_SECONDS = 0.1  # the lock of the file is only held for an append or a rename
DRAIN_SECONDS = 1.0  # between two attempts to drain
CLOSE_SECONDS = 2.0  # to wait for a batch when the process ends
log = logging.getLogger("infermux")


class Deferred(NamedTuple):
    """A settlement that is to be written later."""

    record: Record
    hold: Hold | None


Write = Callable[[Sequence[Deferred]], None]  # writes all or raises


class Spool:
    """The spool in the file at *path*, which is created with mode 0600 on first use."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._files = path, f"{path}.draining"
        self.lost = 0  # lines that were dropped or could not be read
        self.waiting: deque[bytes] = deque()  # lines in memory
        self._lock = threading.Lock()  # of `waiting` and `lost`
        self._draining = threading.Lock()
        self._starting = threading.Lock()  # of `_thread`
        self._thread: threading.Thread | None = None
        self._added = False  # whether this process has added a settlement
        self._stopped = threading.Event()
        self._counted: dict[str, tuple[tuple[int, int], int, int]] = {}  # file, bytes, lines

    def add(self, settlement: Deferred) -> bool:
        """Append a settlement, or keep it in memory if that fails; return False if it is lost."""
        line = encoded(settlement)
        self._added = True
        with self._lock:
            try:
                self._append(line)
            except OSError:
                if len(self.waiting) >= MAX_WAITING:
                    return False
                self.waiting.append(line)
        return True

    def is_empty(self) -> bool:
        """Return whether memory and files have no settlements."""
        return not (self.waiting or any(map(os.path.exists, self._files)))

    def lines(self) -> int:
        return sum(map(self._lines, self._files))

    def drain_later(self, write: Write) -> None:
        """Start a thread that tries to drain every second until the spool is empty."""
        if self.is_empty():
            return
        with self._starting:
            if self._thread is None and not self._stopped.is_set():
                self._thread = started("spool", self._keep_draining, write)

    def close(self, write: Write) -> None:
        """Stop the thread, drain once more, and log how many settlements are lost."""
        self._stopped.set()
        if (thread := self._thread) is not None:
            thread.join(CLOSE_SECONDS)
        if self._added and not self.is_empty():
            self._try_to_drain(write)
        with self._lock:
            if self.waiting:
                lost = counted(len(self.waiting), "call is", "calls are")
                log.error("%s not recorded: no file can be written", lost)
                self.lost += len(self.waiting)
                self.waiting.clear()
        self._stopped.clear()

    def _keep_draining(self, write: Write) -> None:
        while True:
            self._try_to_drain(write)
            with self._starting:
                if self._stopped.is_set() or self.is_empty():
                    self._thread = None
                    return
            self._stopped.wait(DRAIN_SECONDS)

    def _try_to_drain(self, write: Write) -> None:
        if not self._draining.acquire(timeout=CLOSE_SECONDS):
            return
        before = self.lost
        try:
            self.drain(write)
        except LedgerUnavailable:
            pass  # logged by the calls that cannot be recorded
        except OSError as error:
            log.error("the spool %s cannot be read: %s", self.path, error)
        finally:
            self._draining.release()
        if self.lost > before:
            lost = counted(self.lost - before, "call")
            log.error("%s in %s cannot be read, and will not be recorded", lost, self.path)

    def drain(self, write: Write) -> None:
        """Pass all settlements to *write* in batches; raise its LedgerUnavailable, or OSError."""
        self._flush()
        while self.waiting:
            self._write(write, lines := list(islice(self.waiting, BATCH_LINES)))
            with self._lock:
                for _ in lines:
                    self.waiting.popleft()
        while (file := self._take()) is not None:
            try:
                while size := os.fstat(file).st_size:
                    start, lines = _last_lines(file, size)
                    self._write(write, lines)
                    os.ftruncate(file, start)
                if POSIX:
                    os.unlink(self._files[1])
            finally:
                unlock(file)
            if not POSIX:  # Windows removes no open file
                os.unlink(self._files[1])

    def _flush(self) -> None:
        """Append the lines in memory, if the file can be written again."""
        with self._lock, suppress(OSError):
            if self.waiting:
                self._append(b"".join(self.waiting))
                self.waiting.clear()

    def _append(self, data: bytes) -> None:
        """Append all of *data* or nothing; raise OSError."""
        with _current(self.path, os.O_APPEND | os.O_CREAT) as file:
            size = os.fstat(file).st_size
            if size and _read(file, 1, size - 1) != b"\n":
                data = b"\n" + data  # ends a line that a killed worker left unfinished
            try:
                if os.write(file, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(file, size)
                raise

    def _take(self) -> int | None:
        """Return the locked file to drain, or None if there is none or another process has it."""
        _, taken = self._files
        try:
            if not os.path.exists(taken):
                # No line is being appended; Windows renames no open file.
                with _current(self.path) if POSIX else self._lock:
                    if not os.path.exists(taken):
                        os.rename(self.path, taken)
            file = opened(taken, 0)
        except FileNotFoundError:
            return None
        try:
            lock(file, 0)
            if identity(taken) == identity(file):
                return file
        except TimeoutError:
            pass
        unlock(file)
        return None

    def _write(self, write: Write, lines: Sequence[bytes]) -> None:
        found = [decoded(line) for line in lines]
        good = [each for each in found if each is not None]
        lost = len(found) - len(good) + _refused(write, good)
        with self._lock:
            self.lost += lost

    def _lines(self, path: str) -> int:
        """Count the lines of a file; if it has grown since the last count, read only the rest."""
        try:
            with open(path, "rb") as file:
                found = identity(file.fileno())
                assert found is not None
                before, at, count = self._counted.get(path, (found, 0, 0))
                if before != found or os.fstat(file.fileno()).st_size < at:
                    at = count = 0
                file.seek(at)
                while data := file.read(1 << 20):
                    at, count = at + len(data), count + data.count(b"\n")
        except OSError:
            return 0
        self._counted[path] = found, at, count
        return count


def _refused(write: Write, batch: Sequence[Deferred]) -> int:
    """Write settlements; return how many the ledger refuses: one must not block the others."""
    try:
        if batch:
            write(batch)
        return 0
    except (LedgerUnavailable, OSError):
        raise
    except Exception:
        if len(batch) > 1:
            return sum([_refused(write, [each]) for each in batch])
        log.exception("the call %s cannot be recorded", batch[0].record.call.id)
        return 1


def encoded(settlement: Deferred) -> bytes:
    """Return the settlement as a line: a CRC-32, and JSON that other versions can read."""
    record, hold = settlement
    attempts = [each._asdict() for each in record.attempts]
    data: dict[str, object] = {"call": record.call._asdict(), "attempts": attempts}
    if hold is not None:
        budget = hold.budget
        data["hold"] = [hold.pico, hold.at]
        data["budget"], *data["also"] = [
            [each.caller, each.limit_pico, each.period, each.then] for each in budget.all
        ]
        data["members"] = [each.members for each in budget.all]
        data["users"] = [each.user for each in budget.all]
    text = json.dumps(data, separators=(",", ":")).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _budget(written: Sequence[Any], members: Sequence[str], user: str) -> Budget:
    caller, limit, period, then = written
    return Budget(caller, limit, period, then, members=tuple(members), user=user)


def decoded(line: bytes) -> Deferred | None:
    """Return the settlement in *line*, or None if the line is damaged."""
    text = line[9:].removesuffix(b"\n")
    try:
        if int(line[:8], 16) != zlib.crc32(text):
            return None
        data = json.loads(text)
        call, hold = CallRow(**data["call"]), None
        if "hold" in data:
            pico, at = data["hold"]
            written = [data["budget"], *data.get("also", ())]
            members = data.get("members", [()] * len(written))
            users = data.get("users", [""] * len(written))
            first, *also = map(_budget, written, members, users)
            hold = Hold(call.id, replace(first, also=tuple(also)), pico, at)
        return Deferred(
            Record(call, tuple([AttemptRow(**each) for each in data["attempts"]])), hold
        )
    except (ValueError, TypeError, KeyError):
        return None


def _last_lines(file: int, size: int) -> tuple[int, list[bytes]]:
    """Return the last lines of a file and their offset; the very last may be incomplete."""
    length = BATCH_BYTES
    while True:
        start = max(0, size - length)
        data = _read(file, size - start, start)
        first = 0 if start == 0 else data.find(b"\n") + 1
        if start == 0 or 0 < first < len(data):
            return start + first, data[first:].removesuffix(b"\n").split(b"\n")
        length *= 2


def _read(file: int, size: int, offset: int) -> bytes:
    """Read *size* bytes of a file whose descriptor no other thread uses."""
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, size)


@contextmanager
def _current(path: str, flags: int = 0) -> Iterator[int]:
    """Open and lock the file at *path*; if it was renamed before the lock, try again."""
    while True:
        file = opened(path, flags)
        try:
            lock(file, LOCK_SECONDS)
            if identity(path) == identity(file):
                yield file
                return
        finally:
            unlock(file)
