"""The command line: each command is a few lines over the library."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from .. import build
from ..errors import InferMuxError
from ..protocol import InferRequest, InferResponse, strict_json
from ..routing.router import Router
from . import OneLine, checked, the_prompt, the_router


class Commands(click.Group):
    """A group that also has the commands of infermux.cli, whose modules are loaded when one of
    theirs is asked for.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in _ELSEWHERE:
            found = getattr(
                importlib.import_module(f"infermux.cli.{_ELSEWHERE[cmd_name]}"), cmd_name
            )
        return found


_ELSEWHERE: dict[str, str] = {  # command: its module in infermux.cli
    "batch": "batch",
    "costs": "ledger",
    "logs": "ledger",
    "prices": "prices",
    "explain": "decisions",
    "replay": "decisions",
    "status": "status",
}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="infermux")
def main() -> None:
    """Route LLM calls over several vendors: failover, cost and traces in one place.

    Example: infermux infer "Hello world"
    """


@main.command()
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("--prompt", help="The prompt, instead of the argument; - reads standard input.")
@click.option(
    "--model",
    "-m",
    default="auto",
    show_default=True,
    help="A model, a provider, or PROVIDER/MODEL.",
)
@click.option("--provider", default="", help="Ask this provider only.")
@click.option("--system", "-s", help="A system message before the prompt.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Print the answer as it comes.  [default: to a terminal]",
)
@click.option("--usage", is_flag=True, help="Print tokens, cost and latency to standard error.")
def infer(
    text: str | None,
    prompt: str | None,
    model: str,
    provider: str,
    system: str | None,
    as_json: bool,
    stream: bool | None,
    usage: bool,
) -> None:
    """Send a prompt and print the answer.

    The prompt is the argument, --prompt, or standard input.

    Example: echo "Say hello" | infermux infer --model echo-v1
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": the_prompt(text, prompt)})
    request = InferRequest(model, messages, provider)
    if stream if stream is not None else sys.stdout.isatty() and not as_json:
        response = _streamed(the_router(), request)
    else:
        response = _asked(the_router(), request)
        click.echo(strict_json.dumps(response.to_dict()) if as_json else response.content)
    if usage:
        cost = "unpriced" if response.cost_usd is None else f"${response.cost_usd:.6f}"
        click.echo(
            f"{response.provider}/{response.model}: {response.tokens_in} in, {response.tokens_out} out, {cost}, "
            f"{response.latency_ms} ms",
            err=True,
        )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print what GET /providers answers.")
def providers(as_json: bool) -> None:
    """List the providers that are configured, and their models.

    Example: infermux providers
    """
    data = the_router().registry.to_dict()
    if as_json:
        click.echo(strict_json.dumps(data))
        return
    rows = [
        ("PROVIDER", "MODELS"),
        *((each["name"], ", ".join(each["models"]) or "-") for each in data["providers"]),
    ]
    width = max(len(name) for name, _ in rows)
    for name, models in rows:
        click.echo(f"{name:<{width}}  {models}")


@main.command()
@click.option(
    "--addr", "-b", default=":8600", show_default=True, help="Address to listen on, HOST:PORT."
)
@click.option("--tokentrace", metavar="URL", help="Send spans to this TokenTrace.")
@click.option(
    "--config",
    "-c",
    type=click.Path(),
    help="The configuration file.  [default: ./infermux.toml, if there is one]",
)
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: 2]")
@click.option("--threads", type=click.IntRange(1), help="Threads in each process.  [default: 1536]")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="warning: a line for each call that fails; info: for every call; debug: with its attempts.  [default: warning]",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="How a line is written.  [default: text]",
)
def serve(
    addr: str,
    tokentrace: str | None,
    config: str | None,
    workers: int | None,
    threads: int | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the service: gunicorn with this project's settings.

    Example: infermux serve --addr :8600 --tokentrace http://localhost:8700
    """
    from ..config import override  # what is given here counts in every process of the service

    for name, value in (
        ("TRACE__TOKENTRACE", tokentrace),
        ("SERVER__WORKERS", workers),
        ("SERVER__THREADS", threads),
        ("SERVER__LOG_LEVEL", log_level),
        ("SERVER__LOG_FORMAT", log_format),
    ):
        if value is not None:
            override(name, str(value))
    if config:
        override("CONFIG", config)
    checked(lambda: build.router(build.settings()))
    from ..server import load  # loads requests

    _gunicorn(lambda: {**load(), "bind": addr})


@main.command()
@click.option(
    "--config",
    "-c",
    "path",
    type=click.Path(),
    help="The file.  [default: INFERMUX_CONFIG, else ./infermux.toml]",
)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing if all is well.")
def validate(path: str | None, quiet: bool) -> None:
    """Check the configuration, with everything that it refers to.

    Exit code 0: good; 1: there is no such file; 2: it is not TOML; 3: it does not mean what it
    must.

    Example: infermux validate -c infermux.toml
    """
    from ..config import Missing, NotTOML

    try:
        config = build.settings(path=path)
        router = build.router(config)
    except InferMuxError as error:
        click.echo(f"infermux: {' '.join(error.message.split())}", err=True)
        sys.exit(1 if isinstance(error, Missing) else 2 if isinstance(error, NotTOML) else 3)
    from ..pricing.compare import stale

    if warning := stale(time.time()):
        click.echo(f"infermux: {warning}", err=True)
    if not quiet:
        click.echo(
            f"{config.path or 'the environment'}: good: {len(router.registry)} providers, {len(router.registry.names)} names, "
            f"{'no keys' if config.keys is None else f'{len(config.keys)} keys'}"
        )


@main.command()
@click.option(
    "--config",
    "-c",
    "path",
    metavar="FILE",
    help="The configuration.  [default: infermux.toml, or the environment]",
)
@click.option(
    "--fault",
    "-f",
    "faults",
    multiple=True,
    metavar="NAME",
    help="Only this fault; may be repeated.  [default: all]",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, 60, min_open=True),
    help="Seconds per call, at most the file's own.  [default: 5]",
)
def chaos(path: str | None, faults: tuple[str, ...], deadline: float | None) -> None:
    """Run the configuration against vendors that fail, and print what a client gets.

    Exit code 1 if an answer was silently wrong, or if failover did not fire where it could have. No
    real vendor is asked.

    Example: infermux chaos --fault stall --fault stream_cut
    """
    from .. import chaos as proof  # loads requests

    config = checked(lambda: build.settings(path=path))
    rows = checked(
        lambda: proof.run(
            config,
            faults=faults or None,
            deadline=deadline,
            report=lambda row: click.echo("." if row.ok else "!", nl=False, err=True),
        )
    )
    click.echo(err=True)
    click.echo(proof.table(rows))
    sys.exit(proof.verdict(rows))


@main.group()
def keys() -> None:
    """Make the keys by which callers are known.

    Example: infermux keys new web
    """


@keys.command("new")
@click.argument("name")
def new_key(name: str) -> None:
    """Make a key for NAME: print it once, and the lines for infermux.toml, which hold its hash
    alone.

    Example: infermux keys new web
    """
    from ..admission.keys import hashed, new_key

    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise click.BadParameter("use letters, digits, - and _, at most 64", param_hint="NAME")
    key = new_key()
    click.echo(
        "The key, which is not shown again (give it to the caller; never keep it here):", err=True
    )
    click.echo(key)
    click.echo("\nFor infermux.toml:\n", err=True)
    click.echo(f'[keys.{name}]\nhash = "{hashed(key)}"')


def _gunicorn(options: Callable[[], dict[str, Any]]) -> None:
    from gunicorn.app.base import BaseApplication
    from gunicorn.util import import_app

    class Service(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
        def load_config(self) -> None:
            for name, value in options().items():
                if name in self.cfg.settings:  # an older gunicorn does not know them all
                    self.cfg.set(name, value)

        def load(self) -> Any:
            return import_app("infermux.app:create_app()")

    Service().run()


def _asked(router: Router, request: InferRequest) -> InferResponse:
    return checked(lambda: router.infer(request))


def _streamed(router: Router, request: InferRequest) -> InferResponse:
    stream = checked(lambda: router.stream(request))
    try:
        for chunk in stream:
            click.echo(chunk.text, nl=False)
        click.echo()
        return stream.response()
    except InferMuxError as error:
        click.echo()  # what came so far ends its line, and the error has one of its own
        raise OneLine(error.message) from None
    finally:
        stream.close()
