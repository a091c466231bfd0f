"""Tests of `infermux validate` and `infermux keys new`, run as processes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import commands
import pytest
from click.testing import CliRunner
from support import HELLO, ROOT, environment, run, script

from infermux import build
from infermux.admission.keys import hashed
from infermux.app import create_app
from infermux.cli.main import main

INFERMUX = [sys.executable, "-m", "infermux"]
GOOD = '[providers.openai]\n[providers.echo]\n[models]\nfast = "echo/echo-v1"\n'
KEYED = GOOD + '[keys.web]\nhash = "env:WEB_HASH"\n[keys.app]\nhash = "env:APP_HASH"\n'
ENV = {"OPENAI_API_KEY": "sk-live-zebra", "WEB_HASH": hashed("one"), "APP_HASH": hashed("two")}


def validate(folder: Path, *args: str, **env: str):
    answer = commands.run("validate", *args, cwd=folder, env=environment(**ENV | env))
    assert "Traceback" not in answer.stderr and "sk-live-zebra" not in answer.stdout + answer.stderr
    return answer


def failed(answer, code: int, *words: str) -> None:
    assert (answer.returncode, answer.stdout) == (code, ""), answer.stderr
    assert re.fullmatch(r"infermux: [^\n]+\n", answer.stderr), answer.stderr
    assert all(word in answer.stderr for word in words), answer.stderr


# -- validate --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_good_file_is_0_and_the_first_line_counts_what_is_in_it(tmp_path):
    (tmp_path / "x.toml").write_text(KEYED)
    answer = validate(tmp_path, "-c", "x.toml")
    assert (answer.returncode, answer.stderr) == (0, "")
    first, *rest = answer.stdout.splitlines()
    assert first == "x.toml: 2 providers, 1 name, 2 keys: configuration is valid"
    assert [line.split()[0] for line in rest] == [
        "configuration",
        "providers",
        "names",
        "ledger",
        "keys",
        "admin",
        "traces",
    ]
    quiet = validate(tmp_path, "-q", "--config", "x.toml")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_file_is_found_as_the_service_finds_it(tmp_path):
    (tmp_path / "infermux.toml").write_text(GOOD)
    (tmp_path / "other.toml").write_text(KEYED)
    assert validate(tmp_path).stdout.startswith("infermux.toml: 2 providers, ")
    assert validate(tmp_path, INFERMUX_CONFIG="other.toml").stdout.startswith("other.toml: ")
    assert validate(
        tmp_path, "-c", "infermux.toml", INFERMUX_CONFIG="other.toml"
    ).stdout.startswith("infermux.toml: ")


def test_without_a_file_the_environment_is_checked(tmp_path):
    answer = validate(tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "") and answer.stdout.startswith(
        "the environment: 2 providers, "
    )


def test_nothing_is_left_behind(tmp_path):
    (tmp_path / "infermux.toml").write_text(
        KEYED + 'rpm = 5\n[ledger]\npath = "calls.db"\n[trace]\ntokentrace = "http://127.0.0.1:9"'
    )
    assert validate(tmp_path).returncode == 0
    assert [each.name for each in tmp_path.iterdir()] == ["infermux.toml"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("args", "env"),
    [(["-c", "nope.toml"], {}), ([], {"INFERMUX_CONFIG": "nope.toml"}), (["-c", "."], {})],
)
def test_no_file_is_1(tmp_path, args, env):
    failed(
        validate(tmp_path, *args, **env), 1, env.get("INFERMUX_CONFIG", args[-1] if args else "")
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "data", [b"[server", b"a = 1\na = 2\n", b"\xff\xfe\x00", b"x = " + b"[" * 5000]
)
def test_what_is_not_toml_is_2(tmp_path, data):
    (tmp_path / "x.toml").write_bytes(data)
    failed(validate(tmp_path, "-c", "x.toml"), 2, "x.toml", "not TOML")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sever]", ["x.toml", "did you mean 'server'?"]),
        ("[server]\nadmin_key = 'sk-live-zebra'", ["x.toml", "[server].admin_key", '"env:NAME"']),
        ("[server]\nadmin_key = 'env:NOT_THERE'", ["x.toml", "NOT_THERE is not set"]),
        ("[providers.xai]", ["x.toml", "XAI_API_KEY"]),
        ("[providers.x]\ntype = 'opnai'", ["did you mean 'openai'?"]),
        ("[providers.openai]\nbase_url = 'http://u:sk-live-zebra@h'", ["x.toml", "credentials"]),
        ("[models]\na = 'b'\nb = 'a'", ["x.toml", "a -> b -> a"]),
        ("[models]\na = 'nobody'", ["x.toml", "[models] a", "'nobody'"]),
        (KEYED.replace("APP_HASH", "WEB_HASH"), ["x.toml", "[keys.app]", "[keys.web]"]),
        pytest.param(f"[reliability]\ndeadline = {'9' * 400}", ["x.toml", "deadline"]),
    ],
)
def test_what_means_nothing_is_3(tmp_path, text, words):
    (tmp_path / "x.toml").write_text(text)
    failed(validate(tmp_path, "-c", "x.toml"), 3, *words)


def test_a_wrong_variable_is_3(tmp_path):
    failed(
        validate(tmp_path, INFERMUX_SERVER__WORKERS="many"),
        3,
        "INFERMUX_SERVER__WORKERS",
        "whole number",
    )


BROKEN = "def raising(config):\n    raise RuntimeError('sk-live-zebra')\n"


def test_a_plug_in_that_fails_is_3(tmp_path):
    """By its entry point, as a package brings it; an error of foreign code is not to look like a
    file that is not there.
    """
    info = tmp_path / "site" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[infermux.providers]\nbroken = broken_plugin:raising\n")
    (tmp_path / "site" / "broken_plugin.py").write_text(BROKEN)
    (tmp_path / "x.toml").write_text("[providers.broken]")
    failed(
        validate(tmp_path, "-c", "x.toml", PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}"), 3, "broken"
    )


# -- keys new --------------------------------------------------------------------------------------


def new(*args: str):
    return commands.run("keys", "new", *args, cwd=ROOT, env=environment())


def key_of(answer) -> str:
    """Return the key: the last line of standard error."""
    return answer.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def made():
    answer = new("web")
    assert answer.returncode == 0
    return answer


def test_a_key_is_shown_once_and_its_hash_matches(made):
    key = key_of(made)
    assert re.fullmatch(r"imx-[A-Za-z0-9_-]{43}", key)
    assert (made.stdout + made.stderr).count(key) == 1
    assert made.stdout == f'\n[keys.web]\nhash = "{hashed(key)}"\n'
    assert "not shown again" in made.stderr


@pytest.mark.slow
def test_its_lines_can_be_appended_to_the_file(tmp_path):
    """The key is on the terminal; a file without its last newline is not damaged."""
    file = tmp_path / "infermux.toml"
    file.write_text(GOOD.rstrip("\n"))
    (own,) = script("infermux")
    answers = [
        run(["bash", "-c", f"{own} keys new {name} >> infermux.toml"], cwd=tmp_path)
        for name in ("web", "batch")
    ]
    keys = build.settings(ENV, str(file)).keys
    assert [(key.name, key.hash) for key in keys] == [
        (name, hashed(key_of(answer)))
        for name, answer in zip(("web", "batch"), answers, strict=True)
    ]


def test_every_key_is_new(made):
    assert key_of(new("web")) != key_of(made)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["web", "Web_2-b", "123", "x" * 64, "env", "true"])
def test_a_name_that_fits_makes_lines_that_are_read(name, tmp_path):
    answer = new(name)
    (tmp_path / "x.toml").write_text(GOOD + answer.stdout)
    [key] = build.settings(ENV, str(tmp_path / "x.toml")).keys
    assert (key.name, key.hash) == (name, hashed(key_of(answer)))


@pytest.mark.parametrize(
    "name", ["", "a b", "a.b", "a/b", "ключ", "a\nb", "a\n", "x" * 65, "[x]", '"x"', "a=b"]
)
def test_a_name_that_would_need_quotes_is_refused(name):
    answer = CliRunner().invoke(main, ["keys", "new", name])
    assert (answer.exit_code, answer.stdout) == (2, "") and "imx-" not in answer.stderr


def test_a_name_is_needed():
    assert (new().returncode, new("a", "b").returncode) == (2, 2)


def test_what_is_printed_opens_the_door_of_an_app(made, tmp_path, monkeypatch):
    key = key_of(made)
    (tmp_path / "infermux.toml").write_text(GOOD + made.stdout)
    assert validate(tmp_path).returncode == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    client = create_app().test_client()
    for headers, status in (
        ({}, 401),
        ({"Authorization": f"Bearer {key}"}, 200),
        ({"x-api-key": key}, 200),
        ({"x-api-key": "imx-x"}, 401),
    ):
        assert (
            client.post("/infer", json=HELLO | {"model": "fast"}, headers=headers).status_code
            == status
        )
