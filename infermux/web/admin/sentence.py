"""The words of the status page: the sentence at its top, which says what is wrong now, or that
nothing is, and the meaning of each error code, from `infermux help errors`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import NamedTuple

from ...errors import counted, listed, printable
from ...ledger.recent.activity import Step
from ...server.status import TargetStatus
from ...types import JSON, Target

MOST = 3  # targets that are named
WORRYING = 0.05  # share of failed calls that is worth a line
_AGO = {"1h": "hour", "24h": "24 hours", "7d": "7 days"}
Part = str | float  # a float is a time, in seconds since 1970


class Sentence(NamedTuple):
    """One or more lines of text; *level* is ok, warn, bad or none (nothing is known)."""

    level: str
    lines: list[list[Part]]

    @property
    def text(self) -> str:
        """The lines as text, with times in UTC."""
        return " ".join("".join(map(_said, line)) for line in self.lines)


def _said(part: Part) -> str:
    return part if isinstance(part, str) else f"{datetime.fromtimestamp(part, UTC):%H:%M} UTC"


def sentence(
    targets: Sequence[TargetStatus],
    detours: Mapping[Target, JSON],
    ledger: str,
    budgets: Sequence[JSON],
    whole: Step | None,
    span: str,
) -> Sentence:
    """Return the most important line about the service."""
    bad = [target for target in targets if target.target in detours]
    level, lines = "ok", _down(bad, len(targets), detours) if bad else []
    if bad:
        resting = all(target.state == "closed" or target.forced for target in bad)
        stranded = any(each["stranded"] for each in detours.values())
        level = "warn" if resting and not stranded else "bad"
    if ledger == "unavailable":
        lines.append(["The ledger cannot be read: the log has the reason."])
        level = "bad"
    for told in filter(None, (_spent(budgets), _failing(whole, span))):
        lines.append([told])
        level = "warn" if level == "ok" else level
    if lines:
        return Sentence(level, lines)
    level, told = _well(targets, whole, span)
    return Sentence(level, [[told]])


def _spent(budgets: Sequence[JSON]) -> str:
    names = [
        each["name"]
        for each in budgets
        if each["used"] >= 1 and each["then"] != "warn" and each["kind"] != "mirror"
    ]
    what, verb = ("budget", "is") if len(names) == 1 else ("budgets", "are")
    return f"The {what} of {listed(names, MOST)} {verb} spent." if names else ""


def _well(targets: Sequence[TargetStatus], whole: Step | None, span: str) -> tuple[str, str]:
    if not targets:
        return "none", "No target yet: configure a provider, or name a model."
    many, last = len(targets) > 1, f"in the last {_AGO[span]}."
    head = f"All {len(targets)} targets answer" if many else f"{_name(targets[0])} answers"
    if whole is None:
        return "ok", f"{head}."
    total = whole.total
    if not total.calls:
        head = f"All {len(targets)} targets are ready" if many else "1 target is ready"
        return "none", f"{head}; no calls {last}"
    failed = f"{total.errors:,} of {counted(total.calls, 'call')} failed" if total.errors else ""
    calls = failed or f"{'all ' * (total.calls > 1)}{counted(total.calls, 'call')} succeeded"
    return "ok", f"{head}; {calls} {last}"


def _down(
    bad: Sequence[TargetStatus], count: int, detours: Mapping[Target, JSON]
) -> list[list[Part]]:
    """Return a line for one target; for several a line that counts them, and one for each."""
    resting, forced = all(each.state == "closed" for each in bad), all(each.forced for each in bad)
    word = "resting" if resting else "out of service" if forced else "down"
    head = f"{len(bad)} of {counted(count, 'target')} {'is' if len(bad) == 1 else 'are'} {word}"
    told = [_told(each, detours[each.target]) for each in bad[:MOST]]
    if len(bad) == 1:
        return [[f"{head}: ", *told[0]]]
    if len(bad) > MOST:
        told.append([f"And {len(bad) - MOST} more: see Targets."])
    return [[f"{head}."], *told]


def _told(target: TargetStatus, detour: JSON) -> list[Part]:
    parts: list[Part] = [f"{_name(target)}, {_reason(target)}"]
    if target.since is not None:
        parts += [", since ", target.since]
    if detour["to"]:
        parts.append(f"; its calls go to {listed(detour['to'], MOST)}")
    if detour["stranded"]:
        parts.append(
            f"; calls for {listed(detour['stranded'], MOST)} fail, as no other target is left"
        )
    return [*parts, "."]


def _reason(target: TargetStatus) -> str:
    if target.forced:
        return "taken out by an operator"
    why = phrase(int(target.why)) if target.why.isdigit() else printable(target.why)
    return why or printable(target.reason or target.state.replace("_", " "))


def _failing(whole: Step | None, span: str) -> str:
    if whole is None or whole.total.calls < 20:
        return ""
    total = whole.total
    share = total.errors / total.calls
    if share < WORRYING:
        return ""
    worst = max((each for each in whole.errors if each.key[0]), key=lambda each: each.calls)
    return (
        f"{100 * share:.0f}% of {counted(total.calls, 'call')} in the last {_AGO[span]} failed, "
        f"most with {printable(worst.key[0])}."
    )


def _name(target: TargetStatus) -> str:
    files = f"the files of {target.provider}"  # and batches
    return printable(str(target.target) if target.model else files)


# -- the meaning of codes --


class Meaning(NamedTuple):
    what: str
    remedy: str


_ROW = re.compile(r"^\| `(\w+)` \| (.+) \| (.+) \|$", re.MULTILINE)


@cache
def meanings() -> dict[str, Meaning]:
    page = resources.files("infermux").joinpath("help/errors.md").read_text("utf-8")
    return {code: Meaning(*texts) for code, *texts in _ROW.findall(page)}


def meaning(code: str) -> Meaning:
    """Return the meaning of *code*, also of an unknown one."""
    unknown = Meaning("Not a code of this version.", "`infermux help errors` lists the codes.")
    return meanings().get(code, unknown)


def phrase(status: int | None) -> str:
    """Return an HTTP status with its words: 503 Service Unavailable; "" for None."""
    if status is None:
        return ""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Site is overloaded" if status == 529 else str(status)
