"""Each recipe of docs/apo.md runs, and does what the text promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents import Document


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return Document("apo.md", Path(tmp_path_factory.mktemp("apo")))


def test_every_recipe_is_run_here(document: Document) -> None:
    assert document.recipes.keys() == {"scored", "focused"}


def test_a_graded_reward_with_feedback_triggers_the_search(document: Document) -> None:
    stages = document.run("scored", "--until", "apo")
    assert stages["baseline"]["result"]["metrics"]["reward"] < 0.95
    assert stages["apo"]["result"]["metrics"]["best_val"] > stages["apo"]["result"]["metrics"]["seed_val"]
    assert stages["apo"]["result"]["metrics"]["rollouts"] <= 120


def test_it_is_skipped_where_the_baseline_is_good_enough(document: Document) -> None:
    stages = document.run("scored", "--until", "apo", "stages.apo.when=baseline.reward < 0.01")
    assert "apo" not in stages or stages["apo"]["status"] == "skipped"


def test_focus_edits_and_an_own_question_work_together(document: Document) -> None:
    metrics = document.run("focused", "--until", "apo")["apo"]["result"]["metrics"]
    assert metrics["coach_calls"] > 0
    assert metrics["rollouts"] <= 120
