"""The command group `infermux`, and the commands infer, providers, help and completion."""

from __future__ import annotations

import importlib
import sys
from importlib import resources
from typing import Any, cast

import click
from click.shell_completion import get_completion_class

from .. import __version__
from ..dialects import parameters
from ..errors import close_to
from ..protocol import strict_json
from ..providers import PRESETS
from . import (
    Group,
    config_option,
    json_option,
    open_router,
    table,
    the_prompt,
    tokentrace_option,
)
from .chat import ask, asking, attachment, said, the_request

_MODULES = {  # where in infermux.cli a command is defined
    "batch": "batch",
    "budgets": "budgets",
    "chaos": "serve",
    "chat": "chat",
    "costs": "ledger",
    "explain": "routing",
    "init": "serve",
    "keys": "keys",
    "ledger": "archive",
    "logs": "ledger",
    "models": "prices",
    "prices": "prices",
    "replay": "routing",
    "serve": "serve",
    "status": "status",
    "validate": "serve",
}
_HELP = resources.files("infermux") / "help"
_BEFORE = "## Models\n"  # the part of the topic `vendors` before which the presets stand
_GENERATED = ("parameters", "Which parameters a target may go without")  # the topic without a file


class Commands(Group):
    """A group that imports the module of a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_MODULES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"infermux.cli.{_MODULES[cmd_name]}")
        return cast(click.Command, getattr(module, cmd_name))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="infermux")
def main() -> None:
    """Route LLM calls over several vendors: failover, cost and traces in one place.

    `infermux help` lists topics to read, `infermux completion bash` (or zsh, fish) prints the
    script that completes commands, models and names.

    Example: infermux infer "Hello world"
    """


@main.command()
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("--prompt", help="The prompt, instead of the argument; - reads standard input.")
@asking
@click.option(
    "--attach",
    "attached",
    multiple=True,
    type=click.Path(allow_dash=True),
    metavar="FILE | URL",
    help="An image or a PDF to send with the prompt; may be repeated.",
)
@click.option(
    "--schema",
    type=click.Path(),
    metavar="FILE",
    help="A JSON schema that the answer must match.",
)
@json_option("Print the whole response as JSON.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Print the answer as it arrives.  [default: to a terminal]",
)
@tokentrace_option
def infer(
    text: str | None,
    prompt: str | None,
    attached: tuple[str, ...],
    as_json: bool,
    stream: bool | None,
    config: str | None,
    usage: bool,
    verbose: bool,
    **asked: Any,
) -> None:
    """Send a prompt and print the answer.

    The prompt is the argument, --prompt, or standard input.

    Example: infermux infer "Say hello" -m echo-v1 -o temperature 0.2
    """
    if as_json and stream:
        raise click.UsageError("give --json or --stream, not both")
    if "-" in attached and (text or prompt or "-") == "-":
        raise click.UsageError("standard input is attached: give the prompt as the argument")
    content: object = the_prompt(text, prompt)
    request = the_request(**asked)
    if attached:
        content = [*map(attachment, attached), {"type": "text", "text": content}]
    streamed = sys.stdout.isatty() and not as_json if stream is None else stream
    with open_router(config) as router:
        response = ask(
            router, said(request, "user", content), stream=streamed, usage=usage, verbose=verbose
        )
        if not streamed:
            click.echo(strict_json.dumps(response.to_dict()) if as_json else response.content)


@main.command()
@config_option
@json_option("Print what GET /providers answers.")
def providers(config: str | None, as_json: bool) -> None:
    """List the configured providers and their models.

    Example: infermux providers
    """
    with open_router(config) as router:
        data = router.registry.to_dict()
    rows = [(each["name"], ", ".join(each["models"]) or "-") for each in data["providers"]]
    text = table(("PROVIDER", "MODELS"), rows)
    click.echo(strict_json.dumps(data) if as_json else text)


@main.command()
def version() -> None:
    """Print the version.

    Example: infermux version
    """
    click.echo(f"infermux {__version__}")


# -- help and completion --


@main.command("help")
@click.argument(
    "topic",
    nargs=-1,
    shell_complete=lambda ctx, param, start: [
        name for name in (*_topics(), *main.list_commands(ctx)) if name.startswith(start)
    ],
)
@click.pass_context
def help_(ctx: click.Context, topic: tuple[str, ...]) -> None:
    """List topics and commands, or explain one.

    Example: infermux help shell
    """
    name, topics, commands = " ".join(topic), _topics(), main.list_commands(ctx)
    if not topic:
        click.echo(table(("TOPIC", ""), list(topics.items())) + "\n")
        found = [(name, main.get_command(ctx, name)) for name in commands]
        rows = [(name, each.get_short_help_str(limit=80)) for name, each in found if each]
        click.echo(table(("COMMAND", ""), rows))
    elif name in topics:
        path = _HELP / f"{name}.md"
        text = _parameters() if name == _GENERATED[0] else path.read_text(encoding="utf-8")
        text = text.replace(_BEFORE, f"{_vendors()}\n{_BEFORE}", 1) if name == "vendors" else text
        click.echo_via_pager(text.rstrip("\n"))
    else:
        inner: Any = main
        for word in topic:
            inner = getattr(inner, "get_command", lambda *_: None)(ctx, word)
        if inner is None:
            raise click.UsageError(
                f"there is no topic {name!r}{close_to(name, [*topics, *commands])}"
            )
        its = click.Context(inner, info_name=f"infermux {name}", **main.context_settings)
        click.echo(its.get_help())


def _topics() -> dict[str, str]:
    found = dict([_GENERATED])
    for path in _HELP.iterdir():
        title = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.name.removesuffix(".md")] = title.lstrip("# ")
    return dict(sorted(found.items()))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), metavar="bash|zsh|fish")
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    Completed are commands, options, models, names, providers, topics and files.

    \b
    bash: add to ~/.bashrc:  eval "$(infermux completion bash)"
    zsh:  add to ~/.zshrc, after compinit:  eval "$(infermux completion zsh)"
    fish: infermux completion fish > ~/.config/fish/completions/infermux.fish

    Example: infermux completion bash
    """
    if kind := get_completion_class(shell):
        click.echo(kind(main, {}, "infermux", "_INFERMUX_COMPLETE").source())


def _vendors() -> str:
    rows = [
        (
            name,
            ", ".join(filter(None, (*preset.keys, preset.address))),
            preset.dialect,
            preset.base_url or f"{preset.address or name.upper() + '_BASE_URL'} (needed)",
        )
        for name, preset in PRESETS.items()
    ]
    return table(("VENDOR", "VARIABLES", "FORMAT", "ADDRESS"), rows) + "\n"


def _parameters() -> str:
    kinds = [f"{kind.upper():<10}  {parameters.EFFECTS[kind]}" for kind in parameters.Kind]
    rows = [
        (name, kind, ", ".join(parameters.formats(name)) or "-", why)
        for kind, name, why in parameters.rows()
    ]
    text = table(("PARAMETER", "KIND", "FORMATS", "WHY"), rows)
    return "\n".join([*kinds, "", text, "", parameters.REMARK])
