"""Copying a live file without taking away the locks that an engine holds on it.

POSIX locks belong to a process, and closing any descriptor of a file gives up all that the process holds on it. A live
file is therefore only ever opened by the engine's own library or by a child process, never by our own code.
"""

from __future__ import annotations

import errno
import json
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshot_assets.durable import is_full
from snapshot_assets.errors import CaptureError, LiveDatabaseMissing, UnsupportedLiveDatabase

__all__ = ["FileCopy", "copy_live_file", "read_live_header", "size_of_live_file"]

_COPIER: Final = Path(__file__).with_name("_copier.py")
_SLOWEST_BYTES_PER_SECOND: Final = 4 * 1024 * 1024
_LEAST_SECONDS: Final = 10.0
_READABLE_HINT: Final = "Let this process read the live database."


@dataclass(frozen=True, slots=True)
class FileCopy:
    """What the child saw: `moved` names what changed or stood in the way, and is empty when the copy is good."""

    size: int
    mode: int
    moved: tuple[str, ...]


def size_of_live_file(live: Path) -> int:
    """The size of a live file, from its folder's entry: nothing is opened.

    Raises:
        LiveDatabaseMissing: it is not there.
        UnsupportedLiveDatabase: it is not a plain file.
        CaptureError: it can not be looked at.
    """
    try:
        found = live.stat()
    except FileNotFoundError as error:
        raise LiveDatabaseMissing(f"there is no live database at {live}") from error
    except OSError as error:
        raise CaptureError(f"{live} can not be looked at: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise UnsupportedLiveDatabase(f"{live} is not a file")
    return found.st_size


def read_live_header(live: Path, length: int, *, timeout: float = 30.0) -> bytes:
    """The first bytes of a live file.

    Raises:
        LiveDatabaseMissing: it is not there.
        UnsupportedLiveDatabase: it is not a plain file.
        CaptureError: it can not be read.
    """
    size_of_live_file(live)
    try:
        # The declaration of a dataset looks too, so that a thousand of them must not cost a thousand interpreters.
        child = subprocess.run(
            ["head", "-c", str(length), "--", str(live)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CaptureError(f"{live} could not be read within {timeout:g} s", hint="Check its disk.") from error
    if child.returncode != 0:
        size_of_live_file(live)
        raise CaptureError(
            f"{live} can not be read: {child.stderr.decode(errors='replace').strip()}", hint=_READABLE_HINT
        )
    return child.stdout


def copy_live_file(
    live: Path, target: Path, *, header_bytes: int = 0, absent: Sequence[Path] = (), timeout: float
) -> FileCopy:
    """Copy a live file in a child process, and tell whether it held still meanwhile.

    The caller keeps writers out as far as the engine lets it; the child notices the rest: the first `header_bytes`,
    the size, the modification time and the inode must be the same before and after, and none of `absent` may exist.

    Args:
        live: the file to copy, under its real path.
        target: made, or overwritten.
        header_bytes: how much of the beginning is compared.
        absent: side files that mean that the copy lacks something.
        timeout: seconds for the start of the child; copying adds to it by the size of the file.

    Raises:
        LiveDatabaseMissing: the file is not there.
        UnsupportedLiveDatabase: it is not a plain file.
        CaptureError: it can not be read, or the copy can not be written.
    """
    answer = _run(live, target, header_bytes, absent, timeout)
    size, mode, moved = answer["size"], answer["mode"], answer["moved"]
    if not (isinstance(size, int) and isinstance(mode, int) and isinstance(moved, list)):
        raise CaptureError(f"the copy of {live} gave the answer {answer!r}")
    return FileCopy(size, mode, tuple(moved))


def _run(live: Path, target: Path, header_bytes: int, absent: Sequence[Path], timeout: float) -> dict[str, object]:
    size = size_of_live_file(live)
    task = {
        "live": str(live),
        "target": str(target),
        "header_bytes": header_bytes,
        "absent": [str(path) for path in absent],
    }
    limit = max(timeout, _LEAST_SECONDS) + size / _SLOWEST_BYTES_PER_SECOND
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", str(_COPIER), json.dumps(task)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CaptureError(
            f"copying {live} took longer than {limit:.0f} s and was stopped",
            hint="Check the disks of the live database and of the staging folder.",
        ) from error
    if child.returncode != 0:
        raise CaptureError(
            f"the process that copies {live} ended with {child.returncode}: {child.stderr.decode(errors='replace')}"
        )
    answer: dict[str, object] = json.loads(child.stdout)
    if "errno" in answer:
        raise _failure(live, target, answer)
    return answer


def _failure(live: Path, target: Path, answer: dict[str, object]) -> CaptureError:
    code, message = answer["errno"], answer["message"]
    if answer["where"] == "live":
        if code == errno.ENOENT:
            return LiveDatabaseMissing(f"{live} vanished while it was captured")
        return CaptureError(f"{live} can not be read: {message}", hint=_READABLE_HINT)
    hint = "Give the publisher a writable staging folder."
    if isinstance(code, int) and is_full(OSError(code, message)):
        hint = "Free disk space, or give the publisher a larger staging folder."
    return CaptureError(f"the staged copy {target} can not be written: {message}", hint=hint)
