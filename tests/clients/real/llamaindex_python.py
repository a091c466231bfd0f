"""LlamaIndex with its models for OpenAI's format, Anthropic and Google."""

from __future__ import annotations

import json
import os
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.google_genai import GoogleGenAI
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from scenarios import BASE_URL, CITIES, FACTS, HELLO, KEY, LOOK, STEPS, png, run, same, says
from scenarios import weather as weather_of

ALIASES: dict[str, str] = json.loads(os.environ["CLAUDE_NAMES"])


class Place(BaseModel):
    """A place."""

    city: str
    degrees: int


def chat(model: str) -> Any:
    return OpenAILike(
        model=model,
        api_base=f"{BASE_URL}/v1",
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
    )


def responses(model: str) -> Any:
    return OpenAIResponses(
        model=model, api_base=f"{BASE_URL}/v1", api_key=KEY, max_retries=0, context_window=100_000
    )


def claude(model: str) -> Any:
    known = ALIASES[model]  # it takes no names but those that it knows
    return Anthropic(model=known, base_url=BASE_URL, api_key=KEY, max_retries=0)


def gemini(model: str) -> Any:
    return GoogleGenAI(
        model=model,
        api_key=KEY,
        http_options={"base_url": BASE_URL},
        max_retries=0,
        context_window=100_000,
    )


def scenarios(kind: Any) -> dict[str, Any]:
    """Return the scenarios of one of the models."""

    def text(model: str, vendor: str) -> None:
        asked = [ChatMessage(role="system", content="Be brief."), ChatMessage(content=HELLO)]
        says(kind(model).chat(asked).message.content, HELLO)

    def stream(model: str, vendor: str) -> None:
        pieces = [part.delta or "" for part in kind(model).stream_chat([ChatMessage(HELLO)])]
        says("".join(pieces), HELLO)
        assert len(pieces) > 2

    async def tools(model: str, vendor: str) -> None:
        called = []

        def weather(city: str) -> str:
            """Tell the weather of a city."""
            called.append(city)
            return weather_of(city)

        agent = FunctionAgent(
            tools=[FunctionTool.from_defaults(weather)], llm=kind(model), streaming=True
        )
        answer = await agent.run(STEPS)
        says(answer, "rain in")
        assert set(called) >= {CITIES[0], CITIES[1]}, called

    def structured(model: str, vendor: str) -> None:
        asked = [ChatMessage(FACTS)]
        answer = kind(model).as_structured_llm(Place).chat(asked)
        same(answer.raw, Place(city="Köln", degrees=21))

    def image(model: str, vendor: str) -> None:
        blocks = [TextBlock(text=LOOK), ImageBlock(image=png(), image_mimetype="image/png")]
        answer = kind(model).chat([ChatMessage(role="user", blocks=blocks)])
        says(answer.message.content, LOOK, "(an image)")

    return {each.__name__: each for each in (text, stream, tools, structured, image)}


run("LlamaIndex, OpenAILike", scenarios(chat))
run("LlamaIndex, OpenAIResponses", scenarios(responses))
run("LlamaIndex, Anthropic", scenarios(claude))
run("LlamaIndex, GoogleGenAI", scenarios(gemini))
