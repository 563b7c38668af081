"""The agents of docs/gateway.md, each run as a program that knows nothing but its environment."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from lightningrun.agents.environment import endpoint_environment
from lightningrun.gateway.server import PROTOCOLS, Gateway
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
from tests.servers.openai_endpoint import Endpoint

TEXT = (Path(__file__).parent.parent.parent / "docs/gateway.md").read_text("utf-8")
AGENTS = dict(re.findall(r"^```(?:python|bash) (\S+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
SAYS = {
    "chat_agent.py": ("echo: Say hello.", ["chat"]),
    "responses_agent.py": ("echo: Say hello again.", ["responses", "responses"]),
    "claude_agent.py": ("echo: Say hello.", ["messages"]),
    "agents_sdk_agent.py": ("echo: Say hello.", ["responses"]),
    "embeddings_agent.py": ("2 embeddings", ["embeddings"]),
    "curl_agent.sh": ("echo: Say hello.", ["chat"]),
}


@pytest.mark.parametrize("name", AGENTS)
async def test_each_agent_of_the_page_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(AGENTS[name], "utf-8")
    async with Endpoint("ok") as endpoint:
        models = {
            role: ModelConfig(provider="openai", name=role + "-model", base_url=endpoint.base_url)
            for role in ("policy", "embedder")
        }
        service = ModelService(models, tmp_path / "calls.jsonl")
        gateway = Gateway(service)
        await gateway.start()
        session = service.session(stage="s", owner="o")
        gateway.bind("x", session)
        environment = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"}
        environment.update(endpoint_environment(gateway.url("x"), gateway.token, "policy"))
        agent = await asyncio.create_subprocess_exec(
            sys.executable if name.endswith(".py") else "bash",
            name,
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(agent.communicate(), 60)
        captured = [service.read(ref).protocol for ref in session.refs]
        await gateway.stop()
        await service.aclose()
        assert agent.returncode == 0, errors.decode()
        says, protocols = SAYS[name]
        assert says in output.decode()
        assert captured == protocols


def test_every_path_is_in_the_table() -> None:
    assert not [path for path in PROTOCOLS if f"/v1/{path}`" not in TEXT]
