"""Running SQL that a model wrote, without trusting it.

``mode=ro`` alone protects little: ATTACH writes files, VACUUM INTO copies the database, and one ``randomblob`` call can
take minutes. So each query runs on a connection that is read-only *and* immutable, behind an authorizer that lets
through SELECT, reads of the database's own tables, a list of harmless functions and recursion, with a deadline, a
cap on memory and caps on the result. One statement a query; a query without result columns is a failure.

Not covered: SQLite's own bugs, and CPU burnt inside a single virtual-machine instruction (bounded by the size caps).
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

DEADLINE_S = 1.0
MAX_ROWS = 1000
MAX_CELL_BYTES = 100_000
MAX_SQL_CHARS = 10_000
HEAP_BYTES = 64 * 1024 * 1024
"""SQLite's hard heap limit. It counts for the whole process, which here is an agent's or a reward's own."""

_OPCODES_BETWEEN_CHECKS = 2000
_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE}
_AGGREGATES = "avg count group_concat max min string_agg sum total"
_SCALARS = """abs ceil ceiling coalesce floor glob ifnull iif instr length like lower ltrim nullif round rtrim sign
    sqrt substr substring trim typeof upper date strftime"""
_WINDOWS = "cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number"
FUNCTIONS = frozenset(f"{_AGGREGATES} {_SCALARS} {_WINDOWS}".split())
"""Left out on purpose: load_extension, randomblob, zeroblob, printf, replace, hex, char (they escape or blow up)."""


class QueryError(Exception):
    """The query is at fault. The message is what its author may read to write a better one."""


class Result(NamedTuple):
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


class Database:
    """One guarded connection. Safe to share between threads: queries take turns.

    Args:
        connection: an open connection that nobody else uses; the guards stay on for good.
        deadline_s: how long one query may run.
    """

    def __init__(self, connection: sqlite3.Connection, deadline_s: float = DEADLINE_S) -> None:
        self._connection = connection
        self._deadline_s = deadline_s
        self._stop_at = 0.0
        self._timed_out = False
        self._denied = ""
        self._turn = threading.Lock()
        schema = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        self.tables = tuple(name for name, _ in schema)
        self._readable = {name.lower() for name in self.tables}
        self.schema = ";\n".join(sql for _, sql in schema)
        connection.execute(f"PRAGMA hard_heap_limit = {HEAP_BYTES}").fetchall()
        connection.execute("PRAGMA temp_store = MEMORY")  # a sort that spills must not fill the disk
        connection.execute("PRAGMA query_only = ON")
        if sys.version_info >= (3, 11):  # before that, the heap limit stands alone
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL_BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 4 * MAX_SQL_CHARS)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.set_authorizer(self._authorize)
        connection.set_progress_handler(self._out_of_time, _OPCODES_BETWEEN_CHECKS)

    @classmethod
    def open(cls, path: str | Path, deadline_s: float = DEADLINE_S) -> Database:
        """Open a database file that nothing will change. FileNotFoundError if it is not there."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no database at {path}; build it with: python -m tasks.sql_agent.build")
        address = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
        return cls(sqlite3.connect(address, uri=True, check_same_thread=False), deadline_s)

    def query(self, sql: str) -> Result:
        """Run one SELECT. QueryError with SQLite's own words, or ours, for everything that goes wrong."""
        if not sql.strip():
            raise QueryError("the query is empty")
        if len(sql) > MAX_SQL_CHARS:
            raise QueryError(f"the query is longer than {MAX_SQL_CHARS} characters")
        with self._turn:
            self._denied, self._timed_out = "", False
            self._stop_at = time.perf_counter() + self._deadline_s
            try:
                return self._fetch(sql)
            except MemoryError:
                raise QueryError("the query needs more memory than it may use") from None
            except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
                raise QueryError(self._explain(error)) from None

    def close(self) -> None:
        self._connection.close()

    def _fetch(self, sql: str) -> Result:
        cursor = self._connection.execute(sql)
        try:
            if cursor.description is None:
                raise QueryError("the query returns no columns; write a SELECT statement")
            rows = cursor.fetchmany(MAX_ROWS + 1)
        finally:
            cursor.close()
        if len(rows) > MAX_ROWS:
            raise QueryError(f"the query returns more than {MAX_ROWS} rows")
        if any(_is_large(cell) for row in rows for cell in row):
            raise QueryError(f"the query returns a value larger than {MAX_CELL_BYTES} bytes")
        return Result(tuple(column[0] for column in cursor.description), rows)

    def _explain(self, error: Exception) -> str:
        if self._denied:
            return f"not allowed: {self._denied}"
        if self._timed_out:
            return f"the query ran longer than {self._deadline_s:g} s"
        return str(error)

    def _out_of_time(self) -> int:
        self._timed_out = time.perf_counter() > self._stop_at
        return int(self._timed_out)

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action in _ACTIONS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            self._denied = f"the function {second}()"
        elif action == sqlite3.SQLITE_READ:
            if (first or "").lower() in self._readable or not second:  # no column: a count over a WITH table
                return sqlite3.SQLITE_OK
            self._denied = f"reading {first}"
        else:
            self._denied = "anything but one SELECT"
        return sqlite3.SQLITE_DENY


def _is_large(cell: object) -> bool:
    return isinstance(cell, (str, bytes)) and len(cell) > MAX_CELL_BYTES


def in_memory(schema: str, table: str, rows: Sequence[tuple[Any, ...]]) -> Database:
    """A guarded database of the given rows that lives as long as the object does."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute(schema)
    places = ", ".join("?" * len(rows[0]))
    connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
    connection.commit()
    return Database(connection)
