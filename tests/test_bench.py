"""The benchmark runs with the present configuration and APIs; its speed is not tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import run


@pytest.mark.slow
def test_the_bench_prints_its_table(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run(
        [
            sys.executable,
            "-m",
            "tests.bench",
            "--quick",
            "--only",
            "infer",
            "ledger",
            "--json",
            str(file),
        ]
    )
    assert done.returncode == 0, done.stderr
    assert "Note:" not in done.stdout, "an answer was not whole"
    assert "| InferMux: POST /infer with echo, no ledger |" in done.stdout
    figures = json.loads(file.read_text())
    assert {"infer/naive", "infer/routing", "infer/default", "infer/full", "ledger"} <= set(figures)
    assert all(values for values in figures.values())


def test_the_bench_knows_its_parts() -> None:
    done = run([sys.executable, "-m", "tests.bench", "--only", "everything"])
    assert done.returncode == 2
    assert "streams" in done.stderr.partition("choose from")[2]  # quoted by some Pythons only
