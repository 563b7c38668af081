"""``provider: vllm`` with a real server process on loopback that speaks vLLM's protocol."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lightningrun.agents.proctree import descendants  # noqa: E402
from lightningrun.errors import ModelError, UsageError  # noqa: E402
from lightningrun.models.chunks import Assembler  # noqa: E402
from lightningrun.models.service import ModelService  # noqa: E402
from lightningrun.models.vllm import server as vllm_server  # noqa: E402
from lightningrun.models.vllm.provider import VllmProvider  # noqa: E402
from lightningrun.recipe.model import ModelConfig, ServerConfig  # noqa: E402
from lightningrun.types import LLMCall  # noqa: E402
from tests.models.local_checkpoints import saved  # noqa: E402

ASK: dict[str, Any] = {
    "model": "policy",
    "max_tokens": 12,
    "messages": [{"role": "system", "content": "runs"}, {"role": "user", "content": "who scored 12?"}],
}
COMMAND = [sys.executable, "-m", "tests.servers.vllm_server"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base") / "model", "qwen2")


@asynccontextmanager
async def serving(
    tmp_path: Path, name: Path | str, mode: str = "ok", said: list[str] | None = None, **options: Any
) -> AsyncIterator[ModelService]:
    if "base_url" not in options:
        how = {"command": COMMAND, "args": ["--mode", mode], **options.pop("server", {})}
        options["server"] = ServerConfig(**how)
    config = ModelConfig(provider="vllm", name=str(name), **options)
    say = (said if said is not None else []).append
    service = ModelService({"policy": config}, tmp_path / "calls.jsonl", environ=dict(os.environ), say=say)
    try:
        yield service
    finally:
        await service.aclose()
        assert descendants(os.getpid()) == [], "a process is left"


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def alive(pids: list[int]) -> bool:
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def provider_of(service: ModelService) -> VllmProvider:
    provider = service.roles["policy"].provider
    assert isinstance(provider, VllmProvider)
    return provider


async def asked(service: ModelService, body: dict[str, Any], sample: int = 0) -> tuple[dict[str, Any], LLMCall]:
    session = service.session(stage="s", owner=f"o{sample}", sample=sample)
    answer = await session.chat(body)
    return answer, service.read(session.refs[-1])


async def test_what_is_recorded_is_what_the_local_engine_records(checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    local_config = ModelConfig(provider="local", name=str(checkpoint))
    local = ModelService({"policy": local_config}, tmp_path / "local.jsonl", environ={})
    async with serving(tmp_path, checkpoint, said=said) as service:
        for body in (ASK, {**ASK, "n": 3, "temperature": 0.7}, {**ASK, "logprobs": True, "top_logprobs": 2}):
            answer, call = await asked(service, body)
            _, expected = await asked(local, body)
            told = {**call.sampled, "weights": ""} if call.sampled else None
            assert told == {**(expected.sampled or {}), "weights": ""}
            assert "prompt_token_ids" not in answer
            for choice in answer["choices"]:
                assert "token_ids" not in choice
                assert (choice["logprobs"] is not None) == bool(body.get("logprobs"))
            assert call.usage.prompt_tokens == len(call.sampled["prompt_ids"])
            assert "return_token_ids" not in call.request
            session = service.session(stage="s", owner="streamed", sample=0)
            assembled = Assembler()
            async for chunk in session.stream(body):
                assert not any(key.startswith("_") or key == "prompt_token_ids" for key in chunk)
                assembled.add(chunk)
            assert service.read(session.refs[-1]).sampled == call.sampled
            whole = assembled.done()
            assert [c["message"]["content"] for c in whole["choices"]] == [
                c["message"]["content"] for c in answer["choices"]
            ]
            assert all("token_ids" not in choice for choice in whole["choices"])
    await local.aclose()
    assert [line.split(":")[0] for line in said] == ["models.policy"] * 2
    assert "starting a server" in said[0] and "answers after" in said[1]
    log = (tmp_path / "logs/vllm-policy.log").read_text()
    assert '"--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"' in log


async def test_the_server_is_behind_a_key_and_gone_at_the_end(checkpoint: Path, tmp_path: Path) -> None:
    async with serving(tmp_path, checkpoint, mode="stubborn") as service:
        provider = provider_of(service)
        await service.ready("policy")
        running = descendants(os.getpid())
        assert len(running) >= 3, "keeper, server, and what the server started"
        assert provider.secret and len(provider.secret) > 20
        assert not any(provider.secret in command_line(pid) for pid in running)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    assert not alive(running)


async def test_other_weights_are_served_by_a_new_start_and_have_other_keys(checkpoint: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other", "qwen2", seed=9)
    async with serving(tmp_path, "sft.model") as service:
        with pytest.raises(UsageError, match=r"sft\.model is not made yet"):
            await service.ready("policy")
        service.serve("policy", checkpoint)
        _, call = await asked(service, {**ASK, "temperature": 0})
        running = descendants(os.getpid())
        service.serve("policy", checkpoint)
        await service.ready("policy")
        assert descendants(os.getpid()) == running, "the same weights stay where they are"
        service.serve("policy", other)
        _, changed = await asked(service, {**ASK, "temperature": 0})
        assert call.cache_key != changed.cache_key and call.sampled["weights"] != changed.sampled["weights"]
        assert call.sampled["choices"][0]["logprobs"] != changed.sampled["choices"][0]["logprobs"]
        await service.rest("policy")
        assert descendants(os.getpid()) == [], "its memory is free for training"
        await service.ready("policy")


async def test_attached_to_a_server_that_runs(checkpoint: Path, tmp_path: Path) -> None:
    port = vllm_server.free_port()
    url = f"http://127.0.0.1:{port}/v1"
    async with serving(tmp_path, "named", base_url=url) as service:
        with pytest.raises(ModelError, match="nothing answers at http") as caught:
            await asked(service, ASK)
        assert caught.value.kind == "not_served" and "leave base_url out" in str(caught.value)
        with pytest.raises(UsageError, match="cannot be given the weights of an earlier stage"):
            service.serve("policy", checkpoint)
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "named"]
    server = started([*COMMAND, str(checkpoint), *options, "--mode", f"deaf:{tmp_path / 'deaf'}"])
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            await asyncio.sleep(0.1)
        for name, error in (("named", ""), ("other", "has no model 'other': it has named")):
            config = ModelConfig(provider="vllm", name=name, base_url=url)
            service = ModelService({"policy": config}, tmp_path / f"{name}.jsonl", environ={})
            if error:
                with pytest.raises(ModelError, match=error):
                    await service.ready("policy")
            else:
                _, call = await asked(service, ASK)
                assert call.sampled and call.sampled["choices"][0]["ids"]
            await service.aclose()
        assert server.poll() is None, "it was not ours to end"
        config = ModelConfig(provider="vllm", name="named", base_url=url, deadline_s=1.5)
        said: list[str] = []
        service = ModelService({"policy": config}, tmp_path / "deaf.jsonl", environ={}, say=said.append)
        (tmp_path / "deaf").touch()
        with pytest.raises(ModelError, match=r"is not healthy \(HTTP 503\)"):
            await service.ready("policy")
        assert said == [f"models.policy: waiting until the server at {url} is healthy"]
        await service.aclose()
    finally:
        for pid in [*descendants(server.pid), server.pid]:
            os.kill(pid, signal.SIGKILL)
        server.wait()


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("dies", {}, r"ended with exit code 1 before it answered; it said: ValueError: No available memory"),
        ("deaf", {"start_timeout_s": 3}, r"was not healthy within 3 s; it said: .*; its log is .*start_timeout_s"),
        ("ok", {"command": ["/nowhere/vllm"]}, r"it said: Error: /nowhere/vllm cannot be started: No such file"),
    ],
)
async def test_a_server_that_does_not_come_up(
    mode: str, options: dict[str, Any], expected: str, checkpoint: Path, tmp_path: Path
) -> None:
    async with serving(tmp_path, checkpoint, mode, server=options) as service:
        began = time.monotonic()
        for _ in range(2):  # said again at once, not tried again
            with pytest.raises(ModelError, match=expected) as caught:
                await service.ready("policy")
            assert caught.value.kind == "not_served" and not caught.value.retryable
            assert caught.value.where == "models.policy"
        assert time.monotonic() - began < 25
        assert descendants(os.getpid()) == []


async def test_a_model_that_does_not_exist(tmp_path: Path) -> None:
    async with serving(tmp_path, "nobody/nothing") as service:
        with pytest.raises(ModelError, match=r"OSError: nobody/nothing is not a local folder"):
            await service.ready("policy")


async def test_a_port_that_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with serving(tmp_path, checkpoint, server={"port": port}) as service:
            with pytest.raises(ModelError, match=f"port {port} is taken"):
                await service.ready("policy")


async def test_a_server_that_dies_is_started_once_more(checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    async with serving(tmp_path, checkpoint, "dies:2", said) as service:
        for sample in range(2):  # the second request kills it, the retry is answered by a new one
            await asked(service, ASK, sample)
        assert any("RuntimeError: EngineCore encountered an issue: it is started again" in line for line in said)
        with pytest.raises(ModelError, match=r"the server died \(exit code 137\)") as caught:
            await asked(service, ASK, 2)
        assert caught.value.kind == "not_served"


def test_killed_with_the_runner(checkpoint: Path, tmp_path: Path) -> None:
    """``kill -9`` of the runner: the kernel closes the keeper's standard input."""
    script = f"""
import asyncio, os, pathlib, sys
from tests.models.test_vllm_provider import serving
async def main():
    async with serving(pathlib.Path({str(tmp_path)!r}), {str(checkpoint)!r}) as service:
        await service.ready("policy")
        print("up", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    runner = started([sys.executable, "-c", script])
    assert runner.stdout is not None and runner.stdout.readline() == "up\n"
    left = descendants(runner.pid)
    assert len(left) >= 3
    runner.kill()
    runner.wait()
    until = time.monotonic() + 20
    while alive(left):
        assert time.monotonic() < until, "a process is left"
        time.sleep(0.1)


def test_options_that_do_not_fit_are_refused() -> None:
    attached = {"provider": "vllm", "name": "m", "base_url": "http://h:8000/v1"}
    for odd in ({"context": 100}, {"server": {"port": 8000}}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="the server that runs decides it"):
            ModelConfig(**attached, **odd)
    with pytest.raises(ValueError, match="'server' is not for provider local"):
        ModelConfig(provider="local", name="m", server={"port": 8000})
    ModelConfig(provider="vllm", name="m", context=512, dtype="bfloat16", device="cuda:0")
