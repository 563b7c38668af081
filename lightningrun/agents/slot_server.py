"""The fork server: a small process that has the agent's packages loaded and forks slots from itself in milliseconds.

Started by the runner, under its own interpreter or the agent's, in a session of its own (a terminal's Ctrl-C does not
reach it) with one end of a socket pair. When that socket ends, because the runner closed it or was killed, every slot
is killed with all that it started. This module and those it imports use the standard library only. Limits: if this
server itself is killed by SIGKILL its slots die with it (Linux), but processes that an agent detached from a slot are
no longer anyone's to find.

Runner -> server  ``{"op": "spawn", "slot", ...}`` with the slot's socket as ancillary data; ``{"op": "kill", "slot"}``
Server -> runner  ``{"event": "spawned"|"died", "slot", "status", "tail"}``
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any

from lightningrun.agents import imports, proctree, slot, warming, wire

_MAX_LOG_BYTES = 1 << 20
_MAX_TAIL_BYTES = 1500


@dataclass
class _Child:
    """A slot's process as its parent sees it; ``output`` is the read end of its stdout and stderr."""

    slot: int
    output: int
    log: int
    kept: int
    tail: bytes = b""


class _Server:
    def __init__(self, control: socket.socket, scratch: str) -> None:
        self.control = control
        self.scratch = scratch
        self.children: dict[int, _Child] = {}
        self.selector: Any = selectors.DefaultSelector()
        self.wakeup = os.pipe()
        for end in self.wakeup:
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)
        self.selector.register(control, selectors.EVENT_READ)
        self.selector.register(self.wakeup[0], selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.control:
                    message, descriptor = wire.receive_with_descriptor(self.control)
                    if message is None:
                        return
                    self._obey(message, descriptor)
                elif key.fd == self.wakeup[0]:
                    os.read(key.fd, 4096)
                    self._reap()
                elif key.data in self.children:
                    self._pump(key.data, 1)

    def _obey(self, message: dict[str, Any], descriptor: int | None) -> None:
        if message["op"] == "spawn" and descriptor is not None:
            self._spawn(message, descriptor)
        elif message["op"] == "kill":
            for pid, child in self.children.items():
                if child.slot == message["slot"]:
                    proctree.kill_tree(pid)

    def _spawn(self, message: dict[str, Any], descriptor: int) -> None:
        log = os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        output, inherited = os.pipe()
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell("died", message["slot"], os.EX_OSERR, f"cannot fork: {error}")
            for fd in (log, output, inherited, descriptor):
                os.close(fd)
            return
        if pid == 0:
            self._become_slot(message, descriptor, inherited, server, (log, output))
        os.close(inherited)
        os.close(descriptor)
        os.set_blocking(output, False)
        self.children[pid] = _Child(message["slot"], output, log, os.fstat(log).st_size)
        self.selector.register(output, selectors.EVENT_READ, pid)
        self._tell("spawned", message["slot"], 0)

    def _become_slot(
        self, message: dict[str, Any], descriptor: int, inherited: int, server: int, ends: tuple[int, int]
    ) -> None:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(inherited, 1)
            os.dup2(inherited, 2)
            others = [fd for child in self.children.values() for fd in (child.output, child.log)]
            own = (inherited, self.control.fileno(), self.selector.fileno(), *self.wakeup, *ends)
            for fd in (*own, *others):
                with contextlib.suppress(OSError):
                    os.close(fd)
            os.set_inheritable(descriptor, False)
            slot.live(socket.socket(fileno=descriptor), message, server)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(BaseException):
                    stream.flush()
            os._exit(0)

    def _pump(self, pid: int, reads: int) -> None:
        """Move a slot's output to its log file, up to a limit; what is beyond is read and dropped."""
        child = self.children[pid]
        for _ in range(reads):
            try:
                data = os.read(child.output, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self.selector.unregister(child.output)
                return
            child.tail = (child.tail + data)[-_MAX_TAIL_BYTES:]
            room = _MAX_LOG_BYTES - child.kept
            with contextlib.suppress(OSError):  # a full disk must not stop the slots
                if room > 0:
                    os.write(child.log, data[:room])
                    if len(data) >= room:
                        os.write(child.log, b"\n[output beyond 1 MiB is not kept]\n")
            child.kept += len(data)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.children:
                self._bury(pid, os.waitstatus_to_exitcode(status))

    def _bury(self, pid: int, status: int) -> None:
        self._pump(pid, 64)
        child = self.children.pop(pid)
        with contextlib.suppress(KeyError):
            self.selector.unregister(child.output)
        os.close(child.output)
        os.close(child.log)
        self._sweep()
        self._tell("died", child.slot, status, child.tail.decode("utf-8", "replace"))

    def _sweep(self) -> None:
        """Kill what dead slots left behind: this process is a subreaper, so it is our child and no slot."""
        orphans = [pid for pid in proctree.children(os.getpid()) if pid not in self.children]
        for pid in orphans:
            proctree.kill_tree(pid)

    def _tell(self, event: str, number: int, status: int, tail: str = "") -> None:
        message = {"event": event, "slot": number, "status": status, "tail": tail}
        with contextlib.suppress(OSError):  # the runner is gone: the end of the socket says so
            self.control.sendall(wire.frame(message))

    def end(self) -> None:
        for pid in self.children:
            proctree.kill_tree(pid)
        while self.children:
            pid, _ = os.waitpid(-1, 0)
            self.children.pop(pid, None)
        self._sweep()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _threads() -> int:
    return len(os.listdir("/proc/self/task")) if proctree.LINUX else threading.active_count()


def _preload(config: dict[str, Any]) -> None:
    """Import what the slots will need. A package that starts threads cannot be forked: start over without it."""
    try:
        names = imports.packages_of(config["entrypoints"])
    except Exception:
        traceback.print_exc()  # into the server's log; slots then load everything themselves
        return
    for name in names:
        if name in config["skip"]:
            continue
        try:
            importlib.import_module(name)
        except BaseException:
            continue  # the slot's own import will say what is wrong, if it matters
        if _threads() > 1:
            config["skip"].append(name)
            os.execv(sys.executable, [*sys.orig_argv[:-1], json.dumps(config)])


def main() -> None:
    config = json.loads(sys.argv[1])
    sys.path.insert(0, os.getcwd())
    proctree.adopt_orphans()
    gc.disable()  # a tenth of the time that imports take; what they leave behind is never garbage
    _preload(config)
    warming.warm()
    control = socket.socket(fileno=config["control"])
    gc.collect()
    gc.freeze()
    gc.enable()
    server = _Server(control, config["scratch"])
    try:
        server.serve()
    finally:
        server.end()
        os._exit(0)


if __name__ == "__main__":
    main()
