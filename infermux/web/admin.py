"""Who is an operator: whoever has the key that [server] admin names; a caller's own key opens
nothing here.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable

from flask import Response, request

from ..admission.keys import hashed
from ..config.schema import Secret
from ..errors import AuthenticationError, Forbidden
from . import View, failed, given_key, plain_error

_LOGIN = {"WWW-Authenticate": 'Basic realm="infermux", charset="UTF-8"'}


Admin = Secret | str | None | Callable[[], Secret | None]  # a function where a reload may change it


def guard(admin: Admin, view: View) -> View:
    """Return *view* for operators alone: a browser may log in to what only reads (any name, the key
    as password).
    """

    @functools.wraps(view)
    def guarded(**arguments: str) -> Response:
        key = admin() if callable(admin) else admin
        known = hashed(key.reveal() if isinstance(key, Secret) else key) if key else ""
        if not known:
            raise Forbidden("this is closed: no admin key is configured, as [server] admin")
        given = _given()
        if not given:
            return _login()
        if not hmac.compare_digest(hashed(given), known):
            raise Forbidden("this is open to operators alone, with the key of [server] admin")
        return view(**arguments)

    return guarded


def _reads() -> bool:
    return request.method in ("GET", "HEAD")


def _given() -> str:
    """Return the key that a request carries; a browser's login counts only where nothing changes:
    other sites can make it act.
    """
    login = request.authorization
    if login is not None and login.type == "basic":
        return login.password or "" if _reads() else ""
    return given_key()


def _login() -> Response:
    answer = failed(
        AuthenticationError("an admin key is needed: Authorization: Bearer KEY, or x-api-key: KEY"),
        plain_error,
    )
    answer.headers.update(_LOGIN if _reads() else {})
    return answer
