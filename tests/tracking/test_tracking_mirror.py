"""The mirror on a real SQLite store: what arrives there, that nothing arrives twice, and what kills leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from lightningrun.files import read_journal
from lightningrun.tracking.lineage import lineages
from lightningrun.tracking.mirror import Mirror, read_state
from lightningrun.tracking.store import deep_link, default_uri
from lightningrun.tracking.story import keep_story
from lightningrun.tracking.summary import holder_alive, summarise
from lightningrun.tracking.sync import sync
from tests.tracking.conftest import counts, exporter_pid, query, uri_of, wait_mirrored, wait_until
from tests.tracking.fake_run import BEST_PROMPT, SEED_PROMPT, FakeRun, whole_run
from tests.tracking.fake_search import search_run
from tests.tracking.fake_training import trained_run


def start(run: Path) -> Mirror:
    return Mirror.start(run, uri=uri_of(run.parent), experiment="sql_agent", runs_dir=run.parent, environ=os.environ)


def statuses(runs_dir: Path) -> dict[str, str]:
    return dict(query(runs_dir, "SELECT name, status FROM runs ORDER BY start_time"))


def test_a_whole_run_arrives(runs_dir: Path) -> None:
    run = whole_run(runs_dir)
    mirror = start(run)
    mirror.finish(4)
    wait_mirrored(run)

    state = read_state(run)
    assert state.stored == state.emitted and not state.error
    assert statuses(runs_dir) == {
        "sql_agent-abc123": "FINISHED",
        "1-baseline": "FINISHED",
        "2-apo": "FINISHED",
        "3-final": "FINISHED",
    }
    final = dict(query(runs_dir, "SELECT key, value FROM latest_metrics WHERE key LIKE 'final/%'"))
    head = summarise(run).headline
    assert head is not None and (final["final/baseline"], final["final/gain"]) == (head.baseline, head.gain)
    assert {"final/reward", "final/cost_usd", "final/llm_calls", "final/tokens"} <= set(final)
    note = query(runs_dir, "SELECT value FROM experiment_tags WHERE key = 'mlflow.note.content'")[0][0]
    assert "→" in note.splitlines()[0] and "simulated" in note
    curve = query(runs_dir, "SELECT step, value FROM metrics WHERE key = 'val_reward' ORDER BY step")
    assert [value for _, value in curve] == [0.25, 10 / 12]
    assert (
        query(
            runs_dir, "SELECT count(*) FROM params WHERE run_uuid = (SELECT run_uuid FROM runs WHERE name LIKE 'sql%')"
        )[0][0]
        <= 20
    )
    parents = query(runs_dir, "SELECT value FROM tags WHERE key = 'mlflow.parentRunId'")
    assert parents == [(state.run_id,)] * 3
    logged = {path.name for path in (runs_dir / "artifacts").rglob("*") if path.is_file()}
    assert {"resolved.yaml", "lock.json"} <= logged


def test_rollouts_become_traces_with_spans_and_feedback(runs_dir: Path) -> None:
    run = whole_run(runs_dir)
    sync(run, environ={})
    rollouts = [
        json.loads(line)["rollout"]
        for line in (run / "journal.jsonl").read_text().splitlines()
        if '"rollout":{' in line
    ]
    evaluated = [r for r in rollouts if r["stage"] != "apo"]
    searched = [r for r in rollouts if r["stage"] == "apo"]
    stored = query(runs_dir, "SELECT client_request_id, trace_name FROM trace_info")
    assert sum(name.startswith("apo/") for _, name in stored) < len(searched), "a search is sampled"
    failed = {f"apo/{r['task_id']}" for r in searched if r["score"] == 0}
    assert failed <= {name for _, name in stored}, "but all its failures are kept"
    assert sum(not name.startswith("apo/") for _, name in stored) == len(evaluated)
    kinds = dict(query(runs_dir, "SELECT type, count(*) FROM spans GROUP BY type"))
    assert kinds == {"AGENT": len(stored), "CHAT_MODEL": len(stored)}
    rewards = query(runs_dir, "SELECT value, rationale FROM assessments WHERE name = 'reward'")
    assert ("1.0", "rows match") in rewards and ("0.0", "expected 3 rows, got 0") in rewards
    tokens = query(runs_dir, "SELECT value FROM trace_request_metadata WHERE key = 'mlflow.trace.tokenUsage'")
    if tokens:
        assert json.loads(tokens[0][0])["total_tokens"] == 140


def test_prompts_are_versions_with_an_alias_and_shared_between_runs(runs_dir: Path) -> None:
    sync(whole_run(runs_dir), environ={})
    sync(whole_run(runs_dir, "20261122-130000-sql_agent-def456"), environ={})
    texts = query(
        runs_dir, "SELECT version, value FROM model_version_tags WHERE key = 'mlflow.prompt.text' ORDER BY version"
    )
    assert texts == [(1, SEED_PROMPT), (2, BEST_PROMPT)], "a text that is known is not registered again"
    aliases = query(runs_dir, "SELECT alias, version FROM registered_model_aliases ORDER BY alias")
    assert aliases == [("best-abc123", 2), ("best-def456", 2)]
    linked = query(runs_dir, "SELECT value FROM trace_tags WHERE key = 'mlflow.linkedPrompts'")
    assert {json.loads(value)[0]["version"] for (value,) in linked} == {"1", "2"}


def test_sync_again_adds_nothing(runs_dir: Path) -> None:
    run = whole_run(runs_dir)
    sync(run, environ={})
    once = counts(runs_dir)
    assert once["trace_info"] and once["metrics"]
    sync(run, environ={})
    assert counts(runs_dir) == once
    (run / "mirror.json").unlink()  # the cursor is lost: everything is told again
    state = sync(run, environ={})
    assert counts(runs_dir) == once
    assert not state.error and state.stored == state.emitted and state.complete


def version_tags(runs_dir: Path) -> dict[str, dict[str, str]]:
    """Text of a prompt version -> its tags, by their names without our prefix."""
    found: dict[int, dict[str, str]] = {}
    for version, name, value in query(runs_dir, "SELECT version, key, value FROM model_version_tags"):
        found.setdefault(version, {"version": str(version)})[name.removeprefix("lightningrun.")] = value
    return {tags["mlflow.prompt.text"]: tags for tags in found.values()}


def artifacts(runs_dir: Path, name: str) -> list[Path]:
    return sorted(path for path in (runs_dir / "artifacts").rglob(name) if path.is_file())


def test_a_search_arrives_with_its_lineage_once(runs_dir: Path) -> None:
    run = search_run(runs_dir, 25)
    assert sync(run, environ={}).complete
    (search,) = lineages(summarise(run))
    (file,) = artifacts(runs_dir, "lineage.json")
    assert [node["id"] for node in json.loads(file.read_text("utf-8"))["nodes"]] == list(range(25))
    (page,) = artifacts(runs_dir, "lineage.html")
    assert f"#{search.path[-1]}" in page.read_text("utf-8")
    (table,) = artifacts(runs_dir, "candidates.json")
    child = query(runs_dir, "SELECT run_uuid FROM runs WHERE name = '2-apo'")[0][0]
    once = MlflowClient(uri_of(runs_dir)).load_table(
        query(runs_dir, "SELECT experiment_id FROM runs")[0][0], "candidates.json", [child]
    )
    assert list(once["id"]) == list(range(25)) and once["outcome"][0] == "seed"

    tags = version_tags(runs_dir)
    winner = search.nodes[search.path[-1]]
    best = tags[winner.prompts["system"]]
    assert (best["label"], best["candidate"], best["val_reward"]) == ("best", str(winner.id), str(winner.val))
    parents = [search.nodes[id] for id in winner.parents]
    assert best["parents"] == ", ".join(str(parent.id) for parent in parents)
    assert best["parent_versions"] == ", ".join(tags[parent.prompts["system"]]["version"] for parent in parents)
    scored = {node.prompts["system"] for node in search.nodes.values() if node.val is not None}
    assert scored <= set(tags), "each candidate that was scored is a version"

    before, text = counts(runs_dir), table.read_text("utf-8")
    (run / "mirror.json").unlink()
    sync(run, environ={})
    assert counts(runs_dir) == before and version_tags(runs_dir) == tags
    assert [path.read_text("utf-8") for path in artifacts(runs_dir, "candidates.json")] == [text]


def test_evaluations_side_by_side_and_the_cells_of_a_grid_arrive(runs_dir: Path) -> None:
    run = trained_run(runs_dir)
    start(run).finish(4)
    wait_mirrored(run)
    parent = dict(query(runs_dir, "SELECT key, value FROM latest_metrics WHERE key LIKE 'evaluations/%'"))
    assert parent["evaluations/of_grpo"] == 0.75 and parent["evaluations/cells/apo.prompts/grpo.model"] == 0.875
    files = {path.name: path for path in (runs_dir / "artifacts").rglob("*.json")}
    told = json.loads(files["cells.json"].read_text())
    assert told["columns"][:4] == ["prompts", "model", "n", "reward"] and len(told["data"]) == 4
    assert json.loads(files["grid.json"].read_text())["cells"][3]["interaction"] == -0.125


def test_a_reused_search_arrives_with_its_curve_prompts_and_lineage(runs_dir: Path) -> None:
    first = search_run(runs_dir, 12)
    fake = FakeRun(runs_dir, "20261122-130000-sql_agent-def456")
    fake.start()
    outputs = fake.path / "stages" / "apo" / "outputs"
    outputs.mkdir(parents=True)
    keep_story((event for _, event in read_journal(first / "journal.jsonl")), "apo", outputs)
    reused = {"type": "apo", "ordinal": 2, "key": "a" * 64, "reason": "cached", "metrics": {"best_val": 0.9}}
    fake.emit("stage_reused", "apo", outputs=[], cost={}, **reused)
    fake.end()
    fake.close()
    sync(fake.path, environ={})
    best = lineages(summarise(fake.path))[0].nodes
    assert len(artifacts(runs_dir, "lineage.html")) == 1
    points = query(runs_dir, "SELECT count(*) FROM metrics WHERE key = 'candidate/val_reward'")[0][0]
    assert points == sum(node.val is not None for node in best.values())
    assert query(runs_dir, "SELECT alias FROM registered_model_aliases") == [("best-def456",)]
    once = counts(runs_dir)
    (fake.path / "mirror.json").unlink()
    sync(fake.path, environ={})
    assert counts(runs_dir) == once


def test_kill_of_the_exporter_midway_loses_and_doubles_nothing(
    runs_dir: Path, tmp_path: Path, empty_store: Path
) -> None:
    run = whole_run(runs_dir, n=40)
    whole: dict[str, int] | None = None
    for least in (1, 40):
        mirror = start(run)
        wait_until(lambda least=least: query(runs_dir, "SELECT count(*) FROM trace_info")[0][0] >= least)
        os.kill(mirror._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        mirror._process.wait()  # type: ignore[union-attr]
    sync(run, environ={})
    whole = counts(runs_dir)
    linked = query(runs_dir, "SELECT count(*) FROM trace_tags WHERE key = 'mlflow.linkedPrompts'")
    assert linked == query(runs_dir, "SELECT count(*) FROM trace_info"), "links survive a new beginning"
    other = tmp_path / "undisturbed"
    other.mkdir()
    (other / "mlflow.db").write_bytes(empty_store.read_bytes())
    sync(whole_run(other, n=40), environ={})
    assert whole == counts(other)


RUNNER = """
import os, sys, time
from pathlib import Path
from tests.tracking.fake_run import FakeRun, SEED_PROMPT
from lightningrun.files import RunLock
from lightningrun.tracking.mirror import Mirror
runs_dir = Path(sys.argv[1])
fake = FakeRun(runs_dir)
lock = RunLock(fake.path)
fake.start()
uri = f"sqlite:///{runs_dir}/mlflow.db"
mirror = Mirror.start(fake.path, uri=uri, experiment="sql_agent", runs_dir=runs_dir, environ=os.environ)
fake.journal.observe(mirror.nudge)
fake.evaluate("baseline", 1, SEED_PROMPT, 0.3)
fake.apo(finish=False)
print("under way", flush=True)
time.sleep(60)
"""


@pytest.fixture
def runner(runs_dir: Path):
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", RUNNER, str(runs_dir)], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None and process.stdout.readline() == b"under way\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_run_is_seen_while_it_runs_and_marked_killed_when_its_runner_is(
    runs_dir: Path, runner: subprocess.Popen[bytes]
) -> None:
    wait_until(lambda: statuses(runs_dir).get("2-apo") == "RUNNING")
    assert statuses(runs_dir)["1-baseline"] == "FINISHED"
    run = next(runs_dir.glob("*-sql_agent-*"))
    assert summarise(run).status == "running"
    runner.kill()
    runner.wait()
    wait_mirrored(run)
    assert statuses(runs_dir) == {"sql_agent-abc123": "KILLED", "1-baseline": "FINISHED", "2-apo": "KILLED"}
    wait_until(lambda: not holder_alive(run / ".mirror.lock"))
    assert summarise(run).status == "killed"


def test_what_a_dead_machine_left_running_is_closed_by_the_next_run(
    runs_dir: Path, runner: subprocess.Popen[bytes]
) -> None:
    wait_until(lambda: statuses(runs_dir).get("2-apo") == "RUNNING")
    run = next(runs_dir.glob("*-sql_agent-*"))
    os.kill(exporter_pid(run), signal.SIGKILL)
    runner.kill()
    runner.wait()
    assert statuses(runs_dir)["sql_agent-abc123"] == "RUNNING"
    sync(whole_run(runs_dir, "20261122-130000-sql_agent-def456"), environ={})
    assert statuses(runs_dir)["sql_agent-abc123"] == "KILLED"
    assert statuses(runs_dir)["sql_agent-def456"] == "FINISHED"
    assert query(runs_dir, "SELECT count(*) FROM runs WHERE status = 'RUNNING'") == [(0,)]


def test_a_resumed_stage_is_a_fresh_child_with_the_whole_curve(runs_dir: Path) -> None:
    fake = FakeRun(runs_dir)
    fake.start()
    fake.apo(finish=False)
    fake.close()
    sync(fake.path, environ={})
    assert statuses(runs_dir) == {"sql_agent-abc123": "KILLED", "2-apo": "KILLED"}

    fake = FakeRun(runs_dir)
    fake.emit("run_resumed", run=fake.path.name, argv="lightningrun resume", changes=[])
    fake.emit("stage_started", "apo", type="apo", ordinal=2, attempt=2, key="a" * 64, reason="resumed")
    fake.emit("metric", "apo", step=40, values={"val_reward": 0.9})
    fake.finish_stage("apo", {"best_val": 0.9}, {})
    fake.end()
    fake.close()
    sync(fake.path, environ={})
    children = query(runs_dir, "SELECT run_uuid, status FROM runs WHERE name = '2-apo' ORDER BY start_time")
    assert [status for _, status in children] == ["KILLED", "FINISHED"]
    curve = query(
        runs_dir, f"SELECT value FROM metrics WHERE key = 'val_reward' AND run_uuid = '{children[1][0]}' ORDER BY step"
    )
    assert curve == [(0.25,), (0.9,)]
    assert statuses(runs_dir)["sql_agent-abc123"] == "FINISHED"


def test_what_mlflow_refuses_is_said_and_does_not_stop_the_rest(runs_dir: Path) -> None:
    fake = FakeRun(runs_dir)
    fake.start()
    fake.evaluate("baseline", 1, SEED_PROMPT, 0.3)
    fake.emit(
        "prompt", "baseline", name="system", text="x" * 200_000, digest="", label="best", promoted=True, metrics={}
    )
    fake.emit("metric", "baseline", step=1, values={"pass@1 [all]": 0.5, "broken": float("nan")})
    fake.end()
    fake.close()
    state = sync(fake.path, environ={})
    assert state.complete and "refused" in state.error
    assert ("pass_1 _all_",) in query(runs_dir, "SELECT DISTINCT key FROM metrics")
    assert statuses(runs_dir)["sql_agent-abc123"] == "FINISHED"


def test_an_uri_in_the_environment_wins_and_its_password_is_written_nowhere(runs_dir: Path) -> None:
    class Tracking:
        uri = "http://recipe"

    assert default_uri(runs_dir, Tracking(), {"MLFLOW_TRACKING_URI": "http://environment"}) == "http://environment"
    assert default_uri(runs_dir, Tracking(), {}) == "http://recipe"
    assert default_uri(runs_dir, None, {}) == uri_of(runs_dir)
    assert deep_link("http://me:secret@host/", "7") == "http://host/#/experiments/7/runs?compareRunsMode=CHART"

    run = whole_run(runs_dir)
    uri = "http://me:canary-password@127.0.0.1:9"
    mirror = Mirror.start(run, uri=uri, experiment="x", runs_dir=runs_dir, environ={})
    state = mirror.finish(4)
    wait_until(lambda: read_state(run).error and not holder_alive(run / ".mirror.lock"))
    assert f"lightningrun sync {run}" in state.note
    for path in run.rglob("*"):
        assert not path.is_file() or b"canary-password" not in path.read_bytes()
