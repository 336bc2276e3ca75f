"""Which snapshot of a dataset the steps of one run read, whatever process and host each of them is in.

The event log of the run decides, because all steps share it and it has an order. A step that finds nothing there says
which snapshot is the newest, and then takes what the first such event of the run says, be it its own or another step's.
What the run itself publishes shows in its materializations, and counts from then on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import dagster as dg

__all__ = ["Chosen", "RunReads"]

_SAYS: Final = "This run reads snapshot {snapshot_id} of {head_url} (incarnation {incarnation})."
_SAID: Final = re.compile(r"This run reads snapshot (\d+) of (.+) \(incarnation (\w+)\)\.")

_RESUMES: Final = ("dagster/is_resume_retry", "dagster/is_asset_resume_retry")
"""Tags of a run that takes over what its parent had finished."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A snapshot of a dataset; the incarnation is not known of what a run published itself."""

    snapshot_id: int
    incarnation: str | None


class RunReads:
    """What one run reads. Every step makes its own object; they agree.

    Args:
        instance: where the run's events are.
        run: the run.
    """

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
        self._instance = instance
        self._run = run

    def choose(self, head_url: str, newest: Callable[[], Chosen | None]) -> Chosen | None:
        """The snapshot that this run reads now: the newest that it published; else what its first read found.

        A run that resumes a failed one goes on with what that one published and read.

        Args:
            head_url: where the dataset's head is: the dataset, in one store of many.
            newest: the newest snapshot; called by the first read of the run. None: nothing is published yet.
        """
        run_ids = list(self._run_ids())
        published = [number for run_id in run_ids for number in self._published(run_id, head_url)]
        if published:
            # Not the last: of two steps that publish side by side, the earlier one may be recorded later.
            return Chosen(max(published), None)
        for run_id in run_ids:
            found = self._read_first(run_id, head_url)
            if found is not None:
                return found
        proposed = newest()
        if proposed is None:
            return None
        said = _SAYS.format(snapshot_id=proposed.snapshot_id, head_url=head_url, incarnation=proposed.incarnation)
        self._instance.report_engine_event(said, self._run)
        return self._read_first(self._run.run_id, head_url) or proposed

    def _run_ids(self) -> Iterator[str]:
        """This run, and those that it resumes, the latest first."""
        run: dg.DagsterRun | None = self._run
        while run is not None:
            yield run.run_id
            parent = None if run.parent_run_id is None else self._instance.get_run_by_id(run.parent_run_id)
            run = parent if parent is not None and _resumes(run, parent) else None

    def _published(self, run_id: str, head_url: str) -> Iterator[int]:
        for event in self._instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            made = event.asset_materialization
            if made is None:
                continue
            place, snapshot_id = made.metadata.get("dagster/uri"), made.metadata.get("snapshot/id")
            if place is not None and place.value == head_url and snapshot_id is not None:
                yield int(str(snapshot_id.value))

    def _read_first(self, run_id: str, head_url: str) -> Chosen | None:
        for event in self._instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            said = _SAID.fullmatch((event.dagster_event.message if event.dagster_event else None) or "")
            if said is not None and said[2] == head_url:
                return Chosen(int(said[1]), said[3])
        return None


def _resumes(run: dg.DagsterRun, parent: dg.DagsterRun) -> bool:
    """Whether a run executes a part of its parent's steps only, and takes the rest as the parent left it."""
    if any(run.tags.get(tag) == "true" for tag in _RESUMES):
        return True
    steps, all_steps = run.step_keys_to_execute, parent.step_keys_to_execute
    return steps is not None and (all_steps is None or set(steps) < set(all_steps))
