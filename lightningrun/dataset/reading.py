"""Sources to checked rows.

A dataset with one broken row is not used at all: whatever is wrong is shown at once, each row with its place, before
anything is paid for. Splits must be disjoint, by id and by content, or a score on one says nothing about another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningrun.dataset.draw import part_of, sample
from lightningrun.dataset.sources import Locate, Source, Surroundings, Unreadable, source_of
from lightningrun.errors import DatasetError, Missing, Problem
from lightningrun.files import digest
from lightningrun.recipe.model import SplitConfig, TaskConfig
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.types import Task

MAX_SHOWN = 20
"""Problems shown for one source; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Split:
    """One part of the dataset, in the order of its source."""

    name: str
    tasks: tuple[Task, ...]
    digest: str
    """Of ids, rows and weights in their order; not of the source's name or format."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All splits. They share no id and no content."""

    splits: Mapping[str, Split]


def load(
    task: TaskConfig,
    locate: Locate | None = None,
    *,
    root: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Dataset:
    """Read all splits of ``task`` (whose paths are absolute).

    ``root`` (default: the working directory) is where Python functions are looked up from. Raises DatasetError with
    every problem of every source; Missing for packages and variables that this machine lacks.
    """
    locate = locate or (lambda key, message, hint: Problem(message, hint=hint))
    around = Surroundings(locate, root or Path.cwd(), os.environ if environ is None else environ)
    reader = _Reader(task, around)
    splits = {name: reader.split(name, config) for name, config in task.data.items()}
    if reader.problems:
        raise DatasetError(reader.problems)
    if reader.missing:
        raise Missing("\n".join(reader.missing))
    return Dataset(splits)


class _BadRow(Exception):
    """A row, or from here on a file, that cannot be read."""


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    task: Task
    content: str
    """Digest of the row without its id."""


class _Reader:
    def __init__(self, task: TaskConfig, around: Surroundings) -> None:
        self.task = task
        self.around = around
        self.problems: list[Problem] = []
        self.missing: list[str] = []
        self.ids: dict[str, tuple[str, Source, int]] = {}
        """Id -> its split, and the source and number of its row."""
        self.contents: dict[str, tuple[str, Source, int]] = {}
        """Digest of a row without its id -> the same of the first one."""

    def split(self, name: str, config: SplitConfig) -> Split:
        key = f"task.data.{name}"
        rows: list[_Row] = []
        try:
            source = source_of(name, config, self.around)
            rows = self._checked(name, config, source)
        except Unreadable as error:
            self.problems.append(self.around.locate(error.key, f"{error.key}: {error.message}", error.hint))
        except OSError as error:
            self.problems.append(self.around.locate(key, f"{key}: cannot be read: {error.strerror}", ""))
        except Missing as error:
            self.missing.append(str(self.around.locate(key, error.message, error.hint)))
        sha = hashlib.sha256()
        for row in rows:
            weight = f" {row.task.weight!r}" if config.weights else ""
            own = row.task.fields.get(self.task.id or "id")
            sha.update(f"{json.dumps([row.task.id, own])}{row.content}{weight}\n".encode())
        return Split(name, tuple(row.task for row in rows), sha.hexdigest())

    def _checked(self, name: str, config: SplitConfig, source: Source) -> list[_Row]:
        found: list[tuple[int, str]] = []
        reading = _Reading(name, self.task, config, source, found)
        rows = reading.chosen()
        for row in rows:
            if (clash := self._clash(name, row, source)) is not None:
                found.append((row.number, clash))
        if not rows and not found:
            found.append((0, reading.why_none()))
        found.sort(key=lambda problem: problem[0])
        self.problems += [source.problem(number, message) for number, message in found[:MAX_SHOWN]]
        if len(found) > MAX_SHOWN:
            what = "in this file" if config.path else "here"
            self.problems.append(source.problem(0, f"and {len(found) - MAX_SHOWN} more problems {what}"))
        return rows

    def _clash(self, split: str, row: _Row, source: Source) -> str | None:
        """What makes a row of this split one of another too, if anything."""
        here = (split, source, row.number)
        other, there, number = self.ids.setdefault(row.task.id, here)
        if other != split:
            return f"id {row.task.id!r} is also at {there.place(number)}, in split '{other}'"
        other, there, number = self.contents.setdefault(row.content, here)
        return f"the same row is at {there.place(number)}, in split '{other}'" if other != split else None


class _Reading:
    """One source, read once: rows checked, and those taken that the options of the split ask for."""

    def __init__(
        self, name: str, task: TaskConfig, config: SplitConfig, source: Source, found: list[tuple[int, str]]
    ) -> None:
        self.name = name
        self.task = task
        self.config = config
        self.source = source
        self.found = found
        self.numbers: dict[str, int] = {}
        """Id -> the number of its row, also of rows that are not taken."""
        self.fields: dict[str, None] = {}
        """Names of the fields seen, for suggestions."""

    def chosen(self) -> list[_Row]:
        config = self.config
        rows: list[_Row] = []
        with contextlib.closing(self._checked()) as checked:
            for row in checked:
                if self._taken(row.task):
                    rows.append(row)
                if config.limit is not None and config.sample is None and len(rows) == config.limit:
                    return rows
        if config.sample is not None:
            kept = sample([row.task.id for row in rows], config.sample, config.seed)
            rows = [row for row in rows if row.task.id in kept]
        return rows[: config.limit]

    def why_none(self) -> str:
        for name in self.config.where:
            if self.numbers and name not in self.fields:
                hint = did_you_mean(name, self.fields)
                return f"where: no row has a field '{name}'" + (f"; {hint}" if hint else "")
        options = " and ".join(name for name in ("where", "shard") if getattr(self.config, name))
        return f"no row of {len(self.numbers)} is left by {options}" if self.numbers else "no rows"

    def _checked(self) -> Generator[_Row, None, None]:
        def note(number: int, message: str) -> None:
            self.found.append((number, message))

        for number, raw in self.source.rows(note):
            try:
                row = self._row(number, raw)
            except _BadRow as error:
                note(number, str(error))
            else:
                yield row

    def _row(self, number: int, raw: Any) -> _Row:
        if not isinstance(raw, dict):
            raise _BadRow(f"a row must be a JSON object, not {type(raw).__name__}")
        if not raw:
            raise _BadRow("an empty row")
        row = self._renamed(raw)
        field = self.task.id or "id"
        try:
            content = digest({key: value for key, value in row.items() if key != field})
        except UnicodeEncodeError:
            raise _BadRow("text that is not valid Unicode (half of a surrogate pair)") from None
        name = self._id(row, content)
        if name in self.numbers:
            raise _BadRow(f"id {name!r} is also at {self.source.place(self.numbers[name])}")
        self.numbers[name] = number
        self.fields.update(dict.fromkeys(row))
        return _Row(number, Task(name, self.name, row, self._tags(row), self._weight(row)), content)

    def _renamed(self, raw: dict[str, Any]) -> dict[str, Any]:
        renamed = self.config.fields
        if not renamed:
            return raw
        row = {name: value for name, value in raw.items() if name not in renamed.values()}
        for name, original in renamed.items():
            if original not in raw:
                hint = did_you_mean(original, raw)
                raise _BadRow(f"no field '{original}', which fields names" + (f"; {hint}" if hint else ""))
            if name in row:
                raise _BadRow(f"has a field '{name}' already, which fields makes of '{original}'")
            row[name] = raw[original]
        return row

    def _id(self, row: Mapping[str, Any], content: str) -> str:
        field = self.task.id or "id"
        if field not in row:
            if self.task.id is None:
                return content[:16]
            hint = did_you_mean(field, row)
            raise _BadRow(f"no field '{field}', which task.id names" + (f"; {hint}" if hint else ""))
        value = row[field]
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
            raise _BadRow(f"the id in '{field}' must be a whole number or a text of 1 to 200 printable characters")
        return value

    def _tags(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        value = row.get(self.task.tags)
        tags = [value] if isinstance(value, str) and value else value or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise _BadRow(f"'{self.task.tags}' must be a text or a list of texts")
        return tuple(tags)

    def _weight(self, row: Mapping[str, Any]) -> float:
        field = self.config.weights
        if field is None:
            return 1.0
        if field not in row:
            hint = did_you_mean(field, row)
            raise _BadRow(f"no field '{field}', which weights names" + (f"; {hint}" if hint else ""))
        value = row[field]
        try:
            weight = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            weight = math.nan
        if not (0 < weight < math.inf):
            raise _BadRow(f"the weight in '{field}' must be a number above 0, not {str(value)[:40]!r}")
        return weight

    def _taken(self, task: Task) -> bool:
        shard = self.config.shard
        if shard is not None and part_of(task.id, shard.count) != shard.index:
            return False
        return all(_has(task.fields.get(name), wanted) for name, wanted in self.config.where.items())


def _has(value: Any, wanted: Any) -> bool:
    """Whether a field holds what ``where`` asks for; a number may be written as text, as CSV does."""
    values = value if isinstance(value, list) else [value]
    accepted = wanted if isinstance(wanted, list) else [wanted]
    return any(_equal(one, other) for one in values for other in accepted)


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool) != isinstance(wanted, bool):
        return False
    return bool(value == wanted) or (isinstance(value, str) and not isinstance(wanted, bool) and value == str(wanted))
