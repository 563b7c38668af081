"""Drawing rows: by luck that depends on a seed and the rows' ids alone, so that a row added moves few others."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from lightningrun.types import Task


def part_of(task_id: str, count: int) -> int:
    """Which of ``count`` parts a row belongs to, whatever other rows there are."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8], "big") % count


def draw(tasks: Sequence[Task], count: int, seed: int | str) -> list[Task]:
    """``count`` different rows (all, if there are fewer), each with a chance in proportion to its weight; most likely
    first. For training batches: another seed is another batch (Efraimidis and Spirakis 2006)."""
    return sorted(tasks, key=lambda task: -math.log(_luck(task.id, seed)) / task.weight)[:count]


def sample(ids: Sequence[str], count: int, seed: int) -> set[str]:
    """``count`` of the rows' ids, each as likely as any other."""
    return set(sorted(ids, key=lambda task_id: _luck(task_id, seed))[:count])


def _luck(task_id: str, seed: int | str) -> float:
    """A number in (0, 1]."""
    return (1 + int.from_bytes(hashlib.sha256(f"{seed}\0{task_id}".encode()).digest()[:8], "big")) / (1 << 64)
