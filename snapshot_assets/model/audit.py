"""Audit rows: how an operation ended. One row an operation, written if absent, never changed."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from snapshot_assets.ids import OperationId
from snapshot_assets.model.document import dump_document, parse_document

__all__ = ["AuditRow", "Outcome", "audit_key", "audit_prefix"]


def audit_prefix(dataset: str) -> str:
    """The folder, with its slash, of a dataset's audit rows."""
    return f"audit/{dataset}/"


def audit_key(dataset: str, operation_id: str) -> str:
    """Where the audit row of an operation lies."""
    return f"{audit_prefix(dataset)}{operation_id}.json"


class Outcome(enum.Enum):
    """How an operation ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    ROLLED_FORWARD = "rolled_forward"
    DISCARDED = "discarded"
    ORPHAN_DISCARDED = "orphan_discarded"


@dataclass(frozen=True, slots=True)
class AuditRow:
    """The end of one operation."""

    operation_id: OperationId
    kind: str
    outcome: Outcome
    at_ms: int
    by: str

    @classmethod
    def parse(cls, data: bytes, where: str) -> AuditRow:
        """Read an audit row.

        Raises:
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it breaks a rule of the format.
        """
        document = parse_document(data, where)
        outcome = document.text("outcome")
        if outcome not in {known.value for known in Outcome}:
            raise document.damaged(f"outcome {outcome!r} is unknown")
        return cls(
            OperationId(document.ulid("operation_id")),
            document.text("kind"),
            Outcome(outcome),
            document.count("at_ms"),
            document.text("by"),
        )

    def to_bytes(self) -> bytes:
        """The document as it is stored."""
        return dump_document(
            {
                "operation_id": self.operation_id,
                "kind": self.kind,
                "outcome": self.outcome.value,
                "at_ms": self.at_ms,
                "by": self.by,
            }
        )
