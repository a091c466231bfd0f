"""The openai SDK, by chat completions and by Responses."""

from __future__ import annotations

import json
from typing import Any

import openai
from pydantic import BaseModel
from scenarios import (
    BASE_URL,
    CITIES,
    FACTS,
    HELLO,
    KEY,
    LOOK,
    PNG_URL,
    STEPS,
    THINK,
    WEATHER,
    own_scenarios,
    run,
    same,
    says,
    thought,
    weather,
)

CLIENT = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY, max_retries=0, timeout=30)
FUNCTION = {"name": "weather", "description": "The weather of a city", "parameters": WEATHER}
CHAT_TOOLS: Any = [{"type": "function", "function": FUNCTION}]
TOOLS: Any = [{"type": "function", **FUNCTION}]


class Place(BaseModel):
    city: str
    degrees: int


# -- chat completions --


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def chat_text(model: str, vendor: str) -> None:
    answer = CLIENT.chat.completions.create(model=model, messages=[user(HELLO)])
    says(answer.choices[0].message.content, HELLO)
    assert answer.usage and answer.usage.completion_tokens


def chat_stream(model: str, vendor: str) -> None:
    chunks = list(
        CLIENT.chat.completions.create(
            model=model,
            messages=[user(HELLO)],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    says("".join(said), HELLO)
    assert len(said) > 2 and chunks[-1].usage


def chat_tools(model: str, vendor: str) -> None:
    chat_loop(model, lambda **more: CLIENT.chat.completions.create(**more).choices[0])


def chat_stream_tools(model: str, vendor: str) -> None:
    def streamed(**more: Any) -> Any:
        with CLIENT.chat.completions.stream(**more) as stream:
            return stream.get_final_completion().choices[0]

    chat_loop(model, streamed)


def chat_reasoning(model: str, vendor: str) -> None:
    answer = CLIENT.chat.completions.create(
        model=model, messages=[user(THINK)], reasoning_effort="high"
    )
    message: Any = answer.choices[0].message
    says(message.content, THINK)
    if vendor != "openai responses":  # there thoughts are told where a summary is asked for
        thought(getattr(message, "reasoning_content", None), vendor)


def chat_reasoning_tools(model: str, vendor: str) -> None:
    def thinking(**more: Any) -> Any:
        return CLIENT.chat.completions.create(reasoning_effort="high", **more).choices[0]

    chat_loop(model, thinking)


def chat_loop(model: str, complete: Any) -> None:
    """Call the tools that the model asks for, until it answers; then thank it."""
    messages, called = [user(STEPS)], []
    for _ in range(4):
        choice = complete(model=model, messages=messages, tools=CHAT_TOOLS)
        messages.append(own(choice.message))
        if choice.finish_reason != "tool_calls":
            break
        for call in choice.message.tool_calls:
            called.append(json.loads(call.function.arguments)["city"])
            messages.append(
                {"role": "tool", "tool_call_id": call.id, "content": weather(called[-1])}
            )
    same(called, CITIES)
    says(choice.message.content, "rain in Oslo", "rain in 東京")
    messages.append(user(f"call none\n{HELLO}"))
    choice = complete(model=model, messages=messages, tools=CHAT_TOOLS, tool_choice="none")
    says(choice.message.content, HELLO)


def own(message: Any) -> Any:
    """Return a message without what helpers of the SDK add to it."""
    told = message.model_dump(exclude={"parsed"}, exclude_none=True)
    for call in told.get("tool_calls", []):
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    return told


def chat_structured(model: str, vendor: str) -> None:
    answer = CLIENT.chat.completions.parse(
        model=model, messages=[user(FACTS)], response_format=Place
    )
    same(answer.choices[0].message.parsed, Place(city="Köln", degrees=21))


def chat_json(model: str, vendor: str) -> None:
    answer = CLIENT.chat.completions.create(
        model=model,
        messages=[user(f"{FACTS} Answer in JSON.")],
        response_format={"type": "json_object"},
    )
    if vendor != "anthropic":  # there it is an instruction, which this model does not follow
        json.loads(answer.choices[0].message.content or "")


def chat_image(model: str, vendor: str) -> None:
    parts = [{"type": "text", "text": LOOK}, {"type": "image_url", "image_url": {"url": PNG_URL}}]
    answer = CLIENT.chat.completions.create(model=model, messages=[user(parts)])
    says(answer.choices[0].message.content, LOOK, "(an image)")


# -- Responses --


def responses_text(model: str, vendor: str) -> None:
    answer = CLIENT.responses.create(model=model, instructions="Be brief.", input=HELLO)
    says(answer.output_text, HELLO)
    assert answer.status == "completed" and answer.usage and answer.usage.output_tokens


def responses_stream(model: str, vendor: str) -> None:
    deltas = []
    with CLIENT.responses.stream(model=model, input=HELLO) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                deltas.append(event.delta)
        says(stream.get_final_response().output_text, HELLO)
    says("".join(deltas), HELLO)
    assert len(deltas) > 2


def responses_tools(model: str, vendor: str) -> None:
    responses_loop(model, CLIENT.responses.create)


def responses_stream_tools(model: str, vendor: str) -> None:
    responses_loop(model, streamed_response)


def responses_reasoning(model: str, vendor: str) -> None:
    answer = CLIENT.responses.create(
        model=model, input=THINK, reasoning={"effort": "high", "summary": "auto"}
    )
    says(answer.output_text, THINK)
    items = [item for item in answer.output if item.type == "reasoning"]
    thought("".join(part.text for item in items for part in item.summary), vendor)


def responses_reasoning_tools(model: str, vendor: str) -> None:
    responses_loop(model, streamed_response, reasoning={"effort": "high", "summary": "auto"})


def streamed_response(**more: Any) -> Any:
    with CLIENT.responses.stream(**more) as stream:
        return stream.get_final_response()


def responses_loop(model: str, create: Any, **more: Any) -> None:
    items: list[Any] = [user(STEPS)]
    called = []
    for _ in range(4):
        answer = create(
            model=model,
            input=items,
            tools=TOOLS,
            store=False,
            include=["reasoning.encrypted_content"],
            **more,
        )
        items += [
            item.model_dump(exclude={"parsed_arguments"}, exclude_none=True)
            for item in answer.output
        ]
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            break
        for call in calls:
            called.append(json.loads(call.arguments)["city"])
            items.append(
                {
                    "type": "function_call_output",
                    "call_id": call.call_id,
                    "output": weather(called[-1]),
                }
            )
    same(called, CITIES)
    says(answer.output_text, "rain in Oslo", "rain in 東京")


def responses_structured(model: str, vendor: str) -> None:
    answer = CLIENT.responses.parse(model=model, input=FACTS, text_format=Place)
    same(answer.output_parsed, Place(city="Köln", degrees=21))


def responses_image(model: str, vendor: str) -> None:
    parts = [
        {"type": "input_text", "text": LOOK},
        {"type": "input_image", "image_url": PNG_URL, "detail": "auto"},
    ]
    answer = CLIENT.responses.create(model=model, input=[user(parts)])
    says(answer.output_text, LOOK, "(an image)")


run("openai, chat", own_scenarios(globals(), "chat_"))
run("openai, responses", own_scenarios(globals(), "responses_"))
