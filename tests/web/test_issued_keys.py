"""Tests of API keys that are made at run time: over HTTP, by the commands, and in other workers."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import HELLO, Service, eventually

import infermux
from infermux.admission import keys as keyrings
from infermux.admission.keys import Issued, LiveKeyring, hashed
from infermux.cli.main import main
from infermux.errors import Unavailable
from infermux.types import Caller

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
[ledger]
path = "PATH"
"""
OWN = f'[keys.web]\nhash = "{hashed("web")}"\nrpm = 3\n'
RATE = "x-ratelimit-{}-{}"
ANTHROPIC = "anthropic-ratelimit-{}-{}"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADMIN", "imx-admin-key-1")
    made = tmp_path / "infermux.toml"
    made.write_text(CONFIG.replace("PATH", str(tmp_path / "l.db")) + OWN)
    monkeypatch.setenv("INFERMUX_CONFIG", str(made))
    return made


@pytest.fixture
def client(file: Path) -> Iterator[Any]:
    with closing(infermux.load(file)) as router:
        yield infermux.create_app(router).test_client()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service for requests that change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADMIN", "imx-admin-key-1")
        folder = tmp_path_factory.mktemp("keys")
        made = folder / "infermux.toml"
        made.write_text(CONFIG.replace("PATH", str(folder / "l.db")) + OWN)
        patch.setenv("INFERMUX_CONFIG", str(made))
        with closing(infermux.load(made)) as router:
            client = infermux.create_app(router).test_client()
            make(client, name="rotated")
            yield client


@pytest.fixture
def open_client(file: Path) -> Iterator[Any]:
    """A service whose configuration has no keys."""
    file.write_text(file.read_text().replace(OWN, ""))
    with closing(infermux.load(file)) as router:
        yield infermux.create_app(router).test_client()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for changes at each call."""
    for name in ("REFRESH_SECONDS", "STALE_SECONDS", "MISS_SECONDS"):
        monkeypatch.setattr(keyrings, name, -1.0)


def make(client: Any, **settings: Any) -> Any:
    answer = client.post("/keys", json={"name": "app"} | settings, headers=ADMIN)
    assert answer.status_code == 201, answer.json
    return answer.json


def ask(client: Any, key: str, model: str = "m", path: str = "/v1/chat/completions") -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return client.post(path, json=body, headers={"Authorization": f"Bearer {key}"} if key else {})


def command(*words: str) -> Result:
    return CliRunner().invoke(main, words)


# -- over HTTP --


def test_a_key_that_is_made_opens_what_its_settings_say(client):
    made = make(
        client,
        models=["cheap"],
        rpm=5,
        budget={"usd": "1.00", "per": "day"},
        tags={"project": "search"},
        expires="90d",
    )
    assert re.fullmatch(r"imx-[\w-]{43}", made["key"])
    assert (made["name"], made["state"], made["source"]) == ("app", "active", "ledger")
    end = datetime.fromisoformat(made["expires"])
    assert timedelta(89) < end - datetime.now(UTC) < timedelta(91)
    assert ask(client, made["key"], "cheap").status_code == 200
    assert ask(client, made["key"], "p/m").status_code == 403
    [row] = [
        each
        for each in client.get("/costs?by=caller,tag", headers=ADMIN).json["rows"]
        if each["tag"]
    ]
    assert (row["caller"], row["tag"], row["calls"]) == ("app", "project=search", 2)
    [budget] = client.get("/budgets", headers=ADMIN).json["budgets"]
    assert (budget["name"], budget["limit_usd"], budget["per"]) == ("app", "1", "day")


def test_a_key_of_the_file_stays_and_its_name_is_taken(client):
    answer = client.post("/keys", json={"name": "web"}, headers=ADMIN)
    assert answer.status_code == 409 and "configuration" in answer.json["error"]["message"]
    for method, path in (("delete", "/keys/web"), ("post", "/keys/web/rotate")):
        assert getattr(client, method)(path, headers=ADMIN).status_code == 409
    assert ask(client, "web").status_code == 200
    [shown] = client.get("/keys", headers=ADMIN).json["keys"]
    assert (shown["name"], shown["source"], shown["rpm"]) == ("web", "configuration", 3)


def test_a_revoked_key_is_refused_and_its_budget_stays_reportable(client, file):
    key = make(client, budget={"usd": "1.00", "per": "total"})["key"]
    assert ask(client, key).status_code == 200
    answer = client.delete("/keys/app", headers=ADMIN)
    assert (answer.status_code, answer.json["state"]) == (200, "revoked")
    refused = ask(client, key)
    assert refused.status_code == 401 and "was revoked" in refused.json["error"]["message"]
    [budget] = client.get("/budgets", headers=ADMIN).json["budgets"]
    assert budget["name"] == "app" and budget["spent_pico"] > 0
    assert '_usd{key="app"' not in client.get("/metrics", headers=ADMIN).text
    assert client.get("/status/overview", headers=ADMIN).json["budgets"] == []
    told = CliRunner().invoke(main, ["budgets", "--config", str(file)])
    assert "app (key ended)" in told.output
    again = client.delete("/keys/app", headers=ADMIN)
    assert again.status_code == 409 and "revoked" in again.json["error"]["message"]


def test_a_name_may_be_used_again_and_goes_on_with_what_it_has_spent(client):
    key = make(client, budget={"usd": "1.00", "per": "total"})["key"]
    ask(client, key)
    client.delete("/keys/app", headers=ADMIN)
    spent = client.get("/budgets", headers=ADMIN).json["budgets"][0]["spent_pico"]
    new = make(client, budget={"usd": "2.00", "per": "total"})["key"]
    assert ask(client, key).status_code == 401
    assert ask(client, new).status_code == 200
    assert client.get("/budgets", headers=ADMIN).json["budgets"][0]["spent_pico"] > spent


def test_a_rotation_admits_both_secrets_for_a_while(client, file):
    old = make(client)["key"]
    answer = client.post("/keys/app/rotate", json={"overlap": "1h"}, headers=ADMIN)
    new = answer.json["key"]
    until = datetime.fromisoformat(answer.json["old_secret_until"])
    assert timedelta(minutes=59) < until - datetime.now(UTC) < timedelta(minutes=61)
    assert [ask(client, key).status_code for key in (old, new)] == [200, 200]
    third = client.post("/keys/app/rotate", json={"overlap": "0"}, headers=ADMIN).json["key"]
    assert [ask(client, key).status_code for key in (old, new, third)] == [401, 401, 200]
    assert "was replaced" in ask(client, old).json["error"]["message"]


def test_an_overlap_that_has_ended_ends_in_a_running_service(client, file):
    old = make(client)["key"]
    client.post("/keys/app/rotate", json={"overlap": "1s"}, headers=ADMIN)
    assert ask(client, old).status_code == 200
    eventually(lambda: ask(client, old).status_code == 401, "the end of the overlap")


def test_an_expired_key_says_so(client):
    key = make(client, expires="1s")["key"]
    assert ask(client, key).status_code == 200
    answer = eventually(lambda: (a := ask(client, key)).status_code == 401 and a, "the end")
    assert "has expired, at 20" in answer.json["error"]["message"]
    [_, shown] = client.get("/keys", headers=ADMIN).json["keys"]
    assert shown["state"] == "expired"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "name", "name must be letters"),
        ({"name": "a b"}, "name", "at most 64"),
        ({"name": "a" * 65}, "name", "at most 64"),
        ({"name": 5}, "name", "letters"),
        ({"name": "a", "rmp": 5}, "rmp", "did you mean 'rpm'"),
        ({"name": "a", "hash": "0" * 64}, "hash", "a key has no 'hash'"),
        ({"name": "a", "rpm": 0}, "rpm", "rpm must be a whole number above 0"),
        ({"name": "a", "rpm": 10**30}, "rpm", "rpm must be a whole number below 1,000,000,000,000"),
        ({"name": "a", "models": []}, "models", "leave it out to admit all"),
        ({"name": "a", "rpm": "5"}, "rpm", "whole number"),
        ({"name": "a", "models": "m"}, "models", "models must be a list"),
        ({"name": "a", "models": ["mm"]}, "models", "did you mean 'm'"),
        ({"name": "a", "budget": 5}, "budget", "budget must be a table"),
        ({"name": "a", "budget": {"usd": 5.0}}, "budget", "budget.usd"),
        ({"name": "a", "budget": {"usd": "5", "per": "week"}}, "budget", "'day' or 'month'"),
        ({"name": "a", "budget": {"usd": "5", "then": "nope"}}, "budget", "nope"),
        ({"name": "a", "budget": {}}, "budget", "needs 'usd'"),
        ({"name": "a", "tags": "x"}, "tags", "true or false"),
        ({"name": "a", "tags": {"x": 5}}, "tags", "text in quotes"),
        ({"name": "a", "tags": {f"t{n}": "x" for n in range(17)}}, "tags", "1 to 16 tags"),
        ({"name": "a", "expires": "soon"}, "expires", "2027-01-31"),
        ({"name": "a", "expires": 5}, "expires", "2027-01-31"),
        ({"name": "a", "expires": "2020-01-01"}, "expires", "in the future"),
        ({"name": "a", "expires": "0d"}, "expires", "24h"),
        ({"name": "a", "expires": "9999-01-01"}, "expires", "in the future"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_it(unchanged, body, param, said):
    answer = unchanged.post("/keys", json=body, headers=ADMIN)
    assert answer.status_code == 400, answer.json
    assert said in answer.json["error"]["message"]
    assert answer.json["error"]["message"].count(param) or param == "name"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("post", "/keys", "[]", 400),
        ("post", "/keys", "{", 400),
        ("post", "/keys", "", 400),
        ("delete", "/keys", "", 400),
        ("delete", "/keys?nam=x", "", 400),
        ("delete", "/keys/nobody", "", 404),
        ("delete", "/keys?name=nobody", "", 404),
        ("get", "/keys/nobody", "", 404),
        ("post", "/keys/nobody/rotate", "", 404),
        ("post", "/keys/web/rotate", '{"overlap": 5}', 409),
        ("put", "/keys", "{}", 405),
    ],
)
def test_wrong_requests_are_never_a_500(unchanged, method, path, body, status):
    answer = getattr(unchanged, method)(path, data=body, headers=ADMIN)
    assert answer.status_code == status, answer.data


@pytest.mark.parametrize("overlap", ["soon", -1, "-1h", 5, True, [], "1000000w"])
def test_a_wrong_overlap_is_a_400(unchanged, overlap):
    answer = unchanged.post("/keys/rotated/rotate", json={"overlap": overlap}, headers=ADMIN)
    assert answer.status_code == 400 and "overlap" in answer.json["error"]["message"]


def test_the_endpoints_are_for_operators_and_safe_from_other_sites(unchanged):
    client = unchanged
    web = {"Authorization": "Bearer web"}
    for method, path in (
        ("get", "/keys"),
        ("post", "/keys"),
        ("get", "/keys/web"),
        ("delete", "/keys/web"),
        ("post", "/keys/web/rotate"),
    ):
        ask_it = getattr(client, method)
        assert ask_it(path).status_code == 401
        assert ask_it(path, headers=web).status_code == 403
    # a browser that is logged in to /status sends this by itself
    basic = {"Authorization": "Basic eDppbXgtYWRtaW4ta2V5LTE="}
    assert client.get("/keys", headers=basic).status_code == 200
    assert client.post("/keys", json={"name": "app"}, headers=basic).status_code == 401
    assert client.delete("/keys/app", headers=basic).status_code == 401
    assert client.get("/keys", headers=ADMIN).headers["Cache-Control"] == "no-store"


def test_a_secret_is_shown_once_and_stored_nowhere(client, file, caplog):
    caplog.set_level(logging.DEBUG)
    key = make(client)["key"]
    rotated = client.post("/keys/app/rotate", headers=ADMIN).json["key"]
    ask(client, key), ask(client, rotated), client.delete("/keys/app", headers=ADMIN)
    ask(client, rotated)
    text = json.dumps(client.get("/keys", headers=ADMIN).json) + caplog.text
    for path in file.parent.iterdir():
        text += path.read_bytes().decode("latin-1")
    for secret in (key, rotated):
        assert secret not in text and secret[4:] not in text
    assert hashed(key) not in json.dumps(client.get("/keys", headers=ADMIN).json)


# -- services without keys --


def test_the_first_key_closes_a_service_that_was_open(open_client):
    assert ask(open_client, "").status_code == ask(open_client, "any").status_code == 200
    key = make(open_client)["key"]
    assert [ask(open_client, each).status_code for each in ("", "any", key)] == [401, 401, 200]
    open_client.delete("/keys/app", headers=ADMIN)
    assert [ask(open_client, each).status_code for each in ("", "any", key)] == [401, 401, 401]


@pytest.mark.slow
def test_a_service_whose_last_key_was_revoked_stays_closed_after_a_restart(open_client, file):
    make(open_client)
    open_client.delete("/keys/app", headers=ADMIN)
    with closing(infermux.load(file)) as router:
        assert ask(infermux.create_app(router).test_client(), "").status_code == 401


def test_a_service_with_keys_stays_closed_after_a_start_that_cannot_read_them(open_client, file):
    key = make(open_client)["key"]
    ledger = file.parent / "l.db"
    kept = ledger.rename(file.parent / "kept.db")
    ledger.symlink_to(ledger)  # it cannot be opened
    with closing(infermux.load(file)) as router:
        other = infermux.create_app(router).test_client()
        assert [ask(other, each).status_code for each in ("", key)] == [401, 503]
    kept.replace(ledger)
    with closing(infermux.load(file)) as router:
        other = infermux.create_app(router).test_client()
        assert [ask(other, each).status_code for each in ("", key)] == [401, 200]


@pytest.mark.parametrize("lost", [Path.unlink, lambda ledger: ledger.write_bytes(b"no database")])
def test_a_service_with_keys_stays_closed_if_its_ledger_is_lost(open_client, file, lost, caplog):
    key = make(open_client)["key"]
    lost(file.parent / "l.db")
    for suffix in ("-wal", "-shm"):
        (file.parent / f"l.db{suffix}").unlink(missing_ok=True)
    with closing(infermux.load(file)) as router:
        other = infermux.create_app(router).test_client()
        assert [ask(other, each).status_code for each in ("", key)] == [401, 401]
        assert "l.keys says that API keys were created" in caplog.text
        assert ask(other, make(other, name="new")["key"]).status_code == 200
    [mark] = file.parent.glob("*.keys")
    (file.parent / "l.db").unlink()
    mark.unlink()
    with closing(infermux.load(file)) as router:
        assert ask(infermux.create_app(router).test_client(), "").status_code == 200


# -- other processes --


def test_another_process_learns_of_each_change(client, file, at_once):
    with closing(infermux.load(file)) as router:
        other = infermux.create_app(router).test_client()
        assert ask(other, "web").status_code == 200
        key = make(client)["key"]
        assert ask(other, key).status_code == 200
        client.delete("/keys/app", headers=ADMIN)
        assert ask(other, key).status_code == 401


def test_all_workers_of_a_service_know_its_changes_at_once(client, file):
    """Without a wait for the next look, unlike with changes by another host."""
    with closing(infermux.load(file)) as router:
        other = infermux.create_app(router).test_client()
        assert ask(other, "imx-unknown").status_code == 401  # it has just looked
        key = make(client)["key"]
        assert ask(other, key).status_code == 200
        client.delete("/keys/app", headers=ADMIN)
        assert ask(other, key).status_code == 401


def test_nobody_is_admitted_by_old_keys_while_another_thread_reads_the_new_ones():
    reading, go = threading.Event(), threading.Event()

    def load(version: int) -> tuple[int, list[Issued]]:
        if version < 0:
            return 1, [Issued(hashed("old"), Caller("app"))]
        reading.set()
        assert go.wait(20)
        return 2, [Issued(hashed("new"), Caller("app"))]

    ring, elsewhere = LiveKeyring([], load), LiveKeyring([], lambda _: None)
    assert ring.identify("old") == Caller("app")
    elsewhere.changed()
    with ThreadPoolExecutor() as pool:
        new = pool.submit(ring.identify, "new")
        assert reading.wait(20)
        old = pool.submit(ring.identify, "old")
        with pytest.raises(TimeoutError):
            old.result(0.1)
        go.set()
        assert (new.result(20), old.result(20)) == (Caller("app"), None)


def test_unknown_keys_do_not_hammer_the_database():
    """However many there are: two looks a second, whose times do not depend on them."""
    now, looks = [0.0], list[int]()

    def load(version: int) -> tuple[int, list[Issued]] | None:
        looks.append(version)
        return (1, [Issued(hashed("good"), Caller("app"))]) if version < 0 else None

    ring = LiveKeyring([], load, monotonic=lambda: now[0])
    for number in range(10_000):
        now[0] += 0.001
        assert ring.identify(f"imx-{number}") is None
    assert len(looks) <= 21
    assert ring.identify("good") == Caller("app")


def test_a_database_that_is_away_holds_up_nobody_twice():
    """A look takes longer than the time between two of them; keys of the file need none."""
    now, looks = [0.0], list[int]()

    def load(version: int) -> None:
        looks.append(version)
        now[0] += 0.6
        raise Unavailable("it is away")

    ring = LiveKeyring([(hashed("own"), Caller("own"))], load, monotonic=lambda: now[0])
    assert ring.identify("own") == Caller("own") and not looks
    for _ in range(8):
        with pytest.raises(Unavailable):
            ring.identify("imx-other")
    assert len(looks) == 1


def put_another_program_s_file(file: Path) -> None:
    """Make the ledger unreadable without damaging it."""
    other = file.parent / "other.db"
    with closing(sqlite3.connect(other)) as sql:
        sql.execute("CREATE TABLE t (a)")
    other.replace(file.parent / "l.db")
    for suffix in ("-wal", "-shm"):
        (file.parent / f"l.db{suffix}").unlink(missing_ok=True)


def test_known_keys_stay_in_force_while_the_database_is_away(client, file, at_once):
    key = make(client)["key"]
    assert ask(client, key).status_code == 200
    put_another_program_s_file(file)
    assert ask(client, key).status_code == 200
    assert ask(client, "imx-other").status_code == 401
    assert client.get("/keys", headers=ADMIN).status_code == 503
    assert client.post("/keys", json={"name": "b"}, headers=ADMIN).status_code == 503


def test_keys_that_were_never_read_are_a_503_and_not_a_401(file):
    put_another_program_s_file(file)
    with closing(infermux.load(file)) as router:
        client = infermux.create_app(router).test_client()
        assert ask(client, "web").status_code == 200
        answer = ask(client, "imx-other")
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        assert ask(client, "").status_code == 401


def test_keys_survive_a_damaged_file(client, file):
    """The new file has the keys that could be read, else every caller would be locked out."""
    key = make(client, budget={"usd": "1.00"})["key"]
    client.application.extensions["infermux"].close()
    path = file.parent / "l.db"
    with closing(sqlite3.connect(path)) as sql:
        [(root,)] = sql.execute("SELECT rootpage FROM sqlite_master WHERE name = 'calls'")
        [(size,)] = sql.execute("PRAGMA page_size")
    data = bytearray(path.read_bytes())
    data[(root - 1) * size : root * size] = b"\xff" * size
    path.write_bytes(data)
    with closing(infermux.load(file)) as router:
        other = infermux.create_app(router).test_client()
        eventually(lambda: ask(other, "web").status_code == 200)
        assert eventually(lambda: ask(other, key).status_code == 200, "the key")
        assert list(file.parent.glob("*corrupt*"))


@pytest.mark.slow
def test_all_workers_know_a_change_within_five_seconds(file):
    file.write_text(file.read_text().replace(OWN, ""))
    env = {
        "ADMIN": "imx-admin-key-1",
        "INFERMUX_CONFIG": str(file),
        "INFERMUX_SERVER__WORKERS": "3",
    }
    with Service(env=env) as service:
        assert len(eventually(lambda: len(found := service.workers) == 3 and found)) == 3
        made = service.ask("/keys", {"name": "app"}, headers=ADMIN)
        assert made.status == 201
        login = {"Authorization": f"Bearer {made.json['key']}"}

        def statuses(**headers: str) -> set[int]:
            body = HELLO | {"model": "m"}
            asked = [service.ask("/v1/chat/completions", body, headers=headers) for _ in range(24)]
            return {each.status for each in asked}

        eventually(lambda: statuses() == {401}, "all workers are closed", 5.0)
        eventually(lambda: statuses(**login) == {200}, "all workers admit it", 5.0)
        service.ask("/keys/app", method="DELETE", headers=ADMIN)
        eventually(lambda: statuses(**login) == {401}, "all workers refuse it", 5.0)


# -- the commands --


def test_the_commands_do_the_same(client, file, at_once):
    made = command("keys", "create", "app", "--model", "cheap", "--rpm", "9", "--budget", "2.50",
                   "--per", "day", "--tag", "project=x", "--expires", "12h")  # fmt: skip
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert ask(client, key, "cheap").status_code == 200
    listed = command("keys", "list").output
    assert re.search(r"app +active +cheap +9 +- +2\.50 per day +20\S+ +20\S+ +ledger", listed)
    assert re.search(r"web +active +all +3 .* configuration", listed)
    rotated = command("keys", "rotate", "app", "--overlap", "0")
    assert rotated.exit_code == 0, rotated.output
    new = rotated.stdout.strip()
    assert [ask(client, each, "cheap").status_code for each in (key, new)] == [401, 200]
    assert command("keys", "revoke", "app").output == "app is revoked\n"
    assert ask(client, new, "cheap").status_code == 401
    assert "app" not in command("keys", "list").output
    assert "revoked" in command("keys", "list", "--all").output
    shown = json.loads(command("keys", "list", "--json").output)
    assert [each["name"] for each in shown["keys"]] == ["web", "app"]
    as_json = json.loads(command("keys", "create", "app2", "--json").stdout)
    assert ask(client, as_json["key"]).status_code == 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "a b"), "letters, digits"),
        (("create", "web"), "configuration"),
        (("create", "a", "--model", "mm"), "did you mean 'm'"),
        (("create", "a", "--budget", "lots"), "dollars"),
        (("create", "a", "--per", "day"), "need --budget"),
        (("create", "a", "--tag", "x"), "NAME=VALUE"),
        (("create", "a", "--expires", "soon"), "2027-01-31"),
        (("rotate", "nobody"), "there is no key 'nobody'"),
        (("revoke", "wbe"), "there is no key 'wbe'"),
        (("rotate", "web"), "keys new web"),
    ],
)
def test_a_command_says_in_one_line_what_is_wrong(file, words, said):
    result = command("keys", *words)
    assert result.exit_code != 0
    assert said in result.output and "Traceback" not in result.output


def test_the_first_key_by_command_says_that_it_closes_the_service(file):
    told = "callers without a key are refused from now on"
    assert told not in command("keys", "create", "b").stderr
    file.write_text(file.read_text().replace(OWN, "[keys]"))
    assert told not in command("keys", "create", "c").stderr  # the table is there
    file.write_text(file.read_text().replace("[keys]", ""))
    assert told in command("keys", "create", "a").stderr


# -- headers --


def test_limits_are_told_as_openai_spells_them(client):
    key = make(client, rpm=5, tpm=1000, budget={"usd": "1.00", "per": "day"})["key"]
    told = [ask(client, key).headers for _ in range(2)]
    assert [each[RATE.format("limit", "requests")] for each in told] == ["5", "5"]
    assert [each[RATE.format("remaining", "requests")] for each in told] == ["4", "3"]
    assert told[0][RATE.format("limit", "tokens")] == "1000"
    left = [int(each[RATE.format("remaining", "tokens")]) for each in told]
    assert 1000 > left[0] > left[1] > 900
    assert told[0][RATE.format("reset", "requests")] in ("1m0s", "1m1s")
    assert told[0]["X-Infermux-Budget-Limit"] == "1"
    budget = [float(each["X-Infermux-Budget-Remaining"]) for each in told]
    assert 1 > budget[0] > budget[1] > 0.9
    assert datetime.fromisoformat(told[0]["X-Infermux-Budget-Reset"]) > datetime.now(UTC)
    assert not [name for name, _ in told[0] if name.lower().startswith("anthropic-")]


def test_limits_are_told_as_anthropic_spells_them(client):
    key = make(client, rpm=5, tpm=1000)["key"]
    told = ask(client, key, path="/v1/messages").headers
    assert told[ANTHROPIC.format("requests", "limit")] == "5"
    assert told[ANTHROPIC.format("requests", "remaining")] == "4"
    assert told[ANTHROPIC.format("tokens", "limit")] == "1000"
    assert 900 < int(told[ANTHROPIC.format("tokens", "remaining")]) < 1000
    reset = datetime.fromisoformat(told[ANTHROPIC.format("requests", "reset")])
    assert timedelta(seconds=50) < reset - datetime.now(UTC) < timedelta(seconds=70)
    assert not [name for name, _ in told if name.lower().startswith("x-ratelimit")]
    assert "X-Infermux-Budget-Limit" not in told


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_429_tells_them_too(client, path):
    key = make(client, rpm=1)["key"]
    assert ask(client, key, path=path).status_code == 200
    refused = ask(client, key, path=path)
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 50
    name = ANTHROPIC.format("requests", "remaining")
    if path != "/v1/messages":
        name = RATE.format("remaining", "requests")
    assert refused.headers[name] == "0"


def test_a_402_tells_the_budget(client):
    key = make(client, budget={"usd": "0.000001", "per": "total"})["key"]
    refused = ask(client, key)
    assert refused.status_code == 402
    assert refused.headers["X-Infermux-Budget-Limit"] == "0.000001"
    assert "X-Infermux-Budget-Reset" not in refused.headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/infer"])
def test_streams_tell_them_in_their_head(client, path):
    key = make(client, rpm=5, budget={"usd": "1.00"})["key"]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    if path != "/infer":
        body["max_tokens"] = 4
    answer = client.post(path, json=body, headers={"x-api-key": key})
    names = {name.lower() for name, _ in answer.headers}
    kind = "anthropic-ratelimit-requests-remaining"
    assert (kind if "messages" in path else "x-ratelimit-remaining-requests") in names
    assert "x-infermux-budget-remaining" in names
    answer.get_data()


def test_a_key_without_limits_gets_no_such_headers(client):
    told = ask(client, make(client)["key"]).headers
    assert not [name for name, _ in told if "ratelimit" in name.lower() or "Budget" in name]


def test_the_models_of_a_key_may_be_patterns(client: Any) -> None:
    key = make(client, name="wide", models=["p/*", "ch*"])["key"]
    got = [ask(client, key, model).status_code for model in ("p/m", "cheap", "m")]
    assert got == [200, 200, 403]
    for scope in ("nobody/*", "p/**"):
        body = {"name": "dead", "models": [scope]}
        answer = client.post("/keys", json=body, headers=ADMIN)
        assert answer.status_code == 400 and "models" in answer.get_json()["error"]["message"]
