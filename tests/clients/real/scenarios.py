"""What the client programs share: what to ask the strict vendor's model, and what it must answer.

A program reads BASE_URL, KEY and MODELS (JSON: vendor → model) from its environment, and prints one
line of JSON for each scenario: client, vendor, scenario, and the error, or "" if it passed.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import os
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from typing import Any

BASE_URL, KEY = os.environ["BASE_URL"], os.environ["KEY"]
MODELS: dict[str, str] = json.loads(os.environ["MODELS"])
HELLO = "Hello from Köln 🌞"
STEPS = (  # one call, then two at once
    'call weather {"city": "Köln"}\nthen\n'
    'call weather {"city": "Oslo"}\ncall weather {"city": "東京"}'
)
CITIES = ["Köln", "Oslo", "東京"]
FACTS = "It is 21 degrees in 'Köln'."
LOOK = "What is in this picture?"
THINK = "Why is the sky blue?"
THOUGHT = "Let me think about"  # so begins what the model thinks, where it can be read
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "The name of the city"}},
    "required": ["city"],
}


def weather(city: str) -> str:
    """Tell the weather of a city.

    Args:
        city: The name of the city.
    """
    return f"rain in {city}"


def png(side: int = 8) -> bytes:
    """Return a red square as a PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress((b"\0" + b"\xff\0\0" * side) * side)
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PNG = base64.b64encode(png()).decode()
PNG_URL = f"data:image/png;base64,{PNG}"


def says(text: object, *words: str) -> None:
    """Fail unless the model's text holds all *words*."""
    missing = [word for word in words if word not in str(text)]
    assert not missing, f"{missing} not in {str(text)[:300]!r}"


def same(found: object, wanted: object) -> None:
    assert found == wanted, f"got {str(found)[:300]}, not {str(wanted)[:200]}"


def thought(text: object, vendor: str) -> None:
    """Fail unless thoughts arrived; chat completions never tell them."""
    if vendor != "openai chat":
        says(text, THOUGHT)


Scenario = Callable[[str, str], Any]  # of the model and the vendor; plain or async


def run(client: str, scenarios: Mapping[str, Scenario]) -> None:
    """Run the scenarios of a client over every vendor, and print how each ended."""
    only = os.environ.get("SCENARIO")
    for vendor, model in MODELS.items():
        for name, scenario in scenarios.items():
            if only in (None, name):
                begun = time.monotonic()
                error = error_of(lambda: ended(scenario(model, vendor)))  # noqa: B023
                if error is not None:
                    tell(client, vendor, name, error, time.monotonic() - begun)


def ended(result: Any) -> None:
    if inspect.isawaitable(result):
        asyncio.run(asyncio.wait_for(_wait(result), 60))


async def _wait(result: Any) -> None:
    await result


class Skipped(Exception):
    """The client itself does not do this."""


def error_of(function: Callable[[], Any]) -> str | None:
    """Return how a function failed, "" if it did not, or None if the client does not do this."""
    try:
        function()
    except Skipped:
        return None
    except Exception as error:  # of any client: it is what the table is about
        here = [
            frame for frame in traceback.extract_tb(error.__traceback__) if __file__ not in frame[0]
        ]
        place = next((f"{f.name}:{f.lineno}" for f in here if "site-packages" not in f[0]), "")
        return f"{place} {type(error).__name__}: {str(error)[:600]}"
    return ""


def tell(client: str, vendor: str, scenario: str, error: str, seconds: float = 0.0) -> None:
    line = {"client": client, "vendor": vendor, "scenario": scenario, "error": error}
    print(json.dumps(line | {"seconds": round(seconds, 2)}), flush=True)


def own_scenarios(names: Mapping[str, Any], beginning: str = "") -> dict[str, Scenario]:
    """Return the functions of a module that take a model and a vendor, by their names."""
    found = {}
    for name, value in names.items():
        if not inspect.isfunction(value) or not name.startswith(beginning):
            continue
        if list(inspect.signature(value).parameters) == ["model", "vendor"]:
            found[name.removeprefix(beginning)] = value
    return found


if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(encoding="utf-8")
