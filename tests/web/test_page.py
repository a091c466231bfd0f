"""Tests of the status page: its content, hostile names, and a real browser."""

from __future__ import annotations

import base64
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, Browser
from doors import Front
from flask import Flask
from support import HELLO, ask, eventually

from infermux import EchoProvider, Router, blueprint, ops_blueprint
from infermux.errors import InferMuxError, ProviderTimeout, ProviderUnavailable, printable
from infermux.ledger import Total
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.call import Attempt, Call
from infermux.pricing import PICO
from infermux.protocol import InferRequest
from infermux.routing.accounting import record
from infermux.types import Caller, Target, Usage
from infermux.web.admin.status_page import StatusPage, count, duration, money, share

ADMIN = "adm-in-key"
LOGIN = {"Authorization": "Basic " + base64.b64encode(f"me:{ADMIN}".encode()).decode()}
HOSTILE = """</main></script><script>window.pwned = 1</script><img src=x onerror="window.pwned=1">'"&\u202e\n{{7*7}}"""
NASTY = """"><img src=x onerror=window.pwned=1><"""  # what a provider may be called
NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z


class Down:
    """A provider that is never there."""

    name, models = "down", ["gone-1"]

    def infer(self, request: InferRequest, deadline: object) -> Any:
        raise ProviderUnavailable("it is down")


def mounted(router: Router) -> Flask:
    app = Flask("host")
    app.jinja_env.autoescape = False  # the page must not depend on how its host renders
    app.register_blueprint(blueprint(router))
    app.register_blueprint(ops_blueprint(router, ADMIN), url_prefix="/ops")
    return app


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


def put(
    ledger: SQLiteLedger,
    *attempts: Attempt,
    model: str = "fast",
    caller: str = "",
    at: float | None = None,
    error: InferMuxError | None = None,
) -> Call:
    """Write down a call that began *at* that time, else a minute ago, and lasted half a second."""
    start = time.time() - 60 if at is None else at
    call = Call(
        InferRequest(model),
        Caller(caller),
        "openai",
        started=10.0,
        ended=10.5,
        start_ns=int(start * 1e9),
    )
    call.attempts, call.error = list(attempts), error
    assert ledger.settle(record(call))
    return call


def tried(
    provider: str,
    model: str,
    cost: int | None = None,
    *,
    error: InferMuxError | None = None,
    estimated: bool = False,
) -> Attempt:
    usage = None if error is not None else Usage(1000, 200, estimated=estimated)
    return Attempt(Target(provider, model), 10.0, ended=10.5, usage=usage, cost=cost, error=error)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def parsed(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    return reader


def page(front: Front) -> str:
    """Return the text of the page's main part, words parted by one space."""
    answer = ask(front.port, "/ops/status", headers=LOGIN)
    assert answer.status == 200
    return read(answer.data.decode())


def read(html: str) -> str:
    return " ".join(parsed(html[html.index("<main") : html.rindex("</main>")]).words)


# -- what it says ----------------------------------------------------------------------------------


def test_targets_calls_costs_and_errors_are_told(front: Front, ledger: SQLiteLedger) -> None:
    for _ in range(6):
        ask(front.port, "/infer", {**HELLO, "model": "gone-1"})
    put(ledger, tried("openai", "gpt-5", 3 * PICO // 2), caller="web")
    put(
        ledger,
        tried("openai", "gpt-5", error=ProviderTimeout("slow")),
        tried("anthropic", "claude", PICO // 4),
        caller="night",
    )
    put(ledger, tried("openai", "gpt-5", PICO), caller="web", at=time.time() - 25 * 3600)
    text = page(front)
    assert re.search(r"gone-1 down open circuit open", text)
    assert (
        "Calls, 24 h 8 " in text
        and "Failed, 24 h 75.0% 6 calls" in text
        and "Cost, 24 h $1.75 " in text
    )
    assert (
        "gpt-5 openai 1 1,000 / 200 $1.50" in text
        and "claude anthropic 1 1,000 / 200 $0.2500" in text
    )
    assert "web 1 1,000 / 200 $1.50" in text and "night 1 1,000 / 200 $0.2500" in text
    assert "upstream_timeout 0 1" in text and "upstream_error" in text
    assert (
        "fast → openai/gpt-5 web" in text and "fast → anthropic/claude · 2 attempts night" in text
    )


def test_a_calls_plan_is_told_with_what_was_left_out(front: Front) -> None:
    for _ in range(6):
        ask(front.port, "/infer", {**HELLO, "model": "gone-1"})
    assert ask(front.port, "/infer", {**HELLO, "model": "both"}).status == 200
    assert re.search(
        r"Plan priority echo/echo-v1 down/gone-1 was left out: circuit open .*? Attempts .*? echo/echo-v1 ok",
        page(front),
    )


def test_what_has_no_price_is_never_free_and_an_estimate_is_marked(
    front: Front, ledger: SQLiteLedger
) -> None:
    put(ledger, tried("own", "unknown"), caller="a")
    text = page(front)
    assert "$0" not in text[text.index("Cost by model") :]
    assert (
        "Cost, 24 h unpriced 1 attempt unpriced" in text
        and "unknown own 1 1,000 / 200 unpriced" in text
    )
    put(ledger, tried("own", "unknown"), tried("own", "tiny", 1, estimated=True), caller="b")
    assert "b 1 2,000 / 400 ≈ <$0.000001 + unpriced" in page(front)


def test_without_a_ledger_the_rest_is_shown(ledger: SQLiteLedger, tmp_path: Path) -> None:
    with Front(EchoProvider(), app=mounted) as front:
        ask(front.port, "/infer", HELLO)
        text = page(front)
        assert (
            "No ledger is configured" in text
            and "echo-v1 echo closed" in text
            and "Cost" not in text
        )
    with Front(EchoProvider(), app=mounted, ledger=ledger) as front:
        ask(front.port, "/infer", HELLO)
        shutil.rmtree(tmp_path / "ledger")
        text = page(front)
        assert (
            "The ledger cannot be read now" in text
            and "echo-v1 echo closed" in text
            and str(tmp_path) not in text
        )


def test_hours_that_are_over_are_asked_for_once_but_a_late_call_counts(tmp_path: Path) -> None:
    class Asked(SQLiteLedger):
        def totals(self, *by: str, **more: Any) -> list[Total]:
            asked[more["since"]] += 1
            return super().totals(*by, **more)

    asked: Counter[float] = Counter()
    with closing(Asked(tmp_path / "l.db")) as ledger:

        def at(router: Router) -> Flask:
            app = Flask("host")
            app.add_url_rule(
                "/ops/status", view_func=StatusPage(router, clock=lambda: NOON + 300).response
            )
            return app

        with Front(EchoProvider(), app=at, ledger=ledger) as front:
            put(ledger, tried("a", "m"), at=NOON - 7200)
            assert "Calls, 24 h 1 " in page(front)
            put(ledger, tried("a", "m"), at=NOON - 1)
            put(ledger, tried("a", "m"), at=NOON + 1)
            assert "Calls, 24 h 3 " in page(front)
    assert len(asked) == 24 and {since for since, times in asked.items() if times > 2} == {
        NOON - 3600,
        NOON,
    }


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


# -- what it must not do ---------------------------------------------------------------------------


def test_it_is_for_operators_and_lets_nothing_in_or_out(front: Front) -> None:
    refused = ask(front.port, "/ops/status")
    assert refused.status == 401 and refused.headers["WWW-Authenticate"].startswith("Basic ")
    one, other = (ask(front.port, "/ops/status", headers=LOGIN) for _ in range(2))
    policy = one.headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]{20,})'", policy)
    assert nonce and policy == (
        f"default-src 'none'; style-src 'nonce-{nonce[1]}'; script-src 'nonce-{nonce[1]}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert (
        nonce[1] not in other.headers["Content-Security-Policy"]
        and f'nonce="{nonce[1]}"' in one.data.decode()
    )
    assert one.headers["Content-Type"] == "text/html; charset=utf-8"
    assert [one.headers[name] for name in ("Cache-Control", "Referrer-Policy", "X-Content-Type-Options")] == [
        "no-store", "no-referrer", "nosniff"]  # fmt: skip
    assert '<noscript><meta http-equiv="refresh"' in one.data.decode()


def hostile(ledger: SQLiteLedger) -> None:
    put(ledger, tried(NASTY, HOSTILE), model=HOSTILE, caller=HOSTILE)
    put(ledger, tried("x" * 500, "y" * 500, 10**9), model="z" * 500, caller="w" * 500)
    put(ledger, model=HOSTILE, caller=NASTY, error=ProviderTimeout("slow"))


def test_names_are_text_and_nothing_else(front: Front, ledger: SQLiteLedger) -> None:
    hostile(ledger)
    html = ask(front.port, "/ops/status", headers=LOGIN).data.decode()
    tags = parsed(html).tags
    assert Counter(tag for tag, _ in tags if tag in ("script", "style", "img", "main")) == {
        "script": 1,
        "style": 1,
        "main": 1,
    }
    assert not [
        name
        for _, attributes in tags
        for name in attributes
        if name == "style" or name.startswith("on")
    ]
    assert "&lt;script&gt;window.pwned = 1" in html and r"\u202e\n{{7*7}}" in html


# -- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("there is no chromium with its chromedriver here")
    with Browser() as made:
        yield made


@pytest.fixture
def browser(window: Browser, front: Front) -> Browser:
    """A browser that has logged in; everything that its console says is noted from now on."""
    window.open("about:blank")
    window.log()
    window.size(1280)
    window.theme("light")
    window.open(f"http://me:{ADMIN}@127.0.0.1:{front.port}/ops/status")
    return window


def refresh(browser: Browser, hidden: bool = False) -> None:
    """Let the page believe that its tab was hidden, or is seen again, upon which it refreshes
    itself.
    """
    browser.run(
        "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))",
        hidden,
    )


def text(browser: Browser, selector: str) -> str:
    return str(
        browser.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
    )


def shows(browser: Browser, selector: str, wanted: str) -> Callable[[], bool]:
    return lambda: wanted in text(browser, selector)


# boxes that leave the screen; what is inline in one is cut off by it
BEYOND = """return [...document.querySelectorAll('main *')].filter(each => getComputedStyle(each).display != 'inline'
    && !each.closest('svg') && each.getBoundingClientRect().right > innerWidth + 0.5).map(each => each.outerHTML)"""


@pytest.mark.slow
def test_it_renders_on_any_screen_without_a_complaint(
    browser: Browser, front: Front, ledger: SQLiteLedger
) -> None:
    hostile(ledger)
    ask(front.port, "/infer", HELLO)
    refresh(browser)
    eventually(shows(browser, "#calls", "echo"), "the call")
    colours = []
    for theme in ("light", "dark"):
        browser.theme(theme)
        colours.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
        for width in (1280, 360):
            browser.size(width)
            browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
            assert browser.run("return document.scrollingElement.scrollWidth <= innerWidth")
            assert browser.run(BEYOND) == []
    assert colours[0] != colours[1]
    assert (
        browser.run("return document.querySelector('svg rect.all').getBoundingClientRect().height")
        > 1
    )
    assert (
        r"<script>window.pwned = 1</script>" in text(browser, "#models")
        and browser.run("return window.pwned") is None
    )
    assert browser.log() == []


@pytest.mark.slow
def test_it_refreshes_itself_and_keeps_what_is_open(
    browser: Browser, front: Front, ledger: SQLiteLedger
) -> None:
    call = put(ledger, tried("a", "first", 1), caller="one")
    refresh(browser)
    eventually(shows(browser, "#calls", "one"), "the first call")
    browser.run(
        "window.mark = 1; document.querySelector('.call summary').click(); document.querySelector('.call summary').focus()"
    )
    put(ledger, tried("b", "second", 1), caller="two", at=time.time())
    eventually(shows(browser, "#calls", "two"), "the second call, by itself")
    state = """return [window.mark, [...document.querySelectorAll('.call[open]')].map(each => each.id),
        document.activeElement.parentElement.id]"""
    assert browser.run(state) == [1, [f"call-{call.id}"], f"call-{call.id}"]
    assert call.trace_id in text(browser, "#calls")
    for _ in range(50):
        put(ledger, tried("c", "third"), caller="three", at=time.time())
    refresh(browser)
    eventually(shows(browser, "#calls", "three"), "the third call")
    assert browser.run(state)[1] == [f"call-{call.id}"]  # although it is no longer among the last
    assert browser.run("return document.querySelectorAll('.call').length") == 51
    assert browser.log() == []


def test_what_is_read_stays_where_it_is(browser: Browser, ledger: SQLiteLedger) -> None:
    calls = [put(ledger, tried("a", "m"), at=time.time() - 60 + n) for n in range(40)]
    refresh(browser)
    eventually(
        lambda: browser.run("return document.querySelectorAll('.call').length") == 40, "the calls"
    )
    place = f"return document.getElementById('call-{calls[5].id}').getBoundingClientRect().top"
    browser.run(f"document.getElementById('call-{calls[5].id}').scrollIntoView()")
    before = browser.run(place)
    put(ledger, tried("a", "m"), caller="new", at=time.time())
    refresh(browser)
    eventually(shows(browser, "#calls", "new"), "the new call")
    assert abs(browser.run(place) - before) < 2


def test_it_says_when_it_is_old(window: Browser, ledger: SQLiteLedger) -> None:
    with Front(EchoProvider(), app=mounted, ledger=ledger) as front:
        window.open(f"http://me:{ADMIN}@127.0.0.1:{front.port}/ops/status")
        refresh(window, hidden=True)
        assert text(window, "#note") == "Paused"
        refresh(window)
        eventually(shows(window, "#note", "Live"), "a refresh")
    refresh(window)
    eventually(shows(window, "#note", "The last refresh failed"), "the failure")
    assert "Targets" in text(window, "main")
    window.log()
