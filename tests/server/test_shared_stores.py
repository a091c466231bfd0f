"""What hosts share besides calls, through one PostgreSQL: keys, end users' budgets, cached answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from databases import Database
from hosts import Host, hosts, keys
from support import ask, eventually

pytest.importorskip("psycopg_pool", reason="pip install 'infermux[postgres]'")
pytestmark = pytest.mark.slow

CONFIGURATION = """
[server]
workers = 1
[ledger]
url = "env:DATABASE_URL"
[providers.echo]
[models]
kept = { targets = ["echo/echo-v1"], cache_answers = { ttl = "1h", max = "1MB" } }
""" + keys(app='user_budget = { usd = "0.0002", per = "day" }', other="")
SAY = {"messages": [{"role": "user", "content": "Hello, host!"}], "max_tokens": 10}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def two(postgres) -> Iterator[list[Host]]:
    found: Database = postgres.database()
    env = {"DATABASE_URL": found.service, "OWNER_URL": found.url}
    with hosts(2, CONFIGURATION, env) as running:
        yield running


def test_a_key_that_one_host_makes_rotates_and_revokes_is_known_to_the_other(two):
    first, second = two
    made = json.loads(first.command("keys", "create", "fresh", "--rpm", "100", "--json"))

    def status(host: Host, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return ask(host.port, CHAT, {"model": "echo-v1", **SAY}, headers=headers).status

    eventually(lambda: status(second, made["key"]) == 200, "the key at the other host")
    new = json.loads(second.command("keys", "rotate", "fresh", "--overlap", "0s", "--json"))["key"]
    eventually(lambda: status(first, new) == 200, "the new secret")
    eventually(lambda: status(first, made["key"]) == 401, "the end of the old secret")
    second.command("keys", "revoke", "fresh")
    eventually(lambda: status(first, new) == 401, "the end of the key")
    assert "fresh" in first.command("keys", "list", "--all")


def test_the_budget_of_an_end_user_holds_over_hosts(two):
    def status(user: str, n: int) -> int:
        body = {"model": "echo-v1", "user": user, **SAY}

        def answer() -> int:  # a busy machine may have no time for the database
            found = two[n % 2].ask(CHAT, body, caller="app").status
            return 0 if found == 503 else found

        return eventually(answer, "an answer")

    def statuses(user: str) -> list[int]:
        return [status(user, n) for n in range(12)]

    spent = statuses("ada")
    assert spent[0] == 200 and spent[-2:] == [402, 402]
    assert statuses("bob")[0] == 200, "another end user has a budget of its own"
    told = [json.loads(line) for line in two[1].command("logs", "--json").splitlines()]
    users = {line["user"] for line in told if line["caller"] == "app"}
    by_user = two[0].command("costs", "--by", "user")
    assert len(users) == 2 and all(user in by_user for user in users)


def test_an_answer_that_one_host_keeps_is_given_by_the_other(two):
    body = {"model": "kept", **SAY}
    first = two[0].ask(CHAT, body, caller="other")
    second = two[1].ask(CHAT, body, caller="other")
    assert [each.headers["X-Infermux-Cache"] for each in (first, second)] == ["miss", "hit"]
    assert first.json["choices"] == second.json["choices"]
