"""Tests of API keys: random, stored as hashes, and compared in constant time by one function."""

from __future__ import annotations

import hashlib
import hmac
import re

import pytest

from infermux import EchoProvider, Registry, Router
from infermux.admission.keys import Keyring, hashed, new_key
from infermux.app import create_app
from infermux.types import Caller

KEYS = [new_key() for _ in range(5)]
CALLERS = [Caller(f"caller{number}") for number in range(5)]
RING = Keyring((hashed(key), caller) for key, caller in zip(KEYS, CALLERS, strict=True))
CHAT = {"model": "echo-v1", "messages": [{"role": "user", "content": "hello"}]}
ANTHROPIC = CHAT | {"max_tokens": 5}
DOORS = {"/infer": CHAT, "/v1/chat/completions": CHAT, "/v1/messages": ANTHROPIC}


def test_a_key_is_random_and_fit_for_a_header():
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch(r"imx-[A-Za-z0-9_-]{43}", key) for key in keys)  # 256 bits in base64


@pytest.mark.parametrize("key", ["", "imx-abc", "ключ", "a b", "\udcff", "x" * 100_000])
def test_a_hash_is_sha256_of_the_bytes(key):
    assert hashed(key) == hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def test_each_key_is_its_callers():
    assert [RING.identify(key) for key in KEYS] == CALLERS


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        "imx-",
        KEYS[0][:-1],
        KEYS[0] + " ",
        " " + KEYS[0],
        KEYS[0].swapcase(),
        hashed(KEYS[0]),
        f"sha256:{hashed(KEYS[0])}",
        "\udcff\x00",
        "ключ",
        new_key(),
    ],
)
def test_another_key_is_nobodys(key):
    assert RING.identify(key) is None


@pytest.mark.parametrize("key", ["", "imx-x"])
def test_a_ring_without_keys_opens_nothing(key):
    assert Keyring([]).identify(key) is None


@pytest.mark.parametrize("key", [*KEYS, "nobody"])
def test_every_hash_is_compared_whichever_it_is(key, monkeypatch):
    """Stopping at the first match would tell, by the time, how many keys stand before it."""
    seen = []
    compare = hmac.compare_digest

    def counted(left: bytes, right: bytes) -> bool:
        seen.append(left)
        return compare(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    RING.identify(key)
    assert len(seen) == len(KEYS)


def test_neither_key_nor_hash_shows():
    assert not any(
        hashed(key) in repr(vars(RING)) or key in repr(vars(RING)) or key in repr(RING)
        for key in KEYS
    )


@pytest.mark.parametrize(
    ("caller", "limited"),
    [(Caller("a"), False), (Caller("a", rpm=1), True), (Caller("a", tpm=1), True)],
)
def test_a_ring_knows_whether_anybody_has_a_rate(caller, limited):
    assert Keyring([(hashed("x"), Caller("b")), (hashed("y"), caller)]).limited is limited


# -- at the doors ----------------------------------------------------------------------------------


@pytest.fixture
def seen():
    return []


@pytest.fixture
def client(seen):
    router = Router(
        Registry([EchoProvider()]), keyring=RING, observers=[lambda call: seen.append(call.caller)]
    )
    return create_app(router).test_client()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("api", DOORS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEYS[3]}"},
        {"Authorization": f"bearer {KEYS[3]}"},
        {"Authorization": f"Bearer   {KEYS[3]} "},
        {"x-api-key": KEYS[3]},
        {"X-API-Key": KEYS[3], "Authorization": "Basic Zm9v"},
        {"x-api-key": KEYS[3], "Authorization": "Bearer "},
    ],
    ids=[
        "bearer",
        "in small letters",
        "with space",
        "x-api-key",
        "beside another scheme",
        "beside an empty one",
    ],
)
def test_a_key_opens_every_door_in_either_header(api, headers, client, seen):
    assert client.post(api, json=DOORS[api], headers=headers).status_code == 200
    assert seen == [CALLERS[3]]


@pytest.mark.parametrize("api", DOORS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": KEYS[0]},
        {"Authorization": f"Basic {KEYS[0]}"},
        {"Authorization": f"Bearer {KEYS[0]}x"},
        {"Authorization": f"Bearer {hashed(KEYS[0])}"},
        {"x-api-key": ""},
        {"x-api-key": "caller0"},
        {"Authorization": "Bearer wrong", "x-api-key": KEYS[0]},
        {"X-Caller": "caller0", "X-User": "caller0", "X-InferMux-Caller": "caller0"},
    ],
)
def test_without_a_good_key_a_door_is_shut_and_repeats_nothing(api, headers, client, seen):
    answer = client.post(api, json=DOORS[api], headers=headers)
    assert answer.status_code == 401 and seen == []
    said = answer.get_data(as_text=True) + str(answer.headers)
    assert not any(secret in said for key in KEYS for secret in (key, hashed(key), "caller0"))


@pytest.mark.parametrize(
    "meta", [{"caller": "caller1"}, {"user": "caller1", "api_key": KEYS[1], "key": KEYS[1]}]
)
def test_who_calls_comes_from_the_key_alone(meta, client, seen):
    headers = {
        "Authorization": f"Bearer {KEYS[0]}",
        "X-Caller": "caller1",
        "X-Forwarded-User": "caller1",
    }
    assert client.post("/infer", json=CHAT | {"meta": meta}, headers=headers).status_code == 200
    assert seen == [CALLERS[0]]
    assert client.post("/infer", json=CHAT | {"meta": meta}).status_code == 401


def test_the_hash_of_a_key_is_found_however_it_was_written():
    assert Keyring([(hashed("k").upper(), CALLERS[0])]).identify("k") == CALLERS[0]
