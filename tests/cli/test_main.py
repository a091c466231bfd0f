"""Tests of the command line, through click's runner and as installed commands."""

import json
import re
import sys

import click
import pytest
from click.testing import CliRunner
from commands import ageless
from support import HELLO, ROOT, Scripted, Service, TokenTrace, Vendor, nobody, run, script

import infermux
from infermux.cli.main import main
from infermux.dialects import parameters

VALUES = {
    "model": "echo-v1",
    "provider": "echo",
    "content": "echo: Hello world",
    "tokens_in": 2,
    "tokens_out": 4,
    "cost_usd": 0.00006,
    "latency_ms": 1,
    "finish_reason": "stop",
}


def infer(*args: str, given: str = "", env: dict[str, str] | None = None):
    return CliRunner().invoke(main, ["infer", *args], input=given, env=env)


def failed_in_one_line(result, *words: str) -> None:
    """Check exit code 1, nothing on standard output, and one line on standard error that holds
    *words*.
    """
    code = result.exit_code if hasattr(result, "exit_code") else result.returncode
    assert (code, result.stdout) == (1, "")
    assert re.fullmatch(r"[^\n]+\n", ageless(result.stderr)), result.stderr
    assert all(word in result.stderr for word in words), result.stderr


# -- infer -----------------------------------------------------------------------------------------

FORMS = {
    "argument": (["Hello world"], ""),
    "option": (["--prompt", "Hello world"], ""),
    "standard input": ([], "Hello world\n"),
    "dash": (["-"], "Hello world\n"),
    "dash as option": (["--prompt", "-"], "Hello world"),
    "input without an end of line": ([], "Hello world"),
    "input of Windows": ([], "\ufeffHello world\r\n"),
    "with a model": (["--model", "echo-v1", "--prompt", "Hello world"], ""),
    "short": (["-m", "echo", "Hello world"], ""),
    "auto": (["--model", "auto", "Hello world"], ""),
    "provider/model": (["Hello world", "--model", "echo/echo-v1"], ""),
    "a provider": (["Hello world", "--provider", "echo"], ""),
}


@pytest.mark.parametrize(("args", "given"), FORMS.values(), ids=FORMS)
def test_infer_prints_the_content_and_nothing_else(args, given):
    result = infer(*args, given=given)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "echo: Hello world\n", "")


@pytest.mark.parametrize(
    "text", ["two\nlines", "grüß Gott 😀", "  space around  ", "'\"$(x)", "100% {}"]
)
def test_the_prompt_comes_through_as_it_is(text):
    assert infer(text).stdout == f"echo: {text}\n"
    assert infer(given=text).stdout == f"echo: {text}\n"


def test_a_letter_that_the_output_cannot_have_costs_no_answer():
    """Windows redirects to a code page."""
    env = {"PYTHONIOENCODING": "cp1252"}
    answer = run([*script("infermux"), "infer", "a \u2192 😀"], env=env)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "echo: a ? ?\n", "")


def test_json_is_the_whole_response_in_the_protocols_order():
    result = infer("Hello world", "--json")
    assert list(json.loads(result.stdout).items()) == list(VALUES.items())
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize("args", [["--usage"], ["--usage", "--json"], ["--usage", "--stream"]])
def test_usage_goes_to_standard_error(args):
    plain = infer("Hello world", *args[1:])
    result = infer("Hello world", *args)
    assert (result.exit_code, plain.stderr) == (0, "")
    assert result.stdout == plain.stdout
    for part in (r"\b2 in\b", r"\b4 out\b", r"\$0\.00006\d*", r"\d+ ms", "echo-v1"):
        assert re.search(part, result.stderr), result.stderr


def test_stream_prints_the_same_text():
    assert (
        infer("Hello  world", "--stream").stdout
        == infer("Hello  world", "--no-stream").stdout
        == "echo: Hello  world\n"
    )


def test_the_system_message_goes_before_the_prompt(vendor):
    result = infer(
        "Hello world", "--system", "Be brief", "--model", "gpt-4.1-mini", "--usage", env=vendor.env
    )
    assert (result.exit_code, result.stdout) == (0, "Hello world\n")
    assert vendor.seen[0].body["model"] == "gpt-4.1-mini"
    assert vendor.seen[0].body["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hello world"},
    ]
    assert re.search(r"\b3 in, 2 out\b", result.stderr)


def test_auto_is_the_first_provider_that_is_configured(vendor):
    assert infer("Hello", env=vendor.env).stdout == "Hello\n"
    assert vendor.seen[0].body["model"] not in ("", "auto")


def test_the_prompt_may_begin_with_a_dash():
    assert infer("--", "-x").stdout == "echo: -x\n"


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[""], ["--prompt", ""], ["", "--stream"]])
def test_an_empty_prompt_is_not_sent(args):
    """It may be that of a variable that is not set."""
    result = infer(*args)
    assert (result.exit_code, result.stdout) == (2, "") and "the prompt is empty" in result.stderr


def test_an_unknown_model_is_one_line_with_a_close_match():
    failed_in_one_line(infer("Hello", "--model", "echo-v2"), "echo-v2", "echo-v1")


def test_an_unknown_provider_is_one_line():
    failed_in_one_line(infer("Hello", "--provider", "ecko"), "ecko", "echo")


@pytest.mark.parametrize("args", [[], ["--json"], ["--stream"], ["--usage"]])
def test_a_model_name_of_two_lines_is_still_one_line(args):
    failed_in_one_line(infer("Hello", "--model", "a\nb", *args))


@pytest.mark.slow
def test_closed_and_full_streams_leave_the_exit_code_as_it_is(tmp_path):
    (own,) = script("infermux")
    for command, code in [
        (f"{own} infer <&-", 2),
        (f"{own} infer -m nope Hello 2>/dev/full", 1),
        (f"{own} infer Hello >/dev/full 2>&1", 1),
    ]:
        answer = run(["bash", "-c", command], cwd=tmp_path)
        assert (answer.returncode, answer.stdout) == (code, ""), command
        assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("command", ["infer Hello", "serve --addr 127.0.0.1:0"])
def test_an_address_of_tokentrace_without_a_scheme_is_the_options_error(command):
    result = CliRunner().invoke(main, [*command.split(), "--tokentrace", "localhost:8700"])
    failed_in_one_line(result, "--tokentrace must be a URL that begins with http://")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("args", [[], ["--stream"]])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"error": {"message": "bad key sk-test-vendor"}}),
        (500, b"<html>\nTraceback\n</html>"),
        (400, {"error": {"message": "first line\nsecond line"}}),
        (200, b"{not json"),
        (302, b""),
    ],
)
def test_a_vendors_failure_is_one_line_without_the_key(status, body, args):
    with Vendor(Scripted(status, body, {"Location": "http://127.0.0.1:1/"})) as vendor:
        result = infer("Hello", "--model", "gpt-4.1-mini", *args, env=vendor.env)
        failed_in_one_line(result)
        assert "sk-test-vendor" not in result.output and vendor.url not in result.output


def test_no_connection_is_one_line():
    with nobody() as url:
        failed_in_one_line(
            infer(
                "Hello",
                "--model",
                "openai/x",
                env={"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": f"{url}/v1"},
            )
        )


@pytest.mark.parametrize("command", ["infer Hello", "providers", "serve"])
def test_a_wrong_setting_is_one_line_that_names_it(command):
    result = CliRunner().invoke(main, command.split(), env={"INFERMUX_RELIABILITY__ATEMPTS": "3"})
    failed_in_one_line(result, "INFERMUX_RELIABILITY__ATEMPTS", "attempts")


USAGE = {
    "no prompt": ["infer"],
    "two prompts": ["infer", "a", "--prompt", "b"],
    "unknown option": ["infer", "a", "--modell", "b"],
    "three arguments": ["infer", "a", "b"],
    "JSON as it arrives": ["infer", "a", "--json", "--stream"],
    "option without value": ["infer", "a", "--model"],
    "unknown command": ["infre", "a"],
    "serve with a word for a number": ["serve", "--workers", "many"],
    "serve without threads": ["serve", "--threads", "0"],
    "providers with an argument": ["providers", "x"],
}


@pytest.mark.parametrize("args", USAGE.values(), ids=USAGE)
def test_wrong_usage_is_exit_code_2(args):
    result = CliRunner().invoke(main, args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error" in result.stderr


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["model"], "models"),
        (["server"], "serve"),
        (["infr", "hi"], "infer"),
        (["keys", "nwe"], "new"),
        (["ledger", "backpu"], "backup"),
    ],
)
def test_an_unknown_command_is_told_with_what_was_meant(args, meant):
    result = CliRunner().invoke(main, args)
    wrong = args[-1] if args[-1] != "hi" else args[0]
    assert result.exit_code == 2
    assert f"there is no command {wrong!r}; did you mean '{meant}'?" in result.stderr


# -- providers -------------------------------------------------------------------------------------


def test_providers_is_a_table_of_what_is_configured():
    result = CliRunner().invoke(
        main, ["providers"], env={"GROQ_API_KEY": "gsk-test-secret", "XAI_API_KEY": "xai-test"}
    )
    rows = [line.split(None, 1) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert [row[0] for row in rows][1:] == ["xai", "groq", "echo"]
    assert rows[-1] == ["echo", "echo-v1"]
    assert (
        len({re.match(r"\S+ +", line).end() for line in result.stdout.splitlines()}) == 1
    )  # one column
    assert "gsk-test-secret" not in result.stdout


def test_providers_as_json_is_what_the_service_answers():
    result = CliRunner().invoke(main, ["providers", "--json"])
    assert json.loads(result.stdout) == {"providers": [{"name": "echo", "models": ["echo-v1"]}]}


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *main.list_commands(click.Context(main)), "keys new"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_help_shows_an_example(name, flag):
    result = CliRunner().invoke(main, [*name.split(), flag])
    assert result.exit_code == 0
    assert re.search(rf"Example: .*infermux {name}", result.stdout), result.stdout


@pytest.mark.parametrize("group", ["", "keys", "ledger", "budgets"])
def test_the_help_of_each_command_fits_its_line(group):
    lines = CliRunner().invoke(main, [*group.split(), "--help"]).stdout.split("Commands:\n")[1]
    assert "..." not in lines, lines


def test_help_lists_its_topics_and_prints_the_table_of_parameters():
    """Each parameter of the tables has a row: its kind, and the formats that can express it."""
    assert "parameters" in CliRunner().invoke(main, ["help"]).stdout
    found = CliRunner().invoke(main, ["help", "parameters"])
    assert found.exit_code == 0
    rows = [re.split(r"  +", line) for line in found.stdout.splitlines()]
    for kind, name, why in parameters.rows():
        assert [name, str(kind), ", ".join(parameters.formats(name)) or "-", why] in rows
    assert ["prompt_cache_key", "hint", "openai, responses", "caching"] in rows
    assert "[OPTIONS] NAME" in CliRunner().invoke(main, ["help", "keys", "new"]).stdout
    assert CliRunner().invoke(main, ["help", "keys", "nwe"]).exit_code == 2
    odd = CliRunner().invoke(main, ["help", "parametres"])
    assert odd.exit_code == 2 and "did you mean 'parameters'?" in odd.stderr


GO = [  # as a user of the Go program writes it
    ["-model", "echo-v1", "-prompt", "Hello"],
    ["-model=echo-v1", "-prompt=Hello"],
    ["-prompt", "Hello", "--model", "echo-v1"],
    ["-prompt", "-", "-stream"],
    ["Hello", "-system", "Be brief"],
    ["-no-stream", "--", "Hello"],
]


@pytest.mark.parametrize("args", GO, ids=" ".join)
def test_long_options_may_have_a_single_dash(args):
    result = infer(*args, given="Hello")
    assert (result.exit_code, result.stdout) == (0, "echo: Hello\n")


def test_what_stands_behind_two_dashes_is_no_option():
    assert infer("--", "-model").stdout == "echo: -model\n"
    assert infer("-modell", "x", "Hello").exit_code == 2
    assert infer("-mecho-v1", "Hello").stdout == "echo: Hello\n"


def test_infer_sends_its_span_where_an_option_says(tokentrace):
    answer = run([*script("infermux"), "infer", "Hello", "-tokentrace", tokentrace.url])
    assert (answer.returncode, answer.stdout) == (0, "echo: Hello\n")
    assert len(tokentrace.wait(1)) == 1


def test_version_is_a_command_too():
    result = CliRunner().invoke(main, ["version"])
    assert (result.exit_code, result.stdout) == (0, f"infermux {infermux.__version__}\n")


def test_version():
    result = CliRunner().invoke(main, ["--version"])
    import infermux

    assert result.exit_code == 0 and infermux.__version__ in result.stdout


# -- the installed commands ------------------------------------------------------------------------

FLASK = [sys.executable, "-m", "flask", "--app", "infermux"]
COMMANDS = {
    "infermux": [*script("infermux"), "infer", "Hello world"],
    "infermux, model and prompt": [
        *script("infermux"),
        "infer",
        "--model",
        "echo-v1",
        "--prompt",
        "Hello world",
    ],
    "python -m infermux": [sys.executable, "-m", "infermux", "infer", "Hello world"],
    "flask --app infermux": [*FLASK, "infer", "--model", "echo-v1", "--prompt", "Hello world"],
    "flask --app wsgi": [sys.executable, "-m", "flask", "--app", "wsgi", "infer", "Hello world"],
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_prints_the_content(command):
    answer = run(command)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "echo: Hello world\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("command", [script("infermux"), FLASK], ids=["infermux", "flask"])
def test_standard_input_json_usage_and_errors_at_a_real_shell(command):
    answer = run([*command, "infer", "--json", "--usage"], given="Hello world\n")
    assert answer.returncode == 0
    assert json.loads(answer.stdout) == VALUES
    assert len(answer.stderr.splitlines()) == 1
    failed_in_one_line(run([*command, "infer", "Hello", "--model", "nobody"]), "nobody")
    assert run([*command, "infer"]).returncode == 2
    assert run([*command, "providers"]).stdout.split() == ["PROVIDER", "MODELS", "echo", "echo-v1"]


@pytest.mark.slow
def test_a_wrong_setting_is_one_line_in_flasks_command_too():
    failed_in_one_line(
        run([*FLASK, "infer", "Hello"], env={"INFERMUX_SERVER__THREDS": "1"}),
        "INFERMUX_SERVER__THREDS",
    )


@pytest.mark.slow
def test_a_command_reports_its_span_before_it_ends():
    with TokenTrace() as receiver:
        for flags in ([], ["--stream"]):
            answer = run(
                [*script("infermux"), "infer", "Hello world", *flags],
                env={"INFERMUX_TRACE__TOKENTRACE": receiver.url},
            )
            assert (answer.returncode, answer.stdout) == (0, "echo: Hello world\n")
        assert [span["status"] for span in receiver.wait(2)] == [
            "ok",
            "ok",
        ]  # one that came late came all the same


OUTPUTS = [
    "providers",
    "budgets",
    "infer Hello",
    "infer --stream Hello",
    "infer --json Hello",
    "validate",
    "prices gpt-4o",
    "explain echo",
    "keys new web",
    "version",
    "help",
    "help parameters",
    "--help",
    "--version",
    "serve --help",
    "keys --help",
]


@pytest.mark.sampled(1)
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("> /dev/full", "No space left on device"),
        ("| exec sleep 0", "Broken pipe"),
        (">&-", "Bad file descriptor"),
    ],
)
@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_cannot_be_written_is_one_line(command, to, why, tmp_path):
    """The exit code is 1, and nothing is left behind."""
    (own,) = script("infermux")
    pipe = "set -o pipefail; " if to.startswith("|") else ""
    wait = "sleep 0.3; " if pipe else ""  # until the reader has gone
    answer = run(["bash", "-c", f"{pipe}({wait}exec {own} {command}) {to}"], cwd=tmp_path)
    failed_in_one_line(answer, why)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "command",
    [script("infermux"), [sys.executable, "-m", "infermux"], FLASK],
    ids=["infermux", "python -m", "flask"],
)
def test_serve_is_the_service_with_the_same_settings(command, tokentrace, tmp_path):
    args = ["serve", "--tokentrace", tokentrace.url, "--workers", "2", "--threads", "8"]
    with Service(command=[*command, *args], cwd=ROOT if command is FLASK else tmp_path) as service:
        assert service.ask("/infer", HELLO).json["content"] == "echo: hello"
        assert service.ask("/nowhere").json["error"]["code"] == "not_found"
        assert "Using worker: infermux.server.worker.Worker" in service.log
        assert len(tokentrace.wait(1)) == 1
        assert service.stop() == 0
        assert service.log.count("Booting worker") == 2


def test_serve_says_in_one_line_that_the_address_is_wrong():
    answer = run([*script("infermux"), "serve", "--addr", "127.0.0.1:http"])
    assert answer.returncode != 0
    assert "Traceback" not in answer.stderr
