"""Limits: slots inside a process; requests and tokens per minute of a caller, exact over every
process of a host.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import math
import mmap
import os
import threading
import time
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from ..errors import ConfigError
from ..types import Clock

RECORDS = 4096  # callers of one minute that the file has room for

_SPAN = 61  # one-second buckets that any 60 consecutive seconds touch
_WORD = 8  # bytes: everything is a signed 64-bit number
_SECOND, _REQUESTS, _TOKENS = (
    4,
    5,
    6,
)  # of a record, after the caller's digest: last touched, and the sums of the buckets
_REQUEST_BUCKETS = 7
_TOKEN_BUCKETS = _REQUEST_BUCKETS + _SPAN
_RECORD = _TOKEN_BUCKETS + _SPAN
_MAGIC = b"InferMux rates\n\0"
_HEAD = 6  # words: magic and stamp
_SIZE = (_HEAD + RECORDS * _RECORD) * _WORD  # bytes of the file: 4.2 MB
_PROBES = 64  # records that a caller's may be found in
_PAUSE = (
    2e-5  # seconds between two looks at a lock that another process holds, which it is for 5 µs
)
_MOST = 2**40  # tokens of one call: no sum of a minute overflows
_QUIET = 60.0  # seconds between two complaints about a file that cannot be opened
log = logging.getLogger("infermux")
_libc = ctypes.PyDLL(None, use_errno=True)


class ConcurrencyLimiter:
    """A count with a limit: calls inside, streams that are open, requests at a provider."""

    __slots__ = ("_lock", "_used", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a slot if one is free; never wait."""
        with self._lock:
            if self._used >= self.limit:
                return False
            self._used += 1
            return True

    def give(self) -> None:
        """Give back a slot that was taken; raise ValueError if none is, for then a limit has
        stopped to hold.
        """
        with self._lock:
            if self._used < 1:
                raise ValueError("a slot was given back twice")
            self._used -= 1

    @property
    def used(self) -> int:
        """ConcurrencyLimiter that are taken."""
        return self._used


class RateLimiter:
    """Requests and tokens of each caller in any 60 consecutive seconds, in a file that the
    processes of a host share.

    Nothing is open before the first use in a process: a lock or a map from before a fork would be
    the parent's. Callers are known by the SHA-256 of their names. A refused request does not count.
    A process that cannot open the file lets calls in, and its log says so: `check` tells before it
    comes to that.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock = time.monotonic) -> None:
        self.path = Path(path)
        self._clock = clock  # of the whole host, as CLOCK_MONOTONIC is
        self._tables: dict[int, _Table] = {}  # by process id; only this process's own is ever used
        self._complained = -math.inf

    def take(
        self, caller: str, *, rpm: int | None, tpm: int | None, tokens: int = 0
    ) -> float | None:
        """Count one request of an estimated number of tokens and return None, or return the seconds
        until it would fit.

        Infinity: it never fits, however long one waits.
        """
        opened = self._opened() if rpm is not None or tpm is not None else None
        if opened is None:
            return None
        with opened as table:
            now = self._clock()
            at = table.record(caller, int(now))
            words, tokens = table.words, min(tokens, _MOST)
            if (rpm is not None and words[at + _REQUESTS] >= rpm) or (
                tpm is not None and words[at + _TOKENS] + tokens > tpm
            ):
                return max(
                    _wait(words, at + _REQUEST_BUCKETS, now, 1, rpm),
                    _wait(words, at + _TOKEN_BUCKETS, now, tokens, tpm),
                )
            bucket = at + int(now) % _SPAN
            words[bucket + _REQUEST_BUCKETS] += 1
            words[bucket + _TOKEN_BUCKETS] += tokens
            words[at + _REQUESTS] += 1
            words[at + _TOKENS] += tokens
            return None

    def correct(self, caller: str, tokens: int, *, since: float) -> None:
        """Add the tokens that a call used beyond its estimate, or give back (below 0) those that it
        did not use.

        *since* is a moment at or shortly before its take, as Call.started is. What is added counts
        from now on. What is given back leaves the second in which it was counted: left to a later
        one, it would outlive the estimate and admit too much.
        """
        opened = self._opened()
        if opened is None:
            return
        with opened as table:
            second = int(self._clock())
            at = table.record(caller, second)
            if tokens >= 0:
                _add(table.words, at, second, min(tokens, _MOST))
                return
            if int(since) <= second - _SPAN:  # its estimate has left the minute already
                return
            for then in range(int(since), second + 1):
                part = min(table.words[at + _TOKEN_BUCKETS + then % _SPAN], -tokens)
                _add(table.words, at, then, -part)
                tokens += part
                if not tokens:
                    return

    def used(self, caller: str) -> tuple[int, int]:
        """Return the requests and the tokens that count against *caller* now."""
        with self._table() as table:
            at = table.record(caller, int(self._clock()))
            return table.words[at + _REQUESTS], table.words[at + _TOKENS]

    def check(self) -> None:
        """Raise ConfigError if the file cannot be used; leave nothing open, so that it can be
        called before a fork.
        """
        _Table(self.path).close()

    def close(self) -> None:
        """Close the file in this process."""
        table = self._tables.pop(os.getpid(), None)
        if table is not None:
            table.close()

    def _opened(self) -> _Table | None:
        try:
            return self._table()
        except ConfigError as error:
            if time.monotonic() - self._complained >= _QUIET:
                self._complained = time.monotonic()
                log.error("no caller's rate is limited: %s", error.message)
            return None

    def _table(self) -> _Table:
        pid = os.getpid()
        table = self._tables.get(pid)
        if table is None:
            mine = _Table(self.path)
            table = self._tables.setdefault(pid, mine)
            if table is not mine:  # another thread was faster
                mine.close()
            for other in self._tables.keys() - {
                pid
            }:  # what came through a fork would keep a dead parent's lock
                inherited = self._tables.pop(other, None)
                if inherited is not None:
                    inherited.close()
        return table


class _Table:
    """The mapped file in one process; `with` holds its lock against other threads and processes.

    One record per caller: digest, second, sums, buckets. A caller's record is one of the _PROBES
    that follow its home. When none of them is free, the one idle for longest gives way: after 61 s
    nothing is lost by that; in a full table its caller starts afresh, so that a crowd weakens
    limits, and never refuses.

    The lock is flock, for two reasons: unlike lockf it also holds between two tables of one
    process, and closing another one does not drop it. It is called with the GIL held: fcntl.flock
    gives the GIL up, and while a busy process waits to get it back, every process of the host would
    wait for the file [8 threads in 2 busy processes: 600 takes a second each, 1,250 so].
    """

    def __init__(self, path: Path) -> None:
        self._known: dict[str, tuple[bytes, int]] = {}
        self._lock = threading.Lock()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            _flock(self._fd, fcntl.LOCK_EX)
            _prepare(self._fd, path)
            self._map = mmap.mmap(self._fd, _SIZE)
            _flock(self._fd, fcntl.LOCK_UN)
        except (OSError, ConfigError) as error:
            os.close(self._fd)
            raise _unusable(path, error) from None
        self.words = memoryview(self._map).cast("q")

    def __enter__(self) -> _Table:
        self._lock.acquire()
        try:
            _flock(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            _flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the file; the map goes with the last reference to it."""
        os.close(self._fd)

    def record(self, caller: str, second: int) -> int:
        """Return where the record of *caller* begins, as of *second*; only under the lock."""
        digest, at = self._known.get(caller) or (
            sha256(caller.encode("utf-8", "surrogatepass")).digest(),
            _HEAD,
        )
        if self._map[at * _WORD : at * _WORD + len(digest)] != digest:
            at = self._find(digest)
            if len(self._known) >= RECORDS:
                self._known.clear()
            self._known[caller] = digest, at
        if self.words[at + _SECOND] != second:
            _advance(self.words, at, second)
        return at

    def _find(self, digest: bytes) -> int:
        home, words = int.from_bytes(digest[:8], "big"), self.words
        idlest = _HEAD + home % RECORDS * _RECORD
        for step in range(_PROBES):
            at = _HEAD + (home + step) % RECORDS * _RECORD
            if self._map[at * _WORD : at * _WORD + len(digest)] == digest:
                return at
            if words[at + _SECOND] < words[idlest + _SECOND]:
                idlest = at
            if not words[at]:  # never used: no record of this neighbourhood lies beyond
                idlest = at
                break
        start = idlest * _WORD
        self._map[start : start + _RECORD * _WORD] = bytes(_RECORD * _WORD)
        self._map[start : start + len(digest)] = (
            digest  # last: a process killed before leaves a record of nobody
        )
        return idlest


def _advance(words: memoryview, at: int, second: int) -> None:
    """Forget what 60 seconds before *second* do not touch, and add up what is left: a torn sum
    heals within a second.
    """
    passed = second - words[at + _SECOND]
    for gone in range(second - min(passed, _SPAN) + 1, second + 1) if passed > 0 else range(_SPAN):
        words[at + _REQUEST_BUCKETS + gone % _SPAN] = words[at + _TOKEN_BUCKETS + gone % _SPAN] = 0
    words[at + _SECOND] = second
    words[at + _REQUESTS] = sum(words[at + _REQUEST_BUCKETS : at + _TOKEN_BUCKETS])
    words[at + _TOKENS] = sum(words[at + _TOKEN_BUCKETS : at + _RECORD])


def _add(words: memoryview, at: int, second: int, tokens: int) -> None:
    words[at + _TOKEN_BUCKETS + second % _SPAN] += tokens
    words[at + _TOKENS] += tokens


def _wait(words: memoryview, buckets: int, now: float, wanted: int, limit: int | None) -> float:
    """Return the seconds until *wanted* more fit under *limit*, if nothing else comes."""
    if limit is None:
        return 0.0
    if wanted > limit:
        return math.inf
    oldest = int(now) - _SPAN + 1
    ring, first = words[buckets : buckets + _SPAN].tolist(), oldest % _SPAN
    counts = ring[first:] + ring[:first]
    over = sum(counts) + wanted - limit
    if over <= 0:
        return 0.0
    gone = next(place for place, freed in enumerate(accumulate(counts)) if freed >= over)
    return oldest + gone + _SPAN - now


def _prepare(fd: int, path: Path) -> None:
    """Make the file ready, under its lock; it never shrinks, for a process that has it mapped would
    die of that.
    """
    head = os.pread(fd, _HEAD * _WORD, 0)
    if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
        raise ConfigError(f"{path} is not a file of rates: it holds something else")
    stamp = _stamp()
    if os.fstat(fd).st_size >= _SIZE and head == _MAGIC + stamp:
        return
    blank = _MAGIC + bytes(
        _SIZE - len(_MAGIC)
    )  # written, not left as a hole: with a full disk a hole kills at the first use
    if os.pwrite(fd, blank, 0) != _SIZE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.pwrite(fd, stamp, len(_MAGIC))


def _stamp() -> bytes:
    """Return what a file must carry to go on: the layout, and the boot whose clock it was written
    by.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        boot = b""
    return sha256(b"1 %d %d " % (RECORDS, _RECORD) + boot).digest()


def _flock(fd: int, operation: int) -> None:
    while _libc.flock(fd, operation | fcntl.LOCK_NB):
        if ctypes.get_errno() not in (errno.EWOULDBLOCK, errno.EINTR):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        time.sleep(_PAUSE)


def _unusable(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    reason = error.strerror if isinstance(error, OSError) else error
    return ConfigError(
        f"the file of rates {path} cannot be used: {reason}; name one that this user may write"
    )
