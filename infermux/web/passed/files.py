"""Files and batches of OpenAI's API: each is at the provider that its id or a header names."""

from __future__ import annotations

from functools import partial
from urllib.parse import quote, urlencode

from flask import Response, request

from ...dialects.openai import NAME
from ...errors import ModelNotAllowed, NotFound, RequestError, shown
from ...planning import Snapshot, plan
from ...planning.call import Call
from ...protocol import InferRequest, InferResponse, Native, must_be, strict_json
from ...protocol.multipart import Upload
from ...protocol.passed import Passed
from ...protocol.strict_json import Document
from ...routing.passed import objects
from ...routing.passed.endpoints import provider_of
from ...routing.passed.objects import Listing, Page
from ...routing.stored import BATCH, FILE, Owner
from ...types import Caller, Route, Target
from .. import Route as Endpoint
from ..auth import admitted
from ..http import (
    Api,
    call_response,
    json_body,
    query_of,
    read_body,
    refuse_body,
    start_call,
)
from .answers import passed_response
from .media import EMPTY, is_multipart, named, read_upload, wanted_provider

_QUERY = ("after", "limit", "order", "purpose")
_LIMITS = {"files": (10_000, 10_000), "batches": (20, 100)}  # by default, and at most
_KINDS = {"files": FILE, "batches": BATCH}


def upload_file(api: Api) -> Response:
    """Upload a file to the provider that a header names, else to the first one with files."""
    caller = _admitted(api)
    if not is_multipart():
        refuse_body()
        raise RequestError("the body must be multipart/form-data, with file and purpose")
    upload = read_upload(model=False)
    try:
        provider = provider_of(api.router, "files", wanted_provider(), caller)
        call = _begin(api, "files", provider, "POST", "/files", caller, upload=upload)
    except BaseException:
        upload.close()
        refuse_body()
        raise
    call.releases.append(upload.close)
    try:
        return _answered(api, call)
    finally:
        if not upload.is_read:
            refuse_body()


def create_batch(api: Api) -> Response:
    caller = _admitted(api)
    body = json_body(strict_json.document)
    given = body.value.get("input_file_id")
    if not isinstance(given, str):
        raise must_be("input_file_id", "the id of a file")
    if caller.models is not None:
        raise ModelNotAllowed(
            "this key may use only some models, and which ones a batch uses cannot be checked",
            param="input_file_id",
        )
    found = objects.owner(api.router, given, caller, FILE, "input_file_id")
    _check_header(found)
    if found.ident != given:
        text = body.replaced({"input_file_id": found.ident})
        body = strict_json.document(text)
    provider_of(api.router, "batches", found.provider, caller)
    return _answered(
        api, _begin(api, "batches", found.provider, "POST", "/batches", caller, body=body)
    )


def retrieve(api: Api, ident: str, *, what: str, method: str = "GET", rest: str = "") -> Response:
    caller = _admitted(api)
    read_body()  # SDKs send none, or an empty object
    found = objects.owner(api.router, ident, caller, _KINDS[what])
    _check_header(found)
    path = f"/{what}/{quote(found.ident, safe='')}{rest}{_query()}"
    op = "batch" if what == "batches" else "content" if rest == "/content" else "files"
    call = _begin(api, op, found.provider, method, path, caller)
    if op == "content":
        return passed_response(api, call)
    response = _answered(api, call)
    if method == "DELETE":
        objects.forget(api.router, call, found.ident)
    return response


def listing(api: Api, *, what: str) -> Response:
    """List the caller's own files or batches at one provider."""
    caller, router = _admitted(api), api.router
    read_body()
    provider = provider_of(router, what, wanted_provider(), caller)
    arguments = request.args
    after, limit = arguments.get("after", ""), _limit(arguments.get("limit", ""), what)
    if after:
        found = objects.owner(router, after, caller, _KINDS[what], "after")
        provider, after = found.provider, found.ident
        _check_header(found)

    def path(after: str, limit: int) -> str:
        return f"/{what}{_query(after=after, limit=str(limit))}"

    op = "batch" if what == "batches" else "files"
    several = objects.accounts(router, provider) > 1
    if not several and not objects.is_filtered(router, caller):
        own = f"/{what}{_query(after=after)}"
        return _answered(api, _begin(api, op, provider, "GET", own, caller))
    call = _begin(api, op, provider, "GET", path("", limit), caller)
    most, rising = _LIMITS[what][1] if several else 100, arguments.get("order") == "asc"
    try:
        own_list = Listing(router, caller, provider, Page(path, after, limit, most, rising))
    except BaseException as error:
        router.finish(call, error)
        raise
    return _answered(api, call, router.answer(call, own_list.send))


def _admitted(api: Api) -> Caller:
    """Authenticate; raise NotFound for a client of Anthropic's API, which has other files."""
    if "HTTP_ANTHROPIC_VERSION" in request.environ:
        refuse_body()
        raise NotFound("the files of Anthropic's API are not available; use OpenAI's")
    return admitted(api)


def _limit(text: str, what: str) -> int:
    default, most = _LIMITS[what]
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= most):
        raise must_be("limit", f"a number from 1 to {most}")
    return int(text)


def _query(**own: str) -> str:
    """Return the query for the vendor; raise RequestError for an unknown parameter."""
    query_of(*_QUERY)
    found = request.args.to_dict() | own
    found = {name: value for name, value in found.items() if value}
    return f"?{urlencode(found)}" if found else ""


def _check_header(found: Owner) -> None:
    wanted = wanted_provider()
    if wanted and wanted != found.provider:
        raise RequestError(
            f"X-Infermux-Provider names {shown(wanted)}, but the id is one of "
            f"{found.provider!r}: leave the header out",
            param="provider",
        )


def _begin(
    api: Api,
    op: str,
    provider: str,
    method: str,
    path: str,
    caller: Caller,
    *,
    body: Document = EMPTY,
    upload: Upload | None = None,
) -> Call:
    passed = Passed(method, path, upload, repeatable=method != "POST" or path.endswith("/cancel"))
    asked = InferRequest(provider=provider, native=Native(NAME, body), op=op, passed=passed)
    group = "batches" if op in ("batch", "batches") else "files"
    call = start_call(named(api, group), asked, caller)
    call.plan = plan(Route("", (Target(provider, ""),)), Snapshot(), 0)
    return call


def _answered(api: Api, call: Call, response: InferResponse | None = None) -> Response:
    found = response or api.router.answer(call)
    data = found.native[1] if found.native else b"{}"
    return call_response(call, objects.client_ids(api.router, call, data))


FILE_ROUTES: list[Endpoint] = [
    ("POST", "/v1/files", upload_file),
    ("POST", "/v1/batches", create_batch),
    *(("GET", f"/v1/{what}", partial(listing, what=what)) for what in _KINDS),
    *(("GET", f"/v1/{what}/<ident>", partial(retrieve, what=what)) for what in _KINDS),
    ("DELETE", "/v1/files/<ident>", partial(retrieve, what="files", method="DELETE")),
    ("GET", "/v1/files/<ident>/content", partial(retrieve, what="files", rest="/content")),
    (
        "POST",
        "/v1/batches/<ident>/cancel",
        partial(retrieve, what="batches", method="POST", rest="/cancel"),
    ),
]
