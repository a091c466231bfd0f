"""POST /explain: what a call would do in this process now."""

from __future__ import annotations

from flask import Response

from ..routing.explain import explain as explained
from ..routing.explain import question
from ..routing.router import Router
from . import document, json_answer


def explain(router: Router) -> Response:
    """Explain the call that the body describes; nothing is sent."""
    return json_answer(explained(router, question(document().value)).to_dict())
