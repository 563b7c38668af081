"""Which agent of several made a call, and the prompt of an agent that has it built in: the same in every protocol."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.conftest import House, Opens
from tests.gateway.test_gateway_messages import claude

WRITER = "You are a writer of SQL. The tables are {schema}. Write one query."
CHECKER = "You check a query that another wrote."
BASE = "You are old."
NEW = "You are new."


def bound(h: House, **options: Any) -> None:
    h.session = h.service.session(stage="s", owner="o", **options)
    h.gateway.bind(h.url.split("/")[-2], h.session)


def agents(h: House) -> list[str]:
    return [h.service.read(ref).agent for ref in h.session.refs]


@pytest.mark.parametrize(
    ("model", "messages", "header", "expected"),
    [
        ("policy", [("system", CHECKER)], "planner", "planner"),
        ("writer", [("system", CHECKER)], "", "writer"),
        ("judge", [("system", CHECKER)], "", "judge"),
        ("policy", [("system", CHECKER), ("user", "x")], "", "checker"),
        ("gpt-4o", [("developer", f"{CHECKER} Today is Monday.")], "", "checker"),
        ("gpt-4o", [("system", WRITER.format(schema="t(a, b)"))], "", "writer"),
        ("gpt-4o", [("user", WRITER.format(schema="t(a, b)"))], "", "writer"),
        ("gpt-4o", [("system", "Something else."), ("user", "x")], "", "gpt-4o"),
        ("policy", [("system", "Something else."), ("user", "x")], "", ""),
        ("policy", [("user", "What is 1?")], "", ""),
        ("real-model", [("user", "x")], "", ""),
    ],
)
async def test_the_agent_is_named_by_header_alias_or_prompt(
    house: Opens, model: str, messages: list[tuple[str, str]], header: str, expected: str
) -> None:
    async with house("ok") as h:
        bound(h, prompts={"writer": WRITER, "checker": CHECKER, "asker": "{question}?"})
        body: Any = [{"role": role, "content": content} for role, content in messages]
        extra = {"X-Agent-Name": header} if header else {}
        await h.client.chat.completions.create(model=model, messages=body, extra_headers=extra)
        assert agents(h) == [expected]


async def test_every_protocol_tells_the_agent_by_the_prompt_it_carries(house: Opens) -> None:
    async with house("ok") as h, claude(h) as client:
        bound(h, prompts={"writer": WRITER, "checker": CHECKER})
        await h.client.responses.create(model="policy", instructions=CHECKER, input="x")
        await client.messages.create(
            model="policy", max_tokens=9, system=CHECKER, messages=[{"role": "user", "content": "y"}]
        )
        blocks: Any = [{"type": "text", "text": "Hello."}, {"type": "text", "text": CHECKER}]
        await client.messages.create(
            model="policy", max_tokens=9, system=blocks, messages=[{"role": "user", "content": "y"}]
        )
        await h.client.completions.create(model="policy", prompt=f"{CHECKER} It is: SELECT 1")
        assert agents(h) == ["checker"] * 4


async def test_a_built_in_prompt_is_replaced_wherever_a_protocol_has_it(house: Opens) -> None:
    async with house("ok") as h, claude(h) as client:
        bound(h, rewrites={BASE: NEW}, prompts={"system": BASE})
        hi: Any = {"role": "user", "content": "hi"}
        for role in ("system", "developer", "user"):
            await h.client.chat.completions.create(model="policy", messages=[{"role": role, "content": BASE}, hi])  # type: ignore[list-item,misc]
        parts: Any = [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "text", "text": BASE}]}]
        await h.client.chat.completions.create(model="policy", messages=parts)
        await h.client.responses.create(model="policy", instructions=BASE, input="hi")
        await h.client.responses.create(model="policy", input=[{"role": "developer", "content": BASE}, hi])
        await client.messages.create(model="policy", max_tokens=9, system=BASE, messages=[hi])
        blocks: Any = [
            {"type": "text", "text": BASE, "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "More."},
        ]
        await client.messages.create(model="policy", max_tokens=9, system=blocks, messages=[hi])
        await client.messages.create(model="policy", max_tokens=9, messages=[{"role": "user", "content": BASE}])
        await h.client.completions.create(model="policy", prompt=BASE, max_tokens=7)
        sent = [str(request["messages"]) for request in h.endpoint.requests]
        assert len(sent) == 10 and all(NEW in text and BASE not in text for text in sent)
        assert h.session.rewritten == {BASE: 10}, "counted"
        assert agents(h) == ["system"] * 10, "known by the text that it has built in"


async def test_an_almost_equal_prompt_is_left_alone(house: Opens) -> None:
    async with house("ok") as h:
        bound(h, rewrites={BASE: NEW})
        await h.client.responses.create(model="policy", instructions=BASE + " Very.", input=BASE.lower())
        assert h.session.rewritten == {} and NEW not in str(h.endpoint.requests)


LONG = "You write one SQLite query that answers\nthe question of the user.\n"


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        (f"Role: analyst. {LONG}Rules: call a tool.", "Role: analyst. Count well.\nRules: call a tool."),
        (f"{LONG.strip()}", "Count well."),
        ("    You write one SQLite query that answers\n    the question of the user.", "    Count well."),
        (f"{LONG}\nQuestion: how many? You are old.", "Count well.\n\nQuestion: how many? You are old."),
        ("You write one SQLite query that answers\nthe question of the users.", None),
        ("You are old.\n", "You are new."),
    ],
)
async def test_a_long_built_in_prompt_is_found_within_a_framework_s_own_words(
    house: Opens, said: str, sent: str | None
) -> None:
    async with house("ok") as h:
        bound(h, rewrites={BASE: NEW, LONG: "Count well.\n", "": "nothing"}, prompts={})
        before: Any = [{"role": "assistant", "content": LONG}, {"role": "tool", "tool_call_id": "1", "content": LONG}]
        await h.client.chat.completions.create(model="policy", messages=[{"role": "user", "content": said}, *before])
        messages = h.endpoint.requests[0]["messages"]
        assert messages[0]["content"] == (said if sent is None else sent)
        assert [message["content"] for message in messages[1:]] == [LONG, LONG], "what was said before stays"
        assert sum(h.session.rewritten.values()) == (sent is not None)
