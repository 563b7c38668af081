"""What agent and reward ask for is there, or it is said before anything runs, and nothing of theirs is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightningrun import load
from lightningrun.errors import LightningError, Missing, UsageError

RECIPE = """\
version: 1
name: asked
agent: {entrypoint: "mine.py:answer"}
task: {data: {test: rows.jsonl}}
reward: {function: "mine.py:score", args: {strict: true}}
models: {policy: {provider: python, name: "mine.py:student"}}
stages: {final: {type: evaluate}}
"""
ROWS = [{"id": 1, "question": "a", "hint": "x"}, {"id": 2, "question": "b"}, {"id": 3, "question": "c"}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def write(answer: str = "def answer(question, llm)", score: str = "def score(output, task)", before: str = "") -> None:
    code = 'raise SystemExit("imported")\n\ndef student(request): ...\n'
    Path("mine.py").write_text(f"{code}{before}\n{answer}: ...\n\n{score}: ...\n")


def check(recipe: str = RECIPE, *overrides: str) -> str:
    Path("r.yaml").write_text(recipe)
    try:
        load("r.yaml", list(overrides)).check()
    except LightningError as error:
        assert isinstance(error, (UsageError, Missing))
        return str(error)
    return ""


PROVIDED: list[dict[str, Any]] = [
    {},
    {"answer": "async def answer(task, prompts, llm, seed, workdir, args, *, question, other=None, **more)"},
    {"score": "def score(task, output, trace, strict, question, seed, args)"},
    {"answer": "@deco\ndef answer(anything)"},
    {"answer": "def inner(x): ...\nanswer = inner\ndef unused(y)"},
    {"answer": "class answer:\n  def __init__(self, z)"},
]


@pytest.mark.parametrize("signatures", PROVIDED)
def test_what_is_provided_or_cannot_be_known_passes(signatures: dict[str, str]) -> None:
    write(**signatures)
    assert check() == ""


@pytest.mark.parametrize(
    ("signatures", "said"),
    [
        (
            {"answer": "def answer(qestion, llm)"},
            "r.yaml:3:21: agent.entrypoint: mine.py:answer asks for 'qestion', which nothing provides; "
            "did you mean 'question'?",
        ),
        (
            {"answer": "def answer(question, output)"},
            "r.yaml:3:21: agent.entrypoint: mine.py:answer asks for 'output', which nothing provides; "
            "there is id, question, hint, args, llm, prompts, seed, task, workdir",
        ),
        (
            {"score": "def score(output, *, stric)"},
            "r.yaml:5:20: reward.function: mine.py:score asks for 'stric', which nothing provides; "
            "did you mean 'strict'?",
        ),
        (
            {"answer": "def answer(hint, llm)"},
            "r.yaml:3:21: agent.entrypoint: mine.py:answer asks for 'hint', a field that is not in row '2' of split "
            "'test' and 1 more; give it a default, or every row that field",
        ),
        (
            {"score": "def score(output, llm)"},
            "r.yaml:5:20: reward.function: asks for 'llm', and there is no model 'judge' in 'models'; "
            "name the model that judges under models.judge",
        ),
    ],
)
def test_what_nothing_provides_is_located(signatures: dict[str, str], said: str) -> None:
    write(**signatures)
    assert check() == said


def test_a_judge_may_be_asked_for_where_there_is_one() -> None:
    write(score="def score(output, llm)")
    judge = 'judge: {provider: python, name: "mine.py:student"}'
    assert check(RECIPE.replace("models: {policy", f"models: {{{judge}, policy")) == ""


def test_another_judge_is_another_result_and_another_coach_is_not(folder: Path) -> None:
    write(score="def score(output, llm)")
    apo = "apo: {type: apo, optimize: [], coach: coach, when: never}"
    roles = [f'{role}: {{provider: python, name: "mine.py:student"}}' for role in ("judge", "user", "coach")]
    text = RECIPE.replace("models: {", f"models: {{{', '.join(roles)}, ")
    text = text.replace('answer"}', 'answer", prompts: {system: be good}}').replace("stages: {", f"stages: {{{apo}, ")
    text = text.replace("optimize: [], ", "").replace("{test:", "{train: t.jsonl, val: v.jsonl, test:")
    for name in "tv":
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"question": f"{name}{n}"}) for n in range(9)))
    Path("r.yaml").write_text(text)

    def key(*overrides: str) -> str:
        return load("r.yaml", list(overrides)).plan().stages[-1].key

    assert key() == key("models.coach.temperature=1.0")
    assert len({key(), key("models.judge.temperature=1.0"), key("models.user.temperature=1.0")}) == 3


def test_missing_data_is_told_together_with_other_mistakes(folder: Path) -> None:
    write()
    (folder / "sub").mkdir()
    text = RECIPE.replace("rows.jsonl", "rows.jsnl, more: sub, other: {path: x.jsonl, limt: 3}")
    assert check(text.replace("stages: {final", "stages: {nal: {type: evalute}, final")).splitlines() == [
        "r.yaml:4:21: task.data.test: cannot read rows.jsnl: No such file or directory; did you mean 'rows.jsonl'?",
        "r.yaml:4:38: task.data.more: sub is a folder; name a .jsonl, .json, .csv or .parquet file, or a folder that "
        "save_to_disk of Hugging Face datasets wrote",
        "r.yaml:4:57: task.data.other.path: cannot read x.jsonl: No such file or directory; did you mean 'rows.jsonl'?",
        "r.yaml:4:66: unknown key 'limt' in 'task.data.other'; did you mean 'limit'?",
        "r.yaml:7:22: stages.nal.type: no stage type 'evalute'; did you mean 'evaluate'?",
    ]


def test_a_loader_is_located_before_it_runs_and_a_missing_package_is_not_a_mistake_of_the_recipe() -> None:
    write()
    loader = RECIPE.replace("rows.jsonl", '{python: "mine.py:lod"}')
    assert "r.yaml:4:30: task.data.test.python: mine.py defines no 'lod'" in check(loader)
    by_name = RECIPE.replace("rows.jsonl", '{sql: "SELECT 1", database_env: NO_SUCH_VARIABLE}')
    assert check(by_name) == (
        "r.yaml:4:21: task.data.test: NO_SUCH_VARIABLE is not set; export the database's URL under it"
    )
