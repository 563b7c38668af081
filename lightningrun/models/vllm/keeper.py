"""Stands between the runner and a model server, so that neither a kill nor a crash leaves one of its processes.

    python -m lightningrun.models.vllm.keeper PROGRAM [ARGUMENT ...]

Runs the program until it ends, or until standard input does: the runner holds the other end, and the kernel closes it
however the runner goes. Then the program is asked to end (SIGTERM), and after ``GRACE_S`` it is killed with all that it
started, detached or not. Exits with the program's code, 128 + n after signal n, 127 if it cannot be started.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from functools import partial

from lightningrun.agents import proctree

GRACE_S = 5.0
_LOOK_S = 0.2
_REAP_S = 10.0


def main(command: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os.close(sys.stdin.fileno()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    proctree.adopt_orphans()
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(proctree.die_with_parent, os.getpid()),
        )
    except OSError as error:
        print(f"Error: {command[0]} cannot be started: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    while server.poll() is None and not _hung_up():
        pass
    if server.poll() is None:
        _end(server)
    _sweep()
    code = server.returncode
    return code if code >= 0 else 128 - code


def _hung_up() -> bool:
    """Whether the runner is gone or wants the end; waits ``_LOOK_S`` for it."""
    try:
        readable, _, _ = select.select([0], [], [], _LOOK_S)
        return bool(readable) and not os.read(0, 4096)
    except OSError:
        return True


def _end(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        proctree.kill_tree(server.pid)
        server.wait()


def _sweep() -> None:
    """Kill what the program left behind, all of it children of this process by now, and wait until it is gone."""
    until = time.monotonic() + _REAP_S
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < until:
            for pid in proctree.descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
