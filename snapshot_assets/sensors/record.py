"""What a reload run has written down of itself: its plan and what became of each reader, read back from its events.

The steps of a run hand each other no values. What an earlier step found is read from the run's events, and
from those of the run that it executes again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import dagster as dg

from snapshot_assets.asset_metadata import markdown_table
from snapshot_assets.resources.fleet import FleetReader, NotCalled
from snapshot_assets.sensors.asking import Wanted
from snapshot_assets.sensors.rollout import Answer, Outcome, Planned, summary

__all__ = ["Plan", "Record", "failure_of", "observation_of", "plan_metadata", "recorded"]

_PLAN: Final = "plan"


@dataclass(frozen=True, slots=True)
class Plan:
    """Who will be asked for what, and when.

    Attributes:
        wanted: what they are asked for.
        planned: the readers, in the order of their stages.
        not_called: those that are only named.
        before: the snapshot that the readers served before; nothing when none did.
    """

    wanted: Wanted
    planned: tuple[Planned, ...]
    not_called: tuple[NotCalled, ...] = ()
    before: int | None = None

    def of(self, key: str) -> Planned:
        """The reader of a step."""
        [found] = [one for one in self.planned if one.key == key]
        return found

    def to_json(self) -> dict[str, Any]:
        """The plan as the planning step's metadata holds it."""
        return {
            "dataset": self.wanted.dataset,
            "generation": self.wanted.generation,
            "before": self.before,
            "readers": [
                {
                    "key": one.key,
                    "endpoint": one.reader.endpoint,
                    "tls_hostname": one.reader.tls_hostname,
                    "cohort": one.cohort,
                    "stage": one.stage,
                }
                for one in self.planned
            ],
            "not_called": [[one.name, one.cohort, one.reason] for one in self.not_called],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """Read it back."""
        return cls(
            Wanted(content["dataset"], content["generation"]),
            tuple(
                Planned(
                    one["key"],
                    FleetReader(one["endpoint"], one["cohort"], one["tls_hostname"]),
                    one["cohort"],
                    one["stage"],
                )
                for one in content["readers"]
            ),
            tuple(NotCalled(*one) for one in content["not_called"]),
            content["before"],
        )


def plan_metadata(plan: Plan) -> dict[str, Any]:
    """The plan for the run page, as a table and for the steps that follow."""
    rows = [(one.reader.endpoint, one.cohort or "", one.stage) for one in plan.planned]
    rows += [(one.name, one.cohort or "", f"not called: {one.reason}") for one in plan.not_called]
    return {
        "readers": len(plan.planned),
        "summary": dg.MetadataValue.md(markdown_table(("reader", "cohort", "stage"), rows) if rows else "No reader."),
        _PLAN: dg.MetadataValue.json(plan.to_json()),
    }


@dataclass(frozen=True, slots=True)
class Record:
    """A plan and what has become of it so far.

    Attributes:
        plan: the plan.
        answers: what became of each reader that was asked, by its step.
        own: which of them were asked, or looked at, by this very run.
    """

    plan: Plan
    answers: Mapping[str, Answer]
    own: frozenset[str]

    @property
    def wanted(self) -> Wanted:
        """What readers are asked for; when that is the newest, what the first of them found."""
        known = [answer.generation for answer in self.answers.values() if answer.generation is not None]
        if self.plan.wanted.generation is None and known:
            return replace(self.plan.wanted, generation=max(known))
        return self.plan.wanted

    @property
    def table(self) -> dg.MarkdownMetadataValue:
        """Who serves what."""
        return dg.MetadataValue.md(summary(self.plan.planned, self.answers, self.plan.not_called))

    def readers(self, stage: str) -> dict[str, FleetReader]:
        """The readers of a stage."""
        return {one.key: one.reader for one in self.plan.planned if one.stage == stage}

    def failed(self, stage: str | None = None) -> dict[str, Answer]:
        """What failed, in a stage or in all."""
        of_stage = self.answers if stage is None else self.readers(stage)
        return {key: said for key, said in self.answers.items() if key in of_stage and said.failed}

    def adding(self, answers: Mapping[str, Answer]) -> Record:
        """The record with what this run has found since."""
        merged = dict(self.answers)
        for key, said in answers.items():
            merged[key] = _newer(merged.get(key), said)
        return Record(self.plan, merged, self.own | answers.keys())


def _newer(before: Answer | None, said: Answer) -> Answer:
    """The later of two answers; what only the earlier one tells stays when the later found it unwell."""
    if before is None or said.outcome != "unhealthy":
        return said
    return replace(said, fetched_bytes=before.fetched_bytes, seconds=before.seconds)


def observation_of(asset_key: dg.AssetKey, one: Planned, said: Answer, wanted: Wanted) -> dg.AssetObservation:
    """What became of a reader, for the asset's page."""
    metadata: dict[str, Any] = {"reader/endpoint": said.endpoint}
    texts = {
        "cohort": one.cohort,
        "stage": one.stage,
        "outcome": said.outcome,
        "snapshot_id": said.snapshot_id,
        "generation": said.generation,
        "reason": said.reason,
        "error": said.error,
        "hint": said.hint,
    }
    metadata |= {f"reader/{name}": str(value) for name, value in texts.items() if value not in {None, ""}}
    if said.fetched_bytes is not None and said.seconds is not None:
        metadata |= {"reader/fetched_bytes": said.fetched_bytes, "reader/reload_seconds": said.seconds}
    description = f"{said.endpoint} serves snapshot {said.snapshot_id} (generation {said.generation})."
    if said.failed:
        description = str(failure_of(said, wanted).description)
    return dg.AssetObservation(asset_key, description=description, metadata=metadata)


def failure_of(said: Answer, wanted: Wanted) -> dg.Failure:
    """What a reader's failure says."""
    words = {
        "slow": "is slow and does not serve",
        "unreachable": "can not be reached and does not serve",
        "unhealthy": "is not well with",
    }
    metadata = {
        "reader/endpoint": said.endpoint,
        "reader/outcome": said.outcome,
        "error": said.error,
        "hint": said.hint,
    }
    return dg.Failure(
        f"{said.endpoint} {words.get(said.outcome, 'does not serve')} {wanted}: {said.reason}",
        metadata={name: value for name, value in metadata.items() if value},
        allow_retries=False,
    )


def recorded(context: dg.OpExecutionContext) -> Record:
    """What the run has written down so far, with what the runs that it executes again did since the plan."""
    plan, runs = _planned(context)
    by_endpoint = {one.reader.endpoint: one.key for one in plan.planned}
    record = Record(plan, {}, frozenset())
    for run_id in reversed(runs):
        record = replace(record, own=frozenset())
        for metadata in _observed(context.instance, run_id):
            key = by_endpoint.get(str(_value(metadata, "endpoint")))
            if key is not None:
                record = record.adding({key: _answer(metadata)})
    return record


def _planned(context: dg.OpExecutionContext) -> tuple[Plan, list[str]]:
    """The plan, and the runs since it was made: this one first."""
    runs: list[str] = []
    run: dg.DagsterRun | None = context.run
    while run is not None:
        runs.append(run.run_id)
        for record in context.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_OUTPUT):
            event = record.dagster_event
            if event is not None and event.step_output_data.output_name == _PLAN:
                content = event.step_output_data.metadata[_PLAN].value
                return Plan.from_json(cast("Mapping[str, Any]", content)), runs
        run = None if run.parent_run_id is None else context.instance.get_run_by_id(run.parent_run_id)
    raise dg.Failure("The plan of this run is not in the event log any more; launch the job anew.", allow_retries=False)


def _observed(instance: dg.DagsterInstance, run_id: str) -> Iterator[Mapping[str, dg.MetadataValue[Any]]]:
    for record in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION):
        event = record.dagster_event
        if event is not None:
            yield event.asset_observation_data.asset_observation.metadata


def _answer(metadata: Mapping[str, dg.MetadataValue[Any]]) -> Answer:
    snapshot_id, generation = _value(metadata, "snapshot_id"), _value(metadata, "generation")
    return Answer(
        str(_value(metadata, "endpoint")),
        cast("Outcome", _value(metadata, "outcome")),
        None if snapshot_id is None else int(snapshot_id),
        None if generation is None else int(generation),
        _value(metadata, "fetched_bytes"),
        _value(metadata, "reload_seconds"),
        str(_value(metadata, "reason") or ""),
        str(_value(metadata, "error") or ""),
        str(_value(metadata, "hint") or ""),
    )


def _value(metadata: Mapping[str, dg.MetadataValue[Any]], name: str) -> Any:
    found = metadata.get(f"reader/{name}")
    return None if found is None else found.value
