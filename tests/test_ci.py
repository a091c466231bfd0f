"""CI's lock file and lowest versions agree with setup.cfg; SECURITY.md says how to report."""

from __future__ import annotations

import configparser
import re

import pytest
from support import ROOT

packaging = pytest.importorskip("packaging.requirements")

LOCK = (ROOT / ".ci" / "requirements.lock").read_text(encoding="utf-8")
LOWEST = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8")
PIN = re.compile(
    r"^([\w.-]+)==([\w.!+-]+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M
)


def required(*extras: str) -> dict[str, packaging.Requirement]:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [parsed["options"]["install_requires"]]
    texts += [parsed["options.extras_require"][name] for name in extras]
    found = [packaging.Requirement(line) for text in texts for line in text.split("\n") if line]
    return {_normal(each.name): each for each in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_of_the_lock_is_a_version_with_its_hashes() -> None:
    """Nothing else is in it: no address, no option, no file without a hash."""
    rest = re.sub(r"^#.*\n", "", PIN.sub("", LOCK), flags=re.M)
    assert rest.strip() == ""
    assert "://" not in LOCK and "index-url" not in LOCK and "find-links" not in LOCK


def test_the_lock_has_what_setup_cfg_requires_within_its_bounds() -> None:
    pins = {_normal(name): version for name, version, _ in PIN.findall(LOCK)}
    for name, requirement in required("test").items():
        assert requirement.specifier.contains(pins[name]), (name, pins[name])


def test_the_lock_serves_every_platform() -> None:
    """A package with compiled parts has the hashes of its files for Linux, macOS and Windows."""
    hashes = {_normal(name): found.count("--hash") for name, _, found in PIN.findall(LOCK)}
    assert min(hashes.values()) >= 1 and hashes["markupsafe"] > 20 and hashes["flask"] == 2


def test_the_lowest_versions_are_those_of_setup_cfg() -> None:
    lowest = dict(re.findall(r"^([\w-]+)==(\S+)$", LOWEST, re.M))
    for name, requirement in required().items():
        [bound] = [each.version for each in requirement.specifier if each.operator == ">="]
        given = lowest[name]
        assert requirement.specifier.contains(given), (name, given)
        assert given == bound or given.removesuffix(".0") == bound, (name, given, bound)


def test_flask_is_one_without_known_faults() -> None:
    assert not required()["flask"].specifier.contains("3.1.2")


def test_ci_installs_from_the_lock_and_runs_the_service() -> None:
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install = steps.index("--require-hashes -r .ci/requirements.lock")
    assert "locked/bin/python" in steps[install:] and "pytest" in steps[install:]


def test_it_is_said_how_to_report_a_vulnerability() -> None:
    told = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")
    assert "Report a vulnerability" in told and "private vulnerability reporting" in told
    assert "@" not in told  # nobody's address
