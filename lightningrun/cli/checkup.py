"""What `doctor` looks at."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightningrun.errors import LightningError
from lightningrun.tracking.formats import merged

if TYPE_CHECKING:
    from lightningrun.runner import Experiment

Finding = tuple[str, str, str]
"""(ok | note | bad, subject, words)"""

CORE = ("omegaconf", "pydantic", "click", "rich", "aiohttp", "openai", "litellm", "mlflow")
EXTRAS = {"train": ("torch", "verl"), "gpu": ("verl", "vllm"), "ray": ("ray",), "gepa": ("gepa",)}
"""Extra -> packages that it brings."""
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
"""Looked for when no recipe says which it needs."""
LOW_DISK_GB = 1.0


def examine(recipe: str | None, call: bool, runs_dir: str) -> Iterator[Finding]:
    """Findings in the order in which a person would look. Values of keys are never read out."""
    yield "ok", "python", f"{platform.python_version()} at {sys.executable}"
    yield from _packages()
    yield from _disk(Path(runs_dir))
    yield _gpu()
    yield _ray()
    yield _store(Path(runs_dir))
    if recipe is None:
        for name in KEYS:
            yield ("ok", name, "set") if os.environ.get(name) else ("note", name, "not set")
        return
    yield from _recipe(recipe, call, runs_dir)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    versions = {name: _version(name) for name in CORE}
    absent = [name for name, version in versions.items() if version is None]
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield ("bad", "packages", f"missing: {', '.join(absent)}") if absent else ("ok", "packages", found)
    for extra, packages in EXTRAS.items():
        have = {name: _version(name) for name in packages}
        if all(have.values()):
            yield "ok", f"extra {extra}", ", ".join(f"{name} {version}" for name, version in have.items())
        else:
            yield "note", f"extra {extra}", f"not installed (pip install 'lightningrun[{extra}]')"


def _disk(runs_dir: Path) -> Iterator[Finding]:
    place = next(path for path in (runs_dir.absolute(), *runs_dir.absolute().parents) if path.exists())
    free_gb = shutil.disk_usage(place).free / 1e9
    yield "ok" if free_gb >= LOW_DISK_GB else "bad", "disk", f"{free_gb:.1f} GB free at {place}"
    if not os.access(place, os.W_OK):
        yield "bad", "runs folder", f"{place} cannot be written"


def _gpu() -> Finding:
    from lightningrun.prepared import has_gpu

    return ("ok", "gpu", "an NVIDIA GPU is visible") if has_gpu() else ("note", "gpu", "none; stages `when: gpu` skip")


def _ray() -> Finding:
    """Whether verl's own trainer can be started here, without importing any of it."""
    absent = [name for name in ("verl", "ray", "transfer_queue") if importlib.util.find_spec(name) is None]
    if absent:
        return "note", "backend: ray", f"cannot run: {', '.join(absent)} missing (pip install 'lightningrun[train]')"
    from lightningrun.stages.verl_process.configuration import gpu_count

    gpus = gpu_count()
    if gpus and importlib.util.find_spec("vllm") is None:
        return "note", "backend: ray", f"cannot run on {gpus} GPU(s): vllm is missing"
    return "ok", "backend: ray", f"can run on {gpus} GPU(s) with vLLM" if gpus else "can run on this CPU"


def _store(runs_dir: Path) -> Finding:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return "ok", "mlflow store", f"{uri} (MLFLOW_TRACKING_URI)"
    store = runs_dir.absolute() / "mlflow.db"
    return "ok", "mlflow store", f"sqlite:///{store}" + ("" if store.exists() else " (made by the first run)")


def _recipe(recipe: str, call: bool, runs_dir: str) -> Iterator[Finding]:
    from lightningrun.cli.options import open_recipe

    experiment = open_recipe(recipe, (), runs_dir)
    for role, model in experiment.recipe.models.items():
        key = model.api_key_env
        state = "no key needed" if key is None else f"{key} is {'set' if os.environ.get(key) else 'NOT set'}"
        missing = key is not None and not os.environ.get(key)
        yield "bad" if missing else "ok", f"role {role}", f"{model.provider} {model.name}: {state}"
    try:
        for warning in merged(experiment.check()):
            yield "note", "recipe", warning
        yield "ok", "recipe", f"{recipe} is valid"
    except LightningError as error:
        for line in str(error).splitlines():
            yield "bad", "recipe", line
        return
    if call:
        yield from _calls(experiment)


def _calls(experiment: Experiment) -> Iterator[Finding]:
    """One short chat call for each role, through the provider alone: nothing is recorded, no retry."""
    import asyncio
    import time

    from lightningrun import models
    from lightningrun.models.provider import dumps

    async def ask(role: str) -> str:
        config = experiment.recipe.models[role]
        provider = models.build(config, experiment.environ, role)
        body = {"model": config.name, "messages": [{"role": "user", "content": "Say ok."}], "max_tokens": 16}
        try:
            answer = await provider.complete(body, dumps(body), config.timeout_s)
        finally:
            await provider.aclose()
        return str(answer["choices"][0]["message"].get("content") or "")

    for role in experiment.recipe.models:
        started = time.monotonic()
        try:
            text = asyncio.run(ask(role))
        except LightningError as error:
            yield "bad", f"call {role}", str(error)
        else:
            yield "ok", f"call {role}", f"{' '.join(text.split())[:60]!r} in {time.monotonic() - started:.1f} s"
