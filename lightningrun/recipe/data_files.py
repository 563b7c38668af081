"""What can be said of a data file without reading it: whether it is there, and of a kind that is read here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightningrun.recipe.compose import Composition, shown_path, siblings
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.recipe.trees import KeyPath, block, dotted

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_SAVED = ("state.json", "dataset_dict.json")
_KINDS = "a .jsonl, .json, .csv or .parquet file"


def is_saved_dataset(path: Path) -> bool:
    """Whether ``save_to_disk`` of Hugging Face datasets wrote this folder."""
    return any((path / name).is_file() for name in _SAVED)


def complaint(path: Path, *, rows: bool = True) -> tuple[str, str]:
    """(message, hint) if ``path`` cannot be what is wanted, a file of rows or else a database; empty if it can."""
    file = shown_path(path)
    if not path.exists():
        return f"cannot read {file}: No such file or directory", did_you_mean(path.name, sorted(siblings(path)))
    if path.is_dir():
        if rows and is_saved_dataset(path):
            return "", ""
        hint = f"name {_KINDS}, or a folder that save_to_disk of Hugging Face datasets wrote" if rows else ""
        return f"{file} is a folder", hint
    if rows and path.suffix.lower() not in SUFFIXES:
        return f"'{path.suffix}' files are not read here: {file}", f"name {_KINDS}"
    return ("", "") if os.access(path, os.R_OK) else (f"cannot read {file}: Permission denied", "")


def is_url(database: str) -> bool:
    """Whether a ``database`` is a SQLAlchemy URL rather than a SQLite file."""
    return "://" in database


def check_data(tree: Mapping[str, Any], composition: Composition, wrong: set[KeyPath]) -> None:
    """Note the data files that cannot be read. Their paths are absolute by now."""
    for path, name, rows in named_files(tree):
        if path not in wrong and path[:3] not in wrong:
            message, hint = complaint(Path(name), rows=rows)
            if message:
                composition.note(path, f"{dotted(path)}: {message}", hint)


def named_files(tree: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str, bool]]:
    """(key, path, whether it holds rows rather than a database) of each file that ``task.data`` names."""
    for split, source in block(tree, "task", "data").items():
        key: KeyPath = ("task", "data", split)
        if isinstance(source, str):
            yield key, source, True
        elif isinstance(source, dict):
            for name in ("path", "database"):
                value = source.get(name)
                if isinstance(value, str) and (name == "path" or not is_url(value)):
                    yield (*key, name), value, name == "path"
