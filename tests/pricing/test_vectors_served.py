"""The shared vectors of costs through the service: what the vendor says it used, by every API, is
what the ledger's row costs, to the last pico-dollar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from support import Peer

from infermux import build, create_app
from infermux.pricing import PICO
from infermux.pricing.table import shipped

FILE = Path(__file__).parents[3] / "shared" / "prices" / "vectors.jsonl"
TYPES = {"google": "gemini"}  # where a preset has another name than the table's vendor
# DeepSeek's prices depend on the hour.
VENDORS = [
    "openai",
    "anthropic",
    "google",
    "azure",
    "mistral",
    "xai",
    "fireworks",
    "together",
    "groq",
]
APIS = ("openai_chat", "openai_responses", "xai_chat", "anthropic", "gemini", "embeddings")
HELLO = [{"role": "user", "content": "Hello"}]
CLIENTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/messages": {"messages": HELLO, "max_tokens": 100_000},
    "/v1/responses": {"input": "Hello"},
    "/infer": {"messages": HELLO},
    "gemini": {"contents": [{"parts": [{"text": "Hello"}]}]},
}


def vectors() -> list[Any]:
    if not FILE.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{FILE} is absent"))]
    found = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
    return [pytest.param(each, id=each["n"]) for each in found if is_served(each)]


def is_served(vector: Any) -> bool:
    """Return whether a preset has this format and the price is as it was then.

    Google's embeddings have no usage.
    """
    api, provider = vector["api"], vector["provider"]
    if api not in APIS or provider not in VENDORS or (api, provider) == ("embeddings", "google"):
        return False
    price, today = shipped().find(provider, vector["model"]), datetime.now(UTC).date()
    return price is None or all(change.start > today for change in price.next)


class Vendor(Peer):
    """Answers in the format of `vector`, with its usage."""

    vector: Any = None

    def answer(self, handler: Any, body: bytes) -> None:
        api, used = self.vector["api"], self.vector["raw_usage"]
        data: dict[str, Any] = {"id": "x", "model": self.vector["model"]}
        if api == "anthropic":
            words = [{"type": "text", "text": "Hi"}]
            data |= {"type": "message", "role": "assistant", "content": words, "usage": used}
            data["stop_reason"] = "end_turn"
        elif api == "gemini":
            said = {"role": "model", "parts": [{"text": "Hi"}]}
            data |= {"candidates": [{"content": said, "finishReason": "STOP"}]}
            data["usageMetadata"] = used
        elif api == "openai_responses":
            words = [{"type": "output_text", "text": "Hi", "annotations": []}]
            item = {"type": "message", "id": "m", "role": "assistant", "content": words}
            data |= {"object": "response", "status": "completed", "output": [item], "usage": used}
        elif api == "embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
            data |= {"object": "list", "data": [vector], "usage": used}
        else:
            said = {"role": "assistant", "content": "Hi"}
            choice = {"index": 0, "message": said, "finish_reason": "stop"}
            data |= {"choices": [choice], "usage": used}
        if "service_tier" in self.vector:
            data["service_tier"] = self.vector["service_tier"]
        handler.reply(200, json.dumps(data).encode(), {"Content-Type": "application/json"})


@pytest.fixture(scope="module")
def vendor() -> Iterator[Vendor]:
    with Vendor() as running:
        yield running


@pytest.fixture(scope="module")
def clients(vendor: Vendor, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, FlaskClient]:
    """Return a client of a service that calls its vendors by Responses, and one of the other."""
    folder = tmp_path_factory.mktemp("vectors")
    return {responses: client(vendor, folder, responses) for responses in (False, True)}


def client(vendor: Vendor, folder: Path, responses: bool) -> FlaskClient:
    text = f'[ledger]\npath = "{folder / f"{responses}.db"}"\n'
    for name in VENDORS[: 1 if responses else None]:
        kind = TYPES.get(name, name)
        text += f'[providers.{name}]\ntype = "{kind}"\nbase_url = "{vendor.url}/{name}/v1"\n'
        text += 'api_key = "env:VENDOR"\n'
        if kind not in ("anthropic", "gemini"):
            text += f'api = "{"responses" if responses else "chat"}"\n'
    file = folder / f"{responses}.toml"
    file.write_text(text)
    return create_app(build.router(build.settings({"VENDOR": "sk-v"}, str(file)))).test_client()


@pytest.mark.sampled(25)
@pytest.mark.parametrize("vector", vectors())
def test_a_vector_costs_the_same_by_every_api(vector, clients, vendor):
    vendor.vector = vector
    client = clients[vector["api"] == "openai_responses"]
    model = f"{vector['provider']}/{vector['model']}"
    asked = CLIENTS if vector["api"] != "embeddings" else {"/v1/embeddings": {"input": "Hello"}}
    ledger = client.application.extensions["infermux"].ledger
    found = {}
    for path, body in asked.items():
        if path == "gemini":
            answer = client.post(f"/v1beta/models/{model}:generateContent", json=body)
        else:
            answer = client.post(path, json={"model": model, **body})
        assert answer.status_code == 200, (path, answer.text)
        found[path] = ledger.rows(limit=1)[0].call.cost
    assert found == dict.fromkeys(asked, int(Decimal(vector["expected_cost_usd"]) * PICO))
