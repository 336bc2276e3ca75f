"""A store whose publishers die where they are told to, once each."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from snapshot_assets.failpoints import Failpoints
from snapshot_assets.resources import SnapshotStoreResource

if TYPE_CHECKING:
    from snapshot_assets.publish.publisher import Publisher

__all__ = ["FatalStore", "at_work_on"]

_at_work: list[str] = []


def at_work_on(name: str) -> None:
    """Tell what this process works on from now on."""
    _at_work.append(name)


class FatalStore(SnapshotStoreResource):
    """Kills the first process that comes to a failpoint with what is to die there.

    Attributes:
        deaths: what dies at which failpoint.
        graves: a folder, where the dead leave a file.
    """

    deaths: dict[str, str]
    graves: str

    def open_publisher(self) -> Publisher:
        """A publisher like any other until it dies."""
        from snapshot_assets.publish.publisher import Publisher

        points = Failpoints({point: partial(self._die, point) for point in set(self.deaths.values())})
        return Publisher(self.open_store(), wait=self.wait, failpoints=points)

    def _die(self, point: str) -> None:
        name = _at_work[-1]
        grave = Path(self.graves) / f"{name} died"
        if self.deaths.get(name) == point and not grave.exists():
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
