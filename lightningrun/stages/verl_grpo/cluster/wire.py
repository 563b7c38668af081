"""The line between the stage and verl's agent loops: JSON messages, one a line, over a Unix socket of the run's own.

Both sides ask and answer; answers come in any order. Nobody but the user can open the socket: it lies in a folder of
mode 0700, and no port is taken.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

Message = dict[str, Any]
LONGEST = 1 << 28
"""Bytes of a message: the tokens of a rollout."""


class LineDown(Exception):
    """The other side is gone, or said that it could not answer."""


class Line:
    """One side. ``answer`` is called for each question of the other; what it raises is told as text."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[Message], Awaitable[Message]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._numbers = count()
        self._open: dict[int, asyncio.Future[Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, question: Message) -> Message:
        """The other side's answer. Raises LineDown."""
        number = next(self._numbers)
        future = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"ask": number, "body": question})
            found: Message = await future
            return found
        finally:
            del self._open[number]

    async def serve(self) -> None:
        """Read until the other side is gone."""
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if "ask" in message:
                    task = asyncio.create_task(self._reply(message))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                elif (future := self._open.get(message["answer"])) and not future.done():
                    if "error" in message:
                        future.set_exception(LineDown(message["error"]))
                    else:
                        future.set_result(message["body"])
        except (OSError, ValueError):
            pass  # a side that is killed in the middle of a message is gone, as any other
        finally:
            self.close()

    def close(self) -> None:
        """Everything that is still asked fails."""
        self._writer.close()
        for task in self._tasks:
            task.cancel()
        for future in self._open.values():
            if not future.done():
                future.set_exception(LineDown("the other side is gone"))

    async def _reply(self, message: Message) -> None:
        try:
            body = await self._answer(message["body"])
        except Exception as error:
            self._send({"answer": message["ask"], "error": f"{type(error).__name__}: {error}"})
        else:
            self._send({"answer": message["ask"], "body": body})

    def _send(self, message: Message) -> None:
        if self._writer.is_closing():
            raise LineDown("the other side is gone")
        self._writer.write(json.dumps(message).encode() + b"\n")
