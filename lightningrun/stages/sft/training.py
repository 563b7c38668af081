"""The embedded trainer: AdamW on packed chats, one update at a time, able to go on from where a kill left it.

Which examples an update sees depends on the seed and its number alone, so that no random state has to be kept.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightningrun.errors import StageFailed
from lightningrun.models.local.decoder import Decoder
from lightningrun.models.local.lora import trained
from lightningrun.models.local.packing import Segment, pack
from lightningrun.stages.sft.config import SftConfig
from lightningrun.stages.sft.examples import Example
from lightningrun.stages.training_state import load_state, save_state

_FLOOR = 0.1
"""The share of the peak learning rate that the schedule ends at."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did. ``loss`` is nats a learned token, before it; ``cpu_s`` all processor time so far."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    cpu_s: float


class Trainer:
    """Trains ``decoder`` in place. ``work`` is where the state is kept between attempts of the stage."""

    def __init__(
        self, decoder: Decoder, examples: Sequence[Example], config: SftConfig, steps: int, seed: int, work: Path
    ) -> None:
        self.decoder = decoder
        self.steps = steps
        self.step = 0
        self.tokens = 0
        self.cpu_s = 0.0
        self.losses: list[float] = []
        self._examples = examples
        self._config = config
        self._seed = seed
        self._state = work / "state.safetensors"
        weights = self._weights = [weight for weight in decoder.parameters() if weight.requires_grad]
        self._averages = [weight.detach().clone() for weight in weights] if config.ema else []
        matrices = [weight for weight in weights if weight.dim() > 1]
        others = [weight for weight in weights if weight.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
        facts = load_state(self._state, self._kept(), self._optimizer)
        if facts is not None:
            self.step, self.tokens, self.cpu_s = facts["step"], facts["tokens"], facts["cpu_s"]
            self.losses = facts["losses"]
        self._saved = time.monotonic()
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def update(self) -> Update:
        """One update, saved when it is time. Raises StageFailed when the loss is not a number or memory is out."""
        began = time.process_time()
        try:
            done = self._update()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise StageFailed(f"out of memory at step {self.step + 1}: {error}", hint="a smaller `batch`") from error
        self.cpu_s += time.process_time() - began
        if time.monotonic() - self._saved > self._config.save_every_s:
            self.save()
        return Update(self.step, *done, self.cpu_s)

    def _update(self) -> tuple[float, float, float, int]:
        batch = [self._examples[index] for index in self._batch()]
        packed = pack([[Segment(one.ids, learn=one.learn)] for one in batch])
        lr = self._config.lr * self._share()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        kind = self.decoder.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu"):  # weights and optimizer stay in float32
            loss = -self.decoder.log_probs(packed).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self._config.max_grad_norm)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise StageFailed(
                f"the loss became {value} at step {self.step + 1}",
                hint="a smaller `lr`; `resume` begins at the last saved step",
            )
        self._optimizer.step()
        self.step += 1
        if self._averages:
            decay = min(self._config.ema, self.step / (self.step + 9))  # what it began with is soon forgotten
            blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            blend(self._averages, self._weights, self.step)
        self.tokens += packed.tokens
        self.losses = [*self.losses, value][-50:]
        return value, float(norm), lr, packed.tokens

    def save(self) -> None:
        """Keep all that is needed to go on from here. Raises DiskFull."""
        facts = {"step": self.step, "tokens": self.tokens, "cpu_s": self.cpu_s, "losses": self.losses}
        save_state(self._state, self._kept(), self._optimizer, facts)
        self._saved = time.monotonic()

    @torch.no_grad()
    def settle(self) -> None:
        """Training is over: put the averages, if there are any, in the weights' places."""
        for weight, average in zip(self._weights, self._averages, strict=False):
            weight.copy_(average)

    def _kept(self) -> dict[str, torch.Tensor]:
        averages = {f"ema/{index}": average for index, average in enumerate(self._averages)}
        return {**trained(self.decoder), **averages}

    def _share(self) -> float:
        """The learning rate of the coming update, as a share of the peak: linear warm-up, then a cosine."""
        warm = min(1.0, (self.step + 1) / max(1, self._config.warmup))
        return warm * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * self.step / self.steps)))

    def _batch(self) -> list[int]:
        size = min(self._config.batch, len(self._examples))
        first = self.step * size
        count = len(self._examples)
        return [self._order(place // count)[place % count] for place in range(first, first + size)]

    def _shuffled(self, epoch: int) -> list[int]:
        return random.Random(f"{self._seed}/epoch/{epoch}").sample(range(len(self._examples)), len(self._examples))
