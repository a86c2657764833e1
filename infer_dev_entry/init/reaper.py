"""The sole waitpid: reaps every child and orphan, and tells those who wait for a particular one."""

from __future__ import annotations

import asyncio
import os
import signal

from infer_dev_entry.init.proxy import reap_all


class Reaper:
    """Call `reap` on every SIGCHLD. `expect` must follow a spawn without an await in between."""

    def __init__(self) -> None:
        self._expected: dict[int, asyncio.Future[int]] = {}

    def expect(self, pid: int) -> asyncio.Future[int]:
        """Return a future of the child's wait status."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._expected[pid] = future
        return future

    def reap(self) -> None:
        """Reap all who are dead and fulfil what was expected."""
        for pid, status in reap_all().items():
            future = self._expected.pop(pid, None)
            if future is not None and not future.done():
                future.set_result(status)


def describe_end(wait_status: int) -> str:
    """Describe waitpid's status: "exited with status 2" or "was killed by SIGKILL"."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
