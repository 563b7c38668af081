"""What prompts and weights are worth, as a reader meets it: side by side, the control marked, the effects of a grid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lightningrun.cli import cli
from lightningrun.tracking.advice import next_steps
from lightningrun.tracking.report import write_report
from lightningrun.tracking.summary import RunSummary, summarise
from tests.tracking.fake_run import FakeRun
from tests.tracking.fake_training import trained_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return trained_run(tmp_path / "runs")


def test_a_training_is_measured_against_its_control(run: Path) -> None:
    told = summarise(run)
    sft, grpo, more = told.evaluations
    assert (sft.stage, sft.model, sft.gain, sft.cpu_s) == ("of_sft", "sft.model", None, 40.0)
    assert grpo.gain is not None and grpo.gain.mean == pytest.approx(0.5) and grpo.gain.n == 40
    assert grpo.beyond_control is not None and grpo.beyond_control.mean == pytest.approx(0.25)
    assert grpo.beyond_control.low > 0 and grpo.beyond_control.clear
    assert (more.control_for, more.beyond_control, more.cpu_s) == ("grpo", None, 30.5)
    assert told.headline is not None
    assert told.headline.final_stage == "of_grpo", "neither the control nor the grid is what the run came to"
    assert told.headlines == (told.headline,)


def test_a_training_that_its_control_equals_is_said_to_be(tmp_path: Path) -> None:
    equal = summarise(trained_run(tmp_path / "equal", {"of_sft": 10, "of_grpo": 21, "of_more": 20}))
    assert any("of_grpo is not better than its control" in step for step in next_steps(equal))
    better = summarise(trained_run(tmp_path / "better"))
    assert not any("control" in step for step in next_steps(better))


def test_a_grid_tells_each_effect_once(run: Path) -> None:
    (grid,) = summarise(run).grids
    assert (grid.prompts, grid.models) == (("agent", "apo.prompts"), ("policy", "grpo.model"))
    effects = [(what, name, cell[name]) for what, name, cell in grid.effects()]
    assert effects == [
        ("grpo.model", "gain", 0.25),
        ("apo.prompts", "gain", 0.5),
        ("apo.prompts + grpo.model", "gain", 0.625),
        ("apo.prompts x grpo.model", "interaction", -0.125),
    ]


def test_the_report_shows_both_and_the_curves(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    for told in ("Side by side on", "control of grpo", "30.5", "+0.250", "Prompts and weights: cells", "-0.125",
                 "Training of grpo", "divergence from the start", "entropy, nats a token"):  # fmt: skip
        assert told in page
    assert page.count("<figure>") == 5


def test_the_terminal_and_compare_show_them_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for command in ("show", "compare"):
        done = CliRunner().invoke(cli, [command, str(run), "--runs-dir", str(run.parent)])
        assert done.exit_code == 0, done.output
        assert "control of grpo" in done.output and "interaction of apo.prompts x grpo.model" in done.output
    monkeypatch.setenv("COLUMNS", "80")
    narrow = CliRunner().invoke(cli, ["show", str(run), "--runs-dir", str(run.parent)]).output
    table = narrow.partition("on test  ")[2].partition("cells on")[0]
    assert table.count("[") == table.count("]") >= 3, "numbers are folded, never cut"
    done = CliRunner().invoke(cli, ["compare", str(run), str(run), "--runs-dir", str(run.parent), "--format", "md"])
    assert "| evaluation of_more |" in done.output and "evaluation cells apo.prompts grpo.model" in done.output
    done = CliRunner().invoke(cli, ["compare", str(run), "--runs-dir", str(run.parent), "--format", "json"])
    (brief,) = json.loads(done.output)
    assert brief["evaluations"][1]["beyond_control"]["mean"] == pytest.approx(0.25)
    assert brief["grids"][0]["cells"][3]["interaction"] == -0.125


def test_a_run_without_several_evaluations_is_not_compared_with_itself(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path / "runs")
    fake.emit("run_started", run=fake.path.name, name="n", recipe_digest="d", seed=1, notes=[], stages={}, argv="",
              warnings=[])  # fmt: skip
    told: RunSummary = summarise(fake.path)
    assert told.evaluations == ()
    done = CliRunner().invoke(cli, ["compare", str(fake.path), "--runs-dir", str(fake.path.parent)])
    assert done.exit_code != 0
