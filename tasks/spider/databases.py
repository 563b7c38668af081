"""Spider's databases behind the guard of ``tasks.sql_agent.database``: read-only, one SELECT, with limits."""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from tasks.sql_agent.database import Database

DEADLINE_S = 5.0
"""Some of Spider's reference queries join large tables."""


def opened(databases: str | Path, db_id: str) -> Database:
    """The database ``db_id``. FileNotFoundError if it is not there."""
    path = Path(databases) / db_id / f"{db_id}.sqlite"
    if not path.is_file():
        raise FileNotFoundError(f"no database at {path}; make it with: python -m tasks.spider.prepare spider_data.zip")
    address = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(address, uri=True, check_same_thread=False)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")  # some cells are no UTF-8
    return Database(connection, DEADLINE_S)


@lru_cache(maxsize=256)
def database(databases: str, db_id: str) -> Database:
    """As ``opened``, kept: all of Spider are 166 files. Queries of several threads on one take turns."""
    return opened(databases, db_id)


@lru_cache(maxsize=256)
def schema(databases: str, db_id: str) -> str:
    """The description that ``prepare`` wrote."""
    return (Path(databases) / db_id / "schema.txt").read_text("utf-8").strip()
