"""The writer lease: who is writing a dataset now. It keeps live writers apart; safety comes from the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from snapshot_assets.model.document import Document, dump_document, parse_document

__all__ = ["MAX_LEASE_BYTES", "Holder", "WriterLease", "lease_key"]

MAX_LEASE_BYTES: Final = 64 * 1024
MAX_DURATION_MS: Final = 24 * 60 * 60 * 1000


def lease_key(dataset: str) -> str:
    """Where the writer lease of a dataset lies."""
    return f"leases/{dataset}.json"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, named so that another one on the same host can tell whether it still lives."""

    host: str
    boot_id: str
    pid: int
    start_time: str

    @classmethod
    def parse(cls, document: Document) -> Holder:
        """Read the holder of a lease."""
        return cls(document.text("host"), document.text("boot_id"), document.count("pid"), document.text("start_time"))

    def to_json(self) -> dict[str, Any]:
        """The holder as documents store it."""
        return {"host": self.host, "boot_id": self.boot_id, "pid": self.pid, "start_time": self.start_time}

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True, slots=True)
class WriterLease:
    """Who holds the right to write, and for how long without a sign of life. Duration 0: released.

    `lease_id` is new each time the lease is taken, so that a taker whose answer was lost knows its own by reading.
    """

    dataset: str
    holder: Holder
    process_id: str
    lease_id: str
    duration_ms: int
    counter: int
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, data: bytes, dataset: str) -> WriterLease:
        """Read a lease.

        Raises:
            UnsupportedFormatVersion: a newer version of this package wrote it.
            DocumentDamaged: it breaks a rule of the format.
        """
        document = parse_document(data, lease_key(dataset))
        return cls(
            dataset=document.text("dataset"),
            holder=Holder.parse(document.document("holder")),
            process_id=document.text("process_id"),
            lease_id=document.text("lease_id") if "lease_id" in document.rest else "",
            duration_ms=document.count("duration_ms", MAX_DURATION_MS),
            counter=document.count("counter"),
            extra=document.rest,
        )

    def to_bytes(self) -> bytes:
        """The document as it is stored."""
        return dump_document(
            {
                **self.extra,
                "dataset": self.dataset,
                "holder": self.holder.to_json(),
                "process_id": self.process_id,
                "lease_id": self.lease_id,
                "duration_ms": self.duration_ms,
                "counter": self.counter,
            }
        )
