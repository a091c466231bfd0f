"""An API key that a command prints, such as a cloud's own tool."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, printable, shown
from ..types import POSIX, LogThrottle
from .readers import REFERENCES, span_seconds
from .schema import PLACE, NoSecret, Secret, keys_of, reads, seconds, secret, table, text

MAX_OUTPUT = 65536  # bytes that a command may print
TTL = 300.0  # seconds that a command's key is used
RUN_SECONDS = 10.0  # that a command may take
REFRESH = 0.8  # of the ttl, after which a new key is fetched while the old one is used
MIN_SECRET = 4  # characters of what is redacted in a command's errors
RETRY_SECONDS = 5.0  # after a command that failed
_PRIVATE = r"(?:pass|pw|secret|token|key|auth|credential)"  # in the name of what is secret
_NAMED = re.compile(rf"({_PRIVATE}[\w-]*[\"']?\s*[=:]\s*)\S+", re.I)
_OPTION = re.compile(rf"-.*{_PRIVATE}[\w-]*", re.I)
_DURATION = re.compile(r"[1-9]\d{0,5}[smh]", re.ASCII)
_BEARERS = re.compile(r"[A-Za-z0-9_\-.~+/=]{16,}")  # that may be a token, in a command's words
log = logging.getLogger("infermux")


def _ttl(value: Any, place: str) -> float:
    if isinstance(value, str):
        if not _DURATION.fullmatch(value):
            raise ConfigError(f'{place} must be seconds or a text such as "50m"')
        value = span_seconds(value)
    return float(seconds(value, place))


@dataclass(frozen=True, slots=True)
class Settings:
    """A command in a table: its words, how long its key is used, and how long it may take."""

    command: str = reads(text)
    ttl: float = reads(_ttl, TTL)
    timeout: float = reads(seconds, RUN_SECONDS)


def from_table(value: dict[str, Any], place: str) -> Secret:
    """Return the key of a table with a command; raise ConfigError."""
    if value.keys().isdisjoint(keys_of(Settings)):
        raise ConfigError(f"{place} must be a reference, {REFERENCES}")
    found = table(Settings)(value, place)
    argv = words(found.command, f"{place}.command")
    return CommandSecret(argv, ttl=found.ttl, limit=found.timeout)


class CommandSecret(Secret):
    """A key that a command prints, such as a cloud's own tool; it is used for *ttl* seconds.

    The command is run without a shell, by one thread at a time. While a key is still good a new one
    is fetched in the background. After a failure the last key is used for as long as it lasts.
    """

    def __init__(self, argv: list[str], *, ttl: float = TTL, limit: float = RUN_SECONDS) -> None:
        super().__init__("unknown", f"the command {argv[0]!r}")
        self._value = ""
        self._argv, self._ttl, self._limit = argv, ttl, limit
        self._changed, self._log = threading.Condition(), LogThrottle()
        self._runs, self._why = False, ""
        self._fetched = self._failed = self._kept = -float("inf")  # times

    def reveal(self) -> str:
        """Return the key; raise NoSecret."""
        return self.current(self._limit)

    @property
    def seals(self) -> tuple[str, ...]:
        """The same in all processes, whatever the key is."""
        return (PLACE + "\0".join(self._argv),)

    def current(self, patience: float) -> str:
        """Return the key within *patience* seconds; raise NoSecret."""
        now = time.monotonic()
        if now - self._fetched < self._ttl * REFRESH:
            return self._value
        end = now + patience
        with self._changed:
            good, failed = now - self._fetched < self._ttl, now - self._failed < RETRY_SECONDS
            if not self._runs and not (good and failed):
                if failed:
                    raise NoSecret(self._why)
                threading.Thread(target=self._run, daemon=True).start()
                self._runs = True
            while self._runs and not good and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            if good or time.monotonic() - self._fetched < self._ttl:
                return self._value
            raise NoSecret(self._why or f"{self.source} has not answered yet")

    def renew(self, used: str) -> bool:
        """Fetch another key, as the vendor has refused *used*; return whether there is one."""
        with self._changed:
            if self._value != used:
                return True
            if time.monotonic() - max(self._fetched, self._failed) < RETRY_SECONDS:
                return False  # it was run just now
            self._kept, self._fetched = max(self._kept, self._fetched), -float("inf")
        try:
            return self.current(self._limit) != used
        except NoSecret:
            return False

    def _run(self) -> None:
        value, why = "", ""
        try:
            value = secret("its output", self._output()).reveal()
        except NoSecret as error:
            why = str(error)
        except ConfigError as error:
            why = f"{self.source}: {error.message}"
        except Exception as error:
            why = f"{self.source} failed with {type(error).__name__}"
        with self._changed:
            self._runs, now = False, time.monotonic()
            if value:
                self._value, self._fetched, self._why = value, now, ""
            else:
                self._failed, self._why = now, why
                self._fetched = max(self._fetched, self._kept)  # perhaps refused for a model
            self._changed.notify_all()
        if why and self._log.due():
            log.error("no new API key: %s", why)

    def _output(self) -> str:
        """Return the command's output; raise NoSecret with the last line of its errors."""
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # so that its children can be stopped, too
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "invalid"
            raise NoSecret(f"{self.source} cannot be run: {reason}") from None
        output, errors = bytearray(), bytearray()
        readers = [
            threading.Thread(target=_read_all, args=pipe, daemon=True)
            for pipe in ((process.stdout, output), (process.stderr, errors))
        ]
        for reader in readers:
            reader.start()
        try:
            code = process.wait(self._limit)
            for reader in readers:
                reader.join(1.0)  # a child of it may keep the pipe open
        except subprocess.TimeoutExpired:
            raise NoSecret(f"{self.source} took longer than {self._limit:g} s") from None
        finally:
            _stop(process)
        if code:
            secrets = [*_private(self._argv), *output.decode(errors="replace").split()]
            raise NoSecret(f"{self.source} failed with exit code {code}{_told(errors, secrets)}")
        if len(output) > MAX_OUTPUT:
            raise NoSecret(f"{self.source} printed more than {MAX_OUTPUT} bytes")
        return output.decode("ascii", "replace")


def _read_all(stream: Any, into: bytearray) -> None:
    """Read a pipe to its end, and close it; keep a little more than MAX_OUTPUT bytes of it."""
    with stream, suppress(OSError, ValueError):
        while piece := stream.read1(8192):
            if len(into) <= MAX_OUTPUT:
                into += piece


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        if POSIX:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def _told(errors: bytearray, secrets: Iterable[str]) -> str:
    """Return the last line of a command's errors, without *secrets* and what may be a token."""
    [*_, last] = ["", *errors.decode(errors="replace").strip().splitlines()]
    for known in sorted(secrets, key=len, reverse=True):
        if len(known) >= MIN_SECRET:
            last = last.replace(known, "[redacted]")
    last = _NAMED.sub(r"\1[redacted]", _BEARERS.sub("[redacted]", last[:300]))
    return f": {printable(last)}" if last else ""


def _private(argv: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command that are secret by the names of their options."""
    for option, value in zip(argv, [*argv[1:], ""], strict=True):
        name, _, own = option.partition("=")
        if _OPTION.fullmatch(name):
            yield own or value


def words(command: str, place: str) -> list[str]:
    """Return the words of a command; raise ConfigError if there is no such program."""
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{place} is no command: {error}") from None
    if not argv or shutil.which(argv[0]) is None:
        what = shown(argv[0]) if argv else "this name"
        raise ConfigError(f"{place}: there is no program {what}; give its path")
    return argv
