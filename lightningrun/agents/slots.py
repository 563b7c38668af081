"""The runner's side of the slots: event-driven, nothing polls.

A ``SlotGroup`` holds up to ``size`` slots of one role and lends one to each job. A slot has one gateway url for life,
and its process is forked when it is first needed and again after it was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningrun.agents import wire
from lightningrun.agents.environment import endpoint_environment
from lightningrun.agents.jobs import Bind, Endpoint, Outcome
from lightningrun.errors import StageFailed, UsageError
from lightningrun.types import Json

_IMPORT_TIMEOUT_S = 180.0
_CLOSE_TIMEOUT_S = 1.5
_MAX_SERVER_STARTS = 2


class ServerLost(Exception):
    """The fork server ended while something was waiting for it."""


@dataclass(frozen=True)
class SlotKind:
    """What the slots of one group run. ``model`` is the name they are told; ``args`` are what the function gets."""

    role: str
    entrypoint: str
    args: Mapping[str, Json]
    model: str
    memory_mb: int | None = None


class ForkServer:
    """Starts the fork server when it is first needed, and once more if it dies."""

    def __init__(self, env: Mapping[str, str], entrypoints: list[str], logs: Path) -> None:
        self.logs = logs
        self._env = dict(env)
        self._entrypoints = entrypoints
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._starts = 0
        self._closed = False
        self._slots: dict[int, Slot] = {}
        self.scratch = ""

    def spawn(self, slot: Slot, message: dict[str, Any]) -> socket.socket:
        """Ask for a process; returns the runner's end of its socket. Raises StageFailed if the server keeps dying."""
        if self._control is None:
            self._start()
        assert self._control is not None
        ours, theirs = socket.socketpair()
        self._slots[slot.number] = slot
        message |= {"op": "spawn", "slot": slot.number, "scratch": os.path.join(self.scratch, str(slot.number))}
        try:
            socket.send_fds(self._control, [wire.frame(message)], [theirs.fileno()])
        except OSError as error:
            ours.close()
            self._lost()
            raise ServerLost from error
        finally:
            theirs.close()
        return ours

    def kill(self, number: int) -> None:
        if self._control is not None:
            try:
                self._control.sendall(wire.frame({"op": "kill", "slot": number}))
            except OSError:
                self._lost()

    def _start(self) -> None:
        if self._closed:
            raise StageFailed("the agents' slots are closed")
        if self._starts == _MAX_SERVER_STARTS:
            raise StageFailed(
                "the agents' fork server died twice", where=str(self._log), hint="the end of its log says more"
            )
        self._starts += 1
        self.scratch = tempfile.mkdtemp(prefix="lightningrun-")
        ours, theirs = socket.socketpair()
        config = {
            "control": theirs.fileno(),
            "entrypoints": self._entrypoints,
            "scratch": self.scratch,
            "skip": [],
        }
        with open(self._log, "ab") as log, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightningrun.agents.slot_server", json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._control = ours
        self._buffer.clear()
        asyncio.get_running_loop().add_reader(ours, self._read)

    @property
    def _log(self) -> Path:
        return self.logs / "slot_server.log"

    def _read(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        self._buffer += data
        for message in wire.unpack(self._buffer):
            if message["event"] == "died" and message["slot"] in self._slots:
                self._slots.pop(message["slot"]).died(message["status"], message["tail"])

    def _lost(self) -> None:
        self._disconnect()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        for slot in [self._slots.pop(number) for number in list(self._slots)]:
            slot.lost()

    def _disconnect(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None

    async def close(self) -> None:
        """Hang up: the server then kills every slot's tree and ends. A server that does not is killed."""
        self._closed = True
        self._disconnect()
        if self._process is not None:
            loop = asyncio.get_running_loop()
            wait = loop.run_in_executor(None, self._process.wait, _CLOSE_TIMEOUT_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await wait
        self._lost()


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
            "env": endpoint_environment(self._url, self._token, kind.model),
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
            raise UsageError(f"importing the {kind.role} failed: {reason}", where=kind.entrypoint)
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
        self._end({"kind": "lost", "error": "the agents' fork server died"})

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
    """Slots of one kind. Made on demand, so that a short stage forks few; a freed slot is lent first, being warm."""

    def __init__(self, size: int, kind: SlotKind, server: ForkServer, endpoint: Endpoint) -> None:
        self.size = size
        self._kind = kind
        self._server = server
        self._endpoint = endpoint
        self._idle: list[Slot] = []
        self._made = 0
        self._free = asyncio.Semaphore(size)

    async def start(self) -> frozenset[str]:
        """Make the first slot, which shows whether the module can be imported; returns what its function asks for."""
        slot = self._take()
        try:
            await slot.ready()
        finally:
            self._idle.append(slot)
        return slot.wants

    async def run(self, message: Any, timeout_s: float, bind: Bind) -> Outcome:
        async with self._free:
            slot = self._take()
            try:
                await slot.ready()
                bind(slot.url_id)
                return await slot.run(message, timeout_s)
            except UsageError as error:  # it could be imported before, so this is the machine's failure
                return Outcome("lost", error=str(error))
            except ServerLost:
                return Outcome("lost", error="the agents' fork server died")
            finally:
                self._endpoint.release(slot.url_id)
                self._idle.append(slot)

    def _take(self) -> Slot:
        if self._idle:
            return self._idle.pop()
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
