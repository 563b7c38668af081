"""The ``sft`` stage: gather demonstrations, turn them into tokens, imitate them, write a checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

from lightningrun.errors import StageFailed, UsageError
from lightningrun.files import digest, read_record, write_atomic
from lightningrun.models.local import checkpoint, lora
from lightningrun.models.local.decoder import Decoder
from lightningrun.models.local.engine import placed
from lightningrun.models.local.folder import content_digest, find
from lightningrun.models.local.template import WITHOUT_INSTRUCTIONS
from lightningrun.models.local.tokenizer import ChatTokenizer, train_tokenizer
from lightningrun.rollouts.engine import RolloutRequest
from lightningrun.stages.base import StageContext
from lightningrun.stages.rollout_file import read_rollouts
from lightningrun.stages.sft.config import ScratchConfig, SftConfig
from lightningrun.stages.sft.examples import Chat, Example, chats_of, encode, read_chats, rewritten, texts_of, words
from lightningrun.stages.sft.gold import GoldModel, gold_answers
from lightningrun.stages.sft.training import Trainer, Update
from lightningrun.stages.statistics import mean
from lightningrun.stages.training_thread import in_thread, told_until
from lightningrun.stages.verl_process.configuration import tokens_of_context
from lightningrun.types import Artifact, ArtifactKind, Json, LLMCall, Rollout, StageResult

_CURVE_POINTS = 100
_TRIAL_UPDATES = 24


async def run(ctx: StageContext, inputs: Mapping[str, Artifact]) -> StageResult:
    """Fine-tune. Raises UsageError for data that is no demonstration, StageFailed if nothing can be learned."""
    config: SftConfig = ctx.config
    facts: dict[str, float] = {}
    chats = await _chats(ctx, inputs, facts)
    if config.rewrite is not None:
        chats = list(rewritten(chats, config.rewrite))
    if not chats:
        raise StageFailed(
            "there is no demonstration to learn from",
            hint="lower `min_reward`, or see in the report why the rollouts that should be imitated failed",
        )
    await ctx.service.rest(config.policy)
    if config.backend == "verl":
        return await _trained_by_verl(ctx, inputs, chats, facts)
    decoder, tokenizer = _starting_point(ctx, inputs, chats)
    examples, too_long = _encoded(ctx, chats, tokenizer, decoder.shape.context)
    steps = await in_thread(lambda: _steps(ctx, decoder, examples))
    trainer = Trainer(decoder, examples, config, steps, ctx.seed, ctx.work)
    await _train(ctx, trainer)
    trainer.settle()
    saved = checkpoint.save(lora.merged(decoder), tokenizer, ctx.outputs / "model", {"step": trainer.step})
    metrics: dict[str, Json] = {
        "loss": mean(trainer.losses),
        "steps": trainer.step,
        "examples": len(examples),
        "too_long": too_long,
        "tokens": trainer.tokens,
        "cpu_s": round(trainer.cpu_s, 3),
        "parameters": sum(weight.numel() for weight in lora.trained(decoder).values()),
        **facts,
    }
    return _result(config.policy, saved, metrics)


async def _trained_by_verl(
    ctx: StageContext, inputs: Mapping[str, Artifact], chats: list[Chat], facts: Mapping[str, float]
) -> StageResult:
    """The same with verl's trainer: it wants the checkpoint that it begins with on disk, whatever its shape."""
    from lightningrun.stages.sft.verl_training import VerlTraining

    config: SftConfig = ctx.config
    role = ctx.recipe.models[config.policy]
    if config.init is not None:
        base = ctx.work / "base"
        checkpoint.save(*_scratch(ctx, chats), base, {})
    else:
        base = _folder(ctx, inputs)
    examples, too_long = _encoded(ctx, chats, ChatTokenizer.load(base), tokens_of_context(role, base))
    training = VerlTraining(ctx, base, examples)
    metrics = await training.run(ctx.outputs / "model")
    metrics |= {"examples": len(examples), "too_long": too_long, **facts}
    return _result(config.policy, content_digest(ctx.outputs / "model"), metrics)


def _encoded(ctx: StageContext, chats: list[Chat], tokenizer: ChatTokenizer, context: int) -> tuple[list[Example], int]:
    """The demonstrations that fit, and how many do not. Raises StageFailed if none does."""
    examples, too_long = encode(chats, tokenizer, context)
    if too_long:
        ctx.warn(f"{too_long} of {len(chats)} demonstrations are over the model's {context} tokens")
    if not examples:
        raise StageFailed("no demonstration fits the model", hint="a model with a longer context")
    ctx.info(f"{len(examples)} demonstrations, {sum(sum(one.learn) for one in examples)} tokens to learn")
    return examples, too_long


def _result(role: str, digest_of_model: str, metrics: dict[str, Json]) -> StageResult:
    outputs = {
        "model": Artifact(ArtifactKind.MODEL, {"role": role, "digest": digest_of_model}, "model"),
        "metrics": Artifact(ArtifactKind.METRICS, metrics),
    }
    return StageResult(outputs, metrics)


async def _chats(ctx: StageContext, inputs: Mapping[str, Artifact], facts: dict[str, float]) -> list[Chat]:
    config: SftConfig = ctx.config
    if config.source == "chat":
        return list(read_chats(Path(config.file or "")))
    if config.source == "gold":
        rollouts = await _demonstrated(ctx)
        facts["gold_reward"] = mean([one.score for one in rollouts if one.score is not None])
        return list(chats_of(rollouts, ctx.service.read, config.min_reward, {config.policy}, config.train_on))
    if "rollouts" not in inputs:
        hint = "inputs: {rollouts: <stage>.rollouts}"
        raise UsageError("no earlier stage gives rollouts", where=f"stages.{ctx.stage}.inputs", hint=hint)
    chosen = read_rollouts(ctx.folders["rollouts"])
    roles = {role for role in ctx.recipe.models if role not in ("judge", "coach")}
    with _call_reader(ctx.calls["rollouts"]) as read:
        return list(chats_of(chosen, read, config.min_reward, roles, config.train_on))


@contextlib.contextmanager
def _call_reader(log: Path) -> Iterator[Callable[[int], LLMCall]]:
    """Reads calls of a run by their place in its log. Raises StageFailed if the run or its log is gone."""
    try:
        with open(log, "rb") as file:
            yield lambda ref: LLMCall.from_json(read_record(file.fileno(), ref))
    except (OSError, ValueError) as error:
        raise StageFailed(
            f"the calls of these rollouts cannot be read: {error}",
            where=str(log),
            hint="their stage was reused from a run that is gone: run it again with --force=<stage>",
        ) from error


async def _demonstrated(ctx: StageContext) -> list[Rollout]:
    """The agent on every row of the split, with a model in the policy's place that knows the answers."""
    config: SftConfig = ctx.config
    requests = [RolloutRequest(task, ctx.prompts) for task in ctx.data.splits[config.split].tasks]
    gold = GoldModel(
        gold_answers(config.gold, f"stages.{ctx.stage}.gold"),
        {request.key: request.task for request in requests},
        digest([config.gold, ctx.data.splits[config.split].digest]),
    )
    with ctx.service.stand_in(config.policy, gold):
        rollouts = await ctx.engine.run(requests, total=len(requests))
    wrong = [one for one in rollouts if one.score is None or one.score < config.min_reward - 1e-9]
    if wrong:
        first = wrong[0].error or wrong[0].feedback
        ctx.warn(f"the gold of {len(wrong)} of {len(rollouts)} rows earns less than min_reward: {first}")
    return rollouts


def _starting_point(
    ctx: StageContext, inputs: Mapping[str, Artifact], chats: list[Chat]
) -> tuple[Decoder, ChatTokenizer]:
    """The model that is trained, where it is trained (in float32), and its tokenizer."""
    config: SftConfig = ctx.config
    device, _ = placed(ctx.recipe.models[config.policy].device, "float32")
    if config.init is not None:
        decoder, tokenizer = _scratch(ctx, chats)
        decoder = decoder.to(device)
    else:
        folder = _folder(ctx, inputs)
        decoder, tokenizer = checkpoint.load(folder, device=device), ChatTokenizer.load(folder)
    if config.lora is not None:
        lora.adapt(decoder, config.lora.rank, config.lora.alpha, config.lora.targets, ctx.seed)
    return decoder, tokenizer


def _folder(ctx: StageContext, inputs: Mapping[str, Artifact]) -> Path:
    """Where the weights lie that are fine-tuned."""
    role = ctx.config.policy
    return ctx.folders["model"] if "model" in inputs else find(ctx.recipe.models[role].name, f"models.{role}.name")


def _scratch(ctx: StageContext, chats: list[Chat]) -> tuple[Decoder, ChatTokenizer]:
    """A small model made from nothing, by the seed, and a tokenizer that was trained on the demonstrations."""
    scratch: ScratchConfig = ctx.config.init
    tokenizer = train_tokenizer(
        texts_of(chats, scratch.instructions),
        vocab_size=scratch.vocab_size,
        whole_words=words(scratch.whole_words) if scratch.whole_words else [],
        family=scratch.family,
    )
    if not scratch.instructions:
        tokenizer.template = WITHOUT_INSTRUCTIONS + tokenizer.template
    return checkpoint.scratch(tokenizer, family=scratch.family, size=scratch.size, seed=ctx.seed), tokenizer


def _steps(ctx: StageContext, decoder: Decoder, examples: list[Example]) -> int:
    """Updates to make. What depends on a clock is decided once, and remembered for a resumed stage."""
    config: SftConfig = ctx.config
    if config.control_for is None:
        batch = min(config.batch, len(examples))
        return config.steps or max(1, math.ceil(config.epochs * len(examples) / batch))
    decided = ctx.work / "steps.json"
    if decided.is_file():
        return int(json.loads(decided.read_text("utf-8"))["steps"])
    allowed = float(ctx.results[config.control_for].metrics.get("cpu_s") or 0.0)
    trial = Trainer(copy.deepcopy(decoder), examples, config, _TRIAL_UPDATES, ctx.seed, ctx.work / "trial")
    spent = [0.0, *(trial.update().cpu_s for _ in range(_TRIAL_UPDATES))]
    # The median: the first updates, and those that another program disturbs, cost more than those to come.
    steps = max(1, round(allowed / median(after - before for before, after in pairwise(spent))))
    write_atomic(decided, json.dumps({"steps": steps, "cpu_s": allowed}))
    ctx.info(f"{steps} updates take the {allowed:.1f} s of processor time that {config.control_for} took")
    return steps


async def _train(ctx: StageContext, trainer: Trainer) -> None:
    """All updates that are left. Interrupted, it saves where it is."""
    told = told_until(ctx)
    every = max(1, trainer.steps // _CURVE_POINTS)
    try:
        while trainer.step < trainer.steps:
            update = await in_thread(trainer.update)
            if update.step > told and (update.step % every == 0 or update.step == trainer.steps):
                ctx.journal.emit("metric", stage=ctx.stage, step=update.step, values=_values(update))
            ctx.journal.flash("progress", stage=ctx.stage, done=update.step, total=trainer.steps, unit="updates")
    except asyncio.CancelledError:
        trainer.save()
        raise


def _values(update: Update) -> dict[str, float]:
    return {"loss": update.loss, "grad_norm": update.grad_norm, "lr": update.lr, "cpu_s": round(update.cpu_s, 3)}
