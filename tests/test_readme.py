"""The manual, README.md and infermux/help/*.md: each of its blocks works as it stands.

A page is a session: its `sh`, `python` and `console` blocks run one after the other in one shell, in
an empty folder (the README: in a fresh copy of the project), with nothing set but PATH and HOME.
Three things differ from a reader's terminal: ports (86xx) are free ones; after a line that ends
in `&` the test waits until the service listens; outside CI nothing is installed anew.

* `sh`: every command succeeds. A block without a language after it is what it prints.
* `console`: the commands after `$` print what is shown. Numbers, dates and ids may differ.
* `toml`: `infermux validate` accepts it. One that begins with `# infermux.toml` is that file from
  there on.
* `json`: is JSON, as a whole or line by line. `yaml`, `ini`, `nginx`, `dockerfile` have the form of
  their kind; the ports, paths and commands in them exist.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

ROOT = Path(__file__).resolve().parents[1]
HELP = ROOT / "infermux" / "help"
PAGES = {"README": ROOT / "README.md"} | {path.stem: path for path in sorted(HELP.glob("*.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
ALL = "\n".join(TEXTS.values())
KINDS = {"sh", "python", "console", "toml", "json", "yaml", "ini", "nginx", "dockerfile", ""}
NUMBER = re.compile(r"\b[0-9a-f]{8,64}\b|[-+$]?\d[\d.,:TZ-]*")
EXACT = ("$ infermux explain", "$ infermux prices")  # their numbers are those of the example
SECONDS = 240  # of a page
SHELL = """
mark() {
    printf '\\n@@@ %s\\n' "$1"
    printf '\\n@@@ %s\\n' "$1" >&2
}
listening() {
    for _ in $(seq 300); do
        (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
        sleep 0.1
    done
    echo "nothing listens on port $1" >&2
    return 1
}
"""


class Block(NamedTuple):
    kind: str
    text: str
    line: int  # in its page


def blocks(text: str) -> list[Block]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [Block(each[1], each[2], text.count("\n", 0, each.start()) + 1) for each in found]


def of_kind(*kinds: str) -> list[Any]:
    """Return each block of these kinds as a case of a test."""
    return [
        pytest.param(block, id=f"{name}:{block.line}")
        for name, text in TEXTS.items()
        for block in blocks(text)
        if block.kind in kinds
    ]


# -- a page as a session ---------------------------------------------------------------------------


def newcomer(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of somebody who has set nothing."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if not os.environ.get("CI"):
        more["PYTHONPATH"] = str(ROOT)  # a developer's environment may have another copy
    return kept | {"PATH": path, "HOME": str(home)} | more


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def with_free_ports(text: str) -> str:
    ports = {port: str(free_port()) for port in sorted(set(re.findall(r"\b86\d\d\b", text)))}
    return re.sub(r"\b86\d\d\b", lambda found: ports[found[0]], text)


def commands_of(block: Block) -> list[str]:
    """Return what a `console` block types, its continued lines joined."""
    return re.findall(r"^\$ ((?:.*\\\n)*.*)$", block.text, re.M)


def printed_by(block: Block) -> str:
    return re.sub(r"^\$ (?:.*\\\n)*.*\n?", "", block.text, flags=re.M)


def session(page: list[Block], folder: Path) -> str:
    """Return the script that does what a page says."""
    script = ["set -euo pipefail", SHELL]
    for number, block in enumerate(page):
        script.append(f"mark {number}")
        if block.kind == "python":
            (folder / f".block{number}.py").write_text(block.text, encoding="utf-8")
            script.append(f"python .block{number}.py")
        elif block.kind == "toml" and block.text.startswith("# infermux.toml"):
            script.append(f"cat > infermux.toml <<'@@@'\n{block.text}@@@")
        elif block.kind == "console":
            script += [f"{{ {line}; }} 2>&1 || true" for line in commands_of(block)]
        elif block.kind == "sh":
            text = block.text.rstrip()
            if not os.environ.get("CI"):  # nothing is installed anew
                text = re.sub(r"(?m)^(pip install|python3 -m venv|\. \.venv/).*\n?", "", text)
            script.append(text)
            if text.endswith("&"):
                port = re.search(r":(\d{4,5})\b", text.splitlines()[-1])
                assert port, f"line {block.line}: a service says its port"
                script.append(f"listening {port[1]}")
    return "\n".join([*script, "mark end\n"])


def play(text: str, folder: Path, env: Mapping[str, str]) -> dict[int, str]:
    """Run a page; return what each block printed. Fail with the block that failed."""
    page = blocks(with_free_ports(text))
    script = folder / ".session.sh"
    script.write_text(session(page, folder), encoding="utf-8")
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        shell = subprocess.Popen(
            ["bash", "--norc", str(script)],
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            code = shell.wait(SECONDS)
        finally:
            _end(shell)
        told = [_parts(file) for file in (out, err)]
    if code:
        last = max(told[0], default=0)
        where = f"line {page[last].line}:\n{page[last].text}"
        pytest.fail(f"exit code {code} at {where}\n{told[0].get(last)}\n{told[1].get(last)}")
    return told[0]


def _parts(file: Any) -> dict[int, str]:
    file.seek(0)
    _, *rest = re.split(r"^@@@ (\w+)$", file.read(), flags=re.M)
    ends = zip(rest[::2], rest[1::2], strict=True)
    return {int(number) if number != "end" else 10**6: text for number, text in ends}


def _end(shell: subprocess.Popen[bytes]) -> None:
    """End the shell and the services that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, number)
            for _ in range(200 if number == signal.SIGTERM else 1):
                shell.poll()
                os.killpg(shell.pid, 0)
                signal.sigtimedwait([], 0.05)
    shell.wait()


def shape(text: str) -> list[str]:
    """Return the words of what was printed; numbers, ids and the widths of columns may differ."""
    lines = [re.sub(r"[\u2588\u2500]+", "", line) for line in text.splitlines()]
    words = [" ".join(NUMBER.sub("#", line).split()) for line in lines]
    return [line for line in words if line and not line.startswith("infermux listening")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


def clone(target: Path) -> None:
    """Copy what a clone holds."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def need_clients(text: str) -> None:
    for block in blocks(text):
        imported = (
            r"^\s*(?:import|from) (openai|anthropic|opentelemetry|langchain_openai|agents|google)\b"
        )
        for name in re.findall(imported, block.text, re.M) if block.kind == "python" else ():
            pytest.importorskip("google.genai" if name == "google" else name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_works_as_it_stands(name: str, tmp_path: Path, folder: Path) -> None:
    text = TEXTS[name]
    need_clients(text)
    if name == "README":
        clone(folder)
    told, page = play(text, folder, newcomer(tmp_path)), blocks(text)
    for number, block in enumerate(page):
        if block.kind == "console":
            shown = printed_by(block)
            assert shape(told[number]) == shape(shown), f"line {block.line}"
            if block.text.startswith(EXACT):
                assert told[number].strip() == shown.strip(), f"line {block.line}"
        elif block.kind == "sh":
            assert '{"error"' not in told[number], f"line {block.line}"
        elif block.kind == "" and number and page[number - 1].kind in ("sh", "python"):
            assert shape(told[number - 1]) == shape(block.text), f"line {block.line}"


# -- blocks that are no commands -------------------------------------------------------------------


def test_every_block_is_of_a_known_kind() -> None:
    assert {block.kind for text in TEXTS.values() for block in blocks(text)} <= KINDS
    for name, text in TEXTS.items():
        assert len(re.findall(r"^```", text, re.M)) == 2 * len(blocks(text)), name


@pytest.mark.sampled(4)
@pytest.mark.parametrize("block", of_kind("toml"))
def test_a_configuration_is_valid(block: Block, tmp_path: Path, folder: Path) -> None:
    from infermux.providers import PRESETS

    text = re.sub(r'"file:[^"]+"', f'"file:{tmp_path}/secret"', block.text)
    (tmp_path / "secret").write_text("a" * 64, encoding="utf-8")
    more = {
        preset.keys[0]: "http://127.0.0.1:9" if preset.keys[0].endswith(("_HOST", "_URL")) else "k"
        for name, preset in PRESETS.items()
        if f"[providers.{name}" in text
    }
    for number, name in enumerate(re.findall(r'"env:(\w+)"', text)):
        more[name] = f"{number:064x}"
    (folder / "infermux.toml").write_text(text, encoding="utf-8")
    for module, function in re.findall(r'"(redact):(\w+)"', text):  # the page's own functions
        with (folder / f"{module}.py").open("a", encoding="utf-8") as file:
            file.write(f"def {function}(given):\n    return given\n")
    done = subprocess.run(
        ["infermux", "validate"],
        cwd=folder,
        env=newcomer(tmp_path, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", of_kind("json"))
def test_json_is_json(block: Block) -> None:
    try:
        json.loads(block.text)
    except ValueError:
        for line in block.text.splitlines():
            json.loads(line)


@pytest.mark.parametrize("block", of_kind("yaml"))
def test_yaml_is_yaml(block: Block) -> None:
    yaml = pytest.importorskip("yaml")
    for document in yaml.safe_load_all(block.text):
        assert isinstance(document, dict | list)


@pytest.mark.parametrize("block", of_kind("ini"))
def test_ini_is_ini(block: Block) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(block.text)
    assert parser.sections()


@pytest.mark.parametrize("block", of_kind("nginx"))
def test_nginx_has_blocks_and_directives(block: Block) -> None:
    text = re.sub(r"#.*", "", block.text)
    assert text.count("{") == text.count("}")
    assert all(re.search(r"[;{}]$", line.strip()) for line in text.splitlines() if line.strip())


@pytest.mark.parametrize("block", of_kind("dockerfile"))
def test_a_dockerfile_has_instructions(block: Block) -> None:
    lines = [each for each in block.text.replace("\\\n", "").splitlines() if each.strip()]
    known = "FROM RUN COPY CMD ENTRYPOINT ENV EXPOSE USER WORKDIR HEALTHCHECK ARG VOLUME LABEL"
    assert {line.split()[0] for line in lines if not line.startswith("#")} <= set(known.split())
    assert lines[0].startswith(("FROM ", "#"))


OTHERS = of_kind("yaml", "ini", "nginx", "dockerfile")


@pytest.mark.parametrize("block", OTHERS)
def test_what_other_systems_start_and_ask_exists(block: Block) -> None:
    from infermux import create_app
    from infermux.cli.main import main

    text = re.sub(r'"\s*,\s*"', " ", block.text)  # CMD ["infermux", "serve"]
    for line in re.findall(
        r"\binfermux ((?:serve|validate|status|costs|batch)\b[^\"\n;&|]*)", text
    ):
        name, *rest = shlex.split(line.partition("]")[0])
        parent = click.Context(main, **main.context_settings)
        command = main.get_command(parent, name)
        assert command is not None
        rest = [word for word in rest if not word.startswith("$")]
        command.make_context(name, rest, parent)
    os.environ["INFERMUX_LEDGER__PATH"] = ""
    try:
        rules = {str(rule) for rule in create_app().url_map.iter_rules()}
    finally:
        del os.environ["INFERMUX_LEDGER__PATH"]
    for path in re.findall(r"(?:path: |:8600)(/[\w/-]*)", text):
        assert any(f"{rule}/".startswith(f"{path.rstrip('/')}/") for rule in rules), path


# -- what the pages say of commands, variables, metrics and each other -----------------------------


def commands() -> set[str]:
    """The commands that there are; a group of several is one, whose help lists them."""
    from infermux.cli.main import main

    context, found = click.Context(main), set()
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        inner = list(command.commands) if isinstance(command, click.Group) else []
        found.add(f"{name} {inner[0]}" if len(inner) == 1 else name)
    return found


def test_the_readme_lists_every_command_and_every_one_that_is_named_exists() -> None:
    known = commands()
    told = set(re.findall(r"^\| `infermux ([a-z ]+)` \|", TEXTS["README"], re.M))
    assert told == known
    named = set(re.findall(r"(?:^|[`|($] ?)infermux ([a-z]+)\b", ALL, re.M))
    assert named <= {name.split()[0] for name in known}


def test_the_first_block_has_four_lines_and_the_mount_five() -> None:
    shell = [block.text for block in blocks(TEXTS["README"]) if block.kind == "sh"]
    assert len(shell[0].splitlines()) == 4
    mount = next(b.text for b in blocks(TEXTS["README"]) if "register_blueprint" in b.text)
    assert len([line for line in mount.splitlines() if line]) <= 5


def test_the_readme_is_short_and_in_order() -> None:
    text = TEXTS["README"]
    assert len(text.encode()) <= 12_000
    heads = re.findall(r"^## (.*)$", text, re.M)
    order = "Install, Quick start, Mount, Run, Configuration, Library, Vendors, Commands, Topics"
    order += ", Speed, Development, License"
    assert [head.split(" it ")[0].split(" as ")[0] for head in heads] == order.split(", ")
    words = ("gateway", "proxy", "router", "rate limit", "circuit breaker", "fallback")
    opening = text.partition("## ")[0].lower()
    assert all(word in opening for word in words)


def test_every_topic_is_in_the_readme_and_has_a_title() -> None:
    listed = dict(re.findall(r"^\| \[`([\w-]+)`\]\((\S+)\) \|", TEXTS["README"], re.M))
    assert listed == {name: f"infermux/help/{name}.md" for name in PAGES if name != "README"}
    for name in listed:
        assert re.match(r"# [A-Z][^:\n]*: \S", TEXTS[name]), name
    named = set(re.findall(r"infermux help ([a-z]+)", ALL)) - {"parameters"}
    assert named <= {*listed}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    text = re.sub(r"^```.*?^```$", "", TEXTS[name], flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        page = PAGES[name] if not path else (PAGES[name].parent / path).resolve()
        assert page.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, target


def test_every_variable_that_is_named_exists() -> None:
    from infermux.config import settings
    from infermux.config.schema import variables
    from infermux.providers import PRESETS

    keys = r"`([A-Z_]+_API_KEY|OLLAMA_HOST|HF_TOKEN|(?:VLLM|LMSTUDIO|LLAMACPP)_BASE_URL)`"
    assert set(re.findall(keys, ALL)) <= {key for preset in PRESETS.values() for key in preset.keys}
    known = {"INFERMUX_CONFIG", "INFERMUX_ADMIN_KEY", settings.EARLY_HEADERS}
    for table in ("reliability", "server", "ledger", "trace"):
        kind = {"ledger": settings.LedgerConfig, "reliability": settings.Reliability}.get(
            table, getattr(settings, table.title(), None)
        )
        assert kind is not None
        known |= {*variables(f"INFERMUX_{table.upper()}__", kind())}
    named = set(re.findall(r"\bINFERMUX_[A-Z_]+\b", ALL))
    assert {
        name for name in named if not name.startswith("INFERMUX_PROVIDERS__")
    } <= known | NOT_READ


NOT_READ = {
    "INFERMUX_SERVICE_HOST",
    "INFERMUX_ADDR",
    "INFERMUX_LISTEN",
    "INFERMUX_TOKENTRACE",
    "INFERMUX_LONG",
}


def test_every_vendor_is_in_the_readme() -> None:
    from infermux.providers import PRESETS

    table = TEXTS["README"].partition("## Vendors")[2].partition("\n## ")[0]
    told = re.findall(r"([\w. -]+?) `([a-z_]+)` `([A-Z_]+)`", table)
    assert [(name.strip(), key, variable) for name, key, variable in told] == [
        (preset.label, name, preset.keys[0]) for name, preset in PRESETS.items()
    ]
    assert f"Gemini and {len(PRESETS) - 3} other vendors" in TEXTS["README"]


def test_every_metric_that_is_named_exists_and_all_are_explained() -> None:
    from infermux.telemetry.metrics import FAMILIES

    known = {f"infermux_{name}" for name in FAMILIES}
    told = re.findall(r"^\| `(infermux_\w+)(?:\{([\w,]+)\})?` \|", TEXTS["metrics"], re.M)
    labels = [(f"infermux_{name}", ",".join(each.labels)) for name, each in FAMILIES.items()]
    assert told == labels
    named = set(re.findall(r"\binfermux_[a-z_]+\b", ALL)) - {"infermux_ops"}
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in named} <= known


# -- the configuration -----------------------------------------------------------------------------


def keys_of(kind: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield each key of a table, with its place, and its default as TOML writes it."""
    for item in fields(kind):
        if "reader" not in item.metadata:
            continue
        default = item.default if item.default is not MISSING else item.default_factory
        if is_dataclass(default):
            yield from keys_of(type(default), f"{place}.{item.name}" if place else item.name)
        elif default == 0 and not isinstance(default, bool) and not _is_read(item, default):
            yield f"{place}.{item.name}", ""  # the manual says in words what holds without it
        else:
            yield f"{place}.{item.name}", _toml(default)


def _is_read(item: Any, value: object) -> bool:
    """Whether a file may have *value* for a key."""
    from infermux.errors import ConfigError

    with contextlib.suppress(ConfigError):
        item.metadata["reader"](value, "")
        return True
    return False


def _toml(value: Any) -> str:
    """Return a default as TOML writes it; "" for none."""
    if value is MISSING:
        return "required"
    if isinstance(value, tuple):
        return json.dumps(value) if value else ""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, int) or (value and isinstance(value, str)) else ""


def test_the_topic_has_every_key_with_its_default() -> None:
    from infermux.config import settings

    tables = {
        "providers.NAME": settings.ProviderConfig,
        "models.NAME": settings.ModelConfig,
        "reliability": settings.Reliability,
        "server": settings.Server,
        "keys.NAME": settings.KeyConfig,
        "keys.NAME.budget": settings.BudgetConfig,
        "budgets.NAME": settings.TeamConfig,
        "ledger": settings.LedgerConfig,
        "prices": settings.PricesConfig,
        "trace": settings.Trace,
        "hooks": settings.HooksConfig,
        "alerts": settings.AlertsConfig,
    }
    known = [("providers.environment", "")]
    for place, kind in tables.items():
        known += keys_of(kind, place)
    told = re.findall(r"^\| `([\w.]+)` \| `?([^|]*?)`? \|", TEXTS["configuration"], re.M)
    told = [(key, default) for key, default in told if "." in key]
    given = {key: default for key, default in known if default}
    assert [key for key, _ in told] == [key for key, _ in known]
    assert {key: default for key, default in told if key in given} == given
