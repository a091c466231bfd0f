"""Patterns of model names: `*` stands for any text, also an empty one or one with slashes.

Of the patterns that match a name the most specific one counts: the one with the most characters
beside `*`. Two patterns that are equally specific must not match the same name (`ties`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

STAR = "*"
MAX_SHAPES = 256  # patterns that two others have in common


class Pattern(NamedTuple):
    """A name with `*`, split at each `*`."""

    text: str
    parts: tuple[str, ...]

    @property
    def specificity(self) -> int:
        """The number of characters beside `*`."""
        return sum(map(len, self.parts))

    def match(self, name: str) -> tuple[str, ...] | None:
        """Return what each `*` stands for in *name*, the shortest text first; None: no match."""
        first, *middle, last = self.parts
        end = len(name) - len(last)
        if end < len(first) or not (name.startswith(first) and name.endswith(last)):
            return None
        at, found = len(first), []
        for part in middle:
            next_at = name.find(part, at, end)
            if next_at < 0:
                return None
            found.append(name[at:next_at])
            at = next_at + len(part)
        return (*found, name[at:end])

    def filled(self, texts: Iterable[str]) -> str:
        """Return the name with *texts* in place of each `*`."""
        return "".join(map("".join, zip(self.parts, (*texts, ""), strict=True)))


def is_pattern(name: str) -> bool:
    return STAR in name


@lru_cache(maxsize=1024)
def pattern(text: str) -> Pattern:
    """Return the pattern that *text* is; it holds a `*`."""
    return Pattern(text, tuple(text.split(STAR)))


def covers(scope: Collection[str], name: str) -> bool:
    if name in scope:
        return True
    return any(STAR in each and pattern(each).match(name) is not None for each in scope)


def share_a_name(one: str, other: str) -> bool:
    """Whether a name could match both patterns."""
    return _meeting(one, other)[0][0]


def ties(names: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield pairs of equally specific patterns, each with a name that both match."""
    found = [pattern(name) for name in names if STAR in name]
    for number, one in enumerate(found):
        for other in found[:number]:
            if one.specificity != other.specificity:
                continue
            above = [each for each in found if each.specificity > one.specificity]
            shapes = islice(_shapes(one.text, other.text), MAX_SHAPES)
            open_ = [
                shape
                for shape in shapes
                if shape not in names and all(each.match(shape) is None for each in above)
            ]
            if open_:
                yield other.text, one.text, max(open_, key=is_pattern)


def _shapes(one: str, other: str) -> Iterator[str]:
    """Yield what matches both patterns, as patterns; not each is different from all others."""
    meet = _meeting(one, other)
    stack = [("", 0, 0)] if meet[0][0] else []
    seen = set()
    while stack:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        done, i, j = state
        if i == len(one) and j == len(other):
            yield done
        for text, right, down in _steps(one[i : i + 1], other[j : j + 1]):
            if meet[i + right][j + down]:
                more = done if text == STAR and done[-1:] == STAR else done + text
                stack.append((more, i + right, j + down))


def _steps(a: str, b: str) -> Iterator[tuple[str, int, int]]:
    """Yield the ways to go on where two patterns have *a* and *b*: what both match, and how far."""
    if a == STAR:
        yield (STAR if b == STAR else "", 1, 0)
    if b == STAR:
        yield (STAR if a == STAR else "", 0, 1)
    elif a == STAR and b:
        yield b, 0, 1
    if b == STAR and a and a != STAR:
        yield a, 1, 0
    elif a == b and a and a != STAR:
        yield a, 1, 1


def _meeting(one: str, other: str) -> list[list[bool]]:
    """Return for each two rests of the patterns whether a text matches both."""
    meet = [[False] * (len(other) + 1) for _ in range(len(one) + 1)]
    meet[-1][-1] = True
    for i in range(len(one), -1, -1):
        for j in range(len(other), -1, -1):
            steps = _steps(one[i : i + 1], other[j : j + 1])
            meet[i][j] = meet[i][j] or any(meet[i + right][j + down] for _, right, down in steps)
    return meet
