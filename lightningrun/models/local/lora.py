"""LoRA (Hu et al., 2021): weights stay as they are, and a product of two thin matrices beside each is trained.

Only what is trained needs a gradient and an optimizer's state, so a model of 1.5 billion parameters fits a smaller GPU.
What is served and saved is merged: an ordinary checkpoint that the engine, transformers and vLLM load as any other.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightningrun.errors import UsageError
from lightningrun.models.local.decoder import Decoder


class LoraLinear(nn.Linear):
    """``x W^T + b + (x A^T) B^T alpha / rank``; A [rank, in] begins random, B [out, rank] with zeros: no change."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        bound = 1 / math.sqrt(self.in_features)
        drawn = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(drawn.to(linear.weight))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + change * self.scale

    def whole(self) -> Tensor:
        """The weight with its change added."""
        return self.weight + self.scale * (self.lora_b @ self.lora_a)


def adapt(decoder: Decoder, rank: int, alpha: float, targets: Collection[str], seed: int) -> None:
    """Put adapters beside the ``targets`` (``q_proj``, ``up_proj``, ...) of every layer, and freeze all the rest.

    Decided by ``seed`` alone, on any device. Raises UsageError for a target that the model has not.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder.requires_grad_(False)
    found = set()
    for parent in list(decoder.model.layers.modules()):
        for name, linear in list(parent.named_children()):
            if name in targets and isinstance(linear, nn.Linear):
                setattr(parent, name, LoraLinear(linear, rank, alpha, generator))
                found.add(name)
    if unknown := sorted(set(targets) - found):
        raise UsageError(f"the model has no {', '.join(unknown)} to adapt", where="lora.targets")


def trained(decoder: nn.Module) -> dict[str, Tensor]:
    """Name -> weight of what is trained: the adapters, or all where there are none."""
    return {name: weight.detach() for name, weight in decoder.named_parameters() if weight.requires_grad}


@torch.no_grad()
def merged(decoder: Decoder) -> Decoder:
    """``decoder`` with its adapters added to the weights, which are shared where nothing was adapted.

    It is ``decoder`` itself if it has none.
    """
    adapted = {name: module for name, module in decoder.named_modules() if isinstance(module, LoraLinear)}
    if not adapted:
        return decoder
    state = {name: weight for name, weight in decoder.state_dict().items() if ".lora_" not in name}
    state |= {f"{name}.weight": module.whole() for name, module in adapted.items()}
    with torch.device("meta"):
        plain = Decoder(decoder.shape)
    plain.load_state_dict(state, assign=True)
    return plain.requires_grad_(False)
