"""Blocking work beside the loop that may never come back, such as a read on a file system that hangs.

asyncio's own threads are few, shared and waited for at the end: some reads that hang would take them all, and keep
PID 1 from exiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Aside:
    """Does one thing at a time in a thread of its own, which nobody waits for at the end."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._over.set()

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """Return what `work` returns, or raise what it raises.

        Raises:
            TimeoutError: it has not come back in time, or that of the call before still has not.
            OSError: there can be no thread now.
        """
        if not self._over.is_set():
            raise TimeoutError("the call before it does not come back")
        self._over.clear()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            threading.Thread(target=_work, args=(work, done, self._over), daemon=True, name="aside").start()
        except RuntimeError as error:  # the container's limit of processes; there is room again later
            self._over.set()
            raise OSError(errno.EAGAIN, str(error)) from error
        return await asyncio.wait_for(done, timeout_s)


def _work(work: Callable[[], Any], done: asyncio.Future[Any], over: threading.Event) -> None:
    outcome: Any = None
    problem: BaseException | None = None
    try:
        outcome = work()
    except BaseException as error:
        problem = error
    over.set()  # before the answer: who has it may call again at once
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        done.get_loop().call_soon_threadsafe(_settle, done, outcome, problem)


def _settle(done: asyncio.Future[Any], outcome: Any, problem: BaseException | None) -> None:
    if done.done():
        return  # nobody waits for it any more
    if problem is None:
        done.set_result(outcome)
    else:
        done.set_exception(problem)
