"""Finding a callable without importing it: module spec for the file, syntax tree for the name.

An entrypoint is ``module:attr`` or ``path/to/file.py:attr``. Modules are looked up in ``root`` first and then where
Python would look. No code of the user runs, not even a package's ``__init__``: `check` and `plan` are safe and fast.
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from lightningrun.recipe.suggest import did_you_mean, nearest

_MAX_SOURCE_BYTES = 4 << 20
_NO_CALLABLES = (ast.Constant, ast.Dict, ast.List, ast.Set, ast.Tuple, ast.JoinedStr)


class NotFound(Exception):
    """There is no such callable. ``hint`` may say what is near."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def check(entrypoint: str, root: Path) -> None:
    """Raises ``NotFound`` if there is no such callable, as far as can be seen without running anything."""
    file, attr = _find(entrypoint, root)
    names = _names(file) if file is not None else None
    if file is None or names is None:
        return
    first = attr.split(".")[0]
    if first not in names:
        near = did_you_mean(first, [name for name, called in names.items() if called and not name.startswith("_")])
        raise NotFound(f"{_shown(file, root)} defines no '{first}'", near)
    if not names[first]:
        raise NotFound(f"'{first}' in {_shown(file, root)} is not callable")


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function asks for, read from its source."""

    name: str
    asked: frozenset[str]
    """Names of all its parameters; ``**`` if it takes any."""
    required: tuple[str, ...]
    """Those without a default, in order."""


def signature(entrypoint: str, root: Path) -> Signature | None:
    """None for what only running it could tell: no plain function of its module, one decorated or bound anew."""
    try:
        file, attr = _find(entrypoint, root)
        tree = ast.parse(file.read_bytes()) if file is not None else ast.Module([], [])
    except (NotFound, OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    bindings = [name for name, _ in _bound(tree.body) if name == attr]
    found = next((node for node in _definitions(tree.body) if node.name == attr), None)
    if len(bindings) != 1 or found is None or found.decorator_list:
        return None
    given = found.args
    positional = [*given.posonlyargs, *given.args]
    required = positional[: len(positional) - len(given.defaults)]
    required += [arg for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
    asked = frozenset(arg.arg for arg in (*positional, *given.kwonlyargs))
    return Signature(attr, asked | {"**"} if given.kwarg else asked, tuple(arg.arg for arg in required))


def source_file(entrypoint: str, root: Path) -> Path | None:
    """The Python file that holds an entrypoint, or None: not found, or not Python source."""
    try:
        return _find(entrypoint, root)[0]
    except NotFound:
        return None


def is_local(entrypoint: str, root: Path) -> bool:
    """Whether an entrypoint is a file's or a module's of ``root``, whatever is installed."""
    place = entrypoint.rpartition(":")[0]
    top = place.partition(".")[0]
    return (
        not top.isidentifier() or place.endswith(".py") or PathFinder.find_spec(top, [str(root.resolve())]) is not None
    )


def _find(entrypoint: str, root: Path) -> tuple[Path | None, str]:
    """The source file (None for a module that has none: compiled) and the attribute. Raises ``NotFound``."""
    place, colon, attr = entrypoint.rpartition(":")
    if not colon or not place or not all(part.isidentifier() for part in attr.split(".")):
        raise NotFound(f"'{entrypoint[:80]}' is not of the form module:attr or path/file.py:attr")
    if place.endswith(".py") or "/" in place:
        path = root / place
        if path.is_file():
            return path, attr
        siblings = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise NotFound(f"no file '{place}'", did_you_mean(path.name, siblings))
    if not all(part.isidentifier() for part in place.split(".")):
        raise NotFound(f"'{place[:80]}' is not the name of a module", "write module:attr or path/file.py:attr")
    spec = _spec(place, root)
    if spec.origin is not None and spec.origin.endswith(".py"):
        return Path(spec.origin), attr
    if spec.loader is None:
        raise NotFound(f"'{place}' is a folder without __init__.py, not a module")
    return None, attr


def _spec(module: str, root: Path) -> ModuleSpec:
    done: list[str] = []
    places = [str(root.resolve())]
    spec: ModuleSpec | None = None
    for part in module.split("."):
        if spec is not None:
            if spec.submodule_search_locations is None:
                raise NotFound(f"'{'.'.join(done)}' is a module, not a package")
            places = list(spec.submodule_search_locations)
        spec = PathFinder.find_spec(part, places)
        if spec is None and not done:
            spec = _installed(part)
            places += sys.path
        if spec is None:
            near = nearest(part, _modules_in(places))
            hint = f"did you mean '{'.'.join([*done, near])}'?" if near else ""
            raise NotFound(f"no module '{'.'.join([*done, part])}'", hint)
        done.append(part)
    assert spec is not None
    return spec


def _installed(top: str) -> ModuleSpec | None:
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


def _definitions(body: Sequence[ast.AST]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement
        elif not isinstance(statement, ast.ClassDef):
            yield from _definitions(list(ast.iter_child_nodes(statement)))


def _bound(body: Sequence[ast.AST]) -> Iterator[tuple[str, bool]]:
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name, True
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                yield (alias.asname or alias.name).split(".")[0], True
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            called = not isinstance(statement.value, _NO_CALLABLES)
            for target in targets:
                yield from ((n.id, called) for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(statement, (ast.If, ast.Try, ast.With, ast.For, ast.While, ast.ExceptHandler)):
            yield from _bound(list(ast.iter_child_nodes(statement)))
