"""The client's side of the Gemini dialect: requests to ours, our answers to Google's form."""

from __future__ import annotations

import copy
import json
import random
from base64 import b64encode
from typing import Any

import pytest
from support import how_many, places

from infermux.dialects.anthropic import upstream as anthropic
from infermux.dialects.gemini import downstream as gemini
from infermux.dialects.gemini import upstream as google
from infermux.dialects.gemini.schemas import json_schema
from infermux.dialects.gemini.stream import Encoder
from infermux.dialects.openai import upstream as openai
from infermux.dialects.responses.upstream import Responses
from infermux.errors import (
    InferMuxError,
    RateLimited,
    RequestError,
    StreamIncomplete,
    UnsupportedParameter,
)
from infermux.planning.call import StreamAccumulator
from infermux.protocol import InferRequest, InferResponse, strict_json
from infermux.protocol.json_array import ArrayParser
from infermux.types import Chunk, Usage

JSON = dict[str, Any]
OTHERS: dict[str, Any] = {"openai": openai, "anthropic": anthropic, "responses": Responses()}
SKIP = "skip_thought_signature_validator"


def read(body: JSON, *, op: str = "chat", batch: bool = False) -> InferRequest:
    document = strict_json.document(json.dumps(body))
    request = gemini.decode_request(document, gemini.Asked("m", "", batch), op=op)
    assert json.loads(document.text) == document.value, "the client's body is not changed"
    return request


def contents(*found: Any) -> JSON:
    return {"contents": list(found)}


def user(*parts: JSON) -> JSON:
    return {"role": "user", "parts": list(parts)}


def model(*parts: JSON) -> JSON:
    return {"role": "model", "parts": list(parts)}


HELLO = contents(user({"text": "hello"}))
CALL = {"functionCall": {"name": "f", "args": {"x": 1}}}


def called(ident: str, name: str = "f", arguments: str = '{"x":1}') -> JSON:
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


FIRST, SECOND = (f"call_{number}_{number:016x}" for number in range(2))

# -- contents --------------------------------------------------------------------------------------

MESSAGES = {
    "text": (HELLO, [{"role": "user", "content": "hello"}]),
    "no role, one part that is no list": (
        {"contents": {"parts": {"text": "hello"}}},
        [{"role": "user", "content": "hello"}],
    ),
    "a system instruction": (
        HELLO | {"system_instruction": {"parts": [{"text": "a"}, {"text": "b"}]}},
        [{"role": "system", "content": "ab"}, {"role": "user", "content": "hello"}],
    ),
    "an image": (
        contents(user({"text": "?"}, {"inlineData": {"mimeType": "image/png", "data": "_-8"}})),
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,/+8="}},
                ],
            }
        ],
    ),
    "a sound, a document and a picture by address": (
        contents(
            user(
                {"inline_data": {"mime_type": "audio/mpeg", "data": "AAAA"}},
                {"inline_data": {"mime_type": "application/pdf", "data": "AAAA"}},
                {"file_data": {"file_uri": "https://x.example/a.png"}},
                {"fileData": {"fileUri": "https://x.example/a", "mimeType": "application/pdf"}},
            )
        ),
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
                    {
                        "type": "file",
                        "file": {
                            "file_data": "data:application/pdf;base64,AAAA",
                            "filename": "document.pdf",
                        },
                    },
                    {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
                    {"type": "file", "file": {"file_url": "https://x.example/a"}},
                ],
            }
        ],
    ),
    "a file of text, and bytes that are none": (
        contents(
            user(
                {"inlineData": {"mimeType": "text/csv", "data": "YSxi"}},
                {"inlineData": {"mimeType": "text/plain", "data": "//8="}},
            )
        ),
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a,b"},
                    {
                        "type": "inlineData",
                        "inlineData": {"mimeType": "text/plain", "data": "//8="},
                    },
                ],
            }
        ],
    ),
    "a call and its result, by name": (
        contents(
            model({"text": "a"}, CALL),
            user({"functionResponse": {"name": "f", "response": {"result": "r"}}}),
        ),
        [
            {"role": "assistant", "content": "a", "tool_calls": [called(FIRST)]},
            {"role": "tool", "tool_call_id": FIRST, "content": "r"},
        ],
    ),
    "calls of one name, in order": (
        contents(
            model(CALL, CALL),
            user(
                {"function_response": {"name": "f", "response": {"output": {"a": 1}}}},
                {"function_response": {"name": "f", "response": {"error": "no"}}},
                {"text": "go on"},
            ),
        ),
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [called(FIRST), called(SECOND)],
            },
            {"role": "tool", "tool_call_id": FIRST, "content": '{"a":1}'},
            {"role": "tool", "tool_call_id": SECOND, "content": "no", "is_error": True},
            {"role": "user", "content": "go on"},
        ],
    ),
    "ids, in another order, and a picture": (
        contents(
            model(
                {"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}},
                {"functionCall": {"id": "b", "name": "f", "args": None}},
            ),
            {
                "role": "function",
                "parts": [
                    {
                        "functionResponse": {
                            "id": "b",
                            "name": "f",
                            "response": {"q": 1, "r": 2},
                            "parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}],
                        }
                    },
                    {"functionResponse": {"id": "a", "name": "f"}},
                ],
            },
        ),
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [called("a"), called("b", arguments="{}")],
            },
            {
                "role": "tool",
                "tool_call_id": "b",
                "content": [
                    {"type": "text", "text": '{"q":1,"r":2}'},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "{}"},
        ],
    ),
    "a streamed turn, sent back in its pieces": (
        contents(
            model({"text": "Let ", "thought": True}),
            model({"text": "me", "thought": True}),
            model({"text": "a"}),
            model({"text": "b"}, CALL | {"thoughtSignature": SKIP}),
        ),
        [
            {
                "role": "assistant",
                "content": "ab",
                "reasoning_content": "Let me",
                "tool_calls": [called(FIRST)],
            }
        ],
    ),
    "Google's signatures": (
        contents(
            model(
                {"text": "Hm", "thought": True, "thought_signature": "c2ln"},
                {"text": "a", "thoughtSignature": "c2lo"},
                {"text": "", "thoughtSignature": "c2lp"},
                {"thoughtSignature": "c2lq"},
                CALL | {"thoughtSignature": "c2lr"},
            )
        ),
        [
            {
                "role": "assistant",
                "content": "a",
                "reasoning_content": "Hm",
                "reasoning_details": [
                    {
                        "type": "reasoning.text",
                        "text": "Hm",
                        "signature": "c2ln",
                        "format": "google-gemini-v1",
                        "index": 0,
                    },
                    *(
                        {
                            "type": "reasoning.encrypted",
                            "data": data,
                            "format": "google-gemini-v1",
                            "index": number,
                        }
                        for number, data in enumerate(("c2lo", "c2lp", "c2lq"), 1)
                    ),
                ],
                "tool_calls": [
                    called(FIRST) | {"extra_content": {"google": {"thought_signature": "c2lr"}}}
                ],
            }
        ],
    ),
    "what only Google has": (
        contents(
            model({"executableCode": {"code": "1"}}, {"codeExecutionResult": {"outcome": "OK"}}),
            user({"fileData": {"fileUri": "gs://b/o.png", "mimeType": "image/png"}}),
        ),
        [
            {
                "role": "assistant",
                "content": [
                    {"type": "executableCode", "executableCode": {"code": "1"}},
                    {"type": "codeExecutionResult", "codeExecutionResult": {"outcome": "OK"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "fileData",
                        "fileData": {"fileUri": "gs://b/o.png", "mimeType": "image/png"},
                    }
                ],
            },
        ],
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_contents_become_messages(case: str) -> None:
    body, wanted = MESSAGES[case]
    assert read(body).messages == wanted


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_google_has_is_refused_by_name(name: str) -> None:
    for part in (
        {"executableCode": {"code": "1"}},
        {"fileData": {"fileUri": "https://youtu.be/x", "mimeType": "video/mp4"}},
        {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}},
    ):
        with pytest.raises(UnsupportedParameter) as caught:
            OTHERS[name].encode_request(read(contents(user(part))), stream=False)
        assert next(iter(part)) in caught.value.message


INVALID = {
    "contents": [{}, contents(), {"contents": "hello"}, {"contents": [1]}, {"contents": 0}],
    "contents[0].role": [contents({"role": "assistant", "parts": [{"text": "x"}]})],
    "contents[0].parts": [contents(user()), contents({"parts": "x"}), contents({"parts": [1]})],
    "contents[0].parts[0]": [contents(user({})), contents(user({"text": "x", "fileData": {}}))],
    "contents[0].parts[0].text": [contents(user({"text": 1}))],
    "contents[0].parts[0].inlineData": [contents(user({"inlineData": {"data": "AAAA"}}))],
    "contents[0].parts[0].fileData": [
        contents(user({"fileData": {}})),
        contents(user({"fileData": {"fileUri": "http://[x"}})),
    ],
    "contents[0].parts[0].functionCall": [
        contents(model({"functionCall": {}})),
        contents(model({"functionCall": {"name": "f", "args": []}})),
        contents(model({"functionCall": {"name": "f", "id": 1}})),
    ],
    "contents[0].parts[0].functionResponse": [
        contents(user({"functionResponse": {"name": "f", "response": {}}})),
        contents(user({"functionResponse": {"response": "x"}})),
    ],
    "contents[0].parts[0].thoughtSignature": [
        contents(model({"text": "x", "thoughtSignature": 1}))
    ],
    "systemInstruction": [HELLO | {"systemInstruction": 1}],
    "tools": [HELLO | {"tools": "x"}],
    "tools[0].functionDeclarations": [
        HELLO | {"tools": [{"functionDeclarations": [{}]}]},
        HELLO | {"tools": [{"functionDeclarations": [{"name": "f", "description": 1}]}]},
        HELLO | {"tools": [{"functionDeclarations": [{"name": "f", "parameters": 1}]}]},
        HELLO | {"tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": []}]}]},
    ],
    "toolConfig.functionCallingConfig": [
        HELLO | {"toolConfig": {"functionCallingConfig": 1}},
        HELLO | {"toolConfig": {"functionCallingConfig": {"mode": "SOMETIMES"}}},
        HELLO
        | {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": 1}}},
    ],
    "generationConfig": [
        HELLO | {"generationConfig": 1},
        *(
            HELLO | {"generationConfig": {name: {}}}
            for name in (
                "temperature",
                "topP",
                "topK",
                "maxOutputTokens",
                "seed",
                "stopSequences",
                "responseMimeType",
            )
        ),
        HELLO | {"generationConfig": {"thinkingConfig": {"thinkingLevel": "odd"}}},
        HELLO | {"generationConfig": {"thinkingConfig": {"thinkingBudget": "many"}}},
        HELLO | {"generationConfig": {"responseSchema": {"type": {}}}},
        HELLO | {"generationConfig": {"responseSchema": {"properties": {"a": 1}}}},
    ],
    "safetySettings": [HELLO | {"safetySettings": "x"}],
    "serviceTier": [HELLO | {"serviceTier": 1}],
}


@pytest.mark.parametrize(
    ("place", "body"), [(place, body) for place, bodies in INVALID.items() for body in bodies]
)
def test_what_is_invalid_is_named(place: str, body: JSON) -> None:
    with pytest.raises(RequestError) as caught:
        read(body)
    assert caught.value.param and caught.value.param.startswith(place)


def test_a_result_whose_call_is_cached_at_google_passes() -> None:
    body = contents(user({"functionResponse": {"name": "f", "response": {}}}))
    read(body | {"cachedContent": "cachedContents/x"})
    with pytest.raises(RequestError):
        read(body)


# -- parameters ------------------------------------------------------------------------------------


def config(**members: Any) -> JSON:
    return {"generationConfig": members}


def calling(**members: Any) -> JSON:
    tools = [{"functionDeclarations": [{"name": name} for name in ("f", "g", "h")]}]
    return {"tools": tools, "toolConfig": {"functionCallingConfig": members}}


def functions(*names: str) -> list[JSON]:
    return [{"type": "function", "function": {"name": name}} for name in names]


ALL = {"tools": functions("f", "g", "h")}
PARAMS: list[tuple[JSON, JSON]] = [
    (
        config(
            temperature=0,
            topP=0.5,
            topK=40.0,
            maxOutputTokens="5",
            seed=7,
            stopSequences=["a"],
            presencePenalty=1,
            frequencyPenalty=0.5,
        ),
        {
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 40,
            "max_tokens": 5,
            "seed": 7,
            "stop": ["a"],
            "presence_penalty": 1,
            "frequency_penalty": 0.5,
        },
    ),
    (
        {"generation_config": {"max_output_tokens": 5, "stop_sequences": ["a"], "top_k": None}},
        {"max_tokens": 5, "stop": ["a"]},
    ),
    (
        config(
            candidateCount=1,
            responseMimeType="text/plain",
            responseModalities=["TEXT"],
            responseLogprobs=False,
        ),
        {},
    ),
    (config(candidateCount=2, logprobs=3), {"candidateCount": 2, "generationConfig.logprobs": 3}),
    (config(responseMimeType="application/json"), {"response_format": {"type": "json_object"}}),
    (config(responseMimeType="text/x.enum"), {"responseMimeType": "text/x.enum"}),
    *(
        (config(thinkingConfig=thinking), {} if effort is None else {"reasoning_effort": effort})
        for thinking, effort in (
            ({"thinkingBudget": 0}, "none"),
            ({"thinkingBudget": 100}, "minimal"),
            ({"thinking_budget": 1024}, "low"),
            ({"thinkingBudget": 8192, "includeThoughts": True}, "medium"),
            ({"thinkingBudget": 32768}, "high"),
            ({"thinkingBudget": -1}, None),
            ({"includeThoughts": True}, None),
            ({"thinkingLevel": "LOW"}, "low"),
            ({"thinking_level": "minimal"}, "minimal"),
            ({"thinkingLevel": "THINKING_LEVEL_UNSPECIFIED"}, None),
        )
    ),
    (calling(mode="AUTO"), {**ALL, "tool_choice": "auto"}),
    (calling(mode="VALIDATED"), {**ALL, "tool_choice": "auto"}),
    (calling(mode="none"), {**ALL, "tool_choice": "none"}),
    (calling(mode=2), {**ALL, "tool_choice": "required"}),
    (
        calling(mode="ANY", allowedFunctionNames=["f"]),
        {**ALL, "tool_choice": {"type": "function", "function": {"name": "f"}}},
    ),
    (
        calling(mode="ANY", allowed_function_names=["f", "h"]),
        {"tools": functions("f", "h"), "tool_choice": "required"},
    ),
    (calling(), ALL),
    (
        {"toolConfig": {"retrievalConfig": {"languageCode": "de"}}},
        {"toolConfig": {"retrievalConfig": {"languageCode": "de"}}},
    ),
    (
        {"tools": [{"google_search": {}}, {"functionDeclarations": {"name": "f"}}]},
        {"tools": functions("f"), "tools.googleSearch": {}},
    ),
    (
        {"safetySettings": [{"category": "X", "threshold": "BLOCK_NONE"}, {"threshold": "OFF"}]},
        {},
    ),
    (
        {"safetySettings": [{"threshold": "BLOCK_LOW_AND_ABOVE"}]},
        {"safetySettings": [{"threshold": "BLOCK_LOW_AND_ABOVE"}]},
    ),
    (
        {"cachedContent": "c", "labels": {"a": "b"}, "store": False, "serviceTier": "STANDARD"},
        {"cachedContent": "c", "labels": {"a": "b"}, "store": False, "service_tier": "default"},
    ),
    ({"temperature": 1, "model": "models/m"}, {"request.temperature": 1}),
]


@pytest.mark.parametrize(("body", "wanted"), PARAMS)
def test_parameters(body: JSON, wanted: JSON) -> None:
    assert read(HELLO | body).params == wanted


REFUSED = [
    config(candidateCount=2),
    config(responseModalities=["IMAGE"]),
    config(speechConfig={}),
    config(responseLogprobs=True),
    config(logprobs=2),
    config(responseMimeType="text/x.enum"),
    config(brandNew=1),
    {"cachedContent": "cachedContents/x"},
    {"safetySettings": [{"threshold": "BLOCK_LOW_AND_ABOVE"}]},
    {"brandNew": 1},
    {"temperature": 1},
    *(
        {"tools": [{tool: {}}]}
        for tool in ("codeExecution", "urlContext", "fileSearch", "googleMaps")
    ),
    {"tools": [{"googleSearch": {"timeRangeFilter": {"startTime": "2031-01-01T00:00:00Z"}}}]},
]
LEFT_OUT = [{"labels": {"a": "b"}}, config(mediaResolution="MEDIA_RESOLUTION_LOW")]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("body", REFUSED, ids=str)
def test_meanings_are_refused_by_name_where_there_is_no_google(name: str, body: JSON) -> None:
    request = read(HELLO | body)
    with pytest.raises(UnsupportedParameter) as caught:
        OTHERS[name].encode_request(request, stream=False)
    wanted = str(body)
    assert str(caught.value.param).rpartition(".")[2] in wanted
    assert OTHERS[name].unsaid(request, "m").meaning
    assert json.loads(google.encode_request(request, stream=False)) == HELLO | body


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("body", LEFT_OUT, ids=str)
def test_hints_are_left_out_and_told(name: str, body: JSON) -> None:
    request = read(HELLO | body)
    request.dropped = []
    OTHERS[name].encode_request(request, stream=False)
    assert len(request.dropped) == 1 and request.dropped[0] in str(body)


def test_schemas() -> None:
    found = json_schema(
        {
            "type": "OBJECT",
            "title": "T",
            "property_ordering": ["a"],
            "required": ["a"],
            "min_properties": "1",
            "properties": {
                "a": {"type": 1, "nullable": True, "enum": ["x"], "format": "enum"},
                "some_name": {"type": "ARRAY", "items": {"type": "INTEGER", "format": "int32"}},
                "c": {"any_of": [{"type": "STRING"}, {"type": "NULL"}], "nullable": True},
                "d": {"type": "string", "example": "x", "maxLength": 3},
                "e": {"type": "TYPE_UNSPECIFIED", "ref": "#/$defs/x"},
            },
            "defs": {"x": {"type": "BOOLEAN"}},
        },
        "schema",
    )
    assert found == {
        "type": "object",
        "title": "T",
        "required": ["a"],
        "minProperties": 1,
        "properties": {
            "a": {"type": ["string", "null"], "enum": ["x", None]},
            "some_name": {"type": "array", "items": {"type": "integer", "format": "int32"}},
            "c": {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "null"}]},
            "d": {"type": "string", "maxLength": 3},
            "e": {"$ref": "#/$defs/x"},
        },
        "$defs": {"x": {"type": "boolean"}},
    }


OPEN: list[JSON] = [
    {"type": "object", "properties": {"a": {"type": "string"}}},
    {"type": "object"},
    {"type": "array", "items": {"type": "object"}},
    {"type": "string", "pattern": "x"},
    *({"type": "object", "properties": {"a": {}}, "required": odd} for odd in (5, [["a"]])),
    {"type": "object", "properties": 5},
]


@pytest.mark.parametrize("schema", OPEN)
def test_a_schema_that_openai_cannot_enforce_is_not_strict(schema: JSON) -> None:
    sent = read(HELLO | config(responseMimeType="application/json", responseJsonSchema=schema))
    wanted = {"name": "response", "schema": schema}
    assert sent.params["response_format"]["json_schema"] == wanted


# -- nothing but RequestError ----------------------------------------------------------------------

WHOLE: JSON = {
    "systemInstruction": {"parts": [{"text": "s"}]},
    "contents": [
        content
        for body, _ in MESSAGES.values()
        if isinstance(body["contents"], list)
        for content in body["contents"]
    ],
    "tools": [
        {
            "functionDeclarations": [
                {
                    "name": "f",
                    "parameters": {
                        "type": "OBJECT",
                        "properties": {"a": {"type": "STRING", "anyOf": [{"type": "NULL"}]}},
                        "required": ["a"],
                    },
                }
            ]
        }
    ],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
    "safetySettings": [{"threshold": "OFF"}],
    "generationConfig": {
        "temperature": 1,
        "topK": 1,
        "stopSequences": ["a"],
        "thinkingConfig": {"thinkingBudget": 1},
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}},
    },
}
TIMES = how_many(500, 3000, 20000)
JUNK: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], {}, [None], [1], {"text": 1}, {"type": "x"}]


def test_whatever_the_client_sends_is_read_or_refused() -> None:
    rng = random.Random(15)
    known = [*places(WHOLE)][1:]
    for _ in range(TIMES):
        body = copy.deepcopy(WHOLE)
        for path in rng.sample(known, rng.randint(1, 2)):
            holder: Any = body
            try:
                for name in path[:-1]:
                    holder = holder[name]
                holder[path[-1]] = copy.deepcopy(rng.choice(JUNK))
            except (KeyError, IndexError, TypeError):
                continue
        op = rng.choice(["chat", "count_tokens"])
        try:
            request = read(body, op=op)
            request.check()
            request.dropped = []
            for each in OTHERS.values():
                each.unsaid(request, "m")
                if op == "chat":
                    each.encode_request(request, stream=False)
        except RequestError as error:
            assert error.message


def test_embeddings_are_read_or_refused() -> None:
    one = {"content": {"parts": [{"text": "a"}]}, "outputDimensionality": "2", "title": "t"}
    assert read(one, op="embeddings").params == {"input": "a", "dimensions": 2, "title": "t"}
    found = read({"requests": [one, one]}, op="embeddings", batch=True).params
    assert found == {"input": ["a", "a"], "dimensions": 2, "title": "t"}
    picture = {"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}}
    with pytest.raises(RequestError):
        openai.encode_request(read(picture, op="embeddings"), stream=False)
    for body in ({}, {"content": {}}, {"content": 1}):
        with pytest.raises(RequestError):
            read(body, op="embeddings")
        with pytest.raises(RequestError):
            read({"requests": [body]}, op="embeddings", batch=True)
    for odd in ([], None, 1, [1]):
        with pytest.raises(RequestError):
            read({"requests": odd}, op="embeddings", batch=True)


# -- answers ---------------------------------------------------------------------------------------

THINKING = {
    "type": "reasoning.text",
    "text": "Hm",
    "signature": "c2ln",
    "format": "anthropic-claude-v1",
    "index": 0,
}


def answer(**members: Any) -> InferResponse:
    usage = Usage(9, 7, 4, reasoning_tokens=2, tool_use_tokens=3, service_tier="flex")
    whole = {"content": "a", "usage": usage, "id": "r"} | members
    return InferResponse("m-1", "p", **whole)


def test_the_whole_answer() -> None:
    calls = [called("a"), called("b", arguments="nonsense")]
    found = gemini.encode_response(
        answer(reasoning="Hm", details=[THINKING], tool_calls=calls), ident="own"
    )
    (candidate,) = found["candidates"]
    thought, text, one, two = candidate["content"]["parts"]
    assert (thought["text"], thought["thought"], text) == ("Hm", True, {"text": "a"})
    assert one["functionCall"] == {"id": "a", "name": "f", "args": {"x": 1}}
    assert two == {"functionCall": {"id": "b", "name": "f", "args": {"arguments": "nonsense"}}}
    assert one["thoughtSignature"] == SKIP
    assert found["usageMetadata"] == {
        "promptTokenCount": 9,
        "candidatesTokenCount": 5,
        "totalTokenCount": 19,
        "cachedContentTokenCount": 4,
        "thoughtsTokenCount": 2,
        "toolUsePromptTokenCount": 3,
        "serviceTier": "flex",
    }
    assert (found["modelVersion"], found["responseId"]) == ("m-1", "r")
    (message,) = read(contents(candidate["content"])).messages
    kept = {name: THINKING[name] for name in ("type", "text", "signature", "format")}
    assert message["reasoning_details"] == [kept | {"index": 0}]
    google_again = google.encode_request(read(contents(candidate["content"])), stream=False)
    (content,) = json.loads(google_again)["contents"]
    assert content["parts"] == [text, one, two], "Google refuses another vendor's signatures"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("stop", "STOP"),
        ("tool_calls", "STOP"),
        ("function_call", "STOP"),
        ("length", "MAX_TOKENS"),
        ("content_filter", "SAFETY"),
        ("malformed_function_call", "MALFORMED_FUNCTION_CALL"),
        ("odd", "OTHER"),
    ],
)
def test_finish_reasons(ours: str, theirs: str) -> None:
    found = gemini.encode_response(answer(finish_reason=ours), ident="x")
    assert found["candidates"][0]["finishReason"] == theirs


def test_an_empty_answer_has_a_part() -> None:
    found = gemini.encode_response(answer(content="", finish_reason="length"), ident="x")
    assert found["candidates"][0]["content"] == {"parts": [{"text": ""}], "role": "model"}


CHUNKS = [
    Chunk(reasoning="H", details=[THINKING | {"text": "H", "signature": ""}]),
    Chunk(reasoning="m", details=[{"text": "m", "index": 0}]),
    Chunk(details=[{"signature": "c2ln", "index": 0}]),
    Chunk(text="a"),
    Chunk(tool_calls=[called("a", arguments="") | {"index": 0}]),
    Chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"x"'}}]),
    Chunk(tool_calls=[called("b", arguments="{}") | {"index": 1}]),
    Chunk(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
    Chunk(finish_reason="tool_calls"),
    Chunk(usage=Usage(9, 7)),
]


@pytest.mark.parametrize("array", [False, True])
def test_a_stream_folds_to_the_whole_answer(array: bool) -> None:
    encoder = Encoder(model="m-1", ident="r", array=array)
    data = b"".join(map(encoder.encode, CHUNKS)) + encoder.end({"id": "x"}, Usage(9, 7))
    if array:
        bodies = json.loads(data)
    else:
        events = data.decode().split("\r\n\r\n")[:-1]
        bodies = [json.loads(event.removeprefix("data: ")) for event in events]
    whole = StreamAccumulator()
    for chunk in CHUNKS:
        whole.add(chunk)
    wanted = gemini.encode_response(whole.response("p", "m-1"), ident="r")
    parts = [part for body in bodies for part in body["candidates"][0]["content"]["parts"]]
    folded: list[JSON] = []
    for part in parts:
        thought = part.get("thought")
        if folded and "text" in part and folded[-1].get("thought") == thought:
            folded[-1] |= part | {"text": folded[-1]["text"] + part["text"]}
        elif thought and folded:
            folded[0] |= part | {"text": folded[0]["text"] + part["text"]}
        else:
            folded.append(dict(part))
    assert folded == wanted["candidates"][0]["content"]["parts"]
    assert bodies[-1]["usageMetadata"] == wanted["usageMetadata"]
    assert bodies[-1]["infermux"] == {"id": "x"}
    assert [("finishReason" in body["candidates"][0]) for body in bodies].index(True) == (
        len(bodies) - 1
    )


def test_a_failed_stream_has_neither_finish_nor_calls() -> None:
    encoder = Encoder(model="m", ident="r", array=True)
    data = b"".join(map(encoder.encode, CHUNKS)) + encoder.error(StreamIncomplete("cut"))
    assert b"finishReason" not in data and b"functionCall" not in data
    assert json.loads(data + b"]")[-1]["error"]["status"] == "UNAVAILABLE"


def test_errors_say_when_to_retry() -> None:
    error: InferMuxError = RateLimited("slow down", retry_after=2.5)
    found = gemini.encode_error(error)["error"]
    assert (found["code"], found["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert found["details"][-1]["retryDelay"] == "2.5s"


def test_forged_signatures_of_ours_are_ignored() -> None:
    for forged in (b"infermux:", b"infermux:{", b"infermux:[1, null]", b'infermux:{"a": 1}'):
        part = {"text": "x", "thought": True, "thoughtSignature": b64encode(forged).decode()}
        (message,) = read(contents(model(part))).messages
        assert "reasoning_details" not in message


# -- arrays in pieces ------------------------------------------------------------------------------

OBJECTS = [b'{"a": "}{\\"\\\\"}', b'{\n "b": [{"c": "\\\\\\" ]"}, 1]\n}', b'{"d": "\xe2\x82\xac"}']


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_an_array_is_split_at_any_byte(size: int) -> None:
    data = b"[" + b"\n,\r\n".join(OBJECTS) + b"\n]\n"
    parser = ArrayParser()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found = [event.data for piece in pieces for event in parser.feed(piece)]
    assert found == OBJECTS and parser.end() == []
    assert all(isinstance(json.loads(each), dict) for each in found)


def test_an_array_that_ends_within_an_object() -> None:
    parser = ArrayParser()
    assert parser.feed(b'[{"a": {}') == []
    with pytest.raises(ValueError, match="within an object"):
        parser.end()


def test_an_object_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infermux.protocol.json_array.MAX_EVENT", 100)
    parser = ArrayParser()
    with pytest.raises(ValueError, match="longer than"):
        for _ in range(100):
            parser.feed(b'{"a": "x')
