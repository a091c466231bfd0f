"""Files and batches at vendors: their providers and owners.

The ids that callers get are signed like those of stored responses; see `stored`. A vendor lists the
objects of its whole account: if there are several callers, the ledger has the owner of each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from ...dialects import items, listed, word
from ...dialects.sizes import number
from ...errors import NotFound, ProviderAuthError, ProviderUnavailable, RequestError, shown
from ...ledger import LedgerUnavailable
from ...ledger.stores.objects import objects_of
from ...planning.call import Attempt, Call
from ...protocol import InferResponse, strict_json
from ...providers.base import ProviderGuard, RegisteredProvider, validated
from ...providers.failures import UNREADABLE
from ...types import JSON, Caller, Deadline
from ..router import Router
from ..stored import BATCH, FILE, IDENT, Owner, renamed
from ..targets import TargetPermit
from .endpoints import check_provider

MAX_PAGES = 50  # of a vendor's list that one request reads
_FIELDS = {  # the members that hold ids, by the type of an object
    "file": {"id": FILE},
    "batch": {
        "id": BATCH,
        "input_file_id": FILE,
        "output_file_id": FILE,
        "error_file_id": FILE,
    },
}
log = logging.getLogger("infermux")


Read = Callable[[str], tuple[JSON, Sequence[JSON]]]  # reads the objects after an id


class Page(NamedTuple):
    """The page of a list that a client asks for."""

    path: Callable[[str, int], str]  # by the id to begin after, and a number of objects
    after: str
    limit: int
    most: int  # objects of a vendor's page
    rising: bool  # whether the oldest come first


def owner(router: Router, ident: object, caller: Caller, kind: str, field: str = "id") -> Owner:
    """Return the provider and the vendor's id of a file or batch; raise NotFound."""
    what = "batch" if kind == BATCH else "file"
    found = router.files.owner(ident, caller) or _noted(router, ident, caller)
    if found is None or found.kind not in ("", kind):
        raise NotFound(f"no {what} {shown(ident)} was found", param=field)
    check_provider(router, caller, found.provider)
    return found


def _noted(router: Router, ident: object, caller: Caller) -> Owner | None:
    """Return who has an object whose id is the vendor's own, from when ids stayed as they were."""
    kept = objects_of(router.ledger)
    if kept is None or not isinstance(ident, str) or not IDENT.fullmatch(ident):
        return None
    with suppress(LedgerUnavailable):
        for each in router.files.providers:
            if kept.has(each.name, caller.name, ident):
                return Owner(each.name, ident)
    return None


def is_filtered(router: Router, caller: Caller) -> bool:
    """Whether lists must be reduced to the caller's own objects."""
    keyring = router.keyring
    if keyring is None:
        return bool(caller.name)
    return keyring.count + keyring.open > 1  # if the service is open, callers may have no key


# -- answers --


def client_ids(router: Router, call: Call, data: bytes) -> bytes:
    """Return an answer with the client's ids; record what the caller has created."""
    body = strict_json.lenient(data) if data.strip() else {}
    if not isinstance(body, dict):
        raise ProviderUnavailable(UNREADABLE)
    kinds = {
        ident: kind
        for each in listed(body.get("data")) or [body]
        for field, kind in _FIELDS.get(word(each.get("object")), {}).items()
        if (ident := word(each.get(field)))
    }
    if word(body.get("object")) in _FIELDS:
        _note(router, call, kinds if not body.get("deleted") else ())
    names = {
        ident: router.files.tagged(ident, kind, call.provider, call.caller)
        for ident, kind in kinds.items()
    }
    return renamed(data, {ident: name for ident, name in names.items() if ident != name})


def _note(router: Router, call: Call, idents: Iterable[str]) -> None:
    kept = objects_of(router.ledger)
    if kept is None or not (found := list(idents)):
        return
    try:
        kept.add(call.provider, call.caller.name, found, time.time())
    except LedgerUnavailable as error:  # their ids still work
        log.error("a list of files will lack %s: %s", ", ".join(found), error.reason)


def forget(router: Router, call: Call, ident: str) -> None:
    if (kept := objects_of(router.ledger)) is not None:
        with suppress(LedgerUnavailable):  # the vendor does not list it any more
            kept.remove(call.provider, call.caller.name, ident)


# -- lists --


class Listing:
    """Lists a caller's own objects: the vendor's list without those of other callers.

    Keys of a provider may be of several accounts, which are listed one after the other.
    """

    def __init__(self, router: Router, caller: Caller, provider: str, page: Page) -> None:
        self._page, self._own = page, None
        self._accounts = accounts(router, provider)
        if not is_filtered(router, caller):
            return
        kept = objects_of(router.ledger)
        if kept is None:
            raise RequestError(
                "a list needs a ledger, as the vendor lists what all keys have made: "
                "set [ledger].path, or ask for an id"
            )
        self._own = kept.of(provider, caller.name)

    def send(
        self,
        provider: RegisteredProvider,
        call: Call,
        attempt: Attempt,
        deadline: Deadline,
        permit: TargetPermit,
    ) -> InferResponse:
        """Send the requests for a page; return it as one answer."""
        found, more, refused = list[JSON](), False, 0
        for account in range(self._accounts if self._own is None or self._own else 0):
            call.request.passed.account = account if self._accounts > 1 else None
            try:
                more |= self._collect(found, partial(self._read, provider, call, attempt, deadline))
            except ProviderAuthError:  # a key that is not valid any more hides no other's objects
                refused += 1
                if refused == self._accounts:
                    raise
        attempt.ended = time.monotonic()
        permit.end(None, attempt.seconds)
        found = self._merged(found) if self._accounts > 1 else found
        page = found[: self._page.limit]
        more |= len(found) > len(page)
        return InferResponse("", provider.name, "", native=("openai", _listed(page, more)))

    def _collect(self, found: list[JSON], read: Read) -> bool:
        """Add objects of an account, of the only one up to the page; return if more are left."""
        one = self._accounts == 1
        after = self._page.after if one else ""
        for _ in range(MAX_PAGES):
            body, data = read(after)
            found += [each for each in data if self._own is None or _id(each) in self._own]
            if body.get("has_more") is not True or not data:
                return False
            if one and len(found) > self._page.limit:
                break
            after = _id(data[-1])
        return True

    def _merged(self, found: Sequence[JSON]) -> list[JSON]:
        """Return the objects of several accounts in order, from where the page begins."""
        objects = {_id(each): each for each in found}  # an account may have several keys
        made = {ident: number(each.get("created_at")) or 0 for ident, each in objects.items()}
        idents = sorted(objects, key=made.__getitem__, reverse=not self._page.rising)
        if (after := self._page.after) and after not in objects:
            raise NotFound("there is no object of this id to begin after", param="after")
        return [objects[each] for each in idents[idents.index(after) + 1 if after else 0 :]]

    def _read(
        self,
        provider: RegisteredProvider,
        call: Call,
        attempt: Attempt,
        deadline: Deadline,
        after: str,
    ) -> tuple[JSON, Sequence[JSON]]:
        request = call.sent(attempt)
        request.passed.path = self._page.path(after, self._page.most)
        with ProviderGuard(provider.name):
            response = validated(provider.infer(request, deadline))
        try:
            body: Any = strict_json.lenient(response.native[1] if response.native else b"")
            return body, items(body.get("data"))
        except (ValueError, AttributeError):
            raise ProviderUnavailable(UNREADABLE) from None


def _id(found: JSON) -> str:
    return word(found.get("id"))


def accounts(router: Router, provider: str) -> int:
    """Return how many accounts a provider's keys may belong to."""
    keys = getattr(router.registry.get(provider), "credentials", None)
    return 1 if keys is None else keys.count


def _listed(page: Sequence[JSON], more: bool) -> bytes:
    ends = (_id(page[0]), _id(page[-1])) if page else (None, None)
    whole = {"object": "list", "data": list(page), "first_id": ends[0], "last_id": ends[1]}
    return strict_json.encode(whole | {"has_more": more})
