"""What a run writes into the snapshots that it publishes, so that nothing is published twice and all can be traced."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import dagster as dg

__all__ = ["idempotency_key", "run_summary"]


def idempotency_key(
    instance: dg.DagsterInstance, run: dg.DagsterRun, asset_key: dg.AssetKey, partition_keys: Sequence[str]
) -> str:
    """The name of what a step wants done once: the same for every retry and re-execution of its run or backfill.

    The order of the partition keys does not matter: Dagster does not always hand them out in the same one.
    """
    parts = ["dagster", _origin(instance, run), asset_key.to_user_string()]
    keys = sorted(partition_keys)
    if len(keys) == 1:
        parts.append(keys[0])
    elif keys:
        digest = hashlib.blake2b("\0".join(keys).encode(), digest_size=8).hexdigest()
        parts.append(f"{keys[0]}...{keys[-1]} ({len(keys)}, {digest})")
    return ":".join(parts)


def _origin(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """What a run has in common with all that it repeats: the first backfill, or else the first run."""
    first = instance.get_run_by_id(run.root_run_id) if run.root_run_id else run
    # Dagster takes these tags off a run that is re-executed after its backfill has ended, so the first run is asked.
    tags = (first or run).tags
    return tags.get("dagster/root_backfill_id") or tags.get("dagster/backfill") or run.root_run_id or run.run_id


def run_summary(run: dg.DagsterRun, asset_key: dg.AssetKey) -> dict[str, str]:
    """The run, job and asset that published, as the head keeps them with the snapshot."""
    return {
        "dagster.run_id": run.run_id,
        "dagster.job": run.job_name,
        "dagster.asset_key": asset_key.to_user_string(),
    }
