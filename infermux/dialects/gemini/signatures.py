"""Thought signatures: Google's own, and those in which other vendors' signed thoughts ride.

Google's clients return the signature of a part, but know no other place for a vendor's thoughts.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

from ...protocol import strict_json
from ...types import JSON
from .. import listed, members, without
from .requests import FORMAT, SKIP

_MARK = b"infermux:"  # 9 bytes: their base64 is the same before any other bytes
PACKED = b64encode(_MARK).decode()  # how a signature of ours begins
_STANDARD = str.maketrans("-_", "+/")
_SIGNATURES = ("thoughtSignature", "thought_signature")
_CALLS = {"functionCall", "function_call"}


def standard_base64(data: str) -> str:
    """Return base64 in the standard alphabet, padded: Google's SDKs write the one for URLs."""
    if "-" in data or "_" in data:
        data = data.translate(_STANDARD)
    return data + "=" * (-len(data) % 4)


def packed(details: list[JSON]) -> str:
    """Return a signature that holds other vendors' signed details, or "" if there is none."""
    signed = [one for one in details if one.get("signature") or one.get("data")]
    if not signed:
        return ""
    own = [one for one in signed if one.get("format") == FORMAT]
    if own == signed and len(own) == 1:
        signature: Any = own[0].get("signature") or own[0].get("data")
        return str(signature)
    return b64encode(_MARK + strict_json.encode(signed)).decode()


def unpacked(signature: str) -> list[JSON] | None:
    """Return the details in a signature of ours, or None if it is Google's."""
    if not signature.startswith(PACKED):
        return None
    try:
        found = strict_json.loads(b64decode(standard_base64(signature))[len(_MARK) :])
    except ValueError:
        return []
    return listed(found)


def own_contents(contents: Any, *, signs: bool) -> Any:
    """Return a client's contents without the thoughts of other vendors, which Google refuses.

    *signs*: the model refuses calls without a signature; those get Google's marker.
    """
    if not isinstance(contents, list):
        return contents
    kept = [own for content in contents if (own := _own_content(content, signs))]
    return contents if kept == contents else kept


def _own_content(content: Any, signs: bool) -> Any:
    parts = members(content).get("parts")
    if not isinstance(parts, list):
        return content
    own = [_own_part(part) if isinstance(part, dict) else part for part in parts]
    kept = [part for part in own if part]
    first = next((n for n, part in enumerate(kept) if signs and _CALLS & {*members(part)}), None)
    if first is not None and not any(map(kept[first].get, _SIGNATURES)):
        kept[first] = kept[first] | {"thoughtSignature": SKIP}  # the first of parallel calls has it
    return content | {"parts": kept} if kept else None


def _own_part(part: JSON) -> JSON | None:
    for name in _SIGNATURES:
        if isinstance(part.get(name), str) and part[name].startswith(PACKED):
            if part.get("thought"):
                return None
            part = without(part, name)
    return part
