"""Follow the process that an entry was started for: when that dies, however it dies, the entry ends too.

Such an entry has its run directory for itself; where its parent can no longer remove that, it does so.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable


def follow_parent(pid: int, on_gone: Callable[[], None]) -> None:
    """Call `on_gone` once our parent `pid` is dead, at once when it is by now.

    By a pidfd: a parent-death signal (prctl(2)) would come when the parent's thread that forked us ends.
    """
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(pid)
    except OSError:  # gone, and nobody has its pid yet
        on_gone()
        return

    def take_end() -> None:
        loop.remove_reader(handle)
        os.close(handle)
        on_gone()

    if os.getppid() == pid:
        loop.add_reader(handle, take_end)
    else:  # the pid is another's by now
        os.close(handle)
        on_gone()


def remove_traces(run_dir: str) -> None:
    """Remove the run directory; what cannot be removed stays."""
    shutil.rmtree(run_dir, ignore_errors=True)
