"""An engine of another package, found by its entry point, is published, read and operated like those of this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pytest

from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import UnsupportedEngine
from snapshot_assets.model import engines
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.testing import EngineContract

SOURCE = Path(__file__).with_name("third_party") / "feather_engine.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip fills it with a package that offers the engine."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(SOURCE, folder)
    info = folder / "feather_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: feather-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[snapshot_assets.engines]\nfeather = feather_engine:FeatherEngine\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def installed(site: Path) -> Iterator[None]:
    """The package is installed while this module's tests run."""
    sys.path.insert(0, str(site))
    engines._offered.cache_clear()
    yield
    sys.path.remove(str(site))
    sys.modules.pop("feather_engine", None)
    engines._offered.cache_clear()


class TestFeather(EngineContract):
    engine_name = "feather"
    has_many_tables = False
    detects_flipped_bytes = False
    refusal = "no attribute"
    small_change_share = 0.75  # whatever comes behind the first change moves
    types = pa.schema(
        [
            *(("whole", pa.int64()), ("small", pa.int8()), ("real", pa.float64()), ("bool", pa.bool_())),
            *(("decimal", pa.decimal128(20, 4)), ("text", pa.string()), ("blob", pa.binary())),
            *(("date", pa.date32()), ("time", pa.time64("us")), ("moment", pa.timestamp("us", "UTC"))),
            *(("list", pa.list_(pa.int32())), ("struct", pa.struct([("a", pa.int64()), ("b", pa.string())]))),
        ]
    )
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())])

    def fill(self, connection: Any, rows: int = 1_000) -> None:
        connection.write(self.orders(0, rows))

    def orders(self, first: int, rows: int) -> pa.Table:
        ids = range(first, first + rows)
        return pa.table([ids, [f"order {number}" for number in ids]], schema=self.schema)

    def append(self, connection: Any, first: int, rows: int) -> None:
        connection.write(pa.concat_tables([connection.read(), self.orders(first, rows)]))

    def update(self, connection: Any, ids: Sequence[int]) -> None:
        connection.write(self.renamed(connection.read(), {number: f"changed {number}" for number in ids}))

    def renamed(self, table: pa.Table, names: dict[int, str]) -> pa.Table:
        changed = [names.get(row["id"], row["name"]) for row in table.to_pylist()]
        return table.set_column(1, table.schema.field("name"), [changed])

    def delete(self, connection: Any, ids: Sequence[int]) -> None:
        table = connection.read()
        connection.write(table.filter(pc.invert(pc.is_in(table["id"], pa.array(ids)))))

    def commit_numbered(self, connection: Any, number: int) -> None:
        table = pa.concat_tables([connection.read(), self.orders(number, 1)])
        connection.write(self.renamed(table, {0: str(number)}))

    def add_column(self, connection: Any) -> None:
        table = connection.read()
        connection.write(table.append_column("note", pa.nulls(table.num_rows, pa.string())))

    def drop_column(self, connection: Any) -> None:
        connection.write(connection.read().drop_columns(["name"]))

    def load(self, connection: Any, table: pa.Table, name: str = "orders") -> None:
        connection.write(table)

    def rows_of(self, connection: Any, name: str = "orders") -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in connection.read().sort_by("id").to_pylist()]

    def use(self, connection: Any) -> None:
        connection.read()

    def count_of(self, lease: Any) -> tuple[int, int]:
        ids = lease.to_table(columns=["id"])["id"]
        return len(ids), pc.sum(ids).as_py()

    def write_to(self, lease: Any) -> None:
        lease.write(self.orders(999_999, 1))

    def disturb(self, lease: Any) -> None:
        pass

    def check_undisturbed(self, lease: Any) -> None:
        pass


def test_the_engine_is_found_where_it_is_installed_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, site: Path
) -> None:
    assert engine_named("feather").name == "feather"
    assert "feather" in engines.engine_names()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(site)])
    engines._offered.cache_clear()
    with pytest.raises(UnsupportedEngine, match="feather"):
        engine_named("feather")
    engines._offered.cache_clear()


@pytest.fixture
def command(site: Path, tmp_path: Path) -> Callable[..., Any]:
    """The command line, in a process of its own."""

    def run(*arguments: object) -> Any:
        environment = {**os.environ, "PYTHONPATH": str(site), "SNAPSHOT_STORE": str(tmp_path / "store")}
        ran = subprocess.run(
            [sys.executable, "-m", "snapshot_assets", *map(str, arguments), "--json"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return run


def test_the_command_line_publishes_queries_verifies_and_rolls_back(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    dataset = Dataset("orders", "feather", tmp_path / "orders.feather")
    suite = TestFeather()
    publish = ("publish", "orders", "--engine", "feather", "--path", dataset.path)
    with engine_named("feather").connect_live(dataset) as connection:
        suite.fill(connection)
    assert command(*publish)["snapshot_id"] == 0
    with engine_named("feather").connect_live(dataset) as connection:
        suite.append(connection, 1_000, 1)
    assert command(*publish)["row_counts"] == {"orders": 1_001}
    assert command("query", "--all", "select max(id) m from orders.main.orders")["rows"] == [[1_000]]
    assert command("verify", "orders", "--level", "restore")["snapshot_id"] == 1
    assert command("rollback", "orders", "--to", "0")["snapshot_id"] == 0
    command("pull", "orders", "--to", tmp_path / "pulled")
    assert pa.feather.read_table(tmp_path / "pulled" / "orders.feather").num_rows == 1_000
