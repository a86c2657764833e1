"""Ask the driver about GPUs through a child, within a deadline; where no driver is, nothing is started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from functools import partial

from infer_dev_entry.gpu_wait import NO_DRIVER, GpuLook, parse_look
from infer_dev_entry.init.reaper import Reaper
from infer_dev_entry.init.spawn import signal_group, spawn_helper

# Opening a driver that keeps no GPU awake takes a second or two for each GPU.
LOOK_TIMEOUT_S = 20.0
# The child stays for the next look of a wait; opening the driver anew would cost more than looking.
LINGER_S = 10.0
# What the driver, or the container toolkit for it, puts there; the last is WSL's.
DRIVER_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")


class GpuChild:
    """One child for all servers, asked one thing at a time; a child that does not answer in time is ended."""

    def __init__(self, reaper: Reaper, environ: Mapping[str, str]) -> None:
        self._reaper = reaper
        self._environ = environ
        self._lock = asyncio.Lock()
        self._pid = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._leave: asyncio.TimerHandle | None = None

    async def look(self, gpu_ids: tuple[str, ...] | None) -> GpuLook:
        """Read the memory of these GPUs; trouble is part of the answer."""
        if not any(map(os.path.exists, DRIVER_FILES)):
            return NO_DRIVER
        async with self._lock:
            if self._leave is not None:
                self._leave.cancel()
            try:
                return await asyncio.wait_for(self._ask(gpu_ids), LOOK_TIMEOUT_S)
            except TimeoutError:
                self._end(signal.SIGKILL)
                return GpuLook(problem=f"no answer within {LOOK_TIMEOUT_S:g} s")
            except (OSError, ValueError) as error:
                self._end(signal.SIGKILL)
                return GpuLook(problem=f"cannot ask it: {error}")
            finally:
                self._leave = asyncio.get_running_loop().call_later(LINGER_S, self.close)

    async def _ask(self, gpu_ids: tuple[str, ...] | None) -> GpuLook:
        if self._writer is None:
            await self._spawn()
        reader, writer = self._reader, self._writer
        if reader is None or writer is None:
            raise OSError("it was closed")
        writer.write(json.dumps(gpu_ids).encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
        if not line:
            raise OSError("the process that asks it has ended")
        return parse_look(line.decode())

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            argv = (sys.executable, "-m", "infer_dev_entry.gpu_look")
            self._pid = spawn_helper(argv, self._environ, channel=theirs.fileno())
            self._reaper.expect(self._pid).add_done_callback(partial(self._take_exit, self._pid))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)

    def _take_exit(self, pid: int, _exited: asyncio.Future[int]) -> None:
        if pid == self._pid:
            self._pid = 0  # a signal must not reach whoever gets this pid next

    def close(self) -> None:
        """Let the child end; it does when its stdin does."""
        self._end(0)

    def _end(self, number: int) -> None:
        if self._leave is not None:
            self._leave.cancel()
            self._leave = None
        if number and self._pid:
            signal_group(self._pid, number)
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
