"""Many hosts for the tests: gunicorns with folders and ports of their own, and nginx before them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from databases import SERVICE, Daemon, answers, free_port, own, program, scratch
from support import PATIENCE, ROOT, Answer, ask, environment, eventually

ADMIN = "imx-admin-of-the-hosts"
GUIDE = ROOT / "infermux" / "help" / "deployment.md"


def secret(name: str) -> str:
    """Return the API key that a caller of the tests has."""
    return f"imx-{name}-0123456789"


def keys(**settings: str) -> str:
    """Return the TOML of callers, each with its own lines."""
    tables = [
        f'[keys.{name}]\nhash = "{hashlib.sha256(secret(name).encode()).hexdigest()}"\n{lines}'
        for name, lines in settings.items()
    ]
    return "\n".join(tables)


class Host:
    """A service as on a host of its own: it has a folder, a port, and nothing else of the others."""

    def __init__(self, configuration: str, env: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="infermux-host-"))
        (self.folder / "infermux.toml").write_text(configuration)
        self.port = free_port()
        self.env = environment(
            **{"INFERMUX_ADMIN_KEY": ADMIN, "PYTHONPATH": str(ROOT)} | dict(env or {})
        )
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *, wait: bool = True) -> None:
        command = [sys.executable, "-m", "infermux", "serve", "--addr", f"127.0.0.1:{self.port}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )  # fmt: skip
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the service answers."""

        def up() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the service ended:\n{self.log}"
            return answers(self.port) and self.ask("/healthz").status == 200

        eventually(up, "the service answering", 3 * PATIENCE)  # several may start at a time

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(3 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill the service with all of its workers, as a host does that loses its power."""
        assert self.process is not None
        pid = self.process.pid
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGSTOP)  # so that it starts no other worker
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for each in (pid, *map(int, children)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        self.process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def ask(self, path: str, body: Any = None, *, caller: str = "", **more: Any) -> Answer:
        """Ask as a caller of `keys`, or as the operator."""
        return ask_as(caller, self.port, path, body, **more)

    def ready(self) -> Any:
        """Return what /readyz says."""
        return self.ask("/readyz").json

    def settled(self) -> bool:
        """Return whether every call is in the ledger."""
        records = self.ready()["records"]
        return not records["pending"] and not records["lost"]

    def circuits(self, provider: str) -> set[str]:
        """Return the states of a provider's circuits."""
        targets = self.ask("/status/targets").json["targets"]
        return {each["state"] for each in targets if each["provider"] == provider}

    def command(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        """Return what a command of infermux prints in the host's folder."""
        done = subprocess.run(
            [sys.executable, "-m", "infermux", *words],
            cwd=self.folder,
            env=self.env | dict(env or {}),
            text=True,
            capture_output=True,
            timeout=3 * PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def calls(self) -> dict[str, Any]:
        """Return every call of the ledger by its id; fail if one is there twice."""
        listed = [json.loads(line) for line in self.command("logs", "--json", "-n", "10000").split("\n") if line]  # fmt: skip
        assert len(listed) < 10_000
        found = {call["id"]: call for call in listed}
        assert len(found) == len(listed), "a call is in the ledger twice"
        return found

    def calls_with(self, ids: Iterable[str]) -> dict[str, Any]:
        """Return the calls once *ids* are there: one whose client has left may be on its way."""
        wanted = set(ids)

        def found() -> dict[str, Any] | None:
            calls = self.calls()
            return calls if wanted <= calls.keys() else None

        calls: dict[str, Any] = eventually(found, "every answered call in the ledger")
        return calls


def ask_as(caller: str, port: int, path: str, body: Any = None, **more: Any) -> Answer:
    key = secret(caller) if caller else ADMIN
    return ask(port, path, body, headers={"Authorization": f"Bearer {key}"}, **more)


@contextlib.contextmanager
def hosts(
    count: int, configuration: str, env: Mapping[str, str] | None = None
) -> Iterator[list[Host]]:
    """Start hosts side by side; before that, a ledger of a URL is made ready (`init`)."""
    with contextlib.ExitStack() as stack:
        made = [Host(configuration, env) for _ in range(count)]
        for host in made:
            stack.callback(host.__exit__)
        if "OWNER_URL" in made[0].env:
            owner = {"DATABASE_URL": made[0].env["OWNER_URL"]}
            made[0].command("ledger", "init", "--role", SERVICE, env=owner)
        for host in made:
            host.start(wait=False)
        for host in made:
            host.wait()
        yield made
        for host in made:  # side by side
            if host.process is not None and host.process.poll() is None:
                host.process.send_signal(signal.SIGTERM)


class Nginx(Daemon):
    """nginx with the configuration of the guide to many hosts, but for TLS and their addresses."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        super().__init__(scratch())
        self.port = free_port()
        self._down: set[int] = set()
        self._ports = [host.port for host in hosts]
        blocks = re.findall(r"^```nginx\n(.*?)^```", GUIDE.read_text("utf-8"), re.M | re.S)
        [self._upstream] = [block for block in blocks if block.count("    server 10.") > 1]
        [server] = [block for block in blocks if "\nserver {" in block]
        server = re.sub(r".*\b(server_name|ssl_certificate\w*) .*\n", "", server)
        listening = f"listen 127.0.0.1:{self.port};"
        self._server = (
            "server {" + server.replace("listen 443 ssl;", listening).split("\nserver {")[1]
        )

    def __enter__(self) -> Self:
        self._write()
        command = [program("nginx"), "-e", "stderr", "-p", str(self.folder)]
        command += ["-c", str(self.folder / "nginx.conf")]
        self.launch(command, lambda: answers(self.port), signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def without(self, host: Host) -> Iterator[None]:
        """Send a host no new calls inside the block, as the guide does for a restart."""
        self._down.add(host.port)
        self._reload()
        yield
        self._down.discard(host.port)
        self._reload()

    def _write(self) -> None:
        [(line, address)] = re.findall(r"^( +server (10[\d.]+:8600)\b.*\n)", self._upstream, re.M)[
            :1
        ]
        lines = [
            line.replace(address, f"127.0.0.1:{port}" + (" down" if port in self._down else ""))
            for port in self._ports
        ]
        others = re.sub(r"^ +server 10.*\n", "", self._upstream, flags=re.M)
        upstream = others.replace("{\n", "{\n" + "".join(lines), 1)
        temporary = "".join(
            f"    {kind}_temp_path {self.folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(
            f"daemon off;\npid {self.folder}/pid;\nworker_processes 1;\nerror_log stderr warn;\n"
            "events { worker_connections 4096; }\n"
            f"http {{\n    access_log off;\n{temporary}{upstream}{self._server}}}\n"
        )
        own(self.folder / "nginx.conf")

    def _reload(self) -> None:
        """Let new workers take over; wait until no old one accepts calls."""
        self._write()
        before = set(self.processes[1:])
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

        def over() -> bool:
            now = set(self.processes[1:])
            return bool(now - before) and all(map(_ends, before & now))

        eventually(over, "nginx reloading")


def _ends(pid: int) -> bool:
    """Return whether a worker of nginx has ended, or ends with its last connection."""
    with contextlib.suppress(OSError):
        return "shutting down" in Path(f"/proc/{pid}/cmdline").read_text()
    return True
