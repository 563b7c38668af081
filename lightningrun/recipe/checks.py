"""Everything about a recipe that can be known to be wrong before anything runs or is paid for."""

from __future__ import annotations

import builtins
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightningrun.errors import Problem
from lightningrun.recipe import locate, when
from lightningrun.recipe.compose import Composition
from lightningrun.recipe.model import Recipe, StageConfig
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.recipe.trees import KeyPath, block, dotted
from lightningrun.types import ArtifactKind

if TYPE_CHECKING:
    from lightningrun.recipe.load import LoadedRecipe

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PACKAGES = {"openai": "aiohttp", "litellm": "litellm"}
"""Provider -> the package it needs."""


class StageType(Protocol):
    """What the recipe needs to know of a stage type."""

    @property
    def type(self) -> str: ...
    @property
    def config(self) -> builtins.type[StageConfig]: ...
    @property
    def consumes(self) -> Mapping[str, ArtifactKind]: ...
    @property
    def produces(self) -> Mapping[str, ArtifactKind]: ...


Specs = Mapping[str, StageType]


@dataclass(frozen=True, slots=True)
class Report:
    """What is wrong with a loaded recipe as it meets this machine."""

    problems: tuple[Problem, ...]
    """Mistakes of the recipe (exit 2)."""
    missing: tuple[Problem, ...]
    """Keys, packages and programs that this machine lacks (exit 5)."""
    warnings: tuple[str, ...] = ()


def check(
    loaded: LoadedRecipe, specs: Specs, *, root: Path | None = None, environ: Mapping[str, str] | None = None
) -> Report:
    """The checks of what lies around a recipe. ``root`` (default: cwd) is where entrypoints are looked up from."""
    composition = replace(loaded.composition, problems=[])
    check_callables(loaded.resolved, composition, root or Path.cwd(), set())
    check_stages(loaded.resolved, loaded.recipe.stages, specs, composition, set())
    missing = _missing(loaded.recipe, composition, os.environ if environ is None else environ)
    return Report(tuple(composition.problems), tuple(missing))


def _missing(recipe: Recipe, composition: Composition, environ: Mapping[str, str]) -> Iterator[Problem]:
    for role, model in recipe.models.items():
        if model.api_key_env is not None and not environ.get(model.api_key_env):
            path = ("models", role, "api_key_env")
            yield composition.problem(path, f"models.{role}: {model.api_key_env} is not set", "export the key under it")
        package = _PACKAGES.get(model.provider)
        if package is not None and importlib.util.find_spec(package) is None:
            path = ("models", role, "provider")
            yield composition.problem(path, f"models.{role}: {package} is not installed", f"pip install {package}")
    command = recipe.agent.command
    if command is not None and shutil.which(command[0]) is None:
        yield composition.problem(("agent", "command"), f"agent.command: there is no program '{command[0]}'")


def check_names(tree: Mapping[str, Any], composition: Composition) -> None:
    """Names that become file names or parts of dotted keys."""
    name = tree.get("name")
    if isinstance(name, str) and name and not _RECIPE_NAME.fullmatch(name):
        composition.note(
            ("name",), f"name: {name[:80]!r} cannot be a file name", "use letters, digits, '.', '_' and '-'"
        )
    for path in (("stages",), ("models",), ("agent", "prompts"), ("task", "data")):
        for key in block(tree, *path):
            if not _NAME.fullmatch(key):
                message = f"{dotted(path)}: {key[:80]!r} cannot be a name here"
                composition.note((*path, key), message, "use letters, digits, '_' and '-'", at_key=True)


def check_callables(tree: Mapping[str, Any], composition: Composition, root: Path, wrong: set[KeyPath]) -> None:
    """Entrypoint, reward function and python models exist, seen without importing them."""
    places: list[tuple[KeyPath, Any]] = [
        (("agent", "entrypoint"), block(tree, "agent").get("entrypoint")),
        (("reward", "function"), block(tree, "reward").get("function")),
    ]
    for role, model in block(tree, "models").items():
        if isinstance(model, dict) and model.get("provider") == "python":
            places.append((("models", role, "name"), model.get("name")))
    for path, entrypoint in places:
        if isinstance(entrypoint, str) and entrypoint and path not in wrong:
            try:
                locate.check(entrypoint, root)
            except locate.NotFound as error:
                composition.note(path, f"{dotted(path)}: {error.message}", error.hint)


def check_stages(
    tree: Mapping[str, Any],
    configs: Mapping[str, StageConfig],
    specs: Specs,
    composition: Composition,
    wrong: set[KeyPath],
) -> None:
    """What stages say of each other, of models and of the data. ``wrong`` paths have been reported already."""
    _Pipeline(tree, specs, composition, wrong).check(configs)


class _Pipeline:
    def __init__(self, tree: Mapping[str, Any], specs: Specs, composition: Composition, wrong: set[KeyPath]) -> None:
        self.composition = composition
        self.wrong = wrong
        self.specs = specs
        self.models = block(tree, "models")
        self.splits = block(tree, "task", "data")
        self.stages = block(tree, "stages")
        self.order = list(self.stages)

    def check(self, configs: Mapping[str, StageConfig]) -> None:
        if self.models and "policy" not in self.models and configs:
            message = "missing key 'policy' in 'models': the role that the agent talks to"
            self.composition.note(("models",), message, did_you_mean("policy", self.models), at_key=True)
        for stage, raw in self.stages.items():
            if not isinstance(raw, dict):
                continue
            self._when(stage, raw.get("when"))
            self._inputs(stage, raw)
            config = configs.get(stage)
            if config is not None:
                self._named(stage, config)

    def _note(self, path: KeyPath, message: str, hint: str = "") -> None:
        if path not in self.wrong:
            self.composition.note(path, f"{dotted(path)}: {message}", hint)

    def _type(self, stage: str) -> StageType | None:
        raw = self.stages.get(stage)
        kind = raw.get("type") if isinstance(raw, dict) else None
        return self.specs.get(kind) if isinstance(kind, str) else None

    def _earlier(self, stage: str) -> list[str]:
        return self.order[: self.order.index(stage)]

    def _order_problem(self, stage: str, other: str) -> str:
        if other == stage:
            return f"stage '{stage}' cannot read itself"
        return f"stage '{other}' runs later" if other in self.order and other not in self._earlier(stage) else ""

    def _when(self, stage: str, text: Any) -> None:
        if not isinstance(text, str):
            return
        path = ("stages", stage, "when")
        try:
            condition = when.parse(text)
        except ValueError as error:
            self._note(path, str(error))
            return
        other = condition.stage
        if other is None:
            return
        if other not in self.order:
            self._note(path, f"no stage '{other}'", did_you_mean(other, self._earlier(stage)))
        elif problem := self._order_problem(stage, other):
            self._note(path, problem)

    def _inputs(self, stage: str, raw: Mapping[str, Any]) -> None:
        spec = self._type(stage)
        inputs = raw.get("inputs")
        if spec is None or not isinstance(inputs, dict):
            return
        for name, reference in inputs.items():
            path = ("stages", stage, "inputs", name)
            if name not in spec.consumes:
                hint = did_you_mean(name, spec.consumes) or "it takes no inputs"
                message = f"unknown key '{name}' in 'stages.{stage}.inputs'"
                self.composition.note(path, message, hint, at_key=True)
            elif isinstance(reference, str):
                self._input(stage, path, reference, spec.consumes[name])

    def _input(self, stage: str, path: KeyPath, reference: str, kind: ArtifactKind) -> None:
        source, dot, output = reference.partition(".")
        fitting = list(self._outputs(stage, kind))
        near = did_you_mean(reference, fitting) or f"no earlier stage gives {kind.value}"
        if not dot or not output:
            self._note(path, f"'{reference}' is not of the form <stage>.<output>", near)
        elif source not in self.order:
            self._note(path, f"no stage '{source}'", near)
        elif problem := self._order_problem(stage, source):
            self._note(path, problem)
        elif (spec := self._type(source)) is not None:
            if output not in spec.produces:
                own = [f"{source}.{name}" for name in spec.produces]
                self._note(path, f"stage '{source}' has no output '{output}'", did_you_mean(reference, own))
            elif spec.produces[output] is not kind:
                self._note(path, f"'{reference}' is {spec.produces[output].value}, and {kind.value} is needed", near)

    def _outputs(self, stage: str, kind: ArtifactKind) -> Iterator[str]:
        for earlier in reversed(self._earlier(stage)):
            spec = self._type(earlier)
            for name, produced in spec.produces.items() if spec else ():
                if produced is kind:
                    yield f"{earlier}.{name}"

    def _named(self, stage: str, config: StageConfig) -> None:
        for key, role in config.roles():
            if role not in self.models:
                self._note(self._path(stage, key), f"no model '{role}' in 'models'", did_you_mean(role, self.models))
        for key, split in config.splits():
            if self.splits and split not in self.splits:
                self._note(
                    self._path(stage, key), f"no split '{split}' in 'task.data'", did_you_mean(split, self.splits)
                )
        for key, other in config.references():
            if other not in self.order:
                self._note(self._path(stage, key), f"no stage '{other}'", did_you_mean(other, self._earlier(stage)))
            elif problem := self._order_problem(stage, other):
                self._note(self._path(stage, key), problem)

    @staticmethod
    def _path(stage: str, key: str) -> KeyPath:
        return ("stages", stage, *(int(part) if part.isdecimal() else part for part in key.split(".")))
