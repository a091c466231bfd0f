"""What the tests share: a clean environment, and peers on loopback."""

import os

import pytest

pytest.register_assert_rewrite("support", "doors", "recorded", "faulty")

from support import TokenTrace, Vendor, is_ours  # noqa: E402


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
