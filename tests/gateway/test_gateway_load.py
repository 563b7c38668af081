"""Many streaming clients at once, some of which hang up midway, some of which talk nonsense: nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from typing import Any

import aiohttp
import psutil
import pytest

from lightningrun.rollouts.spans import MAX_SPANS, Spans
from tests.gateway.conftest import House, Opens
from tests.gateway.test_gateway_otlp import SPAN, body_of

PATHS = {
    "chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "responses": lambda text: {"input": text},
    "messages": lambda text: {"max_tokens": 99, "messages": [{"role": "user", "content": text}]},
    "completions": lambda text: {"prompt": text},
}
MALFORMED = [b"{", b"[]", b"\xff", b'{"messages": 7, "prompt": 7, "input": 7, "stream": true}', b"{}"]
TYPE = "application/json"
ENDS = {"chat/completions": "[DONE]", "completions": "[DONE]", "responses": "completed", "messages": "message_stop"}


async def one(h: House, http: aiohttp.ClientSession, number: int, round_: str) -> str:
    """One client: of ten, one hangs up after the first bytes and one sends what is no request. Both export spans."""
    path = list(PATHS)[number // 10 % 4]
    kind = {0: "hung up", 1: "malformed"}.get(number % 10, "answered")
    words = " ".join(f"w{n}" for n in range(8))
    body = json.dumps({**PATHS[path](f"{round_} {number} {words}"), "model": "policy", "stream": True}).encode()
    body = MALFORMED[number // 10 % len(MALFORMED)] if kind == "malformed" else body
    if kind != "answered":
        span = body_of({**SPAN, "spanId": f"{number + 1:016x}"}) if kind == "hung up" else body
        async with http.post(f"{h.url}/traces", data=span, headers=h.headers | {"Content-Type": TYPE}) as answer:
            assert answer.status == (200 if kind == "hung up" or body == b"{}" or b'"messages": 7' in body else 400)
    async with http.post(f"{h.url}/{path}", data=body, headers=h.headers) as answer:
        if kind == "malformed":
            assert answer.status == 400 and "error" in await answer.json()
        elif kind == "hung up":
            assert await answer.content.readany()
            answer.close()
        else:
            text = (await answer.read()).decode()
            assert answer.status == 200 and ENDS[path] in text and f"{round_} " in text, text[-300:]
    return kind


async def storm(h: House, count: int, round_: str) -> Counter[str]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=100)) as http:
        return Counter(await asyncio.gather(*(one(h, http, number, round_) for number in range(count))))


async def settled(h: House, calls: int) -> None:
    """Wait until the gateway has noticed every hang-up."""
    for _ in range(500):
        if len(h.session.refs) == calls and not h.service._flights:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{len(h.session.refs)} of {calls} calls are accounted for")


async def run(h: House, count: int, rounds: int) -> list[int]:
    """``rounds`` storms, each as large as the others; the resident memory after each."""
    h.endpoint.keep = False
    memory = []
    spans = Spans(0.0)
    h.gateway.bind(h.url.split("/")[-2], h.session, spans)
    for number in range(rounds):
        assert await storm(h, count, f"r{number}") == {
            "answered": count * 8 // 10,
            "hung up": count // 10,
            "malformed": count // 10,
        }
        await settled(h, (number + 1) * count)
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
        assert len(spans.to_json()) == min(count // 10, MAX_SPANS)
    return memory


async def check(h: House, total: int, concurrency: int) -> None:
    calls = [h.service.read(ref) for ref in h.session.refs]
    assert len(calls) == total
    ends = Counter("ok" if call.response else call.error.split(":")[0] for call in calls)
    # one that hangs up may have its whole (short) answer on the wire already: answered or not, it is accounted for
    assert ends["refused by the gateway"] == total // 10
    assert ends["ok"] + ends["client disconnected"] == total * 9 // 10 and ends["ok"] >= total * 8 // 10
    assert {call.protocol for call in calls} == {"chat", "responses", "messages", "completions"}
    role = h.service.roles["policy"]
    assert not role.slots.locked() and role.slots._value == concurrency, "no slot is held"
    ledger = h.session.ledger
    assert ledger._held.calls == 0 and ledger.totals()["policy"]["calls"] == total * 9 // 10
    assert not [task for task in asyncio.all_tasks() if "_handle" in repr(task.get_coro())]
    again: Any = await h.client.chat.completions.create(
        model="policy", messages=[{"role": "user", "content": "still?"}]
    )
    assert again.choices[0].message.content == "echo: still?"


async def test_a_storm_of_streams_leaves_nothing_behind(house: Opens) -> None:
    async with house("slow_stream", concurrency=64) as h:
        await run(h, 200, 1)
        await check(h, 200, 64)


@pytest.mark.slow
async def test_a_thousand_streams_leave_nothing_behind_and_memory_flat(house: Opens) -> None:
    async with house("slow_stream", concurrency=400) as h:
        memory = await run(h, 1000, 4)
        await check(h, 4000, 400)
        grown = (memory[-1] - memory[0]) / 2**20
        assert grown < 24, f"{grown:.1f} MiB more after three further storms: {[m >> 20 for m in memory]}"
