"""The write gate, with real threads and processes."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshot_assets.engines.gate import gate_path, write_gate
from snapshot_assets.errors import CaptureError, ConfigurationError, LiveDatabaseBusy

HOLDER = """
import sys
from pathlib import Path
from snapshot_assets.engines.gate import write_gate
with write_gate(Path(sys.argv[1]), dataset="orders"):
    print("held", flush=True)
    sys.stdin.readline()
print("open", flush=True)
"""

Start = Callable[..., Any]


def test_another_process_is_kept_out_and_told_who_holds_the_gate(tmp_path: Path, program: Start) -> None:
    live = tmp_path / "orders.duckdb"
    holder = program(HOLDER, live)
    assert holder.hear() == "held"
    with (
        pytest.raises(LiveDatabaseBusy, match=rf"process {holder.pid} for dataset 'orders'"),
        write_gate(live, timeout=0.1),
    ):
        pass
    holder.say()
    assert holder.hear() == "open"
    with write_gate(live, timeout=5):
        pass


def test_the_gate_opens_when_its_holder_is_killed(tmp_path: Path, program: Start) -> None:
    live = tmp_path / "orders.duckdb"
    holder = program(HOLDER, live)
    assert holder.hear() == "held"
    holder.kill()
    with write_gate(live, timeout=5):
        pass


def test_a_second_thread_is_kept_out(tmp_path: Path) -> None:
    live = tmp_path / "orders.duckdb"
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with write_gate(live):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (inside, most) == (0, 1)


def test_without_a_timeout_it_waits_for_the_holder(tmp_path: Path, program: Start) -> None:
    live = tmp_path / "orders.duckdb"
    holder = program(HOLDER, live)
    assert holder.hear() == "held"
    threading.Timer(0.3, holder.say).start()
    began = time.monotonic()
    with write_gate(live):
        assert time.monotonic() - began > 0.2


def test_every_name_of_a_live_database_has_the_same_gate(tmp_path: Path) -> None:
    live, link = tmp_path / "orders.duckdb", tmp_path / "link"
    live.touch()
    link.symlink_to(live)
    with write_gate(link), pytest.raises(LiveDatabaseBusy), write_gate(live, timeout=0.05):
        pass


def test_an_error_in_the_block_opens_the_gate_and_the_file_stays(tmp_path: Path) -> None:
    live = tmp_path / "not" / "yet" / "orders.duckdb"
    with pytest.raises(RuntimeError, match="mine"), write_gate(live):
        raise RuntimeError("mine")
    with write_gate(live, timeout=0):
        pass
    assert gate_path(live).read_bytes() == b""
    assert gate_path(live).name == "orders.duckdb.snapshot-assets.lock"


def test_two_live_databases_have_two_gates(tmp_path: Path) -> None:
    with write_gate(tmp_path / "a.duckdb"), write_gate(tmp_path / "b.duckdb", timeout=0):
        pass


def test_a_gate_that_can_not_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CaptureError, match="write gate"), write_gate(tmp_path / "file" / "orders.duckdb"):
        pass


def test_a_holder_that_has_not_signed_yet_is_another_writer(tmp_path: Path) -> None:
    live = tmp_path / "orders.duckdb"
    with write_gate(live):
        gate_path(live).write_bytes(b"{")
        with pytest.raises(LiveDatabaseBusy, match="by another writer"), write_gate(live, timeout=0):
            pass


def test_a_full_disk_is_a_typed_error_and_leaves_the_gate_open(
    tmp_path: Path, file_size_limit: Callable[[int], None]
) -> None:
    live = tmp_path / "orders.duckdb"
    file_size_limit(0)
    with (
        pytest.raises(CaptureError, match="too large") as caught,
        write_gate(live, timeout=0, dataset="orders"),
    ):
        pytest.fail("the gate was not signed")
    assert "Free disk space" in caught.value.hint
    assert caught.value.dataset == "orders"
    file_size_limit(-1)
    with write_gate(live, timeout=0):
        pass


def test_locks_that_the_file_system_does_not_know_are_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("snapshot_assets.engines.gate.fcntl.flock", none_left)
    with pytest.raises(CaptureError, match="No locks available"), write_gate(tmp_path / "orders.duckdb"):
        pytest.fail("nothing is locked")


def test_a_block_that_fails_is_not_taken_for_a_fault_of_the_gate(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine") as caught, write_gate(tmp_path / "orders.duckdb"):
        raise OSError(errno.ENOSPC, "mine")
    assert not isinstance(caught.value, CaptureError)


@pytest.mark.parametrize("name", ["a\0b.duckdb", "loop", "loop/a.duckdb"])
def test_a_path_that_leads_nowhere_has_no_gate(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigurationError), write_gate(tmp_path / name):
        pytest.fail("there is no such gate")
