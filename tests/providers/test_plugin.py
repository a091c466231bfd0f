"""Tests of a provider type from another package, installed by pip and found by its entry point."""

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
from support import Service, run, script

MODULE = """
from infermux import InferResponse


class Shout:
    def __init__(self, config):
        self.name, self.models = config.name, list(config.models) or ["shout-v1"]

    def infer(self, request, deadline):
        return InferResponse(request.model, self.name, request.messages[-1]["content"].upper(), tokens_in=1, tokens_out=1, cost_usd=0.0)


def raising(config):
    raise RuntimeError("not today: key-of-the-plug-in")


def nothing(config):
    return None
"""


def wheel(folder: Path, name: str, module: str, entries: dict[str, str]) -> Path:
    """Return a wheel of one module with *entries* in the group infermux.providers, as a build would
    make it.
    """
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[infermux.providers]\n"
        + "".join(f"{type} = {where}\n" for type, where in entries.items()),
    }
    digest = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in files.items()
    }
    files[f"{info}/RECORD"] = "".join(
        f"{path},sha256={value},{len(files[path].encode())}\n" for path, value in digest.items()
    )
    target = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return target


def install(folder: Path, entries: dict[str, str], module: str = MODULE) -> dict[str, str]:
    """Install a package with *entries* into a scratch directory; return the environment that finds
    it there.
    """
    site = folder / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-index",
    ]
    answer = run(
        [*command, "--target", str(site), str(wheel(folder, "shout_provider", module, entries))]
    )
    assert answer.returncode == 0, answer.stderr
    return {"PYTHONPATH": str(site)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    return install(tmp_path_factory.mktemp("plugin"), {"shout": "shout_provider:Shout"})


def infermux(*args: str, env: dict[str, str]):
    return run([*script("infermux"), *args], env=env)


def names(env: dict[str, str]) -> list[str]:
    answer = infermux("providers", "--json", env=env)
    assert answer.returncode == 0, answer.stderr
    return [each["name"] for each in json.loads(answer.stdout)["providers"]]


@pytest.mark.slow
def test_the_plugin_is_a_provider_before_echo(installed):
    answer = infermux("providers", env=installed)
    assert [line.split() for line in answer.stdout.splitlines()] == [
        ["PROVIDER", "MODELS"],
        ["shout", "shout-v1"],
        ["echo", "echo-v1"],
    ]


@pytest.mark.slow
def test_vendors_of_the_environment_come_before_it(installed):
    assert names(installed | {"OPENAI_API_KEY": "sk-test"}) == ["openai", "shout", "echo"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("model", ["shout", "shout-v1", "shout/shout-v1", "auto"])
def test_infer_asks_it(installed, model):
    answer = infermux("infer", "hello", "--model", model, env=installed)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "HELLO\n", "")


@pytest.mark.slow
def test_the_service_asks_it(installed):
    with Service(env=installed) as service:
        answer = service.ask(
            "/infer", {"model": "shout-v1", "messages": [{"role": "user", "content": "hello"}]}
        )
        assert (answer.json["provider"], answer.json["content"]) == ("shout", "HELLO")


BROKEN = {
    "raises": ({"shout": "shout_provider:raising"}, MODULE),
    "no such attribute": ({"shout": "shout_provider:absent"}, MODULE),
    "no such module": ({"shout": "absent_module:make"}, MODULE),
    "no provider": ({"shout": "shout_provider:nothing"}, MODULE),
    "broken module": ({"shout": "shout_provider:Shout"}, "import absent_module"),
    "syntax error": ({"shout": "shout_provider:Shout"}, "def"),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("entries", "module"), BROKEN.values(), ids=BROKEN)
def test_a_plugin_that_cannot_be_used_does_not_stop_the_start(tmp_path, entries, module):
    with zipfile.ZipFile(wheel(tmp_path, "shout_provider", module, entries)) as archive:
        archive.extractall(tmp_path / "site")  # as pip does, but sooner
    answer = infermux(
        "infer", "hello", "--model", "echo-v1", env={"PYTHONPATH": str(tmp_path / "site")}
    )
    assert (answer.returncode, answer.stdout) == (0, "echo: hello\n")
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_one_that_cannot_be_used_is_named_and_the_others_serve(tmp_path):
    env = install(tmp_path, {"loud": "shout_provider:Shout", "broken": "shout_provider:raising"})
    assert names(env) == ["loud", "echo"]
    assert "'broken'" in infermux("providers", env=env).stderr


@pytest.mark.slow
def test_the_service_starts_beside_a_broken_one(tmp_path):
    with Service(env=install(tmp_path, {"broken": "shout_provider:raising"})) as service:
        assert [each["name"] for each in service.ask("/providers").json["providers"]] == ["echo"]
        assert "'broken'" in service.log


@pytest.mark.slow
def test_a_vendors_row_wins_over_a_plugin_of_its_name(tmp_path):
    env = install(tmp_path, {"openai": "shout_provider:Shout"})
    assert names(env | {"OPENAI_API_KEY": "sk-test"}).count("openai") == 1
