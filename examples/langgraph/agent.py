"""A SQL agent in LangChain and LangGraph: a graph of a model that may call a tool, and of the tool, in a loop."""

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

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


model = ChatOpenAI(model="gpt-4.1-mini").bind_tools([run_sql])


def think(state: MessagesState) -> dict:
    return {"messages": [model.invoke([SystemMessage(PROMPT), *state["messages"]])]}


graph = StateGraph(MessagesState)
graph.add_node("think", think)
graph.add_node("tools", ToolNode([run_sql]))
graph.add_edge(START, "think")
graph.add_conditional_edges("think", tools_condition)
graph.add_edge("tools", "think")
app = graph.compile()


def answer(question: str) -> dict:
    state = app.invoke({"messages": [HumanMessage(question)]}, {"recursion_limit": 12})
    return {"sql": extract_sql(state["messages"][-1].text)}
