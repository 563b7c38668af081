"""What the tests of the SQL agent share: the task's data, prompts, and a student that is asked without any runner."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # tasks/ is not an installed package: recipes find it from the working directory
    sys.path.insert(0, str(ROOT))

TASK = ROOT / "tasks" / "sql_agent"
BASE = (TASK / "prompts" / "system.md").read_text(encoding="utf-8")
RULES = """\
- When the question asks how many, use COUNT(*); for an average, total, highest or lowest use AVG, SUM, MAX or MIN.
- For "top N", "most" or "fewest", ORDER BY the column and LIMIT to the number of rows asked for.
- GROUP BY country_name when the question says "each country" or asks which country; HAVING for conditions on groups.
- Debut years: after and before are strict (>, <), since includes the year (>=), between includes both.
- Compare with an average by a subquery.
- Runs in all formats are odi_runs + t20_runs + test_runs.
- Return only the columns that the question asks for."""
REPAIRED = BASE.replace("Reply with the SQL query only.", f"{RULES}\n\nReply with the SQL query only.")


def read_rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASK / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def ask_student(prompt: str, row: dict[str, Any], seed: int) -> tuple[str, dict[str, Any]]:
    """One question to the simulated student, as the agent asks it: (its SQL, the reward)."""
    from tasks.sql_agent.agent import extract_sql
    from tasks.sql_agent.database import Database, QueryError
    from tasks.sql_agent.reward import execution_match
    from tasks.sql_agent.simulation import student

    database = Database.open(TASK / "cricket.db")
    messages = [
        {"role": "system", "content": prompt.replace("{schema}", database.schema)},
        {"role": "user", "content": row["question"]},
    ]
    sql = ""
    for _ in range(3):
        reply = student({"model": "policy", "messages": messages, "seed": seed, "temperature": 0.0})
        sql = extract_sql(reply)
        try:
            database.query(sql)
            break
        except QueryError as error:
            again = {"role": "user", "content": f"That query failed: {error}. Write a corrected query."}
            messages = [*messages, {"role": "assistant", "content": reply}, again]
    database.close()
    return sql, execution_match(row, {"sql": sql})


@pytest.fixture(scope="session")
def rows() -> dict[str, list[dict[str, Any]]]:
    return {split: read_rows(split) for split in ("train", "val", "test")}


@pytest.fixture(scope="session")
def all_rows() -> dict[str, list[dict[str, Any]]]:
    """Of the prompt's splits and of those for weights."""
    return {split: read_rows(split) for split in ("train", "val", "test", "sft", "rl", "rl_val", "weights_test")}


@pytest.fixture(scope="session")
def base_prompt() -> str:
    return BASE


@pytest.fixture(scope="session")
def repaired_prompt() -> str:
    return REPAIRED


@pytest.fixture(scope="session")
def try_student() -> Callable[[str, dict[str, Any], int], tuple[str, dict[str, Any]]]:
    return ask_student


@pytest.fixture(scope="session")
def accuracy() -> Callable[..., float]:
    """Mean score of a prompt on rows, over some seeds."""

    def mean(prompt: str, rows: list[dict[str, Any]], seeds: int = 3) -> float:
        scores = [ask_student(prompt, row, seed)[1]["score"] for seed in range(seeds) for row in rows]
        return sum(scores) / len(scores)

    return mean
