"""The calls of one owner: a rollout, or one step of a coach. What it asked, what it cost, what went wrong."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lightningrun.errors import BudgetReached, LightningError, ModelError
from lightningrun.models.provider import Body, RefusedRequest, dumps
from lightningrun.types import Json, Usage

if TYPE_CHECKING:
    from lightningrun.models.ledger import Ledger, Reservation
    from lightningrun.models.retries import Retries
    from lightningrun.models.role import Role
    from lightningrun.models.service import ModelService

FATAL_KINDS = frozenset({"auth", "quota", "not_found", "not_served"})
"""Failures that every further call will meet too: the stage should stop at once."""


@dataclass(slots=True)
class PendingCall:
    """One request on its way through the service."""

    session: CallSession
    role: Role
    body: Body
    payload: bytes
    digest: str
    occurrence: int
    agent: str = ""
    protocol: str = ""
    path: str = ""
    span: str = ""
    started_at: float = 0.0
    started: float = 0.0
    reservation: Reservation | None = None
    attempts: Retries | None = None

    @property
    def key(self) -> str:
        return f"{self.digest}-{self.session.sample}-{self.occurrence}"


DOINGS = ("calls", "tokens", "cost_usd", "seconds", "errors")
"""What is summed for each agent."""
_TELLING = 8
"""Characters of a prompt between its placeholders by which it may be told from other texts."""
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_FOUND_WITHIN = 40
"""Characters from which on a built-in prompt is replaced also where it is only a part of what a message says."""
_INSTRUCTS = frozenset({"system", "developer", "user"})


class CallSession:
    """Made by ``ModelService.session``. ``chat`` and ``stream`` may be called concurrently."""

    def __init__(
        self,
        service: ModelService,
        ledger: Ledger,
        stage: str,
        owner: str,
        sample: int,
        default_role: str,
        stood_for: str,
        rewrites: Mapping[str, str],
        prompts: Mapping[str, str],
    ) -> None:
        self._service = service
        self.ledger = ledger
        self.stage = stage
        self.owner = owner
        self.sample = sample
        self.default_role = default_role
        self._stood_for = stood_for
        self.refs: list[int] = []
        """Places of the calls in the call log, in the order in which they ended."""
        self.llm_calls = 0
        """Calls that ended, failed ones and those answered from the log included."""
        self.usage = Usage()
        self.cost_usd = 0.0
        self.agents: dict[str, dict[str, float]] = {}
        """As ``Rollout.agents``, calls without a name included."""
        self.fatal: LightningError | None = None
        """What makes every further call pointless: a refused key, an unknown model, a full disk."""
        self.budget: BudgetReached | None = None
        self.rewritten: Counter[str] = Counter()
        """How often each of ``rewrites`` was seen in a request."""
        self._rewrites = rewrites
        self._prompts = prompts
        self._asked: dict[str, int] = {}
        self._failed: dict[str, ModelError] = {}

    @property
    def infra_error(self) -> ModelError | None:
        """A failure of the infrastructure that no later equal request made good; else None."""
        return next(iter(self._failed.values()), None)

    async def chat(self, body: Body, *, role: str | None = None, **said: str) -> Body:
        """The chat completion for ``body`` (of protocol ``embeddings``: the embeddings).

        ``said``: ``agent``, ``protocol``, ``path`` and ``span`` of the ``PendingCall``. ``agent`` names who asks;
        without it, the request does by the model asked for or the prompt that it carries.
        Raises ModelError (RefusedRequest: the body is to blame), BudgetReached.
        """
        call = self._prepared(body, role, **said)
        try:
            completion = await self._service.answer(call)
        except BaseException as error:
            self._note_failure(call, error)
            raise
        self._failed.pop(call.digest, None)
        return completion

    async def stream(self, body: Body, *, role: str | None = None, **said: str) -> AsyncGenerator[Body, None]:
        """The chunks of a completion as they come; close the iterator to hang up. Raises as ``chat``."""
        call = self._prepared(body, role, **said)
        try:
            async with contextlib.aclosing(self._service.stream(call)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except BaseException as error:
            self._note_failure(call, error)
            raise
        self._failed.pop(call.digest, None)

    def refuse(
        self, reason: str, asked: Body, *, agent: str = "", protocol: str = "", path: str = "", span: str = ""
    ) -> None:
        """Record a request that nobody could answer, so that whoever reads the calls of an agent sees it."""
        role = self._service.role_for(asked.get("model"), self.default_role, self._stood_for)
        call = PendingCall(self, role, asked, b"", "", 0, agent or self._agent_of(asked), protocol, path, span)
        self._service.refuse(call, reason)

    def _prepared(
        self, asked: Body, role_name: str | None, agent: str = "", protocol: str = "", path: str = "", span: str = ""
    ) -> PendingCall:
        service = self._service
        role = service.role_for(role_name or asked.get("model"), role_name or self.default_role, self._stood_for)
        agent = agent or (self._agent_of(asked) if protocol else "")
        if protocol == "embeddings":
            body = {**asked, "model": role.config.name}
        else:
            body = role.body(self._rewrite(asked) if self._rewrites else asked)
            if getattr(role.provider, "wants_owner", False):
                body["user"] = self.owner
        payload = dumps(body)
        digest = role.digest(payload)
        occurrence = self._asked.get(digest, 0)
        self._asked[digest] = occurrence + 1
        if role.config.provider in ("python", "local", "vllm"):
            body["seed"] = _seed(role.seed, body.get("seed"), self.sample, occurrence)
        return PendingCall(self, role, body, payload, digest, occurrence, agent, protocol, path, span)

    def _agent_of(self, asked: Body) -> str:
        """Which agent of several asks, as far as the request tells.

        The model asked for, if it is the name of a prompt or of a role other than the usual one; else the declared
        prompt that the request carries; else a model that the recipe does not know: a name made up for the purpose.
        """
        model = asked.get("model")
        model = model if isinstance(model, str) else ""
        if model in self._prompts or (
            model in self._service.roles and model not in (self.default_role, self._stood_for)
        ):
            return model
        carried = self._carried(asked.get("messages"))
        return carried or ("" if self._service.knows(model) else model[:100])

    def _carried(self, messages: Json) -> str:
        """The name of the longest declared prompt in the system message, or else in what the user says; "" if none."""
        said = [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
        for roles in (("system", "developer"), ("user",)):
            text = "\n".join(text for message in said if message.get("role") in roles for text in _texts(message))
            fitting = [(len(part), name) for name, part in self._needles() if part in text]
            if fitting:
                return max(fitting)[1]
        return ""

    def _needles(self) -> Iterable[tuple[str, str]]:
        """Each prompt's name and its longest part without placeholders, if that is long enough to be its own."""
        for name, prompt in self._prompts.items():
            part = max((part.strip() for part in _PLACEHOLDER.split(prompt)), key=len)
            if part == prompt.strip() != "" or len(part) >= _TELLING:
                yield name, part

    def _rewrite(self, asked: Body) -> Body:
        messages = asked.get("messages")
        if not isinstance(messages, list):
            return asked
        return {**asked, "messages": [self._rewritten_message(message) for message in messages]}

    def _rewritten_message(self, message: Body) -> Body:
        if not isinstance(message, dict) or message.get("role") not in _INSTRUCTS:
            return message
        content = message.get("content")
        if isinstance(content, str):
            return {**message, "content": self._rewritten(content)}
        if not isinstance(content, list):
            return message
        parts = [{**part, "text": self._rewritten(text)} if (text := _text_of(part)) else part for part in content]
        return {**message, "content": parts}

    def _rewritten(self, text: str) -> str:
        """The text with each built-in prompt in it replaced: frameworks put words of their own around a prompt."""
        if text in self._rewrites:
            self.rewritten[text] += 1
            return self._rewrites[text]
        built_in = tuple(sorted(self._rewrites, key=len, reverse=True))

        def replacement(found: re.Match[str]) -> str:
            baseline = built_in[(found.lastindex or 1) - 1]
            self.rewritten[baseline] += 1
            return self._rewrites[baseline].strip()

        return _finder(built_in).sub(replacement, text)

    def note(self, ref: int, usage: Usage, cost_usd: float, agent: str, seconds: float, failed: bool) -> None:
        """Book one ended call (called by the service)."""
        did = self.agents.setdefault(agent, dict.fromkeys(DOINGS, 0))
        for name, value in zip(DOINGS, (1, usage.total_tokens, cost_usd, seconds, failed), strict=True):
            did[name] += value
        self.refs.append(ref)
        self.llm_calls += 1
        self.usage = self.usage + usage
        self.cost_usd += cost_usd

    def _note_failure(self, call: PendingCall, error: BaseException) -> None:
        if self._asked[call.digest] == call.occurrence + 1:
            self._asked[call.digest] = call.occurrence  # the same question again is the same call again
        if isinstance(error, BudgetReached):
            self.budget = error
        elif isinstance(error, RefusedRequest):
            pass
        elif isinstance(error, ModelError) and error.kind not in FATAL_KINDS:
            self._failed[call.digest] = error
        elif isinstance(error, LightningError):
            self.fatal = error


@lru_cache(maxsize=64)
def _finder(prompts: tuple[str, ...]) -> re.Pattern[str]:
    """Finds built-in prompts, one group each, however their words are spaced. A short one must be all that is said."""
    bare = [r"\s+".join(map(re.escape, prompt.split())) for prompt in prompts]
    patterns = [
        rf"(?<!\w)({words})(?!\w)" if len(prompt.strip()) >= _FOUND_WITHIN else rf"\A\s*({words or '(?!)'})\s*\Z"
        for prompt, words in zip(prompts, bare, strict=True)
    ]
    return re.compile("|".join(patterns))


def _seed(recipe_seed: int, asked: object, sample: int, occurrence: int) -> int:
    text = f"{recipe_seed}\0{asked}\0{sample}\0{occurrence}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _text_of(part: Json) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def _texts(message: Body) -> list[str]:
    """What a message says, its content being a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return [text for part in content if (text := _text_of(part))]
    return [content] if isinstance(content, str) else []
