"""The container's command beside a fleet: started after boot, given every signal that is not ours, ended in time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from infer_dev_entry.init.reaper import Reaper, describe_end
from infer_dev_entry.init.spawn import exit_code, give_terminal, signal_group, spawn_command

# How long a command may outlive a stop when no server's drain allows more: Docker's own default grace.
COMMAND_STOP_S = 9.0
COMMAND_REAP_S = 1.5


class Command:
    """One command, or none where `argv` is empty; `on_exit` gets its exit code."""

    def __init__(
        self,
        argv: tuple[str, ...],
        environ: Mapping[str, str],
        mask: tuple[int, ...],
        *,
        reaper: Reaper,
        log: Any,
        on_exit: Callable[[int], None],
    ) -> None:
        self.argv = argv
        self._environ = environ
        self._mask = mask
        self._reaper = reaper
        self._log = log
        self._on_exit = on_exit
        self._pid = 0
        self._exited: asyncio.Future[int] | None = None

    @property
    def is_running(self) -> bool:
        """True from its start to its end."""
        return self._exited is not None and not self._exited.done()

    def start(self) -> None:
        """Start it, if there is one."""
        if not self.argv:
            return
        self._pid = spawn_command(self.argv, self._environ, self._mask)
        self._exited = self._reaper.expect(self._pid)
        self._exited.add_done_callback(self._take_exit)

    def _take_exit(self, exited: asyncio.Future[int]) -> None:
        if exited.cancelled():
            return
        code = exit_code(exited.result())
        self._log.info("command.ended", how=describe_end(exited.result()), exit_code=code)
        give_terminal(os.getpgrp())  # a Ctrl-C during the drain is for us
        self._on_exit(code)

    def signal(self, number: int) -> None:
        """Send a signal to its process group; to nobody when it does not run."""
        if self.is_running:
            signal_group(self._pid, number)

    async def end(self, began: float, drains: Iterable[float], is_cut_short: Callable[[], bool]) -> None:
        """End a command that outlives the drain (an interactive shell ignores SIGTERM) when its time is up.

        Its time counts from `began`, the stop, so that it does not add to the `drains` of the servers, in seconds.
        """
        exited = self._exited
        if exited is None:
            return
        if exited.done():
            await asyncio.sleep(0)  # its callback, which keeps the exit code, may only be scheduled yet
            return
        deadline = began + max([COMMAND_STOP_S, *drains])
        while not exited.done() and not is_cut_short() and asyncio.get_running_loop().time() < deadline:
            await asyncio.wait({exited}, timeout=0.2)
        if not exited.done():
            self._log.warning("command.killed", pid=self._pid)
            signal_group(self._pid, signal.SIGKILL)
            await asyncio.wait({exited}, timeout=COMMAND_REAP_S)
