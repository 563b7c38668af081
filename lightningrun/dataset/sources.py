"""Where the rows of a split come from, behind one face: rows with a number, and a place for what is wrong with one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightningrun.dataset import files, huggingface, loader, sql
from lightningrun.dataset.plain import Note, plain_rows
from lightningrun.errors import Missing, Problem
from lightningrun.recipe.compose import shown_path
from lightningrun.recipe.data_files import complaint, is_saved_dataset, is_url
from lightningrun.recipe.model import SplitConfig

Locate = Callable[[str, str, str], Problem]
"""(dotted key of the recipe, message, hint) -> a problem located there: ``LoadedRecipe.problem``."""


class Unreadable(Exception):
    """The source as a whole cannot be read. ``key`` is the recipe's key to blame."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.message = message
        self.hint = hint


class Source(Protocol):
    """Rows of one split."""

    def rows(self, note: Note) -> Iterator[tuple[int, Any]]:
        """(number, row) of each row that can be read; the others go to ``note``. Raises Unreadable, OSError."""
        ...

    def place(self, number: int) -> str:
        """Where row ``number`` is, in words."""
        ...

    def problem(self, number: int, message: str) -> Problem:
        """What is wrong with row ``number``, or with all of it if that is 0."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file: its rows have lines."""

    path: Path

    def rows(self, note: Note) -> Iterator[tuple[int, Any]]:
        return files.rows(self.path, note)

    def place(self, number: int) -> str:
        return f"{shown_path(self.path)}:{number}"

    def problem(self, number: int, message: str) -> Problem:
        return Problem(message, shown_path(self.path), number)


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A source whose rows have numbers only; what is wrong with one is located where the recipe names the source."""

    key: str
    locate: Locate

    def place(self, number: int) -> str:
        return f"row {number} of {self.key}"

    def problem(self, number: int, message: str) -> Problem:
        return self.locate(self.key, f"{self.key}: row {number}: {message}" if number else f"{self.key}: {message}", "")


@dataclass(frozen=True, slots=True)
class QuerySource(_Numbered):
    """A SQL query of a SQLite file or of a database with a URL."""

    query: str
    database: str

    def rows(self, note: Note) -> Iterator[tuple[int, Any]]:
        try:
            if is_url(self.database):
                yield from plain_rows(sql.url_rows(self.database, self.query), note)
            else:
                yield from plain_rows(sql.sqlite_rows(Path(self.database), self.query), note)
        except sql.QueryFailed as error:
            raise Unreadable(f"{self.key}.sql", f"the query failed: {error}") from error
        except ModuleNotFoundError as error:
            missing = f"{self.key}: the driver {error.name} is not installed"
            raise Missing(missing, hint=f"pip install {error.name}") from error


@dataclass(frozen=True, slots=True)
class FunctionSource(_Numbered):
    """A Python function in a process of its own; Hugging Face datasets are read by one of ours."""

    option: str
    """The recipe's key that names it."""
    function: str
    args: Mapping[str, Any]
    root: Path
    environ: Mapping[str, str]

    def rows(self, note: Note) -> Iterator[tuple[int, Any]]:
        try:
            yield from loader.rows(self.function, self.args, note, self.root, self.environ)
        except loader.LoaderFailed as error:
            raise Unreadable(f"{self.key}.{self.option}", str(error)) from error


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a source may need beside its config."""

    locate: Locate
    root: Path
    """The folder that Python functions are looked up from."""
    environ: Mapping[str, str]


def source_of(name: str, config: SplitConfig, around: Surroundings) -> Source:
    """The source of split ``name``. Raises Unreadable; Missing for a package or variable that this machine lacks."""
    key = f"task.data.{name}"
    if config.path is not None:
        path = Path(config.path)
        message, hint = complaint(path)
        if message:
            raise Unreadable(key, message, hint)
        if is_saved_dataset(path):
            return _huggingface(name, config, around, str(path), "path")
        if path.suffix.lower() == ".parquet":
            _need("pyarrow", key)
        return FileSource(path)
    if config.sql is not None:
        return QuerySource(key, around.locate, config.sql, _database(key, config, around.environ))
    if config.python is not None:
        return FunctionSource(key, around.locate, "python", config.python, config.args, around.root, around.environ)
    return _huggingface(name, config, around, config.huggingface or "", "huggingface")


def _huggingface(name: str, config: SplitConfig, around: Surroundings, source: str, option: str) -> Source:
    key = f"task.data.{name}"
    _need(huggingface.PACKAGE, key)
    options = {"subset": config.subset, "split": config.split, "revision": config.revision}
    args = {"name": source, "default": name, "saved": option == "path"}
    args |= {option: value for option, value in options.items() if value is not None}
    function = f"{huggingface.__name__}:rows"
    return FunctionSource(key, around.locate, option, function, args, around.root, around.environ)


def _database(key: str, config: SplitConfig, environ: Mapping[str, str]) -> str:
    if config.database_env is not None:
        url = environ.get(config.database_env, "")
        if not url:
            raise Missing(f"{key}: {config.database_env} is not set", hint="export the database's URL under it")
    else:
        url = config.database or ""
    if is_url(url):
        _need("sqlalchemy", key)
    else:
        message, hint = complaint(Path(url), rows=False)
        if message:
            raise Unreadable(f"{key}.database", message, hint)
    return url


def _need(package: str, key: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Missing(f"{key}: {package} is not installed", hint=f"pip install {package}")
