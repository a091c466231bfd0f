"""Asking a model from the shell: the options of infer, its attachments, and chat at a terminal."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import (
    PATIENCE,
    Peer,
    Scripted,
    Terminal,
    Vendor,
    completion,
    environment,
    eventually,
    nobody,
    run,
    script,
)

from infermux.cli.main import main

PNG = b"\x89PNG\r\n\x1a\n rest"
PDF = b"%PDF-1.7 rest"
MODEL = "gpt-4.1-mini"


def infermux(*args: str, given: str | bytes = "", env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, args, input=given, env=env)


def asked(vendor: Vendor, *args: str, **more: Any) -> dict[str, Any]:
    """Return the body that `infermux infer` sends with these options."""
    before = len(vendor.seen)
    result = infermux("infer", "Hello", "-m", MODEL, *args, env=vendor.env, **more)
    assert result.exit_code == 0, result.output
    assert len(vendor.seen) == before + 1
    body: dict[str, Any] = vendor.seen[-1].body
    return body


def failed_in_one_line(result: Result, *words: str) -> None:
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert re.fullmatch(r"infermux: [^\n]+\n", result.stderr), result.stderr
    assert all(word in result.stderr for word in words), result.stderr


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.2", 0.2),
        ("-1", -1),
        ("true", True),
        ("null", None),
        ('["a", "b"]', ["a", "b"]),
        ('{"a": 1}', {"a": 1}),
        ('"0.2"', "0.2"),
        ("low", "low"),
        ("", ""),
        ("two words", "two words"),
        ("{broken", "{broken"),
        ("NaN", "NaN"),
        ("grüß", "grüß"),
    ],
)
def test_an_option_is_json_where_it_is_json_else_text(
    vendor: Vendor, text: str, value: object
) -> None:
    body = asked(vendor, "-o", "vendor_option", text, "--option", "seed", "7")
    assert (body["vendor_option"], body["seed"]) == (value, 7)


def test_the_most_output_tokens_go_by_the_name_that_the_model_takes(vendor: Vendor) -> None:
    assert asked(vendor, "--max-tokens", "9")["max_tokens"] == 9
    body = asked(vendor, "--max-tokens", "9", "-m", "gpt-6-luna")
    assert (body["max_completion_tokens"], "max_tokens" in body) == (9, False)


@pytest.mark.parametrize("name", ["model", "messages", "stream", "api_key", "base_url"])
def test_an_option_cannot_replace_the_request_or_its_key(vendor: Vendor, name: str) -> None:
    failed_in_one_line(infermux("infer", "Hello", "-o", name, "x", env=vendor.env), name)
    assert vendor.seen == []


@pytest.mark.parametrize(
    "args",
    [
        ["-o", "temperature"],
        ["--max-tokens", "0"],
        ["--max-tokens", "3", "-o", "max_tokens", "4"],
    ],
)
def test_wrong_usage_of_the_options_is_exit_code_2(args: list[str]) -> None:
    assert infermux("infer", "Hello", *args).exit_code == 2


def test_an_option_with_an_equals_sign_is_told_how_it_is_written() -> None:
    result = infermux("infer", "-o", "temperature=0.2", "Hello")
    assert result.exit_code == 2 and "-o temperature 0.2" in result.stderr


# -- attachments -----------------------------------------------------------------------------------


def url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.png", PNG, "image/png"),
        ("without-suffix", PNG, "image/png"),
        ("misnamed.pdf", b"\xff\xd8\xff\xe0 rest", "image/jpeg"),
        ("a.gif", b"GIF89a rest", "image/gif"),
        ("a.bin", b"RIFF\x01\x00\x00\x00WEBP rest", "image/webp"),
        ("a.heic", b"\x00\x00\x00\x18ftypheic", "image/heic"),
    ],
)
def test_an_image_is_attached(
    vendor: Vendor, tmp_path: Path, name: str, data: bytes, kind: str
) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    if name.endswith(".heic"):
        import mimetypes

        mimetypes.add_type("image/heic", ".heic")
    [message] = asked(vendor, "--attach", str(file))["messages"]
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": url(kind, data)}},
        {"type": "text", "text": "Hello"},
    ]


def test_attachments_may_be_several_and_a_pdf_keeps_its_name(
    vendor: Vendor, tmp_path: Path
) -> None:
    (tmp_path / "bill.pdf").write_bytes(PDF)
    (tmp_path / "a.png").write_bytes(PNG)
    body = asked(
        vendor, "--attach", str(tmp_path / "bill.pdf"), "--attach", str(tmp_path / "a.png")
    )
    assert body["messages"][0]["content"] == [
        {
            "type": "file",
            "file": {"filename": "bill.pdf", "file_data": url("application/pdf", PDF)},
        },
        {"type": "image_url", "image_url": {"url": url("image/png", PNG)}},
        {"type": "text", "text": "Hello"},
    ]


def test_standard_input_may_be_attached(vendor: Vendor) -> None:
    [message] = asked(vendor, "--attach", "-", given=PNG)["messages"]
    assert message["content"][0]["image_url"]["url"] == url("image/png", PNG)


class Site(Peer):
    """A web server with a PDF at every path but /gone."""

    def answer(self, handler: Any, body: bytes) -> None:
        handler.reply(404 if handler.path == "/gone" else 200, PDF)


def test_a_url_of_an_image_is_passed_on_and_a_pdf_is_fetched(vendor: Vendor) -> None:
    with Site() as site:
        urls = [
            "https://example.com/a.png?x=1",
            f"{site.url}/paper/1706.03762",
            f"{site.url}/a.pdf",
        ]
        body = asked(vendor, *(part for each in urls for part in ("--attach", each)))
        failed_in_one_line(infermux("infer", "Hi", "--attach", f"{site.url}/gone"), "/gone", "Not")
    parts = body["messages"][0]["content"]
    assert parts[0] == {"type": "image_url", "image_url": {"url": urls[0]}}
    assert [part["file"]["filename"] for part in parts[1:3]] == ["1706.03762.pdf", "a.pdf"]
    assert {part["file"]["file_data"] for part in parts[1:3]} == {url("application/pdf", PDF)}
    with nobody() as nowhere:
        failed_in_one_line(infermux("infer", "Hi", "--attach", f"{nowhere}/a.pdf"), nowhere)


def test_input_that_is_no_prompt_is_no_traceback() -> None:
    assert infermux("infer", "--attach", "-", given=PNG).exit_code == 2
    for command in ("infer", "chat"):
        answer = subprocess.run(
            [*script("infermux"), command],
            input=b"\xff\xfe binary",
            capture_output=True,
            env=environment(PYTHONIOENCODING="utf-8:strict"),
            timeout=PATIENCE,
            check=False,
        )
        assert (answer.returncode, answer.stdout) == (1, b"")
        assert answer.stderr == b"infermux: the input is not UTF-8 text\n"


def test_what_cannot_be_attached_is_one_line(tmp_path: Path, vendor: Vendor) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("notes.txt", "empty.png", "missing.png", ""):
        failed_in_one_line(
            infermux("infer", "Hi", "--attach", str(tmp_path / name), env=vendor.env), name
        )
    address = "http://[::1"
    failed_in_one_line(infermux("infer", "Hi", "--attach", address, env=vendor.env), address)
    assert vendor.seen == []


@pytest.mark.slow
def test_a_pdf_reaches_each_format(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(PDF)
    answers = {
        "anthropic": {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "claude-haiku-5-5",
            "content": [{"type": "text", "text": "seen"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        },
        "gemini": {
            "candidates": [
                {"content": {"parts": [{"text": "seen"}], "role": "model"}, "finishReason": "STOP"}
            ]
        },
    }
    for name, body in answers.items():
        with Vendor(Scripted(body=body)) as vendor:
            upper = name.upper()
            env = {f"{upper}_API_KEY": "sk-test", f"{upper}_BASE_URL": vendor.url}
            result = infermux(
                "infer", "Hi", "-m", name, "--attach", str(tmp_path / "a.pdf"), env=env
            )
            assert (result.exit_code, result.stdout) == (0, "seen\n"), result.output
            assert base64.b64encode(PDF).decode() in json.dumps(vendor.seen[0].body)


# -- structured output -----------------------------------------------------------------------------

CLOSED = {
    "title": "A person",
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "name", "strict"),
    [
        (CLOSED, "A_person", True),
        (CLOSED | {"required": ["name"]}, "A_person", None),
        ({"type": "object"}, "of-a-file", None),
        ({"type": "array", "items": CLOSED}, "of-a-file", True),
        (CLOSED | {"properties": {"name": {}, "age": {"type": "object"}}}, "A_person", None),
        (CLOSED | {"allOf": []}, "A_person", None),
    ],
)
def test_a_schema_makes_the_answer_structured(
    vendor: Vendor, tmp_path: Path, schema: dict[str, Any], name: str, strict: bool | None
) -> None:
    """OpenAI's strict mode is asked for where it takes the schema, as it refuses others."""
    file = tmp_path / "of-a-file.json"
    file.write_text(json.dumps(schema))
    wanted = asked(vendor, "--schema", str(file))["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"].get("strict") is strict
    assert (wanted["json_schema"]["name"], wanted["json_schema"]["schema"]) == (name, schema)


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN", '{"a": 1, "a": 2}', "\ud800"])
def test_a_schema_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "s.json"
    file.write_text(text, errors="surrogatepass")
    failed_in_one_line(infermux("infer", "Hi", "--schema", str(file)), "s.json")
    failed_in_one_line(infermux("infer", "Hi", "--schema", str(tmp_path / "no.json")), "no.json")


# -- configuration, plan and ledger ----------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Iterator[str]:
    """A file with a name of two targets, of which the first one fails, and a ledger."""
    with Vendor(Scripted(401, {"error": {"message": "no such key"}})) as bad, Vendor() as good:
        file = tmp_path / "own.toml"
        file.write_text(
            "".join(
                f'[providers.{name}]\ntype = "openai"\nbase_url = "{each.url}/v1"\n'
                'api_key = "env:SHELL_TEST_KEY"\nmodels = ["m"]\n'
                for name, each in (("bad", bad), ("good", good))
            )
            + '[models]\nfast = ["bad/m", "good/m"]\n'
            + f'[ledger]\npath = "{tmp_path / "calls.db"}"\n'
        )
        yield str(file)


KEY = {"SHELL_TEST_KEY": "sk-shell-test"}


def test_verbose_prints_the_plan_and_each_attempt(config: str) -> None:
    for flags in ([], ["--stream"]):
        result = infermux(
            "infer", "Hello", "-c", config, "-m", "fast", "--verbose", *flags, env=KEY
        )
        assert (result.exit_code, result.stdout) == (0, "Hello\n")
        lines = result.stderr.splitlines()
        assert re.fullmatch(r"call [0-9a-f]{32}", lines[0])
        assert lines[1] == "plan for fast, priority: bad/m, good/m"
        assert re.match(r"attempt 1: bad/m: 502 upstream_auth after \d+ ms: \S", lines[2])
        assert re.match(r"attempt 2: good/m: ok after \d+ ms", lines[3])
        assert len(lines) == 4 and "sk-shell-test" not in result.stderr
    result = infermux("infer", "Hello", "-c", config, "-m", "bad", "-v", env=KEY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.search(r"^attempt 1: bad/m: 502 ", result.stderr, re.M)
    assert result.stderr.splitlines()[-1].startswith("infermux: ")


def test_calls_of_the_shell_are_in_the_configured_ledger(config: str) -> None:
    for command, given in (("infer", "one"), ("chat", "two\nthree\n")):
        result = infermux(command, "-c", config, "-m", "fast", given=given, env=KEY)
        assert result.exit_code == 0, result.output
    assert infermux("infer", "four", "-c", config, "-m", "nobody", env=KEY).exit_code == 1
    told = infermux("logs", "-c", config, "--json", env=KEY).stdout.splitlines()
    rows = [json.loads(line) for line in told]
    assert [(row["api"], row["status"], len(row["attempts"])) for row in rows] == [
        *[("cli", "ok", 2)] * 3,
        ("cli", "404", 0),
    ]


def test_a_configuration_may_be_named(config: str, tmp_path: Path) -> None:
    assert infermux("infer", "Hello", "-c", config, "-m", "good", env=KEY).stdout == "Hello\n"
    assert "bad" in infermux("providers", "-c", config, env=KEY).stdout
    missing = str(tmp_path / "no.toml")
    for command in (["infer", "Hello"], ["providers"], ["chat"], ["models"]):
        failed_in_one_line(infermux(*command, "-c", missing), "no.toml")


# -- chat ------------------------------------------------------------------------------------------


class Chatty(Vendor):
    """Says what it was told so far, message by message."""

    def answer(self, handler: Any, body: bytes) -> None:
        said = [each["content"] for each in json.loads(body)["messages"]]
        self.answers = [Scripted(body=completion(json.loads(body), f"<{'|'.join(said)}>"))]
        super().answer(handler, body)


@contextmanager
def chatting(*args: str, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    with Terminal([*script("infermux"), "chat", *args], env=env) as terminal:
        terminal.wait("> ")
        yield terminal


def test_chat_remembers_what_was_said() -> None:
    with Chatty() as vendor:
        result = infermux(
            "chat",
            "-m",
            MODEL,
            "-s",
            "Be brief",
            "-o",
            "seed",
            "7",
            given="a\n\n b\nc",
            env=vendor.env,
        )
    assert result.exit_code == 0 and result.stderr == ""
    first, second, third = result.stdout.splitlines()
    assert first == "<Be brief|a>"
    assert second == f"<Be brief|a|{first}| b>"
    assert third == f"<Be brief|a|{first}| b|{second}|c>"
    assert {(each.body["seed"], each.body["model"]) for each in vendor.seen} == {(7, MODEL)}


def test_chat_obeys_its_commands_and_sends_what_is_none() -> None:
    with Chatty() as vendor:
        lines = [
            "\ufeff/model gpt-4.1",
            "/etc/passwd?",
            "/modle x",
            "/model",
            "/help",
            "/exit",
            "never",
        ]
        result = infermux("chat", "-m", MODEL, given="\n".join(lines), env=vendor.env)
    assert (result.exit_code, result.stdout) == (0, "</etc/passwd?>\n")
    assert "did you mean '/model'?" in result.stderr
    assert result.stderr.count("model: gpt-4.1\n") == 2
    assert "/model NAME" in result.stderr
    assert [each.body["model"] for each in vendor.seen] == ["gpt-4.1"]


@pytest.mark.parametrize("given", ["/model nobody\nHello\n", "Hello\nagain\n"])
def test_an_error_ends_a_chat_that_is_not_at_a_terminal(given: str) -> None:
    with Vendor(Scripted(401, {"error": {"message": "no"}})) as vendor:
        result = infermux("chat", "-m", MODEL, given=given, env=vendor.env)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    failed_in_one_line(infermux("chat", "-m", "nobody", given="Hello\n"), "nobody")


@pytest.mark.slow
def test_chat_at_a_terminal_edits_lines_and_ends_at_ctrl_d() -> None:
    with chatting("--usage") as terminal:
        terminal.type("Hellp\x7fo\n")
        terminal.wait("echo: Hello")
        terminal.wait("echo/echo-v1: ")  # the usage
        terminal.wait("> ", 2)
        terminal.type("\x1b[A, again\n")  # the line before
        terminal.wait("echo: Hello, again")
        terminal.wait("> ", 3)
        terminal.type("/mod\techo-\t\n")  # completed
        terminal.wait("model: echo-v1")
        terminal.type("/model nobody\n")
        terminal.wait("no provider for model 'nobody'")
        terminal.wait("> ", 5)
        terminal.type("half a line\x03")  # at the prompt Ctrl-C drops the line
        terminal.wait("> ", 6)
        terminal.type("whole\n")
        terminal.wait("echo: whole")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text and "Aborted" not in terminal.text


class Storyteller(Peer):
    """Streams an answer in OpenAI's format, the first one without an end or without a word."""

    def __init__(self, words: str) -> None:
        self.words = words  # of the first answer
        self.seen: list[Any] = []

    def answer(self, handler: Any, body: bytes) -> None:
        self.seen.append(json.loads(body))
        first = len(self.seen) == 1
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for words in [self.words] if first else ["Once", " upon"]:
            delta = {"choices": [{"index": 0, "delta": {"content": words}}]}
            handler.wfile.write(f"data: {json.dumps(delta)}\n\n".encode() * bool(words))
        if first:
            self.released.wait()
            return
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        handler.wfile.write(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())


@pytest.mark.slow
@pytest.mark.parametrize("words", ["It was", ""])
def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(words: str, tmp_path: Path) -> None:
    """What came of it stays in the conversation; without a word of it, the message goes too."""
    ledger = str(tmp_path / "calls.db")
    with Storyteller(words) as vendor:
        env = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": f"{vendor.url}/v1"}
        with chatting("-m", MODEL, env=env | {"INFERMUX_LEDGER__PATH": ledger}) as terminal:
            terminal.type("Tell\n")
            if words:
                terminal.wait(words)
            eventually(lambda: vendor.seen, "the request")
            terminal.type("\x03")
            terminal.wait("> ", 2)
            terminal.type("More\n")
            terminal.wait("Once upon")
            terminal.type("/exit\n")
            assert terminal.end() == 0
            assert "Traceback" not in terminal.text
    messages = [[each["role"], each["content"]] for each in vendor.seen[-1]["messages"]]
    before = [["user", "Tell"], ["assistant", words]] if words else []
    assert messages == [*before, ["user", "More"]]
    rows = run([*script("infermux"), "logs", "--json", "--ledger", ledger]).stdout.splitlines()
    assert len(rows) == 2  # the one that was stopped, too


@pytest.mark.slow
def test_infer_streams_to_a_terminal_and_chat_works_under_flask() -> None:
    with Terminal([*script("infermux"), "infer", "Hello"]) as terminal:
        assert terminal.end() == 0
        assert terminal.text == "echo: Hello\n"
    command = [sys.executable, "-m", "flask", "--app", "infermux", "chat"]
    answer = run(command, given="Hello\n")
    assert (answer.returncode, answer.stdout) == (0, "echo: Hello\n"), answer.stderr
