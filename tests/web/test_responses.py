"""The Responses API before vendors of other formats: what they are asked, what the client reads."""

import contextlib
import copy
import json
import random
from collections import Counter

import pytest
from doors import (
    MODELS,
    PICTURE,
    SERVED,
    SIGNATURE,
    Front,
    ResponsesClient,
    Turn,
    Vendor,
    anthropic_event,
    anthropic_start,
    anthropic_whole,
    gemini_body,
    gemini_chunk,
    openai_chunk,
    openai_whole,
    reply,
    request,
    response_items,
    says,
    sse,
    stream,
)
from support import how_many, places

PATH = "/v1/responses"
DIALECTS = ("openai", "anthropic", "gemini")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"+'},
}
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
both_ways = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def vendors():
    with Vendor("openai") as openai, Vendor("anthropic") as anthropic, Vendor("gemini") as gemini:
        yield {"openai": openai, "anthropic": anthropic, "gemini": gemini}


@pytest.fixture(scope="module")
def front(vendors):
    providers = [vendor.provider(api="chat") for vendor in vendors.values()]
    with Front(*providers, vendors["openai"].provider("deepseek", api="chat")) as running:
        yield running


@pytest.fixture
def ask(front, vendors):
    """Ask a vendor for "Yes." by a request; return the answer and what the vendor was asked."""

    def send(dialect="openai", turn=Turn("Yes."), model="", **body):
        vendor = vendors[dialect].script(says(dialect, turn, streamed=False))
        answer = front.ask(PATH, {"model": model or MODELS[dialect], "input": "?"} | body)
        assert answer.status == 200, answer.data
        return answer, vendor.seen[-1].body

    return send


def is_error(answer, status, code, param):
    assert answer.status == status, answer.data
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    return error["message"]


def item(kind, **members):
    return {"type": kind, **members}


def call(ident, name="weather", arguments="{}"):
    return item("function_call", call_id=ident, name=name, arguments=arguments)


def output(ident, words):
    return item("function_call_output", call_id=ident, output=words)


# -- the input -------------------------------------------------------------------------------------

USER = {"role": "user", "content": "?"}
URI = f"data:image/png;base64,{PICTURE}"
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
PATCHED = {
    "id": "c1",
    "type": "function",
    "function": {"name": "apply_patch", "arguments": '{"input":"*** \\"x\\""}'},
}
INPUTS = {
    "a string": ("hi", [{"role": "user", "content": "hi"}]),
    "no type": ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}]),
    "one text": (
        [item("message", role="user", content=[item("input_text", text="hi")])],
        [{"role": "user", "content": "hi"}],
    ),
    "two texts": (
        [item("message", role="user", content=[item("input_text", text="a")] * 2)],
        [{"role": "user", "content": [item("text", text="a")] * 2}],
    ),
    "an image": (
        [{"role": "user", "content": [item("input_image", image_url=URI, detail="low")]}],
        [{"role": "user", "content": [item("image_url", image_url={"url": URI, "detail": "low"})]}],
    ),
    "an image in full": (
        [{"role": "user", "content": [item("input_image", image_url=URI, detail="original")]}],
        [
            {
                "role": "user",
                "content": [item("image_url", image_url={"url": URI, "detail": "high"})],
            }
        ],
    ),
    "files": (
        [
            {
                "role": "user",
                "content": [item("input_file", filename="f", file_data=URI, file_id=None)],
            }
        ],
        [{"role": "user", "content": [item("file", file={"filename": "f", "file_data": URI})]}],
    ),
    "a sound": (
        [
            {
                "role": "user",
                "content": [item("input_audio", input_audio={"data": "x", "format": "wav"})],
            }
        ],
        [
            {
                "role": "user",
                "content": [item("input_audio", input_audio={"data": "x", "format": "wav"})],
            }
        ],
    ),
    "developers": (
        [
            {
                "role": "developer",
                "content": [item("input_text", text="a"), item("input_text", text="b")],
            },
            {"role": "system", "content": "c"},
            USER,
        ],
        [{"role": "system", "content": "a\n\nb\n\nc"}, USER],
    ),
    "an answer": (
        [
            USER,
            item(
                "message",
                role="assistant",
                id="msg_1",
                status="completed",
                phase="final_answer",
                content=[
                    item("output_text", text="a", annotations=[], logprobs=[]),
                    item("output_text", text="b", annotations=[]),
                ],
            ),
            USER,
        ],
        [USER, {"role": "assistant", "content": "ab"}, USER],
    ),
    "a refusal": (
        [USER, {"role": "assistant", "content": [item("refusal", refusal="No")]}, USER],
        [USER, {"role": "assistant", "content": None, "refusal": "No"}, USER],
    ),
    "a call": (
        [USER, call("c1") | {"id": "fc_1", "status": "completed"}, output("c1", "Rain")],
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "c1", "content": "Rain"},
        ],
    ),
    "items of one turn": (
        [
            USER,
            item("reasoning", id="rs_1", summary=[], content=None, encrypted_content="gAAA"),
            {"role": "assistant", "content": "Hm"},
            call("c1"),
            item("reasoning", id="rs_2", summary=[], encrypted_content="gAAA"),
            call("c2"),
            output("c1", "a"),
            output("c2", "b"),
        ],
        [
            USER,
            {"role": "assistant", "content": "Hm", "tool_calls": [CALLED, CALLED | {"id": "c2"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "a"},
            {"role": "tool", "tool_call_id": "c2", "content": "b"},
        ],
    ),
    "a result that comes late": (
        [USER, call("c1"), call("c2"), output("c2", "b"), USER, output("c1", "a")],
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALLED, CALLED | {"id": "c2"}]},
            {"role": "tool", "tool_call_id": "c2", "content": "b"},
            {"role": "tool", "tool_call_id": "c1", "content": "a"},
            USER,
        ],
    ),
    "a result of texts": (
        [
            USER,
            call("c1"),
            output("c1", [item("input_text", text="a"), item("input_text", text="b")]),
        ],
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "c1", "content": "a\nb"},
        ],
    ),
    "an image as a result": (
        [USER, call("c1"), output("c1", [item("input_image", image_url=URI)])],
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": [item("text", text="The result follows.")],
            },
            {"role": "user", "content": [item("image_url", image_url={"url": URI})]},
        ],
    ),
    "a custom call": (
        [
            USER,
            item("custom_tool_call", call_id="c1", name="apply_patch", input='*** "x"'),
            item("custom_tool_call_output", call_id="c1", output="done"),
        ],
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [PATCHED]},
            {"role": "tool", "tool_call_id": "c1", "content": "done"},
        ],
    ),
    "a turn of reasoning alone": (
        [USER, item("reasoning", id="rs_1", summary=[item("summary_text", text="Hm")]), USER],
        [USER, USER],
    ),
    "references to reasoning": ([USER, item("item_reference", id="rs_1"), {"id": "rs_2"}], [USER]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_items_are_messages_of_a_chat(ask, name):
    given, messages = INPUTS[name]
    _, asked = ask(input=given)
    assert asked["messages"] == messages


def test_instructions_are_the_first_message(ask):
    _, asked = ask(
        instructions="Be short.", input=[{"role": "developer", "content": "And kind."}, USER]
    )
    assert asked["messages"] == [{"role": "system", "content": "Be short.\n\nAnd kind."}, USER]


WORDS = item("item_reference", id="msg_1")


def test_words_that_only_a_reference_names_are_left_out_beside_a_call_and_told(ask):
    """The AI SDK refers to what it believes to be stored, but sends its calls."""
    answer, asked = ask(input=[USER, WORDS, call("c1"), output("c1", "Rain")])
    assert [message["role"] for message in asked["messages"]] == ["user", "assistant", "tool"]
    assert answer.headers["X-Infermux-Dropped"] == "input.words"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_management_of_the_context_is_openais_own(ask, dialect):
    answer, asked = ask(dialect, context_management=[{"type": "compaction"}])
    assert "context_management" not in asked
    assert answer.headers["X-Infermux-Dropped"] == "context_management"


@pytest.mark.parametrize(
    "body",
    [
        {"input": [USER, WORDS, USER]},
        {"input": [USER, item("item_reference", id="fc_1"), output("c1", "Rain")]},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
    ],
    ids=["words", "call", "response", "conversation"],
)
@every_dialect
def test_what_is_stored_elsewhere_must_be_sent(front, vendors, dialect, body):
    vendors[dialect].script(reply(b"", 500))
    answer = front.ask(PATH, {"model": MODELS[dialect], "input": "?"} | body)
    param = next((name for name in body if name != "input"), "item_reference")
    assert "send the items" in is_error(answer, 400, "previous_response_not_found", param)
    assert vendors[dialect].seen == []


@every_dialect
def test_what_a_vendors_own_tools_did_is_left_out_and_told(ask, dialect):
    searched = item("web_search_call", id="ws_1", status="completed", action={})
    answer, _ = ask(dialect, input=[USER, searched, {"role": "assistant", "content": "x"}, USER])
    assert answer.headers["X-Infermux-Dropped"] == "input.web_search_call"


@every_dialect
def test_an_effort_that_changes_in_the_conversation_is_that_of_the_answer(ask, front, dialect):
    louder = item("configuration_update", reasoning={"effort": "high"})
    _, sent = ask(dialect, input=[USER, louder, USER], reasoning={"effort": "low"})
    efforts = {"openai": '"high"', "anthropic": "16384", "gemini": "24576"}
    assert efforts[dialect] in json.dumps(sent)
    form = item("configuration_update", text={"format": {"type": "text"}})
    body = {"model": MODELS[dialect], "input": [USER, form, USER]}
    param = "input.configuration_update"
    is_error(front.ask(PATH, body), 400, "unsupported_parameter", param)


BAD = {
    "model": {"model": 1},
    "input": {"input": 1},
    "input ": {"input": []},
    "input[0]": {"input": [1]},
    "input[0].type": {"input": [{"type": 1}]},
    "input[0].role": {"input": [{"role": "tool", "content": "x"}]},
    "input[0].content": {"input": [{"role": "user", "content": None}]},
    "input[0].content[0].type": {"input": [{"role": "user", "content": [item("text", text="x")]}]},
    "input[0].content[0].text": {"input": [{"role": "user", "content": [item("input_text")]}]},
    "input[0].content[0].image_url": {
        "input": [{"role": "user", "content": [item("input_image")]}]
    },
    "input[0].content[0]": {
        "input": [{"role": "user", "content": [item("input_file", filename="x")]}]
    },
    "input[0].content[0].input_audio": {
        "input": [{"role": "user", "content": [item("input_audio")]}]
    },
    "input[1].content[0].type": {
        "input": [USER, {"role": "assistant", "content": [item("input_image")]}]
    },
    "input[1].call_id": {"input": [USER, item("function_call", name="f", arguments="{}")]},
    "input[1].arguments": {
        "input": [USER, item("function_call", name="f", call_id="c", arguments={})]
    },
    "input[1].output": {"input": [USER, output("c1", 5)]},
    "input[1].summary": {"input": [USER, item("reasoning", summary=["x"])]},
    "instructions": {"instructions": ["x"]},
    "stream": {"stream": "yes"},
    "stream_options": {"stream_options": []},
    "tools": {"tools": {}},
    "tools[0].type": {"tools": [{"name": "f"}]},
    "tools[0].name": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "tools[0].parameters": {"tools": [{"type": "function", "name": "f", "parameters": []}]},
    "tool_choice": {"tool_choice": "any"},
    "tool_choice.name": {"tool_choice": {"type": "function"}},
    "tool_choice.mode": {"tool_choice": {"type": "allowed_tools", "mode": "none", "tools": []}},
    "text": {"text": "json"},
    "text.format.type": {"text": {"format": {"type": "xml"}}},
    "text.format.name": {"text": {"format": {"type": "json_schema", "schema": {}}}},
    "text.format.schema": {"text": {"format": {"type": "json_schema", "name": "x"}}},
    "reasoning": {"reasoning": "high"},
    "reasoning.effort": {"reasoning": {"effort": 3}},
    "max_output_tokens": {"max_output_tokens": "9"},
    "temperature": {"temperature": "hot"},
    "metadata": {"metadata": []},
    "store": {"store": 1},
    "parallel_tool_calls": {"parallel_tool_calls": "no"},
}


@pytest.mark.parametrize("param", BAD)
def test_an_invalid_request_is_400_with_the_field(front, vendors, param):
    vendor = vendors["openai"].script(reply(b"", 500))
    answer = front.ask(PATH, {"model": MODELS["openai"], "input": "?"} | BAD[param])
    assert param.strip() in is_error(answer, 400, "invalid_request", param.strip())
    assert vendor.seen == []


@pytest.mark.parametrize(
    ("dialect", "counted"), [("anthropic", {"input_tokens": 21}), ("gemini", {"totalTokens": 21})]
)
def test_tokens_are_counted_by_the_vendor_that_can(front, vendors, dialect, counted):
    body = {"model": MODELS[dialect], "input": "?", "tools": [WEATHER], "max_output_tokens": 9}
    seen = vendors[dialect].script(reply(counted), reply({}, 404)).seen
    answer = front.ask(f"{PATH}/input_tokens", body)
    assert answer.json == {"object": "response.input_tokens", "input_tokens": 21}
    assert "ount" in seen[0].path and "weather" in str(seen[0].body)
    missing = front.ask(f"{PATH}/input_tokens", body).json
    assert missing["infermux"] == {"estimated": True} and 0 < missing["input_tokens"] < 100


# -- parameters ------------------------------------------------------------------------------------

FORMAT = {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}
PARAMS = {
    "max_output_tokens": ({"max_output_tokens": 9}, {"max_tokens": 9}, ""),
    "sampling": ({"temperature": 0.5, "top_p": 0.25}, {"temperature": 0.5, "top_p": 0.25}, ""),
    "reasoning": (
        {"reasoning": {"effort": "low", "summary": "auto"}},
        {"reasoning_effort": "low"},
        "reasoning_summary",
    ),
    "format": (
        {"text": {"format": FORMAT, "verbosity": "low"}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": SCHEMA, "strict": True},
            },
            "verbosity": "low",
        },
        "",
    ),
    "text": ({"text": {"format": {"type": "text"}}}, {}, ""),
    "object": (
        {"text": {"format": {"type": "json_object"}}},
        {"response_format": {"type": "json_object"}},
        "",
    ),
    "housekeeping": (
        {
            "include": ["reasoning.encrypted_content"],
            "client_metadata": {"a": "b"},
            "metadata": {"a": "b"},
            "store": True,
            "truncation": "auto",
            "max_tool_calls": 3,
        },
        {},
        "store, metadata, include, client_metadata, truncation, max_tool_calls",
    ),
    "identity": (
        {"user": "u", "prompt_cache_key": "k", "service_tier": "flex", "safety_identifier": "s"},
        {"user": "u", "prompt_cache_key": "k", "service_tier": "flex", "safety_identifier": "s"},
        "",
    ),
    "what all do anyway": (
        {
            "include": [],
            "background": False,
            "store": False,
            "truncation": "disabled",
            "previous_response_id": None,
            "metadata": {},
            "stream_options": {"include_obfuscation": False},
            "top_logprobs": 0,
        },
        {},
        "",
    ),
}


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_are_those_of_a_chat(ask, name):
    given, params, dropped = PARAMS[name]
    answer, asked = ask(**given)
    assert {key: asked[key] for key in asked.keys() - {"model", "messages"}} == params
    told = answer.headers.get("X-Infermux-Dropped", "")
    assert sorted(told.split(", ")) == sorted(dropped.split(", "))


@pytest.mark.parametrize(
    "given",
    [{"background": True}, {"prompt": {"id": "p"}}, {"top_logprobs": 3}, {"x_new": 1}],
    ids=lambda given: next(iter(given)),
)
@every_dialect
def test_a_meaning_is_never_dropped(front, vendors, dialect, given):
    vendors[dialect].script(reply(b"", 500))
    answer = front.ask(PATH, {"model": MODELS[dialect], "input": "?"} | given)
    param = "logprobs" if "top_logprobs" in given else next(iter(given))
    is_error(answer, 400, "unsupported_parameter", param)


# -- tools -----------------------------------------------------------------------------------------


def functions(dialect, asked):
    """Return the names and schemas of the tools that a vendor was told of."""
    if dialect == "gemini":
        declared = [
            each for tool in asked.get("tools", []) for each in tool["functionDeclarations"]
        ]
        return {each["name"]: each["parametersJsonSchema"] for each in declared}
    if dialect == "anthropic":
        return {each["name"]: each["input_schema"] for each in asked.get("tools", [])}
    tools = [each["function"] for each in asked.get("tools", [])]
    return {each["name"]: each["parameters"] for each in tools}


def inputs(dialect, asked):
    """Return what the tools of the second message were called with."""
    if dialect == "gemini":
        parts = asked["contents"][1]["parts"]
        return [part["functionCall"]["args"] for part in parts if "functionCall" in part]
    turn = asked["messages"][1]
    if dialect == "anthropic":
        return [block["input"] for block in turn["content"] if block["type"] == "tool_use"]
    return [json.loads(each["function"]["arguments"]) for each in turn["tool_calls"]]


HOSTED = [
    {"type": "web_search", "external_web_access": True},
    {"type": "web_search_preview_2025_03_11"},
    {"type": "tool_search", "execution": "client", "parameters": {}},
    {"type": "namespace", "name": "n", "description": "", "tools": [WEATHER]},
]


@every_dialect
def test_a_custom_tool_is_a_function_with_one_string(ask, dialect):
    answer, asked = ask(dialect, tools=[WEATHER, PATCH, *HOSTED])
    found = functions(dialect, asked)
    assert list(found) == ["weather", "apply_patch"] and found["weather"] == SCHEMA
    assert list(found["apply_patch"]["properties"]) == ["input"]
    assert found["apply_patch"]["properties"]["input"]["type"] == "string"
    assert "Edits files" in str(asked["tools"]) and "start: " in str(asked["tools"])
    told = answer.headers["X-Infermux-Dropped"]
    assert told == "tools.web_search, tools.tool_search, tools.namespace"


@every_dialect
def test_only_hosted_tools_that_may_go_leave_a_plain_request(ask, dialect):
    _, asked = ask(dialect, tools=HOSTED, tool_choice="auto", parallel_tool_calls=True)
    assert not asked.keys() & {"tools", "tool_choice", "parallel_tool_calls", "toolConfig"}


@pytest.mark.parametrize(
    "kind", ["file_search", "mcp", "code_interpreter", "image_generation", "local_shell", "x_new"]
)
@every_dialect
def test_another_hosted_tool_is_400_with_its_name(front, vendors, dialect, kind):
    vendors[dialect].script(reply(b"", 500))
    answer = front.ask(
        PATH, {"model": MODELS[dialect], "input": "?", "tools": [WEATHER, {"type": kind}]}
    )
    assert repr(kind) in is_error(answer, 400, "unsupported_parameter", "tools")


CHOICES = {
    "auto": ("auto", "auto", 2),
    "required": ("required", "required", 2),
    "function": (
        {"type": "function", "name": "weather"},
        {"type": "function", "function": {"name": "weather"}},
        2,
    ),
    "custom": (
        {"type": "custom", "name": "apply_patch"},
        {"type": "function", "function": {"name": "apply_patch"}},
        2,
    ),
    "allowed": (
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "custom", "name": "apply_patch"}],
        },
        "required",
        1,
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_of_tools(ask, name):
    given, choice, count = CHOICES[name]
    _, asked = ask(tools=[WEATHER, PATCH], tool_choice=given)
    assert (asked["tool_choice"], len(asked["tools"])) == (choice, count)


@pytest.mark.parametrize(
    "choice",
    [{"type": "web_search"}, {"type": "function", "name": "nobody"}, {"type": "mcp"}],
    ids=["hosted", "unknown", "other"],
)
def test_a_choice_that_cannot_be_made_is_400(front, vendors, choice):
    vendors["openai"].script(reply(b"", 500))
    body = {"model": MODELS["openai"], "input": "?", "tools": [WEATHER, HOSTED[0]]}
    answer = front.ask(PATH, body | {"tool_choice": choice})
    assert answer.status == 400 and answer.json["error"]["param"] == "tool_choice"


@both_ways
@every_dialect
def test_a_call_of_a_custom_tool_comes_back_as_one(front, vendors, dialect, streamed):
    patch = '*** Begin Patch\n+"größer" \\ 東京\n*** End Patch'
    turn = Turn("So:", (("apply_patch", {"input": patch}), ("weather", {"city": "Köln"})))
    vendor = vendors[dialect].script(says(dialect, turn, streamed=streamed))
    body = ResponsesClient.body(MODELS[dialect], [USER], tools=[WEATHER, PATCH], streamed=streamed)
    got = request(ResponsesClient, front, body, streamed=streamed)
    assert [item["type"] for item in got.message["items"]] == [
        "message",
        "custom_tool_call",
        "function_call",
    ]
    assert [given for _, _, given in got.calls] == [{"input": patch}, {"city": "Köln"}]
    results = [
        item("custom_tool_call_output", call_id=got.calls[0][0], output="done"),
        output(got.calls[1][0], "Rain"),
    ]
    body = ResponsesClient.body(
        MODELS[dialect], [USER, got.message, *results], tools=[WEATHER, PATCH], streamed=streamed
    )
    request(ResponsesClient, front, body, streamed=streamed)
    assert inputs(dialect, vendor.seen[-1].body) == [{"input": patch}, {"city": "Köln"}]


@both_ways
@every_dialect
def test_tools_that_an_item_adds_are_tools_and_their_calls_tell_the_namespace(
    front, vendors, dialect, streamed
):
    spaces = [
        {"type": "namespace", "name": "functions", "description": "", "tools": [PATCH]},
        {"type": "namespace", "name": "more", "description": "", "tools": [WEATHER, PATCH]},
    ]
    added = {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": spaces}
    turn = Turn("", (("apply_patch", {"input": "a patch"}), ("weather", {"city": "Köln"})))
    vendor = vendors[dialect].script(says(dialect, turn, streamed=streamed))
    body = ResponsesClient.body(MODELS[dialect], [USER], tools=[], streamed=streamed)
    body = body | {"input": [added, *body["input"]]}
    got = request(ResponsesClient, front, body, streamed=streamed)
    assert list(functions(dialect, vendor.seen[-1].body)) == ["apply_patch", "weather"]
    told = [(each["type"], each["name"], each["namespace"]) for each in got.message["items"]]
    assert told == [
        ("custom_tool_call", "apply_patch", "functions"),
        ("function_call", "weather", "more"),
    ]


NAMELESS = [{"type": "function", "name": ["x"]}]


@pytest.mark.parametrize(
    "tools", [None, 5, ["x"], [{"type": "namespace", "name": "n"}], [{}], NAMELESS]
)
def test_an_item_that_adds_no_tools_is_400(front, tools):
    added = {"type": "additional_tools", "tools": tools}
    answer = front.ask(PATH, {"model": MODELS["openai"], "input": [added]})
    assert answer.status == 400 and "tools" in answer.json["error"]["param"]


def test_a_text_beside_a_member_called_as_added_tools_is_answered(ask):
    answer, _ = ask(metadata={"additional_tools": "x"})
    assert answer.json["output"][0]["content"][0]["text"] == "Yes."


@pytest.mark.parametrize("words", ["*** plain", '{"patch": "x"}', '{"input": 5}', '["x"]'])
def test_an_input_that_is_not_what_was_asked_for_comes_as_it_is(front, vendors, words):
    call = {"id": "c1", "type": "function", "function": {"name": "apply_patch", "arguments": words}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    vendors["openai"].script(reply({"id": "x", "model": "m", "choices": [choice]}))
    answer = front.ask(PATH, {"model": MODELS["openai"], "input": "?", "tools": [PATCH]})
    assert [each.get("input") for each in answer.json["output"]] == [words]


# -- reasoning -------------------------------------------------------------------------------------


def conversation(front, vendor, dialect, turn, *, streamed, keep=lambda items: items):
    """Ask twice, the answer between; return it, and what the vendor was asked at last."""
    vendor.script(says(dialect, turn, streamed=streamed))
    messages = [USER]
    for _ in range(2):
        body = ResponsesClient.body(MODELS[dialect], messages, tools=[WEATHER], streamed=streamed)
        got = request(ResponsesClient, front, body, streamed=streamed)
        messages += [
            {"items": keep(got.message["items"])},
            *(output(ident, "Rain") for ident, _, _ in got.calls),
        ]
    return got.message["items"], vendor.seen[-1].body


@both_ways
@every_dialect
def test_thoughts_are_a_summary_before_the_answer(front, vendors, dialect, streamed):
    items, _ = conversation(
        front, vendors[dialect], dialect, Turn("42", thought="Let me think."), streamed=streamed
    )
    thought, said = items
    assert thought["summary"] == [item("summary_text", text="Let me think.")]
    assert (thought["type"], thought["id"][:3], said["id"][:4]) == ("reasoning", "rs_", "msg_")
    assert said["content"] == [item("output_text", text="42", annotations=[], logprobs=[])]


@pytest.mark.parametrize("keeps", ["all", "what is encrypted"])
@both_ways
def test_signed_thinking_survives_a_conversation_with_claude(front, vendors, streamed, keeps):
    """Codex returns the encrypted content; others return the whole item."""

    def keep(items):
        if keeps == "all":
            return items
        return [each | {"summary": []} if each["type"] == "reasoning" else each for each in items]

    turn = Turn("", (("weather", {"city": "Köln"}),), "Let me think.")
    _, asked = conversation(
        front, vendors["anthropic"], "anthropic", turn, streamed=streamed, keep=keep
    )
    thinking, use = asked["messages"][1]["content"]
    assert thinking == {"type": "thinking", "thinking": "Let me think.", "signature": SIGNATURE}
    assert (use["type"], use["input"]) == ("tool_use", {"city": "Köln"})


REDACTED = {"type": "redacted_thinking", "data": "EncR/+=="}


@both_ways
def test_redacted_thinking_survives_too(front, vendors, streamed):
    blocks = [REDACTED, {"type": "text", "text": "42"}]
    events = [anthropic_start()]
    for index, block in enumerate(blocks):
        events.append(anthropic_event("content_block_start", index=index, content_block=block))
        events.append(anthropic_event("content_block_stop", index=index))
    usage = {"input_tokens": 3, "output_tokens": 2}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    events += [
        anthropic_event("message_delta", delta=end, usage=usage),
        anthropic_event("message_stop"),
    ]
    whole = {
        "type": "message",
        "id": "msg_1",
        "model": "m",
        "content": blocks,
        "usage": usage,
    } | end
    vendor = vendors["anthropic"].script(stream(*events) if streamed else reply(whole))
    body = ResponsesClient.body(MODELS["anthropic"], [USER], streamed=streamed)
    answer = front.ask(PATH, body)
    items = (
        response_items([e.json for e in sse(answer.data)][2:-1])
        if streamed
        else answer.json["output"]
    )
    assert [each["type"] for each in items] == ["reasoning", "message"] and items[0][
        "summary"
    ] == []
    front.ask(PATH, body | {"input": [USER, *items, USER]})
    assert vendor.seen[-1].body["messages"][1]["content"][0] == REDACTED


@both_ways
def test_geminis_signature_on_its_words_comes_back_to_it(front, vendors, streamed):
    parts = [{"text": "Hm", "thought": True}, {"text": "42", "thoughtSignature": SIGNATURE}]
    chunks = [gemini_chunk(parts[:1]), gemini_chunk(parts[1:], "STOP")]
    step = stream(*chunks) if streamed else reply(gemini_body(parts))
    vendor = vendors["gemini"].script(step)
    body = ResponsesClient.body(MODELS["gemini"], [USER], streamed=streamed)
    got = request(ResponsesClient, front, body, streamed=streamed)
    assert [each["type"] for each in got.message["items"]] == ["reasoning", "message", "reasoning"]
    body = ResponsesClient.body(MODELS["gemini"], [USER, got.message, USER], streamed=streamed)
    request(ResponsesClient, front, body, streamed=streamed)
    turn = vendor.seen[-1].body["contents"][1]
    assert turn == {"role": "model", "parts": [{"text": "42", "thoughtSignature": SIGNATURE}]}


def test_a_model_that_wants_its_thoughts_back_gets_them(front, vendors):
    turn = Turn("", (("weather", {"city": "Köln"}),), "Let me think.")
    vendor = vendors["openai"].script(says("openai", turn, streamed=False))
    body = {"model": "deepseek/deepseek-v4", "input": [USER], "tools": [WEATHER]}
    items = front.ask(PATH, body).json["output"]
    front.ask(PATH, body | {"input": [USER, *items, output("call_0", "Rain")]})
    assert vendor.seen[-1].body["messages"][1]["reasoning_content"] == "Let me think."


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_another_vendors_thoughts_are_left_out(ask, front, vendors, dialect):
    other = {"anthropic": "gemini", "gemini": "anthropic"}[dialect]
    answer, _ = ask(other, Turn("42", thought="Hm"))
    openais = item("reasoning", id="rs_1", summary=[], encrypted_content="gAAAAABx")
    damaged = item("reasoning", id="rs_2", summary=[], encrypted_content="infermux1.e30x!")
    _, asked = ask(dialect, input=[USER, openais, damaged, *answer.json["output"], USER])
    assert json.dumps(asked).count("Hm") == 0 and "gAAA" not in json.dumps(asked)


# -- the answer ------------------------------------------------------------------------------------


def test_the_response_object_has_the_requests_settings(ask):
    given = {
        "instructions": "Be short.",
        "max_output_tokens": 99,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low"},
        "temperature": 0.5,
        "text": {"format": FORMAT},
        "tool_choice": "required",
        "tools": [WEATHER, PATCH],
        "top_p": 0.25,
        "truncation": "auto",
        "user": "u",
    }
    body = ask(**given)[0].json
    assert {name: body[name] for name in given.keys() - {"reasoning", "text"}} == {
        name: given[name] for name in given.keys() - {"reasoning", "text"}
    }
    assert body["reasoning"] == {"effort": "low", "summary": None}
    assert body["text"] == {"format": FORMAT, "verbosity": "medium"}
    assert (body["object"], body["status"], body["error"]) == ("response", "completed", None)
    assert body["model"] == SERVED["openai"] and body["store"] is False
    assert body["completed_at"] >= body["created_at"] > 1_700_000_000
    assert body["usage"] == {
        "input_tokens": 31,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 8},
        "output_tokens": 17,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 48,
    }


def ends(dialect, reason, *, streamed):
    """Answer "Once" that ends for a reason of the vendor's own."""
    if dialect == "gemini":
        parts = [{"text": "Once"}]
        return (
            stream(gemini_chunk(parts, reason)) if streamed else reply(gemini_body(parts, reason))
        )
    if dialect == "openai":
        choice = {"index": 0, "message": {"content": "Once"}, "finish_reason": reason}
        whole = {
            "id": "x",
            "model": "m",
            "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        }
        chunks = openai_chunk({"content": "Once"}), openai_chunk({}, reason), b"data: [DONE]\n\n"
        return stream(*chunks) if streamed else reply(whole)
    block = {"type": "text", "text": "Once"}
    end, usage = {"stop_reason": reason}, {"input_tokens": 1, "output_tokens": 1}
    events = [
        anthropic_start(),
        anthropic_event("content_block_start", index=0, content_block=block),
        anthropic_event("content_block_stop", index=0),
        anthropic_event("message_delta", delta=end, usage=usage),
        anthropic_event("message_stop"),
    ]
    whole = {
        "type": "message",
        "id": "msg_1",
        "model": "m",
        "content": [block],
        "usage": usage,
    } | end
    return stream(*events) if streamed else reply(whole)


@both_ways
@pytest.mark.parametrize(
    ("dialect", "reason", "why"),
    [
        ("openai", "length", "max_output_tokens"),
        ("anthropic", "max_tokens", "max_output_tokens"),
        ("gemini", "MAX_TOKENS", "max_output_tokens"),
        ("openai", "content_filter", "content_filter"),
        ("anthropic", "refusal", "content_filter"),
        ("gemini", "SAFETY", "content_filter"),
    ],
)
def test_an_answer_that_was_cut_is_incomplete(front, vendors, dialect, reason, why, streamed):
    vendors[dialect].script(ends(dialect, reason, streamed=streamed))
    body = ResponsesClient.body(MODELS[dialect], [USER], streamed=streamed)
    got = request(ResponsesClient, front, body, streamed=streamed)
    assert (got.text, got.finish) == ("Once", "incomplete")
    answer = front.ask(PATH, body)
    last = sse(answer.data)[-1].json["response"] if streamed else answer.json
    assert last["incomplete_details"] == {"reason": why} and last["completed_at"] is None
    assert last["output"][-1]["status"] == "incomplete"


@both_ways
def test_a_refusal_is_a_part(front, vendors, streamed):
    message = {"role": "assistant", "content": None, "refusal": "I will not."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    chunks = [openai_chunk({"refusal": piece}) for piece in ("I will", " not.")]
    chunks += [openai_chunk({}, "stop"), b"data: [DONE]\n\n"]
    whole = reply({"id": "x", "model": "m", "choices": [choice]})
    vendors["openai"].script(stream(*chunks) if streamed else whole)
    body = ResponsesClient.body(MODELS["openai"], [USER], streamed=streamed)
    got = request(ResponsesClient, front, body, streamed=streamed)
    assert got.message["items"][0]["content"] == [{"type": "refusal", "refusal": "I will not."}]


def normal(items):
    """Return items without their ids, arguments parsed."""
    for each in items:
        each = {name: value for name, value in each.items() if name not in ("id", "call_id")}
        if "arguments" in each:
            each["arguments"] = json.loads(each["arguments"])
        yield each


@pytest.mark.parametrize(
    "turn",
    [
        Turn("Größe 🌦"),
        Turn("", (("weather", {"city": "Köln"}),)),
        Turn("So:", (("weather", {}), ("apply_patch", {"input": "x"})), "Hm"),
        Turn("", (), "Only a thought"),
        Turn(""),
    ],
    ids=["text", "call", "all", "thought", "nothing"],
)
@every_dialect
def test_a_stream_has_the_items_of_the_whole_answer(front, vendors, dialect, turn):
    found = []
    for streamed in (False, True):
        vendors[dialect].script(says(dialect, turn, streamed=streamed))
        body = ResponsesClient.body(
            MODELS[dialect], [USER], tools=[WEATHER, PATCH], streamed=streamed
        )
        got = request(ResponsesClient, front, body, streamed=streamed)
        found.append((got.text, got.usage, got.model, list(normal(got.message["items"]))))
    assert found[0] == found[1]


def test_calls_that_a_vendor_mixes_are_told_one_after_another(front, vendors):
    def delta(index, more, **head):
        return {"index": index, "function": {"arguments": more, **head}}

    chunks = [
        openai_chunk(
            {"tool_calls": [{"id": "a", "type": "function", **delta(0, '{"ci', name="weather")}]}
        ),
        openai_chunk(
            {"tool_calls": [{"id": "b", "type": "function", **delta(1, '{"city"', name="weather")}]}
        ),
        openai_chunk({"tool_calls": [delta(0, 'ty": "Köln"}'), delta(1, ': "Bonn"}')]}),
        openai_chunk({}, "tool_calls"),
        b"data: [DONE]\n\n",
    ]
    vendors["openai"].script(stream(*chunks))
    body = ResponsesClient.body(MODELS["openai"], [USER], tools=[WEATHER], streamed=True)
    got = request(ResponsesClient, front, body, streamed=True)
    assert got.calls == [("a", "weather", {"city": "Köln"}), ("b", "weather", {"city": "Bonn"})]


@both_ways
def test_a_call_without_arguments_has_an_empty_object(front, vendors, streamed):
    made = {"id": "a", "type": "function", "function": {"name": "weather"}}
    events = [openai_chunk({"tool_calls": [{"index": 0, **made}]}), openai_chunk({}, "tool_calls")]
    body = json.loads(openai_whole(Turn("")))
    body["choices"][0]["message"] |= {"content": None, "tool_calls": [made]}
    vendors["openai"].script(stream(*events, b"data: [DONE]\n\n") if streamed else reply(body))
    asked = ResponsesClient.body(MODELS["openai"], [USER], tools=[WEATHER], streamed=streamed)
    got = request(ResponsesClient, front, asked, streamed=streamed)
    assert got.message["items"][0]["arguments"] == "{}"


@pytest.mark.parametrize(
    ("own", "told"), [("standard", "default"), ("priority", "priority"), ("batch", "default")]
)
def test_the_tier_has_a_name_that_openais_clients_know(front, vendors, own, told):
    body = json.loads(anthropic_whole(Turn("Hi")))
    body["usage"]["service_tier"] = own
    vendors["anthropic"].script(reply(body))
    answer = front.ask(PATH, {"model": MODELS["anthropic"], "input": "?"})
    assert answer.json["service_tier"] == told


@every_dialect
def test_the_last_event_tells_of_the_call(front, vendors, dialect):
    vendors[dialect].script(says(dialect, Turn("Once"), streamed=True))
    body = ResponsesClient.body(MODELS[dialect], [USER], streamed=True)
    last = sse(front.ask(PATH, body).data)[-1].json
    assert last["infermux"]["attempts"] == 1 and last["infermux"]["provider"] == dialect


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limit_exceeded"), (500, "server_error")])
def test_a_stream_that_fails_says_why_in_a_code_of_the_format(front, vendors, status, code):
    error = {"error": {"message": "secret words", "code": status}}
    failed = b"data: " + json.dumps(error).encode() + b"\n\n"
    vendors["openai"].script(stream(openai_chunk({"content": "first"}), failed))
    body = ResponsesClient.body(MODELS["openai"], [USER], streamed=True)
    told, last = (event.json for event in sse(front.ask(PATH, body).data)[-2:])
    assert (told["type"], last["type"]) == ("error", "response.failed")
    assert last["response"]["error"]["code"] == code
    assert last["sequence_number"] == told["sequence_number"] + 1
    assert last["response"]["output"] == [] and last["response"]["status"] == "failed"


# -- whatever comes --------------------------------------------------------------------------------

WHOLE = {
    "instructions": "Be short.",
    "input": [
        {"role": "developer", "content": [item("input_text", text="a")]},
        {
            "role": "user",
            "content": [
                item("input_text", text="b"),
                item("input_image", image_url=URI, detail="auto"),
                item("input_file", filename="f", file_data=URI),
            ],
        },
        item("reasoning", id="rs_1", summary=[item("summary_text", text="Hm")], content=[]),
        {"role": "assistant", "content": [item("output_text", text="c", annotations=[])]},
        call("c1"),
        item("custom_tool_call", call_id="c2", name="apply_patch", input="x"),
        output("c1", [item("input_text", text="d")]),
        item("custom_tool_call_output", call_id="c2", output="e"),
        item("item_reference", id="rs_2"),
        item("web_search_call", id="ws_1"),
    ],
    "tools": [WEATHER, PATCH, *HOSTED],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "weather"}],
    },
    "text": {"format": FORMAT, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
    "max_output_tokens": 9,
}
JUNK = (
    None,
    True,
    0,
    -1,
    2.5,
    "",
    "x",
    "infermux1.",
    [],
    [None],
    [[]],
    {},
    {"type": "x"},
    {"": {}},
)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_request_is_a_500(front, vendors, dialect):
    """Values of the wrong type at random places are refused, or do no harm."""
    rng = random.Random(dialect)
    vendors[dialect].script(says(dialect, Turn("Yes."), streamed=False))
    client, found = front.app.test_client(), [*places(WHOLE)][1:]
    statuses = Counter()
    for _ in range(how_many(80, 400, 4000)):
        body = json.loads(json.dumps(WHOLE))
        for path in rng.sample(found, rng.choice((1, 1, 2))):
            with contextlib.suppress(KeyError, IndexError, TypeError):  # another junk is there
                holder = body
                for key in path[:-1]:
                    holder = holder[key]
                holder[path[-1]] = copy.deepcopy(rng.choice(JUNK))
        front.forget()
        asked = json.dumps(body | {"model": MODELS[dialect]})
        answer = client.post(PATH, data=asked)
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 400), (answer.data, body)
        assert answer.status_code == 200 or len(answer.data) < 4096
    assert min(statuses[200], statuses[400]) > 5
