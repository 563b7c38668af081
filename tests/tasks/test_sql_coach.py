"""The simulated coach: copes with any layout, helps more often than not, and errs as models do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tasks.sql_agent.simulation import coach

FAILURES = [
    (
        "How many players are from India?",
        "SELECT player_name FROM top_batsmen WHERE country_name = 'India'",
        "The question asks for a single number; the query ran but returned 15 rows of 1 column (player_name).",
    ),
    (
        "Which country has the most debutants after 2012?",
        "SELECT country_name FROM top_batsmen WHERE odi_debut_year >= 2012 ORDER BY odi_debut_year DESC LIMIT 1",
        "Right by chance only: the same query gives a wrong result when the table holds other numbers.",
    ),
    (
        "Who are the top 5 batsmen by ODI runs?",
        "SELECT player_name, odi_runs FROM top_batsmen",
        "Wrong columns: returned 2 (player_name, odi_runs), the question asks for 1. Also 79 rows instead of 5.",
    ),
]


def _tagged(prompt: str) -> str:
    shown = [f"<failure>\n[user] {q}\n[assistant] {sql}\n[feedback] {said}\n</failure>" for q, sql, said in FAILURES]
    return (
        f"You improve prompts.\n<current_prompt>\n{prompt}\n</current_prompt>\n"
        + "\n".join(shown)
        + ("\nGive the whole new prompt in one fenced block.")
    )


def _fenced(prompt: str) -> str:
    shown = [f"# Example {i}\n## Inputs\n{q}\n## Generated Outputs\n{sql}\n## Feedback\n{said}\n"
             for i, (q, sql, said) in enumerate(FAILURES, 1)]  # fmt: skip
    return (
        f"I gave an assistant these instructions for a task:\n```\n{prompt}\n```\nHere are task inputs, its responses"
        " and feedback:\n```\n" + "\n".join(shown) + "\n```\nWrite a new instruction for it, within ``` blocks."
    )


def _sectioned(prompt: str) -> str:
    shown = [
        f"Failure {i}\nquestion: {q}\nanswer: {sql}\nfeedback: {said}\n" for i, (q, sql, said) in enumerate(FAILURES)
    ]
    return f"CURRENT PROMPT:\n{prompt}\n\n---\nFAILURES\n" + "\n".join(shown) + "\n---\nPlease rewrite the prompt."


LAYOUTS: dict[str, Callable[[str], str]] = {"tagged": _tagged, "fenced": _fenced, "sectioned": _sectioned}


def _ask(text: str, seed: int, **more: Any) -> str:
    return coach({"model": "coach", "messages": [{"role": "user", "content": text}], "seed": seed, **more})


def _prompt_in(reply: str) -> str:
    blocks = re.findall(r"^```\n(.*?)\n```$", reply, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else ""


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_it_revises_the_prompt_whatever_the_layout(layout: Callable[[str], str], base_prompt: str) -> None:
    revised = [_prompt_in(_ask(layout(base_prompt), seed)) for seed in range(40)]
    kept = [text for text in revised if text.startswith("You are a data assistant") and "{schema}" in text]
    assert len(kept) >= 32, "most rewrites keep what was there"
    assert not any("[feedback]" in text or "Generated Outputs" in text for text in revised)
    taught = " ".join(revised)
    assert "COUNT" in taught and "GROUP BY" in taught and "LIMIT" in taught


def test_it_helps_more_often_than_not(rows: dict, base_prompt: str, accuracy: Callable) -> None:
    before = accuracy(base_prompt, rows["val"], 2)
    after = [
        accuracy(text, rows["val"], 1)
        for text in (_prompt_in(_ask(_tagged(base_prompt), s)) for s in range(24))
        if text
    ]
    assert sum(score > before for score in after) > len(after) / 2
    assert max(after) < 0.85, "one rewrite does not mend everything"


def test_it_loses_placeholders_now_and_then(base_prompt: str) -> None:
    lost = sum("{schema}" not in _prompt_in(_ask(_tagged(base_prompt), seed)) for seed in range(400))
    assert 4 <= lost <= 40


def test_it_is_sometimes_on_a_wrong_track(base_prompt: str) -> None:
    fads = re.compile(
        r"LIMIT 10|step by step|Round averages|zero runs|all columns|upper case|professional|JOIN|alias|Prefer simple"
    )
    wrong = sum(bool(fads.search(_prompt_in(_ask(_tagged(base_prompt), seed)))) for seed in range(200))
    assert 20 <= wrong <= 100


def test_it_takes_back_what_did_harm() -> None:
    fad = "- Always add LIMIT 10 to every query, to keep results readable."
    text = (
        f"<current_prompt>\nAnswer with SQL.\n\n{{schema}}\n\nRules:\n{fad}\n- Be brief.\n</current_prompt>\n"
        "<failure>\n[user] List all batsmen from India\n[feedback] Wrong number of rows: returned 10, expected 15."
        " Missing: Shubman Gill and 4 more.\n</failure>\nGive the new prompt."
    )
    removed = sum("LIMIT 10" not in _prompt_in(_ask(text, seed)) for seed in range(60))
    assert removed >= 25


def test_asked_for_a_critique_it_gives_one_and_rewrites_from_one(base_prompt: str) -> None:
    shown = "\n".join(f"Failure {i}\nquestion: {q}\nfeedback: {said}" for i, (q, _, said) in enumerate(FAILURES))
    block = f"<prompt>\n{base_prompt}\n</prompt>\n"
    critique = _ask(f"{block}{shown}\nCritique the prompt: what went wrong?", 3)
    assert "```" not in critique and "- " in critique
    revised = _prompt_in(_ask(f"{block}A critique of it:\n{critique}\nWrite the improved prompt.", 4))
    assert revised.startswith("You are a data assistant") and len(revised) > len(base_prompt)


def test_it_uses_the_tag_that_was_asked_for(base_prompt: str) -> None:
    reply = _ask(_tagged(base_prompt).replace("one fenced block", "full between <new_prompt> and </new_prompt>"), 5)
    assert "<new_prompt>\nYou are a data assistant" in reply


def test_without_a_prompt_it_says_so() -> None:
    assert "cannot find a prompt" in _ask("Hello?", 1)


def test_the_same_request_gets_the_same_reply(base_prompt: str) -> None:
    replies = [_ask(_tagged(base_prompt), seed) for seed in [*range(10), *range(10)]]
    assert replies[:10] == replies[10:]
    assert len(set(replies)) > 7
