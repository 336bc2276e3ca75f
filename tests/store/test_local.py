from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshot_assets.errors import AccessDenied, Conflict, StoreError, StoreUnavailable
from snapshot_assets.store import local
from snapshot_assets.store.local import LocalStore

INCREMENT = """
import sys, time
from pathlib import Path
from snapshot_assets.errors import Conflict
from snapshot_assets.store.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    while True:
        found = store.read("counter")
        try:
            store.write_if_match("counter", b"%d" % (int(found.data) + 1), found.token)
            break
        except Conflict:
            pass
"""

CLAIM = """
import os, sys, time
from pathlib import Path
from snapshot_assets.errors import Conflict
from snapshot_assets.store.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    try:
        store.write_if_absent(f"claims/{number}", b"%d" % os.getpid())
        print(number, flush=True)
    except Conflict:
        pass
"""

WRITE_WITHOUT_END = """
import itertools, sys
from pathlib import Path
from snapshot_assets.store.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
token = store.read("head").token
print("ready", flush=True)
for number in itertools.count():
    token = store.write_if_match("head", (b"%08d" % number) * 40_000, token)
    store.upload(f"packs/{number:08}", (b"%08d" % number) * 40_000)
"""

STOP_WITHIN_THE_LOCK = """
import os, signal, sys
from pathlib import Path
from snapshot_assets.store import local
def stop(*_):
    print("locked", flush=True)
    signal.pause()
local._stamp = stop
local.LocalStore(Path(sys.argv[1])).write_if_absent("head", b"never")
"""


def run(script: str, *arguments: object, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE)


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate(timeout=30)


def files_under(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".locks" not in path.parts}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody can reach, while this process is a user that permissions apply to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        user = os.geteuid()
        if user == 0:
            os.chown(name, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            Path(name).chmod(0o755)
            os.seteuid(user)


def test_no_increment_of_another_process_is_lost(store: LocalStore, root: Path) -> None:
    store.write_if_absent("counter", b"0")
    processes = [run(INCREMENT, root, 25) for _ in range(4)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert store.read("counter").data == b"100"


def test_exactly_one_process_wins_a_claim(root: Path) -> None:
    processes = [run(CLAIM, root, stdin=subprocess.PIPE) for _ in range(4)]
    assert [line_of(process) for process in processes] == [b"ready"] * 4
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    won = [int(line) for process in processes for line in process.communicate(timeout=60)[0].split()]
    assert sorted(won) == list(range(20))


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05, 0.1, 0.2])
def test_a_writer_that_is_killed_leaves_whole_versions_and_no_wedge(
    store: LocalStore, root: Path, delay: float
) -> None:
    store.write_if_absent("head", b"start")
    process = run(WRITE_WITHOUT_END, root)
    assert line_of(process) == b"ready"
    time.sleep(delay)
    end(process)
    found = store.read("head")
    assert found.data == b"start" or found.data == found.data[:8] * 40_000
    for listed in store.list("packs/"):
        assert store.read(listed.key).data == listed.key[-8:].encode() * 40_000
    store.write_if_match("head", b"after", found.token)


def test_a_writer_that_is_killed_while_it_holds_the_lock_leaves_it_free(store: LocalStore, root: Path) -> None:
    process = run(STOP_WITHIN_THE_LOCK, root)
    assert line_of(process) == b"locked"
    end(process)
    assert list(store.list("")) == []
    store.write_if_absent("head", b"second")
    assert store.read("head").data == b"second"


def test_what_a_killed_writer_left_is_swept_when_it_is_old(root: Path) -> None:
    LocalStore(root).write_if_absent("a", b"x")
    old, young = root / ".temporary" / "old", root / ".temporary" / "young"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    store = LocalStore(root)
    assert [listed.key for listed in store.list("")] == ["a"]
    store.write_if_absent("b", b"x")
    assert files_under(root) == {"a", "b", ".temporary/young"}


def test_equal_bytes_of_another_write_are_another_version_even_when_the_clock_stands_still(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = time.time_ns()
    monkeypatch.setattr("snapshot_assets.store.local.time.time_ns", lambda: frozen)
    tokens = [store.write_if_absent("head", b"same")]
    for _ in range(3):
        for _ in range(3):
            tokens.append(store.write_if_match("head", b"same", tokens[-1]))
        store.delete(["head"])
        tokens.append(store.write_if_absent("head", b"same"))
    assert len(set(tokens)) == len(tokens)
    with pytest.raises(Conflict):
        store.write_if_match("head", b"late", tokens[0])


def test_tokens_differ_on_a_file_system_that_keeps_whole_seconds(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.utime

    def coarse(path: int | Path, *, ns: tuple[int, int]) -> None:
        real(path, ns=(ns[0] // 10**9 * 10**9, ns[1] // 10**9 * 10**9))

    monkeypatch.setattr("snapshot_assets.store.local.os.utime", coarse)
    tokens = [store.write_if_absent("head", b"same")]
    for _ in range(3):
        tokens.append(store.write_if_match("head", b"same", tokens[-1]))
    seconds = [int(token.split("-")[1], 16) // 10**9 for token in tokens]
    assert seconds == sorted(set(seconds))


def test_a_store_that_was_copied_without_its_locks_goes_on_with_new_tokens(store: LocalStore, root: Path) -> None:
    token = store.write_if_absent("head", b"same")
    future = time.time_ns() + 10**12
    os.utime(root / "head", ns=(future, future))
    for lock in (root / ".locks").iterdir():
        lock.unlink()
    moved = store.read("head").token
    assert moved != token
    later = store.write_if_match("head", b"same", moved)
    assert int(later.split("-")[1], 16) > future


def test_a_write_that_fails_leaves_nothing(store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_if_absent("a", b"x")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("snapshot_assets.store.local.os.fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        store.upload("pack", bytes(1000))
    assert not isinstance(caught.value, StoreUnavailable)
    assert "Free disk space" in caught.value.hint
    assert files_under(root) == {"a"}


def test_a_file_that_the_system_refuses_to_let_grow_is_no_passing_trouble(
    store: LocalStore, root: Path, file_size_limit: Callable[[int], None]
) -> None:
    store.write_if_absent("a", b"x")
    file_size_limit(100)
    with pytest.raises(StoreError, match="too large") as caught:
        store.upload("pack", bytes(1000))
    assert not isinstance(caught.value, StoreUnavailable)
    assert "Free disk space" in caught.value.hint
    assert files_under(root) == {"a"}


def test_an_upload_that_conflicts_leaves_no_temporary_file(store: LocalStore, root: Path, tmp_path: Path) -> None:
    store.upload("pack", b"first")
    source = tmp_path / "source"
    source.write_bytes(b"second")
    with pytest.raises(Conflict):
        store.upload("pack", source)
    assert files_under(root) == {"pack"}


def test_a_source_that_can_not_be_read_is_no_fault_of_the_store(store: LocalStore, root: Path, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        store.upload("pack", tmp_path)
    assert files_under(root) == set()


def test_missing_permission_says_so(as_nobody: Path) -> None:
    store = LocalStore(as_nobody)
    token = store.write_if_absent("folder/a", b"x")
    (as_nobody / "folder").chmod(0o555)
    (as_nobody / ".temporary").chmod(0o555)
    (as_nobody / "folder" / "a").chmod(0o000)
    try:
        for refused in (
            lambda: store.read("folder/a"),
            lambda: store.write_if_absent("folder/b", b"x"),
            lambda: store.write_if_match("folder/a", b"x", token),
            lambda: store.delete(["folder/a"]),
        ):
            with pytest.raises(AccessDenied, match="Permission denied") as caught:
                refused()
            assert "right to read and write" in caught.value.hint
    finally:
        (as_nobody / "folder").chmod(0o755)
        (as_nobody / ".temporary").chmod(0o755)


def test_no_object_lies_beneath_another_one(store: LocalStore) -> None:
    store.write_if_absent("a", b"x")
    store.write_if_absent("b/c", b"x")
    for key in ("a/b", "b"):
        with pytest.raises(StoreError, match="directory|exists") as caught:
            store.write_if_absent(key, b"y")
        assert not isinstance(caught.value, StoreUnavailable | Conflict)
    assert store.read("a").data == b"x"


@pytest.mark.parametrize("root", ["file", "file/store"])
def test_a_root_that_is_a_file_is_an_error_with_a_hint(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = LocalStore(tmp_path / root)
    for write in (lambda: store.write_if_absent("a", b"x"), lambda: store.upload("a", b"x")):
        with pytest.raises(StoreError, match="directory|exists") as caught:
            write()
        assert not isinstance(caught.value, StoreUnavailable | Conflict)
        assert caught.value.hint
    assert (tmp_path / "file").read_bytes() == b"x"


def test_reading_makes_no_folder(store: LocalStore, root: Path) -> None:
    assert list(store.list("")) == []
    store.delete(["a"])
    assert not root.exists()


def test_deleting_the_last_object_removes_its_folders(store: LocalStore, root: Path) -> None:
    store.write_if_absent("data/a/b/c", b"x")
    store.write_if_absent("data/d", b"x")
    store.delete(["data/a/b/c"])
    assert not (root / "data" / "a").exists()
    store.delete(["data/d"])
    assert not (root / "data").exists()
    assert root.exists()


def test_folders_that_a_deletion_removes_meanwhile_are_made_again(store: LocalStore) -> None:
    writer = run(
        "import sys; from pathlib import Path; from snapshot_assets.store.local import LocalStore\n"
        "store = LocalStore(Path(sys.argv[1])); print('ready', flush=True)\n"
        "for number in range(100): store.write_if_absent(f'f/{number}', b'x'); store.delete([f'f/{number}'])",
        store._root,
    )
    assert line_of(writer) == b"ready"
    for number in range(100):
        store.write_if_absent(f"f/other{number}", b"x")
        store.delete([f"f/other{number}"])
    writer.communicate(timeout=60)
    assert writer.returncode == 0


def test_relative_roots_do_not_follow_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore(Path("here/../store"))
    monkeypatch.chdir("/")
    store.write_if_absent("a", b"x")
    assert (tmp_path / "store" / "a").read_bytes() == b"x"
    assert store.url == (tmp_path / "store").as_uri()


_HOLDS_A_LOCK = """
import os, signal, sys
from pathlib import Path
from snapshot_assets.store.local import LocalStore

store = LocalStore(Path(sys.argv[1]))
with store._lock("heads/a.json"):
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_nobody_waits_without_end_for_a_process_that_was_stopped_while_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    token = store.write_if_absent("heads/a.json", b"one")
    monkeypatch.setattr(local, "_LOCK_SECONDS", 0.3)
    command = [sys.executable, "-c", _HOLDS_A_LOCK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stopped:
        try:
            assert stopped.stdout is not None
            assert stopped.stdout.readline() == "held\n"
            with pytest.raises(StoreUnavailable, match=r"lock of heads/a\.json"):
                store.write_if_match("heads/a.json", b"two", token)
            assert store.read("heads/a.json").data == b"one"
        finally:
            stopped.kill()
    store.write_if_match("heads/a.json", b"two", token)
    assert store.read("heads/a.json").data == b"two"
