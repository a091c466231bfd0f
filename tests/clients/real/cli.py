"""What the programs of coding agents share: a folder to work in, and the run of a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NODE = Path(os.environ["CLIENTS"], "node/node_modules")
PATIENCE = 60  # seconds for one command


def work() -> Path:
    """Return a new folder with a file in it."""
    folder = Path(tempfile.mkdtemp())
    (folder / "notes.txt").write_text("one\ntwo\nthree\n")
    return folder


def call(tool: str, given: Mapping[str, Any] | str) -> str:
    """Return the line by which the strict vendor's model calls a tool."""
    return f"call {tool} {json.dumps(given)}"


def output(command: Sequence[str], folder: Path, **variables: str) -> str:
    """Run a command in *folder*; return what it printed. Fail if it failed."""
    found = shutil.which(command[0]) or command[0]
    done = subprocess.run(
        [found, *command[1:]],
        cwd=folder,
        env=dict(os.environ) | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    told = f"exit code {done.returncode}: {done.stdout[-600:]} {done.stderr[-300:]}"
    assert done.returncode == 0, told
    return done.stdout


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
