"""Authentication: callers by API key or by the mounting app, operators by the admin key."""

from __future__ import annotations

import hmac
import logging
import mmap
import secrets
import threading
import time
from collections.abc import Callable

from flask import Request, Response, request

from ..admission import FULL
from ..admission.keys import hashed
from ..config import Secret
from ..errors import AuthenticationError, Forbidden, Overloaded, Unavailable
from ..protocol import InferRequest
from ..server import status
from ..telemetry.shared_memory import anonymous_file
from ..types import ANONYMOUS, Caller, fcntl
from .http import (
    Api,
    View,
    body_size,
    current_request,
    error_response,
    plain_error,
    read_body,
    refuse_body,
    start_call,
)

Admin = Secret | str | None | Callable[[], Secret | None]  # a function, if a reload may change it
MOST_READ = 65536  # bytes of a body that is read even when overloaded
_COOKIE, _CSRF = "infermux_admin", "X-Infermux-Csrf"
_LOGIN_HOURS = 12  # until an operator must log in again
_DAY = 86_400
_SEND_KEY = "send Authorization: Bearer KEY, or x-api-key: KEY"
log = logging.getLogger("infermux")


def authenticated(api: Api) -> Caller:
    """Return the caller by the mounting app or the API key; raise AuthenticationError."""
    if api.identify is not None:
        found = api.identify()
        return found if isinstance(found, Caller) else Caller(found) if found else ANONYMOUS
    keyring = api.router.keyring
    if keyring is None:
        return ANONYMOUS
    key = request_key()
    known = keyring.identify(key)
    if known is None:
        if ended := keyring.refusal(key):
            _login_failed(api, f"an API key that {ended.partition(',')[0]}")
            raise AuthenticationError(f"this API key {ended}: ask for a new one")
        if key:
            _login_failed(api, "an unknown API key")
        raise AuthenticationError(f"missing or unknown API key: {_SEND_KEY}")
    return known


def admitted(api: Api) -> Caller:
    """Authenticate before the body is read; raise AuthenticationError or Overloaded.

    Without a valid key the body is not read.
    """
    try:
        caller = authenticated(api)
    except (AuthenticationError, Unavailable):
        refuse_body()
        raise
    if api.router.admission.full:
        size = body_size()
        if size is not None and size <= MOST_READ:
            read_body()  # else a client still sending would miss the response
        else:
            refuse_body()
        error = Overloaded(FULL)
        api.router.finish(start_call(api, InferRequest("", []), caller), error)
        raise error
    return caller


def request_key() -> str:
    """Return the key in the Authorization, x-api-key or x-goog-api-key header, or ""."""
    header: dict[str, str] = current_request().environ
    scheme, _, bearer = header.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer" and bearer:
        return bearer.strip()
    return header.get("HTTP_X_API_KEY") or header.get("HTTP_X_GOOG_API_KEY", "")


# -- operators --


def admin_only(admin: Admin, view: View) -> View:
    """Wrap *view* to require the admin key.

    For GET, HTTP Basic is accepted too (any user name, the key as password), and so is the cookie
    of a login. For other methods they are only if the request comes from our page, as other sites
    can make a browser send them (CSRF).
    """

    def guarded(api: Api, **arguments: str) -> Response:
        key = admin_key(admin)
        reads = request.method in ("GET", "HEAD")
        may = reads or is_ours(request, key)
        login = request.authorization
        if login is not None and login.type == "basic":
            given = (login.password or "") if may else ""
        else:
            given = request_key()
        if is_key(given, key) if given else may and is_logged_in(request, key):
            return view(api, **arguments)
        refuse_body()
        if given:
            check_no_caller(api, given)
        error = AuthenticationError(f"{'unknown' if given else 'missing'} admin key: {_SEND_KEY}")
        response = error_response(error, plain_error)
        if reads:  # makes a browser ask for the key
            response.headers["WWW-Authenticate"] = 'Basic realm="infermux", charset="UTF-8"'
        return response

    return guarded


def admin_key(admin: Admin) -> str:
    """Return the admin key; raise Forbidden if none is configured."""
    key = admin() if callable(admin) else admin
    if isinstance(key, Secret):
        key = key.reveal()
    if not key:
        raise Forbidden("admin endpoints are disabled: no [server] admin_key is configured")
    return key


def is_key(given: str, key: str) -> bool:
    """Whether *given* is the key, in constant time."""
    return hmac.compare_digest(hashed(given), hashed(key))


def check_no_caller(api: Api, key: str) -> None:
    """Log a key that is not the admin key; raise Forbidden if it is a caller's."""
    keyring = api.router.keyring
    caller = keyring.identify(key) if keyring is not None else None
    if caller is None or caller is ANONYMOUS:
        _login_failed(api, "an unknown admin key")
        return
    _login_failed(api, f"the key of caller {caller.name!r} instead of the admin key")
    raise Forbidden("this endpoint requires the admin key, [server] admin_key")


# -- an operator's login in a browser: a signed cookie, and a token against forged requests --
#
# Neither holds the admin key, and both end when it changes. A page of ours sends the token in a
# header, which other sites can neither read nor send.


def _signed(key: str, purpose: str, text: str) -> str:
    data = f"infermux {purpose} {text}".encode(errors="replace")
    return hmac.digest(key.encode(errors="replace"), data, "sha256").hex()


def _is(signature: str, genuine: str) -> bool:
    return hmac.compare_digest(signature.encode(errors="replace"), genuine.encode())


def csrf_token(key: str) -> str:
    """Return a token that proves that a request comes from our page; each time another one."""
    nonce = secrets.token_urlsafe(12)
    return f"{nonce}.{_signed(key, 'csrf', f'{int(time.time() // _DAY)}.{nonce}')}"


def is_same_site(request: Request) -> bool:
    """Whether a browser says that no other site has made it send the request."""
    return request.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")


def is_ours(request: Request, key: str) -> bool:
    """Whether a request has a token of today or yesterday, and is not another site's."""
    nonce, _, signature = request.headers.get(_CSRF, "").partition(".")
    today = int(time.time() // _DAY)
    fits = [_is(signature, _signed(key, "csrf", f"{today - ago}.{nonce}")) for ago in (0, 1)]
    return any(fits) and is_same_site(request)


def has_cookie(request: Request) -> bool:
    """Whether the browser has logged in, whether that is still valid or not."""
    return _COOKIE in request.cookies


def is_logged_in(request: Request, key: str, clock: Callable[[], float] = time.time) -> bool:
    expires, _, rest = request.cookies.get(_COOKIE, "").partition(".")
    nonce, _, signature = rest.partition(".")
    if not (expires.isascii() and expires.isdigit() and len(expires) < 12):
        return False
    genuine = _signed(key, "session", f"{expires}.{nonce}")
    return _is(signature, genuine) and clock() < int(expires)


def log_in(response: Response, request: Request, key: str) -> None:
    """Set the cookie: scripts cannot read it, and other sites' forms do not send it."""
    expires, nonce = int(time.time()) + _LOGIN_HOURS * 3600, secrets.token_urlsafe(16)
    value = f"{expires}.{nonce}.{_signed(key, 'session', f'{expires}.{nonce}')}"
    _set(response, request, value, _LOGIN_HOURS * 3600)


def log_out(response: Response, request: Request) -> None:
    _set(response, request, "", 0)


def _set(response: Response, request: Request, value: str, seconds: int) -> None:
    response.set_cookie(
        _COOKIE,
        value,
        max_age=seconds,
        path="/",  # a proxy may map another path to ours
        secure=request.is_secure,
        httponly=True,
        samesite="Lax",  # a link to the page in an alert works
    )


# -- failed logins --


class AddressThrottle:
    """Limits log messages to one per minute and address, over this process and its forks.

    The table has a fixed size: a message may be dropped if its address shares a place.
    """

    def __init__(self) -> None:
        size = 8 * 4096  # bytes of the table
        self._fd = anonymous_file(size)
        self._last = memoryview(mmap.mmap(self._fd, size)).cast("d")  # shared; 0: never
        self._lock = threading.Lock()

    def due(self, address: str) -> bool:
        """Whether a message about *address* may be logged now; if so, restart its interval."""
        place, now = hash(address) % len(self._last), time.monotonic()
        with self._lock:  # of threads; the next one is of processes
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            last = self._last[place]
            if is_due := not last or now - last >= 60:
                self._last[place] = now
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
        return is_due


_throttle = AddressThrottle()  # made before the fork: workers share it


def _login_failed(api: Api, what: str) -> None:
    """Count a failed login, and log it at most once a minute for each address."""
    status.monitor(api.router).memory.count("failed_logins_total", api.name)
    address = request.remote_addr or "a local socket"
    if _throttle.due(address):
        log.warning("failed login from %s: %s (%s API)", address, what, api.name)
