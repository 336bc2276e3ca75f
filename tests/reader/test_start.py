"""Whatever lies in the data folder at start: the right data is served, or a typed error says what is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshot_assets.errors import ConfigurationError, SnapshotAssetsError, StoreUnavailable
from snapshot_assets.ids import new_incarnation_id
from snapshot_assets.reader.provider import SnapshotProvider
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.faults import Fault
from tests.reader.world import World


def version(provider: SnapshotProvider) -> list[dict[str, int]]:
    rows: list[dict[str, int]] = provider.query(
        "select count(*) c, min(v) lowest, max(v) highest from planes"
    ).to_pylist()
    return rows


RIGHT = [{"c": 500, "lowest": 1, "highest": 1}]


def cut_to_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def other_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(max(path.stat().st_size, 1)))


def removed(path: Path) -> None:
    path.unlink()


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def link_in_its_place(path: Path) -> None:
    target = path.parents[3] / "somebody's"
    target.write_bytes(b"somebody's")
    path.unlink()
    path.symlink_to(target)


def dangling_link_in_its_place(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


HARMS = [cut_to_half, emptied, other_bytes, removed, folder_in_its_place, link_in_its_place, dangling_link_in_its_place]


@pytest.fixture
def left(world: World) -> Path:
    """The dataset's folder as an ended reader left it."""
    world.planes(1)
    with world.reader() as reader:
        reader.follow("planes")
    return world.data_dir / "planes"


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_each_file_of_a_data_folder_may_be_damaged(world: World, left: Path, harm: Callable[[Path], None]) -> None:
    whole = world.folder / "whole"
    shutil.copytree(left, whole, symlinks=True)
    files = sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file() and not path.is_symlink())
    assert {"state.json", "ready", "snapshot.json", "planes.sqlite"} <= {path.name for path in files}
    for number, file in enumerate(files):
        data_dir = world.folder / f"data-{number}"
        shutil.copytree(whole, data_dir / "planes", symlinks=True)
        target = data_dir / "planes" / file
        harm(target)
        with world.reader(data_dir=data_dir, verify_on_start=True) as reader:
            try:
                provider = reader.follow("planes")
            except SnapshotAssetsError:
                # Only of what says which snapshot was served last, and is neither a file nor absent.
                if (file.name, target.is_dir()) != ("state.json", True):
                    raise
                continue
            assert version(provider) == RIGHT, file
            assert reader.refresh("planes").outcome in {"not_modified", "noted"}
    for kept in world.folder.rglob("somebody's"):
        assert kept.read_bytes() == b"somebody's"


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_damaged_copy_without_the_store_is_a_typed_error_and_never_other_data(
    world: World, left: Path, harm: Callable[[Path], None]
) -> None:
    (file,) = left.glob("*-s0/files/planes.sqlite")
    harm(file)
    world.faults.arm(Fault("before", times=1_000_000))
    reader = world.reader(verify_on_start=True)
    with pytest.raises(StoreUnavailable):
        reader.follow("planes")
    world.faults.disarm()
    assert version(reader.follow("planes")) == RIGHT


def test_what_is_not_ours_in_the_data_folder_is_left_alone(world: World, left: Path) -> None:
    outside = world.folder / "outside"
    outside.mkdir()
    (outside / "ready").write_bytes(b"")
    (outside / "kept").write_text("kept")
    copy_name = f"{new_incarnation_id()}-s7"
    (left / copy_name).symlink_to(outside)
    (left / f"{new_incarnation_id()}-s8").write_text("a file with the name of a copy")
    (left / "lost+found").mkdir()
    (world.data_dir / "lost+found").mkdir()
    (world.data_dir / "Other Dataset").write_text("somebody's")
    reader = world.reader(keep_local=1)
    assert version(reader.follow("planes")) == RIGHT
    world.planes(2)
    assert reader.refresh("planes").outcome == "loaded"
    assert (outside / "kept").read_text() == "kept"
    assert (left / "lost+found").is_dir()
    assert (world.data_dir / "lost+found").is_dir()
    assert (world.data_dir / "Other Dataset").read_text() == "somebody's"


def test_a_folder_of_another_dataset_is_not_served_under_this_name(world: World, left: Path) -> None:
    world.orders(5)
    left.rename(world.data_dir / "orders")
    world.faults.arm(Fault("before", times=1_000_000))
    reader = world.reader()
    with pytest.raises(StoreUnavailable):
        reader.follow("orders")
    world.faults.disarm()
    assert reader.follow("orders").query("select distinct v from orders").to_pylist() == [{"v": 5}]


def test_a_copy_that_was_cut_off_at_any_file_is_fetched_again(world: World, left: Path) -> None:
    """As after a power cut without the flushes: any one file of a finished copy may be missing its bytes."""
    (copy,) = left.glob("*-s0")
    for file in sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "ready"):
        emptied(file)
        with world.reader() as reader:
            assert version(reader.follow("planes")) == RIGHT, file


def test_a_start_serves_the_copy_that_was_served_last_whatever_the_times_of_its_files(world: World, left: Path) -> None:
    with world.reader(keep_local=3) as reader:
        reader.follow("planes")
        for number in (2, 3):
            world.planes(number)
            reader.refresh("planes")
    copies = sorted(left.glob("*-s*"))
    assert len(copies) == 3
    # The clock went back by hours while they were served.
    for hours, copy in enumerate(copies):
        os.utime(copy / "ready", (1e9 - hours * 3600, 1e9 - hours * 3600))
    world.faults.arm(Fault("before", times=1_000_000))
    reader = world.reader(keep_local=1)
    provider = reader.follow("planes")
    assert provider.current.snapshot_id == 2
    assert provider.query("select distinct v from planes").to_pylist() == [{"v": 3}]


@pytest.mark.parametrize("name", ["what?", "back\\slash"])
def test_a_data_folder_that_duckdb_would_take_for_another_is_refused(tmp_path: Path, name: str) -> None:
    store = SnapshotStore.open(tmp_path / "store")
    with pytest.raises(ConfigurationError, match="DuckDB takes"):
        SnapshotReader(store, tmp_path / name / "reader")
    assert not (tmp_path / name).exists()
