"""What goes into an agent or a reward function, what comes out, and the shape that every pool has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lightningrun.types import Json

Bind = Callable[[str], None]
"""Told the url id of the endpoint that the job is about to use, just before it starts."""


@dataclass(frozen=True, slots=True)
class AgentJob:
    """One run of the agent. ``fields`` is the task's whole row; ``llm`` is the sampling that the recipe fixes."""

    fields: Mapping[str, Json]
    prompts: Mapping[str, str]
    seed: int
    timeout_s: float
    llm: Mapping[str, Json] = field(default_factory=dict)

    def message(self) -> dict[str, Json]:
        """The job as a slot reads it; ``reserved`` are names beside those that every function may ask for."""
        return _message(self, {})


@dataclass(frozen=True, slots=True)
class RewardJob:
    """One scoring. ``trace`` is the rollout's LLM calls as JSON; None where the reward function does not ask for it."""

    fields: Mapping[str, Json]
    output: Json
    trace: list[Json] | None
    prompts: Mapping[str, str]
    seed: int
    timeout_s: float
    llm: Mapping[str, Json] = field(default_factory=dict)

    def message(self) -> dict[str, Json]:
        return _message(self, {"output": self.output, "trace": self.trace})


def _message(job: AgentJob | RewardJob, reserved: dict[str, Json]) -> dict[str, Json]:
    return {
        "fields": job.fields,
        "prompts": job.prompts,
        "seed": job.seed,
        "llm": job.llm,
        "reserved": reserved,
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    ``kind``: ``ok``; ``raised`` (exception, SystemExit, KeyboardInterrupt); ``timeout``; ``crashed`` (its process
    died); ``bad_output`` (not JSON, or too large); ``lost`` (the machine failed it, which says nothing of the agent).
    ``error`` is fit to be read by a coach: the exception and where it was raised. ``leftovers`` counts the processes
    that the job left behind, killed by now.
    """

    kind: str
    output: Json = None
    error: str = ""
    duration_s: float = 0.0
    leftovers: int = 0

    @property
    def ok(self) -> bool:
        return self.kind == "ok"


class Endpoint(Protocol):
    """What a pool needs of the gateway: urls to hand to agents, and the token that opens them."""

    @property
    def token(self) -> str: ...
    def new_url_id(self) -> str: ...
    def url(self, url_id: str) -> str: ...
    def release(self, url_id: str) -> None: ...


class AgentPool(Protocol):
    """Runs agents and rewards, at most ``size`` of each at a time."""

    @property
    def size(self) -> int: ...
    @property
    def reward_wants(self) -> frozenset[str]:
        """Parameter names of the reward function (known after ``start``); ``**`` if it takes any."""
        ...

    async def start(self) -> None:
        """Import agent and reward. Raises UsageError with the end of the traceback if that fails."""
        ...

    async def run(self, job: AgentJob, bind: Bind) -> Outcome:
        """Run the agent. The url is released before another job can get it. Raises StageFailed if no slot can live."""
        ...

    async def score(self, job: RewardJob, bind: Bind) -> Outcome:
        """Run the reward function; ``output`` of the outcome is what it returned, not yet checked."""
        ...

    async def close(self) -> None:
        """End everything that was started, within about two seconds."""
        ...
