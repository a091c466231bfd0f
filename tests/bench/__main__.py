"""`python -m tests.bench`: measures InferMux and a hand-written equivalent on this machine.

It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from . import gateway
from .measures import Bench, Scale
from .table import tables

PARTS = (
    "cpu",
    "latency",
    "infer",
    "wire",
    "events",
    "agents",
    "calls",
    "streams",
    "start",
    "ledger",
)
EXTRA = ("rows", "postgres")  # only if they are asked for


def main() -> None:
    options = _options()
    quick = options.quick
    scale = Scale(
        options.rounds or (1 if quick else 5), 0.3 if quick else 1.0, 100 if quick else 1000
    )
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a crowd has a connection each
    begun, busy = time.perf_counter(), _busy()
    with tempfile.TemporaryDirectory() as folder, gateway.mock(folder) as upstream:
        bench = Bench(
            scale,
            set(options.only or PARTS),
            upstream,
            folder,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
        bench.run()
    took = time.perf_counter() - begun
    others = max(0.0, _busy() - busy) / took / (os.cpu_count() or 1)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}; medians of {scale.rounds} interleaved rounds, "
        f"{took:.0f} s in all, in which others used {others:.0%} of the machine\n"
    )
    print("\n\n".join(tables(bench.figures, scale.crowd)))
    for note in bench.notes:
        print(f"\nNote: {note}")
    if options.json:
        options.json.write_text(json.dumps(bench.figures))


def _busy() -> float:
    """Return the seconds of CPU that anybody but this process and its ended children has used or
    stolen.
    """
    user, nice, system, _, _, interrupt, soft, stolen = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupt + soft + stolen) / os.sysconf("SC_CLK_TCK") - sum(
        os.times()[:4]
    )


def machine() -> str:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    return f"{len(gateway.CORES)} cores of {model}, Python {platform.python_version()}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short round, and a crowd of 100: to see that it works",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*PARTS, *EXTRA),
        metavar="NAME",
        help=f"only these parts: {', '.join(PARTS)}; or rows, which takes minutes, or postgres, "
        "which needs its programs",
    )
    parser.add_argument(
        "--rounds", type=int, help="how often each subject is measured (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single value there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
