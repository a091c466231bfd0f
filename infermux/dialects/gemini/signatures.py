"""Thought signatures: Google's own, and those in which other vendors' signed thoughts ride.

Google's clients return the signature of a part, but know no other place for a vendor's thoughts.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

from ...protocol import strict_json
from ...types import JSON
from .. import listed, without
from .requests import FORMAT
from .requests import SKIP as SKIP

_MARK = b"infermux:"  # 9 bytes: their base64 is the same before any other bytes
PACKED = b64encode(_MARK).decode()  # how a signature of ours begins
_STANDARD = str.maketrans("-_", "+/")


def standard_base64(data: str) -> str:
    """Return base64 in the standard alphabet, padded: Google's SDKs write the one for URLs."""
    if "-" in data or "_" in data:
        data = data.translate(_STANDARD)
    return data + "=" * (-len(data) % 4)


def packed(details: list[JSON]) -> str:
    """Return a signature that holds other vendors' signed details, or "" if there is none."""
    signed = [one for one in details if _is_signed(one)]
    if not signed:
        return ""
    own = [one for one in signed if one.get("format") == FORMAT]
    if own == signed and len(own) == 1:
        signature: Any = own[0].get("signature") or own[0].get("data")
        return str(signature)
    return b64encode(_MARK + strict_json.encode(signed)).decode()


def _is_signed(detail: JSON) -> bool:
    return bool(detail.get("signature") or detail.get("data"))


def unpacked(signature: str) -> list[JSON] | None:
    """Return the details in a signature of ours, or None if it is Google's."""
    if not signature.startswith(PACKED):
        return None
    try:
        found = strict_json.loads(b64decode(standard_base64(signature))[len(_MARK) :])
    except ValueError:
        return []
    return listed(found)


def own_contents(contents: Any, *, signs: bool = False) -> Any:
    """Return a client's contents without the thoughts of other vendors, which Google refuses.

    *signs*: the model refuses calls without a signature; those get Google's marker.
    """
    if not isinstance(contents, list) or not any(_is_foreign(one, signs) for one in contents):
        return contents
    kept = [_own_content(content) if isinstance(content, dict) else content for content in contents]
    return [_signed(content) if signs else content for content in kept if content]


def _is_foreign(content: Any, signs: bool) -> bool:
    parts = content.get("parts") if isinstance(content, dict) else None
    if type(parts) is not list:
        return False
    unsigned = signs
    for part in parts:
        if type(part) is not dict:
            continue
        signature = part.get("thoughtSignature", part.get("thought_signature"))
        if type(signature) is str and signature.startswith(PACKED):
            return True
        if "functionCall" in part or "function_call" in part:
            if unsigned and not signature:
                return True
            unsigned = False  # only the first of parallel calls has one
    return False


def _signed(content: JSON) -> JSON:
    """Return a content whose first call has a signature, or Google's marker."""
    parts = content.get("parts")
    if not isinstance(parts, list):
        return content
    for place, part in enumerate(parts):
        if isinstance(part, dict) and ("functionCall" in part or "function_call" in part):
            if part.get("thoughtSignature", part.get("thought_signature")):
                return content
            marked = [*parts[:place], part | {"thoughtSignature": SKIP}, *parts[place + 1 :]]
            return content | {"parts": marked}
    return content


def _own_content(content: JSON) -> JSON | None:
    parts = content.get("parts")
    if not isinstance(parts, list):
        return content
    own = [_own_part(part) if isinstance(part, dict) else part for part in parts]
    kept = [part for part in own if part]
    return content | {"parts": kept} if kept else None


def _own_part(part: JSON) -> JSON | None:
    for name in ("thoughtSignature", "thought_signature"):
        if isinstance(part.get(name), str) and part[name].startswith(PACKED):
            if part.get("thought"):
                return None
            part = without(part, name) | ({name: SKIP} if "functionCall" in part else {})
    return part
