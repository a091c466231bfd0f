"""Files and batches at vendors: their providers and owners.

The ids that callers get are signed like those of stored responses; see `stored`. A vendor lists the
objects of its whole account: if there are several callers, the ledger has the owner of each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ...dialects import items, word
from ...errors import NotFound, ProviderUnavailable, RequestError, shown
from ...ledger import LedgerUnavailable
from ...ledger.stores.objects import Objects
from ...planning.call import Attempt, Call
from ...protocol import InferResponse, strict_json
from ...providers.base import ProviderGuard, RegisteredProvider, validated
from ...types import JSON, Caller, Deadline
from ..router import Router
from ..stored import BATCH, FILE, IDENT, Owner, renamed
from ..targets import TargetPermit
from .endpoints import check_provider

MAX_PAGES = 50  # of a vendor's list that one request reads
PAGE = 100  # objects of one page: OpenAI's limit for batches
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


class Page(NamedTuple):
    """The page of a list that a client asks for."""

    path: Callable[[str, int], str]  # by the id to begin after, and a number of objects
    after: str
    limit: int


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
    kept = _kept(router)
    if kept is None or not isinstance(ident, str) or not IDENT.fullmatch(ident):
        return None
    with suppress(LedgerUnavailable):
        for each in router.files.speakers:
            if kept.has(each.name, caller.name, ident):
                return Owner(each.name, ident)
    return None


def is_filtered(router: Router, caller: Caller) -> bool:
    """Return whether lists must be reduced to the caller's own objects."""
    keyring = router.keyring
    if keyring is None:
        return bool(caller.name)
    return keyring.count + keyring.open > 1  # if the service is open, callers may have no key


# -- answers --


def told(router: Router, call: Call, data: bytes) -> bytes:
    """Return an answer with the client's ids; record what the caller has created."""
    body = strict_json.lenient(data) if data.strip() else {}
    if not isinstance(body, dict):
        raise ProviderUnavailable("the provider's answer could not be understood")
    kinds = dict(_ids(body))
    if word(body.get("object")) in _FIELDS:
        _note(router, call, kinds if not body.get("deleted") else ())
    names = {
        ident: router.files.tagged(ident, kind, call.provider, call.caller)
        for ident, kind in kinds.items()
    }
    return renamed(data, {ident: name for ident, name in names.items() if ident != name})


def _ids(body: JSON) -> Iterator[tuple[str, str]]:
    """Yield the ids in an answer, each with its kind."""
    objects = body["data"] if isinstance(body.get("data"), list) else [body]
    for each in objects:
        fields = _FIELDS.get(word(each.get("object")), {}) if isinstance(each, dict) else {}
        for field, kind in fields.items():
            if ident := word(each.get(field)):
                yield ident, kind


def _note(router: Router, call: Call, idents: Iterable[str]) -> None:
    kept = _kept(router)
    if kept is None or not (found := list(idents)):
        return
    try:
        kept.add(call.provider, call.caller.name, found, time.time())
    except LedgerUnavailable as error:  # their ids still work
        log.error("a list of files will lack %s: %s", ", ".join(found), error.reason)


def forget(router: Router, call: Call, ident: str) -> None:
    """Forget a file that was deleted."""
    kept = _kept(router)
    if kept is None:
        return
    try:
        kept.remove(call.provider, call.caller.name, ident)
    except LedgerUnavailable as error:  # the vendor does not list it any more
        log.debug("a deleted file is not forgotten: %s", error.reason)


def _kept(router: Router) -> Objects | None:
    objects = getattr(router.ledger, "objects", None)  # only an SQL ledger has one
    return objects() if objects is not None else None


# -- lists --


class Listing:
    """Lists a caller's own objects: the vendor's list without those of other callers."""

    def __init__(self, router: Router, caller: Caller, provider: str, page: Page) -> None:
        kept = _kept(router)
        if kept is None:
            raise RequestError(
                "a list needs a ledger, as the vendor lists what all keys have made: "
                "set [ledger].path, or ask for an id"
            )
        self._router, self._page = router, page
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
        found, more, after = list[JSON](), True, self._page.after
        for _ in range(MAX_PAGES if self._own else 0):
            response, data = self._read(provider, call, attempt, deadline, after)
            found += [each for each in data if each.get("id") in self._own]
            more = _has_more(response) and bool(data)
            if not more or len(found) > self._page.limit:
                break
            after = word(data[-1].get("id"))
        attempt.ended = time.monotonic()
        permit.end(None, attempt.seconds)
        page = found[: self._page.limit]
        more = bool(self._own) and (more or len(found) > len(page))
        return InferResponse("", provider.name, "", native=("openai", _listed(page, more)))

    def _read(
        self,
        provider: RegisteredProvider,
        call: Call,
        attempt: Attempt,
        deadline: Deadline,
        after: str,
    ) -> tuple[JSON, Sequence[JSON]]:
        request = call.sent(attempt)
        request.passed.path = self._page.path(after, PAGE)
        with ProviderGuard(provider.name):
            response = validated(provider.infer(request, deadline))
        try:
            body: Any = strict_json.lenient(response.native[1] if response.native else b"")
            return body, items(body.get("data"))
        except (ValueError, AttributeError):
            raise ProviderUnavailable("the provider's answer could not be understood") from None


def _has_more(body: JSON) -> bool:
    return body.get("has_more") is True


def _listed(page: Sequence[JSON], more: bool) -> bytes:
    ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    whole = {"object": "list", "data": list(page), "first_id": ends[0], "last_id": ends[1]}
    return strict_json.encode(whole | {"has_more": more})
