"""The policy as the gateway sees it while verl trains it: chats rendered here, tokens sampled by verl's servers.

Everything but the sampling itself (templates, tools, streams, the record of ids and log-probabilities) is that of
``provider: local``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from lightningrun.errors import ModelError
from lightningrun.models.local.chat import refuse
from lightningrun.models.local.engine import Completion, Token
from lightningrun.models.local.provider import LocalProvider
from lightningrun.models.local.sampling import Sampling
from lightningrun.models.local.tokenizer import ChatTokenizer
from lightningrun.stages.verl_grpo.cluster.wire import Line, LineDown
from lightningrun.types import Json


class RemoteEngine:
    """What ``LocalProvider`` needs of an engine, answered over the lines to verl's agent loop workers."""

    def __init__(self, folder: Path, context: int, seeded: bool) -> None:
        """``seeded``: equal requests shall get equal answers. vLLM is slower then, and its answers vary anyway."""
        self.tokenizer = ChatTokenizer.load(folder)
        self.weights = ""
        """The name of the weights that answer now."""
        self.lines: list[Line] = []
        self.answered: Callable[[], None] = lambda: None
        """Called for each answer: a sign of life."""
        self._context = context
        self._seeded = seeded
        self._ends = sorted(_ends(folder, self.tokenizer))
        self._numbers = itertools.count()

    async def generate(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> list[Completion]:
        """``n`` completions of ``prompt``. Raises RefusedRequest, ModelError."""
        if sampling.top_logprobs:
            raise refuse("'top_logprobs' is not supported while verl trains the policy", "top_logprobs")
        room = self._context - len(prompt)
        if room < (sampling.max_tokens or 1):
            raise refuse(f"{len(prompt)} tokens and the answer are over the context of {self._context}", "max_tokens")
        return list(await asyncio.gather(*(self._one(list(prompt), sampling, index, room) for index in range(n))))

    async def stream(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> AsyncGenerator[Token, None]:
        """The tokens of ``n`` completions, when they are whole: verl's servers do not stream."""
        for index, done in enumerate(await self.generate(prompt, sampling, n)):
            last = len(done.ids) - 1
            for place, (token, logprob) in enumerate(zip(done.ids, done.logprobs, strict=True)):
                yield Token(index, token, logprob, [], done if place == last else None)

    async def _one(self, prompt: list[int], sampling: Sampling, index: int, room: int) -> Completion:
        asked: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "max_tokens": min(sampling.max_tokens or room, room),
            "stop_token_ids": [*self._ends, *sampling.stop_ids],
            "logprobs": True,
        }
        if self._seeded:
            asked["seed"] = (sampling.seed * 1_000_003 + index) % (1 << 62)
        number = next(self._numbers)
        if not self.lines:
            raise ModelError("verl's trainer is gone", kind="connection")
        line = self.lines[number % len(self.lines)]
        try:
            told = await line.ask({"request": f"call-{number}", "prompt": prompt, "sampling": asked})
        except LineDown as error:
            raise ModelError(f"verl's rollout server failed: {error}", kind="connection") from error
        self.answered()
        return self._completion(told["ids"], told["logprobs"], sampling)

    def _completion(self, ids: list[int], logprobs: list[float], sampling: Sampling) -> Completion:
        """Cut where a stop text is complete: what follows was never heard, and is not trained on."""
        if sampling.stop:
            for place in range(1, len(ids) + 1):
                text = self.tokenizer.decode(ids[:place])
                if found := next((stop for stop in sampling.stop if stop in text), ""):
                    return Completion(ids[:place], logprobs[:place], "stop", self.weights, found)
        ended = bool(ids) and ids[-1] in (*self._ends, *sampling.stop_ids)
        return Completion(ids, logprobs, "stop" if ended else "length", self.weights)


class VerlPolicy(LocalProvider):
    """``provider: local`` in all but the engine."""

    def __init__(self, role: str, engine: RemoteEngine) -> None:
        self._where = f"models.{role}"
        self._remote = engine

    @property
    def fingerprint(self) -> Json:
        return {"weights": self._remote.weights}

    def serve(self, folder: Path | None) -> None: ...

    async def engine(self) -> Any:
        return self._remote

    async def aclose(self) -> None: ...


def _ends(folder: Path, tokenizer: ChatTokenizer) -> set[int]:
    """Tokens that end a turn: what the checkpoint's files say, ``generation_config.json`` first."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return {found} if isinstance(found, int) else set(found)
    return set() if tokenizer.eos_id is None else {tokenizer.eos_id}
