"""pydantic-ai with its models for OpenAI (both APIs), Anthropic and Google."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider
from scenarios import (
    BASE_URL,
    CITIES,
    FACTS,
    HELLO,
    KEY,
    LOOK,
    STEPS,
    THINK,
    Skipped,
    png,
    run,
    same,
    says,
    thought,
)
from scenarios import weather as weather_of

OPENAI = OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key=KEY)
KINDS: dict[str, Any] = {
    "pydantic-ai, chat": (
        lambda model: OpenAIChatModel(model, provider=OPENAI),
        {"openai_reasoning_effort": "high"},
    ),
    "pydantic-ai, responses": (
        lambda model: OpenAIResponsesModel(model, provider=OPENAI),
        {"openai_reasoning_effort": "high", "openai_reasoning_summary": "auto"},
    ),
    "pydantic-ai, anthropic": (
        lambda model: AnthropicModel(
            model, provider=AnthropicProvider(base_url=BASE_URL, api_key=KEY)
        ),
        {
            "anthropic_thinking": {"type": "adaptive"},
            "anthropic_effort": "high",
            "max_tokens": 4096,
        },
    ),
    "pydantic-ai, google": (
        lambda model: GoogleModel(model, provider=GoogleProvider(base_url=BASE_URL, api_key=KEY)),
        {"google_thinking_config": {"include_thoughts": True, "thinking_level": "HIGH"}},
    ),
}


class Place(BaseModel):
    city: str
    degrees: int


def scenarios(client: str) -> dict[str, Any]:
    """Return the scenarios of one of the models."""
    kind, thinking = KINDS[client]

    def agent(model: str, **more: Any) -> Agent[Any, Any]:
        return Agent(kind(model), instructions="Be brief.", retries=0, **more)

    async def text(model: str, vendor: str) -> None:
        says((await agent(model).run(HELLO)).output, HELLO)

    async def stream(model: str, vendor: str) -> None:
        async with agent(model).run_stream(HELLO) as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        says("".join(pieces), HELLO)
        assert len(pieces) > 2

    async def tools(model: str, vendor: str) -> None:
        await loop(model)

    async def reasoning_tools(model: str, vendor: str) -> None:
        if client == "pydantic-ai, anthropic" and vendor != "anthropic":
            raise Skipped("it tells thoughts without a signature in the user's words")
        await loop(model, model_settings=thinking)

    async def loop(model: str, **more: Any) -> None:
        called = []
        acting = agent(model, **more)

        @acting.tool_plain
        def weather(city: str) -> str:
            """Tell the weather of a city."""
            called.append(city)
            return weather_of(city)

        result = await acting.run(STEPS)
        same(sorted(called), sorted(CITIES))
        says(result.output, "rain in Oslo", "rain in 東京")
        again = await agent(model).run(HELLO, message_history=result.all_messages())
        says(again.output, HELLO)

    async def stream_tools(model: str, vendor: str) -> None:
        acting = agent(model)
        acting.tool_plain(weather_of)
        async with acting.run_stream(STEPS) as result:
            says(await result.get_output(), "rain in Oslo", "rain in 東京")

    async def structured(model: str, vendor: str) -> None:
        result = await agent(model, output_type=Place).run(FACTS)
        same(result.output, Place(city="Köln", degrees=21))

    async def structured_schema(model: str, vendor: str) -> None:
        if client == "pydantic-ai, anthropic" and vendor != "anthropic":
            raise Skipped("it has this only for the names of Claude models")
        result = await agent(model, output_type=NativeOutput(Place)).run(FACTS)
        same(result.output, Place(city="Köln", degrees=21))

    async def image(model: str, vendor: str) -> None:
        picture = BinaryContent(data=png(), media_type="image/png")
        says((await agent(model).run([LOOK, picture])).output, LOOK, "(an image)")

    async def reasoning(model: str, vendor: str) -> None:
        result = await agent(model, model_settings=thinking).run(THINK)
        says(result.output, THINK)
        parts = [part for message in result.all_messages() for part in message.parts]
        if client != "pydantic-ai, chat":
            thought([part.content for part in parts if isinstance(part, ThinkingPart)], vendor)

    found = [text, stream, tools, stream_tools, reasoning_tools, structured, structured_schema]
    return {each.__name__: each for each in [*found, image, reasoning]}


for name in KINDS:
    run(name, scenarios(name))
