"""Rows from elsewhere than text files: Parquet, SQL, Python functions, Hugging Face. What is wrong has its row."""

from __future__ import annotations

import datetime
import json
import sqlite3
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lightningrun import dataset
from lightningrun.dataset import Dataset
from lightningrun.dataset.sql import QueryFailed, sqlite_rows
from lightningrun.errors import DatasetError, Missing, Problem
from lightningrun.recipe.model import TaskConfig

ROWS = [{"id": "a", "q": "one"}, {"id": "b", "q": "two"}, {"id": "c", "q": "three"}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(environ: dict[str, str] | None = None, **splits: Any) -> Dataset:
    config = TaskConfig.model_validate({"data": splits})
    return dataset.load(config, lambda key, m, h: Problem(m, "r.yaml", 3, 4, h), environ=environ)


def problems(environ: dict[str, str] | None = None, **splits: Any) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        load(environ, **splits)
    return [str(problem).removeprefix("r.yaml:3:4: ") for problem in caught.value.problems]


def rows(**splits: Any) -> list[dict[str, Any]]:
    return [dict(task.fields) for split in load(**splits).splits.values() for task in split.tasks]


def jsonl_digest(folder: Path) -> str:
    path = folder / "same.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return load(train=str(path)).splits["train"].digest


@pytest.fixture
def database(folder: Path) -> Path:
    path = folder / "rows.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE r (id TEXT, q TEXT, n)")
        connection.executemany("INSERT INTO r VALUES (?, ?, 1)", [(row["id"], row["q"]) for row in ROWS])
    connection.close()
    return path


@pytest.fixture
def parquet(folder: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    def write(listed: list[dict[str, Any]]) -> str:
        parquet.write_table(pyarrow.Table.from_pylist(listed), folder / "rows.parquet")
        return str(folder / "rows.parquet")

    return write


def test_all_sources_give_the_same_rows_and_digest(folder: Path, database: Path, parquet: Any) -> None:
    (folder / "mine.py").write_text(f"def rows(upto): return ({ROWS!r})[:upto]")
    query = "SELECT id, q FROM r ORDER BY id"
    sources: list[Any] = [
        parquet(ROWS),
        {"sql": query, "database": str(database)},
        {"sql": query, "database": f"sqlite:///{database}"},
        {"python": "mine:rows", "args": {"upto": 3}},
        {"python": "mine.py:rows", "args": {"upto": 3}},
    ]
    assert {load(train=source).splits["train"].digest for source in sources} == {jsonl_digest(folder)}


def test_values_become_json(parquet: Any) -> None:
    row = {"id": 1, "day": datetime.date(2024, 2, 29), "price": Decimal("1.5"), "tags": ["a"], "in": {"x": None}}
    assert rows(train=parquet([row])) == [{**row, "day": "2024-02-29", "price": 1.5}]


def test_what_json_cannot_hold_is_named_with_its_row(parquet: Any) -> None:
    path = parquet([{"id": 1, "x": 1.0, "b": None}, {"id": 2, "x": float("nan"), "b": None}, {"id": 3, "b": b"\0"}])
    assert problems(train=path) == [
        "rows.parquet:2: field 'x' is nan, which is not JSON",
        "rows.parquet:3: field 'b' is a bytes, which JSON cannot hold",
    ]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT * FROM nope", "task.data.train.sql: the query failed: no such table: nope"),
        ("DELETE FROM r", "task.data.train.sql: the query failed: only a SELECT may run here"),
        ("ATTACH 'new.db' AS x", "task.data.train.sql: the query failed: only a SELECT may run here"),
        ("VACUUM INTO 'copy.db'", "task.data.train.sql: the query failed: only a SELECT may run here"),
        ("", "task.data.train.sql: the query failed: it returns no columns; write a SELECT"),
        ("SELECT id, q AS id FROM r", "task.data.train.sql: the query failed: two columns are called 'id'; name one"),
        ("SELECT id FROM r WHERE n = 2", "task.data.train: no rows"),
        ("SELECT 'a' AS id FROM r", "task.data.train: row 2: id 'a' is also at row 1 of task.data.train"),
    ],
)
def test_a_query_that_fails_or_writes(database: Path, folder: Path, query: str, said: str) -> None:
    before = database.read_bytes()
    assert problems(train={"sql": query, "database": str(database)})[0].startswith(said)
    assert database.read_bytes() == before
    assert not (folder / "new.db").exists() and not (folder / "copy.db").exists()


def test_a_query_by_url_cannot_write_either(database: Path) -> None:
    source = {"sql": "DELETE FROM r", "database": f"sqlite:///{database}"}
    assert problems(train=source) == ["task.data.train.sql: the query failed: attempt to write a readonly database"]


def test_a_query_that_runs_away_is_ended(database: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) AS x FROM n"
    with pytest.raises(QueryFailed, match=r"longer than 0\.2 s"):
        list(sqlite_rows(database, endless, deadline_s=0.2))


def test_a_database_is_found_by_a_variable_and_its_password_is_not_said(database: Path, folder: Path) -> None:
    source = {"sql": "SELECT id FROM r", "database_env": "ROWS_URL"}
    found = load({"ROWS_URL": f"sqlite:///{database}"}, train=source)
    assert [task.id for task in found.splits["train"].tasks] == ["a", "b", "c"]
    with pytest.raises(Missing, match=r"task\.data\.train: ROWS_URL is not set"):
        load({}, train=source)
    with pytest.raises((Missing, DatasetError)) as caught:
        load({"ROWS_URL": "postgresql://me:hunter2hunter2@127.0.0.1:1/x"}, train=source)
    assert "hunter2" not in str(caught.value)
    assert problems(train={"sql": "SELECT 1", "database": str(folder / "row.db")}) == [
        "task.data.train.database: cannot read row.db: No such file or directory; did you mean 'rows.db'?"
    ]


LOADERS = """
import os, sys, time

def noisy():
    print("{not a row}")
    yield {"id": 1}

def broken():
    yield {"id": 1}
    yield {"id": 2, "x": float("inf")}
    yield {"id": 2, "x": object()}
    yield [3]
    yield {"id": 1}

def raising():
    yield {"id": 1}
    raise LookupError("no more")

def dying():
    yield {"id": 1}
    os._exit(7)

def endless():
    open("pid", "w").write(str(os.getpid()))
    number = 0
    while True:
        number += 1
        yield {"id": number}

def nothing():
    return 3
"""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "broken",
            [
                "task.data.train: row 2: field 'x' is inf, which is not JSON",
                "task.data.train: row 3: field 'x' is a object, which JSON cannot hold",
                "task.data.train: row 4: a row must be a JSON object, not list",
                "task.data.train: row 5: id '1' is also at row 1 of task.data.train",
            ],
        ),
        ("raising", ["task.data.train.python: LookupError: no more (loaders.py:17)"]),
        ("dying", ["task.data.train.python: it ended with code 7"]),
        ("nothing", ["task.data.train.python: TypeError: 'int' object is not iterable"]),
        ("nowhere", ["task.data.train.python: AttributeError: module 'loaders' has no attribute 'nowhere'"]),
    ],
)
def test_a_function_that_goes_wrong_is_told_in_a_line(folder: Path, function: str, said: list[str]) -> None:
    (folder / "loaders.py").write_text(LOADERS)
    assert problems(train={"python": f"loaders:{function}"}) == said


def test_a_function_may_print_and_is_ended_when_enough_rows_are_there(folder: Path) -> None:
    (folder / "loaders.py").write_text(LOADERS)
    assert rows(train={"python": "loaders:noisy"}) == [{"id": 1}]
    assert rows(train={"python": "loaders:endless", "limit": 3}) == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert "loaders" not in sys.modules
    assert not Path(f"/proc/{(folder / 'pid').read_text()}").exists()


def test_hugging_face_datasets_need_their_package(folder: Path) -> None:
    (folder / "saved").mkdir()
    (folder / "saved/state.json").write_text("{}")
    try:
        import datasets
    except ModuleNotFoundError:
        for source in ({"huggingface": "squad"}, str(folder / "saved")):
            with pytest.raises(Missing, match=r"task\.data\.train: datasets is not installed; pip install datasets"):
                load(train=source)
        return
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(folder / "both")
    assert load(train=str(folder / "both")).splits["train"].digest == jsonl_digest(folder)
    assert "it has no split 'val'; name one of train" in problems(val=str(folder / "both"))[0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "needs 'path' or 'sql' or 'python' or 'huggingface'"),
        ({"sql": "SELECT 1"}, "needs 'database' or 'database_env'"),
        ({"path": "x.csv", "revision": "main"}, "'revision' is for 'huggingface'"),
        ({"path": "x.csv", "shard": {"index": 2, "count": 2}}, "must be less than 'count'"),
        ({"sql": "SELECT 1", "database_env": "postgresql://x"}, "must be the name of an environment variable"),
    ],
)
def test_a_source_is_one_thing(source: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", "\\(")):
        TaskConfig.model_validate({"data": {"train": source}})
