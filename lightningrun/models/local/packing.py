"""Many sequences in a few rows for one exact training pass, what they share computed once.

A *tree* is a list of segments; a segment goes on from its parent: a prompt once, and each completion after it. Several
trees lie side by side in a row. A token sees its own segment up to itself and its segment's ancestors, nothing else,
and has the position that it would have alone: log-probabilities and gradients are those of the sequences one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that follow on from another segment of the same tree, or begin it."""

    ids: Sequence[int]
    parent: int | None = None
    """Index in the tree, before this one."""
    learn: bool | Sequence[bool] = True
    """Which of the tokens are targets. The first token of a tree has nothing before it and is never one."""


Tree = Sequence[Segment]


def group(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Segment]:
    """The tree of a prompt and what was sampled after it: the completions are targets, the prompt is not."""
    return [Segment(prompt, learn=False), *(Segment(completion, 0) for completion in completions)]


@dataclass(frozen=True, slots=True)
class Packed:
    """Made by ``pack``. Targets are in the order of the trees, their segments and their tokens."""

    ids: Tensor
    """[rows, length]"""
    positions: Tensor
    """[rows, length]"""
    attend: Tensor
    """[rows, length, length], bool: whether a place (second axis) sees another (third)."""
    sources: Tensor
    """[targets]: the place, counted through all rows, whose logits predict the target."""
    targets: Tensor
    """[targets]: token ids."""
    counts: tuple[int, ...]
    """Targets of each segment, all trees through: ``torch.split(log_probs, packed.counts)``."""
    tokens: int
    """Tokens that are not padding."""

    def to(self, device: torch.device) -> Packed:
        if self.ids.device == device:
            return self
        moved = {name: getattr(self, name).to(device) for name in ("ids", "positions", "attend", "sources", "targets")}
        return replace(self, **moved)


def pack(trees: Sequence[Tree], row_tokens: int = 0) -> Packed:
    """Lay ``trees`` out in rows of at least ``row_tokens`` tokens (a longer tree makes all rows as long).

    First fit, longest first. Attention costs length squared a row: short rows are faster, long rows waste less padding.
    """
    sizes = [sum(len(segment.ids) for segment in tree) for tree in trees]
    length = max([row_tokens, *sizes])
    places, rows = _placed(sizes, length)
    ids = torch.zeros(rows, length, dtype=torch.long)
    positions = torch.zeros(rows, length, dtype=torch.long)
    segment_at = torch.zeros(rows, length, dtype=torch.long)  # 0 is the padding's
    lineage: list[list[list[int]]] = [[[0]] for _ in range(rows)]
    sources: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for tree, (row, start) in zip(trees, places, strict=True):
        ends: list[tuple[int, int]] = []  # of each segment: its last place in the row, and the position after it
        first = len(lineage[row])
        for segment in tree:
            last, position = (-1, 0) if segment.parent is None else ends[segment.parent]
            size = len(segment.ids)
            stop = start + size
            ids[row, start:stop] = torch.as_tensor(segment.ids, dtype=torch.long)
            positions[row, start:stop] = torch.arange(position, position + size)
            segment_at[row, start:stop] = own = len(lineage[row])
            above = [] if segment.parent is None else lineage[row][first + segment.parent]
            lineage[row].append([*above, own])
            before = [last, *range(start, stop - 1)] if size else []
            chosen = [segment.learn] * size if isinstance(segment.learn, bool) else segment.learn
            picked = [i for i in range(size) if chosen[i] and before[i] >= 0]
            sources += [row * length + before[i] for i in picked]
            targets += [segment.ids[i] for i in picked]
            counts.append(len(picked))
            ends.append((stop - 1 if size else last, position + size))
            start = stop
    attend = _attend(segment_at, lineage)
    where, what = torch.tensor(sources, dtype=torch.long), torch.tensor(targets, dtype=torch.long)
    return Packed(ids, positions, attend, where, what, tuple(counts), sum(sizes))


def _placed(sizes: Sequence[int], length: int) -> tuple[list[tuple[int, int]], int]:
    used: list[int] = []
    places = [(0, 0)] * len(sizes)
    for tree in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        row = next((row for row, filled in enumerate(used) if filled + sizes[tree] <= length), len(used))
        if row == len(used):
            used.append(0)
        places[tree] = row, used[row]
        used[row] += sizes[tree]
    return places, len(used)


def _attend(segment_at: Tensor, lineage: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    rows, length = segment_at.shape
    most = max(len(row) for row in lineage)
    sees = torch.zeros(rows, most, most, dtype=torch.bool)
    for row, segments in enumerate(lineage):
        for segment, ancestors in enumerate(segments):
            sees[row, segment, list(ancestors)] = True
    row_index = torch.arange(rows)[:, None, None]
    seen = sees[row_index, segment_at[:, :, None], segment_at[:, None, :]]
    return seen & torch.ones(length, length, dtype=torch.bool).tril()
