"""The child process that copies a live file; see `copying`. It runs alone, on nothing but the standard library.

It takes one JSON object as its argument and answers with one JSON object on standard output. The copy is not synced to
the disk: a staged copy is of no use after a crash, and the write gate waits for this process.
"""

import errno
import fcntl
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FICLONE = 0x40049409
_PIECE = 8 * 1024 * 1024


def _look(descriptor: int, header_bytes: int) -> "list[Any]":
    found = os.fstat(descriptor)
    header = os.pread(descriptor, header_bytes, 0)
    return [found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev, header.hex()]


def _standing(paths: list[str]) -> list[str]:
    """The names of the paths that exist."""
    return [os.path.basename(path) for path in paths if os.path.lexists(path)]  # noqa: PTH119


def _copy_range(source: int, target: int, size: int) -> None:
    offset = 0
    while offset < size:
        copied = os.copy_file_range(source, target, size - offset, offset, offset)
        if copied == 0:
            return
        offset += copied


def _write(source: int, target: int, size: int) -> None:
    offset = 0
    while offset < size:
        piece = os.pread(source, min(_PIECE, size - offset), offset)
        if not piece:
            return
        while piece:
            written = os.pwrite(target, piece, offset)
            piece, offset = piece[written:], offset + written


def _copy(source: int, target: int, size: int) -> None:
    """Copy the first `size` bytes the cheapest way that the file systems allow."""
    unable = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EBADF, errno.EPERM}
    ways = (lambda: fcntl.ioctl(target, _FICLONE, source), lambda: _copy_range(source, target, size))
    for way in ways:
        try:
            way()
        except OSError as error:
            if error.errno not in unable:
                raise
        else:
            os.ftruncate(target, size)
            return
    _write(source, target, size)


def main(task: "dict[str, Any]") -> "dict[str, Any]":
    """Look, copy, look again: the copy is good when both looks are the same and no side file stands there."""
    live, target_path, header_bytes, absent = task["live"], task["target"], task["header_bytes"], task["absent"]
    where = "live"
    try:
        source = os.open(live, os.O_RDONLY | os.O_CLOEXEC)
        before = _look(source, header_bytes)
        answer: dict[str, Any] = {"size": before[0], "mode": os.fstat(source).st_mode & 0o777}
        where = "target"
        target = os.open(target_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        standing = _standing(absent)
        if not standing:
            _copy(source, target, before[0])
            standing = _standing(absent)
        os.close(target)
        where = "live"
        if _look(source, header_bytes) != before or os.stat(live).st_ino != before[2]:  # noqa: PTH116
            standing.append("the file changed")
        answer["moved"] = standing
    except OSError as error:
        return {"errno": error.errno, "where": where, "message": os.strerror(error.errno or 0)}
    return answer


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))))
