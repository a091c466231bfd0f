"""Vendors' rate limits as their answers tell them: whether one is used up, and until when.

All have a header with "ratelimit" and "remaining" in its name, and mostly another with "reset"
in that place: durations such as 2m59.56s (https://platform.openai.com/docs/guides/rate-limits),
times in RFC 3339 (https://docs.anthropic.com/en/api/rate-limits), seconds, or seconds since 1970.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime

MAX_REST = 3600.0  # seconds: some limits are of a day, and may be raised before
UNKNOWN_REST = 1.0  # seconds, where an answer does not say until when
_EPOCH = 1e9  # above which a number is a time
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[dhms])){1,5}|\d+(?:\.\d+)?", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms]|)", re.ASCII)


def used_up(headers: Mapping[str, str]) -> float:
    """Return the seconds until every limit that is used up is reset; 0: none is used up."""
    seconds = 0.0
    for name in [name for name in headers if "emaining" in name]:
        lower = name.lower()
        if headers[name].strip() != "0" or "ratelimit" not in lower:
            continue
        if headers.get(lower.replace("remaining", "limit"), "").strip() != "0":  # else it is none
            reset = headers.get(lower.replace("remaining", "reset"), "")
            seconds = max(seconds, _seconds(reset.strip()))
    return seconds


def _seconds(text: str) -> float:
    if len(text) > 40:
        return UNKNOWN_REST
    if _DURATION.fullmatch(text):
        left = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        if left >= _EPOCH:  # a time: seconds or milliseconds since 1970
            left = (left / 1000 if left >= _EPOCH * 1000 else left) - time.time()
    else:
        try:
            left = datetime.fromisoformat(text).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return UNKNOWN_REST
    return min(max(0.0, left), MAX_REST)
