"""Each algorithm, run by the command line and killed with -9 in its midst, ends as if nothing had happened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lightningrun.stages.apo.stage import ALGORITHMS

APO = Path(__file__).resolve().parents[2] / "bench" / "apo"
sys.path.insert(0, str(APO))

import run as bench  # noqa: E402
import trials  # noqa: E402

sys.path.remove(str(APO))

SLOTS = 8


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_killed_twice_it_ends_the_same_and_asks_nothing_twice(algorithm: str) -> None:
    options: dict[str, Any] = {"algorithm": algorithm, "budget": {"max_rollouts": 160}}
    with bench.endpoint() as base:
        found = trials.kill_and_resume(base, lambda run: bench.stats(base, run), "additive", 100, options, call_ms=150)
    assert found["kills"] == 2, "it ended before it was killed"
    assert 40 < found["recorded"] < found["calls"]
    assert found["repeats"] == 0
    assert found["in_flight"] <= 2 * SLOTS, "more was lost than can have been in flight"
    assert found["identical"]
