"""The trainer in this process: verl's loss, its gradient computed with every shared token once.

The loss is a function of the log-probabilities of what was said. verl computes it, autograd gives its slope at each
token, and one packed pass carries the slopes to the weights: the prompt of a group once, each different completion
once with the slopes of its repeats summed. That is exact for any of verl's losses. Where the loss depends on advantages
alone (one update a batch, no divergence, no entropy: the ratio to the old policy is 1) the slopes are known before any
pass, and sequences whose slopes are all zero, as of groups without variance in reward, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightningrun.errors import StageFailed
from lightningrun.models.local import checkpoint
from lightningrun.models.local.decoder import Decoder
from lightningrun.models.local.lora import merged, trained
from lightningrun.models.local.packing import Packed, Segment, pack
from lightningrun.stages.training_state import load_state, save_state
from lightningrun.stages.verl_grpo.algorithm import Algorithm, Terms
from lightningrun.stages.verl_grpo.config import GrpoConfig
from lightningrun.stages.verl_grpo.trajectories import Sample, Trajectory, forest

_FLOOR = 0.1
"""The share of the peak learning rate that the schedule ends at."""
_TREES_A_PACK = 8
_ONE_THREAD_BELOW = 20_000_000
"""Parameters under which a second thread costs more than it gives."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Trajectories laid out for the model. ``where``: the packs' target of each token said, in the samples' order."""

    packs: Sequence[Packed]
    where: Tensor

    @property
    def tokens(self) -> int:
        return sum(packed.tokens for packed in self.packs)


def laid_out(trajectories: Sequence[Trajectory]) -> Pass:
    """Packs of a few trees, long ones together."""
    trees, places = forest(trajectories)
    sizes = [sum(len(segment.ids) for segment in tree) for tree in trees]
    order = sorted(range(len(trees)), key=lambda tree: (sizes[tree], tree))
    packs: list[Packed] = []
    begins: dict[tuple[int, int], int] = {}
    first = 0
    for at in range(0, len(order), _TREES_A_PACK):
        chosen = order[at : at + _TREES_A_PACK]
        packed = pack([trees[tree] for tree in chosen])
        packs.append(packed)
        counts = iter(packed.counts)
        for tree, segment in _segments(trees, chosen):
            begins[tree, segment] = first
            first += next(counts)
    where = [
        torch.arange(begins[place], begins[place] + len(turn.said))
        for trajectory, path in zip(trajectories, places, strict=True)
        for turn, place in zip(trajectory, path, strict=True)
    ]
    return Pass(packs, torch.cat(where) if where else torch.zeros(0, dtype=torch.long))


def _segments(trees: Sequence[Sequence[Segment]], chosen: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((tree, segment) for tree in chosen for segment in range(len(trees[tree])))


class Learner:
    """Trains ``decoder`` in place. ``work`` is where the state is kept between attempts of the stage."""

    def __init__(self, decoder: Decoder, algorithm: Algorithm, config: GrpoConfig, base: Path, work: Path) -> None:
        """``base``: the checkpoint that the stage began with."""
        self.decoder = decoder
        self.step = 0
        self._algorithm = algorithm
        self._config = config
        self._base = base
        self._start: Decoder | None = None
        self._state = work / "state.safetensors"
        self._optimizer = torch.optim.AdamW(
            [w for w in decoder.parameters() if w.requires_grad],
            lr=config.lr,
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        )
        self._light = sum(weight.numel() for weight in decoder.parameters()) < _ONE_THREAD_BELOW

    @property
    def policy(self) -> Decoder:
        """The weights as they are to be served and saved: adapters merged."""
        return merged(self.decoder)

    def load(self) -> dict[str, Any]:
        """What an earlier attempt told ``save``, its weights and optimizer put back; empty if there was none."""
        facts = load_state(self._state, trained(self.decoder), self._optimizer) or {}
        self.step = facts.get("step", 0)
        return facts

    def save(self, facts: dict[str, Any]) -> None:
        """Keep all that is needed to go on from here; ``facts`` hold the ``step``. Raises DiskFull."""
        save_state(self._state, trained(self.decoder), self._optimizer, facts)

    def update(self, samples: Sequence[Sample], look_back: bool = False) -> dict[str, float]:
        """Learn from one batch; ``look_back`` also measures the divergence from the start. Health, by name.

        Raises StageFailed when the loss is not a number (the weights are as before) or memory is out.
        """
        if self._light and self.decoder.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            with self._autocast():
                return self._update(samples, look_back)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise StageFailed(
                f"out of memory at step {self.step + 1}: {error}", hint="a smaller `batch` or `group_size`"
            ) from error

    def _autocast(self) -> torch.autocast:
        kind = self.decoder.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu")

    def _update(self, samples: Sequence[Sample], look_back: bool) -> dict[str, float]:
        advantages = self._algorithm.advantages(samples)
        health = {"advantage": float(advantages.abs().mean())}
        if self._algorithm.plain:
            health |= self._plain(samples, advantages)
        else:
            health |= self._fast(samples, advantages, look_back)
        self.step += 1
        return health

    def _fast(self, samples: Sequence[Sample], advantages: Tensor, look_back: bool) -> dict[str, float]:
        """One update on the weights that sampled: the ratio is 1, whatever the log-probabilities are."""
        sampled = recorded(samples)
        slopes, _, clipped = self._algorithm.slope(Terms(self._sizes(samples), advantages, sampled), sampled)
        trajectories = [trajectory for sample in samples for trajectory in sample.trajectories]
        lengths = [sum(len(turn.said) for turn in trajectory) for trajectory in trajectories]
        alive = [bool(part.any()) for part in torch.split(slopes, lengths)]
        kept = torch.repeat_interleave(torch.tensor(alive), torch.tensor(lengths))
        if not any(alive):
            return {"grad_norm": 0.0, "clip_fraction": clipped, "trained_tokens": 0.0}
        laid = laid_out([trajectory for trajectory, live in zip(trajectories, alive, strict=True) if live])
        logp = self._backward(laid, slopes[kept], None)
        health = {"clip_fraction": clipped, "trained_tokens": float(laid.tokens), "grad_norm": self._move()}
        health["logprob_gap"] = float((logp - sampled[kept]).abs().mean())
        if look_back:
            health["kl"] = self._divergence(laid, logp)
        return health

    def _plain(self, samples: Sequence[Sample], advantages: Tensor) -> dict[str, float]:
        """Several updates, or a loss that depends on where the weights are: a pass to see that, then one to learn."""
        actor = self._algorithm.actor
        laid = laid_out([trajectory for sample in samples for trajectory in sample.trajectories])
        with torch.no_grad():
            old = self._logp(self.decoder, laid)
        start = self._logp_at_start(laid) if actor.use_kl_loss else None
        health = {"logprob_gap": float((old - recorded(samples)).abs().mean()), "trained_tokens": float(laid.tokens)}
        if start is not None:
            health["kl"] = float(self._algorithm.divergence(old, start).mean())
        sizes = torch.tensor([sample.tokens for sample in samples])
        groups = torch.tensor([sample.group for sample in samples])
        clipped: list[float] = []
        norms: list[float] = []
        for _ in range(actor.ppo_epochs):
            for chosen in torch.unique(groups).split(actor.ppo_mini_batch_size):
                mine = torch.isin(groups, chosen)
                tokens = torch.repeat_interleave(mine, sizes)
                part = [sample for sample, own in zip(samples, mine.tolist(), strict=True) if own]
                near = None if start is None else start[tokens]
                terms = Terms(self._sizes(part), advantages[tokens], old[tokens], near)
                clipped.append(self._learn(part, terms, moved=bool(norms)))
                norms.append(self._move())
        return {**health, "clip_fraction": sum(clipped) / len(clipped), "grad_norm": sum(norms) / len(norms)}

    def _learn(self, samples: Sequence[Sample], terms: Terms, moved: bool) -> float:
        laid = laid_out([trajectory for sample in samples for trajectory in sample.trajectories])
        wants_entropy = bool(self._algorithm.actor.entropy_coeff)
        logp, entropy = terms.old, None
        if moved or wants_entropy:
            with torch.no_grad():
                said = [self._said(packed, wants_entropy) for packed in laid.packs]
            logp = torch.cat([pair[0].cpu() for pair in said])[laid.where]
            if wants_entropy:
                entropy = torch.cat([pair[1].cpu() for pair in said if pair[1] is not None])[laid.where]
        slopes, entropy_slopes, clipped = self._algorithm.slope(terms, logp, entropy)
        self._backward(laid, slopes, entropy_slopes)
        return clipped

    def _backward(self, laid: Pass, slopes: Tensor, entropy_slopes: Tensor | None) -> Tensor:
        """Carry the slopes of what was said, those of equal tokens summed, to the weights; returns its log-probs."""
        targets = sum(len(packed.targets) for packed in laid.packs)
        summed = torch.zeros(targets).index_add_(0, laid.where, slopes)
        spread = None
        if entropy_slopes is not None:
            spread = torch.zeros(targets).index_add_(0, laid.where, entropy_slopes)
        self._optimizer.zero_grad()
        found: list[Tensor] = []
        at = 0
        for packed in laid.packs:
            logp, entropy = self._said(packed, spread is not None)
            place = slice(at, at := at + len(logp))
            change = (logp * summed[place].to(logp.device)).sum()
            if entropy is not None and spread is not None:
                change = change + (entropy * spread[place].to(logp.device)).sum()
            change.backward()  # type: ignore[no-untyped-call]
            found.append(logp.detach().cpu())
        return torch.cat(found)[laid.where]

    def _said(self, packed: Packed, entropy: bool) -> tuple[Tensor, Tensor | None]:
        return self.decoder.log_probs_and_entropy(packed, self._config.sampling.temperature, entropy=entropy)

    def _move(self) -> float:
        """Let the optimizer take its step. Raises StageFailed, without it, if the gradient is no number."""
        share = min(1.0, (self.step + 1) / max(1, self._config.warmup))
        share *= _FLOOR + (1 - _FLOOR) * (1 - self.step / self._config.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * share
        norm = float(torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self._config.max_grad_norm))
        if not math.isfinite(norm):
            raise StageFailed(
                f"the gradient became {norm} at step {self.step + 1}",
                hint="a smaller `lr`; the best checkpoint so far is kept, and `resume` begins at the last saved step",
            )
        self._optimizer.step()
        return norm

    def _sizes(self, samples: Sequence[Sample]) -> list[int]:
        """Tokens of each sequence of the loss."""
        if self._config.aggregate == "transition":
            return [len(turn.said) for sample in samples for turn in sample.turns]
        return [sample.tokens for sample in samples]

    def _logp(self, decoder: Decoder, laid: Pass) -> Tensor:
        found = [decoder.log_probs(packed, self._config.sampling.temperature).detach().cpu() for packed in laid.packs]
        return torch.cat(found)[laid.where]

    def _logp_at_start(self, laid: Pass) -> Tensor:
        start = self._start or checkpoint.load(self._base, device=self.decoder.device)
        if self._algorithm.actor.use_kl_loss:
            self._start = start
        with torch.no_grad():
            return self._logp(start, laid)

    def _divergence(self, laid: Pass, logp: Tensor) -> float:
        return float(self._algorithm.divergence(logp, self._logp_at_start(laid)).mean())


def recorded(samples: Sequence[Sample]) -> Tensor:
    """Log-probabilities of all that was said, as they were when it was sampled."""
    return torch.tensor([number for sample in samples for turn in sample.turns for number in turn.logprobs])
