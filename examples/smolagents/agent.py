"""A SQL agent in smolagents: the model calls a tool that runs its query, until the query is right."""

from smolagents import LogLevel, OpenAIModel, ToolCallingAgent, tool

from tasks.sql_agent.tools import extract_sql, query_database

PROMPT = """\
You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question.

Try the query with the tool run_sql before you answer. If it fails, correct it and try again. Put the country, the
player or the number of runs that the question names into a WHERE clause. Country names are written in full, for
example 'West Indies'.

Reply with the SQL query only.
"""


@tool
def run_sql(query: str) -> str:
    """Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs,
    odi_debut_year) and get its rows, or an error.

    Args:
        query: one SELECT in SQLite's dialect.
    """
    return query_database(query)


model = OpenAIModel("gpt-4.1-mini")  # OPENAI_BASE_URL and OPENAI_API_KEY
agent = ToolCallingAgent([run_sql], model, max_steps=6, verbosity_level=LogLevel.OFF)
agent.prompt_templates["system_prompt"] = PROMPT  # in place of smolagents' own


def answer(question: str) -> dict:
    return {"sql": extract_sql(str(agent.run(question)))}
