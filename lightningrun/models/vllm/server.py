"""A model server in a process of its own: started, waited for until it is healthy, and ended with all its children."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import aiohttp

from lightningrun.errors import ModelError

DEFAULT_COMMAND = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")
NOT_SERVED = "not_served"
"""The kind of error that every further call will meet too."""

_FIRST_LOOK_S = 0.1
_LOOK_S = 1.0
_SAY_EVERY_S = 20.0
_STOP_S = 25.0
_TOLD_CHARS = 600


class Server:
    """One start of the server. ``where`` is the role's place in the recipe, ``say`` shows a line of progress."""

    def __init__(self, serves: str, port: int, log: Path, where: str, say: Callable[[str], None]) -> None:
        self.serves = serves
        """What it was started for: the digest of a checkpoint, or a name."""
        self.origin = f"http://127.0.0.1:{port}"
        self._port = port
        self._log = log
        self._where = where
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._told_from = 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, command: Sequence[str], environ: Mapping[str, str], deadline_s: float) -> None:
        """Start it and wait until it is healthy. Raises ModelError, the process then gone again."""
        if _is_taken(self._port):
            raise self._failed(
                f"port {self._port} is taken",
                hint=f"another {self._where}.server.port, or none: a free one is taken; "
                "base_url attaches to a server that runs",
            )
        with self._opened() as log:
            self._told_from = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "lightningrun.models.vllm.keeper", *command),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(environ),
                start_new_session=True,
            )
        try:
            await self._until_healthy(deadline_s)
        except BaseException:
            await self.stop()
            raise

    def _opened(self) -> BinaryIO:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return open(self._log, "ab")

    async def _until_healthy(self, deadline_s: float) -> None:
        assert self._process is not None
        began = time.monotonic()
        said, look_s = began, _FIRST_LOOK_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not await answers(session, self.origin):
                now = time.monotonic()
                if self._process.returncode is not None:
                    raise self._failed(f"the server ended with exit code {self._process.returncode} before it answered")
                if now - began > deadline_s:
                    option = f"{self._where}.server.start_timeout_s"
                    hint = f"its log is {self._log}; a large model may need a longer {option}"
                    raise self._failed(f"the server was not healthy within {deadline_s:g} s", hint=hint)
                if now - said > _SAY_EVERY_S:
                    self._say(f"{self._where}: the server is not ready yet ({now - began:.0f} s; log: {self._log})")
                    said = now
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._process.wait(), look_s)
                look_s = min(2 * look_s, _LOOK_S)
        if self._process.returncode is not None:  # and something else answers at its port
            raise self._failed(f"the server ended with exit code {self._process.returncode}")
        self._say(f"{self._where}: the server answers after {time.monotonic() - began:.0f} s")

    def died(self) -> ModelError:
        """The error for a server that ended by itself while it was used."""
        assert self._process is not None
        error = self._failed(f"the server died (exit code {self._process.returncode})")
        return ModelError(error.message, kind="server_died", retryable=True, where=error.where, hint=error.hint)

    def _failed(self, what: str, hint: str = "") -> ModelError:
        said = told(self._log, self._told_from) if self._process is not None else ""
        message = f"{what}; it said: {said}" if said else what
        return ModelError(message, kind=NOT_SERVED, where=self._where, hint=hint or f"its log is {self._log}")

    async def stop(self) -> None:
        """End it and wait until its processes are gone, so that its memory and its port are free."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def answers(session: aiohttp.ClientSession, origin: str) -> bool:
    """Whether the server at ``origin`` says that it is healthy."""
    try:
        async with session.get(f"{origin}/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        return False


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def told(log: Path, start: int) -> str:
    """The lines of a log that say most about why a server ended: its last errors, or else its last line."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line or "error:" in line]
        return " | ".join(list(dict.fromkeys(errors))[-2:] or lines[-1:])[-_TOLD_CHARS:]
    return ""
