"""Build cricket.db and all splits of questions. Run: ``python -m tasks.sql_agent.build``

``train``, ``val`` and ``test`` are for prompts; ``sft``, ``rl``, ``rl_val`` and ``weights_test`` for weights.

Everything is deterministic, so the committed files can be compared with a rebuild. A combination (template and values)
becomes a row only if its reference query has one right answer: it returns something, no tie decides what a LIMIT
keeps or how rows are ordered, and in questions about debut years the year itself matters ("after" is not "since").
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.sql_agent import weights
from tasks.sql_agent.database import Database, in_memory
from tasks.sql_agent.players import COUNTRIES, PLAYERS, SCHEMA, TABLE
from tasks.sql_agent.questions import EASY, HARD, MEDIUM, Template, Values, Words
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
    """Write ``cricket.db`` and a ``.jsonl`` file for each split into a folder."""
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
    """All splits. Those for weights are dealt last, from what the others left, so that these stay as they are."""
    deal = _Dealer()
    splits = deal.deal((EASY, MEDIUM, HARD), SIZES, random.Random(SEED), PROMISED)
    more = deal.deal(weights.LEVELS, weights.SIZES, random.Random(SEED), words=weights.WORDS)
    return {**splits, **{split: [_slim(row) for row in rows] for split, rows in more.items()}}


def values() -> list[str]:
    """What a tokenizer may hold as whole words: players and countries. Columns are better learned in pieces."""
    return [player[0] for player in PLAYERS] + list(COUNTRIES)


class _Dealer:
    """Deals usable combinations to splits, so that no query and no question is dealt twice."""

    def __init__(self) -> None:
        self._databases = [in_memory(SCHEMA, TABLE, PLAYERS)]
        self._databases += [in_memory(SCHEMA, TABLE, shuffled(PLAYERS, seed)) for seed in range(1, SHUFFLES + 1)]
        self._queries: set[str] = set()
        self._questions: set[str] = set()

    def deal(
        self,
        levels: Sequence[tuple[Template, ...]],
        sizes: Mapping[str, tuple[int, ...]],
        rng: random.Random,
        promised: Mapping[str, tuple[str, Values]] | None = None,
        words: Words | None = None,
    ) -> dict[str, list[dict[str, Any]]]:
        """Template by template in turn, so that all kinds are in every split. ``promised`` rows go to test."""
        splits: dict[str, list[dict[str, Any]]] = {split: [] for split in sizes}
        for level, templates in enumerate(levels):
            decks = [(template, _deck(template, rng)) for template in templates]
            for split, counts in sizes.items():
                rows = self._promised(templates, promised or {}) if split == "test" else []
                for template, values in self._in_turn(decks):
                    question = template.ask(values, rng, words)
                    if words and question in self._questions:
                        continue
                    self._questions.add(question)
                    rows.append(_row(template, values, question))
                    if len(rows) == counts[level]:
                        break
                splits[split] += rows
        for split, rows in splits.items():
            rng.shuffle(rows)
            splits[split] = [{"id": f"{split}-{i:03d}", **row} for i, row in enumerate(rows)]
        return splits

    def _in_turn(self, decks: list[tuple[Template, list[Values]]]) -> Iterator[tuple[Template, Values]]:
        """One usable combination of each template in turn, while any has one left."""
        while any(deck for _, deck in decks):
            for template, deck in decks:
                while deck:
                    values = deck.pop()
                    sql = template.query(values)
                    if sql not in self._queries and has_one_answer(sql, values, self._databases):
                        self._queries.add(sql)
                        yield template, values
                        break

    def _promised(
        self, templates: tuple[Template, ...], promised: Mapping[str, tuple[str, Values]]
    ) -> list[dict[str, Any]]:
        rows = []
        by_name = {template.name: template for template in templates}
        for question, (name, values) in promised.items():
            if name in by_name:
                self._queries.add(by_name[name].query(values))
                rows.append(_row(by_name[name], values, question))
        return rows


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


def _row(template: Template, values: Values, question: str) -> dict[str, Any]:
    return {
        "question": question,
        "sql": template.query(values),
        "difficulty": template.difficulty,
        "tags": [template.difficulty, *template.tags],
        "template": template.name,
        "values": values,
    }


def _slim(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "question", "sql", "tags")}


if __name__ == "__main__":
    build()
    print(f"built cricket.db and {', '.join(f'{split}.jsonl' for split in (*SIZES, *weights.SIZES))} in {HERE}")
