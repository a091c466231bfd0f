"""The measured service: gunicorn with one worker on its own core, and its resource usage."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

from ..support import ROOT, environment

KEY = "imx-bench"
CORES = sorted(os.sched_getaffinity(0))
THREADS = 32
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_HERE = Path(__file__).parent
ENVIRONMENT = {
    name: value
    for name, value in environment(
        BENCH_KEY="sk-bench", BENCH_OTHER="sk-other", BENCH_HOOK="http://127.0.0.1:9/"
    ).items()
    if name != "PYTHONDONTWRITEBYTECODE"
}
_MODELS = ("bench-0-0", "bench-0-10", "bench-0-100", "bench-2000-0", "bench-wide")

# a feature: the lines that it adds to the configuration
KEYS = (
    f'[keys.web]\nhash = "{sha256(KEY.encode()).hexdigest()}"\nrpm = 100000000\ntpm = 1000000000\n'
)
BUDGET = 'budget = { usd = "1000000", per = "month" }\n'
LEDGER, NO_LEDGER = '[ledger]\npath = "{folder}.db"\n', '[ledger]\npath = ""\n'
SPANS = '[trace]\ntokentrace = "{upstream}"\n'
# what other names, keys and providers than the measured ones have
OTHERS = f"""
[providers.third]
type = "openai"
base_url = "{{upstream}}/v1"
api_key = ["env:BENCH_KEY", "env:BENCH_OTHER"]
models = ["other-model"]
rpm = 600
headers = {{ x-team = "other" }}

[models]
"other-*" = "third/other-*"

[models.other]
targets = ["third", "second"]
strategy = "sticky"
params = {{ temperature = 0.2 }}
override = {{ top_p = 0.5 }}
timeout = 20
mirror = {{ target = "second", share = 0.5 }}
cache_answers = {{ ttl = "1h", max = "1MB" }}

[keys.other]
hash = "{sha256(b"other").hexdigest()}"
user_rpm = 60
user_budget = {{ usd = "1", per = "day" }}

[alerts]
webhook = "env:BENCH_HOOK"
"""


class Upstream(NamedTuple):
    """Where the mock is, and the certificate that it shows to those who ask by https."""

    port: int
    ca: str
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


def configuration(features: Sequence[str], upstream: Upstream, threads: int) -> str:
    """Return a file with two providers at the mock's address, the second to fail over to, an echo,
    and *features*.
    """
    prices = ", ".join(f'"{model}" = {{ input = "0.15", output = "0.60" }}' for model in _MODELS)
    ca = f'ca = "{upstream.ca}"\n' if upstream.ca else ""
    vendor = (
        f'type = "openai"\nbase_url = "{upstream.url}/v1"\n{ca}api_key = "env:BENCH_KEY"\n'
        f"models = {json.dumps(_MODELS)}\nconcurrency = {threads}\nprices = {{ {prices} }}\n"
    )
    parts = [
        f"[server]\nworkers = 1\nthreads = {threads}\n",
        "[providers.first]\n" + vendor,
        "[providers.second]\n" + vendor,
        "[providers.echo]\noptions = { delay = 0 }\n",
        *features,
    ]
    return "\n".join(parts).replace("{upstream}", upstream.url)


class Gateway:
    """A service from its start to its end; `started` is the seconds to its first answer."""

    def __init__(self, command: Sequence[str], path: str, *, cwd: Path = ROOT, **env: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._command = [sys.executable, "-m", "gunicorn", *command, "-b", f"127.0.0.1:{self.port}"]
        self._path = path
        self._cwd = cwd
        self._env = ENVIRONMENT | env
        self.started = 0.0

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        start = time.perf_counter()
        with on_core(CORES[0]):
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
            )
        while self.status(self._path) != 200:
            if self._process.poll() is not None or time.perf_counter() > start + 30:
                self.__exit__()
                raise RuntimeError(f"{' '.join(self._command)} does not answer")
            time.sleep(0.002)
        self.started = time.perf_counter() - start
        self.processes = family(self._process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            for each in family(self._process.pid):
                os.kill(each, signal.SIGKILL)
            self._process.wait()
        self._log.seek(0)
        if self._process.returncode or not self.started:
            sys.stderr.write(self._log.read().decode(errors="replace")[-2000:])
        self._log.close()

    def status(self, path: str) -> int:
        """Return the status of an answer, or 0 if there is none."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {KEY}"}
        )
        try:
            with DIRECT.open(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, http.client.HTTPException):
            return 0

    @property
    def killed(self) -> int:
        """How many of the processes that were there at the start are not any more."""
        return len(set(self.processes) - set(family(self._process.pid)))

    @property
    def cpu(self) -> float:
        """Seconds of CPU of the whole tree of processes."""
        return sum(cpu(each) for each in self.processes)

    def pss(self, *, worker: bool = False) -> float:
        """Proportional share of memory in KiB, of all processes or of the *worker* alone."""
        return sum(_pss(each) for each in self.processes[1 if worker else 0 :])


def naive(upstream: Upstream) -> Gateway:
    """Return the baseline; it stands in its own folder, out of sight of this project's
    gunicorn.conf.py.
    """
    options = ["-k", "gthread", "--threads", str(THREADS), "-w", "1"]
    ca = {"REQUESTS_CA_BUNDLE": upstream.ca} if upstream.ca else {}
    return Gateway(["naive:app", *options], "/bare", cwd=_HERE, BENCH_UPSTREAM=upstream.url, **ca)


def infermux(
    name: str,
    features: Sequence[str],
    folder: str,
    upstream: Upstream,
    threads: int = THREADS,
    **env: str,
) -> Gateway:
    """Return InferMux as a clone runs it, with a file and a ledger of its own."""
    file = Path(folder) / f"{name}.toml"
    file.write_text(
        configuration(features, upstream, threads).replace("{folder}", f"{folder}/{name}")
    )
    return Gateway(["wsgi:app"], "/providers", cwd=ROOT, INFERMUX_CONFIG=str(file), **env)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Whatever is started inside stays on *core*."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def mock(folder: str) -> Iterator[Upstream]:
    """Run the upstream on the last core."""
    ca = certificate(folder)
    command = [sys.executable, "-m", "tests.bench.upstream", *([ca] if ca else [])]
    with (
        on_core(CORES[-1]),
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout
        yield Upstream(int(process.stdout.readline()), ca)


def certificate(folder: str) -> str:
    """Return the path of a key with a certificate, or nothing where there is no openssl: then TLS
    is not measured.
    """
    file = Path(folder) / "tls.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=bench",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        "-",
        "-out",
        "-",
    ]
    if not shutil.which(command[0]):
        return ""
    file.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return str(file)


def family(root: int) -> list[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for each in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if fields := _stat(each):
            children.setdefault(int(fields[1]), []).append(each)
    found = [root]
    for each in found:
        found += children.get(each, [])
    return found


def _stat(process: int) -> list[str]:
    """Return the fields of a process after its name, which may hold anything."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu(process: int) -> float:
    """Return the seconds of CPU of a process by its own clock, as clock_getcpuclockid(3) names it:
    /proc counts in hundredths.
    """
    try:
        return time.clock_gettime(~process << 3 | 2)
    except OSError:
        return 0.0


def _pss(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return float(next(line for line in lines if line.startswith("Pss:")).split()[1])
