"""The architecture, read from the imports: floors, doors, cycles, and how long a file and a function may be."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

import infermux

ROOT = Path(infermux.__file__).parent
PACKAGE = "infermux"
# design.md, section 3. A module imports only from floors below; of several patterns the first counts.
FLOORS = [
    (9, ["__main__", "app"]),
    (8, ["web.*"]),
    (7, ["web", "cli"]),
    (6.9, ["commands.*"]),
    (6.8, ["commands"]),
    (6.5, ["server", "gthread", "chaos", "testing"]),
    (6, ["build"]),
    (5.5, ["batch", "explain", "status"]),
    (5, ["router"]),
    (4.6, ["attempts", "stream"]),  # the router's own parts
    (4.5, ["spending"]),
    (4.3, ["fleet", "billing", "metrics"]),
    (4, ["registry", "ledger.sqlite", "tokentrace", "otel"]),
    (3.5, ["reports", "bills"]),
    (2, ["providers", "providers.base", "dialects", "dialects.*", "call"]),
    (3, ["providers.*", "ledger", "ledger.queries", "ledger.files", "ledger.usual", "ledger.turns",
         "trace", "calllog", "gate", "batchlines"]),
    (1.6, ["planner"]),
    (1.5, ["pricecheck"]),
    (1.8, ["replay"]),
    (1, ["strategies", "protocol", "config", "settings", "schema", "prices", "tokens", "health", "limits", "keys", "foreign", "board"]),
    (0, ["errors", "types", "sse", "jsons", "rates", "shutdown", "faults", "outbox", "starts"]),
]
# Imports within one floor that the design has no word on; a cycle is found all the same.
LEDGES = [
    ("rates", "errors"),  # a mistake in a table of prices is one of configuration
    ("dialects.openai*", "dialects.openai*"),  # one dialect in several files: a dialect never imports another
    ("dialects.anthropic*", "dialects.anthropic*"),
    ("dialects.gemini*", "dialects.gemini*"),
    ("dialects.azure", "dialects.openai"),  # the same wire at another address
    ("providers.base", "dialects"),  # `whole`: an answer as one chunk
    ("providers.http", "providers.wire"),
    ("providers.http", "providers.pool"),
    ("providers.http", "providers.body"),
    ("providers.body", "providers.wire"),
    ("providers.pool", "providers.wire"),
    ("web.*", "web.streams"),  # what all doors share
    ("web.*", "web.admin"),
    ("web.ops", "web.*"),  # the route table of pages that live in modules of their own
    ("web.anthropic", "web.openai"),  # `model_routes`
    ("chaos", "testing"),
    ("ledger.queries", "ledger"),
    ("ledger.files", "ledger.queries"),
    ("ledger.turns", "ledger.*"),
    ("ledger.files", "ledger.usual"),
    ("ledger.usual", "ledger.queries"),
    ("commands.*", "commands.printing"),
    ("commands.*", "commands.client"),  # asks a running service
    ("commands.plans", "commands.money"),  # `the_ledger`
    ("commands.money", "commands.reconcile"),
    ("config", "schema"),
    ("config", "settings"),
    ("settings", "schema"),
]
# what a foreign package is, and the only files that may import it
DOORS = {
    "requests": ["providers.http", "providers.pool", "tokentrace", "otel"],
    "opentelemetry": ["otel"],
    "urllib3": ["providers.http", "providers.pool", "providers.wire", "tokentrace"],
    "flask": ["web", "web.*", "app", "cli"],
    "werkzeug": ["web", "web.*", "app", "cli"],
    "sqlite3": ["ledger.sqlite", "ledger.files", "ledger.usual"],
}
ENVIRONMENT = ["config"]  # the only file that may read or set the environment
_ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
MAX_FILE = 400
MAX_FUNCTION = 40
MAX_MEDIAN = 8


class Module(NamedTuple):
    """A file of the package under the name that imports use, without the package's own."""

    name: str
    is_package: bool
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


def modules() -> list[Module]:
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        found.append(Module(".".join(parts[:-1] if is_package else parts), is_package, file.read_text("utf-8")))
    return found


ALL = modules()
NAMES = {module.name for module in ALL}
EACH = pytest.mark.parametrize("module", ALL, ids=lambda module: module.name or PACKAGE)


# -- reading -----------------------------------------------------------------------------------------------------------


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """Return the whole name that a from-import starts at."""
    if not node.level:
        return node.module or ""
    parts = [PACKAGE, *filter(None, module.name.split("."))]
    parts = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def imported(module: Module, names: set[str]) -> Iterator[str]:
    """Yield the whole name of each import, wherever it stands; of our own, that of a module."""
    lazy = module.name == ""  # the package's own __init__ loads on first use
    for node in module.tree.body if lazy else ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole.removeprefix(f"{PACKAGE}.") in names else base


def inside(module: Module, names: set[str]) -> set[str]:
    """Return the modules of ours that *module* imports."""
    return {name.partition(".")[2] for name in imported(module, names) if name.partition(".")[0] == PACKAGE}


def matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def floor(name: str) -> int:
    """Return the floor of a module; the package itself is above all."""
    return next((number for number, patterns in FLOORS if matches(name, patterns)), 10 if name == "" else -1)


def is_ledge(importer: str, name: str) -> bool:
    """Whether two modules of one floor may know each other: a package's own __init__ is its siblings' common ground."""
    if floor(importer) != floor(name):
        return False
    return name == importer.rpartition(".")[0] or any(fnmatchcase(importer, one) and fnmatchcase(name, other) for one, other in LEDGES)


def climbing(module: Module, names: set[str]) -> list[str]:
    """Return the imports that do not look down."""
    return sorted(name for name in inside(module, names) if floor(name) >= floor(module.name) and not is_ledge(module.name, name))


def trespassing(module: Module, names: set[str]) -> list[str]:
    """Return what *module* imports although it is no door to it."""
    found = {name.partition(".")[0] for name in imported(module, names)}
    return sorted(name for name in found if name in DOORS and not matches(module.name, DOORS[name]))


def touches_environment(module: Module) -> bool:
    for node in ast.walk(module.tree):
        if (isinstance(node, ast.Attribute) and node.attr in _ENVIRONMENT_NAMES
                and isinstance(node.value, ast.Name) and node.value.id != "request"):  # whose environ is its head
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os" and {alias.name for alias in node.names} & _ENVIRONMENT_NAMES:
            return True
    return False


def lengths(module: Module) -> Iterator[tuple[str, int]]:
    """Yield each function's name and lines of code: without its docstring, empty lines and comments."""
    lines = module.text.splitlines()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = set(range(node.lineno, (node.end_lineno or 0) + 1))
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                own -= set(range(first.lineno, (first.end_lineno or 0) + 1))
            yield node.name, sum(1 for number in own if lines[number - 1].strip() and not lines[number - 1].lstrip().startswith("#"))


# -- the package -------------------------------------------------------------------------------------------------------


@EACH
def test_every_module_has_its_floor(module: Module) -> None:
    assert floor(module.name) >= 0, "name its floor in the table, and in design.md"


@EACH
def test_imports_look_down(module: Module) -> None:
    assert climbing(module, NAMES) == []


@EACH
def test_the_outside_is_reached_through_its_doors(module: Module) -> None:
    assert trespassing(module, NAMES) == []


@EACH
def test_the_environment_is_read_in_one_file(module: Module) -> None:
    assert not touches_environment(module) or module.name in ENVIRONMENT


def test_there_is_no_cycle_of_imports() -> None:
    graphlib.TopologicalSorter({module.name: inside(module, NAMES) - {""} for module in ALL}).prepare()


@EACH
def test_a_file_is_one_sitting(module: Module) -> None:
    assert len(module.text.splitlines()) <= MAX_FILE


@EACH
def test_a_function_is_short(module: Module) -> None:
    assert [(name, length) for name, length in lengths(module) if length > MAX_FUNCTION] == []


def test_most_functions_are_a_few_lines() -> None:
    found = sorted(length for module in ALL for _, length in lengths(module))
    assert found[len(found) // 2] <= MAX_MEDIAN


# -- the reading itself ------------------------------------------------------------------------------------------------

SOME = {
    "",
    "errors",
    "types",
    "router",
    "web",
    "web.mist",
    "web.openai",
    "call",
    "dialects",
    "dialects.openai",
    "dialects.anthropic",
    "providers.base",
    "build",
}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("call", "from .errors import InferMuxError\nfrom . import types", []),
        ("call", "from .router import Router", ["router"]),
        ("call", "from . import router", ["router"]),
        ("call", "import infermux.router", ["router"]),
        ("call", "import infermux.router as r, json", ["router"]),
        ("call", "from infermux import router", ["router"]),
        ("call", "from infermux.router import Router", ["router"]),
        ("call", "def f():\n    from .router import Router", ["router"]),
        ("call", "if TYPE_CHECKING:\n    from .router import Router", ["router"]),
        ("call", "class A:\n    try:\n        import infermux.router\n    except ImportError: pass", ["router"]),
        ("call", "from . import Router", [""]),
        ("call", "from .providers.base import Provider", ["providers.base"]),  # the same floor
        ("errors", "from .types import JSON", ["types"]),
        ("web.mist", "from . import door\nfrom .. import router\nfrom ..call import Call", []),
        ("web.mist", "from .openai import x", ["web.openai"]),
        ("dialects.openai", "from .anthropic import x", ["dialects.anthropic"]),
        ("web.mist", "from . import openai", ["web.openai"]),
        ("dialects.openai", "from . import Events", []),
        ("dialects.openai", "from ..providers.base import Provider", ["providers.base"]),
        ("__main__", "from .web.mist import x", []),
        ("", "import json\ndef f():\n    from .router import Router", []),
        ("", "if TYPE_CHECKING:\n    from .router import Router", []),
    ],
)
def test_an_import_that_climbs_is_found(name: str, text: str, found: list[str]) -> None:
    assert climbing(Module(name, False, text), SOME) == found


def test_a_packages_own_imports_start_in_it() -> None:
    assert inside(Module("web", True, "from .mist import a\nfrom ..errors import b\nfrom . import openai"), SOME) == {
        "web.mist",
        "errors",
        "web.openai",
    }


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("router", "import requests", ["requests"]),
        ("router", "import requests.adapters as a", ["requests"]),
        ("router", "def f():\n    from flask import Flask", ["flask"]),
        ("web.mist", "from flask import Flask\nimport werkzeug.exceptions", []),
        ("web.mist", "from urllib3 import Retry", ["urllib3"]),
        ("providers.http", "import requests, urllib3.connection, sqlite3", ["sqlite3"]),
        ("router", "from .requests import x", []),
    ],
)
def test_a_door_that_is_none_is_found(name: str, text: str, found: list[str]) -> None:
    assert trespassing(Module(name, False, text), SOME) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import os\nos.environ['A']", True),
        ("import os as o\no.getenv('A')", True),
        ("from os import environ as e", True),
        ("import os\nos.getpid()", False),
        ("from flask import request\nrequest.environ['HTTP_A']", False),
        ("def load(environ):\n    return environ['A']", False),
    ],
)
def test_a_look_at_the_environment_is_found(text: str, found: bool) -> None:
    assert touches_environment(Module("router", False, text)) is found


def test_lines_of_code_are_counted() -> None:
    text = 'def f(a,\n      b):\n    """One.\n\n    Two."""\n\n    # why\n    x = 1   # but\n    def g():\n        return x\n    return g\n'
    assert dict(lengths(Module("x", False, text))) == {"f": 6, "g": 2}
