"""What a run's summary says, of whole runs and of broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lightningrun.cli import cli
from lightningrun.files import read_journal
from lightningrun.tracking.comparison import paired_interval
from lightningrun.tracking.formats import number as shown
from lightningrun.tracking.report import render
from lightningrun.tracking.story import keep_story
from lightningrun.tracking.summary import summarise
from lightningrun.tracking.terms import note
from tests.tracking.fake_run import BEST_PROMPT, SEED_PROMPT, FakeRun, whole_run


def test_a_whole_run(tmp_path: Path) -> None:
    run = summarise(whole_run(tmp_path))
    assert (run.status, run.exit_code, run.seed, run.attempts) == ("succeeded", 0, 7, 1)
    assert run.notes == ("policy: simulated: no real model is called",)
    assert [(s.id, s.type, s.status) for s in run.stages] == [
        ("baseline", "evaluate", "succeeded"),
        ("apo", "apo", "succeeded"),
        ("final", "evaluate", "succeeded"),
    ]
    head = run.headline
    assert head is not None and head.baseline is not None and head.final is not None and head.gain is not None
    assert head.gain == pytest.approx(head.final - head.baseline) and head.gain > 0
    assert head.low is not None and head.high is not None and 0 < head.low < head.gain < head.high
    assert (head.baseline_stage, head.final_stage, head.split, head.n) == ("baseline", "final", "test", 12)
    assert run.totals.llm_calls == 3 * 12 + 2 and set(run.totals.by_role) == {"policy", "coach"}
    assert [y for _, y in run.curves["apo"]["val_reward"]] == [0.25, 10 / 12]
    assert [c["verdict"] for c in run.candidates["apo"]] == ["seed", "rejected", "promoted"]
    (prompt,) = run.prompts
    assert (prompt.seed, prompt.best, prompt.promoted) == (SEED_PROMPT, BEST_PROMPT, True)
    assert "+For totals use SUM, then GROUP BY." in prompt.diff.splitlines()
    assert run.gates["final"]["met"]


def test_failures_before_and_after_are_told_with_their_question(tmp_path: Path) -> None:
    changes = summarise(whole_run(tmp_path)).changes
    fixed = [change for change in changes if change.fixed]
    assert fixed and changes[: len(fixed)] == tuple(fixed), "the repaired come first"
    first = fixed[0]
    assert first.question.endswith("?") and first.before.feedback == "expected 3 rows, got 0"
    assert "GROUP BY" in first.after.output["sql"] and first.after.score == 1.0
    kinds = {change.before.tags for change in fixed[:3]}
    assert len(kinds) == 3, "one of each kind before a second of any"
    assert [change.task_id for change in changes if not change.fixed]
    assert not any(change.broken for change in changes)


def test_rows_that_were_right_and_are_wrong_now_are_told_too(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path)
    fake.start()
    fake.evaluate("baseline", 1, SEED_PROMPT, 1.0)
    fake.evaluate("final", 3, SEED_PROMPT, 0.5)
    run = summarise(fake.path)
    assert run.changes and all(change.broken and not change.fixed for change in run.changes)
    assert run.headline is not None and run.headline.high is not None and run.headline.high < 0
    assert "broken now" in render(run)


def test_the_gain_on_each_split_is_told_and_the_last_is_what_the_run_came_to(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path)
    fake.start()
    told = (("baseline", "test", 0.0), ("final", "test", 1.0), ("lone", "train", 0.5), ("imitated", "val", 0.0),
            ("trained", "val", 0.5))  # fmt: skip
    for number, (stage, split, good) in enumerate(told, 1):
        fake.evaluate(stage, number, SEED_PROMPT, good, split=split)
    run = summarise(fake.path)
    pairs = [(head.baseline_stage, head.final_stage, head.split) for head in run.headlines]
    assert pairs == [("baseline", "final", "test"), ("imitated", "trained", "val")]
    assert [head.gain for head in run.headlines] == [pytest.approx(0.75), pytest.approx(1 / 3)]
    assert run.headline == run.headlines[-1]
    assert "on test, gain +0.750" in note(run) and "on val, gain +0.333" in note(run)
    page = render(run)
    assert "<span>before (baseline)</span>" in page and "<span>after (trained)</span>" in page
    compare = ["compare", str(fake.path), "--runs-dir", str(tmp_path), "--format", "md"]
    lines = CliRunner().invoke(cli, compare).output.splitlines()
    row = dict(zip(*(map(str.strip, line.split("|")) for line in (lines[0], lines[2])), strict=True))
    before, after = (shown(value) for value in (run.headline.baseline, run.headline.final))
    assert (row["baseline"], row["final"], row["gain"]) == (before, after, "+0.333"), "of one pair, not of two"
    assert row["evaluation final"].startswith(shown(run.headlines[0].final))


def test_the_question_is_taken_from_the_call_when_the_data_is_gone(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    (run / "test.jsonl").unlink()
    assert summarise(run).changes[0].question.endswith("?")


def test_to_json_is_keyed_by_stage_and_is_json(tmp_path: Path) -> None:
    record = json.loads(json.dumps(summarise(whole_run(tmp_path)).to_json()))
    assert record["status"] == "succeeded"
    assert record["stages"]["apo"]["metrics"]["promoted"] is True
    assert {"status", "metrics", "outputs", "cost"} <= set(record["stages"]["final"])


def test_a_run_without_an_end_is_running_while_its_process_lives_and_killed_after(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path)
    fake.start()
    fake.evaluate("baseline", 1, SEED_PROMPT, 0.3)
    fake.apo(finish=False)
    (fake.path / ".lock").write_text(str(os.getpid()))
    assert [stage.status for stage in summarise(fake.path).stages] == ["succeeded", "running", "pending"]
    assert summarise(fake.path).status == "running"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (fake.path / ".lock").write_text(str(ended.pid))
    run = summarise(fake.path)
    assert run.status == "killed" and run.stages[1].status == "killed"
    assert (
        run.headline is not None and run.headline.final == run.stages[0].metrics["reward"] and run.headline.gain is None
    )


def test_a_resumed_stage_goes_on_with_its_story(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path)
    fake.start()
    fake.apo(finish=False)
    fake.emit("run_resumed", run=fake.path.name, argv="lightningrun resume", changes=[])
    fake.emit("stage_started", "apo", type="apo", ordinal=2, attempt=2, key="a" * 64, reason="resumed")
    fake.emit("metric", "apo", step=40, values={"val_reward": 0.9})
    run = summarise(fake.path)
    assert run.attempts == 2 and run.stages[1].attempt == 2
    assert [y for _, y in run.curves["apo"]["val_reward"]] == [0.25, 0.9]
    assert len(run.candidates["apo"]) == 2
    fake.emit("stage_started", "apo", type="apo", ordinal=2, attempt=1, key="b" * 64, reason="planned anew")
    assert "apo" not in summarise(fake.path).curves


def test_a_reused_search_tells_its_whole_story_and_costs_nothing_again(tmp_path: Path) -> None:
    first = whole_run(tmp_path / "first")
    fake = FakeRun(tmp_path)
    fake.start()
    outputs = fake.path / "stages" / "apo" / "outputs"
    outputs.mkdir(parents=True)
    keep_story((event for _, event in read_journal(first / "journal.jsonl")), "apo", outputs)
    cost = {"policy": {"calls": 50, "prompt_tokens": 1, "completion_tokens": 1, "usd": 1.0}}
    fake.emit(
        "stage_reused", "apo", type="apo", ordinal=2, key="a" * 64, reason="cached", metrics={}, outputs=[], cost=cost
    )
    run, before = summarise(fake.path), summarise(first)
    assert run.stage("apo").status == "reused"  # type: ignore[union-attr]
    assert run.prompts == before.prompts and run.curves["apo"] == before.curves["apo"]
    assert [c["verdict"] for c in run.candidates["apo"]] == ["seed", "rejected", "promoted"]
    assert "How the prompt was found" in render(run)
    assert run.totals.llm_calls == 0 and run.totals.usd == 0


def test_a_story_is_the_same_whenever_it_happened_and_only_of_the_last_key(tmp_path: Path) -> None:
    texts = []
    for name, extra in (("one", False), ("two", True)):
        fake = FakeRun(tmp_path / name)
        fake.start()
        if extra:
            fake.emit("stage_started", "apo", type="apo", ordinal=2, attempt=1, key="b" * 64, reason="")
            fake.emit("metric", "apo", step=1, values={"val_reward": 0.1})
        fake.apo()
        keep_story(fake.journal.events(), "apo", fake.path)
        keep_story(fake.journal.events(), "baseline", tmp_path / name)
        texts.append((fake.path / "story.jsonl").read_text("utf-8"))
        assert not (tmp_path / name / "story.jsonl").exists(), "a stage without a story leaves no file"
    assert texts[0] == texts[1]


def test_a_torn_journal_and_a_failed_run_are_summarised(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    with open(run / "journal.jsonl", "ab") as stream:
        stream.write(b'{"crc":"0000')
    assert summarise(run).status == "succeeded"
    fake = FakeRun(tmp_path, "20261122-130000-sql_agent-def456")
    fake.start()
    fake.end("failed", 3, "stage apo failed")
    failed = summarise(fake.path)
    assert (failed.status, failed.exit_code, failed.error) == ("failed", 3, "stage apo failed")
    assert failed.headline is None and [stage.status for stage in failed.stages] == ["pending"] * 3


def test_the_interval_is_seeded_and_covers_no_effect(tmp_path: Path) -> None:
    coin = [1.0, -1.0] * 20
    low, high = paired_interval(coin)
    assert low < 0 < high and (low, high) == paired_interval(coin)
    assert paired_interval([0.5] * 10) == (0.5, 0.5)


def test_a_summary_loads_nothing_heavy(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    code = (
        "import sys; from pathlib import Path; from lightningrun.tracking.summary import summarise; "
        f"summarise(Path({str(run)!r})); "
        "print([name for name in ('mlflow', 'pandas', 'jinja2', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
