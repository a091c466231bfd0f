"""Files that the processes of a host share: their locks and identities."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from ..types import fcntl

POLL_SECONDS = 0.01  # between two tries; longer waits would let other processes starve this one


def identity(file: str | int) -> tuple[int, int] | None:
    """Return the device and inode of a path or descriptor, or None if there is no file."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def opened(path: str, flags: int) -> int:
    """Open a file of bytes to read and write; a new one is only for its owner."""
    return os.open(path, flags | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)


def lock(file: int, seconds: float) -> None:
    """Lock an open file; raise TimeoutError if it stays locked elsewhere for *seconds*."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError(errno.ETIMEDOUT, "another process has the file locked") from None
        time.sleep(POLL_SECONDS)


def unlock(file: int) -> None:
    """Unlock and close a file; closing alone keeps it locked if a child was forked."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
