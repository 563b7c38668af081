"""One example, set up and run as its README says; what every example must show.

    run = ran("langgraph", tmp_path)
    run.must_have_improved()

The environment is made by scripts/example-env.sh; it stays for the next time.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.run.project import command, environment

ROOT = Path(__file__).resolve().parents[2]
INSTALL_S = 400
FAST = "tracking.enabled=false"


@dataclass(frozen=True)
class Run:
    """A finished run of an example."""

    folder: Path
    said: str

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        for line in (self.folder / name).read_text("utf-8").splitlines():
            yield json.loads(line)

    def reward(self, stage: str) -> float:
        state = json.loads((self.folder / f"stages/{stage}/state.json").read_text("utf-8"))
        return float(state["result"]["metrics"]["reward"])

    @property
    def baseline(self) -> str:
        """The agent's built-in prompt, as the recipe declares it."""
        resolved = yaml.safe_load((self.folder / "resolved.yaml").read_text("utf-8"))
        (prompt,) = resolved["agent"]["prompts"].values()
        return str(prompt["text"]).strip()

    @property
    def improved(self) -> str:
        """The prompt that the search chose."""
        (file,) = (self.folder / "stages/apo/outputs/prompts").glob("*.md")
        return file.read_text("utf-8").strip()

    def rollouts(self) -> list[dict[str, Any]]:
        return [record["rollout"] for record in self.records("journal.jsonl") if "rollout" in record]

    def calls(self, stage: str) -> list[dict[str, Any]]:
        """What the agent's model was asked in a stage, and what it answered."""
        return [call for call in self.records("calls.jsonl") if call.get("stage") == stage and call["role"] == "policy"]

    def must_have_improved(self, *, by: float = 0.1, tools: bool = True) -> None:
        """Better than at first by a prompt that was put in the place of the built-in one; every rollout seen."""
        rollouts = self.rollouts()
        assert len(rollouts) >= 60
        assert all(rollout["llm_calls"] >= 1 for rollout in rollouts)
        assert all(rollout["status"] == "succeeded" for rollout in rollouts), {r["error"] for r in rollouts}
        assert self.reward("final") >= self.reward("baseline") + by, self.said
        assert self.improved != self.baseline
        for stage, present, absent in (("baseline", self.baseline, None), ("final", self.improved, self.baseline)):
            for call in self.calls(stage):
                told = "\n".join(_texts(call["request"]["messages"]))
                assert _plain(present) in _plain(told), f"{stage}: the prompt is not in {told[:2000]}"
                assert absent is None or _plain(absent) not in _plain(told), stage
        if tools:
            answers = [call["response"]["choices"][0]["message"] for call in self.calls("final")]
            assert any(answer.get("tool_calls") for answer in answers)


def ran(name: str, folder: Path, *overrides: str, recipe: str = "recipe.yaml") -> Run:
    """Set ``examples/NAME`` up and run its recipe to success."""
    setup = subprocess.run(
        [str(ROOT / "scripts/example-env.sh"), name],
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        stdin=subprocess.DEVNULL,
    )
    assert setup.returncode == 0, f"{name} cannot be installed:\n{setup.stderr[-3000:]}"
    runs = folder / "runs"
    done = subprocess.run(
        command(f"examples/{name}/{recipe}", "--runs-dir", str(runs), FAST, *overrides),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return Run((runs / "latest").resolve(), done.stdout)


def _texts(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [str(part.get("text", "")) for part in content]
        yield from parts


def _plain(text: str) -> str:
    return " ".join(text.split())
