"""Tests of the status page without a browser: what it tells, to whom, and hostile names."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from doors import Front
from flask import Flask
from pages import (
    ADMIN,
    BEARER,
    HOSTILE,
    LOGIN,
    NASTY,
    Down,
    hostile,
    mounted,
    page,
    parsed,
    put,
    tried,
)
from support import HELLO, Answer, Service, ask, eventually

from infermux import EchoProvider, HTTPProvider, Router, errors
from infermux.admission.keys import Keyring
from infermux.errors import ProviderTimeout, ProviderUnavailable, printable
from infermux.ledger import Budget
from infermux.ledger.sqlite import SQLiteLedger
from infermux.pricing import PICO
from infermux.types import Caller, Target
from infermux.web.admin.sentence import meanings, phrase
from infermux.web.admin.status_page import StatusPage, count, duration, money, share

NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path / "ledger" / "l.db")) as made:
        (tmp_path / "ledger").mkdir()
        yield made


@pytest.fixture
def front(ledger: SQLiteLedger) -> Iterator[Front]:
    with Front(EchoProvider(), Down(), app=mounted, ledger=ledger) as made:
        made.router.registry.define("both", ["down/gone-1", "echo/echo-v1"])
        yield made


def told(front: Front, path: str) -> Any:
    answer = ask(front.port, f"/ops{path}", headers=BEARER)
    assert answer.status == 200, answer.data
    return json.loads(answer.data)


def break_down(front: Front) -> None:
    for _ in range(6):
        ask(front.port, "/infer", {**HELLO, "model": "gone-1"})


# -- what it says ----------------------------------------------------------------------------------


def test_a_sentence_says_what_is_down_why_since_when_and_what_becomes_of_its_calls(
    front: Front,
) -> None:
    assert page(front).startswith("All 2 targets are ready; no calls in the last 24 hours.")
    assert ask(front.port, "/infer", HELLO).status == 200
    assert "All 2 targets answer; 1 call succeeded in the last 24 hours." in page(front)
    began = time.time() - 1
    break_down(front)
    overview = told(front, "/status/overview")
    found = re.match(
        r"1 of 2 targets is down: down/gone-1, connection refused, since \d\d:\d\d UTC; "
        r"its calls go to echo/echo-v1\.",
        overview["sentence"],
    )
    assert found and overview["level"] == "bad"
    [down] = [each for each in told(front, "/status/targets")["targets"] if each["why"]]
    assert down["why"] == "connection refused" and began <= down["since"] <= time.time()
    assert "down/gone-1, connection refused, since" in page(front)
    assert (
        "<title>1 of 2 targets down" in ask(front.port, "/ops/status", headers=LOGIN).data.decode()
    )


def test_calls_that_have_nowhere_to_go_are_named() -> None:
    with Front(Down(), app=mounted) as front:
        break_down(front)
        assert re.search(
            r"1 of 1 target is down: down/gone-1, connection refused, since .*; calls for gone-1 fail, as no other target is left\.",
            page(front),
        )


def test_a_real_refusal_a_rest_and_an_operators_hand_are_told_apart(ledger: SQLiteLedger) -> None:
    local = HTTPProvider("local", base_url="http://127.0.0.1:9/v1", api_key="k", models=["qwen3"])
    with Front(local, EchoProvider(), app=mounted, ledger=ledger) as front:
        for _ in range(6):
            ask(front.port, "/infer", {**HELLO, "model": "qwen3"})
        assert (
            "local/qwen3, connection refused, since" in told(front, "/status/overview")["sentence"]
        )
        [attempt] = told(front, "/calls?status=error&limit=1")["calls"][0]["attempts"]
        assert (attempt["reason"], attempt["upstream_status"]) == ("connection refused", None)
        front.forget()
        front.router.targets.breaker(Target("local", "qwen3")).cool_down(30, "429")
        overview = told(front, "/status/overview")
        assert (
            "1 of 2 targets is resting: local/qwen3, 429 Too Many Requests, since"
            in overview["sentence"]
        )
        front.forget()
        front.router.targets.breaker(Target("local", "qwen3")).open()
        sentence = told(front, "/status/overview")["sentence"]
        assert (
            "1 of 2 targets is out of service: local/qwen3, taken out by an operator, since"
            in sentence
        )


def test_a_spent_budget_and_many_failures_are_told(ledger: SQLiteLedger) -> None:
    for n in range(30):
        failed = tried("a", "m", error=ProviderTimeout("slow"))
        put(ledger, failed, error=ProviderTimeout("slow") if n % 3 == 0 else None)
    with Front(EchoProvider(), app=mounted, ledger=ledger) as front:
        overview = told(front, "/status/overview")
        assert overview["level"] == "warn"
        assert (
            "33% of 30 calls in the last 24 hours failed, most with upstream_timeout."
            in overview["sentence"]
        )


def test_targets_calls_costs_and_errors_are_told(front: Front, ledger: SQLiteLedger) -> None:
    break_down(front)
    put(ledger, tried("openai", "gpt-5", 3 * PICO // 2), caller="web", tags={"project": "shop"})
    put(
        ledger,
        tried("openai", "gpt-5", error=ProviderTimeout("slow")),
        tried("anthropic", "claude", PICO // 4),
        caller="night",
        seconds=4.2,
    )
    put(ledger, tried("openai", "gpt-5", PICO), caller="web", at=time.time() - 25 * 3600)
    text = page(front)
    assert re.search(r"gone-1 down down · open connection refused since \d\d:\d\d", text)
    assert "Calls 8 " in text and "Failed 75.0% 6 calls" in text and "Cost $1.75 " in text
    assert "p95 4.20 s" in text and "Failovers 1 12.5% of calls" in text
    assert "gpt-5 openai 1 1,000 / 200 $1.50" in text
    assert "claude anthropic 1 1,000 / 200 $0.2500" in text
    assert "web 1 1,000 / 200 $1.50" in text and "night 1 1,000 / 200 $0.2500" in text
    assert "project=shop 1 1,000 / 200 $1.50" in text
    assert "upstream_timeout 1 attempt The provider did not answer in time." in text
    assert "fast → openai/gpt-5 web" in text
    assert "fast → anthropic/claude · 2 attempts night" in text
    heads = re.findall(r"<h2>([^<]*)", ask(front.port, "/ops/status", headers=LOGIN).data.decode())
    assert heads == ["Targets", "Latency", "Failovers", "Calls", "Cost", "Numbers ", "Cost by model",
                     "Cost by key", "Cost by tag", "Errors", "Calls"]  # fmt: skip


def test_the_json_has_what_the_page_shows(front: Front, ledger: SQLiteLedger) -> None:
    put(ledger, tried("openai", "gpt-5", PICO), caller="web", tags={"project": "shop"}, seconds=2)
    found = told(front, "/status/overview?span=1h")
    assert (found["span"], found["step_seconds"], len(found["steps"])) == ("1h", 300, 12)
    assert found["sums"]["p95_ms"] == 2000 and found["sums"]["cost_usd"] == "1"
    assert sum(step["calls"] for step in found["steps"]) == 1
    assert [found["costs"][name]["rows"][0]["name"] for name in ("model", "key", "tag")] == [
        "openai/gpt-5", "web", "project=shop"]  # fmt: skip
    service = found["service"]
    assert service["workers"] == 1 and service["configuration"] == {
        "configuration": "/etc/infermux.toml"
    }
    for name, steps in (("24h", 24), ("7d", 56)):
        assert len(told(front, f"/status/overview?span={name}")["steps"]) == steps
    wrong = ask(front.port, "/ops/status/overview?span=25h", headers=BEARER)
    assert (
        wrong.status == 400 and '"1h", "24h" or "7d"' in json.loads(wrong.data)["error"]["message"]
    )
    text = page(front)
    assert f"InferMux {service['version']} 1 worker up since" in text
    assert "configuration /etc/infermux.toml" in text


def test_a_calls_plan_and_attempts_are_told_with_status_and_reason(
    front: Front, ledger: SQLiteLedger
) -> None:
    break_down(front)
    assert ask(front.port, "/infer", {**HELLO, "model": "both"}).status == 200
    text = page(front)
    assert re.search(
        r"Attempts .*? echo/echo-v1 ok .*? Plan: priority echo/echo-v1 down/gone-1 was left out: circuit open",
        text,
    )
    assert "down/gone-1 connection refused upstream_error" in text
    error = ProviderUnavailable("the provider failed")
    error.cause = error.message  # as HTTPProvider says of its own words
    error.upstream_status = 503
    call = put(ledger, tried("openai", "gpt-5", error=error, request_id="req_7"), error=error)
    assert (
        "upstream 503 Service Unavailable upstream_error : the provider failed request req_7"
        in page(front)
    )
    found = told(front, f"/calls/{call.id}")
    assert found["attempts"][0]["reason"] == "the provider failed"
    assert found["meaning"]["what"].startswith("The provider could not be reached")
    assert ask(front.port, "/ops/calls/ffffffffff", headers=BEARER).status == 404


def test_budgets_have_bars_and_the_fullest_comes_first(ledger: SQLiteLedger) -> None:
    budgets = {"web": Budget("web", usd="10"), "night": Budget("night", usd="2", per="day")}
    keyring = Keyring(
        (hashlib.sha256(name.encode()).hexdigest(), Caller(name, budget=each))
        for name, each in budgets.items()
    )
    with Front(EchoProvider(), app=mounted, ledger=ledger, keyring=keyring) as front:
        now = time.time()
        ledger.reserve(Budget("night", usd="2", per="day"), 2 * PICO, call_id="a", at=now)
        ledger.reserve(Budget("web", usd="10"), 4 * PICO, call_id="b", at=now)
        text = page(front)
        assert text.startswith("The budget of night is spent.")
        assert "night per day 100% $0.00 left of $2.00 resets" in text
        assert text.index("night per day") < text.index("web per month 40% $6.00 left of $10.00")
        bars = re.findall(
            r'class="held" width="([\d.]+)"',
            ask(front.port, "/ops/status", headers=LOGIN).data.decode(),
        )
        assert bars == ["100.0", "40.0"]


def test_what_is_down_is_the_first_of_the_targets() -> None:
    with Front(EchoProvider(), Down(), app=mounted) as front:
        for first, second in (("echo-v1 echo", "gone-1 down"), ("gone-1 down", "echo-v1 echo")):
            text = page(front)
            assert text.index(first) < text.index(second)
            front.router.targets.breaker(Target("down", "gone-1")).open()


def test_of_many_budgets_those_with_little_used_are_folded(ledger: SQLiteLedger) -> None:
    def folded(used: dict[str, str]) -> list[str]:
        """Return the budgets that only a tap shows."""
        budgets = {name: Budget(name, usd="10") for name in used}
        keyring = Keyring(
            (hashlib.sha256(n.encode()).hexdigest(), Caller(n, budget=b))
            for n, b in budgets.items()
        )
        with Front(EchoProvider(), app=mounted, ledger=ledger, keyring=keyring) as front:
            for name, dollars in used.items():
                ledger.reserve(
                    budgets[name], int(Decimal(dollars) * PICO), call_id=name, at=time.time()
                )
            html = ask(front.port, "/ops/status", headers=LOGIN).data.decode()
        return re.findall(
            r'class="name">([\w-]+)</b>',
            html.partition('<details id="more-budgets"')[2].partition("</section>")[0],
        )

    assert folded({f"a{n}": f"{n}" for n in range(1, 8)}) == []  # two more rows are as short
    assert folded({f"b{n}": f"0.{n}" for n in range(1, 10)}) == ["b4", "b3", "b2", "b1"]
    assert folded({f"c{n}": "8" if n > 2 else "7" for n in range(1, 13)}) == []
    assert folded({f"d{n}": "8" if n > 3 else "7" for n in range(1, 13)}) == ["d1", "d2", "d3"]


def test_of_many_targets_those_that_are_little_used_are_folded(ledger: SQLiteLedger) -> None:
    many = [EchoProvider(f"p{n}", [f"m{n}"]) for n in range(30)]
    with Front(*many, Down(), app=mounted, ledger=ledger) as front:

        def shown() -> list[str]:
            """Return the providers of the targets that are shown without a tap."""
            targets, _, others = page(front).partition(" more in service, less used ")
            first, rest = (
                re.findall(r"\b(?:m\d+|gone-1) (p\d+|down)\b", part)
                for part in (targets.partition(" Targets ")[2], others.partition(" Latency ")[0])
            )
            assert len({*first, *rest}) == len([*first, *rest]) == 31
            return first

        assert shown() == [f"p{n}" for n in range(12)]
        for n in (29, 20, 20):
            put(ledger, tried(f"p{n}", f"m{n}", 1))
        front.router.targets.breaker(Target("down", "gone-1")).open()
        assert shown() == ["down", "p20", "p29", *[f"p{n}" for n in range(9)]]
        for n in range(13):
            front.router.targets.breaker(Target(f"p{n}", f"m{n}")).open()
        assert shown() == [*[f"p{n}" for n in range(13)], "down"]  # what is down is never folded


def test_what_has_no_price_is_never_free_and_an_estimate_is_marked(
    front: Front, ledger: SQLiteLedger
) -> None:
    put(ledger, tried("own", "unknown"), caller="a")
    text = page(front)
    assert "$0" not in text[text.index("Cost by model") :]
    assert "Cost unpriced 1 attempt unpriced" in text
    assert "unknown own 1 1,000 / 200 unpriced" in text
    put(ledger, tried("own", "unknown"), tried("own", "tiny", 1, estimated=True), caller="b")
    assert "b 1 2,000 / 400 ≈ <$0.000001 + unpriced" in page(front)


def test_without_a_ledger_the_rest_is_shown(ledger: SQLiteLedger, tmp_path: Path) -> None:
    with Front(EchoProvider(), app=mounted) as front:
        ask(front.port, "/infer", HELLO)
        text = page(front)
        assert "No ledger is configured" in text and "echo-v1 echo echo · closed" in text
        assert "Cost" not in text
        assert told(front, "/status/overview")["ledger"] == "none"
        assert ask(front.port, "/ops/calls", headers=BEARER).status == 404
    with Front(EchoProvider(), app=mounted, ledger=ledger) as front:
        ask(front.port, "/infer", HELLO)
        shutil.rmtree(tmp_path / "ledger")
        text = page(front)
        assert "The ledger cannot be read now" in text and "echo-v1 echo echo · closed" in text
        assert str(tmp_path) not in text
        assert told(front, "/status/overview")["level"] == "bad"


def test_without_a_call_there_is_a_command_for_the_first_one(front: Front) -> None:
    html = ask(front.port, "/ops/status", headers=LOGIN).data.decode()
    [command] = re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)
    assert f"curl http://127.0.0.1:{front.port}/v1/chat/completions" in command
    assert "both" in command and "Authorization" not in command  # there are no keys
    assert "Cost by model" not in html
    answer = ask(front.port, "/ops/status", headers={**LOGIN, "Host": 'x"><script>1</script>'})
    assert answer.status == 400 or "<script>1" not in answer.data.decode()


def test_a_late_call_counts_and_a_period_ends_with_its_first_step(ledger: SQLiteLedger) -> None:
    def at(router: Router) -> Flask:
        app = Flask("host")
        app.add_url_rule(
            "/ops/status", view_func=StatusPage(router, clock=lambda: NOON + 300).response
        )
        return app

    with Front(EchoProvider(), app=at, ledger=ledger) as front:
        put(ledger, tried("a", "m"), at=NOON - 7200)
        assert "Calls 1 " in page(front)
        put(ledger, tried("a", "m"), at=NOON - 7100)
        put(ledger, tried("a", "m"), at=NOON + 1)
        put(ledger, tried("a", "m"), at=NOON - 23 * 3600)
        put(ledger, tried("a", "m"), at=NOON - 23 * 3600 - 1)
        assert "Calls 4 " in page(front)
        assert "Calls 5 " in page(front, "?span=7d") and "Calls 1 " in page(front, "?span=1h")


def test_every_code_has_a_meaning() -> None:
    kinds = [errors.InferMuxError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    codes = {kind.code for kind in kinds if kind.__module__.startswith("infermux.")}
    assert codes - {"invalid_configuration"} <= set(meanings())
    assert all(
        each.what.endswith(".") and each.remedy.endswith(".") for each in meanings().values()
    )
    assert (phrase(503), phrase(529), phrase(799), phrase(None)) == (
        "503 Service Unavailable", "529 Site is overloaded", "799", "")  # fmt: skip


@pytest.mark.parametrize(("shown", "expected"), [
    (money(None), "unpriced"), (money(0, 1), "unpriced"), (money(0), "$0.00"), (money(1), "<$0.000001"), (money(10**6), "$0.000001"),
    (money(PICO // 8), "$0.1250"), (money(1234 * PICO, 2), "$1,234.00 + unpriced"),
    (duration(None), "–"), (duration(0.0844), "84 ms"), (duration(1.254), "1.25 s"), (duration(64), "64 s"), (duration(600), "10 min"),
    (count(None), "–"), (count(9999), "9,999"), (count(12_345), "12.3k"), (count(4_500_000), "4.5M"), (count(2 * 10**9), "2.0G"),
    (share(0, 0), "0.0%"), (share(1, 10**6), "<0.1%"), (share(1, 8), "12.5%"),
    (printable("é 模型\u202e\n\0"), r"é 模型\u202e\n\x00"),
])  # fmt: skip
def test_values_are_shown_at_a_glance(shown: str, expected: str) -> None:
    assert shown == expected


# -- finding calls ---------------------------------------------------------------------------------


def test_calls_are_found_by_what_they_show_and_read_page_by_page(
    front: Front, ledger: SQLiteLedger
) -> None:
    now = time.time()
    slow = ProviderTimeout("slow")
    first = put(
        ledger, tried("openai", "gpt-5"), caller="web", at=now - 90, tags={"project": "100%_a"}
    )
    second = put(ledger, tried("down", "x", error=slow), tried("groq", "llama"), at=now - 80)
    third = put(ledger, tried("openai", "gpt-5", error=slow), model="big", error=slow, at=now - 70)
    rest = [put(ledger, tried("openai", "gpt-5"), at=now - 60 + n) for n in range(5)]

    def ids(query: str) -> list[str]:
        return [each["id"] for each in told(front, f"/calls?{query}")["calls"]]

    assert (
        ids("q=groq/llama")
        == ids("q=GROQ")
        == ids("provider=down")
        == ids("model=llama")
        == [second.id]
    )
    assert ids(f"q={first.id[:10]}") == ids(urlencode({"q": "PROJECT web"})) == [first.id]
    assert ids(urlencode({"q": "100%_A"})) == ids("caller=web") == [first.id]
    assert ids(urlencode({"q": "%"})) == [first.id] and ids(urlencode({"q": "web groq"})) == []
    assert (
        ids("status=error")
        == ids("status=5xx")
        == ids("status=504")
        == ids("model=big")
        == [third.id]
    )
    assert ids("error=upstream_timeout") == ids("q=timeout") == [third.id, second.id]
    pages, query = [], "limit=3"
    while query:
        found = told(front, f"/calls?{query}")
        pages.append([each["id"] for each in found["calls"]])
        query = f"limit=3&before={quote(found['next'])}" if found["next"] else ""
    every = [call.id for call in [*reversed(rest), third, second, first]]
    assert pages == [every[:3], every[3:6], every[6:]]
    text = page(front, "?status=error")
    assert "504 upstream_timeout" in text and "Show all calls" in text and "ok fast" not in text
    assert "No call fits." in page(front, "?q=nothing-like-it")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("status=bad", "status must be"),
        ("before=x", "before must be the `next` of an earlier page"),
        ("before=99999999999999999999-a", "before must be"),
        ("limit=0", "limit must be"),
        ("statsu=ok", "did you mean 'status'?"),
        ("q=" + "x" * 201, "q must be at most 200 characters long"),
    ],
)
def test_a_wrong_search_is_refused_and_the_page_says_so(
    front: Front, query: str, message: str
) -> None:
    answer = ask(front.port, f"/ops/calls?{query}", headers=BEARER)
    assert answer.status == 400 and message in json.loads(answer.data)["error"]["message"]
    assert ask(front.port, f"/ops/status?{query}", headers=LOGIN).status == 200
    if "statsu" not in query:  # a page ignores what it does not know
        assert message.split("`")[0].strip() in page(front, f"?{query}")


# -- what it must not do ---------------------------------------------------------------------------


def test_it_is_for_operators_and_lets_nothing_in_or_out(front: Front) -> None:
    refused = ask(front.port, "/ops/status")
    assert refused.status == 401 and refused.headers["WWW-Authenticate"].startswith("Basic ")
    one, other = (ask(front.port, "/ops/status", headers=LOGIN) for _ in range(2))
    policy = one.headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]{20,})'", policy)
    assert nonce and policy == (
        f"default-src 'none'; style-src 'nonce-{nonce[1]}'; script-src 'nonce-{nonce[1]}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    assert nonce[1] not in other.headers["Content-Security-Policy"]
    assert f'nonce="{nonce[1]}"' in one.data.decode()
    assert one.headers["Content-Type"] == "text/html; charset=utf-8"
    assert [one.headers[name] for name in ("Cache-Control", "Referrer-Policy", "X-Content-Type-Options")] == [
        "no-store", "no-referrer", "nosniff"]  # fmt: skip
    assert '<noscript><meta http-equiv="refresh"' in one.data.decode()
    assert ADMIN not in one.data.decode()


def test_only_a_browser_that_no_other_site_directs_gets_a_compressed_page(front: Front) -> None:
    packed = {**LOGIN, "Accept-Encoding": "gzip, br", "Sec-Fetch-Site": "same-origin"}
    answer = ask(front.port, "/ops/status", headers=packed)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert b"<main" in gzip.decompress(answer.data)
    for site in ({"Sec-Fetch-Site": "cross-site"}, {}):
        answer = ask(
            front.port, "/ops/status", headers={**LOGIN, "Accept-Encoding": "gzip", **site}
        )
        assert "Content-Encoding" not in answer.headers and b"<main" in answer.data


def test_names_are_text_and_nothing_else(front: Front, ledger: SQLiteLedger) -> None:
    hostile(ledger)
    front.router.targets.breaker(Target("down", "gone-1")).cool_down(60, HOSTILE)
    for query in (
        "",
        "?"
        + urlencode(
            {"q": HOSTILE, "model": NASTY, "error": HOSTILE, "provider": NASTY, "status": "4xx"}
        ),
    ):
        html = ask(front.port, f"/ops/status{query}", headers=LOGIN).data.decode()
        tags = parsed(html).tags
        assert Counter(tag for tag, _ in tags if tag in ("script", "style", "img", "main")) == {
            "script": 1,
            "style": 1,
            "main": 1,
        }
        names = [name for _, attributes in tags for name in attributes]
        assert not [name for name in names if name == "style" or name.startswith("on")]
        assert "\u202e" not in html and "\x1b" not in html
    assert r"\u202e\n{{7*7}}" in html


# -- login -----------------------------------------------------------------------------------------


def send(front: Front, method: str, path: str, body: str = "", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=30)
    with closing(connection):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body.encode(), sent)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def cookie_of(answer: Answer) -> str:
    jar = SimpleCookie(answer.headers["Set-Cookie"])
    return f"infermux_admin={jar['infermux_admin'].value}"


def token_of(html: str) -> str:
    found = re.search(r'data-csrf="([^"]+)"', html)
    assert found
    return found[1]


FORM = {"Content_Type": "application/x-www-form-urlencoded"}


def test_a_form_logs_in_without_the_key_in_a_url_or_a_cookie(front: Front) -> None:
    form = send(front, "GET", "/ops/status/login")
    assert form.status == 200 and 'type="password"' in form.data.decode()
    wrong = send(front, "POST", "/ops/status/login", "key=wrong", **FORM)
    assert wrong.status == 401 and "Set-Cookie" not in wrong.headers
    answer = send(front, "POST", "/ops/status/login", urlencode({"key": ADMIN}), **FORM)
    assert (answer.status, answer.headers["Location"]) == (303, "../status")
    said = answer.headers["Set-Cookie"]
    assert "HttpOnly" in said and "SameSite=Lax" in said and ADMIN not in said
    cookie = cookie_of(answer)
    shown = send(front, "GET", "/ops/status", Cookie=cookie)
    assert shown.status == 200 and "Log out" in shown.data.decode()
    assert send(front, "GET", "/ops/status/login", Cookie=cookie).status == 303
    assert send(front, "GET", "/ops/costs", Cookie=cookie).status in (200, 404)
    forged = cookie[:-1] + ("1" if cookie.endswith("0") else "0")
    again = send(front, "GET", "/ops/status", Cookie=forged, Accept="text/html")
    assert again.status == 401 and "WWW-Authenticate" not in again.headers  # no dialog: a form
    assert 'action="status/login"' in again.data.decode()
    first = send(front, "GET", "/ops/status", Accept="text/html")
    assert first.status == 401 and first.headers["WWW-Authenticate"].startswith("Basic ")
    assert send(front, "GET", f"/ops/status?key={ADMIN}").status == 401


def test_a_login_ends_with_its_hours_or_its_key() -> None:
    from flask import Request
    from werkzeug.test import EnvironBuilder

    from infermux.web import auth

    def asked(value: str) -> Request:
        return Request(EnvironBuilder(headers={"Cookie": f"infermux_admin={value}"}).get_environ())

    made = Flask("x").response_class()
    auth.log_in(made, asked(""), "key")
    value = cookie_of(Answer(200, made.headers, b"")).partition("=")[2]  # type: ignore[arg-type]
    assert auth.is_logged_in(asked(value), "key")
    assert not auth.is_logged_in(asked(value), "another key")
    assert not auth.is_logged_in(asked(value), "key", lambda: time.time() + 13 * 3600)
    later = "9" * 11 + value[value.index(".") :]
    for forged in (later, "", ".", "..", "é.a.b", "1e9.a.b", value + "0"):
        assert not auth.is_logged_in(asked(forged), "key")


@pytest.mark.parametrize("login", ["basic", "cookie"])
def test_a_circuit_is_changed_only_by_our_own_page(front: Front, login: str) -> None:
    made = send(front, "POST", "/ops/status/login", urlencode({"key": ADMIN}), **FORM)
    who = LOGIN if login == "basic" else {"Cookie": cookie_of(made)}
    token = token_of(send(front, "GET", "/ops/status", **who).data.decode())
    path, body = "/ops/providers/echo/circuit/open", '{"model": "echo-v1"}'
    is_open = lambda: front.router.targets.breaker(Target("echo", "echo-v1")).forced_open  # noqa: E731
    attacks: list[dict[str, str]] = [
        {},
        {"X_Infermux_Csrf": ""},
        {"X_Infermux_Csrf": "a." + token.partition(".")[2]},
        {"X_Infermux_Csrf": token[:-1]},
        {"X_Infermux_Csrf": "é"},
        {"X_Infermux_Csrf": token, "Sec_Fetch_Site": "cross-site"},
        {"X_Infermux_Csrf": token, "Sec_Fetch_Site": "same-site"},
    ]
    for more in attacks:
        assert send(front, "POST", path, body, **who, **more).status == 401
    assert send(front, "POST", path, body, X_Infermux_Csrf=token).status == 401  # it is no login
    assert not is_open()
    answer = send(
        front, "POST", path, body, **who, X_Infermux_Csrf=token, Sec_Fetch_Site="same-origin"
    )
    assert answer.status == 200 and is_open()
    preflight = send(front, "OPTIONS", path, Origin="https://evil.example")
    assert not [name for name in preflight.headers if name.lower().startswith("access-control")]
    assert send(front, "POST", "/ops/status/logout", **who).status == 401
    out = send(front, "POST", "/ops/status/logout", **who, X_Infermux_Csrf=token)
    assert out.status == 204 and "Max-Age=0" in out.headers["Set-Cookie"]


@pytest.mark.slow
def test_a_login_and_a_button_reach_every_worker() -> None:
    env = {"INFERMUX_ADMIN_KEY": ADMIN}
    with Service("-w", "3", "--threads", "8", env=env) as service:
        made = ask_form(service.port)
        cookie = {"Cookie": cookie_of(made)}

        def told(path: str) -> Any:
            answer = ask(service.port, path, headers=cookie)
            assert answer.status == 200
            return json.loads(answer.data)

        eventually(lambda: told("/status/overview")["service"]["workers"] == 3, "three workers")
        for _ in range(10):
            assert ask(service.port, "/infer", HELLO).status == 200
            assert ask(service.port, "/status", headers=cookie).status == 200
        page = ask(service.port, "/status", headers=cookie).data.decode()
        assert "3 workers" in page and "All 1" not in page and "echo/echo-v1 answers" in page
        sure = {**cookie, "X-Infermux-Csrf": token_of(page)}
        done = ask(service.port, "/providers/echo/circuit/open", {"model": "echo-v1"}, headers=sure)
        assert done.status == 200 and json.loads(done.data)["done"] == 3
        for _ in range(10):
            assert (
                "out of service: echo/echo-v1, taken out by an operator"
                in told("/status/overview")["sentence"]
            )
        found = told("/status/overview")["service"]
        assert found["started"] <= found["youngest_worker_started"]
        assert found["configuration"]["configuration"] == "the environment"


def ask_form(port: int) -> Answer:
    """Log in at a service with the form."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with closing(connection):
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/status/login", urlencode({"key": ADMIN}), kind)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
