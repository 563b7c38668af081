"""What the reward pays for, and what it says when it does not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tasks.sql_agent.reward import execution_match

INDIA = {"sql": "SELECT player_name FROM top_batsmen WHERE country_name = 'India'"}
COUNT = {"sql": "SELECT COUNT(*) FROM top_batsmen WHERE country_name = 'India'"}
TOP = {"sql": "SELECT player_name FROM top_batsmen ORDER BY odi_runs DESC LIMIT 3"}
MEANS = {"sql": "SELECT country_name, AVG(odi_runs) FROM top_batsmen GROUP BY country_name"}
DEBUTS = {
    "sql": "SELECT country_name FROM top_batsmen WHERE odi_debut_year > 2012"
    " GROUP BY country_name ORDER BY COUNT(*) DESC LIMIT 1"
}


@pytest.mark.parametrize(
    ("task", "sql"),
    [
        (INDIA, "select player_name from top_batsmen where country_name like 'india' order by 1"),
        (TOP, "SELECT player_name FROM top_batsmen ORDER BY 0 - odi_runs LIMIT 3"),
        (MEANS, "SELECT country_name, ROUND(AVG(odi_runs), 2) FROM top_batsmen GROUP BY 1 ORDER BY 2"),
        (MEANS, "SELECT SUM(odi_runs) * 1.0 / COUNT(*), country_name FROM top_batsmen GROUP BY country_name"),
        (COUNT, "SELECT SUM(country_name = 'India') FROM top_batsmen"),
    ],
)
def test_other_words_for_the_same_result_are_right(task: dict[str, str], sql: str) -> None:
    assert execution_match(task, {"sql": sql}) == {"score": 1.0, "feedback": "Correct.", "metrics": {"executes": 1.0}}


@pytest.mark.parametrize(
    ("task", "output", "said"),
    [
        (INDIA, None, "gave no SQL"),
        (INDIA, {"sql": ""}, "gave no SQL"),
        (INDIA, {"sql": ["SELECT 1"]}, "gave no SQL"),
        (INDIA, "SELEC player_name", "syntax error"),
        (INDIA, "SELECT name FROM top_batsmen", "no such column: name"),
        (
            INDIA,
            "SELECT player_name, odi_runs FROM top_batsmen WHERE country_name = 'India'",
            "returned 2 (player_name, odi",
        ),
        (INDIA, "SELECT player_name FROM top_batsmen", "returned 79, expected 15"),
        (COUNT, INDIA["sql"], "asks for a single number; the query ran but returned 15 rows of 1 column"),
        (COUNT, "SELECT COUNT(*) FROM top_batsmen", "returned 79, expected 15"),
        (TOP, "SELECT player_name FROM top_batsmen ORDER BY odi_runs DESC", "returned 79, expected 3"),
        (TOP, f"SELECT * FROM ({TOP['sql']}) ORDER BY 1", "wrong order"),
        (MEANS, "SELECT country_name, ROUND(AVG(odi_runs)) FROM top_batsmen GROUP BY 1", "not the right ones"),
        (INDIA, "DELETE FROM top_batsmen", "not allowed"),
    ],
)
def test_what_is_wrong_is_said(task: dict[str, str], output: Any, said: str) -> None:
    verdict = execution_match(task, output)
    assert verdict["score"] == 0.0
    assert said in verdict["feedback"]


def test_a_lucky_constant_earns_nothing() -> None:
    first = "SELECT country_name FROM top_batsmen LIMIT 1"
    for lucky in ("SELECT 'India'", first, "SELECT MAX(country_name) FROM top_batsmen WHERE country_name < 'J'"):
        verdict = execution_match(DEBUTS, lucky)
        assert verdict["score"] == 0.0
        assert "by chance" in verdict["feedback"]


def test_feedback_never_quotes_the_reference() -> None:
    for task in (INDIA, COUNT, TOP, MEANS, DEBUTS):
        for output in (None, "SELECT 1", "SELECT 1, 2", "nonsense", INDIA["sql"] + " LIMIT 2"):
            feedback = execution_match(task, output)["feedback"]
            assert "SELECT" not in feedback.replace("write a SELECT", "")
            assert "GROUP BY" not in feedback


def test_a_broken_reference_is_an_error_and_not_a_score() -> None:
    with pytest.raises(ValueError, match="reference query of this row does not run"):
        execution_match({"sql": "SELECT nothing FROM nowhere"}, "SELECT 1")


def test_it_is_quick_once_warm() -> None:
    execution_match(DEBUTS, DEBUTS["sql"] + " ")
    started = time.perf_counter()
    for _ in range(200):
        execution_match(DEBUTS, DEBUTS["sql"] + " ")
    assert (time.perf_counter() - started) / 200 < 0.005  # typically 0.2 ms


def test_twenty_thousand_scores_are_less_than_a_minute_of_cpu(all_rows: dict) -> None:
    """Right answers are the dearest: they are run on all four databases."""
    rows = all_rows["rl"][:500]
    for row in rows:
        execution_match(row, row["sql"])
    began = time.process_time()
    for row in rows:
        execution_match(row, row["sql"] + " ")
    assert (time.process_time() - began) / len(rows) < 60 / 20_000  # seen: 0.2 ms
