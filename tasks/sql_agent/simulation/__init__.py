"""Stand-ins for a student and a coach model, so that the demonstration runs with no key, no cost and no network.

THESE ARE SIMULATIONS. There is no neural network here, and figures measured with them say how the optimiser behaves,
not how good a language model is. They are played fair all the same. Both see what a real model would see, the chat
request (messages, temperature, seed), and nothing else: no reference answers, no data files, nothing of the optimiser.

- The **student** reads the question with a small hand-written parser and translates it to SQL over the schema that it
  finds in the messages. Which constructions it manages depends on what its instructions teach (any wording that a
  person would understand, edit the prompt and see); and now and then it slips, taught or not.
- The **coach** reads whatever text it is sent, finds the prompt and the failures in it, guesses at causes from the
  feedback, and rewrites the prompt as models do: in its own words, a few problems at a time, sometimes on a wrong
  track, sometimes losing a line.

Both are pure functions of the request: the same request gets the same reply.
"""

from __future__ import annotations

from typing import Any


def student(request: dict[str, Any], **args: Any) -> str:
    """Answer a chat-completions request as the agent's model. ``args`` are accepted and unused."""
    from tasks.sql_agent.simulation.answering import reply

    return reply(request)


def coach(request: dict[str, Any], **args: Any) -> str:
    """Answer a chat-completions request as the model that criticises and rewrites prompts."""
    from tasks.sql_agent.simulation.coaching import reply

    return reply(request)
