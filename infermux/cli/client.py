"""Asks a running service what its operators may know."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import click

from .. import build
from ..protocol import strict_json
from . import OneLine, checked

Command = Callable[..., Any]

PATIENCE = 10.0  # seconds
_MOST = 16 * 2**20  # bytes of an answer


class Unreachable(OneLine):
    """No service answered."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key along."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)


def ask(
    server: str, path: str, body: object = None, *, key: str = "", method: str | None = None
) -> Any:
    """Return what the service at *server* answers; a body goes as JSON. Raise Unreachable, or
    OneLine with what it says is wrong.
    """
    url = (server if "://" in server else f"http://{server}").rstrip("/") + path
    if not url.startswith(("http://", "https://")):
        raise OneLine(f"a service has an address like http://localhost:8600, not {server}")
    data = None if body is None else strict_json.encode(body)
    headers = {
        "Content-Type": "application/json",
        **({"Authorization": f"Bearer {key}"} if key else {}),
    }
    try:
        wanted = urllib.request.Request(url, data, headers, method=method)
        with _OPENER.open(wanted, timeout=PATIENCE) as answer:
            return strict_json.loads(answer.read(_MOST))
    except urllib.error.HTTPError as error:
        raise OneLine(f"the service at {server} says {error.code}: {_reason(error)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(
            f"no service answers at {server}: {getattr(error, 'reason', None) or error}"
        ) from None


def _reason(error: urllib.error.HTTPError) -> str:
    """Return the message of an error of ours, or that there is none."""
    try:
        with error:
            return str(strict_json.loads(error.read(_MOST))["error"]["message"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return "without a word of explanation"


def service_options(command: Command) -> Command:
    """Give *command* the options that name a running service."""
    key = click.option(
        "--key",
        envvar="INFERMUX_ADMIN_KEY",
        metavar="KEY",
        help="With --server: the admin key; better as the variable "
        "INFERMUX_ADMIN_KEY, which no other user sees.  [default: [server].admin of the configuration]",
    )
    return click.option("--server", metavar="URL", help="Ask the service that runs there.")(
        key(command)
    )


def admin_key(given: str | None, config: str | None) -> str:
    """Return the admin key: as given, else the configured one."""
    if given is not None:
        return given
    admin = checked(lambda: build.settings(path=config)).server.admin
    return admin.reveal() if admin is not None else ""
