"""A staged copy of one version of a live Lance dataset, made of hard links to its immutable files."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

import lance

from snapshot_assets.engines.contract import StagedFile
from snapshot_assets.engines.lance_copy import blob_columns
from snapshot_assets.engines.lance_live import LANCE_ERRORS, open_live
from snapshot_assets.engines.links import stage_file
from snapshot_assets.errors import (
    CaptureError,
    CorruptCapture,
    LiveDatabaseBusy,
    LiveDatabaseMissing,
    UnsupportedLiveDatabase,
)
from snapshot_assets.ids import new_operation_id
from snapshot_assets.model.manifest import Layout

__all__ = ["capture_version", "sweep_tags", "tagged"]

_TAG: Final = "snapshot-assets-"
_OUR_TAG: Final = re.compile(re.escape(_TAG) + "[0-9A-HJKMNP-TV-Z]{26}")
_PAUSE_SECONDS: Final = 0.02


class _Moved(Exception):
    """Others committed meanwhile, and may have cleaned up what was about to be staged."""


def capture_version(
    live: Path, staging: Path, folder: str, *, timeout: float
) -> tuple[lance.LanceDataset, tuple[StagedFile, ...]]:
    """Stage the files of the latest version beneath `staging/folder`; return that version of the live dataset too.

    Tags of dead captures are removed: the caller holds the write gate, so nobody else's capture is alive.

    Raises:
        LiveDatabaseMissing: there is none.
        LiveDatabaseBusy: other programs took each version away before it was staged, for `timeout` seconds.
        UnsupportedLiveDatabase: it is no Lance dataset, or files of it lie elsewhere.
        CorruptCapture: the latest version lacks a file.
        CaptureError: its folder can not be written, or the staged copy can not be made.
    """
    deadline = time.monotonic() + timeout
    while True:
        source = open_live(live)
        try:
            sweep_tags(source)
            with tagged(source, source.version):
                return source, _stage(source, live, staging, folder)
        except (_Moved, LiveDatabaseMissing, *LANCE_ERRORS) as error:
            shutil.rmtree(staging / folder, ignore_errors=True)
            if open_live(live).version == source.version:
                # Nobody took anything away: the latest version is never cleaned up.
                what = f"version {source.version} of {live} can not be captured: {error}"
                raise CorruptCapture(what) if isinstance(error, LiveDatabaseMissing) else CaptureError(what) from error
            if time.monotonic() >= deadline:
                raise LiveDatabaseBusy(
                    f"other programs kept cleaning up what was to be captured of {live} for {timeout:g} s: {error}"
                ) from error
        time.sleep(_PAUSE_SECONDS)


def sweep_tags(source: lance.LanceDataset) -> None:
    """Remove the tags that captures left behind when they were killed."""
    for name in source.tags.list():
        if _OUR_TAG.fullmatch(name):
            source.tags.delete(name)


@contextmanager
def tagged(source: lance.LanceDataset, version: int) -> Iterator[None]:
    """Keep a version from being cleaned up."""
    name = _TAG + new_operation_id()
    source.tags.create(name, version)
    try:
        yield
    finally:
        # One that can not be removed now is removed by the next capture.
        with suppress(*LANCE_ERRORS):
            source.tags.delete(name)


def _stage(source: lance.LanceDataset, live: Path, staging: Path, folder: str) -> tuple[StagedFile, ...]:
    staged = []
    paths = _listed_files(source, live)
    has_blob_files = any("kind" in told for told in blob_columns(source).values())
    if has_blob_files:
        paths += _blob_files(live, paths)
    for path in sorted(paths):
        target = staging / folder / path
        mode = stage_file(live / path, target)
        staged.append(StagedFile(f"{folder}/{path}", target, target.stat().st_size, mode, Layout.whole()))
    if has_blob_files and source.latest_version != source.version:
        # Nothing names the blob files, so one that was cleaned up before it was tagged would not be missed.
        raise _Moved("another version was committed")
    return tuple(staged)


def _listed_files(source: lance.LanceDataset, live: Path) -> list[str]:
    """The files that this version names. Earlier manifests, transactions and tags are history."""
    version = source.version
    rows = [
        row
        for row in source.tracked_files(min_version=version).read_all().to_pylist()
        if row["version"] == version and row["type"] != "transaction file"
    ]
    elsewhere = {row["base_uri"] for row in rows} - {str(live)}
    if elsewhere:
        raise UnsupportedLiveDatabase(
            f"files of {live} lie in {', '.join(sorted(elsewhere))}: it is a clone, a branch, or has other bases",
            hint="Publish the main branch of a dataset whose files all lie in its own folder, such as a deep_clone.",
        )
    return [row["path"] for row in rows]


def _blob_files(live: Path, paths: Sequence[str]) -> list[str]:
    """The files of large blobs, which lie in a folder of the name of their data file and are listed nowhere."""
    names = {PurePosixPath(path).stem for path in paths if path.startswith("data/")}
    folders = [entry for entry in (live / "data").iterdir() if entry.name in names] if names else []
    return [f"data/{folder.name}/{blob.name}" for folder in folders for blob in folder.iterdir()]
