"""Chat models written as functions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightningrun.errors import ModelError
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig

ASK = {"model": "policy", "temperature": 0.5, "messages": [{"role": "user", "content": "hi"}]}
HERE = "tests.models.scripted_models"


def service_for(tmp_path: Path, name: str, seed: int = 0, log: str = "calls.jsonl", **options: Any) -> ModelService:
    config = ModelConfig(provider="python", name=name, **options)
    return ModelService({"policy": config}, tmp_path / log, environ={}, seed=seed)


async def test_a_string_becomes_a_completion_with_tokens_estimated(tmp_path: Path) -> None:
    service = service_for(tmp_path, f"{HERE}:shout", args={"mark": "?"})
    session = service.session(stage="s", owner="o")
    completion = await session.chat(ASK)
    assert completion["choices"][0]["message"] == {"role": "assistant", "content": "HI?"}
    assert completion["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    assert service.totals()["policy"]["usd"] == 0
    chunks = [chunk async for chunk in session.stream(ASK)]
    assert chunks[0]["choices"][0]["delta"]["content"] == "HI?"
    assert chunks[1]["choices"][0]["finish_reason"] == "stop"
    await service.aclose()


async def test_a_file_is_a_module_too_and_a_dict_is_taken_whole(tmp_path: Path) -> None:
    service = service_for(tmp_path, f"{Path(__file__).parent}/scripted_models.py:whole")
    completion = await service.session(stage="s", owner="o").chat(ASK)
    assert completion["choices"][0]["finish_reason"] == "length"
    assert {"id", "object", "created", "model", "usage"} <= set(completion), "clients insist on them"
    assert completion["usage"]["total_tokens"] > 0
    await service.aclose()


async def test_seeds_differ_by_sample_and_repeat_and_come_again(tmp_path: Path) -> None:
    async def seeds(recipe_seed: int, log: str) -> list[str]:
        service = service_for(tmp_path, f"{HERE}:seed", recipe_seed, log)
        answers = []
        for sample in (0, 1):
            session = service.session(stage="s", owner=f"o{sample}", sample=sample)
            for _ in range(2):
                answers.append((await session.chat(ASK))["choices"][0]["message"]["content"])
        await service.aclose()
        return answers

    first = await seeds(1, "a.jsonl")
    assert len(set(first)) == 4
    assert await seeds(1, "b.jsonl") == first
    assert await seeds(1, "a.jsonl") == first
    assert not set(await seeds(2, "a.jsonl")) & set(first), "another seed is another replicate, not a cached one"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raising", "ValueError: no idea"),
        ("wrong", "int"),
        ("without_choices", "without choices"),
        ("leaving", "SystemExit"),
    ],
)
async def test_what_a_function_does_wrong_is_said(tmp_path: Path, name: str, said: str) -> None:
    service = service_for(tmp_path, f"{HERE}:{name}", retries=0)
    session = service.session(stage="s", owner="o")
    with pytest.raises(ModelError, match=said):
        await session.chat(ASK)
    assert session.infra_error is not None
    await service.aclose()


async def test_functions_that_block_run_side_by_side(tmp_path: Path) -> None:
    service = service_for(tmp_path, f"{HERE}:thread", concurrency=8)
    session = service.session(stage="s", owner="o")
    begun = time.monotonic()
    await asyncio.gather(*(session.chat(ASK) for _ in range(16)))
    assert time.monotonic() - begun < 0.6
    await service.aclose()


def test_a_function_that_hangs_neither_blocks_the_loop_nor_the_exit(tmp_path: Path) -> None:
    code = f"""
import asyncio, pathlib
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
async def main():
    config = ModelConfig(provider="python", name="{HERE}:sleepy", timeout_s=0.2, retries=1, concurrency=1)
    service = ModelService({{"policy": config}}, pathlib.Path({str(tmp_path)!r}) / "calls.jsonl", environ={{}})
    try:
        await service.session(stage="s", owner="o").chat({ASK!r})
    except Exception as error:
        print(error)
    await service.aclose()
asyncio.run(main())
"""
    begun = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25)
    assert "within 0.2 s" in ended.stdout and "2 attempts" in ended.stdout, ended.stderr
    assert time.monotonic() - begun < 20


async def test_an_edited_function_is_asked_again(tmp_path: Path) -> None:
    code = f"""
import asyncio, pathlib, sys
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
async def main():
    config = ModelConfig(provider="python", name="{tmp_path}/home_made.py:answer")
    service = ModelService({{"policy": config}}, pathlib.Path({str(tmp_path)!r}) / "calls.jsonl", environ={{}})
    print((await service.session(stage="s", owner="o").chat({ASK!r}))["choices"][0]["message"]["content"])
    await service.aclose()
asyncio.run(main())
"""
    for answer in ("one", "two"):
        (tmp_path / "home_made.py").write_text(f"def answer(request):\n    return {answer!r}\n")
        ended = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-B", "-c", code], capture_output=True, text=True, timeout=30
        )
        assert ended.stdout.strip() == answer, ended.stderr
