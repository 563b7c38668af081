"""Whatever a recipe says, loading ends in a recipe or in located problems: never in a traceback."""

from __future__ import annotations

import re
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_project import RECIPE, Project
from stage_types import SPECS

from lightningrun.errors import RecipeError
from lightningrun.recipe import load_text

WORDS = re.findall(r"[\w./]+|[^\w\s]|\n *", RECIPE)
JUNK = [
    "",
    "null",
    "[]",
    "{}",
    "true",
    "-1",
    "'",
    "${",
    "${name}",
    "${vars}",
    "&a ",
    "*a",
    "!!x ",
    ":",
    "\n",
    "[1, {}]",
    "é",
]
quiet = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def loads_or_complains(text: str, *overrides: str) -> None:
    try:
        load_text(text, "f.yaml", overrides, specs=SPECS)
    except RecipeError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.message
            assert problem.file
            assert problem.line or problem.file.startswith("override") or "larger" in problem.message, problem


@quiet
@given(
    st.lists(st.tuples(st.integers(0, len(RECIPE)), st.integers(0, 12), st.sampled_from(JUNK)), min_size=1, max_size=4)
)
def test_damaged_text(project: Project, edits: list[tuple[int, int, str]]) -> None:
    text = RECIPE
    for at, length, junk in edits:
        text = text[:at] + junk + text[at + length :]
    loads_or_complains(text)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*JUNK, *WORDS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=6,
)


@quiet
@given(st.data())
def test_any_value_in_any_place(project: Project, data: st.DataObject) -> None:
    tree: Any = yaml.safe_load(RECIPE)
    for _ in range(data.draw(st.integers(1, 3))):
        node, keys = tree, []
        while isinstance(node, (dict, list)) and node and (not keys or data.draw(st.booleans())):
            key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            keys.append((node, key))
            node = node[key]
        if keys:
            keys[-1][0][keys[-1][1]] = data.draw(anything)
    loads_or_complains(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


@quiet
@given(
    st.lists(st.sampled_from([*WORDS, *JUNK, "stages.apo.rounds", "agent.args.x", "."]), min_size=1, max_size=4),
    anything,
)
def test_any_override(project: Project, keys: list[str], value: Any) -> None:
    loads_or_complains(RECIPE, f"{'.'.join(keys)}={value}", "".join(keys))
