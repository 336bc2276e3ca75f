"""A reader tells the store who it is and what it serves, so that operators, rollouts and retention know of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from snapshot_assets.clock import Clock
from snapshot_assets.errors import AccessDenied, Conflict, DocumentDamaged, NotFound, StoreError
from snapshot_assets.ids import new_ulid, ulid_to_bytes
from snapshot_assets.model.announcement import Announced, Announcement, announcement_key
from snapshot_assets.reader.data_dir import replace_file
from snapshot_assets.reader.status import DatasetStatus
from snapshot_assets.store.contract import Store

__all__ = ["Announcer", "reader_id_of"]

_log = logging.getLogger(__name__)

_LONGEST_END: Final = 2.0
"""Seconds that the end of a reader waits for a store that does not answer."""

_LONGEST_ERROR: Final = 1000
"""Characters of an error that are announced: an announcement of thousands of datasets that fail must stay readable."""

_LEAST_PAUSE: Final = 1.0
"""Seconds between two announcements at least: datasets that swap together are announced together."""


def reader_id_of(data_dir: Path) -> str:
    """The id of the reader that owns a data folder, which is locked: made once, and the same across restarts.

    A file that can not be read or written costs the id, and nothing else.
    """
    path = data_dir / ".reader_id"
    try:
        found = path.read_bytes().decode(errors="replace").strip()
        ulid_to_bytes(found)
    except FileNotFoundError:
        pass
    except (OSError, DocumentDamaged) as error:
        _log.warning("the id of this reader can not be read from %s, it gets another one: %s", path, error)
    else:
        return found
    made = new_ulid()
    try:
        replace_file(path, made.encode())
    except OSError as error:
        # On a full disk what is there is served all the same.
        _log.warning("the id of this reader is not written down, the next start gets another one: %s", error)
    return made


class Announcer:
    """Keeps a reader's announcement up to date: soon after a change, and every `interval` seconds as a sign of life.

    Serving never waits for it, and no failure of it reaches serving. Without the permission to write it warns once and
    ends. `close` takes the announcement back, so that nobody counts on a reader that has ended.
    """

    def __init__(
        self,
        objects: Store,
        reader_id: str,
        status: Callable[[], Mapping[str, DatasetStatus]],
        *,
        interval: float,
        cohort: str | None,
        clock: Clock,
    ) -> None:
        self._objects = objects
        self._reader_id = reader_id
        self._key = announcement_key(reader_id)
        self._status = status
        self._interval = interval
        self._endpoint: str | None = None
        self._cohort = cohort
        self._clock = clock
        self._token: str | None = None
        self._left = False
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcing", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Announce soon what has changed; waits for nothing."""
        self._wake.set()

    def reached_at(self, endpoint: str | None) -> None:
        """Announce soon where control actions are answered, or that they are not any more."""
        self._endpoint = endpoint
        self._wake.set()

    def close(self) -> None:
        """End, and take the announcement back, unless the store takes longer than a moment: it is left behind then."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(_LONGEST_END)
        if self._thread.is_alive():
            # The next reader of this data folder has the same announcement; it is not this one's to delete any more.
            self._left = True
            _log.warning("the store does not answer; the announcement of this reader is left behind")

    def _run(self) -> None:
        while not self._clock.wait(self._stopped, _LEAST_PAUSE):
            self._wake.clear()
            try:
                self._announce()
            except AccessDenied as error:
                _log.warning("this reader can not announce itself, and serves all the same: %s", error)
                return
            except StoreError as error:
                _log.warning("this reader is not announced now: %s", error)
            self._clock.wait(self._wake, self._interval)
        if self._token is not None and not self._left:
            try:
                self._objects.delete([self._key])
            except StoreError as error:
                _log.warning("the announcement of this reader is left behind: %s", error)

    def _announce(self) -> None:
        announcement = Announcement(
            reader_id=self._reader_id,
            endpoint=self._endpoint,
            cohort=self._cohort,
            interval_ms=round(self._interval * 1000),
            announced_at_ms=self._clock.now_ms(),
            datasets={name: _announced(status) for name, status in self._status().items()},
        )
        data = announcement.to_bytes()
        if self._token is None:
            self._token = self._found()
        try:
            if self._token is None:
                self._token = self._objects.write_if_absent(self._key, data)
            else:
                self._token = self._objects.write_if_match(self._key, data, self._token)
        except Conflict:
            # Somebody removed it, or an answer of ours was lost: the next announcement looks first.
            self._token = None
            self._wake.set()

    def _found(self) -> str | None:
        try:
            return self._objects.read(self._key).token
        except NotFound:
            return None


def _announced(status: DatasetStatus) -> Announced:
    error = None
    if status.last_error is not None:
        error = f"{status.last_error.kind}: {status.last_error.message}"[:_LONGEST_ERROR]
    if status.current is None:
        return Announced(status.state, last_error=error)
    current = status.current
    return Announced(
        status.state, current.incarnation, current.generation, current.snapshot_id, error, pinned=current.pinned
    )
