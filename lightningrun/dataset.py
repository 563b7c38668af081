"""Rows in: JSON Lines, JSON or CSV, every row checked, every split hashed.

A dataset with one broken row is not used at all: whatever is wrong is shown at once, with file and line, before
anything is paid for. Splits must be disjoint, by id and by content, or a score on one says nothing about another.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningrun.errors import DatasetError, Problem
from lightningrun.files import canonical_json, digest
from lightningrun.recipe.compose import shown_path
from lightningrun.recipe.model import TaskConfig
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.types import Task

MAX_ROW_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20
"""Of a .json or .csv file, which is read whole. A .jsonl file is read line by line and may be larger."""
MAX_SHOWN = 20
"""Problems shown for one file; the rest is counted."""

Locate = Callable[[str, str, str], Problem]
"""(dotted key of the recipe, message, hint) -> a problem located there: ``LoadedRecipe.problem``."""


@dataclass(frozen=True, slots=True)
class Split:
    """One part of the dataset, in the order of its file."""

    name: str
    tasks: tuple[Task, ...]
    digest: str
    """Of ids and rows in their order; not of the file's name or format."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """All splits. They share no id and no content."""

    splits: Mapping[str, Split]


def load(task: TaskConfig, locate: Locate | None = None) -> Dataset:
    """Read all splits of ``task`` (whose paths are absolute). Raises DatasetError with every problem of every file."""
    reader = _Reader(task, locate or (lambda key, message, hint: Problem(message, hint=hint)))
    splits = {name: reader.split(name, Path(path)) for name, path in task.data.items()}
    if reader.problems:
        raise DatasetError(reader.problems)
    return Dataset(splits)


class _BadRow(Exception):
    """A row, or from here on a file, that cannot be read."""


class _Reader:
    def __init__(self, task: TaskConfig, locate: Locate) -> None:
        self.task = task
        self.locate = locate
        self.problems: list[Problem] = []
        self.ids: dict[str, tuple[str, str]] = {}
        """Id -> its split and place."""
        self.contents: dict[str, tuple[str, str]] = {}
        """Digest of a row without its id -> the first split and place."""

    def split(self, name: str, path: Path) -> Split:
        file = shown_path(path)
        found: list[Problem] = []
        tasks: list[Task] = []
        sha = hashlib.sha256()
        try:
            for line, row in _rows(path, lambda line, message: found.append(Problem(message, file, line))):
                try:
                    task = self._task(name, row, f"{file}:{line}")
                except _BadRow as error:
                    found.append(Problem(str(error), file, line))
                    continue
                tasks.append(task)
                sha.update(f"{json.dumps(task.id)}{canonical_json(row)}\n".encode())
            if not tasks and not found:
                found.append(Problem("no rows", file))
        except OSError as error:
            hint = ""
            if not path.exists() and path.parent.is_dir():
                hint = did_you_mean(path.name, os.listdir(path.parent))
            key = f"task.data.{name}"
            found.append(self.locate(key, f"{key}: cannot read {file}: {error.strerror}", hint))
        self.problems += found[:MAX_SHOWN]
        if len(found) > MAX_SHOWN:
            self.problems.append(Problem(f"and {len(found) - MAX_SHOWN} more problems in this file", file))
        return Split(name, tuple(tasks), sha.hexdigest())

    def _task(self, split: str, row: Any, place: str) -> Task:
        if not isinstance(row, dict):
            raise _BadRow(f"a row must be a JSON object, not {type(row).__name__}")
        if not row:
            raise _BadRow("an empty row")
        try:
            whole = digest(row)
        except UnicodeEncodeError:
            raise _BadRow("text that is not valid Unicode (half of a surrogate pair)") from None
        name = self._id(row, whole)
        field = self.task.id or "id"
        content = digest({key: value for key, value in row.items() if key != field}) if field in row else whole
        if name in self.ids:
            other, where = self.ids[name]
            raise _BadRow(f"id {name!r} is also at {where}" + (f", in split '{other}'" if other != split else ""))
        self.ids[name] = (split, place)
        other, where = self.contents.setdefault(content, (split, place))
        if other != split:
            raise _BadRow(f"the same row is at {where}, in split '{other}'")
        return Task(name, split, row, self._tags(row))

    def _id(self, row: Mapping[str, Any], whole: str) -> str:
        field = self.task.id or "id"
        if field not in row:
            if self.task.id is None:
                return whole[:16]
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


Note = Callable[[int, str], None]


def _rows(path: Path, note: Note) -> Iterator[tuple[int, Any]]:
    """(line, row) of each row that can be read; the others go to ``note``. Raises OSError."""
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        yield from _json_lines(path, note)
    elif kind in (".json", ".csv"):
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            note(0, f"larger than {MAX_FILE_BYTES >> 20} MiB; use .jsonl")
            return
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            note(data.count(b"\n", 0, error.start) + 1, "not UTF-8")
            return
        yield from (_json_list if kind == ".json" else _csv)(text, note)
    else:
        note(0, f"'{path.suffix}' files are not read here; use .jsonl, .json or .csv")


def _json_lines(path: Path, note: Note) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as stream:
        line = 0
        while data := stream.readline(MAX_ROW_BYTES + 2):
            line += 1
            if len(data) > MAX_ROW_BYTES + 1:
                note(line, f"a row of more than {MAX_ROW_BYTES >> 10} KiB")
                while data and not data.endswith(b"\n"):
                    data = stream.readline(1 << 20)
                continue
            try:
                text = data.decode("utf-8-sig" if line == 1 else "utf-8")
                if text.strip():
                    yield line, _DECODER.decode(text)
            except UnicodeDecodeError:
                note(line, "not UTF-8")
            except (ValueError, RecursionError) as error:
                note(line, f"broken JSON: {_reason(error)}")


def _json_list(text: str, note: Note) -> Iterator[tuple[int, Any]]:
    """Rows one at a time, because only so the line of each is known."""
    position, line, counted = _skip(text, 0), 1, 0
    if text[position : position + 1] != "[":
        note(1, "a .json dataset is one list of objects; one object a line is .jsonl")
        return
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            row, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            note(line, f"broken JSON: {_reason(error)}")
            return
        if end - position > MAX_ROW_BYTES:
            note(line, f"a row of more than {MAX_ROW_BYTES >> 10} KiB")
        else:
            yield line, row
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            note(line + text.count("\n", counted, position), "broken JSON: expected ',' or ']' after a row")
            return
    if _skip(text, position + 1) != len(text):
        note(line + text.count("\n", counted, position), "broken JSON: text after the list")


def _csv(text: str, note: Note) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not cells:
                pass
            elif not header:
                header = cells
                if len(set(cells)) < len(cells) or "" in cells:
                    note(line, "the header has an empty or a repeated name")
                    return
            elif len(cells) != len(header):
                note(line, f"{len(cells)} cells, and the header names {len(header)}")
            elif sum(map(len, cells)) > MAX_ROW_BYTES:
                note(line, f"a row of more than {MAX_ROW_BYTES >> 10} KiB")
            else:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        note(line, f"broken CSV: {error}")


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_constant)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
