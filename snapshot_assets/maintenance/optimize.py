"""Optimizing: the engine rewrites the live database, and an ordinary publish makes the result a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from snapshot_assets.engines.contract import SkipReason
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.publish.result import PublishResult

__all__ = ["SUMMARY_KEY", "OptimizeResult", "optimize_and_publish"]

SUMMARY_KEY: Final = "optimize"
"""Under this name the summary of a snapshot in the head tells what the engine did."""


@dataclass(frozen=True, slots=True)
class OptimizeResult:
    """What became of a live database and, when it was rewritten, of the snapshot that holds it now.

    Attributes:
        dataset: what was optimized.
        outcome: `optimized` when the live database was rewritten, else `skipped`.
        skipped: why it was left as it is.
        detail: what the engine did, or why it did nothing, in words.
        figures: what the engine counted before and after, by name.
        publish: the publish of what was rewritten; none when it was skipped.
        seconds: by phase, those of the publish included.
    """

    dataset: str
    outcome: Literal["optimized", "skipped"]
    skipped: SkipReason | None
    detail: str
    figures: Mapping[str, int]
    publish: PublishResult | None
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The result as the command line prints it."""
        return {
            "dataset": self.dataset,
            "outcome": self.outcome,
            "skipped": self.skipped,
            "detail": self.detail,
            "figures": dict(self.figures),
            "publish": None if self.publish is None else self.publish.to_json(),
            "seconds": {phase: round(spent, 6) for phase, spent in self.seconds.items()},
        }


def optimize_and_publish(publisher: Publisher, dataset: Dataset) -> OptimizeResult:
    """Rewrite a live database and publish it, under one writer lease; see `Maintenance.optimize`."""
    with publisher.writing(dataset) as writing:
        done = writing.optimize()
        published = None if done.skipped else writing.publish(summary={SUMMARY_KEY: done.detail})
        return OptimizeResult(
            dataset.name,
            "skipped" if done.skipped else "optimized",
            done.skipped,
            done.detail,
            dict(done.figures),
            published,
            writing.seconds,
        )
