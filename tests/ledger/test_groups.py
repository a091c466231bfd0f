"""Writes that wait for each other share a transaction; one that fails takes no other with it."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from support import eventually

from infermux.ledger.sqlite import SQLiteLedger


def test_a_write_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()
    found: dict[int, Any] = {}

    def first(sql: Any) -> None:
        began.set()
        go.wait(10)

    def write(number: int) -> None:
        def work(sql: Any) -> int:
            if number == 1:
                raise ValueError("only mine")
            return number

        try:
            found[number] = ledger.write(work)
        except ValueError as error:
            found[number] = str(error)

    with closing(SQLiteLedger(tmp_path / "l.db", busy=10)) as ledger:
        threads = [threading.Thread(target=ledger.write, args=(first,))]
        threads[0].start()
        assert began.wait(10)
        threads += [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for each in threads[1:]:
            each.start()
        waiting = ledger._process.group._waiting
        eventually(lambda: len(waiting) == 3, "three writes that wait")
        go.set()
        for each in threads:
            each.join()
    assert found == {0: 0, 1: "only mine", 2: 2}
