"""Answer, line by line, what holds the GPUs: the child that PID 1 asks.

A process of its own, because NVML would stay in PID 1's memory for good, and because a sick driver blocks its caller
for minutes. It ends with its stdin. `python -m infer_dev_entry.gpu_look`, then one JSON list of ids (or null) a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from infer_dev_entry.gpu import GpuDoor
from infer_dev_entry.gpu_wait import Holder, render_look
from infer_dev_entry.procaccess import read_as_owner
from infer_dev_entry.settings import MARK_VARIABLE

_PROC = Path("/proc")


def main() -> None:
    """Serve looks until stdin ends."""
    door = GpuDoor()
    for line in sys.stdin:
        ids = json.loads(line)
        look = door.look(None if ids is None else tuple(ids), describe_holder)
        print(render_look(look), flush=True)


def describe_holder(pid: int, used_bytes: int) -> Holder | None:
    """Describe a process that has a GPU open; None when it is gone, dying, or a pid of another namespace.

    The driver may tell the host's pids, and ours under the same numbers are other processes, without a GPU.
    """
    process = _PROC / str(pid)
    with contextlib.suppress(OSError):
        if read_as_owner(process, lambda: _has_gpu(process)):
            name = (process / "comm").read_text(errors="replace").strip()
            return Holder(pid=pid, name=name, used_bytes=used_bytes, server=_read_server(process))
    return None


def _has_gpu(process: Path) -> bool:
    for name in os.listdir(process / "fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if "/dev/nvidia" in os.readlink(process / "fd" / name):
                return True
    return False


def _read_server(process: Path) -> str:
    with contextlib.suppress(OSError):
        for item in read_as_owner(process, (process / "environ").read_bytes).split(b"\0"):
            key, _, value = item.decode(errors="replace").partition("=")
            if key == MARK_VARIABLE:
                return value.rpartition("/")[2]
    return ""


if __name__ == "__main__":
    main()
