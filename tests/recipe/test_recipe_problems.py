"""Everything wrong with a recipe: found, located, suggested, shown at once, and no secret printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from recipe_project import RECIPE
from stage_types import SPECS

from lightningrun.recipe import check
from lightningrun.recipe.when import parse as parse_when

Changed = Callable[..., str]


def test_six_different_mistakes_are_shown_at_once_in_order_with_suggestions(project: Any, changed: Changed) -> None:
    text = changed(
        "pkg.agent:answer", "pkg.agent:anser",
        "system.md", "sytem.md",
        "database: x.db", "database: '${vars.base_modl}'",
        "provider: litellm", "provider: litelm",
        "rounds: ${vars.rounds}", "roundz: 3",
        "prompts: apo.prompts", "prompts: ap.prompts",
        "beats: baseline", "beats: final",
    )  # fmt: skip
    assert project.problems(text) == [
        "recipe.yaml:6:15: agent.entrypoint: pkg/agent.py defines no 'anser'; did you mean 'answer'?",
        "recipe.yaml:8:20: agent.prompts.system.file: prompts/sytem.md: cannot read this prompt: "
        "No such file or directory; did you mean 'system.md'?",
        "recipe.yaml:9:20: ${vars.base_modl}: no such key; did you mean 'vars.base_model'?",
        "recipe.yaml:15:21: models.coach.provider: must be 'openai', 'litellm', 'python', 'local' or 'vllm', "
        "got 'litelm'; did you mean 'litellm'?",
        "recipe.yaml:21:5: unknown key 'roundz' in 'stages.apo'; did you mean 'rounds'?",
        "recipe.yaml:25:23: stages.sft.inputs.prompts: no stage 'ap'; did you mean 'apo.prompts'?",
        "recipe.yaml:29:39: stages.final.gate.beats: stage 'final' cannot read itself",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 1", "version: 2", "1:10: version: no recipe language '2'; this lightningrun reads version 1: upgr"),
        ("version: 1", "version: '1'", "1:10: version: no recipe language '1'; this lightningrun reads version 1"),
        ("version: 1\n", "", "1:1: missing key 'version' in the recipe"),
        ("name: demo", "name: ../demo", "2:7: name: '../demo' cannot be a file name; use letters"),
        ("name: demo", "name: 3", "2:7: name: must be a valid string, got 3"),
        ("seed: 7", "seed: true", "3:7: seed: must be a valid integer, got true"),
        ("seed: 7", "seed: 7.5", "3:7: seed: must be a valid integer, got 7.5"),
        ("seed: 7", "seed: -1", "3:7: seed: must be greater than or equal to 0, got -1"),
        ("seed: 7", "sead: 7", "3:1: unknown key 'sead' in the recipe; did you mean 'seed'?"),
        ("entrypoint: pkg.agent:answer", "timeout_s: 3", "5:1: agent: needs 'entrypoint' or 'command'"),
        ("args: {database", "command: [x]\n  args: {database", "5:1: agent: takes 'entrypoint' or 'command', not both"),
        ("file: prompts/system.md", "file: prompts/system.md, text: x", "8:5: agent.prompts.system: takes 'file'"),
        ("file: prompts/system.md", "fil: prompts/system.md", "8:14: unknown key 'fil' in 'agent.prompts.system'; di"),
        ("system: {file", "../up: {file", "8:5: agent.prompts: '../up' cannot be a name here; use letters"),
        ("args: {database: x.db}", "timeout_s: .inf", "9:14: agent.timeout_s: must be a finite number"),
        ("args: {database: x.db}", "isolation: container", "9:14: agent.isolation: must be 'process' or 'inline', got"),
        ("args: {database: x.db}", "args: [1]", "9:9: agent.args: must be a mapping, got a list"),
        ("train: data/train.jsonl", "a/b: data/train.jsonl", "11:10: task.data: 'a/b' cannot be a name here"),
        ("test: data/test.jsonl", "tst: data/test.jsonl", "17:37: stages.baseline.split: no split 'test' in 'task.da"),
        ("data: {train", "dta: {train", "11:3: unknown key 'dta' in 'task'; did you mean 'data'?"),
        ("pkg.agent:match", "pkg.agent.match", "12:20: reward.function: 'pkg.agent.match' is not of the form module:"),
        ("pkg.agent:match", "pkg.agnet:match", "12:20: reward.function: no module 'pkg.agnet'; did you mean 'pkg.age"),
        ("pkg.agent:student", "pkg/agnt.py:student", "14:36: models.policy.name: no file 'pkg/agnt.py'; did you mean"),
        ("pkg.agent:student", "pkg.agent:LIMIT", "14:36: models.policy.name: 'LIMIT' in pkg/agent.py is not callable"),
        ("temperature: 0}", "temperature: hot}", "14:70: models.policy.temperature: must be a valid number, got 'hot'"),
        ("provider: litellm, ", "", "15:3: missing key 'provider' in 'models.coach'"),
        ("coach: {provider", "oach: {provider", "18:3: stages.apo.coach: no model 'coach' in 'models'; did you mean"),
        ("policy: {prov", "polcy: {prov", "13:1: missing key 'policy' in 'models': the role that the agent talks to"),
        ("provider: litellm, ", "provider: openai, args: {x: 1}, ", "15:3: models.coach: 'args' are for provider pyt"),
        ("type: evaluate, split", "split", "17:3: missing key 'type' in 'stages.baseline'; it is one of evaluate, apo"),
        ("type: evaluate, split", "type: evalute, split", "17:20: stages.baseline.type: no stage type 'evalute'; did"),
        ("{type: evaluate, split: test}", "evaluate", "17:13: stages.baseline: must be a mapping with a 'type'"),
        ("baseline: {", "base.line: {", "17:3: stages: 'base.line' cannot be a name here"),
        ("when: baseline.reward < 0.95", "when: sometimes", "20:11: stages.apo.when: 'sometimes' is not always, never"),
        ("when: baseline.reward < 0.95", "when: final.reward < 1", "20:11: stages.apo.when: stage 'final' runs later"),
        ("when: baseline.reward < 0.95", "when: basline.reward < 1", "20:11: stages.apo.when: no stage 'basline'; did"),
        ("when: baseline.reward < 0.95", "when: yes", "20:11: stages.apo.when: 'yes' is not always"),
        ("max_rollouts: 500", "max_rollout: 500", "22:14: unknown key 'max_rollout' in 'stages.apo.budget'; did you"),
        ("max_rollouts: 500", "max_rollouts: 0", "22:28: stages.apo.budget.max_rollouts: must be greater than or equ"),
        ("prompts: apo.prompts", "promts: apo.prompts", "25:14: unknown key 'promts' in 'stages.sft.inputs'; did you"),
        ("prompts: apo.prompts", "prompts: apo.promts", "25:23: stages.sft.inputs.prompts: stage 'apo' has no output"),
        ("prompts: apo.prompts", "prompts: apo.rollouts", "25:23: stages.sft.inputs.prompts: 'apo.rollouts' is rollo"),
        ("prompts: apo.prompts", "prompts: apo", "25:23: stages.sft.inputs.prompts: 'apo' is not of the form <stage>"),
        ("prompts: apo.prompts", "prompts: sft.model", "25:23: stages.sft.inputs.prompts: stage 'sft' cannot read it"),
        ("prompts: apo.prompts", "prompts: 3", "25:23: stages.sft.inputs.prompts: must be a valid string, got 3"),
        ("min: {reward: 0.8}", "min: {reward: high}", "29:26: stages.final.gate.min.reward: must be a valid number"),
        ("gate: {min", "<<: {min", "29:5: unknown key '<<' in 'stages.final'; YAML 1.2 has no merge keys: use 'exten"),
        ("seed: 7", "seed: ???", "3:7: seed: left to be set ('???')"),
        ("seed: 7", "seed: 7\nseed: 8", "4:1: duplicate key 'seed'; the first is on line 3"),
        ("seed: 7", "seed: !!python/name:os.system 7", "3:7: tag '!!python/name:os.system' is not allowed"),
    ],
)  # fmt: skip
def test_one_mistake_gives_one_problem(project: Any, changed: Changed, old: str, new: str, expected: str) -> None:
    problems = project.problems(changed(old, new))
    assert any(problem.startswith(f"recipe.yaml:{expected}") for problem in problems), problems
    assert len(problems) == (2 if "tst" in new else 3 if "base.line" in new else 1), problems


def test_union_branches_make_one_problem(project: Any, changed: Changed) -> None:
    (problem,) = project.problems(changed("seed: 7", "execution: {workers: many}"))
    assert problem == "recipe.yaml:3:22: execution.workers: must be a valid integer or 'auto', got 'many'"


CANARY = "sk-live-4f9d8c7b6a5e4d3c2b1a"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("api_key_env: OPENAI_API_KEY", f"api_key: {CANARY}"),
        ("api_key_env: OPENAI_API_KEY", f"api_key_env: {CANARY}"),
        ("api_key_env: OPENAI_API_KEY", "api_key_env: hunter2-hunter2-hunter2"),
        ("api_key_env: OPENAI_API_KEY", "extra: {access_token: hunter2hunter2}"),
        ("api_key_env: OPENAI_API_KEY", "base_url: 'https://me:hunter2hunter2@host/v1'"),
        ("database: x.db", f"note: 'use {CANARY} please'"),
        ("database: x.db", "note: '${oc.env:LR_CANARY_KEY}'"),
        ("database: x.db", "api_key: '${oc.env:LR_CANARY}'"),
        ("database: x.db", "note: '${oc.env:LR_CANARY}'"),
        ("database: x.db", "note: '${oc.env:LR_${name}}'"),
        ("database: x.db", "note: a hunter2hunter2 in words"),
        ("entrypoint: pkg.agent:answer", f"entrypoint: {CANARY}"),
        ("seed: 7", f"seed: {CANARY}"),
        ("isolation", "isolation"),
    ],
)
def test_secrets_are_refused_and_never_printed(
    project: Any, changed: Changed, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    for name in ("LR_CANARY_KEY", "LR_CANARY", "LR_demo"):
        monkeypatch.setenv(name, "hunter2hunter2")
    text = changed(old, new) if old != "isolation" else changed()
    overrides = [f"models.coach.api_key={CANARY}", f"agent.args.x={CANARY}"] if old == "isolation" else []
    problems = project.problems(text, *overrides)
    assert problems
    for secret in (CANARY, "hunter2hunter2"):
        assert secret not in "\n".join(problems)
    assert any("secret" in problem or "api_key_env" in problem for problem in problems)


def test_a_prompt_file_that_cannot_be_used(project: Any) -> None:
    for content, expected in (
        (f"Use {CANARY}.".encode(), "holds a secret, or what looks like one"),
        (b"a\n\xff", "not UTF-8; save it as UTF-8"),
        (b"a\0b", "holds a NUL character"),
        (b"x" * (257 << 10), "this prompt is larger than 256 KiB"),
    ):
        project.write("prompts/system.md", content)
        (problem,) = project.problems()
        assert problem.startswith("recipe.yaml:8:20: agent.prompts.system.file: prompts/system.md")
        assert problem.endswith(expected)


def test_a_recipe_needs_a_stage(project: Any) -> None:
    head = RECIPE[: RECIPE.index("stages:")]
    missing = "missing key 'stages' in the recipe: at least one stage"
    assert project.problems(head) == [f"recipe.yaml:1:1: {missing}"]
    assert project.problems(head + "stages: {}\n") == [f"recipe.yaml:16:1: {missing}"]
    assert project.problems(head + "stages:\n") == ["recipe.yaml:16:8: stages: must be a mapping, got nothing"]


def test_words_are_not_taken_for_secrets(project: Any, changed: Changed) -> None:
    text = changed("database: x.db", "sort_key: odi_runs, max_tokens: 12345678901, task: task-decomposition-in-4-steps")
    assert project.load(text).recipe.agent.args["sort_key"] == "odi_runs"


def test_no_code_of_the_user_runs(project: Any) -> None:
    project.write("pkg/__init__.py", "raise SystemExit('imported')")
    assert not check(project.load(), SPECS, environ={"OPENAI_API_KEY": "x" * 8}).problems


def test_what_the_machine_lacks_is_reported_apart(project: Any, changed: Changed) -> None:
    loaded = project.load(changed("entrypoint: pkg.agent:answer", "command: [no-such-program-here, x]"))
    report = check(loaded, SPECS, environ={})
    assert not report.problems
    assert [str(problem) for problem in report.missing] == [
        "recipe.yaml:15:65: models.coach: OPENAI_API_KEY is not set; export the key under it",
        "recipe.yaml:6:12: agent.command: there is no program 'no-such-program-here'",
    ]


def test_an_entrypoint_that_went_away_is_found_again(project: Any) -> None:
    loaded = project.load()
    project.write("pkg/agent.py", "def match(): ...\ndef student(request): ...\n")
    (problem,) = check(loaded, SPECS, environ={"OPENAI_API_KEY": "x"}).problems
    assert (
        str(problem) == "recipe.yaml:6:15: agent.entrypoint: pkg/agent.py defines no 'answer'; there is match, student"
    )


@pytest.mark.parametrize(
    ("text", "metrics", "expected"),
    [
        ("always", {}, True),
        ("never", {}, False),
        ("gpu", {}, False),
        ("a.reward < 0.5", {"a": {"reward": 0.4}}, True),
        ("a.reward>=1e-1", {"a": {"reward": 0.1}}, True),
        ("a.tag.easy.reward != 1", {"a": {"tag.easy.reward": 1.0}}, False),
        ("a.promoted == true", {"a": {"promoted": True}}, True),
        ("a.promoted == false", {"a": {"promoted": True}}, False),
        ("a.reward < 0.5", {"a": {"reward": None}}, False),
        ("a.reward < 0.5", {}, False),
    ],
)
def test_when_decides(text: str, metrics: dict[str, Any], expected: bool) -> None:
    decided, reason = parse_when(text).decide(metrics, has_gpu=False)
    assert decided is expected
    assert text in reason or "GPU" in reason


def test_when_refuses_a_metric_that_a_stage_does_not_have() -> None:
    with pytest.raises(Exception, match=r"stage 'a' has no metric 'rewrd'; did you mean 'a.reward'\?"):
        parse_when("a.rewrd < 1").decide({"a": {"reward": 0.4}}, has_gpu=False)


@pytest.mark.parametrize(
    "text", ["", "Always", "a < 1", "a.b < c", "a.b << 1", "a.b < 1; x", "a.b < 1 and c.d < 2", "x" * 999]
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="is not always, never, gpu or a comparison"):
        parse_when(text)
