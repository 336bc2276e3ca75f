"""What an engine promises while others write to the live database, and while readers query."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyarrow as pa

from snapshot_assets.engines.contract import Engine
from snapshot_assets.model.dataset import Dataset
from snapshot_assets.publish.publisher import Publisher
from snapshot_assets.store.snapshot_store import SnapshotStore
from snapshot_assets.testing.engine_on_stores import EngineOnStores, rows_in

__all__ = ["EngineUnderLoad"]

_MANY: Final = 4_000
"""Enough orders that the first and the last one lie apart."""

_ASK: Final = "select count(*) n, sum(id) total, max(case when id = 0 then name end) name from {}"
_SWAPS: Final = 5


class EngineUnderLoad(EngineOnStores):
    """Captures beside a writer, and swaps beneath queries."""

    def test_captures_beside_a_writer_hold_a_whole_prefix_of_its_transactions(
        self, engine: Engine, dataset: Dataset, store: SnapshotStore, tmp_path: Path
    ) -> None:
        with self.live(dataset) as connection:
            self.fill(connection, rows=_MANY)
            self.commit_numbered(connection, _MANY)
        committed = [_MANY]
        stop = threading.Event()

        def write() -> None:
            with engine.connect_live(dataset) as connection:
                while not stop.wait(self.writer_pause):
                    self.commit_numbered(connection, committed[-1] + 1)
                    committed.append(committed[-1] + 1)

        writer = threading.Thread(target=write)
        writer.start()
        publisher = Publisher(store)
        seen = {_MANY}
        try:
            publisher.publish(dataset)
            with self.reading(store, tmp_path / "data") as (reader, provider):
                for _ in range(5):
                    at_least = committed[-1]
                    publisher.publish(dataset)
                    at_most = committed[-1] + 1
                    reader.refresh("orders")
                    newest = _newest(provider.query(_ASK.format("orders")))
                    assert at_least <= newest <= at_most
                    seen.add(newest)
        finally:
            stop.set()
            writer.join(60)
        assert not writer.is_alive()
        assert len(seen) > 2
        with self.live(dataset) as connection:
            assert [row[0] for row in self.rows_of(connection)] == list(range(committed[-1] + 1))

    def test_swaps_under_load_fail_no_query_and_answer_none_wrong(
        self, dataset: Dataset, store: SnapshotStore, tmp_path: Path
    ) -> None:
        with self.live(dataset) as connection:
            self.fill(connection, rows=_MANY)
            self.commit_numbered(connection, _MANY)
        numbers = range(_MANY + 1, _MANY + 1 + _SWAPS)
        publisher = Publisher(store)
        publisher.publish(dataset)
        with self.reading(store, tmp_path / "data") as (reader, provider):

            def ask_lease() -> int:
                with provider.connect() as lease:
                    first = self.count_of(lease)
                    assert first == self.count_of(lease)
                rows, total = first
                assert total == rows * (rows - 1) // 2
                return rows - 1

            questions: tuple[Callable[[], int], ...] = (
                lambda: _newest(provider.query(_ASK.format("orders"))),
                lambda: _newest(reader.catalog.query(_ASK.format("orders.main.orders"))),
                ask_lease,
            )
            load = [_Asker(question) for question in questions]
            try:
                for number in numbers:
                    with self.live(dataset) as connection:
                        self.commit_numbered(connection, number)
                    publisher.publish(dataset)
                    assert reader.refresh("orders").outcome == "loaded"
                    for asker in load:
                        asker.wait_for(number)
            finally:
                for asker in load:
                    asker.stop()
        for asker in load:
            assert asker.failed is None, asker.failed
            assert asker.answers == sorted(asker.answers)
            assert set(asker.answers) >= set(numbers)


def _newest(table: pa.Table) -> int:
    """The number of the last transaction that an answer to `_ASK` holds; it must hold all of it, and all before it."""
    ((rows, total, name),) = rows_in(table)
    assert total == rows * (rows - 1) // 2
    assert name == str(rows - 1)
    return int(rows) - 1


class _Asker:
    """A thread that asks one question again and again."""

    def __init__(self, question: Callable[[], int]) -> None:
        self._question = question
        self._stop = threading.Event()
        self._answered = threading.Condition()
        self.answers: list[int] = []
        self.failed: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for(self, answer: int) -> None:
        """Wait until it has had this answer."""
        with self._answered:
            done = self._answered.wait_for(lambda: answer in self.answers or self.failed is not None, timeout=60)
        assert done, f"{answer} never came; it was {self.answers[-1:]}"

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                answer = self._question()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                self.failed = error
            else:
                self.answers.append(answer)
            with self._answered:
                self._answered.notify_all()
            if self.failed is not None:
                return
