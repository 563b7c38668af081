"""Finding a function by its entrypoint and calling it by the names in its signature. Runs inside slots: stdlib only."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import numbers
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_OUTPUT_BYTES = 4 << 20
_MAX_ERROR = 2000
_OWN = os.path.dirname(os.path.abspath(__file__))
WORKDIR = "workdir"


class LLM(dict[str, Any]):
    """The agent's endpoint, ``llm["base_url"]`` or ``llm.base_url``: also ``api_key``, ``model``, sampling."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class MissingArgument(TypeError):
    """The function requires a name that there is nothing for."""


class BadOutput(Exception):
    """The function returned what JSON cannot hold, or too much of it."""


def load(entrypoint: str) -> Callable[..., Any]:
    """The callable that ``module:attribute`` or ``path/file.py:attribute`` names. Raises what importing it raises."""
    where, _, attribute = entrypoint.rpartition(":")
    if where.endswith(".py"):
        path = Path(where).resolve()
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{where} is not a Python file")
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    found: Any = module
    for name in attribute.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{entrypoint} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


class Function:
    """A user's function with its signature read once."""

    def __init__(self, entrypoint: str) -> None:
        self.entrypoint = entrypoint
        self._call = load(entrypoint)
        parameters = inspect.signature(self._call).parameters.values()
        self._positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)]
        self._named = [p.name for p in named]
        self._required = [p.name for p in named if p.default is p.empty]
        call = self._call if inspect.isroutine(self._call) else getattr(self._call, "__call__", None)  # noqa: B004
        self.is_async = inspect.iscoroutinefunction(call)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @property
    def wants(self) -> frozenset[str]:
        """The names it asks for, and ``**`` if it takes any."""
        return frozenset([*self._named, *(["**"] if self._takes_all else [])])

    def __call__(self, available: Mapping[str, Any]) -> Any:
        """Call it with what it asks for. Raises MissingArgument, or whatever it raises."""
        missing = [name for name in self._required if name not in available]
        if missing:
            raise MissingArgument(
                f"{self.entrypoint} asks for {', '.join(map(repr, missing))}; "
                f"available are {', '.join(sorted(available))} (the row's fields, keys of `args`, reserved names)"
            )
        positional = [available[name] for name in self._positional if name in available]
        names = {*self._named, *available} if self._takes_all else self._named
        keywords = {n: available[n] for n in names if n in available and n not in self._positional}
        return self._call(*positional, **keywords)


def encode(output: Any) -> str:
    """``output`` as ASCII JSON text. Raises BadOutput saying what is wrong and what to return instead."""
    try:
        text = json.dumps(output, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadOutput(
            f"returned a {type(output).__name__} that JSON cannot hold ({error}); "
            "return text, numbers, lists or dicts (a model's `.model_dump()`, a dataclass's `asdict`)"
        ) from None
    if len(text) > MAX_OUTPUT_BYTES:
        raise BadOutput(f"returned {len(text):,} bytes of JSON; at most {MAX_OUTPUT_BYTES:,} are kept")
    return text


def encode_reward(reward: Any) -> str:
    """As ``encode``, for what a reward function may return; NaN passes, for the gate to name."""
    try:
        text = json.dumps(reward, separators=(",", ":"), default=_plain_reward)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadOutput(
            f"returned a {type(reward).__name__}, not a number or {{score, feedback, metrics}}: {error}"
        ) from None
    if len(text) > MAX_OUTPUT_BYTES:
        raise BadOutput(f"returned {len(text):,} bytes of JSON; at most {MAX_OUTPUT_BYTES:,} are kept")
    return text


def _plain_reward(value: Any) -> Any:
    if isinstance(value, numbers.Real):
        return float(value)
    if all(hasattr(value, name) for name in ("score", "feedback", "metrics")):
        steps = list(getattr(value, "steps", ()))
        return {"score": value.score, "feedback": value.feedback, "metrics": dict(value.metrics), "steps": steps}
    raise TypeError(f"{type(value).__name__} is not a number")


def explain(error: BaseException) -> str:
    """An exception for one who did not write the agent: what, then where in the user's own code, innermost last."""
    message = str(error).strip()
    lines = [f"{type(error).__name__}: {message}" if message else type(error).__name__]
    if isinstance(error, MissingArgument | BadOutput):
        return message[:_MAX_ERROR]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_OWN, "<frozen"))]
    for frame in frames[-4:]:
        lines.append(f"  {os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}: {frame.line}")
    text = "\n".join(lines)
    return text if len(text) <= _MAX_ERROR else text[: _MAX_ERROR // 2] + " [...] " + text[-_MAX_ERROR // 2 :]
