"""A reload run as it goes on: its plan is made, its stages are judged, and what it finds is recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from snapshot_assets.errors import Conflict, SnapshotAssetsError
from snapshot_assets.resources.fleet import FleetReader
from snapshot_assets.sensors.asking import Asker, Wanted
from snapshot_assets.sensors.record import Plan, Record, observation_of
from snapshot_assets.sensors.rollout import Answer, Planned, Rollout, assigned, served_before

if TYPE_CHECKING:
    from snapshot_assets.resources.store import SnapshotStoreResource
    from snapshot_assets.sensors.reload import ReloadTarget

__all__ = ["Progress", "planned_reload", "told"]

_NAMED: Final = 5


def planned_reload(context: dg.OpExecutionContext, asker: Asker, target: ReloadTarget, rollout: Rollout | None) -> Plan:
    """Find the readers of a dataset, see what they serve, and divide them into stages.

    Raises:
        ConfigurationError: the fleet or the policy can not work.
        StoreError: the store in which readers announce themselves does not answer.
    """
    fleet = asker.fleet.find(target.dataset)
    for one in fleet.not_called:
        context.log.warning("%s is not called: %s.", one.name, one.reason.rstrip("."))
    found = _by_step(fleet.readers)
    answering: dict[str, Mapping[str, Any]] = {}
    readers: list[tuple[str, FleetReader, str | None]] = []
    for key, status in asker.statuses(found).items():
        reader, cohort = found[key], found[key].cohort
        if not isinstance(status, SnapshotAssetsError):
            if target.dataset not in status["datasets"] and target.dataset not in status["missing"]:
                context.log.info("%s does not follow %r and is left out.", reader.endpoint, target.dataset)
                continue
            answering[key] = status
            cohort = status.get("cohort") or cohort
        readers.append((key, reader, cohort))
    if rollout is None:
        planned = [Planned(key, reader, cohort, "") for key, reader, cohort in readers]
    else:
        planned = assigned(readers, answering, rollout)
    before = served_before(answering.values(), target.dataset, target.generation, target.incarnation)
    return Plan(Wanted(target.dataset, target.generation), tuple(planned), fleet.not_called, before)


def _by_step(readers: Sequence[FleetReader]) -> dict[str, FleetReader]:
    """The readers by the name of their step: readable, and each unlike any other."""
    named: dict[str, FleetReader] = {}
    for reader in readers:
        endpoint = reader.endpoint
        base = re.sub(r"\W+", "_", endpoint.partition("://")[2] or endpoint, flags=re.ASCII).strip("_") or "reader"
        key, count = base, 1
        while key in named:
            count += 1
            key = f"{base}_{count}"
        named[key] = reader
    return named


@dataclass(slots=True)
class Progress:
    """What a step knows of its run, and adds to it.

    Attributes:
        asker: asks the readers.
        asset_key: whose page tells what became of them.
        record: what is known so far.
        observations: what was added, for the step to yield: what it only logs is lost when it fails.
    """

    asker: Asker
    asset_key: dg.AssetKey
    record: Record
    observations: list[dg.AssetObservation] = field(default_factory=list)

    def note(self, answers: Mapping[str, Answer]) -> None:
        """Add what became of readers."""
        for key, answer in answers.items():
            one = self.record.plan.of(key)
            self.observations.append(observation_of(self.asset_key, one, answer, self.record.wanted))
        self.record = self.record.adding(answers)

    def ask_again(self, keys: Iterable[str]) -> None:
        """Ask readers of the plan once more."""
        readers = {key: self.record.plan.of(key).reader for key in keys}
        self.note(self.asker.ask_all(readers, self.record.wanted))

    def judge(self, stage: str, rollout: Rollout) -> None:
        """Look whether the readers of a stage are well, for as long as the policy says."""
        readers = self.record.readers(stage)
        if not self.record.own & readers.keys():
            # The run executes a failed one again from here, so the steps of these readers are not executed anew.
            self.ask_again(self.record.failed(stage))
        sick = self.asker.watch(readers, self.record.wanted, rollout.health, rollout.soak)
        failed = self.record.failed(stage)
        self.ask_again(key for key in failed if key not in sick)
        self.note({key: said for key, said in sick.items() if key not in failed})

    def stop(self, stage: str, store: SnapshotStoreResource | None) -> dg.Failure:
        """End the rollout: roll back when a store is given, and say what happened on the run and the asset's page."""
        wanted, failed, count = self.record.wanted, self.record.failed(stage), len(self.record.readers(stage))
        sentences = [
            f"The rollout of {wanted} stopped at {stage}: {len(failed)} of {count} readers failed: {told(failed)}"
        ]
        left = [one.reader.endpoint for one in self.record.plan.planned if one.key not in self.record.answers]
        if left:
            sentences.append(f"Not asked, and serving what they did: {_listed(left)}.")
        if store is not None:
            sentences.append(self._roll_back(store))
        description, table = " ".join(sentences), self.record.table
        outcome: dict[str, Any] = {"reload/outcome": "stopped", "reload/stage": stage, "reload/summary": table}
        self.observations.append(dg.AssetObservation(self.asset_key, description=description, metadata=outcome))
        numbers = {"failed": len(failed), "not_asked": len(left)}
        return dg.Failure(description, metadata={**numbers, "summary": table}, allow_retries=False)

    def _roll_back(self, store: SnapshotStoreResource) -> str:
        """Make what readers served before current again, have those that took the new one follow, and say so."""
        from snapshot_assets.maintenance.maintenance import Maintenance

        wanted, before = self.record.plan.wanted, self.record.plan.before
        if wanted.generation is None:
            return "Nothing was rolled back: the run was asked for the newest generation, and for none by its number."
        if before is None:
            return f"Nothing was rolled back: no reader told what it served of {wanted.dataset!r} before."
        try:
            opened = store.open_store()
            if opened.head(wanted.dataset).current_snapshot_id == before:
                # Else a check that refuses everything would roll back what it has rolled back, without end.
                return f"Nothing was rolled back: snapshot {before} is what readers served before, too."
            undo = Maintenance(opened).rollback(wanted.dataset, before, expected_generation=wanted.generation)
        except Conflict:
            return f"Nothing was rolled back: the head is not at generation {wanted.generation} any more."
        except SnapshotAssetsError as error:
            return f"It could not be rolled back to snapshot {before}: {error.message} {error.hint}"
        took = [
            key
            for key, said in self.record.answers.items()
            if said.generation is not None and said.generation >= wanted.generation
        ]
        plan = replace(self.record.plan, wanted=replace(wanted, generation=undo.generation))
        self.record = replace(self.record, plan=plan)
        self.ask_again(took)
        failed = {key: self.record.answers[key] for key in took if self.record.answers[key].failed}
        return (
            f"Rolled back to snapshot {before} (generation {undo.generation}); "
            f"{len(took) - len(failed)} of {len(took)} readers that had taken the new one went back."
        ) + (f" Not yet: {told(failed)}" if failed else "")


def told(failed: Mapping[str, Answer]) -> str:
    """Who failed, and why, in a sentence."""
    return _listed([f"{said.endpoint} ({said.outcome}: {said.reason.rstrip('.')})" for said in failed.values()]) + "."


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
