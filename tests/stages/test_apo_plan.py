"""What the apo stage says before it runs, and the table of stage types."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from lightningrun.stages import specs
from lightningrun.stages.apo.config import ApoConfig, forecast
from lightningrun.stages.base import StageSpec

RECIPE: Any = SimpleNamespace(
    agent=SimpleNamespace(prompts={"system": None}), models={"policy": None, "coach": None}, stages={}
)
ROWS = {"train": 60, "val": 40, "test": 30}


def planned(rows: dict[str, int] = ROWS, recipe: Any = RECIPE, **options: Any) -> Any:
    return forecast(ApoConfig.model_validate({"type": "apo", **options}), recipe, rows)


def test_the_defaults_fit_and_bound_what_is_spent() -> None:
    told = planned()
    assert told.errors == ()
    assert told.rollouts == 500
    assert told.calls == {"policy": 500, "coach": 125}


@pytest.mark.parametrize(
    ("mode", "report", "least"),
    [("corrected", "none", 48), ("fresh", "none", 76), ("sealed", "none", 56), ("corrected", "test", 108)],
)
def test_the_least_budget_is_what_the_plan_says(mode: str, report: str, least: int) -> None:
    options: dict[str, Any] = {"confirm": {"mode": mode}, "report": {"split": report}}
    assert planned(budget={"max_rollouts": least}, **options).errors == ()
    (error,) = planned(budget={"max_rollouts": least - 1}, **options).errors
    assert f"need {least} rollouts" in error


def test_the_comparison_on_test_is_left_out_of_a_small_budget_and_that_is_said() -> None:
    told = planned(budget={"max_rollouts": 200})
    assert told.errors == ()
    assert any("no comparison on test" in warning for warning in told.warnings)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"optimize": ["sytem"]}, "no prompt 'sytem'"),
        ({"coach": "caoch"}, "no model has the role 'caoch'"),
        ({"val": "train"}, "different splits"),
        ({"algorithm": "gepa", "mode": "edits"}, "mode: gepa asks its own question"),
        ({"algorithm": "bootstrap_fewshot", "mode": "edits"}, "mode: bootstrap_fewshot asks no coach"),
        ({"train": "tarin"}, "no split 'tarin'"),
        ({"report": {"split": "holdout"}}, "report.split: the task has no split 'holdout'"),
    ],
)
def test_mistakes_are_found_before_the_first_call(options: dict[str, Any], error: str) -> None:
    assert any(error in said for said in planned(**options).errors)


def test_too_few_rows_to_ever_confirm_are_said() -> None:
    assert any("can never confirm" in said for said in planned({"train": 9, "val": 3}).errors)


def test_unknown_options_and_wrong_types_are_refused() -> None:
    for wrong in ({"budget": {"max_rolouts": 5}}, {"proposals": {"parents": True}}, {"algorithm": "gepo"}):
        with pytest.raises(ValidationError):
            ApoConfig.model_validate({"type": "apo", **wrong})


def test_every_stage_type_is_in_the_table_with_what_it_needs() -> None:
    table = specs()
    assert list(table)[:2] == ["evaluate", "apo"]
    for name, spec in table.items():
        assert isinstance(spec, StageSpec)
        assert spec.type == name
        assert callable(spec.load())
        assert spec.config.model_fields["type"].default == name
