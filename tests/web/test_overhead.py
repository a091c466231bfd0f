"""What a usual request costs, counted in function calls: the same on a busy machine as on an idle
one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from doors import MODELS, Turn, Vendor, says

import infermux

OURS = str(Path(infermux.__file__).parent)
ROUNDS = 5


@pytest.fixture(scope="module")
def vendor() -> Iterator[Vendor]:
    with Vendor("openai") as made:
        yield made


def ask(client: Any, *, streamed: bool) -> None:
    said = [{"role": "user", "content": "Hello"}]
    body = {"model": MODELS["openai"], "messages": said} | ({"stream": True} if streamed else {})
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200 and b"Hello" in answer.data, answer.data


def called(client: Any, *, streamed: bool) -> int:
    """Return how many functions of infermux one request calls in the thread that serves it.

    Going on with a generator counts, too. Those of Flask, requests and Python are not counted, so
    that a version of theirs changes nothing.
    """
    count = 0

    def seen(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(OURS)

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        ask(client, streamed=streamed)
    finally:
        sys.setprofile(before)
    return count


# It guards the promise that nobody pays for a feature that is not configured: hooks, mirrors, kept
# answers, settings of names, rates of providers, limits of end users, alerts, PostgreSQL. Such a
# feature is decided upon when the router is built; a request may meet an `is None`, not a function.
# The bounds are what was counted with Python 3.11, and 10 % more (later versions count less, as
# they inline comprehensions). If a change of the usual path itself needs more, raise them; if it
# needs less, lower them.
@pytest.mark.parametrize(("streamed", "most"), [(False, 408), (True, 631)], ids=["whole", "stream"])
def test_features_that_are_not_used_cost_nothing(vendor, tmp_path, monkeypatch, streamed, most):
    vendor.script(says("openai", Turn("Hello you"), streamed=streamed))
    monkeypatch.setenv("VENDOR", "sk-vendor")
    file = tmp_path / "infermux.toml"
    file.write_text(f"""
[providers.openai]
base_url = "{vendor.url}/v1"
api_key = "env:VENDOR"
models = ["{MODELS["openai"]}"]
[ledger]
path = "{tmp_path / "ledger.db"}"
""")
    with closing(infermux.load(file)) as router:
        client = infermux.create_app(router).test_client()
        ask(client, streamed=streamed)  # what is read and opened once
        found = min(called(client, streamed=streamed) for _ in range(ROUNDS))
    assert most * 0.6 < found <= most  # the least: something was counted


def test_a_path_has_one_rule_for_all_methods():
    """Werkzeug compiles each rule, which takes a millisecond of the start."""
    rules = [
        (rule.endpoint.partition(".")[0], rule.rule)
        for rule in infermux.create_app().url_map.iter_rules()
    ]
    assert len(rules) == len(set(rules)) > 50
