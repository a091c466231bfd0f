"""The wall around code that is not ours: a provider may be anybody's."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import InferMuxError, ProviderUnavailable

log = logging.getLogger("infermux")


class Foreign:
    """Turns what a provider raises beside our own errors into one of them, and logs it: it is a bug
    of the provider.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InferMuxError):
            raise failed(self._name, error) from error


def failed(name: str, error: Exception) -> ProviderUnavailable:
    """Return our error for one that a provider has raised, which is logged."""
    log.error("provider %r raised %s", name, type(error).__name__, exc_info=error)
    ours = ProviderUnavailable(f"provider {name!r} failed")
    ours.retryable = False  # the same code would fail the same way
    return ours


def close(chunks: Any, name: str) -> None:
    """Close a provider's stream; what fails in it must not hide what happened before."""
    try:
        release = getattr(chunks, "close", None)
        if release is not None:
            release()
    except Exception as error:  # somebody's own code
        log.error("the stream of provider %r could not be closed", name, exc_info=error)
