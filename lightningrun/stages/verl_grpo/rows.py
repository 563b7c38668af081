"""Which rows a step trains on: in passes over the split, each in an order of its own, decided by the seed alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lightningrun.dataset.draw import draw
from lightningrun.types import Task


class Rows:
    """A place in an endless sequence of rows. A pass has a row once, or with a chance in proportion to its weight."""

    def __init__(self, tasks: Sequence[Task], seed: int, rest: int) -> None:
        """``rest``: passes that a row is left out of after ``solved``."""
        self._tasks = tasks
        self._seed = seed
        self._rest = rest
        heaviest = max(task.weight for task in tasks)
        self._a_pass = max(1, round(sum(task.weight for task in tasks) / heaviest))
        self._pass = 0
        self._at = 0
        self._until: dict[str, int] = {}
        self._order = self._drawn(0)

    def take(self, count: int, besides: Collection[str] = ()) -> list[Task]:
        """The next ``count`` rows, none of them twice or in ``besides``; fewer if there are no more."""
        taken: list[Task] = []
        used = set(besides)
        last = self._pass + 2 + self._rest  # where even rows that rest have come round again
        while len(taken) < count and self._pass <= last:
            if self._at == len(self._order):
                self._pass, self._at = self._pass + 1, 0
                self._order = self._drawn(self._pass)
                continue
            task = self._order[self._at]
            self._at += 1
            if task.id not in used and self._until.get(task.id, 0) <= self._pass:
                used.add(task.id)
                taken.append(task)
        return taken

    def solved(self, task_id: str) -> None:
        """Nothing is to be learned from this row now."""
        if self._rest:
            self._until[task_id] = self._pass + 1 + self._rest

    def _drawn(self, number: int) -> list[Task]:
        return draw(self._tasks, self._a_pass, f"{self._seed}/pass/{number}")

    @property
    def place(self) -> dict[str, Any]:
        """JSON that ``resume`` takes."""
        return {"pass": self._pass, "at": self._at, "until": self._until}

    def resume(self, place: dict[str, Any]) -> None:
        self._pass, self._at, self._until = place["pass"], place["at"], dict(place["until"])
        self._order = self._drawn(self._pass)
