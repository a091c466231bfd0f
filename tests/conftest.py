"""Shared fixtures: a clean environment, and servers on loopback."""

import gc
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import certifi
import pytest
from werkzeug.routing import Rule

if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    # The tests start Python hundreds of times; compiling each time would double their duration.
    # The cache is not next to the sources.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(tempfile.gettempdir()) / f"infermux-pycache-{os.getuid()}")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A job in the background of a shell ignores it, and so would the commands that get one here.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("databases", "network", "support", "doors", "recorded", "faulty")

from databases import database, pgbouncer, postgres  # noqa: E402, F401  (fixtures)
from support import NO_FOLDER, TokenTrace, Vendor, is_ours  # noqa: E402
from workers import pytest_addoption, pytest_runtestloop  # noqa: E402, F401  (hooks)

compile_builder = Rule._compile_builder


def compile_when_built(rule, append_unknown=True):
    """Leave out what makes three quarters of `create_app`: the tests build no URLs."""
    return lambda _, **values: compile_builder(rule, append_unknown)(rule, **values)


Rule._compile_builder = compile_when_built
gc.disable()  # what is collected stays until the end; looking through it again and again takes long


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark all but the first n cases of a test that is `sampled(n)` as slow."""
    seen = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is not None:
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > mark.args[0]:
                item.add_marker("slow")


@pytest.fixture(scope="session")
def one_authority(tmp_path_factory):
    """A file of one certificate: each official client reads all of them, and calls loopback."""
    certificates = Path(certifi.where()).read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("authorities") / "one.pem"
    path.write_text(certificates[: certificates.index("-----END") + 26], encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, one_authority):
    """Remove keys, addresses and settings of the developer's own environment."""
    monkeypatch.setenv("SSL_CERT_FILE", one_authority)
    for name in [name for name in os.environ if is_ours(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", NO_FOLDER)


@pytest.fixture
def tokentrace():
    with TokenTrace() as receiver:
        yield receiver


@pytest.fixture
def vendor():
    with Vendor() as server:
        yield server
