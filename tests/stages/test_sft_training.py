"""The embedded trainer: it learns, and goes on after a kill as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightningrun.errors import StageFailed
from lightningrun.models.local import checkpoint
from lightningrun.models.local.decoder import Decoder
from lightningrun.models.local.tokenizer import train_tokenizer
from lightningrun.stages.sft.config import SftConfig
from lightningrun.stages.sft.examples import Chat, Example, encode
from lightningrun.stages.sft.training import Trainer

WORDS = ["red", "green", "blue", "black", "white", "grey", "pink", "gold"]


def demonstrations() -> tuple[list[Example], Decoder]:
    """Say the next word of a ring."""
    chats = [
        Chat([{"role": "user", "content": word}, {"role": "assistant", "content": WORDS[(at + 1) % len(WORDS)]}])
        for at, word in enumerate(WORDS)
    ]
    tokenizer = train_tokenizer(WORDS, vocab_size=300, whole_words=WORDS)
    return encode(chats, tokenizer, 100)[0], checkpoint.scratch(tokenizer, seed=1)


def config(**options: object) -> SftConfig:
    return SftConfig(source="gold", batch=4, warmup=3, **{"lr": 4e-3, **options})


def test_it_learns_what_it_is_shown(tmp_path: Path) -> None:
    examples, decoder = demonstrations()
    trainer = Trainer(decoder, examples, config(), 120, 0, tmp_path)
    updates = [trainer.update() for _ in range(120)]
    assert updates[0].loss > 3 and updates[-1].loss < 0.5
    assert max(update.lr for update in updates) == pytest.approx(4e-3, rel=0.05) and updates[-1].lr < 6e-4


def test_the_average_leans_on_all_updates_and_not_on_the_weights_to_begin_with(tmp_path: Path) -> None:
    examples, decoder = demonstrations()
    weight = decoder.get_parameter("model.embed_tokens.weight")
    trainer = Trainer(decoder, examples, config(ema=0.9), 120, 0, tmp_path)
    average = torch.zeros_like(weight)
    for step in range(1, 121):
        trainer.update()
        decay = min(0.9, step / (step + 9))
        average = decay * average + (1 - decay) * weight.detach()
        if step == 1:
            average = average + 0.1 * demonstrations()[1].get_parameter("model.embed_tokens.weight").detach()
    last = weight.detach().clone()
    trainer.settle()
    assert torch.allclose(weight, average, atol=1e-6) and not torch.allclose(weight, last, atol=1e-4)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, ema: float) -> None:
    examples, whole = demonstrations()
    trainer = Trainer(whole, examples, config(ema=ema), 12, 0, tmp_path / "whole")
    for _ in range(12):
        trainer.update()
    trainer.settle()

    _, first = demonstrations()
    before = Trainer(first, examples, config(ema=ema, save_every_s=1e9), 12, 0, tmp_path / "killed")
    for _ in range(5):
        before.update()
    before.save()
    before.update()  # lost with the process

    _, second = demonstrations()
    after = Trainer(second, examples, config(ema=ema), 12, 0, tmp_path / "killed")
    assert after.step == 5
    while after.step < 12:
        after.update()
    after.settle()
    assert checkpoint.weights_digest(second.state_dict()) == checkpoint.weights_digest(whole.state_dict())
    assert after.losses == trainer.losses and after.tokens == trainer.tokens


def test_a_damaged_state_is_set_aside_and_training_begins_anew(tmp_path: Path) -> None:
    examples, decoder = demonstrations()
    trainer = Trainer(decoder, examples, config(), 4, 0, tmp_path)
    trainer.update()
    trainer.save()
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    assert Trainer(demonstrations()[1], examples, config(), 4, 0, tmp_path).step == 0
    assert [path.name for path in tmp_path.iterdir() if "corrupt" in path.name]


def test_a_loss_that_is_no_number_is_a_typed_failure(tmp_path: Path) -> None:
    examples, decoder = demonstrations()
    trainer = Trainer(decoder, examples, config(), 50, 0, tmp_path)
    with torch.no_grad():
        next(iter(decoder.parameters())).fill_(float("nan"))
    with pytest.raises(StageFailed, match="the loss became nan at step 1"):
        trainer.update()
