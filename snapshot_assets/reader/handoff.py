"""What a user keeps beside a dataset's data, and what a hand-off of it must be able to do.

Three kinds, told apart by their methods. All of them check whether the next generation suits them:

- a `FormatCheck` does nothing else: what reads the data by itself needs no hand-off;
- an `IndexHandoff` has one handle a generation, such as a search index or a cache: the old one is persisted, and the
  new one is opened from its bytes, while the old one goes on being used;
- a `StreamHandoff` has one handle at a time, such as a cursor or a consumer: it is stopped at a position, and started
  from there on the new generation.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from snapshot_assets.errors import ReaderError
from snapshot_assets.reader.serving import Lease, Serving
from snapshot_assets.reader.settings import Current

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FormatCheck", "Generation", "IndexHandoff", "OnDrainTimeout", "StreamHandoff"]

Handle = TypeVar("Handle")
Position = TypeVar("Position")


class Generation:
    """One generation of a dataset as a hand-off sees it, also before anybody else does."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.dataset = serving.copy.manifest.dataset

    @property
    def current(self) -> Current:
        """Which generation and snapshot it is."""
        return self._serving.current

    @property
    def tables(self) -> dict[str, pa.Schema]:
        """Its tables, with their Arrow schemas."""
        return {name: table.schema.to_arrow() for name, table in self._serving.copy.manifest.tables.items()}

    def connect(self) -> Lease:
        """A lease of this generation and no other: ``with generation.connect() as connection``.

        Raises:
            ReaderError: on entering, when this generation is served no more.
        """
        return Lease(self._find)

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Run one statement on this generation and fetch its whole result as Arrow.

        Raises:
            ReadOnlyDataset: the statement writes.
            ReaderError: this generation is served no more.
        """
        with self.connect() as connection:
            return self._serving.pool.query(sql, parameters, connection=connection)

    def _find(self) -> Serving:
        if self._serving.draining_since is not None:
            raise ReaderError(
                f"generation {self.current.generation} is served no more",
                hint="Use the generation that the last `open` or `start` was given.",
                dataset=self.dataset,
            )
        return self._serving


@runtime_checkable
class FormatCheck(Protocol):
    """What every hand-off can do. It may raise anything: that is its answer."""

    def check_compat(self, old: Generation, new: Generation) -> None:
        """Raise if what is kept beside `old` can not go on beside `new`; nothing was touched yet."""


@runtime_checkable
class IndexHandoff(FormatCheck, Protocol[Handle]):
    """Keeps one handle a generation. Whatever `persist` and `open` raise leaves the old generation serving."""

    def open(self, state: bytes | None, generation: Generation) -> Handle:
        """A handle for a generation, before that is served.

        Args:
            state: what `persist` gave; none when no generation was served before.
            generation: the data that it stands beside.
        """

    def persist(self, handle: Handle) -> bytes:
        """What the next handle needs of this one, which goes on being used."""

    def close(self, handle: Handle) -> None:
        """Let go of a handle whose last lease has ended. May be called by any thread."""


@runtime_checkable
class StreamHandoff(FormatCheck, Protocol[Handle, Position]):
    """Keeps one handle at a time, and loses no position."""

    def start(self, position: Position | None, generation: Generation) -> Handle:
        """Go on from a position, on the data that is served now.

        What it raises is reported; the position is kept, and every later refresh tries again.

        Args:
            position: what `checkpoint` gave; none at the first start.
            generation: the data that is served.
        """

    def checkpoint(self, handle: Handle) -> Position:
        """Stop, and tell from where to go on. If it raises it has not stopped, and the old generation goes on."""

    def close(self, handle: Handle) -> None:
        """Let go of a handle that was stopped."""


class OnDrainTimeout(enum.Enum):
    """What happens when the uses of a stream do not end in time: it stays where it is, or is stopped all the same."""

    ABORT = "abort"
    CUT_OVER = "cut_over"
