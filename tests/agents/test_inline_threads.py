"""Threads that inline agents run in: used again, never waited for, ended with the pool."""

from __future__ import annotations

import threading
import time

from lightningrun.agents.threads import Threads


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_an_idle_thread_is_used_again_and_a_hung_one_holds_up_nobody() -> None:
    threads = Threads("threads-under-test")
    seen: list[int] = []
    released, hung = threading.Event(), threading.Event()

    def work() -> None:
        seen.append(threading.get_ident())

    for count in range(1, 6):
        threads.start(work)
        while len(seen) < count or not threads._idle:
            time.sleep(0.001)
    assert len(set(seen)) == 1
    threads.start(lambda: (hung.set(), released.wait(10))[0])
    assert hung.wait(5)
    threads.start(work)
    while len(seen) < 6:
        time.sleep(0.001)
    assert seen[5] != seen[0], "its thread is still busy"
    threads.close()
    released.set()
    end = time.monotonic() + 5
    while "threads-under-test" in names() and time.monotonic() < end:
        time.sleep(0.01)
    assert "threads-under-test" not in names()
