"""Values of databases, data frames and Python as values of JSON, or the reason why they are none."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

MAX_ROW_BYTES = 1 << 20
TOO_LONG = f"a row of more than {MAX_ROW_BYTES >> 10} KiB"

Note = Callable[[int, str], None]
"""Told of a row that cannot be read: its line or number (0: the source as a whole), and why."""


class NotPlain(ValueError):
    """A value that JSON cannot hold; the message says where in the row."""


def plain_rows(rows: Iterable[Any], note: Note) -> Iterator[tuple[int, Any]]:
    """(number from 1, row as plain JSON) of each row that can be one; the others go to ``note``."""
    for number, row in enumerate(rows, start=1):
        try:
            kept = plain(row)
            if len(json.dumps(kept, ensure_ascii=False)) > MAX_ROW_BYTES:
                raise NotPlain(TOO_LONG)
        except NotPlain as error:
            note(number, str(error))
        else:
            yield number, kept


def plain(value: Any, place: str = "") -> Any:
    """``value`` of JSON's types: dates as ISO text, decimals as numbers, arrays as lists. Raises NotPlain."""
    where = f"field {place!r} is " if place else "a row is "
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        if isinstance(value, float) and not math.isfinite(value):
            raise NotPlain(f"{where}{value}, which is not JSON")
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{place}.{key}" if place else str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, place) for inner in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        exponent = value.as_tuple().exponent
        return int(value) if isinstance(exponent, int) and exponent >= 0 else plain(float(value), place)
    if isinstance(value, uuid.UUID):
        return str(value)
    if hasattr(value, "tolist"):  # of numpy
        return plain(value.tolist(), place)
    raise NotPlain(f"{where}a {type(value).__name__}, which JSON cannot hold")
