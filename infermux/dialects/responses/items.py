"""Reads the input items of a request as messages.

Adjacent items of the model (reasoning, message, calls) are one message of the assistant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...errors import shown
from ...protocol import must_be
from ...types import JSON
from .. import listed, members, objects, require
from . import DRAWN
from .events import CALLS, drawn
from .reasoning import details_of

ADDED = "additional_tools"  # the type of an item that adds tools
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


class Items:
    """Collects the messages of input items; *params* names what only this format has."""

    def __init__(self) -> None:
        self.messages: list[JSON] = []
        self.params: JSON = {}
        self.tools: list[JSON] = []  # that items add
        self._texts: dict[str, list[str]] = {}  # of the last message, by member
        self._last: JSON = {}  # the message before the results that are being collected
        self._callers: dict[str, JSON] = {}  # the messages of calls, by call id
        self._late: dict[int, list[JSON]] = {}  # results that came after others' messages
        self._referred: list[JSON] = []  # messages of which a part is elsewhere

    def add(self, item: JSON, place: str) -> None:
        """Add an item; raise RequestError naming *place* if it is invalid."""
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        read = _READERS.get(require(kind, f"{place}.type", str))
        if read is not None:
            read(self, item, place)
        elif kind != "item_reference":
            self.params[f"input.{kind[:64]}"] = True
        elif (ident := string(item, "id", place)).startswith("msg_"):
            self._referred.append(self._turn())
        elif not ident.startswith("rs_"):  # reasoning is left out
            self.params[kind] = True

    def end(self) -> None:
        """Complete the messages: move late results to their calls, drop turns of only reasoning.

        A turn that an item_reference stands for is missing, or lacks its text beside a call.
        """
        self._complete()
        for turn in self._referred:
            self.params["input.words" if turn.get("tool_calls") else "item_reference"] = True
        given, self.messages = self.messages, []
        late: list[JSON] = []
        for message in given:
            if message["role"] != "tool":
                self.messages += late
                late = self._late.get(id(message), [])
            if message["content"] is not None or not message.keys().isdisjoint(_SAID):
                self.messages.append(message)
        self.messages += late

    def message(self, item: JSON, place: str) -> None:
        role = _ROLES.get(string(item, "role", place))
        if role is None:
            raise must_be(f"{place}.role", "user, assistant, system or developer")
        content = require(item.get("content"), f"{place}.content", str, list)
        if role == "assistant":
            self._assistant(content, place)
            return
        if isinstance(content, list):
            content = _content(content, f"{place}.content", "\n\n" if role == "system" else None)
        is_text = role == "system" and isinstance(content, str)
        if not (is_text and "content" in self._texts and self.messages[-1]["role"] == role):
            self._begin({"role": role, "content": content})
        if is_text:  # many models take only one system message
            self._texts.setdefault("content", []).append(content)

    def _assistant(self, content: str | list[JSON], place: str) -> None:
        self._turn()
        found: dict[str, list[str]] = {"content": [], "refusal": []}
        if isinstance(content, str):
            found["content"].append(content)
        else:
            for number, part in enumerate(objects(content, f"{place}.content")):
                where = f"{place}.content[{number}]"
                kind = part.get("type")
                if kind == "refusal":
                    found[kind].append(string(part, kind, where))
                elif kind in ("output_text", "input_text"):
                    found["content"].append(string(part, "text", where))
                else:
                    raise must_be(f"{where}.type", "output_text or refusal")
        for name, words in found.items():
            if any(words):
                self._texts.setdefault(name, []).append("".join(words))

    def reasoning(self, item: JSON, place: str) -> None:
        words, details = details_of(item, place)
        if not (words or details):
            return
        turn = self._turn()
        if words:
            self._texts.setdefault("reasoning_content", []).append(words)
        if details:
            known = turn.setdefault("reasoning_details", [])
            known += [detail | {"index": len(known) + n} for n, detail in enumerate(details)]

    def image(self, item: JSON, place: str) -> None:
        """Add an image that the model drew to the assistant's message."""
        if found := drawn(item):
            self._turn().setdefault("images", []).extend(found)
        else:  # some clients return only its id
            self.params[f"input.{DRAWN}"] = True

    def call(self, item: JSON, place: str) -> None:
        kind, member = CALLS[item["type"]]
        called = {name: string(item, name, place) for name in ("name", member)}
        ident, turn = string(item, "call_id", place), self._turn()
        turn.setdefault("tool_calls", []).append({"id": ident, "type": kind, kind: called})
        self._callers[ident] = turn

    def output(self, item: JSON, place: str) -> None:
        """Add a tool result after its call, also where other messages came between."""
        ident = string(item, "call_id", place)
        content = require(item.get("output"), f"{place}.output", str, list)
        if isinstance(content, list):
            content = _content(content, f"{place}.output", "\n")
        message = {"role": "tool", "tool_call_id": ident, "content": content}
        caller = self._callers.get(ident)
        if caller is None or caller is self._last:
            self._complete()
            self.messages.append(message)
        else:
            self._late.setdefault(id(caller), []).append(message)

    def update(self, item: JSON, place: str) -> None:
        """Take the effort of the turns that follow; only the vendor has a format of theirs."""
        if effort := members(item.get("reasoning")).get("effort"):
            self.params["reasoning_effort"] = require(effort, f"{place}.reasoning.effort", str)
        if item.get("text"):
            self.params["input.configuration_update"] = True

    def _begin(self, message: JSON) -> None:
        self._complete()
        self.messages.append(message)
        self._last = message

    def _turn(self) -> JSON:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self._begin({"role": "assistant", "content": None})
        return self.messages[-1]

    def add_tools(self, item: JSON, place: str) -> None:
        """Add an item's tools; of two with one name, the first stands."""
        names = {str(tool.get("name")) for tool in self.tools}
        for tool in added_tools(item, place):
            if "name" in tool and str(tool["name"]) in names:
                self.params["tools.namespace"] = True
            else:
                self.tools.append(tool)
                names.add(str(tool.get("name")))

    def _complete(self) -> None:
        for name, words in self._texts.items():
            self.messages[-1][name] = _BETWEEN[name].join(words)
        self._texts = {}


_SAID = ("tool_calls", "refusal", "images")
_BETWEEN = {"content": "\n\n", "refusal": "\n\n", "reasoning_content": ""}
_READERS: dict[str, Callable[[Items, JSON, str], None]] = {
    "message": Items.message,
    "reasoning": Items.reasoning,
    DRAWN: Items.image,
    **dict.fromkeys(CALLS, Items.call),
    **dict.fromkeys((f"{kind}_output" for kind in CALLS), Items.output),
    ADDED: Items.add_tools,
    "configuration_update": Items.update,
}


def all_added_tools(value: object) -> list[JSON]:
    """Return the tools that the items of an input add; none if it is a text."""
    added = [item for item in listed(value) if item.get("type") == ADDED]
    return [tool for item in added for tool in added_tools(item, ADDED)]


def added_tools(item: JSON, place: str) -> Iterator[JSON]:
    """Yield the tools that an item adds; those of a namespace one by one, with its name."""
    for number, tool in enumerate(objects(item.get("tools"), f"{place}.tools")):
        if tool.get("type") != "namespace":
            yield tool
            continue
        where = f"{place}.tools[{number}]"
        space = {"namespace": string(tool, "name", where)}
        yield from (one | space for one in objects(tool.get("tools"), f"{where}.tools"))


def string(holder: JSON, name: str, place: str) -> str:
    found: str = require(holder.get(name), f"{place}.{name}", str)
    return found


def _content(parts: object, place: str, between: str | None) -> str | list[JSON]:
    """Return a content: a string if it is one text, or if *between* may join its texts."""
    listed = enumerate(objects(parts, place))
    found = [
        _part(part, f"{place}[{number}]") | (_MARK if part.get(BREAKPOINT) else {})
        for number, part in listed
    ]
    if all(part.keys() == _TEXT for part in found) and (between is not None or len(found) == 1):
        return (between or "").join(part["text"] for part in found)
    return found


def _part(part: JSON, place: str) -> JSON:
    kind = require(part.get("type"), f"{place}.type", str)
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": string(part, "text", place)}
    if kind == "input_image":
        return _image(part, place)
    if kind == "input_file":
        names = ("filename", "file_data", "file_url", "file_id")
        file = {name: string(part, name, place) for name in names if part.get(name) is not None}
        if not file.keys() - {"filename"}:
            raise must_be(place, "a file with file_data, file_url or file_id")
        return {"type": "file", "file": file}
    if kind == "input_audio":
        sound = require(part.get(kind), f"{place}.{kind}", dict)
        return {
            "type": kind,
            kind: {each: string(sound, each, place) for each in ("data", "format")},
        }
    if kind == "refusal":
        return {"type": "text", "text": string(part, kind, place)}
    wanted = "input_text, input_image, input_file or input_audio"
    raise must_be(f"{place}.type", f"{wanted}, not {shown(kind)}")


BREAKPOINT = "prompt_cache_breakpoint"  # of a part: OpenAI caches the prompt up to it
_TEXT = {"type", "text"}
_MARK = {"cache_control": {"type": "ephemeral"}}  # Anthropic's word for it


def _image(part: JSON, place: str) -> JSON:
    if part.get("image_url") is None and part.get("file_id") is not None:
        return {"type": "image_file", "image_file": {"file_id": string(part, "file_id", place)}}
    image = {"url": string(part, "image_url", place)}
    if part.get("detail") is not None:
        detail = string(part, "detail", place)
        image["detail"] = "high" if detail == "original" else detail
    return {"type": "image_url", "image_url": image}
