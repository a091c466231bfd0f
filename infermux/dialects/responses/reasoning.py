"""Reasoning items, as clients return them, and the details that they stand for.

The encrypted content of an item that InferMux made holds the details of another vendor's thoughts:
PREFIX, then their JSON in base64url. A client that returns the item returns the signatures in it.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import TypeGuard

from ...protocol import strict_json
from ...types import JSON
from .. import listed, require, word

FORMAT = "openai-responses-v1"  # of details that a vendor of this dialect encrypted
PREFIX = "infermux1."
_UNSIGNED = "unknown"  # the format of thoughts that no vendor wants back


def pack(details: Sequence[JSON], words: str = "") -> str:
    """Return the encrypted content that holds *details*, or the plain *words* if there are none."""
    held = list(details) or [{"type": "reasoning.text", "text": words, "format": _UNSIGNED}]
    ordered = [dict(sorted(detail.items())) for detail in held]  # alike for a stream and a whole
    return PREFIX + urlsafe_b64encode(strict_json.encode(ordered)).decode().rstrip("=")


def is_packed(encrypted: object) -> TypeGuard[str]:
    """Whether *encrypted* is a reasoning item's content that InferMux made."""
    return isinstance(encrypted, str) and encrypted.startswith(PREFIX)


def unpack(encrypted: object) -> list[JSON] | None:
    """Return the packed details, none of them if damaged; None if *encrypted* is a vendor's."""
    if not is_packed(encrypted):
        return None
    data = encrypted.removeprefix(PREFIX)
    try:
        found = strict_json.loads(urlsafe_b64decode(data + "=" * (-len(data) % 4)))
    except ValueError:
        return []
    return listed(found)


def is_own_id(ident: object, kind: str = "rs") -> bool:
    """Whether InferMux made the id of an item: no vendor knows it."""
    form = rf"{kind}_[0-9a-f]{{36}}"  # 32 of the call's id, 4 of the item
    return isinstance(ident, str) and re.fullmatch(form, ident) is not None


def details_of(item: JSON, place: str) -> tuple[str, list[JSON]]:
    """Return the words and the details of a reasoning item; raise RequestError."""
    details = []
    for member, kind, name in _TEXTS:
        for part in require(item.get(member) or [], f"{place}.{member}", list):
            words = require(part, f"{place}.{member}", dict).get("text")
            words = require(words, f"{place}.{member}.text", str)
            details.append({"type": kind, name: words})
    spoken = "".join(detail.get("summary") or detail.get("text") or "" for detail in details)
    encrypted = item.get("encrypted_content")
    packed = unpack(encrypted)
    if packed is not None:
        return spoken or "".join(word(one.get("text")) for one in packed), packed
    if encrypted:
        data = require(encrypted, f"{place}.encrypted_content", str)
        details.append({"type": "reasoning.encrypted", "data": data})
    own = {"format": FORMAT} | ({"id": item["id"]} if isinstance(item.get("id"), str) else {})
    return spoken, [detail | own for detail in details]


_TEXTS = (
    ("summary", "reasoning.summary", "summary"),
    ("content", "reasoning.text", "text"),
)
