"""The size of a request's body: what of it a vendor may bill, and the limits that it sets.

The body is the one that is really sent, in any of the formats: their members have different names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..types import JSON
from . import members as obj
from . import without, word

MIN_THINKING_BUDGET = 1024  # tokens, of Anthropic's
MIN_OUTPUT = 16  # tokens; OpenAI's Responses refuse a lower limit
MAX_IMAGE = 10_000  # tokens of one image: OpenAI's largest number of patches
FILE_TOKENS = 10_000  # that a small file may have beyond its bytes, such as pages that are images
TOOL_TOKENS = 1000  # of the instructions that vendors add if there are tools
MESSAGE_TOKENS = 4  # role and separators
DENSE = 1024  # bytes from which on each may be a token; of the first, every other
MAX_SEARCHES = 20  # of one answer, if the request sets no limit
_BYTES_PER_TOKEN = {"wav": 125, "mp3": 30}  # of audio: 32 tokens a second, at the lowest rates
_OTHER_AUDIO = 15
_IMAGES = frozenset(("image_url", "input_image", "image"))
_AUDIO = frozenset(("input_audio", "audio", "audio_url"))
_FILES = frozenset(
    ("file", "input_file", "document", "container_upload", "video_url", "video", "input_video")
)
_SOURCES = ("file", "source", "video_url", "image_url", "input_audio")
_KINDS = frozenset(("type", "inlineData", "inline_data", "fileData", "file_data"))
_GOOGLE = ("generationConfig", "generation_config")
_TEXTS = ("prompt", "input", "instructions", "system", "suffix")
_FRAME = frozenset(("role", "type", "content", "text", "parts"))
_STORED = (  # what is not in the request
    *("previous_response_id", "conversation", "cachedContent", "cached_content"),
)
_CLIENTS_TOOLS = (  # prefixes of types of tools that the client runs
    *("function", "custom", "computer", "local_shell", "shell", "apply_patch", "bash", "memory"),
    *("text_editor", "str_replace", "namespace"),
)
# what the vendors' own tools are called where they are billed by number; "" costs only tokens
_BILLED_AS = {
    "google_search_retrieval": "web_search",
    "google_search": "web_search",
    "web_search_preview": "web_search",
    "url_context": "",
    "code_execution_tool": "",
    "mcp": "",
    "mcp_toolset": "",
    "tool_search": "",
}


@dataclass(slots=True)
class Size:
    """What a vendor may bill of a request, at most."""

    text: int = 0  # bytes of input text
    tokens: int = 0  # of other input
    images: int = 0
    audio: int = 0  # tokens
    unknown: bool = False  # the input is also something that only the vendor has
    output: int | None = None  # tokens of each answer; None: not limited
    answers: int = 1
    fees: dict[str, int] = field(default_factory=dict)
    tier: str = ""
    geo: str = ""
    speaks: bool = False  # audio may be answered
    draws: bool = False  # so may images
    caches: bool = False  # input is to be cached
    long_cache: bool = False


def size_of(body: JSON) -> Size:
    """Return the size of the body of a request."""
    size = Size()
    for name, value in body.items():
        if name in _TEXTS or isinstance(value, dict | list):
            _walk(value, size)
    for name in ("messages", "contents", "input", "requests"):
        if isinstance(body.get(name), list):
            size.tokens += MESSAGE_TOKENS * len(body[name])
    config = _config(body)
    limits = [limit for value in _limits(body, config) if (limit := number(value)) is not None]
    size.output = max(limits, default=None)
    wanted = [body.get("n"), body.get("best_of")]
    wanted += [config.get("candidateCount"), config.get("candidate_count")]
    size.answers = max([1, *[each for value in wanted if (each := number(value))]])
    prompts = body.get("prompt")
    if isinstance(prompts, list) and any(isinstance(each, str | list) for each in prompts):
        size.answers *= len(prompts)
    size.unknown = size.unknown or any(body.get(name) for name in _STORED)
    size.unknown = size.unknown or isinstance(body.get("prompt"), dict)
    tier = body.get("service_tier") or body.get("serviceTier")
    size.tier = "fast" if body.get("speed") == "fast" else word(tier)
    size.geo = word(body.get("inference_geo"))
    modes = body.get("modalities") or config.get("responseModalities")
    modes = str(modes or config.get("response_modalities") or "").lower()
    size.speaks, size.draws = "audio" in modes or bool(body.get("audio")), "image" in modes
    _tools(body, size)
    return size


def text_tokens(size: int) -> int:
    """Return the most tokens of *size* bytes of text."""
    return size - min(size, DENSE) // 2


def number(value: object) -> int | None:
    """Return a number as a whole one; vendors take and write it as text, too. None: it is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return min(math.ceil(value), 10**12) if value >= 0 else None


def limited(body: JSON, tokens: int, *, completion: bool) -> JSON:
    """Return the body with a limit of the output; *completion*: by OpenAI's newer name."""
    if "contents" in body:
        name = next((each for each in _GOOGLE if each in body), _GOOGLE[0])
        return body | {name: obj(body.get(name)) | {"maxOutputTokens": tokens}}
    if "messages" not in body and "prompt" not in body:
        return body | {"max_output_tokens": tokens}
    name = "max_completion_tokens" if completion else "max_tokens"
    return with_fitting_thoughts(body | {name: tokens})


def with_fitting_thoughts(body: JSON) -> JSON:
    """Return a body whose thinking budget is below the limit of its output, as Anthropic demands.

    For a limit that is not the client's: its own may be what it means.
    """
    thinking, limit = obj(body.get("thinking")), body.get("max_tokens")
    budget = thinking.get("budget_tokens")
    if type(limit) is not int or type(budget) is not int or budget < limit:
        return body
    if limit <= MIN_THINKING_BUDGET:
        return body | {"thinking": {"type": "disabled"}}
    return body | {"thinking": thinking | {"budget_tokens": max(MIN_THINKING_BUDGET, limit // 2)}}


def _config(body: JSON) -> JSON:
    return obj(body.get(_GOOGLE[0]) or body.get(_GOOGLE[1]))


def _limits(body: JSON, config: JSON) -> list[object]:
    """Return the values of the output limits that the body's format has."""
    if "contents" in body:
        return [config.get("maxOutputTokens"), config.get("max_output_tokens")]
    if "messages" in body or "prompt" in body:
        return [body.get("max_tokens"), body.get("max_completion_tokens")]
    return [body.get("max_output_tokens")]


# -- input --


def _walk(value: Any, size: Size) -> None:
    """Add a part of the body: each text by its bytes, other media by their kind and bytes."""
    if isinstance(value, str):
        size.text += len(value) if value.isascii() else len(value.encode(errors="replace"))
    elif isinstance(value, dict):
        if not _KINDS.isdisjoint(value) and value.get("type") != "text" and _medium(value, size):
            return
        if control := value.get("cache_control"):
            size.caches = True
            size.long_cache = size.long_cache or obj(control).get("ttl") == "1h"
        for name, each in value.items():
            if name not in _FRAME:
                size.text += len(name) + 1
            if name not in ("role", "type") or not isinstance(each, str):
                _walk(each, size)
    elif isinstance(value, list):
        numbers = sum([type(each) is int for each in value])  # tokens
        size.tokens += numbers
        for each in value if numbers < len(value) else ():
            _walk(each, size)
    else:
        size.text += 4


def _medium(part: JSON, size: Size) -> bool:
    """Add a part that is not text; return False if it is."""
    kind = part.get("type")
    if kind == "item_reference":
        size.unknown = True
        return True
    inline = part.get("inlineData") or part.get("inline_data")
    stored = part.get("fileData") or part.get("file_data")
    if isinstance(inline, dict) or isinstance(stored, dict):
        found = obj(inline) or obj(stored)
        mime = word(found.get("mimeType")) or word(found.get("mime_type"))
        _add(mime, word(found.get("data")), size)
        return True
    if not isinstance(kind, str):
        return False
    if kind in _IMAGES:
        size.images += 1
    elif kind in _AUDIO:
        held = obj(part.get("input_audio"))
        _audio(word(held.get("format")), word(held.get("data")), size)
    elif kind in _FILES:
        _file(part, size)
    else:
        return False
    return True


def _file(part: JSON, size: Size) -> None:
    held: JSON = part
    for name in _SOURCES:
        held = obj(part.get(name)) or held
    if held.get("type") in ("text", "content"):
        _walk(without(held, "type"), size)
        return
    data = word(held.get("file_data")) or word(held.get("data")) or word(held.get("url"))
    mime = word(held.get("media_type"))
    if data.startswith("data:"):
        head, _, data = data.partition(",")
        mime = head[5:].partition(";")[0]
    elif "://" in data:
        data = ""
    _add(mime, data, size)


def _add(mime: str, data: str, size: Size) -> None:
    """Add a medium by its type and its base64."""
    if mime.startswith("image/"):
        size.images += 1
    elif mime.startswith("audio/"):
        _audio(mime[6:], data, size)
    elif not data:
        size.unknown = True
    elif mime.startswith("video/"):
        size.tokens += FILE_TOKENS + _bytes(data) // _OTHER_AUDIO
    else:
        size.tokens += FILE_TOKENS + _bytes(data)


def _audio(form: str, data: str, size: Size) -> None:
    if not data:
        size.unknown = True
    form = {"x-wav": "wav", "wave": "wav", "mpeg": "mp3"}.get(form, form)
    size.audio += 32 + _bytes(data) // _BYTES_PER_TOKEN.get(form, _OTHER_AUDIO)


def _bytes(data: str) -> int:
    return len(data) * 3 // 4 + 1


# -- the vendor's own tools --


def _tools(body: JSON, size: Size) -> None:
    given = body.get("tools")
    listed = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    if listed or body.get("functions"):
        size.tokens += TOOL_TOKENS
    most = number(body.get("max_tool_calls"))
    for tool in listed:
        for name in _names(tool):
            limit = number(tool.get("max_uses"))
            _server_tool(name, most if limit is None else limit, size)
    if body.get("web_search_options") is not None:
        _server_tool("web_search", 1, size)
    for name in ("search_parameters", "plugins", "mcp_servers"):
        size.unknown = size.unknown or bool(body.get(name))


def _server_tool(name: str, most: int | None, size: Size) -> None:
    size.unknown = True  # what it finds becomes input
    if name:
        known = 1 if name == "code_interpreter" else MAX_SEARCHES
        size.fees[name] = size.fees.get(name, 0) + (known if most is None else most)


def _names(tool: JSON) -> list[str]:
    """Return the names of the vendor's own tools that a tool stands for, as they are billed."""
    kind = tool.get("type")
    if isinstance(kind, str):
        if kind.startswith(_CLIENTS_TOOLS):
            return []
        name, _, version = kind.rpartition("_")
        base = name if version.isdigit() else kind
        if base.startswith("web_search_preview"):
            base = "web_search"
        return [_BILLED_AS.get(base, base)]
    names = [snake(name) for name in tool if name.lower().startswith(("google", "url", "code"))]
    names = ["code_execution_tool" if name == "code_execution" else name for name in names]
    return [_BILLED_AS.get(name, name) for name in names]


def snake(name: str) -> str:
    """Return the other spelling of a member that Google takes."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
