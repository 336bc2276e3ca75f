"""How the fixtures of the store format were made: a small store of every engine, with something of everything in it.

A fixture is written once, by the version that introduced its format, and never again: what matters is that later
versions read what earlier ones wrote. For a new format version, raise `FORMAT_VERSION` and run, from the repository::

    python -c "from tests.format.make_fixture import write_fixture; write_fixture()"

It refuses to replace a fixture that is there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from unittest import mock

from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.announcement import READERS_PREFIX
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.model.document import FORMAT_VERSION
from snapshot_assets.publish import lease
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import ReaderSettings
from snapshot_assets.store.snapshot_store import SnapshotStore
from tests.faults.scene import add_orders

FIXTURES: Final = Path(__file__).parent / "fixtures"
ENGINES: Final = ("cayenne", "duckdb", "lance", "sqlite", "turso")
OF_EVERYTHING: Final = "sqlite_orders"
"""The dataset that was rolled back, pinned, cleaned up with a grace, and served by a reader that announced itself."""


def name_of(engine: str) -> str:
    """The name of an engine's dataset."""
    return f"{engine}_orders"


def table_of(engine: str) -> str:
    """The name of its table: that of the dataset, where a dataset is one table."""
    return name_of(engine) if engine in {"cayenne", "lance"} else "orders"


def write_fixture() -> Path:
    """Write `fixtures/version_<n>`: a store, the data folder of a reader, and `expected.json`, which tells the rows."""
    target = FIXTURES / f"version_{FORMAT_VERSION}"
    target.mkdir(parents=True)
    host = ("example pid:[4026531836]", "00000000-0000-0000-0000-000000000000")
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(lease, "_host", return_value=host):
        work = Path(folder)
        store = SnapshotStore.open(work / "store")
        expected = {name_of(engine): _publish(store, engine, work) for engine in ENGINES}
        operator = Maintenance(store)
        operator.rollback(OF_EVERYTHING, 3)
        operator.pin(OF_EVERYTHING, "audit", 2, owner="anna", reason="the year's report")
        operator.cleanup([OF_EVERYTHING], keep=3, confirm=True)
        _serve(store, work / "data")
        heads = {name: store.head(name) for name in expected}
        for name, head in heads.items():
            listed = [entry.snapshot_id for entry in head.snapshots]
            expected[name] |= {"listed": listed, "current": head.current_snapshot_id, "generation": head.generation}
        shutil.copytree(work / "store", target / "store", ignore=shutil.ignore_patterns(".*"))
        shutil.copytree(work / "data", target / "data", ignore=shutil.ignore_patterns(".*", "current"))
    (target / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    return target


def _publish(store: SnapshotStore, engine: str, work: Path) -> dict[str, Any]:
    """Publish a dataset several times, each time with more orders; the orders of each snapshot."""
    name = name_of(engine)
    dataset = Dataset(name, engine, work / "live" / f"{name}.db", properties={"made_for": "the format fixture"})
    publishes = 5 if name == OF_EVERYTHING else 2
    publisher = Publisher(store)
    for turn in range(publishes):
        add_orders(dataset, range(10 * turn, 10 * turn + 10))
        publisher.publish(dataset, idempotency_key=f"turn {turn}", summary={"turn": str(turn)}, partition_keys=["2013"])
    return {"table": table_of(engine), "rows": {str(turn): 10 * turn + 10 for turn in range(publishes)}}


def _serve(store: SnapshotStore, data: Path) -> None:
    """Serve a dataset from a data folder, and leave the announcement behind as a reader does that is killed."""
    with SnapshotReader(store, data, ReaderSettings(refresh_interval=None, cohort="canary")) as reader:
        reader.follow(OF_EVERYTHING)
        deadline = time.monotonic() + 30
        while not (announced := list(store.objects.list(READERS_PREFIX))) and time.monotonic() < deadline:
            time.sleep(0.1)
        [listed] = announced
        document = store.objects.read(listed.key).data
    store.objects.write_if_absent(listed.key, document)
