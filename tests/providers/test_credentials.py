"""Tests of API keys: pools, files that change, commands, and the presets that take tokens."""

from __future__ import annotations

import hmac
import json
import os
import re
import sqlite3
import stat
import sys
import threading
import time
from base64 import b32encode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from support import PATIENCE, Vendor, completion, eventually

from infermux import InferRequest, Router, build
from infermux.admission.keys import hashed
from infermux.app import create_app
from infermux.config import command, credentials
from infermux.errors import ConfigError, InferMuxError, ProviderAuthError
from infermux.providers import PRESETS
from infermux.routing.explain import explain, question

REFUSED = (401, {"error": {"message": "bad key", "type": "invalid_request_error", "code": "x"}})
FORBIDDEN = (403, REFUSED[1])
NO_CREDIT = (
    429,
    {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
)
LIMITED = (429, {"error": {"message": "slow down", "type": "rate_limit_error", "code": "y"}})
KEYS = {"A": "sk-aaaaaaaaaaaa", "B": "sk-bbbbbbbbbbbb", "C": "sk-cccccccccccc"}


class Keyed(Vendor):
    """A vendor whose answer depends on the key."""

    def __init__(self, **refused: tuple[int, Any]) -> None:
        super().__init__()
        self.refused = refused
        self.headers: dict[str, dict[str, str]] = {}
        self.keys: list[str] = []

    def answer(self, handler: Any, body: bytes) -> None:
        key = (handler.headers["Authorization"] or "").removeprefix("Bearer ")
        name = next((name for name, value in KEYS.items() if value == key), key)
        with self.lock:
            self.keys.append(name)
            status, content = self.refused.get(name, (200, None))
            more = self.headers.get(name, {})
        data = json.dumps(completion(json.loads(body)) if content is None else content).encode()
        handler.reply(status, data, {"Content-Type": "application/json", **more})


def router(vendor: Vendor, key: str, folder: Path, more: str = "", **env: str) -> Router:
    path = folder / "infermux.toml"
    path.write_text(
        f'[providers.v]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\nmodels = ["m", "n"]\n'
        f"api_key = {key}\n{more}",
        encoding="utf-8",
    )
    return build.router(build.settings({**KEYS, **env}, str(path)))


POOL = '["env:A", "env:B", "env:C"]'


# -- pools -----------------------------------------------------------------------------------------


def test_calls_are_spread_over_the_keys(tmp_path):
    with Keyed() as vendor:
        found = router(vendor, POOL, tmp_path)
        for _ in range(9):
            found.infer("hi", model="v/m")
        assert Counter(vendor.keys) == {"A": 3, "B": 3, "C": 3}


STICKY = """[models.plain]
targets = ["v/m"]
[models.sticky]
targets = ["v/m", "v/n"]
strategy = "sticky"
[models.one]
targets = ["v/m"]
sticky = true
[models.cached]
targets = ["v/m"]
cache = "auto"
"""


@pytest.mark.parametrize("name", ["sticky", "one", "cached"])
def test_a_session_stays_with_one_key_at_every_host(name, tmp_path):
    """A vendor's cache is its account's: the keys of a pool count as targets."""
    with Keyed() as vendor:
        hosts = [router(vendor, POOL, tmp_path, STICKY) for _ in range(2)]

        def keys_of(session: str) -> set[str]:
            vendor.keys.clear()
            for host in hosts * 2:
                talk = [{"role": "user", "content": "hi"}]
                host.infer(InferRequest(name, talk, session=session))
            return set(vendor.keys)

        sessions = [f"session {number}" for number in range(24)]
        usual = {session: keys_of(session) for session in sessions}
        assert {len(keys) for keys in usual.values()} == {1}
        assert set().union(*usual.values()) == set(KEYS)
        vendor.refused["B"] = REFUSED
        for host in hosts:
            for _ in range(3):
                host.infer("hi", model="v/m")  # each finds B refused
        for session, keys in usual.items():
            now = keys_of(session)
            assert now == keys if keys != {"B"} else len(now) == 1 and "B" not in now


@pytest.mark.parametrize("refusal", [REFUSED, FORBIDDEN, NO_CREDIT, LIMITED])
def test_a_key_that_is_refused_rests_alone(refusal, tmp_path, caplog):
    with Keyed(B=refusal) as vendor:
        found = router(vendor, POOL, tmp_path)
        for _ in range(12):
            assert found.infer("hi", model="v/m").content == "hi"
        assert vendor.keys.count("B") == 1 and len(vendor.keys) == 13
        states = found.targets.breakers().values()
        assert [each.snapshot().reason for each in states] == [None]  # the target is as before
    if refusal in (REFUSED, FORBIDDEN, NO_CREDIT):
        [line] = [each.getMessage() for each in caplog.records if "rests" in each.getMessage()]
        assert "the key of B rests for 60 s" in line and "2 of 3 keys serve" in line
        assert not any(key in caplog.text for key in KEYS.values())


def test_explain_tells_how_many_keys_serve(tmp_path):
    with Keyed(B=REFUSED) as vendor:
        found = router(vendor, POOL, tmp_path)
        for _ in range(3):
            found.infer("hi", model="v/m")
        [target] = explain(found, question({"model": "v/m"})).to_dict()["targets"]
        assert target["keys"] == {"serving": 2, "all": 3}


def test_a_stream_goes_to_another_key_too(tmp_path):
    with Keyed(A=REFUSED, B=REFUSED) as vendor:
        found = router(vendor, POOL, tmp_path)
        for _ in range(3):
            with found.stream("hi", model="v/m") as chunks:
                assert "".join(chunk.text for chunk in chunks) == "hi"
        assert vendor.keys.count("C") == 3


def test_if_all_keys_rest_the_vendor_still_decides(tmp_path):
    with Keyed(A=REFUSED, B=REFUSED, C=REFUSED) as vendor:
        found = router(vendor, POOL, tmp_path)
        with pytest.raises(InferMuxError) as failed:
            found.infer("hi", model="v/m")
        assert failed.value.code == "upstream_auth" and sorted(vendor.keys) == ["A", "B", "C"]
        vendor.refused = {}
        assert found.infer("hi", model="v/m").content == "hi"


def test_a_key_serves_again_after_its_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("infermux.providers.credentials.REFUSED_SECONDS", 0.3)
    with Keyed(A=REFUSED) as vendor:
        found = router(vendor, '["env:A", "env:B"]', tmp_path)
        for _ in range(4):
            found.infer("hi", model="v/m")
        vendor.refused = {}
        assert eventually(lambda: found.infer("hi", model="v/m") and vendor.keys.count("A") > 1)


def test_a_key_whose_limit_is_used_up_rests_and_the_target_does_not(tmp_path):
    used = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0s"}
    with Keyed() as vendor:
        vendor.headers = {"A": used}
        found = router(vendor, '["env:A", "env:B"]', tmp_path, '[models]\nx = ["v/m", "v/n"]\n')
        for _ in range(6):
            found.infer("hi", model="v/m")
        assert vendor.keys.count("A") == 1
        plan = found.plan(InferRequest("x", [{"role": "user", "content": "hi"}]))
        assert [target.model for target in plan.targets] == ["m", "n"]


def test_other_errors_are_no_fault_of_a_key(tmp_path):
    with Keyed(A=(400, {"error": {"message": "bad", "type": "x"}}), B=(400, None)) as vendor:
        found = router(vendor, '["env:A"]', tmp_path)
        with pytest.raises(InferMuxError):
            found.infer("hi", model="v/m")
        assert vendor.keys == ["A"]


def test_no_key_of_a_pool_is_ever_shown(tmp_path):
    told = {"error": {"message": f"no {KEYS['A']} and {KEYS['B']}", "type": "x"}}
    with Keyed(A=(400, told), B=(400, told)) as vendor:
        found = router(vendor, '["env:A", "env:B"]', tmp_path)
        for _ in range(3):
            with pytest.raises(InferMuxError) as failed:
                found.infer("hi", model="v/m")
        assert not any(key in f"{failed.value} {failed.value.native}" for key in KEYS.values())
        assert "sk-" not in repr(found.registry.get("v").__dict__["_key"])


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("[]", "must have from 1 to 100 references"),
        ('["env:A", "env:NOPE"]', "api_key[1]: the variable NOPE is not set"),
        ('["env:A", "env:A"]', "api_key[1] is the same key as another one"),
        ('["env:A", "sk-plain"]', "api_key[1] must be a reference"),
        ('["env:A", 5]', "api_key[1] must be a reference"),
        ('["env:A", ["env:B"]]', "api_key[1] must be a reference"),
        ('"sk-plain-text"', "must be a reference"),
        ('"command:no-such-program-here x"', "there is no program 'no-such-program-here'"),
        ('"command:\'unclosed"', "is no command"),
        ('{ command = "true", tll = 5 }', "did you mean 'ttl'"),
        ("{ ttl = 5 }", "needs 'command'"),
        ('{ command = "true", ttl = "soon" }', "api_key.ttl must be seconds or a text such as"),
        ('{ command = "true", timeout = 0 }', "api_key.timeout must be"),
        ('"file:/nowhere/key"', "the file /nowhere/key cannot be read"),
    ],
)
def test_a_bad_key_is_an_error_that_does_not_show_it(key, words, tmp_path):
    with Vendor() as vendor, pytest.raises(ConfigError) as failed:
        router(vendor, key, tmp_path)
    told = "\n".join(failed.value.errors)
    assert words in told and "sk-plain" not in told, told


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 0.0)


def test_a_file_is_read_again_when_it_changes(tmp_path, at_once):
    path = tmp_path / "key"
    path.write_text("first-key-0001\n")
    with Keyed() as vendor:
        found = router(vendor, f'"file:{path}"', tmp_path)
        found.infer("hi", model="v/m")
        path.write_text("second-key-02\n")
        found.infer("hi", model="v/m")
        path.write_text("")  # half written
        found.infer("hi", model="v/m")
        path.unlink()
        found.infer("hi", model="v/m")
        path.write_text("third-key-003\n")
        found.infer("hi", model="v/m")
        last = "second-key-02"
        assert vendor.keys == ["first-key-0001", last, last, last, "third-key-003"]


def test_a_link_that_is_swapped_as_kubernetes_does_is_followed(tmp_path, at_once):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_text(f"key-of-{name}-1234")
        os.utime(tmp_path / name / "key", (1e9, 1e9))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "key").symlink_to("..data/key")
    with Keyed() as vendor:
        found = router(vendor, f'"file:{tmp_path}/key"', tmp_path)
        found.infer("hi", model="v/m")
        (tmp_path / "..new").symlink_to("two")
        (tmp_path / "..new").rename(tmp_path / "..data")
        found.infer("hi", model="v/m")
        assert vendor.keys == ["key-of-one-1234", "key-of-two-1234"]


def test_a_refused_file_is_read_again_at_once(tmp_path):
    path = tmp_path / "key"
    path.write_text("first-key-0001")
    with Keyed() as vendor:
        found = router(vendor, f'"file:{path}"', tmp_path)
        found.infer("hi", model="v/m")
        vendor.refused = {"first-key-0001": REFUSED}
        path.write_text("second-key-02")
        assert found.infer("hi", model="v/m").content == "hi"
        assert vendor.keys[-1] == "second-key-02"


def test_calls_that_are_refused_at_once_all_get_the_new_key(tmp_path):
    refused = threading.Barrier(5)

    class Together(Keyed):
        def answer(self, handler: Any, body: bytes) -> None:
            if handler.headers["Authorization"].endswith(tuple(self.refused)):
                refused.wait(PATIENCE)
            super().answer(handler, body)

    path = tmp_path / "key"
    path.write_text("first-key-0001")
    with Together() as vendor, ThreadPoolExecutor(5) as pool:
        found = router(vendor, f'"file:{path}"', tmp_path)
        found.infer("hi", model="v/m")
        path.write_text("second-key-02")
        vendor.refused = {"first-key-0001": REFUSED}
        calls = [pool.submit(found.infer, "hi", model="v/m") for _ in range(5)]
        assert [call.result().content for call in calls] == ["hi"] * 5
        assert vendor.keys.count("second-key-02") == 5


def test_a_new_key_of_a_file_is_redacted_too(tmp_path, at_once):
    path = tmp_path / "key"
    path.write_text("first-key-0001")
    with Keyed() as vendor:
        found = router(vendor, f'"file:{path}"', tmp_path)
        found.infer("hi", model="v/m")
        path.write_text("other-zebra-02")
        vendor.refused = {
            "other-zebra-02": (400, {"error": {"message": "not other-zebra-02", "type": "x"}})
        }
        with pytest.raises(InferMuxError) as failed:
            found.infer("hi", model="v/m")
        assert "zebra" not in f"{failed.value} {failed.value.native}"


# -- commands --------------------------------------------------------------------------------------


def program(folder: Path, text: str, name: str = "token") -> str:
    """Write a program in Python; return its path."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


COUNTS = """
path = os.path.join(os.path.dirname(sys.argv[0]), "runs")
with open(path, "a") as file:
    file.write("x")
print("token-number-%d-" % os.path.getsize(path) + " ".join(sys.argv[1:]))
"""


def runs(folder: Path) -> int:
    path = folder / "runs"
    return path.stat().st_size if path.exists() else 0


def test_a_command_is_run_once_for_its_ttl_without_a_shell(tmp_path):
    with Keyed() as vendor:
        path = program(tmp_path, COUNTS)
        found = router(vendor, f"\"command:{path} 'a;b' $HOME\"", tmp_path)
        assert runs(tmp_path) == 0  # not before it is needed
        threads = [
            threading.Thread(target=found.infer, args=("hi",), kwargs={"model": "v/m"})
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert vendor.keys == ["token-number-1-a;b $HOME"] * 8 and runs(tmp_path) == 1


@pytest.mark.slow
def test_a_new_token_is_fetched_in_the_background_before_the_old_one_ends(tmp_path):
    with Keyed() as vendor:
        path = program(tmp_path, COUNTS)
        found = router(vendor, f'{{ command = "{path}", ttl = 2 }}', tmp_path)
        found.infer("hi", model="v/m")
        time.sleep(1.7)
        start = time.monotonic()
        found.infer("hi", model="v/m")
        assert vendor.keys[-1] == "token-number-1-" and time.monotonic() - start < 1
        assert eventually(lambda: found.infer("hi", model="v/m") and "2" in vendor.keys[-1])


FAILURES = {
    "print('secret-token-value-1234'); print('no login, token-value-9999-secret', "
    "file=sys.stderr); sys.exit(3)": "failed with exit code 3: no login, [redacted]",
    "time.sleep(60)": "took longer than 0.5 s",
    "print('a' * 100000)": "printed more than 65536 bytes",
    "pass": "must be printable ASCII on one line",
    "print('two'); print('lines')": "must be printable ASCII on one line",
    "print('k\\xe9y')": "must be printable ASCII",
    "os.kill(os.getpid(), 9)": "failed with exit code -9",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", FAILURES)
def test_a_command_that_fails_is_told_without_the_secret(text, tmp_path, caplog):
    with Keyed() as vendor, Vendor() as other:
        path = program(tmp_path, text)
        more = (
            f'[providers.w]\ntype = "openai"\nbase_url = "{other.url}/v1"\napi_key = "env:A"\n'
            '[models]\nx = ["v/m", "w/m"]\n'
        )
        limit = 0.5 if "sleep" in text else 20
        key = f'{{ command = "{path}", timeout = {limit} }}'
        found = router(vendor, key, tmp_path, more)
        assert found.infer("hi", model="x").provider == "w"  # the call goes on
        with pytest.raises(InferMuxError) as failed:
            found.infer("hi", model="v/m")
        assert not vendor.keys and failed.value.code == "upstream_auth"
    assert FAILURES[text] in str(failed.value)
    assert any(FAILURES[text] in each.getMessage() for each in caplog.records)
    assert "secret-token" not in caplog.text and "9999" not in caplog.text
    assert FAILURES[text] not in failed.value.message  # of which a caller gets no more


def test_what_a_command_says_of_its_failure_holds_no_password(tmp_path, caplog):
    text = (
        "print('out-12')\n"
        "print('no login by', sys.argv[2], 'or', sys.argv[3][8:], 'pw=abc1 out-12 user=ann', "
        "file=sys.stderr)\nsys.exit(1)"
    )
    with Keyed() as vendor:
        path = program(tmp_path, text)
        found = router(vendor, f'"command:{path} --password hunter2 --token=t0k3n"', tmp_path)
        with pytest.raises(InferMuxError) as failed:
            found.infer("hi", model="v/m")
    hidden = "[redacted]"
    wanted = f"no login by {hidden} or {hidden} pw={hidden} {hidden} user=ann"
    assert wanted in str(failed.value) and wanted in caplog.text
    for word in ("hunter2", "t0k3n", "abc1", "out-12"):
        assert word not in caplog.text


@pytest.mark.slow
def test_a_command_that_leaves_a_child_behind_does_not_hang(tmp_path):
    with Keyed() as vendor:
        text = "if os.fork() == 0:\n    os.setsid(); time.sleep(8)\nelse:\n    print('a-token-123')"
        found = router(vendor, f'"command:{program(tmp_path, text)}"', tmp_path)
        start = time.monotonic()
        found.infer("hi", model="v/m")
        assert time.monotonic() - start < 6 and vendor.keys == ["a-token-123"]


def test_after_a_failure_the_last_token_is_used_while_it_lasts(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(command, "REFRESH", 0.0)
    with Keyed() as vendor:
        path = program(tmp_path, COUNTS)
        found = router(vendor, f'{{ command = "{path}", ttl = 60 }}', tmp_path)
        found.infer("hi", model="v/m")
        program(tmp_path, "sys.exit(1)")
        for _ in range(3):
            assert found.infer("hi", model="v/m").content == "hi"
        assert eventually(lambda: "failed with exit code 1" in caplog.text)
        assert found.infer("hi", model="v/m").content == "hi"


def test_a_thread_that_cannot_start_does_not_end_all_fetching(tmp_path, monkeypatch):
    start = threading.Thread.start

    def fails(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        raise RuntimeError("can't start new thread")

    with Keyed() as vendor:
        path = program(tmp_path, COUNTS)
        found = router(vendor, f'{{ command = "{path}", timeout = 2 }}', tmp_path)
        monkeypatch.setattr(threading.Thread, "start", fails)
        with pytest.raises(InferMuxError):
            found.infer("hi", model="v/m")
        assert found.infer("hi", model="v/m").content == "hi" and runs(tmp_path) == 1


def test_a_refused_token_is_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "RETRY_SECONDS", 0.0)
    with Keyed() as vendor:
        path = program(tmp_path, COUNTS)
        found = router(vendor, f'"command:{path}"', tmp_path)
        found.infer("hi", model="v/m")
        vendor.refused = {"token-number-1-": REFUSED}
        assert found.infer("hi", model="v/m").content == "hi"
        assert vendor.keys[-1] == "token-number-2-"


def test_a_call_that_is_refused_late_gets_the_token_that_another_has_fetched(tmp_path, monkeypatch):
    arrived, late = threading.Event(), threading.Event()

    class Late(Keyed):
        def answer(self, handler: Any, body: bytes) -> None:
            if self.refused and not arrived.is_set():
                arrived.set()
                late.wait(PATIENCE)
            super().answer(handler, body)

    monkeypatch.setattr(command, "RETRY_SECONDS", 0.0)
    with Late() as vendor, ThreadPoolExecutor(1) as pool:
        found = router(vendor, f'"command:{program(tmp_path, COUNTS)}"', tmp_path)
        found.infer("hi", model="v/m")
        vendor.refused = {"token-number-1-": REFUSED}
        call = pool.submit(found.infer, "hi", model="v/m")
        assert arrived.wait(PATIENCE) and found.infer("hi", model="v/m").content == "hi"
        monkeypatch.setattr(command, "RETRY_SECONDS", 5.0)
        late.set()
        assert call.result().content == "hi" and runs(tmp_path) == 2


def test_a_token_that_was_refused_once_is_used_if_there_is_no_other(tmp_path, monkeypatch):
    """A vendor may refuse one model only."""
    monkeypatch.setattr(command, "RETRY_SECONDS", 0.0)
    with Keyed() as vendor:
        path = program(tmp_path, COUNTS)
        found = router(vendor, f'"command:{path}"', tmp_path)
        found.infer("hi", model="v/m")
        program(tmp_path, "time.sleep(0.3)\nsys.exit(1)")
        vendor.refused = {"token-number-1-": REFUSED}
        with ThreadPoolExecutor(4) as pool:  # the first one runs the command, the others wait
            calls = [pool.submit(found.infer, "hi", model="v/m") for _ in range(4)]
        assert {type(call.exception()) for call in calls} == {ProviderAuthError}
        vendor.refused = {}
        assert found.infer("hi", model="v/n").content == "hi"
        assert vendor.keys[-1] == "token-number-1-"


def test_a_pool_may_mix_all_kinds(tmp_path):
    (tmp_path / "key").write_text("key-of-a-file-1")
    with Keyed() as vendor:
        path = program(tmp_path, COUNTS)
        key = f'["env:A", "file:{tmp_path}/key", {{ command = "{path}", ttl = "5m" }}]'
        found = router(vendor, key, tmp_path)
        for _ in range(3):
            found.infer("hi", model="v/m")
        assert sorted(vendor.keys) == ["A", "key-of-a-file-1", "token-number-1-"]


# -- presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variable", "path", "model"),
    [
        ("bedrock", "AWS_BEARER_TOKEN_BEDROCK", "/openai/v1/chat/completions", "openai.gpt-oss"),
        ("vertex", "VERTEX_ACCESS_TOKEN", "/v1/p/endpoints/openapi/chat/completions", "google/g"),
        ("azure_entra", "AZURE_OPENAI_AD_TOKEN", "/openai/deployments/d/chat/completions", "d"),
    ],
)
def test_clouds_take_a_bearer_token(name, variable, path, model, monkeypatch):
    with Vendor() as vendor:
        address = PRESETS[name].address or f"{name.upper()}_BASE_URL"
        url = vendor.url + ("/v1/p/endpoints/openapi" if name == "vertex" else "")
        found = build.router(build.settings({variable: "tok-12345678", address: url}))
        found.infer("hi", model=f"{name}/{model}")
        [seen] = vendor.seen
        assert seen.path.partition("?")[0] == path
        assert seen.headers["authorization"] == "Bearer tok-12345678"
        assert "api-key" not in seen.headers


def test_azure_itself_still_takes_its_own_header():
    with Vendor() as vendor:
        env = {"AZURE_OPENAI_API_KEY": "k-12345678", "AZURE_OPENAI_ENDPOINT": vendor.url}
        build.router(build.settings(env)).infer("hi", model="azure/d")
        assert vendor.seen[0].headers["api-key"] == "k-12345678"
        assert "authorization" not in vendor.seen[0].headers


def test_a_second_account_of_a_cloud_keeps_its_prices(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(
        '[providers.eu]\ntype = "vertex"\nbase_url = "http://127.0.0.1:9/v1"\n'
        'api_key = { command = "echo token-1234567", ttl = "50m" }\n'
    )
    found = build.router(build.settings({}, str(path)))
    [target] = found.registry.resolve("eu/google/gemini-2.5-pro")
    assert found.targets.price(target) is not None


# -- what a vendor stores --------------------------------------------------------------------------


class Accounts(Vendor):
    """A vendor that stores files, batches, responses and conversations for each key apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, str] = {}  # keys by ids
        self.limited: set[str] = set()  # keys
        self.accounts: dict[str, str] = {}  # by keys; others are accounts of their own
        self.missing = 404
        self.asked: list[tuple[str, str, int]] = []

    def answer(self, handler: Any, body: bytes) -> None:
        key = (handler.headers["Authorization"] or "").removeprefix("Bearer ")
        with self.lock:
            status, found = self._found(handler, key, body)
            self.asked.append((handler.command, handler.path, status))
        kind, data = "application/json", json.dumps(found).encode()
        if isinstance(found, list):
            kind = "text/event-stream"
            events = [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in found]
            data = "".join(events).encode()
        handler.reply(status, data, {"Content-Type": kind})

    def _found(self, handler: Any, key: str, body: bytes) -> tuple[int, Any]:
        path, _, self.query = handler.path.partition("?")
        what, *rest = path.removeprefix("/v1/").split("/")
        is_json = body and handler.headers.get_content_type() == "application/json"
        asked = json.loads(body) if is_json else {}
        named = [asked[name] for name in ("previous_response_id", "input_file_id") if name in asked]
        if key in self.limited:
            return LIMITED
        for ident in (*rest[:1], *named, *re.findall(r'"file_id": ?"([^"]+)"', body.decode())):
            if self.stored.get(ident) != key:
                return (400 if named else self.missing), {
                    "error": {
                        "message": f"Previous response with id '{ident}' not found.",
                        "type": "invalid_request_error",
                        "code": "previous_response_not_found" if named else "not_found",
                    }
                }
        if handler.command == "GET" and not rest:
            return self._page(what, key)
        if rest:
            return 200, {"id": rest[0], "object": what[:-1]}
        ident = f"{what[:4]}_{len(self.stored):04}"
        self.stored[ident] = key
        if what != "responses":
            return 200, {"id": ident, "object": {"batches": "batch"}.get(what, what[:-1])}
        said = {"type": "output_text", "text": "yes", "annotations": []}
        item = {"type": "message", "id": "m_1", "role": "assistant", "content": [said]}
        whole = {"id": ident, "object": "response", "status": "completed", "model": "m"}
        whole |= {"output": [item], "usage": {"input_tokens": 1, "output_tokens": 1}}
        return 200, whole if not asked.get("stream") else [
            {"type": "response.created", "response": whole | {"output": []}},
            {"type": "response.output_text.delta", "delta": "yes", "item_id": "m_1"},
            {"type": "response.completed", "response": whole},
        ]

    def _page(self, what: str, key: str) -> tuple[int, Any]:
        """Return a page of the account's own objects: two, however many are asked for."""
        asked = dict(parse_qsl(self.query))
        account = self.accounts.get(key, key)
        if account == "revoked":
            return REFUSED
        own = [
            ident
            for ident, by in self.stored.items()
            if ident.startswith(what[:4]) and self.accounts.get(by, by) == account
        ]
        own = own if asked.get("order") == "asc" else own[::-1]
        if after := asked.get("after"):
            if after not in own:
                return 404, {"error": {"message": f"No such object: {after}"}}
            own = own[own.index(after) + 1 :]
        kind = {"batches": "batch"}.get(what, what[:-1])
        data = [{"id": each, "object": kind, "created_at": int(each[-4:])} for each in own]
        return 200, {"object": "list", "data": data[:2], "has_more": len(data) > 2}

    @property
    def missed(self) -> int:
        """How many requests named what the account of their key does not have."""
        return sum(status in (400, 404) for *_, status in self.asked)


def clients(vendor: Vendor, folder: Path, workers: int = 1, key: str = POOL) -> list[Any]:
    made = [
        router(vendor, key, folder, 'api = "responses"\n[ledger]\npath = ""\n', **KEYS)
        for _ in range(workers)
    ]
    return [create_app(each).test_client() for each in made]


def upload(client: Any) -> Any:
    part = "--b\r\nContent-Disposition: form-data; name="
    form = (
        f'{part}"purpose"\r\n\r\nbatch\r\n{part}"file"; filename="a.jsonl"\r\n\r\n{{}}\r\n--b--\r\n'
    )
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/files", data=form.encode(), headers=kind)
    assert answer.status_code == 200, answer.text
    return answer.json["id"]


def respond(client: Any, **more: Any) -> Any:
    answer = client.post("/v1/responses", json={"model": "m", "input": "hi", **more})
    assert answer.status_code == 200, answer.text
    return answer.json["id"] if not more.get("stream") else re.search(r"resp_\d+", answer.text)[0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_key_has_stored_is_asked_for_with_this_key(workers, tmp_path):
    with Accounts() as vendor:
        found = clients(vendor, tmp_path, workers)
        for number in range(6):
            one, other = found[number % workers], found[(number + 1) % workers]
            ident = upload(one)
            assert other.get(f"/v1/files/{ident}").status_code == 200
            batch = one.post(
                "/v1/batches", json={"input_file_id": ident, "endpoint": "/v1/chat/completions"}
            )
            assert batch.status_code == 200, batch.text
            assert other.get(f"/v1/batches/{batch.json['id']}").status_code == 200
            assert other.delete(f"/v1/files/{ident}").status_code == 200
            talk = one.post("/v1/conversations", json={})
            assert other.get(f"/v1/conversations/{talk.json['id']}").status_code == 200
            first = respond(one, stream=bool(number % 2))
            second = respond(other, previous_response_id=first, stream=bool(number % 3))
            assert one.get(f"/v1/responses/{second}").status_code == 200
            part = {"type": "input_file", "file_id": upload(one)}
            respond(other, input=[{"role": "user", "content": [part]}])
        assert len({vendor.stored[ident] for ident in vendor.stored}) == 3
        assert (vendor.missed == 0) == (workers == 1)


def test_a_key_that_may_not_see_what_another_one_has_stored_does_not_rest(tmp_path):
    with Accounts() as vendor:
        vendor.missing = 403
        one, other = clients(vendor, tmp_path, 2)
        idents = [upload(one) for _ in range(6)]
        assert {other.get(f"/v1/files/{ident}").status_code for ident in idents} == {200}
        made = [vendor.stored[upload(other)] for _ in range(6)]
        assert len(set(made)) == 3


def test_what_no_key_has_stored_is_not_found(tmp_path):
    with Accounts() as vendor:
        [client] = clients(vendor, tmp_path)
        assert client.get("/v1/files/file_nobodys").status_code == 404
        answer = client.post(
            "/v1/responses", json={"model": "m", "input": "hi", "previous_response_id": "resp_x"}
        )
        assert answer.status_code == 400 and answer.json["error"]["code"], answer.text
        assert vendor.missed == 6


@pytest.mark.slow
def test_a_limit_of_the_account_that_has_it_is_told_and_not_that_it_is_missing(tmp_path):
    with Accounts() as vendor:
        [client] = clients(vendor, tmp_path)
        ident = upload(client)
        vendor.limited = {vendor.stored[ident]}
        assert client.get(f"/v1/files/{ident}").status_code == 429


def test_ids_of_callers_stay_valid_when_the_key_in_a_file_changes(tmp_path, at_once):
    key = tmp_path / "key"
    key.write_text("sk-aaaaaaaaaaaa")
    callers = "".join(f'[keys.{name}]\nhash = "{hashed(name)}"\n' for name in ("ann", "bob"))
    with Accounts() as vendor:
        more = f'[ledger]\npath = ""\n{callers}'
        made = [router(vendor, f'"file:{key}"', tmp_path, more) for _ in range(2)]
        one, other = (create_app(each).test_client() for each in made)
        for client in (one, other):
            client.environ_base["HTTP_AUTHORIZATION"] = "Bearer ann"
        ident = upload(one)
        assert other.get(f"/v1/files/{ident}").status_code == 200
        vendor.stored = dict.fromkeys(vendor.stored, "sk-bbbbbbbbbbbb")
        key.write_text("sk-bbbbbbbbbbbb")
        assert one.get(f"/v1/files/{ident}").status_code == 200
        later = create_app(router(vendor, f'"file:{key}"', tmp_path, more)).test_client()
        later.environ_base["HTTP_AUTHORIZATION"] = "Bearer ann"
        for client in (other, later):
            assert client.get(f"/v1/files/{ident}").status_code == 200
        later.environ_base["HTTP_AUTHORIZATION"] = "Bearer bob"
        assert later.get(f"/v1/files/{ident}").status_code == 404


def listed(client: Any, what: str, query: str = "", **headers: str) -> list[str]:
    """Return the ids of a whole list, read by pages of two."""
    found: list[str] = []
    more, after = True, ""
    while more:
        path = f"/v1/{what}?limit=2{query}" + (f"&after={after}" if after else "")
        answer = client.get(path, headers=headers)
        assert answer.status_code == 200, answer.text
        page, more = [each["id"] for each in answer.json["data"]], answer.json["has_more"]
        assert [answer.json["first_id"], answer.json["last_id"]] == [page[0], page[-1]]
        found, after = found + page, page[-1]
    return found


def test_a_list_has_the_objects_of_every_account(tmp_path):
    with Accounts() as vendor:
        one, other = clients(vendor, tmp_path, 2)
        made = [upload([one, other][number % 3 == 0]) for number in range(7)]
        assert len({vendor.stored[ident] for ident in made}) == 3
        for client in (one, other):
            assert listed(client, "files") == made[::-1]
            assert listed(client, "files", "&order=asc") == made
            whole = client.get("/v1/files").json
            assert [each["id"] for each in whole["data"]] == made[::-1] and not whole["has_more"]
        for ident in made[:4]:
            one.post("/v1/batches", json={"input_file_id": ident, "endpoint": "/v1/responses"})
        batches = [ident for ident in vendor.stored if ident.startswith("batc")]
        assert listed(other, "batches") == batches[::-1]
        assert one.get("/v1/files?after=file_none").status_code == 404


def test_keys_of_one_account_list_its_objects_once(tmp_path):
    with Accounts() as vendor:
        vendor.accounts = dict.fromkeys((KEYS["A"], KEYS["B"]), "shared")
        [client] = clients(vendor, tmp_path)
        made = [upload(client) for _ in range(6)]
        assert listed(client, "files") == made[::-1]


def test_a_key_that_is_revoked_hides_no_objects_of_others(tmp_path):
    with Accounts() as vendor:
        [client] = clients(vendor, tmp_path)
        made = [upload(client) for _ in range(6)]
        vendor.accounts[KEYS["B"]] = "revoked"
        assert listed(client, "files") == [
            ident for ident in made[::-1] if vendor.stored[ident] != KEYS["B"]
        ]
        vendor.accounts = dict.fromkeys(KEYS.values(), "revoked")
        assert client.get("/v1/files").status_code == 502


def test_a_caller_s_list_has_its_own_objects_of_every_account(tmp_path):
    callers = "".join(f'[keys.{name}]\nhash = "{hashed(name)}"\n' for name in ("ann", "bob"))
    with Accounts() as vendor:
        more = f'api = "responses"\n[ledger]\npath = "{tmp_path}/l.db"\n{callers}'
        with closing(router(vendor, POOL, tmp_path, more)) as found:
            client, made = create_app(found).test_client(), {"ann": [], "bob": []}
            for number in range(8):
                name = ["ann", "bob"][number % 3 == 0]
                client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {name}"
                made[name].append(upload(client))
            for name, idents in made.items():
                client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {name}"
                assert listed(client, "files") == idents[::-1]


def forged(ident: str, caller: str, secret: str) -> str:
    """Return the id that *caller* would get if the secret were no more than this text."""
    key = sha256("\0".join(("infermux", "v", secret)).encode()).digest()
    mac = hmac.digest(key, "\0".join(("f", caller, ident)).encode(), "sha256")[:10]
    return f"{ident}_f{b32encode(mac).decode().lower()}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        *[("file", "ledger"), ("file", "users"), ("command", "ledger"), ("header", "admin")],
        *[("file", "start"), ("command", "start"), ("file", "locked")],  # there is none
    ],
)
def test_no_id_can_be_made_from_what_is_known_of_a_key(kind, secret, tmp_path):
    file = tmp_path / "key"
    file.write_text(KEYS["A"])
    key = {"file": f'"file:{file}"', "command": '"command:echo sk-aaaaaaaaaaaa"'}.get(kind)
    text = f"api_key = {key}\n" if key else 'headers = { authorization = "env:BEARER" }\n'
    callers = "".join(f'[keys.{name}]\nhash = "{hashed(name)}"\n' for name in ("ann", "bob"))
    own = {"admin": '[server]\nadmin_key = "env:ADMIN"\n', "users": 'users_secret = "env:ADMIN"\n'}
    made, env = [], {"ADMIN": "imx-admin-key-1", "BEARER": "Bearer sk-aaaaaaaaaaaa"}
    with Accounts() as vendor, ExitStack() as stack:
        for host in ("one", "two"):  # services of two workers, or of hosts with a secret of theirs
            path = f"{tmp_path / ('one' if secret in ('ledger', 'locked') else host)}.db"
            ledger = f'[ledger]\npath = "{"" if secret == "start" else path}"\n'
            ledger += own["users"] if secret == "users" else ""
            config = tmp_path / f"{host}.toml"
            config.write_text(
                f'[providers.v]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\nmodels = ["m"]\n'
                f"{text}{ledger}{callers}{own['admin'] if secret == 'admin' else ''}"
            )
            found = build.router(build.settings(env, str(config)))
            stack.callback(found.close)
            made.append(create_app(found).test_client())
        one, other = made
        if secret == "locked":  # so that the ledger's cannot be made
            lock = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
            lock.execute("BEGIN IMMEDIATE")
        ann, bob = ({"Authorization": f"Bearer {name}"} for name in ("ann", "bob"))
        one.environ_base["HTTP_AUTHORIZATION"] = ann["Authorization"]
        given = upload(one)
        [ident] = vendor.stored
        assert other.get(f"/v1/files/{given}", headers=ann).status_code == 200
        assert other.get(f"/v1/files/{given}", headers=bob).status_code == 404
        seals = (
            f"\0file\0{file}",
            sha256(f"file\0{file}".encode()).hexdigest(),
            "\0echo\0sk-aaaaaaaaaaaa",
            sha256(b"echo\0sk-aaaaaaaaaaaa").hexdigest(),
            f"\0{vendor.url}/v1",
            f"{vendor.url}/v1",
        )
        for seal in seals:
            answer = other.get(f"/v1/files/{forged(ident, 'bob', seal)}", headers=bob)
            assert answer.status_code == 404, seal
        if secret == "locked":
            lock.rollback()
            later = upload(one)
            assert other.get(f"/v1/files/{later}", headers=ann).status_code == 200
            assert other.get(f"/v1/files/{given}", headers=ann).status_code == 200
