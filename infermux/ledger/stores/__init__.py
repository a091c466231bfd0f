"""What a ledger's database stores beside calls and budgets: keys, answers, files, alerts.

Each store is an abstract class, and one implementation in SQL that every database understands, with
`?` for values. `Database` is what they need of a ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Ask = Callable[[str, Sequence[Any]], list[Any]]  # returns the rows of a query


class Sql(Protocol):
    """A cursor in a transaction."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any:
        """Run a statement and return the cursor."""


class Database(Protocol):
    """Where the stores are."""

    def snapshot(self, work: Callable[[Ask], T]) -> T:
        """Return the result of *work*, whose queries see one state."""

    def write(self, work: Callable[[Sql], T]) -> T:
        """Return the result of *work*, in a transaction."""
