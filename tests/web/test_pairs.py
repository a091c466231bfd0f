"""Every API with every vendor dialect: the upstream request and the client's response."""

import contextlib
import json

import pytest
from doors import (
    BASES,
    CLIENTS,
    EVENTS,
    KEYS,
    MODELS,
    OPENAI_USAGE,
    PICTURE,
    SERVED,
    SIGNATURE,
    WHOLE,
    AnthropicClient,
    Front,
    MistClient,
    OpenAIClient,
    Turn,
    Vendor,
    openai_chunk,
    reply,
    request,
    says,
    sse,
    stream,
)

from infermux import EchoProvider

DIALECTS = ("openai", "anthropic", "gemini")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
QUESTION = "Wie ist das Wetter in Köln und in 東京? 🌦"
CALLS = Turn(
    "Ich sehe nach.", (("weather", {"city": "Köln"}), ("weather", {"city": "東京", "days": 2}))
)
RESULTS = ("Regen, 9 °C", '{"sky": "clear"}')
ANSWER = Turn("In Köln Regen, in 東京 klar. 🌞")
PATHS = {
    ("openai", False): "/chat/completions",
    ("anthropic", False): "/messages",
    ("gemini", False): "/models/gemini-asked:generateContent",
    ("openai", True): "/chat/completions",
    ("anthropic", True): "/messages",
    ("gemini", True): "/models/gemini-asked:streamGenerateContent?alt=sse",
}


@pytest.fixture(scope="module")
def vendors():
    with contextlib.ExitStack() as stack:
        yield {dialect: stack.enter_context(Vendor(dialect)) for dialect in DIALECTS}


@pytest.fixture(scope="module")
def front(vendors):
    with Front(*(vendor.provider(api="chat") for vendor in vendors.values())) as running:
        yield running


both_ways = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])


# -- what a api's client sends ---------------------------------------------------------------------


def tools(api):
    if api == "anthropic":
        return [{"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}]
    function = {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": SCHEMA,
    }
    return [{"type": "function"} | (function if api == "responses" else {"function": function})]


def results(api, calls):
    """Return the messages that answer *calls*, as this client says them."""
    said = [(ident, text) for (ident, _, _), text in zip(calls, RESULTS, strict=True)]
    if api == "anthropic":
        return [
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": ident, "content": text}
                    for ident, text in said
                ],
            }
        ]
    if api == "responses":
        kind = "function_call_output"
        return [{"type": kind, "call_id": ident, "output": text} for ident, text in said]
    return [{"role": "tool", "tool_call_id": ident, "content": text} for ident, text in said]


def picture(api):
    if api == "anthropic":
        return [
            {"type": "text", "text": "What is this?"},
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": PICTURE},
            },
        ]
    if api == "responses":
        return [
            {"type": "input_text", "text": "What is this?"},
            {
                "type": "input_image",
                "detail": "auto",
                "image_url": f"data:image/png;base64,{PICTURE}",
            },
        ]
    return [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
    ]


# -- what a vendor is asked, read by its own rules -------------------------------------------------


def check_openai(body):
    """Return (system, [(role, texts, images, calls, results)], tools) of a request; fail where the
    vendor would refuse it.
    """
    assert set(body) <= {
        "model",
        "messages",
        "tools",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
    }, set(body)
    system, turns, waiting = "", [], set()
    for message in body["messages"]:
        role, content = message["role"], message.get("content")
        assert not waiting or role == "tool", "a call is not answered"
        if role == "system":
            system += openai_text(content)
        elif role == "tool":
            waiting.remove(message["tool_call_id"])
            turns.append(("result", message["tool_call_id"], openai_text(content)))
        else:
            calls = message.get("tool_calls", [])
            waiting = {call["id"] for call in calls}
            assert role in ("user", "assistant") and set(message) <= {
                "role",
                "content",
                "tool_calls",
                "refusal",
            }, message
            images = (
                [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
                if isinstance(content, list)
                else []
            )
            turns.append((role, openai_text(content), images))
            turns += [
                (
                    "call",
                    call["id"],
                    call["function"]["name"],
                    json.loads(call["function"]["arguments"]),
                )
                for call in calls
            ]
    return (
        system,
        turns,
        [
            (
                tool["function"]["name"],
                tool["function"]["description"],
                tool["function"]["parameters"],
            )
            for tool in body.get("tools", [])
            if tool["type"] == "function"
        ],
    )


def openai_text(content):
    return (
        content or ""
        if not isinstance(content, list)
        else "".join(part["text"] for part in content if part["type"] == "text")
    )


def check_anthropic(body):
    assert set(body) <= {"model", "messages", "tools", "stream", "system", "max_tokens"}, set(body)
    assert type(body["max_tokens"]) is int and body["max_tokens"] > 0
    system, turns, waiting = body.get("system", ""), [], []
    system = system if isinstance(system, str) else "".join(block["text"] for block in system)
    for turn in body["messages"]:
        assert (
            set(turn) == {"role", "content"}
            and turn["role"] in ("user", "assistant")
            and turn["content"]
        )
        blocks = (
            [{"type": "text", "text": turn["content"]}]
            if isinstance(turn["content"], str)
            else turn["content"]
        )
        answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        assert answered == waiting, "calls and results must match, in the very next turn"
        waiting = [block["id"] for block in blocks if block["type"] == "tool_use"]
        texts = [block["text"] for block in blocks if block["type"] == "text"]
        assert all(texts), "an empty text block"
        images = [
            f"data:{block['source']['media_type']};base64,{block['source']['data']}"
            for block in blocks
            if block["type"] == "image"
        ]
        if texts or images:
            turns.append((turn["role"], "".join(texts), images))
        turns += [
            ("call", block["id"], block["name"], block["input"])
            for block in blocks
            if block["type"] == "tool_use"
        ]
        turns += [
            ("result", block["tool_use_id"], openai_text(block["content"]))
            for block in blocks
            if block["type"] == "tool_result"
        ]
    return (
        system,
        turns,
        [
            (tool["name"], tool["description"], tool["input_schema"])
            for tool in body.get("tools", [])
        ],
    )


def check_gemini(body):
    assert set(body) <= {"contents", "tools", "systemInstruction", "generationConfig"}, set(body)
    system = "".join(part["text"] for part in body.get("systemInstruction", {"parts": []})["parts"])
    turns, waiting, number = [], [], 0
    for content in body["contents"]:
        assert (
            set(content) == {"role", "parts"}
            and content["role"] in ("user", "model")
            and content["parts"]
        )
        role = "assistant" if content["role"] == "model" else "user"
        names = [
            part["functionResponse"]["name"]
            for part in content["parts"]
            if "functionResponse" in part
        ]
        assert names == waiting, "each call is answered in the very next content"
        waiting = [
            part["functionCall"]["name"] for part in content["parts"] if "functionCall" in part
        ]
        text = "".join(part["text"] for part in content["parts"] if "text" in part)
        images = [
            f"data:{part['inlineData']['mimeType']};base64,{part['inlineData']['data']}"
            for part in content["parts"]
            if "inlineData" in part
        ]
        if text or images:
            turns.append((role, text, images))
        for part in content["parts"]:
            number += 1
            if "functionCall" in part:
                turns.append(
                    ("call", "", part["functionCall"]["name"], part["functionCall"]["args"])
                )
            if "functionResponse" in part:
                turns.append(("result", "", part["functionResponse"]["response"]))
    declared = [each for tool in body.get("tools", []) for each in tool["functionDeclarations"]]
    return (
        system,
        turns,
        [(each["name"], each["description"], each["parametersJsonSchema"]) for each in declared],
    )


CHECKS = {"openai": check_openai, "anthropic": check_anthropic, "gemini": check_gemini}


def asked(vendor, dialect, streamed):
    """Return what the vendor's last request says; fail unless it came to the right address, with
    the key in its place.
    """
    seen = vendor.seen[-1]
    assert seen.path == BASES[dialect] + PATHS[dialect, streamed]
    name, value = KEYS[dialect]
    assert seen.headers[name] == value
    assert ("anthropic-version" in seen.headers) == (dialect == "anthropic")
    assert seen.body.get("model", MODELS[dialect]) == MODELS[dialect]
    assert seen.body.get("stream", False) == (streamed and dialect != "gemini")
    if dialect == "openai" and streamed:
        assert seen.body["stream_options"] == {"include_usage": True}
    return CHECKS[dialect](seen.body)


def usage(api):
    return (31, 17) if api == "mist" else (31, 8, 17, 5)


# -- the conversations -----------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("api", CLIENTS)
def test_a_conversation_with_tools(front, vendors, api, dialect, streamed):
    client, vendor = (
        CLIENTS[api],
        vendors[dialect].script(
            *(says(dialect, turn, streamed=streamed) for turn in (CALLS, ANSWER))
        ),
    )
    messages = [
        {"role": "system", "content": "Antworte kurz."},
        {"role": "user", "content": QUESTION},
    ]

    def say():
        body = client.body(MODELS[dialect], messages, tools=tools(api), streamed=streamed)
        return request(client, front, body, streamed=streamed)

    first = say()
    assert (first.text, first.finish, first.model) == (
        CALLS.text,
        client.finishes["tool_calls"],
        SERVED[dialect],
    )
    assert tuple((name, given) for _, name, given in first.calls) == CALLS.calls
    assert len({ident for ident, _, _ in first.calls}) == 2, "ids tell parallel calls apart"
    assert first.usage == usage(api)
    assert asked(vendor, dialect, streamed) == (
        "Antworte kurz.",
        [("user", QUESTION, [])],
        [("weather", "The weather of a city", SCHEMA)],
    )

    messages += [first.message, *results(api, first.calls)]
    second = say()
    assert (second.text, second.calls, second.finish) == (ANSWER.text, [], client.finishes["stop"])
    idents = ["", ""] if dialect == "gemini" else [ident for ident, _, _ in first.calls]
    said = [{"result": RESULTS[0]}, json.loads(RESULTS[1])] if dialect == "gemini" else RESULTS
    assert asked(vendor, dialect, streamed)[1] == [
        ("user", QUESTION, []),
        ("assistant", CALLS.text, []),
        *(
            ("call", ident, name, given)
            for ident, (name, given) in zip(idents, CALLS.calls, strict=True)
        ),
        *(("result", ident, text) for ident, text in zip(idents, said, strict=True)),
    ]


@both_ways
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("api", CLIENTS)
def test_an_image(front, vendors, api, dialect, streamed):
    client, vendor = CLIENTS[api], vendors[dialect].script(says(dialect, ANSWER, streamed=streamed))
    body = client.body(
        MODELS[dialect], [{"role": "user", "content": picture(api)}], streamed=streamed
    )
    assert request(client, front, body, streamed=streamed).text == ANSWER.text
    assert asked(vendor, dialect, streamed) == (
        "",
        [("user", "What is this?", [f"data:image/png;base64,{PICTURE}"])],
        [],
    )


@both_ways
@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_openai_client_reads_reasoning_of_every_vendor(front, vendors, dialect, streamed):
    vendors[dialect].script(says(dialect, Turn("42", thought="Let me think."), streamed=streamed))
    body = OpenAIClient.body(MODELS[dialect], [{"role": "user", "content": "?"}], streamed=streamed)
    got = request(OpenAIClient, front, body, streamed=streamed)
    assert (got.text, got.message["reasoning_content"]) == ("42", "Let me think.")


@both_ways
@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_anthropic_client_reads_thinking_of_every_vendor(front, vendors, dialect, streamed):
    vendors[dialect].script(says(dialect, Turn("42", thought="Let me think."), streamed=streamed))
    body = AnthropicClient.body(
        MODELS[dialect], [{"role": "user", "content": "?"}], streamed=streamed
    )
    thought, text = request(AnthropicClient, front, body, streamed=streamed).message["content"]
    assert (thought["type"], thought["thinking"], text["text"]) == (
        "thinking",
        "Let me think.",
        "42",
    )


@both_ways
def test_signed_thinking_survives_an_openai_clients_conversation_with_claude(
    front, vendors, streamed
):
    turn = Turn("", (("weather", {"city": "Köln"}),), "Let me think.")
    vendor = vendors["anthropic"].script(says("anthropic", turn, streamed=streamed))
    messages = [{"role": "user", "content": "?"}]
    for _ in range(2):
        body = OpenAIClient.body(
            MODELS["anthropic"], messages, tools=tools("openai"), streamed=streamed
        )
        got = request(OpenAIClient, front, body, streamed=streamed)
        messages += [
            got.message,
            {"role": "tool", "tool_call_id": got.calls[0][0], "content": "Regen"},
        ]
    thinking, use = vendor.seen[-1].body["messages"][1]["content"]
    assert thinking == {"type": "thinking", "thinking": "Let me think.", "signature": SIGNATURE}
    assert (use["type"], use["input"]) == ("tool_use", {"city": "Köln"})


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (
            "/v1/messages",
            {
                "max_tokens": 9,
                "messages": [{"role": "user", "content": "?"}],
                "stop_sequences": [],
                "tools": [],
                "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            },
        ),
        (
            f"/v1beta/models/{MODELS['openai']}:generateContent",
            {
                "contents": [{"role": "user", "parts": [{"text": "?"}]}],
                "generationConfig": {"maxOutputTokens": 9, "stopSequences": []},
                "tools": [{"functionDeclarations": []}],
                "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}},
            },
        ),
    ],
)
def test_empty_lists_and_what_is_about_them_are_not_sent(front, vendors, path, asked):
    vendor = vendors["openai"].script(says("openai", ANSWER, streamed=False))
    assert front.ask(path, {"model": MODELS["openai"]} | asked).status == 200
    assert vendor.seen[-1].body.keys() == {"model", "messages", "max_tokens"}


@both_ways
@pytest.mark.parametrize(
    ("client", "dialect", "name", "stops", "taken"),
    [
        (OpenAIClient, "anthropic", "stop", ["\n", "END"], ["END"]),
        (OpenAIClient, "gemini", "stop", [*"12345", "\n"], [*"12345"]),
        (AnthropicClient, "openai", "stop_sequences", [*"1234", "\n"], [*"1234"]),
    ],
)
def test_stops_that_the_vendor_does_not_take_end_the_answer_too(
    front, vendors, client, dialect, name, stops, taken, streamed
):
    said = Turn("A line,\nand another.")
    vendor = vendors[dialect].script(says(dialect, said, streamed=streamed))
    asked = [{"role": "user", "content": "?"}]
    body = client.body(MODELS[dialect], asked, streamed=streamed) | {name: stops}
    assert request(client, front, body, streamed=streamed).text == "A line,"
    sent = vendor.seen[-1].body
    known = sent.get("stop") or sent.get("stop_sequences") or sent["generationConfig"]
    assert (known["stopSequences"] if dialect == "gemini" else known) == taken


@both_ways
@pytest.mark.parametrize(
    "client", [OpenAIClient, AnthropicClient, MistClient], ids=lambda client: client.name
)
def test_geminis_signature_on_a_call_comes_back_to_it(front, vendors, client, streamed):
    turn = Turn("", (("weather", {"city": "Köln"}),))
    vendor = vendors["gemini"].script(says("gemini", turn, streamed=streamed))
    messages = [{"role": "user", "content": "?"}]
    for _ in range(2):
        body = client.body(MODELS["gemini"], messages, tools=tools(client.name), streamed=streamed)
        got = request(client, front, body, streamed=streamed)
        messages += [got.message, *results(client.name, got.calls * 2)[:1]]
        if client is AnthropicClient:
            messages[-1]["content"] = messages[-1]["content"][:1]
    (call,) = vendor.seen[-1].body["contents"][1]["parts"]
    assert call == {
        "functionCall": {"name": "weather", "args": {"city": "Köln"}},
        "thoughtSignature": SIGNATURE,
    }


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_what_all_wires_can_say_is_translated(front, vendors, dialect):
    """Parameters of an OpenAI client in the vendor's own words."""
    vendor = vendors[dialect].script(says(dialect, ANSWER, streamed=False))
    body = OpenAIClient.body(
        MODELS[dialect],
        [{"role": "user", "content": "?"}],
        tools=tools("openai"),
        max_tokens=5,
        temperature=0.5,
        top_p=0.25,
        stop=["END"],
        tool_choice="required",
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
    )
    request(OpenAIClient, front, body, streamed=False)
    said = vendor.seen[-1].body
    if dialect == "anthropic":
        assert {
            name: said[name] for name in ("max_tokens", "temperature", "top_p", "stop_sequences")
        } == {
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.25,
            "stop_sequences": ["END"],
        }
        assert said["tool_choice"] == {"type": "any"} and said["output_config"] == {
            "format": {"type": "json_schema", "schema": SCHEMA | {"additionalProperties": False}}
        }
    else:
        assert said["generationConfig"] == {
            "maxOutputTokens": 5,
            "temperature": 0.5,
            "topP": 0.25,
            "stopSequences": ["END"],
            "responseMimeType": "application/json",
            "responseJsonSchema": SCHEMA,
        }
        assert said["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}


def test_max_tokens_of_claude_comes_from_the_price_table(front, vendors):
    """The dated default is the model's max_output; what the table does not know gets a small
    number.
    """
    vendor = vendors["anthropic"].script(says("anthropic", ANSWER, streamed=False))
    for model in ("claude-haiku-4-5", "claude-unheard-of"):
        request(
            OpenAIClient,
            front,
            OpenAIClient.body(f"anthropic/{model}", [{"role": "user", "content": "?"}]),
            streamed=False,
        )
    assert [seen.body["max_tokens"] for seen in vendor.seen] == [64000, 4096]


def test_a_limit_that_messages_must_name_is_at_most_the_models(front, vendors):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 64_000}
    for path, model, sent in (
        ("/v1/messages", "gpt-4o", 16_384),
        ("/v1/messages", "gpt-4.1", 32_768),
        ("/v1/messages", "gpt-unknown", 64_000),
        ("/v1/chat/completions", "gpt-4o", 64_000),
    ):
        vendors["openai"].script(says("openai", Turn("Hi"), streamed=False))
        assert front.ask(path, body | {"model": f"openai/{model}"}).status == 200
        assert vendors["openai"].seen[-1].body["max_tokens"] == sent


def test_the_mist_envelope_reaches_every_vendor(front, vendors):
    for number, dialect in enumerate(DIALECTS):
        vendor = vendors[dialect].script(says(dialect, CALLS, streamed=False))
        payload = MistClient.body(
            MODELS[dialect], [{"role": "user", "content": "?"}], tools=tools("mist")
        )
        answer = front.ask(
            "/mist",
            {
                "version": "1",
                "id": f"m{number}",
                "source": "test",
                "type": "infer.request",
                "timestamp_ns": 1,
                "payload": payload,
            },
        )
        assert answer.status == 200 and answer.json["type"] == "infer.response"
        got = MistClient.read(json.dumps(answer.json["payload"]).encode())
        assert [given for _, _, given in got.calls] == [given for _, given in CALLS.calls]
        assert asked(vendor, dialect, False)[1] == [("user", "?", [])]


# -- how answers end -------------------------------------------------------------------------------

PLACES = {  # of the reason in a vendor's answer, and its usual one
    "openai": ("finish_reason", "stop"),
    "anthropic": ("stop_reason", "end_turn"),
    "gemini": ("finishReason", "STOP"),
}
ENDINGS = [  # a vendor's reason, and what it is for clients of other formats; "": a failure
    ("openai", "eos_token", "stop"),
    ("openai", "normal", "stop"),
    ("openai", "model_length", "length"),
    ("openai", "content_filter: RECITATION", "content_filter"),
    ("openai", "error", ""),
    ("openai", "insufficient_system_resource", ""),
    ("openai", "function_call_filter: MALFORMED_FUNCTION_CALL", ""),
    ("anthropic", "pause_turn", "length"),
    ("anthropic", "refusal", "content_filter"),
    ("anthropic", "a new one", "stop"),
    ("gemini", "MAX_TOKENS", "length"),
    *(
        ("gemini", each, "content_filter")
        for each in ("SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "LANGUAGE")
    ),
    *(
        ("gemini", each, "")
        for each in (
            *("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"),
            *("MISSING_THOUGHT_SIGNATURE", "MALFORMED_RESPONSE", "OTHER", "NO_IMAGE"),
        )
    ),
]
FINISHES = {  # a client's words
    "openai": {},
    "anthropic": {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"},
    "responses": {"stop": "completed", "length": "max_output_tokens"},
    "gemini": {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"},
}
every_door = pytest.mark.parametrize("door", FINISHES)


def ending(dialect, reason, streamed, turn=Turn("Hi.")):
    """Answer with a turn that ends for *reason*."""
    name, usual = PLACES[dialect]
    said = EVENTS[dialect](turn) if streamed else [WHOLE[dialect](turn)]
    was, now = (f'"{name}": "{each}"'.encode() for each in (usual, reason))
    parts = [part.replace(was, now) for part in said]
    assert parts != said
    return stream(*parts) if streamed else reply(parts[0])


def ask(front, door, dialect, streamed):
    model, said = MODELS[dialect], [{"role": "user", "content": "Hello"}]
    if door == "gemini":
        verb = "streamGenerateContent?alt=sse" if streamed else "generateContent"
        body = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
        return front.ask(f"/v1beta/models/{model}:{verb}", body)
    client, headers = CLIENTS[door], {"anthropic_version": "1"} if door == "anthropic" else {}
    return front.ask(client.path, client.body(model, said, streamed=streamed), **headers)


def ends(door, answer, streamed):
    """Return why an answer has ended for its client; "" if that is told of a failure."""
    found = [each.json for each in sse(answer.data) if each.data != "[DONE]"] if streamed else []
    bodies = [each for each in found if each] or [answer.json]
    if answer.status != 200 or bodies[-1].get("error") or bodies[-1].get("type") == "error":
        assert answer.status in (200, 502) and bodies[-1].get("status") != "completed"
        return ""
    last = bodies[-1]
    if door == "openai":
        choices = [each for body in bodies for each in body["choices"]]
        return next(each["finish_reason"] for each in reversed(choices) if each["finish_reason"])
    if door == "anthropic":
        return next(
            each
            for body in reversed(bodies)
            if (each := body.get("delta", body).get("stop_reason"))
        )
    if door == "gemini":
        return last["candidates"][0]["finishReason"]
    last = last.get("response", last)
    if last["status"] == "failed":
        return ""
    return last["incomplete_details"]["reason"] if last["incomplete_details"] else last["status"]


@both_ways
@every_door
@pytest.mark.parametrize(("dialect", "reason", "means"), ENDINGS)
def test_an_answer_ends_in_the_clients_words_or_has_failed(
    front, vendors, dialect, reason, means, door, streamed
):
    vendors[dialect].script(ending(dialect, reason, streamed))
    front.spans.clear()
    answer = ask(front, door, dialect, streamed)
    own = door == dialect
    assert ends(door, answer, streamed) == (reason if own else FINISHES[door].get(means, means))
    [span] = front.spans
    assert span.status == ("error" if not (means or own) else "ok")
    assert (span.attrs["tokens_in"], span.attrs["tokens_out"]) == (31, 17), "all of it is billed"


@both_ways
@every_door
def test_calls_arrive_although_the_vendor_did_not_expect_them(front, vendors, door, streamed):
    vendors["gemini"].script(ending("gemini", "UNEXPECTED_TOOL_CALL", streamed, CALLS))
    answer = ask(front, door, "gemini", streamed)
    told = {"anthropic": "tool_use", "responses": "completed", "gemini": "UNEXPECTED_TOOL_CALL"}
    assert ends(door, answer, streamed) == told.get(door, "tool_calls")
    assert all(name.encode() in answer.data for name, _ in CALLS.calls)


@both_ways
def test_another_attempt_answers_where_one_ended_badly(vendors, streamed):
    """Its tokens are billed as well."""
    calls = []
    vendor, spare = vendors["gemini"], EchoProvider(models=[MODELS["gemini"]])
    bad = ending("gemini", "MALFORMED_FUNCTION_CALL", streamed, Turn())
    for others, script in (
        ([spare], [bad]),
        ([], [bad, says("gemini", ANSWER, streamed=streamed)]),
    ):
        vendor.script(*script)
        with Front(vendor.provider(), *others, attempts=2) as front:
            front.router.observers = [*front.router.observers, calls.append]
            answer = ask(front, "anthropic", "gemini", streamed)
            assert ends("anthropic", answer, streamed) == "end_turn"
            assert answer.headers["X-Infermux-Attempts"] == "2"
            first, second = calls[-1].attempts
            assert (first.usage.input_tokens, first.usage.output_tokens) == (31, 17)
            assert first.error.code == "upstream_error" and second.error is None


@both_ways
@every_door
def test_a_refusal_is_told_in_the_clients_way(front, vendors, door, streamed):
    said = {"content": "Well. ", "refusal": "I will not."}
    message = {"role": "assistant"} | said
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = reply({"id": "c", "model": "m", "choices": [choice]})
    parts = (openai_chunk(said), openai_chunk({}, "stop"), b"data: [DONE]\n\n")
    vendors["openai"].script(stream(*parts) if streamed else whole)
    answer = ask(front, door, "openai", streamed)
    told = {"anthropic": "refusal", "gemini": "SAFETY", "responses": "completed"}
    assert ends(door, answer, streamed) == told.get(door, "stop")
    assert b"Well. " in answer.data and b"I will not." in answer.data


@both_ways
def test_google_clients_do_not_run_a_call_that_was_cut(front, vendors, streamed):
    call = {"name": "weather", "arguments": '{"city": "Kö'}
    tool = {"index": 0, "id": "call_1", "type": "function", "function": call}
    for reason, number in (("length", 0), ("tool_calls", 1)):
        message = {"role": "assistant", "content": "Hm.", "tool_calls": [tool]}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        parts = (openai_chunk({"content": "Hm.", "tool_calls": [tool]}), openai_chunk({}, reason))
        whole = reply({"id": "c", "model": "m", "choices": [choice]})
        vendors["openai"].script(stream(*parts) if streamed else whole)
        assert ask(front, "gemini", "openai", streamed).data.count(b"functionCall") == number


@every_door
@pytest.mark.parametrize(("said", "cut"), [('{"city": "Kö', True), ("{}", False), (" ", False)])
def test_half_a_call_without_a_reason_to_end_is_a_cut(front, vendors, door, said, cut):
    function = {"name": "weather", "arguments": said}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    vendors["openai"].script(stream(openai_chunk({"tool_calls": [call]}), b"data: [DONE]\n\n"))
    front.spans.clear()
    answer = ask(front, door, "openai", True)
    assert [span.status for span in front.spans] == ["error" if cut else "ok"]
    assert (b"stream ended without its terminator" in answer.data) == cut
    assert (b"[DONE]" in answer.data) == (door == "openai" and not cut)


@pytest.mark.parametrize("door", ["anthropic", "responses", "gemini"])
def test_calls_that_share_an_index_are_several(front, vendors, door):
    """Ollama gives all of them the first; some vendors repeat the id, others do not."""

    def delta(ident, name, arguments, index=0):
        function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
        known = {"id": ident, "type": "function"} if ident else {}
        call = {"index": index, "function": function, **known}
        return openai_chunk({"tool_calls": [call]})

    vendors["openai"].script(
        stream(
            delta("call_a", "f", '{"a":'),
            delta("", "", "1}"),
            delta("call_b", "g", '{"b":'),
            delta("call_b", "", "2}"),
            delta("call_c", "g", '{"c":3}', index=1),
            openai_chunk({}, "tool_calls", usage=OPENAI_USAGE),
            b"data: [DONE]\n\n",
        )
    )
    answer = ask(front, door, "openai", True)
    if door == "gemini":
        bodies = [each.json for each in sse(answer.data)]
        parts = [part for each in bodies for part in each["candidates"][0]["content"]["parts"]]
        calls = [part["functionCall"] for part in parts if "functionCall" in part]
        told = [(each["id"], each["name"], each["args"]) for each in calls]
    else:
        found = CLIENTS[door].fold(sse(answer.data)).calls
        told = [tuple(each) for each in found]
    assert told == [
        ("call_a", "f", {"a": 1}),
        ("call_b", "g", {"b": 2}),
        ("call_c", "g", {"c": 3}),
    ]
