"""A SQL agent in AutoGen: the model calls a tool that runs its query, until the query is right."""

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient

from tasks.sql_agent.tools import extract_sql, query_database

PROMPT = """\
You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question.

Try the query with the tool run_sql before you answer. If it fails, correct it and try again. Put the country, the
player or the number of runs that the question names into a WHERE clause. Country names are written in full, for
example 'West Indies'.

Reply with the SQL query only.
"""

client = OpenAIChatCompletionClient(model="gpt-4.1-mini")  # OPENAI_BASE_URL and OPENAI_API_KEY


async def run_sql(query: str) -> str:
    """Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs,
    odi_debut_year) and get its rows, or an error."""
    return query_database(query)


async def answer(question: str) -> dict:
    agent = AssistantAgent("analyst", client, tools=[run_sql], system_message=PROMPT, max_tool_iterations=6)
    result = await agent.run(task=question)
    return {"sql": extract_sql(result.messages[-1].to_text())}
