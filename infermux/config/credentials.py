"""API keys of providers: from a variable, a file that may change, a command, or several of these.

Each is a Secret; `current` returns the value of one that may change.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..types import LogThrottle
from .readers import REFERENCES
from .schema import PLACE, Secret, secret

MAX_KEYS = 100  # of one provider
LOOK_SECONDS = 1.0  # seconds between two checks of a file
log = logging.getLogger("infermux")
Get = Callable[[str], str]  # returns the value of a variable, or ""


class FileSecret(Secret):
    """A key in a file, which is read again when the file, or what a link leads to, changes."""

    def __init__(self, path: str, place: str) -> None:
        self._path, self._lock, self._log = Path(path), threading.Lock(), LogThrottle()
        self._stamp, value = self._read(place)
        self._looked = time.monotonic()
        super().__init__(value, f"the file {path}")

    @property
    def seals(self) -> tuple[str, ...]:
        """The file, which stays when its key changes, and the key."""
        return f"{PLACE}file\0{self._path}", self._value

    def _read(self, place: str) -> tuple[tuple[int, ...], str]:
        try:
            found = self._path.stat()
            value = secret(place, self._path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", "it is not UTF-8 text")
            raise ConfigError(f"{place}: the file {self._path} cannot be read: {why}") from None
        return _stamp(found), value.reveal()

    def current(self, patience: float) -> str:
        """Return the key in the file now; the last one if it cannot be read."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self.renew(self._value)
        return self._value

    def renew(self, used: str) -> bool:
        """Read the file again; return whether it holds another key than *used*."""
        with self._lock:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError):
                if _stamp(self._path.stat()) == self._stamp:
                    return self._value != used
            try:
                self._stamp, self._value = self._read("api_key")
            except ConfigError as error:  # half written, or removed: the next check may succeed
                if self._log.due():
                    log.warning("the last key is used: %s", error.message)
            return self._value != used


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class SecretPool(Secret):
    """Several keys of one provider, among which its calls are spread."""

    def __init__(self, keys: tuple[Secret, ...]) -> None:
        super().__init__("several", ", ".join(key.source for key in keys))
        self.keys = keys

    def reveal(self) -> str:
        return self.keys[0].reveal()

    @property
    def seals(self) -> tuple[str, ...]:
        return tuple(seal for key in self.keys for seal in key.seals)


# -- reading --


def reference(value: str, place: str, get: Get) -> Any:
    """Return the secret that "env:NAME" or "file:PATH" refers to; other values unchanged."""
    kind, _, name = value.partition(":")
    if kind == "env" and name and name[0] not in " $":
        if not get(name):
            raise ConfigError(f"{place}: the variable {name} is not set")
        return secret(place, get(name), name)
    if kind == "file" and name:
        found = FileSecret(name, place)
        return Secret(found.reveal(), found.source)
    return value


def api_key(value: Any, place: str, get: Get) -> Any:
    """Return a provider's key, or several, to which *value* refers; other values unchanged."""
    if isinstance(value, list):
        return _pool(value, place, get)
    if isinstance(value, dict):
        from .command import from_table  # loads subprocess

        return from_table(value, place)
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    if kind == "command" and rest.strip():
        from .command import CommandSecret, words  # loads subprocess

        return CommandSecret(words(rest, place))
    if kind == "file" and rest:
        return FileSecret(rest, place)
    return reference(value, place, get)


def _pool(values: list[Any], place: str, get: Get) -> Secret:
    if not 0 < len(values) <= MAX_KEYS:
        raise ConfigError(f"{place} must have from 1 to {MAX_KEYS} references")
    found: list[Secret] = []
    for number, value in enumerate(values):
        key = api_key(value, f"{place}[{number}]", get) if not isinstance(value, list) else value
        if not isinstance(key, Secret):
            raise ConfigError(f"{place}[{number}] must be a reference, {REFERENCES}")
        known = [each.reveal() for each in found if type(each) is Secret]
        if type(key) is Secret and key.reveal() in known:
            raise ConfigError(f"{place}[{number}] is the same key as another one of the list")
        found.append(key)
    return found[0] if len(found) == 1 else SecretPool(tuple(found))
