"""What others gave is fitted to what a vendor takes: ids, users, schemas, reasoning, tools."""

from __future__ import annotations

import base64
import json
import random
import re
from dataclasses import replace
from typing import Any

import pytest

from infermux.dialects import fitting
from infermux.dialects.anthropic import downstream as messages
from infermux.dialects.anthropic import upstream as anthropic
from infermux.dialects.calls import fitted
from infermux.dialects.gemini import call_ids
from infermux.dialects.gemini import upstream as gemini
from infermux.dialects.openai import downstream as chat
from infermux.dialects.openai import upstream as openai
from infermux.dialects.responses.upstream import Responses
from infermux.errors import RequestError, UnsupportedParameter
from infermux.protocol import InferRequest, Native, strict_json

JSON = dict[str, Any]
HELLO = [{"role": "user", "content": "hello"}]
IDS = [
    fitting.OPENAI_CALL_ID,
    fitting.RESPONSES_CALL_ID,
    fitting.ANTHROPIC_CALL_ID,
    fitting.MISTRAL_CALL_ID,
]
LONG = "call_gs_" + "aB-_" * 300


# -- ids of tool calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("taken", IDS)
@pytest.mark.parametrize("ident", ["call_1", "functions.weather:0", LONG, "ü" * 3, "toolu_01A"])
def test_an_id_is_fitted_and_always_alike(taken, ident):
    found = fitting.call_id(ident, taken)
    assert taken.fullmatch(found) and found == fitting.call_id(ident, taken)
    assert (found == ident) == bool(taken.fullmatch(ident))
    assert fitting.call_id(ident + "x", taken) != found


@pytest.mark.parametrize(
    ("model", "pattern"),
    [("gpt-5.2", r".{1,40}"), ("mistral-small-latest", r"[a-zA-Z0-9]{9}"), ("any", r".{1,40}")],
)
def test_a_native_body_gets_ids_that_its_vendor_takes_and_is_else_unchanged(model, pattern):
    body: JSON = {
        "model": model,
        "messages": [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": LONG, "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": LONG, "content": "r"},
        ],
        "own": [1.50, "as it was"],
    }  # fmt: skip
    text = json.dumps(body, indent=3)
    request, _ = chat.decode_request(strict_json.document(text))
    sent = json.loads(openai.encode_request(request, stream=False))
    [ident] = [call["id"] for call in sent["messages"][1]["tool_calls"]]
    assert re.fullmatch(pattern, ident) and sent["messages"][2]["tool_call_id"] == ident
    short = json.loads(text.replace(LONG, "aB3456789"))
    request, _ = chat.decode_request(strict_json.document(json.dumps(short, indent=3)))
    assert openai.encode_request(request, stream=False).decode() == json.dumps(short, indent=3)


def test_googles_signature_rides_in_the_id():
    rng = random.Random(5)
    for size in (0, 1, 3, 300, 1012):
        for own in ("", "f0sssgi0", "ü", "x" * 300):
            for signature in (
                base64.b64encode(rng.randbytes(size)).decode(),
                "not base64 ü",
                "a_-b",
            ):
                key = call_ids.seal_key("sk-one")
                ident = call_ids.sealed(signature, own, key)
                assert re.fullmatch(r"[a-zA-Z0-9_-]+", ident)
                assert call_ids.unsealed(ident, call_ids.seal_key("sk-one")) == (
                    signature, own if len(own) < 200 else "",
                )  # fmt: skip
                assert call_ids.unsealed(ident, call_ids.seal_key("sk-other")) is None
                for at in rng.sample(range(len(ident)), 4):
                    forged = ident[:at] + ("A" if ident[at] != "A" else "B") + ident[at + 1 :]
                    found = call_ids.unsealed(forged, key)
                    assert found is None or found.signature == signature  # unused bits at the end


@pytest.mark.parametrize(
    "ident", ["", "call_gs_", "call_gs_ü", "call_gs_AAAA", "call_gs_" + "A" * 50]
)
def test_an_invented_id_is_no_signature(ident):
    assert call_ids.unsealed(ident, call_ids.seal_key("k")) is None


def google(model: str, *turns: JSON, key: str = "sk", **params: Any) -> JSON:
    request = InferRequest(model=model, messages=[*HELLO, *turns], params=params)
    return json.loads(gemini.bound(key).encode_request(request, stream=False))


def calls(*idents: str, **more: Any) -> list[JSON]:
    made = [
        {"id": one, "type": "function", "function": {"name": "f", "arguments": "{}"}} | more
        for one in idents
    ]
    return [
        {"role": "assistant", "content": None, "tool_calls": made},
        *({"role": "tool", "tool_call_id": one, "content": "r"} for one in idents),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "model", ["gemini-3-pro", "gemini-3.5-flash", "models/gemini-4", "gemini-flash-latest"]
)
def test_the_first_call_of_each_step_is_signed(model):
    key = call_ids.seal_key("sk")
    own = call_ids.sealed("c2lnbmVk", "vendor-id", key)
    bare = call_ids.sealed("c2lnbmVk", "", key)
    sent = google(model, *calls("a", "b"), *calls(own, "call_1_" + "0" * 16), *calls(bare))[
        "contents"
    ]
    steps = [content["parts"] for content in sent if content["role"] == "model"]
    signatures = [[part.get("thoughtSignature") for part in parts] for parts in steps]
    assert signatures == [
        ["skip_thought_signature_validator", None],
        ["c2lnbmVk", None],
        ["c2lnbmVk"],
    ]
    idents = [[part["functionCall"].get("id") for part in parts] for parts in steps]
    assert idents == [["a", "b"], ["vendor-id", None], [None]]
    results = [
        part["functionResponse"].get("id")
        for c in sent
        for part in c["parts"]
        if "functionResponse" in part
    ]
    assert results == ["a", "b", "vendor-id", None, None]


def test_a_kept_signature_wins_and_older_models_get_no_marker():
    kept = {"extra_content": {"google": {"thought_signature": "a2VwdA=="}}}
    own = call_ids.sealed("c2lnbmVk", "", call_ids.seal_key("sk"))
    [part] = google("gemini-3-pro", *calls(own, **kept))["contents"][1]["parts"]
    assert part["thoughtSignature"] == "a2VwdA=="
    [part] = google("gemini-2.5-pro", *calls("a"))["contents"][1]["parts"]
    assert "thoughtSignature" not in part
    [part] = google("gemini-3-pro", *calls(own), key="of another provider")["contents"][1]["parts"]
    assert part["thoughtSignature"] == "skip_thought_signature_validator"
    assert len(part["functionCall"]["id"]) <= 64


@pytest.mark.parametrize("place", ["call", "message"])
def test_googles_signature_stays_away_from_openai(place):
    """OpenAI's Agents for JavaScript repeat it in the message."""
    kept = {"extra_content": {"google": {"thought_signature": "a2VwdA=="}}}
    turn, result = calls("call_1", **(kept if place == "call" else {}))
    turn |= kept if place == "message" else {}
    body = {"model": "gpt-5.2", "messages": [*HELLO, turn, result]}
    request, _ = chat.decode_request(strict_json.document(json.dumps(body)))
    assert b"extra_content" not in openai.encode_request(request, stream=False)


# -- users -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "user", "same"),
    [
        ("gpt-5.2", "u" * 64, True),
        ("gpt-5.2", "u" * 65, False),
        ("o3", "u" * 65, False),
        ("glm-5.1", "u" * 128, True),
        ("glm-5.1", "u" * 129, False),
        ("deepseek-chat", "user_1-a", True),
        ("deepseek-chat", "user@example.org", False),
    ],
)
def test_a_user_is_fitted_to_the_vendor(model, user, same):
    body = {"model": model, "max_tokens": 9, "messages": HELLO, "metadata": {"user_id": user}}
    request, _ = messages.decode_request(strict_json.document(json.dumps(body)))
    request.dropped = []
    sent = json.loads(openai.encode_request(request, stream=False))["user"]
    assert (sent == user) == same and len(sent) <= 128
    assert same or re.fullmatch("[0-9a-f]{64}", sent)
    assert request.dropped == []


@pytest.mark.parametrize(
    ("model", "user", "same"),
    [
        ("gpt-5.2", "u" * 65, False),
        ("glm-5.1", "u" * 128, True),
        ("glm-5.1", "u" * 129, False),
        ("deepseek-chat", "user@example.org", False),
    ],
)
def test_a_user_is_fitted_also_in_a_native_body(model, user, same):
    text = json.dumps({"model": model, "messages": HELLO, "user": user}, indent=3)
    request, _ = chat.decode_request(strict_json.document(text))
    sent = openai.encode_request(request, stream=False)
    assert (sent.decode() == text) == same and len(json.loads(sent)["user"]) <= 128


@pytest.mark.parametrize(
    ("user", "same"),
    [
        ("user-1234567", True),
        ("bob@example.org", False),
        ("+49 30 1234567", False),
        ("u" * 129, False),
    ],
)
def test_claude_hears_of_no_person(user, same):
    """It refuses a user id that looks like an e-mail address or a telephone number."""
    sent = sent_to(anthropic, "claude-sonnet-5", {"messages": HELLO, "user": user})
    assert sent["metadata"]["user_id"] == (user if same else fitting.digest(user))


# -- schemas ---------------------------------------------------------------------------------------

PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "format": "uri"},
        "home": {"$ref": "#/$defs/Place"},
        "other": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]},
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
        "kind": {"const": "person"},
    },
    "required": ["name"],
    "additionalProperties": {"type": "string"},
    "$defs": {"Place": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


TWO = PERSON | {
    "properties": {name: each for name, each in PERSON["properties"].items() if name != "children"}
}  # without itself, which Anthropic refuses


def asking(schema):
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    }


def test_every_object_is_closed_for_anthropic():
    request = InferRequest(
        model="claude-sonnet-5-5",
        messages=HELLO,
        params=asking(TWO),
    )
    sent = json.loads(anthropic.encode_request(request, stream=False))["output_config"]["format"][
        "schema"
    ]
    assert sent["additionalProperties"] is sent["$defs"]["Place"]["additionalProperties"] is False
    assert sent["properties"]["name"] == {
        "type": "string",
        "format": "uri",
        "description": "{minLength: 1}",
    }
    assert TWO["additionalProperties"] == {"type": "string"}  # the caller's own stays as it was


def schemas_of(request, dialect, model):
    """Return the schema that a vendor enforces of a request in a client's format, and the words."""
    body = json.loads(dialect.encode_request(replace(request, model=model), stream=False))
    if dialect is anthropic:
        return body.get("output_config", {}).get("format", {}).get("schema"), body.get("system", "")
    if dialect is gemini:
        said = body.get("systemInstruction", {"parts": [{"text": ""}]})["parts"][0]["text"]
        return body.get("generationConfig", {}).get("responseJsonSchema"), said
    form = body.get("response_format") or body.get("text", {}).get("format") or {}
    said = (body.get("messages") or body["input"])[0]["content"]
    return form.get("schema", form.get("json_schema", {}).get("schema")), said


LIST = {"type": "array", "items": {"type": "string"}}
TREE = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/Node"}},
    "$defs": {"Node": {"type": "object", "properties": {"b": {"$ref": "#/$defs/Node"}}}},
}
MAP = {"type": "object", "properties": {"a": {"type": "object"}}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize(
    ("dialect", "model", "schema", "tools", "enforced"),
    [
        (anthropic, "claude-sonnet-5-5", TWO, [], True),
        (anthropic, "claude-sonnet-5-5", TREE, [], False),  # refused: it is in itself
        (anthropic, "claude-sonnet-5-5", PERSON, [], False),
        (anthropic, "claude-sonnet-5-5", MAP, [], False),  # only an empty object would fit
        (anthropic, "claude-sonnet-5-5", {"description": "anything"}, [], True),
        (openai, "gpt-5.2", TREE, [], True),
        (openai, "gpt-5.2", LIST, [], False),  # OpenAI wants an object
        (openai, "gpt-5.2", {"description": "anything"}, [], False),
        (openai, "gpt-5.2", {"properties": {"a": {}}}, [], False),  # and its type
        (openai, "mistral-large", LIST, [], True),
        (Responses(), "gpt-5.2", TWO, [], True),
        (Responses(), "gpt-5.2", LIST, [], False),
        (gemini, "gemini-2.5-pro", LIST, [], True),
        (gemini, "gemini-2.5-pro", TWO, [FUNCTION], False),  # it takes one of both
        (gemini, "gemini-3-pro", TWO, [FUNCTION], True),
    ],
)
def test_a_schema_that_a_vendor_cannot_enforce_is_asked_for_in_words(
    dialect, model, schema, tools, enforced, system
):
    talk = [{"role": "system", "content": system}] if system else []
    params = asking(schema) | ({"tools": tools} if tools else {})
    body = {"model": "m", "messages": [*talk, *HELLO], **params}
    request, _ = chat.decode_request(strict_json.document(json.dumps(body)))
    if dialect is openai:
        request = replace(request, native=request.native._replace(dialect="anthropic"))
    request = replace(request, dropped=[])
    sent, words = schemas_of(request, dialect, model)
    assert (sent is not None) == enforced == ("response_format.strict" not in request.dropped)
    assert (json.dumps(schema, separators=(",", ":")) in words) != enforced
    assert system in words or isinstance(dialect, Responses)


@pytest.mark.parametrize("format", ["chat", "responses"])
def test_openai_hears_the_word_json_where_it_wants_to(format):
    """It refuses json_object otherwise, and Responses does not hear it in the instructions."""
    talk = [{"role": "system", "content": "Write JSON."}, *HELLO]
    for messages_, said in ((talk, format == "responses"), (HELLO, True)):
        params = {"response_format": {"type": "json_object"}}
        native = Native("gemini", strict_json.document("{}"))
        request = InferRequest("gpt-5.2", messages_, params=params, native=native)
        dialect = Responses() if format == "responses" else openai
        body = json.loads(dialect.encode_request(request, stream=False))
        asked = body.get("response_format") or body["text"]["format"]
        assert asked == {"type": "json_object"}
        told = [one for one in body.get("messages") or body["input"] if "JSON object" in str(one)]
        assert len(told) == said


def test_a_strict_tool_that_anthropic_cannot_enforce_is_not_strict():
    for schema, strict in ((TREE, False), (TWO, True), (MAP, False), ({"type": "object"}, True)):
        function = {"name": "f", "parameters": schema, "strict": True}
        tools = {"tools": [{"type": "function", "function": function}]}
        request = InferRequest("claude-sonnet-5-5", HELLO, params=tools, dropped=[])
        [tool] = json.loads(anthropic.encode_request(request, stream=False))["tools"]
        assert tool.get("strict", False) == strict
        assert request.dropped == ([] if strict else ["tools.strict"])


def test_openai_gets_an_object_that_says_what_is_in_its_arrays():
    """It refuses {"type": "object"} and {"type": "array"}, which many MCP servers write."""
    lists = {"type": "array"}
    inner = {
        "a": lists,
        "b": {"anyOf": [lists, {"type": ["array", "null"], "items": {"type": "string"}}]},
    }
    for schema in ({"type": "object"}, {}, {"properties": inner, "$defs": {"c": lists}}):
        body = {"model": "m", "max_tokens": 9, "messages": HELLO,
                "tools": [{"name": "f", "input_schema": schema}]}  # fmt: skip
        request, _ = messages.decode_request(strict_json.document(json.dumps(body)))
        [tool] = json.loads(openai.encode_request(request, stream=False))["tools"]
        sent = tool["function"]["parameters"]
        assert (sent["type"], sent["properties"].keys()) == (
            "object",
            schema.get("properties", {}).keys(),
        )
        assert json.dumps(sent).count('"items"') == (4 if "$defs" in schema else 0)


@pytest.mark.parametrize("kind", [5, True, {"a": 1}, None, [], [["array"]], "x-array"])
def test_a_schema_that_makes_no_sense_is_left_to_the_vendor_to_refuse(kind):
    schema = {"type": "object", "properties": {"a": {"type": kind, "anyOf": kind, "not": [kind]}}}
    body = {"model": "m", "max_tokens": 9, "messages": HELLO,
            "tools": [{"name": "f", "input_schema": schema}]}  # fmt: skip
    request, _ = messages.decode_request(strict_json.document(json.dumps(body)))
    assert not openai.unsaid(request, "m").meaning
    [tool] = json.loads(openai.encode_request(request, stream=False))["tools"]
    assert tool["function"]["parameters"] == schema


def test_google_gets_its_subset():
    sent = fitting.googles(PERSON)
    place = {"type": "object", "properties": {"at": {"type": "string"}}}
    assert sent == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "home": place,
            "other": {"anyOf": [place, {"type": "null"}]},
            "children": {
                "type": "array",
                "items": sent["properties"]["children"]["items"],
                "maxItems": 3,
            },
            "kind": {"enum": ["person"]},
        },
        "required": ["name"],
    }
    assert sent["properties"]["children"]["items"]["properties"]["children"] == {
        "type": "array", "items": {"type": "object"}, "maxItems": 3,
    }  # fmt: skip


def test_a_schema_cannot_grow_without_end():
    bomb = {
        f"d{level}": {
            "type": "object",
            "properties": {f"p{n}": {"$ref": f"#/$defs/d{level + 1}"} for n in range(10)},
        }
        for level in range(20)
    }
    assert len(json.dumps(fitting.googles({"$ref": "#/$defs/d0", "$defs": bomb}))) < 500_000
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    assert fitting.googles(loop) == {"type": "object"}


def test_a_schema_is_strict_at_openai_only_if_it_may_be():
    for schema, strict in [
        ({"type": "object", "properties": {"a": {"type": "string"}}}, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        (
            {
                "type": "object",
                "properties": {"a": {"type": ["string", "null"], "format": "date"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            True,
        ),
        *(
            (
                {
                    "type": "object",
                    "properties": {"a": one},
                    "required": ["a"],
                    "additionalProperties": False,
                },
                False,
            )
            for one in ({}, {"type": "string", "format": "uri"}, {"allOf": [{"type": "string"}]})
        ),
    ]:
        form = {"format": {"type": "json_schema", "schema": schema}}
        body = {"model": "gpt-5.2", "max_tokens": 9, "messages": HELLO, "output_config": form}
        request, _ = messages.decode_request(strict_json.document(json.dumps(body)))
        sent = json.loads(openai.encode_request(request, stream=False))
        assert sent["response_format"]["json_schema"]["strict"] is strict


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_json_object_is_an_instruction_for_anthropic(system):
    params = {"response_format": {"type": "json_object"}}
    request = InferRequest(model="claude-sonnet-5-5", messages=[*system, *HELLO], params=params)
    sent = json.loads(anthropic.encode_request(request, stream=False))
    assert "JSON object" in sent["system"] and "output_config" not in sent
    assert sent["system"].startswith("Be brief." if system else "Answer")


# -- reasoning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decode", "encode", "body", "left"),
    [
        (chat, openai, {"reasoning_effort": "low", "reasoning": {"effort": "low"}}, set()),
        (messages, anthropic, {"thinking": {"type": "adaptive"}, "max_tokens": 5, "context_management": {},
                               "output_config": {"effort": "low"}}, {"max_tokens"}),
        (messages, openai, {"thinking": {"type": "adaptive"}, "max_tokens": 5}, {"max_tokens"}),
    ],
)  # fmt: skip
def test_a_model_without_reasoning_is_not_asked_for_it(decode, encode, body, left):
    whole = {"model": "m", "messages": HELLO} | body
    request, _ = decode.decode_request(strict_json.document(json.dumps(whole)))
    request.dropped = []
    sent = json.loads(encode.encode_request(fitting.without_reasoning(request), stream=False))
    assert sent.keys() - {"model", "messages"} == left and request.dropped
    plain, _ = decode.decode_request(
        strict_json.document(json.dumps({"model": "m", "messages": HELLO, "max_tokens": 5}))
    )
    assert fitting.without_reasoning(plain) is plain


# -- tools of a vendor's own -----------------------------------------------------------------------


@pytest.mark.parametrize("encode", [openai, gemini, Responses()])
def test_a_search_is_left_out_and_told_other_hosted_tools_are_refused_by_name(encode):
    tool = {"name": "f", "input_schema": {"type": "object"}}
    for kind, fits in [
        ("web_search_20250305", True),
        ("tool_search_tool_regex_20251119", True),
        ("computer_20250124", False),
    ]:
        own = {"type": kind, "name": kind}
        body = {"model": "m", "max_tokens": 9, "messages": HELLO, "tools": [tool, own]}
        request, _ = messages.decode_request(strict_json.document(json.dumps(body)))
        request.dropped = []
        if fits:
            assert kind not in encode.encode_request(request, stream=False).decode()
            assert request.dropped[0].startswith("tools.")
        else:
            with pytest.raises(UnsupportedParameter, match=kind):
                encode.encode_request(request, stream=False)


@pytest.mark.parametrize("encode", [openai, gemini, Responses()])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "web_search"}])
@pytest.mark.parametrize("beside", [True, False])
def test_a_choice_of_a_tool_that_was_left_out_is_left_out_too(encode, choice, beside):
    tools = [{"name": "f", "input_schema": {"type": "object"}}] * beside
    tools.append({"type": "web_search_20250305", "name": "web_search"})
    body = {"model": "m", "max_tokens": 9, "messages": HELLO, "tools": tools, "tool_choice": choice}
    request, _ = messages.decode_request(strict_json.document(json.dumps(body)))
    request.dropped = []
    sent = json.loads(encode.encode_request(request, stream=False))
    kept = beside and choice["type"] == "any"
    if encode is gemini and not beside:  # it has a search of its own
        assert sent["tools"] == [{"googleSearch": {}}]
    else:
        assert ("tools" in sent) == beside
    assert ({"tool_choice", "toolConfig"}.isdisjoint(sent)) != kept
    assert ("tool_choice" in request.dropped) != kept


# -- conversations ---------------------------------------------------------------------------------


def sent_to(dialect, model, body, decode=chat):
    """Return what a vendor is sent for the request of a client of another format."""
    request, _ = decode.decode_request(strict_json.document(json.dumps({"model": "m"} | body)))
    if decode is chat:  # also OpenAI's chat vendors get a translation then
        request = replace(request, native=request.native._replace(dialect="elsewhere"))
    request.check()
    request, _ = fitted(replace(request, model=model, dropped=[]), lambda _: dialect)
    return json.loads(dialect.encode_request(request, stream=False))


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("names", [("f", "g", "h"), ("1f", "2g", "h.i")])
def test_allowed_tools_of_a_chat_client_are_those_that_are_sent(mode, names):
    """Also where the vendor refuses their names, and has them in another form."""
    f, g, h = names
    tools = [{"type": "function", "function": {"name": name}} for name in (f, g)]
    tools.append({"type": "custom", "custom": {"name": h}})
    chosen = [
        {"type": "function", "function": {"name": g}},
        {"type": "custom", "custom": {"name": h}},
    ]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": chosen}}
    body = {"messages": HELLO, "tools": tools, "tool_choice": choice}
    sent = sent_to(anthropic, "claude-sonnet-5", body)
    found = [each["name"] for each in sent["tools"]]
    kept = [re.sub("_[0-9a-f]{8}$", "", name) for name in found]
    assert kept == (["g", "h"] if h == "h" else ["_2g", "_h_i"])
    assert sent["tool_choice"] == {"type": {"auto": "auto", "required": "any"}[mode]}
    sent = sent_to(gemini, "gemini-3-pro", body)
    [declared] = sent["tools"]
    assert [each["name"] for each in declared["functionDeclarations"]] == found


@pytest.mark.parametrize(("model", "joined"), [("deepseek-v4-pro", True), ("gpt-4o", False)])
def test_deepseek_gets_texts_in_parts_as_one(model, joined):
    parts = [{"type": "text", "text": text} for text in ("a", "b")]
    drawn = [*parts, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    body = {"messages": [{"role": "user", "content": each} for each in (parts, drawn, "c")]}
    own = openai.encode_request(
        chat.decode_request(strict_json.document(json.dumps({"model": model} | body)))[0],
        stream=False,
    )
    for sent in (json.loads(own), sent_to(openai, model, body)):
        contents = [each["content"] for each in sent["messages"]]
        assert contents == ["a\n\nb" if joined else parts, drawn, "c"]


@pytest.mark.parametrize(
    ("model", "effort"),
    [
        *[("grok-4.3", "low"), ("grok-4.7", "low"), ("grok-4-fast", None)],
        *[("grok-code-fast-1", None), ("mistral-large-latest", None), ("devstral-2512", None)],
    ],
)
def test_grok_and_mistral_get_efforts_that_they_know_and_grok_no_penalties(model, effort):
    body = {"messages": HELLO, "reasoning_effort": "minimal", "presence_penalty": 0}
    request, _ = chat.decode_request(strict_json.document(json.dumps({"model": model} | body)))
    own = json.loads(openai.encode_request(request, stream=False))
    assert own.get("reasoning_effort") == (effort and "minimal")  # the client's own
    sent = sent_to(openai, model, body)
    assert sent.get("reasoning_effort") == effort
    assert ("presence_penalty" in own | sent) == ("grok" not in model)


def test_kimi_samples_as_it_wants():
    body = {"model": "kimi-k2.6", "messages": HELLO, "temperature": 0, "top_p": 1, "seed": 3}
    request, _ = chat.decode_request(strict_json.document(json.dumps(body)))
    request.dropped = []
    assert json.loads(openai.encode_request(request, stream=False)).keys() == {
        *("model", "messages", "seed"),
    }
    assert request.dropped == ["temperature", "top_p"]


@pytest.mark.parametrize(("asked", "effort"), [("low", "high"), ("minimal", "none")])
def test_mistral_gets_the_older_name_of_a_limit_and_two_efforts(asked, effort):
    body = {"messages": HELLO, "max_completion_tokens": 9}
    document = strict_json.document(json.dumps({"model": "mistral-small-latest"} | body))
    own = json.loads(openai.encode_request(chat.decode_request(document)[0], stream=False))
    sent = sent_to(openai, "mistral-small-latest", body | {"reasoning_effort": asked})
    assert own["max_tokens"] == sent["max_tokens"] == 9 and sent["reasoning_effort"] == effort
    assert "max_completion_tokens" not in own | sent


@pytest.mark.parametrize("provider", ["groq", "cerebras", "moonshot"])
def test_groq_and_cerebras_get_no_thoughts(provider):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "t"}
    result = {"role": "tool", "tool_call_id": "a", "content": "r"}
    body = {"model": "moonshotai/kimi-k2", "messages": [*HELLO, said, result]}
    request, _ = chat.decode_request(strict_json.document(json.dumps(body)))
    for native in (request.native, request.native._replace(dialect="elsewhere")):
        asked = replace(request, provider=provider, native=native, dropped=[])
        sent = json.loads(openai.encode_request(asked, stream=False))
        assert ("reasoning_content" in sent["messages"][1]) == (provider == "moonshot")


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}


@pytest.mark.parametrize("vendor", [anthropic, gemini, openai])
@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("tools[0]", {"messages": HELLO, "tools": ["x"], "tool_choice": ALLOWED}),
        *(
            (
                "messages[].tool_calls[].id",
                {"messages": [*HELLO, {"role": "assistant", "tool_calls": calls}]},
            )
            for calls in ([{"id": ["x"]}], [{"id": {"x": 1}}], [{"id": 5}, {"id": 5}])
        ),
    ],
)
def test_what_is_no_tool_and_no_id_is_the_callers_mistake(vendor, param, body):
    with pytest.raises(RequestError) as error:
        sent_to(vendor, "m", body)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("model", "last"),
    [
        ("claude-opus-4-6", {"role": "user", "content": "Continue."}),
        ("claude-sonnet-5-5", {"role": "user", "content": "Continue."}),
        ("claude-sonnet-4-5", {"role": "assistant", "content": "Sure,"}),
    ],
)
def test_claude_goes_on_with_its_own_words_or_is_asked_to(model, last):
    """From 4.6 on it refuses a conversation that ends with them, before that white space there."""
    body = {"messages": [*HELLO, {"role": "assistant", "content": "Sure, \n"}]}
    assert sent_to(anthropic, model, body)["messages"][-1] == last


def test_ids_that_differ_only_in_letters_that_anthropic_refuses_stay_apart():
    calls = [
        {"id": each, "type": "function", "function": {"name": "f", "arguments": ""}}
        for each in "äö"
    ]
    results = [{"role": "tool", "tool_call_id": each, "content": each} for each in "äö"]
    body = {
        "messages": [*HELLO, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    }
    _, turn, answers = sent_to(anthropic, "claude-sonnet-5-5", body)["messages"]
    idents = [block["id"] for block in turn["content"]]
    assert idents == [block["tool_use_id"] for block in answers["content"]]
    assert len(set(idents)) == 2 and all(map(fitting.ANTHROPIC_CALL_ID.fullmatch, idents))


TEXT = {"type": "text", "media_type": "text/plain", "data": "Hi."}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "QUJD"}
BLOCKS = [{"type": "text", "text": "Ho"}, {"type": "text", "text": "!"}]


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ({"source": TEXT, "title": "T"}, {"type": "text", "text": "T\nHi."}),
        ({"source": TEXT, "context": "C"}, {"type": "text", "text": "C\nHi."}),
        ({"source": {"type": "content", "content": BLOCKS}}, {"type": "text", "text": "Ho!"}),
        (
            {"source": PDF},
            {
                "type": "file",
                "file": {
                    "filename": "document.pdf",
                    "file_data": "data:application/pdf;base64,QUJD",
                },
            },
        ),
    ],
)
def test_documents_are_words_or_files_with_names_at_openai(document, part):
    turns = [{"role": "user", "content": [{"type": "document"} | document]}]
    body = {"max_tokens": 9, "messages": turns}
    [sent] = sent_to(openai, "gpt-5.2", body, messages)["messages"]
    assert sent["content"] == [part]
    [sent] = sent_to(Responses(), "gpt-5.2", body, messages)["input"]
    file = part.get("file")
    assert sent["content"] == [
        {"type": "input_file"} | file if file else part | {"type": "input_text"}
    ]


def test_a_strict_tool_of_anthropics_is_strict_at_openai_only_if_it_may_be():
    for needed, strict in (([], None), (["a"], True)):
        schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": needed}
        tool = {
            "name": "f",
            "strict": True,
            "input_schema": schema | {"additionalProperties": False},
        }
        body = {"max_tokens": 9, "messages": HELLO, "tools": [tool]}
        [sent] = sent_to(openai, "gpt-5.2", body, messages)["tools"]
        assert sent["function"].get("strict") is strict


def test_google_gets_no_empty_texts():
    empty = [{"type": "text", "text": ""}]
    body = {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": ""},
            {"role": "user", "content": empty},
            {"role": "user", "content": [*empty, {"type": "text", "text": "a"}]},
        ]
    }
    assert sent_to(gemini, "gemini-3-pro", body) == {
        "contents": [{"role": "user", "parts": [{"text": "a"}]}]
    }


def test_a_role_and_a_file_elsewhere_are_refused_by_name():
    odd = {"messages": [*HELLO, {"role": "critic", "content": "x"}]}
    with pytest.raises(RequestError) as refused:
        sent_to(anthropic, "claude-sonnet-5-5", odd)
    assert refused.value.param == "messages[1].role" and "assistant" in str(refused.value)
    part = {"type": "file", "file": {"file_id": "file-1"}}
    with pytest.raises(RequestError, match="'file' cannot be sent"):
        sent_to(gemini, "gemini-3-pro", {"messages": [{"role": "user", "content": [part]}]})
