"""The anthropic SDK."""

from __future__ import annotations

from typing import Any

import anthropic
from pydantic import BaseModel
from scenarios import (
    BASE_URL,
    CITIES,
    FACTS,
    HELLO,
    KEY,
    LOOK,
    PNG,
    STEPS,
    THINK,
    WEATHER,
    own_scenarios,
    run,
    same,
    says,
    thought,
)
from scenarios import weather as weather_of

CLIENT = anthropic.Anthropic(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=30)
TOOLS: Any = [
    {"name": "weather", "description": "The weather of a city", "input_schema": WEATHER},
]
MOST = 4096


class Place(BaseModel):
    city: str
    degrees: int


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def text(model: str, vendor: str) -> None:
    answer = CLIENT.messages.create(
        model=model, max_tokens=MOST, system="Be brief.", messages=[user(HELLO)]
    )
    says(text_of(answer), HELLO)
    assert answer.usage.output_tokens and answer.stop_reason == "end_turn"


def stream(model: str, vendor: str) -> None:
    with CLIENT.messages.stream(model=model, max_tokens=MOST, messages=[user(HELLO)]) as streamed:
        pieces = list(streamed.text_stream)
        says(text_of(streamed.get_final_message()), HELLO)
    says("".join(pieces), HELLO)
    assert len(pieces) > 2


def create(**more: Any) -> Any:
    return CLIENT.messages.create(max_tokens=MOST, tools=TOOLS, **more)


def streamed_message(**more: Any) -> Any:
    with CLIENT.messages.stream(max_tokens=MOST, tools=TOOLS, **more) as streamed:
        return streamed.get_final_message()


def tools(model: str, vendor: str) -> None:
    loop(model, create)


def stream_tools(model: str, vendor: str) -> None:
    loop(model, streamed_message)


def reasoning_tools(model: str, vendor: str) -> None:
    loop(model, streamed_message, thinking={"type": "enabled", "budget_tokens": 2000})


def loop(model: str, ask: Any, **more: Any) -> None:
    messages, called = [user(STEPS)], []
    for _ in range(4):
        answer = ask(model=model, messages=messages, **more)
        messages.append({"role": "assistant", "content": answer.content})
        if answer.stop_reason != "tool_use":
            break
        results = []
        for block in answer.content:
            if block.type == "tool_use":
                called.append(block.input["city"])
                results.append(
                    {
                        "type": "tool_result",
                        "tool_use_id": block.id,
                        "content": weather_of(called[-1]),
                    }
                )
        messages.append(user(results))
    same(called, CITIES)
    says(text_of(answer), "rain in Oslo", "rain in 東京")
    messages.append(user(HELLO))
    says(text_of(ask(model=model, messages=messages, tool_choice={"type": "none"}, **more)), HELLO)


def runner(model: str, vendor: str) -> None:
    called = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Tell the weather of a city.

        Args:
            city: The name of the city.
        """
        called.append(city)
        return weather_of(city)

    answer = CLIENT.beta.messages.tool_runner(
        model=model, max_tokens=MOST, tools=[weather], messages=[user(STEPS)]
    ).until_done()
    same(called, CITIES)
    says(text_of(answer), "rain in Oslo", "rain in 東京")


def structured(model: str, vendor: str) -> None:
    answer = CLIENT.messages.parse(
        model=model, max_tokens=MOST, messages=[user(FACTS)], output_format=Place
    )
    same(answer.parsed_output, Place(city="Köln", degrees=21))


def image(model: str, vendor: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    parts = [{"type": "text", "text": LOOK}, {"type": "image", "source": source}]
    answer = CLIENT.messages.create(model=model, max_tokens=MOST, messages=[user(parts)])
    says(text_of(answer), LOOK, "(an image)")


def reasoning(model: str, vendor: str) -> None:
    answer = CLIENT.messages.create(
        model=model,
        max_tokens=MOST,
        thinking={"type": "enabled", "budget_tokens": 2000},
        messages=[user(THINK)],
    )
    says(text_of(answer), THINK)
    thoughts = [block.thinking for block in answer.content if block.type == "thinking"]
    thought("".join(thoughts), vendor)


def count(model: str, vendor: str) -> None:
    counted = CLIENT.messages.count_tokens(model=model, messages=[user(HELLO)])
    assert counted.input_tokens > 0


run("anthropic", own_scenarios(globals()))
