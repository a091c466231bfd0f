"""The size of a request's body: what of it a vendor may bill, and the limits that it sets.

The body is the one that is really sent. Its format, such as "openai", is told beside it: members of
another one mean nothing to the vendor.
"""

from __future__ import annotations

import math
import re
import struct
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..protocol import strict_json
from ..types import JSON
from . import given, listed, without, word
from . import members as obj
from .citations import data_uri

MIN_THINKING_BUDGET = 1024  # tokens, of Anthropic's
MIN_OUTPUT = 16  # tokens; OpenAI's Responses refuse a lower limit
MAX_IMAGE = 10_000  # tokens of one image: OpenAI's largest number of patches
FILE_TOKENS = 10_000  # that a small file may have beyond its bytes, such as pages that are images
TOOL_TOKENS = 1000  # of the instructions that vendors add if there are tools
FEATURE_TOKENS = 500  # likewise for a document, structured output or thinking
MESSAGE_TOKENS = 4  # role and separators
SHORT = 1024  # bytes of a text in which common words are looked for
MAX_SEARCHES = 20  # of one answer, if the request sets no limit
MAX_ROUNDS = 10  # in which Anthropic's models use its tools before an answer pauses
MAX_RUNS = 5  # of code, by Google's models
AUDIO_RATE = 32  # tokens a second, the highest of all vendors
_BYTES_PER_TOKEN = {"wav": 125, "mp3": 30}  # of audio, at the lowest rates
_OTHER_AUDIO = 15
CONTAINER = "code_interpreter"  # what OpenAI bills by, for each gigabyte
_IMAGES = frozenset(("image_url", "input_image", "image", "computer_screenshot"))
_AUDIO = frozenset(("input_audio", "audio", "audio_url"))
_FILES = frozenset(
    ("file", "input_file", "document", "container_upload", "video_url", "video", "input_video")
)
_SOURCES = ("file", "source", "video_url", "image_url", "input_audio")
_DATA = (*_SOURCES, "image", "audio", "audio_url", "video", "url", "data", "file_data")
GOOGLES_DATA = ("inlineData", "inline_data", "fileData", "file_data")
GOOGLE = ("generationConfig", "generation_config")
_LIMITS = {  # of the output, by format
    "openai": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "anthropic": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "gemini": ("maxOutputTokens", "max_output_tokens"),  # in GOOGLE
}
_ANSWERS = ("n", "best_of", "candidateCount", "candidate_count")
_MODES = ("modalities", "responseModalities", "response_modalities")
_TEXTS = frozenset(("prompt", "input", "instructions", "system", "suffix"))
# members whose objects may be media; all others are text, whatever they look like
_CONTENT = frozenset(("content", "parts", "output", "functionResponse", "function_response"))
_TOP = _TEXTS | _CONTENT | frozenset(("messages", "contents", "requests"))
_TOP |= {"systemInstruction", "system_instruction"}
_FRAME = frozenset(("role", "type", "content", "text", "parts"))
_FEATURES = ("response_format", "output_format", "output_config", "thinking", "documents")
_STORED = ("previous_response_id", "conversation", "cachedContent", "cached_content")
_CLIENTS_TOOLS = (  # prefixes of types of tools that the client runs
    *("function", "custom", "computer", "local_shell", "apply_patch", "bash", "memory"),
    *("text_editor", "str_replace", "namespace"),
)
# what the vendors' own tools are called where they are billed by number; "" costs only tokens
_BILLED_AS = {
    "google_search_retrieval": "web_search",
    "google_search": "web_search",
    "url_context": "",
    "mcp": "",
    "mcp_toolset": "",
    "mcp_servers": "",
    "tool_search": "",
}
_SEARCHES = re.compile(r"web_(?:search|fetch)_\d")  # types of Anthropic's tools with `max_uses`
GOOGLES_OWN = ("functionDeclarations", "function_declarations", "computerUse", "computer_use")


# documents whose parts are compressed: PDF, and the archives that office programs write
_PACKED = re.compile(rb"%PDF|\APK\x03\x04|\A\x1f\x8b|\A\xd0\xcf\x11\xe0")
# recordings whose seconds may take any number of bytes, or none: Ogg, FLAC, AIFF, WebM, CAF, AAC,
# AMR, MP4, and WAV with compressed samples
_DENSE = re.compile(
    rb"OggS|fLaC|FORM|\x1aE\xdf\xa3|caff|\xff[\xf0\xf1\xf8\xf9]|ADIF|#!AMR|.{4}ftyp|RIFF|RF64", re.S
)
_PLAIN_WAV = (1, 3, 6, 7)  # PCM, float, A-law, mu-law
_MP3 = re.compile(rb"\xff[\xe2-\xef\xf2-\xf7\xfa-\xff]")
_NO_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_URL_SAFE = str.maketrans("-_", "+/")


# words that are at most two tokens in every vocabulary
_COMMON = " and any are can for from have hello how that the there they this today what word you "
_WORD = re.compile(" ?[A-Za-z]+")


@dataclass(slots=True)
class Size:
    """What a vendor may bill of a request, at most."""

    tokens: int = 0  # of input; each byte of a text may be one
    images: int = 0
    audio: int = 0  # tokens
    unknown: bool = False  # the input is also something that only the vendor has
    packed: bool = False  # a file may hold more than its bytes tell
    contexts: int = 0  # further ones, as the vendor's own tools make it read its input again
    output: int | None = None  # tokens of each answer; None: not limited
    predicted: int = 0  # of them beyond the limit: what the client expects, and thoughts
    compacts: bool = False  # the input may be summed up first, which is billed as well
    answers: int = 1
    fees: dict[str, int] = field(default_factory=dict)
    tier: str = ""
    geo: str = ""
    speaks: bool = False  # audio may be answered
    draws: bool = False  # so may images
    caches: bool = False  # input is to be cached
    long_cache: bool = False


def size_of(body: JSON, form: str = "openai") -> Size:
    size = Size(FEATURE_TOKENS * sum(bool(body.get(each)) for each in _FEATURES))
    configs = [found for name in GOOGLE if (found := obj(body.get(name)))]
    holders = [body, *configs]
    for members in (without(body, *GOOGLE), *configs):
        for name, value in members.items():
            if name in _TEXTS or isinstance(value, dict | list):
                _walk([value] if name in _TEXTS else value, size, media=name in _TOP)
    _caches(body, size)
    names, limited = _LIMITS.get(form, _LIMITS["openai"]), configs if form == "gemini" else [body]
    given = _each(limited, names)
    limits = [limit for each in given if (limit := number(each))]  # some take 0 for none
    size.output = max(limits) if limits and len(limits) == len(given) else None
    if expected := body.get("prediction"):
        size.predicted = len(strict_json.encode(expected))
    for thoughts in (body.get("thinking_budget"), obj(body.get("reasoning")).get("max_tokens")):
        size.predicted += number(thoughts) or 0  # some vendors count them apart
    size.answers = max([1, *[number(each) or 1 for each in _each(holders, _ANSWERS)]])
    prompts = body.get("prompt")
    if isinstance(prompts, list) and any(isinstance(each, str | list) for each in prompts):
        size.answers *= len(prompts)
    thread = obj(body.get("thread"))  # of Anthropic's, begun or continued
    goes_on = bool(thread) and "create" not in (*thread, thread.get("type"))
    stored = goes_on or isinstance(prompts, dict) or any(body.get(name) for name in _STORED)
    size.unknown = size.unknown or stored
    tier = body.get("service_tier") or body.get("serviceTier")
    size.tier = "fast" if body.get("speed") == "fast" else word(tier)
    size.geo = word(body.get("inference_geo"))
    said = str(_each(holders, _MODES)).lower()
    size.speaks, size.draws = "audio" in said or bool(body.get("audio")), "image" in said
    _tools(body, size, form)
    _compacts(body, size)
    return size


def _each(holders: list[JSON], names: Iterable[str]) -> list[Any]:
    """Return what *holders* have under these names, but for null."""
    return [value for each in holders for name in names if (value := each.get(name)) is not None]


def fallbacks(body: JSON, form: str) -> list[str]:
    """Return the models that a gateway may take instead, as OpenRouter, Vercel and LiteLLM do."""
    gateway = obj(obj(body.get("providerOptions")).get("gateway"))
    named = [body.get("models"), gateway.get("models")]
    named += [body.get("fallbacks")] if form == "openai" else []
    found = [each for names in named if isinstance(names, list) for each in names]
    return [word(each) or word(obj(each).get("model")) for each in found]


def substitutes(body: JSON, form: str) -> list[tuple[str, JSON]]:
    """Return the models that Anthropic asks after a refusal, each with the body that it gets.

    Each may be billed. Those that Anthropic chooses itself ("default") have no name.
    """
    named = body.get("fallbacks") if form == "anthropic" else None
    if isinstance(named, list):
        return [(word(obj(each).get("model")), body | given(obj(each))) for each in named]
    return [("", body)] if named else []


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


def limited(body: JSON, tokens: int, form: str, *, completion: bool) -> JSON:
    """Return the body with a limit of the output; *completion*: by OpenAI's newer name."""
    if form == "gemini":
        configs = [without(obj(body.get(each)), "max_output_tokens") for each in GOOGLE]
        limit = {"maxOutputTokens": tokens}
        return without(body, *GOOGLE) | {GOOGLE[0]: configs[1] | configs[0] | limit}
    if form == "responses":
        return body | {"max_output_tokens": tokens}
    name = "max_completion_tokens" if completion else "max_tokens"
    return with_fitting_thoughts(without(body, *_LIMITS["openai"]) | {name: tokens})


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


def with_uses(body: JSON, most: int, form: str) -> JSON:
    """Return the body with at most *most* uses of each tool of the vendor, if it sets no limit."""
    tools = body.get("tools")
    if form == "responses":
        return {"max_tool_calls": most} | body
    if not isinstance(tools, list):
        return body
    return body | {
        "tools": [
            {"max_uses": most} | each if _SEARCHES.match(word(obj(each).get("type"))) else each
            for each in tools
        ]
    }


# -- input --


def _walk(value: Any, size: Size, *, media: bool) -> None:
    """Add a part of the body: each text by its bytes, other media by their kind and bytes.

    Without *media* it is JSON that the vendor writes into its prompt, such as a tool's schema.
    """
    if isinstance(value, str):
        size.tokens += _text(value, short=size.tokens < SHORT)
    elif not media or not isinstance(value, dict | list):
        size.tokens += len(strict_json.encode(value))
        for each in value if isinstance(value, list) else [value]:
            _caches(obj(each), size)
    elif isinstance(value, list):
        numbers = sum([type(each) is int for each in value])  # tokens
        size.tokens += numbers + MESSAGE_TOKENS * (len(value) - numbers)
        for each in value if numbers < len(value) else ():
            if type(each) is not int:
                _walk(each, size, media=True)
    elif value.get("type") == "text" or not _medium(value, size):
        _caches(value, size)
        size.unknown = size.unknown or "id" in obj(value.get("audio"))  # said before
        for name, each in value.items():
            if name not in _FRAME:
                size.tokens += len(name.encode(errors="replace")) + 1
            if each is not None and (name not in ("role", "type") or not isinstance(each, str)):
                _walk(each, size, media=name in _CONTENT)


def _text(text: str, *, short: bool) -> int:
    """Return the most tokens of a text: its bytes; of a *short* one, a common word is two."""
    if not text.isascii():
        return len(text.encode(errors="replace"))
    words = _WORD.findall(text) if short and len(text) < SHORT else ()
    return len(text) - sum(
        [len(each) - 2 for each in words if f" {each.strip().lower()} " in _COMMON]
    )


def _caches(holder: JSON, size: Size) -> None:
    if control := holder.get("cache_control"):
        size.caches = True
        size.long_cache = size.long_cache or obj(control).get("ttl") == "1h"


def _medium(part: JSON, size: Size) -> bool:
    kind = part.get("type")
    if found := obj(next((part[name] for name in GOOGLES_DATA if part.get(name)), None)):
        mime = word(found.get("mimeType")) or word(found.get("mime_type"))
        _add(mime, word(found.get("data")), size)
    elif kind == "item_reference" or (kind is None and part.keys() == {"id"}):
        size.unknown = True
    elif not isinstance(kind, str):
        return False
    elif kind in _IMAGES:
        size.images += 1
    elif kind in _AUDIO:
        held = obj(part.get("input_audio"))
        _audio(word(held.get("format")), word(held.get("data")), size)
    elif kind in _FILES or kind.endswith("_url"):
        _file(part, size)
    else:
        return False
    _caches(part, size)
    _walk(without(part, "type", *_DATA, *GOOGLES_DATA), size, media=False)  # such as its title
    return True


def _file(part: JSON, size: Size) -> None:
    held: JSON = part
    for name in _SOURCES:
        held = obj(part.get(name)) or held
    if held.get("type") in ("text", "content"):
        size.tokens += FEATURE_TOKENS
        _walk(held, size, media=True)
        return
    if held is not part:
        _walk(without(held, *_DATA), size, media=False)
    data = word(held.get("file_data")) or word(held.get("data")) or word(held.get("url"))
    mime = word(held.get("media_type"))
    if inline := data_uri(data):
        mime, data = inline
    elif "://" in data:
        data = ""
    _add(mime, data, size)


def _add(mime: str, data: str, size: Size) -> None:
    if mime.startswith("image/"):
        size.images += 1
    elif mime.startswith("audio/"):
        _audio(mime[6:], data, size)
    elif not data:
        size.unknown = True
    else:
        is_video = mime.startswith("video/")
        head = _decoded(data)
        size.packed = size.packed or is_video or not head or bool(_PACKED.search(head))
        size.tokens += FILE_TOKENS + _bytes(data) // (_OTHER_AUDIO if is_video else 1)


def _audio(form: str, data: str, size: Size) -> None:
    if not data:
        size.unknown = True
    head, length = _decoded(data), _bytes(data)
    if head.startswith(b"ID3") and len(head) > 9:  # a tag before the recording
        start = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
        head = _decoded(data, start) if _MP3.match(_decoded(data, start)) else b""
    form = {"x-wav": "wav", "wave": "wav", "mpeg": "mp3"}.get(form, form)
    seconds = _seconds(head, length)
    if seconds is None:
        size.packed = size.packed or not head or bool(_DENSE.match(head))
        size.audio += AUDIO_RATE + length // _BYTES_PER_TOKEN.get(form, _OTHER_AUDIO)
    else:
        size.audio += AUDIO_RATE + math.ceil(seconds * AUDIO_RATE)


def _seconds(head: bytes, length: int) -> float | None:
    """Return how long a WAV file of so many bytes lasts at most; None if it is another format."""
    if head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt " or len(head) < 36:
        return None
    code, channels, rate = struct.unpack_from("<HHI", head, 20)
    [bits] = struct.unpack_from("<H", head, 34)
    if code not in _PLAIN_WAV:
        return None
    return length / float(max(1, rate * channels * bits // 8))


def _decoded(data: str, start: int = 0) -> bytes:
    """Return some bytes of a file in base64, which show its format."""
    text = data.partition(",")[2] if data.startswith("data:") else data
    text = _NO_BASE64.sub("", text.lstrip()[start // 3 * 4 :][: 2 * SHORT].translate(_URL_SAFE))
    return b64decode(text[: len(text) // 4 * 4])[start % 3 :]


def _bytes(data: str) -> int:
    return len(data) * 3 // 4 + 1


# -- the vendor's own tools --


def _tools(body: JSON, size: Size, form: str) -> None:
    tools = listed(body.get("tools"))
    own = sum([each.get("type") not in (None, "function", "custom") for each in tools])
    size.tokens += TOOL_TOKENS * (own + bool(tools or body.get("functions")))
    most, uses = number(body.get("max_tool_calls")), 0.0
    for tool in tools:
        limit = number(tool.get("max_uses"))
        for name in _names(tool):
            _fee(name, most if limit is None else limit, size, gigabytes(tool))
            uses += math.inf if limit is None else limit
    if body.get("mcp_servers"):
        uses = math.inf
    if form == "gemini":
        runs = any("codeExecution" in tool or "code_execution" in tool for tool in tools)
        most = MAX_RUNS if runs else 1
    elif form != "responses":
        most = MAX_ROUNDS
    uses = min(uses, MAX_SEARCHES if most is None else most)
    if body.get("web_search_options") is not None:
        _fee("web_search", 1, size)
        uses += 1
    # searches, whose number is not known; an answer that only xAI keeps
    for name in ("search_parameters", "plugins", "deferred"):
        if body.get(name):
            _fee(name, None, size)
            uses += 1
    if uses:  # what the tools find becomes input, which is read again with each use
        size.contexts = int(uses) - (not size.unknown)
        size.unknown = True


def _fee(name: str, most: int | None, size: Size, times: int = 1) -> None:
    if name:
        known = 1 if name == CONTAINER else MAX_SEARCHES
        size.fees[name] = size.fees.get(name, 0) + (known if most is None else most) * times


def gigabytes(tool: object) -> int:
    """Return the size of the container in which OpenAI runs a tool; 1 if it tells none."""
    held = obj(obj(tool).get("container")) or obj(obj(tool).get("environment"))
    return number(word(held.get("memory_limit")).removesuffix("g")) or 1


def _compacts(body: JSON, size: Size) -> None:
    """Count the input again if the vendor may sum it up, as Anthropic and OpenAI do on demand."""
    managed = body.get("context_management")
    edits = [obj(body.get("compaction")), *listed(obj(managed).get("edits") or managed)]
    if any(word(each.get("type")).startswith(("compact", "summarize")) for each in edits):
        size.compacts, size.contexts = True, size.contexts + size.unknown
        size.tokens, size.images, size.audio = 2 * size.tokens, 2 * size.images, 2 * size.audio


def _names(tool: JSON) -> list[str]:
    """Return the names of the vendor's own tools that a tool stands for, as they are billed."""
    kind = tool.get("type")
    if isinstance(kind, str):
        if kind.startswith(_CLIENTS_TOOLS):
            return []
        if kind == "shell":  # the client's, unless OpenAI runs it
            where = word(obj(tool.get("environment")).get("type"))
            own = {"container_auto": CONTAINER, "container_reference": ""}
            return [own[where]] if where in own else []
        name, _, version = kind.rpartition("_")
        base = name if version.isdigit() else kind
        if base.startswith("web_search_preview"):
            base = "web_search"
        return [_BILLED_AS.get(base, base)]
    if "name" in tool or "function" in tool:  # the client's
        return []
    billed = {**_BILLED_AS, "code_execution": "", "file_search": ""}
    names = [snake(name) for name in tool if name not in GOOGLES_OWN]
    return [billed.get(name, name) for name in names]


def snake(name: str) -> str:
    """Return the other spelling of a member that Google takes."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
