"""The parts of ``backend: ray`` by themselves: what verl's processes get from us, and how they are kept in hand."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("verl", exc_type=ImportError)
pytest.importorskip("ray", exc_type=ImportError)

import torch
from safetensors.torch import load_file

from lightningrun.cli.checkup import examine
from lightningrun.models.local.engine import LocalEngine
from lightningrun.models.local.sampling import Sampling
from lightningrun.recipe.model import ModelConfig
from lightningrun.stages.verl_grpo.cluster.hub import apart, sequence
from lightningrun.stages.verl_grpo.cluster.server import EngineServer
from lightningrun.stages.verl_grpo.cluster.settings import configuration, verl_problems
from lightningrun.stages.verl_grpo.cluster.trainer import Trainer
from lightningrun.stages.verl_grpo.cluster.training import Story
from lightningrun.stages.verl_grpo.cluster.wire import Line, LineDown, Message
from lightningrun.stages.verl_grpo.config import GrpoConfig
from lightningrun.stages.verl_grpo.trajectories import Turn
from lightningrun.stages.verl_process.export import merged
from tests.models.local_checkpoints import saved


async def test_the_rollout_server_samples_as_the_engine_does_and_takes_new_weights(tmp_path: Path) -> None:
    folder, other = saved(tmp_path / "one", seed=1), saved(tmp_path / "two", seed=2)
    server = EngineServer(str(folder), context=256, response_length=8)
    engine, after = LocalEngine(folder, device="cpu"), LocalEngine(other, device="cpu")
    asked = {"temperature": 1.0, "top_p": 1, "top_k": -1, "logprobs": True, "repetition_penalty": 1.0, "seed": 5}
    prompt = [3, 4, 5, 6]
    try:
        said = await server.generate("one", prompt_ids=prompt, sampling_params=asked)
        (alike,) = await engine.generate(prompt, Sampling(temperature=1.0, max_tokens=8, seed=5))
        assert said.token_ids == alike.ids and said.log_probs == pytest.approx(alike.logprobs)
        unseeded = {key: value for key, value in asked.items() if key != "seed"}
        many = [await server.generate("x", prompt_ids=prompt, sampling_params=unseeded) for _ in range(4)]
        assert len({tuple(one.token_ids) for one in many}) > 1
        state = {name: value.numpy() for name, value in load_file(other / "model.safetensors").items()}
        await server.update_weights({**state, "lm_head.of_nobody": state[next(iter(state))]}, global_steps=3)
        said = await server.generate("two", prompt_ids=prompt, sampling_params=asked)
        (alike,) = await after.generate(prompt, Sampling(temperature=1.0, max_tokens=8, seed=5))
        assert said.token_ids == alike.ids and said.extra_fields["global_steps"] == 3
    finally:
        await engine.aclose()
        await after.aclose()


IN_VERL = """
import json, torch, torch.distributed as dist
import verl
from verl.plugin.platform import get_platform
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.config import FSDPActorConfig
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import get_rollout_replica_class

initialize_global_process_group_ray()
summed = torch.ones(2)
dist.all_reduce(summed)

import numpy as np
from lightningrun.stages.verl_grpo.algorithm import Algorithm
from lightningrun.stages.verl_grpo.cluster.hub import sequence
from lightningrun.stages.verl_grpo.cluster.plugin import BY_CALL, ESTIMATORS
from lightningrun.stages.verl_grpo.config import GrpoConfig
from lightningrun.stages.verl_grpo.trajectories import Sample, Turn
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

def rollout(group, *calls):
    turns = [Turn((7,) * 2, (5,) * size, (-.5,) * size, earned) for size, earned in calls]
    return Sample(group, 0.9, (tuple(turns),))

samples = [
    rollout(0, (2, 1.0), (1, 0.0)), rollout(0, (1, 0.25), (3, 0.5)), rollout(0, (2, None)),
    rollout(1, (2, 0.0)), rollout(1, (1, 1.0), (2, 0.5), (1, 0.0)),
]
told = [sequence(sample.trajectories[0], None, sample.reward, True) for sample in samples]
longest = max(len(one["mask"]) for one in told)
table = {
    name: torch.tensor([one[name] + [0] * (longest - len(one[name])) for one in told]) for name in ("mask", "rewards")
}
uids = np.array(["a", "a", "a", "b", "b"], dtype=object)
apart = {}
for name in ESTIMATORS:
    algorithm = Algorithm(GrpoConfig(algorithm=name))
    ours = algorithm.advantages(samples)
    found, _ = get_adv_estimator_fn(BY_CALL + name)(
        token_level_rewards=table["rewards"], response_mask=table["mask"], config=algorithm._algo, index=uids)
    assert len(set(ours.tolist())) > 2 and not found[table["mask"] == 0].any()
    apart[name] = float((found[table["mask"] == 1] - ours).abs().max())

actor = FSDPActorConfig(strategy="fsdp2", rollout_n=2, ppo_mini_batch_size=1, ppo_micro_batch_size_per_gpu=1)
actor.global_batch_info.update(dp_size=1, batch_num_tokens=6, global_batch_size=2, loss_scale_factor=None)
# two rollouts: the first of one sequence with 2 tokens, the second of two with 3 + 1; one row only fills the batch
mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]])
shares = torch.tensor([[.5, .5, 0, 0], [.25, .25, .25, 0], [.25, 0, 0, 0], [.5, .5, 0, 9.0]])
gain = torch.tensor([[1.0], [2.0], [2.0], [5.0]]) * mask
logp = torch.zeros(4, 3, requires_grad=True)
loss, _ = get_policy_loss_fn("per_rollout_mean")(
    old_log_prob=torch.zeros(4, 3), log_prob=logp, advantages=gain, response_mask=mask, loss_agg_mode="token-mean",
    config=actor, rollout_is_weights=shares)
loss.backward()
print(json.dumps({
    "device": get_platform().device_name, "gloo": summed.tolist(), "loss": float(loss), "slope": logp.grad.tolist(),
    "apart": apart, "rollout": get_rollout_class("lightningrun").__name__,
    "replica": get_rollout_replica_class("lightningrun").__name__
}))
"""


def test_verl_finds_platform_rollout_server_and_loss_by_the_entry_point(tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    extra = {"LIGHTNINGRUN_VERL_DEVICE": "cpu", "VERL_USE_EXTERNAL_PLUGINS": "lightningrun", "DIST_INIT_METHOD": store}
    command = [sys.executable, "-c", IN_VERL]
    run = subprocess.run(command, env={**os.environ, **extra}, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["device"] == "cpu" and told["gloo"] == [1.0, 1.0]
    assert len(told["apart"]) == 9 and max(told["apart"].values()) < 1e-6, "single calls: as in process"
    assert told["rollout"] == "EngineAdapter" and told["replica"] == "EngineReplica"
    assert told["loss"] == pytest.approx(-(1.0 + 2.0) / 2)  # the mean of the rollouts' means
    flat = [number for row in told["slope"] for number in row]
    assert flat == pytest.approx([-0.25, -0.25, 0, -0.25, -0.25, -0.25, -0.25, 0, 0, 0, 0, 0])


def test_a_trajectory_as_verl_has_it() -> None:
    trajectory = (Turn((1, 2), (3,), (-0.1,)), Turn((4,), (5, 6), (-0.2, -0.3), 0.5))
    told = sequence(trajectory, tokens=6, reward=0.75, by_call=False)
    assert told["prompt"] == [1, 2] and told["response"] == [3, 4, 5, 6] and told["mask"] == [1, 0, 1, 1]
    assert told["logprobs"] == [-0.1, 0.0, -0.2, -0.3] and told["shares"] == pytest.approx([1 / 6, 0, 1 / 6, 1 / 6])
    assert told["rewards"] == [0.0, 0.0, 0.0, 0.75]
    told = sequence(trajectory, tokens=6, reward=0.75, by_call=True)
    assert told["rewards"] == [0.75, 0.0, 0.0, 0.5], "a call without a reward of its own has the rollout's"
    assert list(apart(trajectory)) == [trajectory]


def test_calls_that_nothing_stands_between_are_sequences_of_their_own() -> None:
    trajectory = (Turn((1,), (2,), (0.0,), 0.1), Turn((), (3,), (0.0,), 0.2), Turn((4,), (5,), (0.0,), 0.3))
    first, second = apart(trajectory)
    assert first == trajectory[:1]
    assert second == (Turn((1, 2), (3,), (0.0,), 0.2), trajectory[2])


async def test_both_ends_of_a_line_ask_and_hear_of_each_others_end(tmp_path: Path) -> None:
    async def double(asked: Message) -> Message:
        if "number" not in asked:
            raise ValueError("no number")
        await asyncio.sleep(0.02 / asked["number"])
        return {"number": 2 * asked["number"]}

    lines: list[Line] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(Line(reader, writer, double))
        await lines[0].serve()

    server = await asyncio.start_unix_server(take, path=tmp_path / "s")
    line = Line(*await asyncio.open_unix_connection(tmp_path / "s"), double)
    serving = asyncio.create_task(line.serve())
    answers = await asyncio.gather(*(line.ask({"number": number}) for number in range(1, 5)))
    assert [one["number"] for one in answers] == [2, 4, 6, 8]
    assert await lines[0].ask({"number": 4}) == {"number": 8}
    with pytest.raises(LineDown, match="no number"):
        await line.ask({})
    waiting = asyncio.create_task(line.ask({"number": 0.001}))
    await asyncio.sleep(0.05)
    lines[0].close()
    with pytest.raises(LineDown, match="gone"):
        await waiting
    await serving
    server.close()


DETACHED = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()
print(os.getpid(), flush=True)
time.sleep(600 if sys.argv[1] == "stay" else 0.5)
sys.exit(3)
"""


def guarded(folder: Path, how: str) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    command = [sys.executable, "-m", "lightningrun.stages.verl_process.guard", str(folder)]
    guard = subprocess.Popen(
        [*command, sys.executable, "-c", DETACHED, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert guard.stdout is not None and guard.stdout.readline()
    time.sleep(0.2)
    below = psutil.Process(guard.pid).children(recursive=True)
    assert len(below) == 3
    return guard, below


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not alive


@pytest.mark.parametrize("how", ["it ends", "the pipe closes"])
def test_a_guard_leaves_nothing_behind(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    guard, below = guarded(folder, "go" if how == "it ends" else "stay")
    if how == "the pipe closes":
        guard.send_signal(signal.SIGTERM)  # that of a terminal's Ctrl-C does not end it
        assert guard.poll() is None
        assert guard.stdin is not None
        guard.stdin.close()
    status = guard.wait(20)
    assert gone(below) and folder.exists() == (how == "it ends")  # whoever asked still wants it
    assert status == (3 if how == "it ends" else 128 + signal.SIGKILL)


def test_keys_of_verls_configuration_are_checked() -> None:
    def said(given: dict[str, Any]) -> list[str]:
        return list(verl_problems(given))

    assert not said({"actor_rollout_ref": {"model": {"lora_rank": 8}, "actor": {"clip_ratio_high": 0.3}}})
    assert not said({"actor_rollout_ref": {"rollout": {"engine_kwargs": {"vllm": {"swap": 4}}}}})
    assert not said({"actor_rollout_ref": {"actor": {"fsdp_config": {"+mixed_precision": {"param_dtype": "fp32"}}}}})
    (wrong,) = said({"actor_rollout_ref": {"model": {"lora_rnk": 8}}})
    assert wrong.startswith("verl.actor_rollout_ref.model.lora_rnk:") and "lora_rank" in wrong
    (ours,) = said({"actor_rollout_ref": {"rollout": {"n": 4}}})
    assert "group_size" in ours
    (fixed,) = said({"trainer": {"default_local_dir": "/tmp/x"}})
    assert "how the stage runs verl" in fixed
    (block,) = said({"actor_rollout_ref": {"actor": {"optim": 3}}})
    assert "block" in block


LOG = """
\x1b[36m(WorkerDict pid=12)\x1b[0m ValueError: an earlier one, that was caught
Traceback (most recent call last):
ray.exceptions.RayTaskError(AssertionError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=7, ip=10.0.0.1)
  File "x.py", line 3, in run
AssertionError: train_batch_size is odd
"""


async def test_why_verl_ended_is_said(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "verl.log")
    (tmp_path / "verl.log").write_text(LOG)
    try:
        assert "AssertionError: train_batch_size is odd" in str(trainer.failure())
        assert "disk" not in str(trainer.failure())
        full = "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 1022592 vs 1022480\n"
        (tmp_path / "verl.log").write_text(LOG + full)
        assert "the disk is full" in str(trainer.failure()) and "make room" in str(trainer.failure())
    finally:
        await trainer.end()
    assert not trainer.folder.exists()


def test_adapters_are_merged_into_the_weights_by_their_own_names() -> None:
    base, down, up = torch.randn(4, 3), torch.randn(2, 3), torch.randn(4, 2)
    wrapped = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{wrapped}.base_layer.weight": base,
        f"{wrapped}.base_layer.bias": torch.ones(4),
        f"{wrapped}.lora_A.default.weight": down,
        f"{wrapped}.lora_B.default.weight": up,
        "base_model.model.model.norm.weight": torch.ones(3),
    }
    found = merged(tensors, 0.5)
    assert sorted(found) == [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
    ]
    assert torch.allclose(found["model.layers.0.self_attn.q_proj.weight"], base + 0.5 * up @ down, atol=1e-6)


def test_a_story_told_twice_is_the_same_story(tmp_path: Path) -> None:
    story = Story(judged={0: 0.2, 4: 0.6, 8: 0.6}, alive={1: True, 2: False, 3: False}, cpu_s=3.0)
    assert story.best_step == 4 and story.dead == 2
    (tmp_path / "story.json").write_text(json.dumps(asdict(story)))
    again = Story.load(tmp_path / "story.json")
    assert again == story and Story.load(tmp_path / "none.json") == Story()
    again.alive[3] = True  # a step that is repeated after a kill
    assert again.dead == 0


def test_doctor_says_whether_it_can_run_here(tmp_path: Path) -> None:
    found = {subject: (level, words) for level, subject, words in examine(None, False, str(tmp_path))}
    level, words = found["backend: ray"]
    assert level == "ok" and "can run on" in words


VALIDATES = """
import sys
from hydra import compose, initialize_config_dir
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

for folder in sys.argv[1:]:
    with initialize_config_dir(folder, version_base=None):
        config = compose("run")
    validate_config(config, need_reference_policy(config), need_critic(config))
    for part in (config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor.fsdp_config, config.algorithm):
        omega_conf_to_dataclass(part)
    names = config.actor_rollout_ref.rollout.name, config.trainer.device, config.algorithm.adv_estimator
    print(*names, need_critic(config), need_reference_policy(config), config.actor_rollout_ref.model.lora_rank)
"""


def test_verl_accepts_what_the_options_become(tmp_path: Path) -> None:
    base, role = saved(tmp_path / "base"), ModelConfig(provider="local", name="base", max_tokens=32)
    cases: dict[str, tuple[dict[str, Any], int]] = {
        "lightningrun cpu grpo False False 0": ({}, 0),
        "lightningrun cpu gae True True 0": ({"algorithm": "ppo", "kl": {"coef": 0.1}, "loss": "token_mean"}, 0),
        "lightningrun cpu lightningrun_by_call_rloo False False 8": ({"algorithm": "rloo", "lora": {"rank": 8}}, 0),
        "vllm cuda reinforce_plus_plus False True 0": ({"algorithm": "reinforce_plus_plus", "kl": {"coef": 0.1}}, 4),
        "vllm cuda gae True False 0": ({"algorithm": "gae", "verl": {"critic": {"optim": {"lr": 1e-5}}}}, 2),
    }
    folders = []
    for options, gpus in cases.values():
        config, by_call = GrpoConfig.model_validate({"backend": "ray", **options}), options.get("algorithm") == "rloo"
        trainer = Trainer(tmp_path / "log")
        trainer.write(
            configuration(config, role, base, gpus, by_call), {"train": 0, "eval": 0}, tmp_path / "checkpoints"
        )
        folders.append(str(trainer.folder))
    done = subprocess.run(
        [sys.executable, "-c", VALIDATES, *folders],
        env={**os.environ, "LIGHTNINGRUN_VERL_DEVICE": "cpu"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    for folder in folders:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line for line in done.stdout.splitlines() if line.split()[0] in ("vllm", "lightningrun")]
    assert told == list(cases)
