"""The status page for operators: one HTML page that loads no other files, and its login.

It shows the data of GET /status/overview and GET /calls. All of its state is in its URL, so it also
works without scripts; with them it refreshes itself part by part.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlencode

from flask import Response, request
from jinja2 import Environment, PackageLoader, StrictUndefined

from ...errors import RequestError, printable
from ...ledger import LedgerUnavailable
from ...ledger.recent.activity import OTHERS
from ...ledger.recent.search import Page, Search, find
from ...pricing import PICO, usd
from ...routing.router import Router
from .. import Route, auth
from ..auth import Admin, admin_key, admin_only
from ..http import Api, json_response, query_of, read_body
from . import overview
from .sentence import meaning, phrase

MAX_FORM = 4096  # bytes of the login's form
_POLICY = (
    "default-src 'none'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HOST = re.compile(r"[\w.:\[\]-]{1,253}", re.ASCII)
log = logging.getLogger("infermux")
About = Callable[[], Mapping[str, str]]


class StatusPage:
    def __init__(
        self,
        router: Router,
        admin: Admin = None,
        *,
        about: About = dict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._router, self._admin, self._about, self._clock = router, admin, about, clock
        self._guarded = admin_only(admin, lambda _: self.response())

    def routes(self) -> list[Route]:
        return [
            ("GET", "/status", self.page),
            ("GET", "/status/overview", admin_only(self._admin, self.json)),
            ("GET", "/status/login", self.login),
            ("POST", "/status/login", self.login),
            ("POST", "/status/logout", admin_only(self._admin, self.logout)),
        ]

    def page(self, api: Api) -> Response:
        """Return the page to an operator; a browser without a key gets a form to log in.

        A browser whose login has expired is not asked for HTTP Basic.
        """
        response = self._guarded(api)
        if response.status_code != 401 or "text/html" not in request.headers.get("Accept", ""):
            return response
        form = _login_form("", status=401)
        if "WWW-Authenticate" in response.headers and not auth.has_cookie(request):
            form.headers["WWW-Authenticate"] = response.headers["WWW-Authenticate"]
        return form

    def json(self, _: Api) -> Response:
        """Return the data of the page, without the calls."""
        query_of("span")
        return json_response(self._seen(request.args.get("span", "")).to_dict())

    def response(self) -> Response:
        """Return the page; its Content-Security-Policy allows only its own script and style."""
        given = request.args.to_dict()
        found = self._seen(given["span"] if given.get("span") in overview.SPANS else "")
        page, search, problem = self._calls(given)
        return _rendered(
            "status.html",
            view=found,
            of={step.start: overview.sums(step) for step in found.steps},
            page=page,
            search=search,
            problem=problem,
            models=self._names(found),
            callers=sorted(self._router.keyring.callers) if self._router.keyring else [],
            link=_links(given, found.span.name),
            curl=_curl(self._router),
            csrf="" if self._admin is None else auth.csrf_token(admin_key(self._admin)),
            session=auth.has_cookie(request),
        )

    def _seen(self, span: str) -> overview.Overview:
        return overview.overview(self._router, overview.span_of(span), self._clock(), self._about())

    def _calls(self, given: Mapping[str, str]) -> tuple[Page | None, Search, str]:
        """Return a page of calls, or None without a ledger, and an error message."""
        ledger, problem = self._router.ledger, ""
        try:
            wanted = overview.search_of(given)
        except RequestError as error:
            wanted, problem = Search(), error.message
        page = None
        try:
            page = find(ledger, wanted) if ledger is not None else None
        except LedgerUnavailable as error:
            log.error("the ledger cannot be read for the status page: %s", error.reason)
        return page, wanted, problem

    def _names(self, found: overview.Overview) -> list[str]:
        registry = self._router.registry
        names = [*registry.names, *(target.model for target in registry.targets())]
        seen = found.whole.targets if found.whole else ()
        names += [total.key[1] for total in seen if total.key[1] not in ("", OTHERS)]
        return [name for name in dict.fromkeys(names) if name.isprintable()][:200]

    # -- login --

    def login(self, api: Api) -> Response:
        """Show the form, or check the key that it sends and set the cookie."""
        key = admin_key(self._admin)
        if request.method != "POST":
            return _redirect() if auth.is_logged_in(request, key) else _login_form("")
        if not auth.is_same_site(request):
            return _login_form("Log in on this page.", status=403)
        form = parse_qs(read_body(MAX_FORM).decode(errors="replace"), max_num_fields=10)
        given = form.get("key", [""])[0].strip()
        if not auth.is_key(given, key):
            if given:
                auth.check_no_caller(api, given)
            return _login_form("That is not the admin key.", status=401)
        response = _redirect()
        auth.log_in(response, request, key)
        return response

    def logout(self, _: Api) -> Response:
        response = Response(status=204)
        auth.log_out(response, request)
        return response


def _login_form(problem: str, status: int = 200) -> Response:
    here = request.path.endswith("/login")  # else at /status
    action = "login" if here else "status/login"
    return _rendered("login.html", status=status, problem=problem, action=action)


def _redirect() -> Response:
    headers = {"Location": "../status", "Referrer-Policy": "no-referrer"}
    return Response(status=303, headers=headers)


def _rendered(template: str, status: int = 200, **values: Any) -> Response:
    nonce = secrets.token_urlsafe(16)
    text = _PAGES.get_template(template).render(nonce=nonce, **values)
    headers = _HEADERS | {"Content-Security-Policy": _POLICY.format(nonce)}
    body = text.encode(errors="replace")
    if _may_compress():
        body = gzip.compress(body, compresslevel=5)
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding, Sec-Fetch-Site"}
    return Response(body, status=status, headers=headers)


def _may_compress() -> bool:
    """Whether to compress the page: not for a request that another site may have sent.

    The length of a compressed page could reveal its content to that site.
    """
    if "Sec-Fetch-Site" not in request.headers:
        return False
    return "gzip" in request.headers.get("Accept-Encoding", "") and auth.is_same_site(request)


def _links(given: Mapping[str, str], span: str) -> Callable[..., str]:
    """Return a function that makes the page's URL with some parameters changed."""
    names = ("span", *overview.PARAMETERS)
    now = {name: given[name] for name in names if given.get(name)} | {"span": span}

    def link(_anchor: str = "", **changes: str) -> str:
        kept = {name: value for name, value in (now | changes).items() if value}
        return "?" + urlencode(kept, errors="replace") + (f"#{_anchor}" if _anchor else "")

    return link


def _curl(router: Router) -> str:
    """Return a command for a first call, which is shown until there is a call."""
    host = request.host if _HOST.fullmatch(request.host) else "HOST"
    names = [*router.registry.names, *map(str, router.registry.targets()), "MODEL"]
    body = {"model": names[0], "messages": [{"role": "user", "content": "hello"}]}
    lines = [f"curl {request.scheme}://{host}/v1/chat/completions"]
    if router.keyring is not None and not router.keyring.open:
        lines.append('-H "Authorization: Bearer $API_KEY"')
    lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body))}"]
    return " \\\n  ".join(printable(line) for line in lines)


# -- template filters --


def money(pico: int | None, unpriced: int = 0) -> str:
    """Return pico-USD as rounded dollars; unpriced and tiny amounts do not become $0."""
    if pico is None or (unpriced and not pico):
        return "unpriced"
    dollars = Decimal(pico) / PICO
    if 0 < dollars < Decimal("0.000001"):
        return "<$0.000001"
    digits = 2 if dollars >= 1 or not pico else 4 if dollars >= Decimal("0.01") else 6
    return f"${dollars:,.{digits}f}" + (" + unpriced" if unpriced else "")


def duration(seconds: float | None) -> str:
    """Return seconds as 84 ms, 1.25 s or 4 min."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.{2 if seconds < 10 else 0}f} s"
    return f"{seconds / 60:.0f} min"


def count(number: int | None) -> str:
    """Return a number of tokens or calls as 9,500, 12.3k or 4.5M."""
    if number is None:
        return "–"
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= max(size, 10**4):
            return f"{number / size:.1f}{letter}"
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Return a number as `count` does, with its noun: 1 call, 12.3k calls."""
    return f"{count(number)} {noun}{'s' * (number != 1)}"


def share(part: float, whole: float) -> str:
    """Return a share as percent; a tiny share is not shown as 0."""
    percent = 100 * part / whole if whole else 0.0
    return "<0.1%" if 0 < percent < 0.05 else f"{percent:.1f}%"


def moment(seconds: float, form: str = "%H:%M:%S") -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):{form}}"


def unix(text: str) -> float:
    """Return the Unix time of an ISO 8601 text."""
    return datetime.fromisoformat(text).timestamp()


def tags(text: str) -> list[str]:
    return [f"{name}={value}" for name, value in json.loads(text).items()]


_PAGES = Environment(
    loader=PackageLoader("infermux.web.admin"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters["name"] = printable
_PAGES.globals |= {
    "meaning": meaning,
    "phrase": phrase,
    "plan_of": overview.plan_of,
    "top": overview.top,
    "sums": overview.sums,
}
_PAGES.filters |= {
    each.__name__: each
    for each in (money, duration, count, counted, share, moment, usd, unix, tags)
}
