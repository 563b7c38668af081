"""SQL that a model might write in error or in malice: all of it ends as a QueryError, quickly, with nothing written."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from tasks.sql_agent.database import DEADLINE_S, Database, QueryError
from tasks.sql_agent.reward import DATABASE

ATTACKS = {
    "attach": "ATTACH 'stolen.db' AS other",
    "vacuum into": "VACUUM INTO 'copy.db'",
    "vacuum": "VACUUM",
    "pragma": "PRAGMA writable_schema = 1",
    "pragma as a table": "SELECT * FROM pragma_table_info('top_batsmen')",
    "schema table": "SELECT sql FROM sqlite_master",
    "insert": "INSERT INTO top_batsmen VALUES ('x', 'y', 1, 1, 1, 1)",
    "update": "UPDATE top_batsmen SET odi_runs = 0",
    "delete": "DELETE FROM top_batsmen",
    "drop": "DROP TABLE top_batsmen",
    "temporary table": "CREATE TEMP TABLE t AS SELECT 1",
    "transaction": "BEGIN EXCLUSIVE",
    "two statements": "SELECT 1; DROP TABLE top_batsmen",
    "load_extension": "SELECT load_extension('/tmp/evil.so')",
    "readfile": "SELECT readfile('/etc/passwd')",
    "randomblob": "SELECT length(randomblob(1000000000))",
    "zeroblob": "SELECT zeroblob(1000000000)",
    "printf": "SELECT printf('%1000000000d', 1)",
    "replace": "SELECT replace(player_name, 'a', player_name) FROM top_batsmen",
    "recursion": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
    "endless rows": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    "doubling text": "WITH RECURSIVE d(s) AS (SELECT 'aaaa' UNION ALL SELECT s || s FROM d) SELECT max(s) FROM d",
    "cross join": "SELECT COUNT(*) FROM top_batsmen a, top_batsmen b, top_batsmen c, top_batsmen d, top_batsmen e",
    "huge group_concat": "SELECT group_concat(a.player_name) FROM top_batsmen a, top_batsmen b, top_batsmen c",
    "huge sort": "WITH RECURSIVE d(s, n) AS (SELECT 'abcdefgh', 0 UNION ALL SELECT s || s, n + 1 FROM d WHERE n < 12)"
    " SELECT s || a.odi_runs FROM (SELECT max(s) AS s FROM d), top_batsmen a, top_batsmen b, top_batsmen c ORDER BY 1",
    "empty": "   ",
    "only a comment": "-- nothing to see",
    "a null byte": "SELECT 1\0",
    "half a character": "SELECT '\ud800'",
    "not SQL": "I would count the rows.",
    "very long": "SELECT " + "1 + " * 5000 + "1",
    "deep nesting": "SELECT " + "(" * 3000 + "1" + ")" * 3000,
}


@pytest.fixture
def database() -> Database:
    return Database.open(DATABASE)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_a_query_error_in_bounded_time(
    database: Database, attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = hashlib.sha256(DATABASE.read_bytes()).hexdigest()
    started = time.perf_counter()
    with pytest.raises(QueryError) as refused:
        database.query(attack)
    assert time.perf_counter() - started < DEADLINE_S + 2
    assert str(refused.value)
    assert not os.listdir(tmp_path)
    assert hashlib.sha256(DATABASE.read_bytes()).hexdigest() == before
    assert database.query("SELECT COUNT(*) FROM top_batsmen").rows == [(79,)], "the connection is still good"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT country_name, COUNT(*), AVG(odi_runs) FROM top_batsmen GROUP BY country_name HAVING COUNT(*) > 8",
        "WITH b AS (SELECT MAX(test_runs) AS m FROM top_batsmen) SELECT m FROM top_batsmen, b WHERE test_runs = m",
        "SELECT player_name, RANK() OVER (ORDER BY odi_runs DESC) FROM top_batsmen",
        "SELECT UPPER(SUBSTR(country_name, 1, 3)) FROM top_batsmen WHERE player_name LIKE '%Khan'",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT i FROM n",
        "SELECT CASE WHEN odi_debut_year < 2000 THEN 'old' ELSE 'new' END, COUNT(*) FROM top_batsmen GROUP BY 1",
    ],
)
def test_ordinary_queries_run(database: Database, sql: str) -> None:
    assert database.query(sql).rows


def test_errors_speak_to_the_author_of_the_query(database: Database) -> None:
    with pytest.raises(QueryError, match="no such column: runs"):
        database.query("SELECT runs FROM top_batsmen")
    with pytest.raises(QueryError, match="not allowed: the function randomblob"):
        database.query("SELECT randomblob(9)")
    with pytest.raises(QueryError, match="ran longer than"):
        database.query(ATTACKS["cross join"])


def test_a_missing_file_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m tasks\.sql_agent\.build"):
        Database.open(tmp_path / "none.db")
