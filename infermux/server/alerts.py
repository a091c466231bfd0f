"""Watches budgets, targets, prices and records, and sends alerts about them.

A thread of each worker checks every few seconds; the ledger remembers what was sent, so that of all
workers and hosts one sends each alert, and at most one per subject and hour.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from ..ledger import BudgetState, LedgerUnavailable
from ..ledger.stores.alerts import AlertLog, Sent
from ..pricing import usd
from ..pricing.compare import stale
from ..routing.router import Router
from ..telemetry.alerts import Alert, Alerts, alerts_of, host
from ..types import LogThrottle, Target
from . import status

CHECK_SECONDS = 2.0
PRICES_SECONDS = 3600.0  # seconds between two checks of the age of the prices
HOUR = 3600.0  # in which a subject has one alert
DAY = 86_400.0  # in which old prices have one
FEW_SECONDS = 60.0  # seconds after which a loss that another worker has reported is a new one
SHARES = (100, 80, 50)  # percent of a budget
USED_UP = 80  # percent, from which a budget that refuses calls is used up
DOWN, UP = "target down ", "target up "  # begin the subjects of a target's alerts
_lock = threading.Lock()
_watchers: weakref.WeakKeyDictionary[Router, Watcher] = weakref.WeakKeyDictionary()
_throttle = LogThrottle(seconds=600.0)
log = logging.getLogger("infermux")


class Due(NamedTuple):
    """An alert that may be sent, and for how long it is not repeated; None: for ever."""

    alert: Alert
    rest: float | None = HOUR
    also: tuple[str, ...] = ()  # subjects that it makes superfluous
    sent: Callable[[], object] = lambda: None


class Watcher:
    """Checks one router's state, and sends the alerts that are due."""

    def __init__(self, router: Router, clock: Callable[[], float] = time.time) -> None:
        self._router = weakref.ref(router)
        self._clock = clock
        self._seen_down: set[Target] = set()
        self._also: dict[str, list[str]] = {}  # subjects claimed with one, which are not sent
        self._lost: int | None = None  # lost records that were reported
        self._prices_at = 0.0
        self._process = 0
        self._has_left = False

    def start(self) -> None:
        """Start the thread of this process, once."""
        with _lock:
            if self._process == os.getpid():
                return
            self._process = os.getpid()
        threading.Thread(target=self._run, name="infermux-alerts", daemon=True).start()

    def leave(self) -> None:
        """Have others send what could not be sent, and send no more."""
        self._has_left = True
        if (router := self._router()) is None or router.ledger is None:
            return
        if (alerts := alerts_of(router.observers)) is None:
            return
        with suppress(LedgerUnavailable):
            for subject in list(alerts.unsent):
                for each in (subject, *self._also.get(subject, ())):
                    router.ledger.alerts().undo(each, host())

    def _run(self) -> None:
        while (router := self._router()) is not None and not self._has_left:
            try:
                self.check(router)
            except LedgerUnavailable:
                pass  # what was sent is unknown
            except Exception:  # the next look may succeed
                if _throttle.due():
                    log.exception("alerts cannot be looked for")
            del router
            time.sleep(CHECK_SECONDS)

    def check(self, router: Router) -> None:
        alerts = alerts_of(router.observers)
        if alerts is None or router.ledger is None:
            return
        found = [*self._found(router, alerts)]
        if not found and not self._seen_down:
            return
        memory = router.ledger.alerts()
        known, now = memory.sent(), self._clock()
        found += self._recovered(router, alerts, known, now)
        for due in found:
            if self._has_left:
                return
            if _may_send(due, known, now) and self._claimed(due, memory, known, now):
                alerts.send(due.alert)
                due.sent()

    def _claimed(self, due: Due, memory: AlertLog, known: Mapping[str, Sent], now: float) -> bool:
        subject = due.alert.subject
        if not memory.claim(subject, known.get(subject), now, host()):
            return False
        also = self._also[subject] = [each for each in due.also if each not in known]
        for each in also:
            memory.claim(each, None, now, host())
        return True

    def _found(self, router: Router, alerts: Alerts) -> Iterator[Due]:
        if "budget" in alerts.events:
            yield from _budgets(router, alerts)
        looks = {"target": self._down, "prices": self._prices, "records": self._records}
        for event, look in looks.items():
            if event in alerts.events:
                yield from look(router)

    # -- targets --

    def _down(self, router: Router) -> Iterator[Due]:
        named = set(router.registry.targets())
        for each in status.targets(router):
            target = each.target
            if target not in named or each.state != "open" or each.forced:
                continue
            self._seen_down.add(target)
            why = "HTTP " * each.why.isdigit() + each.why
            text = f"{target} is down: {each.reason or 'circuit open'}" + f", {why}" * bool(why)
            if each.error_rate is not None:
                text += f"; {each.error_rate:.0%} of its calls failed in the last minute"
            yield _of_target(DOWN, target, text, reason=each.reason)

    def _recovered(
        self, router: Router, alerts: Alerts, known: Mapping[str, Sent], now: float
    ) -> Iterator[Due]:
        """Yield the targets that were reported as down and serve again."""
        told = {
            subject.removeprefix(DOWN): sent
            for subject, sent in known.items()
            if subject.startswith(DOWN)
        }
        if "target" not in alerts.events or not (told or self._seen_down):
            return
        for each in status.targets(router):
            target = each.target
            down = told.get(str(target))
            if each.state != "closed":
                continue
            saw, self._seen_down = target in self._seen_down, self._seen_down - {target}
            if down is None or _is_after(known.get(UP + str(target)), down):
                continue
            serves = each.error_rate is not None and each.error_rate < 0.5
            ours = down.host == host() or now - down.at >= HOUR
            if saw or (serves and ours):
                text = f"{target} is up again; it was down since {_minute(down.at)}"
                yield _of_target(UP, target, text)

    # -- prices and records --

    def _prices(self, router: Router) -> Iterator[Due]:
        now = self._clock()
        if now - self._prices_at < PRICES_SECONDS:
            return
        self._prices_at = now
        if warning := stale(now, router.targets.prices):
            yield Due(Alert("prices", "prices", warning[0].upper() + warning[1:]), DAY)

    def _were_told(self, router: Router) -> bool:
        """Whether an earlier worker of this service has sent all alerts about lost records."""
        sent = router.ledger.alerts().sent() if router.ledger is not None else {}
        last, began = sent.get("records"), status.monitor(router).memory.created
        return last is not None and began < last.at < self._clock() - HOUR

    def _records(self, router: Router) -> Iterator[Due]:
        lost = status.records(router).lost
        if self._lost is None or lost < self._lost:
            self._lost = lost if lost and self._were_told(router) else 0
        if lost <= self._lost:
            return

        def sent() -> None:
            self._lost = lost

        text = f"{lost} calls could not be recorded: their costs are in no report and no budget"
        yield Due(Alert("records", "records", text, {"lost": lost}), sent=sent)


def _of_target(kind: str, target: Target, text: str, **more: str | None) -> Due:
    return Due(Alert("target", kind + str(target), text, target._asdict() | more))


def _minute(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _is_after(up: Sent | None, down: Sent) -> bool:
    return up is not None and up.at >= down.at


# -- budgets --


def _budgets(router: Router, alerts: Alerts) -> Iterator[Due]:
    zone = router.ledger.zone if router.ledger is not None else UTC
    for state in status.budgets(router, mirrors=False):
        budget, used = state.budget, state.spent * 100 // state.limit if state.limit else 100
        at = alerts.refused.get(budget.owner)
        if used >= USED_UP and at is not None and budget.resets(at, zone) == state.resets:
            used = max(used, 100)
        reached = next((share for share in SHARES if used >= share), None)
        if reached is not None:
            yield _budget(state, reached)


def _budget(state: BudgetState, reached: int) -> Due:
    budget = state.budget
    kind, of = ("team", "") if budget.members else ("key", "of ")
    whose = f"The budget {of}{budget.caller!r}"
    per = "in total" if budget.period == "total" else f"per {budget.period}"
    spent, limit = usd(state.spent), usd(state.limit)
    what = f"{whose} has spent {reached} %: {spent} of {limit} USD {per}"
    if reached == 100:
        then = {"reject": "calls are refused", "warn": "calls are sent all the same"}
        what = f"{whose} is used up: {spent} of {limit} USD {per} are spent"
        what += f"; {then.get(budget.then, f'calls go to {budget.then}')}"
    if state.resets is not None:
        what += f"; it resets at {_minute(state.resets)}"
    details = {
        kind: budget.caller,
        "percent": reached,
        "spent_usd": spent,
        "limit_usd": limit,
        "period": state.key,
    }
    subject, *lower = (
        f"budget {share} {budget.owner} {state.key} {state.limit}"
        for share in SHARES
        if share <= reached
    )
    return Due(Alert("budget", subject, what, details), None, tuple(lower))


# -- what was sent --


def _may_send(due: Due, known: Mapping[str, Sent], now: float) -> bool:
    """Whether a subject may be alerted again; a target after it was up in between."""
    subject = due.alert.subject
    last = known.get(subject)
    if last is None:
        return True
    if due.rest is None or now - last.at < due.rest:
        if due.alert.event == "records" and now - last.at < FEW_SECONDS:
            due.sent()  # another worker has sent the same alert
        return False
    up = known.get(UP + subject.removeprefix(DOWN))
    return not subject.startswith(DOWN) or _is_after(up, last)


# -- threads --


def arm(router: Router) -> None:
    """Start watching for alerts at the first call of *router*, if it sends any."""
    alerts = alerts_of(router.observers)
    if alerts is not None:
        with _lock:
            watcher = _watchers.setdefault(router, Watcher(router))
        alerts.begin = watcher.start


def start() -> None:
    """Watch for the alerts of this process's routers, also before their first call."""
    for watcher in list(_watchers.values()):
        watcher.start()


def leave() -> None:
    """Leave the alerts that this process could not send to other workers, or to the next start."""
    for watcher in list(_watchers.values()):
        watcher.leave()
