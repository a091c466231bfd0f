"""Authentication: callers by API key or by the mounting app, operators by the admin key."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Callable

from flask import Response, request

from ..admission import FULL
from ..admission.keys import hashed
from ..config import Secret
from ..errors import AuthenticationError, Forbidden, Overloaded, RequestError
from ..protocol import InferRequest
from ..types import ANONYMOUS, Caller
from .http import Api, View, current_request, error_response, plain_error, read_body, start_call

Admin = Secret | str | None | Callable[[], Secret | None]  # a function where a reload may change it
_SEND_KEY = "send Authorization: Bearer KEY, or x-api-key: KEY"


def authenticated(api: Api) -> Caller:
    """Return the caller that the mounting app or the API key names; raise AuthenticationError."""
    if api.identify is not None:
        found = api.identify()
        return found if isinstance(found, Caller) else Caller(found) if found else ANONYMOUS
    if api.router.keyring is None:
        return ANONYMOUS
    known = api.router.keyring.identify(request_key())
    if known is None:
        raise AuthenticationError(f"missing or unknown API key: {_SEND_KEY}")
    return known


def admitted(api: Api) -> Caller:
    """Return the caller before the body is parsed; raise AuthenticationError or Overloaded.

    A refused body is read nevertheless: a client that is still sending would miss the response.
    """
    try:
        caller = authenticated(api)
    except AuthenticationError:
        with contextlib.suppress(RequestError):
            read_body()
        raise
    if api.router.admission.full:
        read_body()
        error = Overloaded(FULL)
        api.router.finish(start_call(api, InferRequest("", []), caller), error)
        raise error
    return caller


def request_key() -> str:
    """Return the key that the request carries, in either of the official SDKs' headers."""
    header: dict[str, str] = current_request().environ
    scheme, _, bearer = header.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer" and bearer:
        return bearer.strip()
    return header.get("HTTP_X_API_KEY", "")


# -- operators --


def admin_only(admin: Admin, view: View) -> View:
    """Return *view* behind the key of [server] admin.

    For GET, a browser may log in: any user name, and the key as password. Elsewhere a login does
    not count, because other sites can make a browser send it.
    """

    def guarded(*bound: object, **arguments: str) -> Response:
        key = admin() if callable(admin) else admin
        if isinstance(key, Secret):
            key = key.reveal()
        if not key:
            raise Forbidden("admin endpoints are disabled: no [server] admin key is configured")
        reads = request.method in ("GET", "HEAD")
        login = request.authorization
        if login is not None and login.type == "basic":
            given = (login.password or "") if reads else ""
        else:
            given = request_key()
        if not given:
            error = AuthenticationError(f"missing admin key: {_SEND_KEY}")
            response = error_response(error, plain_error)
            if reads:
                response.headers["WWW-Authenticate"] = 'Basic realm="infermux", charset="UTF-8"'
            return response
        if not hmac.compare_digest(hashed(given), hashed(key)):
            raise Forbidden("this endpoint requires the admin key, [server] admin")
        return view(*bound, **arguments)

    return guarded
