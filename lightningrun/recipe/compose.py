"""Composition: `extends`, overrides, and which of them set a value.

Layers are laid over one another in order: the files that a recipe extends, from left to right, then the recipe, then
each override. Mappings merge by key, everything else replaces. Every layer's setting of every key is remembered.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightningrun.errors import Problem
from lightningrun.recipe.leaks import is_key_like
from lightningrun.recipe.source import MAX_BYTES, Mark, Node, Refused, parse, read_text
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.recipe.trees import KeyPath, dotted
from lightningrun.secrets import MASK, Masker

_MAX_FILES = 32
_NAMED_BLOCKS = frozenset[KeyPath]((("stages",), ("models",), ("agent", "prompts")))


@dataclass(frozen=True, slots=True)
class Setting:
    """One layer's setting of one key. ``value`` is as written, before ``${...}`` is filled in."""

    file: str
    """The file as messages call it, or ``override 'a.b=1'``."""
    line: int
    column: int
    key_line: int
    key_column: int
    value: Any
    base: Path
    """The folder that relative paths in this layer start from."""

    @property
    def place(self) -> str:
        return Problem("", self.file, self.line, self.column).where

    def __str__(self) -> str:
        return f"{self.place}: {self.value!r}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A file or an override, as settings name it."""

    file: str
    base: Path
    located: bool = True

    def setting(self, key: Mark, value: Mark, plain: Any) -> Setting:
        at = (*value, *key) if self.located else (0, 0, 0, 0)
        return Setting(self.file, *at, plain, self.base)


@dataclass(slots=True)
class Composition:
    """The layers of a recipe laid over one another, and the problems met while reading them."""

    name: str = ""
    """What messages call the recipe as a whole."""
    tree: dict[str, Any] = field(default_factory=dict)
    settings: dict[KeyPath, list[Setting]] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def setting(self, path: KeyPath) -> Setting | None:
        """The last setting of ``path``, or of its nearest ancestor that was set."""
        while path not in self.settings:
            if not path:
                return None
            path = path[:-1]
        return self.settings[path][-1]

    def problem(self, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem located at the value of ``path`` (or at its key), else at the nearest ancestor."""
        found = self.setting(path)
        if found is None:
            return Problem(message, self.name, hint=hint)
        if at_key or path not in self.settings:
            return Problem(message, found.file, found.key_line, found.key_column, hint)
        return Problem(message, found.file, found.line, found.column, hint)

    def fresh(self) -> Composition:
        """The same layers without the problems."""
        return replace(self, problems=[])

    def note(self, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> None:
        self.problems.append(self.problem(path, message, hint, at_key=at_key))

    def add(self, node: Node, layer: Layer) -> None:
        """Lay one more mapping over the tree."""
        self.record((), node, node.mark, layer)
        self.tree = overlay(self.tree, node.plain())

    def record(self, path: KeyPath, node: Node, key: Mark, layer: Layer) -> None:
        """Remember that ``layer`` sets ``path``, and all that lies below it, to ``node``."""
        before = self.settings.get(path)
        if before and isinstance(before[-1].value, (dict, list)) and not isinstance(node.value, dict):
            for below in [other for other in self.settings if len(other) > len(path) and other[: len(path)] == path]:
                del self.settings[below]
        self.settings.setdefault(path, []).append(layer.setting(key, node.mark, node.plain() if path else None))
        if isinstance(node.value, dict):
            for name, (mark, inner) in node.value.items():
                self.record((*path, name), inner, mark, layer)
        elif isinstance(node.value, list):
            for index, inner in enumerate(node.value):
                self.record((*path, index), inner, inner.mark, layer)


def overlay(below: Any, above: Any) -> Any:
    """``above`` laid over ``below``: mappings merge by key, everything else (lists too) replaces."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    merged = dict(below)
    for key, value in above.items():
        merged[key] = overlay(below[key], value) if key in below else value
    return merged


def shown_path(path: Path) -> str:
    """``path`` relative to the working directory if it lies under it, else absolute."""
    absolute = Path(os.path.abspath(path))
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)


def compose_file(path: Path, composition: Composition) -> None:
    """Read ``path`` and what it extends into ``composition``. Raises ``Refused`` if ``path`` itself cannot be read."""
    _Extender(composition).visit(path, None)


def compose_text(text: str, name: str, base: Path, composition: Composition, limit: int = MAX_BYTES) -> None:
    """As ``compose_file`` for a text that messages call ``name`` and whose relative paths start from ``base``."""
    if len(text) > limit or len(text.encode("utf-8", "replace")) > limit:
        raise Refused(Problem(f"this recipe is larger than {limit >> 10} KiB", name))
    _Extender(composition).layer(text, name, base, ())


class _Extender:
    def __init__(self, composition: Composition) -> None:
        self.composition = composition
        self.files = 0

    def visit(self, path: Path, from_setting: tuple[str, Node] | None, above: tuple[Path, ...] = ()) -> None:
        path = Path(os.path.abspath(path))
        self.files += 1
        if self.files > _MAX_FILES:
            raise Refused(Problem(f"extends more than {_MAX_FILES} files", shown_path(path)))
        try:
            text = read_text(path, shown_path(path))
        except Refused as refused:
            if from_setting is None:
                raise
            file, node = from_setting
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            message = f"extends: {shown_path(path)}: {refused.problem.message}"
            hint = "" if path.exists() else did_you_mean(path.name, siblings)
            raise Refused(Problem(message, file, node.mark.line, node.mark.column, hint)) from None
        if path not in self.composition.sources:
            self.composition.sources.append(path)
        self.layer(text, shown_path(path), path.parent, (*above, path))

    def layer(self, text: str, file: str, base: Path, above: tuple[Path, ...]) -> None:
        problems = self.composition.problems
        node = parse(text, file, problems)
        if not isinstance(node.value, dict):
            empty = node.value is None
            raise Refused(Problem("this recipe is empty" if empty else "a recipe is a mapping of keys", file, 1, 1))
        extends = node.value.pop("extends", None)
        for parent in self._parents(extends[1], file) if extends else ():
            path = Path(os.path.abspath(base / parent.value))
            if path in above:
                message = f"extends: {shown_path(path)} extends itself"
                problems.append(Problem(message, file, parent.mark.line, parent.mark.column))
                continue
            try:
                self.visit(path, (file, parent), above)
            except Refused as refused:
                problems.append(refused.problem)
        self.composition.add(node, Layer(file, base))

    def _parents(self, node: Node, file: str) -> Iterator[Node]:
        for entry in node.value if isinstance(node.value, list) else [node]:
            if isinstance(entry.value, str) and entry.value and "${" not in entry.value:
                yield entry
            else:
                message = "extends: must be a path, or a list of paths"
                self.composition.problems.append(Problem(message, file, entry.mark.line, entry.mark.column))


def apply_overrides(composition: Composition, overrides: Sequence[str], masker: Masker) -> None:
    """Lay each ``a.b.c=value`` over the tree, in order."""
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        place = f"override '{_shown(key, override, masker)}'"
        if not equals or not key or not all(key.split(".")):
            composition.problems.append(Problem("not of the form key=value", place, hint="as in stages.apo.rounds=3"))
            continue
        found: list[Problem] = []
        try:
            node = parse(text, place, found)
        except Refused as refused:
            composition.problems.append(Problem(refused.problem.message, place))
            continue
        composition.problems += [Problem(problem.message, place, hint=problem.hint) for problem in found]
        if not found:
            _lay(composition, key.split("."), node, place)


def _shown(key: str, override: str, masker: Masker) -> str:
    return f"{key}={MASK}" if is_key_like(key.split(".")[-1]) else masker.mask(override)


def _lay(composition: Composition, keys: list[str], node: Node, place: str) -> None:
    path: KeyPath = ()
    below: Any = composition.tree
    containers: list[Any] = []
    for depth, key in enumerate(keys):
        if isinstance(below, list):
            if not key.isdecimal() or int(key) >= len(below):
                composition.problems.append(Problem(f"'{dotted(path)}' has no item {key!r}", place))
                return
            containers.append(below)
            path, below = (*path, int(key)), below[int(key)]
            continue
        known = below if isinstance(below, dict) else {}
        if key not in known and (path[:1] == ("vars",) or (path in _NAMED_BLOCKS and depth < len(keys) - 1)):
            message = f"no '{key}' in '{dotted(path)}'"
            composition.problems.append(Problem(message, place, hint=did_you_mean(key, known)))
            return
        containers.append(below)
        path, below = (*path, key), known.get(key)
    value = node.plain()
    for container, step in zip(reversed(containers), reversed(path), strict=True):
        if isinstance(container, list) and isinstance(step, int):
            value = [*container[:step], overlay(container[step], value), *container[step + 1 :]]
        else:
            value = {step: value}
    layer = Layer(place, Path.cwd(), located=False)
    for length in range(1, len(path)):
        composition.settings.setdefault(path[:length], [layer.setting(Mark(0, 0), Mark(0, 0), {})])
    composition.record(path, node, node.mark, layer)
    composition.tree = overlay(composition.tree, value)
