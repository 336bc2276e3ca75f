"""Live databases, and what every publish must leave behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Container
from pathlib import Path

import duckdb

from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.model.audit import AuditRow, audit_key, audit_prefix
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import snapshot_digest
from snapshot_assets.store.snapshot_store import SnapshotStore


def grow_duckdb(path: Path, rows: int) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table if not exists t (id bigint, note varchar)")
        connection.execute("insert into t select i, 'row ' || i from range(?) r(i)", [rows])


def grow_sqlite(path: Path, rows: int) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table if not exists t (id integer, note text)")
        connection.executemany("insert into t values (?, ?)", ((i, f"row {i}") for i in range(rows)))
    connection.close()


def grow(dataset: Dataset, rows: int) -> None:
    """Add rows to the live database."""
    (grow_duckdb if dataset.engine == "duckdb" else grow_sqlite)(dataset.path, rows)


def audits(store: SnapshotStore, dataset: str = "orders") -> dict[str, str]:
    """The outcome of every operation that ended."""
    rows = {}
    for listed in store.objects.list(audit_prefix(dataset)):
        row = AuditRow.parse(store.objects.read(listed.key).data, listed.key)
        assert listed.key == audit_key(dataset, row.operation_id)
        rows[str(row.operation_id)] = row.outcome.value
    return rows


def check_store(store: SnapshotStore, scratch: Path, dataset: str = "orders", known: Container[str] = ()) -> None:
    """What holds whenever no operation is in progress.

    No sidecar; data only of operations that a listed snapshot needs; every listed snapshot audited as committed, once;
    every listed snapshot restores bit for bit, which is left out for those that `known` operations published.
    """
    head = store.head(dataset)
    assert not list(store.objects.list(f"recovery/{dataset}/"))
    rows = audits(store, dataset)
    needed: set[str] = set()
    for entry in head.snapshots:
        content = read_content(store.objects, dataset, head.incarnation, entry.operation_id, entry.manifest_digest)
        needed |= set(content.manifest.operations)
        assert bool(entry.reuses) == (len(content.manifest.operations) > 1)
        assert rows[entry.operation_id] == "committed"
        assert snapshot_digest(content.manifest.files, content.manifest.schemas) == entry.content_digest
        if entry.operation_id in known:
            continue
        folder = scratch / f"restored-{entry.operation_id}"
        folder.mkdir(parents=True)
        restore_files(store.objects, content, folder)
    stored = {listed.key.split("/")[3] for listed in store.objects.list(f"data/{dataset}/")}
    assert stored <= needed
