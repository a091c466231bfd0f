"""The public names are exactly those of `__all__`, and cheap to import."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import infermux

SOURCE = Path(infermux.__file__)
LIBRARY = ["Registry", "Router", "EchoProvider", "InferRequest"]
HEAVY = ("flask", "werkzeug", "click", "requests", "urllib3", "gunicorn", "sqlite3")


def python(code: str, **environ: str) -> Any:
    """Run *code* in a Python of its own, outside of the clone's tests; return what it prints as
    JSON.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "", "PYTHONPATH": str(SOURCE.parents[1]), **environ},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loaded_after(code: str) -> list[str]:
    return python(
        f"{code}\nimport json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", infermux.__all__)
def test_every_name_can_be_imported_first(name: str) -> None:
    """In a fresh process, so that no other import has made it work."""
    shown = f"print(int(callable({name}) or {name}.__name__ == 'infermux.{name}'))"
    assert python(f"from infermux import {name}; {shown}") == 1


@pytest.mark.slow
def test_a_star_brings_exactly_the_public_names() -> None:
    found = python(
        "before = {*globals(), 'before'}\nfrom infermux import *\nimport json as j; print(j.dumps(sorted({*globals()} - before - {'j'})))"
    )
    assert found == sorted(infermux.__all__)


def test_what_is_announced_is_sorted_and_said_once() -> None:
    assert infermux.__all__ == sorted(infermux.__all__)
    assert len(set(infermux.__all__)) == len(infermux.__all__)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(SOURCE.read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = [
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(seen) == sorted([*infermux.__all__, "OTLP"])


def test_nothing_else_of_ours_is_public() -> None:
    """What is left in the module are its sub-modules and what the file itself needs."""
    for name in infermux.__all__:
        getattr(infermux, name)
    modules = {name.partition(".")[2] for name in sys.modules if name.startswith("infermux.")}
    own = {name for name in vars(infermux) if not name.startswith("_") and name not in modules}
    assert own - {*infermux.__all__, "OTLP"} <= {"annotations", "importlib", "Any", "TYPE_CHECKING"}
    assert {*infermux.__all__} <= {*dir(infermux)}


def test_what_the_manual_imports_is_public() -> None:
    """The manual is README.md and the topics of `infermux help`."""
    pages = [SOURCE.parents[1] / "README.md", *SOURCE.parent.glob("help/*.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    imported = re.findall(r"^\s*from infermux import ([\w, ]+)$", text, re.M)
    names = {name.strip() for line in imported for name in line.split(",")}
    names |= {*re.findall(r"\binfermux\.([a-z_]+)\(", text)}  # calls: infermux.load(…)
    assert names and names <= {*infermux.__all__, "OTLP"}
    modules = {*re.findall(r"^\s*from infermux\.([\w.]+) import", text, re.M)}
    assert modules <= {"errors", "testing", "otel"}
    for each in ("errors", "testing", "otel", "server.load"):
        assert f"`infermux.{each}`" in (infermux.__doc__ or "")


@pytest.mark.parametrize("name", ["nope", "Route", "_Finishing", "requests", "__path_"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(infermux, name)
    with pytest.raises(ImportError):
        exec(f"from infermux import {name}")


def test_import_infermux_loads_neither_flask_nor_requests() -> None:
    assert loaded_after("import infermux") == []


@pytest.mark.slow
def test_the_library_loads_neither_flask_nor_requests() -> None:
    assert (
        loaded_after(
            f"from infermux import {', '.join(LIBRARY)}\n"
            "Router(Registry([EchoProvider()])).infer(InferRequest('echo', [{'role': 'user', 'content': 'x'}]))"
        )
        == []
    )
    assert loaded_after("import infermux; infermux.load({})") == []


def test_a_provider_behind_http_loads_requests_but_not_flask() -> None:
    found = loaded_after("import infermux; infermux.load({'OPENAI_API_KEY': 'k'})")
    assert "requests" in found and "flask" not in found


def test_import_infermux_takes_under_60_milliseconds() -> None:
    """Of CPU time, and the best of five: what the machine does beside is not ours."""
    code = "import time; start = time.process_time(); import infermux; print(time.process_time() - start)"
    assert min(python(code) for _ in range(5)) < 0.060


def test_a_version_is_told() -> None:
    assert infermux.__version__.count(".") == 2


def test_types_are_shipped() -> None:
    assert (SOURCE.parent / "py.typed").exists()


def test_the_environment_configures_a_router() -> None:
    router = infermux.load({"OPENAI_API_KEY": "k", "GROQ_API_KEY": "k"})
    assert [each.name for each in router.registry] == ["openai", "groq", "echo"]
    assert [each.name for each in infermux.load({}).registry] == ["echo"]
    router.close()


def test_an_exporter_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not here')")
    code = (
        "import json\ntry:\n    from infermux import OTLP\n"
        "except ImportError as error:\n    print(json.dumps(str(error)))\nelse:\n    print('null')"
    )
    found = python(code, PYTHONPATH=f"{tmp_path}:{SOURCE.parents[1]}")
    assert found == "OTLP needs OpenTelemetry: pip install 'infermux[otel]'"
