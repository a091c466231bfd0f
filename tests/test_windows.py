"""Where there is no POSIX: the library and the commands work; `infermux serve` says what it needs.

A child process stands for Windows: no module or name that only POSIX has, and no open file that
can be renamed or removed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import Vendor, run

WINDOWS = """
import ctypes, itertools, mmap, os, pathlib, select, signal, socket, sys, time
import click._termui_impl, flask, requests, sqlite3, subprocess, tempfile  # as suits the real system
ABSENT = "fcntl resource pwd grp termios tty pty readline syslog gunicorn psycopg psycopg_pool"
for name in ABSENT.split():
    sys.modules[name] = None
socket.SO_REUSEADDR = socket.SO_REUSEPORT  # what it means on Windows
for module, names in (
    (os, "fork register_at_fork getuid geteuid getppid killpg setsid uname memfd_create pread "
         "pwrite fchmod fchown chown statvfs sysconf sched_getaffinity getloadavg mkfifo "
         "O_CLOEXEC O_NOFOLLOW O_NONBLOCK O_DIRECTORY"),
    (select, "poll epoll"),
    (signal, "pthread_sigmask SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGCHLD SIGALRM SIGPIPE"),
    (socket, "AF_UNIX SO_REUSEPORT socketpair MSG_DONTWAIT SO_RCVTIMEO SO_SNDTIMEO"),
    (mmap, "MAP_SHARED PROT_READ PROT_WRITE"),
    (time, "tzset"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
ctypes.PyDLL = ctypes.CDLL = None
for module in (pathlib, getattr(pathlib, "_local", pathlib)):  # the latter: Python 3.13
    module.WindowsPath = pathlib.PosixPath  # the files are still those of the real system
os.name, sys.platform = "nt", "win32"

def only_closed(function):
    def checked(*paths, **options):
        for path, number in itertools.product(paths, os.listdir("/proc/self/fd")):
            try:
                is_open = os.path.samefile(f"/proc/self/fd/{number}", path)
            except OSError:
                continue
            if is_open:
                raise PermissionError(13, "the file is used by this process", path)
        return function(*paths, **options)
    return checked

for name in ("rename", "replace", "unlink", "remove"):
    setattr(os, name, only_closed(getattr(os, name)))
"""
COMMANDS = """
from infermux.cli.main import main
for args in {commands!r}:
    try:
        main(args, prog_name="infermux")
    except SystemExit as ended:
        print(f"<{{' '.join(args[:2])}}: {{ended.code or 0}}>", flush=True)
"""


def on_windows(code: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", WINDOWS + code], cwd=folder, env=more, given="Hello\n")


def commands(folder: Path, *lines: str, **env: str) -> subprocess.CompletedProcess[str]:
    return on_windows(COMMANDS.format(commands=[line.split() for line in lines]), folder, **env)


def test_serve_says_that_it_is_posix_only(tmp_path: Path) -> None:
    answer = commands(tmp_path, "serve")
    assert answer.stdout == "<serve: 1>\n" and answer.stderr.count("\n") == 1, answer.stderr
    assert "POSIX only" in answer.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_library_works_on_windows(tmp_path: Path) -> None:
    """Every public name, a vendor over HTTP, a mounted blueprint and the operators' endpoints."""
    code = """
import infermux
from flask import Flask
assert {"Router", "blueprint", "load"} <= {name for name in infermux.__all__ if getattr(infermux, name)}
router = infermux.load()
request = infermux.InferRequest("openai/gpt-6-luna", [{"role": "user", "content": "hello"}])
for _ in range(3):
    assert router.infer(request).content == "hello"
app = Flask("host")
for blueprint in (infermux.blueprint, infermux.openai_blueprint, infermux.ops_blueprint):
    app.register_blueprint(blueprint(router))
client = app.test_client()
body = {"model": "echo", "messages": request.messages}
assert client.post("/infer", json=body).json["content"] == "echo: hello"
assert client.get("/metrics").status_code == 200
print("all of it")
"""
    with Vendor() as vendor:
        answer = on_windows(code, tmp_path, **vendor.env)
    assert answer.stdout == "all of it\n", answer.stderr


CONFIG = """
time_zone = "UTC"
[ledger]
path = "calls.db"
[providers.echo]
[models]
fast = ["echo"]
[budgets.ann]
usd = "5.00"
per = "month"
"""
CONFIG = """
[ledger]
path = "calls.db"
[providers.echo]
[models]
fast = ["echo"]
[keys.ann]
hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
budget = { usd = "5.00", per = "month" }
"""

LEDGER = """
import os, sqlite3, time, infermux
with open("calls.db", "wb") as file:
    file.write(b"damaged" * 1000)  # is moved aside
router = infermux.load("infermux.toml")
router.infer("first", model="fast")
other = sqlite3.connect("calls.db")
other.execute("BEGIN IMMEDIATE")  # nobody else can write
for _ in range(2):
    router.infer("later", model="fast")
assert b"\\r" not in open("calls.db.spool", "rb").read()
other.close()
end = time.monotonic() + 20
while router.ledger.spooled() and time.monotonic() < end:
    time.sleep(0.05)
router.infer("last", model="fast")
router.close()
"""


@pytest.mark.slow
def test_the_ledger_loses_nothing_on_windows(tmp_path: Path) -> None:
    """Calls wait in the spool while the file is locked; a damaged file is renamed."""
    (tmp_path / "infermux.toml").write_text(CONFIG)
    answer = on_windows(LEDGER, tmp_path)
    assert answer.returncode == 0, answer.stderr
    names = {each.name.partition(".corrupt-")[0] for each in tmp_path.iterdir()}
    assert names == {"infermux.toml", "calls.db", "calls.db.lock"}
    costs = commands(tmp_path, "costs --json").stdout
    assert json.loads(costs.splitlines()[0])["rows"][0]["calls"] == 4


WORKING = (
    "version",
    "help shell",
    "completion zsh",
    "validate",
    "providers",
    "models",
    "models --all",
    "prices",
    "infer -m fast hello",
    "infer --provider echo --json hello",
    "explain fast",
    "chat -m fast",
    "chaos -f stall --deadline 1",
    "batch asked.jsonl -o answers.jsonl",
    "batch asked.jsonl -o answers.jsonl --retry-failed",
    "costs",
    "costs --by model --json",
    "logs",
    "budgets",
    "budgets reset ann",
    "keys new web",
    "keys create bob",
    "keys list",
    "keys rotate bob",
    "keys revoke bob",
    "ledger check",
    "ledger backup copy.db",
    "ledger export --to exported",
    "ledger prune --keep 400d",
)


@pytest.mark.slow
def test_the_commands_work_without_posix(tmp_path: Path) -> None:
    (tmp_path / "infermux.toml").write_text(CONFIG)
    (tmp_path / "asked.jsonl").write_text(
        "".join(
            json.dumps({"model": each, "messages": [{"role": "user", "content": "hi"}]}) + "\n"
            for each in ("fast", "unknown")
        )
    )
    answer = commands(tmp_path, *WORKING)
    ended = [line for line in answer.stdout.splitlines() if line.startswith("<")]
    assert ended == [f"<{' '.join(line.split()[:2])}: 0>" for line in WORKING], answer.stderr
    assert "Traceback" not in answer.stderr and "2 lines: 1 ok, 1 failed" in answer.stderr
