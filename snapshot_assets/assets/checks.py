"""Asset checks of what was published, made from the store itself."""

# Dagster reads the annotations of a check's function as objects, so they are not postponed here.
from collections.abc import Iterator, Sequence
from typing import Any, Final

import dagster as dg

from snapshot_assets.asset_metadata import asset_of, step_failure
from snapshot_assets.assets.check_kinds import (
    Finding,
    IntegrityCheck,
    Look,
    RowCountCheck,
    SchemaCheck,
    SnapshotCheck,
)
from snapshot_assets.assets.reader_lag import ReaderLagCheck
from snapshot_assets.clock import SYSTEM_CLOCK
from snapshot_assets.errors import ConfigurationError, NotFound, SnapshotAssetsError
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.resources.store import SnapshotStoreResource

__all__ = ["build_snapshot_checks"]

_USUAL: Final = (IntegrityCheck(), SchemaCheck(), RowCountCheck(), ReaderLagCheck())


def build_snapshot_checks(
    dataset: Dataset | str | dg.AssetsDefinition,
    checks: Sequence[SnapshotCheck] = _USUAL,
    *,
    asset_key: dg.AssetKey | Sequence[str] | str | None = None,
    store_key: str = "snapshot_store",
    automation_condition: dg.AutomationCondition[Any] | None = None,
) -> list[dg.AssetChecksDefinition]:
    """Build asset checks of what was published of a dataset, made from the store and not from the live database.

    They run after each materialization that selects them, by themselves from the UI, or under an automation condition.
    Each can be run alone. None blocks: the snapshot is visible by then. What must not become visible is for the
    dataset's validators.

    All that look at the head and the announcements share a step, which takes a few requests; each `IntegrityCheck`,
    which reads the whole snapshot, has a step of its own. A dataset without a current snapshot fails every check. What
    could not be looked at, because the store does not answer, say, fails the step with the reason and what to do, after
    all others were made.

    Example:
        .. code-block:: python

            checks = build_snapshot_checks(
                flights_snapshot, [IntegrityCheck(), RowCountCheck(max_drop=0.1), FreshnessCheck(max_age=26 * 3600)]
            )
            defs = dg.Definitions(assets=[flights_snapshot], asset_checks=checks, resources=...)

    Args:
        dataset: a dataset, its name, or an asset made by `snapshot_asset`.
        checks: what to check; by default integrity, schema, row counts and reader lag, each with its own defaults.
        asset_key: the asset that the checks belong to; by default that of the asset, else the dataset's name.
        store_key: the name of the `SnapshotStoreResource`.
        automation_condition: when Dagster runs them by itself, such as `AutomationCondition.on_cron("@daily")`.

    Raises:
        ConfigurationError: there are no checks, two have the same name, or the asset was not made by `snapshot_asset`.
    """
    name, key = asset_of(dataset)
    key = key if asset_key is None else dg.AssetKey.from_coercible(asset_key)
    if not checks or len({check.name for check in checks}) != len(checks):
        raise ConfigurationError(
            f"the checks of {name!r} are {[check.name for check in checks]}; each needs a name of its own",
            hint="Give at least one check, and a `name` to each of two checks of the same kind.",
            dataset=name,
        )
    steps: list[list[SnapshotCheck]] = [[check] for check in checks if isinstance(check, IntegrityCheck)]
    shared = [check for check in checks if not isinstance(check, IntegrityCheck)]
    return [_checks_of_a_step(name, key, step, store_key, automation_condition) for step in [shared, *steps] if step]


def _checks_of_a_step(
    dataset: str,
    key: dg.AssetKey,
    checks: Sequence[SnapshotCheck],
    store_key: str,
    automation_condition: dg.AutomationCondition[Any] | None,
) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            check.name, asset=key, description=check.description, automation_condition=automation_condition
        )
        for check in checks
    ]

    @dg.multi_asset_check(
        name=_step_name(key, checks),
        description=f"Looks at what the store has of {dataset!r}.",
        specs=specs,
        can_subset=True,
        required_resource_keys={store_key},
    )
    def look(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        wanted = {selected.name for selected in context.selected_asset_check_keys}
        resource: SnapshotStoreResource = getattr(context.resources, store_key)
        failed: list[SnapshotAssetsError] = []
        try:
            at = _look(resource, dataset)
        except SnapshotAssetsError as error:
            raise step_failure(error) from error
        for check in (check for check in checks if check.name in wanted):
            try:
                finding = check.look_at(at) if isinstance(at, Look) else at
            except SnapshotAssetsError as error:
                context.log.warning("%s could not be made: %s %s", check.name, error.message, error.hint)
                failed.append(error)
                continue
            yield dg.AssetCheckResult(
                passed=finding.passed,
                asset_key=key,
                check_name=check.name,
                severity=check.severity,
                description=finding.text,
                metadata=finding.metadata,
            )
        if failed:
            raise step_failure(failed[0]) from failed[0]

    return look


def _step_name(key: dg.AssetKey, checks: Sequence[SnapshotCheck]) -> str:
    """A name that no other step of the asset's checks has: the first check's, which belongs to this step alone."""
    more = "" if len(checks) == 1 else f"_and_{len(checks) - 1}_more"
    return f"{key.to_python_identifier()}__{checks[0].name}{more}"


def _look(resource: SnapshotStoreResource, dataset: str) -> Look | Finding:
    """What the checks look at; what each of them finds, when there is no current snapshot."""
    store = resource.open_store(read_only=True)
    try:
        head = store.head(dataset)
    except NotFound:
        return _unpublished(f"{dataset!r} was never published to {store.url}")
    if head.current is None:
        return _unpublished(f"{dataset!r} is {head.status.value} and has no current snapshot in {store.url}")
    return Look(store, head, head.current, SYSTEM_CLOCK.now_ms())


def _unpublished(text: str) -> Finding:
    return Finding(False, f"{text}.", {"check/hint": "Publish it, or remove its checks."})
