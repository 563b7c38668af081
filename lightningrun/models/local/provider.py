"""``provider: local``: chat completions from the embedded engine, with the ids and log-probabilities that it sampled.

What was sampled goes with the answer under ``SAMPLED``, which the model service moves into the call's record: a stage
that trains reads it there, an agent never sees it. The engine is loaded at the first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lightningrun.errors import LightningError, ModelError, UsageError
from lightningrun.models.local.chat import Asked, Holder, answer_id, logprob_entry, marks_of, message_of
from lightningrun.models.local.engine import Completion, LocalEngine, placed
from lightningrun.models.local.folder import content_digest, find, is_output
from lightningrun.models.local.tokenizer import ChatTokenizer, TextStream
from lightningrun.models.provider import SAMPLED, Body, RefusedRequest
from lightningrun.types import Json
from lightningrun.waiting import timeout

if TYPE_CHECKING:
    from torch import Tensor

    from lightningrun.models.local.decoder import Decoder
    from lightningrun.recipe.model import ModelConfig


class LocalProvider:
    """One checkpoint and its engine. See ``Provider``."""

    secret = ""

    def __init__(self, config: ModelConfig, environ: Mapping[str, str], role: str) -> None:
        self._config = config
        self._where = f"models.{role}"
        self._engine: LocalEngine | None = None
        self._loading = asyncio.Lock()
        self._folder: Path | None = None
        self._digest = ""
        placed(config.device, config.dtype)  # a GPU that is not there is said now
        if not is_output(config.name):
            self.serve(None)

    @property
    def fingerprint(self) -> Json:
        """The weights that answer now."""
        return {"weights": self._engine.weights if self._engine else self._digest, "context": self._config.context}

    def serve(self, folder: Path | None) -> None:
        """Answer from the checkpoint in ``folder`` from now on, None: from the recipe's own. Nothing may be under way.

        An engine whose weights were updated in place is loaded anew. Raises UsageError if no checkpoint is there.
        """
        if folder is None and is_output(self._config.name):
            self._drop()
            self._folder, self._digest = None, ""
            return
        folder = find(self._config.name if folder is None else str(folder), f"{self._where}.name")
        digest = content_digest(folder)
        if self._engine is not None and self._engine.weights != digest:
            self._drop()
        self._folder, self._digest = folder, digest

    def _drop(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            gc.unfreeze()  # it is garbage now, once its thread has ended

    async def engine(self) -> LocalEngine:
        """The engine, loaded if it is not yet. Raises UsageError, Missing, ModelError."""
        async with self._loading:
            if self._engine is None:
                if self._folder is None:
                    raise UsageError(
                        f"{self._config.name} is not made yet",
                        where=f"{self._where}.name",
                        hint="stages that use this model come after the one that makes it",
                    )
                config = self._config
                self._engine = await asyncio.to_thread(
                    LocalEngine,
                    self._folder,
                    device=config.device,
                    dtype=config.dtype,
                    max_batch=config.max_batch,
                    context=config.context,
                )
                gc.collect()  # an engine that answered before
                gc.freeze()  # torch and the weights stay: to look through them for garbage takes half a second
            return self._engine

    async def update_weights(self, source: Decoder | Mapping[str, Tensor], label: str = "") -> str:
        """Answer later requests with these weights; see ``LocalEngine.update_weights``."""
        engine = await self.engine()
        return await asyncio.wrap_future(engine.update_weights(source, label))

    async def complete(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        asked = Asked.of(body)
        with self._errors(timeout_s):
            engine = await self.engine()
            prompt = _prompt(engine, asked)
            async with timeout(timeout_s):
                completions = await engine.generate(prompt, asked.sampling, asked.n)
            return self._completion(engine, body, asked, prompt, completions)

    async def stream(self, body: Body, timeout_s: float) -> AsyncGenerator[Body, None]:
        asked = Asked.of(body)
        end = time.monotonic() + timeout_s
        with self._errors(timeout_s):
            engine = await self.engine()
            prompt = _prompt(engine, asked)
            head = _head(body, engine.weights, prompt, asked, "chat.completion.chunk")
            voices = [_Voice(engine, asked, index) for index in range(asked.n)]
            yield {**head, "choices": [voice.choice({"role": "assistant", "content": ""}) for voice in voices]}
            async with contextlib.aclosing(engine.stream(prompt, asked.sampling, asked.n)) as tokens:
                completions: dict[int, Completion] = {}
                while len(completions) < asked.n:
                    token = await asyncio.wait_for(tokens.__anext__(), max(end - time.monotonic(), 0.001))
                    choice = voices[token.index].hear(token.id, token.logprob, token.tops, token.completion)
                    if choice is not None:
                        yield {**head, "choices": [choice]}
                    if token.completion is not None:
                        completions[token.index] = token.completion
                        yield {**head, "choices": [voices[token.index].end(token.completion)]}
            whole = [completions[index] for index in range(asked.n)]
            yield {**head, "choices": [], "usage": _usage(prompt, whole), SAMPLED: _sampled(prompt, whole)}

    def _completion(
        self, engine: LocalEngine, body: Body, asked: Asked, prompt: tuple[int, ...], completions: list[Completion]
    ) -> Body:
        choices = []
        for index, completion in enumerate(completions):
            message, finish = message_of(engine.tokenizer, completion, asked.tools is not None)
            entries = _logprobs(engine, completion) if asked.logprobs else None
            choices.append({"index": index, "message": message, "logprobs": entries, "finish_reason": finish})
        head = _head(body, completions[0].weights, prompt, asked, "chat.completion")
        return {
            **head,
            "choices": choices,
            "usage": _usage(prompt, completions),
            SAMPLED: _sampled(prompt, completions),
        }

    @contextlib.contextmanager
    def _errors(self, timeout_s: float):  # type: ignore[no-untyped-def]
        """Every failure as a ModelError that names this model."""
        try:
            yield
        except asyncio.TimeoutError as error:
            raise ModelError(
                f"gave no answer within {timeout_s:.3g} s", kind="timeout", retryable=True, where=self._where
            ) from error
        except RefusedRequest as error:
            raise RefusedRequest(error.message, status=400, detail=error.detail, where=self._where) from error
        except ModelError:
            raise
        except LightningError as error:
            raise ModelError(error.message, kind="not_found", where=error.where, hint=error.hint) from error

    async def aclose(self) -> None:
        if self._engine is not None:
            await self._engine.aclose()
            self._engine = None


class _Voice:
    """One choice of a stream."""

    def __init__(self, engine: LocalEngine, asked: Asked, index: int) -> None:
        self._engine = engine
        self._asked = asked
        self._index = index
        self._text = TextStream(engine.tokenizer)
        self._holder = Holder(marks_of(asked))
        self._said = ""

    def choice(self, delta: Body, finish: str | None = None, logprobs: list[Body] | None = None) -> Body:
        entries = {"content": logprobs} if logprobs else None
        return {"index": self._index, "delta": delta, "logprobs": entries, "finish_reason": finish}

    def hear(
        self, token: int, logprob: float, tops: list[tuple[int, float]], completion: Completion | None
    ) -> Body | None:
        """What a token lets be said; None if that is nothing."""
        ended = completion is not None and completion.finish == "stop" and not completion.stop
        text = "" if ended else self._holder.add(self._text.add(token))
        self._said += text
        entries = [logprob_entry(self._engine.tokenizer, token, logprob, tops)] if self._asked.logprobs else None
        return self.choice({"content": text} if text else {}, None, entries) if text or entries else None

    def end(self, completion: Completion) -> Body:
        """The last chunk: what was held back, tool calls, and the finish reason."""
        message, finish = message_of(self._engine.tokenizer, completion, self._asked.tools is not None)
        delta: Body = {}
        whole = message["content"] or ""
        if len(whole) > len(self._said):
            delta["content"] = whole[len(self._said) :]
        if "tool_calls" in message:
            delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(message["tool_calls"])]
        return self.choice(delta, finish)


def _prompt(engine: LocalEngine, asked: Asked) -> tuple[int, ...]:
    try:
        return _encoded(engine.tokenizer, _Said(repr((asked.messages, asked.tools)), asked))
    except UsageError as error:
        detail = {"message": error.message, "type": "invalid_request_error"}
        raise RefusedRequest(error.message, status=400, detail=detail) from error


@dataclass(frozen=True, slots=True)
class _Said:
    """What a prompt is made of; ``text`` tells one from another."""

    text: str
    asked: Asked = field(compare=False)


@lru_cache(maxsize=512)
def _encoded(tokenizer: ChatTokenizer, said: _Said) -> tuple[int, ...]:
    """Kept, since a group of rollouts asks the same: the template costs a tenth of a millisecond."""
    return tuple(tokenizer.encode(tokenizer.render(said.asked.messages, said.asked.tools)))


def _head(body: Body, weights: str, prompt: tuple[int, ...], asked: Asked, kind: str) -> Body:
    return {
        "id": answer_id(prompt, asked.sampling),
        "object": kind,
        "created": int(time.time()),
        "model": body.get("model"),
        "system_fingerprint": weights,
    }


def _usage(prompt: tuple[int, ...], completions: list[Completion]) -> Body:
    written = sum(len(completion.ids) for completion in completions)
    return {
        "prompt_tokens": len(prompt),
        "completion_tokens": written,
        "total_tokens": len(prompt) + written,
    }


def _sampled(prompt: tuple[int, ...], completions: list[Completion]) -> Body:
    choices = [{"ids": completion.ids, "logprobs": completion.logprobs} for completion in completions]
    return {"prompt_ids": list(prompt), "weights": completions[0].weights, "choices": choices}


def _logprobs(engine: LocalEngine, completion: Completion) -> Body:
    tops = completion.tops or [[] for _ in completion.ids]
    rows = zip(completion.ids, completion.logprobs, tops, strict=True)
    return {"content": [logprob_entry(engine.tokenizer, *row) for row in rows]}
