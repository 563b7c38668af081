from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.examples.example_run import ran

pytestmark = [pytest.mark.examples, pytest.mark.timeout(700)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="pydantic-ai-slim 2.68 Requires-Python >=3.11")
def test_an_agent_in_pydantic_ai(tmp_path: Path) -> None:
    ran("pydantic_ai", tmp_path).must_have_improved()
