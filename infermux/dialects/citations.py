"""Web citations and drawn images, which each format has in a form of its own.

A citation is an annotation of chat completions: an url_citation with the characters of the answer
that it supports. Citations of documents and files have ids and pages that only their vendor knows:
they are in the vendor's own answer alone. An image is an image_url part with a data: URI, as
OpenRouter has it in `message.images`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..types import JSON
from . import data_uri, listed, members

URL = "url_citation"
MOST = 1000  # citations that are read at a time


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
    return [each for each in read if each]


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


def image(media: object, data: object) -> list[JSON]:
    """Return the image with this type and base64, in a list; [] if it is none."""
    if not isinstance(data, str) or not data or not str(media).startswith("image/"):
        return []
    return [{"type": "image_url", "image_url": {"url": f"data:{media};base64,{data}"}}]


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
