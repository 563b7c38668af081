"""An interpreter of the agent's own (``agent.python``): found, asked what it has, started with our slots in it.

Frameworks conflict with each other and with what lightningrun needs. So an agent may bring an environment of its own,
of which only the slots' side of this room becomes part: it needs nothing but the standard library. The reward and the
runner stay where they are. Limit: a package installed as editable counts by its version, not by its files.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightningrun.errors import Missing

OLDEST = (3, 10)
_TIMEOUT_S = 60.0
_PACKAGE = Path(__file__).resolve().parents[1]
_PROBE = """
import json, os, sys
answer = {"version": list(sys.version_info[:3])}
if sys.version_info >= (3, 10):
    import importlib.util
    local, names = json.loads(sys.argv[1])
    local = [os.path.realpath(folder) for folder in local]
    places = {os.path.realpath(folder) for folder in sys.path if folder and os.path.isdir(folder)} - set(local)
    names_there = [name[:-10] for folder in places for name in os.listdir(folder) if name.endswith(".dist-info")]
    found = [name.partition("-")[::2] for name in names_there]
    sys.path[:0] = local
    known = lambda name: name in sys.modules or importlib.util.find_spec(name) is not None
    answer.update(packages=dict(sorted(found)), absent=[name for name in names if not known(name)])
print(json.dumps(answer))
"""
_SLOT_SERVER = "import sys; sys.path.insert(0, {!r}); from lightningrun.agents import slot_server; slot_server.main()"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What an interpreter says of itself."""

    executable: str
    version: str
    packages: Mapping[str, str]
    """Version of each installed distribution."""
    absent: tuple[str, ...]
    """Those of the modules asked for that it cannot import."""


def executable(path: str) -> str:
    """The interpreter that ``path`` names: itself, or that of a virtual environment's folder."""
    return os.path.join(path, "bin", "python") if os.path.isdir(path) else path


def environment(env: Mapping[str, str], path: str) -> dict[str, str]:
    """``env`` as ``path``'s activation would leave it: the programs beside it come first, our own home is not its."""
    found = {name: value for name, value in env.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX")}
    places = [os.path.dirname(executable(path)), env.get("PATH", os.defpath)]
    return found | {"PATH": os.pathsep.join(places)}


def ask(path: str, env: Mapping[str, str], names: Sequence[str] = (), local: Sequence[Path] = ()) -> Interpreter:
    """Start the interpreter once, for what it is and which modules of ``names`` it lacks. Nothing is imported.

    ``local`` are folders of the user's own modules, looked in first. Raises Missing if it is not there, is not Python,
    or is too old.
    """
    program = executable(path)
    if not os.path.exists(program):
        raise Missing(f"there is no interpreter at {path}")
    question = json.dumps([[str(folder) for folder in local], list(names)])
    try:
        done = subprocess.run(
            [program, "-c", _PROBE, question],
            env=environment(env, path),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        answer = json.loads(done.stdout.strip().rpartition("\n")[2])
        version = answer["version"]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{path} does not run as a Python interpreter: {error}") from None
    except (ValueError, TypeError, KeyError):
        said = done.stderr.strip().rpartition("\n")[2] or "it does not answer as one"
        raise Missing(f"{path} is not a Python interpreter: {said[:200]}") from None
    dotted = ".".join(map(str, version))
    if tuple(version) < OLDEST:
        raise Missing(f"{path} is Python {dotted}", hint="it must be 3.10 or newer")
    return Interpreter(program, dotted, answer["packages"], tuple(answer["absent"]))


def imported(file: Path) -> list[str]:
    """Packages without which a module cannot be imported: the plain imports at its top level, no others."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in body if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def installing(path: str, file: Path | None, names: Sequence[str] = ()) -> str:
    """The command that gives the interpreter what an agent needs, made first if it is not there."""
    listed = file.parent / "requirements.txt" if file is not None else None
    shown = os.path.relpath(path)
    program = executable(path) if os.path.exists(path) else os.path.join(path, "bin", "python")
    wanted = f"-r {os.path.relpath(listed)}" if listed is not None and listed.is_file() else " ".join(names)
    make = "" if os.path.exists(path) else f"python3 -m venv {shown} && "
    return f"{make}{os.path.relpath(program)} -m pip install {wanted or '...'}"


def slot_server(path: str | None, folder: str) -> list[str]:
    """The command that starts a fork server, but for its last argument. ``folder`` is a private one that lasts.

    Another interpreter sees of ours this one package, by a link in a folder that holds nothing else.
    """
    if path is None:
        return [sys.executable, "-m", "lightningrun.agents.slot_server"]
    place = os.path.join(folder, "package")
    os.makedirs(place, exist_ok=True)
    os.symlink(_PACKAGE, os.path.join(place, _PACKAGE.name))
    return [executable(path), "-c", _SLOT_SERVER.format(place)]
