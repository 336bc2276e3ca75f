"""Pins: snapshots that retention leaves alone."""

from __future__ import annotations

from dataclasses import replace

from snapshot_assets.errors import MaintenanceError
from snapshot_assets.maintenance.rollback import listed_entry
from snapshot_assets.model.head import Head, Pin
from snapshot_assets.publish.heads import refuse_inactive

__all__ = ["pinned", "unpinned"]


def pinned(head: Head, pin: Pin) -> Head:
    """The head with a pin, in the place of one of the same name.

    Raises:
        SnapshotMissing: it lists no such snapshot.
        DatasetSealed, DatasetDropped: it takes no changes.
    """
    refuse_inactive(head)
    listed_entry(head, pin.snapshot_id)
    return replace(head, pins=(*(kept for kept in head.pins if kept.name != pin.name), pin))


def unpinned(head: Head, name: str) -> Head:
    """The head without a pin.

    Raises:
        MaintenanceError: it has none of that name.
        DatasetSealed, DatasetDropped: it takes no changes.
    """
    refuse_inactive(head)
    kept = tuple(pin for pin in head.pins if pin.name != name)
    if len(kept) == len(head.pins):
        raise MaintenanceError(
            f"{head.dataset!r} has no pin called {name!r}", hint="List its pins.", dataset=head.dataset
        )
    return replace(head, pins=kept)
