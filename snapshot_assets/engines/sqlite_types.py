"""SQLite's types as Arrow types: of a column by how it was declared, of a result by the values that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

__all__ = ["ResultColumn", "declared_type"]

_ARROW: Final[dict[type, Any]] = {int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
_EXACT_IN_FLOAT: Final = 2**53


def declared_type(declared: str) -> pa.DataType:
    """The Arrow type of a declared column type.

    SQLite's affinity decides: INTEGER int64, REAL float64, TEXT string, BLOB and no type binary. Where the affinity is
    NUMERIC, the name tells what programs keep there: BOOLEAN int64; dates, times, JSON, UUID and STRING string;
    anything else (NUMERIC, DECIMAL ...) float64.
    """
    name = declared.upper()

    def has(*words: str) -> bool:
        return any(word in name for word in words)

    if has("INT"):
        return pa.int64()
    if has("CHAR", "CLOB", "TEXT"):
        return pa.string()
    if not name or has("BLOB"):
        return pa.binary()
    if has("REAL", "FLOA", "DOUB"):
        return pa.float64()
    if has("BOOL"):
        return pa.int64()
    if has("DATE", "TIME", "JSON", "UUID", "STRING"):
        return pa.string()
    return pa.float64()


class ResultColumn:
    """One column of a result, put together piece by piece, under the type that holds all its values exactly.

    Integers are int64, reals float64, texts string, blobs binary. Of a column that mixes them nothing is lost or made
    up: integers beside reals become float64 when each of them is exact there; otherwise numbers beside texts become
    texts, all digits kept, and whatever stands beside a blob becomes the bytes of its text.
    """

    def __init__(self) -> None:
        self._pieces: list[pa.Array[Any] | Sequence[Any]] = []
        self._kinds: set[type] = set()
        self._rows = 0

    def add(self, values: Sequence[Any]) -> None:
        """Add values as sqlite3 returns them: int, float, str, bytes or None."""
        kinds = set(map(type, values)) - {type(None)}
        self._kinds |= kinds
        self._rows += len(values)
        # A piece of one kind shrinks to Arrow at once; what is mixed, or empty so far, waits for the rest.
        self._pieces.append(pa.array(values, _ARROW[kinds.pop()]) if len(kinds) == 1 else values)

    @property
    def is_typeless(self) -> bool:
        """Whether there is no value that tells a type."""
        return not self._kinds

    def array(self, empty: Any) -> pa.ChunkedArray[Any]:
        """The whole column; `empty` is the type of one without a value."""
        if self.is_typeless:
            return pa.chunked_array([pa.nulls(self._rows, empty)])
        if len(self._kinds) == 1:
            type_ = _ARROW[next(iter(self._kinds))]
            pieces = [piece if isinstance(piece, pa.Array) else pa.array(piece, type_) for piece in self._pieces]
            return pa.chunked_array(pieces, type_)
        return pa.chunked_array([self._mixed()])

    def _mixed(self) -> pa.Array[Any]:
        values = [
            value for piece in self._pieces for value in (piece.to_pylist() if isinstance(piece, pa.Array) else piece)
        ]
        if self._kinds == {int, float} and all(
            abs(value) <= _EXACT_IN_FLOAT for value in values if isinstance(value, int)
        ):
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        if bytes in self._kinds:
            return pa.array([None if value is None else _as_bytes(value) for value in values], pa.binary())
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _as_bytes(value: float | str | bytes) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
