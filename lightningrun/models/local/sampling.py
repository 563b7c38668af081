"""How the next token is drawn: temperature, top-k and top-p, from noise that belongs to the request alone."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 64
_BELOW_ONE = 1.0 - 2.0**-20


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request may choose. Temperature 0 takes the most likely token."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    max_tokens: int | None = None
    """None: as many as the context has room for."""
    stop: tuple[str, ...] = ()
    """Texts that end the completion; the tokens that made the text are kept."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end it, beside the checkpoint's own ends of turn."""
    seed: int = 0
    top_logprobs: int = 0
    """How many of the likeliest tokens are reported at each place."""


class Noise:
    """The uniform numbers of one completion, decided by seed, prompt and index among the request's completions."""

    def __init__(self, seed: int, prompt: Sequence[int], index: int) -> None:
        text = array.array("q", (seed & (1 << 63) - 1, index, *prompt)).tobytes()
        state = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
        self._generator = torch.Generator().manual_seed(state)
        self._block: list[float] = []

    def next(self) -> float:
        """A number of [0, 1)."""
        if not self._block:
            self._block = torch.rand(_BLOCK, generator=self._generator).clamp_(max=_BELOW_ONE).tolist()[::-1]
        return self._block.pop()


def draw(logits: Tensor, choices: Sequence[Sampling], noise: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row: ids [rows], their log-probabilities [rows], and the log-probabilities of all [rows, vocab].

    Log-probabilities are those of the policy at the sampling temperature, ``log_softmax(logits / temperature)``, before
    top-k and top-p cut the distribution (at temperature 0: of the plain logits). This is what a policy gradient needs.
    """
    device = logits.device
    heat = [choice.temperature for choice in choices]
    if any(value not in (0.0, 1.0) for value in heat):
        logits = logits / torch.tensor([value or 1.0 for value in heat], device=device)[:, None]
    log_probs = logits.log_softmax(-1)
    if not any(heat):
        ids = logits.argmax(-1)
    else:
        probs = log_probs.exp()
        if any(choice.top_p < 1.0 or choice.top_k > 0 for choice in choices):
            probs = _cut(probs, choices)
        reached = probs.cumsum(-1)
        wanted = torch.tensor(noise, device=device)[:, None] * reached[:, -1:]
        ids = torch.searchsorted(reached, wanted, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)
        if not all(heat):
            greedy = torch.tensor([value == 0.0 for value in heat], device=device)
            ids = torch.where(greedy, logits.argmax(-1), ids)
    return ids, log_probs.gather(1, ids[:, None])[:, 0], log_probs


def _cut(probs: Tensor, choices: Sequence[Sampling]) -> Tensor:
    """``probs`` with 0 for what top-k and top-p leave out; the token that crosses ``top_p`` stays in."""
    vocab = probs.shape[1]
    descending, order = probs.sort(dim=-1, descending=True, stable=True)
    top_k = torch.tensor([choice.top_k or vocab for choice in choices], device=probs.device)[:, None]
    top_p = torch.tensor([choice.top_p for choice in choices], device=probs.device)[:, None]
    out = torch.arange(vocab, device=probs.device) >= top_k
    out |= (descending.cumsum(-1) - descending >= top_p) & (top_p < 1.0)
    return probs.scatter(1, order, descending.masked_fill(out, 0.0))
