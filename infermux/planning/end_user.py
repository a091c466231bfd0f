"""End users: the people who use an application, as its requests name them.

The name is in the header X-Infermux-User, else by `user`, `safety_identifier` or
`metadata.user_id`, in MIST also by `meta.user`. What is kept of it is a digest, or the name itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from ..protocol import InferRequest

DIGEST, PLAIN, OFF = "digest", "plain", "off"
DIGEST_BYTES = 12
MAX_NAME = 200  # characters of a name that is kept
# the ids that Claude Code sends: of account and session in one
_COMPOSED = re.compile(r"(user_\w+?_account_[\w-]*?)_session_[\w-]+", re.ASCII)
_PERSON = ("account_uuid", "account_id", "user_id", "user", "device_id")  # the first that is there


class EndUser(NamedTuple):
    """An end user of a caller."""

    digest: str  # for limits
    shown: str  # for rows, reports and the log


class Users:
    """Turns the names of end users into digests; with *secret* these cannot be guessed."""

    def __init__(self, mode: str = DIGEST, secret: str = "") -> None:
        self.mode = mode
        self.secret = blake2b(secret.encode()).digest() if secret else b""

    def of(self, request: InferRequest, name: str = "") -> EndUser | None:
        """Return the end user of a request, or None; *name* is that of the header."""
        person = person_of(name or named(request))
        if not person:
            return None
        digest = self.digest(person)
        return EndUser(digest, {DIGEST: digest, PLAIN: person[:MAX_NAME]}.get(self.mode, ""))

    def digest(self, person: str) -> str:
        data = person.encode(errors="replace")
        return blake2b(data, digest_size=DIGEST_BYTES, key=self.secret).hexdigest()


def named(request: InferRequest) -> str:
    """Return the name that a request gives to its end user, or ""."""
    params, meta = request.params, request.meta
    if not isinstance(params, Mapping):  # which is reported later
        return ""
    metadata = params.get("metadata")
    names = (
        params.get("user"),
        params.get("safety_identifier"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
        meta.get("user") if isinstance(meta, Mapping) else None,
    )
    for name in names:
        if type(name) in (str, int) and name != "":  # a number is a name, too
            return str(name)
    return ""


def person_of(name: str) -> str:
    """Return the part of a name that is the person's: ids of agents also have the session."""
    name = name.strip()
    if match := _COMPOSED.fullmatch(name):
        return match[1]
    if name.startswith("{") and len(name) <= 4096:
        try:
            known: Any = json.loads(name)
        except (ValueError, RecursionError):
            return name
        told = [known.get(each) for each in _PERSON] if isinstance(known, dict) else []
        return next((each for each in told if isinstance(each, str) and each), name)
    return name
