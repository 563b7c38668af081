"""How many rows there are, by split and by tag: all that a plan needs to know of the data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lightningrun.types import Task


class RowCounts(dict[str, int]):
    """Split -> number of rows."""

    def __init__(self, splits: Mapping[str, Sequence[Task]]) -> None:
        super().__init__({name: len(tasks) for name, tasks in splits.items()})
        self._tags = {name: [set(task.tags) for task in tasks] for name, tasks in splits.items()}

    def tagged(self, split: str, tags: Collection[str]) -> int:
        """Rows with at least one of the tags."""
        return sum(not tagged.isdisjoint(tags) for tagged in self._tags.get(split, ()))

    def tags(self, split: str) -> list[str]:
        """Every tag of a split's rows."""
        return sorted(set().union(*self._tags.get(split, ())))
