"""The committed data: equal to a rebuild, without leaks, each question with one right answer."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from itertools import combinations
from pathlib import Path

from tasks.sql_agent import build, weights
from tasks.sql_agent.database import in_memory
from tasks.sql_agent.players import PLAYERS, SCHEMA, TABLE
from tasks.sql_agent.questions import TEMPLATES
from tasks.sql_agent.reward import shuffled

HERE = Path(build.__file__).parent


def _content(path: Path) -> list[str]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        return list(connection.iterdump())


def test_the_committed_files_are_what_build_makes(tmp_path: Path) -> None:
    build.build(tmp_path)
    for split in (*build.SIZES, *weights.SIZES):
        assert (tmp_path / f"{split}.jsonl").read_text() == (HERE / f"{split}.jsonl").read_text()
    assert _content(tmp_path / "cricket.db") == _content(HERE / "cricket.db")


def test_the_table_is_as_documented() -> None:
    with sqlite3.connect(f"file:{HERE / 'cricket.db'}?mode=ro", uri=True) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(top_batsmen)")]
        count = connection.execute("SELECT COUNT(*), COUNT(DISTINCT player_name) FROM top_batsmen").fetchone()
    assert columns == ["player_name", "country_name", "odi_runs", "t20_runs", "test_runs", "odi_debut_year"]
    assert count[0] == count[1] >= 60


def test_no_question_query_or_combination_is_in_two_splits(rows: dict, all_rows: dict) -> None:
    def normalised(sql: str) -> str:
        return re.sub(r"\s+", " ", sql).strip().rstrip(";").lower()

    keys = {
        "sql": (lambda row: normalised(row["sql"]), all_rows),  # gives template and values: one query, one combination
        "question": (lambda row: re.sub(r"\W+", " ", row["question"].lower()).strip(), all_rows),
        "combination": (lambda row: json.dumps([row["template"], row["values"]], sort_keys=True), rows),
    }
    for name, (key, splits) in keys.items():
        for a, b in combinations(splits, 2):
            shared = {key(row) for row in splits[a]} & {key(row) for row in splits[b]}
            assert not shared, f"{name} shared by {a} and {b}: {shared}"
        for split in {"test", "weights_test"} & set(splits):
            assert max(Counter(key(row) for row in splits[split]).values()) == 1, f"{name} twice in {split}"


def test_splits_hold_all_difficulties_and_all_templates(rows: dict) -> None:
    for split, expected in build.SIZES.items():
        counted = Counter(row["difficulty"] for row in rows[split])
        assert (counted["easy"], counted["medium"], counted["hard"]) == expected
        assert all(row["difficulty"] in row["tags"] for row in rows[split])
        assert len({row["id"] for row in rows[split]}) == len(rows[split])
    assert {row["template"] for row in rows["test"]} == {template.name for template in TEMPLATES}


def test_splits_for_weights_are_large_enough_and_mixed(all_rows: dict) -> None:
    for split, (easy, medium, hard) in weights.SIZES.items():
        counted = Counter(row["tags"][0] for row in all_rows[split])
        assert counted == {"easy": easy, "medium": medium, "hard": hard}
    assert len(all_rows["sft"]) == 400 and len(all_rows["rl"]) >= 1500 and len(all_rows["weights_test"]) >= 600


def test_a_tokenizer_can_hold_the_values_of_the_database(all_rows: dict) -> None:
    values = build.values()
    assert len(values) == len(set(values)) and {"India", "Sachin Tendulkar"} <= set(values)
    quoted = {text for split in all_rows.values() for row in split for text in re.findall(r"'([^']*)'", row["sql"])}
    assert quoted <= set(values)


def test_the_two_promised_questions_are_in_test(rows: dict) -> None:
    asked = {row["question"]: row["difficulty"] for row in rows["test"]}
    assert asked["List all batsmen from India"] == "easy"
    assert asked["Which country has the most debutants after 2012?"] == "hard"


def test_reference_results_are_not_empty_and_no_tie_decides_them(all_rows: dict) -> None:
    """Rows in another physical order must give the same results, ordered where the query orders."""
    tables = [PLAYERS, *(shuffled(PLAYERS, seed) for seed in (1, 2, 3))]
    for table in tables:
        forth = in_memory(SCHEMA, TABLE, table)
        back = in_memory(SCHEMA, TABLE, table[::-1])
        for row in (row for split in all_rows.values() for row in split):
            one, other = forth.query(row["sql"]).rows, back.query(row["sql"]).rows
            assert one, row
            assert one == other if "ORDER BY" in row["sql"] else sorted(one) == sorted(other), row


def test_the_boundary_year_matters_wherever_one_is_named(rows: dict) -> None:
    database = in_memory(SCHEMA, TABLE, PLAYERS)
    for row in (row for split in rows.values() for row in split):
        if re.search(r"odi_debut_year [<>]", row["sql"]) and "LIMIT" not in row["sql"]:
            op = row["values"]["year_op"]
            other = row["sql"].replace(f"year {op} ", f"year {op[0] if '=' in op else op + '='} ")
            assert database.query(row["sql"]).rows != database.query(other).rows, row


def test_questions_are_worded_in_several_ways() -> None:
    assert all(len(template.wordings) >= 2 for template in TEMPLATES)
