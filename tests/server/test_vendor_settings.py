"""Tests of what is set for names and providers in a service with several workers."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import Service, Vendor, eventually

pytestmark = pytest.mark.slow
SAID = [{"role": "user", "content": "hi"}]
TEXT = """
[providers.v]
type = "openai"
base_url = "{url}/v1"
models = ["m", "n"]
api_key = "file:{folder}/key"
{more}
[models."x-*"]
targets = "v/*"
params = {{ temperature = 0.25 }}
[server]
workers = 3
"""


def service(vendor: Vendor, folder: Path, more: str = "") -> Service:
    (folder / "key").write_text("first-key-0001")
    path = folder / "infermux.toml"
    path.write_text(TEXT.format(url=vendor.url, folder=folder, more=more))
    return Service(env={"INFERMUX_CONFIG": str(path)})


def statuses(running: Service, count: int) -> Counter[int]:
    """Return the statuses of requests that each have a connection of their own."""
    found: list[int] = []

    def ask() -> None:
        found.append(running.ask("/v1/chat/completions", {"model": "x-m", "messages": SAID}).status)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(found)


def test_a_rate_towards_the_vendor_holds_over_all_workers(vendor, tmp_path):
    with service(vendor, tmp_path, "rpm = 7\nwait = 0") as running:
        assert statuses(running, 40) == {200: 7, 429: 33}
        assert len(vendor.seen) == 7
        assert all(each.body["temperature"] == 0.25 for each in vendor.seen)


def test_the_official_client_gets_names_of_patterns_and_the_new_key_of_a_file(vendor, tmp_path):
    openai = pytest.importorskip("openai")
    with service(vendor, tmp_path) as running:
        url = f"http://127.0.0.1:{running.port}/v1"
        client: Any = openai.OpenAI(api_key="unused", base_url=url, max_retries=0)
        assert {"x-m", "x-n"} <= {each.id for each in client.models.list()}
        client.chat.completions.create(model="x-n", messages=SAID)
        assert vendor.seen[-1].headers["authorization"] == "Bearer first-key-0001"
        other = tmp_path / "other"
        other.write_text("second-key-02")
        other.rename(tmp_path / "key")

        def changed() -> bool:
            client.chat.completions.create(model="x-n", messages=SAID)
            return bool(vendor.seen[-1].headers["authorization"] == "Bearer second-key-02")

        assert eventually(changed)
