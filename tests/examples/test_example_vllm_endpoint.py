"""The example by itself, and in front of a server that is not ours, as vLLM's would be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tasks.sql_agent.tool_student import student
from tests.examples.example_run import ran
from tests.servers.openai_endpoint import Endpoint

pytestmark = [pytest.mark.examples, pytest.mark.timeout(700)]


def test_an_agent_without_an_sdk(tmp_path: Path) -> None:
    ran("vllm_endpoint", tmp_path).must_have_improved(tools=False)


async def test_what_only_vllm_knows_reaches_the_server(tmp_path: Path) -> None:
    def reply(request: dict[str, Any]) -> dict[str, Any]:
        return dict(student(request)["choices"][0])

    async with Endpoint(reply=reply) as server:
        free = "price: {input_per_mtok: 0, output_per_mtok: 0}"
        model = f"models.policy={{provider: openai, base_url: {server.base_url}, name: Qwen/Qwen3-8B, {free}}}"
        run = await asyncio.to_thread(ran, "vllm_endpoint", tmp_path, model)
    run.must_have_improved(tools=False)
    for sent in server.requests:
        assert (sent["model"], sent["top_k"], sent["min_p"]) == ("Qwen/Qwen3-8B", 20, 0.0)
        assert sent["chat_template_kwargs"] == {"enable_thinking": False}
