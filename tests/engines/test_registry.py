"""Engines by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from snapshot_assets.engines.cayenne.engine import CayenneEngine
from snapshot_assets.engines.contract import Engine
from snapshot_assets.engines.duckdb import DuckDBEngine
from snapshot_assets.engines.lance import LanceEngine
from snapshot_assets.engines.registry import check_datasets, engine_named
from snapshot_assets.engines.sqlite import SQLiteEngine
from snapshot_assets.engines.turso import TursoEngine
from snapshot_assets.errors import ConfigurationError, InconsistentSnapshotSettings, UnsupportedEngine
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.engines import engine_names
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore

ENGINES: tuple[Engine, ...] = (CayenneEngine(), DuckDBEngine(), LanceEngine(), SQLiteEngine(), TursoEngine())
"""So that mypy checks each engine against the contract."""


def test_the_engines_are_those_that_can_be_declared() -> None:
    assert tuple(engine.name for engine in ENGINES) == engine_names()


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_every_declared_engine_is_found(engine: Engine) -> None:
    assert type(engine_named(engine.name)) is type(engine)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UnsupportedEngine, match="oracle"):
        engine_named("oracle")


@pytest.mark.parametrize(
    ("engine", "package", "command"),
    [
        ("duckdb", "duckdb", "pip install duckdb"),
        ("turso", "turso", "pip install 'snapshot-assets[turso]'"),
        ("cayenne", "vortex", "pip install 'snapshot-assets[cayenne]'"),
        ("lance", "lance", "pip install 'snapshot-assets[lance]'"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(engine: str, package: str, command: str) -> None:
    code = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from snapshot_assets import Dataset\n"
        "from snapshot_assets.errors import MissingExtra\n"
        "from snapshot_assets.engines.registry import engine_named\n"
        "try:\n"
        f"    engine_named({engine!r}).check_dataset(Dataset('orders', {engine!r}, 'orders'))\n"
        "except MissingExtra as error:\n"
        "    print(error.message, error.hint)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True, text=True)
    assert f"the package {package!r}" in child.stdout
    assert command in child.stdout


def test_a_reader_of_a_turso_dataset_needs_nothing_of_turso(tmp_path: Path) -> None:
    dataset = Dataset("orders", "turso", tmp_path / "orders.db")
    with Publisher(SnapshotStore.open(tmp_path / "store")) as publisher, publisher.writing(dataset) as writing:
        with writing.connect() as connection:
            connection.execute("create table orders (id integer)")
            connection.execute("insert into orders values (7)")
        writing.publish()
    code = (
        "import sys\n"
        "sys.modules['turso'] = None\n"
        "from snapshot_assets import SnapshotReader, SnapshotStore\n"
        "with SnapshotReader(SnapshotStore.open('store'), 'reader') as reader:\n"
        "    provider = reader.follow('orders', refresh=False)\n"
        "    print(provider.query('select id from orders').to_pylist())\n"
        "    print(reader.catalog.query('select id from orders.main.orders').to_pylist())\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True, cwd=tmp_path
    )
    assert child.stdout.splitlines() == ["[{'id': 7}]"] * 2, child.stderr


def test_the_core_works_without_any_extra(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['turso', 'vortex', 'lance']))\n"
        "from snapshot_assets import Dataset, Publisher, SnapshotReader, SnapshotStore\n"
        "from snapshot_assets.engines.registry import engine_named\n"
        "store = SnapshotStore.open('store')\n"
        "for engine in ('duckdb', 'sqlite'):\n"
        "    dataset = Dataset(engine + '_orders', engine, engine)\n"
        "    with Publisher(store) as publisher, publisher.writing(dataset) as writing:\n"
        "        with writing.connect() as connection:\n"
        "            connection.execute('create table orders (id integer)')\n"
        "        writing.publish()\n"
        "with SnapshotReader(store, 'reader') as reader:\n"
        "    reader.follow('duckdb_orders', refresh=False)\n"
        "    reader.follow('sqlite_orders', refresh=False)\n"
        "    print(reader.catalog.query('select * from duckdb_orders.orders join sqlite_orders.orders using (id)'))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True, cwd=tmp_path
    )
    assert child.returncode == 0, child.stderr
    assert "id" in child.stdout


def test_an_engine_is_imported_only_when_it_is_asked_for() -> None:
    code = (
        "import sys\n"
        "from snapshot_assets.engines.registry import engine_named\n"
        "assert 'duckdb' not in sys.modules\n"
        "engine_named('sqlite')\n"
        "assert 'duckdb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# datasets that are declared together


def test_two_datasets_of_one_live_database_are_refused(tmp_path: Path) -> None:
    one, two = Dataset("one", "duckdb", tmp_path / "x.duckdb"), Dataset("two", "duckdb", tmp_path / "a/../x.duckdb")
    check_datasets([one, one, Dataset("two", "duckdb", tmp_path / "y.duckdb")])
    with pytest.raises(InconsistentSnapshotSettings, match="'one' and 'two'"):
        check_datasets([one, two])
    with pytest.raises(InconsistentSnapshotSettings, match="two live databases"):
        check_datasets([one, Dataset("one", "duckdb", tmp_path / "y.duckdb")])


def test_datasets_share_a_cayenne_metastore_when_all_of_a_folder_use_the_same(tmp_path: Path) -> None:
    elsewhere = {"metastore": tmp_path / "elsewhere.db"}
    one, two = (Dataset(name, "cayenne", tmp_path / "root") for name in ("one", "two"))
    check_datasets([one, two])
    check_datasets([one, Dataset("two", "cayenne", tmp_path / "other", options=elsewhere)])
    with pytest.raises(InconsistentSnapshotSettings, match="'one' uses .*root with the metastore") as caught:
        check_datasets([one, Dataset("two", "cayenne", tmp_path / "root", options=elsewhere)])
    assert caught.value.dataset == "two"


def test_what_an_engine_refuses_is_refused_when_it_is_declared(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no_such_option"):
        check_datasets([Dataset("one", "sqlite", tmp_path / "x", options={"no_such_option": 1})])
