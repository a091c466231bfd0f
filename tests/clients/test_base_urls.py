"""Where a client with the wrong base URL is sent, and what / says: JSON that names the endpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from support import HELLO, Service

import infermux
from infermux.app import create_app


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service("-w", "1") as running:
        yield running


def paths() -> list[tuple[str, str]]:
    """Every method and path that / names, with a name for ID."""
    named = create_app().test_client().get("/").json["endpoints"]
    return sorted({tuple(each.split()) for group in named.values() for each in group})


def test_the_root_names_every_endpoint_by_its_api(service: Service) -> None:
    answer = service.ask("/")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    found = answer.json["endpoints"]
    assert found["mist"] == ["POST /mist", "POST /infer", "GET /providers"]
    assert {"POST /v1/chat/completions", "POST /v1/responses", "GET /v1/models"} <= {
        *found["openai"]
    }
    assert {"POST /v1/messages", "POST /v1/messages/count_tokens"} <= {*found["anthropic"]}
    assert {"POST /v1beta/models/ID:generateContent", "GET /v1beta/models"} <= {*found["gemini"]}
    assert {"GET /healthz", "GET /metrics", "GET /status"} <= {*found["operators"]}
    assert answer.json["base_url"] == {"openai": "/v1", "anthropic": "/", "gemini": "/"}
    assert service.ask("/", method="HEAD").status == 200
    refused = service.ask("/", b"{}")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


def test_everything_that_it_names_is_there() -> None:
    client = create_app().test_client()
    for method, path in paths():
        answer = client.open(path.replace("ID", "echo-v1"), method=method, data=b"{}")
        assert answer.status_code != 405 and "GET / names" not in answer.text, (method, path)


@pytest.mark.parametrize(
    "wrong", ["{}", "/v1/v1{}", "/openai/v1{}"], ids=["without", "twice", "behind a prefix"]
)
def test_a_path_without_v1_or_with_two_is_told_the_right_one(wrong: str) -> None:
    client = create_app().test_client()
    versioned = [(method, path) for method, path in paths() if path.startswith("/v1/")]
    assert len(versioned) >= 8
    for method, path in versioned:
        place = wrong.format(path.removeprefix("/v1")).replace("ID", "a-model")
        answer = client.open(place, method=method, data=b"{}")
        error = answer.json["error"]
        assert answer.status_code == 404 and "not_found" in error.get("code", error["type"])
        assert f"{method} {path}" in answer.json["error"]["message"]
        assert "a-model" not in answer.text


def test_a_path_with_a_slash_at_its_end_is_told_the_right_one() -> None:
    answer = create_app().test_client().post("/v1/chat/completions/", json=HELLO)
    assert answer.status_code == 404
    assert "POST /v1/chat/completions:" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1", "/v1/", "/v2/chat/completions", "/" + "x" * 3000]
)
def test_any_other_path_is_sent_to_the_root(path: str, service: Service) -> None:
    answer = service.ask(path)
    assert answer.status == 404 and "GET / names the endpoints" in answer.json["error"]["message"]
    assert len(answer.data) < 200


def test_an_openai_client_without_v1_is_told(service: Service) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}", api_key="unused")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**HELLO)
    assert "POST /v1/chat/completions" in caught.value.message
    with pytest.raises(openai.NotFoundError, match="GET /v1/models"):
        client.models.list()


def test_an_anthropic_client_with_v1_is_told(service: Service) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="unused")
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**HELLO, max_tokens=5)
    assert "POST /v1/messages" in str(caught.value)


# -- /infer: nothing is dropped in silence, and one latency everywhere --

MORE = {
    "temperature": 0.3,
    "max_tokens": 7,
    "top_k": 3,
    "seed": 1,
    "stop": ["x"],
    "safe_prompt": True,
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "a_vendors_own": {"deep": [1, None]},
    "thinking": {"type": "enabled"},
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", MORE)
def test_a_parameter_beside_the_others_reaches_the_vendor_or_is_400(name: str, vendor: Any) -> None:
    app = create_app(infermux.load(vendor.env))
    body = {**HELLO, "model": "openai/gpt-4.1-mini", name: MORE[name]}
    answer = app.test_client().post("/infer", json=body)
    if answer.status_code == 200:
        told = answer.headers.get("X-Infermux-Dropped", "").split(", ")
        assert vendor.seen[0].body.get(name) == MORE[name] or name in told
    else:
        assert answer.status_code == 400 and name in answer.json["error"]["message"]


def test_stream_beside_the_others_is_a_stream() -> None:
    client = create_app().test_client()
    streamed = client.post("/infer", json=HELLO | {"stream": True})
    assert streamed.content_type.startswith("text/event-stream")
    assert "event: infer.response" in streamed.text
    assert client.post("/infer", json=HELLO | {"stream": False}).is_json
    wrong = client.post("/infer", json=HELLO | {"stream": "yes"})
    assert wrong.status_code == 400 and "stream" in wrong.json["error"]["message"]


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("model", ["echo-v1", "slow-v1", "openai/gpt-4.1-mini", "both"])
def test_latency_is_one_number_in_body_header_and_ledger(
    model: str, vendor: Any, tmp_path: Any
) -> None:
    file = tmp_path / "infermux.toml"
    file.write_text(
        f'[providers.openai]\nbase_url = "{vendor.url}/v1"\n[providers.echo]\n'
        '[providers.gone]\ntype = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nmodels = ["x"]\n'
        '[providers.slow]\ntype = "echo"\nmodels = ["slow-v1"]\noptions = { delay = 0.3 }\n'
        '[models]\nboth = ["gone/x", "echo/echo-v1"]\n'
        f'[ledger]\npath = "{tmp_path}/calls.db"\n'
    )
    router = infermux.load({"INFERMUX_CONFIG": str(file), "OPENAI_API_KEY": "sk-test"})
    client = create_app(router).test_client()
    answer = client.post("/infer", json=HELLO | {"model": model})
    assert router.ledger is not None
    [record] = router.ledger.rows()
    header = int(answer.headers["X-Infermux-Latency-Ms"])
    assert answer.json["latency_ms"] == header == record.call.latency_ms
    assert model != "slow-v1" or header == 300  # what the provider itself says
    events = client.post("/infer", json=HELLO | {"model": model, "stream": True}).text
    [told] = re.findall(r'"latency_ms":(\d+)', events)
    assert router.ledger.rows()[0].call.latency_ms == int(told)
