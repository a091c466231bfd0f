"""Random conversations: official clients, strict vendors that change in the middle.

A seed decides what is said: by the user (texts, images by data and by URL), by the model (texts,
thoughts, parallel calls with odd arguments), by the tools (texts, JSON, images, in any order), and
with which parameters. Each vendor has to see all of it, and the client what the vendor said.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
from doors import Front
from strict_vendor import IMAGE_SEEN, KEY, Item, StrictVendor, Tool, Turn, usage_of
from support import how_many

from infermux import HTTPProvider

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
genai = pytest.importorskip("google.genai")

MODELS = {
    "openai": ["gpt-4.1", "gpt-4o", "mistral-large-latest"],
    "responses": ["gpt-5.5", "gpt-6-luna"],
    "anthropic": ["claude-sonnet-5-5", "claude-sonnet-4-5"],
    "gemini": ["gemini-3.1-pro", "gemini-2.5-flash"],
}
WORDS = [
    "Köln",
    "東京",
    "🌦",
    '"quoted"',
    "back\\slash",
    "<tag>",
    "{json:",
    "\u2028",
    "null",
    "data:",
]
WORDS += ["0.1", "&amp;", "\n\t", "'s"]
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n not much of a picture").decode()
IMAGES = (f"data:image/png;base64,{PICTURE}", "https://example.com/a.png")
SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    {"type": "object", "properties": {}},
    {
        "type": "object",
        "properties": {
            "at": {"$ref": "#/$defs/P"},
            "l": {"type": "array", "items": {"type": ["string", "null"]}},
        },
        "additionalProperties": False,
        "$defs": {"P": {"type": "object", "properties": {"x": {"type": "number"}}}},
    },
]


class Call(NamedTuple):
    ident: str
    name: str
    given: Any


class Result(NamedTuple):
    call: Call
    text: str
    image: str
    custom: bool


class Answer(NamedTuple):
    """What a client has read."""

    text: str
    calls: list[Call]
    tokens: tuple[int, int]


class Client:
    """An official client that keeps a conversation as its format does."""

    def __init__(self, url: str) -> None:
        self.url, self.turns = url, list[Any]()

    def user(self, parts: list[tuple[str, str]]) -> None:
        said = [self.text(text) if kind == "text" else self.image(text) for kind, text in parts]
        self.turns.append({"role": "user", "content": said})

    def text(self, text: str) -> Any:
        return {"type": "text", "text": text}

    def image(self, url: str) -> Any:
        return {"type": "image_url", "image_url": {"url": url}}


@cache
def openais(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


class Chat(Client):
    def ask(self, model: str, tools: Any, *, streamed: bool, **params: Any) -> Answer:
        offered = [
            {"type": "custom", "custom": {"name": name}}
            if schema is None
            else {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in tools.items()
        ]
        system = [{"role": "system", "content": params.pop("system")}]
        body = {"model": model, "messages": system + self.turns, **params}
        body |= {"tools": offered} if offered else {}
        create = openais(self.url).chat.completions
        if streamed and None not in tools.values():  # the SDK's helper knows no custom tools
            with create.stream(**body, stream_options={"include_usage": True}) as stream:
                found = stream.get_final_completion()
        else:
            found = create.create(**body)
        message, usage = found.choices[0].message, found.usage
        self.turns.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
        for call in self.turns[-1].get("tool_calls", ()):
            call.pop("index", None)
            call.get("function", {}).pop("parsed_arguments", None)
        calls = [
            Call(each.id, each.custom.name, each.custom.input)
            if each.type == "custom"
            else Call(each.id, each.function.name, json.loads(each.function.arguments))
            for each in message.tool_calls or ()
        ]
        return Answer(message.content or "", calls, (usage.prompt_tokens, usage.completion_tokens))

    def results(self, found: list[Result]) -> None:
        for each in found:
            said = [self.text(each.text), *([self.image(each.image)] if each.image else [])]
            content = said if each.image else each.text
            self.turns.append({"role": "tool", "tool_call_id": each.call.ident, "content": content})


class Responses(Client):
    """It stores nothing and sends every item back."""

    def text(self, text: str) -> Any:
        return {"type": "input_text", "text": text}

    def image(self, url: str) -> Any:
        return {"type": "input_image", "image_url": url, "detail": "auto"}

    def ask(self, model: str, tools: Any, *, streamed: bool, **params: Any) -> Answer:
        offered = [
            {"type": "custom", "name": name}
            if schema is None
            else {"type": "function", "name": name, "parameters": schema, "strict": False}
            for name, schema in tools.items()
        ]
        body = {"model": model, "input": self.turns, "store": False, "tools": offered}
        body |= {"include": ["reasoning.encrypted_content"], "instructions": params.pop("system")}
        if effort := params.pop("reasoning_effort", None):
            body["reasoning"] = {"effort": effort, "summary": "auto"}
        for own, name in (("max_output_tokens", "max_tokens"), ("", "stop")):
            params |= {own: params.pop(name)} if own and name in params else {}
        params.pop("stop", None)
        if streamed:
            with openais(self.url).responses.stream(**body, **params) as stream:
                found = stream.get_final_response()
        else:
            found = openais(self.url).responses.create(**body, **params)
        for item in found.output:
            unsent = {"parsed_arguments", "content"} if item.type != "message" else {"parsed"}
            self.turns.append(item.model_dump(exclude_none=True, exclude=unsent))
        calls = [
            Call(each.call_id, each.name, each.input)
            if each.type == "custom_tool_call"
            else Call(each.call_id, each.name, json.loads(each.arguments))
            for each in found.output
            if each.type in ("function_call", "custom_tool_call")
        ]
        usage = found.usage
        return Answer(found.output_text, calls, (usage.input_tokens, usage.output_tokens))

    def results(self, found: list[Result]) -> None:
        for each in found:
            said = [self.text(each.text), *([self.image(each.image)] if each.image else [])]
            kind = "custom_tool_call_output" if each.custom else "function_call_output"
            item = {"call_id": each.call.ident, "output": said if each.image else each.text}
            self.turns.append({"type": kind, **item})


class Messages(Client):
    def image(self, url: str) -> Any:
        source = {"type": "url", "url": url}
        if url.startswith("data:"):
            source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
        return {"type": "image", "source": source}

    def ask(self, model: str, tools: Any, *, streamed: bool, **params: Any) -> Answer:
        client = anthropic.Anthropic(base_url=self.url, api_key="x", max_retries=0)
        body: Any = {"model": model, "messages": self.turns, "system": params["system"]}
        body["max_tokens"] = params.get("max_tokens", 20_000)
        if tools:
            body["tools"] = [{"name": name, "input_schema": one} for name, one in tools.items()]
            kind = {"required": "any"}.get(params.get("tool_choice", "auto"), "auto")
            alone = params.get("parallel_tool_calls") is False
            body["tool_choice"] = {"type": kind, "disable_parallel_tool_use": alone}
        if "reasoning_effort" in params and params.get("tool_choice") != "required":
            body["thinking"] = {"type": "enabled", "budget_tokens": 1024}
        body |= {"stop_sequences": params["stop"]} if "stop" in params else {}
        if streamed:
            with client.messages.stream(**body) as stream:
                found = stream.get_final_message()
        else:
            found = client.messages.create(**body)
        content = [each.model_dump(exclude_none=True) for each in found.content]
        self.turns.append({"role": "assistant", "content": content})
        text = "".join(each["text"] for each in content if each["type"] == "text")
        uses = [each for each in content if each["type"] == "tool_use"]
        calls = [Call(each["id"], each["name"], each["input"]) for each in uses]
        return Answer(text, calls, (found.usage.input_tokens, found.usage.output_tokens))

    def results(self, found: list[Result]) -> None:
        content = [
            {
                "type": "tool_result",
                "tool_use_id": each.call.ident,
                "content": [
                    *([self.text(each.text)] if each.text else []),
                    *([self.image(each.image)] if each.image else []),
                ],
            }
            for each in found
        ]
        self.turns.append({"role": "user", "content": content})


class Google(Client):
    def user(self, parts: list[tuple[str, str]]) -> None:
        said = [self.text(text) if kind == "text" else self.image(text) for kind, text in parts]
        self.turns.append({"role": "user", "parts": said})

    def text(self, text: str) -> Any:
        return {"text": text}

    def image(self, url: str) -> Any:
        if url.startswith("data:"):
            return {"inline_data": {"mime_type": "image/png", "data": PICTURE}}
        return {"file_data": {"file_uri": url, "mime_type": "image/png"}}

    def ask(self, model: str, tools: Any, *, streamed: bool, **params: Any) -> Answer:
        client = genai.Client(api_key="x", http_options={"base_url": self.url})
        config: Any = {"system_instruction": params["system"]}
        if tools:
            declared = [
                {"name": name, "parameters_json_schema": one} for name, one in tools.items()
            ]
            mode = {"required": "ANY"}.get(params.get("tool_choice", "auto"), "AUTO")
            config["tools"] = [{"function_declarations": declared}]
            config["tool_config"] = {"function_calling_config": {"mode": mode}}
            config["automatic_function_calling"] = {"disable": True}
        if "reasoning_effort" in params:
            config["thinking_config"] = {"include_thoughts": True, "thinking_budget": 1024}
        for own, name in (("max_output_tokens", "max_tokens"), ("stop_sequences", "stop")):
            config |= {own: params[name]} if name in params else {}
        asked = {"model": model, "contents": self.turns, "config": config}
        if streamed:
            answers = list(client.models.generate_content_stream(**asked))
        else:
            answers = [client.models.generate_content(**asked)]
        parts = [part for each in answers for part in each.candidates[0].content.parts or ()]
        self.turns.append({"role": "model", "parts": [part.model_dump() for part in parts]})
        text = "".join(part.text for part in parts if part.text and not part.thought)
        called = [part.function_call for part in parts if part.function_call]
        usage = answers[-1].usage_metadata
        written = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
        calls = [Call(each.id or "", each.name, each.args or {}) for each in called]
        return Answer(text, calls, (usage.prompt_token_count, written))

    def results(self, found: list[Result]) -> None:
        parts: list[Any] = []
        for each in found:
            ident = {"id": each.call.ident} if each.call.ident else {}
            response = {"name": each.call.name, "response": {"result": each.text}, **ident}
            parts += [{"function_response": response}]
            parts += [self.image(each.image)] if each.image else []
        self.turns.append({"role": "user", "parts": parts})


# -- what is said ----------------------------------------------------------------------------------


def words(rng: random.Random, least: int = 1) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, 6))).strip() or "x" * least


def value(rng: random.Random, depth: int = 0) -> Any:
    """Return any JSON value."""
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 4:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 5:
        names = rng.sample(["k", "ключ", "a b", "", "$ref", "type"], rng.randrange(3))
        return {name: value(rng, depth + 1) for name in names}
    plain = [0, -1, 2**53, 1.5, 1e22, 0.1, True, False, None]
    return words(rng, 0) if kind else rng.choice(plain)


class Talk:
    """One conversation, and the truth about it."""

    def __init__(self, rng: random.Random, kind: type[Client], url: str) -> None:
        self.rng, self.kind, self.client = rng, kind, kind(url)
        names = ["get_weather", "lookup-2", "Search", "f" * 60]
        names += {Messages: ["mcp__" + "y" * 80], Google: ["ns.tool:run"]}.get(kind, [])
        chosen = rng.sample(names, rng.randrange(4))
        self.tools: dict[str, Any] = {name: rng.choice(SCHEMAS) for name in chosen}
        if kind in (Chat, Responses) and rng.random() < 0.4:
            self.tools["patch"] = None  # a custom tool
        self.system = words(rng)
        self.truth: list[tuple[Any, ...]] = []
        self.waiting: list[Call] = []

    def user(self) -> None:
        """Say what comes before an answer: results of tools, then words and images."""
        rng, texts, images = self.rng, [], 0
        results = []
        for call in self.waiting:
            text = rng.choice([words(rng), json.dumps({"k": value(rng)}), "", "[1, 2]"])
            image = IMAGES[0] if rng.random() < 0.2 else ""
            results.append(Result(call, text, image, self.tools[call.name] is None))
        said = [_plain(each.text) for each in results]
        images += sum(bool(each.image) for each in results)
        if results:
            if self.kind is not Google:  # which knows some calls by their order
                rng.shuffle(results)
            self.client.results(results)
        if not results or rng.random() < 0.2:
            parts = [("text", words(rng))]
            for _ in range(rng.randrange(3)):
                parts.append(rng.choice([("text", words(rng)), *(("image", i) for i in IMAGES)]))
            rng.shuffle(parts)
            self.client.user(parts)
            texts = [text for kind, text in parts if kind == "text"]
            images += sum(kind == "image" for kind, _ in parts)
        self.truth.append(("user", _plain("".join(texts)), sorted(said), images))

    def answer(self, vendor: str, params: Any) -> Turn:
        """Return what the model says next."""
        rng, natively = self.rng, vendor == "responses" or (vendor, self.kind) == ("openai", Chat)
        calls = []
        if self.tools and (rng.random() < 0.7 or params.get("tool_choice") == "required"):
            most = 1 if params.get("parallel_tool_calls") is False else 3
            for name in rng.choices([*self.tools], k=rng.randint(1, most)):
                given: Any = {key: value(rng) for key in rng.sample(["city", "ü", "a b"], 2)}
                if self.tools[name] is None:
                    given = words(rng) if natively else {"input": words(rng)}
                calls.append((Tool(name, {}, self.tools[name] is None and natively), given))
        blank = "\n\n" if calls and vendor != "anthropic" and rng.random() < 0.2 else ""
        text = blank or (words(rng) if not calls or rng.random() < 0.4 else "")
        thinks = "reasoning_effort" in params and vendor != "openai"
        return Turn(text, tuple(calls), words(rng) if thinks and rng.random() < 0.6 else "")

    def turn(self, vendor: StrictVendor, at: str) -> None:
        rng, params = self.rng, dict[str, Any]()
        if rng.random() < 0.5:
            params["reasoning_effort"] = "low"
        if rng.random() < 0.4:
            params["max_tokens"] = 3000
        if rng.random() < 0.3:
            params["stop"] = ["END", "\n\nHuman:"]
        if self.tools and rng.random() < 0.5:
            params["tool_choice"] = rng.choice(["auto", "required"])
        if self.tools and rng.random() < 0.5 and self.kind is not Google:
            params["parallel_tool_calls"] = rng.random() < 0.5
        self.user()
        said = self.answer(at, params)
        vendor.script[:] = [said]
        model = rng.choice(MODELS[at])
        if self.kind is Messages and "5-5" in model:  # a client of its own API does not force it
            params.pop("tool_choice", None)
        params["system"] = self.system
        got = self.client.ask(f"{at}/{model}", self.tools, streamed=rng.random() < 0.5, **params)
        self.check(vendor, said, got)
        calls = [(name, given) for _, name, given in got.calls]
        self.truth.append(("assistant", _plain(got.text), calls))
        self.waiting = got.calls

    def check(self, vendor: StrictVendor, said: Turn, got: Answer) -> None:
        """Compare what the vendor saw with the truth, and what the client read with its answer."""
        asked = vendor.asked[-1]
        assert got.text == said.text
        calls = [
            (
                tool.name,
                given["input"] if self.tools[tool.name] is None and not tool.custom else given,
            )
            for tool, given in said.calls
        ]
        assert [(call.name, call.given) for call in got.calls] == calls
        assert got.tokens == usage_of(asked, said)[:2]
        assert len({call.ident for call in got.calls} - {""}) in (len(calls), 0)
        assert self.seen(asked.items) == self.truth
        assert json.dumps(self.system) in json.dumps(vendor.seen[-1].body)
        assert {len(tool.name) <= 64 for tool in asked.tools} <= {True} or self.kind is Messages

    def seen(self, items: Any) -> list[tuple[Any, ...]]:
        """Return what a vendor saw in the form of the truth."""
        found: list[tuple[Any, ...]] = []
        side: list[Item] = []
        for item in [*items, Item("assistant", "")]:
            if item.role in ("system", "developer"):
                continue
            if item.role != "assistant":
                side.append(item)
                continue
            if side:
                found.append(_side(side))
            elif found and found[-1][0] == "assistant":  # Responses: words, then calls
                before = found.pop()
                item = Item("assistant", before[1] + item.text, (*before[2], *item.calls))
            calls = [self.own(*call) for call in item.calls]
            found.append(("assistant", _plain(item.text), calls))
            side = []
        return found[:-1]

    def own(self, name: str, given: Any) -> tuple[str, Any]:
        """Return a call with the client's name of its tool, and with its form of the input."""
        own = next((tool for tool in self.tools if _is_fitted(name, tool)), name)
        is_input = self.tools.get(own, {}) is None and isinstance(given, dict)
        return own, given["input"] if is_input else given


def _side(items: list[Item]) -> tuple[Any, ...]:
    texts = [item.text for item in items]
    results = [_plain(item.text) for item in items if item.role == "tool"]
    said = "".join(item.text for item in items if item.role == "user")
    return "user", _plain(said), sorted(results), "".join(texts).count(IMAGE_SEEN)


def _plain(text: str) -> str:
    """Return a text without what formats may change: white space, and words for an image."""
    text = text.replace(IMAGE_SEEN, "").replace("The result follows.", "")
    with contextlib.suppress(ValueError):
        text = json.dumps(json.loads(text))
    return re.sub(r"\s+", "", text)


def _is_fitted(name: str, own: str) -> bool:
    fitted = re.sub(r"[^\w-]", "_", own)[:54]
    return name == own or (name.startswith(f"_{fitted}_") and len(name) <= 64)


# -- the test --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vendor() -> Iterator[StrictVendor]:
    with StrictVendor() as running:
        yield running


@pytest.fixture(scope="module")
def front(vendor: StrictVendor) -> Iterator[Front]:
    def provider(name: str, dialect: str, **options: Any) -> HTTPProvider:
        url = vendor.base_url(dialect)
        return HTTPProvider(name, base_url=url, dialect=dialect, api_key=KEY, **options)

    with Front(
        provider("openai", "openai", api="chat"),
        provider("responses", "openai", api="responses"),
        provider("anthropic", "anthropic"),
        provider("gemini", "gemini"),
    ) as running:
        yield running


MANY = pytest.param(range(2, how_many(20, 20, 400)), marks=pytest.mark.slow)


@pytest.mark.parametrize("seeds", [range(2), MANY], ids=["few", "many"])
@pytest.mark.parametrize("kind", [Chat, Responses, Messages, Google])
def test_any_conversation_goes_on_at_any_vendor(front, vendor, kind, seeds):
    vendor.seen.clear()
    for seed in seeds:
        rng = random.Random(f"{kind.__name__} {seed}")
        talk = Talk(rng, kind, f"http://127.0.0.1:{front.port}")
        for _ in range(rng.randint(2, 5)):
            talk.turn(vendor, rng.choice([*MODELS]))
    assert vendor.refused == []
