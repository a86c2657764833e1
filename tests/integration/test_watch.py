"""The shared memory of watched processes, seen in the real /proc and /dev/shm."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from wait import wait_until

from infer_dev_entry.init.watch import Watch

_HOLD = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_RDWR); print('open', flush=True); time.sleep(60)"


def test_segment_is_left_only_when_no_living_process_of_any_server_has_it_open(tmp_path: Path) -> None:
    path = Path(f"/dev/shm/sglang_loads_{tmp_path.parent.name}_{tmp_path.name}.shm")
    command = [sys.executable, "-S", "-c", _HOLD, str(path)]
    holders = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]

    async def look() -> list[set[str]]:
        watch = Watch("test", lambda: None)
        for name, holder in zip("ab", holders, strict=True):
            watch.watch(name, holder.pid)
        watch.refresh_trees(segments_of=["a"])
        seen = []
        for holder in (None, *holders):
            if holder is not None:
                holder.kill()
                holder.wait(10)
            seen.append(watch.take_left_segments("a"))
        watch.close()
        return seen

    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"open\n"
        wait_until(path.exists, 15, "the segment")
        assert asyncio.run(look()) == [set(), set(), {str(path)}]
    finally:
        for holder in holders:
            holder.kill()
            holder.wait(10)
        path.unlink(missing_ok=True)
