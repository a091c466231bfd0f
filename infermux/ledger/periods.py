"""Periods of time: the days and months of a time zone, and the slots that sums are kept by.

Every time zone differs from UTC by whole slots, so each period is a whole number of them.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache

PERIODS = ("day", "month", "total")
SLOT = 900  # seconds
DAY = 86_400  # seconds
MAX_INTEGER = 2**63 - 1  # of SQLite
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_zone(name: str) -> tzinfo:
    """Return the time zone called *name*, such as Europe/Berlin; raise ValueError."""
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # only where it is needed

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):  # OSError: the name of a folder
        raise ValueError(f"there is no time zone {name!r}") from None


def names(at: float, zone: tzinfo = UTC) -> tuple[str, str, str]:
    """Return the names of the day, month and total that contain *at*, in seconds since 1970."""
    return _names(int(at // SLOT), zone)


@lru_cache(maxsize=64)
def _names(slot: int, zone: tzinfo) -> tuple[str, str, str]:
    name = local(slot * SLOT, zone).date().isoformat()
    return name, name[:7], "total"


def start(period: str, at: float, zone: tzinfo = UTC) -> float:
    if period == "total":
        return 0.0
    day = local(at, zone).date()
    return midnight(day.replace(day=1) if period == "month" else day, zone)


def end(period: str, at: float, zone: tzinfo = UTC) -> float | None:
    return None if period == "total" else _end(period, int(at // SLOT), zone)


@lru_cache(maxsize=64)
def _end(period: str, slot: int, zone: tzinfo) -> float:
    day = local(slot * SLOT, zone).date()
    if period == "day":
        return midnight(day + timedelta(1), zone)
    return midnight((day.replace(day=1) + timedelta(32)).replace(day=1), zone)


def midnight(day: date, zone: tzinfo = UTC) -> float:
    """Return the start of a day, in seconds since 1970."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()


def step_name(step: str, at: float, zone: tzinfo = UTC) -> str:
    """Return the name of the day or hour that contains *at*: 2026-11-23, 2026-11-23T12:00Z."""
    found = local(at, zone)
    if step == "day":
        return found.date().isoformat()
    text = found.replace(minute=0, second=0, microsecond=0).isoformat(timespec="minutes")
    return text.replace("+00:00", "Z") if zone is UTC else text


def local(at: float, zone: tzinfo) -> datetime:
    return (_EPOCH + timedelta(seconds=at)).astimezone(zone)


def ns(seconds: float) -> int:
    """Return seconds since 1970 as whole nanoseconds, limited to SQLite's integers."""
    return round(max(-9e9, min(seconds, 9e9)) * 10**9)


def ms(seconds: float) -> int:
    return int(seconds * 1000)
