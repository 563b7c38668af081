"""The packed update is verl's: same gradient as verl's loss on padded sequences through transformers' own model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("verl", exc_type=ImportError)
transformers = pytest.importorskip("transformers", exc_type=ImportError)

from lightningrun.models.local import checkpoint  # noqa: E402
from lightningrun.models.local.tokenizer import ChatTokenizer  # noqa: E402
from lightningrun.stages.verl_grpo.algorithm import Algorithm, known_fields  # noqa: E402
from lightningrun.stages.verl_grpo.config import (  # noqa: E402
    ACTOR_FIELDS,
    ALGORITHM_FIELDS,
    LOSS_FIELDS,
    WITH_CRITIC,
    AlgorithmName,
    GrpoConfig,
)
from lightningrun.stages.verl_grpo.learner import Learner, laid_out  # noqa: E402
from lightningrun.stages.verl_grpo.trajectories import Sample, Turn  # noqa: E402
from tests.models.local_checkpoints import saved  # noqa: E402

NAMES: tuple[str, ...] = AlgorithmName.__args__  # type: ignore[attr-defined]

GROUPS, MEMBERS = 3, 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base") / "model", family="qwen2", seed=4)


def samples(base: Path) -> list[Sample]:
    """Groups with repeats, a rollout of several turns, one of another length; in one group all earn the same.
    No padding token: through that one, transformers lets no gradient pass to the embedding."""
    rng = random.Random(5)
    size = ChatTokenizer.load(base).size

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, size) for _ in range(count))

    made = []
    for group in range(GROUPS):
        prompt, answers = ids(9 + group), [ids(5), ids(3)]
        for member in range(MEMBERS):
            first = Turn(prompt, answers[member % 2], ())
            trajectory = (first,) if member != 3 else (first, Turn(ids(4), ids(6), ()))
            reward = 1.0 if group == 2 else float(member in (0, 3))
            made.append(Sample(group, reward, (trajectory,)))
    return sampled(base, made)


def sampled(base: Path, made: list[Sample]) -> list[Sample]:
    """With the log-probabilities that the policy gave, as a rollout records them."""
    decoder = checkpoint.load(base)
    found = []
    for sample in made:
        laid = laid_out(sample.trajectories)
        with torch.no_grad():
            logp = torch.cat([decoder.log_probs(packed) for packed in laid.packs])[laid.where].tolist()
        numbers = iter(logp)
        (turns,) = sample.trajectories
        told = tuple(Turn(turn.seen, turn.said, tuple(next(numbers) for _ in turn.said)) for turn in turns)
        found.append(Sample(sample.group, sample.reward, (told,)))
    return found


def learner(base: Path, work: Path, **options: Any) -> tuple[Learner, Algorithm]:
    config = GrpoConfig(batch=GROUPS, group_size=MEMBERS, max_grad_norm=1e9, **options)
    algorithm = Algorithm(config)
    return Learner(checkpoint.load(base), algorithm, config, base, work), algorithm


def verls_gradient(base: Path, algorithm: Algorithm, batch: list[Sample], start: Any = None) -> dict[str, Any]:
    """``ppo_loss`` of verl over whole sequences, one a row, and autograd through ``transformers``."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    advantages = iter(torch.split(algorithm.advantages(batch), [sample.tokens for sample in batch]))
    rows: dict[str, list[Any]] = {name: [] for name in ("prompts", "responses", "response_mask", "advantages", "old")}
    log_probs, entropies, starts = [], [], []
    for sample in batch:
        (turns,) = sample.trajectories
        prompt = torch.tensor(turns[0].seen)
        parts = [(turn.seen if place else (), turn.said, turn.logprobs) for place, turn in enumerate(turns)]
        response = torch.tensor([token for seen, said, _ in parts for token in (*seen, *said)])
        mask = torch.tensor([flag for seen, said, _ in parts for flag in [0] * len(seen) + [1] * len(said)])
        old, gain = torch.zeros(len(response)), torch.zeros(len(response))
        old[mask == 1] = torch.tensor([number for _, _, numbers in parts for number in numbers])
        gain[mask == 1] = next(advantages)
        for name, row in zip(rows, (prompt, response, mask, gain, old), strict=True):
            rows[name].append(row)
        whole = torch.cat((prompt, response))

        def scored(model: Any, whole: Any = whole) -> tuple[Any, Any]:
            every = model(whole[None]).logits[0].float().log_softmax(-1)
            chosen = every[:-1].gather(1, whole[1:, None])[:, 0]
            return torch.cat((chosen, torch.zeros(1))), -(every.exp() * every).sum(-1)

        logp, entropy = scored(model)
        log_probs.append(logp)
        entropies.append(entropy)
        if start is not None:
            with torch.no_grad():
                starts.append(scored(start)[0][len(prompt) - 1 : -1])
    nested = {name: torch.nested.as_nested_tensor(row, layout=torch.jagged) for name, row in rows.items()}
    nested["old_log_probs"] = nested.pop("old")
    if start is not None:
        nested["ref_log_prob"] = torch.nested.as_nested_tensor(starts, layout=torch.jagged)
    tokens = sum(sample.tokens for sample in batch)
    data = tu.get_tensordict(nested, {"dp_size": 1, "batch_num_tokens": tokens, "global_batch_size": len(batch)})
    output = {"log_probs": torch.cat(log_probs), "entropy": torch.cat(entropies)}
    loss, _ = ppo_loss(algorithm.actor, output, data)
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The length of the difference of two gradients as a share of the length of the second."""
    assert one.keys() == other.keys()
    gaps = sum(float((one[name] - other[name]).double().square().sum()) for name in one)
    return float((gaps / sum(float(grad.double().square().sum()) for grad in other.values())) ** 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "token_mean"},
        {"algorithm": "reinforce_plus_plus"},
        {"verl": {"actor": {"policy_loss": {"loss_mode": "gspo"}}}},
        {"kl": {"coef": 0.3}},
        {"kl": {"coef": 0.3}, "verl": {"actor": {"entropy_coeff": 0.02}}},
    ],
    ids=["grpo", "token_mean", "reinforce_plus_plus", "gspo", "kl", "kl_and_entropy"],
)
def test_the_gradient_is_that_of_verls_plain_path(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    batch = samples(base)
    start, start_model = base, None
    if "kl" in options:  # from other weights than the present ones, or the divergence has no slope
        start = saved(tmp_path / "start", family="qwen2", seed=9)
        start_model = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    ours, algorithm = learner(base, tmp_path, **options)
    ours._base = start
    health = ours.update(batch)
    gradient = {name: weight.grad for name, weight in ours.decoder.named_parameters()}
    assert apart(gradient, verls_gradient(base, algorithm, batch, start_model)) < 1e-5
    assert health["logprob_gap"] < 1e-5 and health["clip_fraction"] == 0.0
    if not options:
        rows = sum(len(turn.seen) + len(turn.said) for sample in batch for turn in sample.turns)
        assert health["trained_tokens"] < 0.5 * rows, "prompts and repeats once, and nothing of the group that is dead"


def test_several_updates_of_a_batch_move_away_from_the_weights_that_sampled(base: Path, tmp_path: Path) -> None:
    ours, _ = learner(base, tmp_path, lr=0.05, warmup=0, verl={"actor": {"ppo_epochs": 3, "ppo_mini_batch_size": 1}})
    assert ours.update(samples(base))["clip_fraction"] > 0
    assert ours.step == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_CRITIC])
@pytest.mark.parametrize("aggregate", ["trajectory", "transition"])
def test_every_algorithm_of_the_table_is_verls_and_trains(
    base: Path, tmp_path: Path, name: str, aggregate: str
) -> None:
    ours, algorithm = learner(base, tmp_path, algorithm=name, aggregate=aggregate)
    batch = samples(base)
    advantages = torch.split(algorithm.advantages(batch), [sample.tokens for sample in batch])
    right, wrong = float(advantages[0].mean()), float(advantages[1].mean())
    assert right > wrong or name == "grpo_passk"  # where two are right, none is better than the second best
    assert ours.update(batch)["grad_norm"] > 0 or name == "grpo_passk"


def test_the_names_that_the_plan_knows_are_verls_own() -> None:
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
    from verl.workers.config import FSDPActorConfig, PolicyLossConfig

    needs_more = {"remax", "optimal_token_baseline", "tir_optimal_token_baseline", "gdpo"}
    assert set(NAMES) - {"ppo"} == set(ADV_ESTIMATOR_REGISTRY) - needs_more, "ppo is gae by its common name"
    assert set(ACTOR_FIELDS) <= known_fields(FSDPActorConfig)
    assert set(LOSS_FIELDS) <= known_fields(PolicyLossConfig)
    assert set(ALGORITHM_FIELDS) <= known_fields(AlgoConfig)
