"""When what is downstream of snapshots should run."""

from __future__ import annotations

from typing import Any

import dagster as dg

__all__ = ["snapshot_changed"]


def snapshot_changed() -> dg.AutomationCondition[Any]:
    """The automation condition of what is downstream of snapshots: once for each change of their content.

    `AutomationCondition.eager()` runs for every materialization of a dependency, also for a publish that found nothing
    changed; this one runs when a dependency's data version changed, which for a snapshot is its content. Like `eager()`
    it waits while a dependency is missing or in progress, looks at the latest time partition only, fills partitions
    that become missing, and leaves alone what was materialized along with its dependency, by hand or by a backfill.
    Unlike `eager()` it never runs along with a dependency that is about to be materialized, since nobody knows yet
    whether that will change anything, and a change that arrives just after it was requested is not lost: it runs once
    more.

    Observations, such as those of sensors and reloads, change nothing. A dependency that sets no data version of its
    own counts as changed whenever it is materialized. A job that always runs both needs no condition; with one, it may
    run once more after the job.

    Example:
        .. code-block:: python

            @dg.asset(deps=[flights_snapshot], automation_condition=snapshot_changed())
            def delays(snapshots: SnapshotReaderResource): ...
    """
    condition = dg.AutomationCondition
    changed = condition.any_deps_match(condition.data_version_changed() & ~condition.executed_with_root_target())
    wanted = (condition.newly_missing() | changed).with_label("missing_or_any_deps_changed")
    handled = (condition.newly_requested() | condition.newly_updated()).with_label("handled")
    return (
        condition.in_latest_time_window()
        & wanted.since(condition.initial_evaluation()).with_label("wanted")
        # in this order: where both happen between two looks, the change came after what handled the last one
        & ~handled.since(wanted).with_label("handled_since_wanted")
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
    ).with_label("snapshot_changed")
