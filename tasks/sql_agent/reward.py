"""The reward: does the agent's SQL give what the reference SQL gives?

Both queries run on the real database and on three shuffled copies of it, so that a query which is right only by chance
(``WHERE country_name = 'India'`` for "the country with the most debutants") earns nothing. The feedback is what a
careful grader who sees both results would say. It never quotes the reference SQL.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

from tasks.sql_agent.database import Database, QueryError, Result, in_memory

DATABASE = Path(__file__).parent / "cricket.db"
SHUFFLES = 3
TOLERANCE = 0.01
"""Numbers this close are equal: an average may be rounded to two decimals, not to whole runs."""

_MAX_COLUMNS_TO_PERMUTE = 4
_reading = threading.Lock()


def execution_match(task: dict[str, Any], output: Any, database: str = str(DATABASE)) -> dict[str, Any]:
    """Score one answer: 1.0 if its result equals the reference's on every database, else 0.0.

    Args:
        task: a row with ``sql``, the reference query.
        output: ``{"sql": ...}`` or the bare SQL text.
        database: the SQLite file. The order of rows counts only if the reference orders them; that of columns never.
    """
    sql = output.get("sql") if isinstance(output, dict) else output
    if not isinstance(sql, str) or not sql.strip():
        return _wrong("The agent gave no SQL query.", executes=False)
    databases = _databases(database)
    expected = _expected(database, task["sql"])
    ordered = "order by" in task["sql"].lower()
    try:
        got = databases[0].query(sql)
    except QueryError as error:
        return _wrong(f"The query failed: {error}.", executes=False)
    if not _same(got.rows, expected[0].rows, ordered):
        order = _column_order(got, expected[0], ordered)
        if order is None:
            return _wrong(_difference(got, expected[0], ordered))
    else:
        order = tuple(range(len(got.columns)))
    if not _right_on_shuffles(sql, databases, expected, order, ordered):
        return _wrong(
            "Right by chance only: the same query gives a wrong result when the table holds other numbers. Some"
            " condition, sort or calculation that the question asks for is not in it."
        )
    return {"score": 1.0, "feedback": "Correct.", "metrics": {"executes": 1.0}}


def shuffled(rows: Sequence[tuple[Any, ...]], seed: int) -> list[tuple[Any, ...]]:
    """The same table with its columns dealt anew to the players, and numbers moved a little. Deterministic."""
    rng = random.Random(seed)
    names, countries, *numbers = (list(column) for column in zip(*rows, strict=True))
    rng.shuffle(countries)
    for column in numbers:
        rng.shuffle(column)
    odi, t20, test, debut = numbers
    nudged = [[max(0, n + rng.randint(-40, 40)) for n in column] for column in (odi, t20, test)]
    return list(zip(names, countries, *nudged, debut, strict=True))


def _wrong(feedback: str, executes: bool = True) -> dict[str, Any]:
    return {"score": 0.0, "feedback": feedback, "metrics": {"executes": float(executes)}}


@lru_cache(maxsize=4)
def _build(path: str) -> tuple[Database, ...]:
    real = Database.open(path)
    table = next(iter(real.tables))
    rows = real.query(f"SELECT * FROM {table}").rows
    return real, *(in_memory(real.schema, table, shuffled(rows, seed)) for seed in range(1, SHUFFLES + 1))


def _databases(path: str) -> tuple[Database, ...]:
    with _reading:
        return _build(path)


@lru_cache(maxsize=4096)
def _expected(path: str, sql: str) -> tuple[Result, ...]:
    try:
        return tuple(database.query(sql) for database in _databases(path))
    except QueryError as error:
        raise ValueError(f"the reference query of this row does not run: {error}: {sql}") from error


def _right_on_shuffles(
    sql: str, databases: tuple[Database, ...], expected: tuple[Result, ...], order: tuple[int, ...], ordered: bool
) -> bool:
    for database, reference in zip(databases[1:], expected[1:], strict=True):
        try:
            rows = database.query(sql).rows
        except QueryError:
            return False
        if not _same([tuple(row[i] for i in order) for row in rows], reference.rows, ordered):
            return False
    return True


def _column_order(got: Result, expected: Result, ordered: bool) -> tuple[int, ...] | None:
    """The order of ``got``'s columns that makes it equal to ``expected``, if there is one."""
    width = len(expected.columns)
    if len(got.columns) != width or not 1 < width <= _MAX_COLUMNS_TO_PERMUTE or len(got.rows) != len(expected.rows):
        return None
    for order in permutations(range(width)):
        if _same([tuple(row[i] for i in order) for row in got.rows], expected.rows, ordered):
            return order
    return None


def _same(left: list[tuple[Any, ...]], right: list[tuple[Any, ...]], ordered: bool) -> bool:
    if len(left) != len(right) or (left and len(left[0]) != len(right[0])):
        return False
    if left == right:
        return True
    if not ordered:
        left, right = sorted(left, key=_sort_key), sorted(right, key=_sort_key)
    return all(_equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def _sort_key(row: tuple[Any, ...]) -> list[tuple[int, float, str]]:
    return [(0, round(float(c), 1), "") if isinstance(c, (int, float)) else (1, 0.0, str(c)) for c in row]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return bool(abs(a - b) <= TOLERANCE)
    return bool(a == b)


def _difference(got: Result, expected: Result, ordered: bool) -> str:
    """What is wrong with a result, most telling thing first."""
    one_value = len(expected.rows) == 1 and len(expected.columns) == 1
    is_number = one_value and isinstance(expected.rows[0][0], (int, float))
    if is_number and (len(got.rows) != 1 or len(got.columns) != 1):
        return (
            f"The question asks for a single number; the query ran but returned {_shape(got)}"
            f" ({', '.join(got.columns)})."
        )
    if len(got.columns) != len(expected.columns):
        return _columns_differ(got, expected)
    if ordered and _same(got.rows, expected.rows, ordered=False):
        return "The right rows, but in the wrong order."
    if len(got.rows) != len(expected.rows):
        return (
            f"Wrong number of rows: returned {len(got.rows)}, expected {len(expected.rows)}.{_examples(got, expected)}"
        )
    if is_number:
        return f"Right shape, wrong value: returned {got.rows[0][0]}, expected {_short(expected.rows[0][0])}."
    return f"The right number of rows, but not the right ones.{_examples(got, expected)}"


def _columns_differ(got: Result, expected: Result) -> str:
    names = ", ".join(got.columns)
    text = f"Wrong columns: returned {len(got.columns)} ({names}), the question asks for {len(expected.columns)}."
    if len(got.rows) != len(expected.rows):
        text += f" Also {len(got.rows)} rows instead of {len(expected.rows)}."
    return text


def _examples(got: Result, expected: Result) -> str:
    extra = [row for row in got.rows if row not in expected.rows]
    missing = [row for row in expected.rows if row not in got.rows]
    text = ""
    if extra:
        text += f" Should not be there: {_row(extra[0])}{_more(extra)}."
    if missing:
        text += f" Missing: {_row(missing[0])}{_more(missing)}."
    return text


def _shape(result: Result) -> str:
    rows, columns = len(result.rows), len(result.columns)
    return f"{rows} row{'s' * (rows != 1)} of {columns} column{'s' * (columns != 1)}"


def _row(row: tuple[Any, ...]) -> str:
    return ", ".join(str(_short(cell)) for cell in row)


def _more(rows: list[tuple[Any, ...]]) -> str:
    return f" and {len(rows) - 1} more" if len(rows) > 1 else ""


def _short(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value
