"""A folder in the layout of Spider's zip, with four small databases of our own."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

DATABASES = {
    "concerts": "CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INT);"
    "CREATE TABLE show (id INTEGER PRIMARY KEY, singer_id INT REFERENCES singer(id), seats INT);"
    "INSERT INTO singer VALUES (1, 'Ana', 31), (2, 'Bo', 22), (3, 'Cy', 31);"
    "INSERT INTO show VALUES (1, 1, 100), (2, 1, 300), (3, 2, 200);",
    "pets": "CREATE TABLE pet (name TEXT, kind TEXT, weight REAL);"
    "INSERT INTO pet VALUES ('Rex', 'dog', 9.5), ('Tom', 'cat', 4.0);",
    "shops": "CREATE TABLE shop (name TEXT, city TEXT);"
    "INSERT INTO shop VALUES ('A', 'Oslo'), ('B', 'Rome'), ('C', 'Oslo');",
    "dev_trips": "CREATE TABLE trip (id INT, km INT); INSERT INTO trip VALUES (1, 10), (2, 25), (3, 25);",
}
TRAIN = [
    ("concerts", "Who are the singers, youngest first?", "SELECT name FROM singer ORDER BY age, name;"),
    ("concerts", "How many shows has each singer?",
     "SELECT T1.name, count(*) FROM singer AS T1 JOIN show AS T2 ON T1.id = T2.singer_id GROUP BY T1.name"),
    ("concerts", "Who has no show?", "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM show)"),
    ("concerts", "Who is over 90?", "SELECT name FROM singer WHERE age > 90"),
    ("pets", "How heavy is Rex?", "SELECT weight FROM pet WHERE name = 'Rex'"),
    ("pets", "What is the length of each pet?", "SELECT length FROM pet"),
    ("shops", "How many shops are in Oslo?", "SELECT count(*) FROM shop WHERE city = 'Oslo'"),
    ("shops", "Which cities have shops?", "SELECT DISTINCT city FROM shop"),
]  # fmt: skip
DEV = [
    ("dev_trips", "How long is the longest trip?", "SELECT max(km) FROM trip"),
    ("dev_trips", "Which trips are over 100 km?", "SELECT id FROM trip WHERE km > 100"),
]


def make(root: Path) -> Path:
    """``root`` as the zip unpacks to, and more than we read."""
    tables = []
    for db, script in DATABASES.items():
        folder = root / "database" / db
        folder.mkdir(parents=True)
        connection = sqlite3.connect(folder / f"{db}.sqlite")
        connection.executescript(script)
        tables.append(_described(db, connection))
        connection.close()
        (folder / "schema.sql").write_text(script)
    (root / "tables.json").write_text(json.dumps(tables))
    for name, questions in (("train_spider", TRAIN), ("dev", DEV), ("train_others", [])):
        (root / f"{name}.json").write_text(json.dumps([_entry(*question) for question in questions]))
    (root / "dev_gold.sql").write_text("")
    return root


def _entry(db: str, question: str, sql: str) -> dict[str, Any]:
    return {"db_id": db, "question": question, "query": sql, "question_toks": question.split(), "sql": {}}


def _described(db: str, connection: sqlite3.Connection) -> dict[str, Any]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns: list[tuple[int, str]] = [(-1, "*")]
    types, primary, foreign = ["text"], [], []
    for number, table in enumerate(tables):
        for _, name, kind, _, _, key in connection.execute(f"PRAGMA table_info({table})"):
            primary += [len(columns)] if key else []
            columns.append((number, name))
            types.append("text" if kind == "TEXT" else "number")
    for number, table in enumerate(tables):
        for row in connection.execute(f"PRAGMA foreign_key_list({table})"):
            ends = (columns.index((number, row[3])), columns.index((tables.index(row[2]), row[4])))
            foreign.append(ends)
    return {
        "db_id": db, "table_names_original": tables, "table_names": tables, "column_names_original": columns,
        "column_names": columns, "column_types": types, "primary_keys": primary, "foreign_keys": foreign,
    }  # fmt: skip
