"""What agents send: long conversations, many tools, images; each in OpenAI's form."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from typing import Any

from .load import Ask, post

SIZE = 450_000  # bytes of the requests without images
IMAGES = 2_000_000
MODEL, WANTED, END = "bench-0-0", "zebras jump.", "fp_bench"
_WORDS = [
    "def",
    "return",
    "self",
    "the",
    "of",
    "router",
    "value,",
    '"name":',
    "error\n",
    "",
    "",
    "",
    "if",
    "not",
    "found:\n",
    "raise",
    "import",
    "=",
    "()",
    "test",
    "assert",
    "x",
    "+=",
    "1",
    "#",
    "see",
    "below",
    "{key}",
    "[0]",
    "->",
    "None",
]


def text(size: int, seed: int = 7) -> str:
    """Return *size* characters that look like source code and its discussion."""
    draw = random.Random(seed)
    words = " ".join(draw.choices(_WORDS, k=size // 4))
    return (words * (1 + size // len(words)))[:size]


def message() -> dict[str, Any]:
    """One long message."""
    return _chat([{"role": "user", "content": text(SIZE)}])


def messages() -> dict[str, Any]:
    """400 messages."""
    said = [
        {"role": ("user", "assistant")[number % 2], "content": text(SIZE // 400 - 60, number)}
        for number in range(399)
    ]
    return _chat([{"role": "system", "content": text(1000)}, *said])


def turns() -> dict[str, Any]:
    """150 tool turns with 40 tools."""
    said: list[dict[str, Any]] = [{"role": "user", "content": text(4000)}]
    for number in range(150):
        ident = f"call_{number:024d}"
        arguments = json.dumps({"path": f"src/module_{number}.py", "text": text(400, number)})
        function = {"name": f"tool_{number % 40}", "arguments": arguments}
        call = {"id": ident, "type": "function", "function": function}
        said.append({"role": "assistant", "content": None, "tool_calls": [call]})
        said.append({"role": "tool", "tool_call_id": ident, "content": text(1700, number)})
    return _chat(said) | {"tools": [_tool(number) for number in range(40)]}


def images() -> dict[str, Any]:
    """A message with eight images."""
    draw = random.Random(7)
    urls = (
        "data:image/png;base64," + b64encode(draw.randbytes(IMAGES // 8 * 3 // 4)).decode()
        for _ in range(8)
    )
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return _chat([{"role": "user", "content": [{"type": "text", "text": "Which?"}, *parts]}])


def _chat(said: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": MODEL, "messages": said, "max_tokens": 128}


def _tool(number: int) -> dict[str, Any]:
    fields = {
        f"field_{each}": {"type": "string", "description": text(120, each)} for each in range(8)
    }
    schema = {"type": "object", "properties": fields, "required": ["field_0"]}
    function = {"name": f"tool_{number}", "description": text(600, number), "parameters": schema}
    return {"type": "function", "function": function}


def chat(body: dict[str, Any]) -> Ask:
    """Return the request to the OpenAI-compatible API."""
    return post("/v1/chat/completions", body, WANTED, end=END)


def anthropic(body: dict[str, Any]) -> Ask:
    """Return the same request to the Anthropic-compatible API."""
    said: list[dict[str, Any]] = []
    for each in body["messages"]:
        role, content = each["role"], each["content"]
        if role == "tool":
            block = {"type": "tool_result", "tool_use_id": each["tool_call_id"], "content": content}
            said.append({"role": "user", "content": [block]})
        elif calls := each.get("tool_calls"):
            said.append({"role": role, "content": [_tool_use(call) for call in calls]})
        elif role != "system":
            said.append({"role": role, "content": content})
    new = {name: value for name, value in body.items() if name != "tools"} | {"messages": said}
    tools = [
        {"name": tool["function"]["name"], "description": tool["function"]["description"]}
        | {"input_schema": tool["function"]["parameters"]}
        for tool in body.get("tools", ())
    ]
    return post(
        "/v1/messages", new | ({"tools": tools} if tools else {}), WANTED, end="output_tokens"
    )


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    block = {"type": "tool_use", "id": call["id"], "name": function["name"]}
    return block | {"input": json.loads(function["arguments"])}


SHAPES = {"message": message(), "messages": messages(), "turns": turns(), "images": images()}
