"""Training adapters: the rest stays as it was, a killed training goes on to the same weights; and where models run."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from lightningrun.errors import Missing  # noqa: E402
from lightningrun.models.local import checkpoint, lora  # noqa: E402
from lightningrun.models.local.cached import Cache, CachedDecoder  # noqa: E402
from lightningrun.models.local.decoder import Decoder  # noqa: E402
from lightningrun.models.local.engine import placed  # noqa: E402
from lightningrun.models.local.packing import group, pack  # noqa: E402
from lightningrun.stages.lora import LoraConfig  # noqa: E402
from lightningrun.stages.sft.training import Trainer  # noqa: E402
from lightningrun.stages.verl_grpo.config import GrpoConfig  # noqa: E402
from tests.models.local_checkpoints import model, saved  # noqa: E402
from tests.stages.test_sft_training import config, demonstrations  # noqa: E402


def adapted(decoder: Decoder) -> Decoder:
    options = LoraConfig(rank=8)
    lora.adapt(decoder, options.rank, options.alpha, options.targets, 5)
    return decoder


def test_sft_of_adapters_learns_and_leaves_the_weights_alone(tmp_path: Path) -> None:
    examples, decoder = demonstrations()
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    trainer = Trainer(adapted(decoder), examples, config(lr=2e-2), 25, 0, tmp_path)
    updates = [trainer.update() for _ in range(25)]
    assert updates[-1].loss < 0.6 * updates[0].loss
    after = decoder.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    trainer.save()
    kept = (tmp_path / "state.safetensors").stat().st_size
    assert kept < 4 * 4 * sum(weight.numel() for weight in lora.trained(decoder).values()), "adapters alone are kept"


def test_a_killed_training_of_adapters_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    digests = []
    for stops in ((), (4,)):
        work = tmp_path / str(len(stops))
        for stop in (*stops, 9):
            examples, decoder = demonstrations()
            trainer = Trainer(adapted(decoder), examples, config(save_every_s=1e9), 9, 0, work)
            while trainer.step < stop:
                trainer.update()
            trainer.save()
        digests.append(checkpoint.weights_digest(lora.merged(decoder).state_dict()))
    assert digests[0] == digests[1]


def test_reinforcement_of_adapters_learns_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("verl", exc_type=ImportError)
    from lightningrun.stages.verl_grpo.algorithm import Algorithm
    from lightningrun.stages.verl_grpo.learner import Learner
    from lightningrun.stages.verl_grpo.trajectories import Sample, Turn

    base = saved(tmp_path / "base", "qwen2")
    options = GrpoConfig(batch=1, group_size=2, steps=6, warmup=1, lr=1e-2)
    algorithm = Algorithm(options)

    def batch(decoder: Decoder) -> list[Sample]:
        said = ((20, 21, 22), (30, 31, 32))
        with torch.no_grad():
            logp = decoder.log_probs(pack([group([11, 12], said)])).view(2, 3).tolist()
        return [
            Sample(0, reward, ((Turn((11, 12), ids, tuple(numbers)),),))
            for reward, ids, numbers in zip((1.0, 0.0), said, logp, strict=True)
        ]

    digests = []
    for stops in ((), (3,)):
        for stop in (*stops, 6):
            decoder = adapted(checkpoint.load(base))
            learner = Learner(decoder, algorithm, options, base, tmp_path / str(len(stops)))
            learner.load()
            while learner.step < stop:
                learner.update(batch(decoder))
            learner.save({"step": learner.step})
        digests.append(checkpoint.weights_digest(learner.policy.state_dict()))
        now, before = ([sum(s.trajectories[0][0].logprobs) for s in batch(m)] for m in (decoder, checkpoint.load(base)))
        assert now[0] - before[0] > 0.1 > now[1] - before[1]
    assert digests[0] == digests[1]


def test_nothing_is_left_on_the_cpu_when_the_model_is_elsewhere() -> None:
    """On the device ``meta`` a product with a tensor of the CPU is refused, as it is on a GPU."""
    decoder = adapted(model("qwen2")).to("meta")
    decoder.log_probs(pack([group([1, 2, 3], [[4, 5], [6]])]), temperature=0.7).sum().backward()
    assert all(weight.grad is not None for weight in decoder.parameters() if weight.requires_grad)
    cached = CachedDecoder(lora.merged(decoder), torch.device("meta"), torch.bfloat16)
    prompts = cached.prefill([[1, 2, 3], [4, 5]])
    cache = Cache(cached)
    cache.add([prompts[0], prompts[1], prompts[0]])
    assert cached.step(torch.zeros(3, dtype=torch.long, device="meta"), cache).device.type == "meta"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    assert placed("auto", "auto") == (torch.device("cpu"), torch.float32)
    with pytest.raises(Missing, match="device cuda:0 is asked for, and there is no GPU"):
        placed("cuda:0", "auto")
