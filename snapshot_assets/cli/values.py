"""Values of query results as text and as JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal

__all__ = ["json_value", "text_value"]


def json_value(value: object) -> object:
    """A value as JSON can hold it.

    Times are ISO 8601, durations seconds, bytes base64, whole decimals numbers and others text, so that no digit is
    lost. What JSON has no number for (infinities and not-a-number) is null, as a missing value is.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case date() | datetime() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return int(value) if value.as_tuple().exponent == 0 else str(value)
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case Mapping():
            return {str(key): json_value(inner) for key, inner in value.items()}
        case list() | tuple():
            return [json_value(inner) for inner in value]
        case _:
            return str(value)


def text_value(value: object) -> str:
    """A value in a table or a CSV file; a missing one is empty."""
    match value:
        case None:
            return ""
        case bytes():
            return value.hex()
        case datetime():
            return value.isoformat(sep=" ")
        case _:
            return str(value)
