"""Trees of plain values (dicts, lists, scalars) and paths into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KeyPath = tuple[str | int, ...]


def dotted(path: Sequence[str | int]) -> str:
    """``stages.apo.rounds``, as messages write a path."""
    return ".".join(str(key) for key in path)


def split_path(key: str) -> KeyPath:
    """The path that a dotted key writes."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split(".")) if key else ()


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every scalar of a tree with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def resolved_path(tree: Any, path: Sequence[str | int]) -> KeyPath | None:
    """``path`` with the indices of lists as numbers, or None if there is nothing at it."""
    found: KeyPath = ()
    for key in path:
        if isinstance(tree, list) and str(key).isdecimal() and int(key) < len(tree):
            key = int(key)
        elif not isinstance(tree, Mapping) or key not in tree:
            return None
        found = (*found, key)
        tree = tree[key]
    return found


def get(tree: Any, path: Sequence[str | int]) -> Any:
    """The value at ``path``, whose list indices may be texts. Raises KeyError if there is none."""
    found = resolved_path(tree, path)
    if found is None:
        raise KeyError(dotted(path))
    for key in found:
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], path: Sequence[str | int], value: Any) -> None:
    """Set the value at ``path``, whose parent is there."""
    get(tree, path[:-1])[path[-1]] = value


def block(tree: Any, *path: str) -> dict[str, Any]:
    """The mapping at ``path``, or an empty one if there is none there."""
    try:
        value = get(tree, path)
    except KeyError:
        return {}
    return value if isinstance(value, dict) else {}


def replaced(value: Any, values: Mapping[KeyPath, Any], path: KeyPath = ()) -> Any:
    """A copy of a tree with the values at some paths replaced."""
    if path in values:
        return values[path]
    if isinstance(value, dict):
        return {key: replaced(inner, values, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, values, (*path, index)) for index, inner in enumerate(value)]
    return value


def without(value: Any, paths: set[KeyPath], path: KeyPath = ()) -> Any:
    """A copy of a tree that lacks what is at ``paths``."""
    if isinstance(value, dict):
        return {k: without(v, paths, (*path, k)) for k, v in value.items() if (*path, k) not in paths}
    if isinstance(value, list):
        return [without(v, paths, (*path, i)) for i, v in enumerate(value) if (*path, i) not in paths]
    return value
