"""What readers of a Lance snapshot can do: indexes, SQL, and what they are told when a local copy is damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.arrow import bfloat16_array

from snapshot_assets.engines.arrow_sql import ArrowSQL
from snapshot_assets.engines.lance import LanceEngine
from snapshot_assets.engines.lance_scan import LanceScan
from snapshot_assets.errors import ReaderError, ReadOnlyDataset, SnapshotDamaged, UnsupportedLiveDatabase
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Manifest
from snapshot_assets.testing.engine_contract import manifest_for

ENGINE = LanceEngine()
ROWS = 5_000
WIDTH = 16


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset("orders", "lance", tmp_path / "live" / "orders.lance")


def local_copy(dataset: Dataset, tmp_path: Path) -> tuple[Path, Manifest]:
    """Capture, copy what was captured to another folder, and take the live dataset and the staged copy away."""
    staging, folder = tmp_path / "staging", tmp_path / "a reader" / "files"
    staging.mkdir()
    captured = ENGINE.capture(dataset, staging, timeout=10)
    manifest = manifest_for(
        dataset, captured, ENGINE.describe(dataset, staging, [file.path for file in captured.files])
    )
    shutil.copytree(staging, folder)
    shutil.rmtree(staging)
    shutil.rmtree(dataset.path)
    return folder, manifest


def wide_rows() -> pa.Table:
    numbers = np.random.default_rng(7).random(ROWS * WIDTH, dtype=np.float32)
    return pa.table(
        {
            "id": range(ROWS),
            "name": [f"order number{number} of {number % 17}" for number in range(ROWS)],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(numbers), WIDTH),
        }
    )


# indexes


@pytest.fixture
def indexed(dataset: Dataset, tmp_path: Path) -> Iterator[tuple[lance.LanceDataset, dict[str, Any]]]:
    """A lease on a copy with indexes of three kinds and deleted rows, and what the live dataset answered."""
    with ENGINE.connect_live(dataset) as table:
        table.write(wide_rows())
        live = table.dataset
        live.create_scalar_index("id", "BTREE")
        live.create_scalar_index("name", "INVERTED")
        live.create_index("vector", "IVF_PQ", num_partitions=4, num_sub_vectors=4)
        live.delete("id % 100 = 42")
        answers = {name: live.to_table(columns=["id"], **question) for name, question in QUESTIONS.items()}
    folder, manifest = local_copy(dataset, tmp_path)
    with closing(ENGINE.open_pool(folder, manifest)) as pool:
        yield pool.acquire(), answers


QUESTIONS: dict[str, dict[str, Any]] = {
    "BTREE": {"filter": "id = 77"},
    "INVERTED": {"full_text_query": "number1234"},
    "IVF_PQ": {"nearest": {"column": "vector", "q": np.full(WIDTH, 0.5, np.float32), "k": 10}},
}


@pytest.mark.parametrize(
    ("kind", "step"), [("BTREE", "ScalarIndexQuery"), ("INVERTED", "MatchQuery"), ("IVF_PQ", "ANNIvfPartition")]
)
def test_indexes_answer_in_a_copy_that_lies_elsewhere(
    indexed: tuple[lance.LanceDataset, dict[str, Any]], kind: str, step: str
) -> None:
    lease, answers = indexed
    assert answers[kind].num_rows > 0
    assert lease.to_table(columns=["id"], **QUESTIONS[kind]).equals(answers[kind])
    assert step in lease.scanner(columns=["id"], **QUESTIONS[kind]).explain_plan()
    assert {index.name for index in lease.describe_indices()} == {"id_idx", "name_idx", "vector_idx"}


def test_deleted_rows_stay_deleted(indexed: tuple[lance.LanceDataset, dict[str, Any]]) -> None:
    lease, _ = indexed
    assert lease.count_rows() == ROWS - ROWS // 100
    assert lease.to_table(filter="id = 42").num_rows == 0


# SQL


def read_bytes(source: lance.LanceDataset, sql: str) -> int:
    """How many bytes Lance reads for a statement about the table `orders`."""
    with closing(ArrowSQL("orders", {"orders": LanceScan(source)})) as orders:
        source.io_stats_incremental()
        orders.query(sql)
        return int(source.io_stats_incremental().read_bytes)


def test_columns_and_filters_are_pushed_down(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(wide_rows())
        table.dataset.create_scalar_index("id", "BTREE")
    folder, manifest = local_copy(dataset, tmp_path)

    def opened() -> lance.LanceDataset:
        return ENGINE.open_pool(folder, manifest).acquire()

    everything = read_bytes(opened(), "select * from orders")
    one_column = read_bytes(opened(), "select sum(id) from orders")
    one_row = read_bytes(opened(), "select vector from orders where id = 77")
    one_row_of_every_column = read_bytes(opened(), "select * from orders where id = 77")
    assert one_column < everything / 10
    assert one_row < everything / 4
    assert one_row_of_every_column < everything / 2


COLUMNS: dict[str, pa.Array] = {
    "uint64": pa.array([2**63, None], pa.uint64()),
    "float32": pa.array([1.5, None], pa.float32()),
    "decimal": pa.array([1, None], pa.decimal128(10, 2)),
    "large_string": pa.array(["a", None], pa.large_string()),
    "large_binary": pa.array([b"a", None], pa.large_binary()),
    "fixed_binary": pa.array([b"ab", None], pa.binary(2)),
    "date64": pa.array([86_400_000, None], pa.date64()),
    "timestamp": pa.array([1, None], pa.timestamp("ns", "UTC")),
    "time32": pa.array([1, None], pa.time32("s")),
    "time64": pa.array([1, None], pa.time64("ns")),
    "duration": pa.array([1, None], pa.duration("us")),
    "large_list": pa.array([[1], None], pa.large_list(pa.int64())),
    "vector": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
    "struct": pa.array(
        [{"a": 1, "b": {"c": "x"}}, None], pa.struct({"a": pa.int32(), "b": pa.struct({"c": pa.string()})})
    ),
    "map": pa.array([[("key", 1)], None], pa.map_(pa.string(), pa.int32())),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "null": pa.nulls(2),
    "uuid": pa.array([b"0123456789abcdef", None], pa.uuid()),
    "json": pa.array(['{"a": 1}', None], pa.json_()),
}


@pytest.fixture
def scanned(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A session with the table `t` of two rows: `id`, and the columns that the test names; of all of them the first."""
    columns = {name: COLUMNS[name] for name in request.param}
    source = lance.write_dataset(pa.table({"id": [1, 2], **columns}), str(tmp_path / "t.lance"))
    with duckdb.connect(":memory:") as session:
        session.register("t", LanceScan(source))
        yield session


@pytest.mark.parametrize("scanned", [[name] for name in COLUMNS], indirect=True, ids=list(COLUMNS))
def test_columns_of_every_type_can_be_filtered_by_and_beside(scanned: duckdb.DuckDBPyConnection) -> None:
    """Lance itself refuses filters where a column has one of many types, though the filter be of another column."""
    (_, name) = scanned.sql("select * from t limit 0").columns
    some = 0 if name == "null" else 1
    assert scanned.sql("select id from t where id = 2").fetchall() == [(2,)]
    assert scanned.sql(f'select id from t where "{name}" is not null').fetchall() == [(1,)][:some]
    assert scanned.sql(f'select id from t where "{name}" is null and id > 1').fetchall() == [(2,)]
    ((value,),) = scanned.sql(f'select "{name}" from t where id = 1').fetchall()
    same = f'select id from t where "{name}" = (select "{name}" from t where id = 1)'
    assert scanned.sql(same).fetchall() == [(1,)][:some]
    assert (value is None) == (some == 0)


def test_columns_that_duckdb_does_not_know_are_left_out_of_sql_and_of_nothing_else(
    dataset: Dataset, tmp_path: Path
) -> None:
    half = pa.array(np.array([1.5], np.float16))
    wide = pa.array([1], pa.decimal256(50, 2))
    vector = pa.FixedSizeListArray.from_arrays(pa.array(np.array([1, 2], np.float16)), 2)
    with ENGINE.connect_live(dataset) as table:
        table.write(pa.table({"id": [1], "half": half, "wide": wide, "vector": vector}))
    folder, manifest = local_copy(dataset, tmp_path)
    with closing(ENGINE.open_pool(folder, manifest)) as pool:
        assert pool.query("select * from orders where id = 1").schema.names == ["id"]
        assert pool.acquire().to_table().schema.names == ["id", "half", "wide", "vector"]
    assert [field.name for field in manifest.tables["orders"].schema.fields] == ["id", "half", "wide", "vector"]


def test_sql_of_a_catalogue_sees_the_version_of_the_snapshot(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(pa.table({"id": [1, 2]}))
    folder, manifest = local_copy(dataset, tmp_path)
    lance.write_dataset(pa.table({"id": [3]}), str(folder / "orders.lance"), mode="append")
    (scan,) = ENGINE.sql_tables(folder, manifest).values()
    assert scan.schema.names == ["id"]
    assert scan.scanner(columns=["id"]).to_table()["id"].to_pylist() == [1, 2]


def test_parameters_of_a_query_are_bound(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(wide_rows())
    with closing(ENGINE.open_pool(*local_copy(dataset, tmp_path))) as pool:
        found = pool.query("select name from orders.main.orders where id = ?", [3])
        assert found["name"].to_pylist() == ["order number3 of 3"]
        with pytest.raises(ReadOnlyDataset, match="orders"):
            pool.query("create table mine as select 1")


# damage


def test_a_local_copy_without_a_file_is_damaged(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(wide_rows())
        table.dataset.create_scalar_index("id", "BTREE")
    folder, manifest = local_copy(dataset, tmp_path)
    for file in manifest.files:
        path = folder / file.path
        content = path.read_bytes()
        path.unlink()
        for look in (ENGINE.open_pool, ENGINE.sql_tables):
            with pytest.raises(SnapshotDamaged, match="missing"):
                look(folder, manifest)
        path.write_bytes(content[:-1])
        with pytest.raises(SnapshotDamaged, match="cut short"):
            ENGINE.open_pool(folder, manifest)
        path.write_bytes(content)
    ENGINE.open_pool(folder, manifest).close()


def test_a_manifest_of_other_bytes_is_damaged(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(wide_rows())
    folder, manifest = local_copy(dataset, tmp_path)
    (path,) = folder.rglob("*.manifest")
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(SnapshotDamaged):
        ENGINE.open_pool(folder, manifest)


def test_a_copy_that_can_not_be_opened_for_another_reason_is_kept(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.write(wide_rows())
    folder, manifest = local_copy(dataset, tmp_path)

    def out_of_files(*_arguments: Any, **_options: Any) -> None:
        raise OSError("LanceError(IO): Too many open files (os error 24)")

    monkeypatch.setattr(lance, "dataset", out_of_files)
    with pytest.raises(ReaderError, match="Too many open files") as caught:
        ENGINE.open_pool(folder, manifest)
    assert not isinstance(caught.value, SnapshotDamaged)


def test_columns_that_differ_in_case_only_are_left_out_of_sql(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as live:
        live.write(pa.table({"A": [1], "a": [2], "b": [3], "É": [4], "é": [5]}))
    folder, manifest = local_copy(dataset, tmp_path)
    with closing(ENGINE.open_pool(folder, manifest)) as pool:
        assert pool.query("select * from orders").to_pylist() == [{"b": 3, "É": 4, "é": 5}]
        assert pool.acquire().to_table().to_pylist() == [{"A": 1, "a": 2, "b": 3, "É": 4, "é": 5}]
        with pytest.raises(duckdb.BinderException):
            pool.query('select "a" from orders')


def test_a_dataset_of_which_sql_can_read_nothing_is_refused_before_it_is_published(
    dataset: Dataset, tmp_path: Path
) -> None:
    with ENGINE.connect_live(dataset) as live:
        live.write(pa.table({"half": pa.array([1.0], pa.float16())}))
    with pytest.raises(UnsupportedLiveDatabase, match="no column"):
        local_copy(dataset, tmp_path)


@pytest.mark.parametrize("references", ["tags", "branches"])
def test_no_tag_or_branch_is_written_into_a_local_copy(dataset: Dataset, tmp_path: Path, references: str) -> None:
    with ENGINE.connect_live(dataset) as live:
        live.write(wide_rows())
    folder, manifest = local_copy(dataset, tmp_path)
    with closing(ENGINE.open_pool(folder, manifest)) as pool:
        opened = pool.acquire()
        for snapshot in (opened, opened.checkout_version(opened.version)):
            with pytest.raises(ReadOnlyDataset):
                getattr(snapshot, references).create("mine", opened.version)
    assert sorted(path.name for path in (folder / "orders.lance").iterdir()) == ["_versions", "data"]


def test_columns_of_python_extension_types_are_read_as_what_they_are_stored_as(
    dataset: Dataset, tmp_path: Path
) -> None:
    with ENGINE.connect_live(dataset) as live:
        live.write(pa.table({"id": [1, 2], "b": bfloat16_array([1.0, 2.0])}))
    folder, manifest = local_copy(dataset, tmp_path)
    with closing(ENGINE.open_pool(folder, manifest)) as pool:
        found = pool.query("select id, octet_length(b) as size from orders where id = 2 and b is not null")
        assert found.to_pylist() == [{"id": 2, "size": 2}]
