"""A decoder-only transformer of the Llama and Qwen2 shapes, small enough to read, with Hugging Face's weight names.

Grouped-query attention with rotary positions, RMSNorm and SwiGLU (Touvron et al., 2023; Qwen2 adds biases to the query,
key and value projections). This is the model as it is trained; ``cached.py`` decodes with the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightningrun.models.local.packing import Packed

Family = Literal["llama", "qwen2"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that make a decoder, under our names; ``checkpoint.py`` translates ``config.json``."""

    family: Family
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    context: int
    """Tokens that a prompt and its completion may have together."""
    rope_theta: float = 10_000.0
    rope_llama3: tuple[float, float, float, int] | None = None
    """Llama 3's stretching of long wavelengths: factor, low and high frequency factor, original context."""
    norm_eps: float = 1e-6
    tied: bool = True
    special: dict[str, int | list[int]] = field(default_factory=dict, compare=False)
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` of ``config.json``."""


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        bias = shape.family == "qwen2"
        inner, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.width, inner, bias=bias)
        self.k_proj = nn.Linear(shape.width, narrow, bias=bias)
        self.v_proj = nn.Linear(shape.width, narrow, bias=bias)
        self.o_proj = nn.Linear(inner, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Tensor | None) -> Tensor:
        rows, length, _ = x.shape
        shape = self.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(rows, length, -1, shape.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj(x)), cos, sin)
        k = rotate(heads(self.k_proj(x)), cos, sin)
        v = heads(self.v_proj(x))
        if shape.kv_heads != shape.heads:
            k, v = (part.repeat_interleave(shape.heads // shape.kv_heads, 1) for part in (k, v))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, is_causal=attend is None)
        return self.o_proj(o.transpose(1, 2).reshape(rows, length, -1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.width, shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.width, shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class _Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width, shape.norm_eps)


class Decoder(nn.Module):
    """``state_dict()`` has the names and shapes of ``LlamaForCausalLM`` / ``Qwen2ForCausalLM``."""

    logits_at_once = 1 << 26
    """Logits held for one backward pass; more of them are computed in pieces, and again in the backward pass."""
    states_at_once = 1 << 27
    """Hidden numbers, all layers through, up to which a backward pass finds every product kept. A layer keeps some
    twenty times as many: above this, layers are computed again in the backward pass (Chen et al., 2016)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape)
        self.lm_head = None if shape.tied else nn.Linear(shape.width, shape.vocab, bias=False)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def head(self) -> Tensor:
        """The weight that turns a hidden state into logits, [vocab, width]."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, ids: Tensor, positions: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
        """Hidden states [rows, length, width] of ``ids`` [rows, length].

        ``positions`` [rows, length] default to 0, 1, 2, ...; ``attend`` [rows, length, length] says which places (last
        axis) each place sees, itself among them, and defaults to all before it.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.model.embed_tokens(ids)
        cos, sin = (part[:, None].to(x.dtype) for part in rope(self.shape, positions))
        mask = None if attend is None else attend[:, None]
        again = torch.is_grad_enabled() and x.numel() * self.shape.layers > self.states_at_once
        for layer in self.model.layers:
            x = checkpoint(layer, x, cos, sin, mask, use_reentrant=False) if again else layer(x, cos, sin, mask)
        return self.model.norm(x)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, positions: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
        """Logits [rows, length, vocab]; arguments as for ``hidden``."""
        return F.linear(self.hidden(ids, positions, attend), self.head)

    def log_probs(self, packed: Packed, temperature: float = 1.0) -> Tensor:
        """``log_softmax(logits / temperature)`` of every target of ``packed``, [targets], in float32, with gradient."""
        return self.log_probs_and_entropy(packed, temperature, entropy=False)[0]

    def log_probs_and_entropy(
        self, packed: Packed, temperature: float = 1.0, *, entropy: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """As ``log_probs``, and the entropy (nats) of the distribution that each target was drawn from, [targets]."""
        packed = packed.to(self.device)
        states = self.hidden(packed.ids, packed.positions, packed.attend).flatten(0, 1)[packed.sources]
        block = max(1, self.logits_at_once // self.shape.vocab)
        if len(states) <= block:
            logp, entropies = _score(states, self.head, packed.targets, temperature, entropy)
            return logp, entropies if entropy else None
        pieces = [
            checkpoint(_score, part, self.head, wanted, temperature, entropy, use_reentrant=False)
            for part, wanted in (
                (states[at : at + block], packed.targets[at : at + block]) for at in range(0, len(states), block)
            )
        ]
        return torch.cat([piece[0] for piece in pieces]), torch.cat([p[1] for p in pieces]) if entropy else None


def _score(states: Tensor, head: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    logits = F.linear(states, head).float()
    if temperature != 1.0:
        logits = logits / temperature
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(1, targets[:, None])[:, 0]
    return chosen, -(log_probs.exp() * log_probs).sum(-1) if entropy else chosen


def rope(shape: Shape, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., head_dim] of rotary embeddings (Su et al., 2021) at ``positions`` [...], in float32."""
    even = torch.arange(0, shape.head_dim, 2, device=positions.device).float()
    rates = 1.0 / shape.rope_theta ** (even / shape.head_dim)
    if shape.rope_llama3 is not None:
        rates = _stretched(rates, *shape.rope_llama3)
    angles = positions[..., None].float() * rates
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def _stretched(rates: Tensor, factor: float, low: float, high: float, original: int) -> Tensor:
    turns = original * rates / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return rates * (smooth + (1.0 - smooth) / factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` [..., head_dim] turned by the angles of ``rope``."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def initialise(decoder: Decoder, seed: int) -> None:
    """Fresh weights: normal, narrower into the residual stream, as in GPT-2; biases zero. Decided by ``seed`` alone."""
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / math.sqrt(2 * decoder.shape.layers)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = 0.05 if "embed_tokens" in name else residual if "o_proj" in name or "down_proj" in name else 0.02
            weight.normal_(0.0, std, generator=generator)
