"""The house: imports only go down, in no circle, and heavy packages stay in their rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightningrun"

FLOORS = {
    0: ("errors", "types", "files", "waiting"),
    1: ("recipe", "dataset", "secrets"),
    2: ("models", "gateway", "agents", "reward", "tracking"),
    3: ("rollouts", "stages"),
    4: ("runner", "planning", "execution", "plant", "prepared", "provenance", "runfolder", "staging"),
    5: ("cli", "__main__"),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

SIDEWAYS = {
    ("gateway", "models"),
    ("recipe", "secrets"),
    ("dataset", "recipe"),
    ("stages", "rollouts"),
    ("models", "agents"),
}
"""Rooms of one floor that may know each other: the gateway serves models; a dataset is described by a recipe; a model's
server is ended as an agent's process is."""

HEAVY = {
    "mlflow": {"tracking"},
    "litellm": {"models"},
    "openai": {"models", "agents"},
    "aiohttp": {"models", "gateway"},
    "google": {"gateway"},
    "opentelemetry": {"gateway"},
    "rich": {"cli"},
    "pandas": {"tracking"},
    "matplotlib": {"tracking"},
    "torch": {"models.local", "stages.sft", "stages.verl_grpo", "stages.verl_process", "stages.training_state"},
    "safetensors": {"models.local", "stages.sft", "stages.verl_grpo", "stages.verl_process", "stages.training_state"},
    "tokenizers": {"models.local"},
    "transformers": {"stages.verl_process"},
    "verl": {"stages.verl_grpo", "stages.verl_process"},
    "ray": {"stages.verl_grpo"},
    "click": {"cli"},
}
"""Package -> the rooms (or ``room.part``) that may import it, anywhere in a function or at the top."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] != "templates":
            yield ".".join(("lightningrun", *inside.with_suffix("").parts)).removesuffix(".__init__"), path


def imports(module: str, path: Path) -> Iterator[tuple[str, int, bool]]:
    """``(imported module or module.name, line, seen by type checkers only)``, at any depth of the file."""
    tree = ast.parse(path.read_text("utf-8"))
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    typing_only = {id(inner) for node in guarded for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module if path.name == "__init__.py" else module.rpartition(".")[0]
            base = ".".join(parent.split(".")[: len(parent.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                yield f"{source}.{alias.name}", node.lineno, id(node) in typing_only


MODULES = dict(modules())
RUNNER_LINES = 5_000
CORE_LINES = 13_300
EDGES = {"cli", "tracking", "models", "gateway", "agents"}
"""Rooms by which the house speaks with the world: terminals, MLflow, providers, protocols, processes."""
FILE_LINES = 420


def known(name: str) -> str:
    """The module of ours that a dotted name lies in."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def optional(module: str) -> bool:
    """Rooms that a reader of the core may leave out: each stage, and the engines that are two providers of several."""
    return room(module) == "stages" or module.startswith(("lightningrun.models.local", "lightningrun.models.vllm"))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def inside(module: str, place: str) -> bool:
    return f"{module}.".startswith(f"lightningrun.{place}.")


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in MODULES} - {""} <= set(FLOOR_OF), "a new room: give it a floor in FLOORS"


def test_imports_only_go_down() -> None:
    wrong = []
    for module, path in MODULES.items():
        for name, line, _ in imports(module, path):
            if name.split(".")[0] != "lightningrun" or not room(module):
                continue
            here, there = room(module), room(known(name))
            if not there or here == there or (here, there) in SIDEWAYS:
                continue
            allowed_level = FLOOR_OF[here] in (0, 4, 5)  # one room each, in several files
            if FLOOR_OF[there] > FLOOR_OF[here] or (FLOOR_OF[there] == FLOOR_OF[here] and not allowed_level):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line}: {here} (floor {FLOOR_OF[here]}) imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_circles() -> None:
    """Not by imports inside functions, nor between the modules of one room (type annotations may point back there)."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, path in MODULES.items():
        for name, _, typing_only in imports(module, path):
            if name.split(".")[0] != "lightningrun" or known(name) == "lightningrun":
                continue
            if not (typing_only and room(module) == room(known(name))):
                graph[module].add(known(name))
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "a circle: " + " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module] - {module}):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_stay_in_their_rooms(package: str) -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for module, path in MODULES.items()
        for name, line, _ in imports(module, path)
        if name.split(".")[0] == package and not any(inside(module, place) for place in HEAVY[package])
    ]
    assert not found, f"{package} is imported outside {HEAVY[package]}: {found}"


def test_no_pickles() -> None:
    """Nothing of ours reads pickles: what was saved is data, not code."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for module, path in MODULES.items()
        for name, line, _ in imports(module, path)
        if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
    ]
    assert not found


def code_lines(path: Path) -> int:
    """Lines that hold code: not blank, no comment, no docstring."""
    text = path.read_text("utf-8")
    words = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    prose = {
        line
        for node in words
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(text.splitlines(), start=1)
    return sum(1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in prose)


def test_the_core_stays_readable_in_an_afternoon() -> None:
    """Lines of code of what reads a recipe and runs it, of that with its edges (without the stages and the embedded
    engine), and of the longest file. Raise none without having tried to shorten."""
    counts = {module: code_lines(path) for module, path in MODULES.items()}
    core = {module: count for module, count in counts.items() if not optional(module)}
    runner = sum(count for module, count in core.items() if room(module) not in EDGES)
    assert runner < RUNNER_LINES, f"what reads and runs a recipe has {runner} lines of code"
    assert sum(core.values()) < CORE_LINES, f"with its edges it has {sum(core.values())} lines of code"
    longest = max(counts, key=lambda module: counts[module])
    assert counts[longest] < FILE_LINES, f"{longest} has {counts[longest]} lines of code: split it"
