"""What is done to live Turso databases: connect, capture, optimize. Only here is pyturso needed, and imported."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import turso

from snapshot_assets.engines.contract import Captured, Optimized
from snapshot_assets.engines.sqlite_file import staged_file
from snapshot_assets.engines.sqlite_vacuum import vacuum
from snapshot_assets.engines.turso_capture import capture_file, check_for_readers
from snapshot_assets.engines.turso_connection import check_live, is_busy, live_errors, open_live
from snapshot_assets.errors import LiveDatabaseMissing
from snapshot_assets.model.dataset import Dataset

__all__ = ["capture", "check", "connect", "optimize"]

_LOCK_MILLISECONDS: Final = 30_000
_PAUSE_SECONDS: Final = 0.05


def check(dataset: Dataset) -> None:
    """Refuse a live file of which no capture could be made; there need not be one."""
    with suppress(LiveDatabaseMissing):
        check_live(dataset)


@contextmanager
def connect(dataset: Dataset) -> Iterator[turso.Connection]:
    """A connection with foreign keys on.

    A transaction that the block leaves open is committed, or undone if the block ends with an error.
    """
    live = dataset.real_path
    live.parent.mkdir(parents=True, exist_ok=True)
    check(dataset)
    with open_live(live, dataset.name) as connection:
        connection.execute("pragma foreign_keys = on")
        connection.execute(f"pragma busy_timeout = {_LOCK_MILLISECONDS}")
        yield connection
        # `with connection:` would lose the error of a commit. What is not committed is undone when it is closed.
        connection.commit()


def capture(dataset: Dataset, staging: Path, version: str, *, timeout: float) -> Captured:
    """A staged copy named `<dataset>.db`, as Turso names its databases."""
    path = f"{dataset.name}.db"
    check_live(dataset)
    mode = capture_file(dataset.real_path, staging / path, dataset.name, timeout=timeout)
    captured = staged_file(staging, path, mode, version)
    check_for_readers(staging / path, dataset.real_path, dataset.name)
    return captured


def optimize(dataset: Dataset, *, timeout: float) -> Optimized:
    """VACUUM, which Turso writes through its log, so that it happens or does not."""
    live, deadline = dataset.real_path, time.monotonic() + timeout
    check_live(dataset)
    with open_live(live, dataset.name, timeout=timeout) as connection, live_errors(live, dataset.name):
        connection.isolation_level = None
        return vacuum(
            lambda pragma: int(connection.execute(f"pragma {pragma}").fetchone()[0]),
            lambda: _vacuum(connection, deadline),
        )


def _vacuum(connection: turso.Connection, deadline: float) -> None:
    while True:
        try:
            connection.execute("vacuum").fetchall()
            break
        except turso.Error as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_SECONDS)
    connection.execute("pragma wal_checkpoint(truncate)").fetchall()
