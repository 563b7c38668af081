"""Plain values to pydantic models, with every complaint turned into a located problem in words of the recipe."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lightningrun.recipe.compose import Composition
from lightningrun.recipe.leaks import is_key_like
from lightningrun.recipe.suggest import did_you_mean, nearest
from lightningrun.recipe.trees import KeyPath, dotted, get, without
from lightningrun.secrets import Masker

M = TypeVar("M", bound=BaseModel)


def validate(
    model: type[M], data: Mapping[str, Any], at: KeyPath, composition: Composition, masker: Masker, wrong: set[KeyPath]
) -> M | None:
    """``data`` as ``model``.

    Each complaint is noted in ``composition`` and its path added to ``wrong``, except at what is there already. Wrong
    keys are left out and the rest is tried once more, so that later checks have something to look at; None if that
    fails too.
    """
    try:
        return _read(model, data)
    except ValidationError as error:
        found = _note_all(error, model, data, at, composition, masker, wrong)
    wrong |= found
    try:
        return _read(model, without(data, {path[len(at) :] for path in found}))
    except ValidationError:
        return None


def _read(model: type[M], data: Mapping[str, Any]) -> M:
    # As JSON: strict there means what it means in YAML (a list is a tuple, a name is an enum's value, true is no 1).
    return model.model_validate_json(json.dumps(data))


def _note_all(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    at: KeyPath,
    composition: Composition,
    masker: Masker,
    skip: set[KeyPath],
) -> set[KeyPath]:
    wrong: set[KeyPath] = set()
    grouped: dict[KeyPath, list[Any]] = {}
    for entry in error.errors(include_url=False, include_context=True):
        grouped.setdefault(_data_path(entry["loc"], data), []).append(entry)
    unknown: dict[KeyPath, list[str | int]] = {}
    for path, entries in grouped.items():
        if entries[0]["type"] == "extra_forbidden":
            unknown.setdefault(path[:-1], []).append(path[-1])
    for path, entries in grouped.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in grouped) and len(entries) > 1:
            continue
        full = (*at, *path)
        wrong.add(full)
        if any(full[: len(known)] == known for known in skip):
            continue
        kind = entries[0]["type"]
        if kind == "extra_forbidden":
            known = _fields(model, path[:-1])
            where = f"in '{dotted(full[:-1])}'" if full[:-1] else "in the recipe"
            hint = did_you_mean(str(path[-1]), known) if nearest(str(path[-1]), known) or len(known) <= 8 else ""
            if path[-1] == "<<":
                hint = "YAML 1.2 has no merge keys: use 'extends', or ${...} to repeat a value"
            composition.note(full, f"unknown key '{path[-1]}' {where}", hint, at_key=True)
        elif kind == "missing":
            if any(nearest(str(key), [str(path[-1])]) for key in unknown.get(path[:-1], ())):
                continue
            where = f"in '{dotted(full[:-1])}'" if full[:-1] else "in the recipe"
            composition.note(full[:-1], f"missing key '{path[-1]}' {where}", at_key=True)
        else:
            value = get(data, path)
            composition.note(full, *_complaint(full, entries, value, masker), at_key=isinstance(value, dict))
    return wrong


def _complaint(path: KeyPath, entries: list[Any], value: Any, masker: Masker) -> tuple[str, str]:
    parts = [re.sub(r"^(Value error, |Input should be )", "", entry["msg"]) for entry in entries]
    custom = any(entry["type"] == "value_error" for entry in entries)
    wanted = " or ".join(dict.fromkeys(part.replace("an object", "a mapping") for part in parts))
    message = wanted if custom else f"must be {wanted}" if entries[0]["msg"].startswith("Input") else wanted
    choices = [word for entry in entries for word in re.findall(r"'([^']*)'", entry.get("ctx", {}).get("expected", ""))]
    near = nearest(value, choices) if isinstance(value, str) and choices else ""
    got = "" if custom else f", got {_shown(path, value, masker)}"
    return f"{dotted(path)}: {message}{got}", f"did you mean '{near}'?" if near else ""


def _shown(path: KeyPath, value: Any, masker: Masker) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        if any(isinstance(key, str) and is_key_like(key.removesuffix("_env")) for key in path):
            return "other text"
        return repr(masker.mask(value) if len(value) <= 60 else masker.mask(value)[:57] + "...")
    return json.dumps(value)


def _data_path(location: tuple[int | str, ...], data: Any) -> KeyPath:
    """The part of pydantic's location that is keys of the data; the rest names branches of unions."""
    path: list[str | int] = []
    for index, key in enumerate(location):
        last = index == len(location) - 1
        if isinstance(data, Mapping) and (key in data or (last and not _is_branch(str(key)))):
            path.append(key)
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            path.append(key)
            data = data[key]
    return tuple(path)


def _is_branch(key: str) -> bool:
    return "[" in key or key in ("[key]", "str", "int", "float", "bool", "none") or key[:1].isupper()


def _fields(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Names that the model (or the models) at ``path`` below ``model`` knows."""
    return list(dict.fromkeys(name for found in _models(model, path) for name in found.model_fields))


def _models(annotation: Any, path: KeyPath) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return [annotation]
        field = annotation.model_fields.get(str(path[0]))
        return _models(field.annotation, path[1:]) if field else []
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, (Mapping, Sequence)):
        return _models(arguments[-1 if issubclass(origin, Mapping) else 0], path[1:]) if path else []
    return [found for argument in arguments for found in _models(argument, path)]
