"""Calls that were never settled: what they held when their lease ended counts as spent."""

from __future__ import annotations

import json

from . import LOST, AttemptRow, CallRow, Hold, Record


def lost_record(hold: Hold) -> Record:
    """Return the rows of a call that was never settled: at most what it held was spent."""
    try:
        told = json.loads(hold.about)
        at_ns, trace, caller, tags, api, requested, model, provider = told[:8]
        user = "".join(told[8:9])  # older versions told none
    except ValueError:
        at_ns, trace, caller, tags = int(hold.at * 1000) * 10**6, "", hold.budget.caller, "{}"
        api = requested = model = provider = user = ""
    names = (at_ns, hold.call_id, trace, caller, tags, api, requested, model, model, provider)
    tokens = (None,) * 6
    call = CallRow(*names, "", LOST, LOST, *tokens, hold.pico, "assumed", 1, 0, None, 1, 0)
    call = call._replace(assumed=hold.pico, end_user=user)
    attempt = AttemptRow(
        at_ns,
        hold.call_id,
        0,
        provider,
        model,
        model,
        0,
        None,
        None,
        *tokens,
        hold.pico,
        0,
        LOST,
        1,
        assumed=1,
    )
    return Record(call, (attempt,))
