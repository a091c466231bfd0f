"""Limits requests and tokens per minute of each caller, exactly over all processes of a host.

The counts are in one memory-mapped file. It has a record for each caller: a ring of one-second
buckets for requests, one for tokens, and their sums.
"""

from __future__ import annotations

import ctypes
import errno
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
from ..types import POSIX, Clock, LogThrottle, Window, fcntl

RECORDS = 4096  # the most callers in the file

_SPAN = 61  # one-second buckets that any 60 consecutive seconds touch
_WORD = 8  # bytes: everything is a signed 64-bit number
# A record: the caller's digest (4 words), the second of the last change, two sums, two rings.
_SECOND, _REQUESTS, _TOKENS, _REQUEST_BUCKETS = 4, 5, 6, 7
_TOKEN_BUCKETS = _REQUEST_BUCKETS + _SPAN
_RECORD = _TOKEN_BUCKETS + _SPAN
_MAGIC = b"InferMux rates\n\0"
_HEAD = 6  # words: magic and stamp
_PROBES = 64  # records where that of a caller may be
_POLL_SECONDS = 2e-5  # between two tries for the lock, which another process holds for 5 µs
_MAX_TOKENS = 2**40  # of one call, so that the sum of a minute cannot overflow
log = logging.getLogger("infermux")
_libc = ctypes.PyDLL(None, use_errno=True) if POSIX else None


class RateLimiter:
    """Limits each caller's requests and tokens in any 60 consecutive seconds.

    The file is opened on first use in each process, as a lock cannot be inherited through a fork. A
    refused request does not count. A process that cannot open the file admits all calls and logs
    that.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        records: int = RECORDS,
        clock: Clock = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self._records = records
        self._clock = clock  # the same in all processes of the host
        self._tables: dict[int, _Table] = {}  # by process id; only this process's own is ever used
        self._log = LogThrottle()

    def take(
        self,
        caller: str,
        *,
        rpm: int | None,
        tpm: int | None,
        tokens: int = 0,
        window: Window | None = None,
    ) -> float | None:
        """Count a request of about *tokens* and return None, or return the seconds to wait.

        Infinity means that the request alone exceeds the limit. *window* receives what is used.
        """
        if (rpm is None and tpm is None) or (opened := self._opened()) is None:
            return None
        with opened as table:
            now = self._clock()
            at = table.record(caller, int(now))
            words, tokens, wait = table.words, min(tokens, _MAX_TOKENS), None
            if (rpm is not None and words[at + _REQUESTS] >= rpm) or (
                tpm is not None and words[at + _TOKENS] + tokens > tpm
            ):
                wait = max(
                    _wait(words, at + _REQUEST_BUCKETS, now, 1, rpm),
                    _wait(words, at + _TOKEN_BUCKETS, now, tokens, tpm),
                )
            else:
                bucket = at + int(now) % _SPAN
                words[bucket + _REQUEST_BUCKETS] += 1
                words[bucket + _TOKEN_BUCKETS] += tokens
                words[at + _REQUESTS] += 1
                words[at + _TOKENS] += tokens
            if window is not None:
                window.requests, window.tokens = words[at + _REQUESTS], words[at + _TOKENS]
                window.requests_reset = _reset(words, at + _REQUEST_BUCKETS, now)
                window.tokens_reset = _reset(words, at + _TOKEN_BUCKETS, now)
            return wait

    def give_back(self, caller: str, tokens: int, *, since: float) -> None:
        self.correct(caller, -tokens, since=since)
        if (opened := self._opened()) is None:
            return
        with opened as table:
            second = int(self._clock())
            at, words = table.record(caller, second), table.words
            for then in _counting(since, second):
                bucket = at + _REQUEST_BUCKETS + then % _SPAN
                if words[bucket]:
                    words[bucket] -= 1
                    words[at + _REQUESTS] -= 1
                    return

    def wait(
        self, caller: str, *, rpm: int | None, tpm: int | None, requests: int, tokens: int
    ) -> float:
        """Return the seconds until so many *requests* and *tokens* fit; count nothing.

        More than fit into a minute take several.
        """
        if (opened := self._opened()) is None:
            return 0.0
        with opened as table:
            now = self._clock()
            at, words = table.record(caller, int(now)), table.words
            tokens = min(tokens, _MAX_TOKENS)
            return max(
                _minutes(words, at + _REQUEST_BUCKETS, now, requests, rpm),
                _minutes(words, at + _TOKEN_BUCKETS, now, tokens, tpm),
            )

    def correct(self, caller: str, tokens: int, *, since: float) -> None:
        """Correct the estimate of a call that began at *since* by *tokens*: used minus estimated.

        Added tokens count from now on. Unused ones are subtracted from the buckets since *since*,
        where the estimate is.
        """
        if (opened := self._opened()) is None:
            return
        with opened as table:
            second = int(self._clock())
            at = table.record(caller, second)
            if tokens >= 0:
                _add(table.words, at, second, min(tokens, _MAX_TOKENS))
                return
            for then in _counting(since, second):
                part = min(table.words[at + _TOKEN_BUCKETS + then % _SPAN], -tokens)
                _add(table.words, at, then, -part)
                tokens += part
                if not tokens:
                    return

    def check(self) -> None:
        """Raise ConfigError if the file cannot be used; keep it closed, for a later fork."""
        _Table(self.path, self._records).close()

    def close(self) -> None:
        """Close the file in this process."""
        if table := self._tables.pop(os.getpid(), None):
            table.close()

    def _opened(self) -> _Table | None:
        try:
            return self._table()
        except ConfigError as error:
            if self._log.due():
                log.error("rate limits are off: %s", error.message)
            return None

    def _table(self) -> _Table:
        pid = os.getpid()
        table = self._tables.get(pid)
        if table is None:
            mine = _Table(self.path, self._records)
            table = self._tables.setdefault(pid, mine)
            if table is not mine:  # another thread was faster
                mine.close()
            for other in self._tables.keys() - {pid}:  # inherited: it would keep the parent's lock
                if inherited := self._tables.pop(other, None):
                    inherited.close()
        return table


class _Table:
    """The mapped file in one process; `with` locks it against other threads and processes.

    A hash table with linear probing, keyed by the SHA-256 of the caller's name. If no record within
    _PROBES is free, the one idle for longest is evicted: too many callers weaken the limits.

    flock, unlike lockf, also excludes two tables of one process. It is called with the GIL held:
    fcntl.flock releases it, and every process of the host would wait until a busy one gets it back.
    """

    def __init__(self, path: Path, records: int) -> None:
        self._records = records
        self._known: dict[str, tuple[bytes, int]] = {}
        self._lock = threading.Lock()
        if not POSIX:
            raise ConfigError("the rates of [keys] need a POSIX system")
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                _flock(self._fd, fcntl.LOCK_EX)
                _prepare(self._fd, path, records)
                self._map = mmap.mmap(self._fd, _size(records))
                _flock(self._fd, fcntl.LOCK_UN)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise ConfigError(
                f"the rate-limit file {path} cannot be used: {error.strerror}; "
                "make it writable for this user"
            ) from None
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
        """Close the file; the map is freed with its last reference."""
        os.close(self._fd)

    def record(self, caller: str, second: int) -> int:
        """Return the index of *caller*'s record, updated to *second*; needs the lock."""
        digest, at = self._known.get(caller) or (
            sha256(caller.encode("utf-8", "surrogatepass")).digest(),
            _HEAD,
        )
        if self._map[at * _WORD : at * _WORD + len(digest)] != digest:
            at = self._find(digest)
            if len(self._known) >= self._records:
                self._known.clear()
            self._known[caller] = digest, at
        if self.words[at + _SECOND] != second:
            _advance(self.words, at, second)
        return at

    def _find(self, digest: bytes) -> int:
        home, words, records = int.from_bytes(digest[:8], "big"), self.words, self._records
        idlest = _HEAD + home % records * _RECORD
        for step in range(_PROBES):
            at = _HEAD + (home + step) % records * _RECORD
            if self._map[at * _WORD : at * _WORD + len(digest)] == digest:
                return at
            if words[at + _SECOND] < words[idlest + _SECOND]:
                idlest = at
            if not words[at]:  # never used, so no later record has the digest
                idlest = at
                break
        start = idlest * _WORD
        self._map[start : start + _RECORD * _WORD] = bytes(_RECORD * _WORD)
        # the digest last: a process killed before this leaves a free record
        self._map[start : start + len(digest)] = digest
        return idlest


def _advance(words: memoryview, at: int, second: int) -> None:
    """Clear buckets older than 60 seconds and add up the rest, which repairs wrong sums."""
    passed = second - words[at + _SECOND]
    for gone in range(second - min(passed, _SPAN) + 1, second + 1) if passed > 0 else range(_SPAN):
        words[at + _REQUEST_BUCKETS + gone % _SPAN] = words[at + _TOKEN_BUCKETS + gone % _SPAN] = 0
    words[at + _SECOND] = second
    words[at + _REQUESTS] = sum(words[at + _REQUEST_BUCKETS : at + _TOKEN_BUCKETS])
    words[at + _TOKENS] = sum(words[at + _TOKEN_BUCKETS : at + _RECORD])


def _counting(since: float, second: int) -> range:
    """Return the seconds from *since* to *second*; none if what was counted no longer counts."""
    return range(int(since), second + 1 if int(since) > second - _SPAN else 0)


def _add(words: memoryview, at: int, second: int, tokens: int) -> None:
    words[at + _TOKEN_BUCKETS + second % _SPAN] += tokens
    words[at + _TOKENS] += tokens


def _wait(words: memoryview, buckets: int, now: float, wanted: int, limit: int | None) -> float:
    """Return the seconds until *wanted* more fit under *limit*."""
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


def _minutes(words: memoryview, buckets: int, now: float, wanted: int, limit: int | None) -> float:
    """Return the seconds until *wanted* more fit; more than *limit* take several minutes."""
    if limit is None or wanted <= 0:
        return 0.0
    whole, rest = divmod(wanted - 1, limit)
    return 60.0 * whole + _wait(words, buckets, now, rest + 1, limit)


def _reset(words: memoryview, buckets: int, now: float) -> float:
    """Return the seconds until no bucket counts any more."""
    second = int(now)
    for then in range(second, second - _SPAN, -1):  # the first one has something, usually
        if words[buckets + then % _SPAN]:
            return then + _SPAN - now
    return 0.0


def _size(records: int) -> int:
    return (_HEAD + records * _RECORD) * _WORD  # bytes of the file: 4.2 MB for 4096


def _prepare(fd: int, path: Path, records: int) -> None:
    """Initialize the locked file; never shrink it: that would kill processes that map it."""
    head = os.pread(fd, _HEAD * _WORD, 0)
    if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
        raise ConfigError(f"{path} is not an InferMux rate-limit file")
    stamp, size = _stamp(records), _size(records)
    if os.fstat(fd).st_size >= size and head == _MAGIC + stamp:
        return
    # written, not left sparse: on a full disk a hole in a mapped file kills the process
    blank = _MAGIC + bytes(size - len(_MAGIC))
    if os.pwrite(fd, blank, 0) != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.pwrite(fd, stamp, len(_MAGIC))


def _stamp(records: int) -> bytes:
    """Return a hash of the layout and the boot, as monotonic seconds restart at boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        boot = b""
    return sha256(b"1 %d %d " % (records, _RECORD) + boot).digest()


def _flock(fd: int, operation: int) -> None:
    while _libc is not None and _libc.flock(fd, operation | fcntl.LOCK_NB):
        if ctypes.get_errno() not in (errno.EWOULDBLOCK, errno.EINTR):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        time.sleep(_POLL_SECONDS)
