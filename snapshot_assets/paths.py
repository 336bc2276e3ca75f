"""Paths that users give, and where they lead."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from snapshot_assets.errors import ConfigurationError

__all__ = ["real_path"]


def real_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path with all links followed, whether or not anything is there.

    Raises:
        ConfigurationError: the system knows no such path, or its links lead in a circle.
    """
    try:
        real = Path(os.path.realpath(path))
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{os.fspath(path)!r} is not a path: {error}") from error
    try:
        real.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigurationError(f"{path} leads into a loop of links") from error
    return real
