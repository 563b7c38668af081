"""Rows in: three formats, one meaning; whatever is wrong is located and shown at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightningrun import dataset
from lightningrun.dataset import Dataset
from lightningrun.errors import DatasetError, ExitCode, Problem
from lightningrun.recipe.model import TaskConfig


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(options: dict[str, Any] | None = None, **files: str | bytes) -> Dataset:
    """``train="..."`` writes train.jsonl; ``train__csv`` writes train.csv."""
    data = {}
    for name, content in files.items():
        split, _, kind = name.partition("__")
        path = Path(f"{split}.{kind or 'jsonl'}").absolute()
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        data[split] = str(path)
    return dataset.load(
        TaskConfig.model_validate({"data": data, **(options or {})}), lambda key, m, h: Problem(m, "r.yaml", 3, 4, h)
    )


def problems(options: dict[str, Any] | None = None, **files: str | bytes) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        load(options, **files)
    assert caught.value.exit_code is ExitCode.USAGE
    return [str(problem) for problem in caught.value.problems]


def test_the_three_formats_give_the_same_rows_and_digests() -> None:
    rows = [{"id": "a", "q": "one, two"}, {"id": "b", "q": 'say "é"\nagain'}]
    lines = load(train="\n".join(json.dumps(row) for row in rows) + "\n\n").splits["train"]
    listed = load(train__json=json.dumps(rows, indent=2, ensure_ascii=False)).splits["train"]
    csv = load(train__csv='id,q\r\na,"one, two"\r\nb,"say ""é""\nagain"\r\n').splits["train"]
    assert [dict(task.fields) for task in lines.tasks] == rows
    assert [task.id for task in lines.tasks] == ["a", "b"]
    assert lines == listed == csv
    assert load(train=json.dumps(rows[0])).splits["train"].digest != lines.digest


def test_ids_come_from_the_named_field_or_id_or_the_content() -> None:
    assert [t.id for t in load({"id": "n"}, train='{"n": 7}\n{"n": "x"}').splits["train"].tasks] == ["7", "x"]
    (task,) = load(train='{"q": 1}').splits["train"].tasks
    assert len(task.id) == 16
    assert load(test='{ "q":1 }').splits["test"].tasks[0].id == task.id


def test_tags_are_a_text_or_a_list() -> None:
    tasks = load(train='{"id": 1, "tags": "hard"}\n{"id": 2, "tags": ["a", "b"]}\n{"id": 3}').splits["train"].tasks
    assert [task.tags for task in tasks] == [("hard",), ("a", "b"), ()]
    (task,) = load({"tags": "level"}, train='{"id": 1, "level": "easy"}').splits["train"].tasks
    assert task.tags == ("easy",)


def test_everything_wrong_is_shown_at_once_with_file_and_line() -> None:
    found = problems(
        train=b'{"id": 1, "q": "a"}\n{"id": 2,\n[1]\n{}\n{"id": 1, "q": "b"}\n{"id": 3, "q": "\xff"}\n'
        b'{"id": 4, "x": NaN}\n{"id": true}\n{"id": ""}\n{"id": 5, "tags": 3}\n{"id": 6, "q": "\\ud800"}\n',
        test='{"id": 1, "q": "c"}\n{"id": 9, "q": "a"}\n',
        val="",
    )
    bad_id = "the id in 'id' must be a whole number or a text of 1 to 200 printable characters"
    assert found == [
        "train.jsonl:2: broken JSON: Expecting property name enclosed in double quotes (column 1)",
        "train.jsonl:3: a row must be a JSON object, not list",
        "train.jsonl:4: an empty row",
        "train.jsonl:5: id '1' is also at train.jsonl:1",
        "train.jsonl:6: not UTF-8",
        "train.jsonl:7: broken JSON: NaN is not JSON",
        f"train.jsonl:8: {bad_id}",
        f"train.jsonl:9: {bad_id}",
        "train.jsonl:10: 'tags' must be a text or a list of texts",
        "train.jsonl:11: text that is not valid Unicode (half of a surrogate pair)",
        "test.jsonl:1: id '1' is also at train.jsonl:1, in split 'train'",
        "test.jsonl:2: the same row is at train.jsonl:1, in split 'train'",
        "val.jsonl: no rows",
    ]


def test_a_named_id_must_be_in_every_row() -> None:
    assert problems({"id": "key"}, train='{"key": 1}\n{"kye": 2}') == [
        "train.jsonl:2: no field 'key', which task.id names; did you mean 'kye'?"
    ]


def test_rows_without_ids_must_still_differ_between_and_within_splits() -> None:
    (problem,) = problems(train='{"q": 1}\n{"q": 1}')
    assert problem.startswith("train.jsonl:2: id '")
    assert problem.endswith("is also at train.jsonl:1")
    (problem,) = problems(train='{"q": 1}', test='{"q": 1}')
    assert problem.startswith("test.jsonl:1: id '")
    assert problem.endswith("is also at train.jsonl:1, in split 'train'")


def test_a_huge_row_is_refused_and_the_rows_after_it_are_read() -> None:
    huge = json.dumps({"id": 1, "q": "x" * (1 << 20)})
    assert problems(train=f"{huge}\n{{}}\n") == [
        "train.jsonl:1: a row of more than 1024 KiB",
        "train.jsonl:2: an empty row",
    ]
    assert problems(train__json=f'[{huge}, {{"id": 2}}]') == ["train.json:1: a row of more than 1024 KiB"]
    assert "field larger than field limit" in problems(train__csv=f"q\n{'x' * (1 << 20)}\n")[0]


def test_many_problems_are_cut_and_counted() -> None:
    found = problems(train="{\n" * 50)
    assert len(found) == 21
    assert found[-1] == "train.jsonl: and 30 more problems in this file"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"id": 1}', "train.json:1: a .json dataset is one list of objects; one object a line is .jsonl"),
        ("", "train.json:1: a .json dataset is one list"),
        ("[]", "train.json: no rows"),
        ('[\n{"id": 1},\n{"id": 2,}\n]', "train.json:3: broken JSON: "),
        ('[\n{"id": 1}\n{"id": 2}\n]', "train.json:3: broken JSON: expected ',' or ']' after a row"),
        ('[\n{"id": 1},\n{}\n,\n{"id": 1}]', "train.json:3: an empty row"),
        ('[{"id": 1}] x', "train.json:1: broken JSON: text after the list"),
        ("[" * 100_000, "train.json:1: "),
        (b'[\n{"id": "\xff"}]', "train.json:2: not UTF-8"),
    ],
)
def test_broken_json_lists(content: str | bytes, expected: str) -> None:
    assert problems(train__json=content)[0].startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "train.csv: no rows"),
        ("id,q\n", "train.csv: no rows"),
        ("id,id\n1,2\n", "train.csv:1: the header has an empty or a repeated name"),
        ("id,q\n1,a\n2\n", "train.csv:3: 1 cells, and the header names 2"),
        ('id,q\n1,"a\nb"\n2,x,y\n', "train.csv:4: 3 cells, and the header names 2"),
        ('id,q\n1,"a', "train.csv:2: broken CSV: unexpected end of data"),
        (b"id,q\n1,\xff\n", "train.csv:2: not UTF-8"),
    ],
)
def test_broken_csv(content: str | bytes, expected: str) -> None:
    assert problems(train__csv=content)[0].startswith(expected)


def test_deeply_nested_rows_do_not_crash() -> None:
    (problem,) = problems(train='{"a": ' * 100_000 + "1" + "}" * 100_000)
    assert problem.startswith("train.jsonl:1: ")


def test_files_that_cannot_be_read_are_located_in_the_recipe(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"id": 1}')
    (folder / "x.txt").write_text("x")
    (folder / "x.parquet").write_text("PAR1")
    paths = {"train": "trian.jsonl", "val": ".", "test": "x.txt", "more": "x.parquet"}
    config = TaskConfig.model_validate({"data": {name: str(folder / path) for name, path in paths.items()}})
    with pytest.raises(DatasetError) as caught:
        dataset.load(config, lambda key, m, h: Problem(m, "r.yaml", 3, 4, h))
    kinds = "name a .jsonl, .json, .csv or .parquet file"
    folders = "or a folder that save_to_disk of Hugging Face datasets wrote"
    shown = [str(problem) for problem in caught.value.problems]
    assert shown[:3] == [
        "r.yaml:3:4: task.data.train: cannot read trian.jsonl: No such file or directory; did you mean 'train.jsonl'?",
        f"r.yaml:3:4: task.data.val: . is a folder; {kinds}, {folders}",
        f"r.yaml:3:4: task.data.test: '.txt' files are not read here: x.txt; {kinds}",
    ]
    assert shown[3].startswith("x.parquet: broken Parquet: ")
