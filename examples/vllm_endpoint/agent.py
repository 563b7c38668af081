"""A SQL agent for a vLLM server, without any SDK: plain HTTP, with sampling that only vLLM knows."""

import json
import os
import urllib.request

from tasks.sql_agent.tools import extract_sql, query_database

URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")
MODEL = os.environ.get("OPENAI_MODEL", "Qwen/Qwen3-8B")

PROMPT = """\
You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question, over
the one table there is: CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs,
odi_debut_year).

Put the country, the player or the number of runs that the question names into a WHERE clause. Country names are written
in full, for example 'West Indies'.

Reply with the SQL query only.
"""


def chat(messages: list) -> str:
    body = {
        "model": MODEL,
        "messages": messages,
        "max_tokens": 512,
        "top_k": 20,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def answer(question: str) -> dict:
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": question}]
    sql = ""
    for _ in range(3):
        reply = chat(messages)
        sql = extract_sql(reply)
        result = query_database(sql)
        if not result.startswith("error"):
            break
        messages += [
            {"role": "assistant", "content": reply},
            {"role": "user", "content": f"That query failed: {result}. Write a corrected query."},
        ]
    return {"sql": sql}
