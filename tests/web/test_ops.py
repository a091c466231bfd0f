"""The operators' API: access, responses, and commands that reach every worker."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import doors
import pytest
from doors import Turn, openai_chunk, openai_events, stream
from flask import Flask
from support import HELLO, Scripted, Service, TokenTrace, Vendor, eventually

import infermux
from infermux import (
    Deadline,
    EchoProvider,
    InferRequest,
    InferResponse,
    Provider,
    Registry,
    Router,
    create_app,
    ops_blueprint,
)
from infermux.errors import ProviderUnavailable
from infermux.ledger.sqlite import SQLiteLedger

ADMIN = "imx-admin"
BEARER = {"Authorization": f"Bearer {ADMIN}"}
ACTIONS = ("open", "close", "reset")
OPEN = ("/healthz", "/readyz", "/metrics")
CLOSED = ("/status/targets",)


def basic(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anybody:{key}".encode()).decode()}


class Failing(Provider):
    """Never answers."""

    def __init__(self, name: str = "bad", *models: str) -> None:
        self.name, self.models = name, models or ("m",)

    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        raise ProviderUnavailable("x")


def client(router: Router, admin: str | None = ADMIN) -> Any:
    app = Flask(__name__)
    app.register_blueprint(infermux.blueprint(router))
    app.register_blueprint(ops_blueprint(router, admin))
    return app.test_client()


def echo(**more: Any) -> Any:
    return client(Router(Registry([EchoProvider()])), **more)


def fail(router: Router, times: int = 5) -> None:
    for _ in range(times):
        with pytest.raises(infermux.InferMuxError):
            router.infer(InferRequest("m", HELLO["messages"]))  # type: ignore[arg-type]


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers", [BEARER, {"x-api-key": ADMIN}, basic(ADMIN), {"Authorization": f"bearer {ADMIN}"}]
)
@pytest.mark.parametrize("path", CLOSED)
def test_an_operator_gets_in(path: str, headers: Mapping[str, str]) -> None:
    assert echo().get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong"},
        {"x-api-key": ADMIN[:-1]},
        basic("wrong"),
        {"Authorization": f"Bearer {ADMIN}é"},
        {"x-api-key": "\xff"},
    ],
)
@pytest.mark.parametrize("path", CLOSED)
def test_a_wrong_key_does_not(path: str, headers: Mapping[str, str]) -> None:
    answer = echo().get(path, headers=headers)
    assert (answer.status_code, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert ADMIN not in answer.text and "wrong" not in answer.text
    assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")  # asks for another one


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic ???"},
        {"Authorization": ADMIN},
        basic(""),
    ],
)
@pytest.mark.parametrize("path", CLOSED)
def test_without_a_key_a_browser_is_asked_for_one(path: str, headers: Mapping[str, str]) -> None:
    answer = echo().get(path, headers=headers)
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith(
        "Basic realm="
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_a_browsers_login_changes_nothing(action: str) -> None:
    answer = echo().post(f"/providers/echo/circuit/{action}", headers=basic(ADMIN))
    assert answer.status_code == 401 and "WWW-Authenticate" not in answer.headers


@pytest.mark.parametrize("admin", [None, ""])
@pytest.mark.parametrize("headers", [{}, BEARER, basic(""), {"x-api-key": ""}])
def test_without_a_configured_key_all_of_it_is_closed(
    admin: str | None, headers: Mapping[str, str]
) -> None:
    visitor = echo(admin=admin)
    for answer in (
        visitor.get("/status/targets", headers=headers),
        visitor.post("/providers/echo/circuit/open", headers=headers),
    ):
        assert answer.status_code == 403 and "[server] admin_key" in answer.json["error"]["message"]
    assert [visitor.get(path).status_code for path in OPEN] == [200] * 3


def test_a_callers_key_opens_the_doors_and_nothing_of_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "infermux.toml"
    hash = hashlib.sha256(b"imx-web").hexdigest()
    file.write_text(
        f'[providers.echo]\n[server]\nadmin_key = "env:ADMIN"\n[keys.web]\nhash = "{hash}"\n'
    )
    monkeypatch.setenv("INFERMUX_CONFIG", str(file))
    monkeypatch.setenv("ADMIN", ADMIN)
    monkeypatch.setenv("INFERMUX_LEDGER__PATH", str(tmp_path / "calls.db"))
    visitor, web = create_app().test_client(), {"x-api-key": "imx-web"}
    assert visitor.post("/infer", json=HELLO, headers=web).status_code == 200
    assert visitor.get("/status/targets", headers=web).status_code == 403
    assert visitor.post("/providers/echo/circuit/open", headers=web).status_code == 403
    assert visitor.get("/status/targets", headers=BEARER).status_code == 200
    assert (
        visitor.post("/infer", json=HELLO, headers=BEARER).status_code == 401
    )  # an admin is no caller
    assert [visitor.get(path).status_code for path in OPEN] == [200] * 3


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("PUT", "/readyz", "GET, HEAD"),
        ("GET", "/providers/echo/circuit/open", "POST"),
        ("POST", "/status/targets", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(method: str, path: str, allow: str) -> None:
    answer = echo().open(path, method=method, headers=BEARER)
    assert (answer.status_code, answer.headers["Allow"], answer.json["error"]["code"]) == (
        405,
        allow,
        "method_not_allowed",
    )


# -- alive and ready -------------------------------------------------------------------------------


@pytest.mark.slow
def test_alive_is_all_that_healthz_says() -> None:
    router = Router(Registry([Failing()]))
    fail(router)
    answer = client(router).get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_ready_is_whoever_can_serve_a_call(tmp_path: Path) -> None:
    router = Router(Registry([EchoProvider()]), ledger=SQLiteLedger(tmp_path / "calls.db"))
    answer = client(router).get("/readyz")
    assert (answer.status_code, answer.json) == (
        200,
        {
            "ready": True,
            "configuration": "ok",
            "ledger": "ok",
            "records": {"pending": 0, "lost": 0},
            "targets": {"usable": 1, "shut": {}},
        },
    )
    router.close()


@pytest.mark.slow
def test_not_ready_names_the_targets_that_are_shut() -> None:
    router = Router(Registry([Failing(), EchoProvider()]))
    visitor = client(router)
    fail(router)
    answer = visitor.get("/readyz")
    assert answer.status_code == 200 and list(answer.json["targets"]["shut"]) == ["bad/m"]
    visitor.post("/providers/echo/circuit/open", headers=BEARER)
    answer = visitor.get("/readyz")
    assert answer.status_code == 503 and answer.json["ready"] is False
    assert (
        answer.json["targets"]["usable"] == 0
        and answer.json["targets"]["shut"]["echo/echo-v1"] == "circuit forced open"
    )
    assert answer.json["targets"]["shut"]["bad/m"].startswith("circuit open for ")


def test_not_ready_names_a_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    router = Router(Registry([EchoProvider()]), ledger=SQLiteLedger(place / "calls.db"))
    visitor = client(router)
    assert visitor.get("/readyz").status_code == 200
    router.close()
    (place / "calls.db").unlink()
    for each in place.iterdir():
        each.unlink()
    place.rmdir()
    answer = visitor.get("/readyz")
    assert (
        answer.status_code == 503
        and answer.json["ledger"] != "ok"
        and answer.json["targets"]["usable"] == 1
    )
    assert visitor.get("/healthz").status_code == 200


@pytest.mark.slow
def test_health_is_told_while_every_slot_is_taken(tmp_path: Path) -> None:
    gate = threading.Event()
    with Vendor(Scripted(after=gate)) as vendor:
        env = vendor.env | {"INFERMUX_LEDGER__PATH": str(tmp_path / "calls.db")}
        with (
            Service("-w", "1", "--threads", "4", env=env) as service,
            ThreadPoolExecutor(4) as pool,
        ):
            try:
                body = HELLO | {"model": "openai"}
                waiting = [pool.submit(service.ask, "/infer", body) for _ in range(3)]
                eventually(lambda: len(vendor.seen) == 3, "a full house")
                assert service.ask("/infer", body).status == 503
                assert [service.ask(path).status for path in OPEN] == [200] * 3
            finally:
                gate.set()
            assert [each.result().status for each in waiting] == [200] * 3


# -- circuits by hand ------------------------------------------------------------------------------


def states(answer: Any) -> dict[str, str]:
    return {f"{each['provider']}/{each['model']}": each["state"] for each in answer.json["targets"]}


def test_a_providers_circuits_are_opened_and_closed() -> None:
    router = Router(Registry([EchoProvider("one", ["a", "b"]), EchoProvider("two", ["a"])]))
    visitor = client(router)
    answer = visitor.post("/providers/one/circuit/open", headers=BEARER)
    assert answer.status_code == 200 and states(answer) == {"one/a": "open", "one/b": "open"}
    assert {name: answer.json[name] for name in ("provider", "action", "workers", "done")} == {
        "provider": "one",
        "action": "open",
        "workers": 1,
        "done": 1,
    }
    assert router.infer(InferRequest("a", HELLO["messages"])).provider == "two"  # type: ignore[arg-type]
    assert states(visitor.get("/status/targets", headers=BEARER)) == {
        "one/a": "open",
        "one/b": "open",
        "two/a": "closed",
    }
    assert states(visitor.post("/providers/one/circuit/close", headers=BEARER)) == {
        "one/a": "closed",
        "one/b": "closed",
    }
    assert router.infer(InferRequest("a", HELLO["messages"])).provider == "one"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "how",
    [{"query_string": {"model": "a"}}, {"json": {"model": "a"}}, {"json": {"model": "one/a"}}],
)
def test_one_model_is_opened_alone(how: Any) -> None:
    visitor = client(Router(Registry([EchoProvider("one", ["a", "b"])])))
    assert states(visitor.post("/providers/one/circuit/open", headers=BEARER, **how)) == {
        "one/a": "open"
    }
    assert states(visitor.get("/status/targets", headers=BEARER)) == {
        "one/a": "open",
        "one/b": "closed",
    }
    assert states(visitor.post("/providers/one/circuit/reset", headers=BEARER)) == {
        "one/a": "closed",
        "one/b": "closed",
    }


def test_an_open_provider_has_no_model_that_gets_by() -> None:
    class Any_(EchoProvider):
        def serves(self, model: str) -> bool:
            return model.startswith("x-")

    router = Router(Registry([Any_("one", ["a"])]))
    visitor = client(router)
    visitor.post("/providers/one/circuit/open", headers=BEARER)
    for model in ("a", "x-never-called"):
        with pytest.raises(infermux.InferMuxError, match=r"no target|no provider"):
            router.infer(InferRequest(model, HELLO["messages"]))  # type: ignore[arg-type]
    visitor.post("/providers/one/circuit/close", headers=BEARER)
    for model in ("a", "x-never-called", "x-another"):
        router.infer(InferRequest(model, HELLO["messages"]))  # type: ignore[arg-type]


@pytest.mark.slow
def test_reset_forgets_what_was_measured_and_close_does_not() -> None:
    router = Router(Registry([Failing()]))
    visitor = client(router)
    fail(router)
    found = visitor.post("/providers/bad/circuit/close", headers=BEARER).json["targets"][0]
    assert found["state"] == "closed" and found["per_minute"] > 0
    found = visitor.post("/providers/bad/circuit/reset", headers=BEARER).json["targets"][0]
    assert found["state"] == "closed" and found["per_minute"] == 0 and found["error_rate"] is None


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/providers/ecko/circuit/open", None, 404, "did you mean 'echo'"),
        ("/providers/echo/circuit/open?model=echo-v2", None, 404, "did you mean 'echo-v1'"),
        ("/providers/echo/circuit/open", b'{"model": 1}', 400, "NAME"),
        ("/providers/echo/circuit/open", b'{"modell": "echo-v1"}', 400, "NAME"),
        ("/providers/echo/circuit/open", b"{", 400, ""),
        ("/providers/echo/circuit/open?model=" + "x" * 201, None, 400, "NAME"),
        ("/providers/echo/circuit/shut", None, 404, None),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    path: str, body: bytes | None, status: int, words: str | None
) -> None:
    visitor = echo()
    answer = visitor.post(path, data=body, headers=BEARER)
    assert answer.status_code == status
    assert words is None or words in answer.json["error"]["message"]
    assert states(visitor.get("/status/targets", headers=BEARER)) == {"echo/echo-v1": "closed"}


@pytest.mark.slow
def test_an_order_reaches_every_worker_and_those_that_come_later(tmp_path: Path) -> None:
    env = {"INFERMUX_ADMIN_KEY": ADMIN, "INFERMUX_LEDGER__PATH": str(tmp_path / "calls.db")}
    with Service("-w", "2", "--threads", "8", env=env) as service:

        def calls() -> set[int]:
            return {service.ask("/infer", HELLO).status for _ in range(12)}

        def told() -> list[tuple[str, int]]:
            return [
                (each["state"], each["workers"])
                for _ in range(6)
                for each in service.ask("/status/targets", headers=BEARER).json["targets"]
            ]

        def pids() -> list[int]:
            return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", service.log)]

        eventually(lambda: len(pids()) == 2 and service.ask("/metrics").status == 200)
        assert calls() == {200}
        answer = service.ask("/providers/echo/circuit/open", method="POST", headers=BEARER)
        assert (answer.json["workers"], answer.json["done"], states_of(answer.data)) == (
            2,
            2,
            ["open"],
        )
        assert calls() == {503}
        os.kill(pids()[0], signal.SIGKILL)
        eventually(lambda: len(pids()) == 3, "a new worker")
        assert calls() == {503}
        eventually(lambda: set(told()) == {("open", 2)}, "the new worker's note")
        service.process.send_signal(signal.SIGHUP)
        eventually(
            lambda: len(pids()) == 5 and service.log.count("Worker exiting") >= 2, "new workers"
        )
        assert calls() == {503}
        answer = service.ask(
            "/providers/echo/circuit/close", b'{"model": "echo-v1"}', headers=BEARER
        )
        assert (answer.json["done"], states_of(answer.data)) == (2, ["closed"])
        assert calls() == {200}


@pytest.mark.slow
def test_every_worker_tells_of_the_streams_and_the_lost_spans_of_all(tmp_path: Path) -> None:
    go, turn = threading.Event(), Turn("Hello")
    first, *rest = openai_events(turn)
    held = stream(first, openai_chunk({"content": "Hel"}), go, *rest)
    with doors.Vendor("openai", held) as vendor, TokenTrace("status") as receiver:
        env = {
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": f"{vendor.url}/v1",
            "INFERMUX_LEDGER__PATH": str(tmp_path / "calls.db"),
            "INFERMUX_TRACE__TOKENTRACE": receiver.url,
        }
        with (
            Service("-w", "2", "--threads", "8", env=env) as service,
            ThreadPoolExecutor(3) as pool,
        ):

            def told(name: str) -> set[str]:
                found = [
                    re.search(
                        rf"^infermux_{name} (\S+)$",
                        service.ask("/metrics").data.decode(),
                        re.MULTILINE,
                    )
                    for _ in range(6)
                ]
                return {each[1] for each in found if each}

            body = HELLO | {"model": "openai", "stream": True}
            try:
                waiting = [pool.submit(service.ask, "/v1/chat/completions", body) for _ in range(3)]
                eventually(lambda: told("streams_open") == {"3"}, "three streams")
            finally:
                go.set()
            assert all(b"[DONE]" in each.result().data for each in waiting)
            eventually(lambda: told("streams_open") == {"0"}, "the end of them")
            eventually(
                lambda: (
                    told("spans_dropped_total") == {str(len(receiver.spans))}
                    and len(receiver.spans) >= 3
                ),
                "the spans",
            )


def states_of(data: bytes) -> list[str]:
    return [each["state"] for each in json.loads(data)["targets"]]
