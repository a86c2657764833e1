"""The supervisord child: its configuration, start, update and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infer_dev_entry.errors import SupervisorError
from infer_dev_entry.init.reaper import Reaper, describe_end
from infer_dev_entry.init.spawn import spawn_helper
from infer_dev_entry.logtail import read_tail
from infer_dev_entry.proctree import end_leftovers, track
from infer_dev_entry.render import DaemonSpec, render_conf
from infer_dev_entry.rundir import supervisor_conf, supervisor_socket, write_private
from infer_dev_entry.settings import MARK_VARIABLE
from infer_dev_entry.spec import ServerSpec
from infer_dev_entry.supervisor_rpc import SupervisorRpc, wait_for_rpc

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 2.0
_OUTPUT_LINES = 5


class Supervisord:
    """At most one supervisord. `on_exit` is told when it ends by itself, with the reason."""

    def __init__(
        self,
        *,
        daemon: DaemonSpec,
        environ: Mapping[str, str],
        reaper: Reaper,
        log: Any,
        on_exit: Callable[[str], None],
    ) -> None:
        self._daemon = daemon
        self._environ = dict(environ) | {MARK_VARIABLE: f"{daemon.fleet_id}/"}
        self._reaper = reaper
        self._log = log
        self._on_exit = on_exit
        self._pid = 0
        self._exited: asyncio.Future[int] | None = None
        self._closing = False
        self._unapplied: tuple[ServerSpec, ...] | None = None
        self.rpc = SupervisorRpc(supervisor_socket(daemon.run_dir))
        # Commands to supervisord go one after another, in the order in which they were asked for.
        self.lane = asyncio.Lock()

    @property
    def live_pid(self) -> int:
        """Its pid while it runs, else 0."""
        return self._pid if self._exited is not None else 0

    async def start(self, specs: tuple[ServerSpec, ...]) -> bool:
        """End what an earlier one has left, start anew and wait until it answers; False when the entry is closing.

        Raises:
            EntryError: it cannot be configured or started.
            OSError: a file cannot be written.
        """
        async with self.lane:
            if self._closing:
                return False
            await self._sweep_fleet()
            self._write_conf(specs)
            self._unapplied = None
            await self._spawn()
            return True

    async def configure(self, specs: tuple[ServerSpec, ...]) -> list[str]:
        """Give it the configuration of these servers; return those that still run with an older one.

        Raises:
            EntryError: it cannot be rendered, or supervisord refuses it; the old one stays in force.
            OSError: a file cannot be written.
        """
        async with self.lane:
            self._unapplied = specs
            return await self.apply()

    async def apply(self) -> list[str]:
        """Give it the newest configuration, also one that could not be given when it came. Hold `lane` for this.

        Raises:
            EntryError: as `configure`.
            OSError: a file cannot be written.
        """
        if self._unapplied is None:
            return []
        self._write_conf(self._unapplied)
        busy = await self.rpc.call("infer_dev.update")
        self._unapplied = None
        return [str(name) for name in busy]

    async def stop(self) -> None:
        """Shut it down once its programs are gone; none is started after this."""
        self._closing = True
        async with self.lane:
            exited, self._exited = self._exited, None
        if exited is None:
            return
        with contextlib.suppress(SupervisorError):
            await self.rpc.call("supervisor.shutdown", timeout_s=STOP_TIMEOUT_S)
        done, _ = await asyncio.wait({exited}, timeout=STOP_TIMEOUT_S)
        if not done:
            self._kill()
            await asyncio.wait({exited}, timeout=STOP_TIMEOUT_S)
        await self._sweep_fleet()

    def kill_hung(self) -> None:
        """End one that does not answer; its death is then seen like any other."""
        if self._exited is not None and not self._exited.done():
            self._log.error("supervisor.hung", pid=self._pid)
            self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    async def _sweep_fleet(self) -> None:
        """End what an earlier supervisord, or an earlier entry on this run directory, has left behind."""
        result = await end_leftovers(track(f"{self._daemon.fleet_id}/", 0))
        if result.killed or result.survivors:
            self._log.warning(
                "fleet.leftovers_ended", killed=", ".join(result.killed), survive=", ".join(result.survivors)
            )

    def _write_conf(self, specs: tuple[ServerSpec, ...]) -> None:
        for spec in specs:  # supervisord refuses its whole configuration when one log directory is missing
            Path(spec.log_file).parent.mkdir(parents=True, exist_ok=True)
        write_private(supervisor_conf(self._daemon.run_dir), render_conf(specs, self._daemon))

    async def _spawn(self) -> None:
        run_dir = self._daemon.run_dir
        for name in ("supervisor.sock", "supervisord.pid", "supervisord.out"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{run_dir}/{name}")
        output = f"{run_dir}/supervisord.out"
        # -X utf8: the configuration is UTF-8 whatever the container's locale, and the servers do not inherit it.
        argv = (sys.executable, "-X", "utf8", "-m", "supervisor.supervisord", "-n", "-c", supervisor_conf(run_dir))
        self._pid = spawn_helper(argv, self._environ, output=output)
        exited = self._reaper.expect(self._pid)
        self._exited = exited
        try:
            await wait_for_rpc(self.rpc, START_TIMEOUT_S, lambda: not (exited.done() or self._closing))
        except SupervisorError as error:
            self._exited = None
            self._kill()
            detail = _find_error(output)
            raise SupervisorError(f"{error}; it said: {detail}" if detail else str(error)) from error
        exited.add_done_callback(self._take_exit)

    def _take_exit(self, exited: asyncio.Future[int]) -> None:
        if self._exited is exited and not exited.cancelled():
            self._exited = None
            self._on_exit(f"supervisord {describe_end(exited.result())}")


def _find_error(output: str) -> str:
    """Return supervisord's own error line; a hint for its usage follows it."""
    lines = read_tail(output, _OUTPUT_LINES)
    return next((line for line in lines if line.startswith("Error:")), lines[-1] if lines else "")
