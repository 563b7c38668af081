"""verl's reinforcement learning as a process: its data, its agent loop, and a Ray of its own."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lightningrun.stages.verl_process.configuration import Tree, place
from lightningrun.stages.verl_process.process import VerlProcess

_NOT_OURS = frozenset({"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR"})
"""Of another cluster."""
_RAY = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # on few cores that others use too, a start takes minutes
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_health_check_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "600",
}


class Trainer(VerlProcess):
    """Its folder also holds Ray's session and the socket that the stage listens at."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.socket = self.folder / "s"

    def write(self, tree: Tree, rows: Mapping[str, int], checkpoints: Path) -> None:
        """verl's configuration and data. ``rows``: how many train and eval have."""
        for split, count in rows.items():
            lines = [_row(split, index) for index in range(count)]
            (self.folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        loop = {
            "name": "lightningrun",
            "_target_": "lightningrun.stages.verl_grpo.cluster.agent_loop.GatewayAgentLoop",
            "socket": str(self.socket),
        }
        (self.folder / "loops.yaml").write_text(yaml.safe_dump([loop]), "utf-8")
        places: dict[str, Any] = {
            "data.train_files": str(self.folder / "train.jsonl"),
            "data.val_files": str(self.folder / "eval.jsonl"),
            "actor_rollout_ref.rollout.agent.agent_loop_config_path": str(self.folder / "loops.yaml"),
            "trainer.default_local_dir": str(checkpoints),
            "ray_kwargs.ray_init._temp_dir": str(self.folder / "ray"),
            "ray_kwargs.ray_init.address": "local",
            "ray_kwargs.ray_init._node_ip_address": "127.0.0.1",
        }
        for dotted, value in places.items():
            place(tree, dotted, value)
        self.configure("ppo_trainer", tree)

    def start(self, device: str, hidden: Iterable[str]) -> None:
        """Start it. ``hidden``: names of environment variables that it shall not have."""
        own = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.launch(["-m", "verl.trainer.main_ppo"], device, {*hidden, *_NOT_OURS}, own)

    def _environment(self, device: str, hidden: set[str]) -> dict[str, str]:
        return {**_RAY, **super()._environment(device, hidden)}

    @property
    def was_too_slow(self) -> bool:
        """Whether it ended because Ray, which allows itself 30 s for that, could not start on a busy machine."""
        return not self.is_ready and "timed out during startup" in self.failure().message


def _row(split: str, index: int) -> str:
    """A row as verl's data set has them. It is a number: what it stands for is the stage's to know."""
    return json.dumps(
        {
            "data_source": split,
            "prompt": [{"role": "user", "content": str(index)}],
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"split": split, "index": index},
        }
    )
