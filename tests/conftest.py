"""Shared fixtures: a clean environment, and servers on loopback."""

import gc
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

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


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Remove keys, addresses and settings of the developer's own environment."""
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
