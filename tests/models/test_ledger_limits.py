"""Budgets are never overshot, whatever is going on at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lightningrun.errors import BudgetReached, UsageError
from lightningrun.models.ledger import Ledger, Limits
from lightningrun.models.prices import price_of
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig, PriceConfig
from lightningrun.types import Usage
from tests.servers.openai_endpoint import Endpoint

PRICE = PriceConfig(input_per_mtok=1.0, output_per_mtok=1000.0)  # an answer of 5 tokens costs 0.005 dollars


def service_at(tmp_path: Path, endpoint: Endpoint, limits: Limits | None = None, **options: Any) -> ModelService:
    config = ModelConfig(provider="openai", name="m", base_url=endpoint.base_url, concurrency=64, **options)
    return ModelService(
        {"policy": config, "coach": config}, tmp_path / "calls.jsonl", environ={}, limits=limits or Limits()
    )


def ask(number: int) -> dict[str, Any]:
    return {"model": "policy", "messages": [{"role": "user", "content": str(number)}]}


async def test_64_calls_at_once_cannot_pass_a_limit_of_calls(tmp_path: Path) -> None:
    async with Endpoint("ok", latency_s=0.01) as endpoint:
        service = service_at(tmp_path, endpoint, Limits(max_llm_calls=20))
        session = service.session(stage="s", owner="o")
        results = await asyncio.gather(*(session.chat(ask(n)) for n in range(64)), return_exceptions=True)
        assert endpoint.calls == 20
        assert sum(isinstance(result, BudgetReached) for result in results) == 44
        assert session.budget is not None and "20 LLM calls" in str(session.budget)
        assert service.totals()["policy"]["calls"] == 20
        await service.aclose()


async def test_64_calls_at_once_cannot_pass_a_limit_in_dollars(tmp_path: Path) -> None:
    async with Endpoint("ok", latency_s=0.01) as endpoint:
        service = service_at(tmp_path, endpoint, Limits(max_cost_usd=0.05), max_tokens=8, price=PRICE)
        session = service.session(stage="s", owner="o")
        results = await asyncio.gather(*(session.chat(ask(n)) for n in range(64)), return_exceptions=True)
        spent = service.totals()["policy"]["usd"]
        assert spent <= 0.05
        # a call may cost 0.0081 at most and takes 0.005: all of the budget that can be used safely is used
        assert spent > 0.05 - 0.0085
        assert endpoint.calls == sum(isinstance(result, dict) for result in results) == 9
        await service.aclose()


async def test_stage_and_role_limits_stand_beside_the_runs(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        service = service_at(tmp_path, endpoint, Limits(max_llm_calls=5))
        ledger = service.open_stage("apo", Limits(max_llm_calls=4), {"coach": 1})
        session = service.session(stage="apo", owner="o")
        await session.chat(ask(0), role="coach")
        with pytest.raises(BudgetReached, match="coach"):
            await session.chat(ask(1), role="coach")
        for number in range(3):
            await session.chat(ask(number))
        with pytest.raises(BudgetReached, match="stage apo"):
            await session.chat(ask(9))
        elsewhere = service.session(stage="after", owner="o")
        await elsewhere.chat(ask(10))
        with pytest.raises(BudgetReached, match="run"):
            await elsewhere.chat(ask(11))
        assert endpoint.calls == 5
        assert {role: total["calls"] for role, total in ledger.totals().items()} == {"coach": 1, "policy": 3}
        await service.aclose()


async def test_totals_of_a_stage_survive_the_process(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        service = service_at(tmp_path, endpoint, price=PRICE)
        session = service.session(stage="apo", owner="o")
        for number in range(3):
            await session.chat(ask(number))
        before = service.totals()
        again = service_at(tmp_path, endpoint, price=PRICE)
        limited = again.open_stage("apo", Limits(max_llm_calls=4))
        assert limited.totals() == before == again.totals()
        resumed = again.session(stage="apo", owner="o")
        for number in range(4):
            await resumed.chat(ask(number))
        with pytest.raises(BudgetReached):
            await resumed.chat(ask(4))
        assert endpoint.calls == 4
        await service.aclose()
        await again.aclose()


def test_what_runs_on_ones_own_machine_is_free() -> None:
    for provider in ("python", "local", "vllm"):
        price = price_of(ModelConfig(provider=provider, name="weights"))
        assert price is not None and price.of(Usage(1000, 1000)) == 0.0


async def test_dollars_without_a_price_are_refused_before_any_call(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        with pytest.raises(UsageError, match=r"models\.policy\.price"):
            service_at(tmp_path, endpoint, Limits(max_cost_usd=1.0))


async def test_a_reservation_waits_for_what_may_settle_lower_and_a_release_gives_all_back() -> None:
    ledger = Ledger("run", Limits(max_cost_usd=1.0))
    first = await ledger.reserve("policy", 0.8)
    waiting = asyncio.ensure_future(ledger.reserve("policy", 0.8))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    first.settle(Usage(1, 1), 0.1)
    second = await asyncio.wait_for(waiting, 1)
    second.release()
    second.release()
    assert ledger.totals()["policy"] == {"calls": 1, "prompt_tokens": 1, "completion_tokens": 1, "usd": 0.1}
    with pytest.raises(BudgetReached, match="max_cost_usd"):
        await ledger.reserve("policy", 0.95)
