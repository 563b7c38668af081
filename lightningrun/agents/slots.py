"""The runner's side of the slots: event-driven, nothing polls.

A ``SlotGroup`` holds up to ``size`` slots of one role and lends one to each job. A slot has one gateway url for life,
and its process is forked when it is first needed and again after it was killed.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightningrun.agents import wire
from lightningrun.agents.environment import endpoint_environment, telemetry_environment
from lightningrun.agents.fork_server import ForkServer, ServerLost
from lightningrun.agents.jobs import Bind, Endpoint, Outcome
from lightningrun.errors import UsageError
from lightningrun.types import Json

_IMPORT_TIMEOUT_S = 180.0
_PATIENCE_S = 0.04
_BRISK = 6
"""A group that frees so many slots in ``_PATIENCE_S`` has the machine busy: more processes would not make it faster."""


@dataclass(frozen=True)
class SlotKind:
    """What the slots of one group run. ``model`` is the name they are told; ``args`` are what the function gets."""

    role: str
    entrypoint: str
    args: Mapping[str, Json]
    model: str
    memory_mb: int | None = None


class _Line(asyncio.Protocol):
    """A slot's socket: one message in flight in each direction."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.reply: asyncio.Future[Any] | None = None
        self.transport: asyncio.Transport | None = None
        self.on_end: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        for message in wire.unpack(self.buffer):
            self.settle(message)

    def settle(self, message: Any) -> None:
        if self.reply is not None and not self.reply.done():
            self.reply.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.on_end is not None:
            self.on_end()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Slot:
    """One place where a job can run: a url for life, and at most one process at a time."""

    def __init__(self, number: int, kind: SlotKind, server: ForkServer, endpoint: Endpoint) -> None:
        self.number = number
        self.url_id = endpoint.new_url_id()
        self.wants: frozenset[str] = frozenset()
        self._kind = kind
        self._server = server
        self._url = endpoint.url(self.url_id)
        self._token = endpoint.token
        self._line: _Line | None = None
        self._dead: asyncio.Event | None = None
        """Set while a process of ours lives or is being killed; fired when the server has buried it."""
        self._killing = False

    async def ready(self) -> None:
        """Have a process that has imported its module. Raises UsageError with the reason if the import fails."""
        if self._killing and self._dead is not None:
            await self._dead.wait()
        if self._line is not None:
            return
        kind = self._kind
        llm = {"base_url": self._url, "api_key": self._token, "model": kind.model}
        message = {
            "role": kind.role,
            "entrypoint": kind.entrypoint,
            "args": dict(kind.args),
            "llm": llm,
            "env": endpoint_environment(self._url, self._token, kind.model)
            | (telemetry_environment(self._url, self._token) if kind.role == "agent" else {}),
            "memory_mb": kind.memory_mb,
            "log": str(self._server.logs / f"{kind.role}-{self.number}.log"),
        }
        sock = self._server.spawn(self, message)
        self._dead = asyncio.Event()
        self._killing = False
        line = self._line = _Line()
        line.reply = asyncio.get_running_loop().create_future()
        await asyncio.get_running_loop().create_unix_connection(lambda: line, sock=sock)
        line.on_end = self.kill
        hello = await self._reply(line, _IMPORT_TIMEOUT_S)
        if "wants" not in hello:
            self.kill()
            reason = hello.get("error") or f"it did not finish within {_IMPORT_TIMEOUT_S:g} s"
            under = f" under {self._server.python}" if self._server.python else ""
            raise UsageError(f"importing the {kind.role}{under} failed: {reason}", where=kind.entrypoint)
        self.wants = frozenset(hello["wants"])

    async def run(self, message: Any, timeout_s: float) -> Outcome:
        """Do one job in the slot's process, which ``ready`` has made."""
        line = self._line
        if line is None or line.transport is None:
            return Outcome("lost", error="the slot's process ended before its job began")
        line.reply = asyncio.get_running_loop().create_future()
        line.transport.write(wire.frame(message))
        started = time.perf_counter()
        answer = await self._reply(line, timeout_s)
        if "timeout" in answer:
            self.kill()
            return Outcome("timeout", None, f"no answer within {timeout_s:g} s", time.perf_counter() - started)
        outcome = Outcome(
            answer["kind"],
            answer.get("output"),
            answer["error"],
            answer.get("duration_s", time.perf_counter() - started),
            answer.get("leftovers", 0),
        )
        if outcome.leftovers:
            self.kill()
        return outcome

    async def _reply(self, line: _Line, timeout_s: float) -> dict[str, Any]:
        assert line.reply is not None
        alarm = asyncio.get_running_loop().call_later(timeout_s, line.settle, {"timeout": True})
        try:
            return await line.reply  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            alarm.cancel()
            line.reply = None

    def kill(self) -> None:
        """Have the server kill the process with everything it started; ``ready`` waits for that and makes a new one."""
        if not self._killing and self._dead is not None and not self._dead.is_set():
            self._killing = True
            self._server.kill(self.number)
        if self._line is not None:
            # A reply that is on its way may still arrive before the server's word that the process is dead.
            self._line.on_end = None

    def died(self, status: int, tail: str) -> None:
        """The server's word that the process is gone. Waits one turn of the loop for a reply that came with it."""
        asyncio.get_running_loop().call_soon(self._end, {"kind": "crashed", "error": _describe(status, tail)})

    def lost(self) -> None:
        self._end({"kind": "lost", "error": f"the agents' fork server died; see {self._server.log}"})

    def _end(self, answer: dict[str, Any]) -> None:
        if self._line is not None:
            self._line.on_end = None
            self._line.settle(answer)
            self._line.close()
            self._line = None
        if self._dead is not None:
            self._dead.set()
        self._killing = False


class SlotGroup:
    """Slots of one kind, lent to one job each; a freed slot is lent first, being warm.

    The first ``eager`` are made as soon as jobs want them, the others only where jobs wait although those live and do
    not come free briskly: agents that wait for a model get them all, a reward function of a millisecond needs one.
    """

    def __init__(self, size: int, eager: int, kind: SlotKind, server: ForkServer, endpoint: Endpoint) -> None:
        self.size = size
        self._eager = min(size, eager)
        self._kind = kind
        self._server = server
        self._endpoint = endpoint
        self._idle: list[Slot] = []
        self._made = 0
        self._waiting: deque[asyncio.Future[Slot]] = deque()
        self._starting = 0
        self._freed = 0
        self._alarm: asyncio.TimerHandle | None = None

    async def start(self) -> frozenset[str]:
        """Make the first slot, which shows whether the module can be imported; returns what its function asks for."""
        slot = await self._take()
        try:
            await slot.ready()
        finally:
            self._give(slot)
        return slot.wants

    async def run(self, message: Any, timeout_s: float, bind: Bind) -> Outcome:
        slot = await self._take()
        try:
            self._starting += 1
            try:
                await slot.ready()
            finally:
                self._starting -= 1
            bind(slot.url_id)
            return await slot.run(message, timeout_s)
        except UsageError as error:  # it could be imported before, so this is the machine's failure
            return Outcome("lost", error=str(error))
        except ServerLost:
            return Outcome("lost", error="the agents' fork server died")
        finally:
            self._endpoint.release(slot.url_id)
            self._give(slot)

    async def _take(self) -> Slot:
        if self._idle:
            return self._idle.pop()
        if self._made < self._eager:
            return self._make()
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if self._alarm is None and self._made < self.size:
            self._watch()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(turn.result())
            raise

    def _give(self, slot: Slot) -> None:
        self._freed += 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(slot)
                return
        self._idle.append(slot)

    def _watch(self) -> None:
        self._freed = 0
        self._alarm = asyncio.get_running_loop().call_later(_PATIENCE_S, self._grow)

    def _grow(self) -> None:
        """Make half as many slots again for jobs that wait, unless those there are will do."""
        self._alarm = None
        enough = self._made if self._starting or self._freed >= _BRISK else self._made + max(1, self._made // 2)
        while self._waiting and self._made < min(self.size, enough):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._make())
        if self._waiting and self._made < self.size:
            self._watch()

    def _make(self) -> Slot:
        self._made += 1
        return Slot(_number(self._kind.role, self._made), self._kind, self._server, self._endpoint)


def _number(role: str, made: int) -> int:
    """Slot numbers are unique within a server: agents count 1, 2, 3; rewards 1001, 1002, ..."""
    return made + (0 if role == "agent" else 1000)


def _describe(status: int, tail: str) -> str:
    if status < 0:
        try:
            how = f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            how = f"was killed by signal {-status}"
    else:
        how = f"exited with code {status}"
    last = f"; its last output: {tail.strip()}" if tail.strip() else ""
    return f"the process {how} before it answered{last}"
