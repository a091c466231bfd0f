"""GET /costs and /costs/timeseries: the figures of `infermux costs`, with the admin key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from books import DAY, HOSTILE, NOON, call, keep
from click.testing import CliRunner
from doors import Front
from flask import Flask

import infermux
from infermux import Router
from infermux.cli.main import main
from infermux.errors import BudgetExceeded
from infermux.ledger.sqlite import SQLiteLedger
from infermux.providers.echo import EchoProvider

KEY = "key-of-the-operators"
OPERATOR = {"x_api_key": KEY}


def app(router: Router) -> Flask:
    made = Flask("host")
    made.register_blueprint(infermux.ops_blueprint(router, KEY))
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    refused = call("d", at=NOON + DAY, error=BudgetExceeded("spent"), attempts=[])
    return keep(
        tmp_path_factory.mktemp("ledger") / "l.db",
        call("a", at=NOON, cost=23_285_600_000, tags={"env": "prod"}),
        call("b", at=NOON + 60, caller="night", target="local/llama", cost=None),
        call("c", at=NOON + DAY, cost=1),
        refused,
        call("e", at=NOON + 2 * DAY, target=f"p/{HOSTILE}", caller=HOSTILE),
    )


@pytest.fixture(scope="module")
def front(path: Path) -> Iterator[Front]:
    with Front(EchoProvider(), app=app, ledger=SQLiteLedger(path)) as made:
        yield made


def costs(front: Front, where: str = "/costs", **parameters: str) -> Any:
    answer = front.ask(f"{where}?{urlencode(parameters)}", **OPERATOR)
    assert answer.status == 200, answer.data
    return answer.json


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"by": "provider"},
        {"by": "day,caller"},
        {"by": "tag:env", "since": "2026-11-23", "until": "2026-11-24"},
        {"by": "hour", "month": "2026-11", "caller": "web"},
        {"by": "model", "limit": "1"},
        {"by": "caller", "caller": HOSTILE},
    ],
)
def test_the_numbers_are_those_of_the_command(
    front: Front, path: Path, parameters: dict[str, str]
) -> None:
    options = [part for name, value in parameters.items() for part in (f"--{name}", value)]
    told = json.loads(
        CliRunner().invoke(main, ["costs", "--ledger", str(path), "--json", *options]).stdout
    )
    assert costs(front, **parameters) == told
    assert told["rows"] or parameters.get("limit")


def test_unknown_costs_are_null_and_known_ones_exact(front: Front) -> None:
    found = costs(front, by="provider", until="2026-11-25")
    told = {
        row["provider"]: (row["cost_usd"], row["cost_pico"], row["unpriced"])
        for row in found["rows"]
    }
    assert told == {
        "openai": ("0.023285600001", 23_285_600_001, 0),
        "local": (None, None, 1),
        "": ("0", 0, 0),
    }
    assert (found["total"]["cost_usd"], found["total"]["calls"], found["total"]["errors"]) == (
        "0.023285600001",
        4,
        1,
    )


def test_a_series_has_no_gaps_and_the_same_sum(front: Front) -> None:
    found = costs(front, "/costs/timeseries", since="2026-11-20", until="2026-11-26")
    assert [(row["day"], row["calls"]) for row in found["rows"]] == [
        ("2026-11-20", 0), ("2026-11-21", 0), ("2026-11-22", 0), ("2026-11-23", 2), ("2026-11-24", 2), ("2026-11-25", 1),
    ]  # fmt: skip
    assert found["total"] == costs(front, since="2026-11-20", until="2026-11-26")["total"]
    hours = costs(front, "/costs/timeseries", by="hour", month="2026-11", caller="web")
    assert len(hours["rows"]) == 720
    assert (
        sum(row["cost_pico"] for row in hours["rows"])
        == hours["total"]["cost_pico"]
        == 23_285_600_001
    )


@pytest.mark.parametrize(
    "hostile",
    [
        "%",
        "%%%",
        "_",
        "' OR 1=1 --",
        'x"; DROP TABLE calls; --',
        "\x00",
        "\ud800",
        HOSTILE + "x",
        "web%",
    ],
)
def test_a_filter_is_a_value_and_nothing_else(front: Front, hostile: str) -> None:
    caller = quote(hostile, errors="surrogatepass")
    answer = front.ask(f"/costs?by=caller&caller={caller}", **OPERATOR)
    assert (answer.status, answer.json["rows"], answer.json["total"]["calls"]) == (200, [], 0)
    assert front.ask(f"/costs?by=tag:{caller}", **OPERATOR).json["total"]["calls"] == 5


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"by": "colour"}, "colour"),
        ({"by": "' OR 1=1"}, "OR 1=1"),
        ({"by": "day,model,caller,tag,provider"}, "at most 4"),
        ({"since": "soon"}, "since"),
        ({"until": "-1d"}, "until"),
        ({"since": "2026-11-02", "until": "2026-11-01"}, "since"),
        ({"month": "13"}, "month"),
        ({"month": "this", "since": "7d"}, "month"),
        ({"limit": "many"}, "limit"),
        ({"limit": "0"}, "limit"),
        ({"limit": "nan"}, "limit"),
        ({"sinse": "7d"}, "did you mean 'since'"),
        ({HOSTILE: "1"}, "parameter"),
    ],
)
@pytest.mark.parametrize("where", ["/costs", "/costs/timeseries"])
def test_what_is_asked_wrongly_is_a_400_that_names_it(
    front: Front, where: str, parameters: dict[str, str], named: str
) -> None:
    answer = front.ask(f"{where}?{urlencode(parameters)}", **OPERATOR)
    if where == "/costs/timeseries" and "by" in parameters:
        named = "by must be"
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request")
    assert named in answer.json["error"]["message"]
    assert len(answer.data) < 1000


@pytest.mark.slow
def test_a_limit_without_reason_is_clamped(front: Front) -> None:
    assert len(costs(front, by="day", limit="1e9")["rows"]) == 3
    assert (
        len(costs(front, "/costs/timeseries", by="hour", since="1970-01-01", limit="1e9")["rows"])
        == 10_000
    )


@pytest.mark.parametrize("where", ["/costs", "/costs/timeseries"])
def test_operators_alone_may_ask(front: Front, where: str) -> None:
    assert front.ask(where).status == 401
    assert front.ask(where, x_api_key="another").status == 401
    assert front.ask(where, authorization=f"Bearer {KEY}").status == 200
    assert front.ask(where, {}, **OPERATOR).status == 405


def test_where_no_ledger_is_kept_there_is_nothing_to_tell() -> None:
    with Front(EchoProvider(), app=app) as front:
        answer = front.ask("/costs", **OPERATOR)
        assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")


def test_a_ledger_that_cannot_be_read_is_a_503_without_its_place(tmp_path: Path) -> None:
    with Front(EchoProvider(), app=app, ledger=SQLiteLedger(tmp_path / "no" / "l.db")) as front:
        answer = front.ask("/costs", **OPERATOR)
        assert (answer.status, answer.json["error"]["code"]) == (503, "ledger_unavailable")
        assert str(tmp_path) not in answer.data.decode()
