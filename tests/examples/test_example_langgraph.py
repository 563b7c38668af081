from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.example_run import ran

pytestmark = [pytest.mark.examples, pytest.mark.timeout(700)]


def test_langchain_and_langgraph(tmp_path: Path) -> None:
    ran("langgraph", tmp_path).must_have_improved()
