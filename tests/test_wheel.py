"""Tests of the wheel: it has the package's own files, and nothing that runs by itself."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from email import message_from_bytes
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support import ROOT, files, run

setuptools = pytest.importorskip(
    "setuptools", minversion="70.1", reason="building a wheel offline takes setuptools 70.1"
)
PAGES = ("status.html", "status.css", "status.js", "parts.html", "login.html", "base.css")
DATA = {
    "infermux/py.typed",
    "infermux/prices.json",
    "infermux/config/template.toml",
    "infermux/config/words.toml",
    "infermux/providers/vendors.toml",
    "infermux/web/codex.json",
    *(f"infermux/web/admin/templates/{name}" for name in PAGES),
}
MAX_WHEEL, MAX_HELP, MAX_PRICES = 864_000, 90_000, 24_000  # bytes, compressed; the rest is code
ABOUT = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy: a build leaves folders behind, and takes in what an earlier one has left."""
    clone = tmp_path_factory.mktemp("clone")
    for name in files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    return clone


@pytest.fixture(scope="module")
def wheel(clone):
    done = run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "--disable-pip-version-check",
            "-w",
            str(clone / "made"),
            str(clone),
        ]
    )
    assert done.returncode == 0, done.stderr
    (made,) = Path(clone, "made").iterdir()
    with zipfile.ZipFile(made) as archive:
        yield archive


def about(wheel):
    """Return the name of the folder of metadata."""
    [found] = [name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL")]
    return found.partition("/")[0]


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_nothing_else(wheel):
    folder = about(wheel)
    kinds = ("infermux/*.py", "infermux/help/*.md")
    own = {name for name in files() if any(fnmatch(name, kind) for kind in kinds)}
    assert "infermux/help/shell.md" in own
    metadata = {
        each if each != "licenses/LICENSE" or f"{folder}/{each}" in wheel.namelist() else "LICENSE"
        for each in ABOUT
    }
    assert set(wheel.namelist()) == own | DATA | {f"{folder}/{each}" for each in metadata}


def test_a_wheel_is_small_and_has_nothing_twice(wheel):
    assert Path(wheel.filename).stat().st_size <= MAX_WHEEL
    sizes = {each.filename: each.compress_size for each in wheel.infolist()}
    assert sum(sizes[name] for name in sizes if fnmatch(name, "infermux/help/*")) <= MAX_HELP
    assert sizes["infermux/prices.json"] <= MAX_PRICES
    assert all(each.compress_type == zipfile.ZIP_DEFLATED for each in wheel.infolist())
    sums = [each.CRC for each in wheel.infolist() if each.file_size]
    assert len(sums) == len(set(sums))


@pytest.mark.slow
def test_a_wheel_asks_for_what_it_imports_and_starts_one_command(wheel):
    folder = about(wheel)
    told = message_from_bytes(wheel.read(f"{folder}/METADATA"))
    needed = [each for each in told.get_all("Requires-Dist") if "extra ==" not in each]
    assert {each.split("<")[0].split(">")[0].strip() for each in needed} == {
        "flask",
        "requests",
        "urllib3",
        "gunicorn",
    }
    assert set(told.get_all("Provides-Extra")) == {"otel", "postgres", "test"}
    assert wheel.read(f"{folder}/entry_points.txt").decode().split() == [
        "[console_scripts]",
        "infermux",
        "=",
        "infermux.cli.main:main",
    ]


def test_a_wheel_says_whose_it_is_and_where_it_runs(wheel):
    folder = about(wheel)
    told = message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert told["Author"] and told["Keywords"] and told.get_all("Project-URL")
    assert {"gateway", "proxy", "failover"} <= {*told["Keywords"].split(", ")} | {
        *told["Keywords"].split(",")
    }
    assert "Operating System :: POSIX" in told.get_all("Classifier")


@pytest.mark.slow
def test_a_source_distribution_has_all_that_its_tests_need(clone, tmp_path):
    """It is the clone, and its tests run where it was unpacked, without git."""
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    done = run([sys.executable, "-c", code], cwd=clone)
    assert done.returncode == 0, done.stderr
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
        packed.extractall(tmp_path / "new", **safely)
    [place] = (tmp_path / "new").iterdir()
    assert [name for name in files() if not (place / name).is_file()] == []
    env = {"PYTHONPATH": str(place), "PATH": str(tmp_path)}  # no git there
    everything = [sys.executable, "-m", "pytest", "-q", "--collect-only"]
    assert run(everything, cwd=place, env=env).returncode == 0
    some = [
        "tests/test_ci.py",
        "tests/test_layers.py",
        "tests/test_wheel.py",
    ]
    answer = run([sys.executable, "-m", "pytest", "-q", *some], cwd=place, env=env)
    assert answer.returncode == 0, answer.stdout
