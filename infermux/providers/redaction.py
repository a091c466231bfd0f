"""Redacts keys and addresses in a vendor's texts, plain or encoded."""

from __future__ import annotations

import binascii
import html
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import NativeError
from ..protocol import strict_json

REDACTED = "[redacted]"
MAX_WORDS = 2000  # characters of a vendor's message that are read
MAX_ERROR = 2500  # bytes of a vendor's own error that is passed on
MAX_SHORT = 64  # characters of a text that is compared with encoded keys
PIECE = 12  # consecutive characters of a key that count as a secret
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
_PRIVATE = re.compile("auth|key|token|secret|cookie", re.I)  # names of headers
_SECRETS = re.compile(
    r"https?://[^\s\"'<>]+|\bBearer\s+\S+|\bAIza[\w-]{10,}|(?<![\w-])[\w-]*+\*{3,}[\w-]*"
    r"|\b(sk|rk|pk|gsk|xai|pplx|hf|nvapi|csk|fw|r8|key|tok)[-_][\w.-]{8,}",
    re.I,
)
# text that may be encoded, and may continue on further lines; bytes in hexadecimal may be apart
_HEX = r"(?:[0-9A-Fa-f]{2}[ :-]?){12,}"
_WORD = re.compile(_HEX + r"|[\w+/=%&;:.~\\#-]{8,}(?:[\r\n]+[\w+/=%&;:.~\\#-]+)*", re.ASCII)
_BASE64 = re.compile(r"[\w+/-]{8,}", re.ASCII)
_ESCAPE = re.compile(r"(?:\\+(?:u00|x)|[%=])([0-9A-Fa-f]{2})|\\+")  # of JSON, C, URLs, MIME
_STANDARD = str.maketrans("-_", "+/")


class Redactor:
    """Removes addresses and keys, plain or encoded, from a vendor's text.

    *headers* are those of our requests; *secrets* are further values of them; *hosts* are
    the provider's host names.
    """

    def __init__(
        self, headers: Mapping[str, str], hosts: Iterable[str], secrets: Iterable[str] = ()
    ) -> None:
        private = [value for name, value in headers.items() if _PRIVATE.search(name)]
        private += secrets
        keys = {word for value in private for word in (value, *value.split()[-1:]) if word}
        self._own = sorted({*keys, *hosts} - {""}, key=len, reverse=True)
        self._pieces = {piece for key in keys for piece in _pieces(key)}
        once = {text for key in keys for text in (key, *_encoded(key))}
        twice = {text for each in once for text in _encoded(each)}
        self._encoded = {piece for text in once | twice for piece in _pieces(text)}

    def __call__(self, message: str) -> str:
        """Return at most 600 characters of *message*, with secrets redacted."""
        if len(message) > MAX_WORDS:  # without its last word, which may be half a key
            message = message[:MAX_WORDS].rstrip(_VISIBLE)
        for own in self._own:
            message = message.replace(own, REDACTED)
        message = _SECRETS.sub(REDACTED, message)
        return _WORD.sub(lambda word: REDACTED if self.reveals(word[0]) else word[0], message)[:600]

    def reveals(self, text: str, depth: int = 3) -> bool:
        """Whether *text*, plain or decoded, has a secret or a piece of a key."""
        return (
            any(own in text for own in self._own)
            or not self._pieces.isdisjoint(_pieces(text))
            or _SECRETS.search(text) is not None
            or (depth > 0 and any(self._hides(each, depth - 1) for each in _decoded(text)))
        )

    def names_key(self, text: str) -> bool:
        """Whether a short *text* has a key, plain or in base64 or hexadecimal up to twice.

        It takes a tenth of the time of `reveals`, which looks at longer texts.
        """
        if len(text) > MAX_SHORT:
            return self.reveals(text)
        if not self._encoded.isdisjoint(_pieces(text)):
            return True
        return any(own in text for own in self._own)

    def native(self, native: NativeError) -> NativeError | None:
        """Return a vendor's own error without keys and addresses; None if it is too long."""
        members = native.members
        if len(strict_json.encode(members)) > MAX_ERROR:
            members = {name: members.get(name) for name in ("type", "code", "param")}
        if len(strict_json.encode(members)) > MAX_ERROR:
            return None
        return native._replace(
            members={name: self.clean(value) for name, value in members.items()},
            request_id=_header(self(native.request_id)),
            headers=tuple(
                (name, value)
                for name, value in native.headers
                if _header(value) and self(value) == value
            ),
        )

    def clean(self, value: Any) -> Any:
        """Return a part of a vendor's error without keys and addresses."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(name): self.clean(each) for name, each in value.items()}
        return [self.clean(each) for each in value] if isinstance(value, list) else value

    def _hides(self, text: str, depth: int) -> bool:
        text = text.replace("\0", "")  # of UTF-16
        return self.reveals(text, depth if text.isascii() else 0)  # only ASCII is decoded again


def _header(value: str) -> str:
    """Return at most 100 characters, or "" if *value* is invalid in a header."""
    return value[:100] if value.isascii() and value.isprintable() else ""


def _pieces(text: str) -> Iterator[str]:
    for at in range(len(text) - PIECE + 1):
        yield text[at : at + PIECE]


def _encoded(key: str) -> Iterator[str]:
    """Yield encodings of *key*: hexadecimal, and base64 at any place in a longer text."""
    data = key.encode()
    yield from (data.hex(), data.hex().upper())
    for skipped in range(3):
        text = b64encode(data[skipped:][: (len(data) - skipped) // 3 * 3]).decode()
        yield from (text, text.replace("+", "-").replace("/", "_"))


def _decoded(text: str) -> Iterator[str]:
    """Yield decodings of *text*: escapes, hexadecimal, base64 from any position."""
    whole = "".join(text.splitlines())
    plain = _ESCAPE.sub(lambda found: chr(int(found[1] or "0", 16)), html.unescape(whole))
    if plain != text:
        yield plain
    for run in re.findall(_HEX, whole):
        yield bytes.fromhex(re.sub("[:-]", "", run)).decode("ascii", "replace")
    for run in _BASE64.findall(whole):
        for start in range(4):
            data = run[start:].translate(_STANDARD)
            data = data[: len(data) - (len(data) % 4 == 1)]
            yield binascii.a2b_base64(data + "=" * (-len(data) % 4)).decode("ascii", "replace")


def hosts_of(address: str) -> tuple[str, str]:
    """Return the host of an address, with its port and without."""
    host = address.partition("://")[2].partition("/")[0]
    return host, host.rpartition(":")[0]
