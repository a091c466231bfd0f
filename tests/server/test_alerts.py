"""Alerts: what is told, how often, by whom, and what becomes of a webhook that fails."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from support import PATIENCE, Peer, Service, eventually

from infermux import build, create_app
from infermux.admission.keys import hashed
from infermux.errors import BudgetExceeded, ConfigError
from infermux.ledger import Budget
from infermux.ledger.sqlite import SQLiteLedger
from infermux.ledger.stores.alerts import Sent
from infermux.server import alerts as watching
from infermux.telemetry.alerts import WAITS, Alert, Alerts, alerts_of
from infermux.telemetry.shared_memory import SharedMemory
from infermux.testing import FaultyVendor

KEY = "key-of-web"
SECRET = "shared-with-the-receiver"


class Webhook(Peer):
    """Keeps what is posted; answers with each of *statuses* in turn, then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.seen: list[tuple[dict[str, str], bytes]] = []

    def answer(self, handler: Any, body: bytes) -> None:
        with self.lock:
            status = self.statuses.pop(0) if self.statuses else 200
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.seen.append((headers, body))
        handler.reply(status, b"ok")

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.seen]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.told if each["event"] == event]


@pytest.fixture
def webhook():
    with Webhook() as running:
        yield running


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(watching, "CHECK_SECONDS", 0.02)


def configuration(tmp_path, vendor, more=""):
    file = tmp_path / "infermux.toml"
    file.write_text(f"""
[providers.openai]
base_url = "{vendor.url("openai")}"
api_key = "env:VENDOR"
prices = {{ "m" = {{ input = "0", output = "1000" }} }}
models = ["m"]
[reliability]
attempts = 1
circuit_breaker = {{ failures = 2, open = 0.1 }}
[keys.web]
hash = "{hashed(KEY)}"
budget = {{ usd = "0.10", per = "month" }}
[ledger]
path = "{tmp_path / "ledger.db"}"
[alerts]
webhook = "env:HOOK"
secret = "env:SECRET"
{more}""")
    return file


@contextlib.contextmanager
def service(tmp_path, vendor, webhook, more=""):
    """A service in this process, and its client."""
    file = configuration(tmp_path, vendor, more)
    env = {"VENDOR": "sk", "HOOK": f"{webhook.url}/hook/secret-path?x=1", "SECRET": SECRET}
    router = build.router(build.settings(env, str(file)), serving=True)
    build.routers.discard(router)
    with contextlib.closing(router):
        yield create_app(router).test_client(), router


def ask(client, tokens=10, **more):
    return client.post(
        "/v1/chat/completions",
        json={"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens},
        headers={"Authorization": f"Bearer {KEY}"},
    )


def test_a_budget_is_told_at_each_share_once(tmp_path, webhook):
    with FaultyVendor() as vendor, service(tmp_path, vendor, webhook) as (client, router):
        seen = []
        while (answer := ask(client)).status_code == 200:
            share = spent(router) * 100 // (10**11)
            seen += [each for each in (50, 80) if share >= each and each not in seen]
            eventually(partial(told_all, webhook, len(seen)), "the shares")
        assert answer.status_code == 402
        eventually(lambda: webhook.events("budget")[-1:][0]["details"]["percent"] == 100)
        time.sleep(0.2)
        told = webhook.events("budget")
        percents = [each["details"]["percent"] for each in told]
        assert (
            percents == sorted(set(percents)) and percents[-1] == 100 and set(seen) <= {*percents}
        )
        assert told[-1]["details"]["key"] == "web" and "'web'" in told[-1]["text"]
        assert "is used up" in told[-1]["text"] and "calls are refused" in told[-1]["text"]
    for headers, body in webhook.seen:
        check_signature(headers["x-infermux-signature"], body)
        assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("whose", ["an end user's", "an earlier period's"])
def test_a_refusal_by_another_budget_does_not_use_this_one_up(tmp_path, webhook, whose):
    with FaultyVendor() as vendor, service(tmp_path, vendor, webhook) as (client, router):
        sender = alerts_of(router.observers)
        if whose == "an end user's":
            caller = router.keyring.own["web"]
            limited = replace(caller, user_budget=Budget(usd="0.01"))
            with pytest.raises(BudgetExceeded):
                router.infer("hi", model="m", caller=limited, user="ann", params={"max_tokens": 99})
        else:
            sender.refused["web"] = time.time() - 40 * 86_400
        while spent(router) < 8 * 10**10:
            assert ask(client).status_code == 200
        watching.Watcher(router).check(router)
        eventually(partial(told_all, webhook, 1))
        time.sleep(0.2)
        assert {each["details"]["percent"] for each in webhook.events("budget")} <= {50, 80}


def told_all(webhook, number):
    return len(webhook.events("budget")) >= number


def spent(router):
    [state] = watching.status.budgets(router)
    return state.spent


def check_signature(header, body):
    """Verify a header as `infermux help alerts` says."""
    parts = dict(part.split("=", 1) for part in header.split(","))
    assert abs(time.time() - int(parts["t"])) < 300
    wanted = hmac.new(SECRET.encode(), parts["t"].encode() + b"." + body, hashlib.sha256)
    assert hmac.compare_digest(wanted.hexdigest(), parts["v1"])


def test_a_target_is_told_to_be_down_and_up_again(tmp_path, webhook):
    with FaultyVendor("500") as vendor, service(tmp_path, vendor, webhook) as (client, _):
        vendor.when = "before"
        for _ in range(3):
            ask(client)
        [down] = eventually(lambda: webhook.events("target"), "down")
        assert down["text"].startswith("openai/m is down: circuit open for")
        assert ", HTTP 500;" in down["text"]
        assert down["subject"] == "target down openai/m"
        vendor.fault = None
        eventually(lambda: ask(client).status_code == 200, "the vendor's recovery")
        eventually(lambda: len(webhook.events("target")) == 2, "up")
        up = webhook.events("target")[1]
        assert up["subject"] == "target up openai/m" and "up again" in up["text"]
        vendor.fault = "500"  # again within the hour: nothing is told
        for _ in range(4):
            ask(client)
        time.sleep(0.3)
        assert len(webhook.events("target")) == 2


def test_two_workers_tell_once(tmp_path, webhook):
    with FaultyVendor() as vendor, service(tmp_path, vendor, webhook) as (client, router):
        others = [watching.Watcher(router) for _ in range(4)]
        while ask(client).status_code == 200:
            pass
        threads = [threading.Thread(target=each.check, args=[router]) for each in others]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        eventually(lambda: webhook.events("budget"))
        time.sleep(0.2)
        subjects = [each["subject"] for each in webhook.told]
        assert len(subjects) == len(set(subjects))


def test_old_prices_are_told(tmp_path, webhook):
    with FaultyVendor() as vendor, service(tmp_path, vendor, webhook) as (_, router):
        later = time.time() + 4000 * 86_400
        watching.Watcher(router, clock=lambda: later).check(router)
        [told] = eventually(lambda: webhook.events("prices"))
        assert "days ago" in told["text"]
        watching.Watcher(router, clock=lambda: later + 7200).check(router)
        time.sleep(0.1)
        assert len(webhook.events("prices")) == 1


def test_lost_records_are_told(tmp_path, webhook):
    with FaultyVendor() as vendor, service(tmp_path, vendor, webhook) as (_, router):
        watcher = watching.Watcher(router)
        watcher.check(router)
        router.accounting.lost = 3
        watcher.check(router)
        [told] = eventually(lambda: webhook.events("records"))
        assert told["details"] == {"lost": 3} and told["text"].startswith("3 calls")
        next_worker = watching.Watcher(router, clock=lambda: time.time() + 7200)
        for lost in (3, 3, 4, 4):
            router.accounting.lost = lost
            next_worker.check(router)
        eventually(lambda: len(webhook.events("records")) > 1)
        time.sleep(0.1)
        assert [each["details"]["lost"] for each in webhook.events("records")] == [3, 4]


def test_only_the_events_that_are_named_are_sent(tmp_path, webhook):
    more = 'events = ["target"]'
    with FaultyVendor() as vendor, service(tmp_path, vendor, webhook, more) as (client, router):
        router.accounting.lost = 3
        while ask(client).status_code == 200:
            pass
        watching.Watcher(router).check(router)
        time.sleep(0.2)
        assert not webhook.told


def test_a_failed_alert_is_sent_again_and_counted():
    with Webhook(500, 429) as webhook:
        waits, memory = [], SharedMemory()
        sender = Alerts(webhook.url, SECRET, wait=waits.append)
        sender.memory = memory
        sender.send(Alert("budget", "s", "text"))
        assert sender.flush(PATIENCE) and len(webhook.seen) == 3
        assert waits == list(WAITS[:2])
        counts = {key[1]: cells[0] for key, cells in memory.counts().items()}
        assert counts == {"retried": 2, "sent": 1}
        assert webhook.seen[0][1] == webhook.seen[2][1]


def test_an_alert_that_is_refused_or_never_accepted_is_given_up(caplog):
    for statuses, tries in (((404,), 1), ((302,), 1), ([500] * 20, 1 + len(WAITS))):
        with Webhook(*statuses) as webhook:
            sender = Alerts(webhook.url, SECRET, wait=lambda seconds: None)
            sender.memory = SharedMemory()
            sender.send(Alert("budget", "s", "text"))
            assert sender.flush(PATIENCE) and len(webhook.seen) == tries
            assert sender.memory.counts()[("alerts_total", "failed")][0] == 1
    assert "(status 404); it is given up" in caplog.text and "127.0.0.1" not in caplog.text


def test_a_call_does_not_wait_for_the_webhook(tmp_path):
    with Webhook() as webhook, FaultyVendor() as vendor:
        webhook.lock.acquire()
        try:
            with service(tmp_path, vendor, webhook) as (client, _):
                start = time.monotonic()
                while ask(client).status_code == 200:
                    pass
                assert time.monotonic() - start < 10
        finally:
            webhook.lock.release()


def test_the_ledger_remembers_alerts(tmp_path):
    ledger = SQLiteLedger(str(tmp_path / "l.db"))
    memory = ledger.alerts()
    assert memory.claim("a", None, 1000.0, "one") and not memory.claim("a", None, 1001.0, "two")
    known = memory.sent()["a"]
    assert known == Sent(1000.0, "one")
    assert memory.claim("a", known, 5000.5, "two") and not memory.claim("a", known, 5001.0, "one")
    assert memory.sent() == {"a": Sent(5000.5, "two")}
    ledger.close()


@pytest.mark.parametrize(
    ("written", "env", "told"),
    [
        ('webhook = "https://hooks.example/T0/secret"', "", "[alerts].webhook must be a reference"),
        ('webhook = "env:MISSING"', "", "[alerts].webhook: the variable MISSING is not set"),
        ('webhook = "env:HOOK"', "not-a-url", "HOOK must hold a URL"),
        ('webhook = "env:HOOK"\nevents = ["budgets"]', "http://h", "did you mean 'budget'?"),
        ('webhok = "env:HOOK"', "http://h", "did you mean 'webhook'?"),
        ('webhook = "env:HOOK"\n[ledger]\npath = ""', "http://h", "[alerts] needs a ledger"),
    ],
)
def test_a_bad_configuration_stops_the_start(tmp_path, written, env, told):
    file = tmp_path / "infermux.toml"
    file.write_text(f"[alerts]\n{written}\n")
    with pytest.raises(ConfigError) as caught:
        build.router(build.settings({"HOOK": env} if env else {}, str(file)), serving=True)
    assert told in str(caught.value) and "secret" not in str(caught.value).partition("never")[0]


def sent(router):
    return router.ledger.alerts().sent()


def test_what_could_not_be_sent_is_left_to_the_next_start(tmp_path):
    """The webhook is down while the service stops: nothing that was claimed is lost."""
    with FaultyVendor() as vendor, Webhook() as webhook:
        waiting, go_on = threading.Event(), threading.Event()
        webhook.statuses[:] = [500]
        with service(tmp_path, vendor, webhook) as (client, router):
            watching.arm(router)
            sender = alerts_of(router.observers)
            sender._wait = lambda seconds: (waiting.set(), go_on.wait(PATIENCE))
            while ask(client).status_code == 200:
                pass
            eventually(lambda: [each for each in sent(router) if each.startswith("budget 100 ")])
            assert waiting.wait(PATIENCE)
            watching.leave()
            assert not sent(router)
            webhook.seen.clear()
            with service(tmp_path, vendor, webhook) as (_, other):
                watching.Watcher(other).check(other)  # it knows of no refusal
                eventually(lambda: webhook.events("budget"))
                assert webhook.events("budget")[0]["details"]["percent"] >= 80
                webhook.statuses[:] = [500] * 9
                go_on.set()


class Guarded(Service):
    """A service whose callers need a key."""

    def _answers(self):
        with contextlib.suppress(OSError):
            return self.ask("/healthz").status == 200


@pytest.mark.slow
def test_a_service_of_several_workers_tells_once(tmp_path, webhook):
    with FaultyVendor() as vendor:
        file = configuration(tmp_path, vendor)
        env = {"VENDOR": "sk", "HOOK": webhook.url, "SECRET": SECRET, "INFERMUX_CONFIG": str(file)}
        env["INFERMUX_SERVER__WORKERS"] = "3"
        with Guarded(env=env) as running:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
            while running.ask(
                "/v1/chat/completions", body, headers={"Authorization": f"Bearer {KEY}"}
            ).status == 200:  # fmt: skip
                pass
            eventually(lambda: webhook.events("budget"), "the alerts")  # one may be for all shares
            time.sleep(5)
            subjects = [each["subject"] for each in webhook.told]
            assert len(subjects) == len(set(subjects))
            text = running.ask("/metrics").data.decode()
            assert f'infermux_alerts_total{{outcome="sent"}} {len(subjects)}' in text


def test_alerts_are_found_among_observers():
    sender = Alerts("http://h", SECRET)
    assert alerts_of([print, sender]) is sender and alerts_of([print]) is None
