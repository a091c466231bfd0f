"""Tests of `infermux budgets` and `infermux ledger`, and of the same figures over HTTP."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from books import DAY, call, keep
from click.testing import CliRunner, Result
from support import eventually

import infermux
from infermux.admission.keys import hashed
from infermux.cli.main import main
from infermux.config import Config
from infermux.errors import ConfigError
from infermux.ledger import Budget
from infermux.server.status import mirror_of

NOW = time.time()
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
m = {{ input = "10", output = "10", max_output = 4 }}
s = {{ input = "0", output = "0", max_output = 4 }}
[keys.web]
hash = "{web}"
budget = {{ usd = "0.0002", per = "day" }}
[keys.app]
hash = "{app}"
[keys.loud]
hash = "{loud}"
budget = {{ usd = "0.00001", then = "warn" }}
[keys.thrifty]
hash = "{thrifty}"
budget = {{ usd = "0.00001", per = "total", then = "cheap" }}
[budgets.research]
usd = "0.0003"
per = "month"
keys = ["web", "app"]
[ledger]
path = "{path}"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADMIN", "imx-admin-key-1")
    made = tmp_path / "infermux.toml"
    hashes = {name: hashed(name) for name in ("web", "app", "loud", "thrifty")}
    made.write_text(CONFIG.format(path=tmp_path / "l.db", **hashes))
    return made


@pytest.fixture
def client(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("INFERMUX_CONFIG", str(file))
    with closing(infermux.load(file)) as router:
        yield infermux.create_app(router).test_client()


def command(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def ask(client: Any, key: str) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    return client.post("/infer", json=body, headers={"Authorization": f"Bearer {key}"})


def shown(client: Any) -> dict[str, Any]:
    found = client.get("/budgets", headers=ADMIN)
    assert found.status_code == 200
    return {each["name"]: each for each in found.json["budgets"]}


def test_budgets_are_told_over_http_in_metrics_and_by_the_command(client: Any, file: Path) -> None:
    assert client.get("/budgets").status_code == 401
    answer = ask(client, "web")
    assert answer.status_code == 200, answer.data
    cost = answer.json["cost_usd"]
    found = shown(client)
    assert list(found) == ["web", "loud", "thrifty", "research"]
    web, research = found["web"], found["research"]
    assert float(web["spent_usd"]) == float(research["spent_usd"]) == cost > 0
    assert float(web["left_usd"]) == pytest.approx(0.0002 - cost) and web["held_usd"] == "0"
    assert (research["kind"], research["keys"]) == ("team", ["web", "app"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00Z", web["reset"])
    assert found["thrifty"]["reset"] is None
    printed = command("budgets", "--config", str(file), "--json")
    assert json.loads(printed.stdout)["budgets"] == list(found.values())
    table = command("budgets", "--config", str(file)).stdout.splitlines()
    assert re.split(r"\s{2,}", table[1])[:3] == ["web", "day", "0.0002"]
    assert "research (shared)" in table[4]
    metrics = client.get("/metrics").text
    assert 'infermux_budget_limit_usd{key="web",team=""} 0.0002' in metrics
    assert f'infermux_budget_spent_usd{{key="",team="research"}} {web["spent_usd"]}' in metrics
    page = client.get("/status", headers=ADMIN).text
    assert '<section id="budgets"' in page and page.count("shared, per month") == 1


def test_the_budget_of_a_mirror_is_told_but_alarms_nobody(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERMUX_CONFIG", str(file))
    mirror = 'mirror = { target = "p/m", share = 1.0, budget = { usd = "0.0001", per = "day" } }'
    file.write_text(f'{file.read_text()}[models.cheaper]\ntargets = "p/s"\n{mirror}\n')
    with closing(infermux.load(file)) as router:
        client = infermux.create_app(router).test_client()
        copies = mirror_of(router)
        router.infer("Hi", model="cheaper", params={"max_tokens": 4})
        eventually(lambda: not copies.waiting, "the copy")
        found = shown(client)
        assert list(found) == ["web", "loud", "thrifty", "mirror of cheaper", "research"]
        own = found["mirror of cheaper"]
        assert (own["kind"], own["keys"], own["per"]) == ("mirror", ["mirror of cheaper"], "day")
        assert (own["spent_usd"], own["limit_usd"]) == ("0.00002", "0.0001")
        assert json.loads(command("budgets", "-c", str(file), "--json").stdout)["budgets"] == [
            *found.values()
        ]
        copying = Budget("mirror of cheaper", usd="0.0001", per="day")
        router.ledger.reserve(copying, own["left_pico"], call_id="a", at=time.time())
        overview = client.get("/status/overview", headers=ADMIN).json
        bars = {each["name"]: each for each in overview["budgets"]}
        assert (bars["mirror of cheaper"]["kind"], bars["mirror of cheaper"]["used"]) == (
            "mirror",
            1,
        )
        assert overview["level"] == "ok", overview["sentence"]
        raised = command("budgets", "raise", "mirror of cheaper", "0.00001", "-c", str(file))
        assert raised.exit_code == 0, raised.output
        page = client.get("/status", headers=ADMIN).text
        section = page.partition('<section id="budgets"')[2].partition("</section>")[0]
        assert '<b class="name">mirror of cheaper</b> <small>per day' in section
        assert "mirror of cheaper" not in client.get("/metrics").text.partition("budget_limit")[2]


def test_a_shared_budget_stops_every_key_that_belongs_to_it(client: Any) -> None:
    answers = [ask(client, key).status_code for key in ["web"] + ["app"] * 20 + ["web"]]
    assert answers[0] == 200 and answers[-1] == 402
    assert float(shown(client)["research"]["spent_usd"]) <= 0.0003
    refused = ask(client, "app")
    assert "the budget 'research' of 0.0003 USD" in refused.json["error"]["message"]
    assert ask(client, "loud").status_code == 200


def test_an_operator_raises_and_resets_a_budget(client: Any, file: Path) -> None:
    assert 402 in [ask(client, "web").status_code for _ in range(8)]
    spent = shown(client)["web"]["spent_usd"]
    told = command("budgets", "raise", "web", "0.0005", "--config", str(file))
    assert told.exit_code == 0 and "raised by 0.0005 USD" in told.stdout
    assert ask(client, "web").status_code in (200, 402)  # the shared one may be spent
    assert shown(client)["web"]["limit_usd"] == "0.0007"
    assert command("budgets", "reset", "web", "-c", str(file)).exit_code == 0
    assert command("budgets", "reset", "research", "--team", "-c", str(file)).exit_code == 0
    after = shown(client)
    assert after["web"]["spent_usd"] == after["research"]["spent_usd"] == "0"
    assert ask(client, "web").status_code == 200
    changes = client.get("/budgets", headers=ADMIN).json["adjustments"]
    assert [each["action"] for each in changes][-1] == "raise"
    assert float(changes[1]["usd"]) >= float(spent)
    assert "research in" in command("budgets", "-c", str(file)).stdout


@pytest.mark.parametrize(
    "words",
    [
        ["raise", "web", "0"],
        ["raise", "web", "x"],
        ["raise", "web", "1e99"],
        ["raise", "web", "nan"],
        ["raise", "web", "10000000"],
    ],
)
def test_an_amount_that_cannot_be_is_refused(file: Path, words: list[str]) -> None:
    assert command("budgets", *words, "-c", str(file)).exit_code == 2


def test_a_key_without_a_budget_is_named(file: Path) -> None:
    result = command("budgets", "reset", "wed", "-c", str(file))
    assert result.exit_code == 1 and "did you mean 'web'" in result.stderr
    assert command("budgets", "reset", "web", "--team", "-c", str(file)).exit_code == 1


def test_a_budget_that_only_warns_is_logged_once_an_hour(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "infermux"):
        for _ in range(4):
            assert ask(client, "loud").status_code == 200
    found = [record.message for record in caplog.records if "has exceeded" in record.message]
    assert len(found) == 1
    assert found[0].startswith("key 'loud' has exceeded its 0.00001 USD per month: ")


def test_a_key_with_a_cheaper_model_still_gets_it(client: Any) -> None:
    answer = ask(client, "thrifty")
    assert answer.status_code == 200
    assert answer.headers["X-Infermux-Model-Override"] == "cheap"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ('keys = ["web", "app"]', 'keys = ["wed"]'),
            "[budgets.research].keys: there is no key 'wed'",
        ),
        (('keys = ["web", "app"]', "keys = []"), "[budgets.research].keys must name a key"),
        (('keys = ["web", "app"]', ""), "[budgets.research] needs 'keys'"),
        (('per = "month"', 'per = "week"'), "[budgets.research].per must be"),
        (('usd = "0.0003"', 'usd = "nine"'), "[budgets.research].usd must be dollars"),
        (('usd = "0.0003"', 'usd = "9"\nthen = "cheep"'), "[budgets.research].then"),
        (("[ledger]", '[ledger]\nkeep = "400"'), "[ledger].keep must be a number of days"),
        (("[ledger]", '[ledger]\ntimezone = "Berlin"'), "[ledger].timezone must be a time zone"),
        (("[ledger]", '[ledger]\ntimezone = "../x"'), "[ledger].timezone must be a time zone"),
    ],
)
def test_what_cannot_be_configured_is_named(
    file: Path, change: tuple[str, str], words: str
) -> None:
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(ConfigError) as error:
        infermux.load(file)
    assert words in str(error.value)


def test_days_are_those_of_the_configured_zone(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text().replace("[ledger]", '[ledger]\ntimezone = "Asia/Kolkata"'))
    keep(tmp_path / "l.db", call("a", at=1_795_435_200.0 + 7 * 3600, cost=1))  # 19:00 UTC
    assert "2026-11-24" in command("costs", "-c", str(file), "--all", "--by", "day").stdout
    assert (
        "2026-11-23"
        in command("costs", "--ledger", str(tmp_path / "l.db"), "--all", "--by", "day").stdout
    )
    found = json.loads(command("budgets", "-c", str(file), "--json").stdout)["budgets"]
    assert found[0]["reset"].endswith("T18:30:00Z")
    assert Config().ledger is None


# -- the file --------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A ledger of a call on each of the last 100 days."""
    calls = [call(f"{n:06}", at=NOW - n * DAY, cost=n, tags={"a": "=1"}) for n in range(100)]
    return str(keep(tmp_path / "l.db", *calls))


def test_old_calls_are_removed_and_their_costs_stay(path: str) -> None:
    before = json.loads(command("costs", "--ledger", path, "--json", "--by", "day").stdout)
    result = command("ledger", "prune", "--keep", "30d", "--ledger", path)
    assert (result.exit_code, result.stdout.partition(" from ")[0]) == (0, "removed 69 calls")
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("SELECT count(*) FROM calls").fetchone() == (31,)
    assert json.loads(command("costs", "--ledger", path, "--json", "--by", "day").stdout) == before
    assert command("ledger", "check", "--ledger", path).stdout == "the ledger is sound\n"
    for wrong in ("30", "0d", "d", "-1d", "1.5d"):
        assert command("ledger", "prune", "--keep", wrong, "--ledger", path).exit_code == 2
    assert command("ledger", "prune", "--ledger", path).exit_code == 2


def test_calls_are_exported_by_month(path: str, tmp_path: Path) -> None:
    lines = command("ledger", "export", "--ledger", path).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert [each["cost_pico"] for each in found] == list(range(99, -1, -1))
    rows = list(
        csv.DictReader(io.StringIO(command("ledger", "export", "--csv", "--ledger", path).stdout))
    )
    assert [int(row["cost_pico"]) for row in rows] == list(range(99, -1, -1))
    assert all(row["attempts"] == "1" for row in rows)
    folder = tmp_path / "out"
    result = command("ledger", "export", "--to", str(folder), "--ledger", path)
    files = sorted(folder.iterdir())
    assert len(result.stdout.splitlines()) == len(files) in (4, 5)
    written = [json.loads(line) for each in files for line in each.read_text().splitlines()]
    assert written == found
    assert all(
        f"calls-{json.loads(each.read_text().splitlines()[0])['time'][:7]}.jsonl" == each.name
        for each in files
    )
    this = command("ledger", "export", "--month", "this", "--ledger", path).stdout
    assert this == files[-1].read_text()


def test_a_backup_is_a_ledger_and_replaces_nothing(path: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")
    assert command("ledger", "backup", copy, "--ledger", path).exit_code == 0
    expected = command("costs", "--ledger", path, "--json").stdout
    assert command("costs", "--ledger", copy, "--json").stdout == expected
    assert command("ledger", "backup", copy, "--ledger", path).exit_code == 1
    missing = str(tmp_path / "none" / "copy.db")
    assert command("ledger", "backup", missing, "--ledger", path).exit_code == 1
    assert list(tmp_path.glob("*.partial")) == []


def test_a_ledger_whose_sums_are_wrong_is_told(path: str) -> None:
    with closing(sqlite3.connect(path)) as sql, sql:
        sql.execute("UPDATE sums SET pico = pico + 1")
    result = command("ledger", "check", "--ledger", path)
    assert result.exit_code == 1
    assert "infermux: the sum of caller 'web' differs from its calls" in result.stderr
