"""What is trained on: calls joined only where the tokens go on exactly, shared beginnings once, rows in passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

from lightningrun.errors import StageFailed
from lightningrun.stages.verl_grpo.batch import Batch, Group
from lightningrun.stages.verl_grpo.rows import Rows
from lightningrun.stages.verl_grpo.trajectories import Turn, forest, merged, sample_of
from lightningrun.types import LLMCall, Rollout, RolloutStatus, Task


def call(prompt: list[int], *answers: list[int], agent: str = "", role: str = "policy") -> LLMCall:
    choices = [{"ids": ids, "logprobs": [-1.0] * len(ids)} for ids in answers]
    sampled = {"prompt_ids": prompt, "weights": "w", "choices": choices}
    response = {"choices": [{"finish_reason": "length" if len(ids) > 3 else "stop"} for ids in answers]}
    return LLMCall("c", role, "m", "s", "o", {}, response, agent=agent, sampled=sampled)


def turn(seen: list[int], said: list[int]) -> Turn:
    return Turn(tuple(seen), tuple(said), (-1.0,) * len(said))


def test_a_conversation_with_a_tool_is_one_trajectory() -> None:
    calls = [call([1, 2], [3, 4]), call([1, 2, 3, 4, 8, 8], [5]), call([1, 2, 3, 4, 8, 8, 5, 9], [6, 7])]
    assert merged(calls) == [(turn([1, 2], [3, 4]), turn([8, 8], [5]), turn([9], [6, 7]))]


def test_text_that_came_back_as_other_tokens_is_a_trajectory_of_its_own() -> None:
    calls = [call([1, 2], [3, 4]), call([1, 2, 34, 8], [5])]
    assert merged(calls) == [(turn([1, 2], [3, 4]),), (turn([1, 2, 34, 8], [5]),)]


def test_two_questions_that_go_on_from_one_answer_share_it_once() -> None:
    calls = [call([1], [2]), call([1, 2, 3], [4]), call([1, 2, 5], [6])]
    assert merged(calls) == [(turn([1], [2]), turn([3], [4])), (turn([1, 2, 5], [6]),)]


def test_several_answers_to_one_question_are_trajectories_of_their_own() -> None:
    assert merged([call([1], [2], [3])]) == [(turn([1], [2]),), (turn([1], [3]),)]


def test_only_the_chosen_agents_calls_are_trained_and_others_words_are_seen() -> None:
    calls = [
        call([1], [2], agent="writer"),
        call([7], [8], agent="critic"),
        call([1, 2, 8], [9, 9, 9, 9], agent="writer"),
    ]
    calls.append(call([5], [6], role="judge"))
    sample = sample_of(calls, "policy", ["writer"], group=3, reward=1.0)
    assert sample.trajectories == ((turn([1], [2]), turn([8], [9, 9, 9, 9])),)
    assert sample.truncated and sample.tokens == 5


def test_calls_bear_their_own_rewards_where_there_are_steps() -> None:
    calls = [call([1], [2], agent="writer"), call([7], [8], agent="critic"), call([1, 2, 8], [9], agent="writer")]
    sample = sample_of(calls, "policy", ["writer"], 0, 1.0, steps=(0.25, 5.0, 0.75))
    assert sample.by_call and sample.rewards == [0.25, 0.75]
    plain = sample_of(calls, "policy", ["writer"], 0, 1.0)
    assert not plain.by_call and plain.rewards == [1.0, 1.0]


def test_verl_compares_the_calls_of_a_row_by_their_own_rewards() -> None:
    pytest.importorskip("verl", exc_type=ImportError)
    from lightningrun.stages.verl_grpo.algorithm import Algorithm
    from lightningrun.stages.verl_grpo.config import GrpoConfig

    calls = [call([1], [2, 3]), call([1, 2, 3, 4], [5])]
    rows = [(0, 0.5, (1.0, 0.0)), (0, 0.5, (0.0, 1.0)), (1, 0.0, ()), (1, 1.0, ())]
    samples = [sample_of(calls, "policy", [], group, score, steps) for group, score, steps in rows]
    found = Algorithm(GrpoConfig()).advantages(samples).tolist()
    high = 0.5 / (1 / 3) ** 0.5
    assert found == pytest.approx([high, high, -high, -high, -high, high, *[-high] * 3, *[high] * 3], abs=1e-4)


def test_a_row_whose_calls_earned_differently_is_worth_training() -> None:
    same = group("a", 0.5, 0.5)
    told = [replace(one, steps=steps) for one, steps in zip(same.rollouts, [(1.0, 0.0), (0.5, 0.5)], strict=True)]
    assert not same.live and Group(same.row, told).live


def test_a_forest_holds_what_trajectories_begin_with_once() -> None:
    shared = turn([1, 2], [3])
    trees, places = forest([(shared,), (shared, turn([4], [5])), (turn([1, 2], [6]),), (turn([9], [3]),)])
    assert [[tuple(segment.ids) for segment in tree] for tree in trees] == [
        [(1, 2), (3,), (4,), (5,), (6,)],
        [(9,), (3,)],
    ]
    assert places == [[(0, 1)], [(0, 1), (0, 3)], [(0, 4)], [(1, 1)]]


def test_a_long_group_is_cut_into_trees() -> None:
    trees, places = forest([(turn([1] * 10, [2 + n] * 700),) for n in range(6)])
    assert len(trees) == 3 and all(sum(len(s.ids) for s in tree) < 2200 for tree in trees)
    assert len({place for path in places for place in path}) == 6


def tasks(count: int, **weights: float) -> list[Task]:
    return [Task(f"t{n}", "train", {}, weight=weights.get(f"t{n}", 1.0)) for n in range(count)]


def test_a_pass_has_every_row_once_and_another_seed_another_order() -> None:
    rows, again, other = (Rows(tasks(10), seed, 0) for seed in (1, 1, 2))
    first = [task.id for _ in range(5) for task in rows.take(2)]
    assert sorted(first) == sorted({task.id for task in tasks(10)})
    assert first == [task.id for _ in range(5) for task in again.take(2)] != [t.id for t in other.take(10)]


def test_rows_go_on_from_a_place_and_solved_ones_rest() -> None:
    rows, resumed = Rows(tasks(6), 1, 1), Rows(tasks(6), 1, 1)
    done = rows.take(4)
    rows.solved(done[0].id)
    resumed.resume(rows.place)
    later = [task.id for task in rows.take(2) + rows.take(5)]
    assert later == [task.id for task in resumed.take(2) + resumed.take(5)]
    assert done[0].id not in later


def test_heavier_rows_come_more_often_and_never_twice_in_a_batch() -> None:
    rows = Rows(tasks(10, t0=3.0), 1, 0)
    taken = [[task.id for task in rows.take(4)] for _ in range(60)]
    assert all(len(set(batch)) == 4 for batch in taken)
    times = {name: sum(name in batch for batch in taken) for name in ("t0", "t5")}
    assert times["t0"] > 1.5 * times["t5"]
    assert len(Rows(tasks(3), 1, 0).take(5)) == 3


def group(name: str, *scores: float | None) -> Group:
    lost, fine = RolloutStatus.INFRA_ERROR, RolloutStatus.SUCCEEDED
    rollouts = [
        Rollout(f"{name}{n}", "s", name, "train", n, lost if score is None else fine, score, call_refs=(n,))
        for n, score in enumerate(scores)
    ]
    return Group(Task(name, "train", {}), rollouts)


def test_lost_rollouts_are_left_out_and_a_group_of_one_is_dropped() -> None:
    batch = Batch(3, [group("a", 1.0, None, 0.0), group("b", 1.0, None, None), group("c", 0.5, 0.5)])
    found = batch.samples(lambda ref: call([1], [2]), "policy", [])
    assert [(sample.group, sample.reward) for sample in found] == [(0, 1.0), (0, 0.0), (1, 0.5), (1, 0.5)]
    health = batch.health(found)
    assert health["live"] == pytest.approx(1 / 3) and health["excluded"] == pytest.approx(3 / 8)


def test_live_groups_come_first_where_more_were_drawn() -> None:
    batch = Batch(2, [group("a", 1.0, 1.0), group("b", 0.0, 1.0), group("c", 0.0, 1.0)])
    assert [one.row.id for one in batch.chosen] == ["b", "c"] and batch.missing == 0
    batch.groups.insert(1, group("d", 0.0, 0.0))
    batch.size = 4
    assert [one.row.id for one in batch.chosen] == ["a", "d", "b", "c"], "mini-batches meet live groups all along"


def test_agents_that_never_called_are_named_with_those_that_did() -> None:
    calls: dict[int, Any] = {n: call([1], [2], agent="writer") for n in range(2)}
    with pytest.raises(StageFailed, match="planner") as failed:
        Batch(1, [group("a", 0.0, 1.0)]).samples(calls.__getitem__, "policy", ["planner"])
    assert "writer" in str(failed.value)
