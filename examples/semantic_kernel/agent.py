"""A SQL agent in Semantic Kernel: the model calls a plugin that runs its query, until the query is right."""

from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.functions import kernel_function

from tasks.sql_agent.tools import extract_sql, query_database

PROMPT = """\
You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question.

Try the query with the tool run_sql before you answer. If it fails, correct it and try again. Put the country, the
player or the number of runs that the question names into a WHERE clause. Country names are written in full, for
example 'West Indies'.

Reply with the SQL query only.
"""


class Cricket:
    @kernel_function
    def run_sql(self, query: str) -> str:
        """Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs,
        odi_debut_year) and get its rows, or an error."""
        return query_database(query)


service = OpenAIChatCompletion(ai_model_id="gpt-4.1-mini")  # OPENAI_BASE_URL and OPENAI_API_KEY
agent = ChatCompletionAgent(service=service, name="analyst", instructions=PROMPT, plugins=[Cricket()])


async def answer(question: str) -> dict:
    response = await agent.get_response(question)
    return {"sql": extract_sql(str(response.message))}
