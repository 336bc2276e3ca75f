"""Making a live Lance dataset small and fast to read: fewer files, and indexes that cover all rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import lance

from snapshot_assets.engines.contract import Optimized
from snapshot_assets.engines.lance_capture import sweep_tags, tagged
from snapshot_assets.engines.lance_copy import SYSTEM_INDEX, blob_columns
from snapshot_assets.engines.lance_live import LANCE_ERRORS, open_live
from snapshot_assets.errors import CaptureError, LiveDatabaseBusy

__all__ = ["optimize_live"]

_PAUSE_SECONDS: Final = 0.05


def optimize_live(live: Path, *, timeout: float) -> Optimized:
    """Compact small and half-empty fragments, and bring into the indexes what they do not cover.

    No version is removed, also where the dataset is set to clean up by itself whenever it is written to.

    Raises:
        LiveDatabaseMissing: there is nothing to optimize.
        LiveDatabaseBusy: other programs kept changing the same rows for `timeout` seconds.
        UnsupportedLiveDatabase: it is no Lance dataset.
        CaptureError: it could not be rewritten.
    """
    deadline = time.monotonic() + timeout
    while True:
        source = open_live(live)
        try:
            sweep_tags(source)
            # The clean-up of a dataset that has been set to do one gives up at a tag on a version it would remove.
            with tagged(source, min(reference["version"] for reference in source.version_refs())):
                return _optimize(source)
        except LANCE_ERRORS as error:
            if "conflict" not in str(error).lower():
                raise CaptureError(f"Lance can not optimize {live}: {error}") from error
            if time.monotonic() >= deadline:
                raise LiveDatabaseBusy(f"{live} was kept changing for {timeout:g} s: {error}") from error
        time.sleep(_PAUSE_SECONDS)


def _optimize(source: lance.LanceDataset) -> Optimized:
    before = source.version
    # First, because fragments that an index covers are not compacted with others that it does not cover.
    stale = _update_indexes(source)
    removed = added = 0
    blobs_stay = False
    try:
        metrics = source.optimize.compact_files()
        removed, added = metrics.fragments_removed, metrics.fragments_added
    except OSError as error:
        if "Not supported" not in str(error) or not blob_columns(source):
            raise
        blobs_stay = True
    # And again, because some kinds of indexes lose the fragments that were compacted.
    updated = stale.keys() | _update_indexes(source).keys()
    figures = {
        "fragments_removed": removed,
        "fragments_added": added,
        "indexes_updated": len(updated),
        "unindexed_rows": sum(stale.values()),
    }
    if source.version != before:
        detail = f"{removed} fragments became {added}, {len(updated)} indexes were brought up to date"
        return Optimized(None, detail, figures)
    if blobs_stay:
        return Optimized("blob_columns", "Lance does not compact the blob columns of this dataset", figures)
    return Optimized("nothing_to_do", "every fragment is compact, and every index covers every row", figures)


def _update_indexes(source: lance.LanceDataset) -> dict[str, int]:
    """Bring into the indexes what they do not cover; return those that were stale, with the rows that they lacked."""
    stale = _unindexed_rows(source)
    if stale:
        source.optimize.optimize_indices(index_names=list(stale))
    return stale


def _unindexed_rows(source: lance.LanceDataset) -> dict[str, int]:
    """The indexes that some fragments are not in, with the rows in those; an index that does not tell is none."""
    rows = {}
    for index in source.describe_indices():
        if not index.name.startswith(SYSTEM_INDEX):
            told = source.stats.index_stats(index.name)
            if told.get("num_unindexed_fragments"):
                rows[index.name] = int(told.get("num_unindexed_rows", 0))
    return rows
