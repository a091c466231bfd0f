"""Commands about decisions: explain tells the one that a call would lead to, replay derives again
the one that a call had.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime

import click

from .. import build
from ..errors import RequestError
from ..ledger import AttemptRow, Ledger, LedgerUnavailable, Record
from ..planning import Plan, Replay, outcome, replayed
from ..pricing import usd, usd_float
from ..protocol import InferRequest
from ..routing.explain import explain as explained
from ..routing.explain import question as asked
from ..types import JSON
from . import OneLine, checked, the_prompt
from .client import admin_key, ask, service_options
from .ledger import ledger_options, the_ledger
from .output import json_text, printable, table


@click.command()
@click.argument("model")
@click.option(
    "--tokens", type=click.IntRange(0), metavar="N", help="Tokens of input.  [default: 0]"
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Tokens of output at most, for the estimated cost.  [default: 500]",
)
@click.option("--tools", is_flag=True, help="The request has tools.")
@click.option("--image", is_flag=True, help="The request has an image.")
@click.option("--structured", is_flag=True, help="The request wants an answer of a given form.")
@click.option(
    "--caller", metavar="NAME", help="The key that asks: its models and its budget count."
)
@click.option("--provider", metavar="NAME", help="Only this provider is asked.")
@click.option(
    "--config",
    "-c",
    "path",
    metavar="FILE",
    help="The configuration.  [default: infermux.toml, or the environment]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what POST /explain answers.")
@service_options
def explain(
    model: str,
    tokens: int | None,
    max_tokens: int | None,
    path: str | None,
    as_json: bool,
    server: str | None,
    key: str | None,
    **about: str | bool | None,
) -> None:
    """Say where a call for MODEL would go now, and why: nothing is sent, and no turn is taken.

    Without --server no call has been made yet, so that every circuit is closed and no latency is
    known. Exit code 1 if nothing would be tried.

    Example: infermux explain fast --tokens 20000 --tools
    """
    body: JSON = {
        "model": model,
        "tokens": tokens or 0,
        "params": {"max_tokens": max_tokens} if max_tokens else {},
        **{name: value for name, value in about.items() if value},
    }
    if server is not None:
        found = ask(server, "/explain", body, key=admin_key(key, path))
    else:
        with closing(checked(lambda: build.router(build.settings(path=path)))) as router:
            found = checked(lambda: explained(router, asked(body)).to_dict())
    click.echo(json_text(found) if as_json else _explanation(found))
    sys.exit(1 if found["refused"] else 0)


@click.command()
@click.argument("call_id")
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("--json", "as_json", is_flag=True, help="Print the whole as JSON.")
@click.option(
    "--send", is_flag=True, help="Call again: the same model and targets in the same order."
)
@click.option(
    "--prompt", help="With --send: the prompt, instead of the argument; - reads standard input."
)
@ledger_options
def replay(
    call_id: str,
    text: str | None,
    as_json: bool,
    send: bool,
    prompt: str | None,
    **where: str | None,
) -> None:
    """Derive again the decision that led a call, from what was known then, and say whether it is
    the same.

    CALL_ID is the X-Request-Id of an answer, or at least six characters of its beginning. Nothing
    is sent, unless with --send: that needs the prompt (as the argument, --prompt, or standard
    input), for the ledger keeps no content. Exit code 1 if the decision is another one now, or if
    there is no such call.

    Example: infermux replay 3f2a9c1d
    """
    if not send and (text is not None or prompt is not None):
        raise click.UsageError("a prompt goes with --send")
    with closing(the_ledger(**where)) as ledger:
        record = _found(ledger, call_id.removeprefix("chatcmpl-"))
    decision = _decision(record)
    if not as_json:
        click.echo(_replay_text(record, decision))
    sent = _sent(decision.kept, the_prompt(text, prompt), where["config"]) if send else {}
    if as_json:
        click.echo(json_text(_replay_json(record, decision) | ({"sent": sent} if sent else {})))
    elif sent:
        then = record.call
        _compare("then", then.provider, then.served, usd_float(then.cost), then.latency_ms, then.id)
        _compare(
            "now ",
            sent["provider"],
            sent["model"],
            sent["cost_usd"],
            sent["latency_ms"],
            sent["id"],
        )
        click.echo(sent["content"])
    sys.exit(1 if decision.differences else 0)


# -- explain ---------------------------------------------------------------------------------------


def _explanation(found: JSON) -> str:
    """Return an explanation as text."""
    tokens, retry = found["tokens"], found["retry_in"]
    lines = [
        f"{found['model']}: {found['strategy']}, for {tokens['input']:,} tokens in and {tokens['output']:,} out"
        + (f", by {found['caller']}" if found["caller"] else "")
    ]
    if found["override"]:
        lines.append(
            "the caller's budget has too little left for what was asked for: this is the cheaper name it leads to"
        )
    rows = [[str(number), *_row(target)] for number, target in enumerate(found["targets"], 1)]
    rows += [["-", *_row(target)] for target in found["dropped"]]
    notes = {
        "no_healthy_providers": "nothing can be tried"
        + (f"; again in {retry:.0f} s" if retry else ""),
        "budget_exceeded": f"the call is refused: {found['budget_left_usd']} USD are left of the caller's budget",
    }
    forced = (
        ["every target is shut: the one that is free the soonest is tried all the same"]
        if found["forced"]
        else []
    )
    return "\n".join(
        [
            *map(printable, lines),
            table(["", "TARGET", "STATE", "LATENCY", "COST USD", ""], rows, right=[3]),
            *forced,
            *([notes[found["refused"]]] if found["refused"] else []),
        ]
    )


def _row(target: JSON) -> list[str]:
    cost, latency = target["cost_usd"], target["latency"]
    note = (
        f"dropped: {target['dropped']}"
        if "dropped" in target
        else "more than the budget has left"
        if target["over_budget"]
        else ""
    )
    return [
        f"{target['provider']}/{target['model']}",
        target["state"],
        "-" if latency is None else f"{latency * 1000:.0f} ms",
        "unpriced" if cost is None else "<0.000001" if 0 < cost < 1e-6 else f"{cost:.6f}",
        note,
    ]


# -- replay ----------------------------------------------------------------------------------------


def _found(ledger: Ledger, id: str) -> Record:
    """Return the call; whoever asks here may know why the ledger cannot say."""
    try:
        found = ledger.call(id)
    except LedgerUnavailable as error:
        raise OneLine(error.reason) from None
    except RequestError as error:
        raise OneLine(error.message) from None
    if found is None:
        raise OneLine(f"there is no call {id[:40]!r} in the ledger")
    return found


def _decision(record: Record) -> Replay:
    if not record.call.plan:
        raise OneLine(
            "no plan was kept with this call: an older InferMux wrote it down, or it was refused before it had one"
        )
    try:
        return replayed(record.call.plan)
    except ValueError as error:
        raise OneLine(f"the plan of this call cannot be read: {error}") from None


def _replay_text(record: Record, decision: Replay) -> str:
    call, plan = record.call, decision.plan
    head = f"{call.id}  {_time(call.at_ns)}  {call.requested}  {call.caller or '-'}  {call.status} {call.error_code}".rstrip()
    rows = [
        [
            str(number),
            str(target),
            _tried([each for each in record.attempts if (each.provider, each.model) == target]),
        ]
        for number, target in enumerate(plan.targets, 1)
    ]
    rows += [["-", str(target), f"dropped: {why}"] for target, why in plan.dropped.items()]
    told = [
        f"{name} was {json.dumps(then)} and is {json.dumps(now)}"
        for name, (then, now) in decision.differences.items()
    ]
    return "\n".join(
        [
            printable(head),
            printable(f"{plan.model}: {plan.strategy}"),
            table(["", "TARGET", "WHAT CAME OF IT"], rows),
            *(
                map(
                    printable,
                    ["not identical: what was known then leads to another decision now", *told],
                )
                if told
                else ["identical: what was known then leads to the same decision"]
            ),
        ]
    )


def _tried(attempts: Sequence[AttemptRow]) -> str:
    return (
        "; ".join(
            f"{each.error_code or 'ok'} after {(each.ended_ms or each.started_ms) - each.started_ms} ms"
            + (
                f", {usd(each.cost)} USD"
                if each.cost is not None
                else ", unpriced"
                if each.unpriced
                else ""
            )
            for each in attempts
        )
        or "not tried"
    )


def _replay_json(record: Record, decision: Replay) -> JSON:
    call, differences = record.call, decision.differences
    attempts = [
        {
            "provider": each.provider,
            "model": each.model,
            "status": each.error_code or "ok",
            "latency_ms": None if each.ended_ms is None else each.ended_ms - each.started_ms,
            "cost_usd": usd_float(each.cost),
        }
        for each in record.attempts
    ]
    return {
        "id": call.id,
        "at": _time(call.at_ns),
        "requested": call.requested,
        "caller": call.caller,
        "status": call.status,
        "error": call.error_code or None,
        "identical": not differences,
        "model": decision.plan.model,
        "strategy": decision.plan.strategy,
        "seed": decision.plan.seed,
        **outcome(decision.plan),
        "attempts": attempts,
        "differences": {
            name: {"then": then, "now": now} for name, (then, now) in differences.items()
        },
    }


def _time(at_ns: int) -> str:
    return f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _sent(plan: Plan, prompt: str, config: str | None) -> JSON:
    """Make the call again with *prompt*, and return what came of it."""
    if not plan.targets:
        raise OneLine("nothing was tried then, so that there is nothing to send to")
    with closing(checked(lambda: build.router(build.settings(path=config)))) as router:
        call = router.begin(
            InferRequest(plan.model, [{"role": "user", "content": prompt}]), api="replay"
        )
        call.plan = plan
        content = checked(lambda: router.answer(call)).content
    return {
        "id": call.id,
        "provider": call.provider,
        "model": call.model,
        "cost_usd": call.cost_usd,
        "latency_ms": call.latency_ms,
        "content": content,
    }


def _compare(
    when: str, provider: str, model: str, cost: float | None, latency_ms: int, id: str
) -> None:
    price = "unpriced" if cost is None else f"{cost:.12f}".rstrip("0").rstrip(".") + " USD"
    click.echo(printable(f"{when}  {provider}/{model}  {price}  {latency_ms} ms  {id}"), err=True)
