"""What must hold of all that every process saw and did, however it ended."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

from snapshot_assets.clock import SYSTEM_CLOCK
from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.maintenance.cleanup import Cleaner
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.maintenance.retention import RetentionPolicy
from snapshot_assets.model.head import MAX_SNAPSHOTS, Status
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.faults_real.actors import KEEP
from tests.faults_real.place import NAME, Place, acknowledge, change, digest_of_rows
from tests.publish.support import audits, check_store

__all__ = ["Event", "check_all", "check_kept", "check_published", "check_register", "check_served", "settle"]

Event = Mapping[str, Any]


def settle(place: Place, live: str = "live") -> None:
    """Whatever happened: a writer who comes now publishes, and after a cleanup nothing is pending and nothing is left.

    An operation that was undone may have had bytes under way that arrived after it: they are the only objects without
    an explanation, their operation is audited as undone, and a cleanup that comes late enough deletes them.
    """
    journal = place.journal("settler")
    store = place.store(journal)
    begun = time.monotonic()
    publisher = Publisher(store, wait=60, lease_duration=1.0, max_snapshots=MAX_SNAPSHOTS)
    with publisher.writing(place.live(live)) as writing:
        with writing.connect() as connection:
            rows = change(connection)
        done = writing.publish(summary={"rows": rows})
    assert done.outcome == "published"
    acknowledge(journal, done, rows, begun)
    [row] = Maintenance(store).cleanup([NAME], keep=MAX_SNAPSHOTS, grace=0, confirm=True)
    assert row.error is None, row.error
    assert not list(store.objects.list(f"recovery/{NAME}/"))
    late = _operations_stored(store) - _operations_needed(store)
    outcomes = audits(store)
    assert all(outcomes.get(operation) != "committed" or operation not in _listed(store) for operation in late)
    unexplained = {operation: outcomes.get(operation) for operation in late if operation not in outcomes}
    assert not unexplained, unexplained
    now_ms = SYSTEM_CLOCK.now_ms() + 2 * 24 * 60 * 60 * 1000
    keep = RetentionPolicy(keep=MAX_SNAPSHOTS)
    row = Cleaner(store, keep, [], now_ms=now_ms, grace_ms=0, confirm=True, clock=SYSTEM_CLOCK).clean(NAME)
    assert row.error is None, row.error


def check_all(place: Place, *, refusals: Mapping[str, Collection[str]], keep: int = KEEP) -> Counter[str]:
    """Settle the place and check every promise; how often each kind of event happened.

    Args:
        place: where it happened; nobody is at work there any more.
        refusals: the errors that may have been met, by the actor's name without its number.
        keep: how many of the newest snapshots every cleanup kept.
    """
    settle(place)
    store = SnapshotStore.open(place.url, place.options or None)
    check_store(store, place.folder / "scratch")
    events = place.events()
    failed = [event["error"] for event in events if event["kind"] == "failed"]
    assert not failed, failed[0]
    for event in events:
        if event["kind"] == "refused":
            assert event["error"] in refusals.get(event["actor"].rstrip("0123456789"), ()), event["message"]
    # The store as everybody sees it now is the last thing that was seen.
    journal = place.journal("end")
    place.store(journal, read_only=True).head(NAME)
    events = place.events()
    check_register(events)
    check_published(events)
    check_kept(store, place, events, keep)
    check_served(events)
    kinds = Counter(event["kind"] for event in events)
    kinds.update(f"{event['kind']} {event['error']}" for event in events if event["kind"] == "refused")
    return kinds


def check_register(events: Iterable[Event]) -> None:
    """The head is one register: its changes and what was read of it are in one order that agrees with real time."""
    heads = [event for event in events if event["kind"] == "head"]
    wrote = [event for event in heads if event["what"] == "wrote"]
    revisions = Counter(event["revision"] for event in wrote)
    assert all(times == 1 for times in revisions.values()), revisions.most_common(3)
    # Each revision was asked for by somebody, and every one up to the last took effect.
    tried = {event["revision"]: event for event in reversed(heads) if event["what"] == "trying"}
    seen = [event for event in heads if event["what"] in {"wrote", "read"}]
    last = max(event["revision"] for event in seen)
    assert set(range(last + 1)) <= tried.keys() | {0}
    # What is done before something begins is not after it in the order of revisions.
    ends = sorted((event["at"], event["revision"]) for event in seen)
    newest, highest = [], -1
    for _, revision in ends:
        highest = max(highest, revision)
        newest.append(highest)
    times = [at for at, _ in ends]
    for event in seen:
        done = bisect_left(times, event["begun"])
        before = newest[done - 1] if done else -1
        assert event["revision"] >= before + (event["what"] == "wrote"), (event, before)
        if event["what"] == "read" and event["revision"] in tried:
            assert event["at"] >= tried[event["revision"]]["begun"], event
    # Whoever saw a revision saw the same, and nothing in it ever counts back.
    described: dict[int, tuple[Any, ...]] = {}
    for event in seen:
        what = tuple(
            event[name] for name in ("generation", "incarnation", "next_snapshot_id", "snapshot_id", "rows", "status")
        )
        assert described.setdefault(event["revision"], what) == what, event
    ordered = [described[revision] for revision in sorted(described)]
    for (generation, incarnation, next_id, *_), later in pairwise(ordered):
        assert later[0] >= generation
        assert later[2] >= next_id or later[1] != incarnation


def check_published(events: Iterable[Event]) -> None:
    """Snapshot ids rise with real time and are never given twice."""
    acknowledged = [event for event in events if event["kind"] == "published"]
    ids = Counter((event["incarnation"], event["snapshot_id"]) for event in acknowledged)
    assert all(times == 1 for times in ids.values()), ids.most_common(3)
    for incarnation in {event["incarnation"] for event in acknowledged}:
        mine = sorted((event for event in acknowledged if event["incarnation"] == incarnation), key=lambda e: e["at"])
        highest, done = -1, 0
        for event in sorted(mine, key=lambda e: float(e["begun"])):
            while done < len(mine) and mine[done]["at"] < event["begun"]:
                highest = max(highest, mine[done]["snapshot_id"])
                done += 1
            assert event["snapshot_id"] > highest, event


def check_kept(store: SnapshotStore, place: Place, events: Iterable[Event], keep: int) -> None:
    """What was acknowledged is listed, or was old enough for retention, and restores to what its writer had."""
    head = store.head(NAME)
    assert head.status is Status.ACTIVE
    engine = engine_named(place.engine)
    rows = {}
    for entry in head.snapshots:
        content = read_content(store.objects, NAME, head.incarnation, entry.operation_id, entry.manifest_digest)
        folder = place.folder / "kept" / entry.operation_id
        folder.mkdir(parents=True)
        restore_files(store.objects, content, folder)
        with engine.staged_query(folder, [file.path for file in content.manifest.files]) as query:
            rows[entry.operation_id] = digest_of_rows(query("select id, version, note from t order by id"))
        assert rows[entry.operation_id] == entry.summary["rows"], entry.snapshot_id
    outcomes = audits(store)
    for event in events:
        if event["kind"] == "head" and event["operation_id"] is not None:
            # Whatever was meant to be visible has ended; what was visible to anybody has ended so.
            assert event["operation_id"] in outcomes, event
            was_visible = event["what"] in {"read", "wrote"}
            assert not was_visible or outcomes[event["operation_id"]] == "committed", event
        if event["kind"] != "published":
            continue
        assert outcomes[event["operation_id"]] == "committed", event
        if event["incarnation"] != head.incarnation:
            continue
        if event["operation_id"] in rows:
            assert rows[event["operation_id"]] == event["rows"], event
        else:
            assert event["snapshot_id"] < head.next_snapshot_id - keep, event
    assert len(head.snapshots) >= min(keep, head.next_snapshot_id)


def check_served(events: Iterable[Event]) -> None:
    """Readers served only what was current under its generation, as it was, and after a refresh never went back."""
    events = list(events)
    states = {
        (event["incarnation"], event["generation"], event["snapshot_id"]): event["rows"]
        for event in events
        # What somebody tried to make current, and lost, was of that generation for nobody.
        if event["kind"] == "head" and event["what"] in {"read", "wrote"}
    }
    highest: dict[str, int] = {}
    for event in events:
        if event["kind"] != "served":
            continue
        state = (event["incarnation"], event["generation"], event["snapshot_id"])
        assert state in states, event
        assert event["rows"] == states[state], event
        if event["fresh"]:
            assert event["generation"] >= highest.get(event["actor"], -1), event
            highest[event["actor"]] = event["generation"]


def _listed(store: SnapshotStore) -> set[str]:
    return {entry.operation_id for entry in store.head(NAME).snapshots}


def _operations_stored(store: SnapshotStore) -> set[str]:
    return {listed.key.split("/")[3] for listed in store.objects.list(f"data/{NAME}/")}


def _operations_needed(store: SnapshotStore) -> set[str]:
    head = store.head(NAME)
    needed: set[str] = set()
    for entry in head.snapshots:
        content = read_content(store.objects, NAME, head.incarnation, entry.operation_id, entry.manifest_digest)
        needed |= set(content.manifest.operations)
    return needed
