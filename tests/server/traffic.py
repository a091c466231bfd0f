"""Traffic for the tests of many hosts: a vendor that meters what it bills, and callers of all kinds."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Self

from hosts import secret
from support import PATIENCE, Peer, eventually

INPUT, OUTPUT, MOST = 10, 100, 8  # dollars per million tokens; the most tokens of an answer
PROMPT = 12  # tokens of each prompt, as the vendor counts
PICO = 10**12
_WHO = re.compile(r"caller (\S+) call (\d+)")


def cost(tokens_out: int) -> int:
    """Return what an answer costs, in pico-USD."""
    return (PROMPT * INPUT + tokens_out * OUTPUT) * PICO // 10**6


def pico(usd: Any) -> int:
    """Return dollars, as text or a number, in pico-USD."""
    return int(Decimal(str(usd)) * PICO)


class MeteredVendor(Peer):
    """Answers with as many words as the number of the call asks for, and notes what it bills.

    The model `flaky` fails: two calls of three get an error, or a connection that ends before the
    answer. `slow` takes half a second in all.
    """

    def __init__(self) -> None:
        self.billed: Counter[str] = Counter()  # pico-USD by caller
        self.calls: Counter[str] = Counter()  # that were answered, by caller

    def provider(self, name: str) -> str:
        """Return the TOML of a provider with the models of this vendor."""
        models = ("steady", "flaky", "slow")
        price = f'{{ input = "{INPUT}", output = "{OUTPUT}" }}'
        prices = ", ".join(f"{model} = {price}" for model in models)
        return (
            f'[providers.{name}]\ntype = "openai"\nbase_url = "{self.url}/v1"\n'
            f'api_key = "env:METERED_KEY"\nmodels = {json.dumps(models)}\nprices = {{ {prices} }}\n'
        )

    def answer(self, handler: Any, body: bytes) -> None:
        asked = json.loads(body)
        found = _WHO.search(asked["messages"][-1]["content"])
        assert found, asked
        caller, number = found[1], int(found[2])
        if asked["model"] == "flaky" and number % 3:
            if number % 3 == 1:
                handler.reply(503, b'{"error": {"message": "overloaded"}}')
            else:
                handler.reset()
            return
        words = [f"w{n}" for n in range(1 + number % MOST)]
        pause = 0.5 / len(words) if asked["model"] == "slow" else 0.002
        (self._stream if asked.get("stream") else self._whole)(handler, asked, caller, words, pause)

    def _bill(self, caller: str, pico: int, calls: int = 0) -> None:
        with self.lock:
            self.billed[caller] += pico
            self.calls[caller] += calls

    def _whole(self, handler: Any, asked: Any, caller: str, words: list[str], pause: float) -> None:
        self.released.wait(pause * len(words))
        choice = {"index": 0, "message": {"role": "assistant", "content": " ".join(words)}}
        data = _chunk(asked, [choice | {"finish_reason": "stop"}], len(words))
        self._bill(caller, cost(len(words)), 1)
        handler.reply(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _stream(
        self, handler: Any, asked: Any, caller: str, words: list[str], pause: float
    ) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        self._bill(caller, cost(0), 1)
        with contextlib.suppress(OSError):
            for word in words:
                self._bill(caller, cost(1) - cost(0))
                delta = {"role": "assistant", "content": word + " "}
                self._event(handler, _chunk(asked, [{"index": 0, "delta": delta}]))
                self.released.wait(pause)
            end = {"index": 0, "delta": {}, "finish_reason": "stop"}
            self._event(handler, _chunk(asked, [end]))
            self._event(handler, _chunk(asked, [], len(words)))
            handler.wfile.write(b"data: [DONE]\n\n")

    def _event(self, handler: Any, data: Mapping[str, Any]) -> None:
        handler.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        handler.wfile.flush()


def _chunk(asked: Any, choices: list[Any], tokens: int | None = None) -> dict[str, Any]:
    kind = "chat.completion.chunk" if asked.get("stream") else "chat.completion"
    made = {"id": "c", "object": kind, "created": 1, "model": asked["model"], "choices": choices}
    if tokens is not None:
        made["usage"] = {
            "prompt_tokens": PROMPT,
            "completion_tokens": tokens,
            "total_tokens": PROMPT + tokens,
        }
    return made


class Outcome(NamedTuple):
    """What a caller saw of a call."""

    caller: str
    kind: str
    status: int  # 0: no answer
    id: str  # of an answer that has begun
    whole: bool  # the answer came to its end
    sent: float
    ended: float
    code: str  # of an error
    cost: int  # pico-USD of the answer at the vendor that gives it


class Kind(NamedTuple):
    """How a caller asks."""

    name: str
    model: str
    stream: bool = False
    leaves: bool = False  # hangs up at the first event


PLAIN, STREAM = Kind("plain", "safe"), Kind("stream", "safe", True)
FAILOVER = Kind("failover", "shaky")
FAILOVER_STREAM = Kind("failover stream", "shaky", True)
LONG = Kind("long", "long", True)
HANG_UP = Kind("hang up", "long", True, True)
NAMES = """
[models]
safe = ["one/steady", "two/steady"]
shaky = ["one/flaky", "two/steady"]
long = ["one/slow", "two/slow"]
"""


class Traffic:
    """Callers in threads that ask at a port again and again until the `with` block ends.

    Each of *callers* is a name with the kinds of its calls; `outcomes` is what they saw.
    """

    def __init__(self, port: int, callers: Sequence[tuple[str, Sequence[Kind]]], seed: int) -> None:
        self.outcomes: list[Outcome] = []
        self.pause = 0.01  # seconds between the calls of a thread
        self._port, self._callers, self._seed = port, callers, seed
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._number = 0

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{self._seed} {n}"), *each))
            for n, each in enumerate(self._callers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        for failure in self._failures:
            raise failure

    def wait(self, count: int, when: Callable[[Outcome], bool] = lambda _: True) -> None:
        """Wait for so many more calls that are as *when* says."""
        start = len(self.outcomes)

        def enough() -> bool:
            return self._failures or sum(map(when, self.outcomes[start:])) >= count

        eventually(enough, f"{count} calls")

    def _run(self, chance: random.Random, caller: str, kinds: Sequence[Kind]) -> None:
        try:
            while not self._over.is_set():
                with self._lock:
                    self._number += 1
                    number = self._number
                found = call(self._port, caller, chance.choice(kinds), number)
                self.outcomes.append(found)
                self._over.wait(self.pause * (1 if found.status == 200 else 10))
        except BaseException as error:
            self._failures.append(error)


def call(port: int, caller: str, kind: Kind, number: int) -> Outcome:
    """Make one call; return what its caller sees."""
    text = f"caller {caller} call {number}"
    body = {
        "model": kind.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": MOST,
    }
    body |= {"stream": True} if kind.stream else {}
    headers = {"Authorization": f"Bearer {secret(caller)}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    sent, status, id, code, whole = time.monotonic(), 0, "", "", False
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        status, id = answer.status, answer.headers.get("X-Request-Id", "")
        if kind.leaves and status == 200:
            answer.read(10)
            if connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
        else:
            data = answer.read()
            whole = status == 200 and (data.endswith(b"data: [DONE]\n\n") if kind.stream else True)
            if status != 200:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    code = json.loads(data)["error"]["code"]
    ended, price = time.monotonic(), cost(1 + number % MOST)
    return Outcome(caller, kind.name, status, id, whole, sent, ended, code, price)


def most_within(outcomes: Sequence[Outcome], seconds: float) -> int:
    """Return how many calls, at least, were admitted within some span of *seconds*.

    A call counts where its whole time is in the span: it was admitted within that time.
    """
    found = sorted(outcomes, key=lambda each: each.sent)
    return max(
        (
            sum(each.ended <= first.sent + seconds for each in found[at:])
            for at, first in enumerate(found)
        ),
        default=0,
    )
