"""Tests of end users: who they are in each API, their limits, and what is kept of them."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from books import counted
from click.testing import CliRunner, Result

import infermux
from infermux.admission.keys import hashed
from infermux.admission.rate_limiter import RateLimiter
from infermux.cli.main import main
from infermux.ledger import Budget, CallRow, Record
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.end_user import Users, person_of
from infermux.pricing import Price
from infermux.pricing.tariff import Tariff
from infermux.protocol import InferRequest

ADMIN = {"Authorization": "Bearer imx-admin-key-1"}
CONFIG = """
[server]
admin_key = "env:ADMIN"
[providers.p]
type = "echo"
models = ["m", "s"]
[models]
cheap = "p/s"
[providers.p.prices]
m = { input = "10", output = "10", max_output = 4 }
s = { input = "0", output = "0", max_output = 4 }
[keys.app]
hash = "HASH"
LIMITS
[ledger]
path = "PATH"
USERS
"""
SAID = [{"role": "user", "content": "hi"}]
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
GEMINI = "/v1beta/models/m:generateContent"
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
SHORT = ("--tokens", "40", "--max-tokens", "4", "--json")
CODE = "user_" + "0af" * 20 + "_account_6b1c-11_session_"


class Place:
    """A service whose one key has limits for its end users."""

    def __init__(self, folder: Path, limits: str = "", users: str = "") -> None:
        self.folder = folder
        self.file = folder / "infermux.toml"
        text = CONFIG.replace("PATH", str(folder / "l.db")).replace("HASH", hashed("app"))
        self.file.write_text(text.replace("LIMITS", limits).replace("USERS", users))
        self.router = infermux.load(self.file)
        self.client = infermux.create_app(self.router).test_client()

    def ask(self, user: str = "", path: str = CHAT, *, header: str = "", **body: Any) -> Any:
        headers = {"Authorization": "Bearer app"} | ({"X-Infermux-User": header} if header else {})
        if path == GEMINI:
            sent: dict[str, Any] = CONTENTS
        elif path == RESPONSES:
            sent = {"model": "m", "input": "hi", "max_output_tokens": 16}
        else:
            sent = {"model": "m", "messages": SAID, "max_tokens": 4}
        if path == MESSAGES:
            sent |= {"metadata": {"user_id": user}} if user else {}
        elif user:
            sent = sent | {"user": user}
        return self.client.post(path, json=sent | body, headers=headers)

    @property
    def last(self) -> str:
        """The end user of the last call."""
        assert self.router.ledger is not None
        return self.router.ledger.rows(limit=1)[0].call.end_user

    def users(self) -> dict[str, int]:
        rows = self.client.get("/costs?by=user", headers=ADMIN).json["rows"]
        return {row["user"]: row["calls"] for row in rows}


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("ADMIN", "imx-admin-key-1")
    made: list[Place] = []

    def place(limits: str = "", users: str = "") -> Place:
        monkeypatch.setenv("INFERMUX_CONFIG", str(tmp_path / "infermux.toml"))
        made.append(Place(tmp_path, limits, users))
        return made[-1]

    yield place
    for each in made:
        each.router.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A service that keeps names as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADMIN", "imx-admin-key-1")
        folder = tmp_path_factory.mktemp("plain")
        patch.setenv("INFERMUX_CONFIG", str(folder / "infermux.toml"))
        made = Place(folder, users='users = "plain"')
        yield made
        made.router.close()


def command(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def digest(name: str, secret: str = "imx-admin-key-1") -> str:
    return Users("digest", secret).digest(name)


# -- who it is --


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"user": "ann"}),
        (CHAT, {"safety_identifier": "ann"}),
        (CHAT, {"metadata": {"user_id": "ann"}}),
        (CHAT, {"user": "ann", "stream": True}),
        (RESPONSES, {"user": "ann"}),
        (RESPONSES, {"safety_identifier": "ann"}),
        (MESSAGES, {"metadata": {"user_id": "ann"}}),
        (MESSAGES, {"metadata": {"user_id": "ann"}, "stream": True}),
        ("/v1/embeddings", {"user": "ann", "input": "hi"}),
        ("/infer", {"params": {"user": "ann"}, "max_tokens": None}),
        ("/infer", {"meta": {"user": "ann"}, "max_tokens": None}),
    ],
)
def test_each_api_names_its_end_user(plain, path, body):
    body = {"model": "m", "messages": SAID, "max_tokens": 16} | body
    if path == RESPONSES:
        body |= {"input": "hi", "max_output_tokens": 16}
    if path in (RESPONSES, "/v1/embeddings"):
        del body["messages"], body["max_tokens"]
    sent = {name: value for name, value in body.items() if value is not None}
    plain.ask("somebody-else")
    answer = plain.client.post(path, json=sent, headers={"Authorization": "Bearer app"})
    assert answer.get_data() and answer.status_code == (400 if "embed" in path else 200)
    assert plain.last == "ann"


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES, GEMINI, "/infer"])
def test_the_header_wins(plain, path):
    plain.ask("body", path, header=f"header of {path}")
    assert plain.last == f"header of {path}"


def test_a_header_is_utf_8(plain):
    plain.ask(header="jürgen".encode().decode("latin-1"))
    assert plain.last == "jürgen"
    plain.ask(header="jürgen")
    assert plain.last == "jürgen", "Latin-1 is no UTF-8"


@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
def test_tags_in_headers_are_text(at, coding):
    place = at("tags = true")
    headers = {"Authorization": "Bearer app"}
    headers["X-Infermux-Project"] = "köln".encode(coding).decode("latin-1")
    body = {"model": "m", "messages": SAID}
    assert place.client.post(CHAT, json=body, headers=headers).status_code == 200
    found = place.client.get("/costs?by=tag:project", headers=ADMIN).json["rows"]
    assert [row["tag:project"] for row in found] == ["köln"]


@pytest.mark.parametrize("user", [True, 1.5, None, ["a"], {"a": 1}, "", "   "])
def test_what_is_no_name_is_nobody(plain, user):
    plain.ask("somebody-else")
    if plain.ask(user=user).status_code == 200:
        assert plain.last == ""


def test_a_number_is_a_name(plain):
    for number in (7, 0, -7):
        assert plain.ask(user="", metadata={"user_id": number}).status_code == 200
        assert plain.last == str(number)


@pytest.mark.parametrize(
    ("given", "person"),
    [
        (CODE + "1111-2222", CODE.removesuffix("_session_")),
        (CODE + "3333", CODE.removesuffix("_session_")),
        ("user_ab_account__session_1", "user_ab_account_"),
        ('{"device_id":"d","account_uuid":"acc","session_id":"1"}', "acc"),
        ('{"device_id":"d","account_uuid":"","session_id":"2"}', "d"),
        ('{"session_id": "2"}', '{"session_id": "2"}'),
        ("{not json", "{not json"),
        ("[1]", "[1]"),
        ("  ann  ", "ann"),
        ("{" * 5000, "{" * 5000),
    ],
)
def test_a_session_is_not_a_person(given, person):
    assert person_of(given) == person


# -- what is kept --


def test_a_digest_is_kept_that_needs_the_secret_to_be_guessed(at, caplog):
    place = at()
    logging.getLogger("infermux").setLevel(logging.DEBUG)
    place.ask("ann@example.org")
    [user] = place.users()
    assert user == digest("ann@example.org") != digest("ann@example.org", "")
    assert user != digest("ann@example.org", "another")
    stored = (place.folder / "l.db").read_bytes() + (place.folder / "l.db-wal").read_bytes()
    assert b"ann@example.org" not in stored


def test_a_secret_of_its_own_outlives_a_change_of_the_admin_key(at, monkeypatch):
    monkeypatch.setenv("USERS_SECRET", "s" * 20)
    place = at(users='users_secret = "env:USERS_SECRET"')
    place.ask("ann")
    assert place.users() == {digest("ann", "s" * 20): 1}


@pytest.mark.parametrize(
    ("mode", "kept"), [("plain", "ann"), ("off", ""), ("digest", digest("ann"))]
)
def test_the_mode_decides_what_is_kept(at, mode, kept):
    place = at("user_rpm = 1", users=f'users = "{mode}"')
    assert place.ask("ann").status_code == 200
    assert place.ask("ann").status_code == 429  # limits do not depend on it
    assert place.users() == {kept: 2}


def test_a_long_or_hostile_name_is_cut(plain):
    for name in ("x" * 5000, "a\x1b[2J\ud800"):
        plain.ask(name)
        assert 0 < len(plain.last) <= 200
    out = command("costs", "--by", "user", "--ledger", str(plain.folder / "l.db")).output
    assert "xxxx" in out and "\x1b" not in out


def test_costs_and_logs_know_end_users(at):
    place = at()
    place.ask("ann"), place.ask("ann"), place.ask("bob"), place.ask()
    ann = digest("ann")
    assert place.users() == {ann: 2, digest("bob"): 1, "": 1}
    found = place.client.get("/costs?by=user,caller&by=day", headers=ADMIN)
    assert {row["user"] for row in found.json["rows"]} == {ann, digest("bob"), ""}
    assert f"{ann}" in command("costs", "--by", "user").output
    for name in ("ann", ann):
        lines = command("logs", "--user", name, "--json").output.splitlines()
        assert [json.loads(line)["user"] for line in lines] == [ann, ann]
    assert command("logs", "--user", "nobody", "--json").output == ""


# -- limits --


def test_each_end_user_has_its_own_rate(at):
    place = at("rpm = 5\nuser_rpm = 2")
    assert [place.ask("ann").status_code for _ in range(3)] == [200, 200, 429]
    refused = place.ask("ann")
    assert "this end user is over its rate limit" in refused.json["error"]["message"]
    assert int(refused.headers["Retry-After"]) > 50
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert [place.ask("bob").status_code for _ in range(2)] == [200, 200]
    # within the key's own: refused calls of an end user use nothing of it
    assert [place.ask("eve").status_code for _ in range(2)] == [200, 429]
    assert "this key" in place.ask("zoe").json["error"]["message"]


def test_who_is_refused_by_the_key_has_used_nothing_of_its_own(at):
    place = at("rpm = 1\nuser_rpm = 2\nuser_tpm = 1000")
    assert place.ask("ann").status_code == 200
    for _ in range(5):
        assert "this key" in place.ask("bob").json["error"]["message"]
    assert counted(place.router.admission._user_rates, "app\x1e" + digest("bob")) == (0, 0)


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_sessions_of_an_agent_share_the_limit_of_their_person(at, path):
    place = at("user_rpm = 2")
    found = [place.ask(f"{CODE}{number}", path).status_code for number in range(3)]
    assert found == [200, 200, 429]


def test_tokens_count_for_the_end_user(at):
    place = at("user_tpm = 20")
    assert place.ask("ann").status_code == 200
    text = [{"role": "user", "content": "word " * 200}]
    too_large = place.ask("ann", messages=text)
    assert too_large.status_code == 413
    assert "an end user of the key may use" in too_large.json["error"]["message"]
    found = [place.ask("ann").status_code for _ in range(20)]
    assert found[-1] == 429 and place.ask("bob").status_code == 200


def test_a_call_without_an_end_user_has_the_key_s_limits_alone(at):
    place = at("user_rpm = 1\nuser_budget = { usd = '0.000001' }")
    assert [place.ask().status_code for _ in range(3)] == [200] * 3


def test_each_end_user_has_its_own_budget(at):
    place = at("user_budget = { usd = '0.001', per = 'day' }")
    found = [place.ask("ann") for _ in range(60)]
    assert found[0].status_code == 200 and found[-1].status_code == 402
    message = found[-1].json["error"]["message"]
    assert "the budget of this end user, 0.001 USD per day, has" in message
    assert found[-1].headers["X-Infermux-Budget-Limit"] == "0.001"
    assert place.ask("bob").status_code == place.ask().status_code == 200
    explained = command("explain", "p/m", "--caller", "app", "--user", "ann", *SHORT)
    assert json.loads(explained.output)["refused"] == "budget_exceeded"
    assert json.loads(explained.output)["user"] == digest("ann")
    assert command("explain", "p/m", "--caller", "app", "--user", "new", *SHORT).exit_code == 0


def test_an_end_user_s_budget_is_within_the_key_s(at):
    place = at("budget = { usd = '0.0003', per = 'day' }\nuser_budget = { usd = '0.0002' }")
    for name in ("ann", "bob", "eve"):
        last = [place.ask(name) for _ in range(12)][-1]
        assert last.status_code == 402
    assert "end user" not in last.json["error"]["message"]
    [state] = place.client.get("/budgets", headers=ADMIN).json["budgets"]
    assert 0.0002 < float(state["spent_usd"]) <= 0.0003


def test_a_spent_budget_may_lead_to_a_cheaper_name(at):
    place = at("user_budget = { usd = '0.00005', then = 'cheap' }")
    found = [place.ask("ann") for _ in range(6)]
    assert {each.status_code for each in found} == {200}
    assert found[-1].headers["X-Infermux-Model-Override"] == "cheap"


def test_a_budget_is_hard_for_calls_at_the_same_time(at):
    from concurrent.futures import ThreadPoolExecutor

    place = at("user_budget = { usd = '0.0002', per = 'total' }")
    assert place.ask("ann").status_code == 200
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(lambda _: Place.ask(place, "ann").status_code, range(40))
    assert {200, 402} <= set(asked) <= {200, 402, 503}  # 503: the machine is busy
    budget = Budget("app", usd="0.0002", per="total", user=digest("ann"))
    spent = place.router.ledger.spent(budget, time.time())
    assert 0 < spent.spent <= budget.limit_pico and spent.held == 0


def test_the_library_names_end_users_too(tmp_path):
    with closing(SQLiteLedger(tmp_path / "l.db")) as ledger:
        router = infermux.Router([infermux.EchoProvider()], ledger=ledger, users=Users("plain"))
        budget = Budget(usd="1.00")
        caller = infermux.Caller("app", user_budget=budget)
        router.infer("hi", caller=caller, user="ann")
        with router.stream("hi", caller=caller, user="bob") as stream:
            list(stream)
        assert {row.call.end_user for row in ledger.rows()} == {"ann", "bob"}


@pytest.mark.parametrize(
    ("limits", "users", "said"),
    [
        ("user_rpm = 0", "", "user_rpm must be a whole number above 0"),
        ("user_rmp = 5", "", "did you mean 'user_rpm'"),
        ("user_budget = 5", "", "user_budget must be a table"),
        ("user_budget = { usd = '5', then = 'chaep' }", "", "user_budget.then"),
        ("", 'users = "hashed"', "'digest' or 'plain' or 'off'"),
        ("", 'users_secret = "open text"', "must be a reference"),
    ],
)
def test_wrong_configuration_stops_the_start(at, limits, users, said):
    with pytest.raises(infermux.errors.ConfigError) as caught:
        at(limits, users)
    assert said in "\n".join(caught.value.errors)


# -- bounds --


def test_millions_of_names_do_not_push_out_a_key_s_count(tmp_path):
    """Those of end users are in a table of their own, which evicts whoever is idle for longest."""
    keys = RateLimiter(tmp_path / "k.rates")
    users = RateLimiter(tmp_path / "u.rates", records=64)
    assert keys.take("app", rpm=2, tpm=None) is None
    for number in range(2000):
        assert users.take(f"app\x1e{number}", rpm=1, tpm=None) is None
    assert counted(keys, "app") == (1, 0)
    assert (tmp_path / "u.rates").stat().st_size < 100_000
    keys.close(), users.close()


def test_budgets_of_end_users_are_bounded(tmp_path):
    path, now = tmp_path / "l.db", time.time()
    limit = Budget("app", usd="1.00", per="day", user="")
    with closing(SQLiteLedger(path)) as ledger:
        for number in range(50):
            from dataclasses import replace

            budget = replace(limit, user=f"u{number}")
            hold = ledger.reserve(budget, 10, call_id=f"c{number:05}", at=now)
            ledger.settle(_settled(f"c{number:05}", now, number), hold)
        old = replace(limit, user="old")
        hold = ledger.reserve(old, 10, call_id="before", at=now - 5 * 86_400)
        ledger.settle(_settled("before", now - 5 * 86_400, 7), hold)
        open_hold = ledger.reserve(replace(limit, user="busy"), 10, call_id="busy00", at=now)

        ledger.forget_users(now, most=10)
        with closing(sqlite3.connect(path)) as sql:
            rows = sql.execute("SELECT caller FROM budgets WHERE call_id = ''").fetchall()
        kept = {row[0].rpartition("\x1e")[2] for row in rows}
        assert kept == {f"u{number}" for number in range(40, 50)} | {"busy"}
        ledger.settle(_settled("busy00", now, 3), open_hold)


def _settled(id: str, at: float, cost: int) -> Record:
    names = ("t", "app", "{}", "openai", "m", "m", "m", "p", "priority", "ok", "")
    return Record(
        CallRow(int(at * 1e9), id, *names, *[None] * 6, cost, "served", 0, 1, None, 1, 0), ()
    )


def test_an_application_s_own_router_limits_them_without_more(tmp_path):
    with closing(SQLiteLedger(tmp_path / "l.db")) as ledger:
        prices = {"echo": {"echo-v1": Price("echo", "echo-v1", Tariff(Decimal(10), Decimal(10)))}}
        router = infermux.Router([infermux.EchoProvider()], ledger=ledger, prices=prices)
        caller = infermux.Caller("app", user_budget=Budget(usd="0.000001", per="total"))
        with pytest.raises(infermux.errors.BudgetExceeded, match="of this end user"):
            router.infer("hi", caller=caller, user="ann")
        router.infer("hi", caller=caller)


def test_who_is_not_asked_for_is_not_looked_for():
    assert Users("off").of(InferRequest("m", [], params={"user": "ann"})).shown == ""
    assert Users().of(InferRequest("m", [])) is None
