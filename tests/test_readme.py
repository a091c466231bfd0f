"""The README's code blocks work in a fresh copy of the project and a fresh virtual environment."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from support import files

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)
SHELL = [text for kind, text in BLOCKS if kind == "sh"]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
SHOWN = [
    line
    for kind, text in BLOCKS
    if kind == "console"
    for line in re.findall(r"^\$ infermux (.*)$", text, re.M)
]
ADMIN = {"INFERMUX_ADMIN_KEY": "sk-operator"}  # of the service, and of whoever asks it


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def clean_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("INFERMUX_", "FLASK_", "PYTHON"))
        and not name.endswith(("_API_KEY", "_HOST", "_TOKEN", "_BASE_URL"))
    }


def run(script: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env=clean_environment() | more,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the service did not start")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of what a clone holds, set up by the README's first block."""
    target = tmp_path_factory.mktemp("readme") / "infermux"
    for name in files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def installed(clone) -> Path:
    """The clone after the first block; outside CI nothing is installed anew, which takes long."""
    first = SHELL[0]
    if not os.environ.get("CI"):
        (clone / ".venv").symlink_to(sys.prefix)
        first = first.splitlines()[-1]
        first = f". .venv/bin/activate\n{first}"
    answer = run(first, clone)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "echo: Hello world"
    return clone


@pytest.fixture(scope="module")
def service(installed) -> int:
    """The service that the README's own line starts."""
    port = free_port()
    start = next(text for text in SHELL if text.startswith("gunicorn"))
    command = start.replace(":8600", f"127.0.0.1:{port}").replace(" &", "").strip()
    process = subprocess.Popen(
        ["bash", "-c", f". .venv/bin/activate; exec {command}"],
        cwd=installed,
        env=clean_environment() | ADMIN,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def test_the_first_block_has_four_lines_and_the_mount_five():
    assert len(SHELL[0].splitlines()) == 4
    assert len([line for line in PYTHON[0].splitlines() if line]) <= 5


@pytest.mark.parametrize("block", SHELL[1:], ids=lambda text: text.splitlines()[0][:40])
def test_shell_blocks_run(block, installed, service):
    if block.startswith("gunicorn"):
        return  # the service fixture ran it
    answer = run(
        ". .venv/bin/activate\n" + block.replace(":8600", f":{service}"), installed, **ADMIN
    )
    assert answer.returncode == 0, answer.stderr
    assert '{"error"' not in answer.stdout
    assert answer.stdout.count("echo: Hello") >= len(re.findall(r":8600/(?:infer|mist)\b", block))
    if "%{http_code}" in block:
        assert answer.stdout.startswith("200 ")


@pytest.mark.parametrize("block", PYTHON, ids=lambda text: text.splitlines()[0][:40])
def test_python_blocks_run(block, service):
    if "import openai" in block:
        pytest.importorskip("openai")
        pytest.importorskip("anthropic")
    answer = subprocess.run(
        [sys.executable, "-c", block.replace(":8600", f":{service}")],
        cwd=ROOT,
        env=clean_environment(),
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


def commands() -> set[str]:
    """The commands that there are, those of a group with its name before them."""
    from infermux.cli.main import main

    context, found = click.Context(main), set()
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        found |= (
            {f"{name} {each}" for each in command.commands}
            if isinstance(command, click.Group)
            else {name}
        )
    return found


def test_every_command_is_told_of_and_every_one_that_is_named_exists():
    known = commands()
    told = set(re.findall(r"^\| `infermux ([a-z ]+)` \|", TEXT, re.M))
    assert told == known
    named = set(re.findall(r"(?:^|[`|($] ?)infermux ([a-z]+)\b", TEXT, re.M))
    assert named == {name.split()[0] for name in known}


@pytest.mark.parametrize("line", SHOWN)
def test_a_command_that_is_shown_with_its_output_can_be_given(line):
    from infermux.cli.main import main

    name, *rest = shlex.split(line)
    parent = click.Context(main, **main.context_settings)
    command = main.get_command(parent, name)
    assert command is not None
    command.make_context(name, rest, parent)  # raises UsageError for an option that there is not


def test_the_plan_that_is_shown_is_that_of_the_example(tmp_path):
    example = next(text for kind, text in BLOCKS if kind == "toml")
    (tmp_path / "infermux.toml").write_text(example, encoding="utf-8")
    hashes = {
        name: f"{number:064x}" for number, name in enumerate(re.findall(r'"env:(\w+)"', example))
    }
    shown = next(
        text for kind, text in BLOCKS if kind == "console" and text.startswith("$ infermux explain")
    )
    line, _, plan = shown.partition("\n")
    answer = run(
        line.replace("$ infermux", f"{sys.executable} -m infermux"),
        tmp_path,
        OPENAI_API_KEY="unused",
        **hashes,
    )
    assert (answer.returncode, answer.stdout) == (0, plan), answer.stderr


def test_every_variable_and_link_that_is_named_exists():
    from infermux.providers import PRESETS

    named = set(re.findall(r"`([A-Z_]+_API_KEY|OLLAMA_HOST|\w+_BASE_URL)`", TEXT))
    assert named <= {key for preset in PRESETS.values() for key in preset.keys}
    heads = {
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= heads
    assert all((ROOT / path).exists() for path in re.findall(r"\]\(([^#)]+)\)", TEXT))
