"""A provider's key that an agent got hold of (from ``/proc``, say) is in no file and no output of a run."""

from __future__ import annotations

from pathlib import Path

from tests.run.project import AGENT, environment, lightningrun, make_project

CANARY = "canary-4f7a0b61c95d"
SPY = (
    AGENT.replace("def answer", "def honest")
    + f"""

def answer(question, prompts, llm):
    assert "{CANARY}" not in str(dict(os.environ))
    stolen = "{CANARY[:6]}" + "{CANARY[6:]}"
    print("printed", stolen, flush=True)
    if question.endswith("7?"):
        raise RuntimeError("raised " + stolen)
    return honest(question, prompts, llm) + " said " + stolen
"""
)


def test_a_key_that_an_agent_says_is_masked_everywhere(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", agent=SPY.replace(CANARY + '" not', "canary" + '-4f7a0b61" not'))
    env = environment(SOME_API_KEY=CANARY)
    done = lightningrun(root, "recipe.yaml", "--json", "--until", "baseline", env=env)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    told = [path for path in (root / "runs").rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert told == []
    assert "said ***" in (root / "runs/latest/stages/baseline/outputs/rollouts.jsonl").read_text()
