"""Responses and conversations that vendors store; their ids contain the provider.

An id that a client gets ends in a tag: its kind, and a MAC of provider, caller and id by a secret
that comes from the provider's API key; if that changes, being from a file or a command, from the
service's own. Every worker and host with the same configuration can check it, and nobody else's id
passes. Ids stay as they are where there is nothing to tell: one provider
has Responses, and there is at most one caller.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32decode, b32encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from secrets import token_bytes
from typing import Any, NamedTuple

from ..admission.keys import Keyring
from ..dialects.responses import NAME, RESOURCE
from ..errors import NotFound, PreviousResponseNotFound, ProviderError, RequestError, shown
from ..ledger import LedgerUnavailable
from ..ledger.stores.objects import objects_of
from ..planning.call import Call
from ..planning.end_user import Users
from ..planning.registry import Registry
from ..protocol import InferRequest, InferResponse, Native, strict_json
from ..providers.base import ChangedChunks, RegisteredProvider
from ..types import Caller, Chunk

STORED, CONVERSATION, FILE, BATCH = "r", "c", "f", "j"  # the kinds of ids
BACKGROUND = "b"  # of responses to be billed when they have ended; then the second they began
_TAGGED = re.compile(r"([\w.:-]{1,200})_([rcfj]|b[a-z2-7]{8})([a-z2-7]{16})", re.ASCII)
IDENT = re.compile(r"[\w:-][\w.:-]{0,199}", re.ASCII)
_FILE_MARK = '"file_id'  # of a body that names files
_MEMBERS = ("previous_response_id", "conversation")
_SEND_ITEMS = "send the items of the conversation in input instead"
_START_SECRET = token_bytes(32)  # of gunicorn's master, which its workers inherit


class Owner(NamedTuple):
    """The provider of a stored object, and the vendor's id of it."""

    provider: str
    ident: str  # the vendor's own
    kind: str = ""  # "" if the id has no tag

    @property
    def settles(self) -> tuple[int, str] | None:
        """The start and id of the row that bills the response, if one is to be written."""
        if not self.kind.startswith(BACKGROUND):
            return None
        return billed_as(
            self.provider, self.ident, int.from_bytes(b32decode(self.kind[1:].upper()))
        )


def billed_as(provider: str, ident: str, began: int) -> tuple[int, str]:
    """Return the start and id of the row that bills what a provider works on in the background."""
    named = f"{provider}\0{ident}".encode()
    return began * 10**9, sha256(named).hexdigest()[:32]


def has_responses(provider: object) -> bool:
    return getattr(provider, "responses", None) is not None


def has_files(provider: object) -> bool:
    return not {"files", "batches"}.isdisjoint(getattr(provider, "endpoints", ()))


class Ids:
    """Writes and reads the ids of one router's providers."""

    def __init__(
        self,
        registry: Registry,
        keyring: Keyring | None,
        secrets: Callable[[], list[bytes]],
        has: Callable[[object], bool] = has_responses,
    ) -> None:
        self._registry, self._has, self._secrets = registry, has, secrets
        self._keyring = keyring
        self._providers: tuple[int, list[RegisteredProvider]] = (-1, [])

    @property
    def providers(self) -> list[RegisteredProvider]:
        """The providers that have what the ids mean: Responses, or files."""
        if self._providers[0] != self._registry.changes:
            having = [each for each in self._registry if self._has(each.provider)]
            self._providers = self._registry.changes, having
        return self._providers[1]

    def plain(self, caller: Caller) -> bool:
        """Whether ids stay as the vendor made them."""
        return len(self.providers) == 1 and self._is_alone(caller)

    def _is_alone(self, caller: Caller) -> bool:
        return not caller.name or (self._keyring is not None and self._keyring.count == 1)

    def tagged(self, ident: str, kind: str, provider: str, caller: Caller) -> str:
        if not ident or (not kind.startswith(BACKGROUND) and self.plain(caller)):
            return ident
        mac = next(self._macs(self._registry.member(provider), ident, kind, caller))
        return f"{ident}_{kind}{mac}"

    def owner(self, ident: object, caller: Caller) -> Owner | None:
        """Return who has what *ident* means, or None if no provider gave it to this caller."""
        if not isinstance(ident, str):
            return None
        if found := _TAGGED.fullmatch(ident):
            own, kind, mac = found.groups()
            for each in self.providers:
                if any(hmac.compare_digest(it, mac) for it in self._macs(each, own, kind, caller)):
                    return Owner(each.name, own, kind)
        if self.plain(caller) and IDENT.fullmatch(ident):
            return Owner(self.providers[0].name, ident)
        return None

    def owners(self, ident: object, caller: Caller) -> list[Owner]:
        """Return who may have what *ident* means: anyone, if it is from a time without tags."""
        if (found := self.owner(ident, caller)) is not None:
            return [found]
        if not isinstance(ident, str) or not self._is_alone(caller) or _TAGGED.fullmatch(ident):
            return []
        return [Owner(each.name, ident) for each in self.providers if IDENT.fullmatch(ident)]

    def pin(self, call: Call) -> None:
        """Send a call that goes on from what a provider stored to that provider.

        Raise PreviousResponseNotFound if none gave the id, or the model is not there.
        """
        request = call.request
        given = {name: value for name in _MEMBERS if (value := request.params.get(name))}
        if not given or call.ids is not None:
            return
        found = {name: self._found(name, value, call.caller) for name, value in given.items()}
        targets = self._targets(request)
        for owners in found.values():
            targets &= {owner.provider for owner in owners}
        if not targets:
            names = ", ".join(given)
            raise PreviousResponseNotFound(
                f"{names}: {shown(request.model)} is not at the provider that gave the id; "
                f"{_SEND_ITEMS}",
                param=next(iter(given)),
            )
        provider = next(each.name for each in self.providers if each.name in targets)
        call.ids, sent = {}, dict[str, Any]()
        for name, value in given.items():
            own = found[name][0].ident
            call.ids[own] = value["id"] if isinstance(value, dict) else value
            sent[name] = value | {"id": own} if isinstance(value, dict) else own
        params, native = {**request.params, **sent}, request.native
        if native is not None and native.dialect == NAME:
            native = Native(NAME, strict_json.document(native.body.replaced(sent)))
        call.request = replace(request, params=params, native=native, provider=provider)

    def _targets(self, request: InferRequest) -> set[str]:
        return {t.provider for t in self._registry.resolve(request.model, request.provider)}

    def pin_files(self, call: Call, error: ProviderError) -> bool:
        """Send a call that a vendor refused to the provider of its files; False: it names none.

        Only then are files looked for, as a body may be long. Raise RequestError if there is no
        such provider among the model's.
        """
        request, owners = call.request, self._owners(call, error)
        providers = {owner.provider for owner in owners.values()}
        if not providers:
            return False
        if len(providers) > 1 or not providers <= self._targets(request):
            raise RequestError(
                f"the request names a file of {', '.join(sorted(providers))}, and "
                f"{shown(request.model)} is not there: upload the file to the model's provider",
                param="file_id",
            )
        call.ids = {owner.ident: ident for ident, owner in owners.items()}
        call.attempts.pop()  # it was about an id that only we know
        names = {ident: owner.ident for ident, owner in owners.items()}
        native = request.native
        assert native is not None
        call.request = replace(
            request,
            messages=_with(names, list(request.messages)),
            params=_with(names, dict(request.params)),
            native=native._replace(body=strict_json.document(renamed(native.body.data, names))),
            provider=next(iter(providers)),
        )
        return True

    def _owners(self, call: Call, error: ProviderError) -> dict[str, Owner]:
        """Return who has the files of a call that a vendor may have refused for them."""
        native = call.request.native
        if error.upstream_status not in (400, 404, 422) or native is None or call.request.passed:
            return {}
        if call.ids is not None or self.plain(call.caller) or _FILE_MARK not in native.body.text:
            return {}
        found = {ident: self._file(ident, call) for ident in _file_ids(native.body.value)}
        return {ident: owner for ident, owner in found.items() if owner is not None}

    def _file(self, ident: str, call: Call) -> Owner | None:
        """Return who has a file; None if the id is a vendor's own. Raise NotFound."""
        if not _TAGGED.fullmatch(ident):
            return None
        found = self.owner(ident, call.caller)
        if found is None or found.kind != FILE:
            raise NotFound(f"no file {shown(ident)} was found", param="file_id")
        return found

    def _found(self, name: str, value: Any, caller: Caller) -> list[Owner]:
        owners = self.owners(value.get("id") if isinstance(value, dict) else value, caller)
        if not owners:
            raise PreviousResponseNotFound(
                f"{name} {shown(value)} was not found: no provider gave it; {_SEND_ITEMS}",
                param=name,
            )
        return owners

    def _macs(
        self, provider: RegisteredProvider, ident: str, kind: str, caller: Caller
    ) -> Iterator[str]:
        """Yield 80 bits in 16 letters, for each secret of a provider."""
        told = "\0".join((kind, caller.name, ident)).encode(errors="replace")
        for secret, known in provider.provider.responses_secrets:
            for own in self._secrets() if known else [b""]:
                yield _letters(hmac.digest(secret + own, told, "sha256")[:10])

    # -- answers --

    def client_ids(self, call: Call, response: InferResponse) -> InferResponse:
        native = response.native
        if native is None or native[0] != NAME or not _has_client_ids(call):
            return response
        kind = _kind(call, response.extra.get("pending"))
        names = self._names(call, response.id, kind, response.extra.get("refers", {}))
        if not names:
            return response
        ident = names.get(response.id, response.id)
        return replace(response, id=ident, native=(NAME, renamed(native[1], names)))

    def client_ids_stream(
        self, call: Call, first: list[Chunk], rest: Iterator[Chunk]
    ) -> tuple[list[Chunk], Iterator[Chunk]]:
        named = call.ids is not None or call.request.params.get("background")
        if not _has_client_ids(call) or (not named and self.plain(call.caller)):
            return first, rest
        tell = partial(self._chunk, call)
        return [tell(chunk) for chunk in first], ChangedChunks(rest, tell)

    def _chunk(self, call: Call, chunk: Chunk) -> Chunk:
        if not chunk.id or chunk.native is None or chunk.dialect != NAME:
            return chunk
        kind = _kind(call, call.request.params.get("background"))
        if kind != STORED and chunk.usage is not None:  # reading it later is free
            call.settles = Owner(call.provider, chunk.id, kind).settles
        names = self._names(call, chunk.id, kind, {})
        if kind != STORED:
            call.ids = names
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


def _kind(call: Call, goes_on: object) -> str:
    return BACKGROUND + _letters((call.start_ns // 10**9).to_bytes(5)) if goes_on else STORED


def _with(names: Mapping[str, str], value: Any) -> Any:
    return strict_json.lenient(renamed(strict_json.encode(value), names))


def _file_ids(value: Any) -> Iterator[str]:
    """Yield the ids of files in a request's body."""
    if isinstance(value, list):
        for each in value:
            yield from _file_ids(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if name == "file_id" and isinstance(each, str):
                yield each
            elif name == "file_ids" and isinstance(each, list):
                yield from (one for one in each if isinstance(one, str))
            elif isinstance(each, dict | list):
                yield from _file_ids(each)


def _has_client_ids(call: Call) -> bool:
    native = call.request.native
    return call.request.op == RESOURCE or (native is not None and native.dialect == NAME)


def renamed(data: bytes, names: Mapping[str, str]) -> bytes:
    """Return JSON with the strings that are ids in *names* replaced."""
    for name, given in names.items():
        old = b'"%s"' % name.encode()
        if old in data:
            data = data.replace(old, b'"%s"' % given.encode())
    return data


def service_secrets(users: Users, ledger: Any) -> Callable[[], list[bytes]]:
    """Return what returns the secrets of the service, the one of new ids first.

    It is the configuration's, else the ledger's; without either, and until the ledger can be read,
    that of this start.
    """
    found = [users.secret] if users.secret else []

    def secrets() -> list[bytes]:
        if not found and (objects := objects_of(ledger)) is not None:
            with suppress(LedgerUnavailable):
                found.append(objects.secret())
        return [*found, _START_SECRET]

    return secrets


def _letters(data: bytes) -> str:
    return b32encode(data).decode().lower()
