"""The log: a line for each call that is worth one, in JSON or to be read, and nothing of what was
said in it.

A line is written at once and ends where it ends: whatever a caller can choose in it is escaped and
cut.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from datetime import UTC, datetime
from typing import Any

from ..errors import printable
from ..planning.call import Attempt, Call

JSON_LINES = "json"
_PLAIN = re.compile(r"[\w.:/@+-]+", re.ASCII)  # what stands in a line to be read without quotes
_CUT = 200  # characters of a name: the line stays below what a pipe takes at once
_ours = logging.getLogger("infermux")
_calls = logging.getLogger("infermux.calls")
_calls.addHandler(
    logging.NullHandler()
)  # at a shell, and in an application that configures no logging, nobody waits for lines


class CallLog:
    """An observer that logs calls from a level upwards: those that failed are warnings, with
    `debug` come the attempts.
    """

    def __init__(self, level: str, format: str) -> None:
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._write = encoded if format == JSON_LINES else readable

    def __call__(self, call: Call) -> None:
        level = logging.INFO if call.error is None else logging.WARNING
        if level >= self._level and _calls.isEnabledFor(level):
            _calls.log(
                level, "%s", self._write(fields(call, level, tried=self._level <= logging.DEBUG))
            )


def fields(call: Call, level: int = logging.INFO, *, tried: bool = False) -> dict[str, Any]:
    """Return what a line says of a finished call, and with *tried* of each attempt."""
    (tokens_in, tokens_out), wanted = call.tokens, call.request.model
    first = call.attempts[-1].first_chunk if call.attempts else None
    found: dict[str, Any] = {
        **_head(call.end_ns / 1e9, level),
        "id": call.id,
        "trace": call.trace_id,
        "caller": call.caller.name,
        "api": call.api,
        "requested": wanted if isinstance(wanted, str) else f"<{type(wanted).__name__}>",
        "provider": call.provider,
        "model": call.model,
        "strategy": call.plan.strategy if call.plan else "",
        "status": call.error.status if call.error else 200,
        "code": call.error.code if call.error else None,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost_usd": call.cost_usd,
        "estimated": bool(call.usage and call.usage.estimated),
        "latency_ms": call.latency_ms,
        "ttft_ms": None if first is None else round((first - call.started) * 1000),
        "attempts": len(call.attempts),
        "stream": first is not None,
    }
    return found | ({"tried": [_tried(attempt) for attempt in call.attempts]} if tried else {})


def _tried(attempt: Attempt) -> dict[str, Any]:
    return {
        "provider": attempt.target.provider,
        "model": attempt.served or attempt.target.model,
        "latency_ms": attempt.latency_ms,
        "waited_ms": round(attempt.waited * 1000),
        "code": attempt.error.code if attempt.error else None,
    }


def _head(seconds: float, level: int) -> dict[str, Any]:
    return {
        "time": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(level).lower(),
    }


def encoded(line: dict[str, Any]) -> str:
    """Return a line as JSON in ASCII: no terminal and no reader of lines sees anything of a name
    but its letters.
    """
    return _ENCODER.encode(_cut(line))


def readable(line: dict[str, Any]) -> str:
    """Return a line as name=value, without what is not known; the time and the level need no name."""
    time, level, *rest = (
        (name, value) for name, value in line.items() if value is not None and value != ""
    )
    return " ".join(
        [time[1], level[1].upper(), *(f"{name}={_value(value)}" for name, value in rest)]
    )


def _value(value: Any) -> str:
    return (
        value
        if isinstance(value, str) and _PLAIN.fullmatch(value[: _CUT + 1]) and len(value) <= _CUT
        else encoded(value)
    )


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(item) for name, item in value.items()}
    if isinstance(value, str):
        return value if len(value) <= _CUT else value[:_CUT] + "…"
    return [_cut(item) for item in value] if isinstance(value, list) else value


_ENCODER = json.JSONEncoder(separators=(",", ":"))


# -- where lines go --------------------------------------------------------------------------------


def configure(level: str, format: str) -> None:
    """Let this process, and those that it forks, write what InferMux logs to standard error: each
    line once.
    """
    _ours.handlers[:] = [_Lines(format)]
    _ours.propagate = False
    _ours.setLevel(level.upper())


class _Lines(logging.Handler):
    """Writes a line with one system call, so that the lines of several processes do not mix."""

    def __init__(self, format: str) -> None:
        super().__init__()
        self.setFormatter(_Formatter(format))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a log that cannot be written must not cost a call
            os.write(2, (self.format(record) + "\n").encode("utf-8", "backslashreplace"))


class _Formatter(logging.Formatter):
    """A call's line as it is; what else there is to say in the same form."""

    def __init__(self, format: str) -> None:
        super().__init__()
        self._json = format == JSON_LINES

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == _calls.name:
            return message
        head, trace = (
            _head(record.created, record.levelno),
            self.formatException(record.exc_info) if record.exc_info else "",
        )
        if self._json:
            return _ENCODER.encode(
                {**head, "message": message} | ({"traceback": trace} if trace else {})
            )
        first = " ".join([head["time"], record.levelname, *message.splitlines()])
        return "\n  ".join(map(printable, [first, *trace.splitlines()]))
