"""Estimates the number of tokens of a text when no vendor reports it, without a vocabulary.

One pass splits a text into runs of one kind of character; each kind has a weight per run and per
character, fitted to OpenAI's o200k vocabulary. On 81 texts of 27 corpora (languages, code, JSON,
logs, base64, emoji) the median error is 3 % and the 95th percentile 17 %, on 744 pieces of a Linux
system's files 7 % and 23 %. Other vocabularies were not measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

PER_MESSAGE = 4  # role and separators; OpenAI's cookbook has 3, plus 3 for the answer
PER_IMAGE = 765  # 1024 x 1024 in high detail: 85 + 4 x 170, OpenAI's vision guide for GPT-4o
# Characters read in full. Of longer texts, evenly spaced pieces are read, which adds 1 % to the
# median error and 4 % to the 95th percentile: reading 450 KB costs ten times as much as the call.
_WHOLE = 2**15
_PIECES, _PIECE = 64, 2**8
_MAX_CACHED = 2**10  # estimates
_cache: dict[int, int] = {}  # by the hash of the text

# The order matters. Runs are bounded, so that no look-ahead is long and a long run is more than
# one token.
_KINDS: tuple[tuple[str, float, float], ...] = (  # pattern, tokens per run, tokens per character
    (r"[\u0300-\u036f]", 0, 1.58),  # combining accents
    # accented words
    (
        r" ?[A-Za-z]{0,16}[\u00c0-\u024f\u1e00-\u1eff][A-Za-z\u00c0-\u024f\u1e00-\u1eff]{0,16}",
        0,
        0.333,
    ),
    (r" [A-Z]?[a-z]{1,16}", 0, 0.162),  # words in prose
    (r"[A-Z]?[a-z]{1,16}", 1.03, 0),  # words in code, base64
    (r"[A-Z]{1,8}(?![a-z])|[A-Z]", 1.65, 0),
    (r"[0-9]{1,3}| (?=[0-9])", 1, 0),  # exactly as in the vocabulary
    (r"[\u0400-\u052f]{1,16}", 1.78, 0),  # Cyrillic words
    # Greek, Armenian to Lao, Georgian
    (r"[\u0370-\u03ff\u0530-\u0eff\u10a0-\u10ff\u1f00-\u1fff]", 0, 0.375),
    (r"[\uac00-\ud7a3]", 0, 0.73),  # Hangul
    (r"[\u3040-\u30ff\u3400-\u9fff]", 0, 0.835),  # kana and Han
    (r"\s{2,64}|[\n\t]", 1.39, 0),
    (r"[!-/:-@\[-`{-~]{1,16}", 0.66, 0.133),  # ASCII punctuation
    (r"[\u2190-\u2bff\ufe0f\u200d\U00010000-\U0010ffff]", 0, 1.79),  # emoji and symbols
    (r"\S", 0, 0.84),
)


def _scanner(
    kinds: Sequence[tuple[str, float, float]],
) -> tuple[re.Pattern[str], tuple[float, ...], tuple[float, ...]]:
    """Return a pattern with a group for each kind, and the weights by group."""
    patterns, per_run, per_character = zip(*kinds, strict=True)
    runs = re.compile("|".join(f"({pattern})" for pattern in patterns))
    return runs, (0.0, *per_run), (0.0, *per_character)


_ANY = _scanner(_KINDS)
_ASCII = _scanner([kind for kind in _KINDS if "\\u" not in kind[0]])  # twice as fast


def estimate(text: str) -> int:
    """Estimate the number of tokens of *text*, 0 only if it is empty, in bounded time.

    Each turn of a conversation repeats the earlier ones, so estimates are cached by the hash of the
    text; the text itself is not kept.
    """
    key = hash(text)
    found = _cache.get(key)
    if found is None:
        if len(_cache) >= _MAX_CACHED:
            _cache.clear()
        found = _cache[key] = _estimate(text)
    return found


def _estimate(text: str) -> int:
    if len(text) <= _WHOLE:
        return max(round(_weigh(text)), min(len(text), 1))
    total, read = 0.0, 0
    for number in range(_PIECES):
        start = (len(text) - _PIECE) * number // (_PIECES - 1)
        start = max(start, text.find(" ", start, start + 32))  # not within a word
        piece = text[start : start + _PIECE]
        total, read = total + _weigh(piece), read + len(piece)
    return round(total * len(text) / read)


def estimate_messages(messages: Sequence[Mapping[str, Any]]) -> int:
    """Estimate the number of input tokens of chat messages in OpenAI's format.

    It counts text, tool calls and PER_IMAGE per image; not audio, files or tool definitions.
    """
    texts: list[str] = []
    total = sum([PER_MESSAGE + _add(message, texts) for message in messages])
    if sum(map(len, texts)) > _WHOLE:
        return total + estimate("".join(texts))
    return total + sum(map(estimate, texts))


def estimate_prompts(params: Mapping[str, Any]) -> int:
    """Estimate the tokens of the params `prompt` and `input`: texts, or lists of tokens."""
    return _prompt(params.get("prompt")) + _prompt(params.get("input"))


def _prompt(value: object) -> int:
    if isinstance(value, str):
        return estimate(value)
    if isinstance(value, list):
        return sum([1 if type(each) is int else _prompt(each) for each in value])
    texts: list[str] = []
    return _add_part(value, texts) + sum(map(estimate, texts))


def _weigh(text: str) -> float:
    runs, per_run, per_character = _ASCII if text.isascii() else _ANY
    total = 0.0
    for run in runs.finditer(text):
        kind, (start, end) = run.lastindex or 0, run.span()
        total += per_run[kind] + per_character[kind] * (end - start)
    return total


def _add(message: Mapping[str, Any], texts: list[str]) -> int:
    """Add the texts of a message to *texts*; return the tokens of its images."""
    content, calls = message.get("content"), message.get("tool_calls")
    parts = content if isinstance(content, list) else [content]
    total = sum([_add_part(part, texts) for part in parts])
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            found = (function.get("name"), function.get("arguments"))
            texts += [str(text) for text in found if text is not None]
    return total


def _add_part(part: object, texts: list[str]) -> int:
    """Add the text of a content part to *texts*; return the tokens of an image."""
    if isinstance(part, str):
        texts.append(part)
    elif isinstance(part, Mapping):
        if part.get("type") in ("image_url", "input_image", "image"):
            return PER_IMAGE
        text = part.get("text", part.get("refusal"))
        texts += [text] if isinstance(text, str) else []
    return 0
