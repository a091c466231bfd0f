"""Test that the manual tells what the run of real clients must show (tests/clients/real/run.py)."""

import json
import re

from support import ROOT

EXPECTED = ROOT / "tests/clients/real/expected.json"
MANUAL = ROOT / "infermux/help/clients.md"


def test_the_manual_tells_how_many_scenarios_of_each_client_pass() -> None:
    programs = json.loads(EXPECTED.read_text(encoding="utf-8")).values()
    expected = {
        client: [str(len(scenarios)) for scenarios in vendors.values()]
        for clients in programs
        for client, vendors in clients.items()
    }
    text = MANUAL.read_text(encoding="utf-8").partition("## Tested clients")[2]
    rows = re.findall(r"^\| (.+?) \| (\d+ / \d+ .*?) \|$", text, flags=re.M)
    told = {client: re.findall(r"(\d+) / \d+", cells) for client, cells in rows}
    assert told == expected
