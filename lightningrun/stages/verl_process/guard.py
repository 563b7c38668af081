"""Runs a command, and leaves nothing of it behind: not when it ends, not when whoever asked for it is killed.

    python -m lightningrun.stages.verl_process.guard FOLDER COMMAND...

The guard adopts every orphan below it (Linux), so that daemons which detach themselves are found. It lives in a session
of its own and holds one end of a pipe as its standard input; when the other end closes, or the command ends, it kills
all that is left and exits with the command's status. If the other end closed, nobody is left who wants FOLDER: it is
removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from lightningrun.agents.proctree import adopt_orphans, children, die_with_parent, kill_tree

_TRIES_S = 10.0


def main(folder: str, command: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    mine = os.getpid()
    run = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=lambda: die_with_parent(mine)
    )

    alone = threading.Event()

    def watch() -> None:
        while os.read(0, 1):
            pass
        alone.set()
        kill_tree(run.pid)

    threading.Thread(target=watch, daemon=True).start()
    status = run.wait()
    sweep()
    if alone.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def sweep() -> None:
    """Kill all that descends from this process, until nothing does."""
    end = time.monotonic() + _TRIES_S
    while (left := children(os.getpid())) and time.monotonic() < end:
        for pid in left:
            kill_tree(pid)
        reap()
        time.sleep(0.02)


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
