"""Asking a model: the options, attachments and output of infer and chat, and the command chat."""

from __future__ import annotations

import http.client
import mimetypes
import re
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import click

from ..errors import InferMuxError, close_to, printable
from ..planning.call import Attempt, Call
from ..planning.registry import Registry
from ..pricing import usd
from ..protocol import InferRequest, InferResponse, strict_json
from ..routing.router import Router
from ..types import JSON
from . import (
    OneLine,
    command,
    complete_models,
    complete_providers,
    config_option,
    contents,
    model_names,
    open_router,
    warn,
)

_MAX_ATTACHED = 50 * 2**20  # bytes of a file
_FETCH_SECONDS = 30.0  # between two pieces of a file that is fetched
_MAX_TOLD = 200  # characters of an attempt's error
_PDF = "application/pdf"
_SIGNS = {
    b"\x89PNG\r\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"%PDF-": _PDF,
}
_LOOSE = {"allOf", "not", "if", "oneOf", "patternProperties", "dependentSchemas"}
_COMMAND = re.compile(r"/([^\s/]*)(?:\s+(.*))?")
_COMMANDS = {
    "model": "/model NAME continues with another model; /model shows the current one",
    "exit": "/exit, or Ctrl-D, ends the chat; Ctrl-C stops an answer",
    "help": "/help prints these lines",
}


# -- the request --


def _parameters(
    ctx: click.Context, param: click.Parameter, value: Iterable[tuple[str, str]]
) -> JSON:
    """Return parameters by name; a value that is not JSON is text."""
    found = {}
    for name, text in value:
        if "=" in name:
            raise click.BadParameter("the name and its value are two words: -o temperature 0.2")
        try:
            found[name] = strict_json.loads(text)
        except ValueError:
            found[name] = text
    return found


def asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that infer and chat share."""
    for option in (
        click.option(
            "--verbose", "-v", is_flag=True, help="Print plan and attempts to standard error."
        ),
        click.option(
            "--usage", is_flag=True, help="Print tokens, cost and latency to standard error."
        ),
        config_option,
        click.option(
            "--max-tokens", type=click.IntRange(1), metavar="N", help="The most output tokens."
        ),
        click.option(
            "--option",
            "-o",
            "params",
            nargs=2,
            multiple=True,
            callback=_parameters,
            metavar="NAME VALUE",
            help="A parameter, such as temperature 0.2: JSON, else text; may be repeated.",
        ),
        click.option("--system", "-s", help="A system message before the prompt."),
        click.option(
            "--provider", default="", shell_complete=complete_providers, help="Use only this one."
        ),
        click.option(
            "--model",
            "-m",
            default="auto",
            show_default=True,
            shell_complete=complete_models,
            help="A model, a provider, or PROVIDER/MODEL.",
        ),
    ):
        command = option(command)
    return command


def the_request(
    model: str,
    provider: str,
    system: str | None,
    params: JSON,
    max_tokens: int | None,
    schema: str | None = None,
) -> InferRequest:
    """Return a request with a system message, or no message yet; raise RequestError."""
    for name, flag, value in (
        ("max_tokens", "--max-tokens", max_tokens),
        ("response_format", "--schema", schema and response_format(schema)),
    ):
        if value is not None:
            if name in params:
                raise click.UsageError(f"give {name} with -o or with {flag}, not both")
            params[name] = value
    messages = [{"role": "system", "content": system}] if system else []
    request = {"model": model, "provider": provider, "messages": messages, "params": params}
    return InferRequest.from_dict(request)


def said(request: InferRequest, role: str, content: object) -> InferRequest:
    return replace(request, messages=[*request.messages, {"role": role, "content": content}])


def response_format(path: str) -> JSON:
    try:
        schema = strict_json.loads(contents(path, f"the schema {path}"), what="the schema")
        if not isinstance(schema, dict):
            raise ValueError("the schema must be a JSON object")
    except ValueError as error:
        raise OneLine(f"{path}: {error}") from None
    title = schema.get("title")
    name = title if isinstance(title, str) else PurePath(path).stem
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64] or "answer"
    strict = {"strict": True} if _may_be_strict(schema) else {}
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema} | strict}


def _may_be_strict(schema: object) -> bool:
    """Whether OpenAI's strict mode accepts a schema: objects must require all properties."""
    if isinstance(schema, list):
        return all(map(_may_be_strict, schema))
    if not isinstance(schema, dict):
        return True
    if _LOOSE & schema.keys():
        return False
    named = schema.get("properties")
    if named is not None or schema.get("type") == "object":
        required = schema.get("required", [])
        if not isinstance(named, dict) or not isinstance(required, list):
            return False
        if schema.get("additionalProperties") is not False or {*map(str, required)} != {*named}:
            return False
    return all(map(_may_be_strict, schema.values()))


def attachment(place: str) -> JSON:
    """Return a message part with an image or PDF: from a file, a URL, or - for standard input.

    The vendor fetches the URL of an image; a PDF is fetched here, as not every format has its URL.
    """
    is_url = place.lower().startswith(("http://", "https://"))
    path, url = PurePath(re.split("[?#]", place)[0] if is_url else place), place
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not (is_url and kind.startswith("image/")):
        data = _bytes(place, is_url=is_url)
        kind = "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else kind
        kind = next((kind for sign, kind in _SIGNS.items() if data.startswith(sign)), kind)
        url = f"data:{kind};base64,{b64encode(data).decode()}"
    if kind == _PDF:
        name = path.name if path.suffix.lower() == ".pdf" else f"{path.name.strip('-') or 'a'}.pdf"
        return {"type": "file", "file": {"filename": name, "file_data": url}}
    if kind.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    raise OneLine(f"{place} is neither an image nor a PDF")


def _bytes(place: str, *, is_url: bool) -> bytes:
    try:
        if place == "-":
            data = sys.stdin.buffer.read(_MAX_ATTACHED + 1)
        elif is_url:
            asked = urllib.request.Request(place, headers={"User-Agent": "infermux"})
            with urllib.request.urlopen(asked, timeout=_FETCH_SECONDS) as answer:
                data = answer.read(_MAX_ATTACHED + 1)
        else:
            with open(place, "rb") as file:
                data = file.read(_MAX_ATTACHED + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # urllib's own error, or one that is in it
        reason = getattr(reason, "strerror", None) or reason
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise OneLine(f"{place} cannot be read: {reason}") from None
    if not data:
        raise OneLine(f"{place} is empty")
    if len(data) > _MAX_ATTACHED:
        raise OneLine(f"{place} is longer than {_MAX_ATTACHED} bytes")
    return data


# -- the answer --


def ask(
    router: Router, request: InferRequest, *, stream: bool, usage: bool, verbose: bool
) -> InferResponse:
    """Return the answer; print a stream as it arrives, and the usage and details if requested."""
    call = router.begin(request, api="cli")
    try:
        response = _streamed(router, call) if stream else router.answer(call)
    finally:
        if verbose:
            click.echo(_plan_and_attempts(call), err=True)
    if usage:
        cost = "unpriced" if response.cost_usd is None else f"${response.cost_usd:.6f}"
        click.echo(
            f"{response.provider}/{response.model}: {response.tokens_in} in, "
            f"{response.tokens_out} out, {cost}, {response.latency_ms} ms",
            err=True,
        )
    return response


def _streamed(router: Router, call: Call) -> InferResponse:
    with closing(router.open(call)) as stream:
        begun = False
        try:
            for chunk in stream:
                click.echo(chunk.text, nl=False)
                begun = begun or bool(chunk.text)
        except KeyboardInterrupt:
            if begun:
                stream.close()
                raise Stopped(stream.response().content) from None
            raise
        finally:
            click.echo()  # what is told of an error goes on a line of its own
        return stream.response()


class Stopped(KeyboardInterrupt):
    """Raised by Ctrl-C during an answer; the argument is the text so far."""


def _plan_and_attempts(call: Call) -> str:
    lines = [f"call {call.id}"]
    if call.plan is not None:
        targets = ", ".join(map(str, call.plan.targets)) or "no target"
        lines.append(f"plan for {call.plan.model}, {call.plan.strategy}: {targets}")
        lines += [f"left out: {target}: {why}" for target, why in call.plan.dropped.items()]
    lines += [f"attempt {n}: {_outcome(each)}" for n, each in enumerate(call.attempts, 1)]
    return "\n".join(map(printable, lines))


def _outcome(attempt: Attempt) -> str:
    waited = f"waited {attempt.waited:.1f} s, " if attempt.waited else ""
    text, took = f"{attempt.target}: {waited}", f"after {attempt.latency_ms} ms"
    if (error := attempt.error) is not None:
        told = error.message[:_MAX_TOLD] + (f"; {error.hint}" if error.hint else "")
        upstream = f"upstream {error.upstream_status}, " if error.upstream_status else ""
        return f"{text}{error.status} {error.code} {took}: {upstream}{told}"
    cost = "" if attempt.cost is None else f", {usd(attempt.cost)} USD"
    dropped = f", without {', '.join(attempt.dropped)}" if attempt.dropped else ""
    return f"{text}ok {took}{cost}{dropped}"


# -- chat --


@command()
@asking
def chat(
    model: str,
    provider: str,
    system: str | None,
    params: JSON,
    max_tokens: int | None,
    config: str | None,
    **shown: bool,
) -> None:
    """Talk with a model; the conversation is kept in memory.

    Each line is a message. /model NAME continues with another model; /exit or Ctrl-D ends the
    chat; Ctrl-C stops an answer. Where standard input is not a terminal, an error ends it.

    Example: infermux chat --model echo-v1
    """
    request = the_request(model, provider, system, params, max_tokens)
    with open_router(config) as router:
        router.registry.route(model, provider)
        talk = Chat(router, request, shown)
        if sys.stdin.isatty() and sys.stdout.isatty():
            talk.at_terminal()
        else:
            for line in sys.stdin:
                if not talk.take(line.removeprefix("\ufeff").rstrip("\n")):
                    break


class Chat:
    """A conversation: its request grows by each message and answer."""

    def __init__(self, router: Router, request: InferRequest, shown: dict[str, bool]) -> None:
        self._router, self._request, self._shown = router, request, shown

    def at_terminal(self) -> None:
        """Read lines until end of file; an error is printed, and the conversation goes on."""
        _edit_lines(self._router.registry)
        click.echo(f"{self._request.model}: /help lists commands, Ctrl-D ends the chat", err=True)
        more = True
        while more:
            try:
                more = self.take(input("> "))
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo()  # at the prompt the line is dropped, else the answer ends
            except InferMuxError as error:
                warn(str(error))

    def take(self, line: str) -> bool:
        """Send a message or obey a command; return whether the chat goes on."""
        command = _COMMAND.fullmatch(line.strip())
        if command is None:
            if line.strip():
                self._send(line)
            return True
        name = command[1]
        if name == "model":
            self._use((command[2] or "").strip())
        elif name == "help":
            click.echo("\n".join(_COMMANDS.values()), err=True)
        elif name != "exit":
            hint = close_to(f"/{name}", [f"/{each}" for each in _COMMANDS])
            warn(f"there is no command /{name}{hint}; see /help")
        return name != "exit"

    def _use(self, model: str) -> None:
        if model:
            self._router.registry.route(model, self._request.provider)
            self._request = replace(self._request, model=model)
        click.echo(f"model: {self._request.model}", err=True)

    def _send(self, text: str) -> None:
        asked = said(self._request, "user", text)
        try:
            answer = ask(self._router, asked, stream=True, **self._shown).content
        except Stopped as stopped:
            self._request = said(asked, "assistant", stopped.args[0])
            raise
        self._request = said(asked, "assistant", answer)


def _edit_lines(registry: Registry) -> None:
    """Add history, editing and completion to input(), if the system has readline."""
    try:
        import readline
    except ImportError:
        return
    words = ["/model ", "/exit", "/help", *model_names(registry)]

    def complete(text: str, number: int) -> str | None:
        if not readline.get_line_buffer().startswith("/"):
            return None
        return [*(word for word in words if word.startswith(text)), None][number]

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
