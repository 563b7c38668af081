"""A Spider download becomes a dataset; the agent looks at what its queries give; the reward compares results."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks.spider import agent, prepare
from tasks.spider.databases import schema
from tasks.spider.reward import execution_match
from tests.servers.openai_endpoint import Endpoint
from tests.tasks.spider_download import DATABASES, make

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("download") / "spider_data")


@pytest.fixture(scope="module")
def data(download: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare.prepare(download, out, val_share=0.2)
    return out


def rows(data: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


def test_every_database_is_in_one_split_and_what_cannot_be_scored_in_none(data: Path) -> None:
    split_of = {split: {row["db_id"] for row in rows(data, split)} for split in ("train", "val", "test")}
    assert sorted(db for dbs in split_of.values() for db in dbs) == sorted(DATABASES)
    assert split_of["test"] == {"dev_trips"} and split_of["val"] and len(split_of["train"]) > len(split_of["val"])
    every = [row for split in split_of for row in rows(data, split)]
    questions = {row["question"] for row in every}
    assert "What is the length of each pet?" not in questions, "its reference does not run"
    assert "Who is over 90?" not in questions, "empty"
    assert "Which trips are over 100 km?" in questions, "the test set stays as it was published"
    assert len({row["id"] for row in every}) == len(every)
    (youngest,) = [row for row in every if "youngest" in row["question"]]
    assert youngest["sql"] == "SELECT name FROM singer ORDER BY age, name" and youngest["tags"] == ["order"]
    assert schema(str(data / "database"), "concerts").splitlines() == [
        "singer(id number primary key, name text, age number)",
        "show(id number primary key, singer_id number, seats number)",
        "show.singer_id refers to singer.id",
    ]


def test_the_command_reads_the_zip_and_says_what_it_left_out(download: Path, data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "spider_data.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("__MACOSX/spider_data/._tables.json", "junk")
        for path in sorted(download.rglob("*")):
            zipped.write(path, Path("spider_data") / path.relative_to(download))
    command = [sys.executable, "-m", "tasks.spider.prepare", archive, "--out", tmp_path / "out", "--val-share", "0.2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test: 2 questions on 1 databases" in done.stdout
    assert "1 left out (does not run)" in done.stdout and "1 left out (empty result)" in done.stdout
    assert "(pets) is left out: no such column: length" in done.stderr
    for split in ("train", "val", "test"):
        assert (tmp_path / "out" / f"{split}.jsonl").read_bytes() == (data / f"{split}.jsonl").read_bytes()


def broken(download: Path, root: Path, how: str) -> Path:
    shutil.copytree(download, root)
    train = root / "train_spider.json"
    entries = json.loads(train.read_text())
    if how == "no tables":
        (root / "tables.json").unlink()
    elif how == "no database":
        (root / "database/shops/shops.sqlite").unlink()
    elif how == "no query":
        entries[2]["query"] = " "
    elif how == "odd name":
        entries[1]["db_id"] = "../../etc"
    elif how == "shared":
        entries[0]["db_id"] = "dev_trips"
    train.write_text("[{]" if how == "broken" else "{}" if how == "no list" else json.dumps(entries))
    return root


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no tables", "has no tables.json; give Spider's zip, or the folder with tables.json"),
        ("no database", "train_spider.json: entry 6: its database is not there: "),
        ("no query", "train_spider.json: entry 2: has no text in 'query'"),
        ("odd name", "train_spider.json: entry 1: '../../etc' cannot be the name of a database"),
        ("shared", "dev.json: dev_trips is also in train_spider.json"),
        ("broken", "train_spider.json: is no JSON: Expecting property name enclosed in double quotes: line 1"),
        ("no list", "train_spider.json: holds dict, not a list of entries"),
    ],
)
def test_what_is_not_spider_is_located_and_nothing_written(
    how: str, said: str, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = broken(download, tmp_path / "download", how)
    assert prepare.main([str(root), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


@pytest.mark.parametrize("content", [None, b"no zip"])
def test_a_file_that_is_not_there_or_no_zip(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "spider.zip").write_bytes(content)
    assert prepare.main([str(tmp_path / "spider.zip"), "--out", str(tmp_path / "out")]) == 2
    assert ("is no zip" if content else "is not there; download") in capsys.readouterr().err


async def told(data: Path, *replies: str, question: str = "Who has no show?") -> tuple[Any, list[Any]]:
    said = iter(replies)
    async with Endpoint(reply=lambda request: next(said)) as endpoint:
        llm = {"base_url": endpoint.base_url, "api_key": "EMPTY", "model": "m"}
        prompts = {"system": "Tables:\n{schema}"}
        output = await asyncio.to_thread(
            agent.answer, question, "concerts", prompts, llm, databases=str(data / "database")
        )
        return output, [request["messages"] for request in endpoint.requests]


async def test_the_agent_rewrites_what_fails_or_looks_wrong_and_stops_when_done(data: Path) -> None:
    right = "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM show)"
    replies = ("```sql\nSELECT nom FROM singer\n```", f"Better:\n```sql\n{right};\n```", "DONE")
    output, requests = await told(data, *replies)
    assert output == {"sql": right, "queries": 2}
    assert "singer(id number primary key, name text, age number)" in requests[0][0]["content"]
    assert "no such column: nom" in requests[1][-1]["content"]
    assert requests[2][-1]["content"].startswith("It gives:\nname\nCy\n")
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(requests))
    assert execution_match({"db_id": "concerts", "sql": right}, output, str(data / "database"))["score"] == 1.0


async def test_the_agent_gives_up_after_three_queries_and_cannot_write(data: Path) -> None:
    before = (data / "database/concerts/concerts.sqlite").read_bytes()
    output, requests = await told(data, "DELETE FROM singer", "SELECT 1; DROP TABLE singer", "```sql\nSELECT nom\n```")
    assert output["sql"] == "SELECT nom" and "no such column" in output["error"] and len(requests) == 3
    assert "The query is empty" in requests[1][-1]["content"] or "failed" in requests[1][-1]["content"]
    assert "You can only execute one statement" in requests[2][-1]["content"]
    assert (data / "database/concerts/concerts.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    ("reference", "sql", "score"),
    [
        ("SELECT name, age FROM singer", "SELECT age, name FROM singer ORDER BY name DESC", 1.0),
        ("SELECT name FROM singer ORDER BY age, name", "SELECT name FROM singer ORDER BY age DESC, name", 0.0),
        ("SELECT avg(age) FROM singer", "SELECT sum(age) * 1.0 / count(*) FROM singer", 1.0),
        ("SELECT age FROM singer", "SELECT DISTINCT age FROM singer", 0.0),
        ("SELECT count(*) FROM singer", "SELECT '3'", 0.0),
        ("SELECT name FROM singer WHERE age > 90", "SELECT id FROM show WHERE seats > 900", 1.0),
        ("SELECT id, singer_id FROM show", "SELECT singer_id, singer_id FROM show", 0.0),
        ("SELECT name FROM singer", "ATTACH 'x.db' AS x", 0.0),
        ("SELECT name FROM singer", None, 0.0),
    ],
)
def test_results_are_compared_as_spider_does(reference: str, sql: str | None, score: float, data: Path) -> None:
    verdict = execution_match({"db_id": "concerts", "sql": reference}, {"sql": sql}, str(data / "database"))
    assert verdict["score"] == score and bool(verdict["feedback"])


def test_the_recipe_says_on_a_laptop_what_is_missing(data: Path, tmp_path: Path) -> None:
    """With the data there, only what the machine lacks is left; without it, that is said beside it."""
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "lightningrun"]
    recipe = "recipes/sql_agent_gpu.yaml"
    given = [f"task.data.{split}={data / f'{split}.jsonl'}" for split in ("train", "val", "test")]
    overrides = [*given, "stages.grpo.batch=2"]
    there = subprocess.run([*command, "plan", recipe, *overrides], cwd=ROOT, capture_output=True, text=True)
    absent = [f"task.data.train={tmp_path / 'none.jsonl'}", *overrides[1:]]
    lost = subprocess.run([*command, "plan", recipe, *absent], cwd=ROOT, capture_output=True, text=True)
    assert (there.returncode, lost.returncode) == (5, 2), there.stderr + lost.stderr
    for done in (there, lost):
        assert "vllm is not installed; pip install -c constraints-gpu.txt 'lightningrun[gpu]'" in done.stderr
        assert "sql_agent_gpu.yaml:40:11: models.policy.name: Qwen/Qwen2.5-Coder-1.5B-Instruct is not" in done.stderr
        assert "hf download Qwen/Qwen2.5-Coder-1.5B-Instruct" in done.stderr
    assert "none.jsonl" in lost.stderr and "none.jsonl" not in there.stderr
