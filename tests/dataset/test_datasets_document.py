"""Each recipe of docs/datasets.md runs and reads the rows that it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import command
from tests.documents import Document

ROWS = {"one_file": (1, 11), "from_elsewhere": (9, 9), "from_python": (5, 5)}
"""Recipe -> the least and the most rows of its test split."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    made = Document("datasets.md", Path(tmp_path_factory.mktemp("datasets")))
    made.script("tasks/my_task/build.py")
    return made


def test_an_override_chooses_rows_of_a_split_that_is_a_path(document: Document) -> None:
    document.shell(*command("check", "recipes/my_task.yaml"))
    shown = document.shell(*command("config", "recipes/my_task.yaml", "task.data.test.limit=5"))
    assert f"path: {document.folder}/tasks/my_task/test.jsonl" in shown
    assert "limit: 5" in shown


def test_every_recipe_is_run_here(document: Document) -> None:
    assert document.recipes.keys() == ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_runs(document: Document, name: str) -> None:
    metrics = document.run(name, "--until", "baseline")["baseline"]["result"]["metrics"]
    low, high = ROWS[name]
    assert low <= metrics["n"] <= high
    assert metrics["n_failed"] == 0
