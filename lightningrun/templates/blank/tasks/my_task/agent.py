"""The agent: one call of a chat model. Replace it with yours; it needs no import of lightningrun.

It is called by the names in its signature: fields of the task's row (`text`), `prompts` (name -> text), `llm` (where
to find the model), and also, if asked for, `task` (the whole row), `seed`, and the recipe's `agent.args`.
"""

from functools import lru_cache

from openai import OpenAI


def answer(text: str, prompts: dict[str, str], llm: dict) -> str:
    client = connect(llm["base_url"], llm["api_key"])
    messages = [{"role": "system", "content": prompts["system"]}, {"role": "user", "content": text}]
    reply = client.chat.completions.create(model=llm["model"], messages=messages)
    return reply.choices[0].message.content or ""


@lru_cache
def connect(base_url: str, api_key: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
