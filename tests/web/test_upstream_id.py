"""The vendor's own id of a request is in the answer, in the attempt's row and in the log."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from doors import EVENTS, MODELS, WHOLE, Front, Turn, Vendor, reply, says, stream

from infermux.ledger import reports
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.call import Call
from infermux.telemetry.call_log import fields

KEY = "sk-test-vendor-key"
HEADERS = {"openai": "x-request-id", "anthropic": "request-id"}
ID = "req_011CSHoEeqs5C35K2UUqR7Fy"
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HI = {"max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}


class World:
    """A front before one vendor of each dialect, with a ledger; `calls` are those that ended."""

    def __init__(self, front: Front, vendors: dict[str, Vendor], ledger: SQLiteLedger) -> None:
        self.front, self.vendors, self.ledger = front, vendors, ledger
        self.calls: list[Call] = []
        front.router.observers.append(self.calls.append)

    def ask(self, door: str, vendor: str, *, streamed: bool = False) -> Any:
        body = HI | {"model": f"{vendor}/{MODELS[vendor]}", "stream": streamed}
        return self.front.ask(door, body)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with Vendor("openai") as one, Vendor("anthropic") as two, Vendor("gemini") as three:
        vendors = {"openai": one, "anthropic": two, "gemini": three}
        ledger = SQLiteLedger(str(tmp_path_factory.mktemp("ids") / "l.db"))
        made = [each.provider() for each in vendors.values()]
        with Front(*made, ledger=ledger) as front:
            yield World(front, vendors, ledger)


def with_id(dialect: str, name: str, value: str, *, streamed: bool) -> Any:
    """Answer like a vendor of that dialect, with one more header."""
    step = says(dialect, Turn("Hello."), streamed=streamed)

    def answer(vendor: Vendor, handler: Any) -> None:
        send = handler.send_response

        def head(*args: Any) -> None:
            send(*args)
            handler.send_header(name, value)

        handler.send_response = head
        step(vendor, handler)
        handler.send_response = send

    return answer


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("door", [CHAT, MESSAGES])
@pytest.mark.parametrize("vendor", HEADERS)
def test_the_id_is_in_the_answer_the_row_and_the_log(world, vendor, door, streamed):
    world.vendors[vendor].script(with_id(vendor, HEADERS[vendor], ID, streamed=streamed))
    answer = world.ask(door, vendor, streamed=streamed)
    assert answer.status == 200
    assert answer.headers["X-Upstream-Request-Id"] == ID != answer.headers["X-Request-Id"]
    [attempt] = world.ledger.call(answer.headers["X-Request-Id"]).attempts
    assert attempt.upstream_request_id == ID
    assert fields(world.calls[-1])["upstream_request_id"] == ID
    told = reports.call_dict(world.ledger.call(answer.headers["X-Request-Id"]))
    assert told["attempts"][0]["upstream_request_id"] == ID


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_google_has_the_id_in_its_body(world, streamed):
    step = stream(*EVENTS["gemini"](Turn("Hi"))) if streamed else reply(WHOLE["gemini"](Turn("Hi")))
    world.vendors["gemini"].script(step)
    answer = world.ask(CHAT, "gemini", streamed=streamed)
    assert answer.headers["X-Upstream-Request-Id"] == "response-1"


def test_each_attempt_has_its_own_and_the_answer_the_last(world):
    world.vendors["openai"].script(reply({"error": {"message": "no"}}, 500, x_request_id="req_one"))
    world.vendors["anthropic"].script(with_id("anthropic", "request-id", ID, streamed=False))
    world.front.router.registry.define("both", ["openai/m", "anthropic/n"])
    world.front.router.attempts = 2
    answer = world.front.ask(CHAT, HI | {"model": "both"})
    world.front.router.attempts = 1
    assert answer.headers["X-Upstream-Request-Id"] == ID
    rows = world.ledger.call(answer.headers["X-Request-Id"]).attempts
    assert [row.upstream_request_id for row in rows] == ["req_one", ID]


def test_an_error_names_it_unless_it_is_about_our_account(world):
    for status, shown in [(400, True), (500, True), (429, True), (401, False), (402, False)]:
        world.vendors["openai"].script(reply({"error": {"message": "no"}}, status, x_request_id=ID))
        world.front.router.registry.define("m", [f"openai/m-{status}"])
        answer = world.front.ask(CHAT, HI | {"model": f"openai/m-{status}"})
        assert answer.headers.get("X-Upstream-Request-Id") == (ID if shown else None), status
        [row] = world.ledger.call(answer.headers["X-Request-Id"]).attempts
        assert row.upstream_request_id == ID


@pytest.mark.parametrize(
    "value",
    [
        KEY,
        f"x{KEY}y",
        base64.b64encode(f"a{KEY}".encode()).decode(),
        base64.urlsafe_b64encode(f"ab{KEY}".encode()).decode(),
        KEY.encode().hex(),
        KEY.encode().hex().upper(),
        "a" * 129,
        "not an id",
        "<script>",
    ],
)
def test_a_key_or_a_text_is_no_id(world, value):
    world.vendors["openai"].script(with_id("openai", "x-request-id", value, streamed=False))
    answer = world.ask(CHAT, "openai")
    assert answer.status == 200 and "X-Upstream-Request-Id" not in answer.headers
