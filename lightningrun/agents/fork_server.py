"""The runner's line to the fork server: starts it, asks it for processes, hears from it when they die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lightningrun.agents import interpreter, wire
from lightningrun.errors import StageFailed

_CLOSE_TIMEOUT_S = 1.5
_MAX_SERVER_STARTS = 2


class Tenant(Protocol):
    """What lives in a process that the server forked."""

    number: int

    def died(self, status: int, tail: str) -> None:
        """The process is gone: its exit code (negative: the signal) and the end of its output."""

    def lost(self) -> None:
        """The server is gone, and the process with it."""


class ServerLost(Exception):
    """The fork server ended while something was waiting for it."""


class ForkServer:
    """Starts the fork server when it is first needed, and once more if it dies. ``python``: another than ours."""

    def __init__(self, env: Mapping[str, str], entrypoints: list[str], logs: Path, python: str | None = None) -> None:
        self.logs = logs
        self.python = python
        self._env = dict(env)
        self._entrypoints = entrypoints
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._starts = 0
        self._closed = False
        self._slots: dict[int, Tenant] = {}
        self.scratch = ""

    def spawn(self, slot: Tenant, message: dict[str, Any]) -> socket.socket:
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
                "the agents' fork server died twice", where=str(self.log), hint="the end of its log says more"
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
        with open(self.log, "ab") as log, theirs:
            self._process = subprocess.Popen(
                [*interpreter.slot_server(self.python, self.scratch), json.dumps(config)],
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
    def log(self) -> Path:
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
