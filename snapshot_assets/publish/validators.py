"""Validators: checks of the staged copy that stop a publish before anything is announced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from snapshot_assets.engines.sql import quoted
from snapshot_assets.errors import ConfigurationError, ValidationFailed
from snapshot_assets.model.dataset import Dataset, StagedCopy, Validator
from snapshot_assets.model.manifest import TableContent

__all__ = [
    "CheckResult",
    "NotNull",
    "RowCountAtLeast",
    "RowCountWithin",
    "Unique",
    "run_validators",
    "validator_names",
]

_SHOWN_ROWS = 3


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _quoted(table: str) -> str:
    """The name of a table, with the name of its schema and a dot before it if need be."""
    return ".".join(quoted(part) for part in table.split("."))


@dataclass(frozen=True, slots=True)
class RowCountAtLeast:
    """The table, or all tables together, must hold at least so many rows."""

    minimum: int
    table: str | None = None

    def __call__(self, staged: StagedCopy) -> str | None:
        counts = {name: content.row_count for name, content in staged.tables.items()}
        found = sum(counts.values()) if self.table is None else _count_of(counts, self.table)
        return None if found >= self.minimum else f"{_rows(found)}, at least {self.minimum} are asked for"


@dataclass(frozen=True, slots=True)
class RowCountWithin:
    """The row count may differ from the current snapshot's by at most so many percent. The first publish passes."""

    percent: float
    table: str | None = None

    def __call__(self, staged: StagedCopy) -> str | None:
        if staged.previous is None or (self.table is not None and self.table not in staged.previous):
            return None
        counts = {name: content.row_count for name, content in staged.tables.items()}
        if self.table is None:
            before, after = sum(staged.previous.values()), sum(counts.values())
        else:
            before, after = staged.previous[self.table], _count_of(counts, self.table)
        if abs(after - before) * 100 <= self.percent * before:
            return None
        return f"{_rows(after)} after {before}: more than {self.percent:g} % apart"


@dataclass(frozen=True, slots=True, init=False)
class _OfColumns:
    """What validators of some columns of a table are given."""

    table: str
    columns: tuple[str, ...]

    def __init__(self, table: str, *columns: str) -> None:
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "columns", columns)


class NotNull(_OfColumns):
    """No value of the columns may be null."""

    __slots__ = ()

    def __call__(self, staged: StagedCopy) -> str | None:
        wrong = " or ".join(f"{quoted(column)} is null" for column in self.columns)
        [(count,)] = staged.query(f"select count(*) from {_quoted(self.table)} where {wrong}")
        return f"{_rows(count)} of {self.table} with a null in {', '.join(self.columns)}" if count else None


class Unique(_OfColumns):
    """No two rows may agree in all of the columns."""

    __slots__ = ()

    def __call__(self, staged: StagedCopy) -> str | None:
        keys = ", ".join(quoted(column) for column in self.columns)
        duplicates = f"select 1 from {_quoted(self.table)} group by {keys} having count(*) > 1"
        [(count,)] = staged.query(f"select count(*) from ({duplicates}) as duplicates")
        if not count:
            return None
        stand = "1 key stands" if count == 1 else f"{count} keys stand"
        return f"{stand} more than once in {self.table} ({', '.join(self.columns)})"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one validator found. Recorded in the manifest, and shown as an asset check in Dagster."""

    name: str
    passed: bool
    finding: str = ""

    def to_json(self) -> dict[str, Any]:
        """The result as the manifest stores it."""
        return {"name": self.name, "passed": self.passed, "finding": self.finding}


class _Staged:
    """The staged copy, as validators see it. What was there before is looked up when one asks for it."""

    def __init__(
        self,
        tables: Mapping[str, TableContent],
        previous: Callable[[], Mapping[str, int] | None],
        query: Callable[[str], list[tuple[Any, ...]]],
    ) -> None:
        self.tables = tables
        self.query = query
        self._previous = previous

    @cached_property
    def previous(self) -> Mapping[str, int] | None:
        return self._previous()


def _count_of(counts: Mapping[str, int], table: str) -> int:
    if table not in counts:
        raise ConfigurationError(
            f"a validator names the table {table!r}; there are {', '.join(sorted(counts)) or 'none'}"
        )
    return counts[table]


def validator_names(validators: Sequence[Validator]) -> tuple[str, ...]:
    """A name for each validator: that of its class or function, or `sql`; the second of a name has the number 2."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for validator in validators:
        kind = "sql" if isinstance(validator, str) else getattr(validator, "__name__", type(validator).__name__)
        words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind).strip("_")
        name = "".join(letter if letter.isalnum() else "_" for letter in words) or "validator"
        seen[name] += 1
        while (numbered := name if seen[name] == 1 else f"{name}_{seen[name]}") in names:
            seen[name] += 1
        names.append(numbered)
    return tuple(names)


def _find(validator: Validator, staged: StagedCopy) -> str | None:
    if not isinstance(validator, str):
        return validator(staged)
    rows = staged.query(validator)
    if not rows:
        return None
    shown = "; ".join(str(row) for row in rows[:_SHOWN_ROWS])
    return f"{_rows(len(rows))} where none may be: {shown}{' ...' if len(rows) > _SHOWN_ROWS else ''}"


def run_validators(
    dataset: Dataset,
    tables: Mapping[str, TableContent],
    previous: Callable[[], Mapping[str, int] | None],
    query: Callable[[str], list[tuple[Any, ...]]],
) -> Sequence[CheckResult]:
    """Run every validator of the dataset on its staged copy.

    Returns:
        One passed result a validator.

    Raises:
        ValidationFailed: at least one found something, or could not be run; `results` names all of them.
    """
    staged = _Staged(tables, previous, query)
    results = []
    for name, validator in zip(validator_names(dataset.validators), dataset.validators, strict=True):
        try:
            finding = _find(validator, staged)
        except Exception as error:  # noqa: BLE001  (a validator is a user's code and may raise anything)
            finding = f"it could not be run: {error}"
        results.append(CheckResult(name, finding is None, finding or ""))
    failed = [result for result in results if not result.passed]
    if failed:
        findings = "; ".join(f"{result.name}: {result.finding}" for result in failed)
        refusal = ValidationFailed(f"{dataset.name!r} was not published. {findings}", dataset=dataset.name)
        refusal.results = tuple(results)
        raise refusal
    return results
