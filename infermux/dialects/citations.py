"""Web citations and drawn images, which each format has in a form of its own.

A citation is an annotation of chat completions: an url_citation with the characters of the answer
that it supports. Citations of documents and files have ids and pages that only their vendor knows:
they are in the vendor's own answer alone. An image is an image_url part with a data: URI, as
OpenRouter has it in `message.images`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from urllib.parse import unquote_to_bytes

from ..types import JSON
from . import listed, members

URL = "url_citation"
MOST = 1000  # citations that are read at a time
_MARK = re.compile(r"\[(\d{1,4})\]", re.ASCII)


def citation(url: object, title: object, start: object, end: object, cited: object = None) -> JSON:
    """Return the annotation of the answer from *start* to *end*; {} if *url* is none of the web.

    *cited* is what the page says.
    """
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        return {}
    places = {"start_index": _index(start), "end_index": max(_index(start), _index(end))}
    told = {"content": cited} if isinstance(cited, str) and cited else {}
    name = title if isinstance(title, str) else ""
    return {"type": URL, URL: {"url": url, "title": name, **places, **told}}


def _index(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def citations(found: object, shift: int = 0, *, flat: bool = False) -> list[JSON]:
    """Return a vendor's annotations of the web; *flat*: in the form of Responses.

    *shift* is the length of the answer before the text that they are about.
    """
    read = []
    for each in listed(found)[:MOST]:
        said = each if flat else members(each.get(URL))
        start, end = (shift + _index(said.get(name)) for name in ("start_index", "end_index"))
        read.append(citation(said.get("url"), said.get("title"), start, end, said.get("content")))
    return [*filter(None, read)]


def sourced(body: JSON, text: str) -> list[JSON]:
    """Return the citations of an answer that says [1] for the first of its sources.

    Perplexity and xAI have the sources beside the message. Without a [1] they are of the whole.
    """
    urls = body.get("citations")
    bare = [{"url": url} for url in urls] if isinstance(urls, list) else []
    sources = (listed(body.get("search_results")) or bare)[:MOST]
    marks = [(int(mark[1]), *mark.span()) for mark in _MARK.finditer(text if sources else "")]
    known = [mark for mark in marks if 0 < mark[0] <= len(sources)][:MOST]
    read = []
    for number, start, end in known or [(n + 1, 0, len(text)) for n in range(len(sources))]:
        one = sources[number - 1]
        read.append(citation(one.get("url"), one.get("title"), start, end, one.get("snippet")))
    return [*filter(None, read)]


def cited(text: str, annotations: Iterable[JSON]) -> list[tuple[str, list[JSON]]]:
    """Divide a text where citations begin and end; return each piece with its url_citations.

    No piece is blank, if the text is not.
    """
    said = [each[URL] for each in annotations]
    cuts = {0, *(each[name] for each in said for name in ("start_index", "end_index"))}
    starts = sorted(cut for cut in cuts if cut == 0 or cut < len(text))
    pieces: list[tuple[str, list[JSON]]] = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        own = [each for each in said if each["start_index"] <= start < each["end_index"]]
        words, known = text[start:end], pieces[-1] if pieces else ("", [])
        if pieces and (known[0].isspace() or not words.strip() or own == known[1]):
            pieces[-1] = known[0] + words, own if known[0].isspace() else known[1]
        else:
            pieces.append((words, own))
    return pieces


def data_uri(url: str) -> tuple[str, str] | None:
    """Return the media type and base64 data of a data: URI, or None for any other URL."""
    scheme, _, rest = url.partition(":")
    head, comma, data = rest.partition(",")
    if scheme.lower() != "data" or not comma:
        return None
    media, *options = head.split(";")
    if "base64" not in (option.strip().lower() for option in options):
        data = b64encode(unquote_to_bytes(data)).decode()
    return media or "text/plain", data


def image(media: object, data: object) -> list[JSON]:
    """Return the image with this type and base64, in a list; [] if it is none."""
    if not isinstance(data, str) or not data or not str(media).startswith("image/"):
        return []
    return images([{"image_url": {"url": f"data:{media};base64,{data}"}}])


def images(found: object) -> list[JSON]:
    """Return the images that a vendor has in the form of chat completions."""
    urls = [members(part.get("image_url")).get("url") for part in listed(found)]
    return [
        {"type": "image_url", "image_url": {"url": url}} for url in urls if isinstance(url, str)
    ]


def inline(images: Sequence[JSON]) -> list[tuple[str, str]]:
    """Return the type and base64 of each image that is not elsewhere."""
    found = (data_uri(each["image_url"]["url"]) for each in images)
    return [each for each in found if each is not None]
