"""A conversation goes on where its vendor changes in the middle: official clients, strict vendors.

The clients keep what their formats keep. Each vendor is that of strict_vendor.py: it refuses ids,
signatures, schemas, parameters and turns as the real ones do.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar

import pytest
from doors import Front
from strict_vendor import IMAGE_SEEN, KEY, StrictVendor

from infermux import HTTPProvider

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n not much of a picture").decode()
MODELS = {
    "chat": "gpt-5.2",
    "responses": "gpt-5.5",
    "anthropic": "claude-sonnet-5-5",
    "gemini": "gemini-3.1-pro",
}
ASK = """call weather {"city": "Oslo"}
call look {"at": "sky"}
then
call weather {"city": "Rome"}"""
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
AT = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/Place"}},
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {"Place": {"type": "string", "minLength": 1}},
}
TOOLS = {"weather": CITY, "look": AT}


@pytest.fixture(scope="module")
def vendor() -> Iterator[StrictVendor]:
    with StrictVendor() as running:
        yield running


@pytest.fixture(scope="module")
def front(vendor: StrictVendor) -> Iterator[Front]:
    def provider(name: str, **options: Any) -> HTTPProvider:
        dialect = options.pop("dialect", name)
        url = vendor.base_url(dialect)
        return HTTPProvider(name, base_url=url, dialect=dialect, api_key=KEY, **options)

    with Front(
        provider("chat", dialect="openai", api="chat"),
        provider("responses", dialect="openai", api="responses"),
        provider("anthropic"),
        provider("gemini"),
    ) as running:
        yield running


@cache
def openais(url: str) -> Any:
    return openai.OpenAI(base_url=url, api_key="x", max_retries=0)


@cache
def anthropics(url: str) -> Any:
    return anthropic.Anthropic(base_url=url, api_key="x", max_retries=0)


class Conversation:
    """One conversation; `turn` returns what the model said and which tools it called."""

    def __init__(self, front: Front, *, streamed: bool, thinks: bool) -> None:
        self.url, self.front = f"http://127.0.0.1:{front.port}", front
        self.streamed, self.thinks = streamed, thinks
        self.turns: list[Any] = []

    def turn(self, vendor: str) -> tuple[str, list[tuple[str, str]]]:
        """Let *vendor* answer; then add a result for each call, with an image for `look`."""
        text, calls = self.answered(f"{vendor}/{MODELS[vendor]}")
        self.results(calls)
        return text, [(name, json.dumps(given)) for _, name, given in calls]

    def answered(self, model: str) -> tuple[str, list[tuple[str, str, Any]]]:
        raise NotImplementedError

    def results(self, calls: list[tuple[str, str, Any]]) -> None:
        raise NotImplementedError


class Chat(Conversation):
    """OpenAI's client at chat completions; it keeps standard fields only."""

    def answered(self, model: str) -> Any:
        client = openais(f"{self.url}/v1")
        self.turns = self.turns or [{"role": "user", "content": ASK}]
        functions = [{"name": name, "parameters": schema} for name, schema in TOOLS.items()]
        body: Any = {
            "model": model,
            "messages": self.turns,
            "tools": [{"type": "function", "function": one} for one in functions],
            "user": "u" * 200,
        }
        if self.thinks and "gpt" not in model:
            body["reasoning_effort"] = "low"
        if self.streamed:
            with client.chat.completions.stream(**body) as stream:
                message = stream.get_final_completion().choices[0].message
        else:
            message = client.chat.completions.create(**body).choices[0].message
        calls = [
            {
                "id": c.id,
                "type": "function",
                "function": {"name": c.function.name, "arguments": c.function.arguments},
            }
            for c in message.tool_calls or ()
        ]
        kept: Any = {"role": "assistant", "content": message.content}
        self.turns.append(kept | ({"tool_calls": calls} if calls else {}))
        return message.content or "", [
            (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in calls
        ]

    def results(self, calls: Any) -> None:
        for ident, name, given in calls:
            said: Any = f"{name} of {json.dumps(given)}"
            if name == "look":
                image = {"url": f"data:image/png;base64,{PICTURE}"}
                said = [{"type": "text", "text": said}, {"type": "image_url", "image_url": image}]
            self.turns.append({"role": "tool", "tool_call_id": ident, "content": said})


class WholeChat(Chat):
    """A client that sends the vendor's message back with every member, as many do."""

    def answered(self, model: str) -> Any:
        self.turns = self.turns or [{"role": "user", "content": ASK}]
        functions = [{"name": name, "parameters": schema} for name, schema in TOOLS.items()]
        body = {
            "model": model,
            "messages": self.turns,
            "tools": [{"type": "function", "function": one} for one in functions],
        }
        answer = self.front.ask("/v1/chat/completions", body)
        assert answer.status == 200, answer.data
        message = answer.json["choices"][0]["message"]
        self.turns.append(message)
        return message["content"] or "", [
            (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        ]


class Responses(Conversation):
    """OpenAI's client at Responses, which stores nothing: it sends every item back, as Codex."""

    def answered(self, model: str) -> Any:
        client = openais(f"{self.url}/v1")
        self.turns = self.turns or [{"role": "user", "content": ASK}]
        body: Any = {
            "model": model,
            "input": self.turns,
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "tools": [
                {"type": "function", "name": name, "parameters": schema, "strict": False}
                for name, schema in TOOLS.items()
            ],
        }
        if self.thinks:
            body["reasoning"] = {"effort": "low", "summary": "auto"}
        if self.streamed:
            with client.responses.stream(**body) as stream:
                response = stream.get_final_response()
        else:
            response = client.responses.create(**body)
        for item in response.output:
            unsent = {"parsed_arguments", "content"} if item.type != "message" else {"parsed"}
            self.turns.append(item.model_dump(exclude_none=True, exclude=unsent))
        calls = [item for item in response.output if item.type == "function_call"]
        found = [(one.call_id, one.name, json.loads(one.arguments)) for one in calls]
        return response.output_text, found

    def results(self, calls: Any) -> None:
        for ident, name, given in calls:
            said: Any = f"{name} of {json.dumps(given)}"
            if name == "look":
                url = f"data:image/png;base64,{PICTURE}"
                image = {"type": "input_image", "image_url": url, "detail": "auto"}
                said = [{"type": "input_text", "text": said}, image]
            item = {"type": "function_call_output", "call_id": ident, "output": said}
            self.turns.append(item)


class Messages(Conversation):
    """Anthropic's client."""

    thinking: ClassVar[Any] = {"type": "adaptive"}

    def answered(self, model: str) -> Any:
        client = anthropics(self.url)
        self.turns = self.turns or [{"role": "user", "content": ASK}]
        body: Any = {
            "model": model,
            "max_tokens": 8000,
            "messages": self.turns,
            "tools": [{"name": name, "input_schema": schema} for name, schema in TOOLS.items()],
            "metadata": {"user_id": "u" * 200},
        }
        if self.thinks:
            body["thinking"] = self.thinking
        if self.streamed:
            with client.messages.stream(**body) as stream:
                message = stream.get_final_message()
        else:
            message = client.messages.create(**body)
        content = [block.model_dump(exclude_none=True) for block in message.content]
        self.turns.append({"role": "assistant", "content": content})
        uses = [block for block in content if block["type"] == "tool_use"]
        text = "".join(block["text"] for block in content if block["type"] == "text")
        return text, [(one["id"], one["name"], one["input"]) for one in uses]

    def results(self, calls: Any) -> None:
        blocks: list[Any] = []
        for ident, name, given in calls:
            content: list[Any] = [{"type": "text", "text": f"{name} of {json.dumps(given)}"}]
            if name == "look":
                source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
                content.append({"type": "image", "source": source})
            blocks.append({"type": "tool_result", "tool_use_id": ident, "content": content})
        if blocks:
            self.turns.append({"role": "user", "content": blocks})


class Budget(Messages):
    """The same with a thinking budget, which models before Claude 4.6 have."""

    thinking: ClassVar[Any] = {"type": "enabled", "budget_tokens": 2000}


class Google(Conversation):
    """A client of Gemini's format, which returns each content as it came."""

    functions: ClassVar[Any] = [
        {"name": "weather", "parameters": CITY},
        {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string"}},
                "required": ["at"],
            },
        },
    ]

    def answered(self, model: str) -> Any:
        self.turns = self.turns or [{"role": "user", "parts": [{"text": ASK}]}]
        body: Any = {"contents": self.turns, "tools": [{"functionDeclarations": self.functions}]}
        if self.thinks:
            body["generationConfig"] = {
                "thinkingConfig": {"includeThoughts": True, "thinkingBudget": 2000}
            }
        verb = "streamGenerateContent?alt=sse" if self.streamed else "generateContent"
        answer = self.front.ask(f"/v1beta/models/{model}:{verb}", body)
        assert answer.status == 200, answer.data
        lines = answer.data.decode().splitlines()
        events = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
        parts = [
            part
            for each in (events if self.streamed else [answer.json])
            for candidate in each.get("candidates", ())
            for part in (candidate.get("content") or {}).get("parts", ())
        ]
        self.turns.append({"role": "model", "parts": parts})
        calls = [part["functionCall"] for part in parts if "functionCall" in part]
        text = "".join(
            part["text"] for part in parts if part.get("text") and not part.get("thought")
        )
        return text, [(one.get("id", ""), one["name"], one.get("args", {})) for one in calls]

    def results(self, calls: Any) -> None:
        parts: list[Any] = []
        for ident, name, given in calls:
            result = {"name": name, "response": {"result": f"{name} of {json.dumps(given)}"}}
            parts.append({"functionResponse": result | ({"id": ident} if ident else {})})
            if name == "look":
                parts.append({"inlineData": {"mimeType": "image/png", "data": PICTURE}})
        if parts:
            self.turns.append({"role": "user", "parts": parts})


FIRST = [("weather", '{"city": "Oslo"}'), ("look", '{"at": "sky"}')]
CLIENTS = (Chat, WholeChat, Responses, Messages, Google)
CASES = [
    pytest.param(*case, id="-".join((case[0].__name__, *case[1:3], "stream" * case[3] or "whole")))
    for case in itertools.product(CLIENTS, MODELS, MODELS, (False, True))
    if case[1] != case[2]
]
random.Random(15).shuffle(CASES)  # so that the first ones are of every kind


@pytest.mark.sampled(4)
@pytest.mark.sampled(3)
@pytest.mark.sampled(20)
@pytest.mark.parametrize(("client", "one", "other", "streamed"), CASES)
def test_a_conversation_changes_its_vendor_and_goes_on(front, vendor, client, one, other, streamed):
    for thinks in (False, True):
        vendor.seen.clear()
        talk = client(front, streamed=streamed, thinks=thinks)
        assert talk.turn(one) == ("", FIRST), vendor.refused
        assert talk.turn(other) == ("", [("weather", '{"city": "Rome"}')]), vendor.refused
        text, calls = talk.turn(one)
        assert calls == [] and "Rome" in text, vendor.refused
        assert vendor.refused == []
        seen = json.dumps(vendor.seen[1].body)
        assert PICTURE in seen and IMAGE_SEEN not in seen  # the image arrived


@pytest.mark.parametrize("other", [name for name in MODELS if name != "anthropic"])
def test_a_thinking_budget_is_left_out_where_another_vendor_gave_the_calls(front, vendor, other):
    vendor.seen.clear()
    talk = Budget(front, streamed=False, thinks=True)
    assert talk.turn(other)[1] == FIRST
    [(_, name, _)] = talk.answered("anthropic/claude-sonnet-4-5")[1]
    assert name == "weather" and vendor.refused == []
    assert "thinking" not in vendor.seen[-1].body


PATCH = '*** Begin "patch"\n+ one line\\n'


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("at", MODELS)
def test_a_chat_client_calls_its_custom_tool_at_every_vendor(front, at, streamed):
    """The input is free text, also where the vendor has only functions, which take JSON."""
    given = PATCH if at in ("chat", "responses") else {"input": PATCH}
    turns: list[Any] = [{"role": "user", "content": f"call apply {json.dumps(given)}"}]
    apply = {"type": "custom", "custom": {"name": "apply", "description": "Applies a patch."}}
    weather = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
    body: Any = {
        "model": f"{at}/{MODELS[at]}",
        "messages": turns,
        "tools": [weather, apply],
    }
    client = openais(f"http://127.0.0.1:{front.port}/v1")
    if streamed:
        call: dict[str, Any] = {"custom": {"name": "", "input": ""}}
        for chunk in client.chat.completions.create(**body, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
                more = delta.model_dump(exclude_none=True)
                for name in ("name", "input"):
                    call["custom"][name] += more.get("custom", {}).get(name, "")
                call = {**more, **call}
        call.pop("index")
    else:
        [made] = client.chat.completions.create(**body).choices[0].message.tool_calls
        call = made.model_dump(exclude_none=True)
    assert call["type"] == "custom"
    assert call["custom"] == {"name": "apply", "input": PATCH}
    turns += [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "applied"},
    ]
    assert client.chat.completions.create(**body).choices[0].message.content
    body |= {"tool_choice": {"type": "custom", "custom": {"name": "apply"}}, "messages": turns[:1]}
    [made] = client.chat.completions.create(**body).choices[0].message.tool_calls
    assert (made.type, made.custom.name) == ("custom", "apply")


@pytest.mark.parametrize("keeps", ["all", "items without reasoning"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_id_of_a_custom_call_is_short_and_googles_signature_survives(
    front, vendor, streamed, keeps
):
    """Codex refuses an id of more than 256 bytes: the signature rides in an item beside it."""
    turns: list[Any] = [
        {"role": "user", "content": f"call apply {json.dumps({'input': PATCH})}\ncall weather {{}}"}
    ]
    tools: list[Any] = [
        {"type": "custom", "name": "apply"},
        {"type": "function", "name": "weather", "parameters": CITY},
    ]
    body: Any = {"model": "gemini/gemini-3.1-pro", "input": turns, "tools": tools, "store": False}
    client = openais(f"http://127.0.0.1:{front.port}/v1")
    if streamed:
        with client.responses.stream(**body) as stream:
            response = stream.get_final_response()
    else:
        response = client.responses.create(**body)
    items = [
        item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in response.output
    ]
    assert [item["type"] for item in items] == ["reasoning", "custom_tool_call", "function_call"]
    assert items[1]["input"] == PATCH and len(items[1]["call_id"]) <= 64
    turns += items if keeps == "all" else items[1:]
    turns += [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": item["name"]}
        for item in items[1:]
    ]
    vendor.seen.clear()
    assert "apply" in client.responses.create(**body).output_text
    [called] = [one["parts"] for one in vendor.seen[0].body["contents"] if one["role"] == "model"]
    assert [part["functionCall"]["name"] for part in called] == ["apply", "weather"]
    kept = called[0]["thoughtSignature"] != "skip_thought_signature_validator"
    assert kept == (keeps == "all")


# -- what clients and vendors do besides -----------------------------------------------------------

LONG = f"mcp__{'plugin_' * 12}x"  # Claude takes 128 characters, OpenAI 64
NAMED = {Chat: "3d_view", Responses: "3d_view", Messages: LONG, Google: "ns.tool:x"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", NAMED)
def test_a_function_keeps_the_name_that_its_client_gave_it(
    front, vendor, monkeypatch, client, streamed
):
    name = NAMED[client]
    monkeypatch.setitem(globals(), "TOOLS", {name: CITY})
    monkeypatch.setattr(Google, "functions", [{"name": name, "parameters": CITY}])
    vendor.seen.clear()
    for at in MODELS:
        talk = client(front, streamed=streamed, thinks=False)
        talk.turns = [{"role": "user", "content": "go", "parts": [{"text": "go"}]}]
        talk.turns[0].pop("content" if client is Google else "parts")
        text, calls = talk.answered(f"{at}/{MODELS[at]}")
        assert [called for _, called, _ in calls] == [name]
        talk.results(calls)
        text, calls = talk.answered(f"{at}/{MODELS[at]}")
        assert text and not calls and vendor.refused == []


def function(ident: str, arguments: str = '{"city": "Oslo"}') -> Any:
    return {
        "id": ident,
        "type": "function",
        "function": {"name": "weather", "arguments": arguments},
    }


def step(*calls: Any) -> list[Any]:
    results = [
        {"role": "tool", "tool_call_id": c["id"], "content": f"r{n}"} for n, c in enumerate(calls)
    ]
    return [{"role": "assistant", "content": None, "tool_calls": [*calls]}, *results]


HI = {"role": "user", "content": "hi"}
SEARCHED = [
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
    {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
    {"type": "text", "text": "found"},
]
FOUND = {
    "type": "search_result",
    "source": "s",
    "title": "t",
    "content": [{"type": "text", "text": "found"}],
}
USED = {"type": "tool_use", "id": "u", "name": "weather", "input": {}}
ODD = {  # conversations that one vendor takes, or gave, and another one would refuse
    "one id for two calls": ("chat", [HI, *step(function("call_0")), *step(function("call_0"))], '"r0"'),
    "no ids": ("chat", [HI, *step(function(""), function(""))], '"r1"'),
    "arguments that are no JSON": ("chat", [HI, *step(function("c", '{"city": '))], '{\\"city\\": '),
    "arguments that are no object": ("chat", [HI, *step(function("c", "null"))], "r0"),
    "a system message amid results": ("chat", [
        HI, *step(function("a"), function("b"))[:2], {"role": "system", "content": "be quick"},
        {"role": "tool", "tool_call_id": "b", "content": "r1"}], "be quick"),
    "a greeting first": ("chat", [{"role": "assistant", "content": "Welcome!"}, HI], "Welcome!"),
    "a system message alone": ("chat", [{"role": "system", "content": "Write a poem."}], "a poem"),
    "its own words last": ("chat", [HI, {"role": "assistant", "content": "Well, "}], "Well,"),
    "an empty question": ("chat", [HI, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": " "}], "yes?"),
    "blank words": ("chat", [HI, {"role": "assistant", "content": "\n"}, HI], "hi"),
    "a search of the vendor's": ("messages", [HI, {"role": "assistant", "content": SEARCHED}, HI], "found"),
    "a search result of a tool": ("messages", [HI, {"role": "assistant", "content": [USED]}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "u", "content": [FOUND]}]}], "found"),
    "nothing as a result": ("messages", [HI, {"role": "assistant", "content": [USED]}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "u", "content": []}]}], "weather"),
}  # fmt: skip


@pytest.mark.parametrize("model", ["kimi-k2.6", "deepseek-v4-pro"])
@pytest.mark.parametrize("client", CLIENTS)
def test_calls_of_others_have_a_thought_where_the_model_wants_one(front, vendor, client, model):
    talk = client(front, streamed=False, thinks=False)
    vendor.seen.clear()
    _, calls = talk.answered(f"chat/{MODELS['chat']}")
    talk.results([(ident, "weather", given) for ident, _, given in calls])  # without images
    assert talk.answered(f"chat/{model}")[1][0][1:] == ("weather", {"city": "Rome"})
    assert vendor.refused == []


def test_mistral_gets_its_own_order_of_roles(front, vendor):
    """A user's words after results, an order of a later system, and an answer that is begun."""
    result = {"type": "tool_result", "tool_use_id": "u", "content": "sunny"}
    turns = [
        HI,
        {"role": "assistant", "content": [USED]},
        {"role": "user", "content": [result, {"type": "text", "text": "And tomorrow?"}]},
        {"role": "assistant", "content": "Rain."},
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Well,"},
    ]
    body = {"model": "chat/mistral-large-latest", "messages": turns, "max_tokens": 50}
    vendor.seen.clear()
    assert front.ask("/v1/messages", body).status == 200 and vendor.refused == []
    sent = vendor.seen[0].body["messages"]
    assert [each["role"] for each in sent] == [
        *("user", "assistant", "tool", "assistant", "user", "assistant", "user", "assistant"),
    ]
    assert (sent[6]["content"], sent[7]["content"], sent[7]["prefix"]) == (
        "Be brief.",
        "Well,",
        True,
    )
    own = [*sent[:3], {"role": "user", "content": "Thanks"}]
    assert front.ask("/v1/chat/completions", body | {"messages": own}).status == 200
    assert [each["role"] for each in vendor.seen[1].body["messages"]][3:] == ["assistant", "user"]


@pytest.mark.parametrize("case", ODD)
def test_a_conversation_that_another_vendor_took_goes_on_at_each(front, vendor, case):
    door, turns, held = ODD[case]
    own = "chat" if door == "chat" else "anthropic"
    for at in MODELS.keys() - {own}:
        vendor.seen.clear()
        body: Any = {"model": f"{at}/{MODELS[at]}", "messages": turns, "max_tokens": 50}
        if door == "chat":
            body["tools"] = [
                {"type": "function", "function": {"name": "weather", "parameters": CITY}}
            ]
        else:
            body["tools"] = [{"name": "weather", "input_schema": {"type": "object"}}]
        answer = front.ask("/v1/messages" if door == "messages" else "/v1/chat/completions", body)
        assert (answer.status, vendor.refused) == (200, []), answer.data
        sent = json.dumps(vendor.seen[0].body)
        assert held in sent and "The result follows" not in sent
        if "vendor's" in case:
            assert "server_tools" in answer.headers["X-Infermux-Dropped"]


def test_blank_words_before_a_call_are_left_out_at_anthropic(front, vendor):
    """Other models begin so; Anthropic refuses it from a client that returns their answer."""
    blank = {"type": "text", "text": "\n\n"}
    result = {"type": "tool_result", "tool_use_id": "u", "content": "sunny"}
    turns = [
        HI,
        {"role": "assistant", "content": [blank, USED]},
        {"role": "user", "content": [result]},
    ]
    turns += [{"role": "assistant", "content": [blank]}, HI]
    body = {"model": f"anthropic/{MODELS['anthropic']}", "messages": turns, "max_tokens": 50}
    vendor.seen.clear()
    assert front.ask("/v1/messages", body).status == 200
    sent = vendor.seen[0].body["messages"]
    assert sent == [HI, {"role": "assistant", "content": [USED]}, turns[2], HI]


def test_results_keep_the_order_of_their_calls_at_google(front, vendor):
    """Google knows a call that it gave no id by its name alone: two calls of one function differ."""
    talk = Chat(front, streamed=False, thinks=False)
    talk.turns = [
        {"role": "user", "content": 'call weather {"city": "A"}\ncall weather {"city": "B"}'}
    ]
    calls = talk.answered("gemini/gemini-2.5-pro")[1]
    vendor.seen.clear()
    talk.results(calls[::-1])
    talk.answered("gemini/gemini-2.5-pro")
    parts = vendor.seen[0].body["contents"][2]["parts"]
    said = [part["functionResponse"]["response"]["result"] for part in parts]
    assert ["A" in said[0], "B" in said[1]] == [True, True]


def test_an_id_that_a_vendor_gives_again_is_another_one_for_the_client(front, vendor, monkeypatch):
    """Claude Code takes a call with a known id for the old one, and asks again and again."""
    monkeypatch.setattr("strict_vendor.call_id", lambda *_, **__: "call_0")
    for streamed in (False, True):
        for client in (Messages, Responses):
            talk = client(front, streamed=streamed, thinks=False)
            talk.turns = [
                {"role": "user", "content": 'call weather {"city": "A"}\nthen\ncall weather {}'}
            ]
            idents = []
            for _ in range(2):
                [found] = talk.answered("chat/gpt-5.2")[1]
                idents.append(found[0])
                talk.results([found])
            assert len(set(idents)) == 2 and idents[0] == "call_0"
            assert talk.answered("chat/gpt-5.2")[1] == []
