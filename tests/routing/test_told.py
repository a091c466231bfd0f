"""What an error tells: everything to the operator, and nothing more than before to a client.

The operator sees it in the library's exception, the command line, the log and the status page.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import Scripted, Service, Vendor, eventually, nobody, run, script

import infermux
from infermux import InferRequest
from infermux.errors import InferMuxError, ModelNotFound, NoHealthyProvider, ProviderError

ADMIN = "operator-key"
SECRETS = {"OPENAI_API_KEY": "sk-first-secret", "SECOND_KEY": "sk-second-secret"}
FILE = """
[providers.openai]
base_url = "{first}/v1"
[providers.anthropic]
base_url = "{second}/v1"
api_key = "env:SECOND_KEY"
[models]
both = ["openai/gpt-6-luna", "anthropic/claude-haiku-5-5"]
[models.first]
targets = ["openai/gpt-6-luna"]
[reliability]
attempts = 2
[server]
admin_key = "env:ADMIN"
workers = 1
"""
HI = [{"role": "user", "content": "a private word"}]
ERROR = {"error": {"type": "odd", "message": "the vendor's own words"}}
HINT = "does OPENAI_API_KEY hold a valid key?"
# what the two vendors answer: what the attempts say, as (status, words)
CASES: dict[str, tuple[int, int, str, str]] = {
    "401 then 529": (401, 529, f"401, {HINT}", "529"),
    "403 then 401": (403, 401, f"403, {HINT}", "401, does SECOND_KEY hold a valid key?"),
    "502 then 502": (502, 502, "502", "502"),
    "500 then 402": (500, 402, "500", "402"),
    "404 then 429": (404, 429, "404", "429"),
    "302 then 503": (302, 503, "302", "503"),
    "418 then 501": (418, 501, "418", "501"),
}


@contextmanager
def vendors(first: int, second: int, folder: Path) -> Iterator[dict[str, str]]:
    """Two vendors, and the environment of who is configured for them."""
    with Vendor(Scripted(first, ERROR)) as one, Vendor(Scripted(second, ERROR)) as two:
        file = folder / "infermux.toml"
        file.write_text(FILE.format(first=one.url, second=two.url))
        yield {**SECRETS, "ADMIN": ADMIN, "INFERMUX_CONFIG": str(file)}


def failure(environ: dict[str, str], model: str = "both", *, streamed: bool = False) -> Any:
    router = infermux.load(environ)
    with pytest.raises(InferMuxError) as caught:
        (router.stream if streamed else router.infer)(InferRequest(model, HI))
    return caught.value


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_librarys_error_says_each_attempt(
    case: tuple[int, int, str, str], streamed: bool, tmp_path: Path
) -> None:
    first, second, one, two = case
    with vendors(first, second, tmp_path) as environ:
        error = failure(environ, streamed=streamed)
    assert isinstance(error, ProviderError)
    assert (error.provider, error.model) == ("anthropic", "claude-haiku-5-5")
    assert error.upstream_status == second
    assert [(each.provider, each.model, each.upstream_status) for each in error.attempts] == [
        ("openai", "gpt-6-luna", first),
        ("anthropic", "claude-haiku-5-5", second),
    ]
    told = f"openai/gpt-6-luna: {one} then anthropic/claude-haiku-5-5: {two}"
    assert error.tried == told and str(error) == f"{error.message} ({told})"
    assert "secret" not in str(error) + repr(error.attempts) and "word" not in error.tried


def test_each_retry_of_one_target_is_told(tmp_path: Path) -> None:
    with vendors(500, 500, tmp_path) as environ:
        error = failure(environ, "first")
    assert error.tried == "openai/gpt-6-luna: 500 then openai/gpt-6-luna: 500"


def test_without_an_answer_the_words_say_why(tmp_path: Path) -> None:
    with nobody() as url:
        env = {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": f"{url}/v1"}
        env["INFERMUX_RELIABILITY__ATTEMPTS"] = "1"
        error = failure(env, "openai/gpt-6-luna")
    assert str(error) == (
        "no connection to the provider (openai/gpt-6-luna: no connection to the provider)"
    )
    assert (error.upstream_status, error.provider) == (None, "openai")


@pytest.mark.parametrize(
    ("key", "words"),
    [("env:SECOND_KEY", "SECOND_KEY"), ("file:{folder}/key", "the file {folder}/key")],
)
def test_the_hint_names_where_the_key_is_from(key: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-in-a-file\n")
    with vendors(401, 401, tmp_path) as environ:
        file = Path(environ["INFERMUX_CONFIG"])
        text = file.read_text().replace("env:SECOND_KEY", key.format(folder=tmp_path))
        file.write_text(text)
        error = failure(environ)
    assert f"does {words.format(folder=tmp_path)} hold a valid key?" in error.attempts[1].hint


@pytest.mark.slow
def test_an_error_inside_a_200_has_the_status_that_it_names() -> None:
    body = {"error": {"code": 429, "message": "slow down"}}
    with Vendor(Scripted(200, body)) as vendor:
        error = failure(vendor.env, "openai/gpt-6-luna")
    assert {each.upstream_status for each in error.attempts} == {429}


def test_a_stream_that_breaks_tells_its_attempt(tmp_path: Path) -> None:
    broken = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
    with Vendor(Scripted(200, broken, {"Content-Type": "text/event-stream"})) as vendor:
        stream = infermux.load(vendor.env).stream(InferRequest("openai/gpt-6-luna", HI))
        with pytest.raises(ProviderError) as caught:
            list(stream)
    assert str(caught.value.attempts[0]).startswith(
        "openai/gpt-6-luna: the provider's stream ended"
    )


def test_a_call_without_attempts_tells_what_was_asked_for() -> None:
    with pytest.raises(ModelNotFound) as caught:
        infermux.load({}).infer(InferRequest("nothing-like-it", HI))
    error = caught.value
    assert (error.model, error.attempts, error.upstream_status) == ("nothing-like-it", (), None)
    assert str(error) == error.message
    assert NoHealthyProvider("x").attempts == ()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("args", [[], ["--stream"], ["--json"]])
def test_the_command_line_says_the_same_in_one_line(args: list[str], tmp_path: Path) -> None:
    with vendors(401, 529, tmp_path) as environ:
        answer = run([*script("infermux"), "infer", "-m", "both", "Hi", *args], env=environ)
    assert answer.returncode == 1 and answer.stderr.count("\n") == 1
    assert f"openai/gpt-6-luna: 401, {HINT} then anthropic/claude-haiku-5-5: 529" in answer.stderr
    assert "secret" not in answer.stderr


# -- a service: the log and the page tell, the answers do not --


def bodies() -> Iterator[tuple[str, Any]]:
    for streamed in (False, True):
        more = {"stream": True} if streamed else {}
        for path in ("/infer", "/v1/chat/completions", "/v1/messages"):
            yield path, {"model": "both", "max_tokens": 9, "messages": HI} | more


def told_by(service: Service) -> Iterator[str]:
    """Yield what the service answers: every API, streamed or not."""
    for path, body in bodies():
        answer = service.ask(path, body)
        assert answer.status != 200
        yield answer.data.decode()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["text", "json"])
def test_the_log_and_the_page_tell_and_the_answers_do_not(format: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        environ = stack.enter_context(vendors(401, 529, tmp_path))
        environ["INFERMUX_SERVER__LOG_FORMAT"] = format
        service = stack.enter_context(Service(env=environ))
        answers = list(told_by(service))
        told = f"openai/gpt-6-luna: 401, {HINT} then anthropic/claude-haiku-5-5: 529"
        eventually(lambda: service.log.count("error") >= len(answers), "a line for each call")
        login = base64.b64encode(f"x:{ADMIN}".encode()).decode()
        page = service.ask("/status", headers={"Authorization": f"Basic {login}"})
        log = service.log
    for answer in answers:
        assert "401" not in answer and "OPENAI_API_KEY" not in answer and "luna" not in answer
    assert told in log.replace('\\"', '"')  # the others have met an open circuit, perhaps
    assert "upstream 401" in page.data.decode() and "upstream 529" in page.data.decode()
    assert all(secret not in log + page.data.decode() for secret in SECRETS.values())
    if format == "json":
        lines = [json.loads(line) for line in log.splitlines() if line.startswith('{"time"')]
        said = [line["error"] for line in lines if line.get("api")]
        assert len(said) == len(answers) and said[0] == told and all(said)


@pytest.mark.slow
def test_the_last_of_many_attempts_is_in_the_line(tmp_path: Path) -> None:
    with Vendor(Scripted(500, ERROR)) as vendor:
        more = {"INFERMUX_RELIABILITY__ATTEMPTS": "8", "INFERMUX_SERVER__WORKERS": "1"}
        with Service(env={**vendor.env, **more}) as service:
            service.ask("/infer", {"model": "openai/gpt-6-luna", "messages": HI})
            eventually(lambda: "error=" in service.log)
            line = next(each for each in service.log.splitlines() if "error=" in each)
    assert line.count("openai/gpt-6-luna: 500") == len(vendor.seen) > 2


def test_an_error_that_was_told_can_be_pickled() -> None:
    code = (
        "import pickle, infermux.errors as e\n"
        "x = e.ProviderTimeout('late')\n"
        "x.attempts = (e.FailedAttempt('p', 'm', 504),)\n"
        "assert str(pickle.loads(pickle.dumps(x))) == 'late (p/m: 504)'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
