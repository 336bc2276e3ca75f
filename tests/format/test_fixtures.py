"""What an earlier version of this package wrote, this one reads: bit for bit, row for row, and for ever after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.announcement import Announcement
from snapshot_assets.model.audit import AuditRow, Outcome
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.document import FORMAT_VERSION
from snapshot_assets.model.head import Head
from snapshot_assets.model.lease import WriterLease
from snapshot_assets.model.manifest import Manifest
from snapshot_assets.model.sidecar import Sidecar, SidecarKind
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.publish.recovery import Verdict, classify
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.memory import MemoryStore
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.faults.scene import HeldClock, add_orders, note_of
from tests.format.independent_reader import restore
from tests.format.make_fixture import ENGINES, FIXTURES, OF_EVERYTHING, name_of

VERSIONS = [f"version_{number}" for number in range(1, FORMAT_VERSION + 1)]


def digests_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): blake3(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(params=VERSIONS)
def fixture(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The folder of one fixture; it is the same afterwards."""
    folder = FIXTURES / request.param
    before = digests_of(folder)
    assert before
    yield folder
    assert digests_of(folder) == before


@pytest.fixture
def store(fixture: Path) -> SnapshotStore:
    return SnapshotStore.open(fixture / "store", read_only=True)


@pytest.fixture
def expected(fixture: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((fixture / "expected.json").read_text())
    assert found.keys() == {name_of(engine) for engine in ENGINES}
    return found


def pending(store: SnapshotStore) -> Sidecar:
    """The cleanup that waits for the end of its grace."""
    [listed] = store.objects.list(f"recovery/{OF_EVERYTHING}/")
    return Sidecar.parse(store.objects.read(listed.key).data, listed.key)


def rows_up_to(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "note": note_of(number)} for number in range(count)]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_listed_snapshot_restores_and_holds_its_rows(
    engine: str, fixture: Path, store: SnapshotStore, expected: dict[str, Any], tmp_path: Path
) -> None:
    """By the package and by the independent reader, to the same bytes."""
    name = name_of(engine)
    told = expected[name]
    head = store.head(name)
    assert [entry.snapshot_id for entry in head.snapshots] == told["listed"]
    assert (head.current_snapshot_id, head.generation) == (told["current"], told["generation"])
    for entry in head.snapshots:
        content = read_content(store.objects, name, head.incarnation, entry.operation_id, entry.manifest_digest)
        ours, theirs = tmp_path / f"ours-{entry.snapshot_id}", tmp_path / f"theirs-{entry.snapshot_id}"
        restore_files(store.objects, content, ours)
        restore(fixture / "store", name, entry.snapshot_id, theirs)
        assert digests_of(ours) == digests_of(theirs)
        installed = engine_named(engine)
        installed.install(ours, content.manifest)
        pool = installed.open_pool(ours, content.manifest)
        found = pool.query(f"select id, note from {told['table']} order by id").to_pylist()
        pool.close()
        assert found == rows_up_to(told["rows"][str(entry.snapshot_id)])


def test_readers_serve_all_of_it(store: SnapshotStore, expected: dict[str, Any], tmp_path: Path) -> None:
    settings = ReaderSettings(refresh_interval=None, announce_interval=None)
    with SnapshotReader(store, tmp_path / "data", settings) as reader:
        for name, told in expected.items():
            provider = reader.follow(name)
            assert provider.current.snapshot_id == told["current"]
            found = provider.query(f"select id, note from {told['table']} order by id").to_pylist()
            assert found == rows_up_to(told["rows"][str(told["current"])])


def test_a_reader_starts_from_the_data_folder_without_the_store(
    fixture: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(fixture / "data", tmp_path / "data")
    nothing = SnapshotStore.over(MemoryStore(), read_only=True)
    settings = ReaderSettings(refresh_interval=None, announce_interval=None, verify_on_start=True)
    with SnapshotReader(nothing, tmp_path / "data", settings) as reader:
        provider = reader.follow(OF_EVERYTHING)
        assert provider.current.generation == expected[OF_EVERYTHING]["generation"]
        found = provider.query("select id, note from orders order by id").to_pylist()
    assert found == rows_up_to(expected[OF_EVERYTHING]["rows"]["3"])


def test_every_document_is_understood_and_loses_nothing_when_it_is_written_again(store: SnapshotStore) -> None:
    seen = set()
    for listed in store.objects.list(""):
        data = store.objects.read(listed.key).data
        room, *rest = listed.key.split("/")
        if not listed.key.endswith(".json") or not rest:
            continue
        parsed: Head | WriterLease | Sidecar | AuditRow | Announcement | Manifest
        match room:
            case "heads":
                parsed = Head.parse(data, rest[0].removesuffix(".json"))
            case "leases":
                parsed = WriterLease.parse(data, rest[0].removesuffix(".json"))
            case "recovery":
                parsed = Sidecar.parse(data, listed.key)
            case "audit":
                parsed = AuditRow.parse(data, listed.key)
            case "readers":
                parsed = Announcement.parse(data, listed.key)
            case "data":
                parsed = Manifest.parse(data, listed.key)
            case _:
                raise AssertionError(f"{listed.key} is of no kind that this test knows")
        seen.add(room)
        assert json.loads(parsed.to_bytes()) == json.loads(data) | {"format_version": FORMAT_VERSION}
    assert seen == {"heads", "leases", "recovery", "audit", "readers", "data"}
    assert len(store.store_id) == 26


def test_what_was_in_progress_and_who_was_there_is_understood(store: SnapshotStore) -> None:
    head = store.head(OF_EVERYTHING)
    assert [(pin.name, pin.snapshot_id) for pin in head.pins] == [("audit", 2)]
    sidecar = pending(store)
    assert sidecar.kind is SidecarKind.CLEANUP
    assert sidecar.not_before_ms is not None
    assert classify(sidecar, head, sidecar.not_before_ms - 1) is Verdict.WAITING
    assert classify(sidecar, head, sidecar.not_before_ms) is Verdict.FINISHING
    [reader] = Maintenance(store).readers()
    served = reader.announcement.datasets[OF_EVERYTHING]
    assert (reader.announcement.cohort, served.snapshot_id) == ("canary", 3)
    rows = store.objects.list(f"audit/{OF_EVERYTHING}/")
    audited = [AuditRow.parse(store.objects.read(one.key).data, one.key) for one in rows]
    assert sorted(row.kind for row in audited) == ["pin", *["publish"] * 5, "rollback"]
    assert {row.outcome for row in audited} == {Outcome.COMMITTED}


def test_writers_go_on_where_it_was_left(fixture: Path, tmp_path: Path) -> None:
    """On a copy: the cleanup that was pending is finished, and the next snapshots build on what is there."""
    shutil.copytree(fixture / "store", tmp_path / "store")
    store = SnapshotStore.open(tmp_path / "store")
    clock = HeldClock(pending(store).not_before_ms)
    for engine in ENGINES:
        name = name_of(engine)
        dataset = Dataset(name, engine, tmp_path / "live" / f"{name}.db")
        before = store.head(name)
        add_orders(dataset, range(70))
        result = Publisher(store, clock=clock).publish(dataset)
        assert result.snapshot_id == before.next_snapshot_id
        assert not list(store.objects.list(f"recovery/{name}/"))
        assert Maintenance(store).verify(name, level="restore").snapshot_id == result.snapshot_id
