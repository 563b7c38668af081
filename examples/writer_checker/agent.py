"""A SQL agent of two in LangGraph: a writer of queries, and a checker that runs them and sends wrong ones back.

It tells of itself by OpenTelemetry, as agents in production do; the exporter reads where to from the environment.
"""

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tasks.sql_agent.tools import extract_sql, query_database

WRITER = """\
You write SQL for a cricket statistics site. Write one SQLite query that answers the user's question.

Put the country, the player or the number of runs that the question names into a WHERE clause. Country names are written
in full, for example 'West Indies'. If a query of yours is sent back, write a corrected one.

Reply with the SQL query only.
"""
CHECKER = """\
You check a query that another wrote. You see the question, the query and what it returned.

Reply with OK if the query ran. If it failed, say in one line what is wrong.
"""
SCHEMA = """\
The database:
CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs, odi_debut_year)
"""
MOST_TRIES = 3

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
LangChainInstrumentor().instrument()

model = ChatOpenAI(model="gpt-4.1-mini")  # OPENAI_BASE_URL and OPENAI_API_KEY


class State(MessagesState):
    sql: str
    tries: int


def ask(prompt: str, messages: list[AnyMessage]) -> str:
    return model.invoke([SystemMessage(prompt), SystemMessage(SCHEMA), *messages]).text


def write(state: State) -> dict:
    reply = ask(WRITER, state["messages"])
    return {"messages": [AIMessage(reply)], "sql": extract_sql(reply), "tries": state.get("tries", 0) + 1}


def check(state: State) -> dict:
    seen = f"Question: {state['messages'][0].text}\nQuery: {state['sql']}\nIt returned: {query_database(state['sql'])}"
    verdict = ask(CHECKER, [HumanMessage(seen)])
    if verdict.strip().startswith("OK"):
        return {"messages": [HumanMessage("OK")]}
    return {"messages": [HumanMessage(f"That query failed: {verdict.strip()}. Write a corrected query.")]}


def is_done(state: State) -> str:
    return END if state["messages"][-1].text == "OK" or state["tries"] >= MOST_TRIES else "write"


graph = StateGraph(State)
graph.add_node("write", write)
graph.add_node("check", check)
graph.add_edge(START, "write")
graph.add_edge("write", "check")
graph.add_conditional_edges("check", is_done)
app = graph.compile()


def answer(question: str) -> dict:
    return {"sql": app.invoke({"messages": [HumanMessage(question)]})["sql"]}
