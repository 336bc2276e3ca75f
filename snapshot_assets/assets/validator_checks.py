"""The validators of a dataset as Dagster's blocking asset checks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from snapshot_assets.errors import NotFound, ValidationFailed
from snapshot_assets.model.dataset import Dataset, Validator

if TYPE_CHECKING:
    from snapshot_assets.publish.publisher import PublishResult
    from snapshot_assets.publish.validators import CheckResult
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["own_checks_not_run", "passed_validators", "refused_validators", "validator_specs"]


def validator_specs(dataset: Dataset, key: dg.AssetKey) -> Iterator[dg.AssetCheckSpec]:
    """A blocking check of the asset for each validator of the dataset."""
    for name, validator in zip(_check_names(dataset), dataset.validators, strict=True):
        yield dg.AssetCheckSpec(name, asset=key, blocking=True, description=_describe(validator))


def _describe(validator: Validator) -> str:
    if isinstance(validator, str):
        return f"No row may be found by: {validator}"
    text = inspect.getdoc(validator) or "A validator of the staged copy."
    built_in: Any = validator
    if not is_dataclass(built_in):
        return text
    settings = ((setting.name, getattr(built_in, setting.name)) for setting in fields(built_in))
    shown = (
        f"{name} {', '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in settings
        if value is not None
    )
    return f"{text} Asked for: {'; '.join(shown)}."


def _check_names(dataset: Dataset) -> tuple[str, ...]:
    from snapshot_assets.publish.validators import validator_names

    return validator_names(dataset.validators)


def refused_validators(error: ValidationFailed) -> Iterator[dg.AssetCheckResult]:
    """What each validator found of a copy that was refused."""
    return (_refused(check, error.hint) for check in error.results)


def _refused(check: CheckResult, hint: str) -> dg.AssetCheckResult:
    if check.passed:
        return dg.AssetCheckResult(passed=True, check_name=check.name)
    return dg.AssetCheckResult(
        passed=False,
        check_name=check.name,
        description=f"{check.finding[:1].upper()}{check.finding[1:]}{'' if check.finding.endswith('.') else '.'}",
        metadata={
            "check/consequence": "Nothing was published: readers go on with the snapshot that they serve.",
            "check/hint": hint,
        },
    )


def passed_validators(store: SnapshotStore, dataset: Dataset, result: PublishResult) -> list[dg.AssetCheckResult]:
    """The validators of a publish that went through; of an earlier one only those that its snapshot has recorded."""
    recorded = None
    if dataset.validators and result.outcome == "already_published":
        recorded = _recorded_checks(store, result)
    return [
        dg.AssetCheckResult(passed=True, check_name=name)
        if recorded is None or name in recorded
        else _not_run(name, f"snapshot {result.snapshot_id} was published before, without this validator")
        for name in _check_names(dataset)
    ]


def own_checks_not_run(
    specs: Iterable[dg.AssetCheckSpec], dataset: Dataset, result: PublishResult
) -> list[dg.AssetCheckResult]:
    """The asset's own checks, of which a step that published before knows nothing; Dagster wants a result of each."""
    why = f"this step published snapshot {result.snapshot_id} before, and a step that has published does nothing again"
    validators = set(_check_names(dataset))
    return [_not_run(spec.name, why) for spec in specs if spec.name not in validators]


def _not_run(name: str, why: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=False,
        check_name=name,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"It did not run: {why}.",
        metadata={"check/hint": "Materialize the asset in a new run, which publishes anew."},
    )


def _recorded_checks(store: SnapshotStore, result: PublishResult) -> set[str]:
    """The names of the checks that a snapshot bears; none if retention was faster than we."""
    from snapshot_assets.content.snapshot import read_manifest

    try:
        entry = store.head(result.dataset).entry_of_operation(result.operation_id)
    except NotFound:
        return set()
    if entry is None:
        return set()
    manifest = read_manifest(
        store.objects, result.dataset, result.incarnation, result.operation_id, entry.manifest_digest
    )
    return {str(check["name"]) for check in manifest.checks}
