"""The engine contract for Cayenne, and what the engine says of roots and metastores that many datasets share."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from snapshot_assets.engines import cayenne
from snapshot_assets.engines.cayenne import CayenneTable, gates
from snapshot_assets.engines.cayenne.engine import CayenneEngine
from snapshot_assets.engines.contract import Captured
from snapshot_assets.engines.registry import check_datasets
from snapshot_assets.errors import (
    ConfigurationError,
    CorruptCapture,
    EngineTooOld,
    InconsistentSnapshotSettings,
    LiveDatabaseBusy,
    LiveDatabaseMissing,
    PathOutsideAnchor,
    SnapshotDamaged,
    UnsupportedLiveDatabase,
)
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.manifest import Layout, Manifest
from snapshot_assets.testing import EngineContract
from snapshot_assets.testing.engine_contract import manifest_for
from tests.engines.cayenne.conftest import Program

ORDERS = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("name", pa.string())])


def orders(ids: Sequence[int], name: str = "order {}") -> pa.Table:
    return pa.table([list(ids), [name.format(number) for number in ids]], schema=ORDERS)


class TestCayenne(EngineContract):
    engine_name = "cayenne"
    has_many_tables = False
    is_folder = True
    types = pa.schema(
        [
            *(
                (f"{sign}int{bits}", getattr(pa, f"{sign}int{bits}")())
                for sign in ("", "u")
                for bits in (8, 16, 32, 64)
            ),
            *(("float", pa.float32()), ("double", pa.float64()), ("bool", pa.bool_())),
            *(("decimal", pa.decimal128(9, 2)), ("wide decimal", pa.decimal128(38, 10))),
            *(("text", pa.string()), ("blob", pa.binary()), ("date", pa.date32()), ("time", pa.time64("us"))),
            *((f"timestamp {unit}", pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
            ("timestamp with zone", pa.timestamp("us", "UTC")),
            ("list", pa.list_(pa.int32())),
            ("list of lists", pa.list_(pa.list_(pa.string()))),
            ("array", pa.list_(pa.float32(), 3)),
            ("struct", pa.struct([("whole", pa.int64()), ("text", pa.string()), ("list", pa.list_(pa.date32()))])),
            ("map", pa.map_(pa.string(), pa.int64())),
        ]
    )

    def fill(self, connection: CayenneTable, rows: int = 1_000) -> None:
        connection.define(ORDERS, primary_key=["id"])
        connection.append(orders(range(rows)))

    def append(self, connection: CayenneTable, first: int, rows: int) -> None:
        connection.append(orders(range(first, first + rows)))

    def update(self, connection: CayenneTable, ids: Sequence[int]) -> None:
        connection.upsert(orders(ids, "changed {}"))

    def delete(self, connection: CayenneTable, ids: Sequence[int]) -> None:
        connection.delete(pc.field("id").isin(list(ids)))

    def commit_numbered(self, connection: CayenneTable, number: int) -> None:
        connection.upsert(pa.table([[number, 0], [f"order {number}", str(number)]], schema=ORDERS))

    def add_column(self, connection: CayenneTable) -> None:
        rows = connection.scan().read_all()
        rows = rows.append_column("note", pa.nulls(rows.num_rows, pa.string()))
        connection.overwrite(rows, allow_schema_change=True)

    def drop_column(self, connection: CayenneTable) -> None:
        connection.overwrite(connection.scan().read_all().drop(["name"]), allow_schema_change=True)

    def load(self, connection: CayenneTable, table: pa.Table, name: str = "orders") -> None:
        assert name == "orders"
        connection.define(table.schema, primary_key=["id"])
        connection.overwrite(table)

    def rows_of(self, connection: CayenneTable, name: str = "orders") -> list[tuple[Any, ...]]:
        assert name == "orders"
        table = connection.scan().read_all()
        return [tuple(row.values()) for row in table.sort_by(table.column_names[0]).to_pylist()]

    def use(self, connection: CayenneTable) -> None:
        connection.count()

    def count_of(self, lease: CayenneTable) -> tuple[int, int]:
        ids = lease.scan(["id"]).read_all()["id"].to_pylist()
        return len(ids), sum(ids)

    def write_to(self, lease: CayenneTable) -> None:
        lease.append(orders([999_999], "forbidden"))

    def disturb(self, lease: CayenneTable) -> None:
        lease.scan().read_next_batch()

    def check_undisturbed(self, lease: CayenneTable) -> None:
        assert lease.count() == 1_000


ENGINE = CayenneEngine()


@pytest.fixture
def dataset(root: Path) -> Dataset:
    return Dataset("orders", "cayenne", root)


def staged(dataset: Dataset, folder: Path) -> tuple[Captured, list[str], Manifest]:
    """Capture into a folder and look at the copy."""
    folder.mkdir()
    captured = ENGINE.capture(dataset, folder, timeout=10)
    files = [file.path for file in captured.files]
    tables = dict(ENGINE.describe(dataset, folder, files))
    ENGINE.verify(folder, files, tables, "full")
    return captured, files, manifest_for(dataset, captured, tables)


def installed(dataset: Dataset, folder: Path) -> Manifest:
    _, _, manifest = staged(dataset, folder)
    ENGINE.install(folder, manifest)
    return manifest


# declaring


@pytest.mark.parametrize("inside", ["data/meta.db", "data", "data/../data/deep/meta.db", "link/meta.db"])
def test_a_metastore_in_the_data_folder_is_refused(root: Path, inside: str) -> None:
    (root / "data").mkdir(parents=True)
    (root / "link").symlink_to(root / "data")
    wrong = Dataset("orders", "cayenne", root, options={"metastore": root / inside})
    with pytest.raises(ConfigurationError, match="data folder"):
        ENGINE.check_dataset(wrong)
    with pytest.raises(ConfigurationError, match="data folder"), ENGINE.connect_live(wrong):
        pass


def test_a_metastore_beside_the_data_folder_is_fine(root: Path) -> None:
    for beside in ("data2/meta.db", "data.db", "data/../meta.db"):
        ENGINE.check_dataset(Dataset("orders", "cayenne", root, options={"metastore": str(root / beside)}))
    for wrong in (1, "", b"meta.db"):
        with pytest.raises(ConfigurationError, match="metastore"):
            ENGINE.check_dataset(Dataset("orders", "cayenne", root, options={"metastore": wrong}))


def test_a_metastore_that_is_none_is_refused(root: Path, dataset: Dataset) -> None:
    (root / "metadata").mkdir(parents=True)
    (root / "metadata" / "cayenne.db").write_bytes(b"name,price\n" * 100)
    with pytest.raises(UnsupportedLiveDatabase, match="metastore"):
        ENGINE.check_dataset(dataset)


def test_datasets_of_a_root_share_one_metastore(root: Path, tmp_path: Path) -> None:
    elsewhere = {"metastore": tmp_path / "meta.db"}
    check_datasets([Dataset(name, "cayenne", root) for name in ("orders", "planes")])
    check_datasets([Dataset(name, "cayenne", root, options=elsewhere) for name in ("orders", "planes")])
    with pytest.raises(InconsistentSnapshotSettings, match="metastore"):
        check_datasets([Dataset("orders", "cayenne", root), Dataset("planes", "cayenne", root, options=elsewhere)])


# capture


def test_a_capture_links_the_live_files_and_takes_nothing_else(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.define(ORDERS, primary_key=["id"])
        table.append(orders(range(100)))
        table.delete(pc.field("id") < 10)
        held = table.scan()
        table.overwrite(orders(range(50)))
        table.delete(pc.field("id") < 10)
        (orphan,) = {path.parent for path in (root / "data").rglob("*.vortex")} - {_current(table)}
        captured, files, _ = staged(dataset, tmp_path / "staging")
        assert orphan.exists()
        assert held.read_all().num_rows == 90
    assert sorted(path.rsplit(".", 1)[1] for path in files) == ["arrow", "json", "vortex"]
    for file in captured.files:
        assert file.layout == Layout.whole()
        if file.path.startswith("data/"):
            assert file.source.samefile(root / file.path)
    assert not any(b"SQLite format 3" in (tmp_path / "staging" / path).read_bytes() for path in files)


def _current(table: CayenneTable) -> Path:
    state = table._load()
    assert state is not None
    return state.parts[0].files[0].path.parent


def test_what_a_capture_linked_stays_when_the_table_changes(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(orders(range(100)))
        _, files, manifest = staged(dataset, tmp_path / "staging")
        table.overwrite(orders(range(5)))
        table.append(orders(range(5, 9)))
    ENGINE.verify(tmp_path / "staging", files, manifest.tables, "full")
    assert manifest.tables["orders"].row_count == 100


def test_a_small_change_adds_only_its_own_files(dataset: Dataset, tmp_path: Path) -> None:
    captures = []
    with ENGINE.connect_live(dataset) as table:
        table.define(ORDERS, primary_key=["id"])
        table.append(orders(range(1_000)))
        captures.append(staged(dataset, tmp_path / "0")[0])
        table.append(orders([5_000]))
        captures.append(staged(dataset, tmp_path / "1")[0])
        table.delete(pc.field("id") == 7)
        captures.append(staged(dataset, tmp_path / "2")[0])
        table.delete(pc.field("id") == 8)
        captures.append(staged(dataset, tmp_path / "3")[0])
        table.upsert(orders([9], "changed"))
        captures.append(staged(dataset, tmp_path / "4")[0])
    contents = [{file.path: file.source.read_bytes() for file in captured.files} for captured in captures]
    endings = []
    for before, after in itertools.pairwise(contents):
        new = {path for path in after if after[path] != before.get(path)}
        assert all(before[path] == after[path] for path in before.keys() & after.keys() - {"cayenne.slice.json"})
        endings.append(sorted(path.rsplit(".", 1)[1] for path in new))
    assert endings == [["json", "vortex"], ["arrow", "json"], ["arrow", "json"], ["arrow", "json", "vortex"]]


def test_a_capture_while_another_process_changes_the_table_is_one_state_of_it(
    root: Path, dataset: Dataset, tmp_path: Path, python: Program
) -> None:
    """Each change moves all rows to new files, so a capture that mixed two states would lack or repeat some."""
    with ENGINE.connect_live(dataset) as table:
        table.define(ORDERS, primary_key=["id"], partition_by=["name"])
        table.overwrite(orders(range(20), "0"))
    writer = python(
        "import sys, pyarrow as pa\n"
        "from snapshot_assets.engines.cayenne import CayenneTable\n"
        "table = CayenneTable.open(sys.argv[1], 'orders')\n"
        "for number in range(1, 1_000):\n"
        "    table.overwrite(pa.table([range(20), [str(number % 7)] * 20], schema=table.schema))\n"
        "    print(number, flush=True)",
        root,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "1\n"
    seen = set()
    for number in range(12):
        captured, _, manifest = staged(dataset, tmp_path / str(number))
        ENGINE.install(tmp_path / str(number), manifest)
        pool = ENGINE.open_pool(tmp_path / str(number), manifest)
        rows = pool.query("select count(distinct id) as ids, count(*) as n, any_value(name) as name from orders")
        assert rows.to_pylist()[0] | {"name": ""} == {"ids": 20, "n": 20, "name": ""}
        seen.add(next(file.path for file in captured.files))
        pool.close()
    assert writer.poll() is None
    assert len(seen) > 1


def test_one_of_three_datasets_of_a_metastore_is_published_and_no_row_of_the_others(root: Path, tmp_path: Path) -> None:
    tables = {name: Dataset(name, "cayenne", root) for name in ("orders", "planes", "secrets")}
    for name, dataset in tables.items():
        with ENGINE.connect_live(dataset) as table:
            table.define(ORDERS, primary_key=["id"], partition_by=[] if name == "orders" else ["name"])
            table.append(orders(range(3), f"{name} {{}}"))
    _, files, manifest = staged(tables["orders"], tmp_path / "staging")
    ENGINE.install(tmp_path / "staging", manifest)
    assert {path.split("/")[1] for path in files if path.startswith("data/")} == {_current_id(tables["orders"])}
    for path in (tmp_path / "staging").rglob("*"):
        if path.is_file():
            assert b"planes" not in path.read_bytes()
            assert b"secrets" not in path.read_bytes()
    with sqlite3.connect(tmp_path / "staging" / "metastore.sqlite") as connection:
        assert connection.execute("select table_name from cayenne_table").fetchall() == [("orders",)]
    with ENGINE.connect_live(tables["planes"]) as table:
        assert table.count() == 3


def _current_id(dataset: Dataset) -> str:
    with ENGINE.connect_live(dataset) as table:
        state = table._load()
        assert state is not None
        return state.table_id


def test_a_table_whose_files_lie_elsewhere_is_not_captured(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(orders(range(3)))
    root.rename(tmp_path / "moved")
    (tmp_path / "staging").mkdir()
    with pytest.raises(PathOutsideAnchor, match="moved"):
        ENGINE.capture(Dataset("orders", "cayenne", tmp_path / "moved"), tmp_path / "staging", timeout=5)
    assert not root.exists()


def test_a_capture_waits_while_files_are_removed_and_says_so_at_last(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(orders(range(3)))
        state = table._load()
        assert state is not None
        with gates.may_delete(state.folder) as alone:
            assert alone
            with pytest.raises(LiveDatabaseBusy, match="removed"):
                ENGINE.capture(dataset, tmp_path / "staging", timeout=0.1)
        with gates.deletion_gate(state.folder, timeout=0), gates.may_delete(state.folder) as alone:
            assert not alone
            ENGINE.capture(dataset, tmp_path / "staging", timeout=0.1)


def test_a_live_file_that_is_gone_is_a_typed_error(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(orders(range(3)))
    next((root / "data").rglob("*.vortex")).unlink()
    (tmp_path / "staging").mkdir()
    with pytest.raises(LiveDatabaseMissing, match="vortex"):
        ENGINE.capture(dataset, tmp_path / "staging", timeout=5)


# copies


def test_full_verification_finds_damage_that_vortex_reads_over(dataset: Dataset, tmp_path: Path) -> None:
    """A byte within plain numbers makes other numbers: only the digest tells."""
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(pa.table({"id": pa.array(range(0, 2_000_000_007, 400_009)), "name": ["x"] * 5_000}))
    captured, files, manifest = staged(dataset, tmp_path / "staging")
    (data,) = [file.source for file in captured.files if file.path.endswith(".vortex")]
    content = data.read_bytes()
    wanted = ENGINE.capture(dataset, _made(tmp_path / "again"), timeout=5)
    assert wanted.files[0].source.read_bytes() == content
    silent = 0
    for position in range(100, 3_000, 100):
        damaged = bytearray(content)
        damaged[position] ^= 0x01
        data.unlink()
        data.write_bytes(damaged)
        with pytest.raises(CorruptCapture):
            ENGINE.verify(tmp_path / "staging", files, manifest.tables, "full")
        try:
            ENGINE.verify(tmp_path / "staging", files, manifest.tables, "quick")
            silent += 1
        except CorruptCapture:
            continue
    assert silent


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_copy_with_files_that_its_slice_does_not_name_is_corrupt(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(orders(range(3)))
    _, files, manifest = staged(dataset, tmp_path / "staging")
    for wrong in ([*files, "data/more.vortex"], [path for path in files if not path.endswith("vortex")]):
        with pytest.raises(CorruptCapture, match="vortex"):
            ENGINE.verify(tmp_path / "staging", wrong, manifest.tables, "quick")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"format_version": 99}'])
def test_a_snapshot_without_a_whole_slice_is_a_clear_error(
    dataset: Dataset, tmp_path: Path, content: bytes | None
) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(orders(range(3)))
    _, files, manifest = staged(dataset, tmp_path / "staging")
    (tmp_path / "staging" / "cayenne.slice.json").unlink()
    if content is None:
        files.remove("cayenne.slice.json")
    else:
        (tmp_path / "staging" / "cayenne.slice.json").write_bytes(content)
    with pytest.raises(CorruptCapture, match="cayenne.slice.json" if content is None else "staging"):
        ENGINE.verify(tmp_path / "staging", files, manifest.tables, "quick")
    with pytest.raises(SnapshotDamaged, match="staging"):
        ENGINE.install(tmp_path / "staging", manifest)
    with pytest.raises(SnapshotDamaged, match="staging"):
        ENGINE.open_pool(tmp_path / "staging", manifest)
    left = {path.name for path in (tmp_path / "staging").iterdir()}
    assert left <= {"cayenne.slice.json", "data"}


@pytest.mark.parametrize("cell", [{"t": "n"}, {"t": "i", "v": -1}, {"t": "i", "v": 2**62}, {"t": "s", "v": "[1"}])
def test_whatever_a_slice_says_only_typed_errors_come_of_it(
    dataset: Dataset, tmp_path: Path, cell: dict[str, Any]
) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.define(ORDERS.append(pa.field("day", pa.date32())), primary_key=["id"], partition_by=["day"])
        table.append(orders(range(9)).append_column("day", pa.array([20_000] * 9, pa.date32())))
        table.delete(pc.field("id") == 1)
    _, files, manifest = staged(dataset, tmp_path / "staging")
    path = tmp_path / "staging" / "cayenne.slice.json"
    content = path.read_bytes()
    refused = 0
    for name, rows in json.loads(content)["tables"].items():
        for position in range(len(rows[0]) if rows else 0):
            wrong = json.loads(content)
            wrong["tables"][name][-1][position] = cell
            path.unlink()
            path.write_text(json.dumps(wrong))
            try:
                ENGINE.verify(tmp_path / "staging", files, manifest.tables, "full")
            except CorruptCapture:
                refused += 1
            try:
                ENGINE.install(tmp_path / "staging", manifest)
                ENGINE.open_pool(tmp_path / "staging", manifest).close()
            except SnapshotDamaged:
                continue
    assert refused > 20


def test_installing_again_makes_the_same_and_leaves_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.define(ORDERS, partition_by=["name"])
        table.append(orders(range(3)))
    manifest = installed(dataset, tmp_path / "copy")
    ENGINE.install(tmp_path / "copy", manifest)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"cayenne.slice.json", "data", "metastore.sqlite"}
    with sqlite3.connect(tmp_path / "copy" / "metastore.sqlite") as connection:
        rows = connection.execute("select path from cayenne_table union all select path from cayenne_partition")
        paths = [path for (path,) in rows]
        assert len(paths) == 4 + 3
        assert all(path.startswith(f"{tmp_path}/copy/data/") for path in paths)
        assert connection.execute("pragma journal_mode").fetchone() == ("delete",)


def test_a_copy_is_read_wherever_it_was_moved(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.define(ORDERS, primary_key=["id"], partition_by=["name"])
        table.append(orders(range(5), "same"))
        table.delete(pc.field("id") == 0)
    manifest = installed(dataset, tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "second")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "second").rglob("*")}
    pool = ENGINE.open_pool(tmp_path / "second", manifest)
    lease = pool.acquire()
    assert lease.scan(["id"], filter=pc.field("id") > 2).read_all().to_pydict() == {"id": [3, 4]}
    pool.release(lease)
    assert pool.query("select sum(id) as s from orders").to_pylist() == [{"s": 10}]
    pool.close()
    (scan,) = ENGINE.sql_tables(tmp_path / "second", manifest).values()
    assert scan.scanner(columns=["id"]).to_table().num_rows == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "second").rglob("*")} == before


def test_a_damaged_file_of_a_copy_fails_the_query_and_not_the_process(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(orders(range(5_000)))
    manifest = installed(dataset, tmp_path / "copy")
    pool = ENGINE.open_pool(tmp_path / "copy", manifest)
    path = next((tmp_path / "copy").rglob("*.vortex"))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(duckdb.Error, match="can not be read"):
        pool.query("select count(name) from orders")
    with pytest.raises(CorruptCapture):
        pool.acquire().scan().read_all()
    path.write_bytes(content)
    assert pool.query("select count(name) as n from orders").to_pylist() == [{"n": 5_000}]
    pool.close()


def test_a_snapshot_of_a_newer_vortex_is_refused_before_it_is_fetched(dataset: Dataset, tmp_path: Path) -> None:
    with ENGINE.connect_live(dataset) as table:
        table.overwrite(orders(range(3)))
    _, _, manifest = staged(dataset, tmp_path / "staging")
    assert manifest.storage_version == "1"
    major, minor, _ = map(int, ENGINE.version().split("."))
    for fine in (f"{major}.{minor}.99", f"{major}.{minor - 1}.0", f"{major}.{minor}.0"):
        ENGINE.check_readable(replace(manifest, engine_version=fine))
    for newer in ({"engine_version": f"{major}.{minor + 1}.0"}, {"storage_version": "2"}):
        with pytest.raises(EngineTooOld, match="orders"):
            ENGINE.check_readable(replace(manifest, **newer))  # type: ignore[arg-type]


def test_names_and_types_are_found_without_vortex() -> None:
    """Slices are imported where no Vortex is installed."""
    code = "import sys; import snapshot_assets.engines.cayenne as c; c.import_slice; assert 'vortex' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="nothing"):
        _ = cayenne.nothing


def test_names_that_sql_can_not_tell_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLiveDatabase, match="case"):
        CayenneTable.create(tmp_path, "orders", pa.schema([("A", pa.int64()), ("a", pa.int64())]))
    CayenneTable.create(tmp_path, "orders", pa.schema([("É", pa.int64()), ("é", pa.int64())])).close()


def test_types_that_packages_of_a_process_add_do_not_change_the_columns(tmp_path: Path) -> None:
    class Month(pa.ExtensionType):  # type: ignore[misc]  # pyarrow has no types
        def __init__(self) -> None:
            super().__init__(pa.int64(), "tests.month")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, _storage: pa.DataType, _serialized: bytes) -> Month:
            return cls()

    engine, dataset, staging = CayenneEngine(), Dataset("orders", "cayenne", tmp_path / "root"), tmp_path / "staging"
    staging.mkdir()
    pa.register_extension_type(Month())
    try:
        with engine.connect_live(dataset) as table:
            table.append(pa.table({"m": pa.ExtensionArray.from_storage(Month(), pa.array([1, 2]))}))
        files = [file.path for file in engine.capture(dataset, staging, timeout=5).files]
        tables = engine.describe(dataset, staging, files)
    finally:
        pa.unregister_extension_type("tests.month")
    engine.verify(staging, files, tables, "full")


def test_a_path_that_the_operating_system_refuses_is_refused(tmp_path: Path) -> None:
    dataset = Dataset("orders", "cayenne", tmp_path / ("n" * 300))
    with pytest.raises(UnsupportedLiveDatabase, match="can not be looked at"):
        CayenneEngine().check_dataset(dataset)
    with pytest.raises(UnsupportedLiveDatabase, match="can not be looked at"):
        CayenneEngine().capture(dataset, tmp_path, timeout=1)
