"""A SQL agent in CrewAI: the model calls a tool that runs its query, until the query is right."""

from crewai import Agent, Crew, Task
from crewai.tools import tool

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
    odi_debut_year) and get its rows, or an error."""
    return query_database(query)


analyst = Agent(  # OPENAI_BASE_URL and OPENAI_API_KEY
    role="Cricket analyst", goal="Answer questions by SQL", backstory=PROMPT, tools=[run_sql], llm="gpt-4.1-mini"
)
task = Task(description="{question}", expected_output="One SQLite query.", agent=analyst)
crew = Crew(agents=[analyst], tasks=[task])


def answer(question: str) -> dict:
    result = crew.kickoff(inputs={"question": question})
    return {"sql": extract_sql(result.raw)}
