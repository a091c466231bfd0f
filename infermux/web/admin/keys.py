"""The operators' endpoints for API keys that are created at run time."""

from __future__ import annotations

from flask import Response, request

from ...components import keys
from ...errors import NotFound, RequestError
from ...ledger.sql import Ledger
from ...protocol import must_be, strict_json
from ...types import JSON
from ..http import Api, json_body, json_response, only_parameters, read_body


def show_all(api: Api) -> Response:
    only_parameters()
    return json_response({"keys": keys.listed(api.router, api.router.ledger)})


def show(api: Api, name: str) -> Response:
    return json_response(keys.one(api.router, api.router.ledger, name))


def create(api: Api) -> Response:
    """Create a key; the answer has its secret, which is not shown again."""
    data = json_body(strict_json.document).value
    return json_response(keys.create(api.router, _ledger(api), data).to_dict(), 201)


def rotate(api: Api, name: str) -> Response:
    """Give a key a new secret; the old one stays valid for a while."""
    data: JSON = json_body(strict_json.document).value if read_body() else {}
    if data.keys() - {"overlap"}:
        raise RequestError('the body must be empty or {"overlap": "24h"}', param="overlap")
    return json_response(keys.rotate(api.router, _ledger(api), name, data.get("overlap")).to_dict())


def revoke(api: Api, name: str = "") -> Response:
    """Revoke a key, named by the path or by ?name=."""
    read_body()
    only_parameters("name")
    name = name or request.args.get("name", "")
    if not name:
        raise must_be("name", "the name of a key: DELETE /keys/NAME")
    return json_response(keys.revoke(api.router, _ledger(api), name))


def _ledger(api: Api) -> Ledger:
    if api.router.ledger is None:
        raise NotFound("no ledger is configured, which would store the keys")
    return api.router.ledger
