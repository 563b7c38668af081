"""A SQL agent in the OpenAI Agents SDK, which speaks the Responses API."""

from agents import Agent, Runner, function_tool, set_tracing_disabled

from tasks.sql_agent.tools import extract_sql, query_database

set_tracing_disabled(True)  # the SDK would send its traces to OpenAI

PROMPT = """\
You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question.

Try the query with the tool run_sql before you answer. If it fails, correct it and try again. Put the country, the
player or the number of runs that the question names into a WHERE clause. Country names are written in full, for
example 'West Indies'.

Reply with the SQL query only.
"""


@function_tool
def run_sql(query: str) -> str:
    """Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs,
    odi_debut_year) and get its rows, or an error."""
    return query_database(query)


analyst = Agent(name="analyst", instructions=PROMPT, model="gpt-4.1-mini", tools=[run_sql])


async def answer(question: str) -> dict:
    result = await Runner.run(analyst, question, max_turns=6)
    return {"sql": extract_sql(result.final_output)}
