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
    """Whether *name* holds a `*`."""
    return STAR in name


@lru_cache(maxsize=1024)
def pattern(text: str) -> Pattern:
    """Return the pattern that *text* is; it holds a `*`."""
    return Pattern(text, tuple(text.split(STAR)))


def covers(scope: Collection[str], name: str) -> bool:
    """Whether *name* is in *scope*, names and patterns."""
    if name in scope:
        return True
    return any(STAR in each and pattern(each).match(name) is not None for each in scope)


def share_a_name(one: str, other: str) -> bool:
    """Whether a name could match both patterns."""
    return next(_shapes(one, other), None) is not None


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
    """Yield patterns that cover the names that match both, perhaps some of them twice."""
    stack = [("", one, other)]
    seen = set()
    while stack:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        done, a, b = state
        if not a and not b:
            yield done
        elif a[:1] == STAR and b[:1] == STAR:
            more = done if done[-1:] == STAR else done + STAR
            stack += [(more, a[1:], b), (more, a, b[1:])]
        elif a[:1] == STAR:
            stack += [(done + b[:1], a, b[1:])] if b else []
            stack.append((done, a[1:], b))
        elif b[:1] == STAR:
            stack += [(done + a[:1], a[1:], b)] if a else []
            stack.append((done, a, b[1:]))
        elif a[:1] == b[:1]:
            stack.append((done + a[:1], a[1:], b[1:]))
