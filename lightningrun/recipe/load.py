"""From a file and overrides to a checked recipe, or to one error with everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightningrun.errors import Problem, RecipeError, UsageError
from lightningrun.files import digest
from lightningrun.recipe import checks, data_files, leaks
from lightningrun.recipe.checks import Specs
from lightningrun.recipe.compose import (
    Composition,
    Setting,
    apply_overrides,
    compose_file,
    compose_text,
    shown_path,
    siblings,
)
from lightningrun.recipe.dump import to_yaml
from lightningrun.recipe.interpolate import resolve
from lightningrun.recipe.model import Recipe, StageConfig
from lightningrun.recipe.source import Mark, Refused, read_text
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.recipe.trees import KeyPath, block, dotted, leaves, put, split_path
from lightningrun.recipe.validate import validate
from lightningrun.secrets import Masker

_FROZEN_BYTES = 8 << 20
"""A resolved recipe holds the text of its prompts, so it may be larger than one that people write."""
_PROMPT_BYTES = 256 << 10
_NOT_CONTENT = {"description", "vars", "tracking", "execution"}
_MODEL_NOT_CONTENT = {"note", "concurrency", "timeout_s", "deadline_s", "retries", "price", "api_key_env"}


_DEFAULT = Setting("default", Mark(0, 0), Mark(0, 0), None, Path())


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe that is right as far as can be known without running it, and where each of its values came from."""

    recipe: Recipe
    path: Path
    resolved: dict[str, Any]
    """Plain values: ``${...}`` filled in, prompt files read, data paths absolute. Needs no other file but the data."""
    overrides: tuple[str, ...]
    sources: tuple[Path, ...]
    """Every recipe file that was read, the recipe's own first."""
    digest: str
    """Of what can change a result: not of descriptions, tracking, workers or where files lie."""
    composition: Composition

    def why(self, key: str) -> list[Setting]:
        """Every layer that set ``key``, in order: the last one won. One ``default`` if none did.

        Raises UsageError if the recipe has no such key.
        """
        path, value = self._find(key)
        settings = self.composition.settings
        if path[-1] == "text" and (*path[:-1], "file") in settings:
            path = (*path[:-1], "file")
        while path not in settings and isinstance(settings.get(path[:-1], [_DEFAULT])[-1].value, str):
            path = path[:-1]  # part of what an interpolation, or a bare text, put here as a whole
        return list(settings.get(path) or [replace(_DEFAULT, value=value)])

    def value(self, key: str) -> Any:
        """The value of a dotted key, defaults included. Raises UsageError if the recipe has no such key."""
        return self._find(key)[1]

    def problem(self, key: str, message: str, hint: str = "") -> Problem:
        """A problem located where the recipe sets ``key`` (dotted), or the nearest block around it."""
        return self.composition.problem(split_path(key), message, hint)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, which loads as the same recipe."""
        return to_yaml(self.resolved)

    def _find(self, key: str) -> tuple[KeyPath, Any]:
        path: KeyPath = ()
        value: Any = self.recipe.model_dump(mode="json")
        for part in key.split("."):
            step: str | int = int(part) if isinstance(value, list) and part.isdecimal() else part
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                known = [dotted((*path, name)) for name in value] if isinstance(value, dict) else []
                raise UsageError(f"no key '{key}' in the recipe", hint=did_you_mean(key, known)) from None
            path = (*path, step)
        return path, value


def load(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    specs: Specs,
    environ: Mapping[str, str] | None = None,
    root: Path | None = None,
) -> LoadedRecipe:
    """Read, compose, resolve and check the recipe at ``path``.

    ``overrides`` are ``a.b.c=value``. ``specs`` are the stage types by name. ``environ`` (default: the process's) tells
    which values are secret; ``${oc.env:NAME}`` always reads the process's own. ``root`` (default: the working
    directory) is where entrypoints are looked up from. Raises RecipeError with every problem.
    """
    path = Path(path)
    loading = _Loading(Composition(name=shown_path(path)), specs, environ, root)
    return loading.run(path, overrides, lambda: compose_file(path, loading.composition))


def load_text(
    text: str,
    name: str,
    overrides: Sequence[str] = (),
    *,
    specs: Specs,
    environ: Mapping[str, str] | None = None,
    root: Path | None = None,
    base: Path | None = None,
) -> LoadedRecipe:
    """As ``load``, for a text that messages call ``name``; its relative paths start from ``base`` (default: root)."""
    if len(text.encode("utf-8", "replace")) > _FROZEN_BYTES:
        raise RecipeError([Problem(f"this recipe is larger than {_FROZEN_BYTES >> 10} KiB", name)])
    loading = _Loading(Composition(name=name), specs, environ, root)
    folder = base or loading.root
    return loading.run(Path(name), overrides, lambda: compose_text(text, name, folder, loading.composition))


class _Loading:
    """The steps of one load. Each adds its problems to the composition and works with what the last one left."""

    def __init__(
        self, composition: Composition, specs: Specs, environ: Mapping[str, str] | None, root: Path | None
    ) -> None:
        self.composition = composition
        self.specs = specs
        self.root = root or Path.cwd()
        self.masker = Masker.from_environ(os.environ if environ is None else environ)
        self.wrong: set[KeyPath] = set()
        """Paths that have been complained of."""

    def run(self, path: Path, overrides: Sequence[str], compose: Callable[[], None]) -> LoadedRecipe:
        composition = self.composition
        try:
            compose()
        except Refused as refused:
            raise RecipeError([*self._sorted(), refused.problem]) from None
        apply_overrides(composition, overrides, self.masker)
        self.wrong |= leaks.find(composition.tree, composition.note, self.masker)
        tree, failed = resolve(composition.tree, composition.note)
        self.wrong |= failed
        self.wrong |= leaks.find_leaked(composition.tree, tree, composition.note, self.masker)
        self._unset(tree)
        self._paths(tree)
        recipe = self._recipe(tree)
        if composition.problems or recipe is None:
            data_files.check_data(tree, composition, self.wrong)  # alone, it is the dataset's to say
            raise RecipeError(self._sorted())
        tree.pop("vars", None)
        sources = tuple(dict.fromkeys(composition.sources))
        return LoadedRecipe(recipe, path, tree, tuple(overrides), sources, _digest(recipe), composition)

    def _unset(self, tree: dict[str, Any]) -> None:
        """Defaults that are made of other values, and values that a base recipe left to be set."""
        for path, value in leaves(tree):
            if value == "???":
                self.wrong.add(path)
                self.composition.note(path, f"{dotted(path)}: left to be set ('???')", "set it here or as an override")
        name, tracking = tree.get("name"), tree.get("tracking", {})
        if isinstance(name, str) and isinstance(tracking, dict):
            tree["tracking"] = {"experiment": name, **tracking}

    def _paths(self, tree: dict[str, Any]) -> None:
        """Make data paths absolute and read prompt files, relative to the layer that named them."""
        for path, name, _ in list(data_files.named_files(tree)):
            if path not in self.wrong:
                put(tree, path, str(self._resolve_path(path, name)))
        python = block(tree, "agent").get("python")
        if isinstance(python, str) and python:
            put(tree, ("agent", "python"), str(self._resolve_path(("agent", "python"), python)))
        prompts = block(tree, "agent", "prompts")
        for name, prompt in prompts.items():
            if isinstance(prompt, str):
                prompts[name] = {"text": prompt}
            elif isinstance(prompt, dict):
                self._read_prompt(("agent", "prompts", name), prompt)
        for stage in block(tree, "stages"):
            for name, prompt in block(tree, "stages", stage, "coach_prompts").items():
                if isinstance(prompt, dict):
                    self._read_prompt(("stages", stage, "coach_prompts", name), prompt)

    def _resolve_path(self, path: KeyPath, name: str) -> Path:
        setting = self.composition.setting(path)
        base = setting.base if setting else Path.cwd()
        return Path(os.path.abspath(base / os.path.expanduser(name)))

    def _read_prompt(self, path: KeyPath, prompt: dict[str, Any]) -> None:
        name = prompt.get("file")
        if not isinstance(name, str) or prompt.get("text") is not None or (*path, "file") in self.wrong:
            return
        file = self._resolve_path((*path, "file"), name)
        try:
            text = read_text(file, shown_path(file), _PROMPT_BYTES, "prompt")
            if "\0" in text:
                raise Refused(Problem("holds a NUL character", shown_path(file)))
            if self.masker.mask(text) != text:
                raise Refused(Problem("holds a secret, or what looks like one", shown_path(file)))
        except Refused as refused:
            hint = refused.problem.hint if file.exists() else did_you_mean(file.name, siblings(file))
            message = f"{dotted(path)}.file: {refused.problem.where}: {refused.problem.message}"
            self.composition.note((*path, "file"), message, hint)
            text = "unreadable"
        del prompt["file"]
        prompt["text"] = text

    def _recipe(self, tree: dict[str, Any]) -> Recipe | None:
        composition = self.composition
        self._version(tree)
        raw_stages = tree.get("stages")
        rest = {key: value for key, value in tree.items() if key != "stages" or not isinstance(value, dict)}
        recipe = validate(Recipe, rest, (), composition, self.masker, self.wrong)
        configs = {stage: self._stage(stage, raw) for stage, raw in block(tree, "stages").items()}
        stages = {stage: config for stage, config in configs.items() if config is not None}
        if raw_stages == {} or "stages" not in tree:
            composition.note(("stages",), "missing key 'stages' in the recipe: at least one stage", at_key=True)
        checks.check_names(tree, composition)
        checks.check_callables(tree, composition, self.root, self.wrong)
        checks.check_stages(tree, stages, self.specs, composition, self.wrong)
        return recipe.model_copy(update={"stages": stages}) if recipe is not None else None

    def _version(self, tree: dict[str, Any]) -> None:
        version = tree.get("version", 1)
        if version != 1 or isinstance(version, bool):
            self.wrong.add(("version",))
            hint = "this lightningrun reads version 1"
            if isinstance(version, int) and version > 1:
                hint += ": upgrade lightningrun, or rewrite the recipe in version 1"
            self.composition.note(("version",), f"version: no recipe language '{version}'", hint)

    def _stage(self, stage: str, raw: Any) -> StageConfig | None:
        path: KeyPath = ("stages", stage)
        kind = raw.get("type") if isinstance(raw, dict) else None
        if not isinstance(raw, dict):
            self.composition.note(path, f"{dotted(path)}: must be a mapping with a 'type'")
        elif not isinstance(kind, str):
            message = (
                f"missing key 'type' in '{dotted(path)}'" if kind is None else f"{dotted(path)}.type: must be text"
            )
            self.composition.note(path, message, f"it is one of {', '.join(self.specs)}", at_key=True)
        elif kind in self.specs:
            return validate(self.specs[kind].config, raw, path, self.composition, self.masker, self.wrong)
        elif (*path, "type") not in self.wrong:
            message = f"stages.{stage}.type: no stage type '{kind}'"
            self.composition.note((*path, "type"), message, did_you_mean(kind, self.specs))
        return None

    def _sorted(self) -> list[Problem]:
        """Problems by place: the recipe's own file, then those that it extends, then overrides."""
        files = dict.fromkeys(shown_path(source) for source in self.composition.sources)
        rank = {file: index for index, file in enumerate(files)}
        unique = dict.fromkeys(self.composition.problems)
        return sorted(unique, key=lambda p: (p.file.startswith("override"), rank.get(p.file, -1), p.line, p.column))


def _digest(recipe: Recipe) -> str:
    content = recipe.model_dump(mode="json", exclude=_NOT_CONTENT)
    for source in content["task"]["data"].values():
        source |= {key: Path(source[key]).name for key in ("path", "database") if source[key] is not None}
    if content["agent"]["python"] is not None:
        content["agent"]["python"] = Path(content["agent"]["python"]).name
    for model in content["models"].values():
        for name in _MODEL_NOT_CONTENT:
            model.pop(name, None)
    content["stages"] = [[stage, options] for stage, options in content["stages"].items()]
    return digest(content)
