"""Everything about a recipe that can be known to be wrong before anything runs or is paid for."""

from __future__ import annotations

import builtins
import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightningrun.errors import Problem
from lightningrun.recipe import locate, when
from lightningrun.recipe.compose import Composition
from lightningrun.recipe.model import Recipe, StageConfig
from lightningrun.recipe.suggest import did_you_mean, nearest
from lightningrun.recipe.trees import KeyPath, block, dotted, split_path
from lightningrun.types import ArtifactKind, Task

if TYPE_CHECKING:
    from lightningrun.recipe.load import LoadedRecipe

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PACKAGES = {
    "openai": ("aiohttp", "aiohttp"),
    "litellm": ("litellm", "litellm"),
    "local": ("torch", "'lightningrun[train]'"),
    "vllm": ("vllm", "-c constraints-gpu.txt 'lightningrun[gpu]' on a machine with a GPU, or attach with base_url"),
}
"""Provider -> the package it needs, and what pip installs it with."""


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
    environ = os.environ if environ is None else environ
    missing = [
        *_missing(loaded.recipe, composition, environ),
        *_check_checkpoints(loaded.recipe, specs, composition, environ),
    ]
    return Report(tuple(composition.problems), tuple(missing))


def _missing(recipe: Recipe, composition: Composition, environ: Mapping[str, str]) -> Iterator[Problem]:
    for role, model in recipe.models.items():
        if model.api_key_env is not None and not environ.get(model.api_key_env):
            path = ("models", role, "api_key_env")
            yield composition.problem(path, f"models.{role}: {model.api_key_env} is not set", "export the key under it")
        package, distribution = _PACKAGES.get(model.provider, ("", ""))
        elsewhere = model.provider == "vllm" and bool(model.base_url or (model.server and model.server.command))
        if package and not elsewhere and importlib.util.find_spec(package) is None:
            path = ("models", role, "provider")
            yield composition.problem(path, f"models.{role}: {package} is not installed", f"pip install {distribution}")
    for stage, config in recipe.stages.items():
        for key, package, extra in config.extras():
            if importlib.util.find_spec(package) is None:
                message = f"{dotted(_path(stage, key))}: {package} is not installed"
                yield composition.problem(_path(stage, key), message, f"pip install 'lightningrun[{extra}]'")
    command = recipe.agent.command
    if command is not None and shutil.which(command[0]) is None:
        yield composition.problem(("agent", "command"), f"agent.command: there is no program '{command[0]}'")


def _check_checkpoints(
    recipe: Recipe, specs: Specs, composition: Composition, environ: Mapping[str, str]
) -> Iterator[Problem]:
    """Models that are served here are on disk, or a stage makes them. Yields those that must be downloaded first."""
    made = [
        f"{stage}.{output}"
        for stage, config in recipe.stages.items()
        if config.type in specs
        for output, kind in specs[config.type].produces.items()
        if kind is ArtifactKind.MODEL
    ]
    home = Path(environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(environ.get("HF_HUB_CACHE") or home / "hub")
    for role, model in recipe.models.items():
        if model.provider not in ("local", "vllm") or model.base_url or model.name in made:
            continue
        folder = Path(model.name).expanduser()
        cached = hub / f"models--{model.name.replace('/', '--')}" / "snapshots"
        if (folder / "config.json").is_file() or (model.name.count("/") == 1 and cached.is_dir()):
            continue
        if _HUB_ID.fullmatch(model.name) and not folder.parent.exists():
            message = f"models.{role}.name: {model.name} is not on this machine"
            yield composition.problem(("models", role, "name"), message, f"hf download {model.name}")
            continue
        message = f"models.{role}.name: {model.name!r} is no checkpoint"
        if folder.is_dir():
            message += ": config.json is not in that folder"
        hint = did_you_mean(model.name, made) or (
            "name a folder with config.json and model.safetensors, a hub model that is downloaded, "
            "or what a stage makes, as in sft.model"
        )
        composition.note(("models", role, "name"), message, hint)


def check_names(tree: Mapping[str, Any], composition: Composition) -> None:
    """Names that become file names or parts of dotted keys."""
    name = tree.get("name")
    if isinstance(name, str) and name and not _RECIPE_NAME.fullmatch(name):
        message = f"name: {name[:80]!r} cannot be a file name"
        composition.note(("name",), message, "use letters, digits, '.', '_' and '-'")
    for path in (("stages",), ("models",), ("agent", "prompts"), ("task", "data")):
        for key in block(tree, *path):
            if not _NAME.fullmatch(key):
                message = f"{dotted(path)}: {key[:80]!r} cannot be a name here"
                composition.note((*path, key), message, "use letters, digits, '_' and '-'", at_key=True)


def check_callables(tree: Mapping[str, Any], composition: Composition, root: Path, wrong: set[KeyPath]) -> None:
    """Entrypoint, reward function, python models and loaders exist, seen without importing them."""
    places: dict[KeyPath, Any] = {
        ("agent", "entrypoint"): block(tree, "agent").get("entrypoint"),
        ("reward", "function"): block(tree, "reward").get("function"),
    }
    for role, model in block(tree, "models").items():
        if isinstance(model, dict) and model.get("provider") == "python":
            places["models", role, "name"] = model.get("name")
    for split, source in block(tree, "task", "data").items():
        if isinstance(source, dict):
            places["task", "data", split, "python"] = source.get("python")
    elsewhere = ("agent", "entrypoint") if block(tree, "agent").get("python") is not None else ()
    for path, entrypoint in places.items():
        if isinstance(entrypoint, str) and entrypoint and path not in wrong:
            try:
                locate.check(entrypoint, root)
            except locate.NotFound as error:
                if path != elsewhere or locate.is_local(entrypoint, root):  # else its own interpreter is asked for it
                    composition.note(path, f"{dotted(path)}: {error.message}", error.hint)


_GIVEN = ("task", "prompts", "llm", "seed", "workdir", "args")
"""Names that every agent and every reward function may ask for."""
_OF_REWARDS = ("output", "trace")


def check_signatures(loaded: LoadedRecipe, rows: Iterable[Task], root: Path) -> list[Problem]:
    """Names that agent and reward function ask for and that neither the rows, ``args`` nor we provide."""
    recipe = loaded.recipe
    rows = list(rows)
    problems = []
    for key, entrypoint, provided in (
        ("agent.entrypoint", recipe.agent.entrypoint, {*_GIVEN, *recipe.agent.args}),
        ("reward.function", recipe.reward.function, {*_GIVEN, *_OF_REWARDS, *recipe.reward.args}),
    ):
        signature = locate.signature(entrypoint, root) if entrypoint is not None else None
        for name in signature.required if signature else ():
            lacking = [row for row in rows if name not in row.fields] if name not in provided else []
            if lacking:
                message, hint = _unprovided(name, lacking, rows, provided)
                problems.append(loaded.problem(key, f"{key}: {entrypoint} asks for '{name}', {message}", hint))
    reward = locate.signature(recipe.reward.function, root)
    if reward is not None and "llm" in reward.asked and "judge" not in recipe.models:
        message = "reward.function: asks for 'llm', and there is no model 'judge' in 'models'"
        problems.append(loaded.problem("reward.function", message, "name the model that judges under models.judge"))
    return problems


def _unprovided(name: str, lacking: list[Task], rows: list[Task], provided: set[str]) -> tuple[str, str]:
    if len(lacking) == len(rows):
        near = nearest(name, [*rows[0].fields, *provided])
        hint = f"did you mean '{near}'?" if near else f"there is {', '.join([*rows[0].fields, *sorted(provided)])}"
        return "which nothing provides", hint
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    which = f"row '{lacking[0].id}' of split '{lacking[0].split}'{more}"
    return f"a field that is not in {which}", "give it a default, or every row that field"


def check_stages(
    tree: Mapping[str, Any],
    configs: Mapping[str, StageConfig],
    specs: Specs,
    composition: Composition,
    wrong: set[KeyPath],
) -> None:
    """What stages say of each other, of models and of the data. ``wrong`` paths have been reported already."""
    models = block(tree, "models")
    if models and "policy" not in models and configs:
        message = "missing key 'policy' in 'models': the role that the agent talks to"
        composition.note(("models",), message, did_you_mean("policy", models), at_key=True)
    pipeline = _Pipeline(tree, specs, composition, wrong)
    for stage, raw in pipeline.stages.items():
        if isinstance(raw, dict):
            pipeline.check(stage, raw, configs.get(stage))


class _Pipeline:
    def __init__(self, tree: Mapping[str, Any], specs: Specs, composition: Composition, wrong: set[KeyPath]) -> None:
        self.composition = composition
        self.wrong = wrong
        self.models = block(tree, "models")
        self.splits = block(tree, "task", "data")
        self.stages = block(tree, "stages")
        self.order = list(self.stages)
        kinds = {stage: raw.get("type") for stage, raw in self.stages.items() if isinstance(raw, dict)}
        self.types = {stage: specs[kind] for stage, kind in kinds.items() if isinstance(kind, str) and kind in specs}

    def check(self, stage: str, raw: Mapping[str, Any], config: StageConfig | None) -> None:
        if isinstance(raw.get("when"), str):
            self._when(stage, raw["when"])
        if isinstance(raw.get("inputs"), dict) and stage in self.types:
            self._inputs(stage, raw["inputs"], self.types[stage].consumes)
        if config is not None:
            self._named(stage, config)

    def _note(self, path: KeyPath, message: str, hint: str = "") -> None:
        if path not in self.wrong:
            self.composition.note(path, f"{dotted(path)}: {message}", hint)

    def _earlier(self, stage: str) -> list[str]:
        return self.order[: self.order.index(stage)]

    def _runs_before(self, stage: str, path: KeyPath, other: str, hint: str | None = None) -> bool:
        """Whether ``stage`` may read ``other``, as ``path`` says; a problem is noted if not."""
        if other in self._earlier(stage):
            return True
        if other not in self.order:
            near = did_you_mean(other, self._earlier(stage)) if hint is None else hint
            self._note(path, f"no stage '{other}'", near)
        elif other == stage:
            self._note(path, f"stage '{stage}' cannot read itself")
        else:
            self._note(path, f"stage '{other}' runs later")
        return False

    def _when(self, stage: str, text: str) -> None:
        path = ("stages", stage, "when")
        try:
            other = when.parse(text).stage
        except ValueError as error:
            self._note(path, str(error))
            return
        if other is not None:
            self._runs_before(stage, path, other)

    def _inputs(self, stage: str, inputs: Mapping[str, Any], consumes: Mapping[str, ArtifactKind]) -> None:
        for name, reference in inputs.items():
            path = ("stages", stage, "inputs", name)
            if name not in consumes:
                hint = did_you_mean(name, consumes) or "it takes no inputs"
                message = f"unknown key '{name}' in 'stages.{stage}.inputs'"
                self.composition.note(path, message, hint, at_key=True)
            elif isinstance(reference, str):
                self._input(stage, path, reference, consumes[name])

    def _input(self, stage: str, path: KeyPath, reference: str, kind: ArtifactKind) -> None:
        source, _, output = reference.partition(".")
        outputs = {
            f"{earlier}.{name}": produced
            for earlier in reversed(self._earlier(stage))
            if earlier in self.types
            for name, produced in self.types[earlier].produces.items()
        }
        fitting = [name for name, produced in outputs.items() if produced is kind]
        near = did_you_mean(reference, fitting) or f"no earlier stage gives {kind.value}"
        if not output:
            self._note(path, f"'{reference}' is not of the form <stage>.<output>", near)
        elif self._runs_before(stage, path, source, near) and source in self.types:
            if reference not in outputs:
                own = [name for name in outputs if name.startswith(f"{source}.")]
                self._note(path, f"stage '{source}' has no output '{output}'", did_you_mean(reference, own))
            elif outputs[reference] is not kind:
                self._note(path, f"'{reference}' is {outputs[reference].value}, and {kind.value} is needed", near)

    def _choice(self, stage: str, path: KeyPath, value: str, kind: ArtifactKind) -> None:
        """What one entry of a grid names; roles are looked up with all others."""
        if "." in value:
            self._input(stage, path, value, kind)
        elif kind is not ArtifactKind.MODEL and value != "agent":
            self._note(path, f"'{value}' is not of the form <stage>.<output>", "`agent` names the recipe's own prompts")

    def _named(self, stage: str, config: StageConfig) -> None:
        for name, values in config.choices().items() if stage in self.types else ():
            for number, value in enumerate(values):
                self._choice(stage, ("stages", stage, "grid", name, number), value, self.types[stage].consumes[name])
        for key, role in (("policy", config.policy), *config.roles()):
            if role not in self.models and role != "policy":
                self._note(_path(stage, key), f"no model '{role}' in 'models'", did_you_mean(role, self.models))
        for key, split in config.splits():
            if self.splits and split not in self.splits:
                self._note(_path(stage, key), f"no split '{split}' in 'task.data'", did_you_mean(split, self.splits))
        for key, other in config.references():
            self._runs_before(stage, _path(stage, key), other)


def _path(stage: str, key: str) -> KeyPath:
    return ("stages", stage, *split_path(key))
