"""Ids of tool calls in which Google's thought signatures ride.

Gemini 3 refuses a tool call in the history without its signature, and most clients return nothing
of a call but its id, name and arguments. So the signature is in the id. It is sealed with the
provider's key, which every worker and host has: an invented id is not taken for a signature.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import NamedTuple

PREFIX = "call_gs_"
SEAL = 12  # bytes of the message authentication code
MAX_ID = 200  # bytes of a vendor's own id that is kept
_TEXT, _OWN = 1, 2  # flags: the signature is no standard base64; the vendor gave the call an id


class Sealed(NamedTuple):
    """What an id holds: the signature, and the vendor's own id of the call or ""."""

    signature: str
    ident: str


def seal_key(api_key: str) -> bytes:
    """Return the key that seals the ids of a provider with *api_key*."""
    return sha256(b"infermux thought signatures " + api_key.encode()).digest()


def sealed(signature: str, ident: str, key: bytes, *, of: str = "") -> str:
    """Return an id that holds a signature, of letters that every client and vendor takes.

    *of* is what else the call is known by: equal signatures have other ids then.
    """
    own, flags = ident.encode(errors="replace"), _OWN
    if not own or len(own) > MAX_ID:
        own, flags = sha256(of.encode(errors="replace")).digest()[:4], 0
    try:
        data = b64decode(signature, validate=True)
    except ValueError:
        data = b""
    if b64encode(data).decode() != signature:
        data, flags = signature.encode(errors="replace"), flags | _TEXT
    body = bytes((flags, len(own))) + own + data
    return PREFIX + urlsafe_b64encode(_seal(body, key) + body).decode().rstrip("=")


def unsealed(ident: str, key: bytes | None) -> Sealed | None:
    """Return what an id holds, or None if it was not made with this key."""
    if key is None or not ident.startswith(PREFIX):
        return None
    text = ident.removeprefix(PREFIX)
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    seal, body = data[:SEAL], data[SEAL:]
    if len(body) < 2 or not hmac.compare_digest(seal, _seal(body, key)):
        return None
    flags, end = body[0], 2 + body[1]
    own, signature = body[2:end], body[end:]
    told = signature.decode() if flags & _TEXT else b64encode(signature).decode()
    return Sealed(told, own.decode() if flags & _OWN else "")


def _seal(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")[:SEAL]
