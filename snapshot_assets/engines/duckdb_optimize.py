"""Giving back the free space of a live DuckDB file, which DuckDB itself keeps for later: a fresh file takes its place.

A process of its own does it (`duckdb_rebuild`). DuckDB's lock on a file belongs to a process and is given up by closing
any descriptor of the file; a process that does nothing else holds it against everybody, this process included, until
the fresh file stands in the old one's place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from snapshot_assets import errors
from snapshot_assets.engines.contract import Optimized
from snapshot_assets.engines.copying import size_of_live_file
from snapshot_assets.engines.duckdb_live import connect_by
from snapshot_assets.errors import CaptureError, SnapshotAssetsError

__all__ = ["optimize_file", "rebuild_folder"]

_CHILD: Final = """
import json, sys
task = json.loads(sys.argv[1])
sys.path[:] = task["sys_path"]
from snapshot_assets.engines.duckdb_rebuild import main
main(task)
"""
_SLOWEST_BYTES_PER_SECOND: Final = 1024 * 1024
_LEAST_SECONDS: Final = 60.0


def rebuild_folder(live: Path) -> Path:
    """Where the fresh file of a live database is built: beside it, under a name that is this package's own."""
    return Path(f"{live}.snapshot-assets.rebuild")


def optimize_file(live: Path, dataset: str, *, timeout: float) -> Optimized:
    """Rebuild a live file of which more than half is free; see `Engine.optimize`.

    Raises:
        LiveDatabaseMissing: it is not there.
        LiveDatabaseBusy: somebody else, or another connection of this process, had it for `timeout` seconds.
        UnsupportedLiveDatabase: DuckDB does not open it.
        CaptureError: it could not be rebuilt with all that it holds, and is as it was.
    """
    deadline = time.monotonic() + timeout
    limit = timeout + _LEAST_SECONDS + size_of_live_file(live) / _SLOWEST_BYTES_PER_SECOND
    # A connection of this process that has lost its lock would go on writing to the old file.
    connect_by(deadline, live, dataset, alone=True).close()
    # The child ends itself when the other end of its standard input closes, which also happens when this process dies.
    its_input, kept_open = os.pipe()
    seconds = max(0.0, deadline - time.monotonic())
    task = {"sys_path": sys.path, "live": str(live), "dataset": dataset, "timeout": seconds}
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, json.dumps(task)],
            stdin=its_input,
            capture_output=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CaptureError(
            f"rebuilding {live} took longer than {limit:.0f} s and was stopped", hint="Check the disk.", dataset=dataset
        ) from error
    finally:
        os.close(its_input)
        os.close(kept_open)
        shutil.rmtree(rebuild_folder(live), ignore_errors=True)
    if child.returncode != 0:
        raise CaptureError(
            f"the process that rebuilds {live} ended with {child.returncode}: {child.stderr.decode(errors='replace')}",
            dataset=dataset,
        )
    answer: dict[str, Any] = json.loads(child.stdout)
    if "error" in answer:
        raise _revived(answer["error"])
    return Optimized(answer["skipped"], answer["detail"], answer["figures"])


def _revived(said: dict[str, Any]) -> SnapshotAssetsError:
    error: SnapshotAssetsError = getattr(errors, said["kind"])(
        said["message"], hint=said["hint"], dataset=said["dataset"]
    )
    return error
