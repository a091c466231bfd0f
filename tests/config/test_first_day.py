"""The configuration means what people expect: each file and variable as a newcomer writes them,
through `infermux` as a process and the service under gunicorn.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import commands
import pytest
from support import HELLO, ROOT, Service, environment, eventually, run

from infermux.config import TEMPLATE, schema, settings
from infermux.providers import PRESETS

INFERMUX = [sys.executable, "-m", "infermux"]
OPENAI = {"OPENAI_API_KEY": "sk-first-day"}
ECHO = "[providers.echo]\n"


def infermux(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in *folder*; its user has no file but what the folder has."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    own = {"HOME": str(home), "XDG_CONFIG_HOME": ""} | env
    answer = commands.run(*args, cwd=folder, env=environment(**own))
    assert "Traceback" not in answer.stderr, answer.stderr
    return answer


def providers(folder: Path, **env: str) -> list[str]:
    answer = infermux(folder, "providers", **env)
    assert answer.returncode == 0, answer.stderr
    return [line.split()[0] for line in answer.stdout.splitlines()[1:]]


def validate(folder: Path, text: str | None, **env: str) -> subprocess.CompletedProcess[str]:
    if text is not None:
        (folder / "infermux.toml").write_text(text)
    return infermux(folder, "validate", **env)


def errors(folder: Path, text: str | None, **env: str) -> list[str]:
    """Return the lines of a configuration that is not valid."""
    answer = validate(folder, text, **env)
    assert (answer.returncode, answer.stdout) == (3, ""), answer.stdout + answer.stderr
    return answer.stderr.splitlines()


# -- providers: of the file, of the environment ----------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["openai", "groq", "echo"]),
        ("[models]\nfast = 'openai/gpt-6-luna'\n", ["openai", "groq", "echo"]),
        ("[server]\nthreads = 8\n[ledger]\npath = ''\n", ["openai", "groq", "echo"]),
        (ECHO, ["echo"]),
        ("[providers.groq]\n", ["groq"]),
        ("[providers]\n", []),
        ("[providers]\nenvironment = false\n[providers.groq]\n", ["groq"]),
        ("[providers]\nenvironment = true\n[providers.groq]\n", ["groq", "openai", "echo"]),
        ("[providers]\nenvironment = true\n", ["openai", "groq", "echo"]),
        (
            "[providers]\nenvironment = true\n[providers.mine]\ntype = 'echo'\n",
            ["mine", "openai", "groq", "echo"],
        ),
        ("[providers.environment]\ntype = 'echo'\n", ["environment"]),  # a provider of that name
    ],
)
def test_a_file_takes_away_only_what_it_replaces(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    (tmp_path / "infermux.toml").write_text(text)
    assert providers(tmp_path, OPENAI_API_KEY="k", GROQ_API_KEY="k") == expected


def test_chaos_tries_the_names_of_a_file_over_the_providers_of_the_environment(
    tmp_path: Path,
) -> None:
    (tmp_path / "infermux.toml").write_text("[models]\nfast = ['openai/gpt-6-luna', 'echo']\n")
    answer = infermux(tmp_path, "chaos", "--fault", "500", **OPENAI)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"(?m)^500 .* fired +ok$", answer.stdout), answer.stdout


def test_a_variable_sets_a_provider_that_only_the_environment_names(tmp_path: Path) -> None:
    (tmp_path / "infermux.toml").write_text("[server]\nthreads = 8\n")
    env = OPENAI | {"INFERMUX_PROVIDERS__OPENAI__MODELS": "mine"}
    assert "mine" in infermux(tmp_path, "providers", **env).stdout


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[providers]\n", ["no provider can answer", "environment = true"]),
        (
            "[providers.local]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:9/v1'\n",
            ["'local' lists no model", "no model can answer"],
        ),
        (
            "[providers.local]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:9/v1'\nmodels = ['m']\n"
            "prices.m = { input = '1', output = '2' }\n[ledger]\npath = 'calls.db'\n"
            f"[keys.web]\nhash = '{'0' * 64}'\nbudget = {{ usd = '5' }}\n",
            ["[providers.local.prices] 'm' has no max_output"],
        ),
    ],
)
def test_what_will_not_work_is_a_warning(tmp_path: Path, text: str, words: list[str]) -> None:
    answer = validate(tmp_path, text)
    assert answer.returncode == 0 and "configuration is valid" in answer.stdout
    assert all(word in answer.stderr for word in words), answer.stderr
    assert all(line.startswith("infermux: ") for line in answer.stderr.splitlines())


def test_what_is_in_force_is_printed(tmp_path: Path) -> None:
    text = (
        "[providers]\nenvironment = true\n[providers.mine]\ntype = 'echo'\n[models]\nfast = 'mine'\n"
        "[ledger]\npath = 'calls.db'\n[trace]\ntokentrace = 'http://127.0.0.1:8700'\n"
    )
    answer = validate(tmp_path, text, **OPENAI, INFERMUX_ADMIN_KEY="sk-operators")
    told = dict(re.findall(r"(?m)^  (\w+) +(.*)$", answer.stdout))
    assert told == {
        "configuration": str(tmp_path / "infermux.toml"),
        "providers": "mine (file), openai (OPENAI_API_KEY), echo (built in)",
        "names": "fast",
        "ledger": str(tmp_path / "calls.db"),
        "keys": "none: the endpoints are open to callers without a key",
        "admin": "operators' endpoints are open to the admin key, /metrics is open",
        "traces": "127.0.0.1:8700",
    }
    assert "sk-" not in answer.stdout + answer.stderr


ALL_WRONG = """
[sever]
[providers.openai]
api_key = "sk-literal"
tiemout = 3
proxy = 5
[providers.nope]
type = "opnai"
[providers.xai]
[providers.local]
type = "openai"
base_url = "127.0.0.1:11434/v1"
prices = { m = { input = "free", output = "1", max_input = -1 }, n = { inptu = "1", ouptut = "2" } }
[models]
fast = ["openai/gpt-4o", "local/llama", "nobody/x"]
a = "b"
b = "a"
uses = ["a", "fast"]
[models.split]
targets = ["openai/gpt-4o"]
weights = { "openai/x" = 1 }
[keys.web]
hash = "env:NO_HASH"
models = ["fast", "fsat"]
[keys.app]
hash = "abc"
[server]
graceful_timeout = 0
admin_key = "env:NO_ADMIN"
"""
EACH_WRONG = [
    "[sever]; did you mean 'server'?",
    "NO_HASH is not set",
    "NO_ADMIN is not set",
    "[providers.openai].api_key must be a reference",
    "[providers.openai] has no 'tiemout'; did you mean 'timeout'?",
    "[providers.openai].proxy must be text",
    "there is no type 'opnai'; did you mean 'openai'?",
    "[providers.xai] has no key: set XAI_API_KEY",
    "[providers.local].base_url must be a URL that begins with http:// or https://",
    "[providers.local].prices.m.input must be a decimal string",
    "[providers.local].prices.m.max_input must be a whole number of tokens",
    "[providers.local].prices.n has an unknown key 'inptu'; did you mean 'input'",
    "[providers.local].prices.n has an unknown key 'ouptut'; did you mean 'output'",
    "[models] fast: no provider for model 'nobody/x'",
    "a -> b -> a",
    "[models.split].weights: 'openai/x' is not a target",
    "[keys.web].models: no provider for model 'fsat'; did you mean 'fast'",
    "[keys.app].hash must be a SHA-256",
    "[server].graceful_timeout must be a whole number",
    "INFERMUX_SERVER__THREADS must be a whole number",
    "INFERMUX_TOKENTRACE",
]


def test_all_errors_are_told_at_once_and_each_once(tmp_path: Path) -> None:
    env = {"INFERMUX_SERVER__THREADS": "many", "INFERMUX_TOKENTRACE": "http://h:1"}
    lines = errors(tmp_path, ALL_WRONG, **env)
    for words in EACH_WRONG:
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert len(lines) == len(EACH_WRONG), lines
    assert "sk-literal" not in "".join(lines)


def test_a_start_tells_the_first_error_and_how_many_there_are(tmp_path: Path) -> None:
    (tmp_path / "infermux.toml").write_text("[server]\nthreads = 0\nworkers = 0\n")
    for command in (["serve", "--addr", "127.0.0.1:0"], ["infer", "hello"]):
        answer = infermux(tmp_path, *command)
        assert answer.returncode == 1 and answer.stderr.count("\n") == 1
        assert "threads" in answer.stderr and "1 more: `infermux validate`" in answer.stderr


# -- a vendor without its key ----------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("args", "variable"),
    [
        (["--model", "gpt-4o"], "OPENAI_API_KEY"),
        (["--model", "openai/gpt-4o"], "OPENAI_API_KEY"),
        (["--model", "openai"], "OPENAI_API_KEY"),
        (["--model", "claude-sonnet-5-5"], "ANTHROPIC_API_KEY"),
        (["--model", "gemini-3.8-flash"], "GEMINI_API_KEY"),
        (["--model", "grok-4.7"], "XAI_API_KEY"),
        (["--provider", "groq"], "GROQ_API_KEY"),
        (["--provider", "anthropic", "--model", "claude-x"], "ANTHROPIC_API_KEY"),
        (["--provider", "ollama"], "OLLAMA_HOST"),
    ],
)
@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
def test_a_known_vendors_model_says_which_key_opens_it(
    tmp_path: Path, args: list[str], variable: str, streamed: str
) -> None:
    answer = infermux(tmp_path, "infer", "hello", streamed, *args)
    assert (answer.returncode, answer.stdout.strip()) == (1, "")
    assert answer.stderr.count("\n") == 1 and f"set {variable}" in answer.stderr, answer.stderr


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("together_ai/meta/llama", "Together is called 'together': set TOGETHER_API_KEY"),
        ("vertex_ai/gemini-2.5-pro", "Vertex AI is called 'vertex': set VERTEX_ACCESS_TOKEN"),
        ("lm_studio/qwen", "LM Studio is called 'lmstudio': set LMSTUDIO_BASE_URL"),
        ("grok/grok-4", "xAI is called 'xai': set XAI_API_KEY"),
        ("claude", "Anthropic is called 'anthropic': set ANTHROPIC_API_KEY"),
    ],
)
def test_a_vendor_by_another_name_is_told_by_its_own(tmp_path: Path, model: str, told: str) -> None:
    answer = infermux(tmp_path, "infer", "hello", "--model", model)
    assert answer.returncode == 1 and told in answer.stderr


def test_the_hint_names_the_vendor(tmp_path: Path) -> None:
    told = infermux(tmp_path, "infer", "hello", "--model", "gpt-4o").stderr
    assert "gpt-4o is OpenAI's: set OPENAI_API_KEY" in told
    assert "OPENAI_API_KEY" in infermux(tmp_path, "explain", "gpt-4o").stderr


def test_where_the_file_names_the_providers_the_hint_is_to_add_one(tmp_path: Path) -> None:
    (tmp_path / "infermux.toml").write_text(ECHO)
    told = infermux(tmp_path, "infer", "hello", "--model", "gpt-4o", **OPENAI).stderr
    assert "add [providers.openai] to infermux.toml" in told
    lines = errors(tmp_path, f"{ECHO}[models]\nfast = 'gpt-4o'\n")
    assert len(lines) == 1 and "add [providers.openai]" in lines[0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("model", ["nonsense", "echo-v2", "", "llama3.2:3b", "x/gpt-4o"])
def test_what_is_nobodys_has_no_such_hint(tmp_path: Path, model: str) -> None:
    told = infermux(tmp_path, "infer", "hello", "--model", model or "auto").stderr
    assert "_API_KEY" not in told


def test_a_vendor_that_is_configured_has_no_such_hint(tmp_path: Path) -> None:
    answer = infermux(
        tmp_path, "infer", "hi", "--provider", "openai", "--model", "auto/x", **OPENAI
    )
    assert "set OPENAI" not in answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_services_log_has_the_hint_and_its_answers_do_not(tmp_path: Path, format: str) -> None:
    env = {"INFERMUX_SERVER__LOG_FORMAT": format, "INFERMUX_SERVER__WORKERS": "1"}
    asked = {"model": "gpt-4o", "messages": HELLO["messages"]}
    with Service(env=env) as service:
        answers = [
            service.ask(path, asked | more)
            for path in ("/infer", "/v1/chat/completions", "/v1/messages")
            for more in ({}, {"stream": True})
        ]
        answers.append(service.ask("/infer", asked | {"provider": "openai"}))
        answers.append(service.ask("/infer", asked | {"model": 'claude-"\n\x1b[0m'}))
        log = service.log
    for answer in answers:
        assert answer.status in (400, 404), answer.data
        whole = answer.data.decode() + str(answer.headers)
        assert "API_KEY" not in whole and "OpenAI" not in whole
    assert answers[0].status == 404
    assert "gpt-4o is OpenAI's: set OPENAI_API_KEY" in log and "\x1b" not in log


# -- variables -------------------------------------------------------------------------------------

UNREAD = {
    "INFERMUX_ADDR": "--addr",
    "INFERMUX_LISTEN": "--addr",
    "INFERMUX_PORT": "--addr",
    "INFERMUX_TOKENTRACE": "did you mean 'INFERMUX_TRACE__TOKENTRACE'?",
    "INFERMUX_SERVER_THREADS": "did you mean 'INFERMUX_SERVER__THREADS'?",
    "INFERMUX_RELIABILITY_CIRCUIT_BREAKER_OPEN": (
        "did you mean 'INFERMUX_RELIABILITY__CIRCUIT_BREAKER__OPEN'?"
    ),
    "INFERMUX_PROVIDERS_OPENAI_MODELS": "did you mean 'INFERMUX_PROVIDERS__OPENAI__MODELS'?",
    "INFERMUX_LOG_LEVEL": "did you mean 'INFERMUX_SERVER__LOG_LEVEL'?",
    "INFERMUX_TOKENTRACE_URL": "did you mean 'INFERMUX_TRACE__TOKENTRACE'?",
    "INFERMUX_GRACEFUL": "did you mean 'INFERMUX_SERVER__GRACEFUL_TIMEOUT'?",
    "INFERMUX_LEDGER": "did you mean 'INFERMUX_LEDGER__PATH'",
    "INFERMUX_SERVER_ADMIN": "did you mean 'INFERMUX_ADMIN_KEY'?",
    "INFERMUX_CONFG": "did you mean 'INFERMUX_CONFIG'?",
    "INFERMUX_ADMINKEY": "did you mean 'INFERMUX_ADMIN_KEY'?",
    "INFERMUX_OPENAI_API_KEY": "did you mean 'OPENAI_API_KEY'?",
    "INFERMUX_MASTER_KEY": "did you mean 'INFERMUX_ADMIN_KEY'?",
    "INFERMUX_MAX_RETRIES": "did you mean 'INFERMUX_RELIABILITY__ATTEMPTS'?",
    "INFERMUX_DATABASE_URL": "did you mean 'INFERMUX_LEDGER__URL'?",
    "INFERMUX_XYZZY": "unset it",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", UNREAD)
def test_a_variable_that_nobody_reads_stops_the_start(tmp_path: Path, name: str) -> None:
    [line] = errors(tmp_path, None, **OPENAI, **{name: "8600"})
    assert line.startswith(f"infermux: {name} is no variable of InferMux") and UNREAD[name] in line
    for command in (["serve"], ["infer", "hello"]):
        answer = infermux(tmp_path, *command, **OPENAI, **{name: "8600"})
        assert (answer.returncode, answer.stdout) == (1, "") and UNREAD[name] in answer.stderr


def test_gunicorn_does_not_start_with_one_either(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "-b", "127.0.0.1:0"]
    answer = run(command, env={"INFERMUX_TOKENTRACE": "http://127.0.0.1:9"}, cwd=ROOT)
    assert answer.returncode == 1
    assert "did you mean 'INFERMUX_TRACE__TOKENTRACE'?" in answer.stderr


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "env",
    [
        {"INFERMUX_ADMIN_KEY": "k"},
        {"INFERMUX_LONG": "1"},
        {"INFERMUXX": "1", "XINFERMUX_ADDR": "1"},
        # Kubernetes sets these for a Service named infermux, and for one named infermux-web
        {
            "INFERMUX_SERVICE_HOST": "10.0.0.1",
            "INFERMUX_SERVICE_PORT": "8600",
            "INFERMUX_SERVICE_PORT_HTTP": "8600",
            "INFERMUX_PORT": "tcp://10.0.0.1:8600",
            "INFERMUX_PORT_8600_TCP": "tcp://10.0.0.1:8600",
            "INFERMUX_PORT_8600_TCP_PROTO": "tcp",
            "INFERMUX_PORT_8600_TCP_PORT": "8600",
            "INFERMUX_PORT_8600_TCP_ADDR": "10.0.0.1",
            "INFERMUX_WEB_SERVICE_HOST": "10.0.0.1",
            "INFERMUX_WEB_PORT": "tcp://10.0.0.1:8600",
        },
    ],
)
def test_a_variable_that_somebody_reads_does_not(tmp_path: Path, env: Mapping[str, str]) -> None:
    answer = validate(tmp_path, None, **env)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_provider_that_is_not_configured_says_which_key_is_missing(tmp_path: Path) -> None:
    [line] = errors(tmp_path, None, INFERMUX_PROVIDERS__OPENAI__RPM="5")
    assert "'openai' is not configured; set OPENAI_API_KEY" in line
    [line] = errors(tmp_path, ECHO, INFERMUX_PROVIDERS__OPENAI__RPM="5")
    assert "add [providers.openai] to infermux.toml" in line


def test_what_is_no_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    """Docker makes a folder where a file to mount is missing."""
    (tmp_path / "infermux.toml").mkdir()
    assert "Is a directory" in infermux(tmp_path, "infer", "hello").stderr
    (tmp_path / "infermux.toml").rmdir()
    (tmp_path / "infermux.toml").symlink_to("nowhere")
    answer = infermux(tmp_path, "validate")
    assert answer.returncode == 1
    assert "there is no file infermux.toml: it is a link to nowhere" in answer.stderr
    (tmp_path / "infermux.toml").unlink()
    (tmp_path / "infermux.toml").write_text("[models]", encoding="utf-16")
    answer = infermux(tmp_path, "validate")
    assert answer.returncode == 2 and "it is not UTF-8 text" in answer.stderr


def test_what_is_set_and_does_nothing_is_a_warning(tmp_path: Path) -> None:
    text = "[providers.openai]\noptions = { a = 1 }\n[alerts]\nevents = ['budget']\n"
    answer = validate(tmp_path, text, **OPENAI)
    assert answer.returncode == 0
    assert "[providers.openai].options are not read" in answer.stderr
    assert "[alerts] has no webhook" in answer.stderr


def test_a_variable_that_the_file_refers_to_is_read(tmp_path: Path) -> None:
    text = "[providers.openai]\napi_key = 'env:INFERMUX_OPENAI_KEY'\n"
    assert validate(tmp_path, text, INFERMUX_OPENAI_KEY="k").returncode == 0


# -- the operators' key ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "env"),
    [
        ("", {"INFERMUX_ADMIN_KEY": "sk-op"}),
        (ECHO, {"INFERMUX_ADMIN_KEY": "sk-op"}),
        ("[server]\nadmin_key = 'env:OTHER'\n", {"OTHER": "sk-op"}),
        ("[server]\nadmin = 'env:OTHER'\n", {"OTHER": "sk-op"}),
        ("", {"INFERMUX_SERVER__ADMIN": "sk-op"}),
        ("", {"INFERMUX_SERVER__ADMIN": "sk-op", "INFERMUX_ADMIN_KEY": "sk-op"}),
        ("", {"INFERMUX_SERVER__ADMIN_KEY": "sk-op"}),
        # a variable has the last word
        ("[server]\nadmin_key = 'env:OTHER'\n", {"OTHER": "x", "INFERMUX_ADMIN_KEY": "sk-op"}),
    ],
)
def test_one_name_of_the_operators_key_opens_the_service(
    tmp_path: Path, text: str, env: Mapping[str, str]
) -> None:
    (tmp_path / "x.toml").write_text(text)
    more = {"INFERMUX_CONFIG": str(tmp_path / "x.toml"), "INFERMUX_SERVER__WORKERS": "1"}
    with Service(env={**more, **env}) as service:
        for key, status in (("sk-op", 200), ("x", 401)):
            answer = service.ask("/status/targets", headers={"Authorization": f"Bearer {key}"})
            assert answer.status == status
        asked = [*INFERMUX, "status", "--server", f"http://127.0.0.1:{service.port}"]
        assert run(asked, env={"INFERMUX_ADMIN_KEY": "sk-op"}).returncode == 0
        old = "admin" in text.replace("admin_key", "") or "INFERMUX_SERVER__ADMIN" in env
        assert ("is now called" in service.log) == old


def test_two_operators_keys_that_differ_are_an_error(tmp_path: Path) -> None:
    env = {"INFERMUX_ADMIN_KEY": "one", "INFERMUX_SERVER__ADMIN_KEY": "two"}
    [line] = errors(tmp_path, None, **env)
    assert "INFERMUX_ADMIN_KEY and INFERMUX_SERVER__ADMIN_KEY differ" in line
    assert errors(tmp_path, None, INFERMUX_ADMIN_KEY="ключ")[0].startswith(
        "infermux: INFERMUX_ADMIN_KEY: a secret must be"
    )


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["XDG_CONFIG_HOME", "HOME"])
def test_the_users_own_file_is_read_where_the_folder_has_none(
    tmp_path: Path, variable: str
) -> None:
    base = tmp_path / "user"
    folder = base / "infermux" if variable == "XDG_CONFIG_HOME" else base / ".config" / "infermux"
    folder.mkdir(parents=True)
    (folder / "infermux.toml").write_text("[providers.own]\ntype = 'echo'\n")
    env = {variable: str(base)}
    assert providers(tmp_path, **env) == ["own"]
    assert str(folder / "infermux.toml") in validate(tmp_path, None, **env).stdout
    (tmp_path / "infermux.toml").write_text("[providers.here]\ntype = 'echo'\n")
    assert providers(tmp_path, **env) == ["here"]
    (tmp_path / "named.toml").write_text("[providers.named]\ntype = 'echo'\n")
    assert providers(tmp_path, INFERMUX_CONFIG="named.toml", **env) == ["named"]


def test_a_relative_xdg_folder_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "x" / "infermux").mkdir(parents=True)
    (tmp_path / "x" / "infermux" / "infermux.toml").write_text("[broken")
    assert providers(tmp_path, XDG_CONFIG_HOME="x") == ["echo"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["infermux.yml", "infermux.yaml"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_yaml_file_is_named_as_not_read(tmp_path: Path, name: str, beside: bool) -> None:
    (tmp_path / name).write_text("listen: :8600\n")
    if beside:
        (tmp_path / "infermux.toml").write_text(ECHO)
    for command in (["validate"], ["infer", "hello"]):
        answer = infermux(tmp_path, *command)
        assert answer.returncode == 0 and f"{name} is not read" in answer.stderr
        assert ("infermux init" in answer.stderr) != beside
    answer = infermux(tmp_path, "validate", "-c", name)
    assert answer.returncode == 2 and "`infermux init -c infermux.toml`" in answer.stderr


@pytest.mark.slow
def test_a_service_logs_a_yaml_file_and_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "infermux.yml").write_text("listen: :8600\n")
    (tmp_path / "infermux.toml").write_text("[server]\nworkers = 1\ngraceful = 5\n")
    command = [*INFERMUX, "serve"]
    with Service(command=command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as service:
        log = service.log
    assert log.count("infermux.yml is not read") == 1
    assert log.count("'graceful' is now called 'graceful_timeout'") == 1
    assert f"configuration: {tmp_path / 'infermux.toml'}" in log
    assert "providers: echo" in log


def test_init_writes_a_file_that_works_and_overwrites_none(tmp_path: Path) -> None:
    answer = infermux(tmp_path, "init")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"wrote {tmp_path / 'infermux.toml'}\n"
    assert providers(tmp_path, **OPENAI) == ["openai", "echo"]  # nothing in it is in force
    (tmp_path / "infermux.toml").write_text("# mine\n")
    again = infermux(tmp_path, "init")
    assert (again.returncode, again.stdout) == (1, "") and "--force" in again.stderr
    assert (tmp_path / "infermux.toml").read_text() == "# mine\n"
    assert infermux(tmp_path, "init", "--force").returncode == 0
    assert (tmp_path / "infermux.toml").read_text() == TEMPLATE.read_text()


@pytest.mark.slow
def test_init_writes_where_the_file_would_be_read(tmp_path: Path) -> None:
    user = tmp_path / "home" / ".config" / "infermux" / "infermux.toml"
    assert infermux(tmp_path, "init", "--user").stdout == f"wrote {user}\n"
    assert str(user) in infermux(tmp_path, "validate").stdout
    assert infermux(tmp_path, "init", "-c", "other.toml").returncode == 0
    assert infermux(tmp_path, "validate", "-c", "other.toml").returncode == 0
    nowhere = infermux(tmp_path, "init", "-c", "no/such/x.toml")
    assert nowhere.returncode == 1 and nowhere.stderr.count("\n") == 1
    assert infermux(tmp_path, "init", "-c", "x.toml", "--user").returncode == 2
    homeless = infermux(tmp_path, "init", "--user", HOME="")
    assert (homeless.returncode, homeless.stdout) == (1, "") and "no home" in homeless.stderr
    assert not (tmp_path / "infermux.toml").exists()


def uncommented() -> str:
    """Return the template with the # before each key and table removed."""
    return re.sub(r"(?m)^#(?=[\[\w])", "", TEMPLATE.read_text(encoding="utf-8"))


def test_every_key_of_the_template_is_valid(tmp_path: Path) -> None:
    text = uncommented()
    if find_spec("psycopg") is None:  # which [ledger] url needs
        text = re.sub(r"(?m)^url = .*", "", text)
    env = {"ALERT_WEBHOOK": "https://hooks.example/x", "ALERT_SECRET": "signs"}
    env |= OPENAI | {"OPENAI_API_KEY_2": "sk-second"}
    env["DATABASE_URL"] = "postgresql://infermux@db.example/infermux"
    answer = validate(tmp_path, text, **env)
    assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
    assert "local (file)" in answer.stdout and "slow (file)" in answer.stdout
    prose = re.findall(r"(?m)^#\s*((?:\[|\w+ *=).*)$", text)
    assert prose == []  # no comment looks like a key


REFERENCES = ("api_key", "admin_key", "users_secret", "ca")  # to what a newcomer does not have


def test_the_template_has_every_key_and_states_the_defaults(tmp_path: Path) -> None:
    data, text = tomllib.loads(uncommented()), TEMPLATE.read_text(encoding="utf-8")
    kinds = [settings.ProviderConfig, settings.Timeouts, settings.ModelConfig, settings.Breaker]
    kinds += [settings.Reliability, settings.Server, settings.KeyConfig, settings.BudgetConfig]
    kinds += [settings.TeamConfig, settings.LedgerConfig, settings.PricesConfig, settings.Trace]
    kinds += [settings.HooksConfig, settings.AlertsConfig]
    for kind in kinds:
        for item in fields(kind):
            if "reader" in item.metadata and item.name not in REFERENCES:
                assert re.search(rf"\b{item.name} =", text), item.name
    for name, kind in (("server", settings.Server), ("trace", settings.Trace)):
        for key, value in data[name].items():
            assert value == getattr(kind(), key), key
    assert data["ledger"]["path"] == settings.LedgerConfig().path
    assert data["reliability"]["attempts"] == settings.Reliability().attempts


# -- old words -------------------------------------------------------------------------------------

FULL = "[providers.echo]\n"
OLD = {  # a file and variables with an old word; what it is now called
    "then": (FULL + "[models.a]\ntargets = ['echo']\nOLD = 'echo'\n", ""),
    "breaker": ("[reliability]\nOLD = { open = 7 }\n", "INFERMUX_RELIABILITY__OLD__OPEN=7"),
    "admin": ("[server]\nOLD = 'env:A_KEY'\n", "INFERMUX_SERVER__OLD=k"),
    "graceful": ("[server]\nOLD = 5\n", "INFERMUX_SERVER__OLD=5"),
    "content": ("[trace]\nOLD = true\n", "INFERMUX_TRACE__OLD=true"),
    "lacks": ("[providers.x]\ntype = 'echo'\nOLD = { m = ['tools'] }\n", ""),
}


def test_there_is_one_table_of_old_words() -> None:
    assert {*OLD} == {*schema.RENAMED}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("old", OLD)
def test_an_old_word_in_the_file_still_works_and_is_told(tmp_path: Path, old: str) -> None:
    new, (text, _) = schema.RENAMED[old], OLD[old]
    answer = validate(tmp_path, text.replace("OLD", old), A_KEY="k")
    assert answer.returncode == 0
    assert f"'{old}' is now called '{new}'" in answer.stderr
    assert answer.stderr.count("\n") == 1
    plain = validate(tmp_path, text.replace("OLD", new), A_KEY="k")
    assert (plain.returncode, plain.stderr) == (0, "")
    key = next(line for line in text.splitlines() if "OLD" in line)
    both = text.replace(key, f"{key.replace('OLD', old)}\n{key.replace('OLD', new)}")
    [line] = [e for e in errors(tmp_path, both, A_KEY="k") if "is now called" not in e]
    assert f"{old!r}" in line and f"{new!r}" in line


@pytest.mark.sampled(1)
@pytest.mark.parametrize("old", [old for old in OLD if OLD[old][1]])
def test_an_old_word_in_a_variable_still_works_and_is_told(tmp_path: Path, old: str) -> None:
    new = schema.RENAMED[old]
    name, _, value = OLD[old][1].partition("=")
    before, after = (name.replace("OLD", word.upper()) for word in (old, new))
    answer = validate(tmp_path, None, **{before: value})
    assert answer.returncode == 0 and f"is now called {new.upper()}" in answer.stderr
    assert before in answer.stderr
    plain = validate(tmp_path, None, **{after: value})
    assert (plain.returncode, plain.stderr) == (0, "")
    [line] = [
        e for e in errors(tmp_path, None, **{before: value, after: value}) if "called" not in e
    ]
    assert before in line and after in line


def test_old_and_new_words_do_the_same(tmp_path: Path) -> None:
    """What a name falls back to, by `explain`; and how long a service waits, by its settings."""
    for word in ("then", "fallback"):
        text = f"[providers.a]\ntype = 'echo'\n{ECHO}[models.x]\ntargets = ['a']\n{word} = 'echo'\n"
        (tmp_path / "infermux.toml").write_text(text)
        assert "echo/echo-v1" in infermux(tmp_path, "explain", "x").stdout


def test_a_budget_keeps_its_then(tmp_path: Path) -> None:
    key = f"[keys.w]\nhash = '{'a' * 64}'\nbudget = {{ usd = '1', then = 'warn' }}\n"
    answer = validate(tmp_path, ECHO + key)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_manual_and_the_help_have_the_new_words_only() -> None:
    names = "|".join(old for old in schema.RENAMED if old != "then")
    page = ROOT / "infermux" / "help" / "configuration.md"
    block = next(
        text
        for text in re.findall(r"(?ms)^```toml\n(.*?)^```", page.read_text())
        if "[reliability]" in text
    )
    assert not re.search(rf"(?m)^#? ?({names}) *=", block + TEMPLATE.read_text())
    assert not re.search(r"(?m)^then *=", block)


def test_every_vendor_has_a_name_and_a_variable() -> None:
    for name, preset in PRESETS.items():
        assert preset.label and preset.keys, name


def test_the_tests_own_environment_is_clean() -> None:
    assert not [name for name in environment() if name.startswith("INFERMUX_")]


@pytest.mark.slow
def test_a_reload_and_a_flask_app_tell_old_words_too(tmp_path: Path) -> None:
    file = tmp_path / "infermux.toml"
    file.write_text("[server]\nworkers = 1\n")
    with Service(env={"INFERMUX_CONFIG": str(file)}) as service:
        assert "now called" not in service.log
        file.write_text("[server]\nworkers = 1\ngraceful = 5\n")
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: "'graceful' is now called 'graceful_timeout'" in service.log)
    told = infermux(tmp_path, "infer", "hello").stderr
    assert told.count("'graceful' is now called") == 1
    command = [sys.executable, "-m", "flask", "--app", "infermux", "infer", "hello"]
    told = run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}).stderr
    assert told.count("'graceful' is now called") == 1
