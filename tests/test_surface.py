"""Compares everything that a user can see of the running program with tests/data/surface.json.

It is read from outside: from the help of the commands, the responses, logs, spans and files of
services under gunicorn, the errors of `infermux validate`, and the public names. Moving code makes
no difference. A name that is changed on purpose is added to RENAMED.

`python tests/test_surface.py --write` writes the present state to the file: read the difference
before you commit it. tests/data/surface.toml has every key of the configuration; a new key is added
there by hand, and the test fails until it is.
"""

from __future__ import annotations

import configparser
import contextlib
import csv
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import sqlite3
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from support import (
    HELLO,
    ROOT,
    Answer,
    Peer,
    Service,
    completion,
    eventually,
    is_ours,
    run,
    script,
)

from infermux.testing import FaultyVendor

RENAMED: dict[str, str] = {
    "door": "api",
    "WHAT CAME OF IT": "OUTCOME",
}  # names that were changed on purpose go here: {"door": "api"}
DOOR = RENAMED.get("door", "door")
KEPT = ROOT / "tests" / "data" / "surface.json"
FULL = ROOT / "tests" / "data" / "surface.toml"
OTEL = importlib.util.find_spec("opentelemetry") is not None
ADMIN = "surface-admin"
NOBODY = "zzqqxx"  # a name that is close to no other
DATE = "1979-05-27"  # a value that hardly any key takes
SECRET = {"SURFACE_SECRET": "a-secret", "SURFACE_HOOK": "http://127.0.0.1:9"}
LOCAL = ("OLLAMA_HOST", "VLLM_BASE_URL", "LMSTUDIO_BASE_URL", "LLAMACPP_BASE_URL")

JSON = Any


# -- what a value looks like -----------------------------------------------------------------------

KINDS = {str: "text", int: "int", float: "float", bool: "bool", type(None): "null"}
# keys whose values are part of what is promised
WORDS = {DOOR, "type", "code", "object", "role", "finish_reason", "stop_reason", "strategy"}
WORDS |= {"status", "state", "by", "level", "operation", "source", "version"}


def shape(value: JSON, key: str = "") -> JSON:
    """Return *value* with types for scalars, and a list as what its items have in common."""
    if isinstance(value, dict):
        return {name: shape(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [merged(shape(item, key) for item in value)]
    return f"= {value}" if key in WORDS and isinstance(value, str) else KINDS[type(value)]


def merged(shapes: Iterable[JSON]) -> JSON:
    """Return one shape for several: a key that not all of them have ends in a question mark."""
    each = [one for one in shapes if one != "nothing"]
    tables = [one for one in each if isinstance(one, dict)]
    lists = [one for one in each if isinstance(one, list)]
    words = sorted({word for one in each if isinstance(one, str) for word in one.split(" | ")})
    if tables:
        names = dict.fromkeys(name.removesuffix("?") for one in tables for name in one)
        table = {name + _doubt(name, tables): merged(_under(name, tables)) for name in names}
        return {"(or)": " | ".join(words), **table} if words else table
    if lists:
        return [merged(item for one in lists for item in one), *words]
    return " | ".join(words) or "nothing"


def _doubt(name: str, shapes: list[dict[str, JSON]]) -> str:
    return "" if all(name in one for one in shapes) else "?"


def _under(name: str, shapes: list[dict[str, JSON]]) -> Iterator[JSON]:
    for one in shapes:
        for spelt in (name, f"{name}?"):
            if spelt in one:
                yield one[spelt]


def rendered(value: JSON, depth: int = 0) -> str:
    """Return JSON with each part that fits into a line on one."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(line) + depth < 100:
        return line
    pad, (first, last) = " " * (depth + 1), "{}" if isinstance(value, dict) else "[]"
    parts = [
        rendered(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)
    ]
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {part}" for name, part in zip(value, parts, strict=True)]
    return f"{first}\n{pad}" + f",\n{pad}".join(parts) + f"\n{' ' * depth}{last}"


# -- the command line ------------------------------------------------------------------------------


@cache
def setup() -> configparser.ConfigParser:
    """Return setup.cfg: where the installed script would begin is written there."""
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return found


def items(section: str, key: str) -> list[str]:
    """Return the lines of a value in setup.cfg."""
    return [line.strip() for line in setup()[section][key].splitlines() if line.strip()]


def infermux(*args: str, env: Mapping[str, str] | None = None, **more: Any) -> Result:
    """Run `infermux` in this process, by its entry point and in a clean environment."""
    [where] = [
        line.partition("=")[2].strip() for line in items("options.entry_points", "console_scripts")
    ]
    module, _, name = where.partition(":")
    clean = {variable: None for variable in os.environ if is_ours(variable)}
    command = getattr(importlib.import_module(module), name)
    return CliRunner().invoke(
        command, list(args), env={**clean, **(env or {})}, prog_name="infermux", **more
    )


def commands(*path: str) -> dict[str, JSON]:
    """Return the commands at and below a path, each with its usage and options."""
    told = infermux(*path, "--help", terminal_width=400)
    assert told.exit_code == 0, told.output
    head, _, rest = told.output.partition("\nOptions:\n")
    usage = re.sub(r"\s+", " ", head.split("\n\n")[0]).strip().removeprefix("Usage: ")
    usage = usage.partition(" ")[2].removeprefix(" ".join(path)).strip()
    options, _, below = rest.partition("\nCommands:\n")
    found = {" ".join(path) or "infermux": {"usage": usage, "options": [*_options(options)]}}
    for name in re.findall(r"(?m)^  (\S+)", below):
        found |= commands(*path, name)
    return found


def _options(told: str) -> Iterator[str]:
    """Yield each option as it is spelt, with its default and what else stands in brackets."""
    for entry in re.split(r"(?m)^  (?=-)", told)[1:]:
        spelt, _, about = re.sub(r"\n\s+", "   ", entry).strip().partition("  ")
        brackets = re.search(r"((?:\s*\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)?\])+)$", about)
        yield spelt + (" " + re.sub(r"\s+", " ", brackets[1]).strip() if brackets else "")


def the_commands(_: World) -> JSON:
    whole = run([sys.executable, "-m", "infermux", "--help"]).stdout
    flask = run([*script("flask"), "--app", "infermux", "--help"]).stdout
    return {
        "infermux": commands(),
        "python -m infermux": re.findall(r"(?m)^  ([a-z]\S*)", whole.partition("\nCommands:\n")[2]),
        "flask --app infermux": re.findall(
            r"(?m)^  ([a-z]\S*)", flask.partition("\nCommands:\n")[2]
        ),
    }


# -- the configuration -----------------------------------------------------------------------------


class Key(NamedTuple):
    """A key of the full file: its table, its name, and the number of its line."""

    table: str
    name: str
    line: int


def full() -> list[str]:
    return FULL.read_text(encoding="utf-8").splitlines()


def keys() -> list[Key]:
    """Return every key of the full file."""
    table, found = "", []
    for number, line in enumerate(full()):
        if line.startswith("["):
            table = line.strip("[]")
        elif found_name := re.match(r"(\w+) = ", line):
            found.append(Key(table, found_name[1], number))
    return found


def validated(lines: Sequence[str], **env: str) -> str:
    """Return what is wrong with a file, without its name; nothing where all is well."""
    Path("surface.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return checked("-q", "-c", "surface.toml", **SECRET, **env).removeprefix("surface.toml: ")


def checked(*args: str, **env: str) -> str:
    """Return what `infermux validate` finds wrong; nothing where all is well."""
    done = infermux("validate", *args, env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 3), (done.exit_code, done.stderr)
    told = done.stderr.strip().removeprefix("infermux: ")
    return told if done.exit_code else ""  # that the prices are old is not wrong


def with_line(number: int, line: str) -> list[str]:
    lines = full()
    return [*lines[:number], line, *lines[number + 1 :]]


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Work in a folder of its own, which has no infermux.toml and no ledger."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


def listed(told: str) -> list[str]:
    """Return the names that an error lists as those that there are."""
    found = re.search(r"; there (?:are|is) (.*)$", told)
    return found[1].split(", ") if found else []


def the_file(_: World) -> JSON:
    with elsewhere():
        assert validated(full()) == ""
        tables = {name: dict[str, JSON]() for name in dict.fromkeys(key.table for key in keys())}
        for key in keys():
            if not key.table.endswith((".service", ".options")):
                refuses_a_misspelling(key)
            tables[key.table][key.name] = {"takes": _takes(key), "needed": _needed(key)}
        return {
            "sections": listed(validated([f"[{NOBODY}]"])),
            "known": {name: known for name in tables if (known := _known(name))},
            "tables": tables,
            "options of echo": validated(["[providers.echo]", f"options = {{ {NOBODY} = 1 }}"]),
        }


def refuses_a_misspelling(key: Key) -> None:
    line = full()[key.line]
    told = validated(with_line(key.line, line.replace(key.name, f"{key.name}_{NOBODY}", 1)))
    assert f"{key.name}_{NOBODY}" in told, f"{key.table}.{key.name}: {told!r}"


def _known(table: str) -> list[str]:
    """Return the names that a table knows, by the error about another one."""
    lines = full()
    at = next(
        number
        for number, line in enumerate(lines)
        if line.strip("[]") == table and line.startswith("[")
    )
    known = listed(validated([*lines[: at + 1], f"{NOBODY} = 1", *lines[at + 1 :]]))
    inner = {
        key.table.removeprefix(f"{table}.").split(".")[0]
        for key in keys()
        if key.table.startswith(f"{table}.")
    }
    written = {key.name for key in keys() if key.table == table} | inner
    other = {"options"} if table == "providers.full" else set()  # echo's own
    if table != "providers.echo":
        assert not known or {*known} - other == written, (
            f"[{table}] has other keys than the full file"
        )
    return known


def _takes(key: Key) -> str:
    """Return what a key says that it must be, when it is given an odd word, or a date."""
    for value in (f'"{NOBODY}"', DATE):
        told = validated(with_line(key.line, f"{key.name} = {value}"))
        if choice := re.search(r"must be ('.*'), not ", told):
            return choice[1]
    found = re.search(r" (must .*?)(?:, not .*)?$", told)
    return found[1] if found else told and "something else"


def _needed(key: Key) -> bool:
    """Whether a table cannot do without the key."""
    return (
        re.search(rf"needs '{key.name}'|no \"{key.name}\"", validated(with_line(key.line, "")))
        is not None
    )


# -- the environment -------------------------------------------------------------------------------


def variables(table: Mapping[str, JSON], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the variable of each value in a table that a variable can hold, and a text for it."""
    for name, value in table.items():
        variable = f"{prefix}__{name.upper()}"
        if isinstance(value, dict):
            yield from variables(value, variable) if name in ("timeout", "circuit_breaker") else ()
        elif isinstance(value, list):
            yield variable, ",".join(value)
        else:
            yield variable, str(value).lower() if isinstance(value, bool) else str(value)


def the_variables(_: World) -> JSON:
    data = tomllib.loads(FULL.read_text(encoding="utf-8"))
    sections = {name: data[name] for name in ("reliability", "server", "ledger", "trace")}
    found = [
        pair
        for name, table in sections.items()
        for pair in variables(table, f"INFERMUX_{name.upper()}")
    ]
    found += variables(data["providers"]["full"], "INFERMUX_PROVIDERS__FULL")
    with elsewhere():
        for name, value in found:
            assert validated(full(), **{name: value}) == "", name
            assert f"{name}_{NOBODY.upper()}" in validated(
                full(), **{f"{name}_{NOBODY.upper()}": value}
            ), name
        ours = f"INFERMUX_{NOBODY.upper()}__X"
        Path("other.toml").write_text("[providers.echo]\n", encoding="utf-8")
        named = infermux("validate", env={"INFERMUX_CONFIG": "other.toml"}).stdout
        return {
            "sections": listed(checked(**{ours: "1"})),
            "variables": [name for name, _ in found],
            "INFERMUX_CONFIG": named.partition(":")[0],
        }


def the_vendors(_: World) -> JSON:
    """Return each vendor with the variables of its key and its address, and its models."""
    with elsewhere():
        names = listed(validated(["[providers.x]", f'type = "{NOBODY}"']))
        return {name: _vendor(name) for name in names}


def _vendor(name: str) -> JSON:
    wants = re.search(r"has no key: set (.*), or api_key", validated([f"[providers.{name}]"]))
    holding = (
        wants[1].split(" or ")
        if wants
        else [each for each in LOCAL if each.startswith(name.upper())]
    )
    about: dict[str, JSON] = {"variables": holding}
    for variable in holding:
        value = "http://127.0.0.1:9" if variable in LOCAL else "k"
        vendor = name.upper()
        for address in (f"{vendor}_BASE_URL", f"AWS_{vendor}_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
            told = checked("-q", **{variable: value, address: "nonsense"})
            if told.startswith(f"{address} must be a URL"):
                about["address"] = address
        beside = (
            {about["address"]: "http://127.0.0.1:9"}
            if "address" in about and name in ("azure", "azure_entra", "vertex")
            else {}
        )
        told = infermux("providers", "--json", env={variable: value} | beside).stdout
        first = json.loads(told)["providers"][0]
        assert first["name"] == name
        about["models"] = first["models"]
    return about


# -- a service, and what it is asked ---------------------------------------------------------------


class Vendor(Peer):
    """A vendor of every operation in OpenAI's format; keeps the headers that it was sent."""

    def __init__(self) -> None:
        self.headers: dict[str, list[str]] = {}

    def answer(self, handler: Any, body: bytes) -> None:
        operation = handler.path.removeprefix("/v1/")
        self.headers[operation] = sorted(name.lower() for name in handler.headers)
        data = json.dumps(_answered(operation, json.loads(body))).encode()
        handler.reply(200, data, {"Content-Type": "application/json"})


def _answered(operation: str, asked: Mapping[str, JSON]) -> JSON:
    if operation == "chat/completions":
        return completion(asked)
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    if operation == "embeddings":
        item = {"object": "embedding", "index": 0, "embedding": [0.5]}
        return {"object": "list", "data": [item], "model": asked["model"], "usage": usage}
    if operation == "completions":
        choice = {"text": "hi", "index": 0, "finish_reason": "stop"}
        return {
            "id": "1",
            "object": "text_completion",
            "model": asked["model"],
            "choices": [choice],
            "usage": usage,
        }
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    return {
        "id": "1",
        "object": "response",
        "status": "completed",
        "model": asked["model"],
        "output": [],
        "usage": usage,
    }


class Receiver(Peer):
    """Keeps the bodies that are posted to it, and answers as it was told."""

    def __init__(self, status: int, kind: str) -> None:
        self.status, self.kind = status, kind
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()

    def answer(self, handler: Any, body: bytes) -> None:
        self.bodies.append(body)
        self.paths.add(handler.path)
        handler.reply(self.status, b"", {"Content-Type": self.kind})


class Case(NamedTuple):
    """One request."""

    path: str
    body: JSON = None
    headers: Mapping[str, str] = {}
    method: str = ""


def hello(model: str = "echo-v1", **more: JSON) -> dict[str, JSON]:
    return {**HELLO, "model": model, **more}


def mist(kind: str, payload: JSON) -> dict[str, JSON]:
    return {
        "version": "1",
        "id": "6d4f8e0c",
        "source": "surface",
        "type": kind,
        "timestamp_ns": 1,
        "payload": payload,
    }


def gemini(model: str, method: str = "generateContent") -> str:
    return f"/v1beta/models/{model}:{method}"


CONTENTS: dict[str, JSON] = {"contents": {"parts": {"text": "hello"}}}
STREAMED = {"Accept": "text/event-stream"}
OPERATOR = {"x-api-key": ADMIN}
CIRCUIT = "/providers/full/circuit"

FAULTS = {"broken": "500", "busy": "429", "cut": "stream_cut", "claude": None}  # by provider

OPEN = {
    "infer": Case("/infer", hello()),
    "infer, streamed": Case("/infer", hello(), STREAMED),
    "infer, failed over": Case("/infer", hello("both")),
    "infer, without a price": Case("/infer", hello("full/m")),
    "infer, cut": Case("/infer", hello("cut/m"), STREAMED),
    "infer, no such model": Case("/infer", hello(NOBODY)),
    "infer, the vendor fails": Case("/infer", hello("broken/m")),
    "infer, no JSON": Case("/infer", b"{"),
    "infer, a wrong method": Case("/infer", method="GET"),
    "infer, compressed": Case("/infer", b"x", {"Content-Encoding": "gzip"}),
    "mist": Case("/mist", mist("infer.request", hello())),
    "mist, streamed": Case("/mist", mist("infer.request", hello()), STREAMED),
    "mist, no such model": Case("/mist", mist("infer.request", hello(NOBODY))),
    "mist, another type": Case("/mist", mist(NOBODY, {})),
    "chat": Case("/v1/chat/completions", hello()),
    "chat, the vendor's own": Case("/v1/chat/completions", hello("full/m")),
    "chat, streamed": Case("/v1/chat/completions", hello(stream=True)),
    "chat, streamed with usage": Case(
        "/v1/chat/completions", hello(stream=True, stream_options={"include_usage": True})
    ),
    "chat, cut": Case("/v1/chat/completions", hello("cut/m", stream=True)),
    "chat, from another format": Case("/v1/chat/completions", hello("claude/m", max_tokens=9)),
    "chat, with a parameter dropped": Case(
        "/v1/chat/completions", hello("lenient", max_tokens=9, seed=1)
    ),
    "chat, with a parameter refused": Case(
        "/v1/chat/completions", hello("claude/m", max_tokens=9, seed=1)
    ),
    "chat, no such model": Case("/v1/chat/completions", hello(NOBODY)),
    "chat, the vendor fails": Case("/v1/chat/completions", hello("broken/m")),
    "completions": Case("/v1/completions", {"model": "full/m", "prompt": "hello"}),
    "completions, not there": Case("/v1/completions", {"model": "echo-v1", "prompt": "hello"}),
    "embeddings": Case("/v1/embeddings", {"model": "full/m", "input": "hello"}),
    "embeddings, not there": Case("/v1/embeddings", {"model": "echo-v1", "input": "hello"}),
    "responses": Case("/v1/responses", {"model": "full/m", "input": "hello"}),
    "responses, translated": Case("/v1/responses", {"model": "echo-v1", "input": "hello"}),
    "responses, streamed": Case(
        "/v1/responses", {"model": "echo-v1", "input": "hello", "stream": True}
    ),
    "responses, stored elsewhere": Case(
        "/v1/responses", {"model": "echo-v1", "input": "hello", "previous_response_id": "resp_1"}
    ),
    "models, of Anthropic's client": Case(
        "/v1/models", headers={"anthropic-version": "2023-06-01"}
    ),
    "messages": Case("/v1/messages", hello(max_tokens=9)),
    "messages, the vendor's own": Case("/v1/messages", hello("claude/m", max_tokens=9)),
    "messages, streamed": Case("/v1/messages", hello(max_tokens=9, stream=True)),
    "messages, cut": Case("/v1/messages", hello("cut/m", max_tokens=9, stream=True)),
    "messages, no such model": Case("/v1/messages", hello(NOBODY, max_tokens=9)),
    "messages, the vendor fails": Case("/v1/messages", hello("broken/m", max_tokens=9)),
    "tokens": Case("/v1/messages/count_tokens", hello()),
    "models": Case("/v1/models"),
    "a model": Case("/v1/models/echo-v1"),
    "a model, not there": Case(f"/v1/models/{NOBODY}"),
    "a model, not there, for Anthropic": Case(
        f"/v1/models/{NOBODY}", headers={"anthropic-version": "2023-06-01"}
    ),
    "providers": Case("/providers"),
    "alive": Case("/healthz"),
    "ready": Case("/readyz"),
    "metrics": Case("/metrics"),
    "no such address": Case(f"/{NOBODY}"),
    "a wrong method": Case("/healthz", {}),
    "targets": Case("/status/targets", headers=OPERATOR),
    "circuit, opened": Case(f"{CIRCUIT}/open", {}, OPERATOR),
    "circuit, reset": Case(f"{CIRCUIT}/reset", {}, OPERATOR),
    "circuit, closed": Case(f"{CIRCUIT}/close", {"model": "m"}, OPERATOR),
    "circuit, no such provider": Case(f"/providers/{NOBODY}/circuit/open", {}, OPERATOR),
    "page": Case("/status", headers=OPERATOR),
    "page, its form to log in": Case("/status/login"),
    "overview": Case("/status/overview?span=1h", headers=OPERATOR),
    "overview, an odd span": Case(f"/status/overview?span={NOBODY}", headers=OPERATOR),
    "overview, without a key": Case("/status/overview"),
    "calls": Case("/calls?limit=200", headers=OPERATOR),
    "calls, an odd parameter": Case(f"/calls?{NOBODY}=1", headers=OPERATOR),
    "calls, none of that id": Case(f"/calls/{NOBODY}", headers=OPERATOR),
    "explain": Case("/explain", {"model": "both", "tokens": 100, "tools": True}, OPERATOR),
    "explain, dropped": Case("/explain", {"model": "lean", "tools": True}, OPERATOR),
    "explain, no such model": Case("/explain", {"model": NOBODY}, OPERATOR),
    "explain, an odd name": Case("/explain", {NOBODY: 1}, OPERATOR),
    "costs": Case("/costs", headers=OPERATOR),
    "costs, by two": Case("/costs?by=day,tag:project&month=this&limit=5", headers=OPERATOR),
    "costs, by something else": Case(f"/costs?by={NOBODY}", headers=OPERATOR),
    "costs, an odd parameter": Case(f"/costs?{NOBODY}=1", headers=OPERATOR),
    "costs, without a key": Case("/costs"),
    "costs, with another key": Case("/costs", headers={"x-api-key": "other"}),
    "costs, by day": Case("/costs/timeseries?since=2d", headers=OPERATOR),
    "budgets": Case("/budgets", headers=OPERATOR),
    "budgets, without a key": Case("/budgets"),
    "keys": Case("/keys", headers=OPERATOR),
    "keys, without a key": Case("/keys"),
    "keys, an odd member": Case("/keys", {"name": "a", NOBODY: 1}, OPERATOR),
    "keys, no such name": Case(f"/keys/{NOBODY}", headers=OPERATOR),
    "costs, by hour": Case("/costs/timeseries?by=hour&since=2h", headers=OPERATOR),
    "gemini": Case(gemini("echo-v1"), CONTENTS),
    "gemini, from another format": Case(gemini("claude/m"), CONTENTS),
    "gemini, streamed": Case(gemini("echo-v1", "streamGenerateContent?alt=sse"), CONTENTS),
    "gemini, streamed as an array": Case(gemini("echo-v1", "streamGenerateContent"), CONTENTS),
    "gemini, cut": Case(gemini("cut/m", "streamGenerateContent?alt=sse"), CONTENTS),
    "gemini, no such model": Case(gemini(NOBODY), CONTENTS),
    "gemini, the vendor fails": Case(gemini("broken/m"), CONTENTS),
    "gemini, a key in the address": Case(gemini("echo-v1", "generateContent?key=x"), CONTENTS),
    "gemini, no such method": Case(gemini("echo-v1", NOBODY), CONTENTS),
    "gemini, tokens": Case(gemini("echo-v1", "countTokens"), CONTENTS),
    "gemini, embeddings": Case(gemini("full/m", "embedContent"), {"content": CONTENTS["contents"]}),
    "gemini, models": Case("/v1beta/models"),
    "gemini, a model": Case("/v1beta/models/echo-v1"),
}


def key(name: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-key", **more}


KEYED = {
    "infer, with a key": Case(
        "/infer", hello(), key("web", **{"X-Infermux-Project": "p", "X-Infermux-Env": "e"})
    ),
    "infer, without a key": Case("/infer", hello()),
    "chat, without a key": Case("/v1/chat/completions", hello()),
    "messages, without a key": Case("/v1/messages", hello(max_tokens=9)),
    "models, without a key": Case("/v1/models"),
    "gemini, with a key": Case(gemini("echo-v1"), CONTENTS, {"x-goog-api-key": "any-key"}),
    "gemini, without a key": Case(gemini("echo-v1"), CONTENTS),
    "infer, another model": Case("/infer", hello("cheap"), key("web")),
    "messages, another model": Case("/v1/messages", hello("cheap", max_tokens=9), key("web")),
    "infer, over budget": Case("/infer", hello(), key("spent")),
    "chat, over budget": Case("/v1/chat/completions", hello(), key("spent")),
    "messages, over budget": Case("/v1/messages", hello(max_tokens=9), key("spent")),
    "infer, a cheaper model": Case("/infer", hello(), key("poor")),
    "infer, once a minute": Case("/infer", hello(), key("slow")),
    "infer, twice a minute": Case("/infer", hello(), key("slow")),
    "chat, twice a minute": Case("/v1/chat/completions", hello(), key("slow")),
    "infer, failed": Case("/infer", hello("broken/m"), key("any")),
    "infer, streamed": Case("/infer", hello(), {**key("any"), **STREAMED}),
    "infer, the vendor throttles": Case("/infer", hello("busy/m"), key("any")),
    "costs, without operators": Case("/costs", headers=key("web")),
    "providers": Case("/providers"),
    "metrics": Case("/metrics"),
}


@dataclass
class World:
    """What was seen of two services: one that is open, and one whose callers have keys."""

    answers: dict[str, Answer] = field(default_factory=dict)
    keyed: dict[str, Answer] = field(default_factory=dict)
    shell: dict[str, JSON] = field(default_factory=dict)
    allowed: dict[str, str] = field(default_factory=dict)
    hosted: dict[str, JSON] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)
    ledger: dict[str, JSON] = field(default_factory=dict)
    spans: list[bytes] = field(default_factory=list)
    otel: list[bytes] = field(default_factory=list)
    upstream: dict[str, list[str]] = field(default_factory=dict)


def the_world() -> World:
    """Start everything, ask everything, stop it, and return what was seen."""
    world = World()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vendor, traces = (
            stack.enter_context(Vendor()),
            stack.enter_context(Receiver(202, "application/json")),
        )
        collector = stack.enter_context(Receiver(200, "application/x-protobuf"))
        urls = {}
        for name, fault in FAULTS.items():
            when = "after" if name == "cut" else "before"
            faulty = stack.enter_context(FaultyVendor(fault, when=when, text="hello"))
            urls[name] = faulty.url("anthropic" if name == "claude" else "openai")
        urls["full"] = f"{vendor.url}/v1"
        _write(folder, urls)
        _open(world, folder, traces.url)
        _keyed(world, folder, collector.url)
        world.spans, world.otel, world.upstream = traces.bodies, collector.bodies, vendor.headers
        assert traces.paths == {"/mist"} and collector.paths <= {"/v1/traces"}
    return world


def _write(folder: Path, urls: Mapping[str, str]) -> None:
    """Write the configurations of both services."""
    price = '{ input = "1", output = "1", max_output = 100 }'
    both = ["[providers.echo]", f"prices = {{ echo-v1 = {price} }}"]
    for name, url in urls.items():
        kind = "anthropic" if name == "claude" else "openai"
        both += [f"[providers.{name}]", f'type = "{kind}"', f'base_url = "{url}"', 'models = ["m"]']
        both += ['unsupported = { m = ["tools"] }'] if name == "full" else []
    both += ["[reliability]", "attempts = 2", "circuit_breaker = { failures = 1000 }"]
    names = [
        "[models]",
        'both = ["broken/m", "echo/echo-v1"]',
        'lean = ["full/m", "echo"]',
        'cheap = "echo"',
    ]
    names += ["[models.lenient]", 'targets = ["claude/m"]', 'on_unsupported = "drop"']
    opened = [
        "[server]",
        'admin_key = "env:INFERMUX_ADMIN_KEY"',
        'log_level = "debug"',
        'log_format = "json"',
    ]
    opened += ["[ledger]", f'path = "{folder}/open.db"']
    keyed = [line for name in ("web", "spent", "poor", "slow", "any") for line in _key(name)]
    keyed += [
        "[ledger]",
        f'path = "{folder}/keyed.db"',
        "[server]",
        'log_level = "info"',
        "[trace]",
        "capture_content = true",
    ]
    for name, lines in (("open", opened), ("keyed", keyed)):
        (folder / f"{name}.toml").write_text("\n".join([*both, *names, *lines]), encoding="utf-8")


def _key(name: str) -> list[str]:
    more = {
        "web": ['models = ["echo-v1"]', "tags = true"],
        "spent": ['budget = { usd = "0", per = "day" }'],
        "poor": ['budget = { usd = "0.000000000001", per = "total", then = "cheap" }'],
        "slow": ["rpm = 1", "tpm = 1000000"],
    }
    return [
        f"[keys.{name}]",
        f'hash = "{hashlib.sha256(f"{name}-key".encode()).hexdigest()}"',
        *more.get(name, []),
    ]


def _open(world: World, folder: Path, tokentrace: str) -> None:
    env = {
        "INFERMUX_CONFIG": f"{folder}/open.toml",
        "INFERMUX_ADMIN_KEY": ADMIN,
        "INFERMUX_TRACE__TOKENTRACE": tokentrace,
    }
    with Service("--workers", "1", "--threads", "8", env=env) as service:
        world.answers = asked(service, OPEN)
        world.hosted = hosted(folder)
        for rule in world.hosted["service"]:
            path = re.sub(r"<(\w+:)?\w+>", "echo", rule)
            world.allowed[rule] = service.ask(path, method="OPTIONS").headers["Allow"]
        world.shell = at_the_shell(world, folder, service, env)
        service.stop()
        world.logs = service.log.splitlines()
    with contextlib.closing(sqlite3.connect(folder / "open.db")) as ledger:
        world.ledger = tables(ledger)


def _keyed(world: World, folder: Path, collector: str) -> None:
    env = {"INFERMUX_CONFIG": f"{folder}/keyed.toml"} | (
        {"INFERMUX_TRACE__OTLP": collector} if OTEL else {}
    )
    with Keyed("--workers", "1", "--threads", "8", env=env) as service:
        world.keyed = asked(service, KEYED)
        last = infermux("logs", "--json", "-n", "200", env=env)
        world.shell["logs --json, with keys"] = _lines(last.stdout)
        service.stop()
        world.logs += service.log.splitlines()


class Keyed(Service):
    """A service whose callers need a key, also for its lists."""

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("/healthz").status == 200)
        return False


def asked(service: Service, cases: Mapping[str, Case]) -> dict[str, Answer]:
    return {
        name: service.ask(case.path, case.body, method=case.method, headers=case.headers)
        for name, case in cases.items()
    }


# -- endpoints and answers -------------------------------------------------------------------------

HOST = """
import json, logging
from flask import Flask
import infermux

class Note(logging.Handler):
    def emit(self, record):
        seen.add(record.name)

def rules(app):
    return sorted({rule.rule for rule in app.url_map.iter_rules()})

seen = set()
logging.root.addHandler(Note())
logging.root.setLevel("INFO")
hello = {"model": "echo-v1", "messages": [{"role": "user", "content": "hello"}]}
service, host, router = infermux.create_app(), Flask("host", static_folder=None), infermux.load()
host.register_blueprint(infermux.blueprint(router), url_prefix="/llm")
host.register_blueprint(infermux.blueprint(router, caller=lambda: 1 / 0), url_prefix="/bug")
for make in (infermux.openai_blueprint, infermux.anthropic_blueprint, infermux.gemini_blueprint):
    host.register_blueprint(make(router), url_prefix="/llm")
host.register_blueprint(infermux.ops_blueprint(router, "key"), url_prefix="/ops")
statuses = [app.test_client().post(path, json=hello).status_code
            for app, path in ((service, "/infer"), (host, "/llm/infer"), (host, "/bug/infer"))]
named = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "infermux"]
print(json.dumps({
    "service": rules(service), "host": rules(host), "commands": sorted(host.cli.commands),
    "statuses": statuses, "loggers": sorted(seen), "named": sorted(named),
}))
"""


def hosted(folder: Path) -> dict[str, JSON]:
    """Return what an application that mounts everything sees: addresses, commands, loggers."""
    env = {
        "INFERMUX_LEDGER__PATH": f"{folder}/hosted.db",
        "INFERMUX_SERVER__LOG_LEVEL": "info",
        "PYTHONPATH": str(ROOT),
    }
    done = run([sys.executable, "-c", HOST], env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, JSON] = json.loads(done.stdout)
    return found


def unnamed(rule: str) -> str:
    """Return a rule without the names of its variables, which nobody sees."""
    return re.sub(r"<(\w+:)?\w+>", r"<\1>", rule)


def the_endpoints(world: World) -> JSON:
    return {
        "service": {unnamed(rule): allow for rule, allow in world.allowed.items()},
        "mounted": [unnamed(rule) for rule in world.hosted["host"]],
        "commands of the host": world.hosted["commands"],
        "statuses": world.hosted["statuses"],
    }


# headers whose values are the same each time
SAID = {"content-type", "cache-control", "allow", "www-authenticate", "x-should-retry"}
SAID |= {"x-accel-buffering", "x-content-type-options", "referrer-policy", "x-infermux-provider"}
SAID |= {f"x-infermux-{name}" for name in ("model", "attempts", "model-override", "dropped")}


def headers(answer: Answer) -> list[str]:
    found = {name.lower(): value for name, value in answer.headers.items()}
    return sorted(f"{name}: {value}" if name in SAID else name for name, value in found.items())


def body(answer: Answer) -> JSON:
    """Return the shape of a body: of JSON, of a stream's events, or of a page."""
    kind = answer.headers.get("Content-Type", "")
    if kind.startswith("application/json"):
        return shape(answer.json)
    if kind.startswith("text/event-stream"):
        return events(answer.data.decode())
    if "html" not in kind:
        return "text"
    names = re.findall(r"<(?:h1|h2|th|dt)[^>]*>([^<]+)<", answer.data.decode())
    return [name for name in dict.fromkeys(names) if not re.match(r"\d\d-\d\d ", name)]


def events(stream: str) -> list[JSON]:
    """Return the events of a stream by name and shape; a row of the same comes once."""
    found: list[JSON] = []
    for block in stream.replace("\r\n", "\n").strip().split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in block.strip().splitlines())
        data = lines.get("data", "")
        event = {
            "event": lines.get("event", ""),
            "data": shape(json.loads(data)) if data.startswith("{") else data,
        }
        if not found or found[-1] != event:
            found.append(event)
    return found


def the_answers(world: World) -> JSON:
    return {
        service: {
            name: {"status": each.status, "headers": headers(each), "body": body(each)}
            for name, each in found.items()
        }
        for service, found in (("open", world.answers), ("keyed", world.keyed))
    }


def the_upstream(world: World) -> JSON:
    return dict(sorted(world.upstream.items()))


# -- metrics, logs, ledger, spans ------------------------------------------------------------------

SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? \S+")


def the_metrics(world: World) -> JSON:
    """Return each family with its kind, its labels and, for a histogram, its bounds."""
    families: dict[str, JSON] = {}
    for line in "\n".join(
        each["metrics"].data.decode() for each in (world.answers, world.keyed)
    ).splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            families.setdefault(name, {"kind": kind, "samples": {}})
        elif found := SAMPLE.fullmatch(line):
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or ""))
            family = next(
                family for family in (found[1], found[1].rpartition("_")[0]) if family in families
            )
            samples = families[family]["samples"].setdefault(
                found[1], {name: [] for name in labels}
            )
            for name in [each for each in labels if each not in ("provider", "model")]:
                samples[name] = [*dict.fromkeys([*samples[name], labels[name]])]
    return families


def the_logs(world: World) -> JSON:
    """Return the fields of a call's line in JSON and to be read, and what some of them say."""
    lines = [json.loads(line) for line in world.logs if line.startswith("{")]
    calls = [line for line in lines if "trace" in line]
    assert len(calls) >= 30
    read = [line for line in world.logs if re.match(r"\d{4}-\d\d-\d\dT\S+ [A-Z]+ id=", line)]
    said = {
        name: sorted({str(line[name]) for line in calls})
        for name in ("level", "strategy", "status", "code")
    }
    return {
        "json": {**merged(map(shape, calls)), "level": "text", "strategy": "text"},
        "values": said,
        "doors": sorted({line[DOOR] for line in calls}),
        "read": sorted({" ".join(_fields(line)) for line in read}),
        "loggers that spoke": world.hosted["loggers"],
        "loggers": world.hosted["named"],
    }


def _fields(line: str) -> list[str]:
    return [line.split(" ")[1], *re.findall(r" (\w+)=", line)]


def tables(ledger: sqlite3.Connection) -> dict[str, JSON]:
    """Return the tables of a ledger with their columns and types, as SQLite shows them."""
    names = ledger.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
    )
    return {
        name: {
            column: kind for _, column, kind, *_ in ledger.execute(f"PRAGMA table_info('{name}')")
        }
        for (name,) in names.fetchall()
    }


def the_ledger(world: World) -> JSON:
    return world.ledger


def the_spans(world: World) -> JSON:
    """Return the messages to TokenTrace by operation and status."""
    found: dict[str, list[JSON]] = {}
    for each in map(json.loads, world.spans):
        span = each["payload"]
        found.setdefault(f"{span['operation']} {span['status']}", []).append(shape(each))
    return {name: merged(found[name]) for name in sorted(found)}


def the_otel(world: World) -> JSON:
    """Return the spans to a collector by kind, with the type of each attribute."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found: dict[str, list[JSON]] = {}
    resources = set()
    for each in map(ExportTraceServiceRequest.FromString, world.otel):
        for group in each.resource_spans:
            resources |= {
                attribute.key
                for attribute in group.resource.attributes
                if "sdk" not in attribute.key
            }
            for scope in group.scope_spans:
                for span in scope.spans:
                    kind = "attempt" if span.parent_span_id else "call"
                    kind += " error" if span.status.code == 2 else " ok"
                    attributes = {
                        each.key: each.value.WhichOneof("value") for each in span.attributes
                    }
                    found.setdefault(kind, []).append(
                        {"scope": scope.scope.name, "kind": span.kind, "attrs": attributes}
                    )
    return {
        "resource": sorted(resources),
        "spans": {name: _otel(found[name]) for name in sorted(found)},
    }


def _otel(spans: list[JSON]) -> JSON:
    return {**spans[0], "attrs": merged(span["attrs"] for span in spans)}


# -- what the commands print -----------------------------------------------------------------------


def at_the_shell(
    world: World, folder: Path, service: Service, env: Mapping[str, str]
) -> dict[str, JSON]:
    """Return what commands print for a machine, and the heads of what they print for people."""
    ident = world.answers["infer, failed over"].headers["X-Request-Id"]
    config, server = ["-c", f"{folder}/open.toml"], ["--server", f"http://127.0.0.1:{service.port}"]
    more = {name: env[name] for name in ("INFERMUX_ADMIN_KEY",)}

    def printed(*args: str) -> str:
        done = infermux(*args, env=more)
        assert done.exit_code in (0, 1) and done.stdout, (args, done.stderr)
        return done.stdout

    def refused(*args: str) -> str:
        return infermux(*args, *config, env=more).stderr.splitlines()[-1]

    eventually(lambda: ident in printed("logs", "-n", "200", *config), "the call in the ledger")
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, BATCH)) + "\n", encoding="utf-8")
    batch = run([*script("infermux"), "batch", "in.jsonl", "-q", "-o", "-"], cwd=folder)
    lines = [json.loads(line) for line in batch.stdout.splitlines()]
    return {
        "costs --json": shape(json.loads(printed("costs", "--json", *config))),
        "costs --csv": next(csv.reader(io.StringIO(printed("costs", "--csv", *config)))),
        "costs": head(printed("costs", *config)),
        "logs --json": _lines(printed("logs", "--json", "-n", "200", *config)),
        "prices --json": shape(json.loads(printed("prices", "claude-haiku-5-5", "--json"))),
        "prices": head(printed("prices", "--provider", "anthropic")),
        "providers": head(printed("providers")),
        "providers --json": shape(json.loads(printed("providers", "--json"))),
        "infer --json": shape(json.loads(printed("infer", "hello", "--json"))),
        "explain": head(printed("explain", "both", *config), 1),
        "explain --json": shape(json.loads(printed("explain", "both", "--json", *config))),
        "replay": head(printed("replay", ident, *config), 2),
        "replay --json": shape(json.loads(printed("replay", ident, "--json", *config))),
        "status": head(printed("status", *server)),
        "status --json": shape(json.loads(printed("status", "--json", *server))),
        "keys new": re.findall(
            r"(?m)^(\[keys\.web\]|hash = )", infermux("keys", "new", "web").stdout
        ),
        "batch": dict(sorted((line["custom_id"], shape(line)) for line in lines)),
        "costs --by": refused("costs", "--by", NOBODY),
        "chaos --fault": refused("chaos", "--fault", NOBODY),
    }


BATCH = (
    {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": hello()},
    {"custom_id": "mist", **hello()},
    {"custom_id": "typo", **hello(NOBODY)},
    {"custom_id": "odd", "url": f"/{NOBODY}"},
)


def head(table: str, line: int = 0) -> list[str]:
    """Return the names of a table's columns."""
    return re.split(r"  +", table.splitlines()[line].strip())


def _lines(printed: str) -> JSON:
    return merged(shape(json.loads(line)) for line in printed.splitlines())


def the_shell(world: World) -> JSON:
    return world.shell


# -- public names ----------------------------------------------------------------------------------


def the_names(_: World) -> JSON:
    """Return every public name with what it takes, and with its own public names."""
    modules = {"infermux": None, "infermux.ledger": ["Budget"], "infermux.testing": None}
    found = {}
    for name, chosen in modules.items():
        module = importlib.import_module(name)
        found[name] = {each: described(getattr(module, each)) for each in chosen or module.__all__}
    testing = importlib.import_module("infermux.testing")
    return {
        **found,
        "faults": sorted(testing.FAULTS),
        "fixtures": ["faulty_vendor"] if hasattr(testing, "faulty_vendor") else [],
    }


def the_names_of_otel(_: World) -> JSON:
    return {"OTLP": described(importlib.import_module("infermux.otel").OTLP)}


def described(value: object) -> JSON:
    """Return the parameters of something public and, for a class, of what is public in it."""
    if not isinstance(value, type):
        return signature(value) if callable(value) else type(value).__name__
    names = [
        name for name in dir(value) if not name.startswith("_") and not hasattr(Exception, name)
    ]
    return {"": signature(value), **{name: signature(getattr(value, name)) for name in names}}


def signature(value: object) -> str:
    """Return the names and defaults of parameters: types are written as the code likes them."""
    if not callable(value):
        return "a value"
    try:
        found = inspect.signature(value)
    except ValueError:
        return "(...)"
    plain = [
        each.replace(annotation=each.empty, default=_default(each.default))
        for each in found.parameters.values()
    ]
    return str(found.replace(parameters=plain, return_annotation=found.empty)).replace(
        "'...'", "..."
    )


def _default(value: object) -> object:
    return (
        value
        if value is inspect.Parameter.empty
        or isinstance(value, str | int | float | None)
        or value == ()
        else "..."
    )


def the_errors(_: World) -> JSON:
    """Return the tree of errors with what each one says of itself."""
    module, kinds = importlib.import_module("infermux.errors"), {}
    for name, kind in vars(module).items():
        if isinstance(kind, type) and issubclass(kind, module.InferMuxError):
            kinds[name] = {
                "under": [base.__name__ for base in kind.__bases__],
                "takes": signature(kind),
            }
            for each in ("status", "code", "type", "retry_after", "retryable", "failover"):
                kinds[name] |= {each: getattr(kind, each)} if hasattr(kind, each) else {}
    return kinds


# -- the package, and what it is put into ----------------------------------------------------------

GUNICORN = """
import json, resource
from infermux.server import load
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))  # connections go by it
found = {**load(), "worker_class": "ours"}
print(json.dumps({name: "..." if callable(value) else value for name, value in found.items()}))
"""

PLUGIN = """
from infermux import InferResponse

class Shout:
    def __init__(self, config):
        self.name, self.models, self.config = config.name, ["shout-v1"], config

    def infer(self, request, deadline):
        told = [" ".join(sorted(name for name in dir(each) if not name.startswith("_")))
                for each in (self.config, deadline)]
        return InferResponse(request.model, self.name, "; ".join(told), cost_usd=0.0)
"""


def the_package(_: World) -> JSON:
    """Return what setup.cfg announces, gunicorn's settings, and what a plug-in is given."""
    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / "shout-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[infermux.providers]\nshout = shout_provider:Shout\n"
        )
        (Path(folder) / "shout_provider.py").write_text(PLUGIN)
        env = {"PYTHONPATH": f"{folder}:{ROOT}"}
        command = [sys.executable, "-m", "infermux", "infer", "hello", "--provider", "shout"]
        told = run(command, env=env, cwd=Path(folder)).stdout.strip().partition("; ")
    settings = run([sys.executable, "-c", GUNICORN], env={"PYTHONPATH": str(ROOT)})
    assert settings.returncode == 0, settings.stderr
    return {
        "scripts": [
            line.partition("=")[0].strip()
            for line in items("options.entry_points", "console_scripts")
        ],
        "requires": [setup()["options"]["python_requires"], *items("options", "install_requires")],
        "extras": {
            name: items("options.extras_require", name)
            for name in setup()["options.extras_require"]
        },
        "gunicorn": json.loads(settings.stdout),
        "a plug-in's configuration": told[0].split(" "),
        "a plug-in's deadline": told[2].split(" "),
    }


# -- the tests -------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[World], JSON]] = {
    "commands": the_commands,
    "file": the_file,
    "variables": the_variables,
    "vendors": the_vendors,
    "endpoints": the_endpoints,
    "answers": the_answers,
    "upstream": the_upstream,
    "metrics": the_metrics,
    "logs": the_logs,
    "ledger": the_ledger,
    "spans": the_spans,
    "otel": the_otel,
    "shell": the_shell,
    "names": the_names,
    "names of otel": the_names_of_otel,
    "errors": the_errors,
    "package": the_package,
}


def kept() -> dict[str, JSON]:
    """Return what is kept, under the names of today."""
    found = KEPT.read_text(encoding="utf-8")
    for old, new in RENAMED.items():
        found = re.sub(rf"\b{re.escape(old)}\b", new, found)
    data: dict[str, JSON] = json.loads(found)
    return data


def same(section: str, world: World) -> None:
    """Fail with the difference unless a section is as it was, in its order."""
    was, now = rendered(kept()[section]), rendered(SECTIONS[section](world))
    difference = [
        *difflib.unified_diff(was.splitlines(), now.splitlines(), "was", "is", lineterm="", n=6)
    ]
    assert not difference, "\n".join([f"{section} is not what it was", *difference])


@pytest.fixture(scope="module")
def world() -> World:
    return the_world()


NOTHING = World()
needs_otel = pytest.mark.skipif(not OTEL, reason="infermux[otel] is not installed")


@pytest.mark.slow
def test_every_command_and_option_is_still_there() -> None:
    same("commands", NOTHING)


@pytest.mark.slow
def test_every_key_of_the_file_is_still_known_and_each_misspelling_refused() -> None:
    same("file", NOTHING)


@pytest.mark.slow
def test_every_variable_still_sets_what_it_set() -> None:
    same("variables", NOTHING)


@pytest.mark.slow
def test_every_vendor_is_still_found_by_its_variables() -> None:
    same("vendors", NOTHING)


@pytest.mark.slow
def test_every_endpoint_still_takes_its_methods(world: World) -> None:
    same("endpoints", world)


@pytest.mark.slow
def test_every_answer_still_has_its_status_its_headers_and_its_body(world: World) -> None:
    same("answers", world)


@pytest.mark.slow
def test_a_vendor_is_still_sent_the_same_headers(world: World) -> None:
    same("upstream", world)


def test_every_metric_still_has_its_labels(world: World) -> None:
    same("metrics", world)


def test_every_field_of_the_log_is_still_written(world: World) -> None:
    same("logs", world)


def test_every_table_of_the_ledger_still_has_its_columns(world: World) -> None:
    same("ledger", world)


def test_every_span_still_has_its_fields(world: World) -> None:
    same("spans", world)


@needs_otel
def test_every_span_for_a_collector_still_has_its_attributes(world: World) -> None:
    same("otel", world)


def test_what_commands_print_for_machines_is_still_the_same(world: World) -> None:
    same("shell", world)


def test_every_public_name_still_takes_the_same() -> None:
    same("names", NOTHING)


@needs_otel
def test_the_exporter_still_takes_the_same() -> None:
    same("names of otel", NOTHING)


def test_every_error_still_has_its_status_and_its_code() -> None:
    same("errors", NOTHING)


@pytest.mark.slow
def test_the_package_still_announces_the_same() -> None:
    same("package", NOTHING)


def write() -> None:
    """Write what there is now; without OpenTelemetry what needs it stays as it was."""
    old = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    seen = the_world()
    new = {
        name: old.get(name) if "otel" in name and not OTEL else look(seen)
        for name, look in SECTIONS.items()
    }
    KEPT.write_text(rendered(new) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
