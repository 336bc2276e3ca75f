"""Documents that are damaged or hostile: a typed error or a sound reading, bounded, and nothing outside its folder."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import read_content
from snapshot_assets.engines.registry import engine_named
from snapshot_assets.errors import SnapshotAssetsError
from snapshot_assets.model.manifest import Manifest, digest_of, manifest_key
from snapshot_assets.store.local import LocalStore
from snapshot_assets.store.memory import MemoryStore
from tests.format.mutations import (
    FIXTURE,
    Sample,
    changed,
    changed_bytes,
    changed_document,
    local_copy,
    read_local_copy,
    samples,
)

SAMPLES = {sample.name: sample for sample in samples()}
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
SEEDS = st.integers(0, 2**63)


def quick(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)


def check_reading(sample: Sample, data: bytes) -> bool:
    """Whether the data can be read; if so, then what is written of it reads the same again."""
    try:
        found = sample.parse(data)
    except SnapshotAssetsError:
        return False
    if hasattr(found, "to_bytes") and sample.name not in {"root", "chunks"}:
        assert sample.parse(found.to_bytes()) == found
    return True


@pytest.mark.parametrize("name", SAMPLES)
@quick(150)
@given(seed=SEEDS)
def test_a_changed_document_is_refused_by_a_typed_error_or_read(name: str, seed: int) -> None:
    check_reading(SAMPLES[name], changed(SAMPLES[name], random.Random(seed)))


@pytest.mark.parametrize("name", SAMPLES)
def test_what_was_really_written_is_read_and_most_of_what_was_changed_is_not(name: str) -> None:
    sample = SAMPLES[name]
    assert check_reading(sample, sample.data)
    read = [check_reading(sample, changed_bytes(sample.data, random.Random(seed))) for seed in range(100)]
    assert read.count(True) < 100 or name == "cursor"


@quick(150)
@given(seed=SEEDS)
def test_a_changed_description_of_a_local_copy_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    chance = random.Random(seed)
    name, data = local_copy()
    folder = tmp_path_factory.getbasetemp() / "local-copies"
    folder.mkdir(exist_ok=True)
    change = chance.choice((changed_bytes, changed_document))
    with contextlib.suppress(SnapshotAssetsError):
        read_local_copy(folder, name, change(data, chance))
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.fixture(scope="module")
def fixture_objects() -> MemoryStore:
    """The fixture's store in memory."""
    local, objects = LocalStore(FIXTURE / "store"), MemoryStore()
    for listed in local.list(""):
        objects.write_if_absent(listed.key, local.read(listed.key).data)
    return objects


def restore_changed(objects: MemoryStore, chance: random.Random, folder: Path) -> None:
    """Change a manifest, whose digest is told anew, or a pack; then restore, and look what was written where."""
    key = chance.choice(sorted(listed.key for listed in objects.list("data/") if listed.key.endswith("manifest.json")))
    manifest = Manifest.parse(objects.read(key).data, key)
    hostile = MemoryStore()
    hostile._objects = dict(objects._objects)
    data = objects.read(key).data
    if chance.random() < 0.5:
        data = changed_document(data, chance)
        _replace(hostile, key, data)
    else:
        keys = sorted(listed.key for listed in objects.list(f"data/{manifest.dataset}/"))
        pack = chance.choice([key for key in keys if key.endswith(".pack")])
        _replace(hostile, pack, changed_bytes(objects.read(pack).data, chance))
    target = folder / "target"
    shutil.rmtree(target, ignore_errors=True)
    try:
        place = (manifest.dataset, manifest.incarnation, manifest.operation_id)
        assert key == manifest_key(*place)
        content = read_content(hostile, *place, digest_of(data))
        restore_files(hostile, content, target)
    except SnapshotAssetsError:
        pass
    else:
        # Nothing that the digests cover was changed.
        assert [file.content_digest for file in content.manifest.files] == [
            file.content_digest for file in manifest.files
        ]
    assert {path.name for path in folder.iterdir()} <= {"target"}
    assert not [path for path in folder.rglob("*") if path.is_symlink()]


def _replace(objects: MemoryStore, key: str, data: bytes) -> None:
    objects.delete([key])
    objects.write_if_absent(key, data)


@quick(150)
@given(seed=SEEDS)
def test_nothing_hostile_is_restored_outside_its_folder(
    tmp_path_factory: pytest.TempPathFactory, fixture_objects: MemoryStore, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "restored"
    folder.mkdir(exist_ok=True)
    restore_changed(fixture_objects, random.Random(seed), folder)
    assert not (folder.parent / "outside").exists()
    assert not Path("/etc/outside").exists()


@pytest.fixture(scope="module")
def cayenne_copy(fixture_objects: MemoryStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The restored files of a Cayenne snapshot, slice and all."""
    key = min(item.key for item in fixture_objects.list("data/cayenne_orders/") if item.key.endswith("manifest.json"))
    data = fixture_objects.read(key).data
    manifest = Manifest.parse(data, key)
    place = (manifest.dataset, manifest.incarnation, manifest.operation_id)
    folder = tmp_path_factory.mktemp("cayenne") / "files"
    restore_files(fixture_objects, read_content(fixture_objects, *place, digest_of(data)), folder)
    return folder, manifest


@quick(40)
@given(seed=SEEDS)
def test_a_hostile_slice_is_not_installed_outside_its_folder(cayenne_copy: tuple[Path, Manifest], seed: int) -> None:
    chance = random.Random(seed)
    source, manifest = cayenne_copy
    folder = source.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    [document] = folder.glob("**/*.slice.json")
    change = changed_document if chance.random() < 0.8 else changed_bytes
    document.write_bytes(change(document.read_bytes(), chance))
    engine = engine_named("cayenne")
    with contextlib.suppress(SnapshotAssetsError):
        engine.install(folder, manifest)
        engine.verify(folder, [file.path for file in manifest.files], manifest.tables, "quick")
    assert {path.name for path in source.parent.iterdir()} == {"files", "copy"}


# in a process of its own, with limits


def fuzz_within_limits(seed: int, rounds: int, seconds: int) -> None:
    """What the child does: each kind of document, many times, and never much memory."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    chance = random.Random(seed)
    for sample in SAMPLES.values():
        check_reading(sample, sample.data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(rounds):
        for sample in SAMPLES.values():
            check_reading(sample, changed(sample, chance))
    print(json.dumps({"grown_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}))


def run_within_limits(seed: int, rounds: int, seconds: int) -> int:
    """Fuzz in a child that is stopped when it takes too long; how many KiB its memory grew by."""
    code = f"from tests.format.test_fuzz import fuzz_within_limits; fuzz_within_limits({seed}, {rounds}, {seconds})"
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=10 * seconds, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown: int = json.loads(done.stdout.splitlines()[-1])["grown_kib"]
    return grown


def test_no_document_hangs_its_reader_or_takes_much_memory() -> None:
    assert run_within_limits(1, 60, 60) < 200 * 1024


@pytest.mark.soak
def test_no_document_hangs_its_reader_or_takes_much_memory_for_long() -> None:
    for seed in range(2, 12):
        assert run_within_limits(seed, 3_000, 600) < 200 * 1024


@pytest.mark.soak
def test_nothing_hostile_is_restored_outside_its_folder_for_long(tmp_path: Path, fixture_objects: MemoryStore) -> None:
    folder = tmp_path / "restored"
    folder.mkdir()
    for seed in range(20_000):
        restore_changed(fixture_objects, random.Random(seed), folder)
    assert not (tmp_path / "outside").exists()


@pytest.mark.soak
@pytest.mark.parametrize("name", SAMPLES)
def test_no_way_through_a_parser_ends_in_anything_but_a_typed_error(name: str) -> None:
    """With atheris, which `make soak` installs: it has wheels for Linux only."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.format.guided_fuzz", name, "-runs=300000"],
        timeout=3_000, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5_000:]
