"""The wall around code that is not ours: a provider may be anybody's."""

from __future__ import annotations

import logging
from typing import Any

from .errors import InferMuxError, ProviderUnavailable

log = logging.getLogger("infermux")


class Foreign:
    """Turns what a provider raises beside our own errors into one of them, and logs it: it is a bug of the provider."""

    __slots__ = ("_ends", "_name")

    def __init__(self, name: str, *, ends: bool = False) -> None:
        self._name = name
        self._ends = ends                   # whether StopIteration is the end of a stream, and not a stray one

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InferMuxError) and not (self._ends and isinstance(error, StopIteration)):
            log.error("provider %r raised %s", self._name, type(error).__name__, exc_info=error)
            failed = ProviderUnavailable(f"provider {self._name!r} failed")
            failed.retryable = False        # the same code would fail the same way
            raise failed from error


def close(chunks: Any, name: str) -> None:
    """Close a provider's stream; what fails in it must not hide what happened before."""
    try:
        release = getattr(chunks, "close", None)
        if release is not None:
            release()
    except Exception as error:              # somebody's own code
        log.error("the stream of provider %r could not be closed", name, exc_info=error)
