"""What tells users what there is: help and its topics, completion, the list of models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from support import ROOT, Terminal, environment, run, script

from infermux.cli.main import main
from infermux.providers import PRESETS

TOPICS = ROOT / "infermux" / "help"
NAMES = main.list_commands(click.Context(main))


def infermux(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, args, env=env)


# -- help ------------------------------------------------------------------------------------------


def test_help_lists_topics_by_their_titles_and_commands() -> None:
    result = infermux("help")
    assert result.exit_code == 0
    titles, _, commands = result.stdout.partition("\n\n")
    rows = [re.split(r"\s{2,}", line, maxsplit=1) for line in titles.splitlines()[1:]]
    files = [(file.stem, file.read_text().splitlines()[0]) for file in TOPICS.glob("*.md")]
    assert {name for name, _ in rows} == {"parameters", *(name for name, _ in files)}
    assert all([name, title.lstrip("# ")] in rows for name, title in files)
    assert [line.split()[0] for line in commands.splitlines()[1:]] == NAMES
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize("topic", [file.stem for file in sorted(TOPICS.glob("*.md"))])
def test_a_topic_is_printed_as_it_is_written(topic: str) -> None:
    result = infermux("help", topic)
    assert (result.exit_code, result.stderr) == (0, "")
    told = result.stdout
    if topic == "vendors":  # which has the table of the presets in it
        start = told.index("VENDOR ")
        told = told[:start] + told[told.index("## Models", start) :]
    assert told == (TOPICS / f"{topic}.md").read_text().rstrip("\n") + "\n"


@pytest.mark.parametrize("name", [*NAMES, "keys create", "prices update"])
def test_help_of_a_command_is_its_own(name: str) -> None:
    words = name.split()
    result = infermux("help", *words)
    assert result.exit_code == 0
    if name not in ("parameters", *(file.stem for file in TOPICS.glob("*.md"))):
        told = CliRunner().invoke(main, [*words, "-h"], prog_name="infermux")
        assert result.stdout == told.stdout


@pytest.mark.parametrize(
    ("topic", "meant"), [("shel", "shell"), ("parameter", "parameters"), ("infre", "infer")]
)
def test_an_unknown_topic_says_what_was_meant(topic: str, meant: str) -> None:
    result = infermux("help", topic)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean" in result.stderr and repr(meant) in result.stderr
    assert infermux("help", "../setup").exit_code == infermux("help", "zzzz").exit_code == 2


@pytest.mark.sampled(1)
@pytest.mark.parametrize("topic", ["shell", "parameters"])
def test_a_topic_is_paged_in_a_terminal(topic: str) -> None:
    env = {"TERM": "xterm", "PAGER": f"{shutil.which('sed')} s/^/paged:/"}
    with Terminal([*script("infermux"), "help", topic], env=env) as terminal:
        assert terminal.end() == 0
    assert {line[:6] for line in terminal.text.splitlines()} == {"paged:"}
    plain = run([*script("infermux"), "help", topic], env=env)
    assert "paged:" not in plain.stdout and plain.stdout.count("\n") > 10


@pytest.mark.parametrize("command", ["main", "keys"])
def test_what_a_command_does_fits_a_line(command: str) -> None:
    """At 80 columns click cuts nothing off: no line of the list ends in dots."""
    args = [] if command == "main" else [command]
    listed = infermux(*args, "--help").stdout.partition("\nCommands:\n")[2].splitlines()
    assert listed and all(re.fullmatch(r"  \w+ +[A-Z].*[^.]\.", line) for line in listed), listed


# -- completion ------------------------------------------------------------------------------------

CONFIG = """
[providers.echo]
[providers.local]
type = "echo"
models = ["local-large", "local-small"]
[models]
fast = ["local/local-small", "echo"]
"""


def completed(words: str, cwd: Path = ROOT, **env: str) -> list[str]:
    """Return what bash's function gets for the last, perhaps empty word of a line."""
    env |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    env |= {"_INFERMUX_COMPLETE": "bash_complete"}
    answer = run(script("infermux"), env=env, cwd=cwd)
    assert (answer.returncode, answer.stderr) == (0, "")
    return [line.partition(",")[2] for line in answer.stdout.split("\n") if line]


def test_commands_models_names_and_topics_are_completed(tmp_path: Path) -> None:
    (tmp_path / "infermux.toml").write_text(CONFIG)
    found = completed("infermux infer -m ", tmp_path)
    assert {"fast", "echo", "echo-v1", "local", "local/local-large", "local-small"} <= {*found}
    assert completed("infermux explain fa", tmp_path) == ["fast"]


@pytest.mark.slow
def test_completion_knows_every_place_of_a_name(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(CONFIG)
    for line in ("infer -c {} -m", "chat -c {} -m", "batch -c {} -m", "logs -c {} --model"):
        assert completed(f"infermux {line.format(file)} fa", tmp_path) == ["fast"], line
    assert completed("infermux infer -m fa", tmp_path) == []  # of another configuration
    assert completed(f"infermux infer -c {file} --provider l", tmp_path) == ["local"]
    assert completed("infermux mod", tmp_path) == ["models"]
    assert completed("infermux infer --att", tmp_path) == ["--attach"]
    assert completed("infermux help she", tmp_path) == ["shell"]
    assert completed("infermux completion ", tmp_path) == ["bash", "zsh", "fish"]
    file.write_text("[nonsense]")
    assert completed(f"infermux infer -c {file} -m ", tmp_path) == []  # and no error


FISH = "function fish_prompt; echo '$ '; end; set -g fish_greeting"
SHELLS = {  # how it starts without files of the user, and what the manual says to do once
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(infermux completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -D; eval "$(infermux completion zsh)"',
    ),
    "fish": (
        ["fish", "--private", "--init-command", FISH],
        "infermux completion fish > ~/.config/fish/completions/infermux.fish",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_the_tab_key_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here: apt-get install {shell}")
    (tmp_path / "infermux.toml").write_text(CONFIG)
    path = f"{Path(script('infermux')[0]).parent}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "PS1": "$ ", "TERM": "xterm", "HOME": str(tmp_path)}
    env |= {f"XDG_{kind}_HOME": str(tmp_path / ".config") for kind in ("CONFIG", "DATA")}
    command, once = SHELLS[shell]
    with Terminal(command, env=env, cwd=tmp_path) as terminal:
        terminal.wait("$ ")
        before = terminal.text.count("$ ")
        terminal.type(f"{once}; echo do''ne\n")
        terminal.wait("done")
        terminal.wait("$ ", before + 1)
        terminal.type("infermux infe\t-m fas\tHello\n")  # there is neither `infe` nor a `fas`
        terminal.wait("echo: Hello")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_what_that_shell_reads(shell: str) -> None:
    text = infermux("completion", shell).stdout
    assert f"_INFERMUX_COMPLETE={shell}_complete" in text
    if found := shutil.which(shell):
        answer = subprocess.run(
            [found, "-n"],
            input=text,
            text=True,
            capture_output=True,
            env=environment(),
            check=False,
        )
        assert (answer.returncode, answer.stderr) == (0, "")
    assert shell in infermux("completion", "--help").stdout
    assert "infermux completion" in infermux("--help").stdout
    assert infermux("completion", "tcsh").exit_code == 2


# -- models ----------------------------------------------------------------------------------------

FULL = """
[providers.openai]
api_key = "env:SHELL_TEST_KEY"
models = ["gpt-6-luna", "text-embedding-3-small", "own-model"]
prices = { "own-model" = { input = "0.5", output = "2" } }
lacks = { "own-model" = ["tools", "images"] }
[providers.anthropic]
api_key = "env:SHELL_TEST_KEY"
models = ["claude-haiku-5-5"]
[providers.echo]
[models]
fast = ["openai/gpt-6-luna", "anthropic/claude-haiku-5-5"]
[models.auto]
strategy = "cheapest"
targets = ["fast", "echo"]
then = "openai/own-model"
"""


@pytest.fixture
def models(tmp_path: Path) -> Any:
    file = tmp_path / "own.toml"
    file.write_text(FULL)

    def call(*args: str) -> str:
        result = infermux("models", "-c", str(file), *args, env={"SHELL_TEST_KEY": "sk-test"})
        assert (result.exit_code, result.stderr) == (0, "")
        assert "sk-test" not in result.stdout
        return result.stdout

    return call


def test_models_lists_names_models_prices_and_abilities(models: Any) -> None:
    told = models()
    rows = [re.split(r"\s{2,}", line) for line in told.splitlines()]
    assert ["fast", "priority", "openai/gpt-6-luna, anthropic/claude-haiku-5-5"] in rows
    assert ["auto", "cheapest", "fast, echo/echo-v1", "openai/own-model"] in rows
    assert ["openai/own-model", "0.5", "2", "PDF, structured output"] in rows
    assert ["echo/echo-v1", "10", "10", "text"] in rows
    listed = {row[0]: row for row in rows}
    assert listed["openai/text-embedding-3-small"][-1] == "embeddings"
    assert listed["openai/gpt-6-luna"][-1] == "tools, images, PDF, structured output"
    assert "AZURE_OPENAI_API_KEY" not in told


def test_models_in_json_have_the_same_figures(models: Any) -> None:
    found = json.loads(models("--json"))
    assert set(found) == {"names", "models"}
    assert found["names"][1] == {
        "name": "auto",
        "strategy": "cheapest",
        "targets": ["fast", "echo/echo-v1"],
        "fallback": ["openai/own-model"],
    }
    own = next(each for each in found["models"] if each["model"] == "own-model")
    assert own == {
        "provider": "openai",
        "model": "own-model",
        "input": "0.5",
        "output": "2",
        "max_input": None,
        "max_output": None,
        "can": ["PDF", "structured output"],
    }


def test_all_presets_are_listed_with_what_enables_them(models: Any) -> None:
    told = models("--all").partition("\nPRESET")[2].splitlines()[1:]
    rows = {row[0]: row[1:] for row in (re.split(r"\s{2,}", line) for line in told)}
    assert set(rows) == set(PRESETS)
    for name, preset in PRESETS.items():
        assert all(key in rows[name][0] for key in preset.keys)
    assert rows["openai"][1:] == ["in use"] and rows["groq"][1:] == []
    assert "AZURE_OPENAI_ENDPOINT" in rows["azure"][0]
    presets = json.loads(models("--all", "--json"))["presets"]
    assert [each["name"] for each in presets if each["in_use"]] == ["openai", "anthropic"]
    assert presets[2]["variables"] == ["GEMINI_API_KEY", "GOOGLE_API_KEY"]


# -- the topics' own blocks ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_blocks_of_the_topic_shell_run_as_they_stand(tmp_path: Path) -> None:
    """In a fresh folder, one after the other, with nothing set that the text does not set."""
    path = f"{Path(script('infermux')[0]).parent}{os.pathsep}{os.environ['PATH']}"
    blocks = re.findall(r"^```sh\n(.*?)^```$", (TOPICS / "shell.md").read_text(), re.M | re.S)
    text = "".join(blocks)
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=environment(PATH=path, HOME=str(tmp_path)),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("echo: Hello") >= 7
    named = set(re.findall(r"\binfermux\s([a-z]+)", (TOPICS / "shell.md").read_text()))
    assert set(NAMES) - {"version"} <= named <= {*NAMES}


def test_the_topic_vendors_lists_every_preset_with_its_variables():
    text = CliRunner().invoke(main, ["help", "vendors"]).output
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    for name, preset in PRESETS.items():
        assert all(variable in lines[name] for variable in preset.keys), name
        assert preset.dialect in lines[name] and preset.address in lines[name]
    assert text.index("VENDOR ") < text.index("## Models")
