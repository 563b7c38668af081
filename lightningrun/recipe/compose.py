"""Composition: `extends`, overrides, and which of them set a value.

Layers are laid over one another in order: the files that a recipe extends, from left to right, then the recipe, then
each override. Mappings merge by key, everything else replaces. Every layer's setting of every key is remembered.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightningrun.errors import Problem
from lightningrun.recipe.leaks import is_key_like
from lightningrun.recipe.source import Mark, Node, Refused, parse, read_text
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.recipe.trees import KeyPath, block, dotted
from lightningrun.secrets import MASK, Masker

_MAX_FILES = 32
_NAMED_BLOCKS = frozenset[KeyPath]((("stages",), ("models",), ("agent", "prompts")))


@dataclass(frozen=True, slots=True)
class Setting:
    """One layer's setting of one key. ``value`` is as written, before ``${...}`` is filled in."""

    file: str
    """The file as messages call it, or ``override 'a.b=1'``."""
    at: Mark
    key: Mark
    value: Any
    base: Path
    """The folder that relative paths in this layer start from."""

    def __str__(self) -> str:
        return f"{Problem('', self.file, *self.at).where}: {self.value!r}"


@dataclass(slots=True)
class Composition:
    """The layers of a recipe laid over one another, and the problems met while reading them."""

    name: str = ""
    """What messages call the recipe as a whole."""
    tree: dict[str, Any] = field(default_factory=dict)
    settings: dict[KeyPath, list[Setting]] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)
    """Every file read, as often as it was."""
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
        mark = found.key if at_key or path not in self.settings else found.at
        return Problem(message, found.file, *mark, hint)

    def note(self, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> None:
        self.problems.append(self.problem(path, message, hint, at_key=at_key))

    def record(self, path: KeyPath, node: Node, key: Mark, file: str, base: Path) -> None:
        """Remember that a layer sets ``path``, and all that lies below it, to ``node``."""
        before = self.settings.get(path)
        if before and isinstance(before[-1].value, (dict, list)) and not isinstance(node.value, dict):
            for below in [other for other in self.settings if len(other) > len(path) and other[: len(path)] == path]:
                del self.settings[below]
        self.settings.setdefault(path, []).append(Setting(file, node.mark, key, node.plain() if path else None, base))
        if isinstance(node.value, dict):
            for name, (mark, inner) in node.value.items():
                self.record((*path, name), inner, mark, file, base)
        elif isinstance(node.value, list):
            for index, inner in enumerate(node.value):
                self.record((*path, index), inner, inner.mark, file, base)


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
    path = Path(os.path.abspath(path))
    text = read_text(path, shown_path(path))
    composition.sources.append(path)
    compose_text(text, shown_path(path), path.parent, composition, (path,))


def compose_text(text: str, file: str, base: Path, composition: Composition, above: tuple[Path, ...] = ()) -> None:
    """As ``compose_file`` for a text that messages call ``file`` and whose relative paths start from ``base``."""
    node = parse(text, file, composition.problems)
    if not isinstance(node.value, dict):
        empty = node.value is None
        raise Refused(Problem("this recipe is empty" if empty else "a recipe is a mapping of keys", file, 1, 1))
    _, extends = node.value.pop("extends", (None, None))
    if extends is not None:
        for parent in extends.value if isinstance(extends.value, list) else [extends]:
            try:
                _extend(parent, file, base, composition, above)
            except Refused as refused:
                composition.problems.append(refused.problem)
    composition.record((), node, node.mark, file, base)
    composition.tree = overlay(composition.tree, node.plain())


def _extend(parent: Node, file: str, base: Path, composition: Composition, above: tuple[Path, ...]) -> None:
    if not isinstance(parent.value, str) or not parent.value or "${" in parent.value:
        raise Refused(Problem("extends: must be a path, or a list of paths", file, *parent.mark))
    path = Path(os.path.abspath(base / parent.value))
    if path in above:
        raise Refused(Problem(f"extends: {shown_path(path)} extends itself", file, *parent.mark))
    if len(composition.sources) >= _MAX_FILES:
        raise Refused(Problem(f"extends: more than {_MAX_FILES} files", file, *parent.mark))
    try:
        text = read_text(path, shown_path(path))
    except Refused as refused:
        hint = "" if path.exists() else did_you_mean(path.name, siblings(path))
        message = f"extends: {shown_path(path)}: {refused.problem.message}"
        raise Refused(Problem(message, file, *parent.mark, hint)) from None
    composition.sources.append(path)
    compose_text(text, shown_path(path), path.parent, composition, (*above, path))


def siblings(path: Path) -> list[str]:
    """Names of the files beside ``path``, for suggestions."""
    return os.listdir(path.parent) if path.parent.is_dir() else []


def apply_overrides(composition: Composition, overrides: Sequence[str], masker: Masker) -> None:
    """Lay each ``a.b.c=value`` over the tree, in order."""
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = key.strip().split(".")
        place = f"override '{f'{key.strip()}={MASK}' if is_key_like(keys[-1]) else masker.mask(override)}'"
        if not equals or not all(keys):
            composition.problems.append(Problem("not of the form key=value", place, hint="as in stages.apo.rounds=3"))
            continue
        before = len(composition.problems)
        try:
            node = parse(text, place, composition.problems, located=False)
        except Refused as refused:
            composition.problems.append(refused.problem)
            continue
        if len(composition.problems) == before:
            _lay(composition, keys, node, place)


def _lay(composition: Composition, keys: list[str], node: Node, place: str) -> None:
    splits = block(composition.tree, "task", "data")
    if keys[:2] == ["task", "data"] and len(keys) > 3 and isinstance(splits.get(keys[2]), str):
        splits[keys[2]] = {"path": splits[keys[2]]}  # task.data.train.limit=9 of a split that is a bare path
    path: KeyPath = ()
    below: Any = composition.tree
    containers: list[Any] = []
    for depth, key in enumerate(keys):
        containers.append(below)
        if isinstance(below, list):
            if not key.isdecimal() or int(key) >= len(below):
                composition.problems.append(Problem(f"'{dotted(path)}' has no item {key!r}", place))
                return
            path, below = (*path, int(key)), below[int(key)]
            continue
        known = below if isinstance(below, dict) else {}
        if key not in known and (path[:1] == ("vars",) or (path in _NAMED_BLOCKS and depth < len(keys) - 1)):
            message = f"no '{key}' in '{dotted(path)}'"
            composition.problems.append(Problem(message, place, hint=did_you_mean(key, known)))
            return
        path, below = (*path, key), known.get(key)
    value = node.plain()
    for container, step in zip(reversed(containers), reversed(path), strict=True):
        if isinstance(container, list) and isinstance(step, int):
            value = [*container[:step], overlay(container[step], value), *container[step + 1 :]]
        else:
            value = {step: value}
    for length in range(1, len(path)):
        composition.settings.setdefault(path[:length], [Setting(place, node.mark, node.mark, {}, Path.cwd())])
    composition.record(path, node, node.mark, place, Path.cwd())
    composition.tree = overlay(composition.tree, value)
