"""Tests of the values that every package shares."""

from __future__ import annotations

from infermux.types import LogThrottle


def test_a_log_throttle_lets_one_message_a_minute_pass() -> None:
    now = 1000.0
    throttle = LogThrottle(clock=lambda: now)
    due = []
    for seconds in (0, 1, 58, 1, 30, 30, 600):
        now += seconds
        due.append(throttle.due())
    assert due == [True, False, False, True, False, True, True]
