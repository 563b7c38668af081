"""A SQL agent that writes a query, runs it, looks at what came out, and rewrites it if that is not the answer.

The dialogue only grows, so that a model that is trained on it meets every token once. It knows nothing of lightningrun;
any OpenAI-compatible endpoint will do. SQL that the model writes runs behind the guard of ``tasks.spider.databases``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from openai import DefaultHttpxClient, OpenAI

from tasks.spider.databases import database, schema
from tasks.sql_agent.database import QueryError, Result
from tasks.sql_agent.tools import extract_sql

MAX_QUERIES = 3
MAX_ROWS_SHOWN = 5
MAX_CHARS_SHOWN = 600

_CHECK = (
    "{shown}\n\nIs that what was asked for, no column or row too many or too few? If so, answer DONE. "
    "If not, write a better query."
)


def answer(question: str, db_id: str, prompts: dict[str, str], llm: dict[str, Any], databases: str) -> dict[str, Any]:
    """Answer one question about the database ``db_id`` in the folder ``databases``.

    Returns:
        ``sql`` (the last query written), ``error`` if it failed, and ``queries``: how many were written.
    """
    db = database(databases, db_id)
    client = OpenAI(base_url=llm["base_url"], api_key=llm["api_key"], max_retries=0, http_client=_connections())
    messages: list[Any] = [
        {"role": "system", "content": prompts["system"].replace("{schema}", schema(databases, db_id))},
        {"role": "user", "content": question},
    ]
    sql, error, queries = "", "the reply has no query", 0
    for turn in range(MAX_QUERIES):
        response = client.chat.completions.create(model=llm["model"], messages=messages)
        reply = response.choices[0].message.content or ""
        written = extract_sql(reply)
        if queries and (not written or written == sql):
            break
        if written:
            sql, queries = written, queries + 1
        shown, error = _tried(db, sql)
        if turn + 1 < MAX_QUERIES:
            messages.append({"role": "assistant", "content": reply})
            messages.append({"role": "user", "content": _CHECK.format(shown=shown)})
    return {"sql": sql, "queries": queries, **({"error": error} if error else {})}


def _tried(db: Any, sql: str) -> tuple[str, str]:
    """What the model is shown of a query, and the error if it failed."""
    try:
        return _shown(db.query(sql)), ""
    except QueryError as failure:
        return f"That query failed: {failure}.", str(failure)


def _shown(result: Result) -> str:
    rows = [" | ".join(str(cell) for cell in row) for row in result.rows[:MAX_ROWS_SHOWN]]
    more = [f"... {len(result.rows)} rows in all"] if len(result.rows) > MAX_ROWS_SHOWN else []
    text = "\n".join([" | ".join(result.columns), *rows, *more]) if rows else "The result is empty."
    return f"It gives:\n{text[:MAX_CHARS_SHOWN]}"


@lru_cache(maxsize=1)
def _connections() -> DefaultHttpxClient:
    """Kept for all rollouts: a client of its own costs 30 ms of processor."""
    return DefaultHttpxClient()
