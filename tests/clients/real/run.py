"""Run real clients against a gunicorn that routes to the strict vendor; print who passed what.

    python tests/clients/real/run.py FOLDER [--only PROGRAM] [--vendor VENDOR] [--write]

FOLDER holds a virtual environment for each file of requirements/ and a folder node with
node_modules; `.ci/clients` makes it. A client that is not there is named and left out. The run fails
if a scenario that expected.json names did not pass; --write writes that file anew, and the table in
infermux/help/clients.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from strict_vendor import KEY, StrictVendor  # noqa: E402
from support import Service  # noqa: E402

EXPECTED = HERE / "expected.json"
MANUAL = HERE.parents[2] / "infermux/help/clients.md"
TIMEOUT = 300  # seconds for one program
VENDORS = {  # the dialect, the model, and by which API of OpenAI's
    "openai chat": ("openai", "gpt-5.2", "chat"),
    "openai responses": ("openai", "gpt-5.6", "responses"),
    "anthropic": ("anthropic", "claude-opus-4-7", ""),
    "gemini": ("gemini", "gemini-3-pro", ""),
}
HEAD = f"| client | {' | '.join(VENDORS)} |"  # of the table
CLAUDE_NAMES = dict(  # names that LlamaIndex knows, for its class for Claude
    zip(
        VENDORS,
        [
            "claude-sonnet-4-0",
            "claude-opus-4-0",
            "claude-3-haiku-20240307",
            "claude-3-7-sonnet-latest",
        ],
        strict=True,
    )
)
CODEX_KNOWS = ("gpt-5.5", "gpt-5.6-sol")  # by the beginning of a model's name
PROGRAMS = {  # the environment that it needs; the longest first
    "langchain_suites.py": "sdk",
    "claude_code_cli.py": "node/node_modules/@anthropic-ai/claude-code",
    "codex_cli.py": "node/node_modules/@openai/codex",
    "openai_python.py": "sdk",
    "anthropic_python.py": "sdk",
    "google_genai_python.py": "sdk",
    "openai_agents_python.py": "sdk",
    "langchain_python.py": "sdk",
    "pydantic_ai_python.py": "sdk",
    "instructor_python.py": "instructor",
    "llamaindex_python.py": "llamaindex",
    "llm_python.py": "llm",
    "openai_node.mjs": "node",
    "anthropic_node.mjs": "node",
    "ai_sdk.mjs": "node",
}
QUIET = {  # no client asks anything outside, or tells anybody
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "AI_SDK_LOG_WARNINGS": "false",
    "NO_PROXY": "127.0.0.1,localhost",
    "HTTPS_PROXY": "http://127.0.0.1:9",  # nothing listens there
    "HTTP_PROXY": "http://127.0.0.1:9",
}


class Ended(NamedTuple):
    """How a scenario of a client ended over a vendor; without an error it passed."""

    program: str
    client: str
    vendor: str
    scenario: str
    error: str = ""
    seconds: float = 0.0


# program → client → vendor → the scenarios that passed
Table = Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]


def configuration(vendor: StrictVendor, folder: Path) -> Path:
    """Write a configuration with a provider for each vendor; return its path."""
    lines = ["[reliability]", "attempts = 1", "[reliability.circuit_breaker]", "failures = 1000000"]
    for name, (dialect, model, api) in VENDORS.items():
        lines += [
            f"[providers.{name.replace(' ', '-')}]",
            f'type = "{dialect}"',
            f'base_url = "{vendor.base_url(dialect)}"',
            'api_key = "env:VENDOR_KEY"',
            f'models = ["{model}"]',
        ]
        lines += [f'api = "{api}"'] if api else []
    lines += ["[models]"]  # names by which Codex knows what its tools should be
    for name, (_, model, _) in VENDORS.items():
        provider = name.replace(" ", "-")
        lines += [f'"{known}-{provider}" = "{provider}/{model}"' for known in CODEX_KNOWS]
        lines += [f'"{CLAUDE_NAMES[name]}" = "{provider}/{model}"']
    path = folder / "infermux.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def environment(port: int, folder: Path, home: Path, vendors: Sequence[str]) -> dict[str, str]:
    """Return the environment of a client program: where to ask, and a home of its own."""
    models = {name: VENDORS[name][1] for name in vendors}
    return QUIET | {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONPATH": str(HERE),
        "PYTHONPYCACHEPREFIX": str(folder / "pycache"),  # nothing beside our sources
        "CLIENTS": str(folder),
        "NODE_PATH": str(folder / "node/node_modules"),
        "BASE_URL": f"http://127.0.0.1:{port}",
        "KEY": "any-key",
        "MODELS": json.dumps(models),
        "CLAUDE_NAMES": json.dumps({models[name]: CLAUDE_NAMES[name] for name in vendors}),
    }


def command(program: str, folder: Path) -> list[str] | None:
    """Return the command of a client program, or None where its environment is missing."""
    needs = folder / PROGRAMS[program]
    if program.endswith(".mjs"):
        return ["node", str(HERE / program)] if needs.is_dir() and shutil.which("node") else None
    python = needs / "bin/python"
    if PROGRAMS[program].startswith("node"):
        return [sys.executable, str(HERE / program)] if needs.is_dir() else None
    return [str(python), str(HERE / program)] if python.exists() else None


def run(program: str, folder: Path, env: Mapping[str, str]) -> Iterator[Ended]:
    """Run a client program; yield how each of its scenarios ended."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            command(program, folder) or [],
            cwd=home,
            env=dict(env) | {"HOME": home, "TMPDIR": home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output, errors = process.communicate()
            errors += f"\n{program} did not end within {TIMEOUT} seconds"
    for line in output.splitlines():
        if line.startswith('{"client"'):
            yield Ended(program, **json.loads(line))
    print(
        f"{program}: {time.monotonic() - begun:.0f} s, exit code {process.returncode}", flush=True
    )
    if process.returncode:
        print("\n".join(errors.splitlines()[-15:]), flush=True)


def passed(results: Sequence[Ended]) -> Table:
    """Return which scenarios passed, by program, client and vendor."""
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for one in results:
        if not one.error:
            clients = found.setdefault(one.program, {})
            clients.setdefault(one.client, {}).setdefault(one.vendor, []).append(one.scenario)
    return found


def write(results: Sequence[Ended]) -> None:
    """Write what passed to expected.json and to the table of the manual; others' stay."""
    found = expected() | passed(results)
    text = json.dumps({name: found[name] for name in PROGRAMS if name in found}, indent=1)
    EXPECTED.write_text(text + "\n")
    manual = MANUAL.read_text(encoding="utf-8")
    counts: dict[str, dict[str, str]] = {}
    for row in re.findall(r"^\| (.*) \|$", manual.partition(HEAD)[2], flags=re.M):
        client, *cells = row.split(" | ")
        counts[client] = dict(zip(VENDORS, cells, strict=True))
    old = rf"^{re.escape(HEAD)}\n(\|.*\n)*"
    new = re.sub(old, table(counts | counted(results)) + "\n", manual, flags=re.M)
    MANUAL.write_text(new, encoding="utf-8")


def expected() -> Table:
    return json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}


def table(counts: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table of clients and vendors in Markdown."""
    lines = [HEAD, "|---" * (len(VENDORS) + 1) + "|"]
    for client, by_vendor in counts.items():
        cells = [by_vendor.get(vendor, "–") for vendor in VENDORS]
        lines.append(f"| {client} | {' | '.join(cells)} |")
    return "\n".join(lines)


def counted(results: Sequence[Ended]) -> dict[str, dict[str, str]]:
    """Return "passed / run" by client and vendor."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for one in results:
        found[one.client][one.vendor].append(not one.error)
    return {
        client: {vendor: f"{sum(ends)} / {len(ends)}" for vendor, ends in by_vendor.items()}
        for client, by_vendor in found.items()
    }


def missing(
    results: Sequence[Ended], expected: Table, here: Sequence[str], vendors: Sequence[str]
) -> list[str]:
    """Return what expected.json names and did not pass, of the programs that ran."""
    found = {(one.client, one.vendor, one.scenario) for one in results if not one.error}
    return [
        f"{client} over {vendor}: {scenario}"
        for program in here
        for client, by_vendor in expected.get(program, {}).items()
        for vendor in vendors
        for scenario in by_vendor.get(vendor, ())
        if (client, vendor, scenario) not in found
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", metavar="PROGRAM", help="of: all")
    parser.add_argument("--vendor", action="append", choices=list(VENDORS))
    parser.add_argument("--write", action="store_true", help="write expected.json anew")
    parser.add_argument("--log", type=Path, help="write the service's log there")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    folder, vendors = given.folder.absolute(), given.vendor or list(VENDORS)
    wanted = [name for name in PROGRAMS if not given.only or any(o in name for o in given.only)]
    here = [name for name in wanted if (HERE / name).exists() and command(name, folder)]
    for name in set(wanted) - set(here):
        print(f"{name}: its client could not be had, and is left out")
    with StrictVendor() as vendor, tempfile.TemporaryDirectory() as scratch:
        config = configuration(vendor, Path(scratch))
        with Service(env={"INFERMUX_CONFIG": str(config), "VENDOR_KEY": KEY}) as service:
            env = environment(service.port, folder, Path(scratch), vendors)
            with ThreadPoolExecutor(2) as pool:
                ran = pool.map(lambda name: list(run(name, folder, env)), here)
                runs = dict(zip(here, ran, strict=True))
            for name in here:  # on a busy machine a client may have run out of time
                if missing(runs[name], expected(), [name], vendors):
                    print(f"{name}: once more, alone")
                    runs[name] = list(run(name, folder, env))
            log = service.log
        refused = vendor.refused
    return told([one for each in runs.values() for one in each], here, given, log, refused)


def told(
    results: list[Ended],
    here: Sequence[str],
    given: argparse.Namespace,
    log: str,
    refused: Sequence[str],
) -> int:
    """Print the failures and the table; return the exit code."""
    for one in results:
        if one.error:
            print(f"FAILED {one.client} over {one.vendor}: {one.scenario}: {one.error}")
    for error in sorted(set(refused)):
        print(f"the vendor refused: {error[:300]}")
    if given.log:
        given.log.write_text(log)
    print(table(counted(results)))
    if given.write:
        write(results)
    lost = missing(results, expected(), here, given.vendor or list(VENDORS))
    for each in lost:
        print(f"expected to pass: {each}")
    count = sum(not one.error for one in results)
    print(f"{count} of {len(results)} scenarios passed")
    return 1 if lost or not results else 0


if __name__ == "__main__":
    sys.exit(main())
