"""Tests of access through a real gunicorn: failed logins, the admin key, restricted keys, start
messages and listening addresses.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from support import (
    PATIENCE,
    Answer,
    Scripted,
    Service,
    Vendor,
    environment,
    eventually,
    run,
    script,
)

ADMIN = "canary-admin-4f1e"
KEYS = {name: f"imx-canary-{name}-77aa" for name in ("web", "narrow")}
VENDOR_KEY = "canary-0123456789-vendor-abcdef"
MODELS = ["fast", "two/c"]  # of the narrow key
FILE = f"""
[providers.one]
type = "echo"
models = ["a", "b"]
[providers.two]
type = "echo"
models = ["c", "d"]
[providers.three]
type = "echo"
models = ["a", "e"]
[models]
fast = ["one/a", "two/c"]
slow = "three/e"
[server]
workers = 2
threads = 16
admin_key = "env:ACCESS_ADMIN"
metrics = "admin"
[keys.web]
hash = "{hashlib.sha256(KEYS["web"].encode()).hexdigest()}"
[keys.narrow]
hash = "{hashlib.sha256(KEYS["narrow"].encode()).hexdigest()}"
models = {json.dumps(MODELS)}
"""


class Guarded(Service):
    """A service that asks for keys."""

    def _answers(self) -> bool:
        return self.ask("/healthz").status == 200

    def get(self, path: str, key: str = "", **more: str) -> Answer:
        given = {"Authorization": f"Bearer {key}"} if key else {}
        return self.ask(path, headers=given | more)

    def counted(self) -> int:
        text = self.get("/metrics", ADMIN).data.decode()
        found = re.findall(r"^infermux_failed_logins_total\{api=\"\w+\"\} (\d+)$", text, re.M)
        return sum(map(int, found))


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "infermux.toml").write_text(FILE)
    (folder / "ledger").mkdir()
    env = {
        "INFERMUX_CONFIG": f"{folder}/infermux.toml",
        "ACCESS_ADMIN": ADMIN,
        "INFERMUX_LEDGER__PATH": f"{folder}/ledger/calls.db",
        "INFERMUX_TRACE__TOKENTRACE": "http://127.0.0.1:9",
    }
    with Guarded(env=env) as service:
        service.place = folder / "ledger"  # type: ignore[attr-defined]
        yield service


# -- failed logins ---------------------------------------------------------------------------------


def test_failed_logins_are_counted_and_logged_once_a_minute_and_address(stand: Guarded) -> None:
    """Over both workers, from two addresses at once; a request without a key is no login."""

    def knock(n: int) -> int:
        address = f"127.0.0.{1 + n % 2}"
        path = ("/v1/models", "/providers", "/costs", "/v1/chat/completions", "/status")[n % 5]
        header = {"x-api-key": f"canary-wrong-{n}"}
        if path == "/costs":  # a caller's key does not open it either
            header = {"x-api-key": KEYS["web"]}
        for _ in range(100):  # 503, of a busy machine: the keys in the ledger cannot be read yet
            connection = http.client.HTTPConnection(
                "127.0.0.1", stand.port, PATIENCE, source_address=(address, 0)
            )
            connection.request("POST" if "chat" in path else "GET", path, headers=header)
            status = connection.getresponse().status
            connection.close()
            if status != 503:
                break
            time.sleep(0.1)
        return status

    before = stand.counted()
    assert [stand.get(path).status for path in ("/providers", "/costs")] == [401, 401]
    assert stand.counted() == before and "failed login" not in stand.log
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(knock, range(60)))
    assert Counter(got) == {401: 48, 403: 12}
    assert stand.counted() == before + 60
    lines = re.findall(r"failed login from ([\d.]+): .*", stand.log)
    assert sorted(lines) == ["127.0.0.1", "127.0.0.2"]
    assert "canary-wrong" not in stand.log and KEYS["web"] not in stand.log


# -- operators -------------------------------------------------------------------------------------

READ = ("/status", "/status/targets", "/costs", "/costs/timeseries", "/metrics")
CHANGE = ("/explain", "/providers/one/circuit/reset")


def login(key: str) -> str:
    return "Basic " + base64.b64encode(f"me:{key}".encode()).decode()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("path", READ + CHANGE)
def test_an_unknown_key_is_asked_for_again_and_a_callers_is_forbidden(
    stand: Guarded, path: str
) -> None:
    body = {} if path in CHANGE else None
    tries = {"": 401, "canary-nobody": 401, ADMIN[:-1]: 401, KEYS["web"]: 403, KEYS["narrow"]: 403}
    for key, status in tries.items():
        given = [{"Authorization": f"Bearer {key}"}, {"x-api-key": key}]
        given += [{"Authorization": login(key)}] if path in READ else []
        for headers in given:
            answer = stand.ask(path, body, headers=headers if key else {})
            assert answer.status == status, (path, headers)
            asks = answer.headers.get("WWW-Authenticate", "").startswith("Basic realm=")
            assert asks == (status == 401 and path in READ)
    for headers in ({"Authorization": f"Bearer {ADMIN}"}, {"x-api-key": ADMIN}):
        assert stand.ask(path, body, headers=headers).status in (200, 400)
    assert stand.ask(path, body, headers={"Authorization": login(ADMIN)}).status == (
        401 if path in CHANGE else 200
    )


@pytest.mark.parametrize("path", (*READ, *CHANGE, "/healthz", "/readyz"))
def test_no_cache_keeps_what_is_for_operators(stand: Guarded, path: str) -> None:
    for key in ("", "canary-nobody", KEYS["web"], ADMIN):
        for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE"):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answer = stand.ask(path, method=method, headers=headers)
            assert answer.headers["Cache-Control"] == "no-store", (method, key, answer.status)


@pytest.mark.slow
def test_metrics_for_operators_need_a_key(tmp_path: Path) -> None:
    """In the file and by variable; the start says what is missing."""
    (tmp_path / "infermux.toml").write_text('[providers.echo]\n[server]\nmetrics = "admin"\n')
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "-b", "127.0.0.1:0"]
    for env in (
        {"INFERMUX_CONFIG": str(tmp_path / "infermux.toml")},
        {"INFERMUX_SERVER__METRICS": "admin"},
    ):
        answer = run(command, env=env)
        told = answer.stdout + answer.stderr
        assert answer.returncode != 0 and told.count("set [server].admin") == 1, told


# -- keys that open some models only ---------------------------------------------------------------


def test_a_restricted_key_sees_its_own_models_only(stand: Guarded) -> None:
    mine, everyones = KEYS["narrow"], KEYS["web"]
    assert stand.get("/providers", mine).json == {
        "providers": [{"name": "one", "models": ["fast"]}, {"name": "two", "models": MODELS}]
    }
    for more in ({}, {"anthropic-version": "2023-06-01"}):
        listed = stand.get("/v1/models", mine, **more).json
        assert [each["id"] for each in listed["data"]] == MODELS
        assert (listed["first_id"], listed["last_id"]) == (MODELS[0], MODELS[-1])
    known = {each["id"] for each in stand.get("/v1/models", everyones).json["data"]}
    assert known == {"fast", "slow", *"abcde"}
    found = {
        name: stand.get(f"/v1/models/{quote(name, safe='/')}", mine).status
        for name in (*known, *MODELS, "one/a", "three/e", "one", "nobody", "auto", "fast ", "FAST")
    }
    assert {name for name, status in found.items() if status == 200} == set(MODELS)
    assert set(found.values()) == {200, 404}  # as if there were no other
    other = stand.get("/v1/models/slow", mine).json["error"]
    nobody = stand.get("/v1/models/nosuch", mine).json["error"]
    assert other["message"].replace("slow", "nosuch") == nobody["message"]
    assert stand.get("/v1/models/slow", everyones).status == 200
    for name in MODELS:  # what is listed can be used, at each provider that lists it
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        key = {"x-api-key": mine}
        for each in stand.get("/providers", mine).json["providers"]:
            if name in each["models"]:
                answer = stand.ask("/infer", body | {"provider": each["name"]}, headers=key)
                assert (answer.status, answer.json["provider"]) == (200, each["name"])


# -- a vendor's words ------------------------------------------------------------------------------


def spellings(key: str) -> dict[str, str]:
    """The key as a vendor may repeat it; each is one word, or lines of one."""
    plain, bearer = key.encode(), f"Bearer {key}".encode()
    once = base64.b64encode(plain).decode()
    return {
        "plain": key,
        "base64": once,
        "base64, of the header": base64.b64encode(bearer).decode(),
        "base64, of a login": base64.b64encode(b"user:" + plain).decode(),
        "base64, of JSON": base64.b64encode(b'{"auth": "' + plain + b'"}').decode(),
        "base64url": base64.urlsafe_b64encode(b"\xff\xfe" + plain).decode().rstrip("="),
        "base64, in lines": base64.encodebytes(plain * 4).decode().strip(),
        "base64, twice": base64.b64encode(once.encode()).decode(),
        "base64, after a path": f"/v1/{once}",
        "base64, escaped": quote(once + "==", safe=""),
        "escapes": "".join(f"%{byte:02X}" for byte in plain),
        "some escapes": key.replace("-", "%2d"),
        "escapes, twice": quote("".join(f"%{byte:02x}" for byte in plain)),
        "escapes, of the header": "Bearer%20" + key.replace("-", "%2D"),
        "hexadecimal": plain.hex(),
        "hexadecimal, marked": f"0x{plain.hex().upper()}",
        "hexadecimal, apart": plain.hex(":"),
        "hexadecimal, of UTF-16": key.encode("utf-16").hex(),
        "escapes of JSON": "".join(f"\\u{byte:04x}" for byte in plain),
        "some escapes of JSON": re.sub("[-aeiou]", lambda each: f"\\u{ord(each[0]):04X}", key),
        "escapes of JSON, twice": "".join(f"\\\\u{byte:04x}" for byte in plain),
        "escapes of C": "".join(f"\\x{byte:02x}" for byte in plain),
        "escapes of HTML": "".join(f"&#{byte};" for byte in plain),
        "some escapes of HTML": key.replace("-", "&#x2D;"),
        "escapes of mail": "".join(f"={byte:02X}" for byte in plain),
        "in lines": f"{key[:14]}\n{key[14:]}",
        "a part": key[:20],
    }


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_key_is_redacted_in_whatever_spelling_a_vendor_repeats_it(status: int) -> None:
    words = spellings(VENDOR_KEY)
    answers = [
        Scripted(
            status,
            {"error": {"message": f"odd ({word}) here", "param": word, "type": "t"}},
            {
                "x-ratelimit-limit-requests": word.partition("\n")[0],
                "x-request-id": word.partition("\n")[0],
            },
        )
        for word in words.values()
    ]
    with Vendor(*answers) as vendor:
        env = vendor.env | {"OPENAI_API_KEY": VENDOR_KEY}
        with Service("-w", "1", "--threads", "8", env=env) as service:
            paths = {"/v1/chat/completions": {}, "/v1/messages": {"max_tokens": 9}, "/infer": {}}
            for path, more in paths.items():
                vendor.seen.clear()
                for name, word in words.items():
                    body = {"model": "openai/m", "messages": [{"role": "user", "content": "hi"}]}
                    answer = service.ask(path, body | more)
                    told = f"{answer.headers}{answer.data.decode()}"
                    assert answer.status in (400, 404, 422), (name, told)
                    lines = [line for line in word.splitlines() if line in told]
                    assert lines == [], (name, told)
                    assert "odd (" in told and "here" in told, (name, told)
            assert not [word for word in words.values() if word in service.log]


# -- readiness -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_readiness_names_no_path_and_the_log_does(stand: Guarded) -> None:
    """Last of the stand's: its ledger vanishes, and something else stands in its place."""
    place: Path = stand.place  # type: ignore[attr-defined]
    shutil.rmtree(place)
    place.write_text("in its place")
    answer = eventually(lambda: (got := stand.ask("/readyz")).status == 503 and got, "unready")
    assert answer.json["ledger"].startswith("the ledger cannot be written: ")
    for _ in range(20):
        told = stand.ask("/readyz").data.decode()
        assert "/" not in told.replace("/a", "").replace("/b", "").partition('"targets"')[0]
        assert str(place) not in told and place.name + "/" not in told and "calls.db" not in told
    lines = [line for line in stand.log.splitlines() if "cannot be written" in line]
    assert 1 <= len(lines) <= 2 and all(f"{place}/calls.db" in line for line in lines)


# -- the start -------------------------------------------------------------------------------------

SUBJECTS = ("configuration", "providers", "names", "ledger", "keys", "admin", "traces")
OPEN = "are open to anyone"


def said(log: str) -> dict[str, str]:
    """What a start says, by subject; each is said once."""
    found = re.findall(rf"\[INFO\] ({'|'.join(SUBJECTS)}): (.*)", log)
    assert sorted(name for name, _ in found) == sorted(SUBJECTS), log
    return dict(found)


def test_a_start_says_what_serves_and_no_secret(stand: Guarded) -> None:
    told = said(stand.log)
    assert told["configuration"].endswith("/infermux.toml")
    assert told["providers"] == "one, two, three" and told["names"] == "fast, slow"
    assert told["ledger"].endswith("/ledger/calls.db") and told["keys"] == "web, narrow"
    assert "open to the admin key" in told["admin"] and "for operators" in told["admin"]
    assert told["traces"] == "127.0.0.1:9" and OPEN not in stand.log
    hashes = [hashlib.sha256(key.encode()).hexdigest() for key in KEYS.values()]
    assert not [secret for secret in (ADMIN, *KEYS.values(), *hashes) if secret in stand.log]


@pytest.mark.slow
def test_a_start_from_the_environment_says_so() -> None:
    with Service("-w", "2", env={"OPENAI_API_KEY": VENDOR_KEY}) as service:
        told = said(service.log)
        assert told["configuration"] == "the environment" and told["traces"] == "none"
        assert told["providers"] == "openai, echo" and told["names"] == "none"
        assert told["keys"].startswith("none: the endpoints are open")
        assert "closed" in told["admin"] and "/metrics is open" in told["admin"]
        assert OPEN not in service.log and VENDOR_KEY not in service.log  # loopback only


COMMANDS = {
    "gunicorn": [sys.executable, "-m", "gunicorn", "wsgi:app"],
    "serve": [*script("infermux"), "serve"],
}


PUBLIC = {"0.0.0.0", "[::]"}  # `serve` listens on IPv6 too where the system has it


def listening(command: list[str], folder: Path, keyed: bool) -> tuple[str, str]:
    """Start a service; return the address that it binds, or would if nobody else had, and the log."""
    (folder / "infermux.toml").write_text(FILE if keyed else "[providers.echo]\n")
    env = environment(
        INFERMUX_CONFIG=f"{folder}/infermux.toml",
        ACCESS_ADMIN=ADMIN,
        INFERMUX_LEDGER__PATH=f"{folder}/calls.db",
        INFERMUX_SERVER__WORKERS="1",
    )
    file = folder / "log"
    with file.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env, stdin=-3)
    bound = re.compile(
        r"Listening at: http://([\d.]+|\[::\]):\d+(?=[^$]*Booting)"
        r"|cannot listen at ([\d.]+|\[::\]):\d+: Address already in use"
        r"|in use: \('([\d.]*)', \d+\)"
    )
    try:
        found = eventually(lambda: bound.search(file.read_text()), "an address")
    finally:
        process.terminate()
        process.wait(PATIENCE)
    return found[1] or found[2] or found[3], file.read_text()


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("keyed", [False, True], ids=["no keys", "keys"])
def test_serve_listens_on_loopback_unless_there_are_keys(tmp_path: Path, keyed: bool) -> None:
    place, log = listening(COMMANDS["serve"], tmp_path, keyed)
    assert (place in PUBLIC) == keyed and (keyed or place == "127.0.0.1") and OPEN not in log


@pytest.mark.sampled(1)
@pytest.mark.parametrize("keyed", [False, True], ids=["no keys", "keys"])
@pytest.mark.parametrize("asked", [":0", "0.0.0.0:0", "127.0.0.1:0"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_asked_is_bound_and_open_doors_are_named(
    tmp_path: Path, command: str, asked: str, keyed: bool
) -> None:
    place, log = listening([*COMMANDS[command], "-b", asked], tmp_path, keyed)
    public = not asked.startswith("127")
    assert place in PUBLIC if public else place == "127.0.0.1"
    lines = [line for line in log.splitlines() if OPEN in line]
    assert len(lines) == (public and not keyed), log
    if lines:
        assert "[WARNING]" in lines[0] and f"{place}:" in lines[0] and "[keys]" in lines[0]


@pytest.mark.slow
def test_a_socket_of_the_file_system_is_not_public(tmp_path: Path) -> None:
    (tmp_path / "infermux.toml").write_text("[providers.echo]\n")
    place = tmp_path / "s"
    env = environment(
        INFERMUX_CONFIG=f"{tmp_path}/infermux.toml", INFERMUX_LEDGER__PATH=f"{tmp_path}/calls.db"
    )
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(
            [*COMMANDS["gunicorn"], "-b", f"unix:{place}"], stdout=output, stderr=output, env=env
        )
    try:
        eventually(lambda: "Booting" in (tmp_path / "log").read_text(), "a worker")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(place))
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert OPEN not in (tmp_path / "log").read_text()
