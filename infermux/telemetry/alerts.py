"""Posts alerts to a webhook from a background thread, signed, and again if that fails.

A message is JSON with a `text`, as Slack and those like it read. The header X-Infermux-Signature is
"t=SECONDS,v1=HEX": the HMAC-SHA256 of "SECONDS.BODY" by the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any, NamedTuple

from ..planning.call import Call
from ..protocol import new_id, strict_json
from ..types import JSON
from .exporter import Exporter, Send
from .shared_memory import SharedMemory
from .tokentrace import HEADERS, unopened

EVENTS = ("budget", "target", "prices", "records")
SIGNATURE = "X-Infermux-Signature"
TIMEOUT_SECONDS = 10.0  # to connect, and for each part of the answer
WAITS = (1.0, 5.0, 25.0, 60.0, 300.0, 900.0, 1800.0, 3600.0)  # seconds before each further try
QUEUE = 100  # alerts that wait
MAX_ANSWER = 4096  # bytes that are read
log = logging.getLogger("infermux")


class Alert(NamedTuple):
    """An alert: `event` is one of EVENTS, `subject` identifies its cause."""

    event: str
    subject: str
    text: str
    details: JSON = {}  # noqa: RUF012 - it is never changed


class Alerts(Exporter[tuple[str, bytes]]):
    """Sends alerts to *url*; an observer that notes the callers whose budgets refuse calls.

    *secret* is the key of the signature. `begin` is called with the first call that ends.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        events: Collection[str] = EVENTS,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__("alerts cannot be sent", threads=1, size=QUEUE, linger=0.0)
        self._url, self._secret, self._wait = url, secret.encode(), wait
        self.events = frozenset(events)
        self.refused: dict[str, float] = {}  # when budgets refused a call last, by owner
        self.unsent: dict[str, None] = {}  # subjects that wait to be sent, or to be sent again
        self.begin: Callable[[], object] | None = None
        self.memory: SharedMemory | None = None  # where outcomes are counted
        self._beginning = threading.Lock()

    def __call__(self, call: Call) -> None:
        refused = call.error is not None and call.error.code == "budget_exceeded"
        if (refused or call.override) and call.spent is not None and not call.spent.user:
            self.refused[call.spent.owner] = time.time()
        if self.begin is not None:
            with self._beginning:
                begin, self.begin = self.begin, None
            if begin is not None:
                begin()

    def send(self, alert: Alert) -> None:
        body = {
            "text": alert.text,
            "event": alert.event,
            "subject": alert.subject,
            "id": new_id(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": host(),
            **({"details": alert.details} if alert.details else {}),
        }
        log.warning("alert: %s", alert.text)
        self.unsent[alert.subject] = None
        self.put((alert.subject, strict_json.encode(body)))

    def sender(self) -> Send[tuple[str, bytes]]:
        return self._post_all

    def _post_all(self, alerts: list[tuple[str, bytes]]) -> int:
        for subject, body in alerts:
            why = self._failed(subject, body)
            self._count("failed" if why else "sent")
            if why:
                log.error("an alert could not be sent to the webhook (%s); it is given up", why)
        return 0  # spans alone count as dropped spans

    def _failed(self, subject: str, body: bytes) -> str:
        """Post an alert until it is accepted; return why it never was, or ""."""
        why = ""
        for wait in (0.0, *WAITS):
            if wait:
                self.unsent[subject] = None
                self._count("retried")
                self._wait(wait)
            self.unsent.pop(subject, None)
            try:
                status = self._post(body)
            except (OSError, ValueError, HTTPException) as error:
                why = type(error).__name__
                continue
            if 200 <= status < 300:
                return ""
            why = f"status {status}"
            if 300 <= status < 500 and status not in (408, 425, 429):
                return why  # it will not accept it later; redirects are not followed
        return why

    def _count(self, outcome: str) -> None:
        if self.memory is not None:
            self.memory.count("alerts_total", outcome)

    def _post(self, body: bytes) -> int:
        link, path = unopened(self._url, TIMEOUT_SECONDS)
        with closing(link):
            signed = {SIGNATURE: signature(body, self._secret, int(time.time()))}
            link.request("POST", path, body, HEADERS | signed)
            answer = link.getresponse()
            answer.read(MAX_ANSWER)
            return answer.status


def signature(body: bytes, secret: bytes, at: int) -> str:
    """Return the header that signs *body* at the second *at*."""
    digest = hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def host() -> str:
    return socket.gethostname()[:100]


def alerts_of(observers: Collection[Any]) -> Alerts | None:
    return next((each for each in observers if isinstance(each, Alerts)), None)
