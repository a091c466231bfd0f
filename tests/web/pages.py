"""What the tests of the status page share: an app with it, rows of a ledger, and hostile names."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

from doors import Front
from flask import Flask
from support import ask

from infermux import Router, blueprint, ops_blueprint
from infermux.errors import InferMuxError, ProviderTimeout, ProviderUnavailable
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.call import Attempt, Call
from infermux.protocol import InferRequest
from infermux.routing.accounting import record
from infermux.types import Caller, Target, Usage

ADMIN = "adm-in-key"
LOGIN = {"Authorization": "Basic " + base64.b64encode(f"me:{ADMIN}".encode()).decode()}
BEARER = {"Authorization": f"Bearer {ADMIN}"}
HOSTILE = """</main></script><script>window.pwned = 1</script><img src=x onerror="window.pwned=1">'"&\u202e\n{{7*7}}\x1b[31m"""
NASTY = """"><img src=x onerror=window.pwned=1><"""  # what a provider may be called


class Down:
    """A provider that is never there."""

    name, models = "down", ["gone-1"]

    def infer(self, request: InferRequest, deadline: object) -> Any:
        error = ProviderUnavailable("it is down")
        error.cause = "connection refused"
        raise error


def mounted(router: Router) -> Flask:
    app = Flask("host")
    app.jinja_env.autoescape = False  # the page must not depend on how its host renders
    app.register_blueprint(blueprint(router))
    app.register_blueprint(
        ops_blueprint(router, ADMIN, about=lambda: {"configuration": "/etc/infermux.toml"}),
        url_prefix="/ops",
    )
    return app


def put(
    ledger: SQLiteLedger,
    *attempts: Attempt,
    model: str = "fast",
    caller: str = "",
    at: float | None = None,
    error: InferMuxError | None = None,
    tags: Mapping[str, str] | None = None,
    seconds: float = 0.5,
) -> Call:
    """Write down a call that began *at* that time, else a minute ago, and lasted *seconds*."""
    start = time.time() - 60 if at is None else at
    call = Call(
        InferRequest(model),
        Caller(caller),
        "openai",
        tags=tags or {},
        started=10.0,
        ended=10.0 + seconds,
        start_ns=int(start * 1e9),
    )
    call.attempts, call.error = list(attempts), error  # type: ignore[assignment]
    assert ledger.settle(record(call))
    return call


def tried(
    provider: str,
    model: str,
    cost: int | None = None,
    *,
    error: InferMuxError | None = None,
    estimated: bool = False,
    request_id: str = "",
) -> Attempt:
    usage = None if error is not None else Usage(1000, 200, estimated=estimated)
    return Attempt(
        Target(provider, model),
        10.0,
        ended=10.5,
        usage=usage,
        cost=cost,
        error=error,  # type: ignore[arg-type]
        upstream_ids=[request_id] if request_id else [],
    )


def hostile(ledger: SQLiteLedger) -> None:
    """Write down calls whose every text is an attack."""
    error = ProviderTimeout(HOSTILE)
    error.cause, error.code = HOSTILE, NASTY
    tags = {HOSTILE: HOSTILE, "project": NASTY}
    put(ledger, tried(NASTY, HOSTILE, request_id=HOSTILE), model=HOSTILE, caller=HOSTILE, tags=tags)
    put(ledger, tried("x" * 500, "y" * 500, 10**9), model="z" * 500, caller="w" * 500)
    failed = tried(NASTY, HOSTILE, error=error)
    put(ledger, failed, failed, model=HOSTILE, caller=NASTY, error=error, tags={"project": HOSTILE})


class Reader(HTMLParser):
    """The words and tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def parsed(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def page(front: Front, query: str = "") -> str:
    """Return the text of the page's main part, words parted by one space."""
    answer = ask(front.port, f"/ops/status{query}", headers=LOGIN)
    assert answer.status == 200
    return read(answer.data.decode())


def read(html: str) -> str:
    return " ".join(parsed(html[html.index("<main") : html.rindex("</main>")]).words)
