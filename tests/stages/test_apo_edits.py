"""Small edits: read in any of the forms that models use, applied exactly or dropped and said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from world import Answer, context, rows

from lightningrun.stages.apo.config import ApoConfig
from lightningrun.stages.apo.edits import parse_edits
from lightningrun.stages.apo.replies import BadReply
from lightningrun.stages.apo.stage import run

TEXT = "You answer {question}.\nBe brief.\nUse tables. Use tables.\n"
BLOCK = "<<<<<<< SEARCH\nBe brief.\n=======\nBe brief and exact.\n>>>>>>> REPLACE"
EDITED = TEXT.replace("Be brief.", "Be brief and exact.")


@pytest.mark.parametrize(
    "reply",
    [
        f"It was vague.\n\n{BLOCK}\n",
        f"It was vague.\n```\n{BLOCK}\n```\nI hope this helps!",
        BLOCK.replace("\n", "\r\n"),
        BLOCK.replace("<<<<<<< SEARCH", "<<<<<").replace(">>>>>>> REPLACE", ">>>>>"),
        '{"edits": [{"search": "Be brief.", "replace": "Be brief and exact."}]}',
        'Here:\n```json\n[{"old": "Be brief.", "new": "Be brief and exact."}]\n```',
        "<edit><search>Be brief.</search><replace>Be brief and exact.</replace></edit>",
        f"No edits, but all of it:\n```\n{EDITED}```",
    ],
)
def test_every_form_of_an_edit_is_taken(reply: str) -> None:
    texts, dropped = parse_edits(reply, {"system": TEXT})
    assert texts["system"].strip() == EDITED.strip()
    assert dropped == ()


def test_an_edit_that_does_not_apply_is_dropped_and_said_while_the_others_hold() -> None:
    twice = "<<<<<<< SEARCH\nUse tables.\n=======\nUse lists.\n>>>>>>> REPLACE"
    absent = "<<<<<<< SEARCH\nBe kind.\n=======\nBe cruel.\n>>>>>>> REPLACE"
    texts, dropped = parse_edits(f"{twice}\n{absent}\n{BLOCK}", {"system": TEXT})
    assert texts == {"system": EDITED}
    assert dropped == (
        "edit 1 was dropped: 'Use tables.' is there 2 times",
        "edit 2 was dropped: 'Be kind.' is not in the prompt",
    )
    with pytest.raises(BadReply, match=r"'Use tables.' is there 2 times; .*'Be kind.' is not in the prompt"):
        parse_edits(f"{twice}\n{absent}", {"system": TEXT})


def test_text_is_added_and_deleted_and_later_edits_see_earlier_ones() -> None:
    add = "<<<<<<< SEARCH\n=======\nAnswer in metres.\n>>>>>>> REPLACE"
    change = "<<<<<<< SEARCH\nin metres\n=======\nin feet\n>>>>>>> REPLACE"
    delete = "<<<<<<< SEARCH\nBe brief.\n=======\n>>>>>>> REPLACE"
    texts, _ = parse_edits("\n".join([add, change, delete]), {"system": TEXT})
    assert texts["system"] == "You answer {question}.\n\nUse tables. Use tables.\nAnswer in feet."


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "empty"),
        ("I'm sorry, I cannot do that.", "refused"),
        ("It is fine as it is.", "no prompt"),
        ("<<<<<<< SEARCH\nBe brief.\n=======\nBe", "no end"),
    ],
)
def test_an_answer_without_an_edit_is_no_proposal(reply: str, why: str) -> None:
    with pytest.raises(BadReply, match=why):
        parse_edits(reply, {"system": TEXT})


def test_with_several_prompts_an_edit_goes_where_it_is_named_or_where_its_text_stands() -> None:
    current = {"planner": "Plan well. Be brief.", "writer": "Write well. Be brief."}
    named, _ = parse_edits(f"**writer**\n{BLOCK}", current)
    assert named == {"writer": "Write well. Be brief and exact."}
    found, _ = parse_edits("<<<<<<< SEARCH\nPlan well.\n=======\nPlan twice.\n>>>>>>> REPLACE", current)
    assert found == {"planner": "Plan twice. Be brief."}
    with pytest.raises(BadReply, match="is there 2 times"):
        parse_edits(BLOCK, current)


async def test_a_search_by_edits_asks_for_them_and_tells_what_was_dropped(tmp_path: Path) -> None:
    asked: list[str] = []

    def coach(question: str, again: int) -> str:
        asked.append(question)
        bad = "<<<<<<< SEARCH\nnot there\n=======\nx\n>>>>>>> REPLACE"
        return f"Say amber.\n<<<<<<< SEARCH\nwith care\n=======\nwith amber\n>>>>>>> REPLACE\n{bad}"

    student: Any = lambda p, t, s: Answer(float("amber" in p["system"]), "amber was missing")  # noqa: E731
    config = ApoConfig.model_validate({"type": "apo", "mode": "edits", "budget": {"max_rollouts": 100}})
    splits = {"train": rows("train", 20), "val": rows("val", 20)}
    ctx = context(tmp_path, config, {"system": "Take {question} with care."}, splits, student, coach)
    result = await run(ctx, {})
    assert result.outputs["prompts"].value == {"system": "Take {question} with amber."}
    assert "<<<<<<< SEARCH" in asked[0]
    assert "whole new prompt" not in asked[0]
    told = next(event for event in ctx.journal.events() if event["kind"] == "candidate" and event["id"] == 1)
    assert told["way"] == "edits"
    assert told["critique"].startswith("Say amber.")
    assert "'not there' is not in the prompt" in told["reason"]
