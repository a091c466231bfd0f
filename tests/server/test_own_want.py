"""If this process runs out of a resource, calls get 503 with Retry-After, and no circuit opens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support import HELLO, Service, completion, eventually

CALLS = 800
ADMIN = "operators-only"
QUIET = 2.0  # seconds without a new call, after which the vendor answers all that it has


_last = [0.0]  # when a call came to the vendor


async def _answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split()[0])
            asked = json.loads(await reader.readexactly(size))
            _last[0] = time.monotonic()
            while (left := _last[0] + QUIET - time.monotonic()) > 0:
                await asyncio.sleep(left)
            body = json.dumps(completion(asked)).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
    writer.close()


@pytest.fixture
def slow_vendor() -> Iterator[str]:
    """A vendor that answers any number of calls at once, each after a while."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(_answers, "127.0.0.1", 0, backlog=4096))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _ask(port: int, body: bytes) -> tuple[int, bytes]:
    """Send one call; return the status and the whole answer, or 0 and the reason."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = await asyncio.wait_for(reader.read(), 120)
        writer.close()
        return int(answer[9:12] or 0), answer
    except (OSError, TimeoutError, ValueError) as error:
        return 0, repr(error).encode()


async def _ask_all(port: int, count: int) -> list[tuple[int, bytes]]:
    body = json.dumps(
        {"model": "openai/gpt-own", "messages": [{"role": "user", "content": "hello"}]}
    ).encode()
    return await asyncio.gather(*(_ask(port, body) for _ in range(count)))


@pytest.mark.slow
def test_without_descriptors_calls_are_refused_and_no_circuit_opens(slow_vendor: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    env = {
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": slow_vendor,
        "INFERMUX_SERVER__WORKERS": "1",
        "INFERMUX_ADMIN_KEY": ADMIN,
    }
    command = [
        *("sh", "-c", 'ulimit -n 1024 && exec "$@"', "sh"),
        *(sys.executable, "-m", "gunicorn", "wsgi:app"),
    ]
    try:
        with Service(env=env, command=command) as service:
            [worker] = service.workers
            assert resource.prlimit(worker, resource.RLIMIT_NOFILE) == (1024, 1024)
            answers = asyncio.run(_ask_all(service.port, CALLS))
            statuses = Counter(status for status, _ in answers)
            refused = [text.lower() for status, text in answers if status == 503]
            assert set(statuses) <= {200, 503}, (statuses, service.log[-3000:])
            assert statuses[200] >= 100
            assert all(b"retry-after: 1\r\n" in text for text in refused)
            assert all(b'"code":"overloaded"' in text for text in refused)
            assert all(b"x-should-retry" not in text for text in refused)
            eventually(
                lambda: asyncio.run(_ask_all(service.port, 1))[0][0] == 200, "a call afterwards"
            )
            said = {"Authorization": f"Bearer {ADMIN}"}
            targets = service.ask("/status/targets", headers=said).json
            assert {each["state"] for each in targets["targets"]} == {"closed"}
            assert service.workers == [worker]
            assert len(list(Path(f"/proc/{worker}/fd").iterdir())) < 900
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_without_memory_requests_are_refused_and_the_worker_lives() -> None:
    body = json.dumps({"model": "echo-v1", "messages": [], "user": "x" * 20_000_000}).encode()
    with Service(env={"INFERMUX_SERVER__WORKERS": "1"}) as service:
        [worker] = service.workers
        size = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(worker, resource.RLIMIT_AS, (size + 100_000_000, resource.RLIM_INFINITY))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(partial(service.ask, "/v1/messages"), [body] * 8))
        refused = [answer for answer in answers if answer.status == 503]
        assert refused and {answer.status for answer in answers} <= {400, 503}
        assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
        assert {answer.json["error"]["type"] for answer in refused} == {"overloaded_error"}
        assert "Traceback" not in service.log
        assert service.ask("/infer", HELLO).status == 200
        assert service.workers == [worker]
