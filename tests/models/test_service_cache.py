"""The call log is the cache: nothing finished is asked twice, whoever dies in between."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightningrun.errors import BudgetReached, ModelError
from lightningrun.files import read_journal
from lightningrun.models.ledger import Limits
from lightningrun.models.service import DISCONNECTED, ModelService
from lightningrun.recipe.model import ModelConfig
from tests.servers.openai_endpoint import Endpoint

ASK = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}


def service_at(tmp_path: Path, endpoint: Endpoint, **options: Any) -> ModelService:
    config = ModelConfig(provider="openai", name="m", base_url=endpoint.base_url, **options)
    return ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={}, seed=3)


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_journal(tmp_path / "calls.jsonl")]


async def test_equal_questions_of_one_owner_are_separate_samples(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o")
        await asyncio.gather(*(session.chat(ASK) for _ in range(3)))
        assert endpoint.calls == 3
        assert sorted(record["occurrence"] for record in records(tmp_path)) == [0, 1, 2]
        await service.aclose()


async def test_after_a_kill_the_same_owner_is_answered_from_its_own_records(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        first = service_at(tmp_path, endpoint)
        session = first.session(stage="s", owner="o")
        before = [await session.chat(ASK) for _ in range(2)]
        refs, usage = list(session.refs), session.usage
        second = service_at(tmp_path, endpoint)  # the first is not closed: a kill closes nothing
        resumed = second.session(stage="s", owner="o")
        assert [await resumed.chat(ASK) for _ in range(2)] == before
        assert endpoint.calls == 2
        assert resumed.refs == refs and resumed.usage == usage and resumed.llm_calls == 2
        assert len(records(tmp_path)) == 2
        assert second.totals() == first.totals()
        await first.aclose()
        await second.aclose()


async def test_another_stage_gets_a_free_copy_and_refers_to_it_again_after_a_kill(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        original = service.session(stage="baseline", owner="o")
        await original.chat(ASK)
        ledger = service.open_stage("apo", Limits(max_llm_calls=0))
        other = service.session(stage="apo", owner="o")
        await other.chat(ASK)
        copy = service.read(other.refs[0])
        assert endpoint.calls == 1 and other.refs != original.refs
        assert copy.cached and copy.cost_usd == 0 and copy.stage == "apo" and copy.response and copy.request
        assert ledger.totals() == {} and service.totals()["policy"]["calls"] == 1
        assert other.llm_calls == 1, "the rollout did make a call"
        with pytest.raises(BudgetReached):
            await other.chat({**ASK, "temperature": 1})
        again = service_at(tmp_path, endpoint)
        resumed = again.session(stage="apo", owner="o")
        await resumed.chat(ASK)
        assert resumed.refs == other.refs and len(records(tmp_path)) == 2
        await service.aclose()
        await again.aclose()


async def test_samples_and_models_and_sampling_do_not_share_answers(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        await service.session(stage="s", owner="o", sample=0).chat(ASK)
        await service.session(stage="s", owner="o", sample=1).chat(ASK)
        await service.session(stage="s", owner="o", sample=0).chat({**ASK, "tools": []})
        await service.aclose()
        hotter = service_at(tmp_path, endpoint, temperature=0.9)
        await hotter.session(stage="s", owner="o", sample=0).chat(ASK)
        assert endpoint.calls == 4
        assert endpoint.requests[-1]["temperature"] == 0.9
        await hotter.aclose()


async def test_what_a_recipe_sets_wins_and_is_recorded_as_sent(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        service = service_at(tmp_path, endpoint, temperature=0.0, max_tokens=7, extra={"top_k": 3})
        session = service.session(stage="s", owner="o")
        await session.chat({**ASK, "temperature": 1.5, "max_tokens": 999, "logprobs": True}, agent="planner")
        sent = endpoint.requests[0]
        assert sent == {
            **{"model": "m", "messages": ASK["messages"], "logprobs": True},
            **{"temperature": 0.0, "max_tokens": 7, "top_k": 3},
        }
        call = service.read(session.refs[0])
        assert call.request == sent and call.agent == "planner" and call.role == "policy" and call.model == "m"
        await service.aclose()


async def test_equal_questions_at_once_are_asked_once(tmp_path: Path) -> None:
    async with Endpoint("ok", latency_s=0.05) as endpoint:
        service = service_at(tmp_path, endpoint)
        sessions = [service.session(stage="s", owner=f"o{n}") for n in range(8)]
        answers = await asyncio.gather(*(session.chat(ASK) for session in sessions))
        assert endpoint.calls == 1 and all(answer == answers[0] for answer in answers)
        assert [record["cached"] for record in records(tmp_path)] == [False] + [True] * 7
        await service.aclose()


async def test_equal_questions_share_a_failure_but_not_a_cancellation(tmp_path: Path) -> None:
    async with Endpoint("hang", "ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        leader = asyncio.ensure_future(service.session(stage="s", owner="a").chat(ASK))
        await asyncio.sleep(0.05)
        follower = asyncio.ensure_future(service.session(stage="s", owner="b").chat(ASK))
        await asyncio.sleep(0.05)
        leader.cancel()
        assert (await follower)["choices"]
        assert [record["error"] for record in records(tmp_path)] == [DISCONNECTED, ""]
        await service.aclose()
    async with Endpoint("503") as endpoint:
        service = service_at(tmp_path, endpoint, retries=1)
        sessions = [service.session(stage="t", owner=f"o{n}") for n in range(4)]
        answers = await asyncio.gather(*(session.chat(ASK) for session in sessions), return_exceptions=True)
        assert endpoint.calls == 2 and all(isinstance(answer, ModelError) for answer in answers)
        assert all(session.infra_error for session in sessions)
        await service.aclose()


async def test_failures_are_recorded_and_never_served(tmp_path: Path) -> None:
    async with Endpoint("503", "ok") as endpoint:
        service = service_at(tmp_path, endpoint, retries=0)
        with pytest.raises(ModelError):
            await service.session(stage="s", owner="o").chat(ASK)
        resumed = service_at(tmp_path, endpoint)
        assert (await resumed.session(stage="s", owner="o").chat(ASK))["choices"]
        assert [bool(record["error"]) for record in records(tmp_path)] == [True, False]
        await service.aclose()
        await resumed.aclose()


async def test_no_more_calls_at_once_than_the_model_allows(tmp_path: Path) -> None:
    async with Endpoint("ok", latency_s=0.02) as endpoint:
        service = service_at(tmp_path, endpoint, concurrency=3)
        session = service.session(stage="s", owner="o")
        await asyncio.gather(*(session.chat(ASK) for _ in range(12)))
        assert endpoint.max_in_flight == 3
        await service.aclose()


async def test_message_texts_can_be_replaced_on_the_way(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o", rewrites={"You are old.": "You are new.", "unseen": "x"})
        messages = [{"role": "system", "content": "You are old."}, {"role": "user", "content": "hi"}]
        await session.chat({**ASK, "messages": messages})
        assert endpoint.requests[0]["messages"][0]["content"] == "You are new."
        assert session.rewritten == {"You are old.": 1}
        await service.aclose()


KILLED = """
import asyncio, pathlib, sys
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
async def main():
    config = ModelConfig(provider="openai", name="m", base_url=sys.argv[1])
    service = ModelService({"policy": config}, pathlib.Path(sys.argv[2]), environ={}, seed=3)
    async def rollout(n):
        session = service.session(stage="s", owner=f"o{n}")
        for turn in range(3):
            await session.chat({"messages": [{"role": "user", "content": f"{n} {turn}"}]})
    await asyncio.gather(*(rollout(n) for n in range(40)))
    print(service.totals()["policy"]["calls"])
    await service.aclose()
asyncio.run(main())
"""


async def test_after_kill_9_only_what_was_under_way_is_asked_again(tmp_path: Path) -> None:
    async with Endpoint("ok", latency_s=0.03) as endpoint:
        command = [sys.executable, "-c", KILLED, endpoint.base_url, str(tmp_path / "calls.jsonl")]
        for wanted in (20, 60):
            victim = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            while endpoint.calls < wanted:  # noqa: ASYNC110 - the caller is another process
                await asyncio.sleep(0.005)
            victim.send_signal(signal.SIGKILL)
            await victim.wait()
        kept = len(records(tmp_path))
        assert 0 < kept < 120
        last = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await last.communicate()
        assert out.strip() == b"120"
        assert endpoint.calls <= 120 + 2 * 16, "16 are in flight at most, and there were two kills"
        assert len(records(tmp_path)) == 120
