"""What a reader decides from a head: a row a case, and what holds for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshot_assets.errors import ReaderError, SnapshotMissing
from snapshot_assets.ids import IncarnationId, OperationId
from snapshot_assets.model.head import Head, SnapshotEntry, Status
from snapshot_assets.reader.choosing import (
    Decision,
    Load,
    Note,
    Pin,
    Refuse,
    Served,
    Situation,
    Stay,
    Unload,
    choose,
)
from snapshot_assets.reader.settings import Current, OnDropped

FIRST, SECOND = IncarnationId("FIRST"), IncarnationId("SECOND")
FOLDER = Path("/data/orders")


def entry(snapshot_id: int, digest: str | None = None) -> SnapshotEntry:
    return SnapshotEntry(
        snapshot_id=snapshot_id,
        operation_id=OperationId(f"operation {snapshot_id}"),
        idempotency_key=None,
        parent_snapshot_id=None,
        schema_id=0,
        committed_at_ms=0,
        manifest_digest=digest or f"manifest {snapshot_id}",
        content_digest="content",
        data_bytes=0,
        uploaded_bytes=0,
        row_count=0,
        reuses=(),
        summary={},
    )


def head(
    generation: int,
    current: int | None,
    *,
    listed: tuple[int, ...] = (0, 1, 2),
    status: Status = Status.ACTIVE,
    incarnation: IncarnationId = FIRST,
) -> Head:
    return Head(
        "orders",
        incarnation,
        "duckdb",
        generation=generation,
        status=status,
        next_snapshot_id=3,
        current_snapshot_id=current,
        snapshots=tuple(entry(number) for number in listed),
    )


def current(generation: int, snapshot_id: int, *, pinned: bool = False, incarnation: IncarnationId = FIRST) -> Current:
    return Current(generation, snapshot_id, incarnation, loaded_at_ms=7, pinned=pinned)


def now(
    served: Current | None,
    *,
    floor: int | None = None,
    pin: Pin | None = None,
    on_dropped: OnDropped = OnDropped.KEEP,
    digest: str | None = None,
) -> Situation:
    return Situation(
        None if served is None else Served(served, digest or f"manifest {served.snapshot_id}"),
        floor=(served.generation if served else 0) if floor is None else floor,
        pin=pin,
        on_dropped=on_dropped,
        folder=FOLDER,
    )


DECISIONS: list[tuple[str, Head, Situation, Decision]] = [
    ("nothing is published", head(0, None, listed=()), now(None), Stay("waiting")),
    ("the first snapshot", head(1, 0), now(None), Load(entry(0), 1)),
    ("what is served is current", head(1, 0), now(current(1, 0)), Stay("not_modified")),
    ("a newer snapshot", head(2, 1), now(current(1, 0)), Load(entry(1), 2)),
    ("several generations at once", head(9, 2), now(current(1, 0)), Load(entry(2), 9)),
    ("a rollback", head(3, 0), now(current(2, 1)), Load(entry(0), 3)),
    ("a rollback to what is served", head(3, 0), now(current(1, 0)), Note(current(3, 0))),
    ("a sealed dataset's newest", head(2, 1, status=Status.SEALED), now(current(1, 0)), Load(entry(1), 2)),
    (
        "the same number, other bytes, newer",
        head(2, 0),
        now(current(1, 0), digest="of lost history"),
        Load(entry(0), 2),
    ),
    (
        "the same number, other bytes, not newer",
        head(1, 0),
        now(current(1, 0), digest="of lost history"),
        Stay("not_modified", went_back=True),
    ),
    ("another incarnation", head(5, 0, incarnation=SECOND), now(current(4, 0)), Load(entry(0), 5)),
    ("the store went back", head(1, 0), now(current(2, 1)), Stay("not_modified", went_back=True)),
    ("a fallback is tried again", head(2, 1), now(current(1, 0), floor=1), Load(entry(1), 2)),
    ("after a restart without a copy, as high", head(2, 1), now(None, floor=2), Load(entry(1), 2)),
    ("dropped, and kept", head(3, None, status=Status.DROPPED), now(current(2, 0)), Stay("not_modified")),
    (
        "dropped, and unloaded",
        head(3, None, status=Status.DROPPED),
        now(current(2, 0), on_dropped=OnDropped.UNLOAD),
        Unload(),
    ),
    (
        "dropped, while snapshots are listed still",
        head(3, 0, status=Status.DROPPED),
        now(current(2, 0)),
        Stay("not_modified"),
    ),
    ("dropped before anything was served", head(3, None, status=Status.DROPPED), now(None), Stay("waiting")),
    ("recreated, and empty", head(4, None, incarnation=SECOND), now(current(3, 0)), Stay("not_modified")),
    # Pins.
    ("a pin, nothing served", head(3, 2), now(None, pin=Pin(1)), Load(entry(1), 3, pinned=True)),
    ("a pin of another snapshot", head(3, 2), now(current(3, 2), pin=Pin(1)), Load(entry(1), 3, pinned=True)),
    (
        "a pin in a store that went back",
        head(1, 0),
        now(current(3, 2), pin=Pin(0)),
        Load(entry(0), 3, pinned=True),
    ),
    ("a pin of what is served", head(1, 0), now(current(1, 0), pin=Pin(0)), Note(current(1, 0, pinned=True))),
    (
        "a pin holds through a publish",
        head(4, 2),
        now(current(1, 0, pinned=True), pin=Pin(0, FIRST)),
        Stay("not_modified", held=True),
    ),
    (
        "a pin holds what the head calls current again",
        head(4, 0),
        now(current(1, 0, pinned=True), pin=Pin(0, FIRST)),
        Note(current(4, 0, pinned=True)),
    ),
    (
        "a pin holds what is not listed any more",
        head(4, 2, listed=(2,)),
        now(current(1, 0, pinned=True), pin=Pin(0, FIRST)),
        Stay("not_modified", held=True),
    ),
    (
        "a pin holds through a new incarnation",
        head(4, 0, incarnation=SECOND),
        now(current(1, 0, pinned=True), pin=Pin(0, FIRST)),
        Stay("not_modified", held=True),
    ),
    (
        "a new pin is of the head's incarnation",
        head(4, 1, incarnation=SECOND),
        now(current(1, 0), pin=Pin(0)),
        Load(entry(0), 4, pinned=True),
    ),
    (
        "a pin does not outlive a drop that unloads",
        head(4, None, status=Status.DROPPED),
        now(current(1, 0, pinned=True), pin=Pin(0, FIRST), on_dropped=OnDropped.UNLOAD),
        Unload(),
    ),
    ("released, the head's under the same generation", head(3, 2), now(current(3, 1, pinned=True)), Load(entry(2), 3)),
    ("released, and it is the head's", head(3, 1), now(current(3, 1, pinned=True)), Note(current(3, 1))),
    (
        "released, and the store is behind",
        head(2, 2),
        now(current(3, 1, pinned=True)),
        Stay("not_modified", went_back=True),
    ),
]


@pytest.mark.parametrize(
    ("offered", "situation", "decision"), [case[1:] for case in DECISIONS], ids=[c[0] for c in DECISIONS]
)
def test_what_is_decided(offered: Head, situation: Situation, decision: Decision) -> None:
    assert choose(offered, situation) == decision


def test_a_store_behind_what_was_served_before_a_restart_is_refused() -> None:
    decision = choose(head(2, 1), now(None, floor=3))
    assert isinstance(decision, Refuse)
    assert type(decision.error) is ReaderError
    assert "has generation 2, and this reader has served 3" in str(decision.error)
    assert str(FOLDER) in decision.error.hint


@pytest.mark.parametrize(
    ("offered", "pin"),
    [
        (head(3, 2, listed=(1, 2)), Pin(0)),
        (head(3, 2, incarnation=SECOND), Pin(0, FIRST)),
        (head(0, None, listed=()), Pin(0)),
    ],
    ids=["not listed", "of another incarnation", "nothing is published"],
)
def test_a_pin_that_the_head_does_not_list_is_refused(offered: Head, pin: Pin) -> None:
    decision = choose(offered, now(None, pin=pin))
    assert isinstance(decision, Refuse)
    assert isinstance(decision.error, SnapshotMissing)


@pytest.mark.parametrize(
    ("offered", "situation", "loads"),
    [
        (head(3, 2), now(None), [1, 0]),
        (head(3, 2), now(current(1, 0)), [1]),
        (head(3, 1), now(None), [0]),
        (head(3, 0), now(None), []),
        (head(3, 2), now(current(2, 1)), []),
        (head(3, 2), now(None, floor=3), []),
        (head(3, 2), now(None, floor=2), [1, 0]),
    ],
    ids=[
        "older ones, the newest first",
        "none older than what is served",
        "none newer than the current one",
        "nothing is older",
        "what is served has the generation already",
        "below the floor",
        "at the floor, after a restart without a copy",
    ],
)
def test_what_may_be_loaded_instead_of_a_damaged_snapshot(
    offered: Head, situation: Situation, loads: list[int]
) -> None:
    assert situation.fallbacks(offered) == tuple(Load(entry(number), offered.generation - 1) for number in loads)


@pytest.mark.parametrize(
    ("offered", "situation", "all_of_it"),
    [
        (head(1, 0), now(current(1, 0)), True),
        (head(2, 1), now(current(1, 0)), False),
        (head(1, 0), now(current(1, 0), digest="of lost history"), False),
        (head(0, None, listed=()), now(None), True),
        (head(1, 0), now(None), False),
        (head(2, None, status=Status.DROPPED), now(None), True),
        (head(2, 1), now(current(1, 0, pinned=True), pin=Pin(0, FIRST)), True),
        (head(2, 1), now(current(1, 1), pin=Pin(0)), False),
        (head(2, None, status=Status.DROPPED), now(current(1, 1), pin=Pin(0)), True),
    ],
)
def test_when_a_head_needs_no_second_look(offered: Head, situation: Situation, all_of_it: bool) -> None:
    assert situation.has_all_of(offered) is all_of_it


def situations() -> Iterator[tuple[Head, Situation]]:
    heads = [
        head(generation, number, status=status, incarnation=incarnation)
        for generation, number, status, incarnation in itertools.product(
            range(5), (None, 0, 1, 2), Status, (FIRST, SECOND)
        )
    ]
    served = [None] + [
        current(generation, number, pinned=pinned)
        for generation, number, pinned in itertools.product(range(1, 4), (0, 2), (False, True))
    ]
    pins = [None, Pin(0), Pin(1, FIRST), Pin(9)]
    for offered, one, pin, on_dropped in itertools.product(heads, served, pins, OnDropped):
        yield offered, now(one, floor=2 if one is None else None, pin=pin, on_dropped=on_dropped)


def test_no_decision_goes_back_or_makes_up_a_snapshot() -> None:
    kinds = set()
    for offered, situation in situations():
        decision = choose(offered, situation)
        kinds.add(type(decision))
        match decision:
            case Load(wanted, generation, pinned):
                assert generation >= situation.floor
                assert wanted in offered.snapshots
                assert offered.status is not Status.DROPPED
                assert wanted.snapshot_id == (
                    situation.pin.snapshot_id if pinned and situation.pin else offered.current_snapshot_id
                )
                assert generation >= offered.generation
            case Note(noted):
                assert situation.served is not None
                before = situation.served.current
                assert noted.generation >= before.generation
                assert (noted.incarnation, noted.snapshot_id) == (before.incarnation, before.snapshot_id)
                assert noted != before
            case Stay(outcome, held):
                assert (outcome == "waiting") is (situation.served is None)
                assert not held or situation.is_as_pinned
            case Unload():
                assert situation.on_dropped is OnDropped.UNLOAD
                assert offered.status is Status.DROPPED or offered.current is None
    assert kinds == {Load, Note, Stay, Unload, Refuse}


def test_a_decision_that_was_carried_out_is_not_taken_again() -> None:
    for offered, situation in situations():
        decision = choose(offered, situation)
        if isinstance(decision, Load):
            wanted = decision.entry
            served = current(
                decision.generation, wanted.snapshot_id, pinned=decision.pinned, incarnation=offered.incarnation
            )
        elif isinstance(decision, Note):
            served = decision.current
        else:
            continue
        pin = Pin(served.snapshot_id, served.incarnation) if served.pinned else situation.pin
        assert isinstance(choose(offered, now(served, pin=pin, on_dropped=situation.on_dropped)), Stay)
