"""What is passed through, of a request to an endpoint that no dialect translates."""

from __future__ import annotations

from dataclasses import dataclass

from .multipart import Upload


@dataclass(slots=True)
class Passed:
    """How to send a request, and what its answer is."""

    method: str = "POST"
    path: str = ""  # with the query, of what a vendor stores; "": that of the operation
    upload: Upload | None = None  # the body, if it is multipart
    repeatable: bool = True  # whether sending it twice does the same as sending it once
    account: int | None = None  # the number of the provider's key to send it with; None: any
    media: str = ""  # the type of the answer
    length: int | None = None  # of the answer in bytes, if the vendor told it
