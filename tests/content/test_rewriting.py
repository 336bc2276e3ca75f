"""However long a dataset lives, a snapshot needs the packs of few operations, and the account of packs is exact."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshot_assets.content.account import PACKS_PROPERTY
from snapshot_assets.content.base import Base
from snapshot_assets.content.restore import restore_files
from snapshot_assets.content.snapshot import Content
from snapshot_assets.model.manifest import Layout, pack_key
from snapshot_assets.store.memory import MemoryStore
from tests.content.conftest import WHOLE, Publisher, noise, read_folder

PAGE = 512
SMALL_PAGES = Layout.blocks(100, PAGE)


def recomputed_live_bytes(objects: MemoryStore, content: Content) -> dict[tuple[str, int], int]:
    """What the account should say, from every chunk table, by the words of the format alone."""
    base = Base(objects, content)
    live: dict[tuple[str, int], int] = {}
    for row in {row.location: row for row in content.index.rows}.values():
        place = row.location
        live[place.operation, place.pack] = live.get((place.operation, place.pack), 0) + place.raw
    for segment in base.segments:
        if segment.row.kind != 0:
            continue
        table = base.table(segment)
        seen = set()
        for number, offset, length in zip(table.numbers, table.offsets, segment.lengths, strict=True):
            frame = table.frames[number]
            if (frame, offset) in seen:
                continue
            seen.add((frame, offset))
            operation = next(o for o in content.manifest.operations if base._operations[frame.operation] == o)
            live[operation, frame.pack] = live.get((operation, frame.pack), 0) + length
    return live


def recorded(content: Content) -> dict[tuple[str, int], int]:
    rows: list[dict[str, Any]] = content.manifest.properties[PACKS_PROPERTY]
    return {(row["operation"], row["pack"]): row["live_bytes"] for row in rows}


def test_a_long_series_of_small_publishes_stays_bounded_and_every_snapshot_restores(tmp_path: Path) -> None:
    chance = random.Random(3)
    objects = MemoryStore()
    publisher = Publisher(objects, tmp_path / "staging", tmp_path / "cache")
    data = bytearray(noise(100 + 600 * PAGE))
    snapshots: list[tuple[Content, bytes]] = []
    most_operations = most_uploaded = 0
    for turn in range(200):
        for _ in range(3):
            at = chance.randrange(len(data) - 8)
            data[at : at + 8] = chance.randbytes(8)
        content = publisher.publish({"a": bytes(data)}, SMALL_PAGES)
        assert publisher.stored is not None
        snapshots.append((content, bytes(data)))
        if turn:
            most_uploaded = max(most_uploaded, sum(publisher.stored.pack_sizes.values()))
            assert set(content.manifest.operations) - {content.manifest.operation_id} == {
                operation for operation, _ in recorded(content)
            } - {content.manifest.operation_id}
        most_operations = max(most_operations, len(content.manifest.operations))
        if turn % 20 == 0:
            assert recorded(content) == recomputed_live_bytes(objects, content)
    assert most_operations <= 33
    # A quarter of the data may be stored anew, besides three pages and their chunk table.
    assert most_uploaded < len(data) // 4 + 3 * 2 * PAGE + 40_000
    for number, (content, expected) in enumerate(snapshots):
        restore_files(objects, content, tmp_path / "out" / str(number))
        assert read_folder(tmp_path / "out" / str(number)) == {"a": expected}


def test_a_pack_that_is_hardly_needed_any_more_is_given_up(tmp_path: Path) -> None:
    objects = MemoryStore()
    publisher = Publisher(objects, tmp_path / "staging")
    layout = Layout.blocks(100, 4096)
    data = bytearray(noise(100 + 500 * 4096))
    first = publisher.publish({"a": bytes(data), "b": noise(10_000, 5)}, layout)
    for turn in range(4):
        start = 100 + turn * 120 * 4096
        data[start : start + 120 * 4096] = noise(120 * 4096, turn + 1)
        last = publisher.publish({"a": bytes(data), "b": noise(10_000, 5)}, layout)
    assert recorded(last) == recomputed_live_bytes(objects, last)
    last = publisher.publish({"a": bytes(data), "b": noise(10_000, 5)}, layout)
    assert first.manifest.operation_id not in last.manifest.operations
    assert recorded(last) == recomputed_live_bytes(objects, last)
    objects.delete([pack_key("orders", publisher.incarnation, first.manifest.operation_id, 0)])
    restore_files(objects, last, tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a": bytes(data), "b": noise(10_000, 5)}


_edit = st.tuples(st.integers(0, 30), st.integers(0, 3))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(_edit, max_size=6),  # pages set to one of a few contents, so that equal chunks appear
            st.integers(0, 31),  # pages of the first file
            st.sampled_from(["a", "b", None]),  # name of a second file, which has the content of the first
            st.integers(0, 3),  # whole files
        ),
        min_size=2,
        max_size=6,
    )
)
def test_the_account_is_exact_after_any_series(tmp_path_factory: Any, series: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("series")
    objects = MemoryStore()
    publisher = Publisher(objects, folder / "staging", folder / "cache")
    pages = [noise(PAGE, 1000 + n) for n in range(32)]
    for turn, (edits, count, second, whole) in enumerate(series):
        for at, content in edits:
            pages[at] = noise(PAGE, content)
        first = noise(100) + b"".join(pages[:count])
        files = {"first": first} | ({f"second-{second}": first} if second else {})
        layouts = dict.fromkeys(files, SMALL_PAGES)
        files |= {f"whole-{n}": noise(700, n + turn // 2) for n in range(whole)}
        snapshot = publisher.publish(files, WHOLE, layouts=layouts)
        assert recorded(snapshot) == recomputed_live_bytes(objects, snapshot)
        needed = {operation for operation, _ in recorded(snapshot)} | {snapshot.manifest.operation_id}
        assert set(snapshot.manifest.operations) == needed
        restore_files(objects, snapshot, folder / str(turn))
        assert read_folder(folder / str(turn)) == files


def test_an_account_that_makes_no_sense_is_made_anew(publisher: Publisher, objects: MemoryStore) -> None:
    publisher.publish({"a": noise(50_000)}, SMALL_PAGES)
    content = publisher.publish({"a": noise(50_000)[:40_000]}, SMALL_PAGES)
    expected = recorded(content)
    senseless: list[dict[str, Any]] = [{}, *({PACKS_PROPERTY: rows} for rows in (3, [{"operation": 1}], []))]
    for wrong in senseless:
        damaged = replace(content, manifest=replace(content.manifest, properties=wrong))
        account = Base(objects, damaged).account()
        assert {(row["operation"], row["pack"]): row["live_bytes"] for row in account.to_json()} == expected
