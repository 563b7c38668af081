"""The data that moves between rooms: frozen, typed, and convertible to JSON and back.

A *task* is one row of the dataset. A *rollout* is one execution of the agent on one task. An *LLM call* is one
request that the agent, the coach or a judge made. A *reward* is the score of a rollout. An *artifact* is what one
stage hands to the next.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

Json = Any
"""Anything that ``json.dumps`` takes."""


class RolloutStatus(str, enum.Enum):
    """How a rollout ended. Only the first two carry a score."""

    SUCCEEDED = "succeeded"
    """The agent answered and the reward function scored it."""
    FAILED = "failed"
    """The agent raised, timed out or gave no answer: scored ``failure_score``, stays in the denominator."""
    REWARD_ERROR = "reward_error"
    """The agent answered and the reward function gave no usable score: excluded from means."""
    INFRA_ERROR = "infra_error"
    """A model or the machine failed, attempts included: excluded from means, never a 0."""

    @property
    def scored(self) -> bool:
        return self in (RolloutStatus.SUCCEEDED, RolloutStatus.FAILED)


class ArtifactKind(str, enum.Enum):
    """The types that ``inputs:`` of a stage are checked against at plan time."""

    PROMPTS = "prompts"
    MODEL = "model"
    ROLLOUTS = "rollouts"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Task:
    """One row of a dataset. ``fields`` is the whole row; ``tags`` are its labels for breakdowns."""

    id: str
    split: str
    fields: Mapping[str, Json]
    tags: tuple[str, ...] = ()
    weight: float = 1.0
    """How much the row counts in means, and how likely it is drawn for training."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call or a sum of calls."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_json(self) -> dict[str, Json]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True, slots=True)
class LLMCall:
    """One call to a model, captured whole.

    ``request`` is the body as it was sent to the provider, ``response`` the chat completion (of
    protocol ``embeddings``: the embeddings; None when it failed, then
    ``error`` says why). ``owner`` is the rollout's key, or ``coach:...``. ``occurrence`` counts equal requests within
    one owner. ``cost_usd`` is None when no price is known. ``cached`` calls were answered by the run's own call log and
    cost nothing. ``agent`` is who asked: see ``CallSession.chat``. ``protocol`` and ``path`` say how a call reached the
    gateway (``messages``, ``/v1/messages``); both are empty for calls of our own.
    """

    id: str
    role: str
    model: str
    stage: str
    owner: str
    request: Mapping[str, Json]
    response: Mapping[str, Json] | None
    error: str = ""
    started_at: float = 0.0
    duration_s: float = 0.0
    usage: Usage = Usage()
    cost_usd: float | None = None
    attempts: int = 1
    cached: bool = False
    sample: int = 0
    occurrence: int = 0
    agent: str = ""
    protocol: str = ""
    path: str = ""
    span: str = ""
    """The OpenTelemetry span (16 hex digits) that made it, where its request says so in a ``traceparent``."""
    cache_key: str = ""
    sampled: Mapping[str, Json] | None = None
    """What was sampled, where the provider tells: ``prompt_ids``, ``weights`` (a digest or label), and of each of the
    ``choices`` its ``ids`` and ``logprobs``: the policy's at the request's temperature, before top-k and top-p."""

    def to_json(self) -> dict[str, Json]:
        """Shares the request and the response with this call: not to be changed."""
        record: dict[str, Json] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record["usage"] = self.usage.to_json()
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> LLMCall:
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        known["usage"] = Usage(**known.get("usage") or {})
        return cls(**known)


@dataclass(frozen=True, slots=True)
class AgentSpan:
    """An OpenTelemetry span of the agent's own process: a step of its framework, a tool, an agent, a call to a model.

    ``id``, ``parent`` ("" at the top) and ``trace`` are hexadecimal; times are in seconds, since 1970 for
    ``started_at``. ``attributes`` are flat: numbers, bools and texts cut short.
    """

    id: str
    parent: str
    trace: str
    name: str
    started_at: float
    duration_s: float
    error: str = ""
    scope: str = ""
    """The instrumentation that made it."""
    attributes: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reward:
    """What a reward function returns: a score, words for the coach, and further metrics.

    User code may return this, a float, or a mapping with the same names. ``steps`` are rewards of single LLM calls, one
    for each call of ``trace``, for training.
    """

    score: float
    feedback: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[float, ...] = ()


class TraceCall(TypedDict):
    """One LLM call of a rollout, as ``trace`` of a reward function lists them, in the order in which they ended.

    With several models it is one list of all their calls: ``role`` tells them apart.
    """

    role: str
    """Of the recipe's ``models``: ``policy``, ``user``, ..."""
    model: str
    agent: str
    """Who asked, in a system of several agents; empty if it did not say."""
    messages: list[dict[str, Any]]
    """What was asked, as it was sent."""
    answer: str
    """The text of the (first) answer; empty for a call that failed or only called tools."""
    tool_calls: list[dict[str, Any]]
    """Of the first answer: ``{"id", "type", "function": {"name", "arguments"}}``."""
    error: str
    """Why the call failed; empty if it did not."""
    usage: dict[str, int]
    """``prompt_tokens`` and ``completion_tokens``."""
    cost_usd: float | None
    started_at: float
    """Seconds since 1970. Not the same when a run is repeated, so nothing for a score to depend on."""
    duration_s: float
    cached: bool
    request: dict[str, Any]
    """The rest of the body as it was sent: sampling, tools."""
    response: dict[str, Any] | None
    """The whole answer as the provider gave it."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One execution of the agent on one task, scored.

    ``key`` is unique within a stage: ``<prompts digest>/<split>/<task id>/<sample>``, and ``/<model>`` in a grid.
    ``score`` is None unless ``status.scored``. ``call_refs`` are byte offsets of its LLM calls in ``calls.jsonl``.
    """

    key: str
    stage: str
    task_id: str
    split: str
    sample: int
    status: RolloutStatus
    score: float | None
    feedback: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    output: Json = None
    error: str = ""
    call_refs: tuple[int, ...] = ()
    llm_calls: int = 0
    usage: Usage = Usage()
    cost_usd: float = 0.0
    started_at: float = 0.0
    duration_s: float = 0.0
    attempts: int = 1
    tags: tuple[str, ...] = ()
    steps: tuple[float, ...] = ()
    """Rewards of single LLM calls, in the order of ``call_refs``; empty where the reward function gives none."""
    agents: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each agent did that a call names: ``calls``, ``tokens``, ``cost_usd``, ``seconds`` of its calls and
    ``errors``; "" is who made calls without a name. Empty where no call has one."""
    span_ref: int | None = None
    """Byte offset in the run's ``spans.jsonl`` of what the agent's framework told of it; None if it told nothing."""

    def to_json(self) -> dict[str, Json]:
        """Shares the output with this rollout: not to be changed."""
        record: dict[str, Json] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record["status"] = self.status.value
        record["metrics"] = dict(self.metrics)
        record["usage"] = self.usage.to_json()
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> Rollout:
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        known["status"] = RolloutStatus(known["status"])
        known["usage"] = Usage(**known.get("usage") or {})
        known["call_refs"] = tuple(known.get("call_refs") or ())
        known["tags"] = tuple(known.get("tags") or ())
        known["steps"] = tuple(known.get("steps") or ())
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A typed output of a stage. ``value`` is JSON (prompts: name -> text); ``path`` a file in its stage's outputs."""

    kind: ArtifactKind
    value: Json = None
    path: str = ""

    def to_json(self) -> dict[str, Json]:
        return {"kind": self.kind.value, "value": self.value, "path": self.path}

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> Artifact:
        return cls(ArtifactKind(record["kind"]), record.get("value"), record.get("path", ""))


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage hands back: artifacts by name, and flat metrics (``reward`` is the headline where there is one)."""

    outputs: Mapping[str, Artifact] = field(default_factory=dict)
    metrics: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        return {
            "outputs": {name: artifact.to_json() for name, artifact in self.outputs.items()},
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> StageResult:
        outputs = {name: Artifact.from_json(value) for name, value in record["outputs"].items()}
        return cls(outputs, dict(record["metrics"]))
