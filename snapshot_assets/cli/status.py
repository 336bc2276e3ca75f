"""`status`: the store at a glance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from snapshot_assets.cli.fleet import Fleet, behind_text, read_fleet
from snapshot_assets.cli.look import read_heads
from snapshot_assets.cli.options import JsonOutput, StoreOptions, StoreUrl, open_store
from snapshot_assets.cli.output import count, print_facts, print_json, size_text, time_text
from snapshot_assets.errors import DocumentDamaged, NotFound, SnapshotAssetsError, UnsupportedFormatVersion

if TYPE_CHECKING:
    from snapshot_assets.maintenance.repair import RepairRow
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["status"]


def status(store: StoreUrl, store_option: StoreOptions = None, as_json: JsonOutput = False) -> None:
    """Show the store at a glance: how much it holds, who writes, who reads, what is unfinished or damaged."""
    from snapshot_assets.maintenance.repair import all_pending

    opened = open_store(store, store_option, read_only=True)
    heads = read_heads(opened)
    readable = [head for head in heads.values() if not isinstance(head, SnapshotAssetsError)]
    current = [head.current for head in readable if head.current]
    fleet = read_fleet(opened, heads)
    document = {
        "url": opened.url,
        "store_id": _store_id(opened),
        "datasets": len(heads),
        "snapshots": sum(len(head.snapshots) for head in readable),
        "row_count": sum(entry.row_count for entry in current),
        "data_bytes": sum(entry.data_bytes for entry in current),
        "published_at_ms": max((entry.committed_at_ms for head in readable for entry in head.snapshots), default=None),
        "writers": _writers(opened),
        "readers": {"alive": fleet.alive, "silent": len(fleet.known) - fleet.alive, "behind": _behind(fleet)},
        "unfinished": _unfinished(all_pending(opened)),
        "damaged": [
            error.to_json() | {"dataset": name}
            for name, error in heads.items()
            if isinstance(error, SnapshotAssetsError)
        ]
        + [error.to_json() for error in fleet.unreadable],
    }
    if as_json:
        print_json(document)
    else:
        _print(document, fleet)


def _behind(fleet: Fleet) -> list[dict[str, Any]]:
    """The live readers that do not serve the newest generation."""
    return [
        {
            "dataset": dataset,
            "reader_id": one.reader.announcement.reader_id,
            "endpoint": one.reader.announcement.endpoint,
            "generation": one.announced.generation,
            "lag": one.generations,
            "lag_seconds": one.seconds,
            "last_error": one.announced.last_error,
        }
        for dataset, one in fleet.behind
    ]


def _store_id(store: SnapshotStore) -> str | None:
    try:
        return store.store_id
    except NotFound:
        return None


def _writers(store: SnapshotStore) -> list[dict[str, Any]]:
    """Who holds a writer lease that was not released."""
    from snapshot_assets.model.lease import MAX_LEASE_BYTES, WriterLease

    held: list[dict[str, Any]] = []
    for listed in sorted(store.objects.list("leases/"), key=lambda listed: listed.key):
        dataset = listed.key.removeprefix("leases/").removesuffix(".json")
        try:
            lease = WriterLease.parse(store.objects.read(listed.key, limit=MAX_LEASE_BYTES).data, dataset)
        except (DocumentDamaged, NotFound, UnsupportedFormatVersion):
            continue  # the next writer of the dataset reports it
        if lease.duration_ms:
            held.append({"dataset": dataset, "renewed_at_ms": listed.last_modified_ms, **lease.holder.to_json()})
    return held


def _unfinished(pending: Iterable[RepairRow]) -> list[dict[str, str]]:
    """The operations that nobody has ended yet, at work now or left by the dead, and what settles them."""
    told: list[dict[str, str]] = []
    for row in pending:
        found = row.found if row.error is None else f"{row.error.kind}: {row.error.message}"
        told.append(
            {
                "dataset": row.dataset,
                "operation_id": row.subject.rpartition("/")[2].removesuffix(".json"),
                "kind": row.kind,
                "found": found,
                "settled_by": row.settled_by,
            }
        )
    return told


def _print(document: dict[str, Any], fleet: Fleet) -> None:
    typer.echo(f"{document['url']} (store {document['store_id'] or 'not made yet'})")
    print_facts(
        [
            ("datasets", f"{count(document['datasets'])} with {count(document['snapshots'])} snapshots"),
            ("current", f"{count(document['row_count'])} rows, {size_text(document['data_bytes'])}"),
            ("last publish", time_text(document["published_at_ms"])),
            ("readers", fleet.sentence if fleet.known else "none has announced itself"),
        ]
    )
    for writer in document["writers"]:
        renewed = time_text(writer["renewed_at_ms"])
        typer.echo(f"  writing: {writer['dataset']} by process {writer['pid']} on {writer['host']}, renewed {renewed}")
    for dataset, one in fleet.behind:
        error = f": {one.announced.last_error}" if one.announced.last_error else ""
        served = "nothing" if one.announced.generation is None else f"generation {one.announced.generation}"
        typer.echo(f"  behind: {one.name} serves {served} of {dataset}, behind by {behind_text(one)}{error}")
    for operation in document["unfinished"]:
        named = f"{operation['dataset']} {operation['kind']} {operation['operation_id']}"
        typer.echo(f"  unfinished: {named}, {operation['found']}")
        typer.echo(f"    settled by {operation['settled_by']}")
    for damaged in document["damaged"]:
        named = f"{damaged['dataset']}: " if damaged["dataset"] else ""
        typer.echo(f"  damaged: {named}{damaged['message']}")
