"""Tests of the running service with Google's official SDK, google-genai, over every vendor."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))  # for doors.py

from doors import ERRORS, FIRST, PICTURE, SERVED, Front, Turn, Vendor, reply, says, stream
from strict_vendor import KEY, StrictVendor
from support import Service

from infermux import HTTPProvider
from infermux.providers import PRESETS

genai = pytest.importorskip("google.genai")
pydantic = pytest.importorskip("pydantic")
types, errors = genai.types, genai.errors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MODELS = {"openai": "gpt-asked", "anthropic": "claude-asked", "gemini": "gemini-asked"}
ASK = "How is the weather in Köln and 東京?"
CALLS = Turn("", (("weather", {"city": "Köln"}), ("weather", {"city": "東京"})), "Let me look.")
ANSWER = Turn("Rain in Köln, sun in 東京. 🌞")
every_vendor = pytest.mark.parametrize("dialect", MODELS)


class City(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    name: str
    people: int | None


def weather(city: str) -> str:
    """The weather of a city."""
    return f"Rain in {city}"


@pytest.fixture(scope="module")
def vendors():
    with Vendor("openai") as one, Vendor("anthropic") as two, Vendor("gemini") as three:
        yield {"openai": one, "anthropic": two, "gemini": three}


@pytest.fixture(scope="module")
def service(vendors):
    env = {
        "INFERMUX_SERVER__WORKERS": "1",
        "INFERMUX_RELIABILITY__CIRCUIT_BREAKER__FAILURES": "1000000",
        "INFERMUX_RELIABILITY__CIRCUIT_BREAKER__WINDOW": "0.001",
        "INFERMUX_RELIABILITY__ATTEMPTS": "1",
    }
    for name, vendor in vendors.items():
        base = "/v1beta" if name == "gemini" else "/v1"
        env |= {f"{name.upper()}_API_KEY": "sk-x", f"{name.upper()}_BASE_URL": vendor.url + base}
    with Service(env=env) as running:
        yield running


@pytest.fixture(params=["", "v1beta"], ids=["default version", "v1beta"])
def client(service, request):
    options = {"base_url": f"http://127.0.0.1:{service.port}", "timeout": 30_000}
    options |= {"api_version": request.param} if request.param else {}
    return genai.Client(api_key="any", http_options=types.HttpOptions(**options))


@pytest.mark.sampled(1)
@every_vendor
def test_it_generates(client, vendors, dialect):
    vendors[dialect].script(says(dialect, ANSWER, streamed=False))
    picture = types.Part.from_bytes(data=base64.b64decode(PICTURE), mime_type="image/png")
    got = client.models.generate_content(
        model=MODELS[dialect],
        contents=[picture, ASK],
        config=types.GenerateContentConfig(max_output_tokens=500, system_instruction="Be brief."),
    )
    usage = got.usage_metadata
    assert (got.text, got.candidates[0].finish_reason) == (ANSWER.text, types.FinishReason.STOP)
    assert got.model_version == SERVED[dialect]
    assert (usage.prompt_token_count, usage.total_token_count) == (31, 48)
    assert (usage.cached_content_token_count, usage.thoughts_token_count) == (8, 5)
    if dialect != "gemini":
        assert PICTURE in vendors[dialect].seen[-1].data.decode()


@every_vendor
def test_it_streams(client, vendors, dialect):
    vendors[dialect].script(says(dialect, ANSWER, streamed=True))
    chunks = list(
        client.models.generate_content_stream(model=f"{dialect}/{MODELS[dialect]}", contents=ASK)
    )
    assert "".join(chunk.text or "" for chunk in chunks) == ANSWER.text
    ends = [chunk.candidates[0].finish_reason for chunk in chunks]
    assert ends[-1] == types.FinishReason.STOP and not any(ends[:-1])
    assert chunks[-1].usage_metadata.total_token_count == 48


@pytest.mark.sampled(2)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@every_vendor
def test_a_chat_calls_functions_by_itself(client, vendors, dialect, streamed):
    vendor = vendors[dialect].script(
        *(says(dialect, turn, streamed=streamed) for turn in (CALLS, ANSWER, ANSWER))
    )
    chat = client.chats.create(
        model=MODELS[dialect],
        config=types.GenerateContentConfig(
            tools=[weather], thinking_config=types.ThinkingConfig(include_thoughts=True)
        ),
    )
    for number in (2, 3):
        if streamed:
            text = "".join(chunk.text or "" for chunk in chat.send_message_stream(ASK))
        else:
            text = chat.send_message(ASK).text
        assert text == ANSWER.text and len(vendor.seen) == number
    results = [json.dumps(f"Rain in {city}", ensure_ascii=False)[1:-1] for city in ("Köln", "東京")]
    sent = json.dumps(vendor.seen[1].body, ensure_ascii=False)
    assert [sent.count(result) for result in results] == [1, 1]


@every_vendor
def test_structured_output(client, vendors, dialect):
    vendors[dialect].script(says(dialect, Turn('{"name": "Köln", "people": null}'), streamed=False))
    config = {"response_mime_type": "application/json", "response_schema": City}
    got = client.models.generate_content(model=MODELS[dialect], contents=ASK, config=config)
    assert got.parsed == City(name="Köln", people=None)


def test_tokens_are_counted(client, vendors):
    vendors["gemini"].script(reply({"totalTokens": 9}))
    vendors["anthropic"].script(reply({"input_tokens": 11}))
    found = [
        client.models.count_tokens(model=model, contents=ASK).total_tokens
        for model in MODELS.values()
    ]
    assert found[0] > 3 and found[1:] == [11, 9]


def test_embeddings(client, vendors):
    data = [{"object": "embedding", "index": n, "embedding": [n, 0.5]} for n in range(2)]
    vendors["openai"].script(reply({"object": "list", "data": data, "usage": {"prompt_tokens": 2}}))
    vendors["gemini"].script(reply({"embeddings": [{"values": [n, 0.5]} for n in range(2)]}))
    for model in ("text-embedding-3-small", "gemini-embedding-001"):
        config = {"output_dimensionality": 2}
        got = client.models.embed_content(model=model, contents=["a", "b"], config=config)
        assert [each.values for each in got.embeddings] == [[0, 0.5], [1, 0.5]]


def test_models(client):
    names = [model.name for model in client.models.list(config={"page_size": 5})]
    assert {"models/gpt-6-luna", "models/claude-haiku-5-5", "models/echo-v1"} <= set(names)
    assert len(names) == len(set(names)) > 5
    model = client.models.get(model="openai/gpt-6-luna")
    assert model.name == "models/openai/gpt-6-luna" and model.input_token_limit > 1000
    with pytest.raises(errors.ClientError) as caught:
        client.models.get(model="nobody")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


@pytest.mark.sampled(1)
@every_vendor
def test_errors(client, vendors, dialect):
    body = {"error": {"message": "its words", "type": "invalid_request_error", "status": "ODD"}}
    vendors[dialect].script(reply(body, 400))
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=MODELS[dialect], contents=ASK)
    assert caught.value.code == 400 and "its words" in caught.value.message
    assert caught.value.status == ("ODD" if dialect == "gemini" else "INVALID_ARGUMENT")
    vendors[dialect].script(reply(b"oops", 500))
    with pytest.raises(errors.ServerError):
        client.models.generate_content(model=MODELS[dialect], contents=ASK)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("how", ["cut", "error"])
@every_vendor
def test_a_stream_that_breaks_is_an_error(client, vendors, dialect, how):
    more = (ERRORS[dialect],) if how == "error" else ()
    vendors[dialect].script(stream(FIRST[dialect], *more, end="cut" if how == "cut" else "end"))
    seen = []
    with pytest.raises(errors.APIError):
        for chunk in client.models.generate_content_stream(model=MODELS[dialect], contents=ASK):
            seen.append(chunk.text)
    assert seen == ["first"]


@pytest.mark.sampled(1)
@every_vendor
def test_the_async_client(client, vendors, dialect):
    async def run() -> Any:
        whole = await client.aio.models.generate_content(model=MODELS[dialect], contents=ASK)
        vendors[dialect].script(says(dialect, ANSWER, streamed=True))
        pieces = await client.aio.models.generate_content_stream(
            model=MODELS[dialect], contents=ASK
        )
        text = "".join([chunk.text or "" async for chunk in pieces])
        vendors[dialect].script(*(says(dialect, turn, streamed=False) for turn in (CALLS, ANSWER)))
        chat = client.aio.chats.create(model=MODELS[dialect], config={"tools": [weather]})
        called = await chat.send_message(ASK)
        await client.aio.aclose()
        return whole.text, text, called.text

    vendors[dialect].script(says(dialect, ANSWER, streamed=False))
    assert asyncio.run(run()) == (ANSWER.text,) * 3


# -- over a vendor that refuses what the real ones refuse ------------------------------------------

TARGETS = {  # format, api, model
    "chat": ("openai", "chat", "gpt-4.1"),
    "responses": ("openai", "responses", "gpt-5.4"),
    "either": ("openai", "auto", "gpt-5.6"),
    "anthropic": ("anthropic", "auto", "claude-sonnet-4-6"),
    "newer": ("anthropic", "auto", "claude-opus-5-5"),
    "gemini": ("gemini", "auto", "gemini-3-pro-preview"),
}
FORMATS = ("chat", "responses", "anthropic", "gemini")
STEPS = """call weather {"city": "Köln"}
call weather {"city": "Bonn"}
then
call weather {"city": "Kiel"}"""
THINKING = {
    "unsaid": None,
    "a budget": {"thinking_budget": 4096, "include_thoughts": True},
    "a level": {"thinking_level": "low"},
    "none": {"thinking_budget": 0},
}


@pytest.fixture(scope="module")
def strict():
    with StrictVendor() as vendor:
        providers = [
            HTTPProvider(
                name,
                base_url=vendor.base_url(form),
                dialect=form,
                api_key=KEY,
                models=[model],
                api=api,
                responses=PRESETS["openai"].responses if form == "openai" else None,
            )
            for name, (form, api, model) in TARGETS.items()
        ]
        with Front(*providers) as front:
            options = types.HttpOptions(base_url=f"http://127.0.0.1:{front.port}", timeout=30_000)
            yield vendor, genai.Client(api_key="any", http_options=options)


def talk(client: Any, target: str, text: str, *, streamed: bool, **options: Any) -> tuple[str, Any]:
    """Return the answer to *text*, and the conversation."""
    history = options.pop("history", None)
    chat = client.chats.create(
        model=f"{target}/{TARGETS[target][2]}",
        config={"tools": [weather]} | options,
        history=history,
    )
    if streamed:
        return "".join(chunk.text or "" for chunk in chat.send_message_stream(text)), chat
    return chat.send_message(text).text, chat


@pytest.mark.sampled(2)
@pytest.mark.sampled(8)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("target", TARGETS)
def test_a_loop_of_tools_at_a_strict_vendor(strict, target, thinking, streamed):
    vendor, client = strict
    refused, config = len(vendor.refused), THINKING[thinking]
    if target == "gemini" and thinking == "none":  # which its own clients know that it cannot
        config = {"thinking_budget": 128}
    text, chat = talk(client, target, STEPS, streamed=streamed, thinking_config=config)
    assert text == "The results are: Rain in Kiel"
    again = chat.send_message('call weather {"city": "Ulm"}')
    assert again.text == "The results are: Rain in Ulm"
    assert vendor.refused[refused:] == []


@pytest.mark.sampled(3)
@pytest.mark.sampled(2)
@pytest.mark.sampled(12)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("first", "second"), [(a, b) for a in FORMATS for b in FORMATS if a != b])
def test_a_chat_that_switches_its_vendor_in_the_middle(strict, first, second, streamed):
    vendor, client = strict
    refused, thinking = len(vendor.refused), THINKING["a budget"]
    _, chat = talk(client, first, STEPS, streamed=streamed, thinking_config=thinking)
    text, _ = talk(
        client,
        second,
        'call weather {"city": "Ulm"}',
        streamed=streamed,
        thinking_config=thinking,
        history=chat.get_history(),
    )
    assert text == "The results are: Rain in Ulm"
    assert vendor.refused[refused:] == []


class Place(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    name: str
    tags: list[str]
    inner: City


@pytest.mark.sampled(1)
@pytest.mark.parametrize("target", TARGETS)
def test_structured_output_at_a_strict_vendor(strict, target):
    _, client = strict
    config = {"response_mime_type": "application/json", "response_schema": Place}
    got = client.models.generate_content(
        model=f"{target}/{TARGETS[target][2]}", contents="'Köln'", config=config
    )
    assert isinstance(got.parsed, Place) and got.parsed.name == "Köln"
