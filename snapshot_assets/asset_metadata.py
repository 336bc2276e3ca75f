"""What a materialization shows of a publish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from snapshot_assets.errors import NotFound

if TYPE_CHECKING:
    from snapshot_assets.model.schema import TableSchema
    from snapshot_assets.publish.publisher import PublishResult
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["materialization_metadata"]

_BEFORE_PUBLISH: Final = frozenset({"lease", "recover", "gate", "capture"})
"""The phases of a publish that wait or capture; all others make up `snapshot/publish_seconds`."""


def materialization_metadata(store: SnapshotStore, result: PublishResult) -> dict[str, Any]:
    """What a materialization shows of a publish. Each figure that the UI should plot is a number exactly once.

    Reads the head once, for the column schema.

    Raises:
        StoreError: the head can not be read; the publish itself stands.
    """
    from snapshot_assets.model.manifest import manifest_key

    schemas = _schemas(store, result)

    name, tables = result.dataset, sorted(result.row_counts)
    capture = result.seconds.get("capture", 0.0)
    publish = sum(seconds for phase, seconds in result.seconds.items() if phase not in _BEFORE_PUBLISH)
    metadata: dict[str, Any] = {
        "dagster/row_count": sum(result.row_counts.values()),
        "dagster/uri": f"{store.url.rstrip('/')}/heads/{name}.json",
        "dagster/table_name": f"{name}.main.{tables[0]}" if len(tables) == 1 else f"{name}.main",
        "snapshot/id": result.snapshot_id,
        "snapshot/generation": result.generation,
        "snapshot/outcome": result.outcome,
        "snapshot/operation_id": result.operation_id,
        "snapshot/content_digest": result.content_digest,
        "snapshot/data_bytes": result.data_bytes,
        "snapshot/uploaded_bytes": result.uploaded_bytes,
        "snapshot/reused_share": round(result.reused_share, 4),
        "snapshot/capture_seconds": round(capture, 3),
        "snapshot/publish_seconds": round(publish, 3),
        "snapshot/row_counts": dg.MetadataValue.json(dict(result.row_counts)),
        "snapshot/summary": dg.MetadataValue.md(_summary(result, capture, publish)),
        "snapshot/url": dg.MetadataValue.path(
            f"{store.url.rstrip('/')}/{manifest_key(name, result.incarnation, result.operation_id)}"
        ),
    }
    if schemas:
        metadata["dagster/column_schema"] = _column_schema(schemas)
    return metadata


def _schemas(store: SnapshotStore, result: PublishResult) -> Mapping[str, TableSchema]:
    """The schemas of the published tables, as the head lists them; none if retention was faster than we."""
    try:
        head = store.head(result.dataset)
    except NotFound:
        return {}
    entry = head.entry_of_operation(result.operation_id)
    return {} if entry is None else head.tables(entry.schema_id)


def _column_schema(schemas: Mapping[str, TableSchema]) -> dg.TableSchema:
    """One table's columns; of several tables, every column as `table.column`."""
    several = len(schemas) > 1
    columns = [
        dg.TableColumn(
            name=f"{table}.{field.name}" if several else field.name,
            type=field.type,
            constraints=dg.TableColumnConstraints(nullable=field.nullable),
        )
        for table in sorted(schemas)
        for field in schemas[table].fields
    ]
    return dg.TableSchema(columns=columns)


def _summary(result: PublishResult, capture: float, publish: float) -> str:
    outcomes = {
        "published": f"Published as snapshot {result.snapshot_id}",
        "unchanged": f"Unchanged: the content is that of snapshot {result.snapshot_id}",
        "already_published": f"Published before by this run as snapshot {result.snapshot_id}",
    }
    data, sent = _size(result.data_bytes), _size(result.uploaded_bytes)
    lines = [
        f"**{outcomes[result.outcome]}**, generation {result.generation}",
        "",
        "| table | rows |",
        "|---|---:|",
        *(f"| {table} | {result.row_counts[table]:,} |" for table in sorted(result.row_counts)),
        "",
        f"- {data} of data, {sent} uploaded ({result.reused_share:.1%} reused)",
        f"- captured in {capture:.2f} s, published in {publish:.2f} s",
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
