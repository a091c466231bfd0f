"""An operator's login in a browser: a signed cookie, and a token against forged requests.

Neither holds the admin key, and both end when it changes. A cookie or HTTP Basic alone may only
read, as other sites can make a browser send them; to change something, a page of ours adds the
token in a header, which other sites can neither read nor send.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable

from flask import Request, Response

COOKIE = "infermux_admin"
TOKEN = "X-Infermux-Csrf"
HOURS = 12  # until an operator must log in again
_DAY = 86_400


def _signed(key: str, purpose: str, text: str) -> str:
    message = f"infermux {purpose} {text}"
    data = message.encode(errors="replace")
    return hmac.digest(key.encode(errors="replace"), data, "sha256").hex()


def _is(signature: str, genuine: str) -> bool:
    return hmac.compare_digest(signature.encode(errors="replace"), genuine.encode())


def token(key: str) -> str:
    """Return a token that proves that a request comes from our page; each time another one."""
    nonce = secrets.token_urlsafe(12)
    return f"{nonce}.{_signed(key, 'csrf', f'{int(time.time() // _DAY)}.{nonce}')}"


def is_same_site(request: Request) -> bool:
    """Return whether a browser says that no other site has made it send the request."""
    return request.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")


def is_ours(request: Request, key: str) -> bool:
    """Return whether a request has a token of today or yesterday, and is not another site's."""
    nonce, _, signature = request.headers.get(TOKEN, "").partition(".")
    today = int(time.time() // _DAY)
    days = (today, today - 1)
    fits = [_is(signature, _signed(key, "csrf", f"{day}.{nonce}")) for day in days]
    return any(fits) and is_same_site(request)


def has_cookie(request: Request) -> bool:
    """Return whether the browser has logged in, whether that is still valid or not."""
    return COOKIE in request.cookies


def is_logged_in(request: Request, key: str, clock: Callable[[], float] = time.time) -> bool:
    """Return whether the request has a valid cookie."""
    expires, _, rest = request.cookies.get(COOKIE, "").partition(".")
    nonce, _, signature = rest.partition(".")
    if not (expires.isascii() and expires.isdigit() and len(expires) < 12):
        return False
    is_valid = _is(signature, _signed(key, "session", f"{expires}.{nonce}"))
    return is_valid and clock() < int(expires)


def log_in(response: Response, request: Request, key: str) -> None:
    """Set the cookie: scripts cannot read it, and other sites' forms do not send it."""
    expires, nonce = int(time.time()) + HOURS * 3600, secrets.token_urlsafe(16)
    value = f"{expires}.{nonce}.{_signed(key, 'session', f'{expires}.{nonce}')}"
    _set(response, request, value, HOURS * 3600)


def log_out(response: Response, request: Request) -> None:
    """Remove the cookie."""
    _set(response, request, "", 0)


def _set(response: Response, request: Request, value: str, seconds: int) -> None:
    response.set_cookie(
        COOKIE,
        value,
        max_age=seconds,
        path="/",  # a proxy may map another path to ours
        secure=request.is_secure,
        httponly=True,
        samesite="Lax",  # a link to the page in an alert works
    )
