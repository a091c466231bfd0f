"""The command group `infermux`, and the commands infer and providers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import closing
from typing import cast

import click

from ..dialects import parameters
from ..errors import InferMuxError, close_to
from ..protocol import InferRequest, InferResponse, strict_json
from ..routing.router import Router
from . import Command, json_option, table, the_prompt, the_router

_MODULES = {  # where in infermux.cli a command is defined
    "batch": "batch",
    "chaos": "serve",
    "costs": "ledger",
    "explain": "routing",
    "init": "serve",
    "keys": "serve",
    "logs": "ledger",
    "prices": "prices",
    "replay": "routing",
    "serve": "serve",
    "status": "routing",
    "validate": "serve",
}


class Group(click.Group):
    """A group that imports the module of a command when it is called."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_MODULES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"infermux.cli.{_MODULES[cmd_name]}")
        return cast(click.Command, getattr(module, cmd_name))


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option("--provider", default="", help="Use only this provider.")
@click.option("--system", "-s", help="A system message before the prompt.")
@json_option("Print the whole response as JSON.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Print the answer as it arrives.  [default: to a terminal]",
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
        response = the_router().infer(request)
        click.echo(strict_json.dumps(response.to_dict()) if as_json else response.content)
    if usage:
        cost = "unpriced" if response.cost_usd is None else f"${response.cost_usd:.6f}"
        click.echo(
            f"{response.provider}/{response.model}: {response.tokens_in} in, "
            f"{response.tokens_out} out, {cost}, {response.latency_ms} ms",
            err=True,
        )


@main.command()
@json_option("Print what GET /providers answers.")
def providers(as_json: bool) -> None:
    """List the configured providers and their models.

    Example: infermux providers
    """
    data = the_router().registry.to_dict()
    if as_json:
        click.echo(strict_json.dumps(data))
    else:
        rows = [(each["name"], ", ".join(each["models"]) or "-") for each in data["providers"]]
        click.echo(table(("PROVIDER", "MODELS"), rows))


@main.command("help")
@click.argument("topic", required=False)
def help_(topic: str | None) -> None:
    """Explain a topic, or list the topics.

    Example: infermux help parameters
    """
    if topic is None:
        click.echo(table(("TOPIC", ""), [(name, about) for name, (about, _) in _TOPICS.items()]))
    elif topic in _TOPICS:
        click.echo(_TOPICS[topic][1]())
    else:
        raise click.UsageError(f"there is no topic {topic!r}{close_to(topic, _TOPICS)}")


def _parameters() -> str:
    """Return the table of parameters, as the dialects have it."""
    kinds = [f"{kind.upper():<10}  {parameters.EFFECTS[kind]}" for kind in parameters.Kind]
    rows = [
        (name, kind, ", ".join(parameters.formats(name)) or "-", why)
        for kind, name, why in parameters.rows()
    ]
    text = table(("PARAMETER", "KIND", "FORMATS", "WHY"), rows)
    return "\n".join([*kinds, "", text, "", parameters.REMARK])


_TOPICS: dict[str, tuple[str, Callable[[], str]]] = {
    "parameters": (
        "Which parameters a target may go without",
        _parameters,
    ),
}


def _streamed(router: Router, request: InferRequest) -> InferResponse:
    with closing(router.stream(request)) as stream:
        try:
            for chunk in stream:
                click.echo(chunk.text, nl=False)
        except InferMuxError:
            click.echo()  # the error goes on a line of its own
            raise
        click.echo()
        return stream.response()
