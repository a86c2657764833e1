"""Blocking work beside the loop that may never come back, such as a read on a file system that hangs.

asyncio's own threads are few, shared and waited for at the end: some reads that hang would take them all, and keep
PID 1 from exiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Aside:
    """Does one thing at a time in a thread of its own, which nobody waits for at the end."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """Return what `work` returns, or raise what it raises.

        Raises:
            TimeoutError: it has not come back in time, or that of the call before still has not.
        """
        if self._thread is not None and self._thread.is_alive() and not await self._ends_soon():
            raise TimeoutError("the call before it does not come back")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(target=_work, args=(work, done), daemon=True, name="aside")
        self._thread.start()
        return await asyncio.wait_for(done, timeout_s)

    async def _ends_soon(self) -> bool:
        """The thread of a call that is over may take a moment to end."""
        assert self._thread is not None
        for _ in range(5):
            await asyncio.sleep(0.002)
            if not self._thread.is_alive():
                return True
        return False


def _work(work: Callable[[], Any], done: asyncio.Future[Any]) -> None:
    outcome: Any = None
    problem: BaseException | None = None
    try:
        outcome = work()
    except BaseException as error:
        problem = error
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        done.get_loop().call_soon_threadsafe(_settle, done, outcome, problem)


def _settle(done: asyncio.Future[Any], outcome: Any, problem: BaseException | None) -> None:
    if done.done():
        return  # nobody waits for it any more
    if problem is None:
        done.set_result(outcome)
    else:
        done.set_exception(problem)
