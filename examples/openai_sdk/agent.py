"""A SQL agent in the plain OpenAI SDK: the model calls a tool that runs its query, until the query is right."""

import json

from openai import OpenAI

from tasks.sql_agent.tools import extract_sql, query_database

client = OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY

PROMPT = """\
You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question.

Try the query with the tool run_sql before you answer. If it fails, correct it and try again. Put the country, the
player or the number of runs that the question names into a WHERE clause. Country names are written in full, for
example 'West Indies'.

Reply with the SQL query only.
"""

RUN_SQL = {
    "type": "function",
    "function": {
        "name": "run_sql",
        "description": "Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, "
        "test_runs, odi_debut_year) and get its rows, or an error.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


def answer(question: str) -> dict:
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": question}]
    for _ in range(6):
        response = client.chat.completions.create(model="gpt-4.1-mini", messages=messages, tools=[RUN_SQL])
        message = response.choices[0].message
        if not message.tool_calls:
            return {"sql": extract_sql(message.content or "")}
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = query_database(json.loads(call.function.arguments)["query"])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return {"error": "no answer within 6 turns"}
