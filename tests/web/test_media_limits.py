"""Tests that what limits a key or a target holds for the endpoints that are passed through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from doors import Front
from media_vendor import MediaVendor, reply
from support import Answer, ask
from test_media import FILE, form, provider

from infermux import Caller
from infermux.admission import Admission
from infermux.admission.keys import Keyring, hashed
from infermux.admission.rate_limiter import RateLimiter
from infermux.routing.pacing import Pacer
from infermux.server import status

WORDS = "Mary had a little lamb. " * 20  # about 120 tokens


class Endpoint(NamedTuple):
    """A request to an endpoint; *fields* are JSON, or a form with a file."""

    path: str
    model: str
    fields: dict[str, Any]
    is_form: bool = False

    def body(self, model: str | None, **more: str) -> tuple[bytes | dict[str, Any], dict[str, str]]:
        """Return the body and its headers; a *model* of None is left out."""
        fields = self.fields | more | ({} if model is None else {"model": model})
        if not self.is_form:
            return fields, {}
        parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
        file = ('name="image"; filename="a.png"', b"PNG") if "images" in self.path else FILE
        return form(*parts, file), {"Content-Type": "multipart/form-data; boundary=xYz"}


ENDPOINTS = [
    Endpoint("/v1/images/generations", "gpt-image-1", {"prompt": WORDS}),
    Endpoint("/v1/audio/speech", "tts-1", {"input": WORDS, "voice": "alloy"}),
    Endpoint("/v1/audio/transcriptions", "whisper-1", {"prompt": WORDS}, is_form=True),
    Endpoint("/v1/moderations", "omni-moderation-latest", {"input": WORDS}),
    Endpoint("/v1/rerank", "omni-rerank", {"query": "lamb", "documents": [WORDS, "a"]}),
    Endpoint("/v1/images/edits", "gpt-image-1", {"prompt": WORDS}, is_form=True),
    Endpoint("/v1/images/variations", "dall-e-2", {"prompt": WORDS}, is_form=True),
    Endpoint("/v1/audio/translations", "whisper-1", {"prompt": WORDS}, is_form=True),
    Endpoint("/v2/rerank", "omni-rerank", {"query": "lamb", "documents": [WORDS, "a"]}),
]
EACH = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.path[1:])
KEYS = {
    "few": {"rpm": 2},
    "tokens": {"tpm": 150},
    "tight": {"tpm": 60},
    "scoped": {"models": ("gpt-4.1",)},
    "pattern": {"models": ("openai/*",)},
    "free": {},
}


@pytest.fixture(scope="module")
def vendors() -> Iterator[tuple[MediaVendor, MediaVendor]]:
    with MediaVendor(usage=False) as one, MediaVendor("two", usage=False) as two:
        yield one, two


@pytest.fixture
def front(vendors: Any, tmp_path: Any) -> Iterator[Front]:
    for each in vendors:
        each.forget()
    ring = Keyring((hashed(f"key-{name}"), Caller(name, **own)) for name, own in KEYS.items())
    rates = RateLimiter(tmp_path / "limits")
    two = [provider(vendors[0]), provider(vendors[1], "other", endpoints={"moderations": ""})]
    with Front(*two, keyring=ring, admission=Admission(rates=rates)) as made:
        yield made


def send(
    front: Front, endpoint: Endpoint, key: str, model: str | None = "", **headers: str
) -> Answer:
    """Send a request; no circuit is reset before it."""
    body, own = endpoint.body(f"openai/{endpoint.model}" if model == "" else model)
    login = {"Authorization": f"Bearer key-{key}"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(front.port, endpoint.path, body, headers=login | own | named, method="POST")


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


@pytest.mark.sampled(1)
@pytest.mark.sampled(5)
@EACH
def test_requests_per_minute(front, vendors, endpoint):
    answers = [send(front, endpoint, "few") for _ in range(2)]
    assert [each.status for each in answers] == [200, 200]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert [each.headers["x-ratelimit-remaining-requests"] for each in answers] == ["1", "0"]
    refused = send(front, endpoint, "few")
    assert code(refused) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 61
    assert len(vendors[0].seen) == 2
    assert send(front, endpoint, "free").status == 200


@pytest.mark.sampled(1)
@pytest.mark.sampled(5)
@EACH
def test_tokens_per_minute_of_answers_that_do_not_tell_them(front, vendors, endpoint):
    first = send(front, endpoint, "tokens")
    assert first.status == 200, first.data
    refused = send(front, endpoint, "tokens")
    assert code(refused) == (429, "rate_limit_exceeded")
    assert len(vendors[0].seen) == 1
    assert 0 < int(refused.headers["x-ratelimit-remaining-tokens"]) < 80
    assert code(send(front, endpoint, "tight")) == (413, "request_too_large")


def test_tokens_that_an_answer_tells_are_those_that_count(front, vendors):
    vendors[0].forget(reply({"data": [], "usage": {"input_tokens": 3, "output_tokens": 4}}))
    assert send(front, ENDPOINTS[0], "tokens").status == 200
    assert send(front, ENDPOINTS[0], "tokens").status == 200  # 7 + 90 of 150
    vendors[0].forget(reply({"data": [], "usage": {"input_tokens": 3, "output_tokens": 4000}}))
    assert send(front, ENDPOINTS[0], "tokens").status == 429
    assert not vendors[0].seen


@pytest.mark.sampled(5)
@EACH
def test_tokens_per_minute_of_a_provider(front, vendors, endpoint, tmp_path):
    pacer = Pacer("openai", RateLimiter(tmp_path / "paced"), rpm=0, tpm=150, wait=0.01)
    front.router.targets.pacers = {"openai": pacer}
    assert send(front, endpoint, "free").status == 200
    assert code(send(front, endpoint, "free")) == (429, "upstream_rate_limited")
    assert len(vendors[0].seen) == 1


def test_calls_that_fail_use_no_tokens(front, vendors):
    vendors[0].forget(*[reply({"error": {"message": "no"}}, 400)] * 2)
    answers = [send(front, each, "tokens").status for each in (ENDPOINTS[0], ENDPOINTS[1])]
    assert answers == [400, 400]
    assert send(front, ENDPOINTS[0], "tokens").status == 200


@pytest.mark.sampled(1)
@pytest.mark.sampled(5)
@EACH
def test_the_models_of_a_key(front, vendors, endpoint):
    for model in ("", endpoint.model, f"other/{endpoint.model}", None):
        answer = send(front, endpoint, "scoped", model)
        if model is None and answer.status == 400:  # the endpoint has no model of its own
            assert "model is missing" in answer.json["error"]["message"]
            continue
        assert code(answer) == (403, "model_not_allowed"), (model, answer.data)
    named = send(front, endpoint, "scoped", "gpt-4.1", X_Infermux_Provider="openai")
    assert named.status == 200
    assert send(front, endpoint, "pattern").status == 200
    assert send(front, endpoint, "pattern", endpoint.model).status == 403
    assert len(vendors[0].seen) == 2 and not vendors[1].seen


def test_a_provider_without_the_endpoint_is_told_to_a_key_with_a_pattern(vendors):
    ring = Keyring([(hashed("key-any"), Caller("any", models=("other/*",)))])
    two = [provider(vendors[0]), provider(vendors[1], "other", endpoints={"moderations": ""})]
    with Front(*two, keyring=ring) as front:
        answer = send(front, ENDPOINTS[1], "any", "other/tts-1")
        assert answer.status == 404
        assert "which has no /v1/audio" in answer.json["error"]["message"]


@pytest.mark.sampled(1)
@pytest.mark.sampled(5)
@EACH
def test_an_open_circuit(front, vendors, endpoint):
    front.router.registry.register(provider(vendors[1], "spare"))
    front.router.registry.define("both", [f"{at}/{endpoint.model}" for at in ("openai", "spare")])
    vendors[0].forget(*[reply({"error": {"message": "down"}}, 500)] * 5)
    assert {send(front, endpoint, "free").status for _ in range(5)} == {502}
    answer = send(front, endpoint, "free", "both")
    assert (answer.status, answer.headers["x-infermux-provider"]) == (200, "spare")
    assert (len(vendors[0].seen), len(vendors[1].seen)) == (5, 1)
    status.command(front.router, "open", "spare", None)
    status.command(front.router, "open", "openai", None)
    refused = send(front, endpoint, "free", "both")
    assert code(refused) == (503, "no_healthy_providers")
    assert (len(vendors[0].seen), len(vendors[1].seen)) == (5, 1)
    status.command(front.router, "reset", "openai", None)
    assert send(front, endpoint, "free", "both").headers["x-infermux-provider"] == "openai"
