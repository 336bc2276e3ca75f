"""The live side of a Lance dataset: opened, written, and told from folders that are something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import lance

from snapshot_assets.errors import LiveDatabaseMissing, UnsupportedLiveDatabase

if TYPE_CHECKING:
    from lance.types import ReaderLike

__all__ = ["LANCE_ERRORS", "LanceTable", "check_live", "connect_table", "open_live"]

LANCE_ERRORS: Final = (OSError, ValueError, RuntimeError, NotImplementedError, KeyError)
"""What the library raises: it has no error classes of its own."""

_OWN_FOLDERS: Final = frozenset({"_deletions", "_indices", "_refs", "_transactions", "_versions", "data"})


class LanceTable:
    """A live Lance dataset, which need not exist before it is written for the first time.

    Args:
        path: the dataset's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = True

    @property
    def path(self) -> Path:
        """The dataset's folder: absolute, all links followed.

        Raises:
            ValueError: the connection is closed.
        """
        if not self._open:
            raise ValueError(f"the connection to {self._path} is closed")
        return self._path

    @property
    def dataset(self) -> lance.LanceDataset:
        """The dataset as of now, for everything that Lance can do; a new object each time.

        Raises:
            LiveDatabaseMissing: nothing was written yet.
            ValueError: the connection is closed.
        """
        return open_live(self.path)

    def write(
        self, data: ReaderLike, mode: Literal["create", "append", "overwrite"] = "append", **options: Any
    ) -> lance.LanceDataset:
        """Write rows by `lance.write_dataset`, which makes the dataset when there is none.

        Args:
            data: what Lance can read rows from, such as an Arrow table or a stream of batches.
            mode: add to what is there, put a new version with other rows over it, or insist that nothing is there.
            options: further arguments of `lance.write_dataset`.

        Returns:
            The dataset with the rows in it.

        Raises:
            ValueError: the connection is closed, or the rows do not fit the dataset.
            OSError: they can not be written.
        """
        path = self.path
        if not path.exists():
            mode = "create"  # else Lance warns that there is nothing yet
        return lance.write_dataset(data, str(path), mode=mode, **options)

    def _close(self) -> None:
        self._open = False


@contextmanager
def connect_table(live: Path) -> Iterator[LanceTable]:
    """A table that can be used until the end of the block.

    Raises:
        UnsupportedLiveDatabase: something else is there.
    """
    check_live(live)
    table = LanceTable(live)
    try:
        yield table
    finally:
        table._close()  # noqa: SLF001 - nobody else ends a connection


def check_live(live: Path) -> None:
    """Refuse a path at which a Lance dataset neither is nor can be made.

    A folder in which a first write was cut short is one in which a dataset can be made.

    Raises:
        UnsupportedLiveDatabase: something else is there, or a dataset that the library does not open.
    """
    with _unusable(live), suppress(LiveDatabaseMissing):
        if not live.is_dir() or _has_versions(live) or any(entry.name not in _OWN_FOLDERS for entry in live.iterdir()):
            open_live(live)


def open_live(live: Path) -> lance.LanceDataset:
    """The latest version of a live dataset.

    Raises:
        LiveDatabaseMissing: nothing is there.
        UnsupportedLiveDatabase: it is no Lance dataset, or one that the library does not open.
    """
    with _unusable(live):
        if not live.exists():
            raise LiveDatabaseMissing(f"there is no live database at {live}")
        if not _has_versions(live):
            raise UnsupportedLiveDatabase(f"{live} is no Lance dataset")
    try:
        return lance.dataset(str(live))
    except LANCE_ERRORS as error:
        raise UnsupportedLiveDatabase(f"Lance does not open {live}: {error}") from error


def _has_versions(live: Path) -> bool:
    return any(live.glob("_versions/*.manifest"))


@contextmanager
def _unusable(live: Path) -> Iterator[None]:
    """Say of what the operating system refuses that it is about the live database."""
    try:
        yield
    except OSError as error:
        raise UnsupportedLiveDatabase(f"{live} can not be looked at: {error.strerror}") from error
