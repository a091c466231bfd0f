"""The OpenAI Agents SDK, by Responses (its default) and by chat completions."""

from __future__ import annotations

from typing import Any

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai.types.shared import Reasoning
from pydantic import BaseModel
from scenarios import BASE_URL, CITIES, FACTS, HELLO, KEY, LOOK, PNG_URL, STEPS, run, same, says
from scenarios import weather as weather_of

set_tracing_disabled(True)
THINKING = ModelSettings(
    reasoning=Reasoning(effort="high", summary="auto"),
    store=False,
    response_include=["reasoning.encrypted_content"],
)


class Place(BaseModel):
    city: str
    degrees: int


def scenarios(kind: Any) -> dict[str, Any]:
    """Return the scenarios of a model class of the SDK."""

    def agent(model: str, **more: Any) -> Agent[Any]:
        client = openai.AsyncOpenAI(
            base_url=f"{BASE_URL}/v1", api_key=KEY, max_retries=0, timeout=30
        )
        return Agent(
            name="a",
            instructions="Be brief.",
            model=kind(model=model, openai_client=client),
            **more,
        )

    async def text(model: str, vendor: str) -> None:
        says((await Runner.run(agent(model), HELLO)).final_output, HELLO)

    async def stream(model: str, vendor: str) -> None:
        result = Runner.run_streamed(agent(model), HELLO)
        events = [event async for event in result.stream_events()]
        says(result.final_output, HELLO)
        assert sum(event.type == "raw_response_event" for event in events) > 4

    async def tools(model: str, vendor: str) -> None:
        await loop(model)

    async def stream_tools(model: str, vendor: str) -> None:
        await loop(model, streamed=True)

    async def reasoning_tools(model: str, vendor: str) -> None:
        await loop(model, streamed=True, model_settings=THINKING)

    async def loop(model: str, *, streamed: bool = False, **more: Any) -> None:
        called = []

        @function_tool
        def weather(city: str) -> str:
            """Tell the weather of a city."""
            called.append(city)
            return weather_of(city)

        acting = agent(model, tools=[weather], **more)
        if streamed:
            result: Any = Runner.run_streamed(acting, STEPS)
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(acting, STEPS)
        same(sorted(called), sorted(CITIES))
        says(result.final_output, "rain in Oslo", "rain in 東京")
        history = [*result.to_input_list(), {"role": "user", "content": HELLO}]
        says((await Runner.run(agent(model), history)).final_output, HELLO)

    async def structured(model: str, vendor: str) -> None:
        result = await Runner.run(agent(model, output_type=Place), FACTS)
        same(result.final_output, Place(city="Köln", degrees=21))

    async def image(model: str, vendor: str) -> None:
        parts = [
            {"type": "input_text", "text": LOOK},
            {"type": "input_image", "image_url": PNG_URL, "detail": "auto"},
        ]
        asked: Any = [{"role": "user", "content": parts}]
        says((await Runner.run(agent(model), asked)).final_output, LOOK, "(an image)")

    async def handoff(model: str, vendor: str) -> None:
        other = Agent(name="other", instructions="Be exact.", model=agent(model).model)
        asked = f"call transfer_to_other {{}}\n{HELLO}"
        result = await Runner.run(agent(model, handoffs=[other]), asked)
        same(result.last_agent.name, "other")

    found = [text, stream, tools, stream_tools, reasoning_tools, structured, image, handoff]
    return {each.__name__: each for each in found}


run("openai-agents, responses", scenarios(OpenAIResponsesModel))
run("openai-agents, chat", scenarios(OpenAIChatCompletionsModel))
