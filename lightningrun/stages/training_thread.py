"""What training stages share around their updates: a thread that may hang, and what was told before a kill."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from lightningrun.errors import StageFailed
from lightningrun.stages.base import StageContext

_T = TypeVar("_T")


async def in_thread(function: Callable[[], _T], limit_s: float | None = None) -> _T:
    """What ``function`` returns, in a thread of its own. Raises what it raised, StageFailed after ``limit_s``.

    When cancelled, waits for it first: an update is whole or not at all. A thread that hangs is left behind; it does
    not keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def work() -> None:
        try:
            result = function()
        except BaseException as error:
            loop.call_soon_threadsafe(_settle, future, None, error)
        else:
            loop.call_soon_threadsafe(_settle, future, result, None)

    threading.Thread(target=work, name="training", daemon=True).start()
    try:
        await asyncio.wait([future], timeout=limit_s)
    except asyncio.CancelledError:
        await asyncio.wait([future], timeout=limit_s)
        raise
    if not future.done():
        raise StageFailed(f"an update did not end within {limit_s:g} s")
    return future.result()


def _settle(future: asyncio.Future[_T], result: _T | None, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]


def told_until(ctx: StageContext) -> int:
    """The last step whose metrics an earlier attempt at this very work has written; -1: none."""
    key, last = None, -1
    for event in ctx.journal.events():
        if event["stage"] == ctx.stage and event["kind"] == "stage_started" and event.get("key") != key:
            key, last = event.get("key"), -1
        elif event["stage"] == ctx.stage and event["kind"] == "metric":
            last = max(last, event["step"])
    return last
