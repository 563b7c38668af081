"""What a recipe may say: strict pydantic models, one for each block.

Unknown keys are refused, a bool is not a number, a frozen recipe stays as it was read. Units are in the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class Config(BaseModel):
    """Base of every block of a recipe, stages' options included."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        defer_build=True,
        protected_namespaces=(),
    )


class PromptConfig(Config):
    """A prompt that stages may improve: its text, or the file that holds it. A bare string in YAML is the text."""

    file: str | None = None
    """Path of a UTF-8 text file, relative to the recipe file that names it."""
    text: str | None = None
    bind: Literal["argument", "gateway"] = "argument"
    """argument: the agent receives it; gateway: the gateway replaces this text in the agent's requests."""

    @model_validator(mode="before")
    @classmethod
    def _bare_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> PromptConfig:
        _exactly_one(self, "file", "text")
        return self


class AgentConfig(Config):
    """The program under improvement, run as it is."""

    entrypoint: str | None = None
    """``module:attr`` or ``path/to/file.py:attr``, relative to the working directory; sync or async."""
    command: list[str] | None = Field(default=None, min_length=1)
    """Or any program and its arguments."""
    prompts: dict[str, PromptConfig] = {}
    args: dict[str, Any] = {}
    """Passed to the entrypoint by name."""
    isolation: Literal["process", "inline"] = "process"
    timeout_s: float = Field(default=60, gt=0)
    attempts: int = Field(default=2, ge=1)
    """How often a rollout is tried when the infrastructure fails it."""
    env: dict[str, str] = {}
    """Environment variables for the agent, beside a short allow-list."""
    python: str | None = Field(default=None, min_length=1)
    """An interpreter, or the folder of a virtual environment, that runs the agent instead of ours; relative to the
    recipe file that names it. The reward stays in ours."""
    sources: list[str] = []
    """Further files (globs) whose change makes another agent of it."""
    memory_mb: int | None = Field(default=None, ge=16)
    """Limit of its address space."""

    @model_validator(mode="after")
    def _one_program(self) -> AgentConfig:
        _exactly_one(self, "entrypoint", "command")
        if self.python is not None and self.command is not None:
            raise ValueError("'python' is for 'entrypoint'; 'command' names its own interpreter")
        if self.python is not None and self.isolation == "inline":
            raise ValueError("'python' needs 'isolation: process'")
        return self


class ShardConfig(Config):
    """One part of the rows, by the hash of their ids: a row stays in its part when others are added."""

    index: int = Field(ge=0)
    """Which part, from 0."""
    count: int = Field(ge=1)
    """Of how many."""

    @model_validator(mode="after")
    def _within(self) -> ShardConfig:
        if self.index >= self.count:
            raise ValueError("'index' counts from 0 and must be less than 'count'")
        return self


Scalar = str | bool | int | float


class SplitConfig(Config):
    """Where the rows of a split come from and which of them are used. A bare string in YAML is the path."""

    path: str | None = None
    """A .jsonl, .json, .csv or .parquet file, or a folder written by ``save_to_disk`` of Hugging Face datasets;
    relative to the recipe file that names it."""
    sql: str | None = None
    """A SELECT whose columns are the fields of a row. Rows come in its order: give it an ORDER BY."""
    database: str | None = None
    """For ``sql``: a SQLite file, which is opened read-only, or a SQLAlchemy URL."""
    database_env: str | None = None
    """Or the environment variable that holds the URL: a password never stands in a recipe."""
    python: str | None = None
    """``module:function`` or ``path/to/file.py:function`` that yields rows. It runs in a process of its own."""
    args: dict[str, Any] = {}
    """Passed to the function by name."""
    huggingface: str | None = None
    """A dataset of the Hugging Face hub; needs the package ``datasets``."""
    subset: str | None = None
    """Its configuration, where it has several."""
    split: str | None = None
    """Its split; default: the name of this split."""
    revision: str | None = None
    fields: dict[str, str] = {}
    """Field of a row -> what the source calls it."""
    where: dict[str, Scalar | list[Scalar]] = {}
    """Field -> the value, or one of the values, that a row must have (or hold, if the field is a list)."""
    shard: ShardConfig | None = None
    sample: int | None = Field(default=None, ge=1)
    """So many rows, drawn by ``seed`` and the rows' ids, in their order."""
    seed: int = 0
    limit: int | None = Field(default=None, ge=1)
    """So many rows from the beginning of what is left."""
    weights: str | None = None
    """The field that holds a row's weight, a number above 0; without one every row counts 1."""

    @model_validator(mode="before")
    @classmethod
    def _bare_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("database_env")
    @classmethod
    def _name_of_variable(cls, value: str | None) -> str | None:
        if value is not None and not _ENV_NAME.fullmatch(value):
            raise ValueError("must be the name of an environment variable, never a URL")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> SplitConfig:
        _exactly_one(self, "path", "sql", "python", "huggingface")
        if self.sql is not None:
            _exactly_one(self, "database", "database_env")
        owners = {"database": "sql", "database_env": "sql", "args": "python"}
        owners |= {"subset": "huggingface", "revision": "huggingface"}
        for name, owner in owners.items():
            if getattr(self, name) and getattr(self, owner) is None:
                raise ValueError(f"'{name}' is for '{owner}'")
        return self


class TaskConfig(Config):
    """The dataset: rows for each split. No row may be in two of them."""

    data: dict[str, SplitConfig] = Field(min_length=1)
    """Split name -> its rows: the path of a file, or where else they come from and which of them are used."""
    id: str | None = None
    """The field that names a row; default: ``id`` where a row has it, else the row's hash."""
    tags: str = "tags"
    """The field that labels a row for breakdowns."""


class RewardConfig(Config):
    """The callable that scores a rollout."""

    function: str
    """``module:attr`` or ``path/to/file.py:attr``."""
    args: dict[str, Any] = {}
    objective: dict[str, float] | None = Field(default=None, min_length=1)
    """Metric -> weight: the score is the weighted sum of these metrics of what the function returns."""
    range: tuple[float, float] | None = None
    """Lowest and highest score; one outside is a reward error."""
    failure_score: float = 0.0
    """The score of a rollout in which the agent itself failed."""
    timeout_s: float = Field(default=60, gt=0)

    @field_validator("range")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("must be [lowest, highest]")
        return value


class PriceConfig(Config):
    """What a model costs, in USD for a million tokens."""

    input_per_mtok: float = Field(ge=0)
    output_per_mtok: float = Field(ge=0)


class ServerConfig(Config):
    """How a vLLM server is started."""

    command: list[str] = []
    """What is started; default: the ``vllm serve`` of this interpreter. The checkpoint and options follow: for a
    program that takes no positional argument, let it end with ``--model``."""
    args: list[str] = []
    """Further options of the server, last: ``[--gpu-memory-utilization, "0.8"]``."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """null: a free one."""
    start_timeout_s: float = Field(default=900, gt=0)


class ModelConfig(Config):
    """What answers the chat requests of one role."""

    provider: Literal["openai", "litellm", "python", "local", "vllm"]
    name: str = Field(min_length=1)
    """The provider's name of the model; for ``python``: ``module:callable``; for ``local`` and ``vllm``: the folder of
    a checkpoint, a hub id that is on disk, or ``<stage>.model``."""
    base_url: str | None = None
    api_key_env: str | None = None
    """The environment variable that holds the key. The key itself never stands in a recipe."""
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    timeout_s: float = Field(default=60, gt=0)
    """Of one attempt."""
    deadline_s: float = Field(default=300, gt=0)
    """Of all attempts of one call together."""
    retries: int = Field(default=5, ge=0)
    concurrency: int = Field(default=16, ge=1)
    max_calls: int | None = Field(default=None, ge=1)
    """Calls of this role in the whole run; the budget of a judge, say."""
    args: dict[str, Any] = {}
    """For ``python``: bound to the callable first."""
    device: str = "auto"
    """For ``local``: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """For ``local`` and ``vllm``: auto is bfloat16 on a GPU, else float32 (vllm: the checkpoint's own)."""
    max_batch: int = Field(default=256, ge=1)
    """For ``local``, in place of ``concurrency``: completions that are decoded together."""
    context: int | None = Field(default=None, ge=16)
    """For ``local`` and ``vllm``: tokens of a prompt and its completion together, if fewer than the checkpoint has."""
    server: ServerConfig | None = None
    """For ``vllm`` without ``base_url``: how its server is started."""
    price: PriceConfig | None = None
    extra: dict[str, Any] = {}
    """Further fields of the request body."""
    note: str = ""
    """Shown wherever results of this model are shown."""

    @field_validator("api_key_env")
    @classmethod
    def _name_not_key(cls, value: str | None) -> str | None:
        if value is not None and not _ENV_NAME.fullmatch(value):
            raise ValueError("must be the name of an environment variable, never a key")
        return value

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]", value):
            raise ValueError("must begin with http:// or https://")
        return value

    @model_validator(mode="after")
    def _fits_provider(self) -> ModelConfig:
        if self.args and self.provider != "python":
            raise ValueError(f"'args' are for provider python; for {self.provider} use 'extra'")
        remote, local = {"base_url", "api_key_env", "concurrency"}, {"device", "dtype", "max_batch", "context"}
        foreign = {*local, "server"}
        if self.provider == "local":
            foreign = {*remote, "server"}
        elif self.provider == "vllm":
            foreign = {"max_batch"} if self.base_url is None else foreign
        if odd := sorted(self.model_fields_set & foreign):
            running = " with a base_url: the server that runs decides it" if self.provider == "vllm" else ""
            raise ValueError(f"'{odd[0]}' is not for provider {self.provider}{running}")
        if self.provider == "openai" and self.base_url is None and self.api_key_env is None:
            raise ValueError("provider openai needs 'api_key_env', or the 'base_url' of an endpoint that takes no key")
        return self


class TracesConfig(Config):
    """Which rollouts become traces in MLflow."""

    per_step: int = Field(default=8, ge=0)
    failures: Literal["all", "none"] = "all"


class TrackingConfig(Config):
    """Where runs are recorded beside their own folder."""

    enabled: bool = True
    experiment: str = "${name}"
    uri: str | None = None
    """An MLflow tracking server; default: MLFLOW_TRACKING_URI, else a database in the runs folder."""
    traces: TracesConfig = TracesConfig()


class ExecutionConfig(Config):
    """Where and how wide rollouts run."""

    engine: Literal["local"] = "local"
    workers: int | Literal["auto"] = "auto"
    max_infra_errors: float = Field(default=0.05, ge=0, le=1)
    """The share of a stage's rollouts that infrastructure may fail before the stage stops."""

    @field_validator("workers")
    @classmethod
    def _some_workers(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value


class Budget(Config):
    """Bounds of the whole run, reserved before each call."""

    max_llm_calls: int | None = Field(default=None, ge=1)
    max_cost_usd: float | None = Field(default=None, gt=0)


class StageConfig(Config):
    """What every stage has. A stage type adds its own options and narrows ``type`` to a Literal."""

    type: str
    when: str = "always"
    """always, never, gpu, or a comparison such as ``baseline.reward < 0.95``."""
    inputs: dict[str, str] = {}
    """Input -> ``<stage>.<output>``; one left out takes the newest matching output."""
    policy: str = "policy"
    """The role that answers the agent in this stage, whichever way the agent asks for ``policy``."""

    def uses(self, name: str) -> bool:
        """Whether this stage, as it is configured, takes its type's input ``name`` at all."""
        return True

    def choices(self) -> Mapping[str, Sequence[str]]:
        """Input -> what ``grid`` of this stage takes for it in turn: ``<stage>.<output>``, or a name of what the recipe
        itself has: ``agent`` of prompts, a role of models."""
        return {}

    def references(self) -> tuple[tuple[str, str], ...]:
        """(dotted key in this stage, stage id) of each other stage that this one reads the results of."""
        return ()

    def roles(self) -> tuple[tuple[str, str], ...]:
        """(dotted key in this stage, role) of each model that this stage names."""
        return ()

    def extras(self) -> tuple[tuple[str, str, str], ...]:
        """(dotted key in this stage, package, extra of ours that brings it) of each optional package it needs."""
        return ()

    def splits(self) -> tuple[tuple[str, str], ...]:
        """(dotted key in this stage, split) of each part of the dataset that this stage reads."""
        return ()


class Recipe(Config):
    """A whole recipe, resolved."""

    version: Literal[1]
    name: str = Field(min_length=1)
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    vars: dict[str, Any] = {}
    """The only free-form block; read with ``${vars.x}``."""
    agent: AgentConfig
    task: TaskConfig
    reward: RewardConfig
    models: dict[str, ModelConfig] = Field(min_length=1)
    """Role -> model. ``policy`` is what the agent talks to."""
    tracking: TrackingConfig = TrackingConfig()
    execution: ExecutionConfig = ExecutionConfig()
    budget: Budget = Budget()
    stages: Mapping[str, SerializeAsAny[StageConfig]] = {}
    """Run top to bottom; ids are names for overrides."""


def _exactly_one(config: Config, *names: str) -> None:
    given = [name for name in names if getattr(config, name) is not None]
    if len(given) != 1:
        choice = " or ".join(f"'{name}'" for name in names)
        raise ValueError(f"needs {choice}" if not given else f"takes {choice}, not both")
