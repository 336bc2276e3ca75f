"""`ls`, `show`, `pins`: what the store holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from snapshot_assets.cli.options import DatasetName, JsonOutput, StoreOptions, StoreUrl, WantedSnapshot, open_store
from snapshot_assets.cli.output import count, print_facts, print_json, print_table, size_text, time_text
from snapshot_assets.errors import SnapshotAssetsError

if TYPE_CHECKING:
    from snapshot_assets.model.head import Head, SnapshotEntry
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["ls", "pins", "read_heads", "show", "wanted_entry"]


def ls(store: StoreUrl, store_option: StoreOptions = None, as_json: JsonOutput = False) -> None:
    """List the datasets, each with its current snapshot."""
    heads = read_heads(open_store(store, store_option, read_only=True))
    if as_json:
        print_json({"datasets": [_head_row(name, head) for name, head in heads.items()]})
    elif not heads:
        typer.echo("The store has no datasets yet.")
    else:
        columns = ("dataset", "engine", "status", "snapshot", "generation", "rows", "data", "published")
        rows = [_head_cells(name, head) for name, head in heads.items()]
        print_table(columns, rows, right=("snapshot", "generation", "rows", "data"))


def show(
    name: DatasetName,
    store: StoreUrl,
    store_option: StoreOptions = None,
    snapshot: WantedSnapshot = None,
    as_json: JsonOutput = False,
) -> None:
    """Show one dataset in full, or one of its snapshots."""
    opened = open_store(store, store_option, read_only=True)
    head = opened.head(name)
    if snapshot is None:
        if as_json:
            print_json(json.loads(head.to_bytes()))
        else:
            _print_head(head)
        return
    from snapshot_assets.content.snapshot import read_content

    entry = wanted_entry(head, snapshot)
    content = read_content(opened.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest)
    if as_json:
        print_json({"entry": entry.to_json(), "manifest": json.loads(content.manifest_bytes)})
        return
    manifest = content.manifest
    print_facts([*_entry_facts(entry), ("engine", f"{manifest.engine} {manifest.engine_version}")])
    typer.echo()
    print_table(
        ("table", "rows", "columns"),
        [
            (table, count(held.row_count), ", ".join(f"{field.name} {field.type}" for field in held.schema.fields))
            for table, held in sorted(manifest.tables.items())
        ],
        right=("rows",),
    )
    typer.echo()
    print_table(
        ("file", "size", "digest"),
        [(file.path, size_text(file.size), file.content_digest) for file in manifest.files],
        right=("size",),
    )


def pins(name: DatasetName, store: StoreUrl, store_option: StoreOptions = None, as_json: JsonOutput = False) -> None:
    """List what protects snapshots of a dataset from retention."""
    head = open_store(store, store_option, read_only=True).head(name)
    if as_json:
        print_json({"pins": [pin.to_json() for pin in head.pins]})
    elif not head.pins:
        typer.echo(f"{name} has no pins.")
    else:
        _print_pins(head)


def wanted_entry(head: Head, snapshot_id: int | None) -> SnapshotEntry:
    """The head's entry of the snapshot that was asked for, or of the current one.

    Raises:
        SnapshotMissing: the head lists none of this id, or has no current one.
    """
    from snapshot_assets.errors import SnapshotMissing

    entry = head.current if snapshot_id is None else head.entry(snapshot_id)
    if entry is not None:
        return entry
    if snapshot_id is None:
        raise SnapshotMissing(
            f"{head.dataset} has no current snapshot", hint="Publish the dataset first.", dataset=head.dataset
        )
    listed = ", ".join(str(entry.snapshot_id) for entry in head.snapshots) or "none"
    raise SnapshotMissing(f"{head.dataset} has no snapshot {snapshot_id}; it lists {listed}", dataset=head.dataset)


def read_heads(store: SnapshotStore) -> dict[str, Head | SnapshotAssetsError]:
    """Every head by its dataset's name; in place of one that can not be read, the reason."""
    from concurrent.futures import ThreadPoolExecutor

    from snapshot_assets.errors import DocumentDamaged, NotFound, UnsupportedFormatVersion

    def read(name: str) -> Head | SnapshotAssetsError:
        try:
            return store.head(name)
        except (DocumentDamaged, NotFound, UnsupportedFormatVersion) as error:
            return error

    names = sorted(store.heads())
    with ThreadPoolExecutor(max_workers=16) as readers:
        return dict(zip(names, readers.map(read, names), strict=True))


def _head_row(name: str, head: Head | SnapshotAssetsError) -> dict[str, Any]:
    if isinstance(head, SnapshotAssetsError):
        return {"dataset": name, "error": head.to_json()}
    current = head.current
    return {
        "dataset": name,
        "engine": head.engine,
        "status": head.status.value,
        "incarnation": head.incarnation,
        "generation": head.generation,
        "current_snapshot_id": head.current_snapshot_id,
        "snapshots": len(head.snapshots),
        "committed_at_ms": current.committed_at_ms if current else None,
        "content_digest": current.content_digest if current else None,
        "row_count": current.row_count if current else None,
        "data_bytes": current.data_bytes if current else None,
    }


def _head_cells(name: str, head: Head | SnapshotAssetsError) -> tuple[str, ...]:
    if isinstance(head, SnapshotAssetsError):
        return (name, "-", f"{head.kind}: {head.message}", "-", "-", "-", "-", "-")
    current = head.current
    if current is None:
        return (name, head.engine, head.status.value, "-", str(head.generation), "-", "-", "-")
    return (
        name,
        head.engine,
        head.status.value,
        str(current.snapshot_id),
        str(head.generation),
        count(current.row_count),
        size_text(current.data_bytes),
        time_text(current.committed_at_ms),
    )


def _print_head(head: Head) -> None:
    typer.echo(f"{head.dataset} ({head.engine}, {head.status.value})")
    print_facts(
        [
            ("generation", f"{head.generation} (since {time_text(head.current_since_ms)})"),
            ("revision", f"{head.revision}, epoch {head.epoch}"),
            ("incarnation", head.incarnation),
        ]
    )
    if not head.snapshots:
        typer.echo("\nNothing is published yet.")
        return
    typer.echo()
    rows = [
        (
            "current" if entry.snapshot_id == head.current_snapshot_id else "",
            str(entry.snapshot_id),
            time_text(entry.committed_at_ms),
            count(entry.row_count),
            size_text(entry.data_bytes),
            size_text(entry.uploaded_bytes),
            entry.operation_id,
        )
        for entry in reversed(head.snapshots)
    ]
    columns = ("", "snapshot", "published", "rows", "data", "uploaded", "operation")
    print_table(columns, rows, right=("snapshot", "rows", "data", "uploaded"))
    if head.current:
        typer.echo()
        tables = [
            (table, ", ".join(f"{field.name} {field.type}" for field in schema.fields))
            for table, schema in sorted(head.tables(head.current.schema_id).items())
        ]
        print_table(("table", "columns"), tables)
    if head.pins:
        typer.echo()
        _print_pins(head)


def _entry_facts(entry: SnapshotEntry) -> list[tuple[str, str]]:
    facts = [
        ("snapshot", str(entry.snapshot_id)),
        ("published", time_text(entry.committed_at_ms)),
        ("rows", count(entry.row_count)),
        ("data", f"{size_text(entry.data_bytes)}, of which {size_text(entry.uploaded_bytes)} were uploaded"),
        ("operation", entry.operation_id),
        ("content", entry.content_digest),
    ]
    if entry.idempotency_key:
        facts.append(("idempotency key", entry.idempotency_key))
    return facts + [(key, value) for key, value in entry.summary.items()]


def _print_pins(head: Head) -> None:
    rows = [
        (
            pin.name,
            str(pin.snapshot_id),
            pin.owner,
            pin.reason,
            "never" if pin.expires_at_ms is None else time_text(pin.expires_at_ms),
        )
        for pin in head.pins
    ]
    print_table(("pin", "snapshot", "owner", "reason", "expires"), rows, right=("snapshot",))
