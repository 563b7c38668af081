"""A recipe from its files and overrides: composition, provenance, interpolation, the resolved form."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from recipe_project import RECIPE
from stage_types import SPECS, SearchConfig

from lightningrun.errors import RecipeError, UsageError
from lightningrun.recipe import load, load_text
from lightningrun.recipe.dump import to_yaml
from lightningrun.recipe.interpolate import resolve
from lightningrun.recipe.source import parse

Changed = Callable[..., str]


def test_a_whole_recipe(project: Any) -> None:
    loaded = project.load()
    recipe = loaded.recipe
    assert (recipe.name, recipe.seed, list(recipe.stages)) == ("demo", 7, ["baseline", "apo", "sft", "final"])
    assert isinstance(recipe.stages["apo"], SearchConfig)
    assert recipe.stages["apo"].rounds == 3
    assert recipe.agent.prompts["system"].text == "Write SQL.\n"
    assert recipe.task.data["train"].path == str(project.root / "data/train.jsonl")
    assert recipe.tracking.experiment == "demo"
    assert recipe.models["policy"].timeout_s == 60
    assert loaded.sources == (project.root / "recipe.yaml",)


def test_extends_merges_left_to_right_with_paths_relative_to_each_file(project: Any) -> None:
    project.write(
        "base/models.yaml", "models: {policy: {provider: python, name: 'pkg.agent:student', retries: 1}}\nseed: 1\n"
    )
    project.write("base/p.md", "from base")
    project.write("base/deep/task.yaml", "extends: ../models.yaml\nseed: 2\ntask: {data: {test: ../t.jsonl}}\n")
    project.write(
        "base/agent.yaml", "agent: {entrypoint: 'pkg.agent:answer', prompts: {system: {file: p.md}}}\nseed: 3\n"
    )
    text = """\
version: 1
name: x
extends: [base/deep/task.yaml, base/agent.yaml]
reward: {function: 'pkg.agent:match'}
models: {policy: {retries: 9}}
stages: {final: {type: evaluate}}
"""
    loaded = project.load(text)
    assert loaded.recipe.seed == 3
    assert loaded.recipe.models["policy"].retries == 9
    assert loaded.recipe.models["policy"].name == "pkg.agent:student"
    assert loaded.recipe.agent.prompts["system"].text == "from base"
    assert loaded.recipe.task.data["test"].path == str(project.root / "base/t.jsonl")
    names = [source.relative_to(project.root).as_posix() for source in loaded.sources]
    assert sorted(names) == ["base/agent.yaml", "base/deep/task.yaml", "base/models.yaml", "recipe.yaml"]
    assert [str(s) for s in loaded.why("seed")] == [
        "base/models.yaml:2:7: 1",
        "base/deep/task.yaml:2:7: 2",
        "base/agent.yaml:2:7: 3",
    ]


@pytest.mark.parametrize(
    ("extends", "expected"),
    [
        ("recipe.yaml", "recipe.yaml:1:10: extends: recipe.yaml extends itself"),
        ("a.yaml", "a.yaml:1:10: extends: recipe.yaml extends itself"),
        (
            "bas.yaml",
            "recipe.yaml:1:10: extends: bas.yaml: cannot read this recipe: No such file or directory; "
            "did you mean 'base.yaml'?",
        ),
        ("3", "recipe.yaml:1:10: extends: must be a path, or a list of paths"),
        ("[base.yaml, {}]", "recipe.yaml:1:22: extends: must be a path, or a list of paths"),
        ("broken.yaml", "broken.yaml:2:1: not YAML: did not find expected ',' or ']' (while parsing a flow sequence)"),
        ("list.yaml", "list.yaml:1:1: a recipe is a mapping of keys"),
    ],
)  # fmt: skip
def test_extends_that_cannot_be(project: Any, changed: Changed, extends: str, expected: str) -> None:
    project.write("a.yaml", "extends: recipe.yaml\n")
    project.write("base.yaml", "seed: 1\n")
    project.write("broken.yaml", "a: [1\n")
    project.write("list.yaml", "- a\n")
    assert project.problems(changed("version: 1", f"extends: {extends}\nversion: 1")) == [expected]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "this recipe is empty"),
        (b"# nothing\n", "this recipe is empty"),
        (b"- a\n- b\n", "a recipe is a mapping of keys"),
        (b"text", "a recipe is a mapping of keys"),
        (b"name: caf\xe9", "not UTF-8"),
        (b"x" * ((1 << 20) + 1), "larger than 1024 KiB"),
    ],
)
def test_files_that_are_no_recipes(project: Any, content: bytes, expected: str) -> None:
    project.write("r.yaml", content)
    with pytest.raises(RecipeError, match=expected):
        load("r.yaml", specs=SPECS)


def test_overrides_are_yaml_and_win_in_order(project: Any, changed: Changed) -> None:
    loaded = project.load(
        changed("entrypoint: pkg.agent:answer", "command: [python3, agent.py]"),
        "stages.apo.rounds=5",
        "stages.apo.rounds=6",
        "stages.apo.budget={max_rollouts: 9}",
        "agent.command.1=other.py",
        "name=on",
        "agent.prompts.system=Be brief.",
        "agent.args.new=[1, two]",
        "stages.final.when=never",
        "budget.max_llm_calls=",
        "task.data.train=here.jsonl",
        "models.judge={provider: python, name: 'pkg.agent:student'}",
    )
    recipe = loaded.recipe
    assert recipe.stages["apo"].rounds == 6
    assert recipe.stages["apo"].budget.max_rollouts == 9
    assert recipe.agent.command == ["python3", "other.py"]
    assert recipe.name == "on"
    assert recipe.agent.prompts["system"].text == "Be brief."
    assert recipe.agent.args == {"database": "x.db", "new": [1, "two"]}
    assert recipe.stages["final"].when == "never"
    assert recipe.task.data["train"].path == str(project.root / "here.jsonl")
    assert set(recipe.models) == {"policy", "coach", "judge"}
    assert [str(s) for s in loaded.why("stages.apo.rounds")] == [
        "recipe.yaml:21:13: '${vars.rounds}'",
        "override 'stages.apo.rounds=5': 5",
        "override 'stages.apo.rounds=6': 6",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.apo.roundz=3", "unknown key 'roundz' in 'stages.apo'; did you mean 'rounds'?"),
        ("stages.apoo.rounds=3", "no 'apoo' in 'stages'; did you mean 'apo'?"),
        ("models.polcy.name=x", "no 'polcy' in 'models'; did you mean 'policy'?"),
        ("vars.round=3", "no 'round' in 'vars'; did you mean 'rounds'?"),
        ("stagse.apo.rounds=3", "unknown key 'stagse' in the recipe; did you mean 'stages'?"),
        ("stages.apo.rounds=many", "stages.apo.rounds: must be a valid integer, got 'many'"),
        ("stages.apo.rounds=[1", "not YAML"),
        ("stages.apo.rounds=!!int 3", "tag '!!int' is not allowed"),
        ("stages.apo.rounds=${vars.nope}", "${vars.nope}: no such key"),
        ("agent.args.a={b: 1, b: 2}", "duplicate key 'b'"),
        ("rounds", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("a..b=3", "not of the form key=value"),
        ("name=../../x", "name: '../../x' cannot be a file name"),
    ],
)
def test_a_wrong_override_is_named(project: Any, override: str, expected: str) -> None:
    (problem,) = project.problems(RECIPE, override)
    assert problem.startswith(f"override '{override}': {expected}")


def test_why_tells_defaults_and_refuses_unknown_keys(project: Any) -> None:
    loaded = project.load()
    assert [str(s) for s in loaded.why("stages.apo.mode")] == ["default: 'rewrite'"]
    assert loaded.value("stages.apo.mode") == "rewrite"
    with pytest.raises(
        UsageError, match=r"no key 'stages.apo.roundz' in the recipe; did you mean 'stages.apo.rounds'\?"
    ):
        loaded.why("stages.apo.roundz")
    assert [str(s) for s in loaded.why("agent.prompts.system.text")] == ["recipe.yaml:8:20: 'prompts/system.md'"]
    loaded = project.load(RECIPE, "models.coach=${models.policy}")
    assert [str(s) for s in loaded.why("models.coach.name")][-1].endswith("'${models.policy}'")
    assert loaded.value("models.coach.name") == "pkg.agent:student"
    assert str(loaded.problem("stages.apo.rounds", "m", "h")) == "recipe.yaml:21:13: m; h"
    assert str(loaded.problem("stages.apo.mode", "m")) == "recipe.yaml:18:3: m"


def test_interpolation(project: Any, changed: Changed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LR_TEST_SIZE", "12")
    monkeypatch.delenv("LR_TEST_NONE", raising=False)
    text = changed(
        "args: {database: x.db}",
        r"""args: {a: "${name}-${seed}", b: "${oc.decode:${oc.env:LR_TEST_SIZE}}", c: "${oc.env:LR_TEST_NONE,d}", """
        r"""d: '\${x}', e: "${vars}", f: [1, "${.0}"], g: "${models.policy.name}"}""",
    )
    args = project.load(text).recipe.agent.args
    assert args == {
        "a": "demo-7",
        "b": 12,
        "c": "d",
        "d": "${x}",
        "e": {"rounds": 3, "base_model": "gpt"},
        "f": [1, 1],
        "g": "pkg.agent:student",
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${vars.base_modl}", "${vars.base_modl}: no such key; did you mean 'vars.base_model'?"),
        (
            "x ${vars.rounds",
            "agent.args.database: 'x ${vars.rounds' is not a complete ${...}; write \\${ for a plain ${",
        ),
        ("${oc.env:LR_TEST_NONE}", "${oc.env:LR_TEST_NONE}: the environment has no 'LR_TEST_NONE'"),
        ("${nope:1}", "${nope:1}: no resolver nope"),
        ("${agent.args.database}", "agent.args.database: its ${...} leads back to itself"),
        ("${agent.args}", "agent.args.database: its ${...} leads back to itself"),
        ("${..args.database}", "agent.args.database: its ${...} leads back to itself"),
    ],
)
def test_a_failed_interpolation_is_located(project: Any, changed: Changed, value: str, expected: str) -> None:
    assert project.problems(changed("database: x.db", f'database: "{value}"')) == [f"recipe.yaml:9:20: {expected}"]


@pytest.mark.parametrize(
    "block",
    [
        {f"k{i}": f"${{vars.k{i + 1}}}${{vars.k{i + 1}}}" for i in range(60)} | {"k60": "lol"},
        {f"k{i}": {"a": f"${{vars.k{i + 1}}}", "b": f"${{vars.k{i + 1}}}"} for i in range(60)} | {"k60": "lol"},
        {f"k{i}": f"${{oc.select:vars.k{i + 1}}}${{oc.select:vars.k{i + 1}}}" for i in range(60)} | {"k60": "lol"},
        {f"k{i}": f"${{vars.k{i + 1}}}" for i in range(2000)} | {"k2000": "lol"},
        {"a": "${vars.b}", "b": "${vars.c}", "c": "${vars.a}"},
        {"a": "x" * 900_000, "b": "${vars.a}${vars.a}${vars.a}"},
        {"a": "${vars.${vars.b}}", "b": "${vars.${vars.a}}"},
    ],
)
def test_interpolations_that_run_away_are_refused_at_once(block: dict[str, Any]) -> None:
    import omegaconf  # noqa: F401  (its import is not what is timed)

    spent: list[float] = []
    for _ in range(3):  # the least of three: a busy machine is not what is measured
        noted: list[str] = []
        started = time.process_time()
        resolve({"vars": block}, lambda path, message, hint: noted.append(message))  # noqa: B023
        spent.append(time.process_time() - started)
    assert min(spent) < 0.1
    assert noted
    assert all("expand to too much" in message or "leads back to itself" in message for message in noted)


def test_the_resolved_recipe_is_self_contained_and_loads_as_the_same(project: Any, changed: Changed) -> None:
    prompt = "yes\n# {question} ${literal} \\${x}  \n\ttab: 1e3\n"
    project.write("prompts/system.md", prompt)
    loaded = project.load(changed("seed: 7", "seed: 7\ndescription: '010'"), "stages.apo.rounds=4")
    (project.root / "prompts/system.md").unlink()
    again = load_text(loaded.to_yaml(), "runs/x/recipe.yaml", specs=SPECS, base=Path("/"))
    assert again.recipe == loaded.recipe.model_copy(update={"vars": {}})
    assert again.resolved == loaded.resolved
    assert again.digest == loaded.digest
    assert again.recipe.agent.prompts["system"].text == prompt
    assert "vars" not in again.resolved
    changed_again = load_text(loaded.to_yaml(), "f", ["stages.apo.rounds=5"], specs=SPECS)
    assert changed_again.recipe.stages["apo"].rounds == 5
    with pytest.raises(RecipeError, match="no 'rounds' in 'vars'"):
        load_text(loaded.to_yaml(), "f", ["vars.rounds=5"], specs=SPECS)


def test_the_digest_is_of_content_only(project: Any, changed: Changed) -> None:
    digest = project.load().digest
    assert project.load(changed("seed: 7", "seed: 7\ndescription: words\nexecution: {workers: 3}")).digest == digest
    assert project.load(changed("rounds: ${vars.rounds}", "rounds: 3 # three")).digest == digest
    assert project.load(changed("temperature: 0", "temperature: 0, retries: 5")).digest == digest
    assert project.load(changed("seed: 7", "seed: 8")).digest != digest
    assert project.load(changed("max_rollouts: 500", "max_rollouts: 501")).digest != digest
    project.write("prompts/system.md", "Other.")
    assert project.load().digest != digest


letters = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | letters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_-.1~é", min_size=1), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
texts = st.text(st.sampled_from("a1 :-#'\"\\${}\n\t%@!&*?|>,[]=e.~éx\U0001f600"), max_size=30)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("abc", min_size=1), values | texts, max_size=4))
@example({"a": "${."})
def test_dumped_values_read_back_as_they_were(block: dict[str, Any]) -> None:
    tree = {"vars": block}
    problems: list[Any] = []
    read = parse(to_yaml(tree), "f", problems).plain()
    noted: list[str] = []
    resolved, _ = resolve(read, lambda path, message, hint: noted.append(message))
    assert not problems
    assert not noted
    assert resolved == tree


def test_loading_is_light() -> None:
    code = """
import sys, lightningrun.recipe, lightningrun.dataset, lightningrun.secrets
heavy = {"mlflow", "litellm", "openai", "aiohttp", "rich", "pandas", "torch", "ray", "click", "omegaconf"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
