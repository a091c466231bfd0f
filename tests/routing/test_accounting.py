"""Budgets through the APIs: the hold before a call, the record after it, and exhausted budgets."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from infermux import Caller, InferRequest, InferResponse, Registry, Router, build, create_app
from infermux.admission.keys import hashed
from infermux.chaos.vendor import FaultyVendor
from infermux.errors import BudgetExceeded, UnpricedModel
from infermux.ledger import Budget
from infermux.ledger.sqlite import SQLiteLedger
from infermux.pricing import Price
from infermux.pricing.tariff import Tariff
from infermux.providers.http import Timeouts

HELLO = [{"role": "user", "content": "Hello there, how are you today?"}]
KEY = "imx-test-key"


@pytest.fixture
def vendor() -> Iterator[FaultyVendor]:
    with FaultyVendor() as running:
        yield running


def app_of(tmp_path: Path, vendor: FaultyVendor, budget: str, more: str = "") -> FlaskClient:
    """Return a client of a service whose only key has *budget*."""
    file = tmp_path / "infermux.toml"
    file.write_text(f"""
[providers.openai]
base_url = "{vendor.url("openai")}"
api_key = "env:VENDOR"
prices = {{ "dear" = {{ input = "1000", output = "1000" }}, "cheap" = {{ input = "0", output = "0" }} }}
models = ["dear", "cheap", "unknown-price"]
[keys.web]
hash = "{hashed(KEY)}"
budget = {{ {budget} }}
[ledger]
path = "{tmp_path / "ledger.db"}"
{more}""")
    router = build.router(build.settings({"VENDOR": "sk-v"}, str(file)))
    return create_app(router).test_client()


def ask(client: FlaskClient, model: str = "dear", **more: object):
    return client.post(
        "/v1/chat/completions",
        json={"model": model, "messages": HELLO, "max_tokens": 50} | more,
        headers={"Authorization": f"Bearer {KEY}"},
    )


def spent(tmp_path: Path) -> int:
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        total: int = db.execute("select coalesce(sum(cost), 0) from calls").fetchone()[0]
    db.close()
    return total


def test_a_call_is_written_down_with_its_attempts(tmp_path, vendor):
    assert ask(app_of(tmp_path, vendor, 'usd = "5"')).status_code == 200
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        [(caller, status, cost)] = db.execute("select caller, status, cost from calls").fetchall()
        [(provider, model)] = db.execute("select provider, model from attempts").fetchall()
    db.close()
    assert (caller, status, provider, model) == ("web", "ok", "openai", "dear") and cost > 0


def test_a_spent_budget_is_402_with_its_reset_and_nobody_retries(tmp_path, vendor):
    client = app_of(tmp_path, vendor, 'usd = "0.07", per = "day"')
    assert ask(client).status_code == 200
    before = len(vendor.requests)
    answer = ask(client)
    while answer.status_code == 200:
        before = len(vendor.requests)
        answer = ask(client)
    assert (answer.status_code, answer.json["error"]["code"]) == (402, "budget_exceeded")
    assert "resets at" in answer.json["error"]["message"] and "x-should-retry" not in answer.headers
    assert len(vendor.requests) == before, "a refused call must not reach the vendor"
    assert spent(tmp_path) <= Decimal("0.07") * 10**12


def test_a_cheaper_name_takes_over(tmp_path, vendor):
    client = app_of(
        tmp_path, vendor, 'usd = "0.000001", then = "thrifty"', '[models]\nthrifty = "openai/cheap"'
    )
    answer = ask(client)
    assert (answer.status_code, answer.headers["X-Infermux-Model-Override"]) == (200, "thrifty")
    assert vendor.requests[-1].model == "cheap"


def test_a_warning_lets_the_call_through(tmp_path, vendor):
    client = app_of(tmp_path, vendor, 'usd = "0.000001", then = "warn"')
    assert ask(client).status_code == ask(client).status_code == 200


def test_under_a_hard_budget_an_unknown_price_is_refused(tmp_path, vendor):
    answer = ask(app_of(tmp_path, vendor, 'usd = "5"'), "unknown-price")
    assert (answer.status_code, answer.json["error"]["code"]) == (402, "unpriced_model")
    assert "Retry-After" not in answer.headers
    assert vendor.requests == []


def test_many_at_once_never_overspend(tmp_path, vendor):
    client = app_of(tmp_path, vendor, 'usd = "0.5"')
    app, statuses = client.application, []

    def work() -> None:
        own = app.test_client()
        statuses.extend(ask(own).status_code for _ in range(6))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {200, 402} <= set(statuses) <= {200, 402, 503}  # 503: the ledger of a busy machine
    assert 0 < spent(tmp_path) <= Decimal("0.5") * 10**12


def test_an_abandoned_stream_is_settled_with_what_it_used(tmp_path, vendor):
    client = app_of(tmp_path, vendor, 'usd = "5"')
    router = client.application.extensions["infermux"]
    stream = router.stream(InferRequest("dear", HELLO), caller=Caller("somebody"))
    next(iter(stream))
    stream.close()
    assert spent(tmp_path) > 0


def test_a_mounting_app_can_give_its_caller_a_budget(tmp_path, vendor):
    router = app_of(tmp_path, vendor, 'usd = "5"').application.extensions["infermux"]
    poor = Caller("user-7", budget=Budget("user-7", 1))
    with pytest.raises(BudgetExceeded):
        router.infer(InferRequest("dear", HELLO), caller=poor)
    with pytest.raises(UnpricedModel):
        router.infer(InferRequest("unknown-price", HELLO), caller=poor)
    assert json.dumps([seen.model for seen in vendor.requests]) == "[]"


class Locked:
    """Answers, and lets go of the ledger that somebody has locked."""

    name, models = "p", ("m",)

    def __init__(self, path: Path) -> None:
        self.other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def infer(self, request: InferRequest, deadline: object) -> InferResponse:
        if self.other.in_transaction:
            self.other.execute("ROLLBACK")
        return InferResponse(request.model, self.name, "hi", tokens_in=1, tokens_out=1)


def test_a_call_that_nothing_was_held_for_is_paid_by_its_budget_all_the_same(
    tmp_path: Path,
) -> None:
    """The budget only warns, so a ledger that is locked for a moment does not stop the call; nor
    may its cost be lost to the budget.
    """
    path, budget = tmp_path / "l.db", Budget("team", 10**12, "total", "warn")
    with closing(SQLiteLedger(path, busy=0.1)) as ledger:
        assert ledger.spent(budget, 0) == (0, 0)
        provider = Locked(path)
        prices = {"p": {"m": Price("p", "m", Tariff(Decimal(1), Decimal(1)))}}
        router = Router(Registry([provider]), ledger=ledger, prices=prices)
        for locked in (False, True):
            if locked:
                provider.other.execute("BEGIN IMMEDIATE")
            router.infer(InferRequest("m", HELLO), caller=Caller("alice", budget=budget))
        provider.other.close()
        assert [each.call.cost for each in ledger.rows()] == [2 * 10**6] * 2
        assert ledger.spent(budget, 0) == (4 * 10**6, 0)


class Watched(Locked):
    """Says how long the hold of its call still lasts."""

    timeouts = Timeouts(1.0, 2.0, 3.0, total=500.0)

    def infer(self, request: InferRequest, deadline: object) -> InferResponse:
        [(expires,)] = self.other.execute("SELECT expires_ms FROM budgets WHERE call_id > ''")
        self.lease = expires / 1000 - time.time()
        return super().infer(request, deadline)


@pytest.mark.parametrize(
    ("deadline", "patience", "longest"),
    [(None, None, 600), (20.0, None, 20), (20.0, 900.0, 20), (None, 900.0, 900), (None, 30.0, 30)],
)
def test_a_hold_lasts_longer_than_its_call_may(
    tmp_path: Path, deadline: float | None, patience: float | None, longest: float
) -> None:
    """A call may wait for its deadline, and then its stream may last for the provider's total."""
    with closing(SQLiteLedger(tmp_path / "l.db")) as ledger:
        budget = Budget("team", 10**12)
        ledger.spent(budget, 0)
        provider = Watched(tmp_path / "l.db")
        prices = {"p": {"m": Price("p", "m", Tariff(Decimal(1), Decimal(1)))}}
        router = Router(Registry([provider]), ledger=ledger, deadline=deadline, prices=prices)
        call = router.begin(InferRequest("m", HELLO), caller=Caller("alice", budget=budget))
        call.patience = patience
        router.answer(call)
        provider.other.close()
        assert longest + 500 < provider.lease < longest + 500 + 120
