"""Finding a callable without importing it: module spec for the file, syntax tree for the name.

An entrypoint is ``module:attr`` or ``path/to/file.py:attr``. Modules are looked up in ``root`` first and then where
Python would look. No code of the user runs, not even a package's ``__init__``: `check` and `plan` are safe and fast.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightningrun.recipe.suggest import did_you_mean, nearest

_MAX_SOURCE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Entrypoint:
    """An entrypoint taken apart. One of ``module`` and ``path`` is empty."""

    module: str
    path: str
    attr: str


class NotFound(Exception):
    """There is no such callable. ``hint`` may say what is near."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def parse(entrypoint: str) -> Entrypoint:
    """Take ``module:attr`` or ``file.py:attr`` apart. Raises ``NotFound`` if it is neither."""
    place, colon, attr = entrypoint.rpartition(":")
    if not colon or not place or not all(part.isidentifier() for part in attr.split(".")):
        raise NotFound(f"'{entrypoint[:80]}' is not of the form module:attr or path/file.py:attr")
    if place.endswith(".py") or "/" in place:
        return Entrypoint("", place, attr)
    if not all(part.isidentifier() for part in place.split(".")):
        raise NotFound(f"'{place[:80]}' is not the name of a module", "write module:attr or path/file.py:attr")
    return Entrypoint(place, "", attr)


def check(entrypoint: str, root: Path) -> None:
    """Raises ``NotFound`` if there is no such callable, as far as can be seen without running anything."""
    wanted = parse(entrypoint)
    file = _find(wanted, root)
    if file is None:
        return
    names = _names(file)
    first = wanted.attr.split(".")[0]
    if names is None or first in names:
        if names is not None and not names[first]:
            raise NotFound(f"'{first}' in {_shown(file, root)} is not callable")
        return
    callables = [name for name, may_be_called in names.items() if may_be_called]
    near = did_you_mean(first, [n for n in callables if not n.startswith("_")])
    raise NotFound(f"{_shown(file, root)} defines no '{first}'", near)


def source_file(entrypoint: str, root: Path) -> Path | None:
    """The Python file that holds an entrypoint, or None: not found, or not Python source."""
    try:
        return _find(parse(entrypoint), root)
    except NotFound:
        return None


def _find(wanted: Entrypoint, root: Path) -> Path | None:
    """The source file; None for a module that has none (compiled). Raises ``NotFound``."""
    if wanted.path:
        path = root / wanted.path
        if path.is_file():
            return path
        siblings = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise NotFound(f"no file '{wanted.path}'", did_you_mean(path.name, siblings))
    spec = _spec(wanted.module, root)
    if spec.origin is None or not spec.origin.endswith(".py"):
        if spec.loader is None:
            raise NotFound(f"'{wanted.module}' is a folder without __init__.py, not a module")
        return None
    return Path(spec.origin)


def _spec(module: str, root: Path) -> importlib.machinery.ModuleSpec:
    parts = module.split(".")
    places: Sequence[str] = [str(root.resolve())]
    spec: importlib.machinery.ModuleSpec | None = None
    for depth, part in enumerate(parts):
        spec = importlib.machinery.PathFinder.find_spec(part, list(places))
        if spec is None and depth == 0:
            spec = _installed(part)
            places = [*places, *sys.path]
        if spec is None:
            near = nearest(part, _modules_in(places))
            hint = f"did you mean '{'.'.join([*parts[:depth], near])}'?" if near else ""
            raise NotFound(f"no module '{'.'.join(parts[: depth + 1])}'", hint)
        if depth < len(parts) - 1:
            if spec.submodule_search_locations is None:
                raise NotFound(f"'{'.'.join(parts[: depth + 1])}' is a module, not a package")
            places = list(spec.submodule_search_locations)
    assert spec is not None
    return spec


def _installed(top: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _modules_in(places: Sequence[str]) -> list[str]:
    return [found.name for found in pkgutil.iter_modules(list(places)) if not found.name.startswith("_")]


def _shown(file: Path, root: Path) -> str:
    try:
        return str(file.resolve().relative_to(root.resolve()))
    except ValueError:
        return str(file)


def _names(file: Path) -> dict[str, bool] | None:
    """Top-level names of a source file -> whether each may be called. None if they cannot all be known."""
    try:
        if file.stat().st_size > _MAX_SOURCE_BYTES:
            return None
        tree = ast.parse(file.read_bytes(), str(file))
    except SyntaxError as error:
        raise NotFound(f"{file.name}:{error.lineno}: {error.msg}") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise NotFound(f"cannot read {file.name}: {error}") from None
    names = dict(_bound(tree.body))
    return None if "*" in names or "__getattr__" in names else names


def _bound(body: Sequence[ast.stmt]) -> Iterator[tuple[str, bool]]:
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name, True
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                yield (alias.asname or alias.name).split(".")[0], True
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            called = not isinstance(
                statement.value, (ast.Constant, ast.Dict, ast.List, ast.Set, ast.Tuple, ast.JoinedStr)
            )
            for target in targets:
                yield from ((n.id, called) for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
            yield from _bound(_blocks(statement))


def _blocks(statement: ast.If | ast.Try | ast.With | ast.For | ast.While) -> list[ast.stmt]:
    inner = [*statement.body, *getattr(statement, "orelse", ()), *getattr(statement, "finalbody", ())]
    for handler in getattr(statement, "handlers", ()):
        inner += handler.body
    return inner
