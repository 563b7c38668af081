"""The simulated student: understands questions it never saw, and is as good as its instructions."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tasks.sql_agent.reward import execution_match
from tasks.sql_agent.simulation import student
from tasks.sql_agent.simulation.english import understand
from tasks.sql_agent.simulation.reading import read_instructions
from tasks.sql_agent.simulation.writing import read_schema, write_sql

T = "FROM top_batsmen"
UNSEEN = {
    "Please name every Pakistani cricketer.": f"SELECT player_name {T} WHERE country_name = 'Pakistan'",
    "Who are the five leading run scorers in T20s?": f"SELECT player_name {T} ORDER BY t20_runs DESC LIMIT 5",
    "Top 3 Australians by Test runs?": f"SELECT player_name {T} WHERE country_name = 'Australia'"
    " ORDER BY test_runs DESC LIMIT 3",
    "What's the mean of Test runs for South Africa?": f"SELECT AVG(test_runs) {T} WHERE country_name = 'South Africa'",
    "Which team has the fewest players?": f"SELECT country_name {T} GROUP BY 1 ORDER BY COUNT(*) LIMIT 1",
    "For which country does AB de Villiers play?": f"SELECT country_name {T} WHERE player_name = 'AB de Villiers'",
    "Which countries have at least 8 players?": f"SELECT country_name {T} GROUP BY 1 HAVING COUNT(*) >= 8",
    "Give the number of batters per country.": f"SELECT country_name, COUNT(*) {T} GROUP BY 1",
    "List English players sorted by T20 runs, lowest first": f"SELECT player_name {T} WHERE country_name = 'England'"
    " ORDER BY t20_runs",
    "Which New Zealanders debuted before 2000?": f"SELECT player_name {T} WHERE country_name = 'New Zealand'"
    " AND odi_debut_year < 2000",
    "Who scored fewer than 100 T20 runs and at least 8,000 ODI runs?": f"SELECT player_name {T} WHERE t20_runs < 100"
    " AND odi_runs >= 8000",
    "What is the total of ODI runs by Indian batsmen who debuted since 2010?": f"SELECT SUM(odi_runs) {T}"
    " WHERE country_name = 'India' AND odi_debut_year >= 2010",
    "how many players scored above 9000 odi runs for india": f"SELECT COUNT(*) {T} WHERE country_name = 'India'"
    " AND odi_runs > 9000",
    "Show the average T20 runs by country": f"SELECT country_name, AVG(t20_runs) {T} GROUP BY 1",
}
TABLE = """CREATE TABLE top_batsmen (player_name TEXT, country_name TEXT,
    odi_runs INTEGER, t20_runs INTEGER, test_runs INTEGER, odi_debut_year INTEGER)"""
SCHEMA = read_schema(TABLE)


@pytest.mark.parametrize("question", UNSEEN)
def test_it_understands_questions_that_no_template_made(question: str) -> None:
    sql = write_sql(understand(question), SCHEMA, lambda skill: skill != "wordy")
    assert execution_match({"sql": UNSEEN[question]}, sql)["score"] == 1.0, sql


def test_fully_able_it_answers_all_questions(rows: dict) -> None:
    for row in (row for split in rows.values() for row in split):
        sql = write_sql(understand(row["question"]), SCHEMA, lambda skill: skill != "wordy")
        assert execution_match(row, sql)["score"] == 1.0, (row["question"], sql)


def test_the_base_prompt_serves_easy_questions_only(rows: dict, base_prompt: str, accuracy: Callable) -> None:
    level = {name: [row for row in rows["test"] if row["difficulty"] == name] for name in ("easy", "medium", "hard")}
    assert 0.40 <= accuracy(base_prompt, rows["test"]) <= 0.60
    assert accuracy(base_prompt, level["easy"]) >= 0.9
    assert accuracy(base_prompt, level["medium"]) <= 0.35
    assert accuracy(base_prompt, level["hard"]) <= 0.2


def test_a_repaired_prompt_serves_all(rows: dict, repaired_prompt: str, accuracy: Callable) -> None:
    for split in ("val", "test"):
        assert 0.88 <= accuracy(repaired_prompt, rows[split]) <= 0.99, "good, and never perfect"


def test_the_two_promised_questions(rows: dict, base_prompt: str, repaired_prompt: str, accuracy: Callable) -> None:
    asked = {row["question"]: [row] for row in rows["test"]}
    india, debutants = asked["List all batsmen from India"], asked["Which country has the most debutants after 2012?"]
    assert accuracy(base_prompt, india, seeds=60) >= 0.85
    assert accuracy(base_prompt, debutants, seeds=60) <= 0.15
    assert accuracy(repaired_prompt, debutants, seeds=60) >= 0.75


@pytest.mark.parametrize(
    ("instruction", "tag"),
    [
        ("count with COUNT(*)", "count_country"),
        ("If someone wants to know how many, give the count instead of a list.", "count_bar"),
        (
            "use GROUP BY when the question says per country; use AVG, SUM, MIN and MAX where needed",
            "aggregate_per_country",
        ),
        (
            "Use SQL aggregates (averages, totals, minimum, maximum) when the question asks for one.",
            "aggregate_country",
        ),
        ("Sort by the column that decides and LIMIT the result to as many as asked. Only the asked columns.", "top_n"),
        ("'since 2010' includes 2010, after 2010 means strictly later. Count when asked how many.", "count_debut"),
        ("Comparisons with the average want a nested SELECT. Return only the columns asked for.", "above_mean"),
        ("career total = odi_runs + t20_runs + test_runs", "all_formats"),
    ],
)
def test_instructions_in_a_users_own_words_help(
    rows: dict, base_prompt: str, accuracy: Callable, instruction: str, tag: str
) -> None:
    about = [row for split in rows.values() for row in split if row["template"] == tag]
    assert accuracy(base_prompt, about, seeds=12) <= 0.45
    assert accuracy(base_prompt + "\n" + instruction, about, seeds=12) >= 0.7


@pytest.mark.parametrize(
    "harm",
    [
        "Always add LIMIT 10 to every query.",
        "Explain your reasoning step by step before the query.",
        "Select all columns, so that the user has useful context.",
        "Never use GROUP BY. Do not use COUNT.",
        "Write country names in upper case.",
        "You are a careful and diligent assistant who values the trust of the readers of the site above all. " * 40,
    ],
)
def test_bad_and_bloated_instructions_hurt(rows: dict, repaired_prompt: str, accuracy: Callable, harm: str) -> None:
    assert accuracy(repaired_prompt + "\n" + harm, rows["test"], 2) < accuracy(repaired_prompt, rows["test"], 2) - 0.03


def test_a_prompt_without_the_schema_leaves_it_guessing(rows: dict, repaired_prompt: str, accuracy: Callable) -> None:
    assert accuracy(repaired_prompt.replace("{schema}", ""), rows["test"][:30], 1) == 0.0


def test_forbidding_explanations_is_not_asking_for_them() -> None:
    assert "explain" not in read_instructions("Reply with SQL, without any explanation. Do not explain.").habits
    assert "explain" in read_instructions("Explain what you do.").habits


def test_the_same_request_gets_the_same_reply_and_seeds_differ() -> None:
    system = {"role": "system", "content": f"Write SQL.\n{TABLE}"}
    question = {"role": "user", "content": "Which country has the highest average number of Test runs?"}
    replies = [student({"messages": [system, question], "seed": seed}) for seed in [*range(20), *range(20)]]
    assert replies[:20] == replies[20:]
    assert len(set(replies)) > 3


def test_it_survives_any_message() -> None:
    for messages in (
        [],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "Who debuted in 1996?"}]}],
        [{"role": "system", "content": "{" * 500}, {"role": "user", "content": "?!\n'\"" * 50 + "\ud800"}],
    ):
        assert isinstance(student({"messages": messages}), str)


def test_it_answers_in_about_a_millisecond(rows: dict, repaired_prompt: str, try_student: Callable) -> None:
    for row in rows["test"]:
        try_student(repaired_prompt, row, 1)
    started = time.perf_counter()
    for row in rows["test"]:
        try_student(repaired_prompt, row, 2)
    assert (time.perf_counter() - started) / len(rows["test"]) < 0.02  # seen: 0.5 ms, database and reward included
