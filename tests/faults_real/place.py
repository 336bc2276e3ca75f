"""What the actors of a test share: a store, live databases, and journals in which each says what it did."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb

from snapshot_assets.errors import Conflict, StoreUnavailable
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.head import Head, head_key
from snapshot_assets.publish.result import PublishResult
from snapshot_assets.store.contract import MAX_DOCUMENT_BYTES, Listed, Store, Versioned
from snapshot_assets.store.open import open_objects
from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["NAME", "Journal", "Place", "WatchedStore", "acknowledge", "change", "digest_of_rows"]

NAME: Final = "orders"
_ROWS: Final = 400

Before = Callable[[int, str], None]


def digest_of_rows(rows: Iterable[Sequence[Any]]) -> str:
    """What tells one content of the table from another."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()[:16]


class Journal:
    """Lines of JSON that outlive a SIGKILL of whoever wrote them: each is one write to a file."""

    def __init__(self, folder: Path, actor: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._actor = actor
        self._file = os.open(folder / f"{actor}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: str, **fields: Any) -> None:
        line = {"kind": kind, "actor": self._actor, "pid": os.getpid(), "at": time.monotonic(), **fields}
        os.write(self._file, json.dumps(line).encode() + b"\n")


class WatchedStore:
    """Another store; what its callers see and make of heads goes into a journal, and each call can be waited for.

    Args:
        inner: the store.
        journal: where heads are written down; nowhere, when it is left out.
        before: called before each call, with its number from 1, and with the method and the key.

    Attributes:
        alone: whoever holds it knows that no other thread is changing anything in the store: on a local store a
            process that stands still within a change keeps the lock of its key.
    """

    def __init__(self, inner: Store, journal: Journal | None, before: Before = lambda *_: None) -> None:
        self._inner = inner
        self._journal = journal
        self._before = before
        self._calls = 0
        self.alone = threading.RLock()

    @property
    def url(self) -> str:
        return self._inner.url

    def read(self, key: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned:
        begun = self._enter("read", key)
        found = self._inner.read(key, limit=limit)
        self._saw("read", key, found.data, begun)
        return found

    def read_if_changed(self, key: str, token: str, *, limit: int = MAX_DOCUMENT_BYTES) -> Versioned | None:
        begun = self._enter("read_if_changed", key)
        found = self._inner.read_if_changed(key, token, limit=limit)
        if found is not None:
            self._saw("read", key, found.data, begun)
        return found

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self._enter("read_ranges", key)
        return self._inner.read_ranges(key, ranges)

    def write_if_absent(self, key: str, data: bytes) -> str:
        return self._changing("write_if_absent", key, data, lambda: self._inner.write_if_absent(key, data))

    def write_if_match(self, key: str, data: bytes, token: str) -> str:
        return self._changing("write_if_match", key, data, lambda: self._inner.write_if_match(key, data, token))

    def upload(self, key: str, source: bytes | bytearray | memoryview | Path) -> None:
        self._enter("upload", key)
        with self.alone:
            self._inner.upload(key, source)

    def list(self, prefix: str) -> Iterator[Listed]:
        self._enter("list", prefix)
        return self._inner.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        doomed = list(keys)
        self._enter("delete", " ".join(doomed))
        with self.alone:
            self._inner.delete(doomed)

    def _enter(self, method: str, key: str) -> float:
        with self.alone:
            self._calls += 1
            self._before(self._calls, f"{method} {key}")
        return time.monotonic()

    def _changing(self, method: str, key: str, data: bytes, change: Callable[[], str]) -> str:
        begun = self._enter(method, key)
        # Before it is sent, so that a change whose sender dies is accounted for.
        self._saw("trying", key, data, begun)
        try:
            with self.alone:
                token = change()
        except Conflict:
            self._saw("refused", key, data, begun)
            raise
        except StoreUnavailable:
            self._saw("unanswered", key, data, begun)
            raise
        self._saw("wrote", key, data, begun)
        return token

    def _saw(self, what: str, key: str, data: bytes, begun: float) -> None:
        if key != head_key(NAME) or self._journal is None:
            return
        head = Head.parse(data, NAME)
        current = head.current
        self._journal.write(
            "head",
            what=what,
            begun=begun,
            revision=head.revision,
            generation=head.generation,
            incarnation=head.incarnation,
            status=head.status.value,
            next_snapshot_id=head.next_snapshot_id,
            snapshot_id=None if current is None else current.snapshot_id,
            operation_id=None if current is None else current.operation_id,
            rows=None if current is None else current.summary.get("rows"),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A folder and a store of one test. It can be sent to another process."""

    folder: Path
    url: str
    options: Mapping[str, str] = field(default_factory=dict)
    engine: str = "sqlite"

    def store(
        self,
        journal: Journal | None = None,
        before: Before = lambda *_: None,
        *,
        read_only: bool = False,
        retry_for: float = 30.0,
    ) -> SnapshotStore:
        """The store, as an actor sees it who writes the journal."""
        objects = self.watched(journal, before)
        return SnapshotStore.over(objects, read_only=read_only, retry_for=retry_for)

    def watched(self, journal: Journal | None, before: Before = lambda *_: None) -> WatchedStore:
        return WatchedStore(open_objects(self.url, self.options or None), journal, before)

    def journal(self, actor: str) -> Journal:
        return Journal(self.folder / "journals", actor)

    def end(self) -> None:
        """Tell every actor that has turns left to stop after the one that it is in."""
        (self.folder / "over").touch()

    def is_over(self) -> bool:
        return (self.folder / "over").exists()

    def events(self, actor: str = "*") -> list[dict[str, Any]]:
        """Every line of the journals, in the order of time; a last line that was cut short was never written."""
        found = [
            json.loads(line)
            for path in (self.folder / "journals").glob(f"{actor}.jsonl")
            for line in path.read_bytes().split(b"\n")[:-1]
        ]
        return sorted(found, key=lambda event: float(event["at"]))

    def live(self, name: str = "live") -> Dataset:
        """The dataset with one of its live databases, made when there is none."""
        dataset = Dataset(NAME, self.engine, self.folder / name / f"orders.{self.engine}")
        if not dataset.path.exists():
            dataset.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connected(dataset)) as connection:
                connection.execute("create table t (id bigint, version bigint, note varchar)")
                rows = ", ".join(f"({i}, 0, '{name} {i * 7919:x}')" for i in range(_ROWS))
                connection.execute(f"insert into t values {rows}")
                connection.commit()
        return dataset


def _connected(dataset: Dataset) -> Any:
    if dataset.engine == "duckdb":
        return duckdb.connect(str(dataset.path))
    return sqlite3.connect(dataset.path)


def change(connection: Any) -> str:
    """Change every row of a live database, and some notes, in one transaction; the digest of what it holds then."""
    connection.execute("begin")
    connection.execute("update t set version = version + 1")
    connection.execute(f"update t set note = '{os.urandom(8).hex()}' where id % 97 = {os.urandom(1)[0] % 97}")
    connection.execute("commit")
    return digest_of_rows(connection.execute("select id, version, note from t order by id").fetchall())


def acknowledge(journal: Journal, result: PublishResult, rows: str, begun: float) -> None:
    """Write down a publish that has returned."""
    journal.write(
        result.outcome,
        begun=begun,
        rows=rows,
        incarnation=result.incarnation,
        snapshot_id=result.snapshot_id,
        generation=result.generation,
        operation_id=result.operation_id,
    )
