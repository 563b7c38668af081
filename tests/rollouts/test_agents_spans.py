"""What an agent's framework tells by OpenTelemetry is kept with its rollout, and our calls stand under it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightningrun.tracking.journal import RunJournal
from lightningrun.tracking.rollout_tree import read_tree
from lightningrun.types import Rollout
from tests.rollouts.plant import HERE, Plant, recipe, requests

FILE = f"{HERE}/telling_agents.py"
PROMPTS = {"writer": "You are the writer.", "checker": "You are the checker."}


def shown(plant: Plant, rollout: Rollout) -> list[str]:
    root = read_tree(plant.folder, rollout)
    return [f"{'  ' * depth}{node.kind} {node.name}{'*' if node.call else ''}" for depth, node in root.walk()]


async def rolled(folder: Path, count: int = 1, **agent: Any) -> tuple[Plant, list[Rollout]]:
    async with Plant(folder, recipe(agent, reward={"function": f"{HERE}/agents_for_tests.py:exact"})) as plant:
        return plant, await plant.engine().run(requests(count, PROMPTS))


TREE = ["agent agent", "  step graph", "    agent writer", "      llm model", "        llm {0}*", "    tool run_sql",
        "    agent checker", "      llm {0}*"]  # fmt: skip


@pytest.mark.parametrize("says_who", [False, True])
async def test_calls_stand_under_the_spans_that_made_them(tmp_path: Path, says_who: bool) -> None:
    plant, rollouts = await rolled(tmp_path, 4, entrypoint=f"{FILE}:graph", args={"says_who": says_who})
    for rollout in rollouts:
        assert rollout.status.scored and rollout.llm_calls == 2
        model = plant.service.roles["policy"].config.name
        assert shown(plant, rollout) == [line.replace("{0}", model) for line in TREE]
        calls = [node.call for _, node in read_tree(tmp_path, rollout).walk() if node.call]
        assert [call.agent for call in calls] == ["writer", "checker"]
        assert all(bool(call.span) == says_who for call in calls)
    assert len({rollout.span_ref for rollout in rollouts}) == 4, "each its own, although slots serve several"


async def test_a_command_s_spans_are_sent_as_it_ends(tmp_path: Path) -> None:
    plant, (rollout,) = await rolled(tmp_path, command=[sys.executable, FILE])
    assert [line.split()[1] for line in shown(plant, rollout)][:3] == ["agent", "graph", "writer"]


async def test_spans_of_an_agent_that_is_killed_for_its_time_are_there(tmp_path: Path) -> None:
    plant, (rollout,) = await rolled(tmp_path, entrypoint=f"{FILE}:hanging", timeout_s=3)
    assert rollout.error.startswith("timeout") and "  step first" in shown(plant, rollout)


async def test_another_collector_of_the_agent_s_is_left_to_it_and_never_waited_for(tmp_path: Path) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    began = time.monotonic()
    _, (rollout,) = await rolled(tmp_path, entrypoint=f"{FILE}:graph", env=env)
    assert rollout.status.scored and rollout.span_ref is None
    assert time.monotonic() - began < 15 and not (tmp_path / "spans.jsonl").exists()


async def test_the_agent_has_the_variables_and_the_reward_has_not(tmp_path: Path) -> None:
    reward = {"function": f"{FILE}:no_variables"}
    async with Plant(tmp_path, recipe({"entrypoint": f"{FILE}:variables"}, reward=reward)) as plant:
        (rollout,) = await plant.engine().run(requests(1, PROMPTS))
    assert rollout.score == 1.0 and "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" in rollout.output


async def test_agents_without_telemetry_have_no_file_of_it(tmp_path: Path) -> None:
    assert "opentelemetry" not in os.environ
    _, (rollout,) = await rolled(tmp_path, entrypoint=f"{HERE}/agents_for_tests.py:good")
    assert rollout.span_ref is None and not (tmp_path / "spans.jsonl").exists()


def test_secrets_in_spans_are_masked_before_they_are_written(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "journal.jsonl", mask=lambda text: text.replace("sk-secret", "[masked]"))
    journal.keep_spans({"spans": [{"attributes": {"header": "sk-secret"}}]})
    journal.close()
    assert (
        "[masked]" in (tmp_path / "spans.jsonl").read_text()
        and "sk-secret" not in (tmp_path / "spans.jsonl").read_text()
    )
