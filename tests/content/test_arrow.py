"""Arrow bytes from a store: whatever they claim, reading them is an error of ours at worst."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from snapshot_assets.content.arrow import ArrowDamaged, number_column, read_columns, to_stream_bytes

SCHEMA = pa.schema([pa.field("a", pa.uint32(), nullable=False)])
STREAM = to_stream_bytes([number_column(range(10), pa.uint32())], SCHEMA)


def test_a_table_is_read_back() -> None:
    assert read_columns(STREAM, SCHEMA, 10, file=False) == [list(range(10))]


def test_a_table_that_does_not_begin_with_its_schema_is_damage() -> None:
    """The library would take the header of any first message for a schema, and read wild memory."""
    schema_message = pa.ipc.MessageReader.open_stream(STREAM).read_next_message().serialize()
    without = STREAM[schema_message.size :]
    assert pa.ipc.MessageReader.open_stream(without).read_next_message().type == "record batch"
    with pytest.raises(ArrowDamaged, match="begins with a record batch"):
        read_columns(without, SCHEMA, 10, file=False)


def test_no_mutation_does_worse_than_a_typed_error() -> None:
    chance = random.Random(1)
    for _ in range(3_000):
        data = bytearray(STREAM)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        try:
            columns = read_columns(
                bytes(data[: len(data) - chance.choice([0, 0, chance.randrange(100)])]), SCHEMA, 10, file=False
            )
        except ArrowDamaged:
            continue
        assert [len(column) for column in columns] == [10]
