"""What Dagster shows of a publish and of an error, and which asset it shows a dataset as."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from snapshot_assets.errors import (
    CaptureError,
    ConfigurationError,
    LiveDatabaseBusy,
    NotFound,
    SnapshotAssetsError,
)
from snapshot_assets.model.dataset import Dataset

if TYPE_CHECKING:
    from snapshot_assets.model.schema import TableSchema
    from snapshot_assets.publish.publisher import PublishResult
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["asset_of", "duration_text", "markdown_table", "materialization_metadata", "size_text", "step_failure"]

_BEFORE_PUBLISH: Final = frozenset({"lease", "recover", "gate", "optimize", "capture"})
"""The phases of a publish that wait, rewrite or capture; all others make up `snapshot/publish_seconds`."""


def materialization_metadata(
    store: SnapshotStore, result: PublishResult, partition_keys: Sequence[str] = ()
) -> dict[str, Any]:
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
    if partition_keys:
        metadata["snapshot/partitions"] = _partitions_text(partition_keys)
    if schemas:
        metadata["dagster/column_schema"] = _column_schema(schemas)
    return metadata


def _partitions_text(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{min(keys)} to {max(keys)}, {len(keys)} in all"


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
    data, sent = size_text(result.data_bytes), size_text(result.uploaded_bytes)
    rows = [(table, f"{result.row_counts[table]:,}") for table in sorted(result.row_counts)]
    lines = [
        f"**{outcomes[result.outcome]}**, generation {result.generation}",
        "",
        markdown_table(("table", "rows"), rows, right={"rows"}),
        "",
        f"- {data} of data, {result.reused_share:.1%} reused",
        f"- {sent} uploaded",
        f"- captured in {capture:.2f} s",
        f"- published in {publish:.2f} s",
    ]
    return "\n".join(lines)


def size_text(count: int) -> str:
    """A number of bytes for people: 12.3 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def duration_text(seconds: float) -> str:
    """A duration for people: 26 h."""
    for unit, size in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds, 1):g} s"


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: frozenset[str] | set[str] = frozenset()
) -> str:
    """Rows as a Markdown table. What a cell says stays in its cell; the columns in `right` are aligned so."""
    lines = [columns, ["---:" if column in right else "---" for column in columns], *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def step_failure(error: SnapshotAssetsError) -> dg.Failure:
    """The error as a step shows it: what happened, what to do; not retried when that could not help."""
    metadata: dict[str, Any] = {"error": error.kind, "hint": error.hint}
    if error.operation_id is not None:
        metadata["operation_id"] = error.operation_id
    hopeless = isinstance(error, ConfigurationError | CaptureError) and not isinstance(error, LiveDatabaseBusy)
    return dg.Failure(
        f"{error.message.rstrip('.')}. {error.hint}".strip(), metadata=metadata, allow_retries=not hopeless
    )


def asset_of(dataset: Dataset | str | dg.AssetsDefinition) -> tuple[str, dg.AssetKey]:
    """The name of a dataset and the key of its asset: that of the asset itself when it is given, else the name.

    Raises:
        ConfigurationError: the asset was not made by `snapshot_asset`.
    """
    if isinstance(dataset, dg.AssetsDefinition):
        named = dataset.metadata_by_key[dataset.key].get("snapshot/dataset")
        if not isinstance(named, str):
            raise ConfigurationError(f"the asset {dataset.key.to_user_string()!r} was not made by snapshot_asset")
        return named, dataset.key
    name = dataset if isinstance(dataset, str) else dataset.name
    return name, dg.AssetKey(name)
