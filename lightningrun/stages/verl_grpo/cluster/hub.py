"""Where verl's agent loops get their rollouts: what they ask for in a step is run as one batch of the rollout engine.

verl asks for all rollouts of a step, or of an evaluation, at once, and waits for the last of them. So requests are
gathered until no more come, run together, and answered together: with the tokens that the policy said, the rewards, and
what each token weighs in the loss. Which rows a step is about is decided here, as on the other backend: verl knows
numbers of rows only, and never looks at what they stand for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningrun.errors import LightningError, StageFailed
from lightningrun.rollouts.engine import RolloutRequest
from lightningrun.stages.base import StageContext
from lightningrun.stages.evaluate.gate import row_mean, scores_by_row
from lightningrun.stages.statistics import mean
from lightningrun.stages.verl_grpo.batch import Batch, Group, preferred
from lightningrun.stages.verl_grpo.cluster.policy import RemoteEngine, VerlPolicy
from lightningrun.stages.verl_grpo.cluster.wire import LONGEST, Line, Message
from lightningrun.stages.verl_grpo.config import GrpoConfig
from lightningrun.stages.verl_grpo.outcome import JUDGED, LITTLE, success_of
from lightningrun.stages.verl_grpo.rows import Rows
from lightningrun.stages.verl_grpo.serving import Sampler
from lightningrun.stages.verl_grpo.trajectories import Sample, Trajectory, Turn, sample_of
from lightningrun.types import Rollout

_QUIET_S = 3.0
"""So long without another request, and the batch is taken to be whole although it is not: verl asked for a few more."""
_TOKEN = {"prompt": [0], "response": [0], "mask": [1], "logprobs": [0.0], "shares": [1.0]}
"""Stands for a rollout of an evaluation: what verl makes of its tokens is used nowhere."""


class CallsHaveRewards(Exception):
    """The reward function gives ``steps``, and verl was started to compare whole rollouts."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far the rows have been drawn when a step is done."""

    rows: Mapping[str, Any]
    groups: int
    """Numbers the samples, so that no rollout is asked for twice."""


@dataclass(slots=True)
class _Asked:
    """A rollout that an agent loop waits for. ``step`` counts the step that verl is in, from 1; evaluations: from 0."""

    split: str
    row: int
    step: int
    uid: str
    session: int
    answer: asyncio.Future[Message]

    @property
    def is_judged(self) -> bool:
        return self.split == "eval"


class Hub:
    """Answers verl's agent loops. ``trained`` and ``evaluated`` are told what came of each batch."""

    def __init__(
        self,
        ctx: StageContext,
        engine: RemoteEngine,
        places: dict[int, Place],
        trained: Callable[[int, Batch, dict[str, float]], None],
        evaluated: Callable[[int, float], Awaitable[None]],
    ) -> None:
        """``places`` after the steps that were done before; those of further ones are put there."""
        self._ctx = ctx
        self._config: GrpoConfig = ctx.config
        self._engine = engine
        self._provider = VerlPolicy(self._config.policy, engine)
        self._places = places
        self.by_call = False
        """Whether verl compares single calls, each by its own reward."""
        self._judged = ctx.data.splits[self._config.eval.split].tasks
        self._trained = trained
        self._evaluated = evaluated
        self._waiting: asyncio.Queue[_Asked] = asyncio.Queue()
        self._greedy: float | None = None
        self._step = 0
        self._groups: list[Group] = []
        """Of that step, those included that others took the place of."""
        self.sequences = 0
        """Of the last step."""

    @contextlib.asynccontextmanager
    async def listening(self, socket: Path) -> AsyncIterator[None]:
        """Take lines at ``socket``, of a trainer that has just begun."""
        self._step, self._groups, self._waiting = 0, [], asyncio.Queue()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = Line(reader, writer, self._answer)
            self._engine.lines.append(line)
            try:
                await line.serve()
            finally:
                self._engine.lines.remove(line)

        server = await asyncio.start_unix_server(take, path=socket, limit=LONGEST)
        try:
            yield
        finally:
            server.close()
            for line in list(self._engine.lines):
                line.close()

    async def run(self) -> None:
        """Serve batch after batch, until cancelled. Raises what ends the stage."""
        while True:
            batch = [await self._waiting.get()]
            with contextlib.suppress(asyncio.TimeoutError):
                while len(batch) < self._wanted(batch[0]):
                    batch.append(await asyncio.wait_for(self._waiting.get(), _QUIET_S))
            try:
                await self._serve(batch)
            except LightningError as error:
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(StageFailed(f"the stage failed: {error.message}"))
                raise

    def _wanted(self, first: _Asked) -> int:
        config = self._config
        return len(self._judged) * config.eval.samples if first.is_judged else config.batch * config.group_size

    async def _answer(self, asked: Message) -> Message:
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        await self._waiting.put(
            _Asked(asked["split"], asked["index"], asked["step"], asked["uid"], asked["session"], future)
        )
        return await future

    async def _serve(self, batch: Sequence[_Asked]) -> None:
        for judged in (True, False):
            mine = [one for one in batch if one.is_judged is judged]
            if mine and judged:
                await self._judge(mine)
            elif mine:
                await self._train(mine)

    # A step

    async def _train(self, asked: Sequence[_Asked]) -> None:
        config, step = self._config, asked[0].step
        wanted: dict[str, list[_Asked]] = {}
        for one in asked:
            wanted.setdefault(one.uid, []).append(one)
        if step != self._step:
            self._step, self._groups = step, []
        self._answers_by(step - 1)
        new = await self._drawn(step, len(wanted))
        made = Batch(config.batch, self._groups)
        if not made.chosen:
            raise StageFailed(f"no row of step {step} has two rollouts with a score: nothing can be learned from it")
        if self._greedy is not None:
            made.extra = self._compared(made)
        samples = made.samples(self._ctx.service.read, config.policy, config.train_on)
        self.sequences = 0
        for mine, group in zip(wanted.values(), new, strict=False):
            for one, rollout in zip(mine, group.rollouts, strict=False):
                told = self._told(rollout, step - 1, usable=len(group.scores) > 1)
                self.sequences += len(told["sequences"])
                one.answer.set_result(told)
        for one in asked:  # where the split has fewer rows than verl wants
            if not one.answer.done():
                one.answer.set_result({"reward": 0.0, "turns": 0, "weights": step - 1, "sequences": []})
        self._trained(step, made, made.health(samples))

    async def _drawn(self, step: int, count: int) -> list[Group]:
        """``count`` groups for verl, of fresh rows: those with variance before others, as many as ``resample`` brings.

        Which rows come depends on the steps before alone, whatever was done of this one before a kill.
        """
        config = self._config
        rows, first = self._rows_of(step)
        new: list[Group] = []
        allowed = max(count, round(count * config.resample))
        while (missing := count - sum(group.live for group in new)) and (room := allowed - len(new)) > 0:
            taken = rows.take(min(missing, room), {group.row.id for group in (*self._groups, *new)})
            if not taken:
                break
            begin = first + len(new)
            requests = [
                RolloutRequest(row, self._ctx.prompts, (begin + place) * config.group_size + member)
                for place, row in enumerate(taken)
                for member in range(config.group_size)
            ]
            with self._sampling(config.sampling.temperature):
                rollouts = await self._rolled_out(requests)
            size = config.group_size
            new += [Group(row, rollouts[place * size : (place + 1) * size]) for place, row in enumerate(taken)]
        for group in new:
            if group.all_right(success_of(self._ctx)):
                rows.solved(group.row.id)
        self._groups += new
        self._places[step] = Place(rows.place, first + len(new))
        return preferred(new, count)

    def _rows_of(self, step: int) -> tuple[Rows, int]:
        """Where the drawing for this step goes on, and how many groups came before. verl may ask twice in a step."""
        rows = Rows(self._ctx.data.splits[self._config.split].tasks, self._ctx.seed, self._config.rest)
        place = self._places.get(step if self._groups else step - 1)
        if place is None:
            return rows, 0
        rows.resume(dict(place.rows))
        return rows, place.groups

    def _told(self, rollout: Rollout, weights: int, usable: bool) -> Message:
        """What an agent loop makes of a rollout. Without sequences verl leaves it out."""
        reward = rollout.score if usable and rollout.status.scored else None
        samples = self._samples(rollout, reward) if reward is not None else []
        tokens = sum(sample.tokens for sample in samples)
        whole = self._config.aggregate == "trajectory"
        return {
            "reward": reward or 0.0,
            "turns": 2 * rollout.llm_calls,
            "weights": weights,
            "sequences": [
                sequence(one, tokens if whole else None, sample.reward, self.by_call)
                for sample in samples
                for trajectory in sample.trajectories
                for one in (apart(trajectory) if self.by_call else [trajectory])
            ],
        }

    def _samples(self, rollout: Rollout, reward: float) -> list[Sample]:
        config = self._config
        calls = [self._ctx.service.read(ref) for ref in rollout.call_refs]
        if config.aggregate == "trajectory":
            return [sample_of(calls, config.policy, config.train_on, 0, reward, rollout.steps)]
        steps = rollout.steps if len(rollout.steps) == len(calls) else ()
        return [
            sample_of([call], config.policy, config.train_on, 0, reward, steps[place : place + 1])
            for place, call in enumerate(calls)
        ]

    # An evaluation

    async def _judge(self, asked: Sequence[_Asked]) -> None:
        config, step = self._config, asked[0].step
        first = JUDGED + step * config.eval.samples
        requests = [RolloutRequest(self._judged[one.row], self._ctx.prompts, first + one.session) for one in asked]
        self._answers_by(step)
        with self._ctx.service.stand_in(config.policy, self._provider):
            rollouts = await self._rolled_out(requests)
        by_row = scores_by_row(rollouts)
        if not by_row:
            raise StageFailed(f"not one rollout on {config.eval.split!r} has a score")
        heavy = any(task.weight != 1.0 for task in self._judged)
        reward = row_mean(by_row, {task.id: task.weight for task in self._judged} if heavy else {})
        if step == 0:
            await self._answer_greedily()
        await self._evaluated(step, reward)
        for one, rollout in zip(asked, rollouts, strict=True):
            one.answer.set_result(
                {
                    "reward": rollout.score or 0.0,
                    "turns": 2 * rollout.llm_calls,
                    "weights": step,
                    "sequences": [{**_TOKEN, "rewards": [rollout.score or 0.0]}],
                }
            )

    async def _answer_greedily(self) -> None:
        """The rows of the first step once more, at temperature 0: is there anything that RL could make likelier?"""
        rows = self._rows_of(1)[0].take(self._config.batch)
        requests = [RolloutRequest(row, self._ctx.prompts, JUDGED - 1) for row in rows]
        with self._sampling(0.0):
            once = await self._rolled_out(requests)
        self._greedy = mean([float((one.score or 0.0) >= success_of(self._ctx)) for one in once])

    def _compared(self, batch: Batch) -> dict[str, float]:
        often = mean([float(group.any_right(success_of(self._ctx))) for group in batch.groups])
        greedy, self._greedy = self._greedy or 0.0, None
        if often - greedy < LITTLE:
            self._ctx.warn(
                f"RL has little to learn from: {self._config.group_size} samples get {often:.0%} of rows right at "
                f"least once, one greedy answer {greedy:.0%}"
            )
        return {"start.greedy": greedy, f"start.pass_at_{self._config.group_size}": often}

    # Both

    def _answers_by(self, step: int) -> None:
        self._engine.weights = f"{self._ctx.stage}/{self._ctx.work.name}/step-{step}"

    @contextlib.contextmanager
    def _sampling(self, temperature: float) -> Iterator[None]:
        sampler = Sampler(self._provider, temperature, self._config.sampling.max_tokens)
        with self._ctx.service.stand_in(self._config.policy, sampler):
            yield

    async def _rolled_out(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        rollouts = await self._ctx.engine.run(requests, total=self._ctx.engine.done + len(requests))
        if not self.by_call and any(one.steps for one in rollouts):
            raise CallsHaveRewards
        return rollouts


def sequence(trajectory: Trajectory, tokens: int | None, reward: float, by_call: bool) -> Message:
    """A trajectory as verl has sequences. Each token said weighs 1/``tokens``; None: of this sequence alone.

    ``reward`` of the rollout is at its last token; ``by_call``: at the last of each call is the call's, or that.
    """
    first, *later = trajectory
    said = [*first.said]
    mask = [1] * len(first.said)
    logprobs = [*first.logprobs]
    ends = [len(said) - 1]
    for turn in later:
        said += [*turn.seen, *turn.said]
        mask += [0] * len(turn.seen) + [1] * len(turn.said)
        logprobs += [0.0] * len(turn.seen) + [*turn.logprobs]
        ends.append(len(said) - 1)
    weight = 1.0 / (tokens or sum(mask))
    rewards = [0.0] * len(said)
    for end, turn in zip(ends, trajectory, strict=True):
        if by_call:
            rewards[end] = reward if turn.reward is None else turn.reward
    if not by_call:
        rewards[-1] = reward
    return {
        "prompt": [*first.seen],
        "response": said,
        "mask": mask,
        "logprobs": logprobs,
        "shares": [weight * flag for flag in mask],
        "rewards": rewards,
    }


def apart(trajectory: Trajectory) -> Iterator[Trajectory]:
    """Cut before a call that follows another's answer at once: verl tells calls apart by what stands between them."""
    ids: tuple[int, ...] = ()
    piece: list[Turn] = []
    for turn in trajectory:
        if piece and not turn.seen:
            yield tuple(piece)
            piece = [Turn(ids, turn.said, turn.logprobs, turn.reward)]
        else:
            piece.append(turn)
        ids = (*ids, *turn.seen, *turn.said)
    yield tuple(piece)
