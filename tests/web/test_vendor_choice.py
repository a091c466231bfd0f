"""Tests that a vendor's chat completions or Responses serve each request, from every door."""

from __future__ import annotations

import json
from typing import Any

import pytest
from doors import AnthropicClient, Front, Vendor, reply, sse
from openai_vendor import ENCRYPTED, OpenAIVendor

from infermux import HTTPProvider, build
from infermux.config import ProviderConfig
from infermux.errors import ConfigError

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ASK: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]


def provider(vendor: OpenAIVendor, api: str = "auto", **more: Any) -> Any:
    url = f"{vendor.url}/v1"
    return build.provider(ProviderConfig("openai", "openai", base_url=url, api=api, **more))


@pytest.fixture(scope="module")
def vendor():
    with OpenAIVendor() as running:
        yield running


@pytest.fixture(scope="module")
def front(vendor):
    with Front(provider(vendor)) as running:
        yield running


@pytest.fixture
def seen(vendor):
    vendor.seen.clear()
    return vendor.seen


@pytest.fixture
def oai(front):
    url = f"http://127.0.0.1:{front.port}/v1"
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("model", "params", "path"),
    [
        ("gpt-4.1", {}, "chat/completions"),
        ("gpt-4.1", {"tools": [TOOL]}, "chat/completions"),
        ("gpt-5.2", {"tools": [TOOL], "reasoning_effort": "high"}, "chat/completions"),
        ("gpt-5.4", {"tools": [TOOL]}, "chat/completions"),
        ("gpt-5.4", {"reasoning_effort": "high"}, "chat/completions"),
        ("gpt-5.5", {"tools": [TOOL], "reasoning_effort": "none"}, "chat/completions"),
        ("gpt-5.4", {"tools": [TOOL], "reasoning_effort": "low"}, "responses"),
        ("gpt-5.5-2026-04-01", {"tools": [TOOL], "reasoning_effort": "high"}, "responses"),
        ("gpt-5.6-sol", {"tools": [TOOL]}, "responses"),
        ("gpt-6-luna", {"tools": [TOOL]}, "responses"),
        ("gpt-6.1-terra", {"tools": [TOOL], "reasoning_effort": "none"}, "responses"),
        ("gpt-6-luna", {}, "chat/completions"),
        ("gpt-5-mini", {"stop": []}, "chat/completions"),
        ("gpt-5-chat-latest", {"stop": ["x"]}, "chat/completions"),
        ("gpt-4.1", {"stop": ["x"]}, "chat/completions"),
        ("gpt-5-mini", {"stop": "x"}, "responses"),
        ("o4-mini", {"stop": ["x"]}, "responses"),
        ("gpt-5-pro", {}, "responses"),
        ("gpt-5.2-pro-2026-01-01", {}, "responses"),
        ("o3-pro", {}, "responses"),
        ("gpt-5-codex", {}, "responses"),
        ("gpt-5.1-codex-max", {}, "responses"),
        ("codex-mini-latest", {}, "responses"),
        ("o4-mini-deep-research", {}, "responses"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_goes_by_responses_only_where_the_model_refuses_it(
    front, seen, model, params, path, stream
):
    body = {"model": f"openai/{model}", "messages": ASK, "stream": stream, **params}
    answer = front.ask("/v1/chat/completions", body)
    assert answer.status == 200, answer.data
    [(_, asked, sent)] = seen
    assert asked == f"/v1/{path}"
    if path == "responses":
        effort = params.get("reasoning_effort")
        assert sent.get("reasoning", {}).get("effort") == effort
        assert sent["store"] is False


def test_xai_is_asked_by_responses_where_its_model_refuses_stops(vendor, seen):
    xai = build.provider(ProviderConfig("xai", "xai", base_url=f"{vendor.url}/v1", api_key="k"))
    with Front(xai) as front:
        for model in ("grok-4.7", "grok-4.3-non-reasoning"):
            body = {"model": f"xai/{model}", "messages": ASK, "stop": ["x"]}
            assert front.ask("/v1/chat/completions", body).status == 200
    assert [path for _, path, _ in seen] == ["/v1/responses", "/v1/chat/completions"]


def test_the_openai_sdk_has_a_tool_loop_by_responses(oai, seen):
    first = oai.chat.completions.create(
        model="gpt-6-luna", messages=ASK, tools=[TOOL], reasoning_effort="low"
    )
    turn = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert turn.tool_calls[0].function.arguments == '{"city": "Rome"}'
    assert turn.reasoning_details[-1]["data"] == ENCRYPTED
    assert first.usage.prompt_tokens_details.cached_tokens == 8
    result = {"role": "tool", "tool_call_id": turn.tool_calls[0].id, "content": "sunny"}
    second = oai.chat.completions.create(
        model="gpt-6-luna",
        messages=[*ASK, turn.model_dump(exclude_none=True), result],
        tools=[TOOL],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(second)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Sunny."
    assert chunks[-1].usage.total_tokens == 48
    sent = seen[-1][2]["input"]
    assert [item.get("type", item.get("role")) for item in sent] == [
        "user",
        "reasoning",
        "function_call",
        "function_call_output",
    ]
    assert sent[1]["encrypted_content"] == ENCRYPTED


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_anthropics_api_returns_what_the_vendor_encrypted(front, seen, stream):
    """It rides in the signature of the thinking, with and without a summary."""
    asked = {**MESSAGES, "max_tokens": 500, "stream": stream}
    asked["tools"] = [{"name": "weather", "input_schema": {"type": "object"}}]
    for thinking in ({"type": "adaptive"}, {"type": "adaptive", "display": "omitted"}):
        answer = front.ask("/v1/messages", {**asked, "thinking": thinking})
        got = (
            AnthropicClient.fold(sse(answer.data)) if stream else AnthropicClient.read(answer.data)
        )
        use = got.message["content"][-1]
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": "sunny"}
        turns = [*ASK, got.message, {"role": "user", "content": [result]}]
        answer = front.ask("/v1/messages", {**asked, "messages": turns, "thinking": thinking})
        assert answer.status == 200, answer.data
        item = seen[-1][2]["input"][1]
        assert (item["type"], item["encrypted_content"]) == ("reasoning", ENCRYPTED)


def test_a_client_without_reasoning_details_goes_on_too(oai, seen):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    answer = oai.chat.completions.create(
        model="gpt-6-luna",
        messages=[
            *ASK,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        tools=[TOOL],
    )
    assert answer.choices[0].message.content == "Sunny."


@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tool_of_chat_is_called_in_chats_form(oai, stream):
    asked = {"model": "gpt-6-luna", "messages": ASK}
    tools = [{"type": "custom", "custom": {"name": "patch"}}]
    if not stream:
        answer = oai.chat.completions.create(**asked, tools=tools)
        [call] = answer.choices[0].message.tool_calls
        assert (call.custom.name, call.custom.input) == ("patch", "*** Begin")
        return
    chunks = list(oai.chat.completions.create(**asked, tools=tools, stream=True))
    calls = [
        c for chunk in chunks if chunk.choices for c in chunk.choices[0].delta.tool_calls or []
    ]
    assert "".join(call.custom.get("input", "") for call in calls) == "*** Begin"


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_sdk_has_a_tool_loop_by_responses(front, seen, stream):
    url = f"http://127.0.0.1:{front.port}"
    tool = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        asked: dict[str, Any] = {"model": "gpt-6-luna", "max_tokens": 500, "tools": [tool]}

        def send(messages: list[Any]) -> Any:
            if not stream:
                return client.messages.create(messages=messages, **asked)
            with client.messages.stream(messages=messages, **asked) as events:
                return events.get_final_message()

        first = send(ASK)
        assert first.stop_reason == "tool_use"
        use = first.content[-1]
        assert (use.name, use.input) == ("weather", {"city": "Rome"})
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        turn = {"role": "assistant", "content": [b.model_dump() for b in first.content]}
        second = send([*ASK, turn, {"role": "user", "content": [result]}])
    assert second.content[-1].text == "Sunny."
    assert {path for _, path, _ in seen} == {"/v1/responses"}
    assert (second.usage.input_tokens, second.usage.output_tokens) == (23, 17)


def test_the_mist_door_and_the_library_have_tools_too(front, seen):
    body = {"model": "gpt-6-luna", "messages": ASK, "params": {"tools": [TOOL]}}
    answer = front.ask("/infer", body)
    assert answer.json["tool_calls"][0]["function"]["name"] == "weather"
    with front.router.stream(ASK, model="gpt-6-luna", params={"tools": [TOOL]}) as stream:
        for _ in stream:
            pass
        assert stream.response().tool_calls[0]["function"]["arguments"] == '{"city": "Rome"}'


@pytest.mark.parametrize("stream", [False, True])
def test_geminis_door_has_a_tool_loop_by_responses(front, seen, stream):
    declared = [{"name": "weather", "parameters": {"type": "OBJECT", "properties": {}}}]
    asked = {"role": "user", "parts": [{"text": "How is the weather?"}]}
    how = "streamGenerateContent?alt=sse" if stream else "generateContent"

    def send(contents: list[Any]) -> list[Any]:
        body = {"contents": contents, "tools": [{"functionDeclarations": declared}]}
        answer = front.ask(f"/v1beta/models/gpt-6-luna:{how}", body)
        assert answer.status == 200, answer.data
        data = answer.data.replace(b"\r\n", b"\n")
        found = [event.json for event in sse(data)] if stream else [answer.json]
        return [p for each in found for c in each["candidates"] for p in c["content"]["parts"]]

    turn = send([asked])
    [called] = [part["functionCall"] for part in turn if "functionCall" in part]
    assert called["args"] == {"city": "Rome"}
    result = {"functionResponse": {"name": "weather", "response": {"result": "sunny"}}}
    if "id" in called:
        result["functionResponse"]["id"] = called["id"]
    said = send([asked, {"role": "model", "parts": turn}, {"role": "user", "parts": [result]}])
    assert "".join(part.get("text", "") for part in said if "thought" not in part) == "Sunny."
    assert {path for _, path, _ in seen} == {"/v1/responses"}


# -- clients of Responses --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_of_responses_gets_the_vendors_own_bytes(front, vendor, seen, stream):
    body = b'{"model": "gpt-4.1" , "input":[{"role":"user","content":"\\u00e4"}], "stream":%s}'
    body %= b"true" if stream else b"false"
    answer = front.ask("/v1/responses", body)
    assert seen[-1][1] == "/v1/responses"
    held = vendor.stored[f"resp_{vendor.count:048d}"]
    if not stream:
        assert answer.data == json.dumps(held, indent=1).encode()
    else:
        found = [event.json for event in sse(answer.data)]
        assert found[-1]["response"] == held
        assert [each["sequence_number"] for each in found] == list(range(len(found)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("api", "path"), [("chat", "chat/completions"), ("responses", "responses")]
)
@pytest.mark.parametrize("door", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_configuration_decides_for_every_request(vendor, seen, api, path, door, stream):
    body = {"model": "gpt-4.1", "messages": ASK}
    if door == "/v1/responses":
        body = {"model": "gpt-4.1", "input": "Hi"}
    with Front(provider(vendor, api)) as front:
        answer = front.ask(door, body | {"stream": stream})
    assert answer.status == 200, answer.data
    assert seen[-1][1] == f"/v1/{path}"
    said = b"By chat." if api == "chat" else b"Sunny."
    assert said in answer.data or said[:3] in answer.data


@pytest.mark.parametrize(
    ("model", "refuses"),
    [
        ("gpt-5-mini", True),
        ("ft:gpt-6-luna:x", True),
        ("o3", True),
        ("o4-mini", True),
        ("o3-mini", False),
        ("gpt-4.1", False),
        ("gpt-5-chat-latest", False),
    ],
)
def test_stops_that_a_model_refuses_end_the_answer_whatever_the_api(vendor, seen, model, refuses):
    """What goes by Responses if the choice is free is not sent to chat completions, if it is not."""
    body = {"model": f"openai/{model}", "max_tokens": 50, "messages": ASK}
    for api in ("auto", "chat"):
        with Front(provider(vendor, api)) as front:
            answer = front.ask("/v1/messages", body | {"stop_sequences": [" chat", "ny"]})
        assert answer.json["content"][-1]["text"] in ("By", "Sun")
        assert seen[-1][1] == "/v1/" + (
            "responses" if refuses and api == "auto" else "chat/completions"
        )
        assert ("stop" in seen[-1][2]) is not refuses


def test_a_vendor_without_responses_serves_its_clients_by_chat(vendor, seen):
    url = f"{vendor.url}/v1"
    mistral = build.provider(ProviderConfig("mistral", "mistral", base_url=url))
    with Front(mistral) as front:
        answer = front.ask("/v1/responses", {"model": "mistral/x", "input": "Hi"})
    assert answer.json["output"][-1]["content"][0]["text"] == "By chat."
    assert seen[-1][1] == "/v1/chat/completions"


@pytest.mark.parametrize("kind", ["anthropic", "gemini"])
def test_a_vendor_that_cannot_have_responses_says_so_at_the_start(kind):
    with pytest.raises(ConfigError, match="Responses"):
        build.provider(ProviderConfig("x", kind, base_url="http://h/v1", api="responses"))


def test_azure_has_one_address_for_responses_and_one_for_each_deployment(vendor, seen):
    config = ProviderConfig("azure", "azure", base_url=vendor.url)
    with Front(build.provider(config)) as front:
        front.ask("/v1/responses", {"model": "azure/gpt-5-mini", "input": "Hi"})
        front.ask("/v1/chat/completions", {"model": "azure/gpt-5-mini", "messages": ASK})
    paths = [path for _, path, _ in seen]
    assert paths == [
        "/openai/v1/responses?api-version=v1",
        "/openai/deployments/gpt-5-mini/chat/completions?api-version=2024-10-21",
    ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"model": "gpt-4.1", "input": "Hi", "x_own": 1}, "unknown_parameter"),
        ({"model": "gpt-4.1", "input": "Hi", "max_output_tokens": 2}, "integer_below_min_value"),
    ],
)
def test_a_client_of_responses_gets_the_vendors_own_error(front, body, code):
    answer = front.ask("/v1/responses", body)
    assert (answer.status, answer.json["error"]["code"]) == (400, code)


# -- what is learnt from a refusal -----------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_of_unknown_name_that_refuses_tools_is_asked_by_responses(stream):
    with OpenAIVendor(alias={"our-own": "gpt-6-luna"}) as vendor, Front(provider(vendor)) as front:
        body = {"model": "openai/our-own", "messages": ASK, "stream": stream}
        for _ in range(2):
            answer = front.ask("/v1/chat/completions", body | {"tools": [TOOL]})
            assert answer.status == 200, answer.data
            assert b"weather" in answer.data
        front.ask("/v1/chat/completions", body)
        paths = [path.removeprefix("/v1/") for _, path, _ in vendor.seen]
    assert paths == ["chat/completions", "responses", "responses", "chat/completions"]


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_server_without_responses_serves_their_clients_by_chat(stream, configured):
    with OpenAIVendor(lacks=True) as vendor:
        url = f"{vendor.url}/v1"
        local = HTTPProvider("local", base_url=url, models=["m"])
        if configured:
            found = ProviderConfig("local", "openai", base_url=url, models=("m",))
            local = build.provider(found)
        with Front(local) as front:
            for _ in range(2):
                answer = front.ask("/v1/responses", {"model": "m", "input": "Hi", "stream": stream})
                assert answer.status == 200, answer.data
                assert b"By chat." in answer.data
        paths = [path.removeprefix("/v1/") for _, path, _ in vendor.seen]
    assert paths == ["responses", "chat/completions", "chat/completions"]


def test_an_unknown_model_is_not_a_server_without_responses(vendor, seen):
    with Front(HTTPProvider("local", base_url=f"{vendor.url}/v1")) as front:
        answer = front.ask("/v1/responses", {"model": "local/missing", "input": "Hi"})
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    assert len(seen) == 1


def test_an_unknown_id_is_not_a_server_without_responses():
    """Some servers answer 404 to it."""
    with Vendor("openai") as other:
        local = HTTPProvider("local", base_url=f"{other.url}/v1", models=["m"])
        body = {"model": "m", "input": "Hi"}
        with Front(local) as front:
            other.script(reply({"error": {"message": "no such response", "code": 404}}, 404))
            answer = front.ask("/v1/responses", body | {"previous_response_id": "resp_1"})
            assert answer.status in (400, 404)
            front.ask("/v1/responses", body)
        assert [each.path for each in other.seen][:2] == ["/v1/responses"] * 2


THINKING = {"thinking": {"type": "adaptive"}, "max_tokens": 500}
MESSAGES = {"model": "openai/gpt-6-luna", "messages": ASK, "tools": []}


@pytest.mark.parametrize(
    ("members", "shown"),
    [
        (THINKING, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 5000}, True),
        ({"thinking": {"type": "adaptive", "display": "omitted"}, "max_tokens": 500}, False),
        ({"thinking": {"type": "disabled"}, "max_tokens": 500}, False),
        ({"max_tokens": 500}, False),
    ],
)
def test_thoughts_are_asked_for_where_the_clients_own_api_shows_them(front, seen, members, shown):
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    answer = front.ask("/v1/messages", {**MESSAGES, "tools": tools, **members})
    assert answer.status == 200, answer.data
    [(_, asked, sent)] = seen
    assert asked == "/v1/responses"
    assert ("summary" in sent.get("reasoning", {})) == shown


def test_a_google_client_that_includes_thoughts_gets_them(front, seen):
    for name, include in (("includeThoughts", True), ("include_thoughts", True), ("x", False)):
        members = {name: True} if include else {}
        config = {"thinkingConfig": {"thinkingLevel": "high", **members}}
        tools = [{"functionDeclarations": [{"name": "weather"}]}]
        body = {"contents": [{"parts": [{"text": "Hi"}]}], "tools": tools}
        path = "/v1beta/models/openai/gpt-6-luna:generateContent"
        answer = front.ask(path, body | {"generationConfig": config})
        assert answer.status == 200, answer.data
    assert ["summary" in sent["reasoning"] for _, _, sent in seen] == [True, True, False]


@pytest.mark.parametrize("stream", [False, True])
def test_an_organization_that_may_not_have_summaries_is_served_without(stream):
    """Only the first request is refused; a client of Responses that asks for one is told."""
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    with OpenAIVendor(unverified=True) as vendor, Front(provider(vendor)) as front:
        for _ in range(2):
            body = {**MESSAGES, **THINKING, "tools": tools, "stream": stream}
            answer = front.ask("/v1/messages", body)
            assert answer.status == 200, answer.data
        asked = {"model": "openai/gpt-6-luna", "input": "Hi", "reasoning": {"summary": "auto"}}
        refused = front.ask("/v1/responses", asked)
        assert refused.status == 400 and b"must be verified" in refused.data
        sent = ["summary" in (each.get("reasoning") or {}) for _, _, each in vendor.seen]
    assert sent == [True, False, False, True]


def said(answer: Any) -> tuple[str, str]:
    """Return the text and the finish reason of a chat or a message, streamed or not."""
    if not answer.data.startswith((b"data:", b"event:")):
        [choice] = answer.json.get("choices") or [answer.json]
        message = choice.get("message") or choice
        content = message["content"] or ""
        words = content if isinstance(content, str) else "".join(b["text"] for b in content)
        return words, choice.get("finish_reason") or choice["stop_reason"]
    words, reason = "", ""
    for line in answer.data.decode().splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line[6:])
        for choice in event.get("choices") or [event]:
            delta = choice.get("delta") or {}
            words += delta.get("content") or delta.get("text") or ""
            reason = choice.get("finish_reason") or delta.get("stop_reason") or reason
    return words, reason


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    ("stops", "left"),
    [(["nny"], "Su"), (["x", "ny.", "y"], "Sunn"), (["Sunny!", "?"], "Sunny."), (["S"], "")],
)
def test_an_answer_by_responses_ends_at_the_clients_stops(front, seen, path, stops, left, stream):
    """Also where a stop is spread over several events."""
    chat = "chat" in path
    body = {"model": "openai/gpt-5.5-pro", "messages": ASK, "stream": stream, "max_tokens": 500}
    answer = front.ask(path, body | {"stop" if chat else "stop_sequences": stops})
    assert answer.status == 200, answer.data
    assert seen[-1][1] == "/v1/responses" and "stop" not in seen[-1][2]
    assert said(answer) == (left, "stop" if chat else "end_turn")
