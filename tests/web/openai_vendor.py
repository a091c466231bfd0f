"""OpenAI as it is in 2026: chat completions that refuse tools for new models, and Responses."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support import Peer

JSON = dict[str, Any]
ENCRYPTED = "gAAAAAB-the-thoughts-of-the-vendor"
KNOWN = {
    *("model", "input", "instructions", "stream", "tools", "tool_choice", "reasoning", "text"),
    *("max_output_tokens", "include", "store", "metadata", "user", "parallel_tool_calls"),
    *("previous_response_id", "conversation", "background", "temperature", "top_p"),
    *("prompt_cache_key", "service_tier", "truncation", "safety_identifier", "client_metadata"),
}
USAGE = {
    "input_tokens": 31,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 17,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 48,
}


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": param,
                "code": code,
            }
        }


class OpenAIVendor(Peer):
    """Answers "Sunny." or, if there are tools and no result yet, calls the first tool."""

    def __init__(
        self,
        *,
        alias: dict[str, str] | None = None,
        lacks: bool = False,
        unverified: bool = False,
    ) -> None:
        self._alias = alias or {}
        self._lacks = lacks  # whether there are only chat completions
        self._unverified = unverified  # whether it refuses summaries of thoughts
        self.seen: list[tuple[str, str, Any]] = []
        self.stored: dict[str, JSON] = {}
        self.conversations: dict[str, JSON] = {}
        self.count = 0
        self.cuts_background = False  # its streams end early

    def answer(self, handler: Any, body: bytes) -> None:
        url = urlsplit(handler.path)
        asked = json.loads(body) if body else None
        with self.lock:
            self.seen.append((handler.command, handler.path, asked))
        kind = "application/json"
        try:
            found = self._found(handler.command, url.path.removeprefix("/v1"), url.query, asked)
            status = 200
        except Refused as refused:
            found, status = refused.body, refused.status
        if isinstance(found, list):
            kind = "text/event-stream"
            data = b"".join(
                b"event: %s\ndata: %s\n\n" % (each["type"].encode(), json.dumps(each).encode())
                if "type" in each
                else b"data: %s\n\n" % json.dumps(each).encode()
                for each in found
            )
            data += b"" if "type" in found[0] else b"data: [DONE]\n\n"
        else:
            data = json.dumps(found, indent=1).encode()
        handler.reply(status, data, {"Content-Type": kind})

    def _found(self, method: str, path: str, query: str, asked: Any) -> Any:
        if path == "/chat/completions":
            return self._chat(asked)
        if self._lacks:
            raise Refused(404, "Not Found", "")
        if (method, path) == ("POST", "/responses"):
            if self._unverified and "summary" in (asked.get("reasoning") or {}):
                why = "Your organization must be verified to generate reasoning summaries."
                raise Refused(400, why, "unsupported_value", "reasoning.summary")
            return self._responses(asked)
        if path == "/responses/input_tokens":
            return {"object": "response.input_tokens", "input_tokens": 77}
        if path == "/responses/compact":
            return {
                "id": "resp_compact",
                "object": "response.compaction",
                "output": [{"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}],
                "usage": USAGE,
            }
        if (method, path) == ("POST", "/conversations"):
            self.conversations["conv_1"] = asked
            return {"id": "conv_1", "object": "conversation", "metadata": asked.get("metadata")}
        return self._resource(method, path, query)

    def _resource(self, method: str, path: str, query: str) -> Any:
        _, kind, ident, *rest = path.split("/")
        held = self.stored if kind == "responses" else self.conversations
        if ident not in held:
            raise Refused(404, f"{kind} with id {ident!r} not found.", "not_found")
        if method == "DELETE" and not rest:
            del held[ident]
            return {"id": ident, "object": f"{kind[:-1]}.deleted", "deleted": True}
        if rest and rest[0] in ("input_items", "items"):
            return {"object": "list", "data": [], "has_more": False, "query": parse_qs(query)}
        if rest == ["cancel"]:
            held[ident] |= {"status": "cancelled"}
        if kind == "conversations":
            return {"id": ident, "object": "conversation"}
        if "stream=true" in query:
            return events(held[ident])
        return held[ident]

    def finish(self, ident: str) -> None:
        """Let a background response end."""
        self.stored[ident] |= {"status": "completed", "usage": USAGE, "output": [message()]}

    def _chat(self, asked: JSON) -> Any:
        model, tools = self._alias.get(asked["model"], asked["model"]), asked.get("tools")
        if re.search("-pro|-codex", model):
            raise Refused(404, "This is not a chat model.", "model_not_found", "model")
        if tools and re.match(r"gpt-(5\.([6-9])|6)", model):
            raise Refused(
                400,
                f"Function tools are not supported for {model} in /v1/chat/completions. Use /v1/responses.",
                "x",
            )
        effort = asked.get("reasoning_effort", "none")
        if tools and effort != "none" and re.match(r"gpt-5\.[45]", model):
            raise Refused(400, "tools with reasoning_effort: use /v1/responses", "unsupported")
        usage = {"prompt_tokens": 31, "completion_tokens": 17, "total_tokens": 48}
        head = {"id": "chatcmpl-1", "created": 1, "model": model}
        if asked.get("stream"):
            said = {"index": 0, "delta": {"role": "assistant", "content": "By chat."}}
            chunk = {**head, "object": "chat.completion.chunk"}
            return [
                chunk | {"choices": [said | {"finish_reason": None}]},
                chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                chunk | {"choices": [], "usage": usage},
            ]
        said = {"role": "assistant", "content": "By chat."}
        choices = [{"index": 0, "message": said, "finish_reason": "stop"}]
        return {**head, "object": "chat.completion", "choices": choices, "usage": usage}

    def _responses(self, asked: JSON) -> Any:
        if asked["model"] == "missing":
            raise Refused(404, "The model 'missing' does not exist.", "model_not_found", "model")
        for name in asked:
            if name not in KNOWN:
                raise Refused(400, f"Unknown parameter: {name!r}.", "unknown_parameter", name)
        if asked.get("max_output_tokens", 16) < 16:
            raise Refused(400, "max_output_tokens is below 16", "integer_below_min_value")
        given = asked.get("input", [])
        items = given if isinstance(given, list) else [{"role": "user", "content": given}]
        for item in items:
            self._check(item)
        previous = asked.get("previous_response_id")
        if previous is not None and previous not in self.stored:
            name = "previous_response_id"
            why = f"Previous response {previous!r} not found."
            raise Refused(400, why, "previous_response_not_found", name)
        answered = any(item.get("type", "").endswith("_output") for item in items)
        tools = [tool for tool in asked.get("tools", ()) if tool["type"] in ("function", "custom")]
        for tool in tools:
            assert tool["name"]
        output = [thought()] if asked.get("reasoning") or tools else []
        output += [call(tools[0])] if tools and not answered else [message()]
        return self._made(asked, output)

    def _check(self, item: JSON) -> None:
        if item.get("type") == "reasoning" and item.get("encrypted_content") != ENCRYPTED:
            raise Refused(400, "The encrypted content could not be verified.", "invalid_encrypted")
        if len(item.get("call_id", "")) > 64:
            raise Refused(400, "call_id is too long", "string_above_max_length")

    def _made(self, asked: JSON, output: list[JSON]) -> Any:
        with self.lock:
            self.count += 1
            ident = f"resp_{self.count:048d}"
        response: JSON = {
            "id": ident,
            "object": "response",
            "created_at": 1900000000,
            "status": "completed",
            "background": bool(asked.get("background")),
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": f"{asked['model']}-2026-11-01",
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": asked.get("previous_response_id"),
            "conversation": asked.get("conversation"),
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": asked.get("tools", []),
            "top_p": 1.0,
            "usage": USAGE,
        }
        if asked.get("background") and not asked.get("stream"):
            response |= {"status": "queued", "output": [], "usage": None}
        self.stored[ident] = response
        cut = 2 if self.cuts_background and asked.get("background") else None
        return events(response)[:cut] if asked.get("stream") else response


def thought() -> JSON:
    summary = [{"type": "summary_text", "text": "Let me think."}]
    item = {"id": "rs_1", "type": "reasoning", "summary": summary}
    return item | {"encrypted_content": ENCRYPTED}


def message() -> JSON:
    part = {"type": "output_text", "text": "Sunny.", "annotations": [], "logprobs": []}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


def call(tool: JSON) -> JSON:
    if tool["type"] == "custom":
        named = {"name": tool["name"], "input": "*** Begin"}
        return {"id": "ctc_1", "type": "custom_tool_call", "call_id": "call_1", **named}
    named = {"name": tool["name"], "arguments": '{"city": "Rome"}', "status": "completed"}
    return {"id": "fc_1", "type": "function_call", "call_id": "call_1", **named}


def events(response: JSON) -> list[JSON]:
    """Return the stream of a response."""
    begun = response | {"status": "in_progress", "output": [], "usage": None}
    found: list[JSON] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for number, item in enumerate(response["output"]):
        where = {"item_id": item["id"], "output_index": number}
        empty = {
            name: "" if isinstance(item[name], str) else []
            for name in ("content", "summary", "arguments", "input")
            if name in item
        }
        added = item | empty
        added.pop("encrypted_content", None)
        place = {"output_index": number}
        found.append({"type": "response.output_item.added", "item": added, **place})
        for part in item.get("summary", ()):
            summary = "response.reasoning_summary_text.delta"
            found.append({"type": summary, "summary_index": 0, "delta": part["text"], **where})
        for part in item.get("content", ()):
            for piece in (part["text"][:3], part["text"][3:]):
                delta = {"content_index": 0, "delta": piece, "logprobs": [], **where}
                found.append({"type": "response.output_text.delta", **delta})
        for name, kind in (
            ("arguments", "function_call_arguments"),
            ("input", "custom_tool_call_input"),
        ):
            if name in item:
                found.append({"type": f"response.{kind}.delta", "delta": item[name], **where})
        found.append({"type": "response.output_item.done", "item": item, **place})
    last = "response.completed" if response["status"] == "completed" else "response.in_progress"
    found.append({"type": last, "response": response})
    return [event | {"sequence_number": number} for number, event in enumerate(found)]
