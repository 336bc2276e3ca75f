"""What is kept beside the data passes from generation to generation, or stays with what goes on being served."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from snapshot_assets.errors import ConfigurationError, HandoffFailed, NotLoaded, ReaderError
from snapshot_assets.maintenance.maintenance import Maintenance
from snapshot_assets.model.head import Status
from snapshot_assets.reader.handoff import FormatCheck, Generation, IndexHandoff, StreamHandoff
from snapshot_assets.reader.reader import SnapshotReader
from snapshot_assets.reader.settings import HandoffOutcome
from tests.reader.test_swaps_under_load import Load
from tests.reader.world import World, wait_until


def version(generation: Any) -> int:
    (row,) = generation.query("select distinct v from orders").to_pylist()
    return int(row["v"])


@dataclass
class Steps:
    """What a hand-off did, in order; `fails` and `first` break and hold up its steps."""

    calls: list[tuple[str, object]] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    first: dict[str, Callable[[], object]] = field(default_factory=dict)

    def note(self, step: str, detail: object = None) -> None:
        self.calls.append((step, detail))
        self.first.get(step, bool)()
        if step in self.fails:
            raise ValueError(f"{step} is broken")

    @property
    def names(self) -> list[str]:
        return [step for step, _ in self.calls]


@dataclass(eq=False)
class Handle:
    version: int
    history: str = ""
    closed: bool = False


class Check:
    def __init__(self, steps: Steps | None = None, name: str = "") -> None:
        self.steps = steps or Steps()
        self.name = name

    def check_compat(self, old: Generation, new: Generation) -> None:
        self.steps.note(f"{self.name}check_compat", (old.current.generation, new.current.generation))


class Index(Check):
    """A handle knows the version of its data, and all versions that came before it."""

    def __init__(self, steps: Steps | None = None, name: str = "") -> None:
        super().__init__(steps, name)
        self.handles: list[Handle] = []

    def open(self, state: bytes | None, generation: Generation) -> Handle:
        self.steps.note(f"{self.name}open", state)
        found = version(generation)
        handle = Handle(found, f"{(state or b'').decode()}{found}")
        self.handles.append(handle)
        return handle

    def persist(self, handle: Handle) -> bytes:
        self.steps.note(f"{self.name}persist", handle.version)
        return handle.history.encode()

    def close(self, handle: Handle) -> None:
        handle.closed = True
        self.steps.note(f"{self.name}close", handle.version)


class Stream(Check):
    """Its position counts its starts; two that run at once are a failure."""

    def __init__(self, steps: Steps | None = None, name: str = "") -> None:
        super().__init__(steps, name)
        self.running = 0

    def start(self, position: int | None, generation: Generation) -> Handle:
        self.steps.note(f"{self.name}start", position)
        assert self.running == 0
        self.running += 1
        return Handle(version(generation), str((position or 0) + 1))

    def checkpoint(self, handle: Handle) -> int:
        self.steps.note(f"{self.name}checkpoint", handle.version)
        self.running -= 1
        return int(handle.history)

    def close(self, handle: Handle) -> None:
        handle.closed = True
        self.steps.note(f"{self.name}close", handle.version)


class Gate:
    """Holds up who comes, until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(20.0)


class Background:
    """Calls in a thread, and tells how it ended."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def end(self) -> Any:
        self.thread.join(20.0)
        assert not self.thread.is_alive()
        return self.result


def following(world: World, **settings: Any) -> SnapshotReader:
    world.orders(1)
    reader = world.reader(**settings)
    reader.follow("orders")
    return reader


def test_the_kinds_are_told_apart_by_their_methods() -> None:
    index: IndexHandoff[Handle] = Index()
    stream: StreamHandoff[Handle, int] = Stream()
    check: FormatCheck = Check()
    assert isinstance(index, IndexHandoff)
    assert not isinstance(index, StreamHandoff)
    assert isinstance(stream, StreamHandoff)
    assert not isinstance(stream, IndexHandoff)
    assert not isinstance(check, IndexHandoff | StreamHandoff)


def test_an_index_is_persisted_and_opened_again_from_the_same_bytes(world: World) -> None:
    reader = following(world)
    index = Index()
    search = reader.register("orders", "search", index)
    world.orders(2)
    result = reader.refresh("orders")
    assert index.steps.calls[:4] == [("open", None), ("check_compat", (1, 2)), ("persist", 1), ("open", b"1")]
    assert result.handoffs == (HandoffOutcome("search", "index", "current"),)
    assert result.generation == 2
    lease = reader.follow("orders").connect()
    with lease:
        assert search.beside(lease).history == "12"


def test_a_lease_has_the_handle_of_its_own_generation_until_it_ends(world: World) -> None:
    reader = following(world)
    index = Index()
    search = reader.register("orders", "search", index)
    provider = reader.follow("orders")
    old, new = provider.connect(), provider.connect()
    with old as connection:
        world.orders(2)
        reader.refresh("orders")
        with new:
            assert (search.beside(old).version, search.beside(new).version) == (1, 2)
        assert connection.execute("select distinct v from orders").fetchall() == [(1,)]
        assert not index.handles[0].closed
    assert wait_until(lambda: index.handles[0].closed)
    assert not index.handles[1].closed
    with pytest.raises(NotLoaded, match="search"):
        search.beside(old)
    reader.close()
    assert index.handles[1].closed


def test_a_stream_goes_on_from_its_position_on_the_new_generation(world: World) -> None:
    reader = following(world)
    stream = Stream()
    cursor = reader.register("orders", "cursor", stream)
    with cursor.use() as first:
        assert first.version == 1
    world.orders(2)
    reader.refresh("orders")
    assert stream.steps.names == ["start", "check_compat", "checkpoint", "close", "start"]
    assert stream.steps.calls[-1] == ("start", 1)
    with cursor.use() as second:
        assert (second.version, first.closed, second.closed) == (2, True, False)
    reader.close()
    assert stream.running == 0
    assert second.closed
    with pytest.raises(NotLoaded), cursor.use():
        pass


def test_all_checks_come_first_then_indexes_then_streams(world: World) -> None:
    reader = following(world)
    steps = Steps()
    reader.register("orders", "cursor", Stream(steps, "stream."))
    reader.register("orders", "search", Index(steps, "index."))
    reader.register("orders", "rule", Check(steps, "rule."))
    steps.calls.clear()
    world.orders(2)
    reader.refresh("orders")
    assert wait_until(lambda: "index.close" in steps.names)
    assert sorted(steps.names[:3]) == ["index.check_compat", "rule.check_compat", "stream.check_compat"]
    in_order = [name for name in steps.names[3:] if name != "index.close"]
    assert in_order == ["index.persist", "index.open", "stream.checkpoint", "stream.close", "stream.start"]


@pytest.mark.parametrize("step", ["check_compat", "persist", "open", "checkpoint"])
def test_what_fails_before_the_swap_leaves_everything_as_it_was(world: World, step: str) -> None:
    reader = following(world)
    provider = reader.follow("orders")
    handoff: Any = Stream() if step == "checkpoint" else Index()
    other_index, other_stream = Index(), Stream()
    search = reader.register("orders", "other index", other_index)
    cursor = reader.register("orders", "other stream", other_stream)
    reader.register("orders", "broken", handoff)
    with cursor.use() as handle:
        before = handle.history
    published = world.orders(2)
    handoff.steps.fails.add(step)
    with pytest.raises(HandoffFailed, match=f"'broken' .* failed at {step}: ValueError: {step} is broken") as raised:
        reader.refresh("orders")
    assert (version(provider), provider.current.generation) == (1, 1)
    lease = provider.connect()
    with lease:
        assert search.beside(lease) is other_index.handles[0]
    outcomes = {outcome.name: outcome for outcome in raised.value.outcomes}
    assert {name: outcome.state for name, outcome in outcomes.items()} == dict.fromkeys(outcomes, "current")
    assert [(name, outcome.step) for name, outcome in outcomes.items() if outcome.error] == [("broken", step)]
    assert reader.status()["orders"].handoffs == raised.value.outcomes
    last_error = reader.status()["orders"].last_error
    assert last_error is not None
    assert last_error.kind == "HandoffFailed"
    with cursor.use() as handle:
        assert handle.version == 1
        assert int(handle.history) == int(before) + (step == "checkpoint")
    assert all(handle.closed for handle in other_index.handles[1:])
    assert wait_until(lambda: not reader.status()["orders"].draining)

    handoff.steps.fails.clear()
    result = reader.refresh("orders")
    assert (result.outcome, result.fetched_bytes, result.generation) == ("loaded", 0, published.generation)
    assert version(provider) == 2
    assert {outcome.error for outcome in result.handoffs} == {None}
    assert other_stream.running == 1


def test_a_stream_that_does_not_start_is_reported_and_started_by_a_later_refresh(world: World) -> None:
    reader = following(world)
    stream = Stream()
    cursor = reader.register("orders", "cursor", stream)
    world.orders(2)
    stream.steps.fails.add("start")
    result = reader.refresh("orders")
    assert (result.outcome, result.generation) == ("loaded", 2)
    stopped = HandoffOutcome("cursor", "stream", "stopped", "start", "ValueError: start is broken")
    assert result.handoffs == reader.status()["orders"].handoffs == (stopped,)
    with pytest.raises(NotLoaded, match="cursor"), cursor.use():
        pass
    result = reader.refresh("orders")
    assert (result.outcome, result.handoffs) == ("not_modified", (stopped,))
    stream.steps.fails.clear()
    result = reader.refresh("orders")
    assert (result.outcome, result.handoffs) == ("not_modified", (HandoffOutcome("cursor", "stream", "current"),))
    assert [position for step, position in stream.steps.calls if step == "start"] == [None, 1, 1, 1]
    with cursor.use() as handle:
        assert handle.version == 2
    assert reader.refresh("orders").handoffs == ()


def test_polling_starts_a_stopped_stream_though_nothing_is_published(world: World) -> None:
    reader = following(world, refresh_interval=0.05)
    stream = Stream()
    reader.register("orders", "cursor", stream)
    stream.steps.fails.add("start")
    world.orders(2)
    assert wait_until(lambda: stream.steps.names.count("start") > 2)
    stream.steps.fails.clear()
    assert wait_until(lambda: reader.status()["orders"].handoffs[0].state == "current")


def test_a_stream_that_starts_nowhere_any_more_keeps_its_position(world: World) -> None:
    reader = following(world)
    first, second = Stream(), Stream()
    reader.register("orders", "first", first)
    reader.register("orders", "second", second)
    world.orders(2)
    second.steps.fails.add("checkpoint")
    first.steps.fails.add("start")
    with pytest.raises(HandoffFailed, match="'second'") as raised:
        reader.refresh("orders")
    assert [(one.name, one.state, one.step) for one in raised.value.outcomes] == [
        ("first", "stopped", "start"),
        ("second", "current", "checkpoint"),
    ]
    first.steps.fails.clear()
    second.steps.fails.clear()
    assert {one.state for one in reader.refresh("orders").handoffs} == {"current"}
    assert first.steps.calls[-1] == ("start", 1)


@pytest.mark.parametrize("step", ["check_compat", "persist", "open", "checkpoint", "start"])
def test_a_slow_hand_off_stops_no_query(world: World, step: str) -> None:
    reader = following(world)
    provider = reader.follow("orders")
    index = Index()
    search = reader.register("orders", "search", index)
    stream = Stream()
    cursor = reader.register("orders", "cursor", stream)
    gate = Gate()
    slow = index if step in {"persist", "open"} else stream
    slow.steps.first[step] = gate
    world.orders(2)
    refreshing = Background(lambda: reader.refresh("orders"))
    assert gate.entered.wait(20.0)
    lease = provider.connect()
    with lease as connection:
        (found,) = connection.execute("select distinct v from orders").fetchone()
        assert found == (2 if step == "start" else 1) == search.beside(lease).version
    assert reader.catalog.query("select count(*) c from orders.main.orders").to_pylist() == [{"c": 1_000}]
    assert reader.status()["orders"].current is not None
    handles: list[int] = []

    def use() -> None:
        with cursor.use() as handle:
            handles.append(handle.version)

    using = Background(use)
    gate.opened.set()
    assert refreshing.end().generation == 2
    using.end()
    # While it was handed over the use waited; before that it had the old one.
    assert handles == ([2] if step in {"checkpoint", "start"} else handles)
    assert set(handles) <= {1, 2}
    assert version(provider) == 2


def test_uses_of_a_stream_that_do_not_end_stop_the_reload_and_not_the_stream(world: World) -> None:
    reader = following(world)
    stream = Stream()
    cursor = reader.register("orders", "cursor", stream, drain_timeout=0.05)
    world.orders(2)
    with cursor.use() as handle:
        with pytest.raises(HandoffFailed, match="'cursor' .* failed at drain: TimeoutError: 1 uses did not end"):
            reader.refresh("orders")
        assert version(reader.follow("orders")) == 1
        with cursor.use() as same:
            assert same is handle
    assert stream.steps.names == ["start", "check_compat"]
    assert reader.refresh("orders").outcome == "loaded"


def test_a_stream_that_is_cut_over_does_not_wait_for_its_uses(world: World) -> None:
    reader = following(world)
    cursor = reader.register("orders", "cursor", Stream(), drain_timeout=0.05, on_drain_timeout="cut_over")
    world.orders(2)
    with cursor.use() as handle:
        assert reader.refresh("orders").outcome == "loaded"
        assert handle.closed
    with cursor.use() as handle:
        assert handle.version == 2


def test_what_is_registered_during_a_swap_stands_beside_the_new_generation(world: World) -> None:
    reader = following(world)
    gate = Gate()
    first = Index()
    reader.register("orders", "first", first)
    first.steps.first["persist"] = gate
    world.orders(2)
    refreshing = Background(lambda: reader.refresh("orders"))
    assert gate.entered.wait(20.0)
    second = Index()
    registering = Background(lambda: reader.register("orders", "second", second))
    gate.opened.set()
    refreshing.end()
    registering.end()
    assert [handle.version for handle in second.handles] == [2]
    world.orders(3)
    reader.refresh("orders")
    assert second.handles[-1].history == "23"


def test_what_is_registered_before_following_opens_with_the_first_generation(world: World) -> None:
    world.orders(1)
    reader = world.reader()
    index = Index()
    search = reader.register("orders", "search", index)
    index.steps.fails.add("open")
    with pytest.raises(HandoffFailed, match="open is broken"):
        reader.follow("orders")
    assert reader.status() == {}
    index.steps.fails.clear()
    lease = reader.follow("orders").connect()
    with lease:
        assert search.beside(lease).version == 1
    assert "check_compat" not in index.steps.names


def test_a_restart_opens_them_without_the_store(world: World) -> None:
    world.orders(1)
    with world.reader() as reader:
        reader.follow("orders")
    world.faults.calls.clear()
    reader = world.reader()
    index, stream = Index(), Stream()
    reader.register("orders", "search", index)
    reader.register("orders", "cursor", stream)
    index.steps.fails.add("open")
    with pytest.raises(HandoffFailed):
        reader.follow("orders")
    index.steps.fails.clear()
    reader.follow("orders")
    assert not world.faults.calls
    assert [handle.version for handle in index.handles] == [1]
    assert stream.running == 1


def test_a_rollback_is_handed_over_like_any_other_generation(world: World) -> None:
    reader = following(world)
    index, stream = Index(), Stream()
    reader.register("orders", "search", index)
    cursor = reader.register("orders", "cursor", stream)
    world.orders(2)
    reader.refresh("orders")
    Maintenance(world.plain).rollback("orders", 0)
    assert reader.refresh("orders").generation == 3
    assert index.handles[-1].history == "121"
    with cursor.use() as handle:
        assert (handle.version, handle.history) == (1, "3")


@pytest.mark.parametrize("step", ["open", "checkpoint", "start"])
def test_a_close_in_the_middle_loses_no_position_and_leaves_nothing_open(world: World, step: str) -> None:
    reader = following(world)
    index, stream = Index(), Stream()
    reader.register("orders", "search", index)
    cursor = reader.register("orders", "cursor", stream)
    gate = Gate()
    (index if step == "open" else stream).steps.first[step] = gate
    world.orders(2)
    refreshing = Background(lambda: reader.refresh("orders"))
    assert gate.entered.wait(20.0)
    closing = Background(reader.close)
    assert wait_until(reader._closed.is_set)
    gate.opened.set()
    refreshing.end()
    closing.end()
    assert closing.error is None
    if step == "start":
        assert refreshing.error is None
    else:
        assert type(refreshing.error) is ReaderError
    assert stream.running == 0
    assert stream.steps.names[-2:] == ["checkpoint", "close"]
    assert all(handle.closed for handle in index.handles)
    with pytest.raises(NotLoaded), cursor.use():
        pass
    with pytest.raises(ReaderError, match="closed"):
        reader.register("orders", "late", Index())


def test_an_end_stops_a_stream_also_when_it_does_not_want_to(world: World, caplog: pytest.LogCaptureFixture) -> None:
    reader = following(world)
    stream = Stream()
    cursor = reader.register("orders", "cursor", stream)
    with cursor.use() as handle:
        pass
    stream.steps.fails.update({"checkpoint", "close"})
    with caplog.at_level(logging.WARNING, "snapshot_assets.reader"):
        reader.close()
    assert handle.closed
    assert "checkpoint is broken" in caplog.text
    assert "close is broken" in caplog.text


def test_an_unloaded_dataset_keeps_the_position_for_its_next_generation(world: World) -> None:
    reader = following(world, on_dropped="unload")
    index, stream = Index(), Stream()
    reader.register("orders", "search", index)
    reader.register("orders", "cursor", stream)
    world.change_head("orders", lambda head: {"status": Status.DROPPED, "generation": head.generation + 1})
    reader.refresh("orders")
    assert stream.running == 0
    assert wait_until(lambda: index.handles[0].closed)
    assert {one.state for one in reader.status()["orders"].handoffs} == {"waiting"}
    world.change_head("orders", lambda head: {"status": Status.ACTIVE, "generation": head.generation + 1})
    result = reader.refresh("orders")
    assert {one.state for one in result.handoffs} == {"current"}
    assert stream.steps.calls[-1] == ("start", 1)


def test_what_was_removed_takes_part_no_more(world: World) -> None:
    reader = following(world)
    index, stream = Index(), Stream()
    search = reader.register("orders", "search", index)
    cursor = reader.register("orders", "cursor", stream)
    lease = reader.follow("orders").connect()
    with lease:
        search.remove()
        cursor.remove()
        assert search.beside(lease).version == 1
    assert stream.running == 0
    world.orders(2)
    assert reader.refresh("orders").handoffs == ()
    assert wait_until(lambda: index.handles[0].closed)
    assert index.steps.names == ["open", "close"]
    reader.register("orders", "search", Index())


def test_a_stream_that_can_not_be_stopped_stays_registered(world: World) -> None:
    reader = following(world)
    stream = Stream()
    cursor = reader.register("orders", "cursor", stream)
    stream.steps.fails.add("checkpoint")
    with pytest.raises(HandoffFailed, match="stays registered"):
        cursor.remove()
    with cursor.use() as handle:
        assert not handle.closed
    stream.steps.fails.clear()
    cursor.remove()
    assert stream.running == 0


def test_what_can_not_be_registered_is_refused_and_leaves_nothing(world: World) -> None:
    class Both(Index, Stream):
        pass

    reader = following(world)
    reader.register("orders", "search", Index())
    with pytest.raises(ConfigurationError, match="'search' already"):
        reader.register("orders", "search", Index())
    for wrong in (object(), Both()):
        with pytest.raises(ConfigurationError, match="no single kind"):
            reader.register("orders", "other", wrong)  # type: ignore[call-overload]
    for wrong_option in ({"drain_timeout": -1}, {"on_drain_timeout": "kill"}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong_option))):
            reader.register("orders", "other", Stream(), **wrong_option)
    index, stream = Index(), Stream()
    index.steps.fails.add("open")
    stream.steps.fails.add("start")
    for broken in (index, stream):
        with pytest.raises(HandoffFailed, match="nothing is registered"):
            reader.register("orders", "other", broken)
    assert [one.name for one in reader.status()["orders"].handoffs] == ["search"]


def test_a_generation_outlives_its_time_for_nobody(world: World) -> None:
    kept: list[Generation] = []

    class Keeps(Stream):
        def start(self, position: int | None, generation: Generation) -> Handle:
            kept.append(generation)
            return super().start(position, generation)

    reader = following(world)
    reader.register("orders", "cursor", Keeps())
    assert version(kept[0]) == 1
    assert kept[0].tables == reader.follow("orders").tables
    world.orders(2)
    reader.refresh("orders")
    with pytest.raises(ReaderError, match="generation 1 is served no more"):
        version(kept[0])
    assert version(kept[1]) == 2


def test_swaps_with_hand_offs_fail_no_query_and_answer_none_wrong(world: World) -> None:
    reader = following(world)
    provider = reader.follow("orders")
    index, stream = Index(), Stream()
    search = reader.register("orders", "search", index)
    cursor = reader.register("orders", "cursor", stream)

    def ask() -> bool:
        lease = provider.connect()
        with lease as connection:
            found = connection.execute("select distinct v from orders").fetchall()
            handle = search.beside(lease)
            return found == [(handle.version,)] and not handle.closed

    def use() -> bool:
        with cursor.use() as handle:
            return not handle.closed

    with Load([ask, ask, use]) as load:
        for number in range(2, 10):
            if number % 3 == 0:
                index.steps.fails.add("open" if number % 2 else "persist")
                world.orders(number)
                with pytest.raises(HandoffFailed):
                    reader.refresh("orders")
                index.steps.fails.clear()
            else:
                world.orders(number)
            assert reader.refresh("orders").outcome == "loaded"
    assert load.failed == []
    assert load.wrong == 0
    assert len(load.asked) > 50
    assert version(provider) == 9
    reader.close()
    assert all(handle.closed for handle in index.handles)
    assert stream.running == 0
