"""The engine contract for Lance, and what the engine says of datasets that only Lance has."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from lance.arrow import bfloat16_array

from snapshot_assets.engines.lance import LanceEngine
from snapshot_assets.engines.lance_copy import blob_columns
from snapshot_assets.engines.lance_format import storage_version
from snapshot_assets.engines.lance_live import LanceTable
from snapshot_assets.errors import (
    CorruptCapture,
    EngineTooOld,
    LiveDatabaseMissing,
    ReadOnlyDataset,
    UnsupportedLiveDatabase,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Manifest, TableContent
from snapshot_assets.testing import EngineContract
from snapshot_assets.testing.engine_contract import manifest_for

ENGINE = LanceEngine()
ORDERS = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("name", pa.string())])


def orders(ids: Sequence[int], name: str = "order {}") -> pa.Table:
    return pa.table([list(ids), [name.format(number) for number in ids]], schema=ORDERS)


class TestLance(EngineContract):
    engine_name = "lance"
    has_many_tables = False
    is_folder = True
    # Lance keeps no checksums: what can be decoded is taken for what was written.
    detects_flipped_bytes = False
    types = pa.schema(
        [
            *((name, getattr(pa, name)()) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")),
            *(("uint64", pa.uint64()), ("float32", pa.float32()), ("float64", pa.float64()), ("bool", pa.bool_())),
            *(("string", pa.string()), ("binary", pa.binary()), ("date", pa.date32()), ("time", pa.time64("us"))),
            *((f"timestamp {unit}", pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
            ("decimal", pa.decimal128(20, 4)),
            ("list", pa.list_(pa.int64())),
            ("vector", pa.list_(pa.float32(), 4)),
            ("struct", pa.struct([("a", pa.int32()), ("b", pa.struct([("c", pa.string())]))])),
        ]
    )
    odd_names = tuple(name for name in EngineContract.odd_names if "." not in name)  # Lance allows no dots
    special_floats = (math.nan, math.inf, -math.inf, -0.0)

    def fill(self, connection: LanceTable, rows: int = 1_000) -> None:
        connection.write(orders(range(rows)))

    def append(self, connection: LanceTable, first: int, rows: int) -> None:
        connection.write(orders(range(first, first + rows)))

    def update(self, connection: LanceTable, ids: Sequence[int]) -> None:
        connection.dataset.update({"name": "concat('changed ', id)"}, where=f"id in ({', '.join(map(str, ids))})")

    def delete(self, connection: LanceTable, ids: Sequence[int]) -> None:
        connection.dataset.delete(f"id in ({', '.join(map(str, ids))})")

    def commit_numbered(self, connection: LanceTable, number: int) -> None:
        rows = pa.table([[number, 0], [f"order {number}", str(number)]], schema=ORDERS)
        merge = connection.dataset.merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def add_column(self, connection: LanceTable) -> None:
        connection.dataset.add_columns(pa.field("note", pa.string()))

    def drop_column(self, connection: LanceTable) -> None:
        connection.dataset.drop_columns(["name"])

    def load(self, connection: LanceTable, table: pa.Table, name: str = "orders") -> None:
        assert name == "orders"
        connection.write(table)

    def rows_of(self, connection: LanceTable, name: str = "orders") -> list[tuple[Any, ...]]:
        assert name == "orders"
        table = connection.dataset.to_table()
        return [tuple(row.values()) for row in table.sort_by(table.column_names[0]).to_pylist()]

    def use(self, connection: LanceTable) -> None:
        connection.dataset.count_rows()

    def count_of(self, lease: lance.LanceDataset) -> tuple[int, int]:
        ids = lease.to_table(columns=["id"])["id"].to_pylist()
        return len(ids), sum(ids)

    def write_to(self, lease: lance.LanceDataset) -> None:
        lease.insert(orders([999_999], "forbidden"))

    def disturb(self, lease: lance.LanceDataset) -> None:
        lease.checkout_latest()  # type: ignore[no-untyped-call]

    def check_undisturbed(self, lease: lance.LanceDataset) -> None:
        assert lease.count_rows() == 1_000


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset("orders", "lance", tmp_path / "live" / "orders.lance")


def staged(dataset: Dataset, folder: Path) -> tuple[list[str], dict[str, TableContent], Manifest]:
    """Capture into a folder and look at the copy."""
    folder.mkdir()
    captured = ENGINE.capture(dataset, folder, timeout=10)
    files = [file.path for file in captured.files]
    tables = dict(ENGINE.describe(dataset, folder, files))
    ENGINE.verify(folder, files, tables, "full")
    return files, tables, manifest_for(dataset, captured, tables)


# the live dataset


def test_a_first_run_makes_the_dataset_and_later_ones_append_or_overwrite(dataset: Dataset) -> None:
    for _ in range(2):
        with ENGINE.connect_live(dataset) as table:
            assert table.write(orders(range(10)), mode="overwrite").count_rows() == 10
            assert table.write(orders(range(10, 15))).count_rows() == 15
            assert table.dataset.version == table.dataset.latest_version
    assert sorted(lance.dataset(dataset.path).to_table()["id"].to_pylist()) == list(range(15))


def test_a_dataset_that_was_not_written_yet_says_so(dataset: Dataset) -> None:
    with ENGINE.connect_live(dataset) as table:
        assert table.path == dataset.path
        with pytest.raises(LiveDatabaseMissing):
            _ = table.dataset
    assert not dataset.path.exists()


def test_a_first_write_that_was_cut_short_is_written_again(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(10)))
    shutil.rmtree(dataset.path / "_versions")
    ENGINE.check_dataset(dataset)
    with pytest.raises(UnsupportedLiveDatabase, match="no Lance dataset"):
        ENGINE.capture(dataset, tmp_path, timeout=0)
    with ENGINE.connect_live(dataset) as table:
        assert table.write(orders(range(5))).count_rows() == 5


def test_a_folder_of_other_things_is_no_live_dataset(dataset: Dataset) -> None:
    dataset.path.mkdir(parents=True)
    (dataset.path / "data").mkdir()
    (dataset.path / "notes.txt").touch()
    with pytest.raises(UnsupportedLiveDatabase):
        ENGINE.check_dataset(dataset)
    with pytest.raises(UnsupportedLiveDatabase), ENGINE.connect_live(dataset):
        pass


@pytest.mark.parametrize("name", ["with blank.lance", "ünï.lance", "a%20b#c?.lance", "no suffix"])
def test_odd_names_of_the_live_folder_do_not_matter(tmp_path: Path, name: str) -> None:
    odd = Dataset("orders", "lance", tmp_path / "live" / name)
    with ENGINE.connect_live(odd) as table:
        table.write(orders(range(10)))
    ENGINE.check_dataset(odd)
    files, tables, _ = staged(odd, tmp_path / "staging")
    assert all(file.startswith("orders.lance/") for file in files)
    assert tables["orders"].row_count == 10


# describe


def test_columns_of_python_extension_types_are_described_by_what_they_are_stored_as(
    dataset: Dataset, tmp_path: Path
) -> None:
    numbers = bfloat16_array([1.5, None])
    inner = pa.StructArray.from_arrays([numbers], ["number"])
    unknown = pa.field("unknown", pa.int64(), metadata={"ARROW:extension:name": "of.a.package.not.imported", "a": "b"})
    rows = pa.table({"number": numbers, "inner": inner}).append_column(unknown, [[1, 2]])
    with ENGINE.connect_live(dataset) as table:
        table.write(rows)
    _, tables, _ = staged(dataset, tmp_path / "staging")
    schema = tables["orders"].schema
    assert [field.type for field in schema.fields] == [
        "fixed_size_binary[2]",
        "struct<number: fixed_size_binary[2]>",
        "int64",
    ]
    assert schema.to_arrow().field("unknown").metadata == {b"a": b"b"}
    assert type(schema).from_base64(schema.arrow, "a test") == schema


def test_schema_changes_are_described(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(10)))
        table.dataset.add_columns({"double_id": "id * 2"})
        changes: list[Any] = [{"path": "name", "name": "title"}, {"path": "double_id", "data_type": pa.int32()}]
        table.dataset.alter_columns(*changes)
        table.dataset.drop_columns(["id"])
    _, tables, manifest = staged(dataset, tmp_path / "staging")
    assert [(field.name, field.type) for field in tables["orders"].schema.fields] == [
        ("title", "string"),
        ("double_id", "int32"),
    ]
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    assert pool.query("select sum(double_id) total from orders").to_pylist() == [{"total": 90}]
    pool.close()


def test_an_empty_table_is_captured_and_served(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders([]))
    _, tables, manifest = staged(dataset, tmp_path / "staging")
    assert tables["orders"].row_count == 0
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    assert pool.query("select * from orders where id > 0").schema.names == ["id", "name"]
    assert pool.acquire().count_rows() == 0
    pool.close()


# verify


def test_rows_that_another_deletion_file_brings_back_are_noticed(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(100)))
        table.dataset.delete("id < 10")
    files, tables, _ = staged(dataset, tmp_path / "staging")
    (deletions,) = (tmp_path / "staging" / file for file in files if "_deletions" in file)
    other = lance.write_dataset(orders(range(100)), tmp_path / "other.lance")
    other.delete("id < 5")
    (fewer,) = (tmp_path / "other.lance" / "_deletions").iterdir()
    deletions.unlink()
    shutil.copy(fewer, deletions)
    with pytest.raises(CorruptCapture, match="deletion vector"):
        ENGINE.verify(tmp_path / "staging", files, tables, "quick")


def test_a_full_verify_notices_every_file_that_is_cut_short(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(5_000)))
        table.dataset.create_scalar_index("id", "BTREE")
        table.dataset.delete("id % 100 = 7")
    files, tables, _ = staged(dataset, tmp_path / "staging")
    assert {Path(file).parts[1] for file in files} == {"_deletions", "_indices", "_versions", "data"}
    for file in files:
        path = tmp_path / "staging" / file
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(CorruptCapture):
            ENGINE.verify(tmp_path / "staging", files, tables, "full")
        path.write_bytes(content)
    ENGINE.verify(tmp_path / "staging", files, tables, "full")


def test_a_full_verify_notices_text_that_is_none(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(10), "needle {}"), data_storage_version="2.0")
    files, tables, _ = staged(dataset, tmp_path / "staging")
    (data,) = (tmp_path / "staging" / file for file in files if "/data/" in file)
    content = data.read_bytes()
    assert content.count(b"needle 7") == 1
    data.unlink()
    data.write_bytes(content.replace(b"needle 7", b"needle \xff"))
    with pytest.raises(CorruptCapture):
        ENGINE.verify(tmp_path / "staging", files, tables, "full")


# which versions a reader can open


def test_the_storage_version_tells_format_and_features(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(10)), data_storage_version="2.1")
        assert storage_version(table.dataset) == "2.1"
        table.dataset.delete("id = 3")
        assert storage_version(table.dataset) == "2.1 flags 1/1"
    assert ENGINE.capture(dataset, tmp_path, timeout=10).storage_version == "2.1 flags 1/1"


def test_the_storage_version_is_that_of_the_newest_file(dataset: Dataset) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(10)), data_storage_version="2.0")
        table.write(orders(range(10, 20)))
        table.dataset.optimize.compact_files(data_storage_version="2.2")
        assert table.dataset.data_storage_version == "2.0"
        assert storage_version(table.dataset).startswith("2.2 flags 256/")


@pytest.mark.parametrize("version", ["legacy", "2.0", "2.1", "2.2"])
def test_every_storage_version_of_this_library_is_captured_and_readable(
    dataset: Dataset, tmp_path: Path, version: str
) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(10)), data_storage_version=version)
        table.dataset.delete("id = 3")
    _, _, manifest = staged(dataset, tmp_path / "staging")
    ENGINE.check_readable(manifest)
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    assert pool.query("select sum(id) total from orders").to_pylist() == [{"total": 42}]
    pool.close()


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("2.9", "Unknown Lance storage version"),
        ("3.0", "Unknown"),
        ("2.2 flags 64/64", "64"),
        ("2.2 flags 1048576/0", "1048576"),
    ],
)
def test_a_snapshot_that_the_library_could_not_open_is_refused_beforehand(
    dataset: Dataset, tmp_path: Path, version: str, reason: str
) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(10)))
    _, _, manifest = staged(dataset, tmp_path / "staging")
    with pytest.raises(EngineTooOld, match=reason) as caught:
        ENGINE.check_readable(replace(manifest, storage_version=version))
    assert version in caught.value.message


# blobs


def blob_rows(*blobs: Any) -> pa.Table:
    schema = pa.schema([pa.field("id", pa.int64()), lance.blob_field("blob")])
    return pa.table([range(len(blobs)), lance.blob_array(list(blobs))], schema=schema)


def test_blobs_travel_although_the_library_does_not_list_their_files(dataset: Dataset, tmp_path: Path) -> None:
    blobs = [b"small", b"m" * 200_000, b"l" * 5_000_000, None]
    with ENGINE.connect_live(dataset) as table:
        table.write(blob_rows(*blobs))
    files, tables, manifest = staged(dataset, tmp_path / "staging")
    assert sum(file.endswith(".blob") for file in files) == 2
    shutil.rmtree(dataset.path)
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    found = pool.acquire().take_blobs("blob", indices=[0, 1, 2])
    assert [blob.read() for blob in found if blob] == blobs[:3]
    assert pool.query('select id, "blob".size size from orders where id < 3').column("size").to_pylist() == [
        5,
        200_000,
        5_000_000,
    ]
    assert tables["orders"].schema.fields[1].type.startswith("struct<kind: uint8")
    pool.close()


def test_a_blob_column_without_rows_is_captured(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(blob_rows())
    _, tables, _ = staged(dataset, tmp_path / "staging")
    assert tables["orders"].row_count == 0


def test_a_full_verify_notices_a_blob_that_is_cut_short(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(blob_rows(b"l" * 5_000_000))
    files, tables, _ = staged(dataset, tmp_path / "staging")
    (blob,) = (tmp_path / "staging" / file for file in files if file.endswith(".blob"))
    blob.unlink()
    blob.write_bytes(b"l" * 4_000_000)
    with pytest.raises(CorruptCapture):
        ENGINE.verify(tmp_path / "staging", files, tables, "full")


def test_blobs_in_the_data_files_travel_too(dataset: Dataset, tmp_path: Path) -> None:
    field = pa.field("blob", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    with ENGINE.connect_live(dataset) as table:
        table.write(pa.table([[b"b" * 100_000]], schema=pa.schema([field])), data_storage_version="2.1")
    _, _, manifest = staged(dataset, tmp_path / "staging")
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    (blob,) = pool.acquire().take_blobs("blob", indices=[0])
    assert blob is not None
    assert blob.read() == b"b" * 100_000
    assert pool.query('select "blob".size size from orders').to_pylist() == [{"size": 100_000}]
    pool.close()


def test_blobs_within_structs_travel_and_other_structs_are_no_blobs(dataset: Dataset, tmp_path: Path) -> None:
    blobs = lance.blob_array([b"b" * 200_000, None])
    inner = pa.struct([lance.blob_field("two words"), pa.field("number", pa.int64())])
    schema = pa.schema([pa.field("pair", inner), pa.field("like", pa.struct({"position": "u8", "size": "u8"}))])
    outer = pa.StructArray.from_arrays([blobs, pa.array([1, 2])], fields=list(inner))
    with ENGINE.connect_live(dataset) as table:
        table.write(pa.table([outer, [{"position": 1, "size": 2}, None]], schema=schema))
        assert list(blob_columns(table.dataset)) == [("pair", "two words")]
    _, _, manifest = staged(dataset, tmp_path / "staging")
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    assert pool.query("select pair.number from orders where pair.number = 2").to_pylist() == [{"number": 2}]
    pool.close()


@pytest.mark.parametrize("nested", [False, True])
def test_blobs_that_lie_elsewhere_are_refused(dataset: Dataset, tmp_path: Path, nested: bool) -> None:
    (tmp_path / "outside").write_bytes(b"not in the dataset")
    rows = blob_rows((tmp_path / "outside").as_uri())
    if nested:
        inner = pa.struct([lance.blob_field("two words")])
        outer = pa.StructArray.from_arrays([rows["blob"].combine_chunks()], fields=list(inner))
        rows = pa.table([outer], schema=pa.schema([pa.field("both", inner)]))
    with ENGINE.connect_live(dataset) as table:
        table.write(rows, allow_external_blob_outside_bases=True)
    with pytest.raises(UnsupportedLiveDatabase, match="two words" if nested else "blob"):
        staged(dataset, tmp_path / "staging")


# leases


WRITES: dict[str, Callable[[Any], Any]] = {
    "append": lambda lease: lance.write_dataset(orders([7]), lease, mode="append"),
    "overwrite": lambda lease: lance.write_dataset(orders([7]), lease, mode="overwrite"),
    "overwrite the folder": lambda lease: lance.write_dataset(orders([7]), lease.uri, mode="overwrite"),
    "commit": lambda lease: lance.LanceDataset.commit(
        lease, lance.LanceOperation.Overwrite(lease.schema, []), read_version=lease.version
    ),
    "insert": lambda lease: lease.insert(orders([7])),
    "delete": lambda lease: lease.delete("true"),
    "update": lambda lease: lease.update({"name": "'z'"}),
    "merge": lambda lease: lease.merge_insert("id").when_matched_update_all().execute(orders([7], "z")),
    "restore": lambda lease: lease.restore(),
    "drop columns": lambda lease: lease.drop_columns(["name"]),
    "index": lambda lease: lease.create_scalar_index("id", "BTREE"),
    "compact": lambda lease: lease.optimize.compact_files(),
    "clean up": lambda lease: lease.cleanup_old_versions(),
    "a version of it": lambda lease: lease.checkout_version(lease.version).delete("true"),
    "a fragment": lambda lease: lease.get_fragments()[0].delete("true"),
    "tag": lambda lease: lease.tags.create("mine", lease.version),
}


@pytest.mark.parametrize("write", WRITES)
def test_no_write_through_a_lease_changes_what_is_served(dataset: Dataset, tmp_path: Path, write: str) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(100)))
        table.write(orders(range(100, 200)))
    _, _, manifest = staged(dataset, tmp_path / "staging")
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    before = {file.path: (tmp_path / "staging" / file.path).read_bytes() for file in manifest.files}
    lease = pool.acquire()
    try:
        WRITES[write](lease)
    except (ReadOnlyDataset, OSError):
        pass
    for served in (pool, ENGINE.open_pool(tmp_path / "staging", manifest)):
        assert served.query("select count(*) n, sum(id) total from orders").to_pylist() == [{"n": 200, "total": 19_900}]
        assert sorted(served.acquire().to_table()["id"].to_pylist()) == list(range(200))
        served.close()
    assert {file.path: (tmp_path / "staging" / file.path).read_bytes() for file in manifest.files} == before


@pytest.mark.parametrize(
    "write", ["insert", "delete", "update", "merge", "restore", "drop columns", "index", "compact"]
)
def test_a_lease_refuses_writes_before_it_has_written_a_file(dataset: Dataset, tmp_path: Path, write: str) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(100)))
    _, _, manifest = staged(dataset, tmp_path / "staging")
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    before = sorted((tmp_path / "staging").rglob("*"))
    for lease in (pool.acquire(), pool.acquire().checkout_version(1)):
        with pytest.raises(ReadOnlyDataset, match="orders"):
            WRITES[write](lease)
    assert sorted((tmp_path / "staging").rglob("*")) == before
    pool.close()


@pytest.mark.parametrize("write", ["append", "overwrite"])
def test_what_goes_round_the_lease_is_refused_at_its_commit(dataset: Dataset, tmp_path: Path, write: str) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(orders(range(100)))
    _, _, manifest = staged(dataset, tmp_path / "staging")
    pool = ENGINE.open_pool(tmp_path / "staging", manifest)
    with pytest.raises(OSError, match="read-only"):
        WRITES[write](pool.acquire())
    assert lance.dataset(tmp_path / "staging" / "orders.lance").versions()[-1]["version"] == 1
    pool.close()


def test_a_path_that_the_operating_system_refuses_is_refused(tmp_path: Path) -> None:
    dataset = Dataset("orders", "lance", tmp_path / ("n" * 300))
    with pytest.raises(UnsupportedLiveDatabase, match="can not be looked at"):
        LanceEngine().check_dataset(dataset)
    with pytest.raises(UnsupportedLiveDatabase, match="can not be looked at"):
        LanceEngine().capture(dataset, tmp_path, timeout=1)
