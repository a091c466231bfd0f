"""What vendors store: responses and conversations, whose ids tell which provider has them.

An id that a client gets ends in a tag: its kind, and a MAC of provider, caller and id by a secret
that comes from the provider's API key. Every worker and host with the same configuration can check
it, and nobody else's id passes. Ids stay as they are where there is nothing to tell: one provider
has Responses, and there is at most one caller.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32decode, b32encode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple

from ..admission.keys import Keyring
from ..dialects.responses import NAME, RESOURCE
from ..errors import PreviousResponseNotFound, shown
from ..planning.call import Call
from ..planning.registry import Registry
from ..protocol import InferResponse, Native, strict_json
from ..providers.base import RegisteredProvider
from ..types import Caller, Chunk

STORED, CONVERSATION = "r", "c"  # the kinds of ids
BACKGROUND = "b"  # of responses to be billed when they have ended; then the second they began
_TAGGED = re.compile(r"([\w.:-]{1,200})_([rc]|b[a-z2-7]{8})([a-z2-7]{16})", re.ASCII)
_IDENT = re.compile(r"[\w:-][\w.:-]{0,199}", re.ASCII)
_MEMBERS = ("previous_response_id", "conversation")
_SEND_ITEMS = "send the items of the conversation in input instead"


class Owner(NamedTuple):
    """Who has what an id means."""

    provider: str
    ident: str  # the vendor's own
    kind: str = ""  # "" if the id has no tag

    @property
    def settles(self) -> tuple[int, str] | None:
        """The start and id of the row that bills the response, if one is to be written."""
        if not self.kind.startswith(BACKGROUND):
            return None
        seconds = int.from_bytes(b32decode(self.kind[1:].upper()))
        named = f"{self.provider}\0{self.ident}".encode()
        return seconds * 10**9, sha256(named).hexdigest()[:32]


def speakers(registry: Registry) -> list[RegisteredProvider]:
    """Return the providers that have Responses."""
    return [each for each in registry if getattr(each.provider, "responses", None) is not None]


class Ids:
    """Writes and reads the ids of one router's providers."""

    def __init__(self, registry: Registry, keyring: Keyring | None) -> None:
        self._registry = registry
        self._keyring = keyring
        self._speakers: tuple[int, list[RegisteredProvider]] = (-1, [])

    @property
    def speakers(self) -> list[RegisteredProvider]:
        """The providers that have Responses."""
        if self._speakers[0] != self._registry.changes:
            self._speakers = self._registry.changes, speakers(self._registry)
        return self._speakers[1]

    def plain(self, caller: Caller) -> bool:
        """Return whether ids stay as the vendor made them."""
        alone = not caller.name or (self._keyring is not None and self._keyring.count == 1)
        return len(self.speakers) == 1 and alone

    def tagged(self, ident: str, kind: str, provider: str, caller: Caller) -> str:
        """Return the id that the client gets."""
        if not ident or (not kind.startswith(BACKGROUND) and self.plain(caller)):
            return ident
        return f"{ident}_{kind}{_mac(self._registry.member(provider), ident, kind, caller)}"

    def owner(self, ident: object, caller: Caller) -> Owner | None:
        """Return who has what *ident* means, or None if no provider gave it to this caller."""
        if not isinstance(ident, str):
            return None
        if found := _TAGGED.fullmatch(ident):
            own, kind, mac = found.groups()
            for each in self.speakers:
                if hmac.compare_digest(_mac(each, own, kind, caller), mac):
                    return Owner(each.name, own, kind)
        if self.plain(caller) and _IDENT.fullmatch(ident):
            return Owner(self.speakers[0].name, ident)
        return None

    def pin(self, call: Call) -> None:
        """Send a call that goes on from what a provider stored to that provider.

        Raise PreviousResponseNotFound if none gave the id, or the model is not there.
        """
        request = call.request
        given = {name: value for name in _MEMBERS if (value := request.params.get(name))}
        if not given or call.ids is not None:
            return
        params = dict(request.params)
        owners = {name: self._found(name, value, call.caller) for name, value in given.items()}
        providers = {owner.provider for owner in owners.values()}
        names = ", ".join(given)
        targets = {t.provider for t in self._registry.resolve(request.model, request.provider)}
        if len(providers) > 1 or not providers <= targets:
            raise PreviousResponseNotFound(
                f"{names}: {shown(request.model)} is not at the provider that gave the id; "
                f"{_SEND_ITEMS}",
                param=next(iter(given)),
            )
        call.ids = {}
        for name, value in given.items():
            own = owners[name].ident
            call.ids[own] = value["id"] if isinstance(value, dict) else value
            params[name] = value | {"id": own} if isinstance(value, dict) else own
        native = request.native
        if native is not None and native.dialect == NAME:
            text = native.body.replaced({name: params[name] for name in given})
            native = Native(NAME, strict_json.document(text))
        call.request = replace(
            request, params=params, native=native, provider=next(iter(providers))
        )

    def _found(self, name: str, value: Any, caller: Caller) -> Owner:
        owner = self.owner(value.get("id") if isinstance(value, dict) else value, caller)
        if owner is None:
            raise PreviousResponseNotFound(
                f"{name} {shown(value)} was not found: no provider gave it; {_SEND_ITEMS}",
                param=name,
            )
        return owner

    # -- answers --

    def told(self, call: Call, response: InferResponse) -> InferResponse:
        """Return a response with the ids that the client gets."""
        native = response.native
        if native is None or native[0] != NAME or not _is_told(call):
            return response
        kind = STORED
        if response.extra.get("pending"):
            kind = BACKGROUND + _letters((call.start_ns // 10**9).to_bytes(5))
        names = self._names(call, response.id, kind, response.extra.get("refers", {}))
        if not names:
            return response
        ident = names.get(response.id, response.id)
        return replace(response, id=ident, native=(NAME, renamed(native[1], names)))

    def told_stream(
        self, call: Call, first: list[Chunk], rest: Iterator[Chunk]
    ) -> tuple[list[Chunk], Iterator[Chunk]]:
        """Return the parts of a stream with the ids that the client gets."""
        if not _is_told(call) or (call.ids is None and self.plain(call.caller)):
            return first, rest
        return list(self._told_chunks(call, iter(first))), self._told_chunks(call, rest)

    def _told_chunks(self, call: Call, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        try:
            for chunk in chunks:
                yield self._told_chunk(call, chunk) if chunk.id else chunk
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def _told_chunk(self, call: Call, chunk: Chunk) -> Chunk:
        if chunk.native is None or chunk.dialect != NAME or chunk.id is None:
            return chunk
        names = self._names(call, chunk.id, STORED, {})
        ident = names.get(chunk.id, chunk.id)
        return chunk._replace(id=ident, native=renamed(chunk.native, names))

    def _names(
        self, call: Call, ident: str, kind: str, refers: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the ids that the client gets, by the vendor's own, where they differ."""
        names = {
            own: self.tagged(own, each, call.provider, call.caller)
            for own, each in {ident: kind, **refers}.items()
        } | (call.ids or {})
        return {name: given for name, given in names.items() if name and name != given}


def _is_told(call: Call) -> bool:
    native = call.request.native
    return call.request.op == RESOURCE or (native is not None and native.dialect == NAME)


def renamed(data: bytes, names: Mapping[str, str]) -> bytes:
    """Return JSON with the strings that are ids in *names* replaced."""
    for name, given in names.items():
        old = b'"%s"' % name.encode()
        if old in data:
            data = data.replace(old, b'"%s"' % given.encode())
    return data


def _mac(provider: RegisteredProvider, ident: str, kind: str, caller: Caller) -> str:
    """Return 80 bits in 16 letters."""
    secret: bytes = provider.provider.responses_secret
    told = "\0".join((kind, caller.name, ident)).encode(errors="replace")
    return _letters(hmac.digest(secret, told, "sha256")[:10])


def _letters(data: bytes) -> str:
    return b32encode(data).decode().lower()
