"""Tests of the running service with the official openai and anthropic SDKs."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))  # for doors.py and recorded.py

import recorded
from doors import ERRORS, FIRST, SERVED, Turn, Vendor, openai_chunk, reply, says, stream
from support import Service, TokenTrace, eventually

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

MODELS = {
    "openai": "gpt-asked",
    "anthropic": "claude-asked",
    "gemini": "gemini-asked",
}  # known by the presets' patterns
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLS = Turn("Let me look.", (("weather", {"city": "Köln"}), ("weather", {"city": "東京"})))
ANSWER = Turn("Rain in Köln, sun in 東京. 🌞")
ASK = [{"role": "user", "content": "How is the weather in Köln and 東京?"}]


@pytest.fixture(scope="module")
def vendors():
    with Vendor("openai") as one, Vendor("anthropic") as two, Vendor("gemini") as three:
        yield {"openai": one, "anthropic": two, "gemini": three}


@pytest.fixture(scope="module")
def receiver():
    with TokenTrace() as running:
        yield running


# one process whose targets stay open whatever the tests before did to them
STEADY = {
    "INFERMUX_SERVER__WORKERS": "1",
    "INFERMUX_RELIABILITY__CIRCUIT_BREAKER__FAILURES": "1000000",
    "INFERMUX_RELIABILITY__CIRCUIT_BREAKER__WINDOW": "0.001",
    "INFERMUX_RELIABILITY__ATTEMPTS": "1",
}


def addresses(urls):
    keys = {f"{name.upper()}_API_KEY": "sk-test-vendor-key" for name in urls}
    return keys | {f"{name.upper()}_BASE_URL": url for name, url in urls.items()}


@pytest.fixture(scope="module")
def service(vendors, receiver):
    urls = {
        name: vendor.url + ("/v1beta" if name == "gemini" else "/v1")
        for name, vendor in vendors.items()
    }
    with Service(
        env=addresses(urls) | STEADY | {"INFERMUX_TRACE__TOKENTRACE": receiver.url}
    ) as running:
        yield running


@pytest.fixture
def oai(service):
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{service.port}/v1", api_key="any", max_retries=2, timeout=30
    ) as client:
        yield client


@pytest.fixture
def ant(service):
    with anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{service.port}", api_key="any", max_retries=2, timeout=30
    ) as client:
        yield client


every_vendor = pytest.mark.parametrize("dialect", MODELS)


# -- create and stream -----------------------------------------------------------------------------


@pytest.mark.sampled(1)
@every_vendor
def test_openai_creates(oai, vendors, dialect):
    vendors[dialect].script(says(dialect, ANSWER, streamed=False))
    got = oai.chat.completions.create(model=MODELS[dialect], messages=ASK)
    (choice,) = got.choices
    assert (choice.message.content, choice.finish_reason, got.model) == (
        ANSWER.text,
        "stop",
        SERVED[dialect],
    )
    assert (
        got.usage.prompt_tokens,
        got.usage.completion_tokens,
        got.usage.prompt_tokens_details.cached_tokens,
    ) == (31, 17, 8)
    assert len(got._request_id) == 32


@every_vendor
def test_openai_streams(oai, vendors, dialect):
    vendors[dialect].script(says(dialect, ANSWER, streamed=True))
    chunks = list(
        oai.chat.completions.create(
            model=MODELS[dialect], messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == ANSWER.text
    )
    assert {chunk.model for chunk in chunks} == {SERVED[dialect]}
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [48]
    assert chunks[-1].model_extra["infermux"]["provider"] == dialect


@every_vendor
def test_openais_stream_helper_folds_text_and_calls(oai, vendors, dialect):
    vendors[dialect].script(says(dialect, CALLS, streamed=True))
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": SCHEMA | {"additionalProperties": False},
            "strict": True,
        },
    }
    with oai.chat.completions.stream(model=MODELS[dialect], messages=ASK, tools=[tool]) as events:
        message = events.get_final_completion().choices[0].message
    assert message.content == CALLS.text
    assert [call.function.parsed_arguments for call in message.tool_calls] == [
        given for _, given in CALLS.calls
    ]


@every_vendor
def test_anthropic_creates(ant, vendors, dialect):
    vendors[dialect].script(says(dialect, ANSWER, streamed=False))
    got = ant.messages.create(model=MODELS[dialect], max_tokens=50, messages=ASK)
    (block,) = got.content
    assert (block.text, got.stop_reason, got.model) == (ANSWER.text, "end_turn", SERVED[dialect])
    assert (got.usage.input_tokens, got.usage.cache_read_input_tokens, got.usage.output_tokens) == (
        23,
        8,
        17,
    )
    assert len(got._request_id) == 32


@every_vendor
def test_anthropics_stream_helper_folds_text_and_calls(ant, vendors, dialect):
    vendors[dialect].script(says(dialect, CALLS, streamed=True))
    tool = {"name": "weather", "input_schema": SCHEMA}
    with ant.messages.stream(
        model=MODELS[dialect], max_tokens=50, messages=ASK, tools=[tool]
    ) as events:
        text = "".join(events.text_stream)
        got = events.get_final_message()
    assert (text, got.stop_reason, got.model) == (CALLS.text, "tool_use", SERVED[dialect])
    assert [block.input for block in got.content if block.type == "tool_use"] == [
        given for _, given in CALLS.calls
    ]
    assert (got.usage.output_tokens, got.usage.cache_read_input_tokens) == (17, 8)


# -- tools, there and back -------------------------------------------------------------------------


@every_vendor
def test_openai_takes_a_tool_to_its_end(oai, vendors, dialect):
    vendor = vendors[dialect].script(
        says(dialect, CALLS, streamed=False), says(dialect, ANSWER, streamed=False)
    )
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    messages = list(ASK)
    message = (
        oai.chat.completions.create(model=MODELS[dialect], messages=messages, tools=tools)
        .choices[0]
        .message
    )
    messages += [
        message,
        *(
            {
                "role": "tool",
                "tool_call_id": call.id,
                "content": f"{json.loads(call.function.arguments)['city']}: sun",
            }
            for call in message.tool_calls
        ),
    ]
    assert (
        oai.chat.completions.create(model=MODELS[dialect], messages=messages, tools=tools)
        .choices[0]
        .message.content
        == ANSWER.text
    )
    said = vendor.seen[1].data.decode()
    assert json.dumps("Köln: sun", ensure_ascii=False) in said and said.count("東京: sun") == 1


@every_vendor
def test_anthropic_takes_a_tool_to_its_end(ant, vendors, dialect):
    vendor = vendors[dialect].script(
        says(dialect, CALLS, streamed=False), says(dialect, ANSWER, streamed=False)
    )
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    got = ant.messages.create(model=MODELS[dialect], max_tokens=50, messages=ASK, tools=tools)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": f"{block.input['city']}: sun"}
        for block in got.content
        if block.type == "tool_use"
    ]
    messages = [
        *ASK,
        {"role": "assistant", "content": got.content},
        {"role": "user", "content": results},
    ]
    assert (
        ant.messages.create(model=MODELS[dialect], max_tokens=50, messages=messages, tools=tools)
        .content[0]
        .text
        == ANSWER.text
    )
    said = vendor.seen[1].body if dialect != "anthropic" else json.loads(vendor.seen[1].data)
    assert json.dumps(said, ensure_ascii=False).count(": sun") == 2


# -- the other operations --------------------------------------------------------------------------


def test_openai_embeds_at_openai(oai, vendors):
    """The client asks for base64 by itself, and the vendor's answer passes through."""
    vendor = vendors["openai"].script(
        reply(
            {
                "object": "list",
                "model": "e-1",
                "usage": {"prompt_tokens": 2, "total_tokens": 2},
                "data": [{"object": "embedding", "index": 0, "embedding": "AAAAPwAAoL8="}],
            }
        )
    )
    assert oai.embeddings.create(model="text-embedding-3-small", input="x").data[0].embedding == [
        0.5,
        -1.25,
    ]
    assert vendor.seen[0].body["encoding_format"] == "base64"


def test_openai_embeds_at_gemini(oai, vendors):
    vectors = [[0.5, -1.25], [3.0, 0.125]]
    vendors["gemini"].script(reply({"embeddings": [{"values": vector} for vector in vectors]}))
    for more in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        got = oai.embeddings.create(model="gemini-embedding-001", input=["x", "y"], **more)
        found = [item.embedding for item in got.data]
        if more.get("encoding_format") == "base64":
            assert all(isinstance(one, str) for one in found)
        else:
            assert found == vectors


def test_legacy_completions(oai, vendors):
    choice = {"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}
    body = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "i-1",
        "choices": [choice],
    }
    vendors["openai"].script(reply(body))
    assert oai.completions.create(model="davinci-002", prompt="x").choices[0].text == "hi"
    vendors["openai"].script(
        stream(b"data: " + json.dumps(body).encode() + b"\n\n", b"data: [DONE]\n\n")
    )
    assert (
        "".join(
            chunk.choices[0].text
            for chunk in oai.completions.create(model="davinci-002", prompt="x", stream=True)
        )
        == "hi"
    )


def test_responses(oai, vendors):
    whole = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "r-1",
        "status": "completed",
        "output": [
            {
                "type": "message",
                "id": "m1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "hi", "annotations": []}],
            }
        ],
        "usage": {
            "input_tokens": 4,
            "output_tokens": 2,
            "total_tokens": 6,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    vendors["openai"].script(reply(whole))
    assert oai.responses.create(model="gpt-asked", input="x").output_text == "hi"
    kinds = [
        {
            "type": "response.created",
            "sequence_number": 0,
            "response": whole | {"status": "in_progress", "output": []},
        },
        {
            "type": "response.output_text.delta",
            "sequence_number": 1,
            "delta": "hi",
            "item_id": "m1",
            "output_index": 0,
            "content_index": 0,
            "logprobs": [],
        },
        {"type": "response.completed", "sequence_number": 2, "response": whole},
    ]
    vendors["openai"].script(
        stream(*[f"event: {kind['type']}\ndata: {json.dumps(kind)}\n\n".encode() for kind in kinds])
    )
    events = list(oai.responses.create(model="gpt-asked", input="x", stream=True))
    assert [event.type for event in events] == [kind["type"] for kind in kinds]
    assert events[-1].response.usage.total_tokens == 6


FUNCTION = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_a_tool_loop_of_the_responses_client(oai, vendors, dialect, streamed):
    vendors[dialect].script(*(says(dialect, turn, streamed=streamed) for turn in (CALLS, ANSWER)))
    items = list(ASK)

    def say():
        asked = {"model": MODELS[dialect], "input": items, "tools": [FUNCTION]}
        if not streamed:
            return oai.responses.create(**asked)
        with oai.responses.stream(**asked) as events:
            kinds = [event.type for event in events]
            assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
            return events.get_final_response()

    first = say()
    calls = [item for item in first.output if item.type == "function_call"]
    assert first.output_text == CALLS.text and first.usage.total_tokens == 48
    given = [(call.name, json.loads(call.arguments)) for call in calls]
    assert tuple(given) == CALLS.calls
    items += first.output
    items += [
        {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
        for call in calls
    ]
    second = say()
    assert (second.output_text, second.status) == (ANSWER.text, "completed")


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_the_responses_client_parses_an_answer(oai, vendors, dialect):
    pydantic = pytest.importorskip("pydantic")
    city = pydantic.create_model("City", city=(str, ...))
    vendors[dialect].script(says(dialect, Turn('{"city": "Köln"}'), streamed=False))
    parsed = oai.responses.parse(model=MODELS[dialect], input="Where?", text_format=city)
    assert parsed.output_parsed.city == "Köln"


def test_a_broken_stream_raises_in_the_responses_client(oai, vendors):
    vendors["anthropic"].script(stream(FIRST["anthropic"], end="cut"))
    events = []
    with pytest.raises(openai.APIError):
        for event in oai.responses.create(model="claude-asked", input="x", stream=True):
            events.append(event.type)
    assert "response.output_text.delta" in events and "response.completed" not in events


def test_anthropics_tool_runner_goes_on_without_threads(ant, vendors):
    """It sends `thread` until it is told that the model has none, then the whole conversation."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: A city.
        """
        return f"Rain in {city}"

    vendors["gemini"].script(*(says("gemini", turn, streamed=False) for turn in (CALLS, ANSWER)))
    last = ant.beta.messages.tool_runner(
        model="gemini-asked", max_tokens=50, tools=[weather], messages=ASK
    ).until_done()
    assert last.content[-1].text == ANSWER.text
    assert len(vendors["gemini"].seen[-1].body["contents"]) == 3


def test_models_are_listed_and_retrieved_by_both(oai, ant):
    names = [model.id for model in oai.models.list()]
    assert names == [model.id for model in ant.models.list()]
    assert "echo-v1" in names and any(name.startswith("claude-") for name in names)
    assert (
        oai.models.retrieve("echo-v1").owned_by,
        ant.models.retrieve("echo-v1").display_name,
    ) == ("echo", "echo-v1")
    for client, module in ((oai, openai), (ant, anthropic)):
        with pytest.raises(module.NotFoundError):
            client.models.retrieve("no-such-model")


def test_count_tokens(ant, vendors):
    vendors["anthropic"].script(reply(b'{"input_tokens": 2095}'))
    assert ant.messages.count_tokens(model="claude-asked", messages=ASK).input_tokens == 2095
    estimate = ant.messages.count_tokens(model="gpt-asked", messages=ASK)
    assert 0 < estimate.input_tokens < 100 and estimate.model_extra["infermux"] == {
        "estimated": True
    }


# -- errors ----------------------------------------------------------------------------------------

ERROR_CLASSES = [
    (400, "BadRequestError", 400),
    (404, "NotFoundError", 404),
    (401, "InternalServerError", 502),
    (403, "InternalServerError", 502),
    (413, "APIStatusError", 413),
    (422, "BadRequestError", 400),
    (500, "InternalServerError", 502),
    (503, "InternalServerError", 502),
    (504, "InternalServerError", 504),
    (529, "InternalServerError", 502),
    (302, "InternalServerError", 502),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("status", "kind", "seen"), ERROR_CLASSES)
def test_each_error_raises_the_right_class_after_our_own_attempts_only(
    oai, ant, vendors, status, kind, seen, streamed
):
    """Both clients repeat a 5xx twice by themselves, and nothing tells them not to."""
    oai, ant = oai.with_options(max_retries=0), ant.with_options(max_retries=0)
    for dialect, model in (("anthropic", "claude-asked"), ("openai", "gpt-asked")):
        vendor = vendors[dialect].script(reply({"error": {"message": "some words"}}, status))
        with pytest.raises(getattr(openai, kind)) as error:
            oai.chat.completions.create(model=model, messages=ASK, stream=streamed)
        assert (error.value.status_code, len(vendor.seen)) == (seen, 1)
        assert error.value.code and error.value.type
        assert "x-should-retry" not in error.value.response.headers
        vendor.script(reply({"error": {"message": "some words"}}, status))
        with pytest.raises(getattr(anthropic, kind)) as error:
            ant.messages.create(model=model, messages=ASK, max_tokens=5, stream=streamed)
        assert (error.value.status_code, len(vendor.seen)) == (seen, 1)


def test_a_rate_limit_raises_its_class_and_says_when(oai, ant, vendors):
    vendors["openai"].script(reply({"error": {"message": "slow down"}}, 429, retry_after="7"))
    with pytest.raises(openai.RateLimitError) as error:
        oai.with_options(max_retries=0).chat.completions.create(model="gpt-limited", messages=ASK)
    assert error.value.response.headers["retry-after"] == "7"
    with pytest.raises(anthropic.RateLimitError):
        ant.with_options(max_retries=0).messages.create(
            model="gpt-limited-too", messages=ASK, max_tokens=5
        )


def test_what_we_refuse_ourselves_raises_too(oai, ant):
    for client, module in ((oai.chat.completions, openai), (ant.messages, anthropic)):
        more = {} if module is openai else {"max_tokens": 5}
        with pytest.raises(module.NotFoundError):
            client.create(model="no-such-model", messages=ASK, **more)
        with pytest.raises(module.BadRequestError):
            client.create(model="echo-v1", messages=[], **more)


@pytest.mark.parametrize("how", ["cut", "error", "end"])
@every_vendor
def test_a_broken_stream_raises_in_both(oai, ant, vendors, dialect, how):
    """A stream that ends politely is what neither client notices."""
    vendors[dialect].script(
        stream(
            FIRST[dialect],
            *([ERRORS[dialect]] if how == "error" else []),
            end="cut" if how == "cut" else "end",
        )
    )
    seen = []
    with pytest.raises(openai.APIError):
        for chunk in oai.chat.completions.create(model=MODELS[dialect], messages=ASK, stream=True):
            seen += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    assert seen == ["first"]
    with (
        pytest.raises(anthropic.APIError),
        ant.messages.stream(model=MODELS[dialect], messages=ASK, max_tokens=5) as events,
    ):
        for piece in events.text_stream:
            seen.append(piece)
    assert seen == ["first", "first"]


# -- client gone -----------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("which", ["openai", "anthropic"])
def test_a_client_that_goes_in_mid_stream_frees_the_vendor(oai, ant, vendors, receiver, which):
    vendor = vendors["openai"].script(stream(openai_chunk({"content": "word "}), end="repeat"))
    before = len(receiver.spans)
    if which == "openai":
        with oai.chat.completions.create(model="gpt-asked", messages=ASK, stream=True) as chunks:
            next(iter(chunks))
    else:
        with ant.messages.stream(model="gpt-asked", messages=ASK, max_tokens=5) as events:
            next(iter(events.text_stream))
    left = time.monotonic()
    eventually(vendor.left.is_set, "the vendor's connection is closed", 3)
    assert time.monotonic() - left < 3
    eventually(  # one of a call before may come late
        lambda: [
            attrs
            for attrs in (span["attrs"] for span in receiver.checked()[before:])
            if attrs["provider"] == "openai"
            and attrs["tokens_out"] >= 1
            and attrs["tokens_in"] >= 1
        ],
        "a span with what was streamed",
        10,
    )


# -- recorded traffic ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replaying():
    if not recorded.FOLDER.exists():
        pytest.skip("there is no recorded traffic beside this clone")
    server = recorded.replay()
    server.start()
    urls = {"openai": "/openai/v1", "anthropic": "/anthropic/v1", "gemini": "/gemini/v1beta"}
    with Service(
        env=addresses({name: server.url + path for name, path in urls.items()}) | STEADY
    ) as running:
        yield running
    server.shutdown()
    server.server_close()


def answered(api, provider):
    """Return recorded answers, each with the texts that it may have: some requests were recorded
    more than once.
    """
    found = [
        exchange
        for exchange in recorded.exchanges(api)
        if exchange["provider"] == provider and exchange["response"]["status"] == 200
    ]
    texts = {}
    for exchange in found:
        asked = (
            exchange["model"],
            exchange["stream"],
            json.dumps(exchange["request"]["body"]["messages"][-1]),
        )
        exchange["texts"] = texts.setdefault(asked, [])
        exchange["texts"].append(exchange["expected"]["text"])
    return found


@pytest.mark.slow
def test_openai_reads_recorded_answers(replaying):
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{replaying.port}/v1", api_key="any", max_retries=0
    ) as client:
        for exchange in answered("openai.chat", "openai"):
            body = exchange["request"]["body"]
            got = (
                client.post("/chat/completions", body=body, cast_to=object)
                if not exchange["stream"]
                else None
            )
            if got is not None:
                assert (got["choices"][0]["message"]["content"] or "") in exchange["texts"], (
                    exchange["id"]
                )
                continue
            body = {
                name: value
                for name, value in body.items()
                if name not in ("model", "messages", "stream")
            }
            chunks = list(
                client.chat.completions.create(
                    model=exchange["model"],
                    messages=exchange["request"]["body"]["messages"],
                    stream=True,
                    extra_body=body,
                )
            )
            said = [
                choice.delta.content or ""
                for chunk in chunks
                for choice in chunk.choices
                if choice.index == 0
            ]
            assert "".join(said) in exchange["texts"], exchange["id"]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The model:DeprecationWarning"
)  # the client's opinion of recorded models
def test_anthropic_reads_recorded_answers(replaying):
    with anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{replaying.port}", api_key="any", max_retries=0
    ) as client:
        for exchange in answered("anthropic.messages", "anthropic"):
            body = exchange["request"]["body"]
            known = {name: body[name] for name in ("model", "messages", "max_tokens")}
            more = {name: value for name, value in body.items() if name not in (*known, "stream")}
            got = client.messages.create(
                **known, extra_body=more, timeout=60, stream=exchange["stream"]
            )
            if exchange["stream"]:
                said = [
                    event.delta.text
                    for event in got
                    if event.type == "content_block_delta" and event.delta.type == "text_delta"
                ]
            else:
                said = [block.text for block in got.content if block.type == "text"]
            assert "".join(said) in exchange["texts"], exchange["id"]
