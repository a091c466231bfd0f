"""llm, with the gateway's models from its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scenarios import (
    BASE_URL,
    CITIES,
    FACTS,
    HELLO,
    KEY,
    LOOK,
    MODELS,
    STEPS,
    own_scenarios,
    png,
    run,
    same,
    says,
)
from scenarios import weather as weather_of

HOME = Path(os.environ["HOME"], "llm")
HOME.mkdir()
(HOME / "extra-openai-models.yaml").write_text(
    "".join(
        f"- model_id: {model}\n  model_name: {model}\n  api_base: {BASE_URL}/v1\n"
        "  vision: true\n  supports_tools: true\n  supports_schema: true\n"
        for model in MODELS.values()
    )
)
os.environ |= {"LLM_USER_PATH": str(HOME), "OPENAI_API_KEY": KEY}

import llm  # noqa: E402 (it reads the folder when it is imported)


def asked(model: str) -> Any:
    found = llm.get_model(model)
    found.key = KEY
    return found


def text(model: str, vendor: str) -> None:
    says(asked(model).prompt(HELLO, system="Be brief.", stream=False).text(), HELLO)


def stream(model: str, vendor: str) -> None:
    pieces = list(asked(model).prompt(HELLO))
    says("".join(pieces), HELLO)
    assert len(pieces) > 2


def tools(model: str, vendor: str) -> None:
    loop(model, stream=False)


def stream_tools(model: str, vendor: str) -> None:
    loop(model, stream=True)


def loop(model: str, *, stream: bool) -> None:
    called = []

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        called.append(city)
        return weather_of(city)

    conversation = asked(model).conversation()
    says(conversation.chain(STEPS, tools=[weather], stream=stream).text(), "rain in Oslo")
    same(called, CITIES)
    says(conversation.prompt(f"{HELLO}\ncall none", tools=[], stream=stream).text(), HELLO)


def structured(model: str, vendor: str) -> None:
    schema = llm.schema_dsl("city, degrees int")
    answer = asked(model).prompt(FACTS, schema=schema, stream=False).text()
    same(json.loads(answer), {"city": "Köln", "degrees": 21})


def image(model: str, vendor: str) -> None:
    picture = llm.Attachment(type="image/png", content=png())
    says(asked(model).prompt(LOOK, attachments=[picture]).text(), LOOK, "(an image)")


run("llm", own_scenarios(globals()))
