"""Providers: the presets of known vendors, the rows of vendors.toml, and the types of plug-ins.

`http` calls a vendor, over the connections of `transport`; `passing` does it for bytes that pass
through. `credentials` chooses the API key, `failures` and `redaction` make errors.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..dialects.responses import STANDARD, Support

GROUP = "infermux.providers"  # the entry-point group of plug-ins


class Preset(NamedTuple):
    """A vendor's address, dialect, models, and the environment variables of address and key."""

    base_url: str = ""
    models: tuple[str, ...] = ()  # the first one is the default
    pattern: str = ""  # of model ids that only this vendor has
    dialect: str = "openai"
    path: str = ""  # appended to an address without one
    vendor: str = ""  # in the price table; empty: the preset's name
    address: str = ""  # the variable of the address; empty: <NAME>_BASE_URL
    keys: tuple[str, ...] = ()  # the variables of its key; empty: <NAME>_API_KEY
    label: str = ""  # its name as people write it
    responses: Support | None = None  # how it supports Responses; None: it does not
    thoughtless: str = ""  # pattern of models that refuse to be asked for reasoning
    auth: str = ""  # "bearer": the key goes into Authorization, whatever the dialect is
    # what it has of images, audio, files and so on; "", or its path if it is not the usual one
    endpoints: Mapping[str, str] = {}


def _presets() -> dict[str, Preset]:
    """Return the rows of vendors.toml, with what is usual for the rest."""
    text = Path(__file__).with_name("vendors.toml").read_text(encoding="utf-8")
    found, rows = dict[str, Preset](), tomllib.loads(text)
    for name, row in rows.items():
        usual = Preset(keys=(f"{name.upper()}_API_KEY",), label=name.capitalize())
        usual = found[row.pop("like")] if "like" in row else usual
        if (told := row.get("responses")) is not None:
            like = rows[told.pop("like")]["responses"] if "like" in told else STANDARD
            row["responses"] = like._replace(**told)
        if isinstance(row.get("endpoints"), list):
            row["endpoints"] = dict.fromkeys(row["endpoints"], "")
        lists = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
        found[name] = usual._replace(**row | lists)
    return found


PRESETS = _presets()


def owner(name: str) -> str:
    """Return the vendor that *name* means: a preset, PRESET/MODEL or its own model; or ""."""
    first = name.partition("/")[0]
    if first in PRESETS:
        return first
    vendors = (key for key, each in PRESETS.items() if not each.keys[0].endswith("_HOST"))
    found = (key for key in vendors if (own := PRESETS[key].pattern) and re.match(own, name[:200]))
    return next(found, "")


def plugin(type: str) -> Callable[[Any], Any] | None:
    """Return the callable that an installed package registers for a provider type, or None."""
    entries = importlib.metadata.entry_points(group=GROUP, name=type)
    return next((entry.load() for entry in entries), None)


def plugins() -> list[str]:
    """Return the provider types that installed packages register."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})
