"""Small checkpoints for the tests of the embedded engine: random weights, large enough that answers differ."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from lightningrun.models.local import checkpoint  # noqa: E402
from lightningrun.models.local.decoder import Decoder  # noqa: E402
from lightningrun.models.local.tokenizer import ChatTokenizer, train_tokenizer  # noqa: E402

TEXTS = ["SELECT name FROM players WHERE runs = 1234", "who scored more runs than the others?", "Größe 漢字 🎉"] * 8


def tokenizer(family: str = "llama") -> ChatTokenizer:
    return train_tokenizer(TEXTS, vocab_size=300, whole_words=["Sachin Tendulkar"], family=family)


def model(family: str = "llama", seed: int = 0, size: str = "tiny") -> Decoder:
    decoder = checkpoint.scratch(tokenizer(family), family=family, size=size, seed=seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(3.0) if weight.dim() > 1 else weight.add_(torch.randn(weight.shape, generator=noise) * 0.1)
        decoder.model.norm.weight.mul_(0.2)  # less sure of itself
    return decoder


def saved(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    checkpoint.save(model(family, seed), tokenizer(family), folder)
    return folder
