"""`readers`: who serves what, and who does not keep up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from snapshot_assets.cli.look import read_heads
from snapshot_assets.cli.options import JsonOutput, StoreOptions, StoreUrl, open_store
from snapshot_assets.cli.output import count, duration_text, print_error, print_json, print_table
from snapshot_assets.errors import SnapshotAssetsError, StoreError

if TYPE_CHECKING:
    from snapshot_assets.maintenance.readers import KnownReader, Standing
    from snapshot_assets.model.head import Head
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["Fleet", "behind_text", "read_fleet", "readers"]


def readers(store: StoreUrl, store_option: StoreOptions = None, as_json: JsonOutput = False) -> None:
    """List the readers that announce themselves in the store: what each serves, and how far behind it is."""
    opened = open_store(store, store_option, read_only=True)
    fleet = read_fleet(opened, read_heads(opened))
    if as_json:
        print_json({"readers": [_reader_row(fleet, reader) for reader in fleet.known]})
    elif not fleet.known and not fleet.unreadable:
        typer.echo("No reader has announced itself.")
    else:
        columns = ("reader", "cohort", "heard of", "dataset", "snapshot", "generation", "behind", "state", "endpoint")
        rows = [row for reader in fleet.known for row in _reader_cells(fleet, reader)]
        print_table(columns, rows, right=("snapshot", "generation"))
        typer.echo(f"\n{fleet.sentence}")
    for error in fleet.unreadable:
        print_error(error)
    if fleet.unreadable:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The readers of a store, compared with its heads.

    Attributes:
        known: those that announced themselves, sorted by id.
        unreadable: announcements that can not be understood.
        standings: how each reader stands with each dataset that has a readable head, by reader id and dataset.
        now_ms: when.
    """

    known: tuple[KnownReader, ...]
    unreadable: tuple[StoreError, ...]
    standings: Mapping[tuple[str, str], Standing]
    now_ms: int

    @property
    def alive(self) -> int:
        """How many count as alive."""
        return len([reader for reader in self.known if reader.is_alive])

    @property
    def behind(self) -> list[tuple[str, Standing]]:
        """The live readers that do not serve the newest generation of a dataset, with the dataset."""
        return [(name, one) for (_, name), one in self.standings.items() if one.generations and one.reader.is_alive]

    @property
    def sentence(self) -> str:
        """The fleet at a glance."""
        silent = len(self.known) - self.alive
        lagging = len({one.reader.announcement.reader_id for _, one in self.behind})
        return f"{count(self.alive)} alive, {count(silent)} silent; {count(lagging)} behind"


def read_fleet(store: SnapshotStore, heads: Mapping[str, Head | SnapshotAssetsError]) -> Fleet:
    """The readers of a store, as they say they are."""
    from snapshot_assets.clock import SYSTEM_CLOCK
    from snapshot_assets.maintenance.readers import ReaderBook, standing

    now_ms = SYSTEM_CLOCK.now_ms()
    found = ReaderBook().look(store.objects, now_ms)
    standings = {
        (reader.announcement.reader_id, name): one
        for reader in found.known
        for name in sorted(reader.announcement.datasets)
        if (head := heads.get(name)) is not None and not isinstance(head, SnapshotAssetsError)
        if (one := standing(reader, head, now_ms)) is not None
    }
    return Fleet(found.known, found.unreadable, standings, now_ms)


def behind_text(standing: Standing) -> str:
    """How far a reader is behind, for people."""
    if standing.announced.pinned:
        return "pinned"
    return f"{standing.generations}, for {duration_text(standing.seconds)}" if standing.generations else "0"


def _reader_row(fleet: Fleet, reader: KnownReader) -> dict[str, Any]:
    row = reader.to_json()
    for name, shown in row["datasets"].items():
        one = fleet.standings.get((reader.announcement.reader_id, name))
        shown["lag"] = None if one is None else one.generations
        shown["lag_seconds"] = None if one is None else one.seconds
    return row


def _reader_cells(fleet: Fleet, reader: KnownReader) -> Iterable[tuple[str, ...]]:
    """A line for each dataset; what is of the reader itself stands in the first."""
    said = reader.announcement
    heard = duration_text(max(fleet.now_ms - reader.last_heard_ms, 0) / 1000)
    begins = (said.reader_id, said.cohort or "", f"{heard} ago" if reader.is_alive else f"SILENT for {heard}")
    end = said.endpoint or "none: follows by itself"
    if not said.datasets:
        yield (*begins, "", "", "", "", "", end)
    for number, (name, one) in enumerate(sorted(said.datasets.items())):
        loaded = ["-" if value is None else str(value) for value in (one.snapshot_id, one.generation)]
        standing = fleet.standings.get((said.reader_id, name))
        behind = "?" if standing is None else behind_text(standing)
        state = f"{one.state}: {one.last_error}" if one.last_error else one.state
        shown = (name, *loaded, behind, state)
        yield (*begins, *shown, end) if number == 0 else ("", "", "", *shown, "")
