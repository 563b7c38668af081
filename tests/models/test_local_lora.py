"""LoRA: only adapters learn, what is merged says the same, and a backward pass computing layers again is exact."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from lightningrun.errors import UsageError  # noqa: E402
from lightningrun.models.local import checkpoint, lora  # noqa: E402
from lightningrun.models.local.decoder import Decoder  # noqa: E402
from lightningrun.models.local.engine import LocalEngine  # noqa: E402
from lightningrun.models.local.packing import group, pack  # noqa: E402
from lightningrun.models.local.sampling import Sampling  # noqa: E402
from lightningrun.stages.lora import LoraConfig  # noqa: E402
from tests.models.local_checkpoints import model, saved, tokenizer  # noqa: E402

ALL = LoraConfig().targets
IDS = torch.arange(10, 40).view(2, 15)


def adapted(family: str = "qwen2", targets: list[str] = ALL, moved: bool = True) -> Decoder:
    decoder = model(family)
    lora.adapt(decoder, 4, 8.0, targets, 7)
    if moved:
        with torch.no_grad():
            for name, weight in decoder.named_parameters():
                if name.endswith("lora_b"):
                    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    return decoder


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_adapters_begin_without_a_change_and_are_the_same_for_a_seed(family: str) -> None:
    fresh = adapted(family, moved=False)
    assert torch.equal(fresh(IDS), model(family)(IDS))
    again = lora.trained(adapted(family, moved=False))
    assert all(torch.equal(weight, again[name]) for name, weight in lora.trained(fresh).items())


def test_only_adapters_learn_and_every_one_of_them() -> None:
    decoder = adapted()
    decoder(IDS).square().mean().backward()
    graded = {name for name, weight in decoder.named_parameters() if weight.grad is not None}
    assert graded == set(lora.trained(decoder)) and all(".lora_" in name for name in graded)
    assert len(graded) == 2 * len(ALL) * decoder.shape.layers
    assert all(weight.grad.abs().sum() > 0 for weight in decoder.parameters() if weight.grad is not None)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_is_merged_says_the_same_and_is_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    decoder = adapted(family)
    plain = lora.merged(decoder)
    assert plain.state_dict().keys() == model(family).state_dict().keys()
    with torch.no_grad():
        change = (decoder(IDS) - model(family)(IDS)).abs().max()
        assert change > 0.1 and (decoder(IDS) - plain(IDS)).abs().max() < 1e-4 * change
    checkpoint.save(plain, tokenizer(family), tmp_path / "merged")
    assert torch.equal(checkpoint.load(tmp_path / "merged")(IDS), plain(IDS))
    assert plain.model.embed_tokens.weight.data_ptr() == decoder.model.embed_tokens.weight.data_ptr(), "not copied"


def test_without_adapters_everything_is_trained_and_nothing_copied() -> None:
    decoder = model()
    assert lora.merged(decoder) is decoder
    assert lora.trained(decoder).keys() == decoder.state_dict().keys()


def test_the_engine_answers_with_merged_weights(tmp_path: Path) -> None:
    engine = LocalEngine(saved(tmp_path / "model", "qwen2"), device="cpu", dtype="float32")
    try:
        decoder = adapted()
        engine.update_weights(lora.merged(decoder), "adapted").result()
        (said,) = engine.generate_many([[11, 12, 13]], Sampling(temperature=0.0, max_tokens=6))[0]
        packed = pack([group([11, 12, 13], [said.ids])])
        with torch.no_grad():
            assert decoder.log_probs(packed).tolist() == pytest.approx(said.logprobs, abs=1e-4)
    finally:
        engine.close()


def test_targets_that_the_model_has_not_are_refused() -> None:
    with pytest.raises(UsageError, match="no w_pack to adapt"):
        lora.adapt(model(), 4, 8.0, ["q_proj", "w_pack"], 0)


@pytest.mark.parametrize("adapters", [False, True])
def test_layers_computed_again_give_the_same_gradient(adapters: bool) -> None:
    grads = []
    for limit in (1 << 30, 0):
        decoder = adapted() if adapters else model("qwen2")
        decoder.states_at_once = limit
        decoder(IDS).square().mean().backward()
        grads.append([weight.grad for weight in decoder.parameters() if weight.grad is not None])
    assert len(grads[0]) > 10 and all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
