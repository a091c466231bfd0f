"""Commands about routing: explain a decision, and replay one."""

from __future__ import annotations

import re
import sys
from contextlib import closing

import click

from ..errors import counted, printable
from ..ledger import Record
from ..ledger.reports import iso
from ..planning import Plan, Replay, outcome, replayed
from ..pricing import usd, usd_float
from ..protocol import InferRequest
from ..routing import explain as explaining
from ..types import JSON, Target
from . import (
    OneLine,
    command,
    complete_models,
    complete_providers,
    config_option,
    json_option,
    json_text,
    open_router,
    table,
    the_prompt,
)
from .ledger import ledger_options, the_ledger
from .status import admin_key, ask_service, key_option

_NOTES = {  # about a target
    "over_budget": "over the remaining budget",
    "rests": "tried last: the vendor's limit is used up for {:.0f} s",
    "paced": "its provider's own rate admits a request in {:.0f} s",
}

# -- explain --


@command()
@click.argument("model", shell_complete=complete_models)
@click.option("--tokens", type=click.IntRange(0), metavar="N", help="Input tokens.  [default: 0]")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="The most output tokens, for the estimated cost.  [default: 500]",
)
@click.option("--tools", is_flag=True, help="The request has tools.")
@click.option("--image", is_flag=True, help="The request has an image.")
@click.option("--structured", is_flag=True, help="The request asks for structured output.")
@click.option("--caller", metavar="NAME", help="The caller, whose models and budget apply.")
@click.option("--user", metavar="NAME", help="The end user, whose budget applies, too.")
@click.option("--session", metavar="ID", help="The session, as X-Session-Id would name it.")
@click.option("--endpoint", metavar="NAME", help="Another endpoint, such as images/generations.")
@click.option(
    "--provider",
    metavar="NAME",
    shell_complete=complete_providers,
    help="Use only this provider.",
)
@config_option
@json_option("Print what POST /explain answers.")
@click.option("--server", metavar="URL", help="Ask the service that runs at this address.")
@key_option
def explain(
    model: str,
    tokens: int | None,
    max_tokens: int | None,
    as_json: bool,
    config: str | None,
    server: str | None,
    key: str | None,
    **about: str | bool | None,
) -> None:
    """Show where a call for MODEL would go now, and why. Nothing is sent.

    Without --server no earlier calls count: every circuit is closed and no latency is known.
    Exit code 1 if no target would be tried.

    Example: infermux explain fast --tokens 20000 --tools
    """
    body: JSON = {
        "model": model,
        "tokens": tokens or 0,
        "params": {"max_tokens": max_tokens} if max_tokens else {},
        **{name: value for name, value in about.items() if value},
    }
    if server is not None:
        found = ask_service(server, "/explain", body, key=admin_key(key, config))
    else:
        with open_router(config) as router:
            found = explaining.explain(router, explaining.question(body)).to_dict()
    click.echo(json_text(found) if as_json else _explanation(found))
    sys.exit(1 if found["refused"] else 0)


def _explanation(found: JSON) -> str:
    tokens, retry = found["tokens"], found["retry_in"]
    pattern = f" ({found['pattern']})" if found.get("pattern") else ""  # not of older services
    head = (
        f"{found['model']}{pattern}: {found['strategy']}, "
        f"for {counted(tokens['input'], 'token')} in and {tokens['output']:,} out"
    )
    more = {"caller": ", by", "user": " for", "session": ", in session"}
    head += "".join(f"{text} {found[name]}" for name, text in more.items() if found.get(name))
    lines = [printable(head)]
    if found["override"]:
        lines.append(
            "the remaining budget does not cover the requested model: this is its cheaper fallback"
        )
    if kept := found.get("cache_answers"):
        lines.append(
            f"answers are kept for {kept['seconds']:.0f} s: the same request gets the same answer"
        )
    if own := [f"{name} {found[name]:g}" for name in ("attempts", "deadline") if found.get(name)]:
        lines.append(f"the name sets: {', '.join(own)}")
    if mirror := found.get("mirror"):
        share = f"{mirror['share'] * 100:g} %"
        lines.append(printable(f"{share} of the calls are copied to {mirror['target']} afterwards"))
    if hooks := found.get("hooks"):
        named = ", ".join(f"{name} {where}" for name, where in hooks.items())
        lines.append(printable(f"hooks see the call, and may change or refuse it: {named}"))
    rows = [[str(number), *_row(target)] for number, target in enumerate(found["targets"], 1)]
    rows += [["-", *_row(target)] for target in found["dropped"]]
    lines.append(table(["", "TARGET", "STATE", "LATENCY", "COST USD", ""], rows, right=[3]))
    if found["forced"]:
        lines.append("every circuit is open: the target that recovers first is tried anyway")
    if found["refused"] == "no_healthy_providers":
        lines.append("no target can be tried" + (f"; retry in {retry:.0f} s" if retry else ""))
    elif found["refused"] == "refused_by_hook":
        lines.append("the call is refused: hooks cannot see such a request or answer")
    elif found["refused"]:
        left = found["budget_left_usd"]
        lines.append(f"the call is refused: the caller's budget has {left} USD left")
    return "\n".join(lines)


def _row(target: JSON) -> list[str]:
    cost, latency = target["cost_usd"], target["latency"]
    notes = [text.format(target[name]) for name, text in _NOTES.items() if target.get(name)]
    if (keys := target.get("keys")) and keys["serving"] < keys["all"]:
        notes.append(f"{keys['serving']} of {keys['all']} keys serve")
    if timeout := target.get("timeout"):
        notes.append(", ".join(f"{name} {value:g} s" for name, value in timeout.items()))
    if params := target.get("params"):
        notes.append(f"set: {', '.join(params)}")
    return [
        f"{target['provider']}/{target['model']}",
        target["state"],
        "-" if latency is None else f"{latency * 1000:.0f} ms",
        "unpriced" if cost is None else "<0.000001" if 0 < cost < 1e-6 else f"{cost:.6f}",
        f"dropped: {target['dropped']}" if "dropped" in target else "; ".join(notes),
    ]


# -- replay --


@command()
@click.argument("call_id")
@click.argument("text", required=False, metavar="[PROMPT]")
@json_option("Print everything as JSON.")
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
    config: str | None,
    path: str | None,
) -> None:
    """Re-derive the routing decision of an earlier call.

    It is derived from the recorded state and compared. CALL_ID is the X-Request-Id of an answer,
    or at least its first six characters. Nothing is sent unless you give --send, which needs the
    prompt (as the argument, --prompt, or standard input): the ledger keeps no content. Exit code 1
    if the decision is different now, or if there is no such call.

    Example: infermux replay 3f2a9c1d
    """
    if not send and (text is not None or prompt is not None):
        raise click.UsageError("a prompt needs --send")
    with closing(the_ledger(config, path)) as ledger:
        record = ledger.call(id := re.split("[-_]", call_id)[-1])  # chatcmpl-ID, msg_ID
    if record is None:
        raise OneLine(f"there is no call {id[:40]!r} in the ledger")
    call, decision = record.call, _decision(record)
    if not as_json:
        click.echo(_replay_text(record, decision))
    sent = _sent(decision.kept, the_prompt(text, prompt), config) if send else {}
    if as_json:
        click.echo(json_text(_replay_json(record, decision) | ({"sent": sent} if sent else {})))
    elif sent:
        then = _figures(call.id, call.provider, call.served, call.cost, call.latency_ms)
        click.echo(f"then  {_outcome(then)}\nnow   {_outcome(sent)}", err=True)
        click.echo(sent["content"])
    sys.exit(1 if decision.differences else 0)


def _decision(record: Record) -> Replay:
    if not record.call.plan:
        raise OneLine(
            "this call has no recorded plan: it was refused before planning, or an older InferMux "
            "recorded it"
        )
    try:
        return replayed(record.call.plan)
    except ValueError as error:
        raise OneLine(f"the plan of this call cannot be read: {error}") from None


def _replay_text(record: Record, decision: Replay) -> str:
    call, plan, session = record.call, decision.plan, _session(decision.plan)
    head = [call.id, iso(call.at_ns // 10**9) or "", call.requested, call.caller or "-"]
    rows = [
        [str(number), str(target), _tried(record, target)]
        for number, target in enumerate(plan.targets, 1)
    ]
    rows += [["-", str(target), f"dropped: {why}"] for target, why in plan.dropped.items()]
    lines = [
        printable("  ".join([*head, f"{call.status} {call.error_code}"]).rstrip()),
        printable(f"{plan.model}: {plan.strategy}{session and f', in session {session}'}"),
        table(["", "TARGET", "OUTCOME"], rows),
        "not identical: the recorded state leads to a different decision now"
        if decision.differences
        else "identical: the recorded state leads to the same decision",
    ]
    for name, (then, now) in decision.differences.items():
        lines.append(printable(f"{name} was {json_text(then)} and is {json_text(now)}"))
    return "\n".join(lines)


def _session(plan: Plan) -> str:
    return plan.snapshot.state.session


def _tried(record: Record, target: Target) -> str:
    outcomes = []
    for each in record.attempts:
        if (each.provider, each.model) == target:
            cost = ", unpriced" * each.unpriced if each.cost is None else f", {usd(each.cost)} USD"
            spent = (each.ended_ms or each.started_ms) - each.started_ms
            outcomes.append(f"{each.error_code or 'ok'} after {spent} ms{cost}")
    return "; ".join(outcomes) or "not tried"


def _replay_json(record: Record, decision: Replay) -> JSON:
    call, plan, differences = record.call, decision.plan, decision.differences
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
        "at": iso(call.at_ns // 10**9),
        "requested": call.requested,
        "caller": call.caller,
        "status": call.status,
        "error": call.error_code or None,
        "identical": not differences,
        "model": plan.model,
        "strategy": plan.strategy,
        "seed": plan.seed,
        "session": _session(plan) or None,
        **outcome(plan),
        "attempts": attempts,
        "differences": {
            name: {"then": then, "now": now} for name, (then, now) in differences.items()
        },
    }


def _sent(plan: Plan, prompt: str, config: str | None) -> JSON:
    if not plan.targets:
        raise OneLine("the recorded plan has no target to send to")
    with open_router(config) as router:
        call = router.begin(
            InferRequest(plan.model, [{"role": "user", "content": prompt}]), api="replay"
        )
        call.plan = plan
        content = router.answer(call).content
    found = _figures(call.id, call.provider, call.model, call.cost, call.latency_ms)
    return found | {"content": content}


def _figures(id: str, provider: str, model: str, cost: int | None, latency_ms: int) -> JSON:
    found = {"id": id, "provider": provider, "model": model}
    return found | {"cost_usd": usd_float(cost), "latency_ms": latency_ms}


def _outcome(call: JSON) -> str:
    cost = call["cost_usd"]
    price = "unpriced" if cost is None else f"{cost:.12f}".rstrip("0").rstrip(".") + " USD"
    target = f"{call['provider']}/{call['model']}"
    return printable(f"{target}  {price}  {call['latency_ms']} ms  {call['id']}")
