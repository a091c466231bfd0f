"""Every private or undocumented library name that the package uses, each with its reason.

A library version without such a name fails here first; CI runs this with the lowest and the newest
versions. Methods whose docstring invites to override them count as documented, and so do `cfg` and
`log`, which gunicorn passes to hooks of gunicorn.conf.py.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser

import infermux

ROOT = Path(infermux.__file__).parent
MAX_NAMES = 15


class Name(NamedTuple):
    """A name of a library, the module of ours that uses it, and why."""

    distribution: str  # or "python"
    place: str
    used_in: str
    reason: str


TABLE = [
    Name(
        "python",
        "http.client.HTTPConnection.response_class",
        "providers/transport.py",
        "hangs in the reader that bounds every read by the call's deadline",
    ),
    Name(
        "python",
        "http.client.HTTPConnection.response_class",
        "telemetry/tokentrace.py",
        "bounds the whole of an answer that nobody waits for",
    ),
    Name(
        "python",
        "http.client.HTTPResponse.begin",
        "providers/transport.py",
        "passes over interim responses other than 100, such as 103",
    ),
    Name(
        "urllib3",
        "urllib3.connection.HTTPConnection._new_conn",
        "providers/transport.py",
        "brings a socket of ours: its name and all addresses have one time limit together",
    ),
    Name(
        "urllib3",
        "urllib3.poolmanager.PoolManager.pool_classes_by_scheme",
        "providers/transport.py",
        "makes the pool manager use our pools",
    ),
    Name(
        "gunicorn",
        "gunicorn.workers.gthread.ThreadWorker.accept",
        "server/worker.py",
        "survives a lack of descriptors, and accepts a burst at once",
    ),
    Name(
        "gunicorn",
        "gunicorn.workers.gthread.ThreadWorker.wait_for_and_dispatch_events",
        "server/worker.py",
        "starts queued requests in turn",
    ),
    Name(
        "gunicorn",
        "gunicorn.workers.gthread.ThreadWorker.poller",
        "server/worker.py",
        "wakes the main loop for more of a request that has no thread yet",
    ),
    Name(
        "gunicorn",
        "gunicorn.workers.gthread.TConn.sock",
        "server/worker.py",
        "takes a socket of ours, whose reading has a pace",
    ),
    Name(
        "gunicorn",
        "gunicorn.workers.gthread.TConn.data_ready",
        "server/worker.py",
        "spares a thread's wait, which takes a descriptor",
    ),
    Name(
        "gunicorn",
        "gunicorn.workers.base.Worker.handle_error",
        "server/worker.py",
        "repeats nothing of a refused request in the answer",
    ),
    Name(
        "gunicorn",
        "gunicorn.workers.base.Worker.alive",
        "routing/stream.py",
        "ends streams before a worker that stops is killed",
    ),
    Name(
        "gunicorn",
        "gunicorn.http.message.Message.body",
        "server/worker.py",
        "is the application's wsgi.input, through which it refuses a body",
    ),
    Name(
        "gunicorn",
        "gunicorn.http.message.Message.force_close",
        "server/worker.py",
        "closes the connection of a body that is not read",
    ),
    Name(
        "gunicorn",
        "gunicorn.http.message.Message.unreader",
        "server/worker.py",
        "has the buffer below",
    ),
    Name(
        "gunicorn",
        "gunicorn.http.unreader.Unreader.buf",
        "server/worker.py",
        "sees a request that was read together with the last one",
    ),
]


def made_worker(kind: Any) -> Any:
    worker = kind(1, 1, [], None, 30, Config(), None)
    worker.tmp.close()
    return worker


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
# How to make an object whose attributes are set when it is made.
MADE: dict[str, Callable[[type], Any]] = {
    "gunicorn.http.message.Message": lambda _: next(
        RequestParser(Config(), iter([GET]), ("::1", 1))
    ),
    "gunicorn.http.unreader.Unreader": lambda kind: kind(),
    "gunicorn.workers.base.Worker": made_worker,
    "gunicorn.workers.gthread.TConn": lambda kind: kind(
        None, SimpleNamespace(setblocking=bool), None, None
    ),
    "gunicorn.workers.gthread.ThreadWorker": made_worker,
    "urllib3.poolmanager.PoolManager": lambda kind: kind(),
}
# Names with an underscore that their libraries document.
DOCUMENTED = {"_replace", "_asdict", "_fields", "_make", "_exit", "_get_current_object"}


def found(place: str) -> Any:
    """Return what stands at a dotted place; raise AttributeError if there is nothing."""
    parts = place.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for at in range(end, len(parts)):
            if not hasattr(value, parts[at]) and (make := MADE.get(".".join(parts[:at]))):
                value = make(value)
            value = getattr(value, parts[at])
        return value
    raise AttributeError(place)


EACH = pytest.mark.parametrize("name", TABLE, ids=lambda name: name.place)


@EACH
def test_the_name_exists_in_the_installed_version(name: Name) -> None:
    found(name.place)


@cache
def owners() -> Mapping[str, list[str]]:
    """Return the distributions of each package; to find them takes a second."""
    return packages_distributions()


@pytest.mark.sampled(1)
@EACH
def test_the_name_is_used_where_the_table_says(name: Name) -> None:
    assert name.place.rpartition(".")[2] in (ROOT / name.used_in).read_text("utf-8")
    owner = owners().get(name.place.partition(".")[0], ["python"])
    assert name.distribution.lower() in {each.lower() for each in owner}
    assert name.reason


def test_there_are_few_of_them() -> None:
    assert len({(name.distribution, name.place) for name in TABLE}) <= MAX_NAMES
    assert len({(name.place, name.used_in) for name in TABLE}) == len(TABLE)


# -- those that the table lacks --------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def ours(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module defines: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def touched(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a module reads, passes to getattr, or imports from a library."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            yield from (
                str(each.value) for each in node.args[1:2] if isinstance(each, ast.Constant)
            )


def missing(text: str, listed: set[str], known: set[str]) -> list[str]:
    """Return the private names in a module that are neither *listed* nor *known* to be ours."""
    names = {name for name in touched(ast.parse(text)) if is_private(name)}
    return sorted(names - listed - known - DOCUMENTED)


FILES = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in ROOT.rglob("*.py")}


@cache
def defined(package: str) -> set[str]:
    """Return the names that the modules of a package define."""
    inside = [text for file, text in FILES.items() if file.rpartition("/")[0] == package]
    return {name for text in inside for name in ours(ast.parse(text))}


@pytest.mark.parametrize("file", FILES)
def test_no_private_name_is_missing_in_the_table(file: str) -> None:
    listed = {name.place.rpartition(".")[2] for name in TABLE if name.used_in == file}
    assert missing(FILES[file], listed, defined(file.rpartition("/")[0])) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("fields._container", ["_container"]),
        ("getattr(sock, '_sock')", ["_sock"]),
        ("from socket import _socket", ["_socket"]),
        ("class A:\n    _mine = 1\n    def f(self): return self._mine", []),
        ("class A:\n    def f(self): self._x = 1; return self._x", []),
        ("a.b.__dict__", []),
        ("row._asdict()", []),
        ("from . import _private", []),
    ],
)
def test_a_private_name_is_found(text: str, names: list[str]) -> None:
    assert missing(text, set(), set(ours(ast.parse(text)))) == names


def test_a_place_that_is_gone_is_noticed() -> None:
    with pytest.raises(AttributeError):
        found("http.client.HTTPConnection.no_such_name")
    with pytest.raises(AttributeError):
        found("no_such_package.name")
