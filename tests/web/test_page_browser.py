"""Tests of the status page in a real Chromium: how it looks, refreshes itself, and what it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, Browser
from doors import Front
from pages import ADMIN, Down, hostile, mounted, put, tried
from support import HELLO, ask, eventually

from infermux import EchoProvider
from infermux.errors import ProviderTimeout, ProviderUnavailable
from infermux.ledger.sqlite import SQLiteLedger
from infermux.types import Target

ECHO = Target("echo", "echo-v1")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path / "l.db", busy=30)) as made:
        yield made


@pytest.fixture
def front(ledger: SQLiteLedger) -> Iterator[Front]:
    with Front(EchoProvider(), Down(), app=mounted, ledger=ledger) as made:
        made.router.registry.define("both", ["down/gone-1", "echo/echo-v1"])
        yield made


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
    window.zone("UTC")
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


# -- how it looks ----------------------------------------------------------------------------------

# boxes that leave the screen, or whose text leaves them; what is inline in one is cut off by it
BEYOND = """return [...document.querySelectorAll('header *, main *')].filter(each => {
    const style = getComputedStyle(each), box = each.getBoundingClientRect()
    return style.display != 'inline' && !each.closest('svg') && !each.closest('.sr, .skip') && box.width
        && (box.right > innerWidth + 0.5 || box.left < -0.5)}).map(each => each.outerHTML)"""
# texts whose contrast is less than WCAG's AA, and bars with less than 3 : 1
FAINT = """
const rgb = text => text.match(/[\\d.]+/g).map(Number)
const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0)
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05) }
const ground = each => { for (let at = each; at; at = at.parentElement) {
    const colour = rgb(getComputedStyle(at).backgroundColor); if (colour.length < 4 || colour[3] == 1) return colour }
    return rgb(getComputedStyle(document.body).backgroundColor) }
const found = []
for (const each of document.querySelectorAll('body *')) {
    const style = getComputedStyle(each), box = each.getBoundingClientRect()
    if (!box.width || each.closest('.sr, .skip, option') || style.visibility == 'hidden') continue
    if (each.matches('rect.all-bars, rect.bad-bars, rect.warn-bars, rect.soft-bars, rect.used')) {
        if (ratio(rgb(style.fill), ground(each.closest('.card'))) < 3) found.push(each.outerHTML)
    } else if ([...each.childNodes].some(node => node.nodeType == 3 && node.data.trim()) && !each.closest('svg')) {
        const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700
        if (ratio(rgb(style.color), ground(each)) < (large ? 3 : 4.5)) found.push(each.outerHTML.slice(0, 200))
    }
}
return found"""
# rows that have not exactly one place for the Tab key while they are closed
STOPS = """return [...document.querySelectorAll('.rows > details, .rows > .error')].filter(row =>
    [...row.querySelectorAll('a, button, summary, input, select, [tabindex]')].filter(each =>
        each.checkVisibility({visibilityProperty: true}) && each.tabIndex >= 0 && (row.open ? each : !each.closest('.detail'))).length != 1)
    .map(row => row.outerHTML.slice(0, 200))"""
UNNAMED = """return [...document.querySelectorAll('table')].filter(each => !each.caption).length
    + [...document.querySelectorAll('svg:not([aria-hidden])')].filter(each => !each.getAttribute('aria-label')).length
    + [...document.querySelectorAll('input:not([type=hidden]), select')].filter(each => !each.labels.length).length
    + [...document.querySelectorAll('th')].filter(each => !each.scope).length"""
CUT = """return [...document.querySelectorAll('.how b, .error code')].filter(each => each.scrollWidth > each.clientWidth + 1
    && getComputedStyle(each).overflow != 'visible').length"""


def busy_day(front: Front, ledger: SQLiteLedger) -> None:
    """Let there be something in every part of the page."""
    slow = ProviderTimeout("slow")
    slow.upstream_status = 504
    now = time.time()
    for n in range(40):
        at, cost = now - n * 1700 - 1, 10**9 * (n + 1)
        made = [tried("openai", "gpt-5", cost)] if n % 3 else [
            tried("down", "gone-1", error=slow), tried("echo", "echo-v1", cost)]  # fmt: skip
        put(ledger, *made, caller="web", at=at, tags={"project": "shop"}, seconds=n % 7 + 0.5)
    failed = tried("openai", "gpt-5", error=slow)
    put(ledger, failed, failed, error=slow, at=now - 30)
    for _ in range(6):
        ask(front.port, "/infer", {**HELLO, "model": "gone-1"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "widths", [(360,), pytest.param((1280, 768, 360), marks=pytest.mark.slow)], ids=["phone", "any"]
)
def test_it_fits_any_screen_by_day_and_by_night(
    browser: Browser, front: Front, ledger: SQLiteLedger, widths: tuple[int, ...]
) -> None:
    busy_day(front, ledger)
    hostile(ledger)
    refresh(browser)
    eventually(shows(browser, "#now", "is down"), "the failure")
    colours = []
    for theme in ("light", "dark"):
        browser.theme(theme, "reduce")
        colours.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
        for width in widths:
            browser.size(width)
            for opened in (False, True):
                browser.run(
                    "for (const each of document.querySelectorAll('details')) each.open = arguments[0]",
                    opened,
                )
                assert browser.run("return document.scrollingElement.scrollWidth <= innerWidth")
                assert browser.run(BEYOND) == [] and browser.run(CUT) == 0
                assert browser.run(FAINT) == [], (theme, width)
                if not opened:
                    assert browser.run(STOPS) == []
    assert colours[0] != colours[1] and browser.run(UNNAMED) == 0
    assert browser.run("return document.getAnimations().length") == 0
    assert (
        browser.run("return getComputedStyle(document.body).fontVariantNumeric") == "tabular-nums"
    )
    assert r"<script>window.pwned = 1</script>" in text(browser, "#models")
    assert browser.run("return window.pwned") is None
    assert browser.log() == []


@pytest.mark.slow
def test_a_page_without_calls_or_ledger_fits_too(window: Browser, ledger: SQLiteLedger) -> None:
    for options in ({"ledger": ledger}, {}):
        with Front(EchoProvider(), app=mounted, **options) as front:
            window.open(f"http://me:{ADMIN}@127.0.0.1:{front.port}/ops/status")
            for theme in ("light", "dark"):
                window.theme(theme)
                for width in (1280, 360):
                    window.size(width)
                    assert window.run("return document.scrollingElement.scrollWidth <= innerWidth")
                    assert window.run(BEYOND) == [] and window.run(FAINT) == []
            assert ("curl" in text(window, "main")) == bool(options)
    window.log()


@pytest.mark.slow
def test_times_are_the_readers_and_utc_is_told_on_hover(
    browser: Browser, ledger: SQLiteLedger, front: Front
) -> None:
    at = int(time.time()) - 60
    call = put(ledger, tried("echo", "echo-v1"), at=at)
    browser.zone("Asia/Kathmandu")
    browser.open(f"http://127.0.0.1:{front.port}/ops/status")
    shown = browser.run(
        "const [at] = document.querySelectorAll('#call-' + arguments[0] + ' time.at');"
        "return [at.textContent, at.title, at.dateTime]",
        call.id,
    )
    local = datetime.fromtimestamp(at, UTC) + timedelta(hours=5, minutes=45)
    utc = datetime.fromtimestamp(at, UTC)
    assert shown[1:] == [f"{utc:%Y-%m-%d %H:%M:%S} UTC", f"{utc:%Y-%m-%dT%H:%M:%SZ}"]
    assert shown[0] in (f"{local:%H:%M:%S}", f"{local.day} {local:%b %H:%M}")
    assert "Kathmandu" in text(browser, "#now") or "Katmandu" in text(browser, "#now")
    browser.zone("UTC")


# -- refreshing ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_refreshes_itself_and_keeps_what_is_open(
    browser: Browser, front: Front, ledger: SQLiteLedger
) -> None:
    call = put(ledger, tried("a", "first", 1), caller="one")
    refresh(browser)
    eventually(shows(browser, "#list", "one"), "the first call")
    browser.run(
        "window.mark = 1; document.querySelector('.call summary').click(); document.querySelector('.call summary').focus();"
        "document.querySelector('.target summary').click()"
    )
    put(ledger, tried("b", "second", 1), caller="two", at=time.time())
    eventually(shows(browser, "#list", "two"), "the second call, by itself")
    state = """return [window.mark, [...document.querySelectorAll('.call[open]')].map(each => each.id),
        document.activeElement.parentElement.id, document.querySelectorAll('.target[open]').length]"""
    assert browser.run(state) == [1, [f"call-{call.id}"], f"call-{call.id}", 1]
    assert call.trace_id in text(browser, "#calls")
    for _ in range(50):
        put(ledger, tried("c", "third"), caller="three", at=time.time())
    refresh(browser)
    eventually(shows(browser, "#list", "three"), "the third call")
    assert browser.run(state)[1] == [f"call-{call.id}"]  # although it is no longer among the last
    assert browser.run("return document.querySelectorAll('.call').length") == 51
    assert browser.log() == []


@pytest.mark.slow
def test_what_is_read_stays_where_it_is(browser: Browser, ledger: SQLiteLedger) -> None:
    calls = [put(ledger, tried("a", "m"), at=time.time() - 60 + n) for n in range(40)]
    refresh(browser)
    eventually(
        lambda: browser.run("return document.querySelectorAll('.call').length") == 40, "the calls"
    )
    place = f"return document.getElementById('call-{calls[5].id}').getBoundingClientRect().top"
    browser.run(f"document.getElementById('call-{calls[5].id}').scrollIntoView()")
    browser.run("document.querySelector('#filter [name=q]').value = 'half a wo'")
    before = browser.run(place)
    put(ledger, tried("a", "m"), caller="new", at=time.time())
    refresh(browser)
    eventually(shows(browser, "#calls", "new"), "the new call")
    assert abs(browser.run(place) - before) < 2
    assert browser.run("return document.querySelector('#filter [name=q]').value") == "half a wo"


@pytest.mark.slow
def test_it_says_when_it_is_old(window: Browser, ledger: SQLiteLedger) -> None:
    with Front(EchoProvider(), app=mounted, ledger=ledger) as front:
        window.open(f"http://me:{ADMIN}@127.0.0.1:{front.port}/ops/status")
        refresh(window, hidden=True)
        assert text(window, "#note") == "Paused"
        asked = "return performance.getEntriesByType('resource').length"
        before = window.run(asked)
        refresh(window, hidden=True)
        assert window.run(asked) == before
        refresh(window)
        eventually(shows(window, "#note", "Live"), "a refresh")
    refresh(window)
    eventually(shows(window, "#note", "The last refresh failed"), "the failure")
    assert "Targets" in text(window, "main")
    window.log()


# -- what it does ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_calls_are_searched_and_read_page_by_page(
    browser: Browser, front: Front, ledger: SQLiteLedger
) -> None:
    now = time.time()
    for n in range(120):
        put(ledger, tried("openai", "gpt-5"), model=f"m-{n}", at=now - n)
    slow = ProviderTimeout("slow")
    failed = put(
        ledger, tried("openai", "gpt-5", error=slow), model="odd", error=slow, at=now - 200
    )
    refresh(browser)
    count = "return document.querySelectorAll('.call').length"
    eventually(lambda: browser.run(count) == 50, "a page of calls")
    browser.run("window.mark = 1; document.querySelector('a[rel=next]').click()")
    eventually(shows(browser, "#list", "m-99"), "the second page")
    refresh(browser)
    assert "m-0 " not in text(browser, "#list") and "before=" in browser.run(
        "return location.search"
    )
    browser.run("document.querySelector('a[rel=next]').click()")
    eventually(lambda: browser.run(count) == 21, "the last page")
    browser.run("history.back()")
    eventually(lambda: browser.run(count) == 50, "the page before")
    browser.run(
        "document.querySelector('#filter [name=q]').value = 'odd timeout'; document.querySelector('#filter').requestSubmit()"
    )
    eventually(lambda: browser.run(count) == 1, "what was searched for")
    assert "504 upstream_timeout" in text(browser, f"#call-{failed.id}")
    browser.run("document.querySelector('.chips a').click()")
    eventually(lambda: browser.run(count) == 50, "all calls")
    browser.run("document.querySelector('#errors a').click()")
    eventually(lambda: browser.run(count) == 1, "the calls with that error")
    browser.run("document.querySelector('#span a').click()")
    eventually(
        lambda: (
            browser.run("return document.querySelector('#span [aria-current]').textContent")
            == "1 h"
        ),
        "an hour",
    )
    assert browser.run("return [window.mark, document.querySelectorAll('#latency g').length]") == [
        1,
        12,
    ]
    browser.open(browser.run("return location.href"))  # what the address says, anew
    assert browser.run(count) == 1
    assert browser.log() == []


def test_a_circuit_is_opened_and_closed_by_hand_with_the_keyboard(
    browser: Browser, front: Front
) -> None:
    place = "document.getElementById('target echo/echo-v1')"
    browser.run(f"{place}.querySelector('summary').focus()")
    browser.press("Enter")
    assert browser.run(f"return {place}.open")
    browser.press("Tab")
    assert browser.run("return document.activeElement.textContent") == "Stop calls"
    browser.press("Enter")
    assert browser.run("return document.activeElement.textContent") == "Tap again: stop all calls"
    breaker = front.router.targets.breaker(ECHO)
    assert not breaker.forced_open
    browser.press("Enter")
    eventually(lambda: breaker.forced_open, "the open circuit")
    eventually(shows(browser, "#now", "is out of service: echo/echo-v1"), "the sentence")
    assert "Done in 1 of 1 worker." in text(browser, "#targets")
    assert browser.run("return document.title").startswith("1 of 2 targets down")
    browser.run(f"{place}.querySelector('[data-act=close]').click()")
    eventually(lambda: not breaker.forced_open, "the closed circuit")
    eventually(shows(browser, "#now", "All 2 targets"), "the sentence")
    assert browser.log() == []


@pytest.mark.slow
def test_a_browser_logs_in_with_the_form_and_out_again(window: Browser, front: Front) -> None:
    window.open(f"http://127.0.0.1:{front.port}/ops/status/login")
    window.size(360)
    assert window.run(BEYOND) == [] and window.run(FAINT) == []

    def log_in(key: str) -> None:
        window.run(
            "document.querySelector('[name=key]').value = arguments[0]; document.querySelector('form').requestSubmit()",
            key,
        )

    log_in("wrong")
    eventually(shows(window, "body", "That is not the admin key."), "the refusal")
    log_in(ADMIN)
    eventually(shows(window, "#targets", "echo-v1"), "the page")
    assert ADMIN not in window.run(
        "return location.href + document.cookie + document.documentElement.outerHTML"
    )
    window.run("const b = document.querySelector('.target .danger'); b.click(); b.click()")
    eventually(lambda: any(front.router.targets.forced_open), "the open circuit")
    window.run("document.getElementById('logout').click()")
    eventually(lambda: window.run("return location.pathname") == "/ops/status/login", "the form")
    window.log()


@pytest.mark.slow
def test_a_bar_says_what_it_stands_for(browser: Browser, ledger: SQLiteLedger) -> None:
    error: Any = ProviderUnavailable("x")
    put(ledger, tried("down", "gone-1", error=error), tried("echo", "echo-v1"), seconds=2)
    refresh(browser)
    eventually(shows(browser, "#failovers", "1 call"), "the failover")
    for chart, said in (
        ("latency", "p50 2.00 s, p95 2.00 s"),
        ("failovers", "1 failover"),
        ("calls-by-step", "1 call, 0 failed"),
    ):
        browser.run(
            "[...document.querySelectorAll('#' + arguments[0] + ' g')].find(each => each.dataset.say.startsWith(arguments[1]))"
            ".firstElementChild.nextElementSibling.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true}))",
            chart,
            said,
        )
        assert text(browser, f"#{chart} output").endswith(said)
