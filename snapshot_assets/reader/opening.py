"""Whether a snapshot may be served, and its pool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from snapshot_assets.engines.contract import Pool
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import SchemaIncompatible, SnapshotDamaged
from snapshot_assets.model.schema import SchemaPolicy, TableSchema, difference, schemas_compatible
from snapshot_assets.reader.local_copy import LocalCopy
from snapshot_assets.reader.registry import InstanceKey, PoolRegistry
from snapshot_assets.reader.sqlite_scan import quoted

__all__ = ["check_schema", "open_copy"]


def check_schema(
    dataset: str, accepted: Mapping[str, TableSchema], offered: Mapping[str, TableSchema], policy: SchemaPolicy
) -> None:
    """Compare a snapshot's tables with what the reader accepts.

    Raises:
        SchemaIncompatible: they do not fit under the policy; the message shows both side by side.
    """
    if not schemas_compatible(accepted, offered, policy):
        raise SchemaIncompatible(
            f"the schema of {dataset!r} does not fit the policy {policy.value!r} "
            f"(left: accepted, right: published)\n{difference(accepted, offered)}",
            dataset=dataset,
        )


def open_copy(registry: PoolRegistry, copy: LocalCopy, scratch: Path) -> Pool:
    """The pool of a local copy, each of its tables tried. `scratch` is for what its queries can not hold in memory.

    Raises:
        EngineTooOld: this process's engine can not read it.
        SnapshotDamaged: the engine does not open it, or does not read a table that the manifest names.
    """
    manifest = copy.manifest
    engine = engine_named(manifest.engine)
    engine.check_readable(manifest)
    key = InstanceKey.file(copy.files)
    pool = registry.get_or_create(key, lambda: engine.open_pool(copy.files, manifest, scratch=scratch))
    try:
        for table in manifest.tables:
            # Engines differ in what a dot in a name means; tables of such names are tried by `Engine.verify` only.
            if "." not in table:
                pool.query(f"select 1 from {quoted(table)} limit 1")
    except Exception as error:
        registry.invalidate_instance(key)
        pool.close()
        # Each engine has errors of its own; whatever it says of a table that the manifest names, it is damage.
        raise SnapshotDamaged(
            f"the local copy {copy.folder} opens, and its tables can not be read: {error}", dataset=manifest.dataset
        ) from error
    return pool
