"""Which rows of a table belong to partitions: as a SQL condition for databases, as an expression for Arrow scans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from snapshot_assets.errors import ConfigurationError

__all__ = ["Condition", "PartitionRows", "Values", "Windows", "check_all_belong", "partition_rows"]


@dataclass(frozen=True, slots=True)
class Windows:
    """The rows whose time lies in one of some windows, each from its start up to, and without, its end."""

    expr: str
    windows: tuple[dg.TimeWindow, ...]


@dataclass(frozen=True, slots=True)
class Values:
    """The rows that have one of some values, given as text."""

    expr: str
    values: tuple[str, ...]


Condition = Windows | Values


@dataclass(frozen=True, slots=True)
class PartitionRows:
    """The rows of some partitions: those that meet all conditions of one of the `alternatives`.

    Attributes:
        keys: the partition keys, sorted.
        alternatives: one condition for each dimension of the partitions.
    """

    keys: tuple[str, ...]
    alternatives: tuple[tuple[Condition, ...], ...]

    def where(self, condition: Callable[[Condition], str]) -> str:
        """The rows as one SQL condition, made of those of the engine's own dialect."""
        met = (" and ".join(f"({condition(one)})" for one in alternative) for alternative in self.alternatives)
        return " or ".join(f"({alternative})" for alternative in met) or "1 = 0"


def partition_rows(
    partitions_def: dg.PartitionsDefinition[Any], keys: Iterable[str], partition_expr: object, asset_key: dg.AssetKey
) -> PartitionRows:
    """The rows of some partitions of an asset.

    Args:
        partitions_def: how the asset is partitioned.
        keys: the partitions.
        partition_expr: the asset's metadata of this name: a column or SQL expression; with two dimensions, one a
            dimension by its name.
        asset_key: named in errors.

    Raises:
        ConfigurationError: `partition_expr` is missing, or does not fit the partitions.
    """
    chosen = tuple(sorted(keys))
    if not isinstance(partitions_def, dg.MultiPartitionsDefinition):
        if not isinstance(partition_expr, str):
            raise _no_expression(asset_key, '"partition_expr": "<the column of the partition>"')
        return PartitionRows(chosen, ((_condition(partitions_def, chosen, partition_expr),),) if chosen else ())
    dimensions = {dimension.name: dimension.partitions_def for dimension in partitions_def.partitions_defs}
    exprs = partition_expr if isinstance(partition_expr, Mapping) else {}
    if not all(isinstance(exprs.get(name), str) for name in dimensions):
        wanted = ", ".join(f'"{name}": "<its column>"' for name in dimensions)
        raise _no_expression(asset_key, f'"partition_expr": {{{wanted}}}')
    return PartitionRows(
        chosen,
        tuple(
            tuple(_condition(dimensions[name], part, exprs[name]) for name, part in zip(dimensions, parts, strict=True))
            for parts in _rectangles([_by_dimension(partitions_def, key, list(dimensions)) for key in chosen])
        ),
    )


def check_all_belong(strangers: int, part: PartitionRows, table: str) -> None:
    """Refuse rows that belong to none of the partitions: nothing would ever replace them.

    Raises:
        ConfigurationError: there are some.
    """
    if strangers:
        keys = part.keys[0] if len(part.keys) == 1 else f"{part.keys[0]} to {part.keys[-1]}"
        raise ConfigurationError(
            f"{strangers} rows for {table} do not belong to the partition {keys}; nothing was written",
            hint="Return the rows of the partition only, or correct the asset's partition_expr.",
        )


def _no_expression(asset_key: dg.AssetKey, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"the asset {asset_key.to_user_string()!r} has partitions, and nothing says which of its rows are whose",
        hint=f"Add the metadata {{{wanted}}} to the asset.",
    )


def _by_dimension(partitions_def: dg.MultiPartitionsDefinition, key: str, dimensions: Sequence[str]) -> tuple[str, ...]:
    known = key if isinstance(key, dg.MultiPartitionKey) else partitions_def.get_partition_key_from_str(key)
    return tuple(known.keys_by_dimension[name] for name in dimensions)


def _rectangles(keys: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs of keys as few products of one dimension's keys with the other's."""
    of_second: dict[str, list[str]] = {}
    for first, second in keys:
        of_second.setdefault(second, []).append(first)
    with_first: dict[tuple[str, ...], list[str]] = {}
    for second, firsts in of_second.items():
        with_first.setdefault(tuple(sorted(firsts)), []).append(second)
    return [(firsts, tuple(seconds)) for firsts, seconds in with_first.items()]


def _condition(partitions_def: dg.PartitionsDefinition[Any], keys: Sequence[str], expr: str) -> Condition:
    if not isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        return Values(expr, tuple(keys))
    windows: list[dg.TimeWindow] = []
    for window in sorted(map(partitions_def.time_window_for_partition_key, keys), key=lambda one: one.start):
        if windows and windows[-1].end == window.start:
            windows[-1] = dg.TimeWindow(windows[-1].start, window.end)
        else:
            windows.append(window)
    return Windows(expr, tuple(windows))
