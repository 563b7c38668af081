"""The reward: does the agent's query give what Spider's reference gives on the question's database?

As Spider's own evaluation by execution: rows as a multiset, in order only where the reference orders them, columns in
any order. One database, so a query that is right by chance earns too; Spider's distilled test suites are not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

from tasks.spider.databases import database
from tasks.sql_agent.database import QueryError

MAX_ORDERS = 720
"""Orders of columns that are tried where several columns hold the same values."""

Rows = Sequence[tuple[Any, ...]]


def execution_match(task: dict[str, Any], output: Any, databases: str) -> dict[str, Any]:
    """Score one answer: 1.0 if its result equals the reference's, else 0.0, with what a grader would say.

    Args:
        task: a row with ``db_id`` and ``sql``, the reference query.
        output: ``{"sql": ...}`` or the bare SQL text.
        databases: the folder that ``prepare`` wrote.
    """
    sql = output.get("sql") if isinstance(output, dict) else output
    if not isinstance(sql, str) or not sql.strip():
        return _verdict(0.0, "The agent gave no SQL query.", executes=0.0)
    expected = _expected(databases, task["db_id"], task["sql"])
    try:
        got = [_plain(row) for row in database(databases, task["db_id"]).query(sql).rows]
    except QueryError as error:
        return _verdict(0.0, f"The query failed: {error}.", executes=0.0)
    if same(got, expected, ordered="order by" in task["sql"].lower()):
        return _verdict(1.0, "Correct.")
    return _verdict(0.0, _difference(got, expected))


def _verdict(score: float, feedback: str, executes: float = 1.0) -> dict[str, Any]:
    return {"score": score, "feedback": feedback, "metrics": {"executes": executes}}


@lru_cache(maxsize=16384)
def _expected(databases: str, db_id: str, sql: str) -> Rows:
    try:
        return tuple(_plain(row) for row in database(databases, db_id).query(sql).rows)
    except QueryError as error:
        raise ValueError(f"the reference query of this row does not run: {error}: {sql}") from error


def _plain(row: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers to six digits, 3.0 as 3; all else as it is."""
    return tuple(float(f"{cell:.6g}") if isinstance(cell, (int, float)) else cell for cell in row)


def same(got: Rows, expected: Rows, ordered: bool) -> bool:
    """Whether two results are equal for some order of the columns."""
    if len(got) != len(expected):
        return False
    if not expected:
        return True
    if len(got[0]) != len(expected[0]):
        return False
    counted = Counter(expected)
    for order in _orders(got, expected):
        rows = [tuple(row[column] for column in order) for row in got]
        if list(rows) == list(expected) if ordered else Counter(rows) == counted:
            return True
    return False


def _orders(got: Rows, expected: Rows) -> Iterator[tuple[int, ...]]:
    """Orders of ``got``'s columns under which each holds the values of ``expected``'s, at most ``MAX_ORDERS``."""
    mine = [Counter(column) for column in zip(*got, strict=True)]
    fitting = [
        [number for number, values in enumerate(mine) if values == Counter(column)]
        for column in zip(*expected, strict=True)
    ]
    distinct = (order for order in product(*fitting) if len(set(order)) == len(order))
    for _, order in zip(range(MAX_ORDERS), distinct, strict=False):
        yield order


def _difference(got: Rows, expected: Rows) -> str:
    width, wanted = (len(rows[0]) if rows else 0 for rows in (got, expected))
    if got and expected and width != wanted:
        return f"Wrong columns: returned {width}, the question asks for {wanted}."
    if len(got) != len(expected):
        return f"Wrong number of rows: returned {len(got)}, expected {len(expected)}."
    if Counter(got) == Counter(expected):
        return "The right rows, but in the wrong order."
    return "The right number of rows and columns, but not the right values."
