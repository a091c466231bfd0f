"""`infermux status`: the targets of one or several running services."""

from __future__ import annotations

import http.client
import sys
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import click

from .. import build
from ..errors import InferMuxError, counted, printable
from ..protocol import strict_json
from ..types import JSON
from . import OneLine, command, config_option, json_option, json_text, table

_TIMEOUT = 10.0  # seconds for a service to answer
_MAX_ANSWER = 16 * 2**20  # bytes
_MAX_NAME = 32  # characters of a target in the table of status, so that a line has 80

key_option = click.option(
    "--key",
    envvar="INFERMUX_ADMIN_KEY",
    metavar="KEY",
    help="The admin key of the service; prefer the variable INFERMUX_ADMIN_KEY, which other "
    "users cannot see.  [default: [server].admin_key of the configuration]",
)


class StatusUnknown(OneLine):
    """The service could not be reached; exit code 2."""

    exit_code = 2


@command()
@click.option(
    "--server",
    "servers",
    multiple=True,
    default=["http://127.0.0.1:8600"],
    show_default=True,
    metavar="URL",
    help="The address of a service; may be repeated, for several hosts.",
)
@key_option
@config_option
@json_option("Print what the service answers, as JSON; of several, by address.")
def status(servers: tuple[str, ...], key: str | None, config: str | None, as_json: bool) -> None:
    """Show the state of each target of a running service.

    The state is that of all workers of a host; of several hosts, each has its own. Exit code 0 if
    every circuit is closed, 1 if one is not, 2 if a service cannot be asked.

    Example: infermux status --server http://127.0.0.1:8600
    """
    found, problems = dict[str, JSON](), []
    for server in dict.fromkeys(servers):
        try:
            found[server] = state = _state_of(server, admin_key(key, config))
        except StatusUnknown as error:
            problems.append(error.message)
    several = len(found) + len(problems) > 1
    if found and as_json:
        click.echo(json_text(found if several else state))
    elif found:
        texts = [f"{server}\n" * several + _status(**each) for server, each in found.items()]
        click.echo("\n\n".join(texts))
    if problems:
        raise StatusUnknown("; ".join(problems))
    targets = [target for each in found.values() for target in each["targets"]]
    sys.exit(0 if all(target["state"] == "closed" for target in targets) else 1)


def _state_of(server: str, key: str) -> JSON:
    """Return a service's answer about its targets; raise StatusUnknown."""
    try:
        found: JSON = ask_service(server, "/status/targets", key=key)
        _status(**found)
        if not all(isinstance(target["state"], str) for target in found["targets"]):
            raise TypeError
        return found
    except (OneLine, InferMuxError) as error:
        raise StatusUnknown(error.message) from None
    except (LookupError, TypeError, ValueError):
        raise StatusUnknown(f"the server at {server} is not InferMux") from None


def _status(targets: list[JSON], records: JSON | None = None) -> str:
    columns = ("TARGET", "STATE", "RETRY", "ERRORS", "P50", "P95", "/MIN")
    text = table(columns, [*map(_cells, targets)], right=(2, 3, 4, 5, 6))
    head, *lines = text.splitlines()
    for target, line in zip(targets, lines, strict=True):
        head += f"\n{line}" + (f"\n  {printable(target['reason'])}" if target["reason"] else "")
    if records and any(records.values()):  # an older service does not report them
        pending = counted(records["pending"], "call")
        head += f"\n\nledger: {pending} pending, {records['lost']} lost"
    return head


def _cells(target: JSON) -> tuple[str, ...]:
    name = f"{target['provider']}/{target['model'] or '(files and batches)'}"
    wait, rate = target["retry_in"], target["error_rate"]
    return (
        name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…",
        target["state"].replace("_", " "),
        "-" if wait == 0 else "?" if wait is None else f"{wait:.0f} s",
        "-" if rate is None else f"{rate:.0%}",
        *map(_seconds, (target["p50"], target["p95"])),
        f"{target['per_minute']:.1f}",
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


# -- the client of a running service --


_CONNECTIONS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


def ask_service(server: str, path: str, body: object = None, *, key: str) -> Any:
    """Return the answer of the service at *server* to a GET, or with a body to a POST.

    No proxy is used and no redirect is followed, as either could receive the key.
    """
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    try:
        url = urlsplit((server if "://" in server else f"http://{server}").rstrip("/") + path)
        if url.scheme not in _CONNECTIONS:
            raise OneLine(f"the address of a service is like http://localhost:8600, not {server}")
        data = None if body is None else strict_json.encode(body)
        with closing(_CONNECTIONS[url.scheme](url.netloc, timeout=_TIMEOUT)) as connection:
            connection.request("POST" if data else "GET", url.path, data, headers)
            answer = connection.getresponse()
            text = answer.read(_MAX_ANSWER)
        if answer.status == 200:
            return strict_json.loads(text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OneLine(f"no service answers at {server}: {why}") from None
    try:
        reason = strict_json.loads(text)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        reason = "(no error message)"
    raise OneLine(f"the service at {server} answers {answer.status}: {reason}")


def admin_key(given: str | None, config: str | None) -> str:
    if given is not None:
        return given
    admin = build.settings(path=config).server.admin_key
    return admin.reveal() if admin is not None else ""
