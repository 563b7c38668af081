"""What a SQL agent needs beside a model, whatever framework it is written in: a tool, and the query in a reply.

Standard library only: it is imported where the framework is installed and little else.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

from tasks.sql_agent.database import Database, QueryError

DATABASE = Path(__file__).parent / "cricket.db"
MAX_ROWS_SHOWN = 20

_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\n?(.*?)```", re.DOTALL)
_STATEMENT = re.compile(r"\b(?:SELECT|WITH)\b.*", re.DOTALL | re.IGNORECASE)


def query_database(sql: str) -> str:
    """The rows of a query as JSON (columns first, at most 20 rows), or ``error: ...`` for the model to read."""
    try:
        result = _database().query(sql)
    except QueryError as failure:
        return f"error: {failure}"
    rows = [list(row) for row in result.rows[:MAX_ROWS_SHOWN]]
    return json.dumps({"columns": list(result.columns), "rows": rows, "rows_in_all": len(result.rows)})


def extract_sql(reply: str) -> str:
    """The query in a model's reply: the last fenced block that holds one, else from the first SELECT or WITH on."""
    blocks = [block for block in _FENCE.findall(reply) if _STATEMENT.search(block)]
    found = _STATEMENT.search(blocks[-1] if blocks else reply)
    return found.group().strip().rstrip(";").strip() if found else ""


@lru_cache(maxsize=1)
def _database() -> Database:
    return Database.open(DATABASE)
