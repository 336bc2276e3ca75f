"""Which old packs a publish gives up, so that a snapshot never needs the packs of very many operations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from snapshot_assets.content.account import Pack, PackAccount
from snapshot_assets.content.base import Base
from snapshot_assets.content.index import Location
from snapshot_assets.ids import OperationId

__all__ = ["NOTHING_GIVEN_UP", "GivenUp", "choose_packs"]

MAX_OPERATIONS: Final = 32
"""A snapshot that would need the packs of more operations gives some of them up."""

_REWRITTEN_SHARE: Final = 4
"""At most one part in this many of the data is stored anew by one publish for it."""

_OPERATIONS_AFTER: Final = 24
"""Finding the references to a pack reads every chunk table. So several operations are given up at a time."""

_DEAD_SHARE: Final = 16
"""Packs of which a third is not needed are left until what they waste is one part in this many of the data."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Packs that the new snapshot must not need, and the base's segments that would need them, by their place."""

    packs: frozenset[Pack]
    places: frozenset[Location]


NOTHING_GIVEN_UP: Final = GivenUp(frozenset(), frozenset())


def choose_packs(base: Base, account: PackAccount, reused: Collection[Location], data_bytes: int) -> GivenUp:
    """Choose what to give up; chunk tables are read only when something qualifies.

    Args:
        base: the snapshot whose packs are needed.
        account: how much of them.
        reused: the places in its root that the new snapshot would take over.
        data_bytes: the plain size of the new snapshot.

    Raises:
        SnapshotDamaged: the base's chunk tables are missing or damaged.
    """
    live = {pack: account.live_bytes(pack) for pack in account.packs}
    for segment in base.segments:
        place = segment.row.location
        if place not in reused:
            live[place.operation, place.pack] -= place.raw
    live = {pack: size for pack, size in live.items() if size > 0}
    budget = data_bytes // _REWRITTEN_SHARE
    groups = [group for group in _candidates(live, account, data_bytes) if _total(live, group) <= budget]
    if not groups:
        return NOTHING_GIVEN_UP
    base.fetch_tables(base.segments)
    segments_by_pack: dict[Pack, list[Location]] = {}
    for segment in base.segments:
        for pack in base.uses(segment):
            segments_by_pack.setdefault(pack, []).append(segment.row.location)
    packs: set[Pack] = set()
    places: set[Location] = set()
    for group in groups:
        # What is stored anew: the chunks, and a chunk table for each segment that would have kept its own.
        touched = {place for pack in group for place in segments_by_pack.get(pack, ())} - places
        cost = _total(live, group) + sum(place.raw for place in touched if place in reused)
        if cost <= budget:
            budget -= cost
            packs.update(group)
            places |= touched
    return GivenUp(frozenset(packs), frozenset(places))


def _candidates(live: Mapping[Pack, int], account: PackAccount, data_bytes: int) -> Iterator[list[Pack]]:
    """Groups of packs to be given up together, in the order in which to try."""
    by_operation: dict[OperationId, list[Pack]] = {}
    for pack in sorted(live):
        by_operation.setdefault(pack[0], []).append(pack)
    taken: set[Pack] = set()
    if len(by_operation) + 1 > MAX_OPERATIONS:
        groups = sorted(by_operation.values(), key=lambda group: _total(live, group))
        for group in groups[: len(groups) + 1 - _OPERATIONS_AFTER]:
            taken.update(group)
            yield group
    wasteful = [pack for pack in live if pack not in taken and 2 * account.dead_bytes(pack) > account.live_bytes(pack)]
    if sum(map(account.dead_bytes, wasteful)) * _DEAD_SHARE > data_bytes:
        for pack in sorted(wasteful, key=lambda pack: (live[pack], pack)):
            yield [pack]


def _total(live: Mapping[Pack, int], packs: Iterable[Pack]) -> int:
    return sum(live[pack] for pack in packs)
