"""The log: one line per call, as JSON or text, without its messages.

Text that callers choose is escaped and shortened, so that it cannot begin a line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from datetime import UTC, datetime
from typing import Any

from ..errors import Failure, printable
from ..planning.call import Attempt, Call
from ..types import JSON

JSON_LINES = "json"
MAX_TEXT = 200  # characters of a value: short lines are written atomically
MAX_ERROR = 1500  # characters of an error, which names each attempt
_PLAIN = re.compile(r"[\w.:/@+-]+", re.ASCII)  # needs no quotes
_ours = logging.getLogger("infermux")
_calls = logging.getLogger("infermux.calls")
_calls.addHandler(logging.NullHandler())  # no lines unless logging is configured


class CallLog:
    """An observer that logs calls as info, failed ones as warning, if that is *level* or above.

    *format* is "json" or "text". At debug, a line includes the call's attempts.
    """

    def __init__(self, level: str, format: str) -> None:
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._write = encoded if format == JSON_LINES else readable

    def __call__(self, call: Call) -> None:
        level = logging.INFO if call.error is None else logging.WARNING
        if level >= self._level and _calls.isEnabledFor(level):
            line = fields(call, level, tried=self._level <= logging.DEBUG)
            _calls.log(level, "%s", self._write(line))


def fields(call: Call, level: int = logging.INFO, *, tried: bool = False) -> JSON:
    """Return the fields of a finished call's line; *tried* adds its attempts."""
    (tokens_in, tokens_out), wanted, error = call.tokens, call.request.model, call.error
    first = call.attempts[-1].first_chunk if call.attempts else None
    found: JSON = {
        **_head(call.end_ns / 1e9, level),
        "id": call.id,
        "trace": call.trace_id,
        "caller": call.caller.name,
        "api": call.api,
        "requested": wanted if isinstance(wanted, str) else f"<{type(wanted).__name__}>",
        "provider": call.provider,
        "model": call.model,
        "strategy": call.plan.strategy if call.plan else "",
        "status": error.status if error else 200,
        "code": error and error.code,
        "error": error and _told(call, error),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost_usd": call.cost_usd,
        "estimated": bool(call.usage and call.usage.estimated),
        "latency_ms": call.latency_ms,
        "ttft_ms": None if first is None else round((first - call.started) * 1000),
        "attempts": len(call.attempts),
        "stream": first is not None,
    }
    if call.attempts and (ident := call.attempts[-1].upstream_request_id):
        found["upstream_request_id"] = ident
    if call.cache:
        found["cache"] = call.cache
    if call.end_user:
        found["user"] = call.end_user
    if call.hooks:
        found["hooks_ms"] = round(call.hooks_ms, 1)
        found["hooks"] = ",".join(f"{name}:{run.outcome}" for name, run in call.hooks.items())
    if tried:
        found["tried"] = [_tried(attempt) for attempt in call.attempts]
    return found


def _told(call: Call, error: Failure) -> str:
    """Return the failure of each attempt, in the words of the library's error."""
    said = " then ".join(str(attempt.failed) for attempt in call.attempts)
    return said or "; ".join(filter(None, (error.summary.partition(": ")[2], error.hint)))


def _tried(attempt: Attempt) -> JSON:
    error, ident = attempt.error, attempt.upstream_request_id
    found: JSON = {
        "provider": attempt.target.provider,
        "model": attempt.served or attempt.target.model,
        "latency_ms": attempt.latency_ms,
        "waited_ms": round(attempt.waited * 1000),
        "code": error and error.code,
        "upstream_status": error and error.upstream_status,
    }
    return found | ({"upstream_request_id": ident} if ident else {})


def _head(seconds: float, level: int) -> JSON:
    return {
        "time": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(level).lower(),
    }


def encoded(line: JSON) -> str:
    """Return a line as JSON in ASCII; long values are shortened."""
    return _ENCODER.encode(_shortened(line))


def readable(line: JSON) -> str:
    """Return a line as time, level and name=value pairs, without empty values."""
    known = {name: value for name, value in line.items() if value is not None and value != ""}
    time, level = known.pop("time"), known.pop("level").upper()
    return " ".join(
        [time, level, *(f"{name}={_value(_shortened(each, name))}" for name, each in known.items())]
    )


def _value(value: Any) -> str:
    plain = isinstance(value, str) and _PLAIN.fullmatch(value)
    return value if plain else _ENCODER.encode(value)


def _shortened(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _shortened(item, name) for name, item in value.items()}
    if isinstance(value, str):
        most = MAX_ERROR if name == "error" else MAX_TEXT
        return value if len(value) <= most else value[:most] + "…"
    return [_shortened(item) for item in value] if isinstance(value, list) else value


_ENCODER = json.JSONEncoder(separators=(",", ":"))


def configure(level: str, format: str) -> None:
    """Log to standard error from *level* on, as "json" or "text"; also after a fork."""
    _ours.handlers[:] = [_Lines(format)]
    _ours.propagate = False
    _ours.setLevel(level.upper())


class _Lines(logging.Handler):
    """Writes each line with one system call, so that lines of processes do not mix.

    The line of a call is as it is; other messages are formatted like it.
    """

    def __init__(self, format: str) -> None:
        super().__init__()
        self._json = format == JSON_LINES

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a broken log must not fail a call
            os.write(2, (self.format(record) + "\n").encode("utf-8", "backslashreplace"))

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == _calls.name:
            return message
        head = _head(record.created, record.levelno)
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        if self._json:
            more = {"traceback": trace} if trace else {}
            return _ENCODER.encode({**head, "message": message, **more})
        first = " ".join([head["time"], record.levelname, *message.splitlines()])
        return "\n  ".join(map(printable, [first, *trace.splitlines()]))
