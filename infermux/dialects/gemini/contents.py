"""Reads a conversation in Google's form: contents to messages."""

from __future__ import annotations

import mimetypes
import re
from base64 import b64decode
from typing import Any
from urllib.parse import urlsplit

from ...errors import RequestError, shown
from ...protocol import must_be, strict_json
from ...types import JSON
from .. import given, objects, require
from ..fitting import joined
from .requests import FORMAT, SKIP
from .schemas import camel
from .signatures import standard_base64, unpacked

_MIME = mimetypes.MimeTypes()  # Python's own table, independent of the host's files
_DOCUMENTS = re.compile(r"application/pdf|text/.+")  # that other vendors read
_SOUNDS = {"audio/mpeg": "mp3", "audio/mp3": "mp3", "audio/x-wav": "wav", "audio/wave": "wav"}
_GOOGLES = ("generativelanguage.googleapis.com", "youtube.com", "www.youtube.com", "youtu.be")
_BESIDE = {"thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"}


def repeated(value: object, place: str) -> list[JSON]:
    """Return a list of objects, [] for None; Google takes a single object as a list, too."""
    if value is None:
        return []
    return objects([value] if isinstance(value, dict) else value, place)


def messages(contents: object, system: object, *, is_whole: bool) -> list[JSON]:
    """Return the messages of a conversation; raise RequestError naming what is invalid.

    If it *is_whole*, every result has its call in it; else the call may be cached at Google.
    """
    reader = _Reader(is_whole=is_whole)
    if system is not None:
        reader.system(system)
    for number, content in enumerate(repeated(contents, "contents")):
        reader.add(camel(content), f"contents[{number}]")
    if contents in (None, []):
        raise must_be("contents", "a list of at least one content")
    return reader.messages


def plain_text(content: object, place: str) -> str | list[JSON]:
    """Return the text of a content, or its parts if it has others, which no other format has."""
    parts = repeated(camel(require(content, place, dict)).get("parts"), f"{place}.parts")
    if not parts:
        raise must_be(f"{place}.parts", "a list of at least one part")
    if all(isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


class _Reader:
    """Reads contents one by one; a result needs the id of its call, which clients may leave out."""

    def __init__(self, *, is_whole: bool) -> None:
        self._is_whole = is_whole
        self.messages: list[JSON] = []
        self._open: list[JSON] = []  # calls without a result
        self._said: list[JSON] = []  # the parts of the model's last turn
        self._calls = 0

    def system(self, value: object) -> None:
        if isinstance(value, str):
            self.messages.append({"role": "system", "content": value})
            return
        content = camel(require(value, "systemInstruction", dict))
        parts = repeated(content.get("parts"), "systemInstruction.parts")
        read = [_part(camel(part), f"systemInstruction.parts[{n}]") for n, part in enumerate(parts)]
        if read:
            self.messages.append({"role": "system", "content": joined(read)})

    def add(self, content: JSON, place: str) -> None:
        """Add a content; raise RequestError naming *place* if it is invalid."""
        role = content.get("role")
        if role not in (None, "", "user", "model", "function", "tool"):
            raise must_be(f"{place}.role", "'user' or 'model'")
        found = repeated(content.get("parts"), f"{place}.parts")
        if role == "user" and len(found) == 1 and found[0].keys() == {"text"}:
            said = require(found[0]["text"], f"{place}.parts[0].text", str)
            self.messages.append({"role": "user", "content": said})  # the usual case
            return
        parts = [(camel(part), f"{place}.parts[{n}]") for n, part in enumerate(found)]
        if role == "model":
            self._answer(parts)
        elif not parts:
            raise must_be(f"{place}.parts", "a list of at least one part")
        else:
            self._question(parts)

    def _question(self, parts: list[tuple[JSON, str]]) -> None:
        """Add the results of calls, each a message, then the other parts as the user's."""
        others = []
        for part, place in parts:
            if part.get("functionResponse") is not None:
                response = require(part["functionResponse"], f"{place}.functionResponse", dict)
                self.messages.append(self._result(camel(response), f"{place}.functionResponse"))
            else:
                others.append(_part(part, place))
        if others:
            self.messages.append({"role": "user", "content": joined(others)})

    def _answer(self, parts: list[tuple[JSON, str]]) -> None:
        """Add a model's turn to the one before, as streams are sent back in pieces."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": None})
            self._open, self._said = [], []
        turn = self.messages[-1]
        for part, place in parts:
            details = _signed(part, place)
            if part.get("functionCall") is not None:
                call = require(part["functionCall"], f"{place}.functionCall", dict)
                self._open.append(self._call(camel(call), part, place))
                turn.setdefault("tool_calls", []).append(self._open[-1])
            elif part.get("thought") is True:
                words = require(part.get("text", ""), f"{place}.text", str)
                turn["reasoning_content"] = turn.get("reasoning_content", "") + words
            elif (kinds := _kinds(part)) and (kinds != ["text"] or part["text"] or not details):
                self._said.append(_part(part, place))
            for detail in details:
                kept = turn.setdefault("reasoning_details", [])
                kept.append(detail | {"index": len(kept)})
        if self._said or not turn.get("tool_calls"):
            turn["content"] = joined(self._said)

    def _call(self, call: JSON, part: JSON, place: str) -> JSON:
        name = require(call.get("name"), f"{place}.functionCall.name", str)
        args = require(given(call).get("args", {}), f"{place}.functionCall.args", dict)
        ident = require(call.get("id") or "", f"{place}.functionCall.id", str)
        number, self._calls = self._calls, self._calls + 1
        read: JSON = {
            "id": ident or f"call_{number}_{number:016x}",  # the same in every turn: caches last
            "type": "function",
            "function": {"name": name, "arguments": strict_json.dumps(args)},
        }
        signature = part.get("thoughtSignature")
        if signature and signature != SKIP and unpacked(signature) is None:
            read["extra_content"] = {"google": {"thought_signature": signature}}
        return read

    def _result(self, response: JSON, place: str) -> JSON:
        """Return a result as a message, for the call of its id, else the first of its name."""
        name = require(response.get("name") or "", f"{place}.name", str)
        ident = require(response.get("id") or "", f"{place}.id", str)
        call = next((call for call in self._open if ident and call["id"] == ident), None)
        named = (call for call in self._open if call["function"]["name"] == name)
        call = call or next(named, None)
        if call is not None:
            self._open.remove(call)
        elif self._is_whole:
            raise RequestError(
                f"{place} is the result of {shown(name)}, but no earlier functionCall of that name "
                "waits for one",
                param=place,
            )
        said = require(given(response).get("response", {}), f"{place}.response", dict)
        found = repeated(response.get("parts"), f"{place}.parts")
        media = [_part(camel(part), f"{place}.parts[{n}]") for n, part in enumerate(found)]
        words, failed = _said(said)
        content = [{"type": "text", "text": words}, *media] if media else words
        known = ident if call is None else call["id"]
        message = {"role": "tool", "tool_call_id": known, "content": content}
        return message | ({"is_error": True} if failed else {})


def _said(response: JSON) -> tuple[str, bool]:
    """Return the text of a function's response, and whether it is an error."""
    if len(response) == 1:
        ((name, value),) = response.items()
        if name in ("output", "result", "error"):  # it holds all of it
            words = value if isinstance(value, str) else strict_json.dumps(value)
            return words, name == "error"
    return strict_json.dumps(response), False


def _signed(part: JSON, place: str) -> list[JSON]:
    signature = require(part.get("thoughtSignature") or "", f"{place}.thoughtSignature", str)
    if not signature or signature == SKIP:
        return []
    theirs = unpacked(signature)
    if theirs is not None:
        return theirs
    if part.get("functionCall") is not None:
        return []  # stays with the call
    if part.get("thought") is True:
        said = {"type": "reasoning.text", "text": part.get("text", ""), "signature": signature}
        return [said | {"format": FORMAT}]
    return [{"type": "reasoning.encrypted", "data": signature, "format": FORMAT}]


def _kinds(part: JSON) -> list[str]:
    """Return the members that say what a part is; one that is only signed has none."""
    return [name for name in given(part) if name not in _BESIDE]


def _part(part: JSON, place: str) -> JSON:
    """Return a part in OpenAI's form; one that OpenAI does not have keeps Google's name."""
    kinds = _kinds(part)
    if len(kinds) != 1:
        raise must_be(place, "an object with one of text, inlineData, fileData, functionCall, …")
    kind, found = kinds[0], None
    inner: Any = part[kind]
    place = f"{place}.{kind}"
    if kind == "text":
        require(inner, place, str)
    elif kind in ("inlineData", "fileData"):
        inner = camel(require(inner, place, dict))
        found = (_inline if kind == "inlineData" else _file)(inner, place)
    return found or {"type": kind, kind: inner}


def _inline(blob: JSON, place: str) -> JSON | None:
    media = require(blob.get("mimeType"), f"{place}.mimeType", str).lower()
    data = standard_base64(require(blob.get("data"), f"{place}.data", str))
    kind, _, form = media.partition("/")
    url = f"data:{media};base64,{data}"
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "audio":
        sound = {"data": data, "format": _SOUNDS.get(media, form.partition(";")[0])}
        return {"type": "input_audio", "input_audio": sound}
    if media == "application/pdf":
        name = require(blob.get("displayName") or "document.pdf", f"{place}.displayName", str)
        return {"type": "file", "file": {"file_data": url, "filename": name}}
    try:
        return {"type": "text", "text": b64decode(data).decode()} if kind == "text" else None
    except ValueError:
        return None


def _file(file: JSON, place: str) -> JSON | None:
    """Return an image or document by its URL, None if only Google can read that."""
    url = require(file.get("fileUri"), f"{place}.fileUri", str)
    try:
        address = urlsplit(url)
    except ValueError:
        raise must_be(f"{place}.fileUri", "a URI") from None
    if address.scheme not in ("http", "https") or address.hostname in _GOOGLES:
        return None
    media = require(file.get("mimeType") or "", f"{place}.mimeType", str).lower()
    media = media or _MIME.guess_type(address.path)[0] or ""
    if media.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    if _DOCUMENTS.match(media):
        return {"type": "file", "file": {"file_url": url}}
    return None
