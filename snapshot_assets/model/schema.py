"""Table schemas: how they are stored, and when one may follow another."""

from __future__ import annotations

import base64
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from snapshot_assets.errors import DocumentDamaged
from snapshot_assets.model.document import Document

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Field",
    "SchemaChange",
    "SchemaPolicy",
    "TableSchema",
    "classify_schemas",
    "difference",
    "schemas_compatible",
]


class SchemaChange(enum.Enum):
    """What happened from one set of table schemas to the next."""

    IDENTICAL = "identical"
    WIDENING = "widening"
    INCOMPATIBLE = "incompatible"


class SchemaPolicy(enum.Enum):
    """What a reader accepts when the schema of the next snapshot differs from what it serves."""

    STRICT = "strict"
    WIDENING = "widening"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Field:
    """One column: its name, its Arrow type as text, and whether it may hold nulls."""

    name: str
    type: str
    nullable: bool


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of one table, as text and as a base64 Arrow IPC schema, which is exact."""

    fields: tuple[Field, ...]
    arrow: str

    @classmethod
    def from_arrow(cls, schema: pa.Schema) -> TableSchema:
        """The stored form of an Arrow schema."""
        fields = tuple(Field(field.name, str(field.type), field.nullable) for field in schema)
        return cls(fields, base64.b64encode(schema.serialize().to_pybytes()).decode("ascii"))

    @classmethod
    def from_base64(cls, arrow: str, where: str) -> TableSchema:
        """The stored form of a base64 Arrow IPC schema.

        Raises:
            DocumentDamaged: the text does not hold an Arrow schema.
        """
        return cls.from_arrow(_decode(arrow, where))

    def to_arrow(self) -> pa.Schema:
        """The Arrow schema itself."""
        return _decode(self.arrow, "a table schema")

    @classmethod
    def parse(cls, document: Document) -> TableSchema:
        """Read a table schema of the head."""
        fields = tuple(
            Field(field.text("name"), field.text("type"), field.flag("nullable"))
            for field in document.documents("fields")
        )
        return cls(fields, document.text("arrow"))

    def to_json(self) -> dict[str, Any]:
        """The form that the head stores."""
        fields = [{"name": field.name, "type": field.type, "nullable": field.nullable} for field in self.fields]
        return {"fields": fields, "arrow": self.arrow}


def _decode(text: str, where: str) -> pa.Schema:
    import pyarrow as pa

    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
        for field in schema:
            _read_names(field)
        return schema
    except (ValueError, OSError, pa.ArrowException) as error:
        raise DocumentDamaged(f"{where} holds an Arrow schema that can not be read: {error}") from error


def _read_names(field: pa.Field[Any]) -> None:
    """Look at every name now, because the library finds out only then that one is no text."""
    _ = field.name
    for position in range(field.type.num_fields):
        _read_names(field.type.field(position))


_INTEGERS: Final = {f"{sign}int{bits}": (sign == "", bits) for sign in ("", "u") for bits in (8, 16, 32, 64)}
_FLOATS: Final = {"halffloat": 16, "float": 32, "double": 64}
_SAME: Final = {"large_string": "string", "string_view": "string", "large_binary": "binary", "binary_view": "binary"}
_FLOAT_DIGITS: Final = {16: 11, 32: 24, 64: 53}


def _widens(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether every value of the old type has an equal value in the new one."""
    import pyarrow.types as t

    if _struct_aside(old) == _struct_aside(new):
        return True
    before, after = str(old), str(new)
    if before in _INTEGERS and after in _INTEGERS:
        (signed, bits), (new_signed, new_bits) = _INTEGERS[before], _INTEGERS[after]
        return new_bits > bits and (new_signed or not signed) if signed != new_signed else new_bits >= bits
    if before in _INTEGERS and after in _FLOATS:
        return _INTEGERS[before][1] <= _FLOAT_DIGITS[_FLOATS[after]]
    if before in _FLOATS and after in _FLOATS:
        return _FLOATS[after] >= _FLOATS[before]
    if t.is_decimal(old) and t.is_decimal(new):
        return bool(new.scale >= old.scale and new.precision - new.scale >= old.precision - old.scale)
    return _SAME.get(before, before) == _SAME.get(after, after)


def _struct_aside(data_type: pa.DataType) -> str:
    """The type as text, with the fields of structs in the order of their names and nullability left out."""
    import pyarrow.types as t

    if t.is_struct(data_type):
        inner = sorted(f"{field.name}: {_struct_aside(field.type)}" for field in data_type.fields)
        return f"struct<{', '.join(inner)}>"
    if t.is_list(data_type) or t.is_large_list(data_type) or t.is_fixed_size_list(data_type):
        size = f"[{data_type.list_size}]" if t.is_fixed_size_list(data_type) else ""
        return f"list<{_struct_aside(data_type.value_type)}>{size}"
    if t.is_map(data_type):
        return f"map<{_struct_aside(data_type.key_type)}, {_struct_aside(data_type.item_type)}>"
    return str(data_type)


def _classify_table(old: TableSchema, new: TableSchema, *, nullability: bool) -> SchemaChange:
    if old.arrow == new.arrow:
        return SchemaChange.IDENTICAL
    before, after = old.to_arrow(), new.to_arrow()
    width = len(before)
    if len(after) < width or [field.name for field in before] != [field.name for field in after][:width]:
        return SchemaChange.INCOMPATIBLE
    change = SchemaChange.IDENTICAL
    for position in range(width):
        old_type, new_type = before.field(position).type, after.field(position).type
        if _struct_aside(old_type) != _struct_aside(new_type):
            if not _widens(old_type, new_type):
                return SchemaChange.INCOMPATIBLE
            change = SchemaChange.WIDENING
        if nullability and after.field(position).nullable and not before.field(position).nullable:
            change = SchemaChange.WIDENING
    if len(after) > width:
        if not all(after.field(position).nullable for position in range(width, len(after))):
            return SchemaChange.INCOMPATIBLE
        change = SchemaChange.WIDENING
    return change


def classify_schemas(
    old: Mapping[str, TableSchema], new: Mapping[str, TableSchema], *, nullability: bool = True
) -> SchemaChange:
    """Tell how the table schemas of a dataset changed.

    Identical: the same tables and columns; tightened nullability, metadata and the order of a struct's fields aside.
    Widening: tables added, nullable columns added at the end, types that hold every old value, and, unless
    `nullability` is off, a column that may now hold nulls. Incompatible: anything else, such as a table or column
    removed, renamed, moved or narrowed.
    """
    if old.keys() - new.keys():
        return SchemaChange.INCOMPATIBLE
    changes = {_classify_table(old[name], new[name], nullability=nullability) for name in old}
    if SchemaChange.INCOMPATIBLE in changes:
        return SchemaChange.INCOMPATIBLE
    if SchemaChange.WIDENING in changes or new.keys() - old.keys():
        return SchemaChange.WIDENING
    return SchemaChange.IDENTICAL


def schemas_compatible(
    old: Mapping[str, TableSchema], new: Mapping[str, TableSchema], policy: SchemaPolicy = SchemaPolicy.STRICT
) -> bool:
    """Whether a reader under the policy may go from the old schemas to the new ones.

    Strict asks for the same number, order, names and types of columns in every table; nullability and metadata do not
    matter.
    """
    if policy is SchemaPolicy.ANY:
        return True
    change = classify_schemas(old, new, nullability=False)
    return change is SchemaChange.IDENTICAL or (policy is SchemaPolicy.WIDENING and change is SchemaChange.WIDENING)


def difference(old: Mapping[str, TableSchema], new: Mapping[str, TableSchema]) -> str:
    """Every table that differs, its columns side by side: what was, what is, and a mark where they part."""
    blocks = []
    for name in sorted(old.keys() | new.keys()):
        before = old[name].fields if name in old else ()
        after = new[name].fields if name in new else ()
        left = [_describe(field) for field in before] or ["(no such table)"]
        right = [_describe(field) for field in after] or ["(no such table)"]
        if left == right:
            continue
        rows = max(len(left), len(right))
        left += [""] * (rows - len(left))
        right += [""] * (rows - len(right))
        width = max(map(len, left))
        lines = [f"  {a:<{width}} {'|' if a == b else '>'} {b}".rstrip() for a, b in zip(left, right, strict=True)]
        blocks.append("\n".join([f"table {name}:", *lines]))
    return "\n".join(blocks)


def _describe(field: Field) -> str:
    return f"{field.name} {field.type}{'' if field.nullable else ' not null'}"
