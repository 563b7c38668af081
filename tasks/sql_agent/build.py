"""Build cricket.db and the three splits of questions. Run: ``python -m tasks.sql_agent.build``

Everything is deterministic, so the committed files can be compared with a rebuild. A combination (template and values)
becomes a row only if its reference query has one right answer: it returns something, no tie decides what a LIMIT
keeps or how rows are ordered, and in questions about debut years the year itself matters ("after" is not "since").
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.sql_agent.database import Database, in_memory
from tasks.sql_agent.players import PLAYERS, SCHEMA, TABLE
from tasks.sql_agent.questions import EASY, HARD, MEDIUM, Template, Values
from tasks.sql_agent.reward import SHUFFLES, shuffled

HERE = Path(__file__).parent
SEED = 20
SIZES = {"test": (40, 34, 26), "val": (20, 17, 13), "train": (26, 24, 20)}
"""Split -> rows of (easy, medium, hard). Test is largest: that is where a gain is confirmed."""

PROMISED: dict[str, tuple[str, Values]] = {
    "List all batsmen from India": ("from_country", {"country": "India"}),
    "Which country has the most debutants after 2012?": ("most_debuts", {"year_op": ">", "year": 2012}),
}
"""Questions that the documentation shows; always in test."""

_ORDER = re.compile(r"^SELECT .*? FROM (.*) ORDER BY (.*?)( DESC)?(?: LIMIT (\d+))?$")
_NEXT_DOOR = {">": ">=", ">=": ">", "<": "<="}


def build(folder: Path = HERE) -> None:
    """Write ``cricket.db``, ``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` into a folder."""
    write_database(folder / "cricket.db")
    for split, rows in make_splits().items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_database(path: Path) -> None:
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(SCHEMA)
        connection.executemany(f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?)", PLAYERS)
    connection.close()


def make_splits() -> dict[str, list[dict[str, Any]]]:
    """Deal the usable combinations to the splits, template by template in turn so that all kinds are everywhere."""
    rng = random.Random(SEED)
    databases = [in_memory(SCHEMA, TABLE, PLAYERS)]
    databases += [in_memory(SCHEMA, TABLE, shuffled(PLAYERS, seed)) for seed in range(1, SHUFFLES + 1)]
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SIZES}
    used: set[str] = set()
    for level, templates in enumerate((EASY, MEDIUM, HARD)):
        decks = [(template, _deck(template, rng)) for template in templates]
        for split, sizes in SIZES.items():
            rows = _promised(templates, used) if split == "test" else []
            for template, values in _in_turn(decks, used, databases):
                rows.append(_row(template, values, template.ask(values, rng)))
                if len(rows) == sizes[level]:
                    break
            splits[split] += rows
    for split, rows in splits.items():
        rng.shuffle(rows)
        splits[split] = [{"id": f"{split}-{i:03d}", **row} for i, row in enumerate(rows)]
    return splits


def has_one_answer(sql: str, values: Values, databases: list[Database]) -> bool:
    """Whether a reference query leaves no doubt about its result, on the real table and on the shuffled ones."""
    if any(not database.query(sql).rows for database in databases) or any(_is_tied(sql, db) for db in databases):
        return False
    if sql.startswith("SELECT COUNT") and databases[0].query(sql).rows == [(0,)]:
        return False
    if "year_op" in values:
        op, year = values["year_op"], values["year"]
        other = sql.replace(f"{op} {year}", f"{_NEXT_DOOR[op]} {year}")
        if "LIMIT" not in sql:
            return databases[0].query(sql).rows != databases[0].query(other).rows
        return any(database.query(sql).rows != database.query(other).rows for database in databases)
    if "first" in values:
        strict = sql.replace("BETWEEN", ">").replace(" AND ", " AND odi_debut_year < ")
        return databases[0].query(sql).rows != databases[0].query(strict).rows
    return True


def _is_tied(sql: str, database: Database) -> bool:
    found = _ORDER.match(sql)
    if not found:
        return False
    source, key, descending, limit = found.groups()
    keys = database.query(f"SELECT {key} FROM {source} ORDER BY {key}{descending or ''}").rows
    deciding = keys[: int(limit) + 1] if limit else keys
    return len(set(deciding)) < len(deciding) or len(keys) < int(limit or 0)


def _deck(template: Template, rng: random.Random) -> list[Values]:
    values = list(template.values())
    rng.shuffle(values)
    return values


def _in_turn(
    decks: list[tuple[Template, list[Values]]], used: set[str], databases: list[Database]
) -> Iterator[tuple[Template, Values]]:
    """One usable combination of each template in turn, while any has one left."""
    while any(deck for _, deck in decks):
        for template, deck in decks:
            while deck:
                values = deck.pop()
                sql = template.query(values)
                if sql not in used and has_one_answer(sql, values, databases):
                    used.add(sql)
                    yield template, values
                    break


def _promised(templates: tuple[Template, ...], used: set[str]) -> list[dict[str, Any]]:
    rows = []
    by_name = {template.name: template for template in templates}
    for question, (name, values) in PROMISED.items():
        if name in by_name:
            used.add(by_name[name].query(values))
            rows.append(_row(by_name[name], values, question))
    return rows


def _row(template: Template, values: Values, question: str) -> dict[str, Any]:
    return {
        "question": question,
        "sql": template.query(values),
        "difficulty": template.difficulty,
        "tags": [template.difficulty, *template.tags],
        "template": template.name,
        "values": values,
    }


if __name__ == "__main__":
    build()
    print(f"built cricket.db and {', '.join(f'{split}.jsonl' for split in SIZES)} in {HERE}")
