"""A small publisher: what the tests need of one to go from files to a snapshot and back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapshot_assets.content.base import Base
from snapshot_assets.content.segments import hash_files
from snapshot_assets.content.snapshot import Content, read_content
from snapshot_assets.content.upload import Stored, store_content
from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.ids import IncarnationId, OperationId, new_incarnation_id, new_operation_id
from snapshot_assets.model.manifest import Layout, Manifest, digest_of, index_key, manifest_key, snapshot_digest
from snapshot_assets.store.contract import Store
from snapshot_assets.store.memory import MemoryStore

SQLITE = Layout.blocks(0, 4096)
DUCKDB = Layout.blocks(12288, 262144)
WHOLE = Layout.whole()


@dataclass
class Publisher:
    """Publishes folders as snapshots of one dataset."""

    objects: Store
    staging: Path
    cache: Path | None = None
    incarnation: IncarnationId = field(default_factory=new_incarnation_id)
    last: Content | None = None
    stored: Stored | None = None

    def publish(
        self,
        files: dict[str, bytes],
        layout: Layout = SQLITE,
        *,
        layouts: dict[str, Layout] | None = None,
        on_base: bool = True,
        on_pack: Callable[[], None] | None = None,
    ) -> Content:
        staged = []
        for path, data in files.items():
            source = self.staging / path
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_bytes(data)
            staged.append(StagedFile(path, source, len(data), 0o640, (layouts or {}).get(path, layout)))
        return self.publish_staged(staged, on_base=on_base, on_pack=on_pack)

    def publish_staged(
        self, staged: list[StagedFile], *, on_base: bool = True, on_pack: Callable[[], None] | None = None
    ) -> Content:
        operation = new_operation_id()
        hashed = hash_files(staged)
        base = Base(self.objects, self.last, self.cache) if self.last is not None and on_base else None
        stored = store_content(
            self.objects,
            hashed,
            dataset="orders",
            incarnation=self.incarnation,
            operation_id=operation,
            base=base,
            on_pack=on_pack,
            cache=self.cache,
        )
        entries = tuple(file.entry for file in hashed)
        manifest = Manifest(
            operation_id=OperationId(operation),
            dataset="orders",
            incarnation=self.incarnation,
            engine="sqlite",
            engine_version="3",
            storage_version="1",
            created_at_ms=1,
            tables={},
            files=entries,
            operations=stored.operations,
            index_digest=digest_of(stored.index),
            content_digest=snapshot_digest(entries, {}),
            properties=stored.properties,
        )
        data = manifest.to_bytes()
        self.objects.write_if_absent(index_key("orders", self.incarnation, operation), stored.index)
        self.objects.write_if_absent(manifest_key("orders", self.incarnation, operation), data)
        self.stored = stored
        self.last = read_content(self.objects, "orders", self.incarnation, operation, digest_of(data))
        return self.last


@pytest.fixture
def objects() -> MemoryStore:
    return MemoryStore("content")


@pytest.fixture
def publisher(objects: MemoryStore, tmp_path: Path) -> Publisher:
    return Publisher(objects, tmp_path / "staging")


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file beneath a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
