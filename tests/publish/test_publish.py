"""What a publish does and what it refuses."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.clock import SYSTEM_CLOCK
from snapshot_assets.errors import (
    ConfigurationError,
    DatasetDropped,
    DatasetSealed,
    EngineMismatch,
    LiveDatabaseMissing,
    RetentionBlocked,
    SchemaChangeRefused,
    SnapshotDamaged,
    StoreError,
    ValidationFailed,
)
from snapshot_assets.failpoints import PUBLISH_AFTER_CAPTURE, PUBLISH_AFTER_EFFECTS, Failpoints
from snapshot_assets.ids import new_operation_id
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.dataset import Dataset, StagedCopy, Validator
from snapshot_assets.model.head import Status, head_key
from snapshot_assets.model.manifest import manifest_key
from snapshot_assets.publish.heads import change_head
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.publish.validators import NotNull, RowCountAtLeast, RowCountWithin, Unique, validator_names
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault, FaultStore
from tests.publish.support import audits, check_store, grow, grow_duckdb, grow_sqlite

WRITES = "[wu]*"
"""The pattern of every operation that writes: `write_if_absent`, `write_if_match`, `upload`."""


def test_a_publish_makes_the_live_content_current(store: SnapshotStore, dataset: Dataset, tmp_path: Path) -> None:
    result = Publisher(store).publish(dataset, summary={"by": "test"}, partition_keys=["2013-01-01"])
    head = store.head("orders")
    assert (result.outcome, result.snapshot_id, result.generation) == ("published", 0, 1)
    assert head.current_snapshot_id == 0
    entry = head.snapshots[0]
    assert entry.operation_id == result.operation_id
    assert entry.summary == {"by": "test"}
    assert entry.row_count == 100
    assert dict(result.row_counts) == {"t": 100}
    stored = sum(listed.size for listed in store.objects.list(f"data/orders/{head.incarnation}/"))
    assert result.uploaded_bytes == entry.uploaded_bytes == stored
    assert result.uploaded_objects == 3
    assert {"capture", "verify", "plan", "upload", "confirm", "commit", "retire"} <= result.seconds.keys()
    check_store(store, tmp_path / "scratch")


def test_every_publish_gets_the_next_id_and_generation_and_names_its_parent(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    publisher = Publisher(store)
    for number in range(3):
        grow(dataset, 10)
        result = publisher.publish(dataset)
        assert (result.snapshot_id, result.generation) == (number, number + 1)
    entries = store.head("orders").snapshots
    assert [entry.parent_snapshot_id for entry in entries] == [None, 0, 1]
    check_store(store, tmp_path / "scratch")


def test_unchanged_content_writes_no_data_and_takes_at_most_six_requests(tmp_path: Path, dataset: Dataset) -> None:
    plain = SnapshotStore.open(str(tmp_path / "store"))
    first = Publisher(plain).publish(dataset)
    objects = {listed.key for listed in plain.objects.list("")} - {"leases/orders.json"}
    faults = FaultStore(plain.objects)
    store = SnapshotStore.over(faults)
    publisher = Publisher(store)
    before = len(faults.calls)
    again = publisher.publish(dataset)
    assert len(faults.calls) - before <= 6
    assert again.outcome == "unchanged"
    assert (again.snapshot_id, again.generation) == (first.snapshot_id, first.generation)
    assert (again.uploaded_bytes, again.uploaded_objects) == (0, 0)
    assert {listed.key for listed in plain.objects.list("")} - {"leases/orders.json"} == objects


def test_force_publishes_unchanged_content_as_a_new_snapshot(store: SnapshotStore, dataset: Dataset) -> None:
    publisher = Publisher(store)
    first = publisher.publish(dataset)
    forced = publisher.publish(dataset, force=True)
    assert (forced.outcome, forced.snapshot_id, forced.content_digest) == ("published", 1, first.content_digest)
    assert forced.uploaded_objects == 2


def test_an_idempotency_key_publishes_once(store: SnapshotStore, dataset: Dataset) -> None:
    publisher = Publisher(store)
    first = publisher.publish(dataset, idempotency_key="run-1")
    grow(dataset, 5)
    again = publisher.publish(dataset, idempotency_key="run-1")
    assert again.outcome == "already_published"
    assert (again.snapshot_id, again.operation_id) == (first.snapshot_id, first.operation_id)
    assert dict(again.row_counts) == {"t": 100}
    assert publisher.publish(dataset, idempotency_key="run-2").snapshot_id == 1


def test_a_writing_that_never_publishes_changes_nothing_in_the_store(store: SnapshotStore, dataset: Dataset) -> None:
    publisher = Publisher(store)
    with pytest.raises(RuntimeError, match="the body failed"), publisher.writing(dataset) as writing:
        with writing.connect() as connection:
            connection.execute("delete from t")
        raise RuntimeError("the body failed")
    assert store.heads() == {}
    assert publisher.publish(dataset).outcome == "published"


def test_after_its_publish_a_writing_gives_the_live_database_to_nobody(store: SnapshotStore, dataset: Dataset) -> None:
    with Publisher(store).writing(dataset) as writing:
        writing.publish()
        with pytest.raises(ConfigurationError, match="write gate"):
            writing.connect()
        with pytest.raises(ConfigurationError, match="write gate"):
            writing.publish()


def test_after_its_block_a_writing_does_nothing_any_more(store: SnapshotStore, dataset: Dataset) -> None:
    with Publisher(store).writing(dataset) as writing:
        pass
    with pytest.raises(ConfigurationError, match="write gate"):
        writing.connect()
    with pytest.raises(ConfigurationError, match="write gate"):
        writing.publish()
    assert store.heads() == {}


def test_a_writing_publishes_what_its_body_wrote(store: SnapshotStore, dataset: Dataset) -> None:
    with Publisher(store).writing(dataset) as writing:
        with writing.connect() as connection:
            connection.execute("delete from t where id >= 7")
        result = writing.publish()
    assert dict(result.row_counts) == {"t": 7}


@pytest.mark.parametrize(
    ("validator", "finding"),
    [
        (RowCountAtLeast(101), "100 rows, at least 101"),
        ("select id from t where id > 97", "2 rows where none may be"),
        ("select nonsense from nowhere", "could not be run"),
        (lambda staged: f"{len(staged.tables)} table", "1 table"),
        (NotNull("t", "id"), ""),
        (Unique("t", "id"), ""),
        (RowCountWithin(10.0), ""),
    ],
)
def test_a_validator_that_finds_something_stops_the_publish(
    store: SnapshotStore, dataset: Dataset, validator: Validator, finding: str
) -> None:
    checked = Dataset(dataset.name, dataset.engine, dataset.path, validators=[validator])
    if not finding:
        Publisher(store).publish(checked)
        head = store.head("orders")
        manifest = json.loads(
            store.objects.read(f"data/orders/{head.incarnation}/{head.snapshots[0].operation_id}/manifest.json").data
        )
        assert [check["passed"] for check in manifest["checks"]] == [True]
        return
    with pytest.raises(ValidationFailed, match=finding) as caught:
        Publisher(store).publish(checked)
    assert [result.passed for result in caught.value.results] == [False]
    assert store.heads() == {}
    assert not list(store.objects.list("data/"))


def test_validators_are_named_for_what_they_are_and_never_alike() -> None:
    def sql_2(staged: StagedCopy) -> str | None:
        """Somebody's own."""
        return None if staged.tables else "no table"

    validators: list[Validator] = [
        "select 1",
        RowCountAtLeast(1, "a"),
        sql_2,
        "select 2",
        RowCountAtLeast(1, "b"),
        "select 3",
        sql_2,
    ]
    names = validator_names(validators)
    assert names == ("sql", "row_count_at_least", "sql_2", "sql_3", "row_count_at_least_2", "sql_4", "sql_2_2")


def test_validators_see_nulls_duplicates_and_the_previous_counts(store: SnapshotStore, dataset: Dataset) -> None:
    publisher = Publisher(store)
    publisher.publish(dataset)
    grow(dataset, 100)
    seen: list[object] = []

    def look(staged: StagedCopy) -> None:
        seen.append((dict(staged.previous or {}), staged.tables["t"].row_count, staged.query("select count(*) from t")))

    validators: list[Validator] = [Unique("t", "id"), RowCountWithin(50.0, "t"), look]
    with pytest.raises(ValidationFailed) as caught:
        publisher.publish(Dataset(dataset.name, dataset.engine, dataset.path, validators=validators))
    assert [result.passed for result in caught.value.results] == [False, False, True]
    assert seen == [({"t": 100}, 200, [(200,)])]
    assert store.head("orders").current_snapshot_id == 0


def test_a_validator_can_not_change_the_staged_copy(store: SnapshotStore, dataset: Dataset) -> None:
    meddling = Dataset(dataset.name, dataset.engine, dataset.path, validators=["delete from t"])
    with pytest.raises(ValidationFailed, match="could not be run"):
        Publisher(store).publish(meddling)


def test_a_schema_that_readers_would_not_survive_is_refused_until_it_is_allowed(
    store: SnapshotStore, dataset: Dataset
) -> None:
    publisher = Publisher(store)
    publisher.publish(dataset)
    with publisher.writing(dataset) as writing, writing.connect() as connection:
        connection.execute("alter table t add column extra integer")
    assert publisher.publish(dataset).outcome == "published"
    assert [version.schema_id for version in store.head("orders").schemas] == [0, 1]
    with publisher.writing(dataset) as writing, writing.connect() as connection:
        connection.execute("alter table t rename column note to remark")
    with pytest.raises(SchemaChangeRefused, match=r"note string +> remark string"):
        publisher.publish(dataset)
    assert store.head("orders").current_snapshot_id == 1
    assert publisher.publish(dataset, allow_schema_change=True).snapshot_id == 2
    assert store.head("orders").snapshots[-1].schema_id == 2


def test_a_missing_live_database_is_named_and_nothing_is_left(store: SnapshotStore, tmp_path: Path) -> None:
    with pytest.raises(LiveDatabaseMissing, match="nowhere") as caught:
        Publisher(store).publish(Dataset("orders", "duckdb", tmp_path / "nowhere.duckdb"))
    assert caught.value.dataset == "orders"
    assert store.heads() == {}
    assert not (tmp_path / "nowhere.duckdb").exists()


def test_another_engine_is_refused(store: SnapshotStore, tmp_path: Path) -> None:
    grow_duckdb(tmp_path / "a.duckdb", 1)
    grow_sqlite(tmp_path / "a.sqlite", 1)
    Publisher(store).publish(Dataset("orders", "duckdb", tmp_path / "a.duckdb"))
    with pytest.raises(EngineMismatch, match="published by duckdb, not by sqlite"):
        Publisher(store).publish(Dataset("orders", "sqlite", tmp_path / "a.sqlite"))


@pytest.mark.parametrize(("status", "error"), [(Status.SEALED, DatasetSealed), (Status.DROPPED, DatasetDropped)])
def test_a_dataset_that_takes_no_writers_refuses_them(
    store: SnapshotStore, dataset: Dataset, status: Status, error: type[Exception]
) -> None:
    publisher = Publisher(store)
    publisher.publish(dataset)
    change_head(store, "orders", new_operation_id(), lambda head: replace(head, status=status), clock=SYSTEM_CLOCK)
    grow(dataset, 1)
    with pytest.raises(error):
        publisher.publish(dataset)
    assert store.head("orders").current_snapshot_id == 0


def test_a_newer_head_is_refused_and_left_as_it_is(store: SnapshotStore, dataset: Dataset) -> None:
    newer = b'{"format_version": 2}'
    store.objects.write_if_absent(head_key("orders"), newer)
    with pytest.raises(StoreError, match="format version 2"):
        Publisher(store).publish(dataset)
    assert store.objects.read(head_key("orders")).data == newer


def test_the_head_lists_at_most_max_snapshots_and_keeps_what_is_pinned(store: SnapshotStore, dataset: Dataset) -> None:
    publisher = Publisher(store, max_snapshots=4)
    for _ in range(4):
        publisher.publish(dataset, force=True)
    Maintenance(store).pin("orders", "keep", 0, owner="ops")
    publisher.publish(dataset, force=True)
    assert [entry.snapshot_id for entry in store.head("orders").snapshots] == [0, 2, 3, 4]
    Maintenance(store).pin("orders", "keep too", 2, owner="ops")
    with pytest.raises(RetentionBlocked):
        Publisher(store, max_snapshots=4).publish(dataset, force=True)
    assert store.head("orders").current_snapshot_id == 4


def test_settings_that_no_head_can_hold_are_refused(store: SnapshotStore, dataset: Dataset) -> None:
    for wrong in (2, 1_001):
        with pytest.raises(ConfigurationError):
            Publisher(store, max_snapshots=wrong)
    with pytest.raises(ConfigurationError):
        Publisher(store, lease_duration=0.1)
    with pytest.raises(ConfigurationError, match="'quik'"):
        Publisher(store, verify="quik")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'dgest'"):
        Publisher(store, verify_upload="dgest")  # type: ignore[arg-type]
    durations: list[Any] = [-1.0, float("inf"), "60"]
    for duration in durations:
        with pytest.raises(ConfigurationError, match="wait"):
            Publisher(store, wait=duration)
    with pytest.raises(ConfigurationError, match="read-only"):
        Publisher(SnapshotStore.open(store.url, read_only=True))


def test_durations_may_be_timedeltas_and_the_staging_folder_a_text(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    publisher = Publisher(
        store,
        staging_dir=str(tmp_path / "elsewhere"),
        lease_duration=timedelta(minutes=1),
        wait=timedelta(0),
        capture_timeout=timedelta(seconds=5),
    )
    publisher.publish(dataset)
    assert (tmp_path / "elsewhere" / "orders").is_dir()
    assert not (dataset.path.parent / ".snapshot-assets").exists()


UNRECORDABLE: list[dict[str, Any]] = [
    {"idempotency_key": 20240101},
    {"idempotency_key": "x" * 2_000},
    {"idempotency_key": "\ud800"},
    {"partition_keys": [20240101]},
    {"summary": {"long": "x" * 3_000}},
    {"summary": {"number": 1}},
    {"summary": {"lone": "\ud800"}},
    {"checks": [{"object": object()}]},
    {"checks": [{"number": float("nan")}]},
]


@pytest.mark.parametrize("arguments", UNRECORDABLE)
def test_what_could_not_be_read_again_is_refused_before_anything_is_stored(
    store: SnapshotStore, dataset: Dataset, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError):
        Publisher(store).publish(dataset, **arguments)
    assert not list(store.objects.list("data/"))
    assert store.heads() == {}
    with pytest.raises(ConfigurationError):
        Publisher(store).publish(Dataset(dataset.name, dataset.engine, dataset.path, properties={"x": object()}))
    assert not list(store.objects.list("recovery/"))


def test_a_rollback_during_a_publish_of_unchanged_content_is_not_overlooked(
    store: SnapshotStore, dataset: Dataset
) -> None:
    Publisher(store).publish(dataset)
    grow(dataset, 10)
    Publisher(store).publish(dataset)

    def roll_back() -> None:
        Maintenance(store).rollback("orders", 0)

    result = Publisher(store, failpoints=Failpoints({PUBLISH_AFTER_CAPTURE: roll_back})).publish(dataset)
    assert (result.outcome, result.snapshot_id) == ("published", 2)
    assert store.head("orders").current_snapshot_id == 2


def test_a_damaged_current_manifest_matters_only_to_validators_that_ask_for_it(
    store: SnapshotStore, dataset: Dataset
) -> None:
    result = Publisher(store).publish(dataset)
    key = manifest_key("orders", result.incarnation, result.operation_id)
    store.objects.delete([key])
    grow(dataset, 10)
    checked = Dataset(dataset.name, dataset.engine, dataset.path, validators=[RowCountWithin(50.0)])
    with pytest.raises(ValidationFailed, match="missing"):
        Publisher(store).publish(checked)
    checked = Dataset(dataset.name, dataset.engine, dataset.path, validators=[RowCountAtLeast(1)])
    assert Publisher(store).publish(checked).outcome == "published"


def test_a_damaged_base_is_not_reused_and_does_not_stop_the_writer(
    store: SnapshotStore, dataset: Dataset, tmp_path: Path
) -> None:
    publisher = Publisher(store)
    first = publisher.publish(dataset)
    head = store.head("orders")
    store.objects.delete([f"data/orders/{head.incarnation}/{first.operation_id}/index.arrow"])
    grow(dataset, 10)
    second = publisher.publish(dataset)
    assert store.head("orders").snapshots[-1].reuses == ()
    Maintenance(store).verify("orders", second.snapshot_id, "restore")


@pytest.mark.parametrize("kept_bytes", [None, 100])
def test_an_upload_that_is_missing_or_short_is_never_announced(
    tmp_path: Path, dataset: Dataset, kept_bytes: int | None
) -> None:
    store = SnapshotStore.open(str(tmp_path / "store"))

    def lose_first_pack() -> None:
        [pack] = tmp_path.glob("store/data/orders/*/*/0000.pack")
        data = pack.read_bytes()
        pack.unlink()
        if kept_bytes is not None:
            pack.write_bytes(data[:kept_bytes])

    publisher = Publisher(store, failpoints=Failpoints({PUBLISH_AFTER_EFFECTS: lose_first_pack}))
    with pytest.raises(StoreError, match="the store lists"):
        publisher.publish(dataset)
    assert store.head("orders").snapshots == ()
    assert Publisher(store).publish(dataset).outcome == "published"


@pytest.mark.parametrize("level", ["digest", "restore"])
def test_an_upload_that_arrived_damaged_is_never_announced(tmp_path: Path, dataset: Dataset, level: str) -> None:
    store = SnapshotStore.open(str(tmp_path / "store"))

    def damage_first_pack() -> None:
        pack = next(tmp_path.glob("store/data/orders/*/*/0000.pack"))
        data = bytearray(pack.read_bytes())
        data[len(data) // 3] ^= 0xFF
        pack.write_bytes(data)

    failpoints = Failpoints({PUBLISH_AFTER_EFFECTS: damage_first_pack})
    publisher = Publisher(store, verify_upload=level, failpoints=failpoints)  # type: ignore[arg-type]
    with pytest.raises(SnapshotDamaged):
        publisher.publish(dataset)
    assert store.head("orders").snapshots == ()
    assert Publisher(store, verify_upload=level).publish(dataset).outcome == "published"  # type: ignore[arg-type]


def test_nothing_stays_behind_beside_the_live_database(store: SnapshotStore, dataset: Dataset) -> None:
    Publisher(store).publish(dataset)
    staging = dataset.path.parent / ".snapshot-assets" / "orders" / "staging"
    assert [path for path in staging.iterdir() if path.is_dir()] == []


def test_a_lost_answer_of_any_write_is_settled_by_reading_back(tmp_path: Path, dataset: Dataset) -> None:
    """Each write in turn is answered with a failure after it took effect; the publish goes through all the same."""
    writes = 1
    while True:
        root = tmp_path / f"store-{writes}"
        plain = SnapshotStore.open(str(root))
        faults = FaultStore(plain.objects, Fault("after", WRITES, nth=writes))
        store = SnapshotStore.over(faults, retry_for=5.0)
        result = Publisher(store).publish(dataset)
        if not faults.fired:
            break
        assert result.outcome == "published"
        assert [entry.operation_id for entry in plain.head("orders").snapshots] == [result.operation_id]
        assert set(audits(plain).values()) == {"committed"}
        writes += 1
    assert writes >= 8


def test_a_column_with_a_dot_in_its_name_can_be_validated(tmp_path: Path, store: SnapshotStore) -> None:
    path = tmp_path / "dots.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute('create table t ("a.b" integer)')
        connection.execute("insert into t values (1)")
    checks: list[Validator] = [NotNull("t", "a.b"), Unique("t", "a.b")]
    assert Publisher(store).publish(Dataset("dots", "sqlite", path, validators=checks)).outcome == "published"
