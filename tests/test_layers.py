"""Tests of the architecture by its imports: layers, access to foreign packages, cycles, sizes."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import infermux

ROOT = Path(infermux.__file__).parent
# A module imports from its own package and from lower layers. There are no exceptions.
LAYERS = (
    "errors types",
    "protocol",
    "config pricing",
    "dialects",
    "providers",
    "planning",
    "admission ledger telemetry",
    "routing otel",
    "components",
    "build",
    "server batch chaos",
    "web cli testing",
    "app __main__",
)
LAYER = {package: number for number, row in enumerate(LAYERS) for package in row.split()}
# Which packages may import a foreign one.
DOORS = {
    "requests": {"providers", "otel"},
    "urllib3": {"providers"},
    "opentelemetry": {"otel"},
    "flask": {"web", "app", "cli"},
    "werkzeug": {"web", "app", "cli"},
    "gunicorn": {"server"},
    "sqlite3": {"ledger"},
    "psycopg": {"ledger"},
    "psycopg_pool": {"ledger"},
}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}  # of os: config/
MAX_MODULES, MAX_IN_PACKAGE = 223, 15
MAX_CHARACTERS = 1_504_000
MAX_FILE, MAX_FUNCTION, MAX_WIDTH = 460, 40, 100


class Module(NamedTuple):
    """A file of the package; *name* is without the package's own."""

    name: str
    text: str
    is_package: bool = False

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def modules() -> Iterator[Module]:
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        yield Module(name, file.read_text("utf-8"), is_package)


@cache
def tree(module: Module) -> ast.Module:
    return ast.parse(module.text)


ALL = list(modules())
NAMES = {module.name for module in ALL}
OURS = [module for module in ALL if module.name]  # the package's own __init__ loads on first use


def imported(module: Module) -> Iterator[str]:
    """Yield the whole name of each import, wherever it stands."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["infermux", *module.name.split(".")]
                here = here[: len(here) - node.level + module.is_package]
                base = ".".join([*here, base] if base else here)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole.removeprefix("infermux.") in NAMES else base


def inside(module: Module) -> set[str]:
    """Return the modules of ours that *module* imports."""
    return {name.partition(".")[2] for name in imported(module) if name.startswith("infermux.")}


def upward(module: Module) -> list[str]:
    """Return the imports that point neither down nor into the own package."""
    own = LAYER.get(module.package, -1)
    found = {name for name in inside(module) if name.partition(".")[0] != module.package}
    return sorted(name for name in found if LAYER.get(name.partition(".")[0], 99) >= own)


def trespassing(module: Module) -> list[str]:
    """Return the foreign packages that *module* imports and may not."""
    found = {name.partition(".")[0] for name in imported(module)}
    return sorted(name for name in found if module.package not in DOORS.get(name, {module.package}))


def reads_environment(module: Module) -> bool:
    found = False
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT:
            found |= isinstance(node.value, ast.Name) and node.value.id == "os"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found |= bool(ENVIRONMENT & {alias.name for alias in node.names})
    return found


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """Yield the name and length of each function, without its docstring."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            told = ast.get_docstring(node) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if told else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - docstring


EACH = pytest.mark.parametrize("module", OURS, ids=lambda module: module.name)


@EACH
def test_imports_point_down(module: Module) -> None:
    assert module.package in LAYER, "name its layer in LAYERS, and in the design"
    assert upward(module) == []


@pytest.mark.sampled(17)
@EACH
def test_foreign_packages_are_imported_through_their_doors(module: Module) -> None:
    assert trespassing(module) == []


@EACH
def test_the_environment_is_read_in_config(module: Module) -> None:
    assert module.package == "config" or not reads_environment(module)


def test_there_is_no_cycle() -> None:
    graphlib.TopologicalSorter({module.name: inside(module) - {""} for module in OURS}).prepare()


@EACH
def test_a_file_is_one_sitting(module: Module) -> None:
    lines = module.text.splitlines()
    assert len(lines) <= MAX_FILE
    assert [line for line in lines if len(line) > MAX_WIDTH] == []
    assert [found for found in functions(module) if found[1] > MAX_FUNCTION] == []


def test_the_package_stays_small() -> None:
    assert len(ALL) <= MAX_MODULES
    assert sum(len("".join(module.text.split())) for module in ALL) <= MAX_CHARACTERS
    folders = [
        module.name if module.is_package else module.name.rpartition(".")[0] for module in OURS
    ]
    assert [name for name in set(folders) if name and folders.count(name) > MAX_IN_PACKAGE] == []


@pytest.mark.parametrize(
    "module", [m for m in ALL if m.is_package], ids=lambda m: m.name or "infermux"
)
def test_a_package_says_what_it_is_for(module: Module) -> None:
    assert ast.get_docstring(tree(module))


def test_the_manual_lists_the_packages_in_their_layers() -> None:
    text = (ROOT / "help" / "development.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    layers = [set(row.split()) - {"__main__"} for row in LAYERS]
    assert listed == layers


# -- the reading itself ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("planning.call", "from ..errors import InferMuxError\nfrom .. import types", []),
        ("planning.call", "from ..routing.router import Router", ["routing.router"]),
        ("planning.call", "from ..routing import router", ["routing.router"]),
        ("planning.call", "import infermux.routing.router as r, json", ["routing.router"]),
        ("planning.call", "def f():\n    from infermux.app import create_app", ["app"]),
        ("planning.call", "if TYPE_CHECKING:\n    from ..ledger import Ledger", ["ledger"]),
        ("planning.call", "from .registry import Registry", []),
        ("web.mist", "from ..cli.main import infer", ["cli.main"]),  # the same layer
        ("errors", "from .types import JSON", ["types"]),
        ("types", "from . import nothing", []),
    ],
)
def test_an_import_that_points_up_is_found(name: str, text: str, found: list[str]) -> None:
    assert upward(Module(name, text)) == found


def test_a_foreign_import_is_found() -> None:
    assert trespassing(Module("web.mist", "from flask import Flask\nimport urllib3.util")) == [
        "urllib3"
    ]
    assert trespassing(Module("routing.router", "def f():\n    import requests")) == ["requests"]


def test_reading_the_environment_is_found() -> None:
    assert reads_environment(Module("web.mist", "import os\nos.environ['A']"))
    assert reads_environment(Module("web.mist", "from os import getenv"))
    assert not reads_environment(Module("web.mist", "request.environ['A']"))


def test_a_long_function_is_found() -> None:
    text = 'def f():\n    """One.\n\n    Two."""\n    x = 1\n    return x\n'
    assert list(functions(Module("x", text))) == [("f", 3)]
