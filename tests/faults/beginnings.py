"""The stores that operations start from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from snapshot_assets import failpoints
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.failpoints import Failpoints
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.lease import lease_key
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Died, FaultStore
from tests.faults.scene import HOUR, NAME, Scene, add_orders


def empty(_scene: Scene, _objects: MemoryStore) -> None:
    pass


def one(scene: Scene, objects: MemoryStore) -> None:
    scene.publisher(objects).publish(scene.live(1), idempotency_key="monday")


def two(scene: Scene, objects: MemoryStore) -> None:
    one(scene, objects)
    scene.publisher(objects).publish(scene.live(2))


def five(scene: Scene, objects: MemoryStore) -> None:
    for version in (1, 2, 1, 3, 1):
        scene.publisher(objects).publish(scene.live(version))


def pinned(scene: Scene, objects: MemoryStore) -> None:
    two(scene, objects)
    operate(scene, objects).pin(NAME, "audit", 0, owner="anna")


def rolled_back(scene: Scene, objects: MemoryStore) -> None:
    two(scene, objects)
    operate(scene, objects).rollback(NAME, 0)


def sealed(scene: Scene, objects: MemoryStore) -> None:
    two(scene, objects)
    operate(scene, objects).seal(NAME)


def dropped(scene: Scene, objects: MemoryStore) -> None:
    two(scene, objects)
    operate(scene, objects).drop(NAME, confirm=True)


def waiting(scene: Scene, objects: MemoryStore) -> None:
    """A cleanup whose grace is over by the time that somebody looks."""
    five(scene, objects)
    operate(scene, objects).cleanup(keep=3, grace=HOUR, confirm=True)
    scene.clock.advance(2 * HOUR)


def dead(scene: Scene, objects: MemoryStore) -> None:
    """A publish that died before its commit, and one that died before its audit row."""
    one(scene, objects)
    _die_publishing(scene, objects, 2, failpoints.PUBLISH_AFTER_COMMIT)
    # Out of sight of the next writer, who would settle it.
    hidden = {listed.key: objects.read(listed.key).data for listed in objects.list("recovery/")}
    objects.delete([*hidden, lease_key(NAME)])
    _die_publishing(scene, objects, 3, failpoints.PUBLISH_BEFORE_COMMIT)
    objects.delete([lease_key(NAME)])
    for key, data in hidden.items():
        objects.write_if_absent(key, data)
    assert len(list(objects.list("recovery/"))) == 2


def _die_publishing(scene: Scene, objects: MemoryStore, version: int, place: str) -> None:
    def publish(store: SnapshotStore, hit: Failpoints) -> object:
        publisher = Publisher(store, staging_dir=scene.folder / "staging", clock=scene.clock, failpoints=hit)
        return publisher.publish(scene.live(version))

    _die_at(objects, place, publish)


def half_dropped(scene: Scene, objects: MemoryStore) -> None:
    two(scene, objects)
    _die_at(
        objects,
        failpoints.DROP_AFTER_COMMIT,
        lambda store, hit: Maintenance(store, clock=scene.clock, failpoints=hit).drop(NAME, confirm=True),
    )


def many(scene: Scene, objects: MemoryStore) -> None:
    """A snapshot that needs the packs of as many operations as it may."""
    publisher = scene.publisher(objects)
    for dataset in _changed_often(scene):
        publisher.publish(dataset)
    operate(scene, objects).cleanup([NAME], keep=3, grace=0, confirm=True)


def _changed_often(scene: Scene) -> Any:
    live = Dataset(NAME, scene.engine, scene.folder / "often" / f"orders.{scene.engine}")
    add_orders(live, range(4_000))
    for turn in range(34):
        with engine_named(scene.engine).connect_live(live) as connection:
            connection.execute(f"update orders set note = upper(note) || '{turn:04d}' where id = {turn * 110}")
            connection.commit()
        if turn < 33:
            yield live


def operate(scene: Scene, objects: MemoryStore) -> Maintenance:
    return Maintenance(SnapshotStore.over(objects, clock=scene.clock), clock=scene.clock)


def _die_at(objects: MemoryStore, place: str, act: Callable[[SnapshotStore, Failpoints], object]) -> None:
    """Let an operation die at a failpoint: nothing that it does afterwards reaches the store."""
    mortal = FaultStore(objects)

    def die() -> None:
        mortal.is_dead = True
        raise Died(place)

    with contextlib.suppress(Died):
        act(SnapshotStore.over(mortal), Failpoints({place: die}))
        raise AssertionError(f"{place} was not reached")
