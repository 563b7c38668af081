"""Chat models written as functions, for the tests of the ``python`` provider."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

calls = 0


def shout(request: dict[str, Any], mark: str = "!") -> str:
    return str(request["messages"][-1]["content"]).upper() + mark


async def seed(request: dict[str, Any]) -> str:
    await asyncio.sleep(0)
    return str(request["seed"])


def counting(request: dict[str, Any]) -> str:
    global calls
    calls += 1
    return f"{calls}"


def whole(request: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "whole"}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}


def thread(request: dict[str, Any]) -> str:
    time.sleep(0.05)
    return threading.current_thread().name


def sleepy(request: dict[str, Any]) -> str:
    time.sleep(30)
    return "late"


def raising(request: dict[str, Any]) -> str:
    raise ValueError("no idea")


def wrong(request: dict[str, Any]) -> Any:
    return 42


def without_choices(request: dict[str, Any]) -> dict[str, Any]:
    return {"choices": []}


def leaving(request: dict[str, Any]) -> str:
    raise SystemExit(3)
