"""Tests in several processes are reported as in one, and none is lost."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from support import ROOT, run

FILES = {
    "test_ends.py": """
import pytest

def test_passes(): print("said by one that passes")
def test_fails():
    print("said by one that fails")
    assert 1 == 2
def test_is_skipped(): pytest.skip("for a reason")
@pytest.mark.xfail
def test_is_expected_to_fail(): assert False
""",
    "test_shares.py": """
import pytest

@pytest.fixture(scope="module")
def made(): return []
@pytest.mark.parametrize("number", range(5))
def test_what_a_file_shares_is_made_once(made, number):
    assert made == list(range(number))
    made.append(number)
""",
    "test_errors.py": """
import pytest, warnings

@pytest.fixture
def broken(): raise ValueError("is not made")
def test_needs_it(broken): pass
def test_warns(): warnings.warn("watch out", stacklevel=1)
""",
}
DIES = """
import os

def test_lives(): pass
def test_dies(): os._exit(0)
def test_comes_after_it(): pass
"""


def ran(folder: Path, files: dict[str, str], workers: int) -> tuple[int, list[str]]:
    """Return the exit code of pytest, and its lines in any order, without how long it took."""
    for name, text in files.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "workers", "-p", "no:cacheprovider", "-rA"]
    command += ["--rootdir", str(folder), "-c", "/dev/null", "-o", "console_output_style=classic"]
    command += ["-W", "error", "--workers", str(workers), str(folder)]
    ended = run(command, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}, cwd=folder)
    told = re.sub(r" in [\d.]+s( \([\d:]+\))?|=", "", ended.stdout)  # a line is padded with =
    return ended.returncode, sorted(told.splitlines())


@pytest.mark.slow
def test_what_is_reported_is_what_one_process_reports(tmp_path: Path) -> None:
    code, lines = ran(tmp_path, FILES, 3)
    assert (code, lines) == ran(tmp_path, FILES, 1)
    assert code == 1 and any(
        "2 failed, 6 passed, 1 skipped, 1 xfailed, 1 error" in x for x in lines
    )


@pytest.mark.slow
def test_a_process_that_dies_is_no_success(tmp_path: Path) -> None:
    code, lines = ran(tmp_path, FILES | {"test_dies.py": DIES}, 2)
    assert code == 2
    assert any("a process that ran tests died at test_dies.py::test_dies" in x for x in lines)
