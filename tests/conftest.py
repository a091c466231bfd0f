"""What the tests share: a clean environment, and peers on loopback."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for support.py, whatever pytest's import mode

from support import TokenTrace, Vendor, is_ours


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No key, address or setting of the developer's own environment reaches a test."""
    for name in [name for name in os.environ if is_ours(name)]:
        monkeypatch.delenv(name)


@pytest.fixture
def tokentrace():
    with TokenTrace() as receiver:
        yield receiver


@pytest.fixture
def vendor():
    with Vendor() as server:
        yield server
