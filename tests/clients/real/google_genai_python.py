"""The google-genai SDK."""

from __future__ import annotations

from typing import Any

from google import genai
from google.genai import types
from pydantic import BaseModel
from scenarios import (
    BASE_URL,
    CITIES,
    FACTS,
    HELLO,
    KEY,
    LOOK,
    STEPS,
    THINK,
    own_scenarios,
    png,
    run,
    same,
    says,
    thought,
    weather,
)

CLIENT = genai.Client(
    api_key=KEY, http_options=types.HttpOptions(base_url=BASE_URL, timeout=30_000)
)
DECLARED = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(
            name="weather",
            description="The weather of a city",
            parameters=types.Schema(
                type=types.Type.OBJECT,
                properties={"city": types.Schema(type=types.Type.STRING)},
                required=["city"],
            ),
        )
    ]
)
THINKING = types.ThinkingConfig(include_thoughts=True, thinking_level=types.ThinkingLevel.HIGH)


class Place(BaseModel):
    city: str
    degrees: int


def text(model: str, vendor: str) -> None:
    answer = CLIENT.models.generate_content(
        model=model,
        contents=HELLO,
        config=types.GenerateContentConfig(system_instruction="Be brief."),
    )
    says(answer.text, HELLO)
    assert answer.usage_metadata and answer.usage_metadata.candidates_token_count


def stream(model: str, vendor: str) -> None:
    pieces = [
        chunk.text or ""
        for chunk in CLIENT.models.generate_content_stream(model=model, contents=HELLO)
    ]
    says("".join(pieces), HELLO)
    assert len(pieces) > 2


def tools(model: str, vendor: str) -> None:
    loop(model, CLIENT.models.generate_content, types.GenerateContentConfig(tools=[DECLARED]))


def stream_tools(model: str, vendor: str) -> None:
    loop(model, streamed, types.GenerateContentConfig(tools=[DECLARED]))


def reasoning_tools(model: str, vendor: str) -> None:
    config = types.GenerateContentConfig(tools=[DECLARED], thinking_config=THINKING)
    loop(model, streamed, config)


def streamed(**more: Any) -> Any:
    """Return a stream as one answer, as a client of its own would put it together."""
    parts: list[types.Part] = []
    for chunk in CLIENT.models.generate_content_stream(**more):
        parts += (chunk.candidates[0].content.parts or []) if chunk.candidates else []
    content = types.Content(role="model", parts=parts)
    return types.GenerateContentResponse(candidates=[types.Candidate(content=content)])


def loop(model: str, generate: Any, config: types.GenerateContentConfig) -> None:
    contents = [types.Content(role="user", parts=[types.Part(text=STEPS)])]
    called = []
    for _ in range(4):
        answer = generate(model=model, contents=contents, config=config)
        contents.append(answer.candidates[0].content)
        if not answer.function_calls:
            break
        results = []
        for call in answer.function_calls:
            called.append(call.args["city"])
            result = {"result": weather(called[-1])}
            made = types.FunctionResponse(id=call.id, name=call.name, response=result)
            results.append(types.Part(function_response=made))
        contents.append(types.Content(role="user", parts=results))
    same(called, CITIES)
    says(answer.text, "rain in Oslo", "rain in 東京")
    contents.append(types.Content(role="user", parts=[types.Part(text="Thanks: call none")]))
    none = types.ToolConfig(
        function_calling_config=types.FunctionCallingConfig(
            mode=types.FunctionCallingConfigMode.NONE
        )
    )
    quiet = config.model_copy(update={"tool_config": none})
    says(generate(model=model, contents=contents, config=quiet).text, "Thanks")


def automatic(model: str, vendor: str) -> None:
    called = []

    def weather_of(city: str) -> str:
        """Tell the weather of a city."""
        called.append(city)
        return weather(city)

    weather_of.__name__ = "weather"
    chat = CLIENT.chats.create(model=model, config=types.GenerateContentConfig(tools=[weather_of]))
    answer = chat.send_message(STEPS)
    same(called, CITIES)
    says(answer.text, "rain in Oslo", "rain in 東京")


def structured(model: str, vendor: str) -> None:
    answer = CLIENT.models.generate_content(
        model=model,
        contents=FACTS,
        config=types.GenerateContentConfig(
            response_mime_type="application/json", response_schema=Place
        ),
    )
    same(answer.parsed, Place(city="Köln", degrees=21))


def image(model: str, vendor: str) -> None:
    picture = types.Part.from_bytes(data=png(), mime_type="image/png")
    answer = CLIENT.models.generate_content(model=model, contents=[LOOK, picture])
    says(answer.text, LOOK, "(an image)")


def reasoning(model: str, vendor: str) -> None:
    answer = CLIENT.models.generate_content(
        model=model,
        contents=THINK,
        config=types.GenerateContentConfig(thinking_config=THINKING),
    )
    says(answer.text, THINK)
    parts = answer.candidates[0].content.parts
    thought("".join(part.text or "" for part in parts if part.thought), vendor)


def count(model: str, vendor: str) -> None:
    assert CLIENT.models.count_tokens(model=model, contents=HELLO).total_tokens


run("google-genai", own_scenarios(globals()))
