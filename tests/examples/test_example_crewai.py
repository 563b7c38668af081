from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.example_run import ran

pytestmark = [pytest.mark.examples, pytest.mark.timeout(700)]


def test_an_agent_in_crewai(tmp_path: Path) -> None:
    ran("crewai", tmp_path, "stages.apo.budget.max_rollouts=180").must_have_improved()
