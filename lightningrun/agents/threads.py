"""Threads for functions that may never return.

``ThreadPoolExecutor`` waits for its threads at exit, and has a fixed number of them. Here each call has a thread at
once: one that is idle, so that what a function keeps for each thread (a connection, say) is of use, or else a new one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

Work = Callable[[], None]


class Threads:
    """As many daemon threads as calls were under way at once. A call that hangs blocks neither others nor the exit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: deque[SimpleQueue[Work | None]] = deque()
        self._closed = False

    def start(self, work: Work) -> None:
        """Run ``work``, which raises nothing, in a thread of its own."""
        try:
            todo = self._idle.pop()
        except IndexError:
            todo = SimpleQueue()
            threading.Thread(target=self._serve, args=(todo,), name=self._name, daemon=True).start()
        todo.put(work)

    def close(self) -> None:
        """End the idle threads now, the others when their functions return."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _serve(self, todo: SimpleQueue[Work | None]) -> None:
        while not self._closed and (work := todo.get()) is not None:
            work()
            del work  # what it holds is not to be kept until the next
            self._idle.append(todo)
