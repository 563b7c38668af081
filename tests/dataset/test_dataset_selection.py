"""Which rows of a source are used: fields renamed, filtered, sharded, sampled, cut, weighted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightningrun import dataset
from lightningrun.dataset import Split, draw
from lightningrun.errors import DatasetError, Problem
from lightningrun.recipe.model import TaskConfig
from lightningrun.types import Task


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(100)
    return tmp_path


def write(count: int, name: str = "all.jsonl") -> None:
    rows = [{"id": n, "q": f"question {n}", "tags": ["odd" if n % 2 else "even"], "w": n + 1} for n in range(count)]
    Path(name).write_text("\n".join(map(json.dumps, rows)))


def load(**splits: dict[str, Any]) -> dict[str, Split]:
    data = {name: {"path": str(Path("all.jsonl").absolute()), **options} for name, options in splits.items()}
    locate = lambda key, m, h: Problem(m, "r.yaml", 3, 4, h)  # noqa: E731
    return dict(dataset.load(TaskConfig.model_validate({"data": data}), locate).splits)


def ids(**options: Any) -> list[str]:
    return [task.id for task in load(train=options)["train"].tasks]


def problems(**splits: dict[str, Any]) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        load(**splits)
    return [str(problem) for problem in caught.value.problems]


def test_a_file_is_split_by_the_hash_of_ids_and_stays_so_when_rows_are_added() -> None:
    parts = {f"part{n}": {"shard": {"index": n, "count": 3}} for n in range(3)}
    before = {name: [task.id for task in split.tasks] for name, split in load(**parts).items()}
    assert sorted((one for part in before.values() for one in part), key=int) == [str(n) for n in range(100)]
    assert all(20 <= len(part) <= 50 for part in before.values())
    write(130)
    after = {name: [task.id for task in split.tasks] for name, split in load(**parts).items()}
    assert all(after[name][: len(part)] == part for name, part in before.items())


def test_a_sample_is_seeded_in_order_and_mostly_kept_when_rows_are_added() -> None:
    first = ids(sample=20)
    assert len(first) == 20
    assert first == sorted(first, key=int) == ids(sample=20)
    assert first != ids(sample=20, seed=1)
    write(110)
    assert len(set(first) & set(ids(sample=20))) >= 14
    assert len(ids(sample=1000)) == 110


def test_where_then_shard_then_sample_then_limit() -> None:
    assert ids(where={"tags": "odd"}, limit=3) == ["1", "3", "5"]
    assert len(ids(where={"tags": ["odd", "even"]})) == 100
    odd = ids(where={"tags": "odd"}, shard={"index": 0, "count": 2})
    assert set(ids(where={"tags": "odd"}, shard={"index": 0, "count": 2}, sample=5)) < set(odd)
    assert ids(where={"tags": "odd"}, shard={"index": 0, "count": 2}, sample=5, limit=2) == [
        *ids(where={"tags": "odd"}, shard={"index": 0, "count": 2}, sample=5)[:2]
    ]
    Path("all.csv").write_text("id,level\n1,3\n2,4\n")
    assert ids(path=str(Path("all.csv").absolute()), where={"level": 3}) == ["1"]


def test_a_limit_reads_no_further() -> None:
    Path("all.jsonl").write_text('{"id": 1}\n{"id": 2}\nbroken\n')
    assert ids(limit=2) == ["1", "2"]
    assert problems(train={}) == ["all.jsonl:3: broken JSON: Expecting value (column 1)"]


def test_splits_of_one_file_must_still_be_disjoint() -> None:
    found = problems(train={"where": {"tags": "odd"}}, test={"where": {"id": [1, 2]}})
    assert found == ["all.jsonl:2: id '1' is also at all.jsonl:2, in split 'train'"]


def test_fields_are_renamed() -> None:
    (task,) = load(train={"fields": {"question": "q", "key": "id"}, "limit": 1})["train"].tasks
    assert dict(task.fields) == {"question": "question 0", "key": 0, "tags": ["even"], "w": 1}
    assert problems(train={"fields": {"question": "qq"}})[0] == (
        "all.jsonl:1: no field 'qq', which fields names; did you mean 'q'?"
    )
    assert problems(train={"fields": {"w": "q"}})[0] == (
        "all.jsonl:1: has a field 'w' already, which fields makes of 'q'"
    )


def test_an_empty_choice_says_why() -> None:
    assert problems(train={"where": {"tags": "none"}}) == ["all.jsonl: no row of 100 is left by where"]
    assert problems(train={"where": {"tag": "odd"}}) == [
        "all.jsonl: where: no row has a field 'tag'; did you mean 'tags'?"
    ]


def test_weights_are_numbers_above_zero_and_part_of_the_digest() -> None:
    weighted = load(train={"weights": "w"})["train"]
    assert [task.weight for task in weighted.tasks[:3]] == [1.0, 2.0, 3.0]
    assert weighted.digest != load(train={})["train"].digest
    Path("all.jsonl").write_text('{"id": 1, "w": 0}\n{"id": 2, "w": "x"}\n{"id": 3, "w": true}\n{"id": 4}\n')
    assert problems(train={"weights": "w"}) == [
        "all.jsonl:1: the weight in 'w' must be a number above 0, not '0'",
        "all.jsonl:2: the weight in 'w' must be a number above 0, not 'x'",
        "all.jsonl:3: the weight in 'w' must be a number above 0, not 'True'",
        "all.jsonl:4: no field 'w', which weights names; there is id",
    ]


def test_drawing_follows_the_weights_and_the_seed_only() -> None:
    tasks = [Task("light", "train", {}, weight=1.0), Task("heavy", "train", {}, weight=3.0)]
    first = Counter(draw(tasks, 1, seed)[0].id for seed in range(2000))
    assert 0.72 < first["heavy"] / 2000 < 0.78
    assert draw(tasks, 1, 5) == draw(tasks[::-1], 1, 5)
    assert len(draw(tasks, 9, 5)) == 2
