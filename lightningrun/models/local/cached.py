"""Decoding with a cache: prompts computed once, whatever number of completions go on from each.

The cache of a prompt is shared by its completions, which attend to it in one product for the whole group (the layout of
Hydragen, Juravsky et al., 2024); what each has written itself lies in a cache of its own. Weights that meet the same
input are joined. Lengths and row counts are padded to multiples of ``STEP``, beyond which the products of this size
give a row the same bits whoever shares its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightningrun.models.local.decoder import Decoder, Layer, Shape, rope, rotate

STEP = 16
_PREFILL_TOKENS = 1 << 14
_FEWEST_ROWS = 4
"""Products of fewer are rounded otherwise: of one row on Intel's processors, of up to three on AMD's."""


@dataclass(slots=True)
class _Layer:
    norm_in: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    norm_mid: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(slots=True)
class Prompt:
    """A prompt's keys and values by layer, [kv heads, length, head_dim] each, and the logits after it, [vocab]."""

    length: int
    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values))


class CachedDecoder:
    """A decoder's weights, joined for decoding. Not thread-safe; runs no gradient."""

    def __init__(self, decoder: Decoder, device: torch.device, dtype: torch.dtype) -> None:
        self.shape: Shape = decoder.shape
        self.device = device
        self.dtype = dtype
        self.load(decoder)

    @torch.no_grad()
    def load(self, decoder: Decoder) -> None:
        """Copy the weights of ``decoder``, which may be trained on meanwhile."""

        def copied(*weights: Tensor | None) -> Tensor:
            return torch.cat([weight for weight in weights if weight is not None]).to(self.device, self.dtype)

        self._layers: list[_Layer] = []
        for layer in decoder.model.layers:
            assert isinstance(layer, Layer)
            attention, mlp = layer.self_attn, layer.mlp
            q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
            self._layers.append(
                _Layer(
                    norm_in=copied(layer.input_layernorm.weight),
                    qkv=copied(q.weight, k.weight, v.weight),
                    qkv_bias=None if q.bias is None else copied(q.bias, k.bias, v.bias),
                    out=copied(attention.o_proj.weight),
                    norm_mid=copied(layer.post_attention_layernorm.weight),
                    gate_up=copied(mlp.gate_proj.weight, mlp.up_proj.weight),
                    down=copied(mlp.down_proj.weight),
                )
            )
        self._embedding = copied(decoder.model.embed_tokens.weight)
        self._head = self._embedding if decoder.lm_head is None else copied(decoder.lm_head.weight)
        self._norm = copied(decoder.model.norm.weight)
        places = torch.arange(self.shape.context, device=self.device)
        self._cos, self._sin = (part.to(self.dtype) for part in rope(self.shape, places))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Prompt]:
        """Each prompt's cache. Prompts of like length go together, about ``_PREFILL_TOKENS`` tokens at a time."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        found: dict[int, Prompt] = {}
        while order:
            longest = _padded(len(prompts[order[-1]]))
            count = max(1, _PREFILL_TOKENS // longest)
            batch, order = order[-count:], order[:-count]
            found |= zip(batch, self._prefill([prompts[index] for index in batch], longest), strict=True)
        return [found[index] for index in range(len(prompts))]

    def _prefill(self, prompts: Sequence[Sequence[int]], width: int) -> list[Prompt]:
        shape, rows = self.shape, len(prompts)
        ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.device)
        cos, sin = self._cos[:width, None], self._sin[:width, None]
        x = F.embedding(ids, self._embedding)
        keys, values = [], []
        for layer in self._layers:
            q, k, v = self._projected(x, layer, cos, sin)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            keys.append(k)
            values.append(v)
            repeat = shape.heads // shape.kv_heads
            k, v = (part.repeat_interleave(repeat, 1) if repeat > 1 else part for part in (k, v))
            # padding is behind the prompt, where causal attention does not look
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            x = self._rest(x, o.reshape(rows, width, -1), layer)
        lengths = [len(prompt) for prompt in prompts]
        logits = self._logits(x[torch.arange(rows), torch.tensor(lengths) - 1])
        return [
            Prompt(n, [k[row, :, :n].clone() for k in keys], [v[row, :, :n].clone() for v in values], logits[row])
            for row, n in enumerate(lengths)
        ]

    def step(self, ids: Tensor, cache: Cache) -> Tensor:
        """Logits [rows, vocab] in float32 after each row of ``cache`` has been given one more token of ``ids``."""
        shape = self.shape
        rows = len(ids)
        repeat = shape.heads // shape.kv_heads
        cache.make_room()
        place = cache.written
        positions = (cache.prompt_lengths + place).clamp_(max=shape.context - 1)
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        reach = _padded(cache.longest + 1)
        seen = torch.arange(reach, device=self.device) <= place[:, None]
        tail_bias = torch.zeros(seen.shape, device=self.device, dtype=self.dtype).masked_fill_(~seen, float("-inf"))
        tail_bias = tail_bias[:, None, None]
        x = F.embedding(ids, self._embedding)
        every = torch.arange(rows, device=self.device)
        scale = shape.head_dim**-0.5
        for number, layer in enumerate(self._layers):
            q, k, v = self._projected(x, layer, cos, sin)
            tail_keys, tail_values = cache.tail_keys[number], cache.tail_values[number]
            tail_keys[every, :, :, place] = k
            tail_values[every, :, place] = v
            q = q.reshape(rows, shape.kv_heads, repeat, shape.head_dim) * scale
            far = cache.ungrouped(cache.grouped(q) @ cache.keys[number] + cache.bias, repeat)
            near = q @ tail_keys[..., :reach] + tail_bias
            weights = torch.cat((far, near), -1).softmax(-1, dtype=torch.float32).to(self.dtype)
            far, near = weights[..., : cache.width], weights[..., cache.width :]
            o = cache.ungrouped(cache.grouped(far) @ cache.values[number], repeat) + near @ tail_values[:, :, :reach]
            x = self._rest(x, o.reshape(rows, -1), layer)
        cache.written += 1
        cache.longest += 1
        return self._logits(x)

    def _projected(self, x: Tensor, layer: _Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        y = _linear(self._normed(x, layer.norm_in), layer.qkv, layer.qkv_bias)
        y = y.view(*x.shape[:-1], shape.heads + 2 * shape.kv_heads, shape.head_dim)
        qk = rotate(y[..., : shape.heads + shape.kv_heads, :], cos, sin)
        return qk[..., : shape.heads, :], qk[..., shape.heads :, :], y[..., shape.heads + shape.kv_heads :, :]

    def _rest(self, x: Tensor, attended: Tensor, layer: _Layer) -> Tensor:
        x = x + _linear(attended, layer.out)
        gate, up = _linear(self._normed(x, layer.norm_mid), layer.gate_up).chunk(2, -1)
        return x + _linear(F.silu(gate) * up, layer.down)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.shape.width,), weight, self.shape.norm_eps)

    def _logits(self, x: Tensor) -> Tensor:
        return _linear(self._normed(x, self._norm), self._head).float()


class Cache:
    """What the rows of a running batch have seen: prompts by group, and what each row wrote itself.

    Each group has a block of ``slots`` places, as many as the largest group has rows, so groups of one size cost least.
    """

    def __init__(self, decoder: CachedDecoder) -> None:
        shape = decoder.shape
        self._layers = range(shape.layers)
        self._kind = {"device": decoder.device, "dtype": decoder.dtype}
        self._prompts: list[Prompt] = []
        self._group_of: list[int] = []
        self._slots = 0
        self._place_of: Tensor | None = None
        self.longest = 0
        """The most tokens that a row has written."""
        self.width = 0
        """Of the padded prompts."""
        self.written = torch.zeros(0, dtype=torch.long, device=decoder.device)
        self.prompt_lengths = self.written.clone()
        self.bias = self._zeros(0, 1, 1, 0)
        kv, dim = shape.kv_heads, shape.head_dim
        self._block = kv, dim
        self._fewest = -(-_FEWEST_ROWS * kv // shape.heads)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.tail_keys = [self._zeros(0, kv, dim, STEP) for _ in self._layers]
        self.tail_values = [self._zeros(0, kv, STEP, dim) for _ in self._layers]

    def __len__(self) -> int:
        return len(self._group_of)

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(size, **self._kind)  # type: ignore[call-overload,no-any-return]

    def add(self, prompts: Sequence[Prompt]) -> None:
        """One new row for each prompt, at the end; equal objects share their cache, also with earlier rows."""
        known = {id(prompt): group for group, prompt in enumerate(self._prompts)}
        before = len(self._prompts)
        for prompt in prompts:
            if id(prompt) not in known:
                known[id(prompt)] = len(self._prompts)
                self._prompts.append(prompt)
            self._group_of.append(known[id(prompt)])
        more = (0, 0, 0, 0, 0, 0, 0, len(prompts))
        self.tail_keys = [F.pad(keys, more) for keys in self.tail_keys]
        self.tail_values = [F.pad(values, more) for values in self.tail_values]
        self.written = F.pad(self.written, (0, len(prompts)))
        lengths = torch.tensor([prompt.length for prompt in prompts], device=self.written.device)
        self.prompt_lengths = torch.cat((self.prompt_lengths, lengths))
        if len(self._prompts) > before:
            self._stack()
        self._arrange()

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, in this order."""
        chosen = torch.tensor(rows, dtype=torch.long, device=self.written.device)
        self.tail_keys = [keys[chosen] for keys in self.tail_keys]
        self.tail_values = [values[chosen] for values in self.tail_values]
        self.written, self.prompt_lengths = self.written[chosen], self.prompt_lengths[chosen]
        self.longest = int(self.written.max()) if rows else 0
        group_of = [self._group_of[row] for row in rows]
        live = sorted(set(group_of))
        if len(live) < len(self._prompts):
            self._prompts = [self._prompts[group] for group in live]
            renamed = {group: place for place, group in enumerate(live)}
            group_of = [renamed[group] for group in group_of]
            self._stack()
        self._group_of = group_of
        self._arrange()

    def _stack(self) -> None:
        """Prompts side by side, padded: keys [groups, kv heads, head_dim, width], values with the last two swapped."""
        kv, dim = self._block
        groups = len(self._prompts)
        self.width = _padded(max((prompt.length for prompt in self._prompts), default=0))
        self.keys, self.values = [], []
        for layer in self._layers:
            keys, values = self._zeros(groups, kv, dim, self.width), self._zeros(groups, kv, self.width, dim)
            for group, prompt in enumerate(self._prompts):
                keys[group, :, :, : prompt.length] = prompt.keys[layer].transpose(1, 2)
                values[group, :, : prompt.length] = prompt.values[layer]
            self.keys.append(keys)
            self.values.append(values)
        self.bias = self._zeros(groups, 1, 1, self.width)
        for group, prompt in enumerate(self._prompts):
            self.bias[group, :, :, prompt.length :] = float("-inf")

    def _arrange(self) -> None:
        """Give each row a place in its group's block."""
        filled = [0] * len(self._prompts)
        slots = []
        for group in self._group_of:
            slots.append(filled[group])
            filled[group] += 1
        self._slots = max([self._fewest, *filled])
        places = [group * self._slots + slot for group, slot in zip(self._group_of, slots, strict=True)]
        in_order = places == list(range(len(filled) * self._slots))
        self._place_of = None if in_order else torch.tensor(places, dtype=torch.long, device=self.written.device)

    def make_room(self) -> None:
        """See that one more token fits for each row."""
        room = self.tail_values[0].shape[2]
        if self.longest + 1 > room:
            self.tail_keys = [F.pad(keys, (0, room)) for keys in self.tail_keys]
            self.tail_values = [F.pad(values, (0, 0, 0, room)) for values in self.tail_values]

    def grouped(self, x: Tensor) -> Tensor:
        """[rows, kv heads, repeat, n] -> [groups, kv heads, slots * repeat, n]"""
        _, kv, repeat, size = x.shape
        groups = len(self._prompts)
        if self._place_of is not None:
            x = x.new_zeros(groups * self._slots, kv, repeat, size).index_copy_(0, self._place_of, x)
        return x.view(groups, self._slots, kv, repeat, size).transpose(1, 2).reshape(groups, kv, -1, size)

    def ungrouped(self, x: Tensor, repeat: int) -> Tensor:
        """The way back."""
        groups, kv, _, size = x.shape
        x = x.view(groups, kv, self._slots, repeat, size).transpose(1, 2).reshape(-1, kv, repeat, size)
        return x if self._place_of is None else x.index_select(0, self._place_of)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = len(x)
    if x.dim() > 2 or rows >= STEP:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, STEP - rows)), weight, bias)[:rows]


def _padded(length: int) -> int:
    return -(-length // STEP) * STEP
