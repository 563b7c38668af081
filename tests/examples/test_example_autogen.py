from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.example_run import ran

pytestmark = [pytest.mark.examples, pytest.mark.timeout(700)]


def test_an_agent_in_autogen(tmp_path: Path) -> None:
    ran("autogen", tmp_path).must_have_improved()
