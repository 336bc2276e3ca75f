"""What a run writes into the snapshots that it publishes, so that nothing is published twice and all can be traced."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import dagster as dg

__all__ = ["idempotency_key", "run_summary"]

_PARTITIONS: Final = (
    "dagster/partition",
    "dagster/asset_partition_range_start",
    "dagster/asset_partition_range_end",
)
"""Tags of the partitions that a run is for."""


def idempotency_key(
    instance: dg.DagsterInstance, run: dg.DagsterRun, asset_key: dg.AssetKey, partition_keys: Sequence[str]
) -> str:
    """The name of what a step wants done once: the same for every retry and re-execution of its run or backfill.

    The order of the partition keys does not matter: Dagster does not always hand them out in the same one. An asset
    without partitions is told apart by those of the run: each run of a backfill has it done anew.
    """
    tags = _first_tags(instance, run)
    parts = ["dagster", _origin(run, tags), asset_key.to_user_string()]
    keys = sorted(partition_keys) or [tags[name] for name in _PARTITIONS if name in tags]
    if len(keys) == 1:
        parts.append(keys[0])
    elif keys:
        digest = hashlib.blake2b("\0".join(keys).encode(), digest_size=8).hexdigest()
        parts.append(f"{keys[0]}...{keys[-1]} ({len(keys)}, {digest})")
    return ":".join(parts)


def _first_tags(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Mapping[str, str]:
    """The tags of the first run of all that a run repeats.

    Dagster takes those of a backfill off a run that is re-executed after its backfill has ended.
    """
    first = instance.get_run_by_id(run.root_run_id) if run.root_run_id else run
    return (first or run).tags


def _origin(run: dg.DagsterRun, tags: Mapping[str, str]) -> str:
    """What a run has in common with all that it repeats: the first backfill, or else the first run."""
    return tags.get("dagster/root_backfill_id") or tags.get("dagster/backfill") or run.root_run_id or run.run_id


def run_summary(run: dg.DagsterRun, asset_key: dg.AssetKey) -> dict[str, str]:
    """The run, job and asset that published, as the head keeps them with the snapshot."""
    return {
        "dagster.run_id": run.run_id,
        "dagster.job": run.job_name,
        "dagster.asset_key": asset_key.to_user_string(),
    }
