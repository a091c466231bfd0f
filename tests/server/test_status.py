"""Tests of `infermux status`: the table of a running service's targets, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import HELLO, Peer, Scripted, Service, Vendor, eventually, nobody, run, script

from infermux.routing.circuit_breaker import BreakerState
from infermux.server.status import _merged
from infermux.types import Target

ADMIN = "imx-admin"
KEY = {"INFERMUX_ADMIN_KEY": ADMIN}


def status(*args: str, **env: str) -> tuple[int, str, str]:
    done = run([*script("infermux"), "status", *args], env=env)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    place = tmp_path_factory.mktemp("status")
    (place / "infermux.toml").write_text("""
        [providers.openai]
        models = ["m", "a-model-whose-name-goes-on-for-longer-than-a-line"]
        [providers.echo]
        [models]
        fast = ["openai/m", "echo"]
        [reliability]
        attempts = 2
        circuit_breaker = { failures = 1, open = 600 }
        [server]
        admin_key = "env:INFERMUX_ADMIN_KEY"
    """)
    with Vendor(Scripted(500)) as vendor:
        env = (
            KEY
            | vendor.env
            | {
                "INFERMUX_CONFIG": str(place / "infermux.toml"),
                "INFERMUX_LEDGER__PATH": str(place / "calls.db"),
            }
        )
        with Service("-w", "2", "--threads", "8", env=env) as running:
            yield running


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


def order(service: Service, path: str) -> None:
    assert (
        service.ask(f"/providers/{path}", method="POST", headers={"x-api-key": ADMIN}).status == 200
    )


@pytest.mark.slow
def test_all_is_well(service: Service) -> None:
    order(service, "openai/circuit/reset")
    code, out, err = status("--server", url(service), **KEY)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["TARGET", "STATE", "RETRY", "ERRORS", "P50", "P95", "/MIN"]
    assert [line.split()[:2] for line in lines[1:3]] == [
        ["openai/m", "closed"],
        ["echo/echo-v1", "closed"],
    ]
    assert len(lines) == 4 and all(len(line) <= 80 for line in lines)


@pytest.mark.slow
def test_an_open_circuit_is_told_with_its_reason_whichever_worker_answers(service: Service) -> None:
    order(service, "openai/circuit/reset")
    assert (
        service.ask("/infer", HELLO | {"model": "fast"}).status == 200
    )  # by echo, after one failure
    for _ in range(4):
        eventually(lambda: status("--server", url(service), **KEY)[0] == 1, "the news")
    code, out, _ = status("--server", url(service), **KEY)
    lines = out.splitlines()
    assert code == 1 and all(len(line) <= 80 for line in lines)
    assert (
        lines[1].startswith("openai/m ")
        and " open " in lines[1]
        and "100%" in lines[1]
        and " s " in lines[1]
    )
    assert lines[2].startswith("  circuit open for ") and lines[2].endswith(" (in 1 of 2 workers)")


def opened_everywhere(service: Service) -> dict[str, Any] | None:
    """Return the targets by provider once no worker's circuit of echo is closed."""
    code, out, _ = status("--server", url(service), "--json", **KEY)
    found = {
        each["provider"]: each
        for each in json.loads(out)["targets"]
        if each["model"] in ("m", "echo-v1")
    }
    is_open = code == 1 and found["echo"]["state"] == "open"
    return found if is_open and found["echo"]["reason"] == "circuit forced open" else None


def test_a_script_reads_the_same_as_json(service: Service) -> None:
    order(service, "echo/circuit/open?model=echo-v1")
    try:
        found = eventually(partial(opened_everywhere, service), "the news of both workers")
        assert set(found["echo"]) == {
            "provider",
            "model",
            "state",
            "reason",
            "retry_in",
            "error_rate",
            "p50",
            "p95",
            "per_minute",
            "in_flight",
            "workers",
            "since",
            "why",
        }
    finally:
        order(service, "echo/circuit/close")


@pytest.mark.slow
def test_what_an_order_has_done_is_told_by_every_worker_from_then_on(service: Service) -> None:
    for action, reason in (("open", "circuit forced open"), ("close", None)) * 4:
        order(service, f"echo/circuit/{action}?model=echo-v1")
        for _ in range(20):  # by either worker
            answer = service.ask("/status/targets", headers={"x-api-key": ADMIN}).json
            assert [each["reason"] for each in answer["targets"] if each["model"] == "echo-v1"] == [
                reason
            ]


def test_the_key_is_that_of_the_configuration(service: Service, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(ADMIN)
    (tmp_path / "infermux.toml").write_text(f'[server]\nadmin_key = "file:{tmp_path}/key"\n')
    assert status("--server", url(service), "-c", str(tmp_path / "infermux.toml"))[0] in (0, 1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("env", "words"),
    [({}, "missing admin key"), ({"INFERMUX_ADMIN_KEY": "imx-wrong"}, "unknown admin key")],
)
def test_a_key_that_does_not_open_is_told(
    service: Service, env: dict[str, str], words: str
) -> None:
    code, out, err = status("--server", url(service), **env)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1 and "imx-" not in err


def test_nobody_there_is_exit_code_2() -> None:
    with nobody() as address:
        code, out, err = status("--server", address, **KEY)
    assert code == 2 and out == "" and "no service answers" in err and err.count("\n") == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"targets": [1]}',
        b'{"targets": 1}',
        b"{}",
        b"<html>",
        b'{"targets": [{"state": "closed"}]}',
    ],
)
def test_what_is_no_service_of_ours_is_exit_code_2(body: bytes) -> None:
    class Other(Peer):
        def answer(self, handler: Any, _: bytes) -> None:
            handler.reply(200, body)

    with Other() as other:
        code, out, err = status("--server", other.url, **KEY)
    assert code == 2 and out == "" and err.startswith("infermux: ") and err.count("\n") == 1


@pytest.mark.slow
def test_a_hostile_name_moves_no_cursor() -> None:
    class Hostile(Peer):
        def answer(self, handler: Any, _: bytes) -> None:
            target = {
                "provider": "\x1b[2J",
                "model": "m\nopenai/m closed",
                "state": "open",
                "reason": "\x1b]0;x\x07",
                "retry_in": None,
                "error_rate": None,
                "p50": None,
                "p95": None,
                "per_minute": 0.0,
                "in_flight": 0,
                "workers": 1,
            }
            handler.reply(200, json.dumps({"targets": [target]}).encode())

    with Hostile() as other:
        outputs = [status("--server", other.url, *more, **KEY) for more in ([], ["--json"])]
    assert [code for code, _, _ in outputs] == [1, 1]
    assert not any(letter in out for _, out, _ in outputs for letter in "\x1b\x07")
    assert outputs[0][1].count("\n") == 3


# -- several workers as one ------------------------------------------------------------------------


def health(
    state: str = "closed",
    reason: str | None = None,
    retry_in: float | None = 0.0,
    calls: int = 0,
    failures: int = 0,
    p50: float | None = None,
    per_minute: float = 0.0,
) -> BreakerState:
    return BreakerState(
        state,
        reason,
        retry_in,
        None,
        1,
        calls,
        failures,
        failures / calls if calls else None,
        p50,
        p50,
        per_minute,
    )


def test_of_several_workers_the_worst_counts() -> None:
    closed, half = health(), health("half_open")
    soon, late, hand = (
        health("open", "soon", 1.0),
        health("open", "late", 9.0),
        health("open", "by hand", None),
    )
    cooling = health("closed", "cooling down", 30.0)

    def merged(*states: BreakerState) -> tuple[Any, ...]:
        found = _merged(Target("a", "b"), list(states), 3)
        return found.state, found.reason, found.retry_in

    assert merged() == merged(closed, closed) == ("closed", None, 0.0)
    assert merged(closed, half) == ("half_open", None, 0.0)
    assert merged(closed, soon, half) == ("open", "soon (in 1 of 3 workers)", 1.0)
    assert merged(soon, late) == ("open", "late (in 2 of 3 workers)", 9.0)
    assert merged(late, hand, soon) == ("open", "by hand", None)
    assert merged(cooling, closed) == ("closed", "cooling down (in 1 of 3 workers)", 30.0)


@pytest.mark.slow
def test_numbers_of_several_workers_are_one() -> None:
    found = _merged(
        Target("a", "b"),
        [
            health(calls=30, failures=3, p50=1.0, per_minute=30.0),
            health(calls=10, p50=3.0, per_minute=10.0),
            health(),
        ],
        3,
    )
    assert (
        found.error_rate,
        found.p50,
        found.p95,
        found.per_minute,
        found.in_flight,
        found.workers,
    ) == (0.075, 1.5, 1.5, 40.0, 3, 3)
    nothing = ("closed", None, 0.0, None, None, None, 0, 0, 0, None, "")
    assert _merged(Target("a", "b"), [], 2)[2:] == nothing
