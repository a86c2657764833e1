"""Answer, line by line, what holds the GPUs: the child that PID 1 asks.

A process of its own, because NVML would stay in PID 1's memory for good, and because a sick driver blocks its caller
for minutes. It ends with its stdin. `python -m infer_dev_entry.gpu_look`, then one JSON list of ids (or null) a line.
"""

from __future__ import annotations

import contextlib
import json
import sys

from infer_dev_entry.gpu import GpuDoor
from infer_dev_entry.gpu_wait import Holder, render_look
from infer_dev_entry.procaccess import PROC, marks_above, read_links


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
    process = PROC / str(pid)
    with contextlib.suppress(OSError):
        if any("/dev/nvidia" in link for link in read_links(process)):
            name = (process / "comm").read_text(errors="replace").strip()
            # SGLang's processes on a GPU have set their titles and lost the mark; the one above them has it.
            mark = next(marks_above(pid), "")
            return Holder(pid=pid, name=name, used_bytes=used_bytes, server=mark.rpartition("/")[2])
    return None


if __name__ == "__main__":
    main()
