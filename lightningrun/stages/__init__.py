"""The stage types: one room each, and one table of them.

``specs()`` imports only the rooms' light ``config`` modules. A package adds a type by an entry point of the group
``lightningrun.stages`` whose name is the type and whose object is a ``StageSpec``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points

from lightningrun.errors import UsageError
from lightningrun.stages.base import StageSpec

ROOMS: dict[str, str] = {
    "evaluate": "lightningrun.stages.evaluate.config",
    "apo": "lightningrun.stages.apo.config",
    "sft": "lightningrun.stages.sft.config",
    "verl_grpo": "lightningrun.stages.verl_grpo.config",
}
ENTRY_POINTS = "lightningrun.stages"


def specs() -> Mapping[str, StageSpec]:
    """Every stage type by name, ours first.

    Other packages are looked through (25 ms) only when the types are listed or one is asked for that is not ours; that
    raises UsageError naming the plugin that is broken.
    """
    return _Specs()


class _Specs(Mapping[str, StageSpec]):
    def __getitem__(self, name: str) -> StageSpec:
        return _room(name) if name in ROOMS else _plugins()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*ROOMS, *_plugins()])

    def __len__(self) -> int:
        return len(ROOMS) + len(_plugins())


def _room(name: str) -> StageSpec:
    spec: StageSpec = importlib.import_module(ROOMS[name]).SPEC
    return spec


@functools.cache
def _plugins() -> dict[str, StageSpec]:
    table: dict[str, StageSpec] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in ROOMS or point.name in table:
            raise UsageError(f"the stage type {point.name!r} of {_origin(point)} exists already", hint="uninstall one")
        table[point.name] = _plugin(point)
    return table


def _plugin(point: EntryPoint) -> StageSpec:
    try:
        spec = point.load()
    except Exception as error:
        raise UsageError(
            f"the stage type {point.name!r} of {_origin(point)} cannot be imported: {type(error).__name__}: {error}",
            hint="repair or uninstall that package",
        ) from error
    if not isinstance(spec, StageSpec) or spec.type != point.name:
        raise UsageError(
            f"the stage type {point.name!r} of {_origin(point)} is not a StageSpec of that name",
            hint=f"let {point.value!r} be a lightningrun.stages.base.StageSpec with type={point.name!r}",
        )
    return spec


def _origin(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else point.value
