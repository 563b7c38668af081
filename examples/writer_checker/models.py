"""Who plays the two agents where no real model is called: the simulated student writes, and a few lines here check."""

from typing import Any

from tasks.sql_agent.simulation import student


def policy(request: dict[str, Any]) -> str:
    """Answer a chat-completions request, as the agent whose prompt it carries. A pure function of the request."""
    messages = request["messages"]
    if "You check a query" not in messages[0]["content"]:
        return student(request)
    returned = messages[-1]["content"].partition("It returned: ")[2]
    return returned.removeprefix("error: ") if returned.startswith("error") else "OK"
