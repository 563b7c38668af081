"""The embedded engine: many requests decoded together in one worker thread, in process.

Requests join the running batch at any step and leave it when they end (continuous batching, Yu et al., 2022). Equal
prompts are computed once. A completion depends on weights, prompt, sampling and its index, not on its company: its
noise is its own, and the layout gives float32 products on a CPU the same bits in any batch of up to some hundred rows
(on a GPU, or in bfloat16, only up to rounding).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lightningrun.errors import LightningError, Missing, ModelError, UsageError
from lightningrun.models.local import checkpoint
from lightningrun.models.local.cached import Cache, CachedDecoder, Prompt
from lightningrun.models.local.decoder import Decoder
from lightningrun.models.local.sampling import Noise, Sampling, draw
from lightningrun.models.local.tokenizer import ChatTokenizer
from lightningrun.models.provider import RefusedRequest

_DROP_AT = 0.2
"""Ended rows are computed on until they are this share of the batch: moving the caches costs more than a few rows."""
_PROMPT_BYTES = 256 << 20
"""Caches of recent prompts that are kept for the next request."""
_GATHER_S = 0.001
"""How long an idle engine waits after a first request for those that come with it."""
_ONE_THREAD_BELOW = 20_000_000
"""Parameters under which a second thread costs more than it gives."""
_IDLE = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer, exactly as it was sampled."""

    ids: list[int]
    """With the token that ended it."""
    logprobs: list[float]
    """Of ``ids`` under ``log_softmax(logits / temperature)``, before top-k and top-p; see ``sampling.draw``."""
    finish: str
    """stop | length"""
    weights: str
    """Which weights: the digest of the checkpoint, or what ``update_weights`` was told."""
    stop: str = ""
    """The stop text that ended it."""
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    """The likeliest tokens at each place, if ``top_logprobs`` asked for them."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a stream. ``completion`` comes with the last one of its index."""

    index: int
    id: int
    logprob: float
    tops: list[tuple[int, float]]
    completion: Completion | None


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request: ``n`` completions of one prompt. ``done`` and ``said`` run in the asker's loop, if it has one."""

    prompt: tuple[int, ...]
    sampling: Sampling
    n: int
    loop: asyncio.AbstractEventLoop | None
    done: Callable[[list[Completion] | None, LightningError | None], None]
    said: Callable[[Token], None] | None = None
    begun: int = 0
    completions: dict[int, Completion] = field(default_factory=dict)
    ended: bool = False
    """Answered, failed, or given up by the asker."""


@dataclass(slots=True, eq=False)
class _Row:
    ticket: _Ticket
    index: int
    noise: Noise
    limit: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Swap:
    source: Decoder
    label: str
    done: concurrent.futures.Future[str]


class LocalEngine:
    """A checkpoint, ready to answer. Use from any thread; ``aclose`` or ``close`` ends its thread."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 256,
        context: int | None = None,
    ) -> None:
        """Load ``folder``. Raises UsageError (a bad checkpoint), Missing (no such device), ModelError (no memory)."""
        self.folder = folder
        self.tokenizer = ChatTokenizer.load(folder)
        self.device, self.dtype = placed(device, dtype)
        self.weights = checkpoint.content_digest(folder)
        try:
            decoder = checkpoint.load(folder, dtype=self.dtype, device=self.device)
            self._decoder = CachedDecoder(decoder, self.device, self.dtype)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise _failure(error, str(folder)) from error
        self.shape = decoder.shape
        self.context = min(context or self.shape.context, self.shape.context)
        ends = self.shape.special.get("eos_token_id", self.tokenizer.eos_id)
        self.end_ids = frozenset([ends] if isinstance(ends, int) else ends or ())
        self.parameters = sum(weight.numel() for weight in decoder.parameters())
        self.tokens = 0
        """Sampled so far."""
        self._max_batch = max_batch
        self._inbox: queue.SimpleQueue[_Ticket | _Swap | None] = queue.SimpleQueue()
        self._waiting: deque[_Ticket | _Swap] = deque()
        self._rows: list[_Row | None] = []
        self._cache = Cache(self._decoder)
        self._logits = torch.empty(0)
        self._prompts: OrderedDict[tuple[int, ...], Prompt] = OrderedDict()
        self._prompt_bytes = 0
        self._mail: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
        self._dead: LightningError | None = None
        self._thread = threading.Thread(target=self._work, name="local-engine", daemon=True)
        self._thread.start()

    async def generate(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> list[Completion]:
        """``n`` completions of ``prompt``. Raises RefusedRequest if they cannot fit, ModelError. Cancel to give up."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Completion]] = loop.create_future()
        ticket = self._submit(prompt, sampling, n, loop, partial(_resolve, future))
        try:
            return await future
        finally:
            ticket.ended = True

    async def stream(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> AsyncGenerator[Token, None]:
        """The tokens of ``n`` completions as they are sampled; close the iterator to give up."""
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[Token | LightningError | None] = asyncio.Queue()
        ticket = self._submit(prompt, sampling, n, loop, lambda _, error: said.put_nowait(error), said.put_nowait)
        try:
            while (token := await said.get()) is not None:
                if isinstance(token, LightningError):
                    raise token
                yield token
        finally:
            ticket.ended = True

    def generate_many(self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int = 1) -> list[list[Completion]]:
        """``n`` completions of each prompt, blocking. Raises as ``generate``."""
        futures: list[concurrent.futures.Future[list[Completion]]] = []
        for prompt in prompts:
            futures.append(concurrent.futures.Future())
            self._submit(prompt, sampling, n, None, partial(_resolve, futures[-1]))
        return [future.result() for future in futures]

    def update_weights(self, source: Decoder | Mapping[str, Tensor], label: str = "") -> concurrent.futures.Future[str]:
        """Answer later requests with the weights of ``source``, of the same shape; earlier ones end with the old.

        Done when they are copied (wait for that before training on): its result is the new ``weights``, which is
        ``label`` (it must name equal weights equally: ``grpo/step-12`` of a resumable stage does) or a digest of them.
        """
        if not isinstance(source, Decoder):
            state, source = source, self._blank()
            try:
                source.load_state_dict(dict(state), assign=True)
            except RuntimeError as error:
                raise UsageError(f"these weights do not fit the model: {error}", where=str(self.folder)) from error
        if source.shape != self.shape:
            raise UsageError("these weights are of a model of another shape", where=str(self.folder))
        done: concurrent.futures.Future[str] = concurrent.futures.Future()
        self._put(_Swap(source, label or checkpoint.weights_digest(source.state_dict()), done))
        return done

    def _blank(self) -> Decoder:
        with torch.device("meta"):
            return Decoder(self.shape)

    def close(self) -> None:
        """End the thread; whoever still waits gets a ModelError."""
        self._inbox.put(None)
        self._thread.join(timeout=30)

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)

    def _submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        n: int,
        loop: asyncio.AbstractEventLoop | None,
        done: Callable[[list[Completion] | None, LightningError | None], None],
        said: Callable[[Token], None] | None = None,
    ) -> _Ticket:
        self._check_fits(prompt, sampling)
        ticket = _Ticket(tuple(prompt), sampling, n, loop, done, said)
        self._put(ticket)
        return ticket

    def _put(self, item: _Ticket | _Swap) -> None:
        if self._dead is not None:
            raise self._dead
        self._inbox.put(item)
        self._bury_if_dead()  # it may have died between, and then nobody reads the inbox any more

    def _check_fits(self, prompt: Sequence[int], sampling: Sampling) -> None:
        wanted = 1 if sampling.max_tokens is None else sampling.max_tokens
        if len(prompt) + wanted > self.context:
            raise _refused(
                f"the prompt has {len(prompt)} tokens and {wanted} are asked for: "
                f"{len(prompt) + wanted} are over the model's context of {self.context}",
                "context_length_exceeded",
            )
        if not prompt or min(prompt) < 0 or max(prompt) >= self.shape.vocab:
            raise _refused(
                f"the prompt must be tokens from 0 to {self.shape.vocab - 1}, at least one", "invalid_prompt"
            )

    # From here on everything runs in the worker thread.

    def _work(self) -> None:
        error: LightningError = ModelError("the engine was closed", kind="engine_closed")
        try:
            if self.parameters < _ONE_THREAD_BELOW and self.device.type == "cpu":
                torch.set_num_threads(1)
            with torch.inference_mode():
                while self._receive():
                    try:
                        self._admit()
                        self._step()
                    except Exception as raised:
                        self._fail(_failure(raised, str(self.folder)))
                    self._send_mail()
        except BaseException as raised:
            error = _failure(raised, str(self.folder))
            if not isinstance(raised, Exception):
                raise
        finally:
            self._dead = error
            self._fail(error)
            self._bury_if_dead()

    def _receive(self) -> bool:
        """Take what has come in; wait for it if there is nothing else to do. False at the end."""
        if not self._rows and not self._waiting:
            first = self._inbox.get()
            if first is None:
                return False
            self._waiting.append(first)
            if self._inbox.empty() and isinstance(first, _Ticket):
                time.sleep(_GATHER_S)
        while not self._inbox.empty():
            item = self._inbox.get()
            if item is None:
                return False
            self._waiting.append(item)
        return True

    def _admit(self) -> None:
        """Give waiting requests rows, in order, while there is room. New weights wait until no row is left."""
        joining: list[_Row] = []
        alive = sum(row is not None for row in self._rows)
        while self._waiting:
            item = self._waiting[0]
            if isinstance(item, _Swap):
                if alive or joining:
                    break
                self._swap(item)
                self._waiting.popleft()
                continue
            while not item.ended and item.begun < item.n and alive + len(joining) < self._max_batch:
                joining.append(self._row(item))
            if not item.ended and item.begun < item.n:
                break
            self._waiting.popleft()
        if joining:
            if len(self._rows) > alive:
                self._drop()
            kept = self._logits[: len(self._rows)]
            self._rows += joining
            prompts = self._prefilled([row.ticket.prompt for row in joining])
            self._cache.add(prompts)
            fresh = torch.stack([prompt.logits for prompt in prompts])
            self._logits = torch.cat((kept, fresh)) if len(kept) else fresh

    def _row(self, ticket: _Ticket) -> _Row:
        room = self.context - len(ticket.prompt)
        limit = room if ticket.sampling.max_tokens is None else ticket.sampling.max_tokens
        row = _Row(ticket, ticket.begun, Noise(ticket.sampling.seed, ticket.prompt, ticket.begun), limit)
        ticket.begun += 1
        return row

    def _prefilled(self, wanted: Sequence[tuple[int, ...]]) -> list[Prompt]:
        new = [prompt for prompt in dict.fromkeys(wanted) if prompt not in self._prompts]
        for prompt, made in zip(new, self._decoder.prefill(new), strict=True):
            self._prompts[prompt] = made
            self._prompt_bytes += made.bytes
        found = []
        for prompt in wanted:
            self._prompts.move_to_end(prompt)
            found.append(self._prompts[prompt])
        while self._prompt_bytes > _PROMPT_BYTES and len(self._prompts) > 1:
            self._prompt_bytes -= self._prompts.popitem(last=False)[1].bytes
        return found

    def _swap(self, swap: _Swap) -> None:
        self._forget()
        self._decoder.load(swap.source)
        self.weights = swap.label
        swap.done.set_result(swap.label)

    def _forget(self) -> None:
        self._rows = []
        self._cache = Cache(self._decoder)
        self._prompts.clear()
        self._prompt_bytes = 0

    def _step(self) -> None:
        """Draw one token for each row, then compute what follows it."""
        if not self._rows:
            return
        rows = self._rows
        for place, row in enumerate(rows):
            if row is not None and row.ticket.ended:
                rows[place] = None
        choices = [_IDLE if row is None else row.ticket.sampling for row in rows]
        noise = [0.0 if row is None or row.ticket.sampling.temperature == 0 else row.noise.next() for row in rows]
        ids, logprobs, every = draw(self._logits, choices, noise)
        tops = self._tops(every, choices)
        said = ids.tolist()
        for place, (token, logprob) in enumerate(zip(said, logprobs.tolist(), strict=True)):
            row = rows[place]
            if row is not None and self._take(row, token, logprob, tops.get(place, [])):
                rows[place] = None
        alive = sum(row is not None for row in rows)
        if len(rows) - alive > _DROP_AT * len(rows) or not alive:
            chosen = self._drop()
            ids = ids[torch.tensor(chosen, dtype=torch.long, device=ids.device)]
        if self._rows:
            self._logits = self._decoder.step(ids, self._cache)

    def _tops(self, log_probs: Tensor, choices: Sequence[Sampling]) -> dict[int, list[tuple[int, float]]]:
        places = [place for place, choice in enumerate(choices) if choice.top_logprobs]
        if not places:
            return {}
        most = min(max(choices[place].top_logprobs for place in places), self.shape.vocab)
        values, ids = log_probs[places].topk(most)
        return {
            place: list(zip(*pair, strict=True))[: choices[place].top_logprobs]
            for place, *pair in zip(places, ids.tolist(), values.tolist(), strict=True)
        }

    def _take(self, row: _Row, token: int, logprob: float, tops: list[tuple[int, float]]) -> bool:
        """Give a row its token; True if that ends it."""
        ticket = row.ticket
        if logprob != logprob:
            text = "the model's logits are not numbers: its weights are broken"
            self._answer(ticket, None, ModelError(text, kind="nan", where=str(self.folder)))
            return True
        self.tokens += 1
        row.ids.append(token)
        row.logprobs.append(logprob)
        if tops:
            row.tops.append(tops)
        stop = self._stop_text(row) if ticket.sampling.stop else ""
        stopped = bool(stop) or token in self.end_ids or token in ticket.sampling.stop_ids
        completion = None
        if stopped or len(row.ids) >= row.limit:
            finish = "stop" if stopped else "length"
            completion = Completion(row.ids, row.logprobs, finish, self.weights, stop, row.tops)
            ticket.completions[row.index] = completion
        if ticket.said is not None:
            self._post(ticket, partial(ticket.said, Token(row.index, token, logprob, tops, completion)))
        if len(ticket.completions) == ticket.n:
            self._answer(ticket, [ticket.completions[index] for index in range(ticket.n)], None)
        return completion is not None

    def _stop_text(self, row: _Row) -> str:
        """The stop text that the last token completed, the one that begins first."""
        longest = max(len(stop.encode()) for stop in row.ticket.sampling.stop)
        text = self.tokenizer.decode(row.ids[-longest - 4 :])  # a token is a byte or more
        found = [(text.find(stop), stop) for stop in row.ticket.sampling.stop if stop in text]
        return min(found)[1] if found else ""

    def _drop(self) -> list[int]:
        """Forget ended rows; returns the places of the others."""
        chosen = [place for place, row in enumerate(self._rows) if row is not None]
        self._rows = [self._rows[place] for place in chosen]
        self._cache.keep(chosen)
        if len(self._logits):
            self._logits = self._logits[torch.tensor(chosen, dtype=torch.long, device=self._logits.device)]
        return chosen

    def _answer(self, ticket: _Ticket, completions: list[Completion] | None, error: LightningError | None) -> None:
        if not ticket.ended:
            ticket.ended = True
            self._post(ticket, partial(ticket.done, completions, error))

    def _post(self, ticket: _Ticket, call: Callable[[], None]) -> None:
        if ticket.loop is None:
            call()
        else:
            self._mail.setdefault(ticket.loop, []).append(call)

    def _send_mail(self) -> None:
        """Wake each waiting loop once a step, however many tokens it gets."""
        for loop, calls in self._mail.items():
            try:
                loop.call_soon_threadsafe(_run_all, calls)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass
        self._mail = {}

    def _fail(self, error: LightningError) -> None:
        """End everything under way with ``error``; what waits is not touched."""
        for row in self._rows:
            if row is not None:
                self._answer(row.ticket, None, error)
        for item in list(self._waiting):
            if isinstance(item, _Ticket) and item.begun:
                self._answer(item, None, error)
                self._waiting.remove(item)
        self._forget()
        self._send_mail()

    def _bury_if_dead(self) -> None:
        """Fail whatever is waiting for a thread that has ended."""
        error = self._dead
        if error is None:
            return
        while not self._inbox.empty():
            item = self._inbox.get()
            if item is not None:
                self._waiting.append(item)
        while self._waiting:
            item = self._waiting.popleft()
            if isinstance(item, _Ticket):
                self._answer(item, None, error)
            else:
                item.done.set_exception(error)
        self._send_mail()


def placed(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Where and in what numbers a model runs; ``auto`` is bfloat16 on a GPU, else float32 on the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise Missing(f"device {device} is asked for, and there is no GPU", hint="device: auto takes what is there")
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    try:
        chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
        return torch.device(device), chosen
    except (KeyError, RuntimeError) as error:
        raise UsageError(f"device {device!r} with dtype {dtype!r} is not known") from error


def _refused(message: str, code: str) -> RefusedRequest:
    detail = {"message": message, "type": "invalid_request_error", "code": code}
    return RefusedRequest(message, status=400, detail=detail)


def _failure(error: BaseException, where: str) -> LightningError:
    if isinstance(error, LightningError):
        return error
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error):
        hint = "lower max_batch, concurrency or max_tokens of this model"
        return ModelError("the engine ran out of memory", kind="out_of_memory", retryable=True, where=where, hint=hint)
    said = f"{type(error).__name__}: {error}"
    return ModelError(f"the engine failed: {said}", kind="engine", where=where)


def _resolve(
    future: asyncio.Future[list[Completion]] | concurrent.futures.Future[list[Completion]],
    completions: list[Completion] | None,
    error: LightningError | None,
) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif completions is not None:
        future.set_result(completions)


def _run_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
