"""Whether a snapshot may be served, and its pool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from snapshot_assets.engines.contract import Pool
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.engines.sql import quoted
from snapshot_assets.errors import ReaderError, SchemaIncompatible
from snapshot_assets.model.manifest import Manifest
from snapshot_assets.model.schema import SchemaPolicy, TableSchema, difference, schemas_compatible
from snapshot_assets.reader.local_copy import LocalCopy
from snapshot_assets.reader.registry import InstanceKey, PoolRegistry

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
    """A new pool of a local copy, each of its tables tried. `scratch` is for what its queries can not hold in memory.

    The engine's word is not taken for damage: it opened these very bytes when they were made ready, and running out of
    memory or of open files looks the same. So the bytes are looked at, and fetching them again is for wrong ones only.

    Raises:
        EngineTooOld: this process's engine can not read it.
        SnapshotDamaged: the copy does not hold the bytes that its manifest names.
        ReaderError: the engine can not open it now; or it is open already, and its pool has another owner.
        OSError: its bytes can not be looked at.
    """
    manifest = copy.manifest
    engine = engine_named(manifest.engine)
    engine.check_readable(manifest)
    made: list[Pool] = []

    def make() -> Pool:
        made.append(_tried(engine.open_pool(copy.files, manifest, scratch=scratch), manifest))
        return made[0]

    try:
        pool = registry.get_or_create(InstanceKey.file(copy.files), make)
    except Exception as error:  # each engine has errors of its own
        copy.check_sizes()
        copy.check_digests()
        raise ReaderError(
            f"the local copy {copy.folder} is whole, and {manifest.engine} can not open and read it now: {error}",
            hint="Give the process more memory, or more open files, as the message says; it is kept and tried again.",
            dataset=manifest.dataset,
        ) from error
    if not made:
        raise ReaderError(f"the local copy {copy.folder} is open already", dataset=manifest.dataset)
    return pool


def _tried(pool: Pool, manifest: Manifest) -> Pool:
    """The pool, unless one of the tables that the manifest names can not be read; it is closed then."""
    try:
        for table in manifest.tables:
            # Engines differ in what a dot in a name means; tables of such names are tried by `Engine.verify` only.
            if "." not in table:
                pool.query(f"select 1 from {quoted(table)} limit 1")
    except BaseException:
        pool.close()
        raise
    return pool
