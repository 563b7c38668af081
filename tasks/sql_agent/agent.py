"""A SQL agent in the plain OpenAI SDK: it asks a model for a query, runs it read-only, and may repair a failing one.

It knows nothing of lightningrun; any OpenAI-compatible endpoint will do.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

from httpx import create_ssl_context
from openai import DefaultHttpxClient, OpenAI

from tasks.sql_agent.database import Database, QueryError
from tasks.sql_agent.tools import extract_sql

MAX_RETRIES = 2
MAX_ROWS_RETURNED = 20

_CERTIFICATES = create_ssl_context()  # read once: 20 ms
_kept = threading.local()


def answer(question: str, prompts: dict[str, str], llm: dict[str, Any], database: str) -> dict[str, Any]:
    """Answer one question about the database.

    Args:
        question: plain English.
        prompts: ``system`` is the system prompt; its ``{schema}`` is replaced by the database's schema.
        llm: ``base_url``, ``api_key`` and ``model`` of the endpoint.
        database: path of the SQLite file.

    Returns:
        ``sql`` (the last query tried), ``rows`` (at most 20 of its result) or ``error``, and ``tries``.
    """
    db = _database(database)
    messages = _opening(question, prompts["system"], db)
    client = _client(llm["base_url"], llm["api_key"])
    error = sql = ""
    for tried in range(1 + MAX_RETRIES):
        response = client.chat.completions.create(model=llm["model"], messages=messages)
        reply = response.choices[0].message.content or ""
        sql = extract_sql(reply)
        try:
            rows = db.query(sql).rows[:MAX_ROWS_RETURNED]
            return {"sql": sql, "rows": [list(row) for row in rows], "tries": tried + 1}
        except QueryError as failure:
            error = str(failure)
        messages += [
            {"role": "assistant", "content": reply},
            {"role": "user", "content": f"That query failed: {error}. Write a corrected query."},
        ]
    return {"sql": sql, "error": error, "tries": 1 + MAX_RETRIES}


def answer_once(question: str, prompts: dict[str, str], llm: dict[str, Any], database: str) -> dict[str, Any]:
    """``answer`` with one call and no repair: what a small model is trained by. The query is returned, not run."""
    messages = _opening(question, prompts["system"], _database(database))
    response = _client(llm["base_url"], llm["api_key"]).chat.completions.create(model=llm["model"], messages=messages)
    return {"sql": extract_sql(response.choices[0].message.content or "")}


def gold(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation that a model is to learn, from the question on: answered at once by the reference query."""
    return [{"role": "user", "content": task["question"]}, {"role": "assistant", "content": task["sql"]}]


def _opening(question: str, system: str, db: Database) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": system.replace("{schema}", db.schema)},
        {"role": "user", "content": question},
    ]


def _client(base_url: str, api_key: str) -> OpenAI:
    """A thread's own, kept with its connections: to make both anew costs 30 ms of processor.

    One that hundreds of threads share looks through all its connections for every question.
    """
    if not hasattr(_kept, "client"):
        connections = DefaultHttpxClient(verify=_CERTIFICATES)
        _kept.client = OpenAI(base_url=base_url, api_key=api_key, max_retries=0, http_client=connections)
    client: OpenAI = _kept.client
    client.base_url, client.api_key = base_url, api_key
    return client


@lru_cache(maxsize=8)
def _database(path: str) -> Database:
    return Database.open(path)
