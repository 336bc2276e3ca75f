"""The sidecar: the durable record of one operation in progress. Written once, never changed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from snapshot_assets.ids import IncarnationId, OperationId
from snapshot_assets.model.document import dump_document, parse_document

__all__ = ["MAX_SIDECAR_BYTES", "Sidecar", "SidecarKind", "sidecar_key", "sidecar_prefix"]

MAX_SIDECAR_BYTES: Final = 64 * 1024 * 1024


def sidecar_prefix(dataset: str) -> str:
    """The folder, with its slash, of a dataset's sidecars."""
    return f"recovery/{dataset}/"


def sidecar_key(dataset: str, operation_id: str) -> str:
    """Where the sidecar of an operation lies."""
    return f"{sidecar_prefix(dataset)}{operation_id}.json"


class SidecarKind(enum.Enum):
    """What an operation does. Recovery has rows for each kind."""

    PUBLISH = "publish"
    CLEANUP = "cleanup"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What an operation intends, written before its first effect.

    Attributes:
        base_snapshot_id: what a publish may reuse; retention keeps it.
        removes: the snapshots that a cleanup takes off the head's list.
        keys: the objects that a cleanup deletes afterwards, unless a listed snapshot needs them.
        not_before_ms: when a cleanup may begin to delete them.
    """

    operation_id: OperationId
    kind: SidecarKind
    dataset: str
    incarnation: IncarnationId
    epoch: int
    base_snapshot_id: int | None
    idempotency_key: str | None
    owner: Mapping[str, Any]
    started_at_ms: int
    removes: tuple[int, ...] | None = None
    keys: tuple[str, ...] | None = None
    not_before_ms: int | None = None

    @classmethod
    def parse(cls, data: bytes, where: str) -> Sidecar:
        """Read a sidecar.

        Raises:
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it breaks a rule of the format, or is of a kind that this version does not know.
        """
        document = parse_document(data, where)
        kind = document.text("kind")
        if kind not in {known.value for known in SidecarKind}:
            raise document.damaged(f"kind {kind!r} is unknown")
        return cls(
            operation_id=OperationId(document.ulid("operation_id")),
            kind=SidecarKind(kind),
            dataset=document.text("dataset"),
            incarnation=IncarnationId(document.ulid("incarnation")),
            epoch=document.count("epoch"),
            base_snapshot_id=document.optional_count("base_snapshot_id"),
            idempotency_key=document.optional_text("idempotency_key"),
            owner=document.mapping("owner"),
            started_at_ms=document.count("started_at_ms"),
            removes=None if document.rest.get("removes") is None else document.counts("removes"),
            keys=None if document.rest.get("keys") is None else document.texts("keys"),
            not_before_ms=document.optional_count("not_before_ms"),
        )

    def to_bytes(self) -> bytes:
        """The document as it is stored."""
        return dump_document(
            {
                "operation_id": self.operation_id,
                "kind": self.kind.value,
                "dataset": self.dataset,
                "incarnation": self.incarnation,
                "epoch": self.epoch,
                "base_snapshot_id": self.base_snapshot_id,
                "idempotency_key": self.idempotency_key,
                "owner": dict(self.owner),
                "started_at_ms": self.started_at_ms,
                "removes": None if self.removes is None else list(self.removes),
                "keys": None if self.keys is None else list(self.keys),
                "not_before_ms": self.not_before_ms,
            }
        )
