"""The kinds of problems: wordings, and the steps that solve them.

A step is one operation; ``@1`` is the result of the first step. A *combination* is a kind with its numbers; its steps
with all numbers filled in are what splits are cut by.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tasks.calculator.arithmetic import calculate

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn")
_RANGES = {"a": (12, 99), "b": (3, 25), "c": (2, 12), "d": (2, 60), "e": (2, 9)}


@dataclass(frozen=True)
class Story:
    """One kind of problem. ``wordings`` and ``steps`` are format strings over the numbers a to e."""

    name: str
    tags: tuple[str, ...]
    wordings: tuple[str, ...]
    steps: tuple[str, ...]

    @property
    def difficulty(self) -> str:
        return ("easy", "medium", "hard")[min(len(self.steps), 3) - 1]


def numbers(rng: random.Random) -> dict[str, int]:
    return {name: rng.randint(*span) for name, span in _RANGES.items()}


def worked(steps: tuple[str, ...], values: dict[str, int] | dict[str, str]) -> tuple[list[str], str]:
    """(the steps with all numbers filled in, the last result). Raises CalculatorError."""
    done: list[str] = []
    results: list[str] = []
    for step in steps:
        text = step.format(**values)
        for number, result in enumerate(results, 1):
            text = text.replace(f"@{number}", result)
        done.append(text)
        results.append(calculate(text))
    return done, results[-1]


STORIES = (
    Story("sum", ("expression",), ("What is {a} + {d}?", "Compute {a} + {d}."), ("{a} + {d}",)),
    Story("difference", ("expression",), ("What is {a} - {d}?", "Compute {a} - {d}."), ("{a} - {d}",)),
    Story("product", ("expression",), ("What is {a} * {b}?", "Compute {a} * {b}."), ("{a} * {b}",)),
    Story("quotient", ("expression",), ("What is {a} / {e}?", "Compute {a} / {e}."), ("{a} / {e}",)),
    Story("earned", ("words",),
        ("{name} earns {a} a day for {b} days. How much is that?",
         "How much does {name} earn in {b} days at {a} a day?"),
        ("{a} * {b}",)),
    Story("shared", ("words",),
        ("{name} shares {a} sweets equally among {e} friends. How many does each get?",
         "{e} friends split {a} sweets of {name} equally. How many has each?"),
        ("{a} / {e}",)),
    Story("bracket", ("expression",), ("What is ({a} + {d}) * {c}?", "Compute ({a} + {d}) * {c}."),
        ("{a} + {d}", "@1 * {c}")),
    Story("precedence", ("expression",), ("What is {a} + {b} * {c}?", "Compute {a} + {b} * {c}."),
        ("{b} * {c}", "{a} + @1")),
    Story("boxes", ("words",),
        ("{name} buys {b} boxes of {c} pens and gives {d} pens away. How many pens are left?",
         "From {b} boxes with {c} pens each {name} takes {d} pens. How many pens remain?"),
        ("{b} * {c}", "@1 - {d}")),
    Story("ticket", ("words",),
        ("{c} friends share a bill of {a} for food and {d} for drinks equally. What does each pay?",
         "Food costs {a} and drinks cost {d}. {c} friends pay equally. How much each?"),
        ("{a} + {d}", "@1 / {c}")),
    Story("two_products", ("expression",), ("What is {a} * {c} + {b} * {e}?", "Compute {a} * {c} + {b} * {e}."),
        ("{a} * {c}", "{b} * {e}", "@1 + @2")),
    Story("two_brackets", ("expression",), ("What is ({a} - {b}) * ({c} + {d})?", "Compute ({a} - {b}) * ({c} + {d})."),
        ("{a} - {b}", "{c} + {d}", "@1 * @2")),
    Story("market", ("words",),
        ("{name} sells {a} apples at {c} each and {b} melons at {e} each, and pays {d} for the stall. What is left?",
         "A stall costs {name} {d}. {a} apples bring {c} each, {b} melons {e} each. How much remains?"),
        ("{a} * {c}", "{b} * {e}", "@1 + @2", "@3 - {d}")),
    Story("trip", ("words",),
        ("A trip of {c} people costs {a} each plus {d} for the bus. Half is paid. How much is still to pay?",
         "{c} people pay {a} each and together {d} for a bus. After half is paid, how much is open?"),
        ("{c} * {a}", "@1 + {d}", "@2 / 2")),
)  # fmt: skip
