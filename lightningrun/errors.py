"""Every error that lightningrun raises on purpose, drawn once.

    LightningError                 exit 1   (only a bug of ours ends as a bare LightningError)
      UsageError                   exit 2   the command line or an argument is wrong
        RecipeError                         the recipe is wrong: one or more located problems
        DatasetError                        rows of a dataset are wrong: one or more located problems
      StageFailed                  exit 3   a stage could not finish
        TooManyInfraErrors                  the infrastructure failed more rollouts than allowed
        GatewayBypassed                     rollouts were rewarded without one LLM call
        RewardErrors                        so many rewards were wrong that no mean is left
        ModelError                          a model did not answer within its deadlines
      GateNotMet                   exit 4   a stage's gate says no
      Missing                      exit 5   a GPU, an extra or a key is needed and absent
      BudgetReached                exit 6   a budget of calls, rollouts, dollars or time is spent
      DiskFull                     exit 74  the disk refused a write
      Locked                       exit 75  another process is running on the same folder
      Interrupted                  exit 130 Ctrl-C

An error says what is wrong, where (file:line:column when a file is to blame) and what to do.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from lightningrun.types import StageResult


class ExitCode(enum.IntEnum):
    """Exit codes of the command line: a contract with scripts and CI."""

    OK = 0
    BUG = 1
    USAGE = 2
    STAGE_FAILED = 3
    GATE_NOT_MET = 4
    MISSING = 5
    BUDGET_REACHED = 6
    WORK_PENDING = 10
    DISK = 74
    LOCKED = 75
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in one place. ``line`` and ``column`` count from 1; 0 means unknown."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""

    @property
    def where(self) -> str:
        """``file:line:column`` as far as each is known."""
        parts = [self.file] if self.file else []
        if self.line:
            parts.append(str(self.line))
            if self.column:
                parts.append(str(self.column))
        return ":".join(parts)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.hint}" if self.hint else text


class LightningError(Exception):
    """Base of all errors. ``str()`` is fit to be shown to a person as it is."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return str(Problem(self.message, file=self.where, hint=self.hint))


class UsageError(LightningError):
    """The command line, or an argument of the Python API, is wrong."""

    exit_code = ExitCode.USAGE


class _Located(UsageError):
    """One error made of all the problems found, so that they are shown together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class RecipeError(_Located):
    """The recipe is wrong; ``problems`` holds every mistake with its place."""


class DatasetError(_Located):
    """Rows of a dataset are wrong; ``problems`` holds every mistake with its place."""


class StageFailed(LightningError):
    """A stage could not finish. What it did so far is kept, and ``resume`` goes on from it."""

    exit_code = ExitCode.STAGE_FAILED


class TooManyInfraErrors(StageFailed):
    """More rollouts than allowed were lost to infrastructure, which is never scored."""


class GatewayBypassed(StageFailed):
    """Rollouts were rewarded although the agent made no LLM call through the gateway."""


class RewardErrors(StageFailed):
    """The reward function failed so often that the stage has no trustworthy mean."""


class ModelError(StageFailed):
    """A model did not give a usable answer.

    ``kind`` names what happened (``timeout``, ``http_503``, ``html``, ``no_choices``, ``broken_json``,
    ``connection``, ``auth``, ``bad_request``, ...); ``status`` is the HTTP status or 0; ``retryable`` says
    whether the same request may succeed later; ``retry_after_s`` is what the provider asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        status: int = 0,
        retryable: bool = False,
        retry_after_s: float | None = None,
        where: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.kind = kind
        self.status = status
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class GateNotMet(LightningError):
    """A stage's gate was evaluated and says no. ``result`` is what the stage found: its outputs and metrics stand."""

    exit_code = ExitCode.GATE_NOT_MET

    def __init__(self, message: str, *, result: StageResult | None = None, where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.result = result


class Missing(LightningError):
    """Something the recipe needs is absent: an API key, an extra, a GPU, a program."""

    exit_code = ExitCode.MISSING


class BudgetReached(LightningError):
    """A budget is spent. Raised before the call that would overshoot it, never after."""

    exit_code = ExitCode.BUDGET_REACHED


class DiskFull(LightningError):
    """The disk refused a write; everything committed before is intact."""

    exit_code = ExitCode.DISK


class Locked(LightningError):
    """Another process is at work on the same run folder."""

    exit_code = ExitCode.LOCKED


class Interrupted(LightningError):
    """Ctrl-C: work was drained and saved."""

    exit_code = ExitCode.INTERRUPTED
