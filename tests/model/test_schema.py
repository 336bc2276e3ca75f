"""When one set of table schemas may follow another."""

from __future__ import annotations

import base64

import pyarrow as pa
import pytest

from snapshot_assets.errors import DocumentDamaged
from snapshot_assets.model.schema import (
    SchemaChange,
    SchemaPolicy,
    TableSchema,
    classify_schemas,
    difference,
    schemas_compatible,
)


def schemas(**tables: pa.Schema) -> dict[str, TableSchema]:
    return {name: TableSchema.from_arrow(schema) for name, schema in tables.items()}


def column(data_type: pa.DataType, *, nullable: bool = True) -> dict[str, TableSchema]:
    return schemas(t=pa.schema([pa.field("a", data_type, nullable=nullable)]))


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (pa.int64(), pa.int64(), SchemaChange.IDENTICAL),
        (pa.int32(), pa.int64(), SchemaChange.WIDENING),
        (pa.int64(), pa.int32(), SchemaChange.INCOMPATIBLE),
        (pa.uint32(), pa.int64(), SchemaChange.WIDENING),
        (pa.uint64(), pa.int64(), SchemaChange.INCOMPATIBLE),
        (pa.int32(), pa.uint64(), SchemaChange.INCOMPATIBLE),
        (pa.int32(), pa.uint32(), SchemaChange.INCOMPATIBLE),
        (pa.int32(), pa.float64(), SchemaChange.WIDENING),
        (pa.int64(), pa.float64(), SchemaChange.INCOMPATIBLE),
        (pa.int16(), pa.float32(), SchemaChange.WIDENING),
        (pa.float32(), pa.float64(), SchemaChange.WIDENING),
        (pa.float64(), pa.float32(), SchemaChange.INCOMPATIBLE),
        (pa.string(), pa.large_string(), SchemaChange.WIDENING),
        (pa.string(), pa.binary(), SchemaChange.INCOMPATIBLE),
        (pa.decimal128(10, 2), pa.decimal128(12, 2), SchemaChange.WIDENING),
        (pa.decimal128(10, 2), pa.decimal128(10, 4), SchemaChange.INCOMPATIBLE),
        (pa.timestamp("us"), pa.timestamp("ns"), SchemaChange.INCOMPATIBLE),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), SchemaChange.INCOMPATIBLE),
        (
            pa.struct([("x", pa.int32()), ("y", pa.string())]),
            pa.struct([("y", pa.string()), ("x", pa.int32())]),
            SchemaChange.IDENTICAL,
        ),
        (pa.struct([("x", pa.int32())]), pa.struct([("x", pa.int64())]), SchemaChange.INCOMPATIBLE),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), SchemaChange.INCOMPATIBLE),
    ],
)
def test_a_type_widens_only_when_every_old_value_has_an_equal_new_one(
    old: pa.DataType, new: pa.DataType, change: SchemaChange
) -> None:
    assert classify_schemas(column(old), column(new)) is change


def test_relaxed_nullability_widens_and_tightened_does_not_count() -> None:
    strict, relaxed = column(pa.int64(), nullable=False), column(pa.int64())
    assert classify_schemas(strict, relaxed) is SchemaChange.WIDENING
    assert classify_schemas(relaxed, strict) is SchemaChange.IDENTICAL


def test_metadata_does_not_count() -> None:
    plain = pa.schema([pa.field("a", pa.int64())])
    marked = pa.schema([pa.field("a", pa.int64(), metadata={"k": "v"})], metadata={"k": "v"})
    assert classify_schemas(schemas(t=plain), schemas(t=marked)) is SchemaChange.IDENTICAL


def test_only_nullable_columns_at_the_end_and_new_tables_widen() -> None:
    a, b = pa.field("a", pa.int64()), pa.field("b", pa.int64())
    old = schemas(t=pa.schema([a]))
    assert classify_schemas(old, schemas(t=pa.schema([a, b]))) is SchemaChange.WIDENING
    assert classify_schemas(old, schemas(t=pa.schema([a]), u=pa.schema([b]))) is SchemaChange.WIDENING
    assert classify_schemas(old, schemas(t=pa.schema([b, a]))) is SchemaChange.INCOMPATIBLE
    required = pa.field("b", pa.int64(), nullable=False)
    assert classify_schemas(old, schemas(t=pa.schema([a, required]))) is SchemaChange.INCOMPATIBLE
    assert classify_schemas(schemas(t=pa.schema([a, b])), old) is SchemaChange.INCOMPATIBLE
    assert classify_schemas(old, schemas(u=pa.schema([a]))) is SchemaChange.INCOMPATIBLE
    assert classify_schemas(old, schemas(t=pa.schema([pa.field("renamed", pa.int64())]))) is SchemaChange.INCOMPATIBLE


def test_a_reader_ignores_nullability_and_follows_its_policy() -> None:
    old, relaxed, wider = column(pa.int32(), nullable=False), column(pa.int32()), column(pa.int64())
    other = column(pa.string())
    assert schemas_compatible(old, relaxed)
    assert schemas_compatible(relaxed, old)
    assert not schemas_compatible(old, wider)
    assert schemas_compatible(old, wider, SchemaPolicy.WIDENING)
    assert not schemas_compatible(old, other, SchemaPolicy.WIDENING)
    assert schemas_compatible(old, other, SchemaPolicy.ANY)


def test_a_difference_shows_both_sides_and_marks_what_parts_them() -> None:
    both: list[tuple[str, pa.DataType]] = [("a", pa.int64()), ("b", pa.string())]
    old = schemas(t=pa.schema(both), same=pa.schema([("x", pa.int8())]))
    new = schemas(t=pa.schema([("a", pa.int64())]), same=pa.schema([pa.field("x", pa.int8())]))
    assert difference(old, new) == "table t:\n  a int64  | a int64\n  b string >"


def test_a_schema_survives_storage_exactly() -> None:
    schema = pa.schema([pa.field("a", pa.dictionary(pa.int8(), pa.string()), nullable=False, metadata={"k": "v"})])
    stored = TableSchema.from_arrow(schema)
    assert TableSchema.from_base64(stored.arrow, "here").to_arrow().equals(schema, check_metadata=True)


@pytest.mark.parametrize("text", ["", "####", "AAAA", "x" * 1000])
def test_a_damaged_arrow_schema_is_a_typed_error(text: str) -> None:
    with pytest.raises(DocumentDamaged):
        TableSchema.from_base64(text, "here")


@pytest.mark.parametrize(
    "schema", [pa.schema([("name!", pa.int64())]), pa.schema([("s", pa.list_(pa.struct([("name!", pa.int64())])))])]
)
def test_names_that_are_no_text_are_a_typed_error(schema: pa.Schema) -> None:
    data = schema.serialize().to_pybytes()
    assert b"name!" in data
    text = base64.b64encode(data.replace(b"name!", b"name\xff")).decode()
    with pytest.raises(DocumentDamaged):
        TableSchema.from_base64(text, "a manifest")
    with pytest.raises(DocumentDamaged):
        TableSchema((), text).to_arrow()
