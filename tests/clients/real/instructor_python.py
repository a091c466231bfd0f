"""instructor, with the SDKs of OpenAI, Anthropic and Google: structured output in all its ways."""

from __future__ import annotations

from typing import Any

import anthropic
import instructor
import openai
from google import genai
from pydantic import BaseModel
from scenarios import BASE_URL, FACTS, KEY, run, same

OPENAI = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY, max_retries=0, timeout=30)
CLAUDE = anthropic.Anthropic(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=30)
GOOGLE = genai.Client(api_key=KEY, http_options={"base_url": BASE_URL})
WAYS: dict[str, Any] = {
    "openai_tools": lambda: instructor.from_openai(OPENAI, mode=instructor.Mode.TOOLS),
    "openai_tools_strict": lambda: instructor.from_openai(
        OPENAI, mode=instructor.Mode.TOOLS_STRICT
    ),
    "openai_json_schema": lambda: instructor.from_openai(OPENAI, mode=instructor.Mode.JSON_SCHEMA),
    "responses_tools": lambda: instructor.from_openai(OPENAI, mode=instructor.Mode.RESPONSES_TOOLS),
    "anthropic_tools": lambda: instructor.from_anthropic(
        CLAUDE, mode=instructor.Mode.ANTHROPIC_TOOLS
    ),
    "genai_tools": lambda: instructor.from_genai(GOOGLE, mode=instructor.Mode.GENAI_TOOLS),
    "genai_structured": lambda: instructor.from_genai(
        GOOGLE, mode=instructor.Mode.GENAI_STRUCTURED_OUTPUTS
    ),
}


class Place(BaseModel):
    """A place."""

    city: str
    degrees: int


def scenario(way: str) -> Any:
    def ask(model: str, vendor: str) -> None:
        more = {"max_tokens": 1000} if way.startswith("anthropic") else {}
        answer = WAYS[way]().create(
            model=model,
            response_model=Place,
            max_retries=0,
            messages=[{"role": "user", "content": FACTS}],
            **more,
        )
        same(Place(**answer.model_dump()), Place(city="Köln", degrees=21))

    return ask


def partial(model: str, vendor: str) -> None:
    """Read an answer while it is written."""
    client = instructor.from_openai(OPENAI, mode=instructor.Mode.TOOLS)
    asked: Any = [{"role": "user", "content": FACTS}]
    parts = list(client.create_partial(model=model, response_model=Place, messages=asked))
    same(parts[-1].model_dump(), {"city": "Köln", "degrees": 21})


run("instructor", {way: scenario(way) for way in WAYS} | {"partial": partial})
