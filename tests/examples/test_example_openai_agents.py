from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.example_run import ran

pytestmark = [pytest.mark.examples, pytest.mark.timeout(700)]


def test_the_openai_agents_sdk_by_the_responses_api(tmp_path: Path) -> None:
    run = ran("openai_agents", tmp_path)
    run.must_have_improved()
    assert {call["protocol"] for call in run.calls("final")} == {"responses"}
