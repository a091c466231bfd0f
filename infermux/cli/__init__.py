"""What the commands of the command line share; each module here holds a few of them, and is loaded
when one of its own is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .. import build
from ..errors import InferMuxError
from ..routing.router import Router

Value = TypeVar("Value")


class OneLine(click.ClickException):
    """An error that is one line and exit code 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"infermux: {' '.join(self.message.split())}", err=True)


def checked(ask: Callable[[], Value]) -> Value:
    """Return what *ask* gives; an error of ours becomes one line."""
    try:
        return ask()
    except InferMuxError as error:
        raise OneLine(error.message) from None


def the_router() -> Router:
    """Return the router of the Flask app whose command this is, or the one that the environment
    configures.
    """
    flask = sys.modules.get("flask")
    if flask is not None and flask.has_app_context() and "infermux" in flask.current_app.extensions:
        found: Router = flask.current_app.extensions["infermux"]
        return found
    return checked(build.load)


def the_prompt(text: str | None, prompt: str | None) -> str:
    """Return the prompt: the argument, an option, or standard input."""
    if text is not None and prompt is not None:
        raise click.UsageError("give the prompt as the argument or with --prompt, not both")
    given = prompt if text is None else text
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise click.UsageError(
            "a prompt is missing: give it as the argument, with --prompt, or on standard input"
        )
    read = sys.stdin.read().rstrip("\n")
    if not read:
        raise click.UsageError("standard input holds no prompt")
    return read
