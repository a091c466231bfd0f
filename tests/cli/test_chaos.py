"""Tests of the table of `infermux chaos`; tests/chaos tests the trials."""

from __future__ import annotations

from infermux.chaos import Row
from infermux.cli.serve import chaos_table


def test_the_table() -> None:
    rows = [
        Row("stall", "before", False, "answer", 2, 2.5, "fired", True, "fast"),
        Row(
            "stream_no_terminator",
            "after",
            True,
            "SILENTLY WRONG",
            1,
            0.049,
            "too late",
            False,
            "fast",
            "truncated",
        ),
        Row(
            "500",
            "before",
            False,
            "error upstream_error",
            13,
            12.0,
            "none configured",
            True,
            "slow",
        ),
    ]
    assert chaos_table(rows).splitlines() == [
        "FAULT                 WHEN    ASKED   CLIENT GOT            ATTEMPTS  SECONDS  FAILOVER",
        "-- fast",
        "stall                 before  answer  answer                       2     2.50  fired            ok",
        "stream_no_terminator  after   stream  SILENTLY WRONG               1     0.05  too late         NOT OK: truncated",
        "-- slow",
        "500                   before  answer  error upstream_error        13    12.00  none configured  ok",
        "3 calls: 2 passed, 1 failed, 1 silently wrong",
    ]
