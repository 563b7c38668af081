"""The forms in which models answer, and what must never become a prompt."""

from __future__ import annotations

import json
import time

import pytest

from lightningrun.stages.apo.replies import BadReply, parse_reply

CURRENT = {"system": "Answer {question}."}
TEXT = "Answer {question}.\n\nBe brief."
TWO = {"planner": "Plan it.", "writer": "Write it."}


@pytest.mark.parametrize(
    "reply",
    [
        f"```\n{TEXT}\n```",
        f"The rules were unclear.\n\n```markdown\n{TEXT}\n```\nThis should help!",
        f"First idea:\n```\nAnswer.\n```\nOn reflection, better:\n```text\n{TEXT}\n```",
        f"~~~~prompt\n{TEXT}\n~~~~",
        f"```\r\n{TEXT}\r\n```".replace("\n\n", "\r\n\r\n"),
        f"Sure!\n<prompt>\n{TEXT}\n</prompt>\nDone.",
        f"<system>{TEXT}</system>",
        f'<prompt name="system">\n{TEXT}\n</prompt>',
        f"<NEW_PROMPT>\n```\n{TEXT}\n```\n</NEW_PROMPT>",
        f"```xml\n<new_prompt>{TEXT}</new_prompt>\n```",
        json.dumps({"analysis": "x", "prompt": TEXT}),
        f"Here you are:\n```json\n{json.dumps({'system': TEXT})}\n```",
        "My answer: " + json.dumps({"prompts": {"system": TEXT}}),
        TEXT,
        f"Here is the new prompt:\n\n{TEXT}",
        f"**Improved prompt:**\n{TEXT}",
        f"I see.\n```\n{TEXT}",
    ],
)
def test_each_form_gives_the_same_prompt(reply: str) -> None:
    assert parse_reply(reply, CURRENT) == {"system": TEXT}


def test_a_fenced_example_inside_the_prompt_stays_in_it() -> None:
    inner = "Answer {question}.\n```sql\nSELECT 1\n```\nReply with SQL."
    assert parse_reply(f"Why.\n```\n{inner}\n```\nBye", CURRENT) == {"system": inner}
    assert parse_reply(f"````\n{inner}\n````", CURRENT) == {"system": inner}


def test_tags_that_the_prompt_itself_uses_are_its_own() -> None:
    current = {"system": "<instructions>Answer {question}.</instructions>\nGo."}
    new = "<instructions>Answer {question} now.</instructions>\nGo."
    assert parse_reply(new, current) == {"system": new}


@pytest.mark.parametrize(
    "reply",
    [
        "```planner\nPlan well.\n```\n```writer\nWrite well.\n```",
        "planner\n```\nPlan well.\n```\n\n### writer:\n```\nWrite well.\n```",
        "```\nPlan well.\n```\nand\n```\nWrite well.\n```",
        "<planner>Plan well.</planner> and <writer>Write well.</writer>",
        json.dumps({"planner": "Plan well.", "writer": "Write well."}),
    ],
)
def test_several_prompts_come_by_name(reply: str) -> None:
    assert parse_reply(reply, TWO) == {"planner": "Plan well.", "writer": "Write well."}


def test_one_of_several_prompts_may_stay_as_it_is() -> None:
    assert parse_reply("The writer is at fault.\nwriter\n```\nWrite well.\n```", TWO) == {"writer": "Write well."}


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("```\n\n```", "no prompt"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("I cannot assist with this request.", "refused"),
        ('{"error": "overloaded"}', "JSON without a prompt"),
        ("x" * 300_000, "characters long"),
    ],
)
def test_what_is_no_prompt_is_a_failed_proposal(reply: str, why: str) -> None:
    with pytest.raises(BadReply, match=why):
        parse_reply(reply, CURRENT)


def test_an_unfinished_answer_is_no_prompt() -> None:
    for reply in (f"```\n{TEXT}", TEXT):
        with pytest.raises(BadReply, match="cut off"):
            parse_reply(reply, CURRENT, cut_off=True)
    with pytest.raises(BadReply, match="no prompt"):
        parse_reply("Both are fine as they are.", TWO)


def test_hostile_answers_are_read_quickly() -> None:
    began = time.process_time()
    for reply in ("```\n" * 20_000, "<prompt>" * 6_000, "{" * 50_000, "[" * 50_000, "`" * 50_000, "<prompt " * 6_000):
        try:
            parse_reply(reply, CURRENT)
        except BadReply:
            pass
    assert time.process_time() - began < 3
