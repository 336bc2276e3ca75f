"""The validators of a dataset as Dagster's blocking asset checks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from snapshot_assets.errors import NotFound, ValidationFailed
from snapshot_assets.model.dataset import Dataset, Validator

if TYPE_CHECKING:
    from snapshot_assets.publish.publisher import PublishResult
    from snapshot_assets.publish.validators import CheckResult
    from snapshot_assets.store.snapshot_store import SnapshotStore

__all__ = ["passed_validators", "refused_validators", "validator_specs"]


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


def _check_names(dataset: Dataset) -> Iterator[str]:
    from snapshot_assets.publish.validators import validator_name

    for position, validator in enumerate(dataset.validators):
        yield validator_name(validator, position)


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
        else dg.AssetCheckResult(
            passed=False,
            check_name=name,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"It did not run: snapshot {result.snapshot_id} was published before, without this validator.",
            metadata={"check/hint": "Materialize the asset in a new run, which publishes anew."},
        )
        for name in _check_names(dataset)
    ]


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
