"""Where verl's agent loops get their rollouts: what they ask for in a step is run as one batch of the rollout engine.

verl asks for all rollouts of a step, or of an evaluation, at once, and waits for the last of them. So requests are
gathered until no more come, run together, and answered together: with the tokens that the policy said, the reward, and
what each token weighs in the loss.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightningrun.errors import LightningError, StageFailed
from lightningrun.rollouts.engine import RolloutRequest
from lightningrun.stages.base import StageContext
from lightningrun.stages.evaluate.gate import row_mean, scores_by_row
from lightningrun.stages.statistics import mean
from lightningrun.stages.verl_grpo.batch import Batch, Group
from lightningrun.stages.verl_grpo.cluster.policy import RemoteEngine, VerlPolicy
from lightningrun.stages.verl_grpo.cluster.wire import LONGEST, Line, Message
from lightningrun.stages.verl_grpo.config import GrpoConfig
from lightningrun.stages.verl_grpo.outcome import JUDGED, LITTLE, success_of
from lightningrun.stages.verl_grpo.serving import Sampler
from lightningrun.stages.verl_grpo.trajectories import Trajectory, sample_of
from lightningrun.types import Rollout, Task

_QUIET_S = 3.0
"""So long without another request, and the batch is taken to be whole although it is not: verl asked for a few more."""
_AGAIN = 10_000_000
"""Added to the samples of a row that comes a second time in one step."""

_TOKEN = {"prompt": [0], "response": [0], "mask": [1], "logprobs": [0.0], "shares": [1.0]}
"""Stands for a rollout of an evaluation: what verl makes of its tokens is used nowhere."""


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
    def judged(self) -> bool:
        return self.split == "eval"


class Hub:
    """Answers verl's agent loops. ``trained`` and ``evaluated`` are told what came of each batch."""

    def __init__(
        self,
        ctx: StageContext,
        engine: RemoteEngine,
        rows: Sequence[Task],
        trained: Callable[[int, Batch, dict[str, float]], None],
        evaluated: Callable[[int, float], Awaitable[None]],
    ) -> None:
        """``rows``: all that will be trained on, in order, as verl has them."""
        self._ctx = ctx
        self._config: GrpoConfig = ctx.config
        self._engine = engine
        self._provider = VerlPolicy(self._config.policy, engine)
        self._rows = rows
        self._judged = ctx.data.splits[self._config.eval.split].tasks
        self._trained = trained
        self._evaluated = evaluated
        self._waiting: asyncio.Queue[_Asked] = asyncio.Queue()
        self._greedy: float | None = None
        self._step = 0
        self._groups: list[Group] = []
        """Of that step, those included that verl asked for in the place of others."""
        self.sequences = 0
        """Of the last step."""

    @contextlib.asynccontextmanager
    async def listening(self, socket: Path) -> AsyncIterator[None]:
        """Take lines at ``socket``."""

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
        return len(self._judged) * config.eval.samples if first.judged else config.batch * config.group_size

    async def _answer(self, asked: Message) -> Message:
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        await self._waiting.put(
            _Asked(asked["split"], asked["index"], asked["step"], asked["uid"], asked["session"], future)
        )
        return await future

    async def _serve(self, batch: Sequence[_Asked]) -> None:
        for judged in (True, False):
            mine = [one for one in batch if one.judged is judged]
            if mine and judged:
                await self._judge(mine)
            elif mine:
                await self._train(mine)

    # A step

    async def _train(self, asked: Sequence[_Asked]) -> None:
        config, step = self._config, asked[0].step
        requests = self._requests(asked)
        self._answers_by(step - 1)
        with self._sampling(config.sampling.temperature):
            rollouts = await self._rolled_out(requests)
        by_group: dict[str, list[int]] = {}
        for place, one in enumerate(asked):
            by_group.setdefault(one.uid, []).append(place)
        groups = [
            Group(requests[places[0]].task, [rollouts[place] for place in places]) for places in by_group.values()
        ]
        if step != self._step:
            self._step, self._groups = step, []
        self._groups += groups
        made = Batch(config.batch, self._groups)
        if not made.chosen:
            raise StageFailed(f"no row of step {step} has two rollouts with a score: nothing can be learned from it")
        if self._greedy is not None:
            made.extra = self._compared(made)
        samples = made.samples(self._ctx.service.read, config.policy, config.train_on)
        self.sequences = 0
        for places, group in zip(by_group.values(), groups, strict=True):
            for place in places:
                told = self._told(rollouts[place], step - 1, usable=len(group.scores) > 1)
                self.sequences += len(told["sequences"])
                asked[place].answer.set_result(told)
        self._trained(step, made, made.health(samples))

    def _requests(self, asked: Sequence[_Asked]) -> list[RolloutRequest]:
        """A row that comes twice in a step, under two ``uid``, is sampled anew the second time."""
        config = self._config
        met: dict[str, dict[str, int]] = {}
        found = []
        for one in asked:
            task = self._rows[one.row]
            again = met.setdefault(task.id, {})
            again.setdefault(one.uid, len(again))
            sample = one.step * config.group_size + one.session + _AGAIN * again[one.uid]
            found.append(RolloutRequest(task, self._ctx.prompts, sample))
        return found

    def _told(self, rollout: Rollout, weights: int, usable: bool) -> Message:
        """What an agent loop makes of a rollout. Without sequences verl leaves it out."""
        reward = rollout.score if usable and rollout.status.scored else None
        trajectories = self._trajectories(rollout, reward or 0.0) if reward is not None else []
        tokens = sum(len(turn.said) for trajectory in trajectories for turn in trajectory)
        whole = self._config.aggregate == "trajectory"
        return {
            "reward": reward or 0.0,
            "turns": 2 * rollout.llm_calls,
            "weights": weights,
            "sequences": [sequence(one, tokens if whole else None) for one in trajectories],
        }

    def _trajectories(self, rollout: Rollout, reward: float) -> list[Trajectory]:
        config = self._config
        calls = [self._ctx.service.read(ref) for ref in rollout.call_refs]
        parts = [calls] if config.aggregate == "trajectory" else [[call] for call in calls]
        return [
            trajectory
            for part in parts
            for trajectory in sample_of(part, config.policy, config.train_on, 0, reward).trajectories
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
                {"reward": rollout.score or 0.0, "turns": 2 * rollout.llm_calls, "weights": step, "sequences": [_TOKEN]}
            )

    async def _answer_greedily(self) -> None:
        """The rows of the first step once more, at temperature 0: is there anything that RL could make likelier?"""
        requests = [RolloutRequest(row, self._ctx.prompts, JUDGED - 1) for row in self._rows[: self._config.batch]]
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
        return await self._ctx.engine.run(requests, total=self._ctx.engine.done + len(requests))


def sequence(trajectory: Trajectory, tokens: int | None) -> Message:
    """A trajectory as verl has sequences. Each token said weighs 1/``tokens``; None: of this sequence alone."""
    first, *later = trajectory
    said = [*first.said]
    mask = [1] * len(first.said)
    logprobs = [*first.logprobs]
    for turn in later:
        said += [*turn.seen, *turn.said]
        mask += [0] * len(turn.seen) + [1] * len(turn.said)
        logprobs += [0.0] * len(turn.seen) + [*turn.logprobs]
    weight = 1.0 / (tokens or sum(mask))
    shares = [weight * flag for flag in mask]
    return {"prompt": [*first.seen], "response": said, "mask": mask, "logprobs": logprobs, "shares": shares}
