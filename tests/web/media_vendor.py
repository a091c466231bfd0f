"""A vendor of images, audio, moderations, rerankers, files and batches, in OpenAI's format.

It reads uploads piece by piece, and is as strict as OpenAI is about what a form must hold.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from support import Peer

JSON = dict[str, Any]
TOKENS = {
    "input_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    "output_tokens": 1056,
    "total_tokens": 1106,
}
HEARD = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
    "output_tokens": 45,
    "total_tokens": 59,
}
PNG = base64.b64encode(b"\x89PNG a picture").decode()
SPEECH = bytes(range(256)) * 1024  # 256 KB


class Form(NamedTuple):
    """The parts of a multipart body: the values of fields, and the bytes of files."""

    fields: dict[str, str]
    files: dict[str, bytes]
    names: dict[str, str]  # of the files


class Seen(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: Any  # JSON, a Form, or bytes

    @property
    def model(self) -> Any:
        return self.body.fields["model"] if isinstance(self.body, Form) else self.body["model"]


def parsed(content_type: str, body: bytes) -> Form:
    """Read a form with the standard library, which is none of our code."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    assert message.is_multipart(), body[:200]
    form = Form({}, {}, {})
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if part.get_filename() is None:
            assert name not in form.fields or name.endswith("[]"), f"{name} twice"
            form.fields[name] = data.decode()
        else:
            form.files[name], form.names[name] = data, part.get_filename()
    return form


Step = Callable[["MediaVendor", Any], object]


class MediaVendor(Peer):
    """*prefix* begins the ids, so that two vendors have different ones."""

    def __init__(self, prefix: str = "one", *, usage: bool = True) -> None:
        self.prefix, self.usage = prefix, usage
        self.seen: list[Seen] = []
        self.steps: list[Step] = []  # scripted answers, before the usual ones
        self.files: dict[str, JSON] = {}
        self.contents: dict[str, bytes] = {}
        self.batches: dict[str, JSON] = {}
        self.received = 0  # bytes of the body that comes now
        self.progress = threading.Condition()
        self.broken = 0  # bodies that ended early
        self.left = threading.Event()  # the client went before the end of an answer
        self._count = 0

    def forget(self, *steps: Step) -> None:
        with self.lock:
            self.seen, self.steps, self.received, self.broken = [], list(steps), 0, 0
            self.left = threading.Event()

    def wait(self, size: int) -> None:
        """Wait until *size* bytes of the present body have come."""
        with self.progress:
            assert self.progress.wait_for(lambda: self.received >= size, 30), self.received

    # -- the wire --

    def serve(self, handler: Any) -> None:
        self.received = 0
        try:
            body = b"".join(self._pieces(handler))
        except (EOFError, OSError):
            self.broken += 1
            handler.close_connection = True
            return
        kind = handler.headers.get("Content-Type", "")
        read: Any = body
        if kind.startswith("multipart/"):
            read = parsed(kind, body)
        elif body:
            read = json.loads(body)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            self.seen.append(Seen(handler.command, handler.path, headers, read))
            step = self.steps.pop(0) if self.steps else None
        with contextlib.suppress(OSError):
            if step is not None:
                step(self, handler)
                return
            self._answer(handler, read)

    def _pieces(self, handler: Any) -> Iterator[bytes]:
        if handler.headers.get("Transfer-Encoding") == "chunked":
            while size := int(handler.rfile.readline() or b"x", 16):
                yield self._piece(handler, size)
                handler.rfile.readline()
            handler.rfile.readline()
            return
        left = int(handler.headers.get("Content-Length", 0))
        while left:
            data = self._piece(handler, min(left, 65536))
            left -= len(data)
            yield data

    def _piece(self, handler: Any, size: int) -> bytes:
        data: bytes = handler.rfile.read1(size)
        while len(data) < size and (more := handler.rfile.read1(size - len(data))):
            data += more
            self._came(len(more))
        if len(data) < size:
            raise EOFError
        self._came(len(data))
        return data

    def _came(self, size: int) -> None:
        with self.progress:
            self.received += size
            self.progress.notify_all()

    # -- answers --

    def _answer(self, handler: Any, body: Any) -> None:
        url = urlsplit(handler.path)
        path = url.path.removeprefix("/v1").removeprefix("/openai")
        if path.startswith("/deployments/"):
            path = "/" + path.split("/", 3)[3]
        found = {
            "/images/generations": self._image,
            "/images/edits": self._image,
            "/images/variations": self._image,
            "/audio/speech": self._speech,
            "/audio/transcriptions": self._transcription,
            "/audio/translations": self._transcription,
        }.get(path)
        if found is not None:
            found(handler, body)
            return
        name = path.strip("/").split("/")
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        status, answer = self._json(handler.command, name, query, body)
        if isinstance(answer, bytes):
            handler.reply(status, answer, {"Content-Type": "application/octet-stream"})
        else:
            reply(answer, status)(self, handler)

    def _image(self, handler: Any, body: Any) -> None:
        members = body.fields if isinstance(body, Form) else body
        if str(members.get("stream")).lower() == "true":
            usage = {"usage": TOKENS} if self.usage else {}
            parts = [
                {
                    "type": "image_generation.partial_image",
                    "b64_json": PNG,
                    "partial_image_index": 0,
                },
                {"type": "image_generation.completed", "b64_json": PNG, **usage},
            ]
            events(*parts)(self, handler)
            return
        count = int(members.get("n") or 1)
        answer = {"created": 1, "data": [{"b64_json": PNG}] * count}
        reply(answer | ({"usage": TOKENS} if self.usage else {}))(self, handler)

    def _speech(self, handler: Any, body: Any) -> None:
        if body.get("stream_format") == "sse":
            usage = {"input_tokens": 5, "output_tokens": 90, "total_tokens": 95}
            audio = base64.b64encode(SPEECH[:300]).decode()
            events(
                {"type": "speech.audio.delta", "audio": audio},
                {"type": "speech.audio.done", "usage": usage},
            )(self, handler)
            return
        pieces(*[SPEECH[at : at + 32768] for at in range(0, len(SPEECH), 32768)])(self, handler)

    def _transcription(self, handler: Any, form: Form) -> None:
        if "file" not in form.files:
            reply({"error": {"message": "no file", "type": "invalid_request_error"}}, 400)(
                self, handler
            )
        elif form.fields.get("stream") == "true":
            events(
                {"type": "transcript.text.delta", "delta": "Hello"},
                {"type": "transcript.text.done", "text": "Hello", "usage": HEARD},
            )(self, handler)
        elif form.fields.get("response_format") in ("text", "srt", "vtt"):
            handler.reply(200, b"Hello\n", {"Content-Type": "text/plain; charset=utf-8"})
        elif form.fields.get("response_format") == "verbose_json":
            reply({"text": "Hello", "language": "english", "duration": 8.47})(self, handler)
        else:
            reply({"text": "Hello"} | ({"usage": HEARD} if self.usage else {}))(self, handler)

    def _json(self, method: str, name: list[str], query: JSON, body: Any) -> tuple[int, Any]:
        missing = 404, {"error": {"message": "no such thing", "type": "invalid_request_error"}}
        if name == ["moderations"]:
            results = [{"flagged": False, "categories": {}, "category_scores": {}}]
            return 200, {"id": "modr-1", "model": body["model"], "results": results}
        if name[-1] == "rerank":
            results = [{"index": 0, "relevance_score": 0.9}]
            return 200, {
                "id": "r",
                "results": results,
                "meta": {"billed_units": {"search_units": 1}},
            }
        if name == ["files"]:
            return self._files(method, query, body)
        if name == ["batches"]:
            return self._batches(method, query, body)
        kept = {"files": self.files, "batches": self.batches}.get(name[0], {})
        if len(name) < 2 or name[1] not in kept:
            return missing
        if name[2:] == ["content"]:
            return 200, self.contents[name[1]]
        if name[2:] == ["cancel"]:
            kept[name[1]]["status"] = "cancelling"
        if method == "DELETE":
            del kept[name[1]]
            return 200, {"id": name[1], "object": "file", "deleted": True}
        return 200, kept[name[1]]

    def _files(self, method: str, query: JSON, body: Any) -> tuple[int, Any]:
        if method == "GET":
            return 200, page(self.files, query)
        ident = self._id("file-")
        self.contents[ident] = body.files["file"]
        self.files[ident] = {
            "id": ident,
            "object": "file",
            "bytes": len(body.files["file"]),
            "created_at": self._count,
            "filename": body.names["file"],
            "purpose": body.fields["purpose"],
            "status": "processed",
        }
        return 200, self.files[ident]

    def _batches(self, method: str, query: JSON, body: Any) -> tuple[int, Any]:
        if method == "GET":
            return 200, page(self.batches, query)
        if body["input_file_id"] not in self.files:
            return 400, {"error": {"message": "no such file", "type": "invalid_request_error"}}
        ident = self._id("batch_")
        self.batches[ident] = {
            "id": ident,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": 1_790_000_000 + self._count,
            "metadata": body.get("metadata"),
        }
        return 200, self.batches[ident]

    def complete(self, ident: str) -> None:
        """End a batch."""
        output = self._id("file-")
        self.contents[output] = b'{"custom_id":"a"}\n'
        self.files[output] = {
            "id": output,
            "object": "file",
            "bytes": 18,
            "created_at": self._count,
            "filename": "output.jsonl",
            "purpose": "batch_output",
            "status": "processed",
        }
        self.batches[ident] |= {
            "status": "completed",
            "output_file_id": output,
            "model": "gpt-4.1",
            "usage": {
                "input_tokens": 1000,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 100,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 1100,
            },
        }

    def _id(self, start: str) -> str:
        with self.lock:
            self._count += 1
            return f"{start}{self.prefix}{self._count}"


def page(kept: dict[str, JSON], query: JSON) -> JSON:
    """A page of a list, the newest first."""
    found = list(kept.values())[::-1]
    after = query.get("after")
    if after:
        at = [each["id"] for each in found].index(after)
        found = found[at + 1 :]
    limit = int(query.get("limit", 20))
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }


# -- steps --


def reply(body: Any, status: int = 200, **headers: str) -> Step:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return lambda vendor, handler: handler.reply(status, data, said)


def pieces(
    *parts: bytes | Callable[[], object], kind: str = "audio/mpeg", end: str = "end"
) -> Step:
    """Send chunks, call functions; then end, or reset the connection."""

    def step(vendor: MediaVendor, handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for part in parts:
                if callable(part):
                    part()
                else:
                    handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        except OSError:
            vendor.left.set()
            return
        if end == "end":
            handler.wfile.write(b"0\r\n\r\n")
        else:
            handler.reset()

    return step


def events(*bodies: Any, end: str = "end") -> Step:
    """Send each body as an event, with its type as name."""
    data = [
        body
        if callable(body) or isinstance(body, bytes)
        else f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode()
        for body in bodies
    ]
    return pieces(*data, kind="text/event-stream", end=end)
