"""POST /explain: access, request forms, and that a real call does the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from doors import Front
from flask import Flask
from support import HELLO, Service, ask

from infermux import EchoProvider, HTTPProvider, Router, blueprint, openai_blueprint, ops_blueprint
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning import replayed
from infermux.types import Target

ADMIN = "adm-in-key"
KEY = {"Authorization": f"Bearer {ADMIN}"}
VENDOR = {
    "base_url": "http://vendor-host.example/v1",
    "api_key": "sk-vendor-key",
    "dialect": "openai",
}
HOSTILE = "<script>alert(1)</script>\r\nX-Evil: 1\u202e\x1b[2J"


def mounted(router: Router) -> Flask:
    app = Flask("host")
    app.register_blueprint(blueprint(router))
    app.register_blueprint(openai_blueprint(router))
    app.register_blueprint(ops_blueprint(router, ADMIN))
    return app


@pytest.fixture
def front() -> Iterator[Front]:
    providers = (
        EchoProvider("one", ("m",)),
        EchoProvider("two", ("m",)),
        HTTPProvider("vendor", models=("m",), **VENDOR),
    )
    with Front(*providers, app=mounted) as running:
        running.router.registry.define(
            "fast", ["one/m", "two/m", "vendor/m"], strategy="round_robin"
        )
        yield running


def explain(front: Front, body: Any, headers: dict[str, str] | None = None) -> Any:
    """Ask, without making every target well again first."""
    return ask(front.port, "/explain", body, headers=KEY if headers is None else headers)


def test_it_is_for_operators_alone(front: Front) -> None:
    asked = {"model": "fast"}
    assert explain(front, asked).status == 200
    assert explain(front, asked, {}).status == 401
    assert explain(front, asked, {"Authorization": "Bearer other"}).status == 401
    answer = ask(front.port, "/explain", method="GET", headers=KEY)
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "body",
    [
        {"model": "fast"},
        {"model": "fast", "messages": HELLO["messages"]},
        {
            "model": "fast",
            "messages": HELLO["messages"],
            "params": {"temperature": 0},
            "meta": {"project": "x"},
        },
        {
            "model": "fast",
            "messages": HELLO["messages"],
            "temperature": 0,
            "stream": True,
            "max_completion_tokens": 5,
        },
        {"model": "fast", "tokens": 5, "caller": "web"},
    ],
)
def test_what_is_explained_is_what_is_then_served(front: Front, body: dict[str, Any]) -> None:
    for turn in range(6):
        found = explain(front, body)
        assert found.status == 200, found.data
        targets = [target["provider"] for target in found.json["targets"]]
        assert targets[0] == ("one", "two", "vendor")[turn % 3]
        served = ask(front.port, "/infer", {"model": "fast", "messages": HELLO["messages"]})
        assert served.headers.get("X-Infermux-Provider") == targets[0]


def test_it_says_what_is_shut_and_for_how_long(front: Front) -> None:
    front.router.targets.breaker(Target("one", "m")).cool_down(30)
    found = explain(front, {"model": "fast"}).json
    [dropped] = found["dropped"]
    assert dropped["provider"] == "one" and 0 < dropped["retry_in"] <= 30 and "dropped" in dropped
    assert [target["provider"] for target in found["targets"]] == ["two", "vendor"]


def test_no_address_and_no_key_of_a_vendor_is_told(front: Front) -> None:
    answer = explain(front, {"model": "fast"})
    assert not any(
        word in answer.data for word in (b"vendor-host", b"sk-vendor", ADMIN.encode(), b"http")
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"model":"fast","model":"x"}',
        b'{"model":5}',
        b'{"model":"fast","tokens":NaN}',
    ],
)
def test_an_odd_body_is_a_400(front: Front, body: bytes) -> None:
    answer = ask(front.port, "/explain", body, method="POST", headers=KEY)
    assert answer.status == 400 and set(answer.json["error"]) == {"message", "type", "code"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("body", [{"model": HOSTILE}, {"model": "fast", "provider": HOSTILE}])
def test_a_hostile_name_is_refused_without_harm(front: Front, body: dict[str, Any]) -> None:
    answer = explain(front, body)
    assert (
        answer.status == 404
        and answer.headers["Content-Type"] == "application/json"
        and "X-Evil" not in answer.headers
    )
    assert not {"\x1b", "\r", "\u202e"} & set(answer.data.decode())


@pytest.mark.slow
def test_a_service_writes_plans_down_that_can_be_derived_again(tmp_path: Any) -> None:
    """Through gunicorn and its workers: each answer's id leads to the decision that led to it."""
    (tmp_path / "infermux.toml").write_text("""
[providers.one]
type = "echo"
[providers.two]
type = "echo"
[models.fast]
strategy = "weighted"
targets = ["one/echo-v1", "two/echo-v1"]
[server]
admin_key = "env:ADMIN"
""")
    env = {
        "INFERMUX_CONFIG": str(tmp_path / "infermux.toml"),
        "INFERMUX_LEDGER__PATH": str(tmp_path / "l.db"),
        "ADMIN": ADMIN,
    }
    with Service("--workers", "2", env=env) as service:
        found = service.ask("/explain", {"model": "fast", "tokens": 10}, headers=KEY)
        assert found.status == 200 and sorted(
            target["provider"] for target in found.json["targets"]
        ) == ["one", "two"]
        answers = [
            service.ask("/infer", {"model": "fast", "messages": HELLO["messages"]})
            for _ in range(12)
        ]
    with closing(SQLiteLedger(tmp_path / "l.db")) as ledger:
        for answer in answers:
            record = ledger.call(answer.headers["X-Request-Id"])
            assert record is not None
            decision = replayed(record.call.plan)
            assert (
                decision.differences == {}
                and decision.plan.targets[0].provider == answer.headers["X-Infermux-Provider"]
            )
            assert json.dumps(HELLO["messages"][0]["content"]) not in record.call.plan
