"""Names of models: one key for all spellings, and the model in the text of a cloud's SKU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

from ...pricing import entries

_DATE = re.compile(r"(?:-\d{4}-\d\d-\d\d|-\d{8}|@[^@/]*)\Z", re.ASCII)
_PREFIX = re.compile(r"\A(?:.*/)?(?:models|foundation-model|inference-profile)/")
# Bedrock's region and vendor, and its version: us.anthropic.claude-haiku-4-5-20251001-v1:0
_BEDROCK = re.compile(
    r"\A(?:(?:us|eu|apac|au|jp|ca|us-gov|global)\.)?(?:anthropic|amazon|meta|mistral|cohere|ai21|"
    r"deepseek|openai|moonshotai|qwen|writer|zai|nvidia|google|minimax)\.(?=[a-z])"
)
_VERSION = re.compile(r"-v?\d+:\d+\Z", re.ASCII)
_VARIANT = re.compile(r"(?<=.):(?:free|nitro|floor|online|thinking|extended|exacto|beta|batch)\Z")
_TURNED = re.compile(r"claude-(\d+(?:-\d+)?)-([a-z]+)\Z", re.ASCII)  # OpenRouter's claude-4.5-haiku
_USUAL = re.compile(r"claude-([a-z]+)-(\d+(?:-\d+)?)\Z", re.ASCII)
_CAMEL = re.compile(r"(?<=[a-z\d])(?=[A-Z][a-z])")
_TOKEN = re.compile(r"[a-z]+|\d+", re.ASCII)
_VENDORS = frozenset(
    ["openai", "anthropic", "google", "mistral", "cohere", "xai", "deepseek", "azure", "bedrock"]
)
# words after a name that make it another model, also a further number of its version
_OTHER = re.compile(
    r"mini|nano|pro|lite|turbo|codex|audio|realtime|transcribe|tts|search|embedding|micro|max|luna"
    r"|sol|terra|astra|live|oss|deep|o|\d\d?",
    re.ASCII,
)
_SUFFIXES = ("-instruct", "-preview", "-latest", "-instant", "-versatile")
_UNSAID = {"openai": "gpt", "deepseek": "deepseek", "grok": "grok"}  # a meter "5.4 inp Gl"
_MAX_TEXT = 300  # characters that a model is looked for in


def model_key(name: str) -> str:
    """Return the same key for all spellings of a model's name.

    Example: "Claude Haiku 4.5" and "claude-haiku-4-5-20251001".
    """
    key = _PREFIX.sub("", re.sub(r"\s+", "-", name.strip().lower()))
    vendor, slash, key = key.rpartition("/")
    key = _DATE.sub("", _VERSION.sub("", _BEDROCK.sub("", _VARIANT.sub("", key))))
    if key.startswith("claude"):
        key = re.sub(r"-v\d\Z", "", key.replace(".", "-")).removesuffix("-latest")
        key = _DATE.sub("", key).removesuffix("-0")
        turned = _TURNED.fullmatch(key)
        if turned and int(turned[1].split("-")[0]) >= 4:
            key = f"claude-{turned[2]}-{turned[1]}"
    return vendor + slash + key


def spoken_of(texts: Iterable[str]) -> str:
    """Return the key of the model in the first of *texts* that names one, or ""."""
    given = [text[:_MAX_TEXT] for text in texts if text]
    every = " ".join(given).lower()
    family = next((word for name, word in _UNSAID.items() if name in every), "")
    found = (_found(text) or _found(f"{family} {text}") for text in given)
    return next(filter(None, found), "")


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(_CAMEL.sub(" ", text).lower())


@lru_cache(maxsize=4096)
def _found(text: str) -> str:
    """Return the model with the longest name in *text*, or "" if none is certain."""
    index, tokens = _index(), _tokens(text)
    longest = min(max(map(len, index), default=0), len(tokens))
    passed: set[int] = set()  # starts of longer names that the table does not have
    for length in range(longest, 1, -1):
        for start in range(len(tokens) - length + 1):
            key = index.get(tuple(tokens[start : start + length]))
            if key and _OTHER.fullmatch("".join(tokens[start + length : start + length + 1])):
                passed.add(start)
            elif key and start not in passed:
                return key
    return ""


@cache
def _index() -> dict[tuple[str, ...], str]:
    """Return the keys of the models in the shipped table by the tokens of their names."""
    found: dict[tuple[str, ...], str] = {}
    for price in entries():
        if price.provider in _VENDORS and ":" not in price.id.partition(":")[0]:
            for name in (price.id, *price.aliases):
                key = model_key(name).rpartition("/")[2]
                for spelling in _spellings(key):
                    found.setdefault(tuple(_tokens(spelling)), key)
    return {tokens: key for tokens, key in found.items() if len(tokens) > 1}


def _spellings(key: str) -> Iterator[str]:
    yield key
    for suffix in _SUFFIXES:
        if key.endswith(suffix):
            yield key.removesuffix(suffix)
    if turned := _USUAL.fullmatch(key) or _TURNED.fullmatch(key):
        yield f"claude-{turned[2]}-{turned[1]}"
