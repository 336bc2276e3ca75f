"""Retention: which listed snapshots a policy would remove, and what protects the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from snapshot_assets.clock import in_seconds
from snapshot_assets.errors import ConfigurationError, RetentionPolicyMissing
from snapshot_assets.model.head import Head
from snapshot_assets.model.sidecar import Sidecar, SidecarKind
from snapshot_assets.publish.commit import MIN_SNAPSHOTS

__all__ = ["RetentionPlan", "RetentionPolicy", "protected_snapshots"]


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """The snapshots that would go, and those that the policy would remove but something protects, and what."""

    removes: tuple[int, ...]
    protected: Mapping[int, str]


class RetentionPolicy:
    """How many of the newest snapshots are kept, and how old one may be; with both, only what both allow goes.

    Args:
        keep: the newest snapshots that stay, at least three.
        older_than: only snapshots that were published longer ago than this go; a duration, or seconds.

    Raises:
        RetentionPolicyMissing: neither is given.
        ConfigurationError: fewer than three would be kept, or the age is negative.
    """

    def __init__(self, *, keep: int | None = None, older_than: timedelta | float | None = None) -> None:
        if keep is None and older_than is None:
            raise RetentionPolicyMissing("a cleanup has to be told what to keep")
        if keep is not None and keep < MIN_SNAPSHOTS:
            raise ConfigurationError(f"keep is {keep}; at least {MIN_SNAPSHOTS} snapshots are kept")
        self._keep = keep
        self._age_ms = None if older_than is None else round(in_seconds("older_than", older_than) * 1000)

    def plan(self, head: Head, protected: Mapping[int, str], now_ms: int) -> RetentionPlan:
        """What the policy means for a head now."""
        ids = [entry.snapshot_id for entry in head.snapshots]
        kept = set() if self._keep is None else set(ids[-self._keep :])
        if self._age_ms is not None:
            kept |= {entry.snapshot_id for entry in head.snapshots if now_ms - entry.committed_at_ms <= self._age_ms}
        doomed = [snapshot_id for snapshot_id in ids if snapshot_id not in kept]
        return RetentionPlan(
            tuple(snapshot_id for snapshot_id in doomed if snapshot_id not in protected),
            {snapshot_id: protected[snapshot_id] for snapshot_id in doomed if snapshot_id in protected},
        )


def protected_snapshots(
    head: Head, sidecars: Iterable[Sidecar], served: Mapping[int, str], now_ms: int
) -> dict[int, str]:
    """The listed snapshots that no policy removes, and why.

    Args:
        head: the dataset.
        sidecars: its operations in progress.
        served: snapshots of this incarnation that live readers announce, with the reader.
        now_ms: for pins that expire.
    """
    protected = {snapshot_id: f"served by reader {reader}" for snapshot_id, reader in served.items()}
    for sidecar in sidecars:
        if sidecar.kind is not SidecarKind.PUBLISH or sidecar.incarnation != head.incarnation:
            continue
        if sidecar.base_snapshot_id is not None:
            protected[sidecar.base_snapshot_id] = f"operation {sidecar.operation_id} builds on it"
        own = head.entry_of_operation(sidecar.operation_id)
        if own is not None:
            protected[own.snapshot_id] = "its own operation has not ended"
    for pin in head.pins:
        if pin.expires_at_ms is None or pin.expires_at_ms > now_ms:
            protected[pin.snapshot_id] = f"pinned as {pin.name!r} by {pin.owner}"
    if head.current_snapshot_id is not None:
        protected[head.current_snapshot_id] = "current"
    return protected
