"""Formats the figures as tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

Figures = Mapping[str, Sequence[float]]

BASELINE = "by hand: Flask + requests.Session"
CPU = {
    "naive": BASELINE,
    "routing": "InferMux: routing, failover, cost",
    "full": "… with keys, limits, metrics, ledger",
    "others": "… and features that only other names, keys and providers have",
    "budget": "… instead a budget",
    "spans": "… instead a TokenTrace span per call",
}
LATENCY = {
    "upstream": "the upstream alone",
    "naive": BASELINE,
    "routing": CPU["routing"],
    "full": CPU["full"],
}
INFER = {
    "naive": "a bare Flask view that returns bytes",
    "routing": "InferMux: POST /infer with echo, no ledger",
    "default": "… with the ledger that a service keeps by default",
    "full": CPU["full"],
}
WIRE = {"wide": "answers of 24 headers", "tls": "an upstream behind TLS"}
EVENTS = {
    "naive/same": BASELINE,
    "routing/same": "InferMux, the same format at both ends",
    "routing/translated": "InferMux, OpenAI to Anthropic",
}
AGENTS = {
    "message": "450 KB: one long message",
    "messages": "450 KB: 400 messages",
    "turns": "450 KB: 150 tool turns, 40 tools",
    "images": "2 MB of images",
}
ROWS = {
    "size": ("the file, MiB", 1, ".0f"),
    "migrate": ("migration from a file of an older version, s", 1, ".1f"),
    "roll": ("the first report over all time: sums up all days, s", 1, ".1f"),
    "costs": ("`infermux costs --all`, s", 1, ".2f"),
    "costs_memory": ("… memory at most, MiB", 1, ".0f"),
    "costs_caller": ("`infermux costs --all --by day,caller`, s", 1, ".2f"),
    "costs_caller_memory": ("… memory at most, MiB", 1, ".0f"),
    "costs_recent": ("`infermux costs`, s", 1, ".2f"),
    "first_day": ("first reservation of a caller in a day, median ms", 1000, ".2f"),
    "first_day_max": ("… at most", 1000, ".2f"),
    "first_month": ("… in a month, median ms", 1000, ".2f"),
    "first_month_max": ("… at most", 1000, ".2f"),
    "first_total": ("… in total, median ms", 1000, ".2f"),
    "first_total_max": ("… at most", 1000, ".2f"),
    "backup": ("`infermux ledger backup`, s", 1, ".1f"),
    "check": ("`infermux ledger check`, s", 1, ".1f"),
    "prune": ("`infermux ledger prune` of a quarter, s", 1, ".1f"),
}
POSTGRES = {
    "naive": BASELINE,
    "routing": "InferMux with keys, no ledger",
    "sqlite": "… with budgets in SQLite",
    "postgres": "… with budgets in PostgreSQL",
    "unsynced": "… which does not wait for its disk",
}
CROWD = {"calls": "calls of 2 s", "streams": "streams of 20 events, 100 ms apart"}


def tables(figures: Figures, crowd: int) -> Iterator[str]:
    """Yield the tables for which there are figures."""
    yield from _table(
        "16 connections | CPU µs per request | ratio | requests/s | ratio",
        (
            [label, *_beside(figures, "cpu", name), *_beside(figures, "rps", name)]
            for name, label in _found(figures, "cpu", CPU)
        ),
    )
    yield from _table(
        "1 connection | p50 ms | ratio | p99 ms | ratio",
        (
            [
                label,
                *_beside(figures, "p50", name, 1000, 2),
                *_beside(figures, "p99", name, 1000, 2),
            ]
            for name, label in _found(figures, "p50", LATENCY)
        ),
    )
    yield from _table(
        "without an upstream, 16 connections | CPU µs per request | ratio",
        (
            [label, *_beside(figures, "infer", name)]
            for name, label in _found(figures, "infer", INFER)
        ),
    )
    yield from _table(
        "16 connections, CPU µs per request | by hand | InferMux: routing, failover, cost | ratio",
        (
            [
                label,
                *_beside(figures, "wire", f"naive/{name}")[:1],
                *_beside(figures, "wire", f"routing/{name}", base=f"naive/{name}"),
            ]
            for name, label in WIRE.items()
            if f"wire/routing/{name}" in figures
        ),
    )
    yield from _table(
        "streams, 16 at a time, 20 events 10 ms apart | CPU µs per event | ratio",
        (
            [label, *_beside(figures, "events", name, base="naive/same")]
            for name, label in _found(figures, "events", EVENTS)
        ),
    )
    yield from _table(
        "requests of agents, 4 connections, CPU µs per request | by hand | InferMux: routing, "
        "failover, cost | ratio | OpenAI to Anthropic | ratio",
        (
            [
                label,
                *_beside(figures, "agents", f"naive/{name}")[:1],
                *_beside(figures, "agents", f"routing/{name}", base=f"naive/{name}"),
                *(
                    _beside(figures, "agents", f"translated/{name}", base=f"naive/{name}")
                    if f"agents/translated/{name}" in figures
                    else ("–", "–")
                ),
            ]
            for name, label in AGENTS.items()
            if f"agents/routing/{name}" in figures
        ),
    )
    yield from _table(
        f"{crowd:,} at once, one worker | whole | first byte p99 s | in all s | health p50 / p99 / max ms | workers killed | "
        "KiB per call | CPU µs per call",
        (
            _crowd(figures, name, label)
            for name, label in CROWD.items()
            if f"{name}/whole" in figures
        ),
    )
    yield from _table(
        "a ledger of many calls over 400 days | InferMux",
        (
            [label, f"{statistics.median(figures[f'rows/{name}']) * times:,{form}}"]
            for name, (label, times, form) in ROWS.items()
            if f"rows/{name}" in figures
        ),
    )
    if "postgres/rps/postgres" in figures:
        yield from _postgres(
            {name[9:]: f for name, f in figures.items() if name[:9] == "postgres/"}
        )
    yield from _table("at the start and at rest | by hand | InferMux", _rest(figures))


def _found(figures: Figures, kind: str, labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, label) for name, label in labels.items() if f"{kind}/{name}" in figures]


def _table(head: str, rows: Iterable[list[str]]) -> Iterator[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if lines:
        yield "\n".join([f"| {head} |", "|---" + "|--:" * head.count("|") + "|", *lines])


def _beside(
    figures: Figures, kind: str, name: str, times: float = 1, digits: int = 0, base: str = "naive"
) -> list[str]:
    """Return a median and its ratio to the baseline's."""
    found = statistics.median(figures[f"{kind}/{name}"])
    baseline = figures.get(f"{kind}/{base}")
    return [
        f"{found * times:,.{digits}f}",
        f"{found / statistics.median(baseline):.2f}" if baseline else "–",
    ]


def _postgres(figures: Figures) -> Iterator[str]:
    """Yield what a ledger in PostgreSQL costs, and what many hosts reach with it."""
    yield from _table(
        "a database beside the service | p50 ms, 1 connection | added | CPU µs per call, "
        "16 connections | added, of by hand",
        (
            [
                label,
                *_beside(figures, "p50", name, 1000, 2)[:1],
                _added(figures, "p50", name, 1000, "p50/routing"),
                *(
                    (
                        *_beside(figures, "cpu", name)[:1],
                        _added(figures, "cpu", name, 1 / statistics.median(figures["cpu/naive"])),
                    )
                    if f"cpu/{name}" in figures
                    else ("", "")
                ),
            ]
            for name, label in POSTGRES.items()
        ),
    )
    rows = [
        ["… on one host with SQLite", *_beside(figures, "rps", "sqlite", base="sqlite")],
        ["… on 4 hosts with PostgreSQL", *_beside(figures, "rps", "postgres", base="sqlite")],
    ]
    yield from _table("64 callers with a budget each | requests/s | ratio", rows)
    alone, shared, size = (
        statistics.median(figures[name]) for name in ("cpu/server", "cpu/server_shared", "bytes")
    )
    yield from _table(
        "the database itself | per call with a budget",
        [
            ["CPU µs, 16 at a time from one host", f"{alone:,.0f}"],
            ["CPU µs, 64 at a time from 4 hosts", f"{shared:,.0f}"],
            ["stored, with indexes, bytes", f"{size:,.0f}"],
        ],
    )


def _added(figures: Figures, kind: str, name: str, times: float, base: str = "cpu/routing") -> str:
    """Return what a ledger adds to a call without one."""
    if name in ("naive", "routing"):
        return "–"
    more = statistics.median(figures[f"{kind}/{name}"]) - statistics.median(figures[base])
    return f"{more * times:.2f}"


def _crowd(figures: Figures, name: str, label: str) -> list[str]:
    value = {
        key.partition("/")[2]: found[-1]
        for key, found in figures.items()
        if key.startswith(name + "/")
    }
    health = " / ".join(
        f"{value[key] * 1000:.0f}" for key in ("health50", "health99", "health_max")
    )
    return [
        label,
        f"{value['whole']:.1%}",
        f"{value['ttfb']:.2f}",
        f"{value['seconds']:.1f}",
        health,
        f"{value['killed']:.0f}",
        f"{value['memory']:.0f}",
        f"{value.get('cpu', 0):,.0f}",
    ]


def _rest(figures: Figures) -> Iterator[list[str]]:
    for kind, label, times, form in (
        ("start", "start to first answer, s", 1, ".2f"),
        ("pss", "memory of a worker, MiB (PSS)", 1 / 1024, ".1f"),
        ("pss_all", "memory of master and worker, MiB (PSS)", 1 / 1024, ".1f"),
    ):
        if f"{kind}/full" in figures:
            yield [
                label,
                *(
                    f"{statistics.median(figures[f'{kind}/{name}']) * times:{form}}"
                    for name in ("naive", "full")
                ),
            ]
    for kind, label, times, form in (
        ("import", "`import infermux`, ms", 1000, ".0f"),
        ("loaded", "of Flask and requests loaded by it", 1, ".0f"),
        ("command", "`infermux infer` with echo, in all, s", 1, ".2f"),
        ("ledger", "ledger: reserve, settle and rows, CPU µs per call", 1, ".0f"),
        ("received", "spans that were received, of 100", 100, ".1f"),
    ):
        if kind in figures:
            yield [label, "", f"{statistics.median(figures[kind]) * times:{form}}"]
