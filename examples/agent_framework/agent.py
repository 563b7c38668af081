"""A SQL agent in Microsoft Agent Framework: the model calls a tool that runs its query, until the query is right."""

from agent_framework import Agent
from agent_framework.openai import OpenAIChatClient

from tasks.sql_agent.tools import extract_sql, query_database

PROMPT = """\
You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question.

Try the query with the tool run_sql before you answer. If it fails, correct it and try again. Put the country, the
player or the number of runs that the question names into a WHERE clause. Country names are written in full, for
example 'West Indies'.

Reply with the SQL query only.
"""


def run_sql(query: str) -> str:
    """Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs,
    odi_debut_year) and get its rows, or an error."""
    return query_database(query)


client = OpenAIChatClient(model="gpt-5-mini")  # OPENAI_BASE_URL and OPENAI_API_KEY
agent = Agent(client, PROMPT, name="analyst", tools=[run_sql])


async def answer(question: str) -> dict:
    result = await agent.run(question)
    return {"sql": extract_sql(result.text)}
