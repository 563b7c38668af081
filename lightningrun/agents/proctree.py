"""Killing a process with everything it started.

On Linux slots and their server are "child subreapers": a grandchild that detaches itself (double fork, ``setsid``)
becomes their child instead of init's, so walking the tree finds it. Elsewhere only the process group is killed, and a
descendant that left the group is missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

LINUX = sys.platform.startswith("linux")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True) if LINUX else None


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent died."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exits at once if ``parent`` is dead already."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def children(parent: int) -> list[int]:
    """Living processes whose parent is ``parent``; empty where there is no /proc."""
    return _living().get(parent, [])


def descendants(root: int) -> list[int]:
    """Living processes below ``root``, nearest first; empty where there is no /proc."""
    below = _living()
    found = list(below.get(root, []))
    for pid in found:
        found += below.get(pid, [])
    return found


def _living() -> dict[int, list[int]]:
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if LINUX else []:
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as stat:
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    below.setdefault(int(parent), []).append(int(name))
    return below


def kill_tree(root: int) -> None:
    """SIGKILL ``root``, its process group and all its descendants. ``root`` must be an unreaped child of the caller.

    Everything is stopped first, until a walk finds nothing new, so that nothing can fork its way out.
    """
    stopped: list[int] = []
    pending = [root]
    while pending:
        for pid in pending:
            _signal(pid, signal.SIGSTOP)
        stopped += pending
        pending = [pid for pid in descendants(root) if pid not in stopped]
    with contextlib.suppress(OSError):
        os.killpg(root, signal.SIGKILL)
    for pid in reversed(stopped):
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)
