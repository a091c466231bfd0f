"""multipart/form-data (RFC 7578): read as it arrives, and sent on with another model.

At most HOLD bytes are in memory. What comes before a large file is held; the file itself passes.
If the model stands after it, everything up to the model is spooled to a temporary file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..errors import Overloaded, RequestError, RequestTooLarge, shown

HOLD = 524_288  # bytes in memory
SHORT = 1024 * 1024  # bytes of a body that is read to its end, and can be sent again
PIECE = 65536  # bytes of one read
MAX_HEAD = 16_384  # bytes of the headers of one part
MAX_PARTS = 1000
MAX_FIELD = 131_072  # bytes of a field's value; of longer ones the rest is not read
MAX_FIELDS = 524_288  # bytes of the values of all fields
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_TOKEN = re.compile(r"[0-9A-Za-z'+_.-]+")
_PARAMETER = re.compile(r';[ \t]*([\w!#$&+.^|~-]+\*?)[ \t]*=[ \t]*("[^"\\]*"|[^\s;"\\]+)[ \t]*')
_ONCE = ("n", "partial_images", "user")  # fields that decide what a call may cost, and whose it is
_LIKE_MODEL = re.compile(r"\s*model\s*(\[.*)?", re.I)
_HEAD = 'Content-Disposition: form-data; name="{}"\r\n\r\n{}'
Read = Callable[[int], bytes]  # returns b"" at the end of the body


def _malformed(why: str) -> RequestError:
    return RequestError(f"the multipart body is malformed: {why}")


class _Parts:
    """Follows the parts of a body, which comes in pieces of any size.

    It is strict, as a vendor that reads a part differently could be sent another model.
    """

    def __init__(self, boundary: str) -> None:
        self.fields: dict[str, Any] = {}  # a text, or a list of several
        self.files: list[str] = []  # the names of parts with a file
        self.places: dict[str, tuple[int, int]] = {}  # where the part of a field begins and ends
        self.cut = False  # whether a value is longer than what of it is read
        self.ended = False
        self._dash = b"--" + boundary.encode()
        self._rest = bytearray()
        self._at = 0  # the place of the first byte of _rest in the body
        self._step: Callable[[], bool] = self._first
        self._begin = self._count = self._kept = 0
        self._name = ""
        self._value: bytearray | None = None  # None: of a file

    def feed(self, data: bytes) -> None:
        """Read the next bytes; raise RequestError if they are malformed."""
        self._rest += data
        while self._step():
            pass

    def _take(self, size: int) -> bytes:
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        self._at += size
        return taken

    def _first(self) -> bool:
        if len(self._rest) < len(self._dash):
            return False
        if not self._rest.startswith(self._dash):
            raise _malformed("it does not begin with its boundary")
        self._take(len(self._dash))
        self._step = self._line
        return True

    def _line(self) -> bool:
        """Read what follows a boundary: a line end, or the mark of the last one."""
        if len(self._rest) < 2:
            return False
        if self._rest.startswith(b"--"):
            self.ended, self._step = True, self._epilogue
            return True
        end = self._rest.find(b"\r\n", 0, 128)
        if end < 0 and len(self._rest) < 128:
            return False
        if end < 0 or self._rest[:end].strip(b" \t"):
            raise _malformed("there is no line end after a boundary")
        self._take(end + 2)
        self._begin, self._step = self._at, self._head
        self._count += 1
        if self._count > MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")
        return True

    def _head(self) -> bool:
        end = self._rest.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            if len(self._rest) >= MAX_HEAD:
                raise _malformed("the headers of a part are too long")
            return False
        self._name, is_file = _disposition(self._take(end + 4)[:-4])
        if _LIKE_MODEL.fullmatch(self._name):
            if self._name != "model" or is_file:
                raise RequestError("model must be a plain field", param="model")
            if "model" in self.fields:
                raise RequestError("model is given twice", param="model")
        self._value = None if is_file else bytearray()
        if is_file:
            self.files.append(self._name)
        self._step = self._body
        return True

    def _body(self) -> bool:
        at = self._rest.find(self._dash)
        if at < 0:
            self._keep(len(self._rest) - len(self._dash) - 1)
            return False
        if at < 2 or self._rest[at - 2 : at] != b"\r\n":
            raise _malformed("its boundary stands inside a part")
        self._keep(at - 2)
        if self._value is not None:
            self._end_field(self._value)
        self._take(2 + len(self._dash))
        self._step = self._line
        return True

    def _keep(self, size: int) -> None:
        if size <= 0:
            return
        data, value = self._take(size), self._value
        if value is not None:
            more = data[: min(MAX_FIELD - len(value), MAX_FIELDS - self._kept)]
            self.cut |= len(more) < len(data)
            value += more
            self._kept += len(more)

    def _end_field(self, value: bytearray) -> None:
        name, known = self._name, self.fields.get(self._name)
        if known is not None and name in _ONCE:
            raise RequestError(f"{name} is given twice", param=name)
        try:
            text = value.decode(errors="strict" if name == "model" else "replace")
        except UnicodeDecodeError:
            raise RequestError("model must be text in UTF-8", param="model") from None
        several = known if isinstance(known, list) else [known]
        self.fields[name] = text if known is None else [*several, text]
        self.places[name] = self._begin, self._at

    def _epilogue(self) -> bool:
        if self._dash in self._rest:
            raise _malformed("it goes on after its last boundary")
        self._take(max(0, len(self._rest) - len(self._dash)))
        return False


def _disposition(head: bytes) -> tuple[str, bool]:
    """Return the name of a part, and whether it is a file; raise RequestError."""
    lines = head.split(b"\r\n")
    if any(line[:1] in (b" ", b"\t") or b"\n" in line or b"\r" in line for line in lines):
        raise _malformed("a header of a part has several lines")
    pairs = [line.partition(b":") for line in lines]
    found = [value for name, _, value in pairs if name.strip().lower() == b"content-disposition"]
    if len(found) != 1:
        raise _malformed("a part must have one Content-Disposition")
    text = found[0].decode(errors="replace").strip()
    kind, rest = text[:9].lower(), text[9:]
    parameters = list(_PARAMETER.finditer(rest))
    named = [(each[1].lower(), each[2].strip('"')) for each in parameters]
    names = [value for name, value in named if name == "name"]
    whole = "".join(each[0] for each in parameters) == rest
    if kind != "form-data" or len(names) != 1 or not whole or "name*" in dict(named):
        raise _malformed(f"a part's Content-Disposition is {shown(text)}")
    return names[0], any(name in ("filename", "filename*") for name, _ in named)


def _temporary_file() -> Any:
    from tempfile import TemporaryFile  # slow to import

    return TemporaryFile()


class Upload:
    """A multipart body that is sent on as it arrives, or again if all of it is held.

    *size* is its length, None if unknown; *limit* the most bytes that it may have. A body that
    has a *model* is read at least up to it; one whose fields must all be *seen*, to its end.
    """

    def __init__(
        self,
        read: Read,
        *,
        boundary: str,
        size: int | None,
        limit: int,
        model: bool,
        seen: bool = False,
    ) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise _malformed("its Content-Type has no valid boundary")
        quoted = boundary if _TOKEN.fullmatch(boundary) else f'"{boundary}"'
        self.content_type = f"multipart/form-data; boundary={quoted}"
        self.received = 0  # bytes
        self._read, self._limit, self._size = read, limit, size
        self._boundary = boundary
        self._parts = _Parts(boundary)
        self._held = bytearray()
        self._file: Any = None  # holds what is longer than HOLD
        self._whole = False  # whether all is held
        self._passing = False  # whether bytes that are not held were sent
        self._done = False
        self._changed: dict[str, str] = {}
        try:
            self._hold(model, seen)
        except BaseException:
            self.close()
            raise

    @property
    def fields(self) -> dict[str, Any]:
        """The fields read so far; those after a large file are read only if all must be seen."""
        return self._parts.fields

    @property
    def repeatable(self) -> bool:
        return not self._passing

    @property
    def is_read(self) -> bool:
        """Whether the client's body has been read to its end."""
        return self._whole or self._done

    @property
    def files(self) -> int:
        return len(self._parts.files)

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk
                self._file.close()

    def length(self, model: str) -> int | None:
        """Return the length of the body with *model*; None if it is unknown."""
        total = self.received if self._whole else self._size
        if total is None:
            return None
        return total + sum(len(part) - (end - start) for start, end, part in self._changes(model))

    def change(self, fields: Mapping[str, Any]) -> None:
        """Send other values of fields, or more fields; raise TypeError if that cannot be done."""
        for name, value in fields.items():
            new = isinstance(value, str) and re.fullmatch(r"[\w.-]+", name, re.ASCII)
            if not new or isinstance(self.fields.get(name), list) or self._boundary in value:
                raise TypeError(f"the field {name!r} of a form cannot be changed so")
        self._changed |= fields

    def pieces(self, model: str) -> Iterator[bytes]:
        """Yield the body with *model*; "": as it came. Raise RequestError if it is invalid."""
        if self._passing:
            raise RequestError("the upload has been sent in part; send it again")
        at = 0
        for start, end, part in self._changes(model):
            yield from self._between(at, start)
            yield part
            at = end
        yield from self._between(at, self.received)
        if self._whole:
            return
        self._passing = True
        while data := self._next():
            yield data
        self._done = True

    def _changes(self, model: str) -> list[tuple[int, int, bytes]]:
        """Return what to replace of the body, in order, and by what."""
        found = list[tuple[int, int, bytes]]()
        for name, value in (self._changed | ({"model": model} if model else {})).items():
            text, place = _HEAD.format(name, value), self._parts.places.get(name)
            before, after = ("", "") if place else (f"--{self._boundary}\r\n", "\r\n")
            found.append((*(place or (0, 0)), f"{before}{text}{after}".encode(errors="replace")))
        return sorted(found)

    def _hold(self, model: bool, seen: bool) -> None:
        """Read all of a short body; of another one, what comes before its file."""
        short = self._size is not None and self._size <= SHORT
        while data := self._next():
            self._held += data
            if self._file is not None or len(self._held) > HOLD:
                self._spool()
            known = not seen and (not model or "model" in self.fields)
            ended = short or self._file is not None or self._parts.ended
            if known and self._parts.files and not ended:
                return
        if seen and self._parts.cut:
            raise RequestTooLarge("a field of the form is too long")
        self._whole = True

    def _spool(self) -> None:
        """Move what is held to the temporary file; raise Overloaded if that has no room."""
        try:
            self._file = self._file or _temporary_file()
            self._file.write(self._held)
            self._file.flush()
        except OSError as error:
            raise Overloaded("there is no room for this upload now; retry shortly") from error
        self._held = bytearray()

    def _next(self) -> bytes:
        data = self._read(PIECE)
        self.received += len(data)
        if self.received > self._limit:
            raise RequestTooLarge(f"the body is longer than {self._limit} bytes")
        self._parts.feed(data)
        if not data and not self._parts.ended:
            raise _malformed("it ends without its last boundary")
        return data

    def _between(self, start: int, end: int) -> Iterator[bytes]:
        """Yield what is held from *start* to *end*."""
        if self._file is None:
            for at in range(start, end, PIECE):
                yield bytes(self._held[at : min(at + PIECE, end)])
            return
        self._file.seek(start)
        while start < end:
            data = self._file.read(min(PIECE, end - start))
            start += len(data)
            yield data
