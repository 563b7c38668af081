"""Rows of a SQL query: SQLite by the standard library, read-only and guarded; others by SQLAlchemy.

The query is the recipe's own, so the guard is against slips, not attacks: nothing but SELECT, READ, functions and
recursion is let through (``mode=ro`` alone lets ATTACH and VACUUM INTO write files), and a query that runs away is
ended.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

DEADLINE_S = 300.0
_OPCODES_BETWEEN_CHECKS = 100_000
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}


class QueryFailed(Exception):
    """The database cannot be opened, or does not answer the query. The message holds no password."""


def sqlite_rows(path: Path, query: str, deadline_s: float = DEADLINE_S) -> Iterator[dict[str, Any]]:
    """Rows as column -> value. Raises QueryFailed."""
    stop_at = time.monotonic() + deadline_s
    denied = False

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        nonlocal denied
        if action in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and second != "load_extension"):
            return sqlite3.SQLITE_OK
        denied = True
        return sqlite3.SQLITE_DENY

    connection = None
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        connection.set_authorizer(authorize)
        connection.set_progress_handler(lambda: time.monotonic() > stop_at, _OPCODES_BETWEEN_CHECKS)
        cursor = connection.execute(query)
        yield from _named([column[0] for column in cursor.description or ()], cursor)
    except sqlite3.Error as error:
        if denied:
            raise QueryFailed("only a SELECT may run here") from error
        late = time.monotonic() > stop_at
        raise QueryFailed(f"it ran longer than {deadline_s:g} s" if late else str(error)) from error
    finally:
        if connection is not None:
            connection.close()


def url_rows(url: str, query: str) -> Iterator[dict[str, Any]]:
    """As ``sqlite_rows`` for a SQLAlchemy URL; its transaction is rolled back. Raises QueryFailed, ModuleNotFoundError
    for a driver that is not installed."""
    import sqlalchemy

    engine = None
    try:
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            options = {"stream_results": True, "postgresql_readonly": True}
            result = connection.execution_options(**options).exec_driver_sql(query)
            yield from _named(list(result.keys()) if result.returns_rows else [], result)
    except sqlalchemy.exc.SQLAlchemyError as error:
        words = str(getattr(error, "orig", None) or error).partition("\n")[0]
        secret = sqlalchemy.engine.make_url(url).password if engine is not None else None
        raise QueryFailed(words.replace(str(secret), "***") if secret else words) from None
    finally:
        if engine is not None:
            engine.dispose()


def _named(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    if not columns:
        raise QueryFailed("it returns no columns; write a SELECT")
    twice = next((name for name in columns if list(columns).count(name) > 1), None)
    if twice is not None:
        raise QueryFailed(f"two columns are called {twice!r}; name one with AS")
    for row in rows:
        yield dict(zip(columns, row, strict=True))
