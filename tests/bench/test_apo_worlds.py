"""The worlds of `make bench-apo` are what they claim, the coach understands any engine, and the report can say FAIL."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightningrun.stages.apo.coach import write_question
from lightningrun.stages.apo.replies import parse_reply

APO = Path(__file__).resolve().parents[2] / "bench" / "apo"
sys.path.insert(0, str(APO))

import coach  # noqa: E402
import worlds  # noqa: E402
from report import Report  # noqa: E402
from worlds import PLACEHOLDER, World, grade, make, section  # noqa: E402

sys.path.remove(str(APO))

FAMILIES = worlds.FAMILIES


def prompts_with(world: World, *tokens: str) -> dict[str, str]:
    """The world's prompts with these tokens, each in the prompt where it works."""
    start = f"You are an agent. {PLACEHOLDER}"
    mine = {name: [token for token in tokens if world.owner[token] == name] for name in world.components}
    return {name: section(name, " ".join([start, *mine[name]])) for name in world.components}


def everything(world: World) -> dict[str, str]:
    return prompts_with(world, *(token for token in world.owner if not token.startswith("habit")))


def mean_over(family: str, what: Any) -> float:
    return statistics.fmean(what(make(family, number)) for number in range(100, 104))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_world_starts_low_and_can_be_solved(family: str) -> None:
    seed = mean_over(family, lambda world: world.true(world.seed_prompts))
    assert seed == pytest.approx(worlds.BEST if family == "null" else 0.2, abs=0.1 if family != "null" else 1e-9)
    assert make(family, 100).true(everything(make(family, 100))) == pytest.approx(worlds.BEST)


def test_a_world_is_a_function_of_its_name() -> None:
    first = make("additive", 100)
    make.cache_clear()
    again = make("additive", 100)
    assert first is not again and first.splits == again.splits and first.seed_prompts == again.seed_prompts
    assert make("additive", 101).steps != again.steps and make("graded", 100).steps != again.steps


def test_test_rows_are_many_and_in_no_other_split() -> None:
    splits = make("additive", 100).splits
    assert len(splits["test"]) == 1500
    assert not {row["id"] for row in splits["test"]} & {row["id"] for name in ("train", "val") for row in splits[name]}


def test_a_step_helps_a_habit_and_words_harm_and_the_placeholder_must_stay() -> None:
    world = make("additive", 100)
    seed = world.true(world.seed_prompts)
    two = prompts_with(world, *world.steps[:2])
    assert world.true(two) > seed
    assert world.true(prompts_with(world, *world.steps[:2], world.habits[0])) < world.true(two)
    assert world.true({"system": two["system"] + " please" * 30}) < world.true(two)
    assert world.true({"system": two["system"].replace(PLACEHOLDER, "")}) == 0


def test_conflicting_steps_hurt_until_they_are_qualified() -> None:
    world = make("conflicting", 100)
    clashing = [step for step in world.steps if worlds.qualifier(step) in world.owner]
    bare = world.true(prompts_with(world, *world.steps))
    assert world.true(everything(world)) > bare + 0.2
    row = next(row for row in world.splits["train"] if row["clash"])
    step = row["clash"][0]
    assert step in clashing and step not in row["need"]
    with_step, without = (
        world.quality(world.read(prompts_with(world, *row["need"], *more)), row) for more in ([step], [])
    )
    assert with_step < without


def test_half_a_pair_is_worse_than_none() -> None:
    world = make("pairs", 100)
    known, pair = world.pairs[0], world.pairs[1]
    none, half, both = (world.true(prompts_with(world, *known, *pair[:count])) for count in range(3))
    assert half < none < both


def test_a_step_works_only_in_its_own_prompt() -> None:
    world = make("two_prompts", 100)
    step = next(step for step in world.steps if world.owner[step] == "solver")
    seed = dict(world.seed_prompts)
    misplaced = {**seed, "planner": seed["planner"].replace(PLACEHOLDER, f"{PLACEHOLDER} {step}")}
    placed = {**seed, "solver": seed["solver"].replace(PLACEHOLDER, f"{PLACEHOLDER} {step}")}
    assert world.true(placed) > world.true(seed) >= world.true(misplaced)
    needs = [{world.owner[step] for step in row["need"]} for row in world.splits["test"]]
    assert {"planner"} in needs and {"solver"} in needs and {"planner", "solver"} in needs


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_agree_with_the_truth(family: str) -> None:
    """What the grader gives, from row and answer alone, is on average what the world says is true."""
    world = make(family, 100)
    for prompts in (world.seed_prompts, prompts_with(world, *world.steps)):
        reading = world.read(prompts)
        scores = [grade(row, world.answer(reading, row, 0))[0] for row in world.splits["test"]]
        allowed = 0.06 if family == "graded" else 0.04  # a noisy judge cannot go below 0 or above 1
        assert statistics.fmean(scores) == pytest.approx(world.true(prompts), abs=allowed)
        assert all(0 <= score <= 1 for score in scores)
        assert (len(set(scores)) > 10) == (family == "graded")


@pytest.mark.parametrize("family", ["additive", "conflicting", "graded", "two_prompts"])
def test_feedback_names_what_would_help(family: str) -> None:
    """Following one piece of feedback makes the very row better, whatever the family but pairs, where it may not."""
    world = make(family, 100)
    told = [world.steps[0], world.habits[0], world.habits[1]]
    reading = world.read(prompts_with(world, *told))
    followed = explained = imperfect = 0
    for row in world.splits["test"][:300]:
        score, feedback = grade(row, world.answer(reading, row, 0))
        imperfect += score < 1
        if "; " in feedback:
            explained += 1
            kind, token = feedback.partition("; ")[2].split(" (")[0].split(": ")
            changed = [*told, token] if kind == "missing step" else [one for one in told if one != token]
            better = world.quality(world.read(prompts_with(world, *changed)), row)
            followed += better > world.quality(reading, row)
    assert followed == explained
    assert 0.6 < explained / imperfect < 0.8


GEPA = "I provided an assistant with these instructions:\n```\n{prompt}\n```\n# Example 1\n## Inputs\ncase train1\n"
FORMS = {
    "gepa": GEPA + "## Feedback\n{feedback}\n\nYour task is to write a new instruction. Provide it within ``` blocks.",
    "json": '{{"prompt_template": "{prompt}", "runs": [{{"grader": "{feedback}"}}], "task": "Write the new prompt."}}',
    "bare": "Revise the prompt. Return only the revised full prompt.\nCRITIQUE: add {token}.\nPROMPT: {prompt}",
}


def ours(world: World, feedback: str) -> str:
    shown = "[user] (the prompt 'system' as it stands above)\n[assistant] I used: nothing.\n[feedback] " + feedback
    return write_question(world.seed_prompts, [shown] * 3)


@pytest.mark.parametrize("form", [*FORMS, "ours"])
def test_the_coach_understands_any_form(form: str) -> None:
    world = make("additive", 100)
    token = world.steps[4]
    feedback, prompt = f"wrong; missing step: {token}", world.seed_prompts["system"]
    question = (
        FORMS[form].format(prompt=prompt, feedback=feedback, token=token) if form in FORMS else ours(world, feedback)
    )
    answers = [coach.reply(world, question, luck) for luck in range(60)]
    learned = [token in parse_reply(answer, world.seed_prompts)["system"] for answer in answers]
    assert sum(learned) / 60 > 0.5
    assert len(set(answers)) > 5, "asked again it has other ideas"
    assert all(answer.startswith("[system begins]") for answer in answers) == (form == "bare")


def test_the_coach_takes_the_prompt_as_it_stands_not_as_it_was_filled_in() -> None:
    world = make("additive", 100)
    current = section("system", f"You are an agent. {PLACEHOLDER} please")
    filled = world.seed_prompts["system"].replace(PLACEHOLDER, "case train1")
    question = f"Trace: {filled}. Write the new prompt. The current prompt: {current}"
    assert all("train1" not in coach.reply(world, question, luck) for luck in range(20))


def test_a_critique_is_no_prompt_and_two_prompts_come_back_by_name() -> None:
    world = make("two_prompts", 100)
    planner = next(step for step in world.steps[2:] if world.owner[step] == "planner")
    feedback = f"wrong; missing step: {planner} (planner)"
    both = "\n".join(world.seed_prompts.values())
    critique = coach.reply(world, f"{both}\n{feedback}\nGive a critique. Do not rewrite anything yet.", 3)
    assert "begins]" not in critique
    question = write_question(world.seed_prompts, [f"[feedback] {feedback}"] * 3)
    for luck in range(20):
        texts = parse_reply(coach.reply(world, question, luck), world.seed_prompts)
        assert set(texts) == {"planner", "solver"} and planner not in texts["solver"]


def test_odd_answers_come_in_their_share() -> None:
    world = make("additive", 100)
    question = ours(world, "wrong")
    odd = [coach.reply(world, question, luck, odd=0.5) for luck in range(100)]
    plain = [answer for answer in odd if answer.endswith("```") and answer.count("```") == 2]
    assert 30 < len(plain) < 70 and "" in odd and any("sorry" in answer for answer in odd)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    command = [sys.executable, str(APO / "simulation.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def call(endpoint: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(endpoint + path, data=data), timeout=10) as reply:
        return json.load(reply)


def ask(endpoint: str, model: str, *texts: str) -> str:
    messages = [{"role": "user", "content": text} for text in texts]
    done = call(endpoint, "/v1/chat/completions", {"model": model, "messages": messages})
    return str(done["choices"][0]["message"]["content"])


def test_the_endpoint_answers_as_the_world_and_counts_by_run(endpoint: str) -> None:
    world = make("additive", 100)
    filled = world.seed_prompts["system"].replace(PLACEHOLDER, "case val3")
    row = world.splits["val"][3]
    answers = [ask(endpoint, "student@additive-100@one", filled) for _ in range(4)]
    assert answers == [world.answer(world.read(world.seed_prompts), row, luck) for luck in range(4)]
    assert len(set(answers)) == 4, "repetitions are independent draws"
    assert ask(endpoint, "student@additive-100@two", filled) == answers[0], "in each run"
    same = {ask(endpoint, "student@additive-100+same=1@three", filled) for _ in range(3)}
    assert same == {answers[0]}
    ask(endpoint, "coach@additive-100@one", "Write a new prompt. " + world.seed_prompts["system"])
    counted = call(endpoint, "/stats/one")
    assert (counted["student"], counted["coach"], counted["repeats"]) == (4, 1, 3)
    assert counted["coach_in_sequence"] == 1
    call(endpoint, "/forget/one", {})
    assert call(endpoint, "/stats/one")["student"] == 0


def test_the_student_of_two_prompts_gets_a_message_for_each(endpoint: str) -> None:
    world = make("two_prompts", 100)
    texts = [world.seed_prompts[name].replace(PLACEHOLDER, "case val0") for name in world.components]
    expected = world.answer(world.read(world.seed_prompts), world.splits["val"][0], 0)
    assert ask(endpoint, "student@two_prompts-100@four", *texts) == expected
    assert "I used: nothing" in ask(endpoint, "student@two_prompts-100@four", texts[0])


def curve(contestant: str, true: float, family: str = "additive", budget: int = 500, **more: Any) -> dict[str, Any]:
    spent = {"rollouts": budget, "coach": 9, "claim": true, "seed": 0.9}
    return {
        "kind": "curve", "contestant": contestant, "family": family, "world": 100, "budget": budget, "true": true,
        **spent, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    "lines, met",
    [
        ([curve("ours", 0.8), curve("gepa-tuned", 0.79), curve("gepa", 0.5)], True),
        ([curve("ours", 0.8), curve("gepa-tuned", 0.81)], False),
        ([curve("ours", 0.77)], False),
        ([curve("ours", 0.4, "pairs"), curve("agentlightning", 0.4, "pairs")], False),
        ([curve("ours", 0.96, "pairs", 100), curve("gepa-tuned", 1.0, "pairs", 100)], True),
        ([curve("ours", 0.94, "pairs", 100), curve("gepa-tuned", 1.0, "pairs", 100)], False),
        ([curve("ours", 0.8, rollouts=501)], False),
        ([curve("ours", 0.896, "null")], True),
        ([curve("ours", 0.894, "null")], False),
        ([{"kind": "kill", "repeats": 0, "identical": True, "kills": 2, "in_flight": 3}], True),
        ([{"kind": "kill", "repeats": 1, "identical": True, "kills": 2, "in_flight": 3}], False),
        ([{"kind": "kill", "repeats": 0, "identical": False, "kills": 2, "in_flight": 3}], False),
    ],
)
def test_the_report_holds_the_bar(lines: list[dict[str, Any]], met: bool) -> None:
    report = Report(lines, [100, 250, 500, 1000])
    assert ("FAIL" in report.bars()) == (not met)
    assert report.met == met
