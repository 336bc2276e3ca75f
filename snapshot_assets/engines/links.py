"""Staging immutable files of a live database without copying their bytes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from snapshot_assets.durable import is_full
from snapshot_assets.errors import CaptureError, LiveDatabaseMissing, UnsupportedLiveDatabase

__all__ = ["stage_file"]

_NO_LINK_POSSIBLE: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP})
_NOT_PLAIN: Final = frozenset({errno.ELOOP, errno.EISDIR})
_COPY_BYTES: Final = 4 * 1024 * 1024


def stage_file(live: Path, target: Path) -> int:
    """Make `target` hold the bytes of an immutable live file; return the mode bits of the live file.

    `target` becomes a hard link, which also keeps the bytes when the engine deletes the live file meanwhile; where no
    link is possible, as between file systems, it becomes a copy. Its folders are made. Whoever reads it must not write
    to it. Only for files that the engine never writes to again and keeps no locks on.

    Raises:
        LiveDatabaseMissing: the live file is not there.
        UnsupportedLiveDatabase: it is a link, or anything else than a plain file.
        CaptureError: it can not be read, or the target can not be made.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(live, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK_POSSIBLE:
                raise
            _copy(live, target)
        # What was linked is looked at under its new name, where nobody can replace it any more.
        found = target.lstat()
    except FileNotFoundError as error:
        raise LiveDatabaseMissing(f"{live} is not there, or vanished while it was captured") from error
    except OSError as error:
        raise _failure(live, target, error) from error
    if not stat.S_ISREG(found.st_mode):
        target.unlink()
        raise _not_plain(live)
    return stat.S_IMODE(found.st_mode)


def _copy(live: Path, target: Path) -> None:
    """Copy a plain file; links are not followed, and nothing is waited for at the end of a pipe."""
    with open(live, "rb", opener=_open_plain) as source:
        found = os.fstat(source.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _not_plain(live)
        with target.open("xb") as copy:
            try:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
                os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode))
            except BaseException:
                target.unlink()
                raise


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _not_plain(live: Path) -> UnsupportedLiveDatabase:
    return UnsupportedLiveDatabase(
        f"{live} is not a plain file",
        hint="Let the live database lie in one folder, without links out of it or within it.",
    )


def _failure(live: Path, target: Path, error: OSError) -> CaptureError | UnsupportedLiveDatabase:
    if error.errno in _NOT_PLAIN:
        return _not_plain(live)
    hint = "Let this process read the live database and write the staging folder."
    if is_full(error):
        hint = "Free disk space, or give the publisher a larger staging folder."
    return CaptureError(f"{live} can not be staged as {target}: {error.strerror}", hint=hint)
