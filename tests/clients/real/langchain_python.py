"""LangChain's chat models: langchain-openai by both APIs, langchain-anthropic, -google-genai."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_models import KINDS
from pydantic import BaseModel
from scenarios import (
    CITIES,
    FACTS,
    HELLO,
    LOOK,
    PNG_URL,
    STEPS,
    THINK,
    run,
    same,
    says,
    thought,
)
from scenarios import weather as weather_of


class Place(BaseModel):
    """A place."""

    city: str
    degrees: int


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return weather_of(city)


def scenarios(client: str) -> dict[str, Any]:
    """Return the scenarios of one of LangChain's models."""
    kind = KINDS[client]
    thinking = kind.thinking

    def text(model: str, vendor: str) -> None:
        answer = kind(model).invoke([("system", "Be brief."), ("human", HELLO)])
        says(answer.text, HELLO)
        assert answer.usage_metadata["output_tokens"]

    def stream(model: str, vendor: str) -> None:
        pieces = [chunk.text for chunk in kind(model).stream(HELLO)]
        says("".join(pieces), HELLO)
        assert len(pieces) > 2

    def tools(model: str, vendor: str) -> None:
        loop(kind(model).bind_tools([weather]).invoke)

    def stream_tools(model: str, vendor: str) -> None:
        loop(streamed(kind(model)))

    def reasoning_tools(model: str, vendor: str) -> None:
        loop(streamed(kind(model, **thinking)))

    def structured(model: str, vendor: str) -> None:
        same(
            kind(model).with_structured_output(Place).invoke(FACTS), Place(city="Köln", degrees=21)
        )

    def structured_schema(model: str, vendor: str) -> None:
        answer = kind(model).with_structured_output(Place, method="json_schema").invoke(FACTS)
        same(answer, Place(city="Köln", degrees=21))

    def image(model: str, vendor: str) -> None:
        parts = [
            {"type": "text", "text": LOOK},
            {"type": "image_url", "image_url": {"url": PNG_URL}},
        ]
        says(kind(model).invoke([HumanMessage(parts)]).text, LOOK, "(an image)")

    def reasoning(model: str, vendor: str) -> None:
        answer = kind(model, **thinking).invoke(THINK)
        says(answer.text, THINK)
        if client != "langchain-openai, chat":  # which does not read them
            thought(json.dumps(answer.content_blocks), vendor)

    found = [text, stream, tools, stream_tools, reasoning_tools, structured, structured_schema]
    return {each.__name__: each for each in [*found, image, reasoning]}


def streamed(model: Any) -> Any:
    def ask(messages: Any) -> Any:
        whole = None
        for chunk in model.bind_tools([weather]).stream(messages):
            whole = chunk if whole is None else whole + chunk
        return whole

    return ask


def loop(ask: Any) -> None:
    messages: list[Any] = [HumanMessage(STEPS)]
    called = []
    for _ in range(4):
        answer = ask(messages)
        messages.append(answer)
        if not answer.tool_calls:
            break
        for call in answer.tool_calls:
            called.append(call["args"]["city"])
            messages.append(ToolMessage(weather_of(called[-1]), tool_call_id=call["id"]))
    same(called, CITIES)
    says(answer.text, "rain in Oslo", "rain in 東京")
    messages.append(HumanMessage(f'call weather {{"city": "Rom"}}\n{HELLO}'))
    same([call["args"]["city"] for call in ask(messages).tool_calls], ["Rom"])


for name in KINDS:
    run(name, scenarios(name))
